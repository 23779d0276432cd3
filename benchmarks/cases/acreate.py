"""`acreate` on an async function."""

from collections.abc import AsyncIterator
from typing import Any

from benchmarks._case import AsyncCalls, Case, Subject
from benchmarks.best import Registry
from benchmarks.predictors import ashout

INPUTS = {"text": "hello from Muna"}

case = Case(
    name="acreate",
    title="acreate, async function",
    about="One awaited call of a coroutine function that does not suspend, in the caller's task.",
    drive=AsyncCalls(),
)


@case.contender("bare await", role="limit", note="no look-up, no record, no context")
async def bare(_size: int) -> AsyncIterator[Subject]:
    yield ashout, "hello from Muna"


@case.contender("hand-written", role="best", note="look-up, clock and record; inputs are not checked, no context")
async def hand_written(_size: int) -> AsyncIterator[Subject]:
    yield Registry(ashout=ashout).acreate, "ashout", INPUTS


@case.contender("predictor-engine", role="engine", package="predictor-engine")
async def engine(_size: int) -> AsyncIterator[Subject]:
    from engine import Engine

    async with Engine(discover=False) as muna:
        muna.predictors.register("@bench/shout", ashout)
        yield muna.predictions.acreate, "@bench/shout", INPUTS


@case.contender("LangChain ainvoke", package="langchain-core", note="no look-up by name; callbacks and tracing hooks")
async def langchain(_size: int) -> AsyncIterator[Subject]:
    from langchain_core.runnables import RunnableLambda

    yield RunnableLambda(ashout).ainvoke, "hello from Muna"


@case.contender("llm", package="llm", note="models stream only, so it joins the one chunk; prompt and response records")
async def simon(_size: int) -> AsyncIterator[Subject]:
    import llm

    class Shouter(llm.AsyncModel):
        model_id = "shouter"

        async def execute(self, prompt: Any, stream: bool, response: Any, conversation: Any) -> AsyncIterator[str]:
            yield await ashout(prompt.prompt)

    model = Shouter()

    async def call(text: str) -> Any:
        return await model.prompt(text).text()

    yield call, "hello from Muna"
