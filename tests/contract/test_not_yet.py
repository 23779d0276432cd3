"""What is promised and does not hold yet: each test here fails, and says so on the day on which it does not.

Whoever mends one takes its marker off and moves it to the tests of the room it belongs to. Each fails in the same way
every time: where two threads have to meet, one waits until the other is seen to wait.
"""

from __future__ import annotations

import asyncio
import queue
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, Final

import pytest

from engine import (
    Engine,
    EngineClosedError,
    NestingError,
    Predictor,
    PredictorError,
    hookimpl,
)
from engine._channel import park_thread
from engine.runners import Body, Channel, End, own

PATIENCE: Final = 10.0  # seconds; only a test that fails otherwise than it should waits as long
GRACE: Final = 30.0  # seconds; none of these waits takes as long


def is_parked(thread: threading.Thread) -> bool:
    """Whether a thread waits in the engine just now."""
    frame = sys._current_frames().get(thread.ident or 0)
    return frame is not None and frame.f_code is park_thread.__code__


def until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(what)
        time.sleep(0.001)


class Plugin:
    """Offers one runner."""

    def __init__(self, runner: Any) -> None:
        self._runner = runner

    @hookimpl
    def engine_runners(self) -> list[Any]:
        return [self._runner]


def counts() -> Iterator[int]:
    yield from range(3)


class Counts:
    def predict(self) -> Iterator[int]:
        yield from range(3)


# A thread that pulled a stream is not, for that, the one that goes on with it.


def reads_to_its_end(stream: Any) -> None:
    assert list(stream.values()) == [1, 2]


def closes(stream: Any) -> None:
    stream.close()


@pytest.mark.xfail(
    strict=True,
    raises=NestingError,
    reason="a thread that has pulled a stream is taken for the only one that can go on with it",
)
@pytest.mark.parametrize("goes_on", [reads_to_its_end, closes])
@pytest.mark.parametrize("runner", [None, "thread"])
@pytest.mark.parametrize("predictor", [counts, Counts])
def test_a_call_waits_for_a_stream_that_this_thread_pulled_and_another_one_goes_on_with(
    predictor: Any, runner: str | None, goes_on: Callable[[Any], None]
) -> None:
    caller, is_over = threading.current_thread(), threading.Event()

    def go_on() -> None:
        until(lambda: is_over.is_set() or is_parked(caller), "the wait for the slot")
        goes_on(stream)

    with Engine(discover=False, grace=GRACE) as muna:
        muna.predictors.register(Predictor("@tests/counts", predictor, concurrency=1))
        stream = muna.predictions.stream("@tests/counts", runner=runner, prefetch=0)
        assert next(stream).value == 0
        other = threading.Thread(target=go_on)
        other.start()
        try:
            assert muna.predictions.create("@tests/counts", runner=runner).value == 2
        finally:
            is_over.set()
            other.join(PATIENCE)


# A runner needs no more than what `Runner` says.


class OneThread:
    """Runs every body in the same thread, one after another."""

    name = "one-thread"

    def __init__(self) -> None:
        self.waiting: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.thread = threading.Thread(target=self._serve)
        self.thread.start()

    def start(self, body: Body, channel: Channel) -> None:
        self.waiting.put((body, channel))

    def _serve(self) -> None:
        while (work := self.waiting.get()) is not None:
            own(*work)

    def is_stuck(self) -> bool:
        """Whether its thread waits for what only that thread could run."""
        return self.waiting.qsize() > 0 and is_parked(self.thread)


