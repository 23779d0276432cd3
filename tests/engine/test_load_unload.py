"""Loading and unloading: what is set up and torn down, when, and for whom."""

from __future__ import annotations

import asyncio
import threading

import pytest

from engine import Engine, EngineError, PluginError, PredictorNotFoundError
from tests._kit.waits import TIMEOUT, auntil, joined, started
from tests.engine.conftest import ANYWHERE, BOTH, Lifecycle, colour


@BOTH
@ANYWHERE
def test_load_sets_a_class_up_before_its_first_call_and_unload_tears_it_down(
    muna: Engine, lifecycle: Lifecycle, kind: str, runner: str | None
) -> None:
    muna.predictors.register("@tests/model", lifecycle.make(kind))
    assert list(muna.loaded) == []
    muna.load("@tests/model", runner)
    assert lifecycle.lines == ["constructor", "setup"]
    assert list(muna.loaded) == ["@tests/model"]
    muna.load("@tests/model", runner)
    assert muna.predictions.create("@tests/model", runner=runner).value == "two"
    muna.unload("@tests/model", runner)
    assert list(muna.loaded) == []
    assert lifecycle.lines == ["constructor", "setup", "predict", "finally", "teardown"]
    muna.unload("@tests/model", runner)
    assert lifecycle.lines.count("teardown") == 1
    assert muna.predictions.create("@tests/model", runner=runner).value == "two"
    assert lifecycle.lines.count("setup") == 2


@BOTH
@ANYWHERE
def test_aload_and_aunload_do_the_same_for_asyncio(
    muna: Engine, lifecycle: Lifecycle, kind: str, runner: str | None
) -> None:
    muna.predictors.register("@tests/model", lifecycle.make(kind))

    async def main() -> None:
        await muna.aload("@tests/model", runner)
        assert list(muna.loaded) == ["@tests/model"]
        await muna.aload("@tests/model", runner)
        assert (await muna.predictions.acreate("@tests/model", runner=runner)).value == "two"
        await muna.aunload("@tests/model", runner)
        await muna.aunload("@tests/model", runner)
        assert list(muna.loaded) == []

    asyncio.run(main())
    assert lifecycle.lines == ["constructor", "setup", "predict", "finally", "teardown"]


@BOTH
def test_aload_and_aunload_never_block_the_loop(muna: Engine, kind: str) -> None:  # noqa: C901 - two small classes
    gates = {name: (threading.Event(), threading.Event()) for name in ("setup", "teardown")}

    def wait(name: str) -> None:
        gates[name][0].set()
        assert gates[name][1].wait(TIMEOUT)

    async def await_(name: str) -> None:
        gates[name][0].set()
        await auntil(gates[name][1].is_set, "the gate")

    class Model:
        def setup(self) -> None:
            wait("setup")

        def predict(self) -> str:
            return "fine"

        def teardown(self) -> None:
            wait("teardown")

    class AsyncModel:
        async def setup(self) -> None:
            await await_("setup")

        async def predict(self) -> str:
            return "fine"

        async def teardown(self) -> None:
            await await_("teardown")

    model = Model if kind == "sync" else AsyncModel

    async def main() -> None:
        for name, call in (("setup", muna.aload), ("teardown", muna.aunload)):
            running = asyncio.create_task(call(model))
            await auntil(gates[name][0].is_set, name)
            assert not running.done()
            gates[name][1].set()
            async with asyncio.timeout(TIMEOUT):
                await running

    asyncio.run(main())


def test_load_imports_a_predictor_given_as_text_and_says_what_is_wrong_with_it(muna: Engine) -> None:
    muna.predictors.register("@tests/known", "string:capwords")
    muna.predictors.register("@tests/unknown", "no_such_module:predict")
    muna.load("@tests/known")
    assert muna.loaded == ("@tests/known",)
    with pytest.raises(PluginError, match="no_such_module"):
        muna.load("@tests/unknown")
    with pytest.raises(PredictorNotFoundError):
        muna.load("@tests/missing")
    with pytest.raises(ValueError, match="no runner"):
        muna.load("@tests/known", "nowhere")
    assert muna.loaded == ("@tests/known",)


