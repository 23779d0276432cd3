"""What latency cases share: generators that keep a processor busy, and the ways an asyncio task reads them."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from time import perf_counter, thread_time
from typing import Any

from benchmarks._case import Case, Subject
from benchmarks.best import pumped

Read = Callable[[Callable[[], AsyncIterator[float]]], Any]
Reader = Callable[[int], Read]


def work(seconds: float) -> None:
    """Keep this thread's processor busy, in Python, for so much of its own time."""
    until = thread_time() + seconds
    while thread_time() < until:
        pass


def stamped(partials: int, seconds: float) -> Iterator[float]:
    """Work before each partial, and yield the time it was ready."""
    for _ in range(partials):
        work(seconds)
        yield perf_counter()


_END = object()


def add(case: Case, reader: Reader, partials: int, seconds: float) -> None:
    """Add the contenders to a case that reads `stamped` its own way.

    Args:
        case: the case.
        reader: makes, for a size, a coroutine function; that gets what opens an async iterator, and gives a figure and
            what came out.
        partials: how many there are.
        seconds: busy time before each.
    """
    for some in (_add_by_hand, _add_engine, _add_janus, _add_queue, _add_executor, _add_libraries):
        some(case, reader, partials, seconds)


def _add_by_hand(case: Case, reader: Reader, partials: int, seconds: float) -> None:
    @case.contender("on the loop itself", role="limit", note="blocks the loop: for comparison only")
    async def bare(size: int) -> AsyncIterator[Subject]:
        async def values() -> AsyncIterator[float]:
            for value in stamped(partials, seconds):
                yield value
                await asyncio.sleep(0)

        yield reader(size), values

    @case.contender("hand-written", role="best", note="a thread and a bounded deque, woken once a batch; no context")
    async def hand_written(size: int) -> AsyncIterator[Subject]:
        def values() -> AsyncIterator[float]:
            return pumped(stamped(partials, seconds))

        yield reader(size), values


def _add_engine(case: Case, reader: Reader, partials: int, seconds: float) -> None:
    @asynccontextmanager
    async def opened(runner: str | None) -> AsyncIterator[Any]:
        from engine import Engine

        async with Engine(discover=False, workers=1) as muna:
            muna.predictors.register("@bench/stamped", stamped)
            inputs = {"partials": partials, "seconds": seconds}

            def values() -> AsyncIterator[float]:
                return muna.predictions.astream("@bench/stamped", inputs, runner=runner).values()

            yield values

    @case.contender("predictor-engine", role="engine", package="predictor-engine", note="an owner thread")
    async def engine(size: int) -> AsyncIterator[Subject]:
        async with opened(None) as values:
            yield reader(size), values

    @case.contender("predictor-engine, a worker", role="engine", package="predictor-engine", note='runner="process"')
    async def engine_process(size: int) -> AsyncIterator[Subject]:
        async with opened("process") as values:
            yield reader(size), values


def _add_janus(case: Case, reader: Reader, partials: int, seconds: float) -> None:
    @case.contender("janus", package="janus", note="a queue with a sync and an async end")
    async def janus_queue(size: int) -> AsyncIterator[Subject]:
        import janus

        async def values() -> AsyncIterator[float]:
            queue: Any = janus.Queue(256)

            def put() -> None:
                for value in stamped(partials, seconds):
                    queue.sync_q.put(value)
                queue.sync_q.put(_END)

            thread = threading.Thread(target=put)
            thread.start()
            while (item := await queue.async_q.get()) is not _END:
                yield item
            thread.join()
            await queue.aclose()

        yield reader(size), values


def _add_queue(case: Case, reader: Reader, partials: int, seconds: float) -> None:
    @case.contender("asyncio.Queue, threadsafe", note="call_soon_threadsafe(queue.put_nowait) a partial; unbounded")
    async def queue(size: int) -> AsyncIterator[Subject]:
        async def values() -> AsyncIterator[float]:
            loop = asyncio.get_running_loop()
            items: asyncio.Queue[Any] = asyncio.Queue()

            def put() -> None:
                for value in stamped(partials, seconds):
                    loop.call_soon_threadsafe(items.put_nowait, value)
                loop.call_soon_threadsafe(items.put_nowait, _END)

            thread = threading.Thread(target=put)
            thread.start()
            while (item := await items.get()) is not _END:
                yield item
            thread.join()

        yield reader(size), values


def _add_executor(case: Case, reader: Reader, partials: int, seconds: float) -> None:
    @case.contender("run_in_executor a partial", note="one hop to a thread for each next()")
    async def executor(size: int) -> AsyncIterator[Subject]:
        async def values() -> AsyncIterator[float]:
            loop, items = asyncio.get_running_loop(), stamped(partials, seconds)
            while True:
                item: Any = await loop.run_in_executor(None, next, items, _END)
                if item is _END:
                    return
                yield item

        yield reader(size), values


def _add_libraries(case: Case, reader: Reader, partials: int, seconds: float) -> None:
    @case.contender("Starlette", package="starlette", note="iterate_in_threadpool: one hop for each next()")
    async def starlette(size: int) -> AsyncIterator[Subject]:
        from starlette.concurrency import iterate_in_threadpool

        def values() -> AsyncIterator[float]:
            return iterate_in_threadpool(stamped(partials, seconds))

        yield reader(size), values

    @case.contender("anyio a partial", package="anyio", note="to_thread.run_sync for each next()")
    async def anyio_thread(size: int) -> AsyncIterator[Subject]:
        from anyio import to_thread

        async def values() -> AsyncIterator[float]:
            items = stamped(partials, seconds)
            while True:
                item: Any = await to_thread.run_sync(next, items, _END)
                if item is _END:
                    return
                yield item

        yield reader(size), values
