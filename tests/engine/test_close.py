"""Closing an engine: live streams, teardowns, other threads and loops, and the warning of one left unclosed."""

from __future__ import annotations

import asyncio
import gc
import threading
import warnings
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest

from engine import Engine, EngineClosedError
from tests._kit.waits import TIMEOUT, auntil, joined, started, until
from tests.engine.conftest import ANYWHERE, BOTH, Lifecycle, acoloured, plain


@BOTH
@ANYWHERE
def test_at_close_live_streams_end_before_their_class_is_torn_down(
    lifecycle: Lifecycle, kind: str, runner: str | None
) -> None:
    muna = Engine(discover=False)
    stream = muna.predictions.stream(lifecycle.make(kind), runner=runner, prefetch=0)
    next(stream)
    muna.close()
    assert lifecycle.lines == ["constructor", "setup", "predict", "finally", "teardown"]
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
def test_aclose_ends_live_streams_before_their_class_is_torn_down(lifecycle: Lifecycle, kind: str) -> None:
    async def main() -> None:
        async with Engine(discover=False) as muna:
            stream = muna.predictions.astream(lifecycle.make(kind), prefetch=0)
            await anext(stream)
        assert lifecycle.lines == ["constructor", "setup", "predict", "finally", "teardown"]

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


def test_another_thread_may_close_the_engine(lifecycle: Lifecycle) -> None:
    muna = Engine(discover=False)
    streams = [muna.predictions.stream(lifecycle.sync()), muna.predictions.stream(lifecycle.coloured())]
    for stream in streams:
        next(stream)
    joined(started(muna.close))
    for stream in streams:
        with pytest.raises(EngineClosedError):
            next(stream)
    assert lifecycle.lines.count("finally") == 2
    assert lifecycle.lines.count("teardown") == 2


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


def test_a_with_block_left_by_an_error_closes_and_lets_the_error_through(lifecycle: Lifecycle) -> None:
    def leave_sync() -> None:
        with Engine(discover=False) as muna:
            muna.predictions.create(lifecycle.sync())
            raise LookupError

    with pytest.raises(LookupError):
        leave_sync()
    assert lifecycle.lines[-1] == "teardown"

    async def leave() -> None:
        async with Engine(discover=False) as muna:
            await muna.predictions.acreate(lifecycle.coloured())
            raise LookupError

    with pytest.raises(LookupError):
        asyncio.run(leave())
    assert lifecycle.lines[-1] == "teardown"


def test_aclose_that_is_cancelled_still_closes() -> None:
    reached, go, torn_down = threading.Event(), threading.Event(), threading.Event()

    class Model:
        def predict(self) -> str:
            return "fine"

        def teardown(self) -> None:
            reached.set()
            assert go.wait(TIMEOUT)
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
    assert torn_down.wait(TIMEOUT)
    until(lambda: all(thread.name != "engine-closer" for thread in threading.enumerate()), "the closer's end")


# Warnings.


def warned(function: Callable[[], object]) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        function()
        gc.collect()
    return [str(warning.message) for warning in caught if issubclass(warning.category, ResourceWarning)]


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


@pytest.mark.parametrize(
    "use",
    [
        lambda muna: muna.predictions.create(plain, runner="thread"),
        lambda muna: muna.predictions.create(acoloured),
        lambda muna: muna.predictions.create(Lifecycle().sync()),
    ],
    ids=["a-thread", "the-loop", "a-class"],
)
def test_an_engine_left_unclosed_warns_once_whatever_it_started(use: Callable[[Engine], object]) -> None:
    def leave() -> None:
        muna = Engine(discover=False)
        use(muna)

    (message,) = warned(leave)
    assert "with Engine()" in message
