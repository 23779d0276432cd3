"""One call of one kind in one place, what an observer is told of it, and what it may have to wait for.

Bodies keep their journals, and wait at gates, in files, so that those in workers are held to the same.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import threading
import weakref
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import aclosing
from contextvars import copy_context
from functools import partial
from pathlib import Path
from typing import Any, Final

import attrs
import pytest

from engine import Call, Engine, Predictor
from engine._predictors.body import Body
from engine._records import Outcome, current
from engine.runners import Channel, own
from engine.runners.base import Execution
from engine.runners.ending import Ending
from engine.runners.slots import Slots
from tests._kit.gates import FileGate, Journal
from tests._kit.internals import executions_of, loaded_of, observe, pool_of
from tests._kit.waits import TIMEOUT, OtherThread, auntil, begun, until
from tests.faults.conftest import END, Cell, Consumer
from tests.faults.worker_bodies import Trouble, predictor_with

GRACE: Final = 1.5 * TIMEOUT  # seconds: what comes to its end within a wait of these tests has done so before the grace
FINALISED: Final = ["start", "finally"]


# Kinds, and places.


@attrs.frozen
class Kind:
    """A way to write a predictor: one of the four that `predictor_with` makes, itself or given by something else."""

    name: str
    inner: str
    is_async: bool
    give: Callable[[Any], Any]

    def __str__(self) -> str:
        return self.name

    @property
    def is_driven_async(self) -> bool:
        return self.inner in {"async", "agen"}

    @property
    def is_yielding(self) -> bool:
        return self.inner in {"gen", "agen"}

    @property
    def partials(self) -> int:
        return 2 if self.is_yielding else 1


def itself(function: Any) -> Any:
    return function


def of_a_class(function: Any) -> Any:
    class Model:
        def predict(self) -> Any:
            return function()

    return Model


def of_an_async_class(function: Any) -> Any:
    class Model:
        async def predict(self) -> AsyncIterator[Any]:
            async with aclosing(function()) as partials:
                async for each in partials:
                    yield each

    return Model


def by_a_def(function: Any) -> Any:
    def gives() -> Any:
        return function()

    return gives


def by_an_async_def(function: Any) -> Any:
    async def gives() -> Any:
        return function()

    return gives


PLAIN: Final = (
    DEF := Kind("def", "def", False, itself),
    GEN := Kind("gen", "gen", False, itself),
    ASYNC := Kind("async", "async", True, itself),
    Kind("agen", "agen", True, itself),
)
KINDS: Final = (
    *PLAIN,
    Kind("class", "gen", False, of_a_class),
    Kind("async-class", "agen", True, of_an_async_class),
    # What these give is of the other colour, and goes on elsewhere: that is no call of its own.
    Kind("def-gives-async", "async", False, by_a_def),
    Kind("def-gives-agen", "agen", False, by_a_def),
    Kind("async-gives-gen", "gen", True, by_an_async_def),
)


@attrs.frozen
class Place:
    """Who consumes, and how, with which runner."""

    consumer: str
    runner: str | None

    def __str__(self) -> str:
        return f"{self.consumer}-{self.runner or 'default'}"

    @property
    def is_asyncio(self) -> bool:
        return self.consumer.startswith("a")

    @property
    def is_create(self) -> bool:
        return self.consumer.endswith("create")

    @property
    def cell(self) -> Cell:
        return Cell("", "asyncio" if self.is_asyncio else "sync", self.runner)

    def refuses(self, kind: Kind) -> bool:
        return self.runner == "inline" and not self.is_asyncio and (kind.is_async or kind.is_driven_async)

    def blocks(self, kind: Kind) -> bool:
        """Whether a body that waits blocks the event loop of its own consumer."""
        return self.runner == "inline" and self.is_asyncio and not kind.is_driven_async

    @property
    def is_another(self) -> bool:
        """Whether its calls end in code of their own: only in lock-step with sync code do records take other steps."""
        return self.consumer != "arecords" and (self.consumer != "records" or self.runner in {None, "inline"})

    @property
    def kinds(self) -> list[Kind]:
        return [kind for kind in KINDS if not self.refuses(kind)]

    def kinds_at(self, moment: str) -> list[Kind]:
        """Kinds that come to a moment: only one that yields has anything left to do once it gave a partial."""
        return [kind for kind in self.kinds if kind.is_yielding or moment != "middle"]


CONSUMERS: Final = ("create", "values", "records", "acreate", "avalues", "arecords")
RUNNERS: Final = (None, "inline", "thread", "elsewhere", "process")
PLACES: Final = [Place(consumer, runner) for runner in RUNNERS for consumer in CONSUMERS]


def each_place(is_meant: Callable[[Place], bool] = lambda place: place.is_another) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("place", [place for place in PLACES if is_meant(place)], ids=str)


def each_place_at(*moments: str) -> pytest.MarkDecorator:
    """Every place with every moment; but what the consumer of `create` could hold is the result."""
    places = [place for place in PLACES if place.is_another]
    cells = [(place, each) for place in places for each in moments if each != "held" or not place.is_create]
    return pytest.mark.parametrize(("place", "moment"), cells, ids=str)


class Yonder:
    """A runner from a plugin: a thread for each body."""

    name = "elsewhere"

    def start(self, body: Body, channel: Channel) -> None:
        threading.Thread(target=own, args=(body, channel), name="yonder").start()


# What an observer is told.


@attrs.frozen
class Told:
    """What was told, and what could be seen just then."""

    what: str
    id: str
    state: str
    is_over: bool
    count: int
    exception: BaseException | None
    words: list[str]


class Witness:
    """An observer, which keeps no execution alive.

    Attributes:
        told: what it was told since it last took up a journal.
        on_start: called with an execution that has begun, once that is noted.
    """

    def __init__(self) -> None:
        self.take_up(None)

    def take_up(self, journal: Journal | None) -> None:
        self.told: list[Told] = []
        self.on_start: Callable[[Execution], object] = id
        self._journal = journal

    def started(self, execution: Execution) -> None:
        self._note("started", execution, Outcome.of(execution.ending))
        self.on_start(execution)

    def finished(self, execution: Execution, outcome: Outcome) -> None:
        self._note("finished", execution, outcome)

    def _note(self, what: str, execution: Execution, outcome: Outcome) -> None:
        seen = (outcome.state, execution.ending.is_over, outcome.count, outcome.exception)
        words = [] if self._journal is None else self._journal.words
        self.told.append(Told(what, execution.call.id, *seen, words))


# One call.


class Created:
    """A call of `create`, read like a stream of one."""

    outcome = None

    def __init__(self, create: Callable[[], Any]) -> None:
        self._create: Any = create

    async def pull(self) -> Any:
        create, self._create = self._create, None
        return END if create is None else (await create()).value

    async def has_ended(self, state: str) -> bool:
        return self._create is None


@attrs.define(eq=False)
class Case:
    """One call of one kind in one place: what its body does, and how it is read.

    Attributes:
        predictor: what is called; see `have`.
        journal: where the body tells of its start and its `finally`.
        at: opened by the body, or the consumer, once it is where it was to come.
        go: where the body waits.
    """

    muna: Engine
    witness: Witness
    place: Place
    kind: Kind
    folder: Path
    predictor: Any = None

    def __attrs_post_init__(self) -> None:
        self.folder.mkdir()
        self.witness.take_up(self.journal)

    @property
    def journal(self) -> Journal:
        return Journal(self.folder / "journal")

    @property
    def at(self) -> FileGate:
        return FileGate(self.folder / "at")

    @property
    def go(self) -> FileGate:
        return FileGate(self.folder / "go")

    def have(self, strikes: Callable[[], Any] = int, place: str = "middle", **options: Any) -> None:
        """Make the predictor: trouble strikes in a body that yields at a place, in another one before it returns."""
        place = place if self.kind.is_yielding else "before"
        body = predictor_with(self.kind.inner, Trouble(self.journal, strikes, place, **options))
        self.predictor = Predictor(f"@me/{self.kind}", self.kind.give(body), concurrency=1)

    def have_wait(self, place: str) -> None:
        """Make a predictor whose body tells that it has come to a place, and waits there."""
        at, go, is_async = self.at, self.go, self.kind.is_driven_async

        def waits() -> Any:
            at.open()
            return go.await_() if is_async else go.wait()

        self.have(waits, place)

    def have_wait_in_setup(self) -> None:
        """Make a class whose `setup` tells that it has begun, and waits."""
        at, go = self.at, self.go
        predict = predictor_with(self.kind.inner, Trouble(self.journal))

        class Model:
            def setup(self) -> None:
                at.open()
                go.wait()

            def predict(self) -> Any:
                return predict()

        class AsyncModel:
            async def setup(self) -> None:
                at.open()
                await go.await_()

            async def predict(self) -> Any:
                return await predict()

        self.predictor = Predictor(f"@me/{self.kind}", AsyncModel if self.kind.is_async else Model)

    def let_on(self) -> None:
        """Have a body go on where it waits, unless a stop is to reach it there."""
        if not self.kind.is_driven_async:
            self.go.open()

    @property
    def slots(self) -> Slots:
        loaded = loaded_of(self.muna, self.predictor)
        slots: Slots | None = loaded.slots_elsewhere["process"] if self.place.runner == "process" else loaded.slots
        assert slots is not None
        return slots

    def run(self, scenario: Callable[[Case, Any], Any]) -> None:
        """Have the place's consumer make the call, and do with it what the scenario says."""

        async def whole(consumer: Consumer) -> None:
            await scenario(self, self.open(consumer))

        self.place.cell.run_on(self.muna, whole)

    def open(self, consumer: Consumer) -> Any:
        if self.place.is_create:
            return Created(partial(consumer.create, self.predictor))
        reader = consumer.open(self.predictor)
        if self.place.consumer == "records":
            reader.values = iter(reader.stream)
        elif self.place.consumer == "arecords":
            reader.values = aiter(reader.stream)
        return reader

    # What is to be seen of it.

    def check_told(self, state: str, count: int | None, error: object, reading: Any = None) -> None:
        """Whether both was told once, at the right time, and the same as a stream's own outcome shows."""
        started, finished = self.witness.told
        assert (started.what, started.state, started.is_over, started.words) == ("started", "pending", False, [])
        assert (finished.what, finished.state, finished.is_over) == ("finished", state, True)
        assert finished.exception is error
        assert finished.id == started.id
        assert count is None or finished.count == count
        outcome = None if reading is None else reading.outcome
        if outcome is not None:
            assert (outcome.state, outcome.count, outcome.exception) == (state, finished.count, error)
        assert executions_of(self.muna) == ()

    def check_not_told(self) -> None:
        assert self.witness.told == []
        assert self.journal.words == []
        assert executions_of(self.muna) == ()

    async def check_finalised(self) -> None:
        """Whether the body began once, and runs its `finally` once, within the grace."""
        await auntil(lambda: self.journal.words == FINALISED, "the body is finalised")


