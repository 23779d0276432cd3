"""`create` on an eager function."""

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

from benchmarks._case import Calls, Case, Subject
from benchmarks.best import Registry
from benchmarks.predictors import shout

INPUTS = {"text": "hello from Muna"}

case = Case(
    name="create_eager",
    title="create, eager function",
    about="One call of a function that returns at once: look-up by name, inputs by name, one result.",
    drive=Calls(),
)


@case.contender("bare call", role="limit", note="no look-up, no record, no context")
def bare(_size: int) -> Iterator[Subject]:
    yield shout, "hello from Muna"


@case.contender("hand-written", role="best", note="look-up, clock and record; inputs are not checked, no context")
def hand_written(_size: int) -> Iterator[Subject]:
    yield Registry(shout=shout).create, "shout", INPUTS


@case.contender("predictor-engine", role="engine", package="predictor-engine")
def engine(_size: int) -> Iterator[Subject]:
    from engine import Engine

    with Engine(discover=False) as muna:
        muna.predictors.register("@bench/shout", shout)
        yield muna.predictions.create, "@bench/shout", INPUTS


@case.contender("pluggy hook", package="pluggy", note="only finds and calls: no record, no clock, inputs not checked")
def pluggy_hook(_size: int) -> Iterator[Subject]:
    import pluggy

    spec, impl = pluggy.HookspecMarker("bench"), pluggy.HookimplMarker("bench")

    class Specs:
        @spec(firstresult=True)
        def shout(self, text: str) -> str:  # type: ignore[empty-body]
            """Give the text in capitals."""

    manager = pluggy.PluginManager("bench")
    manager.add_hookspecs(Specs)
    manager.register(SimpleNamespace(shout=impl(shout)))

    def call(inputs: dict[str, Any]) -> Any:
        return manager.hook.shout(**inputs)

    yield call, INPUTS


@case.contender("LangChain invoke", package="langchain-core", note="no look-up by name; callbacks and tracing hooks")
def langchain(_size: int) -> Iterator[Subject]:
    from langchain_core.runnables import RunnableLambda

    yield RunnableLambda(shout).invoke, "hello from Muna"


@case.contender("llm", package="llm", note="models stream only, so it joins the one chunk; prompt and response records")
def simon(_size: int) -> Iterator[Subject]:
    import llm

    class Shouter(llm.Model):
        model_id = "shouter"

        def execute(self, prompt: Any, stream: bool, response: Any, conversation: Any) -> Iterator[str]:
            yield shout(prompt.prompt)

    model = Shouter()

    def call(text: str) -> Any:
        return model.prompt(text).text()

    yield call, "hello from Muna"
