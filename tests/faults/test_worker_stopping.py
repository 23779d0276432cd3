"""Faults around the end of a call in a worker: cancelled, closed, abandoned, stuck, raced, or left by its consumer.

A worker is asked, then gets SIGTERM, then SIGKILL, and `outcome.rung` tells how far that went. What is asked here is
that each way out takes effect within its bound, costs no other call anything, and never reaches the next one.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import gc
import itertools
import os
import random
import signal
import termios
import threading
import time
import warnings
from array import array
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import pytest

from engine import Engine, EngineClosedError, NestingError, PredictionCancelledError, Predictor
from engine._wire.frames import DONE, ITEM, ITEMS
from engine.runners.process import inlet as wire_module
from engine.runners.process import runner as process
from engine.runners.process.inlet import Inlet
from engine.runners.process.worker import Worker
from tests.conftest import child_processes
from tests.faults import worker_bodies
from tests.faults.awkward_values import gives_back
from tests.faults.conftest import END, LIMIT, Cell, Consumer, Elsewhere, Reader, aeventually, eventually
from tests.faults.conftest import _step_through as step_through
from tests.faults.worker_bodies import (
    KINDS,
    FileGate,
    Interception,
    Journal,
    Trouble,
    anumbers_after_worker,
    number_of_worker,
    numbers_after_worker,
    predictor_with,
)

if TYPE_CHECKING:
    from engine._records import Outcome

GRACE = 0.2  # seconds from one rung to the next where the ladder is climbed on purpose
LONG = 10.0  # seconds; where no rung but the first must be reached
SLACK = 5.0  # seconds a busy machine may add to any bound; what does not end at all would take much longer

CELLS = [Cell(kind, consumer, "process") for kind in KINDS for consumer in ("sync", "asyncio")]
each_cell = pytest.mark.parametrize("cell", CELLS, ids=str)
each_yielding = pytest.mark.parametrize("cell", [cell for cell in CELLS if cell.is_yielding], ids=str)
each_consumer = pytest.mark.parametrize("cell", [cell for cell in CELLS if cell.kind == "gen"], ids=str)


@pytest.fixture(scope="module")
def lasting() -> Iterator[Engine]:
    """Give an engine whose one worker outlives the tests that ask for it: each fails that has another one started."""
    with Engine(discover=False, workers=1, grace=LONG) as muna:
        muna.predictions.create(number_of_worker, runner="process")
        yield muna


def run(cell: Cell, scenario: Callable[[Consumer], Coroutine[Any, Any, None]], muna: Engine) -> None:
    """Run a scenario as this cell's consumer of an engine that lives on."""
    if cell.is_asyncio:
        asyncio.run(scenario(Consumer(muna, cell)))
    else:
        step_through(scenario(Consumer(muna, cell)))


