"""Faults of inputs and values: what is refused, and what arrives untouched, wherever the predictor runs."""

from __future__ import annotations

import asyncio
import dataclasses
import decimal
import enum
import functools
import inspect
import io
import math
import re
import struct
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from typing import Any, Final

import attrs
import numpy as np
import pydantic
import pytest

from engine import Engine, EngineError, InvalidInputError
from tests.faults.awkward_values import lock, raising

Call = Callable[[Engine, Any, Mapping[str, Any] | None], Any]


def place(consumer: str, runner: str | None) -> Any:
    return pytest.param((consumer, runner), id=f"{consumer}-{runner}")


PLACES = [
    *(place(consumer, runner) for consumer in ("create", "stream") for runner in (None, "inline", "thread")),
    *(place(consumer, runner) for consumer in ("acreate", "astream") for runner in (None, "inline", "thread")),
]


@pytest.fixture(params=PLACES)
def call(request: pytest.FixtureRequest) -> Call:
    """Give the last partial of one call, consumed and placed in each way there is."""
    consumer, runner = request.param

    def in_sync_code(muna: Engine, tag: Any, inputs: Mapping[str, Any] | None) -> Any:
        if consumer == "create":
            return muna.predictions.create(tag, inputs, runner=runner).value
        return list(muna.predictions.stream(tag, inputs, runner=runner).values())[-1]

    async def in_asyncio(muna: Engine, tag: Any, inputs: Mapping[str, Any] | None) -> Any:
        if consumer == "acreate":
            return (await muna.predictions.acreate(tag, inputs, runner=runner)).value
        return [value async for value in muna.predictions.astream(tag, inputs, runner=runner).values()][-1]

    def run(muna: Engine, tag: Any, inputs: Mapping[str, Any] | None = None) -> Any:
        if consumer in {"create", "stream"}:
            return in_sync_code(muna, tag, inputs)
        return asyncio.run(in_asyncio(muna, tag, inputs))

    return run


# 121: inputs that do not fit.


class Started(AssertionError):
    """Raised when a body ran that should have been refused."""


def strict(first: int, /, second: str, *, third: float = 0.5, **rest: bytes) -> None:
    raise Started


async def astrict(first: int, /, second: str, *, third: float = 0.5, **rest: bytes) -> None:
    raise Started


def yielding(first: int, /, second: str, *, third: float = 0.5, **rest: bytes) -> Iterator[None]:
    raise Started
    yield  # type: ignore[unreachable]  # what makes it a generator


async def ayielding(first: int, /, second: str, *, third: float = 0.5, **rest: bytes) -> AsyncIterator[None]:
    raise Started
    yield  # type: ignore[unreachable]  # what makes it a generator


@pytest.mark.fault(121)
@pytest.mark.parametrize(
    ("inputs", "named"),
    [
        ({}, ["first", "second"]),
        (None, ["first", "second"]),
        ({"first": 1}, ["second"]),
        ({"first": "1", "second": 2, "third": "3"}, ["first", "second", "third"]),
        ({"first": True, "second": "x"}, ["first"]),
        ({"second": "x", "third": None}, ["first", "third"]),
        ({"first": 1, "second": "x", "fourth": "not bytes"}, ["fourth"]),
    ],
    ids=["none-given", "none", "one-missing", "three-wrong", "bool-for-int", "missing-and-wrong", "wrong-extra"],
)
@pytest.mark.parametrize("kind", ["return", "yield"])
def test_everything_wrong_with_the_inputs_is_named_at_once_and_no_body_starts(
    muna: Engine, call: Call, inputs: Mapping[str, Any] | None, named: list[str], kind: str
) -> None:
    with pytest.raises(InvalidInputError) as caught:
        call(muna, strict if kind == "return" else yielding, inputs)
    for name in named:
        assert repr(name) in str(caught.value)


