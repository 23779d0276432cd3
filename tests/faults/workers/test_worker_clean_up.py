"""Clean-up in a worker that goes wrong or takes its time, and streams that are shared, or left by their consumer."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import time
import warnings
from collections.abc import AsyncIterator, Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from engine import Engine
from tests._kit.gates import FileGate, Journal
from tests._kit.internals import locks_of
from tests._kit.streams import ConsumerFailed, Knot
from tests._kit.waits import OtherThread, auntil
from tests.faults import worker_bodies
from tests.faults.conftest import Cell, Consumer
from tests.faults.stopping import is_cancelled
from tests.faults.worker_bodies import (
    Trouble,
    anumbers_after_worker,
    number_of_worker,
    numbers_after_worker,
    predictor_with,
)
from tests.faults.workers.stopping import (
    GRACE,
    SLACK,
    announced,
    each_consumer,
    each_yielding,
    run,
    serving,
    when,
)

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
        await auntil(lambda: "ignored GeneratorExit" in caplog.text, "what no consumer waited for is in the log")

    run(cell, scenario, lasting)


@pytest.mark.fault(50)
@each_yielding
def test_close_waits_for_a_slow_finally(cell: Cell, tmp_path: Path, lasting: Engine) -> None:
    reached, go, journal = FileGate(tmp_path / "reached"), FileGate(tmp_path / "go"), Journal(tmp_path / "journal")
    trouble = Trouble(journal, cleanup=announced(reached, go.wait))

    async def scenario(consumer: Consumer) -> None:
        reader = consumer.open(predictor_with(cell.kind, trouble), prefetch=0)
        assert await reader.pull() == "first"
        with OtherThread(when(reached, go.open)):
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
            with OtherThread(partial(read, taken[0])), OtherThread(partial(read, taken[1])):
                pass
        assert stream.outcome.state == "done"
        assert sorted(taken[0] + taken[1]) == list(range(500))
        assert [sorted(mine) for mine in taken] == taken

    run(cell, scenario, lasting)


# 57, 58, 61: abandoned.


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
            Knot(reader.stream, reader.values)
            reader.drop()
            with lock, OtherThread(gc.collect) as collecting:
                collecting.join()
            assert outcome.state == "closed"
            assert await serving(consumer) == pid
            assert outcome.rung == "asked"

    run(cell, scenario, lasting)


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
