"""Huge failures arrive cut, and no `repr` is made of all of them."""

from __future__ import annotations

import pickle
import re
import threading
from typing import TYPE_CHECKING, Final

import pytest

from engine import PredictorError
from engine._wire.failures import LARGEST_FAILURE, pack_failure
from tests.wire.failing import MOST, arrived, causes_of, chain, described, huge, notes_of, struck

if TYPE_CHECKING:
    from collections.abc import Callable

HUGE: Final[dict[str, tuple[Callable[[], BaseException], str]]] = {
    "a message": (lambda: ValueError("head" + "x" * 3_000_000 + "tail"), r"^ValueError: head.*tail$"),
    "bytes": (
        lambda: UnicodeDecodeError("utf-8", b"\xff" * 3_000_000, 0, 1, "invalid start byte"),
        r"^UnicodeDecodeError: 'utf-8' codec can't decode byte 0xff in position 0: invalid start byte$",
    ),
    "a list": (lambda: ValueError("text", huge()), r"^ValueError: \('text', \[Loud\(\), .*\.\.\."),
    "a list behind a lock": (lambda: ValueError(threading.Lock(), huge()), r"^ValueError: \(<unlocked"),
    "a list beside a lock": (
        lambda: ValueError([threading.Lock(), huge()]),
        r"^ValueError: \(\[<unlocked .* \[Loud\(\)",
    ),
    "a key": (lambda: KeyError(tuple(huge())), r"^KeyError: \(\(Loud\(\),"),
    "lists": (lambda: ValueError(*[["x" * 1000] * 1000 for _ in range(2000)]), r"^ValueError: "),
}


@pytest.mark.fault(35)
@pytest.mark.usefixtures("silence")
@pytest.mark.parametrize("name", HUGE)
def test_a_huge_exception_arrives_cut_and_without_a_repr_of_all_of_it(name: str) -> None:
    make, text = HUGE[name]
    error = struck(make())
    assert len(pickle.dumps(pack_failure(error))) < MOST
    back = described(error)
    assert re.search(text, str(back))
    assert len(str(back)) < 5000
    assert "raise error  # the line that struck" in back.traceback
    assert len(back.traceback) < 70_000


@pytest.mark.fault(35)
@pytest.mark.usefixtures("silence")
@pytest.mark.parametrize("is_cause", [True, False], ids=["cause", "context"])
def test_of_a_huge_cause_or_context_no_repr_is_made_either(is_cause: bool) -> None:
    try:
        try:
            raise ValueError("first", huge())
        except ValueError as first:
            if is_cause:
                raise KeyError("second") from first
            raise KeyError("second")  # noqa: B904 - the point
    except KeyError as second:
        back = arrived(second)
    assert type(back) is KeyError
    behind = back.__cause__ if is_cause else back.__context__
    assert isinstance(behind, PredictorError)
    (note,) = notes_of(back)
    assert note.index("ValueError: ('first', [Loud(), ") < note.index("KeyError: 'second'")


@pytest.mark.fault(35)
@pytest.mark.usefixtures("silence")
def test_a_long_chain_of_causes_with_something_huge_in_it_is_shown_from_its_end() -> None:
    last = chain(100)
    causes_of(last)[-1].args = (huge(),)
    (note,) = notes_of(arrived(struck(last)))
    assert [f"ValueError: {number}\n" in f"{note}\n" for number in (99, 92, 91, 90)] == [True, True, True, False]


@pytest.mark.fault(35)
def test_an_exception_with_a_huge_attribute_keeps_its_whole_text() -> None:
    error = ValueError("text", [1, 2])
    error.blob = bytes(3_000_000)  # type: ignore[attr-defined]
    back = described(struck(error))
    assert str(back) == "ValueError: ('text', [1, 2])"
    assert len(pickle.dumps(pack_failure(error))) < MOST


@pytest.mark.fault(35)
def test_an_exception_just_below_the_bound_arrives_as_itself() -> None:
    error = ValueError("x" * (LARGEST_FAILURE - 1000))
    assert arrived(error).args == error.args
    assert len(pickle.dumps(pack_failure(error))) < MOST