def is_there(pid: int) -> bool:
    """Whether a process of ours runs, or has ended and was not reaped."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def when(gate: FileGate, action: Callable[[], object]) -> Callable[[], None]:
    def act() -> None:
        gate.wait()
        action()

    return act


def announced(gate: FileGate, strike: Callable[[], Any]) -> Callable[[], Any]:
    """A strike before which the body tells where it is."""

    def strikes() -> Any:
        gate.open()
        return strike()

    return strikes


def rung_of(reader: Reader) -> str | None:
    return reader.outcome.rung


async def is_cancelled(reader: Reader) -> bool:
    """Whether the reader gets the cancellation, once, and nothing after it."""
    with pytest.raises(PredictionCancelledError):
        await reader.pull()
    return await reader.has_ended("cancelled")


async def serving(consumer: Consumer) -> int:
    """The number of the worker that serves the next call."""
    pid: int = (await consumer.create(number_of_worker)).value
    return pid


class Neighbour:
    """A stream on another worker of the same engine, which must lose nothing whatever happens beside it."""

    def __init__(self, muna: Engine) -> None:
        self._stream = muna.predictions.stream(numbers_after_worker, runner="process")
        self._values = self._stream.values()
        self.pid = next(self._values)
        self._numbers = itertools.count()

    def goes_on(self) -> bool:
        for number in itertools.islice(self._numbers, 50):
            assert next(self._values) == number
        return True

    def close(self) -> None:
        self._stream.close()
        assert self._stream.outcome.rung == "asked"


# 46, 47, 48: stuck bodies, and the ladder.


@attrs.frozen
class Stuck:
    """A way to be stuck, the rung that ends it, and two ways to leave it: (kind of body, what its consumer does)."""

    strike: Callable[[], None]
    rung: str
    ways: tuple[tuple[str, str], tuple[str, str]]

    def __str__(self) -> str:
        return self.strike.__name__


RUNGS = ("asked", "terminated", "killed")
STUCK = [
    Stuck(worker_bodies.sleeps, "terminated", (("def", "cancel"), ("agen", "aclose"))),
    Stuck(worker_bodies.waits_for_a_lock, "terminated", (("gen", "drop"), ("async", "task"))),
    Stuck(worker_bodies.spins, "terminated", (("agen", "close"), ("gen", "task"))),
    Stuck(worker_bodies.turns_in_c, "killed", (("async", "cancel"), ("gen", "aclose"))),
    Stuck(worker_bodies.swallows, "killed", (("agen", "drop"), ("def", "task"))),
    Stuck(worker_bodies.ignores_sigterm, "killed", (("gen", "close"), ("async", "aclose"))),
    Stuck(worker_bodies.is_stopped, "killed", (("gen", "drop"), ("agen", "task"))),
]


def stop_in_thread(muna: Engine, predictor: Callable[[], Any], stuck: FileGate, how: str) -> tuple[Outcome, float]:
    """Be a sync consumer that stops, by `close` or `cancel` from another thread, a body it waits for."""
    stream = muna.predictions.stream(predictor, runner="process", prefetch=0)
    moments: list[float] = []

    def stop() -> None:
        moments.append(time.monotonic())
        getattr(stream, how)()

    with Elsewhere(when(stuck, stop)):
        if how == "cancel":
            with pytest.raises(PredictionCancelledError):
                list(stream)
        else:
            list(stream)
        assert list(stream) == []
    assert stream.outcome.state == {"cancel": "cancelled", "close": "closed"}[how]
    return stream.outcome, moments[0]


def stop_by_dropping(muna: Engine, predictor: Callable[[], Any], stuck: FileGate) -> tuple[Outcome, float]:
    """Be a sync consumer that forgets about a body between two of its partials."""
    stream = muna.predictions.stream(predictor, runner="process", prefetch=8)
    next(stream)
    stuck.wait()
    outcome = stream.outcome
    moment = time.monotonic()
    with pytest.warns(ResourceWarning, match="was abandoned after 1 partial;"):
        del stream
    assert outcome.state == "closed"
    return outcome, moment


def stop_in_task(muna: Engine, predictor: Callable[[], Any], stuck: FileGate, how: str) -> tuple[Outcome, float]:
    """Be an asyncio consumer whose task is cancelled, or whose stream is closed by another task."""

    async def scenario() -> tuple[Outcome, float]:
        stream = muna.predictions.astream(predictor, runner="process", prefetch=0)

        async def read() -> None:
            async for _ in stream:
                pass

        reading = asyncio.create_task(read())
        await aeventually(lambda: stuck.is_open, "the body is stuck")
        moment = time.monotonic()
        if how == "aclose":
            await stream.aclose()
            await reading
        else:
            reading.cancel()
            with pytest.raises(asyncio.CancelledError):
                await reading
        assert [item async for item in stream] == []
        assert stream.outcome.state == {"aclose": "closed", "task": "cancelled"}[how]
        return stream.outcome, moment

    return asyncio.run(scenario())


WAYS: dict[str, Callable[[Engine, Callable[[], Any], FileGate], tuple[Outcome, float]]] = {
    "close": partial(stop_in_thread, how="close"),
    "cancel": partial(stop_in_thread, how="cancel"),
    "drop": stop_by_dropping,
    "aclose": partial(stop_in_task, how="aclose"),
    "task": partial(stop_in_task, how="task"),
}


@pytest.mark.fault(14, 46, 47, 48, 54, 57)
@pytest.mark.parametrize("stuck", STUCK, ids=str)
def test_a_stuck_body_is_gone_within_twice_the_grace_and_costs_its_neighbour_nothing(
    stuck: Stuck, tmp_path: Path
) -> None:
    seen: set[int] = set()
    with Engine(discover=False, workers=2, grace=GRACE) as muna:
        neighbour = Neighbour(muna)
        for kind, how in stuck.ways:
            gate, journal = FileGate(tmp_path / f"{how}.gate"), Journal(tmp_path / f"{how}.journal")
            place = "middle" if kind in {"gen", "agen"} else "before"
            predictor = predictor_with(kind, Trouble(journal, announced(gate, stuck.strike), place))
            outcome, moment = WAYS[how](muna, predictor, gate)
            assert neighbour.goes_on()
            eventually(lambda pid=gate.opener: not is_there(pid), f"the worker is gone after {how}")  # type: ignore[misc]
            seconds = time.monotonic() - moment
            eventually(lambda outcome=outcome: outcome.rung, "the rung is told")  # type: ignore[misc]
            assert outcome.rung == stuck.rung, how
            assert GRACE * RUNGS.index(stuck.rung) <= seconds < 2 * GRACE + SLACK
            assert journal.words == ["start", "finally"][: 2 if stuck.rung == "terminated" else 1]
            assert gate.opener not in seen  # the one before was replaced
            seen.add(gate.opener)
        assert neighbour.goes_on()
        neighbour.close()


class SleepsThere:
    """A value that takes for ever to be rebuilt, or to be taken apart, in a worker.

    Attributes:
        gate: is opened just before.
        is_made_there: whether it is made in the worker, so that it is taken apart there.
    """

    def __init__(self, gate: FileGate, *, is_made_there: bool) -> None:
        self.gate = gate
        self.is_made_there = is_made_there

    def __reduce__(self) -> tuple[Any, ...]:
        if self.is_made_there:
            worker_bodies.opens_and_sleeps(self.gate)
        return worker_bodies.opens_and_sleeps, (self.gate,)


@pytest.mark.fault(46, 47)
@pytest.mark.parametrize("place", ["input", "setup", "partial"])
def test_a_call_that_is_stuck_around_its_body_is_stopped_like_any(place: str, tmp_path: Path) -> None:
    gate, journal = FileGate(tmp_path / "gate"), Journal(tmp_path / "journal")

    class Model:
        def setup(self) -> None:
            if not gate.is_open:
                worker_bodies.opens_and_sleeps(gate)

        def predict(self, given: Any) -> str:
            return "set up"

    def yields(given: Any) -> Iterator[Any]:
        try:
            yield SleepsThere(gate, is_made_there=True) if place == "partial" else given
        finally:
            journal.note("finally")

    predictor: Any = Model if place == "setup" else yields
    given = SleepsThere(gate, is_made_there=False) if place == "input" else None
    with Engine(discover=False, workers=1, grace=GRACE) as muna:
        stream = muna.predictions.stream(predictor, {"given": given}, runner="process")
        with Elsewhere(when(gate, stream.cancel)), pytest.raises(PredictionCancelledError):
            next(stream)
        if place != "partial":
            prediction = muna.predictions.create(predictor, {"given": "next"}, runner="process")
            assert prediction.value == ("set up" if place == "setup" else "next")
        assert muna.predictions.create(number_of_worker, runner="process").value != gate.opener
        assert stream.outcome.rung == "terminated"
        assert journal.words == {"input": ["finally"], "setup": [], "partial": ["finally"]}[place]


@pytest.mark.fault(14)
def test_a_worker_that_is_stopped_while_idle_is_killed_when_a_call_or_its_engine_would_wait_for_it(
    tmp_path: Path,
) -> None:
    journal = Journal(tmp_path / "journal")
    with Engine(discover=False, workers=1, grace=GRACE) as muna:
        pid = muna.predictions.create(number_of_worker, runner="process").value
        os.kill(pid, signal.SIGSTOP)
        stream = muna.predictions.stream(predictor_with("gen", Trouble(journal)), runner="process")
        (worker,) = muna._workers()._pool.workers

        def cancel_once_told() -> None:
            eventually(worker.unread, "the order is sent")
            stream.cancel()

        with Elsewhere(cancel_once_told), pytest.raises(PredictionCancelledError):
            next(stream)
        replaced = muna.predictions.create(number_of_worker, runner="process").value
        assert replaced != pid
        assert stream.outcome.rung == "killed"
        assert journal.words == []  # a call that was stopped is not served elsewhere either
        os.kill(replaced, signal.SIGSTOP)
        moment = time.monotonic()
    assert time.monotonic() - moment < 2 * GRACE + SLACK
    assert not is_there(replaced)


@pytest.mark.fault(46, 47, 48)
def test_closing_an_engine_ends_every_stuck_worker_within_twice_the_grace(tmp_path: Path) -> None:
    strikes = (worker_bodies.turns_in_c, worker_bodies.swallows, worker_bodies.is_stopped)
    gates = [FileGate(tmp_path / strike.__name__) for strike in strikes]
    muna = Engine(discover=False, workers=3, grace=GRACE)
    streams = [
        muna.predictions.stream(
            predictor_with("gen", Trouble(Journal(tmp_path / "journal"), announced(gate, strike), "middle")),
            runner="process",
            prefetch=8,
        )
        for gate, strike in zip(gates, strikes, strict=True)
    ]
    for stream, gate in zip(streams, gates, strict=True):
        next(stream)
        gate.wait()
    moment = time.monotonic()
    muna.close()
    assert time.monotonic() - moment < 2 * GRACE + SLACK
    assert not any(is_there(gate.opener) for gate in gates)
    for stream in streams:
        with pytest.raises(EngineClosedError):
            next(stream)
        assert list(stream) == []
        assert (stream.outcome.state, stream.outcome.rung) == ("closed", "killed")


@pytest.mark.fault(48)
@each_consumer
def test_an_async_body_is_cancelled_by_the_request_and_by_sigterm_and_killed_if_it_swallows_both(
    cell: Cell, tmp_path: Path
) -> None:
    def swallowing(times: int, gate: FileGate) -> Callable[[], Any]:
        async def waits() -> None:
            gate.open()
            for _ in range(times):
                with contextlib.suppress(BaseException):
                    await worker_bodies.rests()
            await worker_bodies.rests()

        return waits

    async def scenario(consumer: Consumer) -> None:
        for times, rung in enumerate(RUNGS):
            gate = FileGate(tmp_path / rung)
            reader = consumer.open(swallowing(times, gate))
            with Elsewhere(when(gate, reader.stream.cancel)):
                assert await is_cancelled(reader)
            assert (await serving(consumer) == gate.opener) == (rung == "asked")
            assert reader.outcome.rung == rung

    cell.run(scenario, grace=GRACE, workers=1)


@pytest.mark.fault(47)
@each_cell
def test_a_consumer_leaves_a_stuck_body_at_once_and_its_worker_serves_on_once_it_is_free(
    cell: Cell, tmp_path: Path, lasting: Engine
) -> None:
    reached, go, journal = FileGate(tmp_path / "reached"), FileGate(tmp_path / "go"), Journal(tmp_path / "journal")
    predictor = predictor_with(cell.kind, Trouble(journal, announced(reached, go.wait)))

    async def scenario(consumer: Consumer) -> None:
        reader = consumer.open(predictor)
        with Elsewhere(when(reached, reader.stream.cancel)):
            assert await is_cancelled(reader)
        assert journal.words == ["start"]  # the body is where it was, and its consumer is gone
        assert rung_of(reader) is None
        with Elsewhere(go.open):
            assert await serving(consumer) == reached.opener
        assert reader.outcome.rung == "asked"
        assert journal.words == ["start", "finally"]

    run(cell, scenario, lasting)


# Bodies that heed the request.


async def closed_while_it_waits(reader: Reader, reached: FileGate) -> str:
    """`next` is woken by a close in another thread, or task."""
    if not hasattr(reader.stream, "aclose"):
        with Elsewhere(when(reached, reader.stream.close)):
            assert await reader.pull() is END
        return "closed"
    reading = asyncio.ensure_future(reader.pull())
    await aeventually(lambda: reached.is_open, "the body is reached")
    await reader.close()
    assert await reading is END
    return "closed"


async def cancelled_while_it_waits(reader: Reader, reached: FileGate) -> str:
    with Elsewhere(when(reached, reader.stream.cancel)), pytest.raises(PredictionCancelledError):
        await reader.pull()
    return "cancelled"


async def left_by_a_cancelled_task(reader: Reader, reached: FileGate) -> str:
    reading = asyncio.ensure_future(reader.pull())
    await aeventually(lambda: reached.is_open, "the body is reached")
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    return "cancelled"


async def left_by_a_deadline(reader: Reader, reached: FileGate) -> str:
    async def read_in_time() -> None:
        async with asyncio.timeout(None) as deadline:
            arrival = asyncio.ensure_future(aeventually(lambda: reached.is_open, "the body is reached"))
            arrival.add_done_callback(lambda _: deadline.reschedule(0))
            await reader.pull()

    with pytest.raises(TimeoutError):
        await read_in_time()
    return "cancelled"


@pytest.mark.fault(46, 51, 54)
@each_cell
def test_a_body_that_is_waited_for_and_heeds_the_request_is_finalised_once_and_its_worker_serves_on(
    cell: Cell, tmp_path: Path, lasting: Engine
) -> None:
    ways = [closed_while_it_waits, cancelled_while_it_waits]
    if cell.is_asyncio:
        ways += [left_by_a_cancelled_task, left_by_a_deadline]
    heeds = worker_bodies.rests if cell.is_async else worker_bodies.looks

    async def scenario(consumer: Consumer) -> None:
        pid = await serving(consumer)
        for way, place in itertools.product(ways, ["before", "middle"] if cell.is_yielding else ["before"]):
            name = f"{way.__name__}-{place}"
            reached, journal = FileGate(tmp_path / f"{name}.gate"), Journal(tmp_path / f"{name}.journal")
            trouble = Trouble(journal, announced(reached, heeds), place)
            reader = consumer.open(predictor_with(cell.kind, trouble), prefetch=0)
            if place == "middle":
                assert await reader.pull() == "first"
            state = await way(reader, reached)
            if state == "closed":  # then it is finalised when the close returns
                assert (name, journal.words, reader.outcome.rung) == (name, ["start", "finally"], "asked")
            assert await reader.has_ended(state)
            assert (name, await serving(consumer)) == (name, pid)
            assert (name, journal.words, reader.outcome.rung) == (name, ["start", "finally"], "asked")

    run(cell, scenario, lasting)


@pytest.mark.fault(46, 51)
@pytest.mark.parametrize("cell", [cell for cell in CELLS if cell.is_asyncio], ids=str)
def test_a_task_cancelled_in_acreate_stops_its_body_and_the_worker_serves_on(
    cell: Cell, tmp_path: Path, lasting: Engine
) -> None:
    reached, journal = FileGate(tmp_path / "gate"), Journal(tmp_path / "journal")
    heeds = worker_bodies.rests if cell.is_async else worker_bodies.looks

    async def scenario(consumer: Consumer) -> None:
        creating = asyncio.ensure_future(
            consumer.create(predictor_with(cell.kind, Trouble(journal, announced(reached, heeds))))
        )
        await aeventually(lambda: reached.is_open, "the body is reached")
        creating.cancel()
        with pytest.raises(asyncio.CancelledError):
            await creating
        assert await serving(consumer) == reached.opener
        assert journal.words == ["start", "finally"]

    run(cell, scenario, lasting)


# 51, 55, 57: stopped while nobody waits, in every order, any number of times.

STEPS = ("close", "leave", "cancel")
ORDERS = [(), *((step,) for step in STEPS), *itertools.product(STEPS, repeat=2), *itertools.permutations(STEPS)]


@pytest.mark.fault(51, 55, 57)
@each_yielding
def test_closing_leaving_cancelling_and_dropping_in_any_order_ends_a_stream_once_and_keeps_its_worker(
    cell: Cell, tmp_path: Path, lasting: Engine
) -> None:
    async def scenario(consumer: Consumer) -> None:
        pid = await serving(consumer)
        for order in ORDERS:
            journal = Journal(tmp_path / "-".join(order or ("drop",)))
            reader = consumer.open(predictor_with(cell.kind, Trouble(journal)), prefetch=0)
            assert await reader.pull() == "first"
            outcome = reader.outcome
            for step in order:
                if step == "close":
                    await reader.close()
                elif step == "cancel":
                    reader.stream.cancel()
                else:
                    async with reader.opened():
                        pass
                if order[0] != "cancel":  # what closes it returns once the body is finalised
                    assert (order, journal.words) == (order, ["start", "finally"])
                outcome = reader.outcome
            with warnings.catch_warnings(record=True) as told:
                warnings.simplefilter("always")
                reader.drop()
            assert (order, [each.category for each in told]) == (order, [] if order else [ResourceWarning])
            assert (order, outcome.state) == (order, "cancelled" if order[:1] == ("cancel",) else "closed")
            assert (order, await serving(consumer)) == (order, pid)
            assert (order, journal.words, outcome.rung) == (order, ["start", "finally"], "asked")

    run(cell, scenario, lasting)


@pytest.mark.fault(51)
@each_cell
def test_a_call_cancelled_a_hundred_times_before_its_start_or_after_its_end_leaves_its_worker_alone(
    cell: Cell, tmp_path: Path, lasting: Engine
) -> None:
    async def scenario(consumer: Consumer) -> None:
        pid = await serving(consumer)
        for read in range(-1, len(cell.partials) + 2):  # -1: not even asked for; beyond the last partial is the end
            journal = Journal(tmp_path / f"after-{read}")
            reader = consumer.open(predictor_with(cell.kind, Trouble(journal)), prefetch=0)
            for _ in range(read):
                await reader.pull()
            for _ in range(100):
                reader.stream.cancel()
            if read <= len(cell.partials):
                assert await is_cancelled(reader)
            for _ in range(100):
                reader.stream.cancel()
            assert await reader.has_ended("cancelled" if read <= len(cell.partials) else "done")
            assert (read, await serving(consumer)) == (read, pid)
            assert (read, journal.words) == (read, ["start", "finally"] if read > 0 else [])
            assert reader.outcome.count == max(0, min(read, len(cell.partials)))

    run(cell, scenario, lasting)


@pytest.mark.fault(51, 52)
@each_consumer
def test_a_cancel_that_comes_whenever_it_likes_never_reaches_the_next_call_on_the_same_worker(
    cell: Cell, tmp_path: Path, lasting: Engine
) -> None:
    """Two hundred cancels at random moments of short calls, and after each a call on that worker which is untouched."""
    seeded = random.Random(51)
    journal = Journal(tmp_path / "journal")
    predictors = [predictor_with(kind, Trouble(journal)) for kind in KINDS]
    streams: list[Any] = []
    is_over = threading.Event()
    turn = threading.Semaphore(0)

    def cancels() -> None:
        while turn.acquire(timeout=20) and not is_over.is_set():
            moment = time.perf_counter() + seeded.random() * 0.002
            while time.perf_counter() < moment:
                time.sleep(0)
            streams[-1].cancel()

    async def scenario(consumer: Consumer) -> None:
        pid = await serving(consumer)
        ends: set[str] = set()
        try:
            for repeat in range(200):
                reader = consumer.open(predictors[repeat % len(KINDS)])
                streams[:] = [reader.stream]
                turn.release()
                try:
                    seen = await reader.rest()
                except PredictionCancelledError:
                    assert await reader.has_ended("cancelled")
                else:
                    assert await reader.has_ended("done")
                    assert seen == ["first", "second"][0 if repeat % 2 else 1 :]
                ends.add(reader.outcome.state)
                assert await serving(consumer) == pid
        finally:
            is_over.set()
            turn.release()
        assert ends == {"cancelled", "done"}
        assert journal.words.count("start") == journal.words.count("finally")

    with Elsewhere(cancels):
        run(cell, scenario, lasting)


@pytest.mark.fault(51)
@each_cell
def test_a_request_to_stop_that_comes_late_does_not_reach_the_next_call(
    cell: Cell, tmp_path: Path, lasting: Engine
) -> None:
    """The call before it was asked to stop, and the worker reads that only now that it serves another."""
    reached, go, journal = FileGate(tmp_path / "reached"), FileGate(tmp_path / "go"), Journal(tmp_path / "journal")
    predictor = predictor_with(cell.kind, Trouble(journal, announced(reached, go.wait)))

    async def scenario(consumer: Consumer) -> None:
        await serving(consumer)
        (worker,) = lasting._workers()._pool.workers
        late = worker.calls
        reader = consumer.open(predictor)

        def ask_late() -> None:
            worker.ask_to_stop(late)
            eventually(lambda: not is_unread(worker.stops_pipe), "it has read the request")
            go.open()

        with Elsewhere(when(reached, ask_late)):
            assert await reader.rest() == list(cell.partials)
        assert await reader.has_ended("done")
        assert worker.calls == late + 1
        assert journal.words == ["start", "finally"]

    run(cell, scenario, lasting)


def is_unread(pipe: int) -> bool:
    """Whether something lies in a pipe, of which we have the other end."""
    found = array("i", [0])
    fcntl.ioctl(pipe, termios.FIONREAD, found)
    return found[0] > 0


# 52: a cancel and a partial at the same moment.


@pytest.mark.fault(52)
@each_cell
def test_a_partial_that_leaves_a_worker_after_the_cancellation_is_never_delivered(
    cell: Cell, tmp_path: Path, lasting: Engine
) -> None:
    parked, go, journal = FileGate(tmp_path / "parked"), FileGate(tmp_path / "go"), Journal(tmp_path / "journal")
    interception = Interception((ITEM, ITEMS, DONE), partial(worker_bodies.parks_before, parked, go))
    predictor = predictor_with(
        cell.kind, Trouble(journal, interception.set, "middle" if cell.is_yielding else "before")
    )

    async def scenario(consumer: Consumer) -> None:
        reader = consumer.open(predictor, prefetch=0)
        if cell.is_yielding:
            assert await reader.pull() == "first"
        with Elsewhere(when(parked, reader.stream.cancel)):
            assert await is_cancelled(reader)
        assert rung_of(reader) is None
        go.open()
        assert await serving(consumer) == parked.opener
        assert await reader.has_ended("cancelled")
        assert (reader.outcome.count, reader.outcome.rung) == (int(cell.is_yielding), "asked")
        assert journal.words == ["start", "finally"]

    run(cell, scenario, lasting)


@pytest.mark.fault(52)
@each_yielding
def test_a_partial_that_waits_to_be_read_is_never_delivered_after_the_cancellation(
    cell: Cell, tmp_path: Path, lasting: Engine
) -> None:
    parked, go, journal = FileGate(tmp_path / "parked"), FileGate(tmp_path / "go"), Journal(tmp_path / "journal")
    interception = Interception((ITEM, ITEMS), partial(worker_bodies.parks_after, parked, go))
    predictor = predictor_with(cell.kind, Trouble(journal, interception.set, "middle"))

    async def scenario(consumer: Consumer) -> None:
        reader = consumer.open(predictor, prefetch=8)
        assert await reader.pull() == "first"
        await aeventually(lambda: parked.is_open, "the second partial is on its way")
        reader.stream.cancel()
        assert await is_cancelled(reader)
        go.open()
        assert await serving(consumer) == parked.opener
        assert (reader.outcome.count, reader.outcome.rung) == (1, "asked")
        assert journal.words == ["start", "finally"]

    run(cell, scenario, lasting)


# 53: closed before the start.


@pytest.mark.fault(53)
@each_cell
def test_a_stream_left_before_its_first_pull_starts_no_worker(cell: Cell, tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal")
    predictor = predictor_with(cell.kind, Trouble(journal))
    before = child_processes()

    async def scenario(consumer: Consumer) -> None:
        assert await leaves_unread(consumer, predictor)
        assert child_processes() == before

    cell.run(scenario)
    assert journal.words == []


@pytest.mark.fault(53)
@each_cell
def test_a_stream_left_before_its_first_pull_holds_no_slot(cell: Cell, tmp_path: Path, lasting: Engine) -> None:
    journal = Journal(tmp_path / "journal")
    predictor = Predictor("@tests/single", predictor_with(cell.kind, Trouble(journal)), concurrency=1)

    async def scenario(consumer: Consumer) -> None:
        assert await leaves_unread(consumer, predictor)
        assert await consumer.read(predictor) == list(cell.partials)
        assert journal.words == ["start", "finally"]

    run(cell, scenario, lasting)


async def leaves_unread(consumer: Consumer, predictor: Any) -> bool:
    """Whether streams end as they should that are left in every way before anything was read."""
    closed, cancelled = consumer.open(predictor), consumer.open(predictor)
    await closed.close()
    assert await closed.has_ended("closed")
    cancelled.stream.cancel()
    assert await is_cancelled(cancelled)
    async with consumer.open(predictor).opened():
        pass
    consumer.open(predictor).drop()
    return True


# 49, 50: clean-up that goes wrong, or takes its time.


def stubborn(kind: str) -> Callable[[], Any]:
    def yields() -> Iterator[str]:
        try:
            yield "first"
        except GeneratorExit:
            yield "one more"

    async def async_yields() -> AsyncIterator[str]:
        try:
            yield "first"
        except GeneratorExit:
            yield "one more"

    return {"gen": yields, "agen": async_yields}[kind]


@pytest.mark.fault(49)
@each_yielding
def test_a_body_that_yields_instead_of_ending_is_closed_all_the_same_and_its_worker_serves_on(
    cell: Cell, caplog: pytest.LogCaptureFixture, lasting: Engine
) -> None:
    async def scenario(consumer: Consumer) -> None:
        pid = await serving(consumer)
        closed, cancelled = (consumer.open(stubborn(cell.kind), prefetch=0) for _ in range(2))
        await closed.pull()
        with pytest.raises(RuntimeError, match="ignored GeneratorExit"):
            await closed.close()
        await closed.close()
        assert await closed.has_ended("closed")
        assert await serving(consumer) == pid
        await cancelled.pull()
        cancelled.stream.cancel()
        assert await is_cancelled(cancelled)
        assert await serving(consumer) == pid
        await aeventually(lambda: "ignored GeneratorExit" in caplog.text, "what nobody waited for is in the log")

    run(cell, scenario, lasting)


@pytest.mark.fault(50)
@each_yielding
def test_close_waits_for_a_slow_finally(cell: Cell, tmp_path: Path, lasting: Engine) -> None:
    reached, go, journal = FileGate(tmp_path / "reached"), FileGate(tmp_path / "go"), Journal(tmp_path / "journal")
    trouble = Trouble(journal, cleanup=announced(reached, go.wait))

    async def scenario(consumer: Consumer) -> None:
        reader = consumer.open(predictor_with(cell.kind, trouble), prefetch=0)
        assert await reader.pull() == "first"
        with Elsewhere(when(reached, go.open)):
            await reader.close()
        assert go.is_open
        assert reader.outcome.rung == "asked"
        assert await reader.has_ended("closed")
        assert await serving(consumer) == reached.opener

    run(cell, scenario, lasting)


@pytest.mark.fault(50)
@pytest.mark.parametrize(
    ("cell", "lingers", "rung"),
    [
        (Cell("gen", "sync", "process"), worker_bodies.sleeps, "terminated"),
        (Cell("agen", "asyncio", "process"), worker_bodies.rests, "terminated"),
        (Cell("agen", "sync", "process"), worker_bodies.sleeps, "terminated"),
        (Cell("gen", "asyncio", "process"), worker_bodies.swallows, "killed"),
    ],
    ids=lambda each: getattr(each, "__name__", str(each)),
)
def test_a_finally_that_does_not_end_within_the_grace_is_ended(
    cell: Cell, lingers: Callable[[], Any], rung: str, tmp_path: Path
) -> None:
    reached, journal = FileGate(tmp_path / "reached"), Journal(tmp_path / "journal")
    trouble = Trouble(journal, cleanup=announced(reached, lingers))

    async def scenario(consumer: Consumer) -> None:
        reader = consumer.open(predictor_with(cell.kind, trouble), prefetch=0)
        assert await reader.pull() == "first"
        moment = time.monotonic()
        await reader.close()
        assert time.monotonic() - moment < 2 * GRACE + SLACK
        assert (reader.outcome.state, reader.outcome.rung) == ("closed", rung)
        assert await serving(consumer) != reached.opener
        assert journal.words == ["start", "finally"]

    cell.run(scenario, grace=GRACE, workers=1)


@pytest.mark.fault(51)
def test_a_body_that_waits_for_room_in_a_full_pipe_is_stopped_and_its_worker_serves_on(
    tmp_path: Path, lasting: Engine
) -> None:
    full, journal = FileGate(tmp_path / "full"), Journal(tmp_path / "journal")

    def floods() -> Iterator[bytearray]:
        worker_bodies.tell_when_pipe_is_full(full)
        try:
            while True:
                yield bytearray(30_000)  # too little for shared memory, and soon too much for the pipe
        finally:
            journal.note("finally")

    stream = lasting.predictions.stream(floods, runner="process", prefetch=10_000)
    next(stream)
    full.wait()
    stream.close()
    assert (stream.outcome.rung, journal.words) == ("asked", ["finally"])
    assert lasting.predictions.create(number_of_worker, runner="process").value == full.opener


# 56: two readers of one stream.


@pytest.mark.fault(56)
@each_consumer
def test_two_readers_share_a_stream_without_losing_or_doubling_a_partial(cell: Cell, lasting: Engine) -> None:
    def numbers() -> Iterator[int]:
        yield from range(500)

    async def scenario(consumer: Consumer) -> None:
        stream = consumer.open(numbers).stream
        taken: list[list[int]] = [[], []]

        def read(mine: list[int]) -> None:
            mine.extend(stream.values())

        async def aread(mine: list[int]) -> None:
            async for value in stream.values():
                mine.append(value)
                await asyncio.sleep(0)

        if cell.is_asyncio:
            await asyncio.gather(aread(taken[0]), aread(taken[1]))
        else:
            with Elsewhere(partial(read, taken[0])), Elsewhere(partial(read, taken[1])):
                pass
        assert stream.outcome.state == "done"
        assert sorted(taken[0] + taken[1]) == list(range(500))
        assert [sorted(mine) for mine in taken] == taken

    run(cell, scenario, lasting)


# 57, 58, 61: abandoned.


class Knot:
    """Holds a stream in a reference cycle, so that only a collector frees it."""

    def __init__(self, *held: Any) -> None:
        self.held = held
        self.itself = self


def locks_of(engine: Engine) -> list[Any]:
    """Every lock that the engine's own objects hold."""
    kinds = (type(threading.Lock()), type(threading.RLock()))
    found: list[Any] = []
    seen: set[int] = set()
    left: list[Any] = [engine]
    while left:
        each = left.pop()
        if id(each) in seen:
            continue
        seen.add(id(each))
        if isinstance(each, kinds):
            found.append(each)
        elif isinstance(each, (dict, list, tuple, set)) or f"{type(each).__module__}.".startswith("engine."):
            left.extend(gc.get_referents(each))
    return found


