"""Predictions and outcomes are plain and safe: as values, as JSON, in a pickle and in a repr."""

from __future__ import annotations

import json
import pickle
import re
from datetime import UTC, datetime
from typing import Any

import pytest

from engine import Engine, Outcome, Prediction, Predictor, PredictorError


def made(value: Any, **options: Any) -> Prediction:
    def returns() -> Any:
        return value

    with Engine(discover=False) as muna:
        return muna.predictions.create(Predictor("@me/returns", returns), **options)


def failed() -> Prediction:
    def fails() -> None:
        raise LookupError("nothing found")

    with Engine(discover=False) as muna:
        return muna.predictions.create(Predictor("@me/fails", fails), errors="return")


@pytest.mark.parametrize(
    ("value", "results"),
    [(("a", 1), ("a", 1)), ((), ()), ("text", ("text",)), ([1, 2], ([1, 2],)), (None, (None,)), ({1: 2}, ({1: 2},))],
    ids=repr,
)
def test_results_are_the_tuple_view_of_the_value(value: Any, results: tuple[Any, ...]) -> None:
    prediction = made(value)
    assert prediction.value is value
    assert prediction.results == results


class Pair(tuple[int, int]):
    __slots__ = ()


def test_a_named_tuple_is_one_result() -> None:
    pair = Pair((1, 2))
    assert made(pair).results == (pair,)


def test_a_predictions_dict_is_the_json_shape() -> None:
    before = datetime.now(UTC)
    prediction = made(("text", 1))
    shape = json.loads(json.dumps(prediction.to_dict()))
    assert list(shape) == ["id", "tag", "results", "latency", "error", "logs", "created"]
    assert (shape["id"], shape["tag"], shape["results"]) == (prediction.id, "@me/returns", ["text", 1])
    assert (shape["error"], shape["logs"], shape["latency"]) == (None, "", prediction.latency)
    created = datetime.fromisoformat(shape["created"])
    assert created.tzinfo is not None
    assert (created - before).total_seconds() == pytest.approx(0.0, abs=60.0)


def test_a_failure_in_a_predictions_dict_is_its_traceback() -> None:
    shape = json.loads(json.dumps(failed().to_dict()))
    assert shape["error"].startswith("Traceback (most recent call last):")
    assert "LookupError: nothing found" in shape["error"]
    assert shape["results"] == [None]


class Hostile:
    def __repr__(self) -> str:
        raise RuntimeError("no repr for you")


@pytest.mark.parametrize(
    "value",
    ["x" * 100_000, "\x1b[2J\x00", Hostile(), [Hostile()], 10**10_000, "\ud800", b"\xff" * 9_999, {"a": "b" * 999}],
    ids=type,
)
def test_the_repr_of_a_prediction_is_short_and_safe_whatever_the_value(value: Any) -> None:
    text = repr(made(value))
    assert text.startswith("<Prediction @me/returns #0 ")
    assert len(text) < 400
    assert text.isascii()
    assert text.isprintable()


def test_the_repr_of_a_failed_prediction_names_the_error() -> None:
    assert re.fullmatch(r"<Prediction @me/fails #0 failed: LookupError \d+\.\d{3} ms>", repr(failed()))


def test_a_prediction_survives_a_pickle_with_its_call() -> None:
    prediction = made(("text", 1))
    copied = pickle.loads(pickle.dumps(prediction))
    assert copied.to_dict() == prediction.to_dict()
    assert (copied.index, copied.value, copied.exception) == (0, ("text", 1), None)
    assert copied.created == prediction.created


def test_a_failed_prediction_survives_a_pickle_with_its_error() -> None:
    prediction = failed()
    copied = pickle.loads(pickle.dumps(prediction))
    assert copied.error == prediction.error
    assert (type(copied.exception), copied.exception.args) == (LookupError, ("nothing found",))
    with pytest.raises(LookupError, match="nothing found"):
        copied.raise_for_error()


def test_an_exception_that_cannot_be_rebuilt_travels_as_a_predictor_error() -> None:
    class Local(Exception):
        pass

    def fails() -> None:
        raise Local("of no module")

    with Engine(discover=False) as muna:
        prediction = muna.predictions.create(fails, errors="return")
    copied = pickle.loads(pickle.dumps(prediction))
    assert isinstance(copied.exception, PredictorError)
    assert copied.exception.type_name.endswith("Local")
    assert "of no module" in str(copied.exception)
    assert "of no module" in copied.exception.traceback
    assert copied.error == prediction.error


def test_raise_for_error_gives_the_prediction_itself_where_all_went_well() -> None:
    prediction = made("text")
    assert prediction.raise_for_error() is prediction


def test_a_prediction_has_no_room_for_anything_else() -> None:
    with pytest.raises(AttributeError):
        made("text").mood = "good"  # type: ignore[attr-defined]


def test_an_outcome_survives_a_pickle() -> None:
    copied = pickle.loads(pickle.dumps(Outcome("done", 3, "returned")))
    assert (copied.state, copied.count, copied.returned, copied.ended) == ("done", 3, "returned", True)


@pytest.mark.parametrize("state", ["pending", "running"])
def test_an_outcome_that_may_go_on_has_not_ended(state: Any) -> None:
    assert not Outcome(state).ended
