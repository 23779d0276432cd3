"""`create` on a generator: its very last partial."""

from collections import deque
from collections.abc import Iterator
from typing import Any

from benchmarks._case import Calls, Case, Subject
from benchmarks.peers import langchain_counter, llm_counter
from benchmarks.predictors import count

case = Case(
    name="create_generator",
    title="create, generator, per partial",
    about="A call that drains a generator of short strings and gives the last one.",
    drive=Calls(per_size=True),
    per="partial",
    axis="partials",
    sizes=(1, 10, 100, 1_000, 10_000),
    quick=(1, 100),
)


@case.contender("bare loop", role="limit", note="deque(generator, maxlen=1), which loops in C")
def bare(size: int) -> Iterator[Subject]:
    def call(to: int) -> Any:
        return deque(count(to), 1)[0]

    yield call, size


@case.contender("hand-written", role="best", note="a loop that keeps the last; no record, no context")
def hand_written(size: int) -> Iterator[Subject]:
    def call(to: int) -> Any:
        value = None
        for value in count(to):  # noqa: B007  # the last one is wanted
            pass
        return value

    yield call, size


@case.contender("predictor-engine", role="engine", package="predictor-engine")
def engine(size: int) -> Iterator[Subject]:
    from engine import Engine

    with Engine(discover=False) as muna:
        muna.predictors.register("@bench/count", count)
        yield muna.predictions.create, "@bench/count", {"to": size}


@case.contender("LangChain invoke", package="langchain-core", note="joins what it can add: it must keep all partials")
def langchain(size: int) -> Iterator[Subject]:
    runnable = langchain_counter()
    words = list(count(size))
    joined = "".join(words)

    def call(to: int) -> Any:
        found = runnable.invoke(to)
        return words[-1] if found == joined else found

    yield call, size


@case.contender("llm", package="llm", note="keeps and joins all partials")
def simon(size: int) -> Iterator[Subject]:
    model, words = llm_counter(), list(count(size))
    prompt, joined = str(size), "".join(words)

    def call() -> Any:
        found = model.prompt(prompt).text()
        return words[-1] if found == joined else found

    yield (call,)
