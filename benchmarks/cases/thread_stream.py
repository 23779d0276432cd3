"""A sync generator in a thread of its own, read by sync code."""

import queue
import threading
from collections.abc import Iterator
from typing import Any

from benchmarks._case import Case, Partials, Subject
from benchmarks.predictors import count

case = Case(
    name="thread_stream",
    title="stream from a thread, per partial",
    about="Sync code reads every partial of a generator that runs in another thread.",
    drive=Partials(),
    per="partial",
    axis="partials",
    sizes=(1, 10, 100, 1_000, 10_000),
    quick=(1, 100),
    is_hand_off=True,
)


@case.contender("in this thread", role="limit", note="no other thread: for comparison only")
def bare(size: int) -> Iterator[Subject]:
    yield count, size


def through(make: Any, size: int) -> Iterator[Subject]:
    """A thread that puts what comes into a queue, and a reader that takes it out."""

    def values(to: int) -> Iterator[Any]:
        items = make()

        def put() -> None:
            for value in count(to):
                items.put((value,))
            items.put(None)

        thread = threading.Thread(target=put)
        thread.start()
        while (item := items.get()) is not None:
            yield item[0]
        thread.join()

    yield values, size


@case.contender("SimpleQueue", role="best", note="unbounded: a reader that stops does not stop the producer")
def simple(size: int) -> Iterator[Subject]:
    yield from through(queue.SimpleQueue, size)


@case.contender("predictor-engine values", role="engine", package="predictor-engine", note="stream(...).values()")
def engine_values(size: int) -> Iterator[Subject]:
    from engine import Engine

    with Engine(discover=False) as muna:
        muna.predictors.register("@bench/count", count)
        inputs = {"to": size}

        def values() -> Iterator[Any]:
            return muna.predictions.stream("@bench/count", inputs, runner="thread").values()

        yield (values,)


@case.contender("predictor-engine", role="engine", package="predictor-engine", note="a Prediction for each partial")
def engine(size: int) -> Iterator[Subject]:
    from functools import partial

    from engine import Engine

    with Engine(discover=False) as muna:
        muna.predictors.register("@bench/count", count)
        yield partial(muna.predictions.stream, runner="thread"), "@bench/count", {"to": size}


@case.contender("queue.Queue", note="bounded to 256")
def bounded(size: int) -> Iterator[Subject]:
    yield from through(lambda: queue.Queue(256), size)
