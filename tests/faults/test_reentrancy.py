"""The engine is called from a `finally`, a `__del__`, a callback or a plugin, and runs no code under a lock."""

from __future__ import annotations

import asyncio
import gc
import pickle
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import cloudpickle
import pytest

from engine import Engine, EngineClosedError, EngineError, NestingError, Prediction, Predictor, fold
from tests._kit.waits import in_other_thread, until, within

# 99: an engine, or a stream of it, that would travel.


@pytest.mark.fault(99)
@pytest.mark.parametrize("dumps", [pickle.dumps, cloudpickle.dumps], ids=["pickle", "cloudpickle"])
@pytest.mark.parametrize("what", ["engine", "predictions", "predictors", "stream", "astream"])
def test_a_live_handle_refuses_to_be_pickled_and_says_what_to_do(
    muna: Engine, dumps: Callable[[object], bytes], what: str
) -> None:
    handles: dict[str, object] = {
        "engine": muna,
        "predictions": muna.predictions,
        "predictors": muna.predictors,
        "stream": muna.predictions.stream(len, {"obj": "abc"}, check=False),
        "astream": muna.predictions.astream(len, {"obj": "abc"}, check=False),
    }
    with pytest.raises(TypeError, match=r"cannot be pickled.*: (make|send) "):
        dumps(handles[what])


@pytest.mark.fault(99)
def test_a_closure_over_an_engine_refuses_to_be_pickled_by_value_with_the_same_advice(muna: Engine) -> None:
    def calls_it() -> Prediction:
        return muna.predictions.create(len)

    calls_it.__module__ = "__main__"
    with pytest.raises(TypeError, match=r"an engine .* cannot be pickled"):
        cloudpickle.dumps(calls_it)


# 100: the engine is called where one would not expect it.


@pytest.mark.fault(100)
@pytest.mark.parametrize("runner", [None, "thread"])
def test_a_finally_may_call_the_engine_and_close_its_own_stream(muna: Engine, runner: str | None) -> None:
    made: list[Any] = []
    streams: list[Any] = []

    def body() -> Iterator[int]:
        try:
            yield 1
            yield 2
        finally:
            made.append(muna.predictions.create(lambda: "made", runner=runner).value)
            streams[0].close()
            streams[0].cancel()

    def consume() -> str:
        streams[:] = [muna.predictions.stream(body, runner=runner)]
        next(streams[0])
        streams[0].close()
        state: str = streams[0].outcome.state
        return state

    assert in_other_thread(consume) == "closed"
    assert made == ["made"]
    streams.clear()


@pytest.mark.fault(100)
@pytest.mark.parametrize("runner", [None, "thread"])
def test_an_async_finally_may_call_the_engine_and_close_its_own_stream(muna: Engine, runner: str | None) -> None:
    made: list[Any] = []
    streams: list[Any] = []

    async def answer() -> str:
        return "made"

    async def body() -> AsyncIterator[int]:
        try:
            yield 1
            yield 2
        finally:
            made.append((await muna.predictions.acreate(answer, runner=runner)).value)
            await streams[0].aclose()
            streams[0].cancel()

    async def main() -> None:
        streams.append(muna.predictions.astream(body, runner=runner))
        await anext(streams[0])
        await within(streams[0].aclose())
        assert streams[0].outcome.state == "closed"

    asyncio.run(main())
    assert made == ["made"]
    streams.clear()


@pytest.mark.fault(100)
@pytest.mark.parametrize("runner", [None, "thread"])
def test_a_del_may_call_the_engine_and_close_streams(muna: Engine, runner: str | None) -> None:
    made: list[Any] = []
    streams: list[Any] = []

    class Partial:
        def __del__(self) -> None:
            made.append(muna.predictions.create(lambda: "made", runner=runner).value)
            for stream in streams:
                stream.close()

    def body() -> Iterator[Partial]:
        while True:
            yield Partial()

    def consume() -> str:
        streams[:] = [muna.predictions.stream(body, runner=runner)]
        for count, _ in enumerate(streams[0]):
            if count == 3:
                break
        streams[0].close()
        state: str = streams[0].outcome.state
        return state

    assert in_other_thread(consume) == "closed"
    until(lambda: "made" in made, "a finaliser")
    streams.clear()
    gc.collect()