@pytest.mark.fault(57, 58)
@pytest.mark.filterwarnings("ignore:a stream of .* was abandoned:ResourceWarning")
@each_yielding
def test_a_stream_abandoned_in_a_cycle_is_finalised_by_any_collector_whatever_lock_is_held(
    cell: Cell, lasting: Engine
) -> None:
    """Its endless body is stopped, and its worker is free again, though no lock of the engine's is to be had."""
    predictor = {"gen": numbers_after_worker, "agen": anumbers_after_worker}[cell.kind]

    async def scenario(consumer: Consumer) -> None:
        pid = await serving(consumer)
        idle = [lock for lock in locks_of(consumer.engine) if lock.acquire(blocking=False)]
        for lock in idle:
            lock.release()
        assert len(idle) > 5
        for lock in (contextlib.nullcontext(), *idle):
            reader = consumer.open(predictor)
            assert [await reader.pull() for _ in range(3)] == [pid, 0, 1]
            outcome = reader.outcome
            Knot(reader.stream, reader._values)
            reader.drop()
            with lock, Elsewhere(gc.collect) as collecting:
                collecting.join()
            assert outcome.state == "closed"
            assert await serving(consumer) == pid
            assert outcome.rung == "asked"

    run(cell, scenario, lasting)


class ConsumerFailed(Exception):
    """What a consumer's loop raises."""


