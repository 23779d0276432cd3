"""Partials of a generator that runs in a worker process."""

import multiprocessing
import os
import struct
from collections.abc import Iterator
from typing import Any

from benchmarks._case import Case, Partials, Subject
from benchmarks.predictors import count

case = Case(
    name="process_stream",
    title="stream from a process, per partial",
    about="Sync code reads every partial, a short string, of a generator that runs in a warm worker process.",
    drive=Partials(),
    per="partial",
    axis="partials",
    sizes=(1, 10, 100, 1_000, 10_000),
    quick=(1, 100),
    is_hand_off=True,
)


@case.contender("raw pipes", role="limit", note="os.pipe with a forked child: lines, whatever is there in one read")
def raw(size: int) -> Iterator[Subject]:
    going, coming = os.pipe(), os.pipe()
    pid = os.fork()
    if not pid:
        os.close(going[1])
        while asked := os.read(going[0], 8):
            lines = [f"{value}\n".encode() for value in count(struct.unpack("q", asked)[0])]
            for start in range(0, len(lines), 256):
                data = b"".join(lines[start : start + 256])
                while data:
                    data = data[os.write(coming[1], data) :]
        os._exit(0)
    os.close(going[0])
    os.close(coming[1])

    def values(to: int) -> Iterator[Any]:
        os.write(going[1], struct.pack("q", to))
        left, rest = to, b""
        while left:
            *lines, rest = (rest + os.read(coming[0], 65_536)).split(b"\n")
            left -= len(lines)
            for line in lines:
                yield line.decode()

    yield values, size
    os.close(going[1])
    os.waitpid(pid, 0)
    os.close(coming[0])


def serve(connection: Any) -> None:
    """Send partial by partial, as often as asked."""
    while (to := connection.recv()) is not None:
        for value in count(to):
            connection.send((value,))
        connection.send(None)


@case.contender("Connection", role="best", note="multiprocessing.Pipe with pickle, a message a partial; unbounded")
def connection(size: int) -> Iterator[Subject]:
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("fork").Process(target=serve, args=(theirs,))
    process.start()

    def values(to: int) -> Iterator[Any]:
        ours.send(to)
        while (item := ours.recv()) is not None:
            yield item[0]

    yield values, size
    ours.send(None)
    process.join()


@case.contender("predictor-engine values", role="engine", package="predictor-engine", note="stream(...).values()")
def engine_values(size: int) -> Iterator[Subject]:
    from engine import Engine

    with Engine(discover=False, workers=1) as muna:
        muna.predictors.register("@bench/count", count)
        inputs = {"to": size}

        def values() -> Iterator[Any]:
            return muna.predictions.stream("@bench/count", inputs, runner="process").values()

        yield (values,)


@case.contender("predictor-engine", role="engine", package="predictor-engine", note="a Prediction for each partial")
def engine(size: int) -> Iterator[Subject]:
    from functools import partial

    from engine import Engine

    with Engine(discover=False, workers=1) as muna:
        muna.predictors.register("@bench/count", count)
        yield partial(muna.predictions.stream, runner="process"), "@bench/count", {"to": size}


def fill(orders: Any, answers: Any) -> None:
    """Put partial by partial, as often as asked."""
    while (to := orders.get()) is not None:
        for value in count(to):
            answers.put((value,))
        answers.put(None)


def through(orders: Any, answers: Any, context: Any, size: int) -> Iterator[Subject]:
    """A process that fills a queue, and a reader of it."""
    process = context.Process(target=fill, args=(orders, answers))
    process.start()

    def values(to: int) -> Iterator[Any]:
        orders.put(to)
        while (item := answers.get()) is not None:
            yield item[0]

    yield values, size
    orders.put(None)
    process.join()


@case.contender("multiprocessing.Queue", note="a feeder thread pickles; the queue is bounded to 256 items")
def queue(size: int) -> Iterator[Subject]:
    context = multiprocessing.get_context("fork")
    yield from through(context.Queue(), context.Queue(256), context, size)


@case.contender("Manager().Queue", note="a third process keeps the queue, for pools that take no other", largest=1_000)
def manager(size: int) -> Iterator[Subject]:
    context = multiprocessing.get_context("fork")
    with context.Manager() as opened:
        yield from through(opened.Queue(), opened.Queue(256), context, size)


@case.contender("Ray generator", package="ray", note="a streaming actor method; each item goes to the object store", largest=1_000)
def ray_generator(size: int) -> Iterator[Subject]:
    from benchmarks.peers import ray_started

    with ray_started() as ray:

        @ray.remote
        class Counter:
            def count(self, to: int) -> Any:
                yield from count(to)

        actor = Counter.remote()

        def values(to: int) -> Iterator[Any]:
            for reference in actor.count.options(num_returns="streaming").remote(to):
                yield ray.get(reference)

        yield values, size