@pytest.mark.fault(100)
@pytest.mark.parametrize("runner", [None, "thread"])
def test_a_done_callback_may_call_the_engine_and_cancel_streams(muna: Engine, runner: str | None) -> None:
    made: list[Any] = []

    async def waits() -> AsyncIterator[int]:
        yield 1
        await asyncio.sleep(3600)
        yield 2

    async def main() -> None:
        stream = muna.predictions.astream(waits, runner=runner)
        await anext(stream)

        def called(_future: object) -> None:
            made.append(muna.predictions.create(lambda: "made").value)
            stream.cancel()

        future = asyncio.get_running_loop().create_future()
        future.add_done_callback(called)
        future.set_result(None)
        pull = asyncio.create_task(anext(stream, None))
        with pytest.raises(EngineError, match="cancelled"):
            await within(pull)
        assert made == ["made"]

    asyncio.run(main())


@pytest.mark.fault(100)
@pytest.mark.parametrize("runner", [None, "thread"])
def test_a_consumer_may_call_the_same_predictor_and_close_inside_its_loop(muna: Engine, runner: str | None) -> None:
    def counts() -> Iterator[int]:
        yield from range(5)

    def consume() -> list[Any]:
        got: list[Any] = []
        stream = muna.predictions.stream(counts, runner=runner)
        for value in stream.values():
            got.append(value)
            got.append(muna.predictions.create(counts, runner=runner).value)
            if value == 2:
                stream.close()
        return got

    assert in_other_thread(consume) == [0, 4, 1, 4, 2, 4]


@pytest.mark.fault(100)
@pytest.mark.parametrize("runner", [None, "thread"])
def test_a_predictor_may_register_and_unregister_predictors(muna: Engine, runner: str | None) -> None:
    def registers() -> Any:
        muna.predictors.register("@tests/made", lambda: "made", replace=True)
        value = muna.predictions.create("@tests/made", runner=runner).value
        muna.predictors.unregister("@tests/made")
        return value

    assert in_other_thread(lambda: muna.predictions.create(registers, runner=runner)).value == "made"


# 101: no code of the user's runs while the engine holds a lock.


class WatchedLock:
    """A lock that knows which thread holds it."""

    made: list[WatchedLock]

    def __init__(self, lock: Any) -> None:
        self._lock = lock
        self._holders: list[int] = []
        WatchedLock.made.append(self)

    def acquire(self, *args: Any, **kwargs: Any) -> bool:
        taken: bool = self._lock.acquire(*args, **kwargs)
        if taken:
            self._holders.append(threading.get_ident())
        return taken

    def release(self) -> None:
        self._holders.remove(threading.get_ident())
        self._lock.release()

    def __enter__(self) -> bool:
        return self.acquire()

    def __exit__(self, *details: object) -> None:
        self.release()

    @property
    def is_held_here(self) -> bool:
        return threading.get_ident() in self._holders