@pytest.mark.xfail(
    strict=True, raises=AssertionError, reason="the engine does not see that a runner's only thread waits for itself"
)
@pytest.mark.parametrize("inner", ["create", "stream"])
def test_a_call_that_only_the_thread_that_waits_for_it_could_run_is_refused(inner: str) -> None:
    raised: list[BaseException] = []
    runner = OneThread()

    def calls_another() -> Any:
        if inner == "create":
            return muna.predictions.create(counts, runner="one-thread").value
        return list(muna.predictions.stream(counts, runner="one-thread").values())

    def call() -> None:
        try:
            muna.predictions.create(calls_another, runner="one-thread")
        except BaseException as error:
            raised.append(error)

    muna = Engine(discover=False, plugins=[Plugin(runner)], grace=0.05)
    caller = threading.Thread(target=call)
    caller.start()
    try:
        until(lambda: not caller.is_alive() or runner.is_stuck(), "the call's end, or the wait for itself")
        assert not runner.is_stuck()
        assert [type(error) for error in raised] == [NestingError]
    finally:
        muna.close()
        runner.waiting.put(None)
        caller.join(PATIENCE)
        runner.thread.join(PATIENCE)


# A stream ends once, and tells so once.


class Fails:
    """Has something else happen to the call that it is to start, and then fails to start it."""

    name = "fails"

    def __init__(self) -> None:
        self.meanwhile: Callable[[], object] = int
        self.error: Exception = LookupError("no owner")

    def start(self, body: Body, channel: Channel) -> None:
        self.meanwhile()
        raise self.error


def told(step: Callable[[], object], stop: type[Exception]) -> list[type[BaseException]]:
    """What a reader gets that reads on until it is told that the stream has ended."""
    seen: list[type[BaseException]] = []
    while len(seen) < 5:
        try:
            step()
        except stop:
            break
        except Exception as error:
            seen.append(type(error))
    return seen


@pytest.mark.xfail(
    strict=True, raises=AssertionError, reason="a start that fails is told though the stream has ended otherwise"
)
@pytest.mark.parametrize("is_async", [False, True], ids=["stream", "astream"])
@pytest.mark.parametrize("how", ["closed", "cancelled"])
def test_a_stream_that_ends_just_as_its_start_fails_tells_one_end(is_async: bool, how: str) -> None:
    runner = Fails()
    muna = Engine(discover=False, plugins=[Plugin(runner)], grace=0.05)
    if how == "closed":
        runner.meanwhile, runner.error = muna.close, EngineClosedError()

    async def read() -> list[type[BaseException]]:
        stream = muna.predictions.astream(counts, runner="fails")
        if how == "cancelled":
            runner.meanwhile = stream.cancel
        seen: list[type[BaseException]] = []
        while len(seen) < 5:
            try:
                await anext(stream)
            except StopAsyncIteration:
                break
            except Exception as error:
                seen.append(type(error))
        return seen

    with muna:
        if is_async:
            assert len(asyncio.run(read())) == 1
            return
        stream = muna.predictions.stream(counts, runner="fails")
        if how == "cancelled":
            runner.meanwhile = stream.cancel
        assert len(told(lambda: next(stream), StopIteration)) == 1


# Every record of a stream is the one that its readers have.


class HandsOverByHand:
    """Gives its channel away, for a test to be the owner."""

    name = "by-hand"

    def start(self, body: Body, channel: Channel) -> None:
        self.channel = channel
        channel.offer(0, 0.0, 0.0)


@pytest.mark.xfail(
    strict=True,
    raises=AssertionError,
    reason="a stream that is cancelled has another outcome than its readers count in",
)
@pytest.mark.parametrize("how", ["predictions", "values", "asyncio"])
def test_what_a_reader_takes_as_its_stream_is_cancelled_is_counted_like_any_partial(how: str) -> None:
    runner = HandsOverByHand()

    async def take_async(stream: Any) -> int:
        return int((await anext(stream)).index)

    with Engine(discover=False, plugins=[Plugin(runner)], grace=0.05) as muna:
        open_stream: Any = muna.predictions.astream if how == "asyncio" else muna.predictions.stream
        stream = open_stream(counts, runner="by-hand")

        def take(number: int) -> int:
            if how == "asyncio":
                return asyncio.run(take_async(stream))
            if how == "values":
                assert next(stream.values()) == number
                return number
            return int(next(stream).index)

        seen = [take(0)]
        for number in (1, 2):
            runner.channel.offer(number, 0.0, 0.0)
            if number == 2:  # as an owner that is parked is woken once its partial is taken
                runner.channel.producers.append(stream.cancel)
            seen.append(take(number))
        runner.channel.finish(End())
        assert (seen, stream.outcome.count, stream.outcome.state) == ([0, 1, 2], 3, "cancelled")


