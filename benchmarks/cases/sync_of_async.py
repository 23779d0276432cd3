"""A sync consumer of an async generator."""

import asyncio
import threading
from collections.abc import Iterator
from typing import Any

from benchmarks._case import Case, Partials, Subject, cannot
from benchmarks.best import stepped_ahead
from benchmarks.predictors import acount

case = Case(
    name="sync_of_async",
    title="sync code reads an async generator, per partial",
    about="Sync code reads every partial of an async generator that does not suspend.",
    drive=Partials(),
    per="partial",
    axis="partials",
    sizes=(1, 10, 100, 1_000, 10_000),
    quick=(1, 100),
    is_hand_off=True,
)


@case.contender("the whole list at once", role="limit", note="one run of a loop, nothing before the end: no stream")
def whole(size: int) -> Iterator[Subject]:
    loop = asyncio.new_event_loop()

    async def collect(to: int) -> list[Any]:
        return [value async for value in acount(to)]

    def values(to: int) -> Any:
        return loop.run_until_complete(collect(to))

    yield values, size
    loop.close()


@case.contender("stepped by hand", role="best", note="send(None) without a loop: only while it never waits")
def stepped(size: int) -> Iterator[Subject]:
    def values(to: int) -> Iterator[Any]:
        partials = acount(to)
        while True:
            try:
                anext(partials).__await__().send(None)
            except StopIteration as stop:
                yield stop.value
            except StopAsyncIteration:
                return

    yield values, size


@case.contender(
    "hand-written", role="best", note="a task that runs ahead, on a loop of this thread: one reader at a time"
)
def hand_written(size: int) -> Iterator[Subject]:
    loop = asyncio.new_event_loop()

    def values(to: int) -> Iterator[Any]:
        return stepped_ahead(loop, acount(to))

    yield values, size
    loop.close()


@case.contender("predictor-engine values", role="engine", package="predictor-engine", note="stream(...).values()")
def engine_values(size: int) -> Iterator[Subject]:
    from engine import Engine

    with Engine(discover=False) as muna:
        muna.predictors.register("@bench/count", acount)
        inputs = {"to": size}

        def values() -> Iterator[Any]:
            return muna.predictions.stream("@bench/count", inputs).values()

        yield (values,)


@case.contender("predictor-engine", role="engine", package="predictor-engine", note="a Prediction for each partial")
def engine(size: int) -> Iterator[Subject]:
    from engine import Engine

    with Engine(discover=False) as muna:
        muna.predictors.register("@bench/count", acount)
        yield muna.predictions.stream, "@bench/count", {"to": size}


@case.contender("run_until_complete a partial", note="on a loop of this thread", largest=1_000)
def until(size: int) -> Iterator[Subject]:
    loop = asyncio.new_event_loop()

    def values(to: int) -> Iterator[Any]:
        partials = acount(to)
        while True:
            try:
                yield loop.run_until_complete(anext(partials))
            except StopAsyncIteration:
                return

    yield values, size
    loop.close()


@case.contender("run_coroutine_threadsafe a partial", note="one loop thread for all callers", largest=1_000)
def threadsafe(size: int) -> Iterator[Subject]:
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    end = object()

    async def step(partials: Any) -> Any:
        return await anext(partials, end)

    def values(to: int) -> Iterator[Any]:
        partials = acount(to)
        while (value := asyncio.run_coroutine_threadsafe(step(partials), loop).result()) is not end:
            yield value

    yield values, size
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


@case.contender("anyio portal a partial", package="anyio", note="BlockingPortal.call for each", largest=1_000)
def portal(size: int) -> Iterator[Subject]:
    from anyio.from_thread import start_blocking_portal

    end = object()

    async def step(partials: Any) -> Any:
        return await anext(partials, end)

    with start_blocking_portal() as opened:

        def values(to: int) -> Iterator[Any]:
            partials = acount(to)
            while (value := opened.call(step, partials)) is not end:
                yield value

        yield values, size


@case.contender("asgiref", package="asgiref")
def asgiref(_size: int) -> Iterator[Subject]:
    from asgiref.sync import async_to_sync

    assert async_to_sync
    yield cannot("async_to_sync ends its loop, and with it the generator, after each step")
