"""Faults in how Python's generators and iterators behave: endings, re-entry, disguises, emptiness, and odd values.

They are asked of every kind, consumer and runner, since a predictor's author must not have to know which of them will
drive the generator.
"""

from __future__ import annotations

import functools
import itertools
import weakref
from typing import TYPE_CHECKING, Any, Final

import pytest

from engine import EngineClosedError, NoPartialsError, Predictor, fold
from tests._kit.gates import Gate
from tests._kit.waits import OtherThread, auntil
from tests.faults.awkward_values import DISGUISED, AsyncWrapped, Wrapped
from tests.faults.conftest import END, PARTIALS, YIELDING, Cell, Fault, each_cell, predictor_with
from tests.faults.producers import raising

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    from tests.faults.conftest import Consumer, Point


# 62: the exceptions that end iterators.


@pytest.mark.fault(62)
@pytest.mark.parametrize("kind", [StopIteration, StopAsyncIteration])
@pytest.mark.parametrize("policy", ["stream", "create", "create-and-return"])
def test_an_end_marker_that_a_predictor_raises_is_a_failure_never_an_end(
    point: Point, kind: type[Exception], policy: str
) -> None:
    async def scenario(consumer: Consumer) -> None:
        error = kind("no end")
        fault = Fault(raising(error), point.place)
        predictor = predictor_with(point.cell.kind, fault)
        if policy == "create-and-return":
            arrived = (await consumer.create(predictor, errors="return")).exception
        elif policy == "create":
            with pytest.raises(RuntimeError) as raised:
                await consumer.create(predictor)
            arrived = raised.value
        else:
            reader = consumer.open(predictor)
            assert [await reader.pull() for _ in point.delivered] == point.delivered
            with pytest.raises(RuntimeError) as raised:
                await reader.pull()
            arrived = raised.value
            assert await reader.has_ended("failed")
        assert type(arrived) is RuntimeError
        assert arrived.__cause__ is error
        assert (fault.started, fault.finalised) == (1, 1)
        assert await consumer.still_works()

    point.cell.run(scenario)


# 63: the end of a sync generator, seen from asyncio.


@pytest.mark.fault(63)
@pytest.mark.parametrize("count", [0, 1, 2, 300])
def test_a_generator_that_ends_ends_its_stream(yielding: Cell, count: int) -> None:
    async def scenario(consumer: Consumer) -> None:
        fault = Fault(partials=tuple(range(count)))
        reader = consumer.open(predictor_with(yielding.kind, fault))
        assert await reader.rest() == list(range(count))
        assert await reader.has_ended("done")
        assert (fault.started, fault.finalised) == (1, 1)
        again = consumer.open(predictor_with(yielding.kind, fault))
        predictions: list[Any] = []
        while (prediction := await again.prediction()) is not END:
            predictions.append(prediction)
        assert [each.index for each in predictions] == list(range(count))

    yielding.run(scenario)


# 64: a generator that runs itself.


@pytest.mark.fault(64)
def test_a_body_that_enters_itself_fails_with_what_python_says(yielding: Cell) -> None:
    itself: list[Any] = []

    def yields() -> Iterator[Any]:
        yield "first"
        yield next(itself[0])

    async def async_yields() -> AsyncIterator[Any]:
        yield "first"
        yield await anext(itself[0])

    def gives_one() -> Any:
        itself.append(yields() if yielding.kind == "gen" else async_yields())
        return itself[0]

    async def async_gives_one() -> Any:
        return gives_one()

    async def scenario(consumer: Consumer) -> None:
        reader = consumer.open(gives_one if yielding.kind == "gen" else async_gives_one)
        assert await reader.pull() == "first"
        with pytest.raises((ValueError, RuntimeError), match=r"already (executing|running)"):
            await reader.rest()
        assert await reader.has_ended("failed")
        assert await consumer.still_works()

    yielding.run(scenario)
    itself.clear()


# 65: generators in disguise.


def hello() -> Iterator[str]:
    yield from PARTIALS


async def ahello() -> AsyncIterator[str]:
    for partial in PARTIALS:
        yield partial


def gives_hello() -> Any:
    return hello()


def gives_ahello() -> Any:
    return ahello()