# What a clean-up raises comes out of `close()` in every cell, and stands in the outcome.


def fails_in_cleaning_up(error: type[BaseException]) -> dict[str, Callable[[], Any]]:
    def gen() -> Iterator[list[int]]:
        try:
            yield [1]
            yield [2]
        finally:
            raise error("of the clean-up")

    async def agen() -> AsyncIterator[list[int]]:
        try:
            yield [1]
            yield [2]
        finally:
            raise error("of the clean-up")

    return {"gen": gen, "agen": agen}


def closed(muna: Engine, predictor: Callable[[], Any], consumer: str, runner: str | None) -> tuple[Any, Any]:
    """Close a stream after its first partial; give what that raised, and the outcome."""
    raised: list[BaseException] = []

    async def close_async() -> Any:
        stream = muna.predictions.astream(predictor, runner=runner, prefetch=0)
        await anext(stream)
        try:
            await stream.aclose()
        except BaseException as error:
            raised.append(error)
        return stream.outcome

    if consumer == "asyncio":
        outcome = asyncio.run(close_async())
    else:
        stream = muna.predictions.stream(predictor, runner=runner, prefetch=0)
        next(stream)
        try:
            stream.close()
        except BaseException as error:
            raised.append(error)
        outcome = stream.outcome
    return next(iter(raised), None), outcome


IN_LOCK_STEP: Final = [
    ("gen", "sync", None),
    ("gen", "sync", "inline"),
    ("gen", "asyncio", "inline"),
    ("agen", "asyncio", None),
    ("agen", "asyncio", "inline"),
]
WITH_AN_OWNER: Final = [
    ("gen", "sync", "thread"),
    ("gen", "asyncio", None),
    ("agen", "sync", None),
    ("agen", "asyncio", "thread"),
    ("agen", "asyncio", "process"),
]


def cells(*, broken: list[tuple[str, str, str | None]], reason: str) -> list[Any]:
    mark = pytest.mark.xfail(strict=True, raises=AssertionError, reason=reason)
    every = IN_LOCK_STEP + WITH_AN_OWNER
    return [pytest.param(*cell, marks=[mark] if cell in broken else [], id="-".join(map(str, cell))) for cell in every]


@pytest.mark.parametrize(
    ("kind", "consumer", "runner"),
    cells(broken=WITH_AN_OWNER, reason="what a clean-up raises stands in the outcome of lock-step streams only"),
)
def test_the_outcome_has_what_the_clean_up_of_a_closed_stream_raised(
    muna: Engine, kind: str, consumer: str, runner: str | None
) -> None:
    raised, outcome = closed(muna, fails_in_cleaning_up(LookupError)[kind], consumer, runner)
    assert isinstance(raised, LookupError)
    assert outcome.state == "closed"
    assert outcome.exception is raised


@pytest.mark.parametrize(
    ("kind", "consumer", "runner"),
    cells(
        broken=[cell for cell in WITH_AN_OWNER if cell[0] == "agen"],
        reason="on a loop of the engine's a clean-up's own CancelledError is taken for the engine's and dropped",
    ),
)
def test_a_cancelled_error_of_a_clean_up_is_a_failure_like_any_other(
    muna: Engine, kind: str, consumer: str, runner: str | None
) -> None:
    raised, outcome = closed(muna, fails_in_cleaning_up(asyncio.CancelledError)[kind], consumer, runner)
    assert isinstance(raised, PredictorError)
    assert isinstance(raised.__cause__, asyncio.CancelledError)
    assert outcome.state == "closed"
