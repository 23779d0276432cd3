"""Faults around the end of a call: cancelled, closed, abandoned, stuck, raced, or left by a consumer that failed.

Every wait stands at a gate the test holds, so each fault strikes at one known place. What is asked is that the stream
ends in one state, within its bound, that the body is finalised exactly once, and that the next call is untouched.
"""

from __future__ import annotations

import asyncio
import gc
import itertools
import math
import random
import threading
import time
import warnings
from typing import TYPE_CHECKING, Any

import pytest

from engine import Engine, PredictionCancelledError, Predictor, current_call
from engine.runners.base import Execution
from tests.faults.conftest import (
    END,
    PARTIALS,
    Elsewhere,
    Fault,
    Gate,
    aeventually,
    each_cell,
    eventually,
    predictor_with,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    from tests.faults.conftest import Cell, Consumer, Reader

GRACE = 0.05  # seconds; what is stuck on purpose is waited for no longer


def waiting(cell: Cell, reached: Gate, go: Gate) -> Callable[[], Any]:
    """A strike that tells where the body is and waits there until the test lets it go."""

    def wait() -> Any:
        reached.open()
        return cell.waits_at(go)()

    return wait


def when(reached: Gate, action: Callable[[], object]) -> Callable[[], None]:
    def act() -> None:
        reached.wait()
        action()

    return act


async def drained(reader: Reader, count: int) -> None:
    for _ in range(count):
        assert await reader.pull() is not END


async def is_cancelled(reader: Reader) -> bool:
    """Whether the reader gets the cancellation, once, and nothing after it."""
    with pytest.raises(PredictionCancelledError):
        await reader.pull()
    return await reader.has_ended("cancelled")


def abandoned_threads(consumer: Consumer) -> int:
    return consumer.engine._threads.abandoned


# 46, 47, 48: bodies that cannot be stopped.


def spins(reached: Gate, go: Gate) -> None:
    """A loop of pure Python that looks at nothing."""
    reached.open()
    while not go.is_open:
        pass


def blocks(reached: Gate, go: Gate) -> None:
    """A wait inside a C call that nothing but the test ends."""
    reached.open()
    go.wait()


def swallows(reached: Gate, go: Gate) -> None:
    """A loop that takes every exception for a reason to go on."""
    while not go.is_open:
        try:
            reached.open()
            go.wait()
        except BaseException:
            continue


@pytest.mark.fault(46, 47, 48)
@pytest.mark.parametrize("stuck", [spins, blocks, swallows], ids=lambda stuck: stuck.__name__)
@pytest.mark.parametrize("place", ["before", "middle"])
def test_a_stuck_body_is_left_at_once_counted_and_keeps_its_slot_until_it_ends(
    threaded: Cell, place: str, stuck: Callable[[Gate, Gate], None]
) -> None:
    if place == "middle" and not threaded.is_yielding:
        place = "before"
    reached, go = Gate(), Gate()
    fault = Fault(lambda: stuck(reached, go), place)
    predictor = Predictor("@tests/stuck", predictor_with(threaded.kind, fault), concurrency=1)

    async def scenario(consumer: Consumer) -> None:
        reader = consumer.open(predictor, prefetch=0)
        await drained(reader, place == "middle")
        with Elsewhere(when(reached, reader.stream.cancel)):
            assert await is_cancelled(reader)
        assert fault.finalised == 0
        assert abandoned_threads(consumer) == 1
        assert await consumer.still_works()
        slots = consumer.engine.predictions.resolve(predictor).slots
        assert slots is not None

        def release() -> None:
            eventually(lambda: slots._queue, "the next call waits for the slot")
            assert (fault.started, fault.finalised) == (1, 0)
            go.open()

        with Elsewhere(release):
            assert (await consumer.create(predictor)).value == PARTIALS[-1]
        await aeventually(lambda: abandoned_threads(consumer) == 0, "the thread is no longer counted")
        assert (fault.started, fault.finalised) == (2, 2)

    threaded.run(scenario)


@pytest.mark.fault(46, 47)
def test_closing_a_stuck_stream_returns_after_the_grace_and_says_so(
    threaded: Cell, caplog: pytest.LogCaptureFixture
) -> None:
    reached, go = Gate(), Gate()
    fault = Fault(waiting(threaded, reached, go), "middle" if threaded.is_yielding else "before")

    async def scenario(consumer: Consumer) -> None:
        reader = consumer.open(predictor_with(threaded.kind, fault), prefetch=1)
        if threaded.is_yielding:
            await drained(reader, 1)
            reached.wait()
            await reader.close()
        else:
            with Elsewhere(when(reached, reader.stream.cancel)):
                assert await is_cancelled(reader)
            await reader.close()
        assert not go.is_open
        assert fault.finalised == 0
        assert abandoned_threads(consumer) == 1
        go.open()
        await aeventually(lambda: fault.finalised == 1, "the body ended")

    threaded.run(scenario, grace=GRACE)
    assert ("did not stop within" in caplog.text) == threaded.is_yielding


@pytest.mark.fault(47, 48)
def test_closing_the_engine_does_not_wait_for_a_stuck_thread(threaded: Cell) -> None:
    reached, go = Gate(), Gate()
    fault = Fault(waiting(threaded, reached, go))

    async def scenario(consumer: Consumer) -> None:
        reader = consumer.open(predictor_with(threaded.kind, fault))
        with Elsewhere(when(reached, reader.stream.cancel)):
            assert await is_cancelled(reader)
        await consumer.close()
        assert not go.is_open  # it is still stuck, and the engine is closed
        assert fault.finalised == 0
        go.open()
        await aeventually(lambda: fault.finalised == 1, "the body ended")

    threaded.run(scenario, grace=GRACE)


@pytest.mark.fault(46)
def test_a_body_in_lockstep_sees_the_request_and_may_stop_itself(cell: Cell) -> None:
    """Where the consumer itself runs the body nobody can leave it: a stop is posted, and the body may look."""
    reached = Gate()
    seen: list[bool] = []

    def looks() -> None:
        call = current_call()
        assert call is not None
        reached.open()
        eventually(lambda: call.stopping, "the call is asked to stop")
        seen.append(call.stopping)

    async def scenario(consumer: Consumer) -> None:
        reader = consumer.open(predictor_with(cell.kind, Fault(looks)))
        with Elsewhere(when(reached, reader.stream.cancel)):
            assert await is_cancelled(reader)
        await aeventually(lambda: seen == [True], "the body saw the request")
        assert await consumer.still_works()

    cell.run(scenario)


@pytest.mark.fault(48)
@each_cell(lambda cell: cell.is_async)
def test_an_async_body_that_swallows_its_cancellation_is_given_up(cell: Cell, caplog: pytest.LogCaptureFixture) -> None:
    reached, go = Gate(), Gate()
    fault = Fault()

    async def swallowing() -> None:
        while not go.is_open:
            try:
                reached.open()
                await go.attend()
            except asyncio.CancelledError:
                continue

    fault.strikes = swallowing

    async def scenario(consumer: Consumer) -> None:
        reader = consumer.open(predictor_with(cell.kind, fault))
        with Elsewhere(when(reached, reader.stream.cancel)):
            assert await is_cancelled(reader)
        assert await consumer.still_works()
        go.open()
        reader.drop()  # in lock-step nobody steps a body that was given up: it ends when it is let go of
        await aeventually(lambda: fault.finalised == 1, "the body was finalised")

    cell.run(scenario, grace=GRACE)


# 49: GeneratorExit swallowed.


def stubborn(kind: str, finalised: list[str]) -> Callable[[], Any]:
    def yields() -> Iterator[str]:
        try:
            yield "first"
        except GeneratorExit:
            yield "one more"
        finally:
            finalised.append("finally")

    async def async_yields() -> AsyncIterator[str]:
        try:
            yield "first"
        except GeneratorExit:
            yield "one more"
        finally:
            finalised.append("finally")

    return {"gen": yields, "agen": async_yields}[kind]


@pytest.mark.fault(49)
def test_a_body_that_yields_instead_of_ending_is_closed_all_the_same(yielding: Cell) -> None:
    finalised: list[str] = []

    async def scenario(consumer: Consumer) -> None:
        reader = consumer.open(stubborn(yielding.kind, finalised), prefetch=0)
        await drained(reader, 1)
        with pytest.raises(RuntimeError, match="ignored GeneratorExit"):
            await reader.close()
        await reader.close()
        assert await reader.has_ended("closed")
        assert await consumer.still_works()
        reader.drop()

    yielding.run(scenario)
    gc.collect()
    assert finalised == ["finally"]


@pytest.mark.fault(49)
def test_a_body_that_yields_instead_of_ending_is_logged_when_it_was_cancelled(
    yielding: Cell, caplog: pytest.LogCaptureFixture
) -> None:
    finalised: list[str] = []

    async def scenario(consumer: Consumer) -> None:
        reader = consumer.open(stubborn(yielding.kind, finalised), prefetch=0)
        await drained(reader, 1)
        reader.stream.cancel()
        assert await is_cancelled(reader)
        await aeventually(lambda: "ignored GeneratorExit" in caplog.text, "the log tells of the body")
        assert await consumer.still_works()

    yielding.run(scenario)


# 50: slow clean-up.


@pytest.mark.fault(50)
def test_close_waits_for_a_slow_finally(yielding: Cell) -> None:
    reached, go = Gate(), Gate()
    fault = Fault(cleanup=waiting(yielding, reached, go))

    async def scenario(consumer: Consumer) -> None:
        reader = consumer.open(predictor_with(yielding.kind, fault), prefetch=0)
        await drained(reader, 1)
        with Elsewhere(when(reached, go.open)):
            await reader.close()
        assert go.is_open
        assert fault.finalised == 1
        assert await reader.has_ended("closed")
        assert await consumer.still_works()

    yielding.run(scenario)


@pytest.mark.fault(50)
@each_cell(lambda cell: cell.is_yielding and (cell.is_async or not cell.is_in_lockstep))
def test_close_waits_no_longer_than_the_grace(cell: Cell, caplog: pytest.LogCaptureFixture) -> None:
    reached, go = Gate(), Gate()
    fault = Fault(cleanup=waiting(cell, reached, go))

    async def scenario(consumer: Consumer) -> None:
        reader = consumer.open(predictor_with(cell.kind, fault), prefetch=0)
        await drained(reader, 1)
        await reader.close()
        assert not go.is_open
        assert fault.finalised == 1  # begun, and not gone through twice
        assert await reader.has_ended("closed")
        assert await consumer.still_works()
        go.open()

    cell.run(scenario, grace=GRACE)
    assert fault.finalised == 1


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
        await aeventually(lambda: fault.finalised == 1, "the body was finalised")
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

        with Elsewhere(when(reached, cancel)):
            assert await is_cancelled(reader)
        assert await consumer.still_works()
        go.open()
        await aeventually(lambda: fault.finalised == 1, "the body was finalised")

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
            await aeventually(lambda: fault.finalised == fault.started, "every body was finalised")
        finally:
            is_over.set()
            turn.release()

    with Elsewhere(cancels):
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
        assert consumer.engine.predictions.open_calls == ()
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
        await aeventually(lambda: reached.is_open, "the body ran past its last partial")
        reader.stream.cancel()
        assert await is_cancelled(reader)
        assert reader.outcome.count == 1
        go.open()
        await aeventually(lambda: fault.finalised == 1, "the body was finalised")

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


# 54: closed from another thread while `next` waits.


@pytest.mark.fault(54)
@each_cell(lambda cell: not cell.is_asyncio and not cell.is_in_lockstep)
@pytest.mark.parametrize("place", ["before", "middle"])
def test_closing_from_another_thread_wakes_the_one_that_waits(cell: Cell, place: str) -> None:
    place = place if cell.is_yielding else "before"
    reached, go = Gate(), Gate()
    fault = Fault(waiting(cell, reached, go), place)

    async def scenario(consumer: Consumer) -> None:
        reader = consumer.open(predictor_with(cell.kind, fault), prefetch=0)
        await drained(reader, place == "middle")
        with Elsewhere(when(reached, reader.stream.close)):
            assert await reader.pull() is END
        assert cell.is_async or not go.is_open
        go.open()
        assert await reader.has_ended("closed")
        await aeventually(lambda: fault.finalised == 1, "the body was finalised")
        assert await consumer.still_works()

    cell.run(scenario, grace=GRACE)


@pytest.mark.fault(54)
@each_cell(lambda cell: not cell.is_asyncio and cell.is_in_lockstep)
def test_closing_from_another_thread_lets_a_running_pull_finish_first(cell: Cell) -> None:
    reached, go = Gate(), Gate()
    fault = Fault(waiting(cell, reached, go), "middle" if cell.is_yielding else "before")

    async def scenario(consumer: Consumer) -> None:
        reader = consumer.open(predictor_with(cell.kind, fault))
        await drained(reader, cell.is_yielding)
        closed = Elsewhere(when(reached, reader.stream.close))
        call = reader.stream._execution.call

        def release() -> None:
            eventually(lambda: call.stopping, "the request to close is posted")
            assert fault.finalised == 0
            assert not closed.is_over
            go.open()

        with Elsewhere(release), closed:
            assert await reader.pull() is END
        assert fault.finalised == 1
        assert await reader.has_ended("closed")
        assert await consumer.still_works()

    cell.run(scenario)


@pytest.mark.fault(54)
@each_cell(lambda cell: not cell.is_asyncio)
def test_closing_from_another_thread_between_two_pulls_finalises_before_it_returns(cell: Cell) -> None:
    fault = Fault()

    async def scenario(consumer: Consumer) -> None:
        reader = consumer.open(predictor_with(cell.kind, fault), prefetch=0)
        if cell.is_yielding:
            await drained(reader, 1)
        with Elsewhere(reader.stream.close):
            pass
        assert fault.finalised == int(cell.is_yielding)
        assert await reader.has_ended("closed")

    cell.run(scenario)


# 55: closed more than once.

STEPS = ("close", "leave", "cancel")
ORDERS = [(step,) for step in STEPS] + [*itertools.product(STEPS, repeat=2)] + [*itertools.permutations(STEPS)]


@pytest.mark.fault(55)
@pytest.mark.parametrize("order", ORDERS, ids="-".join)
def test_closing_leaving_and_dropping_in_any_order_ends_a_stream_once(yielding: Cell, order: tuple[str, ...]) -> None:
    fault = Fault()

    async def scenario(consumer: Consumer) -> None:
        reader = consumer.open(predictor_with(yielding.kind, fault), prefetch=0)
        await drained(reader, 1)
        for step in order:
            if step == "close":
                await reader.close()
            elif step == "cancel":
                reader.stream.cancel()
            else:
                async with reader.opened():
                    pass
        reader.drop()
        await aeventually(lambda: fault.finalised, "the body was finalised")
        assert await consumer.still_works()

    yielding.run(scenario)
    assert (fault.started, fault.finalised) == (1, 1)


@pytest.mark.fault(55)
def test_a_body_whose_finally_closes_its_own_stream_is_closed_once(yielding: Cell) -> None:
    streams: list[Any] = []

    def close_myself() -> Any:
        stream = streams[0]
        return stream.aclose() if yielding.is_asyncio and yielding.is_async else stream.cancel()

    fault = Fault(cleanup=close_myself)

    async def scenario(consumer: Consumer) -> None:
        reader = consumer.open(predictor_with(yielding.kind, fault), prefetch=0)
        streams.append(reader.stream)
        await drained(reader, 1)
        await reader.close()
        assert await reader.has_ended("closed")
        assert await consumer.still_works()
        streams.clear()

    yielding.run(scenario)
    assert (fault.started, fault.finalised) == (1, 1)


@pytest.mark.fault(55)
@each_cell(lambda cell: cell.is_yielding and not cell.is_asyncio)
@pytest.mark.parametrize("place", ["middle", "finally"])
def test_a_body_that_closes_its_own_stream_does_not_wait_for_itself(cell: Cell, place: str) -> None:
    streams: list[Any] = []

    def close_myself() -> None:
        streams[0].close()

    fault = Fault(close_myself, "middle") if place == "middle" else Fault(cleanup=close_myself)

    async def scenario(consumer: Consumer) -> None:
        reader = consumer.open(predictor_with(cell.kind, fault), prefetch=0)
        streams.append(reader.stream)
        await drained(reader, 1)
        if place == "middle":
            assert await reader.pull() is END
        else:
            await reader.close()
        assert await reader.has_ended("closed")
        await aeventually(lambda: fault.finalised == 1, "the body was finalised")
        streams.clear()

    cell.run(scenario)
    assert (fault.started, fault.finalised) == (1, 1)


# 56: two readers of one stream.


@pytest.mark.fault(56)
@each_cell(lambda cell: cell.is_yielding and not cell.is_asyncio)
def test_two_threads_share_a_stream_without_losing_or_doubling_a_partial(cell: Cell) -> None:
    partials = tuple(range(300))
    fault = Fault(partials=partials)
    taken: list[list[int]] = [[], []]
    together = threading.Barrier(2)

    async def scenario(consumer: Consumer) -> None:
        stream = consumer.open(predictor_with(cell.kind, fault)).stream

        def read(mine: list[int]) -> None:
            together.wait(10)
            values = stream.values()
            while True:
                try:
                    mine.append(next(values))
                except StopIteration:
                    return
                except ValueError:  # the clear error of a stream that has one reader at a time
                    assert cell.is_in_lockstep
                    values = stream.values()

        with Elsewhere(lambda: read(taken[0])), Elsewhere(lambda: read(taken[1])):
            pass
        assert stream.outcome.state == "done"
        assert stream.outcome.count == len(partials)

    cell.run(scenario)
    assert sorted(taken[0] + taken[1]) == list(partials)
    assert [sorted(mine) for mine in taken] == taken
    assert (fault.started, fault.finalised) == (1, 1)


@pytest.mark.fault(56)
@each_cell(lambda cell: cell.is_yielding and cell.is_asyncio)
def test_two_tasks_share_a_stream_without_losing_or_doubling_a_partial(cell: Cell) -> None:
    partials = tuple(range(100))
    fault = Fault(partials=partials)
    taken: list[list[int]] = [[], []]

    async def scenario(consumer: Consumer) -> None:
        stream = consumer.open(predictor_with(cell.kind, fault)).stream

        async def read(mine: list[int]) -> None:
            values = stream.values()
            while True:
                try:
                    mine.append(await anext(values))
                except StopAsyncIteration:
                    return
                except ValueError:
                    assert cell.is_in_lockstep
                await asyncio.sleep(0)

        await asyncio.gather(read(taken[0]), read(taken[1]))
        assert stream.outcome.state == "done"

    cell.run(scenario)
    assert sorted(taken[0] + taken[1]) == list(partials)
    assert [sorted(mine) for mine in taken] == taken
    assert (fault.started, fault.finalised) == (1, 1)


@pytest.mark.fault(56)
@each_cell(lambda cell: cell.is_in_lockstep and not cell.is_asyncio)
def test_a_second_reader_during_a_pull_is_told_so(cell: Cell) -> None:
    reached, go = Gate(), Gate()
    fault = Fault(waiting(cell, reached, go))

    async def scenario(consumer: Consumer) -> None:
        reader = consumer.open(predictor_with(cell.kind, fault))

        def read_too() -> None:
            try:
                with pytest.raises(ValueError, match="being read already"):
                    next(reader.stream)
            finally:
                go.open()

        with Elsewhere(when(reached, read_too)):
            assert await reader.rest() == list(cell.partials)
        assert await reader.has_ended("done")

    cell.run(scenario)


# 57, 58: abandoned.


def endless(kind: str, finalised: list[int]) -> Callable[[], Any]:
    def yields() -> Iterator[int]:
        try:
            yield from itertools.count()
        finally:
            finalised.append(1)

    async def async_yields() -> AsyncIterator[int]:
        try:
            for number in itertools.count():
                yield number
        finally:
            await asyncio.sleep(0)
            finalised.append(1)

    return {"gen": yields, "agen": async_yields}[kind]


@pytest.mark.fault(57)
def test_an_abandoned_endless_stream_is_finalised_with_one_warning_where_that_needs_an_owner(yielding: Cell) -> None:
    finalised: list[int] = []
    predictor = Predictor("@tests/endless", endless(yielding.kind, finalised), concurrency=1)

    async def scenario(consumer: Consumer) -> None:
        reader = consumer.open(predictor)
        assert [await reader.pull() for _ in range(3)] == [0, 1, 2]
        reader.drop()
        await aeventually(lambda: finalised, "the body was finalised")
        again = consumer.open(predictor)  # its one slot is free
        assert await again.pull() == 0
        await again.close()

    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        yielding.run(scenario)
    assert finalised == [1, 1]
    needs_help = yielding.is_asyncio or not yielding.is_in_lockstep
    assert [str(each.message).split(" was ")[0] for each in told] == ["a stream of @tests/endless"] * needs_help
    assert all(each.category is ResourceWarning for each in told)


class Knot:
    """Holds a stream in a reference cycle, so that only a collector frees it."""

    def __init__(self, *held: Any) -> None:
        self.held = held
        self.itself = self


@pytest.mark.fault(58)
@pytest.mark.filterwarnings("ignore:a stream of .* was abandoned:ResourceWarning")
def test_a_stream_abandoned_in_a_cycle_is_finalised_by_a_collector_in_any_thread(yielding: Cell) -> None:
    finalised: list[int] = []

    async def scenario(consumer: Consumer) -> None:
        reader = consumer.open(endless(yielding.kind, finalised))
        assert await reader.pull() == 0
        Knot(reader.stream, reader._values)
        reader.drop()
        with Elsewhere(gc.collect):
            pass
        await aeventually(lambda: finalised == [1], "the body was finalised")
        assert await consumer.still_works()

    yielding.run(scenario)


def locks_of(engine: Engine) -> list[Any]:
    """Every lock the engine's own objects hold."""
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


@pytest.mark.fault(58)
@pytest.mark.filterwarnings("ignore:a stream of .* was abandoned:ResourceWarning")
def test_finalising_an_abandoned_stream_needs_no_lock_of_the_engine(yielding: Cell) -> None:
    finalised: list[int] = []

    async def scenario(consumer: Consumer) -> None:
        assert await consumer.still_works()
        idle = [lock for lock in locks_of(consumer.engine) if lock.acquire(blocking=False)]
        assert idle
        for lock in idle:
            lock.release()
        for count, lock in enumerate(idle, 1):
            reader = consumer.open(endless(yielding.kind, finalised))
            assert await reader.pull() == 0
            Knot(reader.stream, reader._values)
            reader.drop()
            with lock, Elsewhere(gc.collect) as collecting:
                collecting.join()
            await aeventually(lambda expected=count: len(finalised) == expected, "the body was finalised")  # type: ignore[misc]

    yielding.run(scenario)


# 59: bad numbers.


@pytest.mark.fault(59)
@pytest.mark.parametrize(
    "grace", [-1, -0.001, math.nan, math.inf, -math.inf, 1e9, 10**400, "1", None, True, [1]], ids=repr
)
def test_a_grace_that_means_nothing_is_refused(grace: Any) -> None:
    with pytest.raises(ValueError, match="grace must be a number of seconds"):
        Engine(discover=False, grace=grace)


@pytest.mark.fault(59)
@pytest.mark.parametrize(
    "prefetch", [-1, -(10**400), 1.0, math.nan, math.inf, "1", True, [1]], ids=lambda value: repr(value)[:12]
)
def test_a_prefetch_that_means_nothing_is_refused_before_anything_starts(cell: Cell, prefetch: Any) -> None:
    fault = Fault()

    async def scenario(consumer: Consumer) -> None:
        with pytest.raises(ValueError, match="prefetch must be a whole number"):
            consumer.open(predictor_with(cell.kind, fault), prefetch=prefetch)
        assert await consumer.still_works()

    cell.run(scenario)
    assert fault.started == 0


@pytest.mark.fault(59)
@pytest.mark.parametrize("grace", [0, 5e-324, 3600])
@pytest.mark.parametrize("prefetch", [0, 1, 10**400], ids=["0", "1", "huge"])
def test_extreme_numbers_that_mean_something_work(cell: Cell, grace: float, prefetch: int) -> None:
    fault = Fault()

    async def scenario(consumer: Consumer) -> None:
        predictor = predictor_with(cell.kind, fault)
        assert await consumer.open(predictor, prefetch=prefetch).rest() == list(cell.partials)
        reader = consumer.open(predictor, prefetch=prefetch)
        await drained(reader, 1)
        await reader.close()
        assert await reader.has_ended("closed")
        await aeventually(lambda: fault.finalised == 2, "the body was finalised")

    cell.run(scenario, grace=grace)


# 60: a wall clock that runs backwards.


@pytest.mark.fault(60)
def test_deadlines_and_durations_do_not_read_the_wall_clock(cell: Cell, monkeypatch: pytest.MonkeyPatch) -> None:
    backwards = itertools.count(10**9, -3600)
    monkeypatch.setattr(time, "time", lambda: float(next(backwards)))
    monkeypatch.setattr(time, "time_ns", lambda: next(backwards) * 10**9)
    reached, go = Gate(), Gate()
    fault = Fault(cleanup=waiting(cell, reached, go))

    async def scenario(consumer: Consumer) -> None:
        reader = consumer.open(predictor_with(cell.kind, Fault()))
        latencies = []
        while (prediction := await reader.prediction()) is not END:
            latencies.append(prediction.latency)  # type: ignore[union-attr]
        assert latencies == sorted(latencies)
        assert min(latencies) >= 0
        first, whole = reader.outcome.first, reader.outcome.duration
        assert first is not None
        assert whole is not None
        assert 0 <= first <= whole < 60_000
        slow = consumer.open(predictor_with(cell.kind, fault), prefetch=0)
        with Elsewhere(when(reached, go.open)):
            await slow.pull()
            await slow.close()
        assert fault.finalised == 1

    cell.run(scenario)


# 61: the consumer's own error.


class ConsumerFailed(Exception):
    """What a consumer's loop raises."""


@pytest.mark.fault(61)
@pytest.mark.parametrize("read", [1, 2])
def test_a_consumer_that_fails_inside_with_has_closed_its_stream(yielding: Cell, read: int) -> None:
    fault = Fault()

    async def scenario(consumer: Consumer) -> None:
        reader = consumer.open(predictor_with(yielding.kind, fault), prefetch=0)
        error = ConsumerFailed()

        async def fails() -> None:
            async with reader.opened():
                await drained(reader, read)
                raise error

        with pytest.raises(ConsumerFailed) as raised:
            await fails()
        assert raised.value is error
        assert error.__context__ is None
        assert fault.finalised == 1
        assert await reader.has_ended("closed")
        assert await consumer.still_works()

    yielding.run(scenario)
    assert (fault.started, fault.finalised) == (1, 1)


@pytest.mark.fault(61)
def test_a_consumer_that_fails_without_with_has_abandoned_its_stream(yielding: Cell) -> None:
    finalised: list[int] = []

    async def fails(consumer: Consumer) -> None:
        reader = consumer.open(endless(yielding.kind, finalised))
        await drained(reader, 2)
        raise ConsumerFailed

    async def scenario(consumer: Consumer) -> None:
        try:
            await fails(consumer)
        except ConsumerFailed as error:
            assert finalised == []  # the error's own frames still hold the stream
            del error
        await aeventually(lambda: finalised == [1], "the body was finalised")
        assert await consumer.still_works()

    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        yielding.run(scenario)
    assert finalised == [1]
    assert len(told) == int(yielding.is_asyncio or not yielding.is_in_lockstep)


@pytest.mark.fault(54)
@pytest.mark.parametrize("how", ["cancel", "close"])
def test_a_stop_that_comes_just_before_a_function_gives_something_async_is_heard_by_its_new_owner(
    how: str, caplog: pytest.LogCaptureFixture
) -> None:
    reached, go, never = Gate(), Gate(), Gate()

    async def waits() -> AsyncIterator[str]:
        await never.attend()
        yield "too late"

    def gives() -> AsyncIterator[str]:
        reached.open()
        go.wait()
        return waits()

    ends = {"cancel": PredictionCancelledError, "close": StopIteration}
    with Engine(discover=False, grace=10.0) as muna:
        stream = muna.predictions.stream(gives)

        def stop() -> None:
            reached.wait()
            with Elsewhere(getattr(stream, how)):
                eventually(lambda: stream._execution.call.stopping, "the stop is posted")  # type: ignore[union-attr]
                go.open()

        with Elsewhere(stop), pytest.raises(ends[how]):
            next(stream)
    assert caplog.messages == []
