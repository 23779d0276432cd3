"""Partials of a generator that runs in a worker process."""

import multiprocessing
import os
import struct
from collections.abc import Iterator
from time import perf_counter
from typing import Any

from benchmarks._case import Case, Partials, Subject
from benchmarks.best import forked, forked_on_pipes
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
    def answer(asked: int, answers: int) -> None:
        while to := os.read(asked, 8):
            lines = [f"{value}\n".encode() for value in count(struct.unpack("q", to)[0])]
            for start in range(0, len(lines), 256):
                data = b"".join(lines[start : start + 256])
                while data:
                    data = data[os.write(answers, data) :]

    with forked_on_pipes(answer) as (coming, going):

        def values(to: int) -> Iterator[Any]:
            os.write(going, struct.pack("q", to))
            left, rest = to, b""
            while left:
                *lines, rest = (rest + os.read(coming, 65_536)).split(b"\n")
                left -= len(lines)
                for line in lines:
                    yield line.decode()

        yield values, size


def serve_batches(connection: Any) -> None:
    """Send lists of partials, as often as asked: 256, or what came within half a millisecond."""
    while (to := connection.recv()) is not None:
        batch, sent = [], 0.0
        for value in count(to):
            batch.append(value)
            if len(batch) == 256 or perf_counter() - sent > 0.0005:
                connection.send(batch)
                batch, sent = [], perf_counter()
        connection.send(batch)
        connection.send(None)


@case.contender(
    "hand-written", role="best", note="lists over a Connection; one that pauses keeps what it has, no errors"
)
def hand_written(size: int) -> Iterator[Subject]:
    with forked(serve_batches) as ours:

        def values(to: int) -> Iterator[Any]:
            ours.send(to)
            while (batch := ours.recv()) is not None:
                yield from batch

        yield values, size


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


def serve(connection: Any) -> None:
    """Send partial by partial, as often as asked."""
    while (to := connection.recv()) is not None:
        for value in count(to):
            connection.send((value,))
        connection.send(None)


@case.contender("Connection", note="multiprocessing.Pipe with pickle, a message a partial; bounded by the pipe alone")
def connection(size: int) -> Iterator[Subject]:
    with forked(serve) as ours:

        def values(to: int) -> Iterator[Any]:
            ours.send(to)
            while (item := ours.recv()) is not None:
                yield item[0]

        yield values, size


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
    orders, answers = context.Queue(), context.Queue(256)
    yield from through(orders, answers, context, size)
    for each in (orders, answers):
        each.close()
        each.join_thread()


@case.contender("Manager().Queue", note="a third process keeps the queue, for pools that take no other", largest=1_000)
def manager(size: int) -> Iterator[Subject]:
    context = multiprocessing.get_context("fork")
    with context.Manager() as opened:
        yield from through(opened.Queue(), opened.Queue(256), context, size)


@case.contender(
    "Ray generator",
    package="ray",
    note="a streaming actor method; each item goes to the object store",
    largest=1_000,
    is_apart=True,
)
def ray_generator(size: int) -> Iterator[Subject]:
    from benchmarks.peers import ray_started

    with ray_started() as ray:

        class Counter:
            def count(self, to: int) -> Any:
                yield from count(to)

        actor = ray.remote(Counter).remote()

        def values(to: int) -> Iterator[Any]:
            for reference in actor.count.options(num_returns="streaming").remote(to):
                yield ray.get(reference)

        yield values, size