_numbers: Final = itertools.count()


class Cases:
    """Makes cases on one engine that is observed."""

    def __init__(self, muna: Engine, folder: Path) -> None:
        self.muna = muna
        self.witness = Witness()
        self._folder = folder
        observe(muna, self.witness)

    def make(self, place: Place, kind: Kind) -> Case:
        return Case(self.muna, self.witness, place, kind, self._folder / str(next(_numbers)))


@contextlib.contextmanager
def about(*words: object) -> Iterator[None]:
    """Have a failure tell which of many calls it is about."""
    try:
        yield
    except BaseException as error:
        error.add_note(f"about: {' '.join(map(str, words))}")
        raise


def new_engine() -> Engine:
    return Engine(discover=False, plugins=[Yonder()], workers=1, grace=GRACE)


# What a call may have to wait for.


@contextlib.contextmanager
def taken(slots: Slots, *, is_inside: bool = False) -> Iterator[None]:
    """Have a call of another thread's hold the only slot of a predictor; with `is_inside` what follows is its part."""
    call = Call("@me/holder", "thread", None)
    body = Body(call, int, (), {}, False, copy_context())
    with OtherThread(lambda: slots.take(body)):
        pass
    token = current.set(call if is_inside else None)
    try:
        yield
    finally:
        current.reset(token)
        body.release_slot()
    assert slots.leases == ()


