"""The engine itself: loading and unloading, slots, set-up and teardown, closing, and what it owns."""

from __future__ import annotations

import asyncio
import functools
import gc
import threading
import time
import warnings
from collections.abc import AsyncIterator, Callable, Iterator
from contextvars import ContextVar
from typing import Any

import pytest

from engine import (
    Engine,
    EngineClosedError,
    EngineError,
    InvalidTagError,
    NestingError,
    PluginError,
    Predictor,
    PredictorNotFoundError,
    hookimpl,
    predictor,
)

PATIENCE = 10.0  # seconds; only a test that fails waits as long

colour: ContextVar[str] = ContextVar("colour", default="none")


def until(condition: Callable[[], bool], what: str) -> None:
    """Wait for something another thread brings about."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not come about within {PATIENCE} s"
        time.sleep(0.001)


async def auntil(condition: Callable[[], bool], what: str) -> None:
    """The same without blocking this loop."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not come about within {PATIENCE} s"
        await asyncio.sleep(0.001)


def started(function: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=function, daemon=True)
    thread.start()
    return thread


def joined(*threads: threading.Thread) -> None:
    for thread in threads:
        thread.join(PATIENCE)
        assert not thread.is_alive(), "a thread hangs"


class Diary:
    """Makes class predictors of both colours that write down what happens to them."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.threads: dict[str, int] = {}

    def note(self, line: str) -> None:
        self.lines.append(line)
        self.threads[line] = threading.get_ident()

    def sync(self) -> type:
        note = self.note

        class Model:
            def __init__(self) -> None:
                note("constructor")

            def setup(self) -> None:
                note("setup")

            def predict(self) -> Iterator[str]:
                try:
                    note("predict")
                    yield "one"
                    yield "two"
                finally:
                    note("finally")

            def teardown(self) -> None:
                note("teardown")

        return Model

    def coloured(self) -> type:
        note = self.note

        class Model:
            def __init__(self) -> None:
                note("constructor")

            async def setup(self) -> None:
                await asyncio.sleep(0)
                note("setup")

            async def predict(self) -> AsyncIterator[str]:
                try:
                    note("predict")
                    yield "one"
                    await asyncio.sleep(0)
                    yield "two"
                finally:
                    note("finally")

            async def teardown(self) -> None:
                await asyncio.sleep(0)
                note("teardown")

        return Model

    def make(self, kind: str) -> type:
        return self.sync() if kind == "sync" else self.coloured()


BOTH = pytest.mark.parametrize("kind", ["sync", "async"])
ANYWHERE = pytest.mark.parametrize("runner", [None, "thread"])


@pytest.fixture
def diary() -> Diary:
    return Diary()


# What it is made with, and given.


def test_a_runner_that_nobody_can_offer_is_refused_when_the_engine_is_made() -> None:
    with pytest.raises(ValueError, match=r"there is no runner 'proces'; did you mean 'process'\?"):
        Engine(discover=False, runner="proces")


def test_a_runner_that_a_plugin_may_offer_is_looked_up_at_the_first_call() -> None:
    asked: list[str] = []

    class Plugin:
        @hookimpl
        def engine_runners(self) -> list[object]:
            asked.append("runners")
            return []

    muna = Engine(discover=False, plugins=iter([Plugin()]), runner="thraed")
    assert asked == []
    with pytest.raises(ValueError, match=r"did you mean 'thread'\? The runner is one of 'inline', 'thread'"):
        muna.predictions.create(print)
    assert asked == ["runners"]


def test_what_cannot_be_a_predictor_is_refused_with_what_can(muna: Engine) -> None:
    with pytest.raises(InvalidTagError, match=r"42 is no predictor: give a tag such as '@owner/name', a function"):
        muna.predictions.create(42)


# Loading and unloading.


@BOTH
@ANYWHERE
def test_load_sets_a_class_up_before_its_first_call_and_unload_tears_it_down(
    muna: Engine, diary: Diary, kind: str, runner: str | None
) -> None:
    muna.predictors.register("@tests/model", diary.make(kind))
    assert list(muna.loaded) == []
    muna.load("@tests/model", runner)
    assert diary.lines == ["constructor", "setup"]
    assert list(muna.loaded) == ["@tests/model"]
    muna.load("@tests/model", runner)
    assert muna.predictions.create("@tests/model", runner=runner).value == "two"
    muna.unload("@tests/model", runner)
    assert list(muna.loaded) == []
    assert diary.lines == ["constructor", "setup", "predict", "finally", "teardown"]
    muna.unload("@tests/model", runner)
    assert diary.lines.count("teardown") == 1
    assert muna.predictions.create("@tests/model", runner=runner).value == "two"
    assert diary.lines.count("setup") == 2


@BOTH
@ANYWHERE
def test_aload_and_aunload_do_the_same_for_asyncio(muna: Engine, diary: Diary, kind: str, runner: str | None) -> None:
    muna.predictors.register("@tests/model", diary.make(kind))

    async def main() -> None:
        await muna.aload("@tests/model", runner)
        assert list(muna.loaded) == ["@tests/model"]
        await muna.aload("@tests/model", runner)
        assert (await muna.predictions.acreate("@tests/model", runner=runner)).value == "two"
        await muna.aunload("@tests/model", runner)
        await muna.aunload("@tests/model", runner)
        assert list(muna.loaded) == []

    asyncio.run(main())
    assert diary.lines == ["constructor", "setup", "predict", "finally", "teardown"]


@BOTH
def test_aload_and_aunload_never_block_the_loop(muna: Engine, kind: str) -> None:  # noqa: C901 - two small classes
    gates = {name: (threading.Event(), threading.Event()) for name in ("setup", "teardown")}

    def wait(name: str) -> None:
        gates[name][0].set()
        assert gates[name][1].wait(PATIENCE)

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
            async with asyncio.timeout(PATIENCE):
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
            assert go.wait(PATIENCE)
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
    assert reached.wait(PATIENCE)
    unloader = started(lambda: muna.unload(model))
    go.set()
    joined(caller, unloader)
    assert steps == ["setup", "predicted", "teardown"]
    assert muna.predictions.create(model).value == "fine"
    assert steps[3:] == ["setup", "predicted"]


@BOTH
def test_unload_refuses_after_the_grace_naming_the_stream_that_is_open_and_leaves_the_class_loaded(
    diary: Diary, kind: str
) -> None:
    with Engine(discover=False, grace=0.02) as muna:
        muna.predictors.register("@tests/model", diary.make(kind))
        with muna.predictions.stream("@tests/model") as stream:
            next(stream)
            with pytest.raises(EngineError, match=stream.id):
                muna.unload("@tests/model")
            assert muna.loaded == ("@tests/model",)
            assert [prediction.value for prediction in stream] == ["two"]
        muna.unload("@tests/model")
    assert diary.lines == ["constructor", "setup", "predict", "finally", "teardown"]


def test_an_instance_belongs_to_whoever_made_it_and_is_never_set_up_or_torn_down(muna: Engine, diary: Diary) -> None:
    model = diary.sync()()
    assert muna.predictions.create(model).value == "two"
    muna.load(model)
    muna.unload(model)
    muna.close()
    assert diary.lines == ["constructor", "predict", "finally"]


def test_what_setup_and_teardown_raise_reaches_whoever_asked(muna: Engine) -> None:
    class Model:
        def predict(self) -> str:
            return "fine"

        def teardown(self) -> None:
            raise OSError("cannot let go")

    muna.predictions.create(Model)
    with pytest.raises(OSError, match="cannot let go"):
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


def test_a_registered_predictor_that_is_replaced_or_unregistered_is_torn_down_with_the_engine(diary: Diary) -> None:
    with Engine(discover=False) as muna:
        muna.predictors.register("@tests/model", diary.sync())
        muna.predictions.create("@tests/model")
        muna.predictors.register("@tests/model", lambda: "another", replace=True)
        assert muna.predictions.create("@tests/model").value == "another"
        assert "teardown" not in diary.lines
    assert diary.lines == ["constructor", "setup", "predict", "finally", "teardown"]


# Classes.


@BOTH
@ANYWHERE
def test_a_plain_class_given_to_create_is_set_up_once_per_engine(diary: Diary, kind: str, runner: str | None) -> None:
    model = diary.make(kind)
    with Engine(discover=False) as muna, Engine(discover=False) as other:
        for _ in range(3):
            muna.predictions.create(model, runner=runner)
            list(muna.predictions.stream(model, runner=runner))
        assert diary.lines.count("setup") == 1
        other.predictions.create(model, runner=runner)
        assert diary.lines.count("setup") == 2
    assert diary.lines.count("teardown") == 2


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
def test_an_async_class_lives_on_the_engines_loop_whoever_calls(muna: Engine, runner: str | None) -> None:
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
    muna: Engine, diary: Diary
) -> None:
    class Mixed:
        async def setup(self) -> None:
            diary.note("setup")

        def predict(self) -> str:
            diary.note("predict")
            return "fine"

        async def teardown(self) -> None:
            diary.note("teardown")

    assert muna.predictions.create(Mixed).value == "fine"
    muna.unload(Mixed)
    assert diary.lines == ["setup", "predict", "teardown"]
    assert diary.threads["predict"] == threading.get_ident()
    assert diary.threads["setup"] == diary.threads["teardown"] != threading.get_ident()

    async def main() -> None:
        assert (await muna.predictions.acreate(Mixed)).value == "fine"
        await muna.aunload(Mixed)

    asyncio.run(main())
    assert diary.lines == ["setup", "predict", "teardown"] * 2


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
            assert Model.go.wait(PATIENCE)
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
    assert model.reached.wait(PATIENCE)
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
        async with asyncio.timeout(PATIENCE):
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
    assert model.reached.wait(PATIENCE)
    model.go.set()
    joined(*callers)
    assert len(ends) == 5
    assert "no model file" in ends
    assert set(ends) <= {"no model file", "fine"}  # who came after the failure set it up again
    assert muna.predictions.create("@tests/slow").value == "fine"
    assert model.setups == [1, 1]


# Slots.


def gated(kind: str) -> tuple[Any, threading.Event, list[str]]:
    """A predictor that stays inside its `finally` until the gate opens."""
    go = threading.Event()
    steps: list[str] = []

    def sync() -> Iterator[str]:
        try:
            steps.append("begun")
            yield "one"
        finally:
            assert go.wait(PATIENCE)
            steps.append("finalised")

    async def coloured() -> AsyncIterator[str]:
        try:
            steps.append("begun")
            yield "one"
        finally:
            await auntil(go.is_set, "the gate")
            steps.append("finalised")

    return (sync if kind == "sync" else coloured), go, steps


@BOTH
def test_a_slot_is_held_until_the_body_is_finalised(kind: str) -> None:
    body, go, steps = gated(kind)
    with Engine(discover=False, grace=PATIENCE) as muna:
        muna.predictors.register(Predictor("@tests/one", body, concurrency=1))
        first = muna.predictions.stream("@tests/one", runner="thread", prefetch=0)
        next(first)
        closer = started(first.close)
        second = started(lambda: muna.predictions.create("@tests/one", runner="thread"))
        second.join(0.05)
        assert second.is_alive()
        assert steps == ["begun"]
        go.set()
        joined(closer, second)
    assert steps == ["begun", "finalised", "begun", "finalised"]


@pytest.mark.parametrize("limit", [1, 3])
@BOTH
@ANYWHERE
def test_no_more_calls_run_at_a_time_than_the_predictor_allows(
    muna: Engine, limit: int, kind: str, runner: str | None
) -> None:
    lock, inside, most = threading.Lock(), [0], [0]

    def enter(step: int) -> None:
        with lock:
            inside[0] += step
            most[0] = max(most[0], inside[0])

    def sync() -> str:
        enter(1)
        time.sleep(0)
        enter(-1)
        return "fine"

    async def coloured() -> str:
        enter(1)
        await asyncio.sleep(0)
        enter(-1)
        return "fine"

    muna.predictors.register(Predictor("@tests/few", sync if kind == "sync" else coloured, concurrency=limit))
    got: list[Any] = []

    def call() -> None:
        for _ in range(20):
            got.append(muna.predictions.create("@tests/few", runner=runner).value)  # noqa: PERF401 - shared

    joined(*[started(call) for _ in range(8)])

    async def main() -> None:
        calls = (muna.predictions.acreate("@tests/few", runner=runner) for _ in range(50))
        async with asyncio.timeout(PATIENCE):
            got.extend(prediction.value for prediction in await asyncio.gather(*calls))

    asyncio.run(main())
    assert got == ["fine"] * (160 + 50)
    assert 1 <= most[0] <= limit


def test_classes_and_objects_take_one_call_at_a_time_and_functions_any_number(muna: Engine) -> None:
    class Model:
        def predict(self) -> Iterator[int]:
            yield 1
            yield 2

    def function() -> Iterator[int]:
        yield 1
        yield 2

    for single in (Model, Model()):
        with muna.predictions.stream(single) as stream:
            next(stream)
            with pytest.raises(NestingError):
                muna.predictions.create(single)
    streams = [muna.predictions.stream(function) for _ in range(20)]
    assert [next(stream).value for stream in streams] == [1] * 20


@BOTH
@ANYWHERE
def test_threads_that_wait_for_a_slot_are_served_in_the_order_they_came(
    muna: Engine, kind: str, runner: str | None
) -> None:
    reached, go = threading.Event(), threading.Event()
    served: list[int] = []

    def sync(number: int) -> int:
        served.append(number)
        if number == 0:
            reached.set()
            assert go.wait(PATIENCE)
        return number

    async def coloured(number: int) -> int:
        served.append(number)
        if number == 0:
            reached.set()
            await auntil(go.is_set, "the gate")
        return number

    muna.predictors.register(Predictor("@tests/one", sync if kind == "sync" else coloured, concurrency=1))

    def call(number: int) -> threading.Thread:
        return started(lambda: muna.predictions.create("@tests/one", {"number": number}, runner=runner))

    slots = muna.predictions.resolve("@tests/one").slots
    assert slots is not None
    callers = [call(0)]
    assert reached.wait(PATIENCE)
    for number in range(1, 6):
        callers.append(call(number))
        until(lambda number=number: len(slots._queue) == number, "the wait")  # type: ignore[misc]
    go.set()
    joined(*callers)
    assert served == [0, 1, 2, 3, 4, 5]


@ANYWHERE
def test_tasks_that_wait_for_a_slot_are_served_in_the_order_they_came(muna: Engine, runner: str | None) -> None:
    served: list[int] = []

    async def one(number: int) -> int:
        served.append(number)
        await asyncio.sleep(0)
        return number

    muna.predictors.register(Predictor("@tests/one", one, concurrency=1))

    async def main() -> None:
        calls = (muna.predictions.acreate("@tests/one", {"number": number}, runner=runner) for number in range(20))
        async with asyncio.timeout(PATIENCE):
            await asyncio.gather(*calls)

    asyncio.run(main())
    assert served == list(range(20))


@ANYWHERE
def test_who_comes_when_a_slot_is_given_back_waits_behind_those_who_wait_already(
    muna: Engine, runner: str | None
) -> None:
    served: list[int] = []

    def one(number: int) -> Iterator[int]:
        served.append(number)
        yield number

    muna.predictors.register(Predictor("@tests/one", one, concurrency=1))
    slots = muna.predictions.resolve("@tests/one").slots
    assert slots is not None
    for _ in range(20):
        served.clear()
        holder = muna.predictions.stream("@tests/one", {"number": 0}, runner=runner, prefetch=0)
        next(holder)
        waiting = started(lambda: muna.predictions.create("@tests/one", {"number": 1}, runner=runner))
        until(lambda: len(slots._queue) == 1, "the wait")
        holder.close()
        muna.predictions.create("@tests/one", {"number": 2}, runner=runner)
        joined(waiting)
        assert served == [0, 1, 2]


def test_threads_and_tasks_share_the_same_slots(muna: Engine) -> None:
    reached, go = threading.Event(), threading.Event()

    def holds(wait: bool = False) -> str:
        if wait:
            reached.set()
            assert go.wait(PATIENCE)
        return "fine"

    muna.predictors.register(Predictor("@tests/holds", holds, concurrency=1))
    holder = started(lambda: muna.predictions.create("@tests/holds", {"wait": True}))
    assert reached.wait(PATIENCE)

    async def main() -> None:
        waiting = asyncio.create_task(muna.predictions.acreate("@tests/holds"))
        for _ in range(20):
            await asyncio.sleep(0)
        assert not waiting.done()
        go.set()
        async with asyncio.timeout(PATIENCE):
            assert (await waiting).value == "fine"

    asyncio.run(main())
    joined(holder)


def test_a_wait_for_a_slot_ends_when_the_stream_is_cancelled_or_closed(muna: Engine) -> None:
    reached, go = threading.Event(), threading.Event()

    def holds(wait: bool = False) -> str:
        if wait:
            reached.set()
            assert go.wait(PATIENCE)
        return "fine"

    muna.predictors.register(Predictor("@tests/holds", holds, concurrency=1))
    holder = started(lambda: muna.predictions.create("@tests/holds", {"wait": True}))
    assert reached.wait(PATIENCE)
    slots = muna.predictions.resolve("@tests/holds").slots
    assert slots is not None
    for runner in (None, "thread"):
        for stop in ("cancel", "close"):
            stream = muna.predictions.stream("@tests/holds", runner=runner)
            ends: list[str] = []

            def read(stream: Any = stream, ends: list[str] = ends) -> None:
                try:
                    ends.extend(str(each) for each in stream)
                except EngineError as error:
                    ends.append(type(error).__name__)

            reader = started(read)
            until(lambda: len(slots._queue) == 1, "the wait")
            getattr(stream, stop)()
            joined(reader)
            assert ends == (["PredictionCancelledError"] if stop == "cancel" else [])
    go.set()
    joined(holder)
    assert muna.predictions.create("@tests/holds").value == "fine"


# Closing.


@BOTH
@ANYWHERE
def test_at_close_live_streams_end_before_their_class_is_torn_down(diary: Diary, kind: str, runner: str | None) -> None:
    muna = Engine(discover=False)
    stream = muna.predictions.stream(diary.make(kind), runner=runner, prefetch=0)
    next(stream)
    muna.close()
    assert diary.lines == ["constructor", "setup", "predict", "finally", "teardown"]
    with pytest.raises(EngineClosedError):
        next(stream)


@pytest.mark.parametrize("runner", [None, "thread", "process"])
def test_a_stream_that_was_not_pulled_before_its_engine_was_closed_never_starts(runner: str | None) -> None:
    reached: list[str] = []

    def predict() -> Iterator[str]:
        reached.append("here")
        yield "here"

    async def coloured() -> AsyncIterator[str]:
        reached.append("here")
        yield "here"

    async def main(predictor: Any) -> None:
        muna = Engine(discover=False)
        stream = muna.predictions.astream(predictor, runner=runner)
        await muna.aclose()
        with pytest.raises(EngineClosedError, match="make a new Engine"):
            await anext(stream)
        with pytest.raises(StopAsyncIteration):
            await anext(stream)
        assert (stream.outcome.state, stream.outcome.count) == ("closed", 0)

    for each in (predict, coloured):
        muna = Engine(discover=False)
        stream = muna.predictions.stream(each, runner=runner)
        muna.close()
        with pytest.raises(EngineClosedError, match="make a new Engine"):
            next(stream)
        assert list(stream) == []
        assert (stream.outcome.state, stream.outcome.count) == ("closed", 0)
        asyncio.run(main(each))
    assert reached == []


@BOTH
def test_aclose_ends_live_streams_before_their_class_is_torn_down(diary: Diary, kind: str) -> None:
    async def main() -> None:
        async with Engine(discover=False) as muna:
            stream = muna.predictions.astream(diary.make(kind), prefetch=0)
            await anext(stream)
        assert diary.lines == ["constructor", "setup", "predict", "finally", "teardown"]

    asyncio.run(main())


def test_every_teardown_is_tried_and_what_they_raise_comes_out_of_close() -> None:
    def failing(text: str) -> type:
        class Model:
            def predict(self) -> str:
                return "fine"

            def teardown(self) -> None:
                raise OSError(text)

        return Model

    one = Engine(discover=False)
    one.predictions.create(failing("only"))
    with pytest.raises(OSError, match="only"):
        one.close()
    two = Engine(discover=False)
    for text in ("first", "second"):
        two.predictions.create(failing(text))
    with pytest.raises(BaseExceptionGroup) as caught:
        two.close()
    assert sorted(map(str, caught.value.exceptions)) == ["first", "second"]
    for muna in (one, two):
        with pytest.raises(EngineClosedError):
            muna.predictions.create(len, {"obj": ""})


def test_a_class_may_be_called_by_the_teardown_of_another_or_is_refused_clearly() -> None:
    ends: list[str] = []

    class Model:
        def predict(self) -> str:
            return "fine"

        def teardown(self) -> None:
            try:
                muna.predictions.create(lambda: "called")
            except EngineClosedError:
                ends.append("closed")

    muna = Engine(discover=False)
    muna.predictions.create(Model)
    closer = started(muna.close)
    joined(closer)
    assert ends == ["closed"]


def test_another_thread_may_close_the_engine(diary: Diary) -> None:
    muna = Engine(discover=False)
    streams = [muna.predictions.stream(diary.sync()), muna.predictions.stream(diary.coloured())]
    for stream in streams:
        next(stream)
    joined(started(muna.close))
    for stream in streams:
        with pytest.raises(EngineClosedError):
            next(stream)
    assert diary.lines.count("finally") == 2
    assert diary.lines.count("teardown") == 2


def test_another_thread_may_close_the_engine_of_a_running_loop() -> None:
    finished: list[str] = []

    async def numbers() -> AsyncIterator[int]:
        try:
            yield 1
            yield 2
        finally:
            await asyncio.sleep(0)
            finished.append("finally")

    async def main() -> None:
        muna = Engine(discover=False)
        stream = muna.predictions.astream(numbers)
        await anext(stream)
        closer = started(muna.close)
        await auntil(lambda: not closer.is_alive(), "the close")
        await auntil(lambda: finished == ["finally"], "the clean-up")
        with pytest.raises(EngineClosedError):
            await anext(stream)

    asyncio.run(main())


def test_a_with_block_left_by_an_error_closes_and_lets_the_error_through(diary: Diary) -> None:
    def leave_sync() -> None:
        with Engine(discover=False) as muna:
            muna.predictions.create(diary.sync())
            raise LookupError

    with pytest.raises(LookupError):
        leave_sync()
    assert diary.lines[-1] == "teardown"

    async def leave() -> None:
        async with Engine(discover=False) as muna:
            await muna.predictions.acreate(diary.coloured())
            raise LookupError

    with pytest.raises(LookupError):
        asyncio.run(leave())
    assert diary.lines[-1] == "teardown"


def test_aclose_that_is_cancelled_still_closes() -> None:
    reached, go, torn_down = threading.Event(), threading.Event(), threading.Event()

    class Model:
        def predict(self) -> str:
            return "fine"

        def teardown(self) -> None:
            reached.set()
            assert go.wait(PATIENCE)
            torn_down.set()

    async def main() -> None:
        muna = Engine(discover=False)
        await muna.predictions.acreate(Model)
        closing = asyncio.create_task(muna.aclose())
        await auntil(reached.is_set, "the teardown")
        closing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await closing
        with pytest.raises(EngineClosedError):
            muna.predictions.create(Model)

    asyncio.run(main())
    go.set()  # only now, when the loop that asked for it is gone
    assert torn_down.wait(PATIENCE)
    until(lambda: all(thread.name != "engine-closer" for thread in threading.enumerate()), "the closer's end")


# Warnings.


def warned(function: Callable[[], object]) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        function()
        gc.collect()
    return [str(warning.message) for warning in caught if issubclass(warning.category, ResourceWarning)]


def plain() -> str:
    return "plain"


def test_an_engine_that_started_nothing_needs_no_closing_and_never_warns() -> None:
    class Bare:
        def predict(self) -> str:
            return "bare"

    def use() -> None:
        muna = Engine(discover=False)
        muna.predictors.register("@tests/plain", plain)
        assert muna.predictions.create("@tests/plain").value == "plain"
        assert [each.value for each in muna.predictions.stream(plain)] == ["plain"]
        assert asyncio.run(muna.predictions.acreate(acoloured)).value == "coloured"
        assert muna.predictions.create(Bare()).value == "bare"
        muna.predictions.stream(plain, runner="thread")
        muna.predictions.astream(acoloured, runner="thread")

    assert warned(Engine) == []
    assert warned(use) == []


async def acoloured() -> str:
    return "coloured"


@pytest.mark.parametrize(
    "use",
    [
        lambda muna: muna.predictions.create(plain, runner="thread"),
        lambda muna: muna.predictions.create(acoloured),
        lambda muna: muna.predictions.create(Diary().sync()),
    ],
    ids=["a-thread", "the-loop", "a-class"],
)
def test_an_engine_left_unclosed_warns_once_whatever_it_started(use: Callable[[Engine], object]) -> None:
    def leave() -> None:
        muna = Engine(discover=False)
        use(muna)

    (message,) = warned(leave)
    assert "with Engine()" in message


# Two engines; a notebook.


@BOTH
def test_two_engines_share_nothing(diary: Diary, kind: str) -> None:
    model = diary.make(kind)
    with Engine(discover=False) as one, Engine(discover=False) as other:
        one.predictors.register("@tests/model", model)
        with pytest.raises(PredictorNotFoundError):
            other.predictions.create("@tests/model")
        other.predictors.register("@tests/model", model)
        one.load("@tests/model")
        assert (one.loaded, other.loaded) == (("@tests/model",), ())
        with one.predictions.stream("@tests/model") as stream:
            next(stream)
            assert other.predictions.create("@tests/model").value == "two"  # slots are each engine's own
            one_loop = one.predictions.create(where).value
            assert one_loop is not other.predictions.create(where).value
        one.close()
        assert other.predictions.create("@tests/model").value == "two"


async def where() -> object:
    return asyncio.get_running_loop()


def test_a_predictor_may_call_another_engine(muna: Engine) -> None:
    with Engine(discover=False) as other:

        def outer() -> Any:
            return other.predictions.create(acoloured).value

        async def aouter() -> Any:
            return other.predictions.create(acoloured).value  # another engine's loop: waits, but not for itself

        assert muna.predictions.create(outer).value == "coloured"
        assert muna.predictions.create(aouter).value == "coloured"


def test_a_notebook_cell_calls_async_predictors_without_await(muna: Engine, diary: Diary) -> None:
    async def words() -> AsyncIterator[str]:
        for word in ("hello", "world"):
            await asyncio.sleep(0)
            yield word

    async def cell() -> None:
        assert muna.predictions.create(acoloured).value == "coloured"
        assert muna.predictions.create(words).value == "world"
        assert list(muna.predictions.stream(words).values()) == ["hello", "world"]
        assert muna.predictions.create(diary.coloured()).value == "two"
        with muna.predictions.stream(words) as stream:
            assert next(stream).value == "hello"
        muna.load(diary.coloured())
        muna.unload(diary.coloured())

    asyncio.run(cell())


def test_running_a_notebook_cell_again_replaces_its_predictor(muna: Engine) -> None:
    def cell(text: str) -> Any:
        @predictor("@tests/cell")
        def says() -> str:
            return text

        muna.predictors.register(says)
        return muna.predictions.create("@tests/cell").value

    assert cell("first") == "first"
    assert cell("second") == "second"


# Arguments, and how an engine shows itself.


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"runner": ""}, "runner must be"),
        ({"runner": 5}, "runner must be"),
        ({"grace": -1}, "grace must be"),
        ({"grace": float("nan")}, "grace must be"),
        ({"grace": float("inf")}, "grace must be"),
        ({"grace": "1"}, "grace must be"),
        ({"grace": True}, "grace must be"),
    ],
)
def test_an_option_without_meaning_is_refused_at_once(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Engine(discover=False, **options)


def test_the_engines_default_runner_counts_where_neither_author_nor_caller_chose() -> None:
    def where_am_i() -> int:
        return threading.get_ident()

    here = threading.get_ident()
    with Engine(discover=False, runner="thread") as muna:
        muna.predictors.register(Predictor("@tests/inline", where_am_i, runner="inline"))
        assert muna.predictions.create(where_am_i).value != here
        assert muna.predictions.create(where_am_i, runner="inline").value == here
        assert muna.predictions.create("@tests/inline").value == here
        assert muna.predictions.create("@tests/inline", runner="thread").value != here


def test_predictors_given_to_the_engine_are_registered() -> None:
    @predictor("@tests/marked")
    def marked() -> str:
        return "marked"

    with Engine([marked, Predictor("@tests/record", plain)], discover=False) as muna:
        assert list(muna.predictors) == ["@tests/marked", "@tests/record"]
        assert muna.predictions.create("@tests/marked").value == "marked"
        assert muna.predictions.create("@tests/record").value == "plain"


def test_an_engine_shows_whether_it_is_open_and_how_much_is_loaded() -> None:
    muna = Engine([Predictor("@tests/plain", plain)], discover=False)
    assert repr(muna) == "<Engine open, 0 loaded>"
    muna.load("@tests/plain")
    assert repr(muna) == "<Engine open, 1 loaded>"
    muna.close()
    assert repr(muna).startswith("<Engine closed")