@pytest.mark.fault(121)
@pytest.mark.parametrize("predictor", [astrict, ayielding])
@pytest.mark.parametrize("consumer", ["create", "stream", "acreate", "astream"])
def test_an_async_predictors_inputs_are_refused_as_early(muna: Engine, predictor: Any, consumer: str) -> None:
    async def main() -> None:
        with pytest.raises(InvalidInputError, match="'second'"):
            await muna.predictions.acreate(predictor, {"first": 1})
        with pytest.raises(InvalidInputError, match="'second'"):
            muna.predictions.astream(predictor, {"first": 1})  # at the call: a server answers before it streams

    if consumer in {"acreate", "astream"}:
        asyncio.run(main())
    else:
        with pytest.raises(InvalidInputError, match="'second'"):
            getattr(muna.predictions, consumer)(predictor, {"first": 1})


@pytest.mark.fault(121)
@pytest.mark.parametrize("runner", [None, "thread"])
def test_a_stream_refuses_its_inputs_at_the_call_not_at_the_first_pull(muna: Engine, runner: str | None) -> None:
    with pytest.raises(InvalidInputError, match="'second'"):
        muna.predictions.stream(yielding, {"first": 1}, runner=runner)


@pytest.mark.fault(121)
def test_an_unknown_input_is_refused_with_the_valid_names(muna: Engine, call: Call) -> None:
    def greet(name: str, *, times: int = 1) -> None:
        raise Started

    with pytest.raises(InvalidInputError, match=re.escape("its inputs are: name, times")):
        call(muna, greet, {"name": "Ada", "tiems": 2})


@pytest.mark.fault(121)
def test_unchecked_calls_still_need_the_names_but_take_any_value(muna: Engine) -> None:
    def half(number: float) -> Any:
        return number

    for runner in (None, "thread"):
        assert muna.predictions.create(half, {"number": "text"}, runner=runner, check=False).value == "text"
        with pytest.raises((InvalidInputError, TypeError)):
            muna.predictions.create(half, {"nubmer": "text"}, runner=runner, check=False)


@pytest.mark.fault(121)
def test_defaults_are_the_functions_own_and_are_not_checked(muna: Engine, call: Call) -> None:
    marker = object()

    def takes(value: int = marker, *, other: str = None) -> Any:  # type: ignore[assignment]  # noqa: RUF013
        return value, other

    assert call(muna, takes, None) == (marker, None)
    assert call(muna, takes, {"value": marker}) == (marker, None)
    assert call(muna, takes, {"value": 3, "other": None}) == (3, None)


# 122: inputs named like the engine's own parameters.


@pytest.mark.fault(122)
def test_inputs_may_have_the_names_of_the_engines_own_parameters(muna: Engine, call: Call) -> None:
    def takes(  # noqa: PLR0917 - their names are the test
        self: int, tag: int, inputs: int, runner: int, check: int, reduce: int, errors: int, **more: int
    ) -> Any:
        return self, tag, inputs, runner, check, reduce, errors, tuple(more.items())

    names = ("self", "tag", "inputs", "runner", "check", "reduce", "errors")
    inputs = {name: number for number, name in enumerate(names)}
    more = dict.fromkeys(("prefetch", "timeout", "args", "kwargs", "function", "call", "body", "context"), 9)
    assert call(muna, takes, {**inputs, **more}) == (0, 1, 2, 3, 4, 5, 6, tuple(more.items()))


@pytest.mark.fault(122)
@pytest.mark.parametrize("name", ["_x", "__slots__", "class", "", "a b", "\n", "é", "0", "lambda", "__class__", "_run"])
def test_any_text_may_name_an_input_that_is_taken_by_double_star(muna: Engine, call: Call, name: str) -> None:
    def takes(**named: int) -> dict[str, int]:
        return named

    assert call(muna, takes, {name: 1}) == {name: 1}


# 123: values that break printing, comparing or hashing.

