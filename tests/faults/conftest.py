"""The matrix the fault tests run over: every kind of predictor, consumer and runner, every place a fault can strike.

A test is one scenario, written once as a coroutine. For a sync consumer it is stepped by hand and never suspends, so
no event loop is anywhere near; for asyncio it is one task. Bodies wait at gates, never for a time. Cells that cannot
exist are not made here; README.md lists them.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from typing import TYPE_CHECKING, Any, Final

import attrs
import pytest

from engine import Engine
from tests._kit.gates import Gate
from tests._kit.waits import awaited

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine, Iterator

    from engine import AsyncPredictionStream, Prediction, PredictionStream
    from engine._records import Outcome

PARTIALS: Final = ("first", "second")
END: Final = "(the stream has ended)"


@attrs.define
class Fault:
    """What a predictor made by `predictor_with` does, and what became of it.

    Attributes:
        strikes: called at `place`: it raises, or waits.
        place: `"before"` the first partial, in the `"middle"`, or `"after"` the last one.
        cleanup: called in the body's `finally`, after that is counted.
        partials: what the body produces; a kind that returns gives the last one.
        started: how often a body began.
        finalised: how often a `finally` ran.
    """

    strikes: Callable[[], Any] | None = None
    place: str = "before"
    cleanup: Callable[[], Any] | None = None
    partials: tuple[Any, ...] = PARTIALS
    _starts: list[None] = attrs.field(factory=list, init=False)  # lists, since appending is safe in any thread
    _ends: list[None] = attrs.field(factory=list, init=False)

    @property
    def started(self) -> int:
        return len(self._starts)

    @property
    def finalised(self) -> int:
        return len(self._ends)

    def begin(self) -> None:
        self._starts.append(None)

    def strike(self, place: str) -> Any:
        if self.strikes is not None and place == self.place:
            return self.strikes()
        return None

    def end(self) -> Any:
        self._ends.append(None)
        return None if self.cleanup is None else self.cleanup()


def predictor_with(kind: str, fault: Fault) -> Callable[[], Any]:
    """Make a predictor of one kind that suffers `fault`."""

    def returns() -> Any:
        fault.begin()
        try:
            fault.strike("before")
            return fault.partials[-1]
        finally:
            fault.end()

    def yields() -> Iterator[Any]:
        fault.begin()
        try:
            fault.strike("before")
            for index, partial in enumerate(fault.partials):
                if index:
                    fault.strike("middle")
                yield partial
            fault.strike("after")
        finally:
            fault.end()

    async def async_returns() -> Any:
        fault.begin()
        try:
            await awaited(fault.strike("before"))
            return fault.partials[-1]
        finally:
            await awaited(fault.end())

    async def async_yields() -> AsyncIterator[Any]:
        fault.begin()
        try:
            await awaited(fault.strike("before"))
            for index, partial in enumerate(fault.partials):
                if index:
                    await awaited(fault.strike("middle"))
                yield partial
            await awaited(fault.strike("after"))
        finally:
            await awaited(fault.end())

    return {"def": returns, "gen": yields, "async": async_returns, "agen": async_yields}[kind]


class Reader:
    """One stream, read the same way in sync code and on a loop."""

    def __init__(self, stream: PredictionStream | AsyncPredictionStream) -> None:
        self.stream: Any = stream
        self._is_async = hasattr(stream, "aclose")
        self.values: Any = stream.values()

    @property
    def outcome(self) -> Outcome:
        outcome: Outcome = self.stream.outcome
        return outcome

    async def pull(self) -> Any:
        """The next partial, or `END`."""
        if self._is_async:
            return await anext(self.values, END)
        return next(self.values, END)

    async def prediction(self) -> Prediction | str:
        """The next prediction, or `END`, through the stream itself."""
        found: Prediction | str = await anext(self.stream, END) if self._is_async else next(self.stream, END)
        return found

    async def rest(self) -> list[Any]:
        found = []
        while (value := await self.pull()) is not END:
            found.append(value)
        return found

    async def close(self) -> None:
        if self._is_async:
            await self.stream.aclose()
        else:
            self.stream.close()

    @contextlib.asynccontextmanager
    async def opened(self) -> AsyncIterator[Any]:
        """The stream's own `with`, of whichever colour."""
        if self._is_async:
            async with self.stream as stream:
                yield stream
        else:
            with self.stream as stream:
                yield stream

    async def has_ended(self, state: str) -> bool:
        """Whether it is over for good, in this state, through every face."""
        ends = [await self.pull() for _ in range(5)] + [await self.prediction() for _ in range(5)]
        assert ends == [END] * 10
        assert self.outcome.state == state
        return True

    def drop(self) -> None:
        """Drop the stream, as a consumer does that forgets about it."""
        self.stream = self.values = None


@attrs.frozen
class Consumer:
    """An engine, and how the code of one cell uses it."""

    engine: Engine
    cell: Cell

    def open(self, predictor: Any, **options: Any) -> Reader:
        predictions = self.engine.predictions
        options.setdefault("runner", self.cell.runner)
        open_stream = predictions.astream if self.cell.is_asyncio else predictions.stream
        return Reader(open_stream(predictor, **options))

    async def create(self, predictor: Any, **options: Any) -> Prediction:
        predictions = self.engine.predictions
        options.setdefault("runner", self.cell.runner)
        if self.cell.is_asyncio:
            return await predictions.acreate(predictor, **options)
        return predictions.create(predictor, **options)

    async def read(self, predictor: Any, **options: Any) -> list[Any]:
        return await self.open(predictor, **options).rest()

    async def close(self) -> None:
        if self.cell.is_asyncio:
            await self.engine.aclose()
        else:
            self.engine.close()

    async def still_works(self) -> bool:
        """Whether the next calls on the same engine do what they should."""
        healthy = Fault()
        predictor = predictor_with(self.cell.kind, healthy)
        assert (await self.create(predictor)).value == PARTIALS[-1]
        assert await self.read(predictor) == list(self.cell.partials)
        assert (healthy.started, healthy.finalised) == (2, 2)
        return True