class Greeter:
    """Generators in every place a class can have one."""

    def method(self) -> Iterator[str]:
        yield from PARTIALS

    async def async_method(self) -> AsyncIterator[str]:
        for partial in PARTIALS:
            yield partial

    @classmethod
    def of_class(cls) -> Iterator[str]:
        yield from PARTIALS

    @classmethod
    async def async_of_class(cls) -> AsyncIterator[str]:
        for partial in PARTIALS:
            yield partial

    @staticmethod
    def static() -> Iterator[str]:
        yield from PARTIALS

    @staticmethod
    async def async_static() -> AsyncIterator[str]:
        for partial in PARTIALS:
            yield partial


class Called:
    def __call__(self) -> Iterator[str]:
        yield from PARTIALS


class AsyncCalled:
    async def __call__(self) -> AsyncIterator[str]:
        for partial in PARTIALS:
            yield partial


def wrapped(function: Callable[[], Any]) -> Callable[[], Any]:
    @functools.wraps(function)
    def wrapper() -> Any:
        return function()

    return wrapper


def async_wrapped(function: Callable[[], Any]) -> Callable[[], Any]:
    @functools.wraps(function)
    async def wrapper() -> Any:
        return function()

    return wrapper


def takes(count: int, source: Callable[[], Any]) -> Any:
    assert count == 2
    return source()


async def async_takes(count: int, source: Callable[[], Any]) -> Any:
    assert count == 2
    return source()


DISGUISES: Final[dict[str, tuple[Any, Any]]] = {
    "wraps": (wrapped(hello), wrapped(ahello)),
    "async-wraps": (async_wrapped(hello), async_wrapped(ahello)),
    "returned-by-a-def": (gives_hello, gives_ahello),
    "stands-for-one": (lambda: Wrapped(hello()), lambda: AsyncWrapped(ahello())),
    "partial": (functools.partial(takes, 2, hello), functools.partial(async_takes, 2, ahello)),
    "bound-method": (Greeter().method, Greeter().async_method),
    "class-method": (Greeter.of_class, Greeter.async_of_class),
    "static-method": (Greeter.static, Greeter.async_static),
    "callable-object": (Called(), AsyncCalled()),
}


def is_refused(cell: Cell, disguise: str) -> bool:
    """An `async def` around a sync generator gives a coroutine first, which sync code cannot run inline."""
    return disguise == "async-wraps" and not cell.is_asyncio and cell.runner == "inline"


@pytest.mark.fault(65)
@pytest.mark.parametrize(
    ("cell", "disguise"),
    [(cell, name) for cell in YIELDING for name in DISGUISES if not is_refused(cell, name)],
    ids=str,
)
def test_a_generator_is_known_by_the_object_whatever_made_it(cell: Cell, disguise: str) -> None:
    predictor = DISGUISES[disguise][cell.is_async]

    async def scenario(consumer: Consumer) -> None:
        reader = consumer.open(predictor)
        assert await reader.rest() == list(PARTIALS)
        assert await reader.has_ended("done")
        assert (await consumer.create(predictor)).value == PARTIALS[-1]
        assert (await consumer.create(predictor, reduce="collect")).value == list(PARTIALS)

    cell.run(scenario)


@pytest.mark.fault(65)
@pytest.mark.parametrize("policy", ["stream", "create"])
def test_a_sync_generator_behind_an_async_def_is_refused_inline_in_sync_code(policy: str) -> None:
    async def scenario(consumer: Consumer) -> None:
        predictor = DISGUISES["async-wraps"][False]
        reading = consumer.read(predictor) if policy == "stream" else consumer.create(predictor)
        with pytest.raises(ValueError, match="leave runner out"):
            await reading
        assert await consumer.still_works()

    Cell("gen", "sync", "inline").run(scenario)


RETURNED: Final[dict[str, Callable[[], Any]]] = {
    "map": lambda: map(str, [1, 2]),
    "iter": lambda: iter([1, 2]),
    "zip": lambda: zip([1], [2], strict=True),
    "count": itertools.count,
    "list": lambda: [1, 2],
    "range": lambda: range(2),
    "text": lambda: "ab",
    "dict": lambda: {"a": 1},
}


def giving(cell: Cell, made: Any, annotation: Any = None) -> Callable[[], Any]:
    """A predictor of this cell's colour that returns one ready-made object."""

    def gives() -> Any:
        return made

    async def async_gives() -> Any:
        return made

    function = async_gives if cell.is_async else gives
    if annotation is not None:
        function.__annotations__["return"] = annotation
    return function