NAN = struct.unpack("<d", b"\x01\x00\x00\x00\x00\x00\xf8\x7f")[0]  # with a payload of its own


class Hostile:
    """Raises at whatever might be asked of it on the way."""

    def __repr__(self) -> str:
        raise RuntimeError("repr")

    def __eq__(self, other: object) -> bool:
        raise RuntimeError("eq")

    def __hash__(self) -> int:
        raise RuntimeError("hash")

    def __bool__(self) -> bool:
        raise RuntimeError("bool")

    def __len__(self) -> int:
        raise RuntimeError("len")

    def __str__(self) -> str:
        raise RuntimeError("str")


VALUES = {
    "nan": NAN,
    "inf": math.inf,
    "minus-zero": -0.0,
    "huge-int": 10**5000,
    "lone-surrogate": "\ud800",
    "nul": "a\x00b",
    "bytes": bytes(range(256)),
    "huge-key": {"k" * 1_000_000: 1, 10**5000: 2},
    "escape": "\x1b[31m\u202ered",
    "hostile": Hostile(),
    "not-implemented": NotImplemented,
    "an-exception": ValueError("a value"),
    "a-class": int,
    "none": None,
    "empty": (),
}


@pytest.mark.fault(123)
@pytest.mark.parametrize("name", VALUES)
def test_awkward_values_arrive_as_the_very_same_objects(muna: Engine, call: Call, name: str) -> None:
    value = VALUES[name]

    def gives_back(value: Any) -> Any:
        return [value]

    assert call(muna, gives_back, {"value": value})[0] is value


@pytest.mark.fault(123)
@pytest.mark.parametrize("name", [name for name in VALUES if name != "a-class"])
def test_awkward_values_are_refused_in_words_that_can_be_printed_anywhere(muna: Engine, call: Call, name: str) -> None:
    def takes(value: range) -> None:
        raise Started

    with pytest.raises(InvalidInputError) as caught:
        call(muna, takes, {"value": VALUES[name]})
    text = str(caught.value)
    assert "'value'" in text
    assert len(text) < 1000
    assert text.isascii()
    assert all(character.isprintable() or character == "\n" for character in text)


LOUD: Final = "\x1b[31mloud\r\n\u202e" + "e" * 1000


def is_safe(text: str) -> bool:
    """Whether a terminal, a log or a file shows a short text as it is; its lines are its own."""
    return text.replace("\n", "").isprintable() and len(text) < 2000


@pytest.mark.fault(116, 123)
def test_whatever_a_users_classes_and_functions_are_called_and_say_is_printable_in_messages(muna: Engine) -> None:
    def loud(number: int) -> Any:
        return number

    def fails() -> None:
        raise kind(LOUD)

    def gives() -> Any:
        return lock()

    kind = type("Loud", (Exception,), {"__reduce__": lambda _self: 1 / 0})
    loud.__qualname__ = fails.__qualname__ = gives.__qualname__ = kind.__qualname__ = kind.__name__ = LOUD
    reducing = type("Loud", (), {"__reduce__": lambda _self: raising(ValueError, LOUD)()})
    reducing.__qualname__ = LOUD
    held = reducing()
    shown = [repr(muna.predictions.create(loud, {"number": 1}))]
    shown.append(repr(muna.predictions.create(fails, errors="return")))
    calls: list[Callable[[], Any]] = [
        lambda: muna.predictions.create(loud, {}),
        lambda: muna.predictions.create(loud, {"number": held}, runner="process", check=False),
        lambda: muna.predictions.create(gives, runner="process"),
        lambda: muna.predictions.create(fails, runner="process"),
    ]
    for call in calls:
        with pytest.raises(EngineError) as caught:
            call()
        shown.append(str(caught.value))
    assert [text for text in shown if not is_safe(text)] == []
    assert sum("\\x1b[31mloud" in text for text in shown) == len(shown) - 1  # a lock has a name of its own


