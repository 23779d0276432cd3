"""Memory that an open stream takes."""

import asyncio
import gc
import tracemalloc
from collections.abc import AsyncIterator
from typing import Any

from benchmarks._case import AsyncSamples, Case, Subject
from benchmarks.best import arecords, avalues
from benchmarks.cases.concurrent import slow_count
from benchmarks.peers import langchain_acounter, llm_acounter

case = Case(
    name="memory",
    title="memory per open stream",
    about="So many tasks each hold an async stream open after its first partial; what is allocated for all of it, by "
    "tracemalloc, divided by their number.",
    drive=AsyncSamples(),
    per="stream",
    unit="B",
    axis="streams",
    sizes=(100, 1_000, 10_000),
    quick=(100,),
    is_once=True,
)


async def holding(size: int, opening: Any, *args: Any) -> tuple[float, list[Any]]:
    """Bytes a stream, and the first partials."""
    complete, enough, firsts = asyncio.Event(), asyncio.Event(), []

    async def hold() -> None:
        is_first = True
        async for value in opening(*args):
            if is_first:
                is_first = False
                firsts.append(value)
                if len(firsts) == size:
                    complete.set()
                await enough.wait()

    gc.collect()
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    tasks = [asyncio.create_task(hold()) for _ in range(size)]
    await complete.wait()
    gc.collect()
    taken = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    enough.set()
    await asyncio.gather(*tasks)
    return taken / size, firsts[:3]


@case.contender("bare tasks", role="limit")
async def bare(size: int) -> AsyncIterator[Subject]:
    yield holding, size, slow_count, 2


@case.contender(
    "hand-written values", role="best", note="a wrapper that does nothing yet; no context, no state, no clean-up"
)
async def hand_written(size: int) -> AsyncIterator[Subject]:
    def values(to: int) -> AsyncIterator[Any]:
        return avalues(slow_count(to))

    yield holding, size, values, 2


@case.contender("hand-written records", role="best", note="clock pair and record; no context, no state, no clean-up")
async def hand_written_records(size: int) -> AsyncIterator[Subject]:
    def records(to: int) -> AsyncIterator[Any]:
        return arecords(slow_count(to))

    yield holding, size, records, 2


@case.contender("predictor-engine values", role="engine", package="predictor-engine", note="astream(...).values()")
async def engine_values(size: int) -> AsyncIterator[Subject]:
    from engine import Engine

    async with Engine(discover=False) as muna:
        muna.predictors.register("@bench/count", slow_count)

        def values() -> AsyncIterator[Any]:
            return muna.predictions.astream("@bench/count", {"to": 2}).values()

        yield holding, size, values


@case.contender("predictor-engine", role="engine", package="predictor-engine", note="a Prediction for each partial")
async def engine(size: int) -> AsyncIterator[Subject]:
    from engine import Engine

    async with Engine(discover=False) as muna:
        muna.predictors.register("@bench/count", slow_count)
        yield holding, size, muna.predictions.astream, "@bench/count", {"to": 2}


@case.contender("LangChain astream", package="langchain-core", note="bare chunks, which it also joins for tracing")
async def langchain(size: int) -> AsyncIterator[Subject]:
    yield holding, size, langchain_acounter(slow_count).astream, 2


@case.contender("llm", package="llm", note="bare chunks, which it also keeps")
async def simon(size: int) -> AsyncIterator[Subject]:
    yield holding, size, llm_acounter(slow_count).prompt, str(2)
