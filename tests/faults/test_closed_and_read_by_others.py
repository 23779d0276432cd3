"""Streams that are closed from another thread, more than once, or read by two at a time."""

from __future__ import annotations

import asyncio
import itertools
import threading
from typing import TYPE_CHECKING, Any

import pytest

from engine import Engine, PredictionCancelledError
from tests._kit.gates import Gate
from tests._kit.internals import execution_of
from tests._kit.waits import OtherThread, auntil, until
from tests.faults.conftest import END, Fault, each_cell, predictor_with
from tests.faults.stopping import GRACE, drained, waiting, when

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.faults.conftest import Cell, Consumer


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
        with OtherThread(when(reached, reader.stream.close)):
            assert await reader.pull() is END
        assert cell.is_async or not go.is_open
        go.open()
        assert await reader.has_ended("closed")
        await auntil(lambda: fault.finalised == 1, "the body was finalised")
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
        closed = OtherThread(when(reached, reader.stream.close))
        call = execution_of(reader.stream).call

        def release() -> None:
            until(lambda: call.stopping, "the request to close is posted")
            assert fault.finalised == 0
            assert not closed.is_over
            go.open()

        with OtherThread(release), closed:
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
        with OtherThread(reader.stream.close):
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
        await auntil(lambda: fault.finalised, "the body was finalised")
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
        await auntil(lambda: fault.finalised == 1, "the body was finalised")
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

        with OtherThread(lambda: read(taken[0])), OtherThread(lambda: read(taken[1])):
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

        with OtherThread(when(reached, read_too)):
            assert await reader.rest() == list(cell.partials)
        assert await reader.has_ended("done")

    cell.run(scenario)


# 61: the consumer's own error.


@pytest.mark.fault(54)
@pytest.mark.parametrize("how", ["cancel", "close"])
def test_a_stop_that_comes_just_before_a_function_gives_something_async_is_heard_by_its_new_owner(
    how: str, caplog: pytest.LogCaptureFixture
) -> None:
    reached, go, never = Gate(), Gate(), Gate()

    async def waits() -> AsyncIterator[str]:
        await never.await_()
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
            with OtherThread(getattr(stream, how)):
                until(lambda: execution_of(stream).call.stopping, "the stop is posted")
                go.open()

        with OtherThread(stop), pytest.raises(ends[how]):
            next(stream)
    assert caplog.messages == []