async def read_all(reading: Any) -> tuple[int, BaseException | None]:
    count = 0
    try:
        while await reading.pull() is not END:
            count += 1
    except Exception as error:
        return count, error
    return count, None


def is_waited_for(ending: Any) -> bool:
    """Whether a consumer waits for an owner elsewhere; one in lock-step is in the body itself."""
    is_read = bool(getattr(ending, "consumers", ()) or getattr(ending, "_is_reading", False))
    return type(ending) is Ending or bool(ending.end_waiters) or is_read


@attrs.define(eq=False)
class Clock:
    """Wound up where a call begins, it does something to it once the moment has come.

    Attributes:
        moment: waits for the moment, in the clock's thread; it is given the call's `Ending`.
        ring: what is done.
        is_on_loop: whether the event loop of the call's own consumer does it.
        has_rung: whether it was done.
    """

    moment: Callable[[Any], object]
    ring: Callable[[Execution], object]
    is_on_loop: bool = False
    has_rung: bool = False
    _threads: list[OtherThread] = attrs.field(factory=list)

    def wind_up(self, execution: Execution) -> None:
        loop = asyncio.get_running_loop() if self.is_on_loop else None
        self._threads.append(begun(partial(self._run, weakref.ref(execution), execution.ending, loop)))

    def _run(self, reference: Any, ending: Any, loop: asyncio.AbstractEventLoop | None) -> None:
        self.moment(ending)
        if loop is None:
            self._ring(reference)
        else:
            loop.call_soon_threadsafe(self._ring, reference)
            until(lambda: self.has_rung, "the loop rings")

    def _ring(self, reference: Any) -> None:
        self.ring(reference())
        self.has_rung = True

    def ring_at_once(self, execution: Execution) -> None:
        self._ring(lambda: execution)

    def wait(self) -> None:
        until(lambda: self.has_rung, "the clock rings")

    def join(self) -> None:
        for thread in self._threads:
            thread.join()


def moment_of(case: Case, moment: str) -> Callable[[Any], object]:
    has_first = moment == "middle" and not case.place.is_create

    def comes(ending: Any) -> None:
        if moment == "slot":
            until(lambda: case.slots.waiting, "the call waits for a slot")
        elif moment == "worker":
            until(lambda: pool_of(case.muna).waiting, "the call waits for a worker")
        else:
            case.at.wait()
        if moment in {"before", "middle"}:
            until(lambda: ending.count >= has_first and is_waited_for(ending), "the consumer waits")

    return comes
