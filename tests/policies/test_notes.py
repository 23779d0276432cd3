"""The one note that a failure carries, with its call."""

from __future__ import annotations

import re
from typing import Any

import pytest

from engine import Engine, EngineError, Predictor
from tests.policies.calls import both_colours, both_faces, both_places, created, yields


def note_of(error: BaseException) -> str:
    [note] = error.__notes__
    return str(note)


@both_faces
@both_colours
@both_places
def test_a_failure_carries_one_note_with_its_call(face: str, target: Any, runner: str | None, muna: Engine) -> None:
    record = Predictor("@me/fails", target)
    prediction = created(muna, face, record, runner=runner, errors="return")
    assert isinstance(prediction.exception, LookupError)
    assert re.fullmatch(
        rf"predictor @me/fails, prediction {prediction.id}, runner (inline|thread|loop), after 2 partials",
        note_of(prediction.exception),
    )
    assert note_of(prediction.exception) in (prediction.error or "")


def test_a_note_replaces_an_earlier_one_of_ours_and_leaves_others(muna: Engine) -> None:
    shared = LookupError("the same object each time")
    shared.add_note("the author's own")

    def fails() -> None:
        raise shared

    prediction = [muna.predictions.create(fails, errors="return") for _ in range(3)][-1]
    assert len(shared.__notes__) == 2
    assert shared.__notes__[0] == "the author's own"
    assert prediction.id in shared.__notes__[1]


def test_a_call_within_a_call_leaves_the_note_of_the_outer_one(muna: Engine) -> None:
    def inner() -> None:
        raise LookupError("deep down")

    def outer() -> None:
        muna.predictions.create(Predictor("@me/inner", inner))

    with pytest.raises(LookupError) as caught:
        muna.predictions.create(Predictor("@me/outer", outer))
    assert "@me/outer" in note_of(caught.value)


class Closed(Exception):
    """Refuses notes."""

    def add_note(self, _note: str) -> None:
        raise TypeError("no notes, please")


def test_a_failure_that_refuses_notes_arrives_without_one(muna: Engine) -> None:
    def fails() -> None:
        raise Closed("as it is")

    with pytest.raises(Closed, match="as it is") as caught:
        muna.predictions.create(fails)
    assert not hasattr(caught.value, "__notes__")


def test_what_is_refused_before_the_body_runs_has_no_note(muna: Engine) -> None:
    for target, inputs in (("@me/unknown", {}), (yields, {"unknown": 1})):
        with pytest.raises(EngineError) as caught:
            muna.predictions.create(target, inputs)
        assert not hasattr(caught.value, "__notes__")
