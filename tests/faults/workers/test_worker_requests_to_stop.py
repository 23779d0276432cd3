"""Calls in a worker that are cancelled, closed or left at any time, in any order, any number of times."""

from __future__ import annotations

import asyncio
import fcntl
import itertools
import random
import termios
import threading
import time
import warnings
from array import array
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from engine import Engine, PredictionCancelledError, Predictor
from engine._wire.frames import DONE, ITEM, ITEMS
from tests._kit.gates import FileGate, Journal
from tests._kit.internals import worker_of
from tests._kit.processes import child_processes
from tests._kit.waits import OtherThread, auntil, until
from tests.faults import worker_bodies
from tests.faults.conftest import END, Cell, Consumer, Reader
from tests.faults.stopping import is_cancelled
from tests.faults.worker_bodies import KINDS, Interception, Trouble, predictor_with
from tests.faults.workers.stopping import (
    CELLS,
    announced,
    each_cell,
    each_consumer,
    each_yielding,
    run,
    rung_of,
    serving,
    when,
)

# Bodies that heed the request.


async def closed_while_it_waits(reader: Reader, reached: FileGate) -> str:
    """`next` is woken by a close in another thread, or task."""
    if not hasattr(reader.stream, "aclose"):
        with OtherThread(when(reached, reader.stream.close)):
            assert await reader.pull() is END
        return "closed"
    reading = asyncio.ensure_future(reader.pull())
    await auntil(lambda: reached.is_open, "the body is reached")
    await reader.close()
    assert await reading is END
    return "closed"


async def cancelled_while_it_waits(reader: Reader, reached: FileGate) -> str:
    with OtherThread(when(reached, reader.stream.cancel)), pytest.raises(PredictionCancelledError):
        await reader.pull()
    return "cancelled"


async def left_by_a_cancelled_task(reader: Reader, reached: FileGate) -> str:
    reading = asyncio.ensure_future(reader.pull())
    await auntil(lambda: reached.is_open, "the body is reached")
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    return "cancelled"


async def left_by_a_deadline(reader: Reader, reached: FileGate) -> str:
    async def read_in_time() -> None:
        async with asyncio.timeout(None) as deadline:
            arrival = asyncio.ensure_future(auntil(lambda: reached.is_open, "the body is reached"))
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
        await auntil(lambda: reached.is_open, "the body is reached")
        creating.cancel()
        with pytest.raises(asyncio.CancelledError):
            await creating
        assert await serving(consumer) == reached.opener
        assert journal.words == ["start", "finally"]

    run(cell, scenario, lasting)


# 51, 55, 57: stopped while no consumer waits, in every order, any number of times.


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

    with OtherThread(cancels):
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
        worker = worker_of(lasting)
        late = worker.calls
        reader = consumer.open(predictor)

        def ask_late() -> None:
            worker.ask_to_stop(late)
            until(lambda: not is_unread(worker.stops_pipe), "it has read the request")
            go.open()

        with OtherThread(when(reached, ask_late)):
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
        with OtherThread(when(parked, reader.stream.cancel)):
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
        await auntil(lambda: parked.is_open, "the second partial is on its way")
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
