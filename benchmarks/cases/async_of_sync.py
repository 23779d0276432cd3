"""An asyncio consumer of a sync generator that must not block the event loop."""

import asyncio
import threading
from collections.abc import AsyncIterator
from typing import Any

from benchmarks._case import AsyncPartials, Case, Subject
from benchmarks.best import pumped
from benchmarks.peers import langchain_counter
from benchmarks.predictors import count

case = Case(
    name="async_of_sync",
    title="asyncio reads a sync generator, per partial",
    about="An asyncio task reads every partial of a sync generator, which runs where it does not block the loop.",
    drive=AsyncPartials(),
    per="partial",
    axis="partials",
    sizes=(1, 10, 100, 1_000, 10_000),
    quick=(1, 100),
    is_hand_off=True,
)


@case.contender("on the loop itself", role="limit", note="blocks the loop: for comparison only")
async def bare(size: int) -> AsyncIterator[Subject]:
    async def values(to: int) -> AsyncIterator[Any]:
        for value in count(to):
            yield value

    yield values, size


@case.contender("hand-written", role="best", note="a thread and a bounded deque, woken once a batch; no context")
async def hand_written(size: int) -> AsyncIterator[Subject]:
    def values(to: int) -> AsyncIterator[Any]:
        return pumped(count(to))

    yield values, size


@case.contender("predictor-engine values", role="engine", package="predictor-engine", note="astream(...).values()")
async def engine_values(size: int) -> AsyncIterator[Subject]:
    from engine import Engine

    async with Engine(discover=False) as muna:
        muna.predictors.register("@bench/count", count)
        inputs = {"to": size}

        def values() -> AsyncIterator[Any]:
            return muna.predictions.astream("@bench/count", inputs).values()

        yield (values,)


@case.contender("predictor-engine", role="engine", package="predictor-engine", note="a Prediction for each partial")
async def engine(size: int) -> AsyncIterator[Subject]:
    from engine import Engine

    async with Engine(discover=False) as muna:
        muna.predictors.register("@bench/count", count)
        yield muna.predictions.astream, "@bench/count", {"to": size}


@case.contender("janus", package="janus", note="a queue with a sync and an async end; the thread is written by hand")
async def janus_queue(size: int) -> AsyncIterator[Subject]:
    import janus

    async def values(to: int) -> AsyncIterator[Any]:
        queue: Any = janus.Queue(256)

        def put() -> None:
            for value in count(to):
                queue.sync_q.put((value,))
            queue.sync_q.put(None)

        thread = threading.Thread(target=put)
        thread.start()
        while (item := await queue.async_q.get()) is not None:
            yield item[0]
        thread.join()
        await queue.aclose()

    yield values, size


@case.contender("asyncio.Queue, threadsafe", note="call_soon_threadsafe(queue.put_nowait) a partial; unbounded")
async def queue(size: int) -> AsyncIterator[Subject]:
    async def values(to: int) -> AsyncIterator[Any]:
        loop = asyncio.get_running_loop()
        items: asyncio.Queue[Any] = asyncio.Queue()

        def put() -> None:
            for value in count(to):
                loop.call_soon_threadsafe(items.put_nowait, (value,))
            loop.call_soon_threadsafe(items.put_nowait, None)

        thread = threading.Thread(target=put)
        thread.start()
        while (item := await items.get()) is not None:
            yield item[0]
        thread.join()

    yield values, size


_END = object()


@case.contender("run_in_executor a partial", note="one hop to a thread for each next(); no context", largest=1_000)
async def executor(size: int) -> AsyncIterator[Subject]:
    async def values(to: int) -> AsyncIterator[Any]:
        loop, partials = asyncio.get_running_loop(), count(to)
        while (value := await loop.run_in_executor(None, next, partials, _END)) is not _END:
            yield value

    yield values, size


@case.contender("asyncio.to_thread a partial", note="the same, with the context copied each time", largest=1_000)
async def to_thread(size: int) -> AsyncIterator[Subject]:
    async def values(to: int) -> AsyncIterator[Any]:
        partials = count(to)
        while (value := await asyncio.to_thread(next, partials, _END)) is not _END:
            yield value

    yield values, size


@case.contender("Starlette", package="starlette", note="iterate_in_threadpool: one hop for each next()", largest=1_000)
async def starlette(size: int) -> AsyncIterator[Subject]:
    from starlette.concurrency import iterate_in_threadpool

    def values(to: int) -> AsyncIterator[Any]:
        return iterate_in_threadpool(count(to))

    yield values, size


@case.contender("anyio a partial", package="anyio", note="to_thread.run_sync for each next()", largest=1_000)
async def anyio_thread(size: int) -> AsyncIterator[Subject]:
    from anyio import to_thread

    async def values(to: int) -> AsyncIterator[Any]:
        partials = count(to)
        while (value := await to_thread.run_sync(next, partials, _END)) is not _END:
            yield value

    yield values, size


@case.contender("asgiref a partial", package="asgiref", note="sync_to_async for each next()", largest=1_000)
async def asgiref(size: int) -> AsyncIterator[Subject]:
    from asgiref.sync import sync_to_async

    async def values(to: int) -> AsyncIterator[Any]:
        step, partials = sync_to_async(next, thread_sensitive=False), count(to)
        while (value := await step(partials, _END)) is not _END:
            yield value

    yield values, size


@case.contender(
    "LangChain astream",
    package="langchain-core",
    note="refuses a sync generator there; so its sync stream, one hop for each next()",
    largest=1_000,
)
async def langchain(size: int) -> AsyncIterator[Subject]:
    runnable = langchain_counter()

    async def values(to: int) -> AsyncIterator[Any]:
        loop, partials = asyncio.get_running_loop(), runnable.stream(to)
        while (value := await loop.run_in_executor(None, next, partials, _END)) is not _END:
            yield value

    yield values, size
