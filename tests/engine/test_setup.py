"""Classes are set up once, whichever thread, task or engine calls them first."""

from __future__ import annotations

import asyncio
import functools
import threading
from typing import Any

from engine import Engine, Predictor
from tests._kit.waits import TIMEOUT, auntil, joined, started
from tests.engine.conftest import ANYWHERE, BOTH, Lifecycle


@BOTH
@ANYWHERE
def test_a_plain_class_given_to_create_is_set_up_once_per_engine(
    lifecycle: Lifecycle, kind: str, runner: str | None
) -> None:
    model = lifecycle.make(kind)
    with Engine(discover=False) as muna, Engine(discover=False) as other:
        for _ in range(3):
            muna.predictions.create(model, runner=runner)
            list(muna.predictions.stream(model, runner=runner))
        assert lifecycle.lines.count("setup") == 1
        other.predictions.create(model, runner=runner)
        assert lifecycle.lines.count("setup") == 2
    assert lifecycle.lines.count("teardown") == 2


def test_partial_configures_a_class_and_each_configuration_is_its_own_predictor(muna: Engine) -> None:
    made: list[str] = []

    class Greeter:
        def __init__(self, greeting: str, *, mark: str = "") -> None:
            made.append(greeting)
            self.greeting, self.mark = greeting, mark

        def predict(self, name: str) -> str:
            return f"{self.greeting} {name}{self.mark}"

    hello, bye = functools.partial(Greeter, "hello", mark="!"), functools.partial(Greeter, "bye")
    for _ in range(2):
        assert muna.predictions.create(hello, {"name": "Ada"}).value == "hello Ada!"
        assert muna.predictions.create(bye, {"name": "Ada"}).value == "bye Ada"
    assert made == ["hello", "bye"]
    muna.predictors.register("@tests/hello", hello)
    assert muna.predictions.create("@tests/hello", {"name": "Bob"}).value == "hello Bob!"


@ANYWHERE
def test_an_async_class_lives_on_the_engines_loop_from_wherever_it_is_called(muna: Engine, runner: str | None) -> None:
    class Model:
        async def setup(self) -> None:
            self.lock = asyncio.Lock()
            self.loop = asyncio.get_running_loop()

        async def predict(self) -> bool:
            async with self.lock:
                return asyncio.get_running_loop() is self.loop

        async def teardown(self) -> None:
            assert asyncio.get_running_loop() is self.loop

    async def main() -> None:
        assert (await muna.predictions.acreate(Model, runner=runner)).value is True
        assert [value async for value in muna.predictions.astream(Model, runner=runner).values()] == [True]

    assert muna.predictions.create(Model, runner=runner).value is True
    asyncio.run(main())
    asyncio.run(main())
    muna.unload(Model)


def test_a_class_with_async_setup_and_a_sync_predict_is_set_up_on_the_loop_and_called_in_its_callers_thread(
    muna: Engine, lifecycle: Lifecycle
) -> None:
    class Mixed:
        async def setup(self) -> None:
            lifecycle.note("setup")

        def predict(self) -> str:
            lifecycle.note("predict")
            return "fine"

        async def teardown(self) -> None:
            lifecycle.note("teardown")

    assert muna.predictions.create(Mixed).value == "fine"
    muna.unload(Mixed)
    assert lifecycle.lines == ["setup", "predict", "teardown"]
    assert lifecycle.threads["predict"] == threading.get_ident()
    assert lifecycle.threads["setup"] == lifecycle.threads["teardown"] != threading.get_ident()

    async def main() -> None:
        assert (await muna.predictions.acreate(Mixed)).value == "fine"
        await muna.aunload(Mixed)

    asyncio.run(main())
    assert lifecycle.lines == ["setup", "predict", "teardown"] * 2


def test_static_and_class_methods_may_predict(muna: Engine) -> None:
    class Static:
        @staticmethod
        def predict(name: str) -> str:
            return f"static {name}"

    class ClassMethod:
        @classmethod
        def predict(cls, name: str) -> str:
            return f"{cls.__name__} {name}"

    assert muna.predictions.create(Static, {"name": "Ada"}).value == "static Ada"
    assert muna.predictions.create(ClassMethod, {"name": "Ada"}).value == "ClassMethod Ada"


# Set-up under concurrent first calls.


def slow(kind: str, fails: int = 0) -> Any:
    """A class whose setup waits at a gate, and fails a number of times first."""

    class Model:
        reached, go = threading.Event(), threading.Event()
        setups: list[int] = []  # noqa: RUF012 - the test's own
        failures = fails

        def setup(self) -> None:
            Model.setups.append(1)
            Model.reached.set()
            assert Model.go.wait(TIMEOUT)
            if len(Model.setups) <= Model.failures:
                raise OSError("no model file")

        def predict(self) -> str:
            return "fine"

    class AsyncModel:
        reached, go = threading.Event(), threading.Event()
        setups: list[int] = []  # noqa: RUF012
        failures = fails

        async def setup(self) -> None:
            AsyncModel.setups.append(1)
            AsyncModel.reached.set()
            await auntil(AsyncModel.go.is_set, "the gate")
            if len(AsyncModel.setups) <= AsyncModel.failures:
                raise OSError("no model file")

        async def predict(self) -> str:
            return "fine"

    return Model if kind == "sync" else AsyncModel


@BOTH
@ANYWHERE
def test_first_calls_of_many_threads_share_one_setup(muna: Engine, kind: str, runner: str | None) -> None:
    model = slow(kind)
    muna.predictors.register(Predictor("@tests/slow", model, concurrency=100))
    got: list[Any] = []
    callers = [
        started(lambda: got.append(muna.predictions.create("@tests/slow", runner=runner).value)) for _ in range(10)
    ]
    assert model.reached.wait(TIMEOUT)
    model.go.set()
    joined(*callers)
    assert got == ["fine"] * 10
    assert model.setups == [1]


@BOTH
@ANYWHERE
def test_first_calls_of_many_tasks_share_one_setup(muna: Engine, kind: str, runner: str | None) -> None:
    model = slow(kind)
    muna.predictors.register(Predictor("@tests/slow", model, concurrency=100))

    async def main() -> None:
        callers = [asyncio.create_task(muna.predictions.acreate("@tests/slow", runner=runner)) for _ in range(10)]
        callers.append(asyncio.create_task(load()))  # type: ignore[arg-type]
        await auntil(model.reached.is_set, "the setup")
        model.go.set()
        async with asyncio.timeout(TIMEOUT):
            await asyncio.gather(*callers)

    async def load() -> None:
        await muna.aload("@tests/slow")

    asyncio.run(main())
    assert model.setups == [1]


@BOTH
def test_threads_that_waited_for_a_setup_that_failed_are_told_and_the_next_call_tries_again(
    muna: Engine, kind: str
) -> None:
    model = slow(kind, fails=1)
    muna.predictors.register(Predictor("@tests/slow", model, concurrency=100))
    ends: list[str] = []

    def call() -> None:
        try:
            ends.append(muna.predictions.create("@tests/slow").value)
        except OSError as error:
            ends.append(str(error))

    callers = [started(call) for _ in range(5)]
    assert model.reached.wait(TIMEOUT)
    model.go.set()
    joined(*callers)
    assert len(ends) == 5
    assert "no model file" in ends
    assert set(ends) <= {"no model file", "fine"}  # who came after the failure set it up again
    assert muna.predictions.create("@tests/slow").value == "fine"
    assert model.setups == [1, 1]
