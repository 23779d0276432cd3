"""`astream` on an async generator, read in the task that runs it."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from benchmarks._case import AsyncPartials, Case, Subject
from benchmarks.best import arecords, avalues
from benchmarks.peers import langchain_acounter, llm_acounter
from benchmarks.predictors import acount

case = Case(
    name="astream",
    title="astream, async generator, per partial",
    about="An asyncio task reads every partial of an async generator that does not suspend.",
    drive=AsyncPartials(),
    per="partial",
    axis="partials",
    sizes=(1, 10, 100, 1_000, 10_000),
    quick=(1, 100),
)


@case.contender("bare loop", role="limit")
async def bare(size: int) -> AsyncIterator[Subject]:
    yield acount, size


@case.contender(
    "hand-written values", role="best", note="a wrapper that does nothing yet; no context, no state, no clean-up"
)
async def hand_written(size: int) -> AsyncIterator[Subject]:
    def values(to: int) -> AsyncIterator[Any]:
        return avalues(acount(to))

    yield values, size


@case.contender("hand-written records", role="best", note="clock pair and record; no context, no state, no clean-up")
async def hand_written_records(size: int) -> AsyncIterator[Subject]:
    def records(to: int) -> AsyncIterator[Any]:
        return arecords(acount(to))

    yield records, size


@case.contender("predictor-engine values", role="engine", package="predictor-engine", note="astream(...).values()")
async def engine_values(size: int) -> AsyncIterator[Subject]:
    from engine import Engine

    async with Engine(discover=False) as muna:
        muna.predictors.register("@bench/count", acount)
        inputs = {"to": size}

        def values() -> AsyncIterator[Any]:
            return muna.predictions.astream("@bench/count", inputs).values()

        yield (values,)


@case.contender("predictor-engine", role="engine", package="predictor-engine", note="a Prediction for each partial")
async def engine(size: int) -> AsyncIterator[Subject]:
    from engine import Engine

    async with Engine(discover=False) as muna:
        muna.predictors.register("@bench/count", acount)
        yield muna.predictions.astream, "@bench/count", {"to": size}


@case.contender("asyncio.Queue", note="a task that puts, and a consumer that gets: what many write by hand")
async def queue(size: int) -> AsyncIterator[Subject]:
    async def values(to: int) -> AsyncIterator[Any]:
        items: asyncio.Queue[Any] = asyncio.Queue(256)

        async def put() -> None:
            async for value in acount(to):
                await items.put((value,))
            await items.put(None)

        task = asyncio.create_task(put())
        while (item := await items.get()) is not None:
            yield item[0]
        await task

    yield values, size


@case.contender("anyio stream", package="anyio", note="a memory object stream between two tasks")
async def anyio_stream(size: int) -> AsyncIterator[Subject]:
    import anyio

    async def values(to: int) -> AsyncIterator[Any]:
        sending, receiving = anyio.create_memory_object_stream[Any](256)

        async def put() -> None:
            async with sending:
                async for value in acount(to):
                    await sending.send(value)

        task = asyncio.create_task(put())
        async with receiving:
            async for value in receiving:
                yield value
        await task

    yield values, size


@case.contender("LangChain astream", package="langchain-core", note="bare chunks, which it also joins for tracing")
async def langchain(size: int) -> AsyncIterator[Subject]:
    yield langchain_acounter().astream, size


@case.contender("llm", package="llm", note="bare chunks, which it also keeps")
async def simon(size: int) -> AsyncIterator[Subject]:
    yield llm_acounter().prompt, str(size)
