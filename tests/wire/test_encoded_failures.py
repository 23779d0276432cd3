"""Failures arrive as themselves, or as their type, text and traceback where they cannot."""

from __future__ import annotations

import dataclasses
import importlib
import pathlib
import sys
import threading
from typing import TYPE_CHECKING, Any, Final

import attrs
import pytest

from engine import PredictorError
from engine._wire.failures import pack_failure, unpack_failure
from tests.wire.failing import Frozen, Holding, Mute, NeedsMore, Numeric, OfItsOwn, arrived, described, notes_of, struck
from tests.wire.travelling import deep, made_by_hand, raising_exit, raising_interrupt, raising_lookup

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


class NeedsNoMore(Exception):
    def __init__(self, message: str, code: int = 0) -> None:
        super().__init__(message)
        self.code = code


@attrs.define(kw_only=True)
class KeywordsOnly(Exception):
    code: Any


@attrs.frozen
class FrozenAttrs(Exception):
    code: int


@dataclasses.dataclass(frozen=True, slots=True)
class FrozenSlots(Exception):
    code: int


class Slotted(Exception):
    __slots__ = ("code",)

    def add_note(self, _note: str) -> None:
        raise AttributeError("no notes")


class Stubborn(Exception):
    """Its reduction is what its one argument gives."""

    def __reduce__(self) -> Any:
        return self.args[0]()


class Hostile(Exception):
    def __str__(self) -> str:
        raise SystemExit(3)


class Closed(Exception):
    def __getattribute__(self, _name: str) -> Any:
        raise LookupError("nothing to see")


class WithoutCause(Exception):
    @property
    def __cause__(self) -> Any:  # type: ignore[override]
        raise LookupError("no cause")


REBUILT: Final[dict[str, Callable[[], BaseException]]] = {
    "a text": lambda: ValueError("text"),
    "nothing": KeyError,
    "several arguments": lambda: OSError(2, "no such thing", "name"),
    "of a module": lambda: UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"),
    "an attribute of its own": lambda: NeedsNoMore("text", 5),
    "frozen": lambda: Frozen(5),
    "frozen with slots": lambda: FrozenSlots(5),
    "frozen by attrs": lambda: FrozenAttrs(5),
    "without notes": lambda: Slotted("text"),
    "no Exception": lambda: OfItsOwn("text"),
    "an exit": lambda: SystemExit(3),
    "a limit": lambda: RecursionError("too deep"),
    "no memory": MemoryError,
    "not to be shown": lambda: Mute(1),
    "shown wrongly": lambda: Numeric(1),
    "of a local class": lambda: type("Local", (Exception,), {})("text"),
}


@pytest.mark.fault(31, 34, 36, 41, 44)
@pytest.mark.parametrize("name", REBUILT)
def test_an_exception_that_can_be_rebuilt_arrives_as_itself_with_the_remote_traceback(name: str) -> None:
    error = struck(REBUILT[name]())
    back = arrived(error)
    assert type(back) is type(error)
    assert back is not error
    assert back.args == error.args
    assert getattr(back, "code", None) == getattr(error, "code", None)
    if "frozen" in name or "notes" in name:
        return  # such refuse attributes, and some of them notes
    (note,) = notes_of(back)
    assert note.startswith("in worker 7:\nTraceback (most recent call last):\n")
    assert "raise error  # the line that struck" in note
    assert f"{struck.__code__.co_firstlineno + 3}, in struck" in note


@pytest.mark.fault(31)
def test_notes_travel_and_where_no_place_is_named_none_is_added() -> None:
    error = struck(ValueError("text"))
    error.add_note("a note")
    assert notes_of(arrived(error))[:-1] == ["a note"]
    assert notes_of(arrived(error, "")) == ["a note"]


@pytest.mark.fault(36)
def test_an_exception_that_refuses_attributes_arrives_without_cause_and_notes() -> None:
    error = Frozen(5)
    try:
        raise error from KeyError("reason")
    except Frozen as caught:
        back = arrived(caught)
    assert back == error
    assert notes_of(back) == []
    assert back.__cause__ is None


