"""A call by tag among many registered predictors."""

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

from benchmarks._case import Calls, Case, Subject
from benchmarks.best import Registry
from benchmarks.predictors import shout

INPUTS = {"text": "hello"}

case = Case(
    name="lookup",
    title="create by tag among many predictors",
    about="The same call as in create_eager, where so many predictors are registered: it must not grow.",
    drive=Calls(),
    axis="predictors",
    sizes=(1, 10, 100, 1_000, 10_000),
    quick=(1, 100),
)


@case.contender("dict look-up and call", role="limit")
def bare(size: int) -> Iterator[Subject]:
    functions = {f"@bench/p{each}": shout for each in range(size)}

    def call(tag: str, text: str) -> Any:
        return functions[tag](text)

    yield call, f"@bench/p{size // 2}", "hello"


@case.contender("hand-written", role="best", note="look-up, clock and record; inputs are not checked, no context")
def hand_written(size: int) -> Iterator[Subject]:
    registry = Registry(**{f"@bench/p{each}": shout for each in range(size)})
    yield registry.create, f"@bench/p{size // 2}", INPUTS


@case.contender("predictor-engine", role="engine", package="predictor-engine")
def engine(size: int) -> Iterator[Subject]:
    from engine import Engine, Predictor

    predictors = [Predictor(f"@bench/p{each}", shout) for each in range(size)]
    with Engine(predictors, discover=False) as muna:
        yield muna.predictions.create, f"@bench/p{size // 2}", INPUTS


@case.contender("pluggy, one manager each", package="pluggy", note="a hook named by tag; no record, inputs not checked")
def pluggy_hooks(size: int) -> Iterator[Subject]:
    import pluggy

    spec, impl = pluggy.HookspecMarker("bench"), pluggy.HookimplMarker("bench")
    specs: Any = type("Specs", (), {})
    plugin, implementation = SimpleNamespace(), impl(shout)
    for each in range(size):
        name = f"p{each}"

        def specification(self: Any, text: str) -> Any:
            """Give the text in capitals."""

        setattr(specs, name, spec(firstresult=True)(specification))
        setattr(plugin, name, implementation)
    manager = pluggy.PluginManager("bench")
    manager.add_hookspecs(specs)
    manager.register(plugin)

    def call(tag: str, inputs: dict[str, Any]) -> Any:
        return getattr(manager.hook, tag)(**inputs)

    yield call, f"p{size // 2}", INPUTS