@BOTH
def test_unload_waits_for_calls_that_run_and_a_call_that_comes_meanwhile_gets_a_new_instance(
    muna: Engine, kind: str
) -> None:
    reached, go = threading.Event(), threading.Event()
    steps: list[str] = []

    class Model:
        def setup(self) -> None:
            steps.append("setup")

        def predict(self) -> str:
            reached.set()
            assert go.wait(TIMEOUT)
            steps.append("predicted")
            return "fine"

        def teardown(self) -> None:
            steps.append("teardown")

    class AsyncModel:
        async def setup(self) -> None:
            steps.append("setup")

        async def predict(self) -> str:
            reached.set()
            await auntil(go.is_set, "the gate")
            steps.append("predicted")
            return "fine"

        async def teardown(self) -> None:
            steps.append("teardown")

    model = Model if kind == "sync" else AsyncModel
    caller = started(lambda: muna.predictions.create(model))
    assert reached.wait(TIMEOUT)
    unloader = started(lambda: muna.unload(model))
    go.set()
    joined(caller, unloader)
    assert steps == ["setup", "predicted", "teardown"]
    assert muna.predictions.create(model).value == "fine"
    assert steps[3:] == ["setup", "predicted"]


@BOTH
def test_unload_refuses_after_the_grace_naming_the_stream_that_is_open_and_leaves_the_class_loaded(
    lifecycle: Lifecycle, kind: str
) -> None:
    with Engine(discover=False, grace=0.02) as muna:
        muna.predictors.register("@tests/model", lifecycle.make(kind))
        with muna.predictions.stream("@tests/model") as stream:
            next(stream)
            with pytest.raises(EngineError, match=stream.id):
                muna.unload("@tests/model")
            assert muna.loaded == ("@tests/model",)
            assert [prediction.value for prediction in stream] == ["two"]
        muna.unload("@tests/model")
    assert lifecycle.lines == ["constructor", "setup", "predict", "finally", "teardown"]


def test_an_instance_belongs_to_the_caller_that_made_it_and_is_never_set_up_or_torn_down(
    muna: Engine, lifecycle: Lifecycle
) -> None:
    model = lifecycle.sync()()
    assert muna.predictions.create(model).value == "two"
    muna.load(model)
    muna.unload(model)
    muna.close()
    assert lifecycle.lines == ["constructor", "predict", "finally"]


def test_what_setup_and_teardown_raise_reaches_their_caller(muna: Engine) -> None:
    class Model:
        def predict(self) -> str:
            return "fine"

        def teardown(self) -> None:
            raise OSError("cannot be torn down")

    muna.predictions.create(Model)
    with pytest.raises(OSError, match="cannot be torn down"):
        muna.unload(Model)
    muna.unload(Model)  # it is gone all the same


def test_setup_runs_in_a_context_of_its_own(muna: Engine) -> None:
    seen: list[str] = []

    class Model:
        def setup(self) -> None:
            seen.append(colour.get())
            colour.set("setup's")

        def predict(self) -> str:
            return colour.get()

    token = colour.set("the caller's")
    try:
        assert muna.predictions.create(Model).value == "the caller's"
        assert seen == ["the caller's"]
        assert colour.get() == "the caller's"
    finally:
        colour.reset(token)


def test_a_registered_predictor_that_is_replaced_or_unregistered_is_torn_down_with_the_engine(
    lifecycle: Lifecycle,
) -> None:
    with Engine(discover=False) as muna:
        muna.predictors.register("@tests/model", lifecycle.sync())
        muna.predictions.create("@tests/model")
        muna.predictors.register("@tests/model", lambda: "another", replace=True)
        assert muna.predictions.create("@tests/model").value == "another"
        assert "teardown" not in lifecycle.lines
    assert lifecycle.lines == ["constructor", "setup", "predict", "finally", "teardown"]
