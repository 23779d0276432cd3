"""Calls that are cancelled or closed at any time: before they start, in the middle, after the end, again and again."""

from __future__ import annotations

import asyncio
import dis
import random
import sys
import threading
from typing import TYPE_CHECKING, Any

import pytest

from engine import Engine, PredictionCancelledError, Predictor
from engine.runners.base import Execution
from tests._kit.gates import Gate
from tests._kit.internals import executions_of
from tests._kit.waits import OtherThread, auntil
from tests.faults.conftest import Fault, each_cell, predictor_with
from tests.faults.stopping import drained, is_cancelled, waiting, when

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from types import FrameType

    from tests.faults.conftest import Cell, Consumer


# Where the interpreter looks for signals, besides calls: 3.11 has conditional ones, too.
JUMPS_BACK = {name for name in dis.opname if "JUMP_BACKWARD" in name and not name.endswith("NO_INTERRUPT")}


# 51: cancelled at any time, any number of times.


@pytest.mark.fault(51)
@pytest.mark.parametrize("times", [1, 100])
def test_a_call_cancelled_before_its_start_never_starts(cell: Cell, times: int) -> None:
    fault = Fault()

    async def scenario(consumer: Consumer) -> None:
        reader = consumer.open(predictor_with(cell.kind, fault))
        for _ in range(times):
            reader.stream.cancel()
        assert await is_cancelled(reader)
        assert await consumer.still_works()

    cell.run(scenario)
    assert (fault.started, fault.finalised) == (0, 0)


@pytest.mark.fault(51)
@pytest.mark.parametrize("times", [1, 100])
@pytest.mark.parametrize("read", [1, 2], ids=["mid-stream", "after-the-last"])
def test_a_stream_cancelled_between_two_partials_ends_once(yielding: Cell, read: int, times: int) -> None:
    fault = Fault()

    async def scenario(consumer: Consumer) -> None:
        reader = consumer.open(predictor_with(yielding.kind, fault), prefetch=0)
        await drained(reader, read)
        for _ in range(times):
            reader.stream.cancel()
        assert await is_cancelled(reader)
        for _ in range(times):
            reader.stream.cancel()
        assert await reader.has_ended("cancelled")
        await auntil(lambda: fault.finalised == 1, "the body was finalised")
        assert await consumer.still_works()

    yielding.run(scenario)
    assert (fault.started, fault.finalised) == (1, 1)


@pytest.mark.fault(51)
@each_cell(lambda cell: cell.is_async or not cell.is_in_lockstep)
@pytest.mark.parametrize("times", [1, 100])
def test_a_call_cancelled_while_its_body_waits_ends_once(cell: Cell, times: int) -> None:
    reached, go = Gate(), Gate()
    fault = Fault(waiting(cell, reached, go))

    async def scenario(consumer: Consumer) -> None:
        reader = consumer.open(predictor_with(cell.kind, fault))

        def cancel() -> None:
            for _ in range(times):
                reader.stream.cancel()

        with OtherThread(when(reached, cancel)):
            assert await is_cancelled(reader)
        assert await consumer.still_works()
        go.open()
        await auntil(lambda: fault.finalised == 1, "the body was finalised")

    cell.run(scenario)
    assert (fault.started, fault.finalised) == (1, 1)


@pytest.mark.fault(51)
@pytest.mark.parametrize("times", [1, 100])
def test_a_stream_cancelled_after_its_end_stays_done(cell: Cell, times: int) -> None:
    fault = Fault()

    async def scenario(consumer: Consumer) -> None:
        reader = consumer.open(predictor_with(cell.kind, fault))
        assert await reader.rest() == list(cell.partials)
        for _ in range(times):
            reader.stream.cancel()
        assert await reader.has_ended("done")
        assert await consumer.still_works()

    cell.run(scenario)
    assert (fault.started, fault.finalised) == (1, 1)


@pytest.mark.fault(51, 52)
def test_a_cancel_that_comes_whenever_it_likes_never_reaches_the_next_call(cell: Cell) -> None:
    """Two hundred cancels at random moments of short calls, and after each a call that must be untouched."""
    seeded = random.Random(51)
    streams: list[Any] = []
    is_over = threading.Event()
    turn = threading.Semaphore(0)

    def cancels() -> None:
        while turn.acquire(timeout=20) and not is_over.is_set():
            for _ in range(seeded.randrange(200)):
                pass
            streams[-1].cancel()

    async def scenario(consumer: Consumer) -> None:
        fault = Fault()
        try:
            for repeat in range(200):
                reader = consumer.open(predictor_with(cell.kind, fault))
                streams[:] = [reader.stream]
                turn.release()
                try:
                    seen = await reader.rest()
                except PredictionCancelledError:
                    assert await reader.has_ended("cancelled")
                else:
                    assert await reader.has_ended("done")
                    assert seen == list(cell.partials)
                healthy = Fault(partials=(repeat, repeat + 1))
                assert (await consumer.create(predictor_with(cell.kind, healthy))).value == repeat + 1
            await auntil(lambda: fault.finalised == fault.started, "every body was finalised")
        finally:
            is_over.set()
            turn.release()

    with OtherThread(cancels):
        cell.run(scenario)


