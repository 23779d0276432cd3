"""`acreate` on an eager sync function, which must not block the event loop."""

import asyncio
import threading
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue
from typing import Any

from benchmarks._case import AsyncCalls, Case, Subject
from benchmarks.predictors import shout

TEXT = "hello from Muna"

case = Case(
    name="acreate_sync",
    title="acreate, eager sync function",
    about="One awaited call of a sync function that runs where it does not block the event loop.",
    drive=AsyncCalls(),
    is_hand_off=True,
)


@case.contender("on the loop itself", role="limit", note="blocks the loop: for comparison only")
async def bare(_size: int) -> AsyncIterator[Subject]:
    async def call(text: str) -> Any:
        return shout(text)

    yield call, TEXT


@case.contender("hand-written", role="best", note="a thread of its own; one caller at a time, no context, no record")
async def hand_written(_size: int) -> AsyncIterator[Subject]:
    loop = asyncio.get_running_loop()
    texts: SimpleQueue[tuple[str, asyncio.Future[str]] | None] = SimpleQueue()

    def serve() -> None:
        while (asked := texts.get()) is not None:
            text, future = asked
            loop.call_soon_threadsafe(future.set_result, shout(text))

    def call(text: str) -> asyncio.Future[str]:
        future: asyncio.Future[str] = loop.create_future()
        texts.put((text, future))
        return future

    thread = threading.Thread(target=serve)
    thread.start()
    yield call, TEXT
    texts.put(None)
    thread.join()


@case.contender("predictor-engine", role="engine", package="predictor-engine")
async def engine(_size: int) -> AsyncIterator[Subject]:
    from engine import Engine

    async with Engine(discover=False) as muna:
        muna.predictors.register("@bench/shout", shout)
        yield muna.predictions.acreate, "@bench/shout", {"text": TEXT}


@case.contender("run_in_executor", note="a pool of one thread; no context, no record")
async def executor(_size: int) -> AsyncIterator[Subject]:
    loop = asyncio.get_running_loop()
    with ThreadPoolExecutor(1) as threads:
        yield loop.run_in_executor, threads, shout, TEXT


@case.contender("asyncio.to_thread", note="the context copied; no record")
async def to_thread(_size: int) -> AsyncIterator[Subject]:
    yield asyncio.to_thread, shout, TEXT


@case.contender("anyio", package="anyio", note="to_thread.run_sync: a limiter of threads; no record")
async def anyio_thread(_size: int) -> AsyncIterator[Subject]:
    from anyio import to_thread

    yield to_thread.run_sync, shout, TEXT


@case.contender("asgiref", package="asgiref", note="sync_to_async(thread_sensitive=False); no record")
async def asgiref(_size: int) -> AsyncIterator[Subject]:
    from asgiref.sync import sync_to_async

    yield sync_to_async(shout, thread_sensitive=False), TEXT


@case.contender("LangChain ainvoke", package="langchain-core", note="a sync RunnableLambda goes to a pool thread")
async def langchain(_size: int) -> AsyncIterator[Subject]:
    from langchain_core.runnables import RunnableLambda

    yield RunnableLambda(shout).ainvoke, TEXT
