"""Bodies that cannot be stopped, that swallow the request, or take their time to clean up."""

from __future__ import annotations

import asyncio
import gc
from typing import TYPE_CHECKING, Any

import pytest

from engine import Predictor, current_call
from tests._kit.gates import Gate
from tests._kit.internals import slots_of, threads_of, waiters_of
from tests._kit.waits import OtherThread, auntil, until
from tests.faults.conftest import PARTIALS, Fault, each_cell, predictor_with
from tests.faults.stopping import GRACE, drained, is_cancelled, waiting, when

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    from tests.faults.conftest import Cell, Consumer


def abandoned_threads(consumer: Consumer) -> int:
    return threads_of(consumer.engine).abandoned


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
        with OtherThread(when(reached, reader.stream.cancel)):
            assert await is_cancelled(reader)
        assert fault.finalised == 0
        assert abandoned_threads(consumer) == 1
        assert await consumer.still_works()
        slots = slots_of(consumer.engine, predictor)
        assert slots is not None

        def release() -> None:
            until(lambda: waiters_of(slots), "the next call waits for the slot")
            assert (fault.started, fault.finalised) == (1, 0)
            go.open()

        with OtherThread(release):
            assert (await consumer.create(predictor)).value == PARTIALS[-1]
        await auntil(lambda: abandoned_threads(consumer) == 0, "the thread is no longer counted")
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
            with OtherThread(when(reached, reader.stream.cancel)):
                assert await is_cancelled(reader)
            await reader.close()
        assert not go.is_open
        assert fault.finalised == 0
        assert abandoned_threads(consumer) == 1
        go.open()
        await auntil(lambda: fault.finalised == 1, "the body ended")

    threaded.run(scenario, grace=GRACE)
    assert ("did not stop within" in caplog.text) == threaded.is_yielding


@pytest.mark.fault(47, 48)
def test_closing_the_engine_does_not_wait_for_a_stuck_thread(threaded: Cell) -> None:
    reached, go = Gate(), Gate()
    fault = Fault(waiting(threaded, reached, go))

    async def scenario(consumer: Consumer) -> None:
        reader = consumer.open(predictor_with(threaded.kind, fault))
        with OtherThread(when(reached, reader.stream.cancel)):
            assert await is_cancelled(reader)
        await consumer.close()
        assert not go.is_open  # it is still stuck, and the engine is closed
        assert fault.finalised == 0
        go.open()
        await auntil(lambda: fault.finalised == 1, "the body ended")

    threaded.run(scenario, grace=GRACE)


@pytest.mark.fault(46)
def test_a_body_in_lockstep_sees_the_request_and_may_stop_itself(cell: Cell) -> None:
    """Where the consumer itself runs the body it cannot leave it: a stop is posted, and the body may look."""
    reached = Gate()
    seen: list[bool] = []

    def looks() -> None:
        call = current_call()
        assert call is not None
        reached.open()
        until(lambda: call.stopping, "the call is asked to stop")
        seen.append(call.stopping)

    async def scenario(consumer: Consumer) -> None:
        reader = consumer.open(predictor_with(cell.kind, Fault(looks)))
        with OtherThread(when(reached, reader.stream.cancel)):
            assert await is_cancelled(reader)
        await auntil(lambda: seen == [True], "the body saw the request")
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
                await go.await_()
            except asyncio.CancelledError:
                continue

    fault.strikes = swallowing

    async def scenario(consumer: Consumer) -> None:
        reader = consumer.open(predictor_with(cell.kind, fault))
        with OtherThread(when(reached, reader.stream.cancel)):
            assert await is_cancelled(reader)
        assert await consumer.still_works()
        go.open()
        reader.drop()  # in lock-step no owner steps a body that was given up: it ends when it is freed
        await auntil(lambda: fault.finalised == 1, "the body was finalised")

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
        await auntil(lambda: "ignored GeneratorExit" in caplog.text, "the log tells of the body")
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
        with OtherThread(when(reached, go.open)):
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