@pytest.mark.fault(51)
@pytest.mark.parametrize("how", ["cancel", "close"])
def test_a_stop_in_the_very_moment_a_call_begins_is_its_end(
    cell: Cell, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reader has looked for a stop and found none; now there is one; now the reader goes on."""
    begin = Execution.begin
    fault = Fault()

    def stopped_first(execution: Execution) -> None:
        monkeypatch.undo()
        execution.stop("closed") if how == "close" else execution.cancel()
        begin(execution)

    async def scenario(consumer: Consumer) -> None:
        reader = consumer.open(predictor_with(cell.kind, fault))
        monkeypatch.setattr(Execution, "begin", stopped_first)
        if how == "cancel":
            assert await is_cancelled(reader)
        else:
            assert await reader.has_ended("closed")
        assert reader.outcome.count == 0
        assert executions_of(consumer.engine) == ()
        reader.drop()  # without a warning
        assert await consumer.still_works()

    cell.run(scenario)
    assert fault.started == fault.finalised <= 1


# 52: a cancel and a partial at the same moment.


@pytest.mark.fault(52)
def test_a_partial_in_flight_is_never_delivered_after_the_cancellation(cell: Cell) -> None:
    """The body cancels its own stream in the last line before a partial leaves it."""
    streams: list[Any] = []

    def cancel_myself() -> None:
        streams[0].cancel()

    fault = Fault(cancel_myself, "middle" if cell.is_yielding else "before")

    async def scenario(consumer: Consumer) -> None:
        reader = consumer.open(predictor_with(cell.kind, fault), prefetch=0)
        streams.append(reader.stream)
        await drained(reader, cell.is_yielding)
        assert await is_cancelled(reader)
        assert reader.outcome.count == int(cell.is_yielding)
        assert await consumer.still_works()
        streams.clear()

    cell.run(scenario)
    assert (fault.started, fault.finalised) == (1, 1)


@pytest.mark.fault(52)
@each_cell(lambda cell: cell.is_yielding and not cell.is_in_lockstep)
def test_a_partial_that_waits_in_the_buffer_is_never_delivered_after_the_cancellation(cell: Cell) -> None:
    reached, go = Gate(), Gate()
    fault = Fault(waiting(cell, reached, go), "after")

    async def scenario(consumer: Consumer) -> None:
        reader = consumer.open(predictor_with(cell.kind, fault), prefetch=8)
        await drained(reader, 1)
        await auntil(lambda: reached.is_open, "the body ran past its last partial")
        reader.stream.cancel()
        assert await is_cancelled(reader)
        assert reader.outcome.count == 1
        go.open()
        await auntil(lambda: fault.finalised == 1, "the body was finalised")

    cell.run(scenario)


# 53: closed before the start.


@pytest.mark.fault(53)
def test_a_stream_closed_before_its_first_pull_never_runs_the_predictor(cell: Cell) -> None:
    fault = Fault()
    predictor = Predictor("@tests/single", predictor_with(cell.kind, fault), concurrency=1)

    async def scenario(consumer: Consumer) -> None:
        reader = consumer.open(predictor)
        await reader.close()
        assert await reader.has_ended("closed")
        assert (fault.started, fault.finalised) == (0, 0)
        async with consumer.open(predictor).opened():
            pass
        consumer.open(predictor).drop()
        assert (fault.started, fault.finalised) == (0, 0)
        assert await consumer.read(predictor) == list(cell.partials)  # the one slot was never taken

    cell.run(scenario)


@pytest.mark.fault(51)
def test_a_body_that_its_task_steps_takes_no_step_after_a_signal_handler_cancelled_its_stream() -> None:
    """At each jump back of the loop that steps it, where the interpreter looks for signals."""
    steps: list[int] = []
    steps_at_cancel: list[int] = []

    async def counts() -> AsyncIterator[int]:
        for number in range(10):
            steps.append(number)
            yield number

    async def main() -> None:
        async with Engine(discover=False) as muna:
            stream = muna.predictions.astream(counts)

            def trace(frame: FrameType, event: str, _argument: object) -> Any:
                code = frame.f_code
                if code.co_name != "apartials":
                    return None
                frame.f_trace_opcodes = True
                at = frame.f_lasti
                while code.co_code[at] == dis.EXTENDED_ARG:
                    at += 2
                is_jump = event == "opcode" and dis.opname[code.co_code[at]] in JUMPS_BACK
                if is_jump and len(steps) == 2 and not steps_at_cancel:
                    stream.cancel()
                    steps_at_cancel.append(len(steps))
                return trace

            before = sys.gettrace()
            sys.settrace(trace)
            try:
                with pytest.raises(PredictionCancelledError):
                    assert [value async for value in stream.values()] == []
            finally:
                sys.settrace(before)

    asyncio.run(main())
    assert steps_at_cancel == [2]
    assert steps == [0, 1]
