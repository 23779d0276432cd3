"""A stream that is left after its first partial."""

from collections.abc import Iterator
from contextlib import closing
from contextvars import copy_context
from time import perf_counter
from typing import Any

from benchmarks._case import Calls, Case, Subject
from benchmarks.best import Record, identity
from benchmarks.peers import langchain_counter
from benchmarks.predictors import cleaned_up, tidy_count


class Leavings(Calls):
    """Calls, each of which must have cleaned up when it returns; the subject also gives what counts that."""

    def time(self, subject: Subject, size: int, times: int) -> float:
        return super().time(subject[:1], size, times)

    def prove(self, subject: Subject, size: int) -> list[Any]:
        call, counted = subject
        before = counted()
        return [*super().prove((call,), size), f"{counted() - before} cleaned up"]


case = Case(
    name="abandoned",
    title="a stream left after its first partial",
    about="Open a stream, read one partial, close it: the generator's clean-up has run when that returns.",
    drive=Leavings(),
    per="stream",
)


@case.contender("bare generator", role="limit")
def bare(_size: int) -> Iterator[Subject]:
    def call() -> Any:
        with closing(tidy_count(100)) as partials:  # type: ignore[type-var]  # it is a generator
            return next(partials)

    yield call, cleaned_up


@case.contender("hand-written", role="best", note="in the call's context, with a clock and a record; no state")
def hand_written(_size: int) -> Iterator[Subject]:
    def call() -> Any:
        started = perf_counter()
        with closing(tidy_count(100)) as partials:  # type: ignore[type-var]  # it is a generator
            value = copy_context().run(next, partials)
            return Record(identity(), "count", value, 0, (perf_counter() - started) * 1000, started)

    yield call, cleaned_up


@case.contender("predictor-engine", role="engine", package="predictor-engine")
def engine(_size: int) -> Iterator[Subject]:
    from engine import Engine

    with Engine(discover=False) as muna:
        muna.predictors.register("@bench/count", tidy_count)
        inputs = {"to": 100}

        def call() -> Any:
            with muna.predictions.stream("@bench/count", inputs) as stream:
                return next(stream.values())

        yield call, cleaned_up


@case.contender("predictor-engine, a thread", role="engine", package="predictor-engine", note='runner="thread"')
def engine_thread(_size: int) -> Iterator[Subject]:
    from engine import Engine

    with Engine(discover=False) as muna:
        muna.predictors.register("@bench/count", tidy_count)
        inputs = {"to": 100}

        def call() -> Any:
            with muna.predictions.stream("@bench/count", inputs, runner="thread") as stream:
                return next(stream.values())

        yield call, cleaned_up


@case.contender("predictor-engine, a worker", role="engine", package="predictor-engine", note='runner="process"')
def engine_process(_size: int) -> Iterator[Subject]:
    from engine import Engine

    with Engine(discover=False, workers=1) as muna:
        muna.predictors.register("@bench/count", tidy_count)
        inputs = {"to": 100}

        def call() -> Any:
            with muna.predictions.stream("@bench/count", inputs, runner="process") as stream:
                return next(stream.values())

        def counted() -> int:
            found: int = muna.predictions.create(cleaned_up, runner="process").value
            return found

        yield call, counted


@case.contender("LangChain stream", package="langchain-core", note="a bare chunk; no state, no record")
def langchain(_size: int) -> Iterator[Subject]:
    runnable = langchain_counter(tidy_count)

    def call() -> Any:
        with closing(runnable.stream(100)) as partials:
            return next(partials)

    yield call, cleaned_up
