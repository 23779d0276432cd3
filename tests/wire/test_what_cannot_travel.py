"""An input or a predictor that cannot travel is named, with the place in it that keeps it."""

from __future__ import annotations

import functools
import socket
import sys
import threading
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Final

import attrs
import pytest

from engine import PayloadError
from engine._wire.decode import decode
from engine._wire.encode import encode, encode_inputs, encode_whole
from engine._wire.targets import encode_target
from tests.wire.travelling import Raising, deep, raising_exit, raising_interrupt, raising_lookup

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

UNPACKABLE: Final[dict[str, tuple[Callable[[], Any], str]]] = {
    "a lock": (threading.Lock, "_thread.lock"),
    "a socket": (socket.socket, "socket"),
    "a generator": (lambda: (each for each in "ab"), "generator"),
    "a context variable": (lambda: ContextVar("variable"), "ContextVar"),
    "a frame": (sys._getframe, "frame"),
    "something deep": (deep, "list"),
    "one that raises": (lambda: Raising(raising_lookup, pack=True), "Raising"),
    "one that exits": (lambda: Raising(raising_exit, pack=True), "Raising"),
}


@pytest.mark.fault(17, 19, 26)
@pytest.mark.parametrize("name", UNPACKABLE)
def test_an_input_that_cannot_travel_is_named_with_its_type_and_what_to_do(name: str) -> None:
    make, kind = UNPACKABLE[name]
    value = make()
    try:
        for harmless in ({"x": 1}, {}):
            with pytest.raises(PayloadError) as caught:
                encode_inputs((), {**harmless, "wanted": value, "y": 2})
            text = str(caught.value)
            assert text.startswith("input 'wanted' of type ")
            assert kind.rpartition(".")[2] in text
            assert "Pass what it is made from instead, or run the predictor with runner='thread'." in text
            assert len(text) < 1000
            assert caught.value.type_name == f"{type(value).__module__}.{type(value).__qualname__}"
            assert "Traceback" in caught.value.traceback
    finally:
        if isinstance(value, socket.socket):
            value.close()


def test_an_input_without_a_name_is_named_by_its_place_and_a_hostile_name_is_escaped() -> None:
    with pytest.raises(PayloadError, match=r"^input 1 of type lock"):
        encode_inputs((1, threading.Lock()), {})
    with pytest.raises(PayloadError) as caught:
        encode_inputs((), {"\x1b[31m\n": threading.Lock()})
    assert str(caught.value).isprintable()


def test_inputs_that_only_together_cannot_travel_are_refused_as_a_whole() -> None:
    attempts: list[None] = []

    def fail_twice() -> None:
        attempts.append(None)
        if len(attempts) <= 2:
            raise LookupError("not yet")

    with pytest.raises(PayloadError, match=r"^the inputs of type dict .*LookupError: not yet"):
        encode_inputs((), {"a": Raising(fail_twice, pack=True)})


@pytest.mark.fault(17, 40)
def test_ctrl_c_while_something_is_packed_is_no_matter_of_payloads() -> None:
    value = Raising(raising_interrupt, pack=True)
    for pack in (
        encode,
        encode_whole,
        lambda each: encode_inputs((), {"a": each}),
        functools.partial(encode_target, "t"),
    ):
        with pytest.raises(KeyboardInterrupt):
            pack(value)


def test_what_is_no_exception_ends_packing_at_once_instead_of_trying_another_way() -> None:
    attempts = []

    class Terminated(BaseException):
        pass

    def terminate() -> None:
        attempts.append(1)
        raise Terminated

    with pytest.raises(Terminated):
        encode(Raising(terminate, pack=True))
    assert len(attempts) == 1


@attrs.define
class Box:
    inside: Any


class Shelf:
    def __init__(self, *boxes: Any) -> None:
        self.number = 3
        self.boxes = boxes


class Discreet(Shelf):
    def __getstate__(self) -> Any:
        return {"number": self.number}

    def __reduce__(self) -> Any:
        raise LookupError("it keeps to itself")


class Veiled(Shelf):
    def __getattr__(self, name: str) -> Any:
        raise OSError(f"no {name}")

    __dict__ = property(lambda self: self.nothing)


