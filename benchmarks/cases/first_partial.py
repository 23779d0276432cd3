"""Time to the first partial, for an asyncio consumer of a sync generator."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from time import perf_counter
from typing import Any

from benchmarks._case import AsyncSamples, Case, Subject
from benchmarks.best import pumped
from benchmarks.predictors import count

case = Case(
    name="first_partial",
    title="time to first partial, asyncio of a sync generator",
    about="From the call until an asyncio task has the first partial of a sync generator that would go on at once.",
    drive=AsyncSamples(),
    per="stream",
    is_hand_off=True,
)


async def first(opening: Any, *args: Any) -> tuple[float, list[Any]]:
    """Seconds until the first partial."""
    started = perf_counter()
    async with aclosing(opening(*args)) as partials:
        async for value in partials:
            return perf_counter() - started, [value]
    raise AssertionError("there was none")


@case.contender("on the loop itself", role="limit", note="blocks the loop: for comparison only")
async def bare(_size: int) -> AsyncIterator[Subject]:
    async def values() -> AsyncIterator[Any]:
        for value in count(10):
            yield value

    yield first, values


@case.contender("hand-written", role="best", note="a thread and a bounded deque, woken once a batch; no context")
async def hand_written(_size: int) -> AsyncIterator[Subject]:
    def values() -> AsyncIterator[Any]:
        return pumped(count(10))

    yield first, values


@case.contender("predictor-engine", role="engine", package="predictor-engine")
async def engine(_size: int) -> AsyncIterator[Subject]:
    from engine import Engine

    async with Engine(discover=False) as muna:
        muna.predictors.register("@bench/count", count)

        async def call() -> tuple[float, list[Any]]:
            started = perf_counter()
            async with muna.predictions.astream("@bench/count", {"to": 10}) as stream:
                async for value in stream.values():
                    return perf_counter() - started, [value]
            raise AssertionError("there was none")

        yield (call,)


@case.contender("predictor-engine, a worker", role="engine", package="predictor-engine", note='runner="process", warm')
async def engine_process(_size: int) -> AsyncIterator[Subject]:
    from engine import Engine

    async with Engine(discover=False, workers=1) as muna:
        muna.predictors.register("@bench/count", count)

        async def call() -> tuple[float, list[Any]]:
            started = perf_counter()
            async with muna.predictions.astream("@bench/count", {"to": 10}, runner="process") as stream:
                async for value in stream.values():
                    return perf_counter() - started, [value]
            raise AssertionError("there was none")

        yield (call,)


_END = object()


@case.contender("run_in_executor a partial", note="one hop to a thread for each next()")
async def executor(_size: int) -> AsyncIterator[Subject]:
    async def values() -> AsyncIterator[Any]:
        loop, partials = asyncio.get_running_loop(), count(10)
        while (value := await loop.run_in_executor(None, next, partials, _END)) is not _END:
            yield value

    yield first, values


@case.contender("Starlette", package="starlette", note="iterate_in_threadpool: one hop for each next()")
async def starlette(_size: int) -> AsyncIterator[Subject]:
    from starlette.concurrency import iterate_in_threadpool

    def values() -> AsyncIterator[Any]:
        return iterate_in_threadpool(count(10))

    yield first, values


@case.contender("anyio a partial", package="anyio", note="to_thread.run_sync for each next()")
async def anyio_thread(_size: int) -> AsyncIterator[Subject]:
    from anyio import to_thread

    async def values() -> AsyncIterator[Any]:
        partials = count(10)
        while (value := await to_thread.run_sync(next, partials, _END)) is not _END:
            yield value

    yield first, values
