"""`stream` on a generator, read by sync code in the same thread."""

from collections.abc import Iterator
from contextvars import copy_context
from time import perf_counter
from typing import Any

from benchmarks._case import Case, Partials, Subject
from benchmarks.best import Record, identity
from benchmarks.peers import langchain_counter, llm_counter
from benchmarks.predictors import count

case = Case(
    name="stream",
    title="stream, generator, per partial",
    about="Sync code reads every partial of a generator in its own thread.",
    drive=Partials(),
    per="partial",
    axis="partials",
    sizes=(1, 10, 100, 1_000, 10_000),
    quick=(1, 100),
)


@case.contender("bare loop", role="limit")
def bare(size: int) -> Iterator[Subject]:
    yield count, size


@case.contender("hand-written values", role="best", note="each step in the call's context; no state, no record")
def hand_written(size: int) -> Iterator[Subject]:
    def values(to: int) -> Iterator[Any]:
        run, step = copy_context().run, count(to).__next__
        try:
            while True:
                yield run(step)
        except StopIteration:
            return

    yield values, size


@case.contender("hand-written records", role="best", note="context, clock pair and record; no state, no clean-up")
def hand_written_records(size: int) -> Iterator[Subject]:
    def records(to: int) -> Iterator[Any]:
        run, step, clock = copy_context().run, count(to).__next__, perf_counter
        number, index, spent, created = identity(), 0, 0.0, clock()
        try:
            while True:
                started = clock()
                value = run(step)
                spent += clock() - started
                yield Record(number, "count", value, index, spent * 1000, created)
                index += 1
        except StopIteration:
            return

    yield records, size


@case.contender("predictor-engine values", role="engine", package="predictor-engine", note="stream(...).values()")
def engine_values(size: int) -> Iterator[Subject]:
    from engine import Engine

    with Engine(discover=False) as muna:
        muna.predictors.register("@bench/count", count)
        inputs = {"to": size}

        def values() -> Iterator[Any]:
            return muna.predictions.stream("@bench/count", inputs).values()

        yield (values,)


@case.contender("predictor-engine", role="engine", package="predictor-engine", note="a Prediction for each partial")
def engine(size: int) -> Iterator[Subject]:
    from engine import Engine

    with Engine(discover=False) as muna:
        muna.predictors.register("@bench/count", count)
        yield muna.predictions.stream, "@bench/count", {"to": size}


@case.contender("LangChain stream", package="langchain-core", note="bare chunks, which it also joins for tracing")
def langchain(size: int) -> Iterator[Subject]:
    yield langchain_counter().stream, size


@case.contender("llm", package="llm", note="bare chunks, which it also keeps")
def simon(size: int) -> Iterator[Subject]:
    yield llm_counter().prompt, str(size)