@pytest.mark.fault(65)
@each_cell(lambda cell: not cell.is_yielding)
@pytest.mark.parametrize("name", RETURNED)
def test_any_other_iterable_that_is_returned_is_one_result(cell: Cell, name: str) -> None:
    made = RETURNED[name]()

    async def scenario(consumer: Consumer) -> None:
        (only,) = await consumer.read(giving(cell, made))
        assert only is made
        assert (await consumer.create(giving(cell, made))).value is made

    cell.run(scenario)


@pytest.mark.fault(65)
@each_cell(lambda cell: not cell.is_yielding)
@pytest.mark.parametrize("name", ["map", "iter"])
@pytest.mark.parametrize("declared", ["annotation", "yields"])
def test_an_iterator_is_followed_where_the_author_said_so(cell: Cell, name: str, declared: str) -> None:
    from collections.abc import Iterator as AnyIterator

    expected = list(RETURNED[name]())

    def predictor() -> Any:
        function = giving(cell, RETURNED[name](), AnyIterator[Any] if declared == "annotation" else None)
        return function if declared == "annotation" else Predictor("@tests/iterates", function, yields=True)

    async def scenario(consumer: Consumer) -> None:
        assert await consumer.read(predictor()) == expected
        assert (await consumer.create(predictor())).value == expected[-1]
        assert (await consumer.create(predictor(), reduce="collect")).value == expected

    cell.run(scenario)


# 66: a generator's return value.


@pytest.mark.fault(66)
@each_cell(lambda cell: cell.kind == "gen")
def test_a_generators_return_value_is_no_partial(cell: Cell) -> None:
    def returns_too() -> Any:
        yield "partial"
        return "returned"

    async def scenario(consumer: Consumer) -> None:
        reader = consumer.open(returns_too)
        assert await reader.rest() == ["partial"]
        assert reader.outcome.returned == "returned"
        assert (await consumer.create(returns_too)).value == "partial"
        assert (await consumer.create(returns_too, reduce="collect")).value == ["partial"]
        assert (await consumer.create(returns_too, reduce="returned")).value == "returned"

    cell.run(scenario)


@pytest.mark.fault(66)
@each_cell(lambda cell: cell.kind != "gen")
def test_what_the_other_kinds_return_is_their_partial_or_nothing(cell: Cell) -> None:
    async def scenario(consumer: Consumer) -> None:
        predictor = predictor_with(cell.kind, Fault())
        returned = None if cell.kind == "agen" else PARTIALS[-1]
        reader = consumer.open(predictor)
        assert await reader.rest() == list(cell.partials)
        assert reader.outcome.returned == returned
        assert (await consumer.create(predictor, reduce="returned")).value == returned

    cell.run(scenario)


# 67: no partials.


@pytest.mark.fault(67)
def test_no_partials_are_an_empty_stream_and_an_answer_or_an_error_of_create(yielding: Cell) -> None:
    predictor = predictor_with(yielding.kind, Fault(partials=()))

    async def scenario(consumer: Consumer) -> None:
        reader = consumer.open(predictor)
        assert await reader.rest() == []
        assert await reader.has_ended("done")
        assert reader.outcome.count == 0
        for reducer in (None, "last", "concat"):
            with pytest.raises(NoPartialsError):
                await consumer.create(predictor, reduce=reducer)
        assert (await consumer.create(predictor, reduce="collect")).value == []
        assert (await consumer.create(predictor, reduce="returned")).value is None
        assert (await consumer.create(predictor, reduce=fold(lambda total, one: total + one, 7))).value == 7
        assert (await consumer.create(predictor, reduce=fold(lambda all_, one: [*all_, one], list))).value == []
        assert await consumer.still_works()

    yielding.run(scenario)


@pytest.mark.fault(67)
@each_cell(lambda cell: not cell.is_yielding)
def test_a_function_that_returns_nothing_gives_one_partial(cell: Cell) -> None:
    predictor = predictor_with(cell.kind, Fault(partials=(None,)))

    async def scenario(consumer: Consumer) -> None:
        assert await consumer.read(predictor) == [None]
        assert (await consumer.create(predictor)).value is None
        assert (await consumer.create(predictor, reduce="collect")).value == [None]

    cell.run(scenario)


# 68: values that look like something else.


class Falsy:
    def __bool__(self) -> bool:
        return False


class EqualToAll:
    def __eq__(self, other: object) -> bool:
        return True

    __hash__ = None  # type: ignore[assignment]


class NotComparable:
    def __eq__(self, other: object) -> bool:
        raise RuntimeError("not comparable")

    __hash__ = None  # type: ignore[assignment]

    def __bool__(self) -> bool:
        raise RuntimeError("neither true nor false")