@pytest.mark.fault(123)
def test_a_prediction_of_an_awkward_value_can_be_shown(muna: Engine) -> None:
    def gives_back(value: Any) -> Any:
        return value

    for value in VALUES.values():
        assert len(repr(muna.predictions.create(gives_back, {"value": value}))) < 1000


# 124: inputs that change.


@pytest.mark.fault(124)
@pytest.mark.parametrize("runner", [None, "thread"])
@pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])
def test_in_this_process_both_sides_see_one_object_change(muna: Engine, runner: str | None, is_async: bool) -> None:
    def follows(items: list[int]) -> Iterator[int]:
        yield len(items)
        items.append(2)
        yield len(items)

    async def afollows(items: list[int]) -> AsyncIterator[int]:
        yield len(items)
        items.append(2)
        yield len(items)

    items = [0]
    stream = muna.predictions.stream(afollows if is_async else follows, {"items": items}, runner=runner, prefetch=0)
    values = stream.values()
    assert next(values) == 1
    items.append(1)
    assert list(values) == [3]
    assert items == [0, 1, 2]


@pytest.mark.fault(124)
@pytest.mark.parametrize("runner", [None, "thread"])
def test_changing_the_mapping_of_inputs_after_the_call_changes_nothing(muna: Engine, runner: str | None) -> None:
    def takes(number: int, **more: int) -> Any:
        more["own"] = 1
        yield number, more

    inputs = {"number": 1, "extra": 2}
    stream = muna.predictions.stream(takes, inputs, runner=runner)
    inputs["number"] = 5
    del inputs["extra"]
    assert next(stream).value == (1, {"extra": 2, "own": 1})
    assert inputs == {"number": 5}
    stream.close()


# 125: inputs that can be read once.


@pytest.mark.fault(125)
def test_iterators_generators_and_files_pass_through_unread(muna: Engine, call: Call, tmp_path: Any) -> None:
    def reads(source: Any) -> list[Any]:
        return list(source)

    path = tmp_path / "lines.txt"
    path.write_text("one\ntwo\n")
    assert call(muna, reads, {"source": iter([1, 2])}) == [1, 2]
    assert call(muna, reads, {"source": (number for number in (1, 2))}) == [1, 2]
    assert call(muna, reads, {"source": map(str, (1, 2))}) == ["1", "2"]
    assert call(muna, reads, {"source": io.StringIO("one\ntwo\n")}) == ["one\n", "two\n"]
    with path.open() as lines:
        assert call(muna, reads, {"source": lines}) == ["one\n", "two\n"]
        assert not lines.closed


@pytest.mark.fault(125)
def test_checking_an_iterator_does_not_read_it(muna: Engine, call: Call) -> None:
    def reads(source: Iterator[int]) -> list[int]:
        return list(source)

    assert call(muna, reads, {"source": iter([1, 2])}) == [1, 2]
    with pytest.raises(InvalidInputError, match="'source'"):
        call(muna, reads, {"source": 5})


# 126: values with a type of their own.


class Word(str):
    """Text with a type of its own."""

    __slots__ = ()


class Shade(enum.IntEnum):
    """A number with a type of its own."""

    DARK = 1


@dataclasses.dataclass
class Point:
    """A dataclass."""

    x: int


@attrs.define
class Declared:
    """An attrs class."""

    x: int


class Shape(pydantic.BaseModel):
    """A pydantic model."""

    x: int


TYPED = [
    Word("text"),
    Shade.DARK,
    Point(1),
    Declared(1),
    Shape(x=1),
    np.arange(6).reshape(2, 3)[:, ::2],
    np.float32(0.5),
    np.int64(5),
    decimal.Decimal("0.1"),
    frozenset({1}),
    memoryview(b"abc"),
]