def unpackable() -> Iterator[tuple[str, BaseException, str, str]]:
    yield "needs-more", NeedsMore("text", threading.Lock()), "NeedsMore", "text"
    yield "keywords-only", KeywordsOnly(code=threading.Lock()), "KeywordsOnly", ""
    yield "holds-a-lock", Holding("text"), "Holding", "text"
    yield "holds-a-generator", ValueError("text", (each for each in "ab")), "ValueError", "('text', <generator"
    yield "raises", Stubborn(raising_lookup), "Stubborn", "raising_lookup"
    yield "exits", Stubborn(raising_exit), "Stubborn", "raising_exit"
    yield "interrupts", Stubborn(raising_interrupt), "Stubborn", "raising_interrupt"
    yield "is-no-reduction", Stubborn(int), "Stubborn", "int"
    yield "is-another-type", Stubborn(lambda: (KeyError, ())), "Stubborn", "lambda"
    yield "is-another-name", Stubborn(lambda: "Stubborn"), "Stubborn", "lambda"
    yield "raises-when-rebuilt", Stubborn(lambda: (raising_lookup, ())), "Stubborn", "lambda"
    yield "mute", Mute(threading.Lock()), "Mute", "unrepresentable"
    yield "deep", ValueError(deep()), "ValueError", "unrepresentable"
    yield "numeric", Numeric(threading.Lock()), "Numeric", "unrepresentable"


@pytest.mark.fault(32, 33, 34, 37)
@pytest.mark.parametrize(
    ("error", "kind", "text"), [each[1:] for each in unpackable()], ids=[each[0] for each in unpackable()]
)
def test_an_exception_that_cannot_be_rebuilt_arrives_as_its_type_text_and_traceback(
    error: BaseException, kind: str, text: str
) -> None:
    back = described(struck(error))
    assert back.type_name == kind
    assert str(back).startswith(f"{kind}: ")
    assert text in str(back)
    assert "raise error  # the line that struck" in back.traceback
    assert notes_of(back) == [f"in worker 7:\n{back.traceback.rstrip()}"]


@pytest.mark.fault(34)
def test_an_exception_whose_methods_all_raise_still_arrives_as_its_type() -> None:
    back = described(struck(Hostile("text")))
    assert back.type_name == "Hostile"
    assert "unrepresentable" in str(back)
    back = described(struck(Closed("text")))
    assert (back.type_name, str(back)[:6]) == ("Closed", "Closed")
    assert "LookupError: nothing to see" in str(back)
    assert "the line that struck" in notes_of(back)[0]
    assert type(arrived(struck(WithoutCause("text")))) is WithoutCause


@pytest.mark.fault(38)
@pytest.mark.usefixtures("forgotten")
def test_an_exception_of_a_class_that_only_the_worker_can_import_arrives_as_its_name(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "only_there.py").write_text("class Odd(Exception): pass\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    packed = pack_failure(struck(importlib.import_module("only_there").Odd("text")))
    assert packed[0] is not None
    monkeypatch.undo()
    del sys.modules["only_there"]
    back = unpack_failure(packed, "in worker 7")
    assert isinstance(back, PredictorError)
    assert (back.type_name, str(back)) == ("Odd", "Odd: text")


@pytest.mark.fault(38)
@pytest.mark.usefixtures("forgotten")
def test_an_exception_of_a_class_that_no_process_can_import_arrives_by_value() -> None:
    module = made_by_hand("exceptions_by_hand", "class Odd(Exception): pass")
    packed = pack_failure(struck(module.Odd("text")))
    del sys.modules["exceptions_by_hand"]
    back = unpack_failure(packed, "in worker 7")
    assert (type(back).__name__, back.args) == ("Odd", ("text",))


class Unforeseen(Exception):
    """Rebuilt well where it was raised, and with trouble elsewhere."""

    trouble: type[BaseException] | None = None

    def __setstate__(self, _state: Any) -> None:
        if self.trouble is not None:
            raise self.trouble


@pytest.mark.fault(20)
@pytest.mark.parametrize("trouble", [LookupError, SystemExit, OfItsOwn])
def test_whatever_rebuilding_raises_here_the_failure_arrives(
    trouble: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    error = Unforeseen("text")
    error.code = 1  # type: ignore[attr-defined]  # so that it has a state
    packed = pack_failure(struck(error))
    assert type(unpack_failure(packed, "")) is Unforeseen
    monkeypatch.setattr(Unforeseen, "trouble", trouble)
    back = unpack_failure(packed, "in worker 7")
    assert isinstance(back, PredictorError)
    assert back.type_name == "Unforeseen"