@pytest.fixture
def assert_free(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Have the engine's own code make locks that are watched; give what a piece of user code asks of them."""
    WatchedLock.made = []

    def watched(make: Callable[[], Any]) -> Callable[[], Any]:
        def make_lock() -> Any:
            import sys

            module = str(sys._getframe(1).f_globals.get("__name__"))
            return WatchedLock(make()) if module.partition(".")[0] == "engine" else make()

        return make_lock

    monkeypatch.setattr(threading, "Lock", watched(threading.Lock))
    monkeypatch.setattr(threading, "RLock", watched(threading.RLock))

    def check(where: str) -> None:
        asked.append(where)
        assert WatchedLock.made, "no lock of the engine is watched"
        if any(lock.is_held_here for lock in WatchedLock.made):
            held.append(where)

    asked: list[str] = []
    held: list[str] = []
    check.asked = asked  # type: ignore[attr-defined]
    check.held = held  # type: ignore[attr-defined]
    return check


@pytest.mark.fault(101)
def test_no_code_of_a_class_predictor_is_called_with_a_lock_of_the_engine_held(  # noqa: C901 - two small classes
    assert_free: Any,
) -> None:
    class Watched:
        def __init__(self) -> None:
            assert_free("constructor")

        def setup(self) -> None:
            assert_free("setup")

        def predict(self) -> Iterator[int]:
            try:
                assert_free("predict")
                yield 1
                assert_free("predict")
                yield 2
            finally:
                assert_free("finally")

        def teardown(self) -> None:
            assert_free("teardown")

    class AsyncWatched:
        async def setup(self) -> None:
            assert_free("async setup")

        async def predict(self) -> AsyncIterator[int]:
            try:
                assert_free("async predict")
                yield 1
            finally:
                assert_free("async finally")

        async def teardown(self) -> None:
            assert_free("async teardown")

    def use(runner: str | None) -> None:
        with Engine(discover=False) as muna:
            muna.predictors.register("@tests/watched", Watched)
            for tag in (Watched, AsyncWatched, "@tests/watched"):
                muna.predictions.create(tag, runner=runner)
                with muna.predictions.stream(tag, runner=runner) as stream:
                    next(stream)
                muna.unload(tag)
                muna.load(tag)
            left_open = [muna.predictions.stream(each, runner=runner) for each in (Watched, AsyncWatched)]
            for stream in left_open:
                next(stream)

    use(None)
    use("thread")
    assert {"constructor", "setup", "predict", "finally", "teardown"} <= set(assert_free.asked)
    assert {"async setup", "async predict", "async finally", "async teardown"} <= set(assert_free.asked)
    assert assert_free.held == []


@pytest.mark.fault(101)
def test_no_reducer_input_or_finaliser_is_called_with_a_lock_of_the_engine_held(assert_free: Any) -> None:
    class Value:
        def __eq__(self, other: object) -> bool:
            assert_free("comparison")
            return self is other

        def __hash__(self) -> int:
            return 1

        def __del__(self) -> None:
            assert_free("finaliser")

    def add(left: list[Any], right: Any) -> list[Any]:
        assert_free("reducer")
        return [*left, right]

    def yields(value: Any = Value()) -> Iterator[Value]:  # noqa: B008 - a default is compared with what is given
        yield value
        yield Value()

    with Engine(discover=False) as muna:
        for runner in (None, "thread"):
            muna.predictions.create(yields, {"value": Value()}, runner=runner, reduce=fold(add, list))
            list(muna.predictions.stream(yields, {"value": Value()}, runner=runner))
            stream = muna.predictions.stream(yields, {"value": Value()}, runner=runner)
            next(stream)
            stream.close()
            del stream
        gc.collect()
    assert {"reducer", "finaliser"} <= set(assert_free.asked)
    assert assert_free.held == []


@pytest.mark.fault(101)
def test_while_a_plugin_is_asked_for_its_predictors_other_threads_register_and_call() -> None:
    from engine import hookimpl

    done: list[object] = []

    def elsewhere() -> None:
        muna.predictors.register("@tests/registered", lambda: "registered")
        done.append(muna.predictions.create(lambda: "called").value)

    class Plugin:
        @hookimpl
        def engine_predictors(self) -> Iterator[Predictor]:
            in_other_thread(elsewhere)
            yield Predictor("@tests/plugged", lambda: "plugged")

    with Engine(discover=False, plugins=[Plugin()]) as muna:
        assert in_other_thread(lambda: muna.predictions.create("@tests/plugged")).value == "plugged"
        assert list(muna.predictors) == ["@tests/plugged", "@tests/registered"]
    assert done == ["called"]


@pytest.mark.fault(101)
@pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])
def test_a_teardown_that_closes_its_engine_again_is_refused_and_the_engine_is_closed(is_async: bool) -> None:
    steps: list[str] = []

    class Closes:
        def predict(self) -> str:
            return "fine"

        def teardown(self) -> None:
            steps.append("teardown")
            muna.close()
            steps.append("closed")

    class AsyncCloses:
        async def predict(self) -> str:
            return "fine"

        async def teardown(self) -> None:
            steps.append("teardown")
            await muna.aclose()
            steps.append("closed")

    muna = Engine(discover=False)
    muna.predictions.create(AsyncCloses if is_async else Closes)
    with pytest.raises(NestingError, match="close it from outside"):
        in_other_thread(muna.close)
    assert steps == ["teardown"]
    with pytest.raises(EngineClosedError):
        muna.predictions.create(len, {"obj": ""})


@pytest.mark.fault(101)
def test_a_teardown_that_lets_another_thread_close_does_not_deadlock() -> None:
    class WaitsForACloser:
        def predict(self) -> str:
            return "fine"

        def teardown(self) -> None:
            closer = threading.Thread(target=muna.close, daemon=True)
            closer.start()
            closer.join(0.2)  # the engine may make that one wait for this one, which has to stay possible

    muna = Engine(discover=False)
    muna.predictions.create(WaitsForACloser)
    in_other_thread(muna.close)
