"""Streams that are abandoned: dropped, left in a cycle, or by a consumer that failed."""

from __future__ import annotations

import asyncio
import gc
import itertools
import warnings
from typing import TYPE_CHECKING, Any

import pytest

from engine import Predictor
from tests._kit.internals import locks_of
from tests._kit.streams import ConsumerFailed, Knot
from tests._kit.waits import OtherThread, auntil
from tests.faults.conftest import Fault, predictor_with
from tests.faults.stopping import drained

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    from tests.faults.conftest import Cell, Consumer


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
        await auntil(lambda: finalised, "the body was finalised")
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


@pytest.mark.fault(58)
@pytest.mark.filterwarnings("ignore:a stream of .* was abandoned:ResourceWarning")
def test_a_stream_abandoned_in_a_cycle_is_finalised_by_a_collector_in_any_thread(yielding: Cell) -> None:
    finalised: list[int] = []

    async def scenario(consumer: Consumer) -> None:
        reader = consumer.open(endless(yielding.kind, finalised))
        assert await reader.pull() == 0
        Knot(reader.stream, reader.values)
        reader.drop()
        with OtherThread(gc.collect):
            pass
        await auntil(lambda: finalised == [1], "the body was finalised")
        assert await consumer.still_works()

    yielding.run(scenario)


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
            Knot(reader.stream, reader.values)
            reader.drop()
            with lock, OtherThread(gc.collect) as collecting:
                collecting.join()
            await auntil(lambda expected=count: len(finalised) == expected, "the body was finalised")  # type: ignore[misc]

    yielding.run(scenario)


# 61: the consumer's own error.


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
        await auntil(lambda: finalised == [1], "the body was finalised")
        assert await consumer.still_works()

    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        yielding.run(scenario)
    assert finalised == [1]
    assert len(told) == int(yielding.is_asyncio or not yielding.is_in_lockstep)