@pytest.mark.fault(57, 61)
@each_yielding
def test_a_consumer_that_fails_has_closed_its_stream_with_or_without_with(
    cell: Cell, tmp_path: Path, lasting: Engine
) -> None:
    async def fails(consumer: Consumer, predictor: Callable[[], Any], is_inside: bool) -> None:
        reader = consumer.open(predictor, prefetch=0)
        async with reader.opened() if is_inside else contextlib.nullcontext():
            while await reader.pull() != "second":
                pass
            raise ConsumerFailed

    async def scenario(consumer: Consumer) -> None:
        pid = await serving(consumer)
        for is_inside in (True, False):
            journal = Journal(tmp_path / str(is_inside))
            with warnings.catch_warnings(record=True) as told:
                warnings.simplefilter("always")
                try:
                    await fails(consumer, predictor_with(cell.kind, Trouble(journal)), is_inside)
                except ConsumerFailed:
                    assert journal.words == ["start", "finally"][: 2 if is_inside else 1]
                assert await serving(consumer) == pid
            assert journal.words == ["start", "finally"]
            assert [each.category for each in told] == ([] if is_inside else [ResourceWarning])

    run(cell, scenario, lasting)


# What the interruption of a call leaves behind.


class _Interrupted(BaseException):
    """Stands for a Ctrl-C at a chosen moment, which no test runner takes for its own."""