ODD: Final[tuple[Any, ...]] = (
    None,
    False,
    0,
    "",
    (),
    NotImplemented,
    Ellipsis,
    StopIteration(),
    StopAsyncIteration(),
    GeneratorExit(),
    ValueError("a value, not a failure"),
    SystemExit(1),
    ValueError,
    *(make() for make in DISGUISED),
    END,
    object(),
    Falsy(),
    EqualToAll(),
    NotComparable(),
)


@pytest.mark.fault(68)
def test_odd_values_are_delivered_as_the_objects_they_are(yielding: Cell) -> None:
    marker = object()
    odd = tuple(value for value in ODD if value is not END)
    predictor = predictor_with(yielding.kind, Fault(partials=(*odd, marker)))

    async def scenario(consumer: Consumer) -> None:
        reader = consumer.open(predictor)
        for expected in (*odd, marker):
            assert await reader.pull() is expected
        assert await reader.has_ended("done")
        reader = consumer.open(predictor)
        for index, expected in enumerate((*odd, marker)):
            prediction: Any = await reader.prediction()
            assert prediction.value is expected
            assert prediction.index == index
            assert prediction.exception is None
            assert prediction.error is None
        assert await reader.prediction() is END
        collected = (await consumer.create(predictor, reduce="collect")).value
        assert [id(value) for value in collected] == [id(value) for value in (*odd, marker)]

    yielding.run(scenario)


@pytest.mark.fault(68)
@pytest.mark.parametrize("number", range(len(ODD)), ids=[type(value).__name__ for value in ODD])
def test_an_odd_value_is_a_result_of_create(cell: Cell, number: int) -> None:
    value = ODD[number]
    predictor = predictor_with(cell.kind, Fault(partials=(value,)))

    async def scenario(consumer: Consumer) -> None:
        for errors in ("raise", "return"):
            prediction = await consumer.create(predictor, errors=errors)
            assert prediction.value is value
            assert prediction.exception is None

    cell.run(scenario)


# 69: no end.


class Counted:
    """A partial that knows how many of its kind are alive."""

    def __init__(self, number: int, alive: weakref.WeakSet[Counted]) -> None:
        self.number = number
        alive.add(self)


@pytest.mark.fault(69)
def test_create_keeps_only_the_last_of_a_hundred_thousand_partials(yielding: Cell) -> None:
    alive: weakref.WeakSet[Counted] = weakref.WeakSet()
    most: list[int] = []

    def make(number: int) -> Counted:
        if not number % 1000:
            most.append(len(alive))
        return Counted(number, alive)

    def yields() -> Iterator[Counted]:
        yield from map(make, range(100_000))

    async def async_yields() -> AsyncIterator[Counted]:
        for number in range(100_000):
            yield make(number)

    async def scenario(consumer: Consumer) -> None:
        prediction = await consumer.create(yields if yielding.kind == "gen" else async_yields)
        assert prediction.value.number == 99_999

    yielding.run(scenario)
    assert max(most) <= 4


@pytest.mark.fault(69)
@each_cell(lambda cell: cell.is_yielding and not cell.is_in_lockstep)
def test_create_over_an_endless_generator_is_ended_by_closing_the_engine(cell: Cell) -> None:
    going = Gate()
    finalised: list[int] = []

    def yields() -> Iterator[int]:
        try:
            for number in itertools.count():
                going.open()
                yield number
        finally:
            finalised.append(1)

    async def async_yields() -> AsyncIterator[int]:
        try:
            for number in itertools.count():
                going.open()
                yield number
        finally:
            finalised.append(1)

    async def scenario(consumer: Consumer) -> None:
        def close() -> None:
            going.wait()
            consumer.engine.close()

        with OtherThread(close), pytest.raises(EngineClosedError):
            await consumer.create(yields if cell.kind == "gen" else async_yields)
        await auntil(lambda: finalised == [1], "the body was finalised")

    cell.run(scenario)


# 70: what a stream is not.


@pytest.mark.fault(70)
@pytest.mark.parametrize("name", ["send", "throw", "asend", "athrow", "gi_frame", "ag_frame"])
def test_a_stream_is_no_generator(cell: Cell, name: str) -> None:
    async def scenario(consumer: Consumer) -> None:
        reader = consumer.open(predictor_with(cell.kind, Fault()))
        assert not hasattr(reader.stream, name)
        await reader.close()

    cell.run(scenario)