@attrs.frozen
class Cell:
    """One cell of the cube: a kind of predictor, a consumer, a runner."""

    kind: str
    consumer: str
    runner: str | None

    def __str__(self) -> str:
        return f"{self.kind}-{self.consumer}-{self.runner or 'default'}"

    @property
    def is_asyncio(self) -> bool:
        return self.consumer == "asyncio"

    @property
    def is_async(self) -> bool:
        return self.kind in {"async", "agen"}

    @property
    def is_yielding(self) -> bool:
        return self.kind in {"gen", "agen"}

    @property
    def is_in_lockstep(self) -> bool:
        """Whether the consumer itself, its thread or its task, runs the body."""
        return self.runner == "inline" or (self.runner is None and self.is_async == self.is_asyncio)

    @property
    def is_in_owner_thread(self) -> bool:
        return not self.is_async and not self.is_in_lockstep

    @property
    def exists(self) -> bool:
        return not (self.is_async and not self.is_asyncio and self.runner == "inline")

    @property
    def partials(self) -> tuple[Any, ...]:
        """What a healthy `predictor_with` of this cell's kind streams."""
        return PARTIALS if self.is_yielding else PARTIALS[-1:]

    def waits_at(self, gate: Gate) -> Callable[[], Any]:
        """What a body of this kind calls, and awaits, to wait at a gate."""
        return gate.await_ if self.is_async else gate.wait

    def run(self, scenario: Callable[[Consumer], Coroutine[Any, Any, None]], **options: Any) -> None:
        """Run a scenario as this cell's consumer, with an engine that is closed after it."""
        options.setdefault("discover", False)
        if self.is_asyncio:
            asyncio.run(self._in_a_task(scenario, options))
            return
        with Engine(**options) as engine:
            self.run_on(engine, scenario)

    def run_on(self, engine: Engine, scenario: Callable[[Consumer], Coroutine[Any, Any, None]]) -> None:
        """Run a scenario as this cell's consumer, with an engine that others use, too."""
        if self.is_asyncio:
            asyncio.run(scenario(Consumer(engine, self)))
        else:
            _step_through(scenario(Consumer(engine, self)))

    async def _in_a_task(self, scenario: Callable[[Consumer], Coroutine[Any, Any, None]], options: Any) -> None:
        async with Engine(**options) as engine:
            await scenario(Consumer(engine, self))


def _step_through(scenario: Coroutine[Any, Any, None]) -> None:
    try:
        scenario.send(None)
    except StopIteration:
        return
    scenario.close()
    raise AssertionError("a sync consumer waited for an event loop")


CELLS: Final = tuple(
    cell
    for cell in itertools.starmap(
        Cell, itertools.product(("def", "gen", "async", "agen"), ("sync", "asyncio"), (None, "inline", "thread"))
    )
    if cell.exists
)


def each_cell(is_meant: Callable[[Cell], bool]) -> pytest.MarkDecorator:
    """Run a test over the cells that are meant, where `cell` without this means all of them."""
    return pytest.mark.parametrize("cell", [cell for cell in CELLS if is_meant(cell)], ids=str)


YIELDING: Final = tuple(cell for cell in CELLS if cell.is_yielding)


@attrs.frozen
class Point:
    """One cell, and the place in its body where the fault strikes."""

    cell: Cell
    place: str

    def __str__(self) -> str:
        return f"{self.cell}-{self.place}"

    @property
    def delivered(self) -> list[Any]:
        """The partials a consumer has before the fault."""
        return list(self.cell.partials[: ("before", "middle", "after").index(self.place)])


POINTS: Final = tuple(
    Point(cell, place)
    for cell in CELLS
    for place in (("before", "middle", "after") if cell.is_yielding else ("before",))
)


@pytest.fixture(autouse=True)
def leaves_no_gate_shut() -> Iterator[None]:
    """Let every body go that a failed test left at a gate, so that one failure stays one."""
    yield
    for gate in tuple(Gate.made):
        gate.open()


@pytest.fixture(params=CELLS, ids=str)
def cell(request: pytest.FixtureRequest) -> Cell:
    """Every cell that exists."""
    found: Cell = request.param
    return found


@pytest.fixture(params=YIELDING, ids=str)
def yielding(request: pytest.FixtureRequest) -> Cell:
    """Every cell whose body yields, so that its stream can be left half-way."""
    found: Cell = request.param
    return found


@pytest.fixture(params=[cell for cell in CELLS if not cell.is_in_lockstep], ids=str)
def owned(request: pytest.FixtureRequest) -> Cell:
    """Every cell whose body has an owner of its own, a thread or the engine's loop."""
    found: Cell = request.param
    return found


@pytest.fixture(params=[cell for cell in CELLS if cell.is_in_owner_thread], ids=str)
def threaded(request: pytest.FixtureRequest) -> Cell:
    """Every cell whose body runs in an owner thread."""
    found: Cell = request.param
    return found


@pytest.fixture(params=POINTS, ids=str)
def point(request: pytest.FixtureRequest) -> Point:
    """Every cell and every place in its body."""
    found: Point = request.param
    return found