@pytest.mark.fault(108)
@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize("kind", ["create", "stream"])
def test_a_call_interrupted_while_it_is_sent_leaves_its_worker_to_the_next(
    kind: str, moment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    send = Worker.send

    def sends(worker: Worker, chunks: Any) -> bool:
        if moment == "after":
            send(worker, chunks)
        monkeypatch.undo()
        raise _Interrupted

    with Engine(discover=False, workers=1, grace=0.3) as muna:
        assert muna.predictions.create(number_of_worker, runner="process").value > 0
        stream = muna.predictions.stream(number_of_worker, runner="process")
        monkeypatch.setattr(Worker, "send", sends)
        call = partial(muna.predictions.create, number_of_worker, runner="process")
        with pytest.raises(_Interrupted):
            call() if kind == "create" else next(stream)
        stream.close()
        assert muna.predictions.create(number_of_worker, runner="process").value > 0
        assert muna.predictions.open_calls == ()


@pytest.mark.fault(108)
@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize("kind", ["acreate", "astream"])
def test_a_large_call_interrupted_as_a_thread_begins_to_send_it_keeps_its_worker_until_that_is_over(
    kind: str, moment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    reached, go_on, late = threading.Event(), threading.Event(), list[Callable[[], None]]()
    make_frame = process._frame
    inputs = {"value": [bytes(1 << 16)] * 8 + [bytearray(1 << 20)]}

    def frame(*facts: Any) -> Any:
        if threading.current_thread() is not threading.main_thread():
            reached.set()
            assert go_on.wait(LONG)
        return make_frame(*facts)

    async def call(muna: Engine) -> None:
        if kind == "acreate":
            await muna.predictions.acreate(gives_back, inputs, runner="process")
        else:
            await anext(muna.predictions.astream(gives_back, inputs, runner="process"))

    with Engine(discover=False, workers=1, grace=LONG) as muna:
        number = muna.predictions.create(number_of_worker, runner="process").value
        runner = muna._workers()
        aside = runner.aside

        def interrupted(channel: Any, work: Callable[[], None]) -> None:
            if not isinstance(channel, Inlet):
                return aside(channel, work)
            if moment == "after":
                aside(channel, work)
                assert reached.wait(LONG)
            else:
                late.append(work)
            raise _Interrupted

        monkeypatch.setattr(process, "_frame", frame)
        monkeypatch.setattr(runner, "aside", interrupted)
        with pytest.raises(_Interrupted):
            asyncio.run(call(muna))
        assert bool(runner._pool.leases) is (moment == "after")
        go_on.set()
        for work in late:
            work()
        assert muna.predictions.create(number_of_worker, runner="process").value == number
        assert (runner._pool.leases, muna.predictions.open_calls) == ((), ())


@pytest.mark.fault(97)
def test_a_description_or_load_from_asyncio_that_would_wait_for_its_own_tasks_stream_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "described_late.py").write_text("def late(): return 1\n")
    monkeypatch.syspath_prepend(str(tmp_path))

    async def main() -> None:
        async with Engine(discover=False, workers=1) as muna:
            muna.predictors.register("@me/late", "described_late:late")
            async with muna.predictions.astream(numbers_after_worker, runner="process") as stream:
                await anext(stream)
                with pytest.raises(NestingError):
                    await muna.predictions.acreate("@me/late", runner="process")
                with pytest.raises(NestingError):
                    await muna.aload(number_of_worker, runner="process")
            assert (await muna.predictions.acreate("@me/late", runner="process")).value == 1

    asyncio.run(main())


@pytest.mark.fault(46)
def test_sigterm_reaches_a_body_that_waits_in_an_engine_of_its_own(tmp_path: Path) -> None:
    gate = FileGate(tmp_path / "reached")
    journal = Journal(tmp_path / "journal")

    def waits() -> Any:
        def sleeps() -> None:
            gate.open()
            time.sleep(60)

        inner = Engine(discover=False, grace=0.1)
        try:
            return inner.predictions.create(sleeps, runner="thread").value
        finally:
            journal.note("finally")

    with Engine(discover=False, workers=1, grace=1.0) as muna:
        stream = muna.predictions.stream(waits, runner="process")

        def close() -> None:
            gate.wait()
            stream.close()

        closer = threading.Thread(target=close)
        closer.start()
        assert list(stream) == []
        closer.join(10)
        assert (stream.outcome.rung, journal.words) == ("terminated", ["finally"])


@pytest.mark.fault(51)
def test_a_stream_that_is_stopped_while_it_is_described_ends_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reached, go = FileGate(tmp_path / "reached"), FileGate(tmp_path / "go")
    source = f"""
import time
from pathlib import Path
Path({str(reached.path)!r}).touch()
while not Path({str(go.path)!r}).exists():
    time.sleep(0.001)
def late():
    yield from (1, 2, 3)
"""
    (tmp_path / "described_slowly.py").write_text(source)
    monkeypatch.syspath_prepend(str(tmp_path))
    for stop, ended in (("cancel", PredictionCancelledError), ("close", None)):
        for gate in (reached, go):
            gate.path.unlink(missing_ok=True)
        with Engine(discover=False, workers=1) as muna:
            muna.predictors.register("@me/late", "described_slowly:late")
            stream = muna.predictions.stream("@me/late", runner="process")
            told: list[Any] = []

            def read(stream: Any = stream, told: list[Any] = told) -> None:
                try:
                    told.extend(stream.values())
                except PredictionCancelledError as error:
                    told.append(type(error))

            reader = threading.Thread(target=read)
            reader.start()
            reached.wait()
            getattr(stream, stop)()
            go.open()
            reader.join(10)
            assert told == ([] if ended is None else [ended])
            assert stream.outcome.state == ("closed" if ended is None else "cancelled")


@pytest.mark.parametrize("is_async", [False, True], ids=["thread", "task"])
def test_a_reader_of_a_call_that_its_runner_stopped_hears_of_a_cancellation_at_once(
    is_async: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It waits for what its worker still says, which may be long in coming."""
    monkeypatch.setattr(wire_module, "POLL_INTERVAL", 10 * LIMIT)
    dispatcher: Any = object()
    inlet = Inlet(None, "@tests/stopped", dispatcher)
    inlet.request_stop()
    with Elsewhere(lambda: asyncio.run(inlet.wait_task()) if is_async else inlet.wait()):
        eventually(lambda: inlet.end_waiters, "the reader waits")
        assert inlet.claim("cancelled")
        inlet.is_over = True
        inlet.request_stop()
