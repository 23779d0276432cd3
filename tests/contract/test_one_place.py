"""Every call begins in one place and ends in one, whatever its kind, its consumer, its runner and the way it ends.

Deadlines, observers and logs stand on that. An observer hears of each call once before anything of it runs or waits,
and once of its end, when all about that can be read; of a call that never began it hears nothing. A clock that is wound
up where a call begins ends it in time, wherever it is by then. Bodies keep their journals, and wait at gates, in files,
so that those in workers are held to the same.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
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

from engine import (
    Call,
    Engine,
    EngineClosedError,
    NestingError,
    NoPartialsError,
    PayloadError,
    PredictionCancelledError,
    Predictor,
    WorkerLostError,
)
from engine._policies.executor import FAST
from engine._predictors.body import Body
from engine._records import Outcome, current
from engine.runners import Channel, base, own
from engine.runners.base import Execution
from engine.runners.deferred import AsyncDeferredExecution, DeferredExecution
from engine.runners.ending import Ending
from engine.runners.process.pool import Need, Pool
from engine.runners.slots import Slots
from tests.faults.conftest import END, LIMIT, Cell, Consumer, Elsewhere, aeventually, eventually
from tests.faults.worker_bodies import FileGate, Journal, Trouble, is_killed, number_of_worker, predictor_with

GRACE: Final = 1.5 * LIMIT  # seconds: what comes to its end within a wait of these tests has done so before the grace
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
    """A runner of somebody else's: a thread for each body."""

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
        loaded = self.muna.predictions.resolve(self.predictor)
        slots = loaded.slots_elsewhere["process"] if self.place.runner == "process" else loaded.slots
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
            reader._values = iter(reader.stream)
        elif self.place.consumer == "arecords":
            reader._values = aiter(reader.stream)
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
        assert self.muna.predictions.open_calls == ()

    def check_not_told(self) -> None:
        assert self.witness.told == []
        assert self.journal.words == []
        assert self.muna.predictions.open_calls == ()

    async def check_finalised(self) -> None:
        """Whether the body began once, and runs its `finally` once, within the grace."""
        await aeventually(lambda: self.journal.words == FINALISED, "the body is finalised")


_numbers: Final = itertools.count()


class Cases:
    """Makes cases on one engine that is observed."""

    def __init__(self, muna: Engine, folder: Path) -> None:
        self.muna = muna
        self.witness = Witness()
        self._folder = folder
        muna.predictions.observe(self.witness)

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


@pytest.fixture(scope="module")
def lasting() -> Iterator[Engine]:
    """Give an engine whose one worker outlives the tests: each fails that costs it."""
    with new_engine() as muna:
        yield muna


@pytest.fixture
def crew(lasting: Engine) -> Engine:
    """Give that engine with its worker at work, which has not been idle for long enough to be let go."""
    lasting.predictions.create(number_of_worker, runner="process")
    return lasting


@pytest.fixture(autouse=True)
def leaves_nothing_behind(crew: Engine, leaves_nothing_behind: None) -> None:
    """Count from where the worker is there."""


