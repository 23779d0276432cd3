"""Binding and checking inputs: what a signature costs."""

import inspect
from collections.abc import Iterator
from typing import Any

from benchmarks._case import Calls, Case, Subject

case = Case(
    name="binding",
    title="inputs bound and checked",
    about="One call of a function of so many annotated parameters (text, whole number, real number in turn) with a "
    "mapping of all of them; what is wrong is found before the function runs.",
    drive=Calls(),
    axis="inputs",
    sizes=(0, 3, 20),
    quick=(0, 3),
)

TYPES = ("str", "int", "float")
VALUES = ("text", 7, 0.5)


def taker(size: int) -> tuple[Any, dict[str, Any]]:
    """A function of so many parameters, and inputs for it."""
    parameters = ", ".join(f"p{each}: {TYPES[each % 3]}" for each in range(size))
    names: dict[str, Any] = {"__name__": __name__}
    exec(f"def take({parameters}) -> str:\n    return 'taken'", names)
    return names["take"], {f"p{each}": VALUES[each % 3] for each in range(size)}


@case.contender("bare call", role="limit", note="nothing is checked")
def bare(size: int) -> Iterator[Subject]:
    take, inputs = taker(size)

    def call(inputs: dict[str, Any]) -> Any:
        return take(**inputs)

    yield call, inputs


@case.contender("hand-written", role="best", note="a loop over names and types; no record")
def hand_written(size: int) -> Iterator[Subject]:
    take, inputs = taker(size)
    types = {name: {"str": str, "int": int, "float": float}[TYPES[each % 3]] for each, name in enumerate(inputs)}

    def call(inputs: dict[str, Any]) -> Any:
        if len(inputs) != len(types):
            raise TypeError("missing or unknown inputs")
        for name, value in inputs.items():
            if not isinstance(value, types[name]):
                raise TypeError(name)
        return take(**inputs)

    yield call, inputs


@case.contender("predictor-engine", role="engine", package="predictor-engine", note="the whole call, with its record")
def engine(size: int) -> Iterator[Subject]:
    from engine import Engine

    take, inputs = taker(size)
    with Engine(discover=False) as muna:
        muna.predictors.register("@bench/take", take)
        yield muna.predictions.create, "@bench/take", inputs


@case.contender("predictor-engine unchecked", role="engine", package="predictor-engine", note="the same, check=False")
def unchecked(size: int) -> Iterator[Subject]:
    from engine import Engine, Predictor

    take, inputs = taker(size)
    with Engine([Predictor("@bench/take", take, check=False)], discover=False) as muna:
        yield muna.predictions.create, "@bench/take", inputs


@case.contender("inspect.Signature.bind", note="binds and fills defaults; checks names, no types")
def signature(size: int) -> Iterator[Subject]:
    take, inputs = taker(size)
    known = inspect.signature(take)

    def call(inputs: dict[str, Any]) -> Any:
        bound = known.bind(**inputs)
        bound.apply_defaults()
        return take(*bound.args, **bound.kwargs)

    yield call, inputs


@case.contender("pydantic validate_call", package="pydantic", note="converts too; checks inside containers")
def pydantic(size: int) -> Iterator[Subject]:
    from pydantic import validate_call

    take, inputs = taker(size)
    checked = validate_call(take)

    def call(inputs: dict[str, Any]) -> Any:
        return checked(**inputs)

    yield call, inputs


@case.contender("LangChain invoke", package="langchain-core", note="hands the mapping over; nothing is checked")
def langchain(size: int) -> Iterator[Subject]:
    from langchain_core.runnables import RunnableLambda

    take, inputs = taker(size)

    def call(inputs: dict[str, Any]) -> Any:
        return take(**inputs)

    yield RunnableLambda(call).invoke, inputs
