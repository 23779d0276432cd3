"""`create(runner="thread")` on an eager function."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue
from typing import Any

from benchmarks._case import Calls, Case, Subject
from benchmarks.predictors import shout

TEXT = "hello from Muna"

case = Case(
    name="thread_eager",
    title="create in a thread, eager function",
    about="Sync code has a function run in another thread, and waits for its value.",
    drive=Calls(),
    is_hand_off=True,
)


@case.contender("two locks", role="limit", note="a thread that waits for one lock and releases the other")
def locks(_size: int) -> Iterator[Subject]:
    going, coming = threading.Lock(), threading.Lock()
    going.acquire()
    coming.acquire()
    texts: list[str | None] = []
    found: list[str] = []

    def serve() -> None:
        while True:
            going.acquire()
            text = texts.pop()
            if text is None:
                return
            found.append(shout(text))
            coming.release()

    thread = threading.Thread(target=serve)
    thread.start()

    def call(text: str) -> Any:
        texts.append(text)
        going.release()
        coming.acquire()
        return found.pop()

    yield call, TEXT
    texts.append(None)
    going.release()
    thread.join()


@case.contender("hand-written", role="best", note="two SimpleQueues; one caller at a time, no context, no record")
def hand_written(_size: int) -> Iterator[Subject]:
    texts: SimpleQueue[str | None] = SimpleQueue()
    found: SimpleQueue[str] = SimpleQueue()

    def serve() -> None:
        while (text := texts.get()) is not None:
            found.put(shout(text))

    def call(text: str) -> Any:
        texts.put(text)
        return found.get()

    thread = threading.Thread(target=serve)
    thread.start()
    yield call, TEXT
    texts.put(None)
    thread.join()


@case.contender("predictor-engine", role="engine", package="predictor-engine")
def engine(_size: int) -> Iterator[Subject]:
    from functools import partial

    from engine import Engine

    with Engine(discover=False) as muna:
        muna.predictors.register("@bench/shout", shout)
        yield partial(muna.predictions.create, runner="thread"), "@bench/shout", {"text": TEXT}


@case.contender("ThreadPoolExecutor", note="submit(...).result(): a future; no context, no record")
def pool(_size: int) -> Iterator[Subject]:
    with ThreadPoolExecutor(1) as threads:

        def call(text: str) -> Any:
            return threads.submit(shout, text).result()

        yield call, TEXT


@case.contender("a new thread", note="started and joined for each call")
def new(_size: int) -> Iterator[Subject]:
    def call(text: str) -> Any:
        found: list[str] = []
        thread = threading.Thread(target=lambda: found.append(shout(text)))
        thread.start()
        thread.join()
        return found[0]

    yield call, TEXT


@case.contender("pebble", package="pebble", note="ThreadPool.schedule: a future")
def pebble(_size: int) -> Iterator[Subject]:
    from pebble import ThreadPool

    with ThreadPool(max_workers=1) as threads:

        def call(text: str) -> Any:
            return threads.schedule(shout, args=(text,)).result()

        yield call, TEXT
