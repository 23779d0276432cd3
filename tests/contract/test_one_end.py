"""A call begins once and ends once, and its readers, its observers and its outcome are told the same of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from typing import Any, Final

import pytest

from engine import Engine, EngineClosedError, Outcome, PredictionCancelledError, Predictor, hookimpl
from engine.runners import Body, Channel, Report
from engine.runners.base import Execution
from engine.runners.owned import OwnedExecution
from tests._kit.internals import WAIT_OF_A_TASK, WAIT_OF_A_THREAD, executions_of, observe
from tests._kit.waits import TIMEOUT
from tests.contract.ended_streams import EVERY, HandsOverByHand, counts, told


class Plugin:
    """Offers one runner."""

    def __init__(self, runner: Any) -> None:
        self._runner = runner

    @hookimpl
    def engine_runners(self) -> list[Any]:
        return [self._runner]


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
        runner.channel.finish(Report())
        assert (seen, stream.outcome.count, stream.outcome.state) == ([0, 1, 2], 3, "cancelled")


# A call begins once, whichever consumer pulls it first.


@pytest.mark.parametrize("consumer", ["sync", "asyncio"])
def test_of_two_readers_that_come_first_one_begins_the_call(consumer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second comes once the first has seen that the call has not begun, and before it has begun it."""
    started: list[str] = []

    def body() -> Iterator[int]:
        started.append("body")
        yield from range(4)

    wait_first, wait_task = WAIT_OF_A_THREAD.now, WAIT_OF_A_TASK.now
    seen: list[int] = []

    def wait_after_another(execution: OwnedExecution) -> None:
        monkeypatch.undo()
        seen.append(execution.step())
        wait_first(execution)

    async def wait_task_after_another(execution: OwnedExecution, **options: Any) -> None:
        monkeypatch.undo()
        seen.append(await execution.pull())
        await wait_task(execution, **options)

    async def read(stream: Any) -> list[int]:
        return [value async for value in stream.values()]

    WAIT_OF_A_THREAD.replace(monkeypatch, wait_after_another)
    WAIT_OF_A_TASK.replace(monkeypatch, wait_task_after_another)
    with Engine(discover=False, grace=0.05) as muna:
        predictor = Predictor("@tests/body", body, concurrency=1)
        if consumer == "sync":
            seen += muna.predictions.stream(predictor, runner="thread").values()
        else:
            seen += asyncio.run(read(muna.predictions.astream(predictor, runner="thread")))
        assert (started, seen) == (["body"], [0, 1, 2, 3])
        assert executions_of(muna) == ()


# An observer is told of the beginning and the end of each call that begins, of both once, and of no other.


class Observer:
    """Notes what it is told."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def started(self, execution: Execution) -> None:
        self.told.append(f"started {execution.ending.state}")

    def finished(self, _execution: Execution, outcome: Outcome) -> None:
        self.told.append(f"{outcome.state} {type(outcome.exception).__name__}")


def fails_late() -> Iterator[int]:
    yield 0
    raise LookupError("of the body")


async def afails_late() -> AsyncIterator[int]:
    yield 0
    raise LookupError("of the body")


BODIES: Final[dict[str, Callable[[], Any]]] = {"gen": fails_late, "agen": afails_late}
TOLD_OF: Final = {
    "failed": ["started pending", "failed LookupError"],
    "cancelled": ["started pending", "cancelled PredictionCancelledError"],
    "closed": ["started pending", "closed NoneType"],
    "shut": ["started pending", "closed EngineClosedError"],
    "left": ["started pending", "closed NoneType"],
    "created": ["started pending", "failed LookupError"],
    "cancelled before": [],
    "closed before": [],
    "shut before": [],
}


async def end(muna: Engine, predictor: Predictor, consumer: str, runner: str | None, how: str) -> None:
    """Make one call of a body, and have it end."""
    predictions: Any = muna.predictions
    is_async = consumer == "asyncio"
    if how == "created":
        create = predictions.acreate if is_async else predictions.create
        with suppress(LookupError):
            created = create(predictor, runner=runner)
            await created if is_async else created
        return
    stream = (predictions.astream if is_async else predictions.stream)(predictor, runner=runner)

    async def pull() -> None:
        await anext(stream, None) if is_async else next(stream, None)

    if not how.endswith(" before"):
        await pull()
    if how == "left":
        del stream, pull
        return
    if how.startswith("cancelled"):
        stream.cancel()
    elif how.startswith("closed"):
        await stream.aclose() if is_async else stream.close()
    elif how.startswith("shut"):
        await muna.aclose() if is_async else muna.close()
    with suppress(LookupError, PredictionCancelledError, EngineClosedError):
        await pull()


@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.parametrize("how", TOLD_OF)
@pytest.mark.parametrize(("kind", "consumer", "runner"), EVERY)
def test_an_observer_is_told_once_of_the_beginning_and_the_end_of_a_call(
    kind: str, consumer: str, runner: str | None, how: str
) -> None:
    observer = Observer()
    with Engine(discover=False, grace=0.05, workers=1) as muna:
        observe(muna, observer)
        ending = end(muna, Predictor("@tests/fails", BODIES[kind]), consumer, runner, how)
        if consumer == "asyncio":
            asyncio.run(ending)
        else:
            with pytest.raises(StopIteration):  # it never suspends
                ending.send(None)
    assert observer.told == TOLD_OF[how]


# What a stream was cancelled for is shown by its outcome, even if it is read meanwhile.


@pytest.mark.parametrize("is_pulled", [False, True], ids=["rests", "is-pulled"])
def test_a_reader_that_comes_while_a_cancelled_body_is_finalised_takes_nothing_from_the_outcome(
    is_pulled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    release_slot = Body.release_slot
    refused: list[ValueError] = []

    def let_go_and_read(body: Body) -> None:
        release_slot(body)
        with pytest.raises(ValueError, match="is being read already") as caught:
            next(stream)
        refused.append(caught.value)

    def cancels() -> Iterator[int]:
        yield 0
        stream.cancel()
        raise LookupError("after its end was decided")

    with Engine(discover=False, grace=0.05) as muna:
        stream = muna.predictions.stream(cancels if is_pulled else counts)
        next(stream)
        monkeypatch.setattr(Body, "release_slot", let_go_and_read)
        if not is_pulled:
            stream.cancel()
        assert told(lambda: next(stream), StopIteration) == [PredictionCancelledError]
        assert len(refused) == 1
        assert isinstance(stream.outcome.exception, PredictionCancelledError)


# A stream whose predictor is still to be found ends as any other.


def test_a_coroutine_that_is_closed_while_it_pulls_a_stream_just_stopped_raises_and_logs_nothing(
    muna: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    async def waiting() -> AsyncIterator[int]:
        yield 0
        await asyncio.sleep(TIMEOUT)

    async def scenario() -> None:
        stream = muna.predictions.astream(waiting)
        await anext(stream)

        async def pull() -> object:
            return await anext(stream)

        pulling = pull()
        pulling.send(None)
        stream.cancel()
        pulling.close()
        assert stream.outcome.state == "cancelled"

    asyncio.run(scenario())
    assert caplog.records == []
