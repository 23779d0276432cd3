"""Many open streams at a time on one event loop."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from benchmarks._case import AsyncCalls, Case, Subject, plain
from benchmarks.best import arecords, avalues
from benchmarks.peers import langchain_acounter, llm_acounter
from benchmarks.predictors import WORDS

PARTIALS = 16

case = Case(
    name="concurrent",
    title="concurrent streams on one event loop",
    about=f"So many tasks each read an async generator of {PARTIALS} partials that suspends before each of them, so "
    "that all streams are open at the same time.",
    drive=AsyncCalls(per_size=True),
    per=f"stream of {PARTIALS} partials",
    axis="streams",
    sizes=(1, 10, 100, 1_000),
    quick=(1, 10),
)


async def slow_count(to: int) -> AsyncIterator[str]:
    """Yield short strings; the loop runs the other tasks before each."""
    for number in range(to):
        await asyncio.sleep(0)
        yield WORDS[number & 63]


async def read(opening: Any, *args: Any) -> tuple[int, Any]:
    """Read one stream to its end; how many partials there were, and the last."""
    seen, last = 0, None
    async for last in opening(*args):  # noqa: B007  # the last one is wanted
        seen += 1
    return seen, plain(last)


async def together(size: int, opening: Any, *args: Any) -> list[tuple[int, Any]]:
    """Read so many at a time."""
    return await asyncio.gather(*(read(opening, *args) for _ in range(size)))


@case.contender("bare tasks", role="limit")
async def bare(size: int) -> AsyncIterator[Subject]:
    yield together, size, slow_count, PARTIALS


@case.contender(
    "hand-written values", role="best", note="a wrapper that does nothing yet; no context, no state, no clean-up"
)
async def hand_written(size: int) -> AsyncIterator[Subject]:
    def values(to: int) -> AsyncIterator[Any]:
        return avalues(slow_count(to))

    yield together, size, values, PARTIALS


@case.contender("hand-written records", role="best", note="clock pair and record; no context, no state, no clean-up")
async def hand_written_records(size: int) -> AsyncIterator[Subject]:
    def records(to: int) -> AsyncIterator[Any]:
        return arecords(slow_count(to))

    yield together, size, records, PARTIALS


@case.contender("predictor-engine values", role="engine", package="predictor-engine", note="astream(...).values()")
async def engine_values(size: int) -> AsyncIterator[Subject]:
    from engine import Engine

    async with Engine(discover=False) as muna:
        muna.predictors.register("@bench/count", slow_count)
        inputs = {"to": PARTIALS}

        def values() -> AsyncIterator[Any]:
            return muna.predictions.astream("@bench/count", inputs).values()

        yield together, size, values


@case.contender("predictor-engine", role="engine", package="predictor-engine", note="a Prediction for each partial")
async def engine(size: int) -> AsyncIterator[Subject]:
    from engine import Engine

    async with Engine(discover=False) as muna:
        muna.predictors.register("@bench/count", slow_count)
        yield together, size, muna.predictions.astream, "@bench/count", {"to": PARTIALS}


@case.contender("LangChain astream", package="langchain-core", note="bare chunks, which it also joins for tracing")
async def langchain(size: int) -> AsyncIterator[Subject]:
    yield together, size, langchain_acounter(slow_count).astream, PARTIALS


@case.contender("llm", package="llm", note="bare chunks, which it also keeps")
async def simon(size: int) -> AsyncIterator[Subject]:
    yield together, size, llm_acounter(slow_count).prompt, str(PARTIALS)
