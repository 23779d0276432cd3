"""`create` on an async function, from sync code."""

import asyncio
import threading
from collections.abc import Iterator
from typing import Any

from benchmarks._case import Calls, Case, Subject
from benchmarks.predictors import ashout

TEXT = "hello from Muna"

case = Case(
    name="create_of_async",
    title="create, async function, from sync code",
    about="Sync code calls a coroutine function that does not suspend, and waits for its value.",
    drive=Calls(),
    is_hand_off=True,
)


@case.contender("stepped by hand", role="limit", note="coroutine.send(None) without a loop: only while it never waits")
def stepped(_size: int) -> Iterator[Subject]:
    def call(text: str) -> Any:
        try:
            ashout(text).send(None)
        except StopIteration as stop:
            return stop.value

    yield call, TEXT


@case.contender("one loop, kept", role="best", note="run_until_complete on a loop of this thread: one caller at a time")
def kept(_size: int) -> Iterator[Subject]:
    loop = asyncio.new_event_loop()

    def call(text: str) -> Any:
        return loop.run_until_complete(ashout(text))

    yield call, TEXT
    loop.close()


@case.contender("predictor-engine", role="engine", package="predictor-engine", note="one loop thread for all callers")
def engine(_size: int) -> Iterator[Subject]:
    from engine import Engine

    with Engine(discover=False) as muna:
        muna.predictors.register("@bench/shout", ashout)
        yield muna.predictions.create, "@bench/shout", {"text": TEXT}


@case.contender("run_coroutine_threadsafe", note="one loop thread for all callers; no context, no record")
def threadsafe(_size: int) -> Iterator[Subject]:
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()

    def call(text: str) -> Any:
        return asyncio.run_coroutine_threadsafe(ashout(text), loop).result()

    yield call, TEXT
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


@case.contender("asyncio.run", note="a new loop for each call; refused where one runs already")
def run(_size: int) -> Iterator[Subject]:
    def call(text: str) -> Any:
        return asyncio.run(ashout(text))

    yield call, TEXT


@case.contender("anyio portal", package="anyio", note="BlockingPortal.call: one loop thread")
def portal(_size: int) -> Iterator[Subject]:
    from anyio.from_thread import start_blocking_portal

    with start_blocking_portal() as opened:
        yield opened.call, ashout, TEXT


@case.contender("asgiref", package="asgiref", note="async_to_sync: a new loop for each call")
def asgiref(_size: int) -> Iterator[Subject]:
    from asgiref.sync import async_to_sync

    yield async_to_sync(ashout), TEXT