LOCK: Final = threading.Lock()
PLACES: Final[dict[str, tuple[Any, str]]] = {
    "itself": (LOCK, ""),
    "nested": ({"a": [{"b": LOCK}]}, "inputs['x']['a'][0]['b'] of type lock"),
    "behind-others": ([1, "two", {3: b"four"}, (LOCK, LOCK)], "inputs['x'][3][0] of type lock"),
    "attributes": (Shelf(Box(1), Box(LOCK)), "inputs['x'].boxes[1].inside of type lock"),
    "local-class": ([Box(lambda: LOCK)], "inputs['x'][0].inside of type function"),
    "its-own-way": ([Discreet(LOCK)], "inputs['x'][0] of type Discreet"),
    "odd-key": ({(1, "\n"): LOCK}, r"inputs['x'][(1, '\n')] of type lock"),
    "too-many": ([[Box(1)] * 100_000, [*[Box(number) for number in range(300)], LOCK]], "inputs['x'][1] of type list"),
    "too-deep": (deep(50, LOCK), ""),
    "veiled": ([Veiled(LOCK)], ""),
}


@pytest.mark.fault(17)
@pytest.mark.parametrize("case", PLACES)
def test_an_input_that_cannot_travel_names_the_place_in_it_that_keeps_it(case: str) -> None:
    value, place = PLACES[case]
    with pytest.raises(PayloadError) as caught:
        encode_inputs((), {"harmless": [1], "x": value})
    because = f" because of {place}" if place else ""
    start = f"input 'x' of type {type(value).__name__} cannot be carried to or from a worker{because}: "
    assert str(caught.value).startswith(start)


@pytest.mark.fault(17, 25)
def test_what_cannot_travel_is_reported_with_the_one_failure_that_says_so() -> None:
    for pack in (lambda value: encode_inputs((), {"x": value}), functools.partial(encode_target, "@me/it")):
        with pytest.raises(PayloadError) as caught:
            pack({"a": threading.Lock()})
        cause = caught.value.__cause__
        assert isinstance(cause, TypeError)
        assert cause.__context__ is cause.__cause__ is None
        assert caught.value.__context__ in {cause, None}
        assert "ByReference" not in caught.value.traceback


def culprits() -> Iterator[tuple[str, Any, str]]:
    guard = threading.Lock()

    def free() -> Any:
        return guard

    def with_default(harmless: int = 1, guarded: Any = guard) -> Any:
        return guarded

    def with_named_default(*, guarded: Any = guard) -> Any:
        return guarded

    class Predictor:
        harmless = 1

        def predict(self) -> Any:
            return guard

    def by_hand(source: Any) -> Any:
        scope: dict[str, Any] = {"GUARD": guard, "harmless": [1]}
        exec(source, scope)
        return scope["f"]

    yield "free", free, "guard"
    yield "global", by_hand("def f(): return harmless, GUARD"), "GUARD"
    yield "deep-inside", by_hand("def f(): return [(lambda: GUARD)() for _ in harmless]"), "GUARD"
    yield "default", with_default, "guarded"
    yield "named-default", with_named_default, "guarded"
    yield "method-of-a-class", Predictor, "guard"
    source = compile(
        "class f:\n    size: int = 1\n    def predict(self, x: int): return GUARD", "", "exec", dont_inherit=True
    )
    yield "method-of-an-annotated-class", by_hand(source), "GUARD"
    yield "method", Predictor().predict, "guard"


@pytest.mark.fault(25)
@pytest.mark.parametrize(("target", "name"), [each[1:] for each in culprits()], ids=[each[0] for each in culprits()])
def test_a_predictor_that_cannot_travel_names_the_variable_that_keeps_it(target: Any, name: str) -> None:
    with pytest.raises(
        PayloadError, match=f"^'{name}', which the predictor @me/it uses, of type lock cannot"
    ) as caught:
        encode_target("@me/it", target)
    assert caught.value.type_name == "_thread.lock"


@pytest.mark.fault(25)
def test_a_predictor_without_variables_of_its_own_is_named_itself() -> None:
    class Holding:
        def __init__(self) -> None:
            self.guard = threading.Lock()

        def predict(self) -> None:
            pass

    for target in (Holding(), functools.partial(print, threading.Lock())):
        with pytest.raises(PayloadError, match=f"^the predictor @me/it of type {type(target).__qualname__} cannot"):
            encode_target("@me/it", target)


def test_a_variable_that_has_no_value_yet_hinders_nothing() -> None:
    def early() -> Any:
        return late, threading.Lock

    assert decode(encode_target("@me/it", early)).__name__ == "early"
    late = 1
