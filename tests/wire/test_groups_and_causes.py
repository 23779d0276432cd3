"""Groups of exceptions, and what led to an exception, travel part by part."""

from __future__ import annotations

import pickle
import re
import threading
from typing import Any

import pytest

from engine import PredictorError
from engine._wire.failures import pack_failure
from tests.wire.failing import (
    MOST,
    Frozen,
    Holding,
    NeedsMore,
    OfItsOwn,
    arrived,
    causes_of,
    chain,
    described,
    huge,
    notes_of,
    struck,
)


def leaves_of(group: BaseException) -> list[BaseException]:
    if not isinstance(group, BaseExceptionGroup):
        return [group]
    return [leaf for each in group.exceptions for leaf in leaves_of(each)]


@pytest.mark.fault(41)
def test_a_group_arrives_intact_and_can_be_split() -> None:
    group = struck(ExceptionGroup("all", [KeyError(1), ExceptionGroup("inner", [OSError("x"), Frozen(3)])]))
    back = arrived(group)
    assert isinstance(back, ExceptionGroup)
    assert repr(back) == repr(group)
    mine, rest = back.split(OSError)
    assert repr(mine) == "ExceptionGroup('all', [ExceptionGroup('inner', [OSError('x')])])"
    assert rest is not None
    assert "the line that struck" in notes_of(back)[0]


@pytest.mark.fault(41)
def test_a_group_of_what_is_no_exception_arrives_as_such() -> None:
    back = arrived(struck(BaseExceptionGroup("all", [KeyboardInterrupt(), OfItsOwn("x"), ValueError(1)])))
    assert type(back) is BaseExceptionGroup
    assert [type(leaf) for leaf in leaves_of(back)] == [KeyboardInterrupt, OfItsOwn, ValueError]


@pytest.mark.fault(41, 32, 35)
@pytest.mark.usefixtures("silence")
def test_of_a_group_only_the_leaves_that_cannot_travel_are_described_the_others_are_kept() -> None:
    inner = ExceptionGroup(
        "inner", [NeedsMore("text", threading.Lock()), OSError("x"), Frozen(3), NeedsMore("text", 5)]
    )
    group = ExceptionGroup("all", [KeyError(1), ValueError(threading.Lock()), inner, ValueError("big", huge())])
    group.add_note("a note")
    back = arrived(struck(group))
    assert isinstance(back, ExceptionGroup)
    assert back.message == "all"
    assert [type(leaf) for leaf in leaves_of(back)] == [
        KeyError,
        PredictorError,
        PredictorError,
        OSError,
        Frozen,
        NeedsMore,
        PredictorError,
    ]
    names = [leaf.type_name for leaf in leaves_of(back) if isinstance(leaf, PredictorError)]
    assert names == ["ValueError", "NeedsMore", "ValueError"]
    assert "ValueError: ('big', [Loud()," in str(leaves_of(back)[-1])
    assert notes_of(back)[0] == "a note"
    assert re.search(r"(?s)all .*\n  \| KeyError: 1\n.*\n  \|   \| OSError: x", notes_of(back)[1])


class Family(ExceptionGroup[Exception]):
    def derive(self, excs: Any, /) -> Any:
        return Family(self.message, excs)


class Broken(ExceptionGroup[Exception]):
    def derive(self, _excs: Any, /) -> Any:
        raise SystemExit(3)


@pytest.mark.fault(41)
def test_a_group_of_another_type_keeps_it_and_one_that_cannot_be_made_again_is_described() -> None:
    assert type(arrived(struck(Family("all", [KeyError(1)])))) is Family
    assert type(arrived(struck(Family("all", [ValueError(threading.Lock())])))) is Family
    back = described(struck(Broken("all", [ValueError(threading.Lock())])))
    assert back.type_name == "Broken"


@pytest.mark.fault(41, 35)
def test_a_group_with_too_many_leaves_is_described_as_a_whole() -> None:
    group = struck(ExceptionGroup("all", [ValueError("x" * 10_000 + str(number)) for number in range(200)]))
    back = described(group)
    assert str(back) == "ExceptionGroup: all (200 sub-exceptions)"
    assert len(pickle.dumps(pack_failure(group))) < MOST


@pytest.mark.fault(31)
def test_causes_travel_as_themselves_or_described_and_so_does_a_context_that_is_shown() -> None:
    inner = Holding("inner")
    inner.__cause__ = KeyError("innermost")
    outer = ValueError("outer")
    outer.__cause__ = inner
    back = causes_of(arrived(outer))
    assert [type(each) for each in back] == [ValueError, PredictorError, KeyError]
    assert [len(notes_of(each)) for each in back] == [1, 0, 0]  # the first tells all of it
    error = KeyError("second")
    error.__context__ = OSError("first")
    assert repr(arrived(error).__context__) == "OSError('first')"
    error.__suppress_context__ = True
    assert arrived(error).__context__ is None


@pytest.mark.fault(31)
def test_a_chain_of_causes_without_an_end_is_cut() -> None:
    back = causes_of(arrived(chain(100)))
    assert [each.args for each in back] == [(number,) for number in range(99, 90, -1)]
    first, second = ValueError(1), ValueError(2)
    first.__cause__, second.__cause__ = second, first
    assert [each.args for each in causes_of(arrived(first))] == [(1,), (2,)] * 4 + [(1,)]