@pytest.fixture(autouse=True)
def nothing_is_logged(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """An end that somebody hears of is nobody's news."""
    yield
    assert [record.getMessage() for record in caplog.get_records("call")] == []


@pytest.fixture
def cases(crew: Engine, place: Place, tmp_path: Path) -> Iterator[Cases]:
    if place.runner == "process":
        yield Cases(crew, tmp_path)
        crew.predictions._open_calls.observers = ()
        return
    with new_engine() as muna:
        yield Cases(muna, tmp_path)


# What a call may have to wait for.


@contextlib.contextmanager
def taken(slots: Slots, *, is_inside: bool = False) -> Iterator[None]:
    """Have a call of another thread's hold the only slot of a predictor; with `is_inside` what follows is its part."""
    call = Call("@me/holder", "thread", None)
    body = Body(call, int, (), {}, False, copy_context())
    with Elsewhere(lambda: slots.take(body)):
        pass
    token = current.set(call if is_inside else None)
    try:
        yield
    finally:
        current.reset(token)
        body.release_slot()
    assert slots.leases == ()


@contextlib.contextmanager
def busy(pool: Pool) -> Iterator[None]:
    """Have the only worker serve a call of another thread's."""
    body, found = Body(Call("@me/holder", "process", None), int, (), {}, False, copy_context()), []
    with Elsewhere(lambda: found.append(pool.take(body, Need()))):
        pass
    try:
        yield
    finally:
        pool.give(found[0])


# 1. An observer hears of each call.


async def read_all(reading: Any) -> tuple[int, BaseException | None]:
    count = 0
    try:
        while await reading.pull() is not END:
            count += 1
    except Exception as error:
        return count, error
    return count, None


async def reads_to_its_end(case: Case, reading: Any) -> None:
    count, error = await read_all(reading)
    assert (count, error) == (1 if case.place.is_create else case.kind.partials, None)
    case.check_told("done", case.kind.partials, None, reading)


async def reads_nothing(case: Case, reading: Any) -> None:
    count, error = await read_all(reading)
    assert (count, type(error)) == (0, NoPartialsError if case.place.is_create else type(None))
    case.check_told("done", 0, None, reading)


async def reads_a_failure(case: Case, reading: Any) -> None:
    _, error = await read_all(reading)
    assert isinstance(error, ZeroDivisionError)
    case.check_told("failed", case.kind.partials - 1, error, reading)


@each_place(lambda _: True)
def test_a_call_that_is_read_to_its_end_is_told_of_once(cases: Cases, place: Place) -> None:
    for kind in place.kinds:
        with about(kind):
            whole = cases.make(place, kind)
            whole.have()
            whole.run(reads_to_its_end)
            assert whole.journal.words == FINALISED
            if kind.is_yielding:
                empty = cases.make(place, kind)
                empty.have(partials=())
                empty.run(reads_nothing)
            fails = cases.make(place, kind)
            fails.have(lambda: 1 / 0)
            fails.run(reads_a_failure)


async def closes(case: Case, reading: Any) -> None:
    await reading.pull()
    await reading.close()
    case.check_told("closed", 1, None, reading)


async def cancels(case: Case, reading: Any) -> None:
    await reading.pull()
    reading.stream.cancel()
    with pytest.raises(PredictionCancelledError) as caught:
        await reading.pull()
    assert await reading.has_ended("cancelled")
    case.check_told("cancelled", 1, caught.value, reading)


async def drops(case: Case, reading: Any) -> None:
    await reading.pull()
    reading.drop()
    gc.collect()
    await case.check_finalised()
    case.check_told("closed", 1, None)


@pytest.mark.parametrize("leaves", [closes, cancels, drops])
@each_place(lambda place: not place.is_create)
@pytest.mark.filterwarnings("ignore:a stream of .* was abandoned:ResourceWarning")
def test_a_stream_that_is_left_after_a_partial_is_told_of_once(
    cases: Cases, place: Place, leaves: Callable[[Case, Any], Any]
) -> None:
    async def whole(case: Case, reading: Any) -> None:
        await leaves(case, reading)
        await case.check_finalised()

    for kind in place.kinds:
        with about(kind):
            case = cases.make(place, kind)
            case.have()
            case.run(whole)


async def loses_its_task(case: Case, reading: Any, moment: str) -> None:
    count, seen = 0, []

    async def reads() -> None:
        nonlocal count
        try:
            while await reading.pull() is not END:
                count += 1
        except asyncio.CancelledError as error:
            seen.append(error)
            raise

    task = asyncio.ensure_future(reads())
    await aeventually(lambda: case.slots.waiting if moment == "slot" else case.at.is_open, "it waits")
    await aeventually(lambda: count or moment != "middle" or case.place.is_create, "it has its first partial")
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    case.check_told("cancelled", None if case.place.is_create else count, seen[0], reading)
    case.let_on()
    if moment != "slot":
        await case.check_finalised()


@pytest.mark.parametrize("moment", ["before", "middle", "slot"])
@each_place(lambda place: place.is_asyncio and place.is_another)
def test_a_call_whose_consumers_task_is_cancelled_is_told_of_once(cases: Cases, place: Place, moment: str) -> None:
    for kind in place.kinds_at(moment):
        with about(kind):
            case = cases.make(place, kind)
            if moment == "slot":
                case.have()
                with taken(case.slots):
                    case.run(partial(loses_its_task, moment=moment))
                assert case.journal.words == []
            elif not place.blocks(kind):  # else nobody can cancel the task
                case.have_wait(moment)
                case.run(partial(loses_its_task, moment=moment))


# 2. A clock ends each call in time.


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
    _threads: list[Elsewhere] = attrs.field(factory=list)

    def wind_up(self, execution: Execution) -> None:
        loop = asyncio.get_running_loop() if self.is_on_loop else None
        self._threads.append(Elsewhere(partial(self._run, weakref.ref(execution), execution.ending, loop)))
        self._threads[0].__enter__()

    def _run(self, reference: Any, ending: Any, loop: asyncio.AbstractEventLoop | None) -> None:
        self.moment(ending)
        if loop is None:
            self._ring(reference)
        else:
            loop.call_soon_threadsafe(self._ring, reference)
            eventually(lambda: self.has_rung, "the loop rings")

    def _ring(self, reference: Any) -> None:
        self.ring(reference())
        self.has_rung = True

    def ring_at_once(self, execution: Execution) -> None:
        self._ring(lambda: execution)

    def wait(self) -> None:
        eventually(lambda: self.has_rung, "the clock rings")

    def join(self) -> None:
        for thread in self._threads:
            thread.join()


def moment_of(case: Case, moment: str) -> Callable[[Any], object]:
    has_first = moment == "middle" and not case.place.is_create

    def comes(ending: Any) -> None:
        if moment == "slot":
            eventually(lambda: case.slots.waiting, "the call waits for a slot")
        elif moment == "worker":
            eventually(lambda: pool_of(case.muna).waiting, "the call waits for a worker")
        else:
            case.at.wait()
        if moment in {"before", "middle"}:
            eventually(lambda: ending.count >= has_first and is_waited_for(ending), "the consumer waits")

    return comes


def pool_of(muna: Engine) -> Pool:
    runner: Any = muna.predictions._runners["process"]
    pool: Pool = runner._runner._pool
    return pool


HOW: Final = ("cancelled", "failed", "failed by the loop")


def ways_to_stop(place: Place, kind: Kind, moment: str) -> list[str]:
    """The ways that exist: a loop does nothing while a body blocks it, or while it begins a call."""
    has_loop = place.is_asyncio and moment != "begin" and (moment == "slot" or not place.blocks(kind))
    return [how for how in HOW if has_loop or how != HOW[2]]


def stop(case: Case, moment: str, how: str) -> None:
    """Have a clock stop the call at a moment: its consumer gets the very error, once, and an observer hears of it."""
    state = "cancelled" if how == "cancelled" else "failed"
    error = TimeoutError("late") if state == "failed" else PredictionCancelledError("", "")

    def ring(execution: Execution) -> None:
        if state == "failed":
            execution.stop("failed", error)
        else:
            execution.cancel()

    clock = Clock(moment_of(case, moment), ring, how == HOW[2])
    case.witness.on_start = clock.ring_at_once if moment == "begin" else clock.wind_up

    def lets_on() -> None:
        clock.wait()
        if moment == "setup":  # which is never interrupted
            case.go.open()
        else:
            case.let_on()

    async def whole(case: Case, reading: Any) -> None:
        count = 0
        if moment in {"middle", "held"} and not case.place.is_create:
            assert await reading.pull() is not END
            count = 1
        if moment == "held":
            case.at.open()
            await aeventually(lambda: clock.has_rung, "the clock rings")
        with pytest.raises(type(error)) as caught:
            await reading.pull()
        assert state == "cancelled" or caught.value is error
        assert await reading.has_ended(state)
        case.check_told(state, None if case.place.is_create else count, caught.value, reading)
        if moment in {"before", "middle", "held"}:
            await case.check_finalised()

    with Elsewhere(lets_on):
        case.run(whole)
    clock.join()
    case.witness.on_start = id


@each_place_at("begin", "before", "middle", "held", "slot")
def test_a_clock_stops_a_call_wherever_it_is(cases: Cases, place: Place, moment: str) -> None:
    for kind in place.kinds_at(moment):
        for how in ways_to_stop(place, kind, moment):
            with about(kind, how):
                case = cases.make(place, kind)
                if moment in {"before", "middle"}:
                    case.have_wait(moment)
                    stop(case, moment, how)
                else:
                    case.have()
                    with taken(case.slots) if moment == "slot" else contextlib.nullcontext():
                        stop(case, moment, how)
                    assert case.journal.words == (FINALISED if moment == "held" else [])


@each_place()
def test_a_clock_stops_a_call_while_its_class_is_set_up_and_the_body_never_begins(cases: Cases, place: Place) -> None:
    for kind in (DEF, ASYNC):
        for how in () if place.refuses(kind) else ways_to_stop(place, kind, "setup"):
            with about(kind, how):
                case = cases.make(place, kind)
                case.have_wait_in_setup()
                stop(case, "setup", how)
                case.muna.predictions.create(case.predictor, runner=None if place.runner == "inline" else place.runner)
                if place.runner != "process":  # to a worker a request is on its way for a moment
                    assert case.journal.words == FINALISED  # of this call


@each_place(lambda place: place.runner == "process" and place.is_another)
def test_a_clock_stops_a_call_that_waits_for_a_worker(cases: Cases, place: Place) -> None:
    with busy(pool_of(cases.muna)):
        for kind in (GEN, ASYNC):
            for how in ways_to_stop(place, kind, "worker"):
                with about(kind, how):
                    case = cases.make(place, kind)
                    case.have()
                    stop(case, "worker", how)
                    assert case.journal.words == []


# 3. What else ends a call, or keeps it from beginning.


async def loses_its_engine(case: Case, reading: Any, moment: str) -> None:
    with contextlib.ExitStack() as stack:
        if moment == "held":
            assert await reading.pull() is not END
            stack.enter_context(Elsewhere(case.muna.close))
            await aeventually(lambda: case.witness.told[1:], "the engine closes")
        with pytest.raises(EngineClosedError) as caught:
            await reading.pull()
        assert await reading.has_ended("closed")
        case.check_told("closed", None if case.place.is_create else int(moment == "held"), caught.value, reading)
        await case.check_finalised()


def close_in_the_middle(case: Case, execution: Execution) -> None:
    """Close the engine from another thread, and let the body on once its call has heard of that."""
    with Elsewhere(case.muna.close):
        eventually(lambda: execution.call.stopping, "the engine closes")
        case.let_on()


@each_place_at("before", "held")
def test_a_call_whose_engine_is_closed_meanwhile_is_told_of_once(place: Place, moment: str, tmp_path: Path) -> None:
    for kind in place.kinds if place.runner != "process" else (GEN,):
        with about(kind), new_engine() as muna:
            case = Cases(muna, tmp_path).make(place, kind)
            clock = Clock(moment_of(case, moment), partial(close_in_the_middle, case))
            if moment == "before":
                case.have_wait(moment)
                case.witness.on_start = clock.wind_up
            else:
                case.have()
            case.run(partial(loses_its_engine, moment=moment))
            clock.join()


async def fails_to_start(case: Case, reading: Any, error: type[Exception]) -> None:
    with pytest.raises(error) as caught:
        await reading.pull()
    assert await reading.has_ended("failed")
    case.check_told("failed", 0, caught.value, reading)
    assert case.journal.words == []


@each_place()
def test_a_call_that_would_wait_for_its_own_caller_is_told_of_once(cases: Cases, place: Place) -> None:
    for kind in place.kinds:
        with about(kind):
            case = cases.make(place, kind)
            case.have()
            with taken(case.slots, is_inside=True):
                case.run(partial(fails_to_start, error=NestingError))


@each_place(lambda place: place.runner == "elsewhere")
def test_a_call_that_its_runner_cannot_start_is_told_of_once(place: Place, tmp_path: Path) -> None:
    class Broken(Yonder):
        def start(self, body: Body, channel: Channel) -> None:
            raise LookupError("no thread")

    with Engine(discover=False, plugins=[Broken()]) as muna:
        cases = Cases(muna, tmp_path)
        for kind in place.kinds:
            with about(kind):
                case = cases.make(place, kind)
                case.have()
                case.run(partial(fails_to_start, error=LookupError))


@each_place(lambda place: place.runner == "process")
def test_a_call_that_cannot_travel_is_told_of_once(cases: Cases, place: Place) -> None:
    lock = threading.Lock()
    for kind in PLAIN:
        with about(kind):
            case = cases.make(place, kind)
            case.have(lambda: lock)
            case.run(partial(fails_to_start, error=PayloadError))


@each_place(lambda place: place.runner == "inline" and not place.is_asyncio)
def test_what_sync_code_cannot_run_inline_is_refused_before_or_told_of_once(cases: Cases, place: Place) -> None:
    async def whole(case: Case, reading: Any) -> None:
        try:
            await reading.pull()
        finally:
            seen.append(reading)

    for kind in filter(place.refuses, KINDS):
        with about(kind):
            seen: list[Any] = []
            case = cases.make(place, kind)
            case.have()
            with pytest.raises(ValueError, match="inline in sync code") as caught:
                case.run(whole)
            if case.witness.told:
                case.check_told("failed", 0, caught.value, *seen)
            assert bool(case.witness.told) is not kind.is_async


@each_place(lambda place: place.runner == "process" and place.is_another)
def test_a_call_whose_worker_is_killed_is_told_of_once(place: Place, tmp_path: Path) -> None:
    async def whole(case: Case, reading: Any) -> None:
        count, error = await read_all(reading)
        assert isinstance(error, WorkerLostError)
        case.check_told("failed", None if place.is_create else count, error, reading)

    with new_engine() as muna:
        cases = Cases(muna, tmp_path)
        for kind in (GEN, ASYNC):
            with about(kind):
                case = cases.make(place, kind)
                case.have(is_killed)
                case.run(whole)


# 4. What never begins.


async def is_never_pulled(case: Case, reading: Any) -> None:
    reading.drop()
    gc.collect()


async def is_closed_before(case: Case, reading: Any) -> None:
    await reading.close()
    assert await reading.has_ended("closed")


async def is_cancelled_before(case: Case, reading: Any) -> None:
    reading.stream.cancel()
    with pytest.raises(PredictionCancelledError):
        await reading.pull()
    assert await reading.has_ended("cancelled")


async def is_pulled_once_its_engine_is_closed(case: Case, reading: Any) -> None:
    if case.place.is_asyncio:
        await case.muna.aclose()
    else:
        case.muna.close()
    with pytest.raises(EngineClosedError):
        await reading.pull()
    assert await reading.has_ended("closed")


@pytest.mark.parametrize(
    "scenario", [is_never_pulled, is_closed_before, is_cancelled_before, is_pulled_once_its_engine_is_closed]
)
@each_place(lambda place: not place.is_create and place.is_another)
def test_a_stream_that_never_began_is_never_told_of(place: Place, scenario: Any, tmp_path: Path) -> None:
    for kind in place.kinds:
        with about(kind), new_engine() as muna:
            case = Cases(muna, tmp_path).make(place, kind)
            case.have()
            case.run(scenario)
            case.check_not_told()


@pytest.mark.parametrize("runner", RUNNERS)
def test_a_call_whose_task_is_cancelled_before_it_begins_is_never_told_of(runner: str | None, tmp_path: Path) -> None:
    async def whole(case: Case) -> None:
        task = asyncio.ensure_future(case.muna.predictions.acreate(case.predictor, runner=runner))
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        coroutine = case.muna.predictions.acreate(case.predictor, runner=runner)
        coroutine.close()

    place = Place("acreate", runner)
    for kind in place.kinds:
        with about(kind), new_engine() as muna:
            case = Cases(muna, tmp_path).make(place, kind)
            case.have()
            asyncio.run(whole(case))
            case.check_not_told()


# 5. Calls that take a shorter way, that begin late, or that end just as they begin.


def plain() -> int:
    return 1


async def plain_later() -> int:
    return 1


@pytest.mark.parametrize(
    "target", [plain, Predictor("@me/plain", plain), "@me/plain"], ids=["function", "record", "tag"]
)
@pytest.mark.parametrize("is_async", [False, True], ids=["create", "acreate"])
@pytest.mark.parametrize("runner", [None, "inline"])
def test_a_call_is_told_of_though_its_way_was_the_shortest_before(
    target: Any, is_async: bool, runner: str | None, muna: Engine
) -> None:
    predictor = Predictor("@me/plain", plain_later if is_async else plain)
    muna.predictors.register(predictor)
    target = target if isinstance(target, str) else predictor if isinstance(target, Predictor) else predictor.target

    def call() -> Any:
        predictions = muna.predictions
        if is_async:
            return asyncio.run(predictions.acreate(target, runner=runner)).value
        return predictions.create(target, runner=runner).value

    assert [call(), call()] == [1, 1]
    if not callable(target):  # the way of that is looked for at each call
        loaded = muna.predictions.resolve(target)
        assert loaded.is_plain if is_async and runner is None else is_async or loaded.places == {runner: FAST}
    witness, later = Witness(), Witness()
    muna.predictions.observe(witness)
    assert call() == 1
    muna.predictions.observe(later)
    assert call() == 1
    assert [(each.what, each.state) for each in witness.told] == [("started", "pending"), ("finished", "done")] * 2
    assert [each.what for each in later.told] == ["started", "finished"]


@each_place(lambda place: not place.is_create and place.runner != "process")
def test_an_observer_that_comes_late_hears_nothing_of_a_call_that_had_begun(place: Place, tmp_path: Path) -> None:
    async def whole(case: Case, reading: Any) -> None:
        await reading.pull()
        late = Witness()
        case.muna.predictions.observe(late)
        await read_all(reading)
        case.check_told("done", case.kind.partials, None, reading)
        assert late.told == []

    for kind in place.kinds:
        with about(kind), new_engine() as muna:
            case = Cases(muna, tmp_path).make(place, kind)
            case.have()
            case.run(whole)


@pytest.mark.parametrize("how", ["stopped", "engine closed"])
@each_place(lambda place: not place.is_create and place.is_another)
def test_a_stream_that_is_ended_as_its_first_pull_comes_never_begins(
    place: Place, how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`begin` looks at the clock first: that is when another thread comes in."""
    error = TimeoutError("late")

    async def whole(case: Case, reading: Any) -> None:
        execution = reading.stream._execution
        execution = getattr(execution, "_execution", execution)  # a task's is behind what its consumer holds

        def stops() -> None:
            if how == "stopped":
                execution.stop("failed", error)
            else:
                case.muna.predictions.close()

        def now() -> float:
            monkeypatch.undo()
            with Elsewhere(stops):
                return 0.0

        monkeypatch.setattr(base, "perf_counter", now)
        with pytest.raises(TimeoutError if how == "stopped" else EngineClosedError) as caught:
            await reading.pull()
        assert how != "stopped" or caught.value is error
        assert await reading.has_ended("failed" if how == "stopped" else "closed")
        assert reading.outcome.exception is caught.value

    for kind in place.kinds:
        with about(kind), new_engine() as muna:
            muna.predictions.check_runner(place.runner)  # else its first call looks for plugins, which takes time, too
            case = Cases(muna, tmp_path).make(place, kind)
            case.have()
            case.run(whole)
            case.check_not_told()


def test_a_stream_that_is_stopped_as_its_loop_ends_was_not_abandoned(tmp_path: Path) -> None:
    has_ended = threading.Event()

    class Handle(Witness):
        def finished(self, execution: Execution, outcome: Outcome) -> None:
            super().finished(execution, outcome)
            assert has_ended.wait(LIMIT)

    async def whole(case: Case, reading: Any) -> None:
        assert await reading.pull() is not END
        stopping.__enter__()
        await aeventually(lambda: case.witness.told[1:], "it is stopped")

    with new_engine() as muna:
        witness = Handle()
        muna.predictions.observe(witness)

        def stop_all() -> None:
            for each in muna.predictions.open_calls:
                each.cancel()

        stopping = Elsewhere(stop_all)
        case = Case(muna, witness, Place("avalues", None), ASYNC, tmp_path / "case")
        case.have()
        case.run(whole)
        has_ended.set()
        stopping.join()
        case.check_told("cancelled", 1, witness.told[1].exception)
        assert case.journal.words == FINALISED


# Its predictor is told of by a worker, at its first pull.
HOME: Final = "def numbers():\n    yield from (1, 2)"
SLOW_HOME: Final = """
import time
from pathlib import Path

Path(__file__).with_name("at").touch()
while not Path(__file__).with_name("go").exists():
    time.sleep(0.001)

def numbers():
    yield 1
"""


async def is_cancelled_while_it_is_described(case: Case, reading: Any) -> None:
    def cancels() -> None:
        case.at.wait()
        reading.stream.cancel()
        case.go.open()

    with Elsewhere(cancels), pytest.raises(PredictionCancelledError):
        await reading.pull()
    assert await reading.has_ended("cancelled")
    case.check_not_told()


@pytest.mark.parametrize("place", [Place("values", None), Place("avalues", None)], ids=str)
def test_a_call_that_is_still_to_be_described_has_not_begun(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def whole(case: Case, reading: Any) -> None:
        assert isinstance(reading.stream._execution, DeferredExecution | AsyncDeferredExecution)
        await scenario(case, reading)

    scenarios = [reads_to_its_end, closes, cancels, is_never_pulled, is_closed_before, is_cancelled_before]
    with Engine(discover=False, runner="process", workers=1, grace=GRACE) as muna:
        cases = Cases(muna, tmp_path)
        for number, scenario in enumerate((*scenarios, is_cancelled_while_it_is_described)):
            with about(scenario.__name__):
                case = cases.make(place, GEN)
                home = case.folder / f"home_{place}_{number}.py".replace("-", "_")
                home.write_text(SLOW_HOME if scenario is is_cancelled_while_it_is_described else HOME)
                monkeypatch.syspath_prepend(str(case.folder))
                case.predictor = Predictor(f"@home/numbers-{number}", f"{home.stem}:numbers")
                case.run(whole)
                if scenario in scenarios[3:]:
                    case.check_not_told()