@pytest.mark.fault(126)
@pytest.mark.parametrize("value", TYPED, ids=lambda value: type(value).__name__)
def test_a_value_keeps_its_type_on_its_way_in_and_out(muna: Engine, call: Call, value: Any) -> None:
    seen: list[type] = []

    def gives_back(value: Any) -> Any:
        seen.append(type(value))
        return value

    assert call(muna, gives_back, {"value": value}) is value
    assert seen == [type(value)]


@pytest.mark.fault(126)
@pytest.mark.parametrize(
    ("annotation", "value"),
    [
        (str, Word("text")),
        (int, Shade.DARK),
        (int, np.int64(5)),
        (float, np.float32(0.5)),
        (float, 3),
        (Point, Point(1)),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else type(value).__name__,
)
def test_a_checked_value_is_never_coerced(muna: Engine, call: Call, annotation: type, value: Any) -> None:
    def gives_back(value: Any) -> Any:
        return value

    gives_back.__annotations__["value"] = annotation
    assert call(muna, gives_back, {"value": value}) is value


# 127: callables whose signature cannot be read, or reads oddly.


@pytest.mark.fault(127)
@pytest.mark.parametrize(
    ("target", "inputs", "result"),
    [
        (len, {"obj": "abc"}, 3),
        (abs, {next(iter(inspect.signature(abs).parameters)): -2}, 2),  # its name differs between versions
        (math.hypot, {}, 0.0),
        (functools.partial(pow, 2), {"exp": 3}, 8),
        (functools.partial(functools.partial(pow, 2), exp=4), {}, 16),
        (functools.partial(max, 1, 2), {}, 2),
        ("abc".upper, {}, "ABC"),
        (str.upper, {"self": "abc"}, "ABC"),
        (lambda *items: items, {}, ()),
        (lambda *items: items, {"items": [1, 2]}, (1, 2)),
        (lambda first, /, *rest, last: (first, rest, last), {"first": 1, "rest": (2,), "last": 3}, (1, (2,), 3)),
        (lambda **named: named, {"a": 1}, {"a": 1}),
    ],
    ids=[
        *("len", "abs", "hypot", "partial", "partial-of-partial", "unreadable-partial", "bound", "unbound"),
        *("star", "star-given", "all-kinds", "double-star"),
    ],
)
def test_callables_of_every_make_can_be_called(
    muna: Engine, call: Call, target: Any, inputs: dict[str, Any], result: Any
) -> None:
    assert call(muna, target, inputs) == result
    muna.predictors.register("@tests/made", target)
    assert call(muna, "@tests/made", inputs) == result


@pytest.mark.fault(127)
@pytest.mark.parametrize("target", [max, getattr, functools.partial(max)], ids=["max", "getattr", "partial"])
def test_inputs_of_a_callable_that_cannot_be_read_go_to_it_by_name_and_it_answers_itself(
    muna: Engine, call: Call, target: Any
) -> None:
    with pytest.raises(TypeError):
        call(muna, target, {"anything": 1})


@pytest.mark.fault(127)
def test_a_wrapped_function_shows_the_inputs_of_the_inner_one(muna: Engine, call: Call) -> None:
    def inner(name: str) -> str:
        return name

    @functools.wraps(inner)
    def outer(*args: Any, **kwargs: Any) -> str:
        return f"outer {inner(*args, **kwargs)}"

    assert call(muna, outer, {"name": "Ada"}) == "outer Ada"
    with pytest.raises(InvalidInputError, match="'nmae'"):
        call(muna, outer, {"nmae": "Ada"})


@pytest.mark.fault(127)
def test_a_signature_that_lies_ends_in_pythons_own_error(muna: Engine, call: Call) -> None:
    def liar(actual: int) -> int:
        return actual

    liar.__signature__ = inspect.Signature([inspect.Parameter("shown", inspect.Parameter.KEYWORD_ONLY)])  # type: ignore[attr-defined]
    with pytest.raises(TypeError, match="shown"):
        call(muna, liar, {"shown": 1})
