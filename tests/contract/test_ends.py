"""How a call ends, told once and alike in every cell: what the faults taught that ran through all of them."""

from __future__ import annotations

import asyncio
import gc
import logging
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any, Final

import pytest

from engine import (
    AsyncPredictionStream,
    Engine,
    EngineClosedError,
    Outcome,
    PredictionCancelledError,
    PredictionStream,
    Predictor,
    PredictorError,
    fold,
    hookimpl,
)
from engine._reducers import reducer_of
from engine.runners import Body, Channel, Report, base, deferred, inline
from engine.runners.base import Execution
from engine.runners.deferred import AsyncDeferredExecution, DeferredExecution
from engine.runners.ending import Ending
from engine.runners.owned import OwnedExecution
from engine.runners.process.inlet import Inlet
from engine.runners.task import TaskExecution

LIMIT: Final = 20.0  # seconds any wait may take


class Plugin:
    """Offers one runner."""

    def __init__(self, runner: Any) -> None:
        self._runner = runner

    @hookimpl
    def engine_runners(self) -> list[Any]:
        return [self._runner]


def counts() -> Iterator[int]:
    yield from range(3)


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


EVERY: Final = IN_LOCK_STEP + WITH_AN_OWNER


@pytest.mark.parametrize(("kind", "consumer", "runner"), EVERY)
def test_a_cancelled_error_of_a_clean_up_is_a_failure_like_any_other(
    muna: Engine, kind: str, consumer: str, runner: str | None
) -> None:
    raised, outcome = closed(muna, fails_in_cleaning_up(asyncio.CancelledError)[kind], consumer, runner)
    assert isinstance(raised, PredictorError)
    assert isinstance(raised.__cause__, asyncio.CancelledError)
    assert outcome.state == "closed"


# A call begins once, whoever pulls it first.


@pytest.mark.parametrize("consumer", ["sync", "asyncio"])
def test_of_two_readers_that_come_first_one_begins_the_call(consumer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second comes once the first has seen that the call has not begun, and before it has begun it."""
    started: list[str] = []

    def body() -> Iterator[int]:
        started.append("body")
        yield from range(4)

    wait_first, wait_task = OwnedExecution._wait_first, OwnedExecution._wait_task
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

    monkeypatch.setattr(OwnedExecution, "_wait_first", wait_after_another)
    monkeypatch.setattr(OwnedExecution, "_wait_task", wait_task_after_another)
    with Engine(discover=False, grace=0.05) as muna:
        predictor = Predictor("@tests/body", body, concurrency=1)
        if consumer == "sync":
            seen += muna.predictions.stream(predictor, runner="thread").values()
        else:
            seen += asyncio.run(read(muna.predictions.astream(predictor, runner="thread")))
        assert (started, seen) == (["body"], [0, 1, 2, 3])
        assert muna.predictions.open_calls == ()


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
        muna.predictions.observe(observer)
        ending = end(muna, Predictor("@tests/fails", BODIES[kind]), consumer, runner, how)
        if consumer == "asyncio":
            asyncio.run(ending)
        else:
            with pytest.raises(StopIteration):  # it never suspends
                ending.send(None)
    assert observer.told == TOLD_OF[how]


# What a stream was cancelled for is shown by its outcome, whoever reads meanwhile.


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


# What a clean-up raises arrives once: where the stream is closed, or in the log.


def logged(caplog: pytest.LogCaptureFixture, error: type[BaseException]) -> int:
    """How often an error is in the log."""
    return sum(f"{error.__name__}: " in record.message for record in caplog.records)


class FailsAtOnce(HandsOverByHand):
    """Finalises its body just as it is asked to stop, and fails in that."""

    def start(self, body: Body, channel: Channel) -> None:
        super().start(body, channel)
        channel.on_stop = lambda: channel.finish(Report(LookupError("of the clean-up"), is_cleanup=True))


def test_what_an_owner_raises_just_as_it_is_asked_to_stop_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    with Engine(discover=False, plugins=[FailsAtOnce()], grace=0.05) as muna:
        stream = muna.predictions.stream(counts, runner="by-hand")
        next(stream)
        stream.cancel()
        assert logged(caplog, LookupError) == 1


def test_what_a_clean_up_raises_that_a_reader_comes_to_before_its_stopper_arrives_once(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    claim = Ending.claim

    def claim_and_read(ending: Ending, state: Any, failure: BaseException | None = None) -> bool:
        is_first = claim(ending, state, failure)
        monkeypatch.undo()
        assert next(stream, None) is None  # as another thread might just then
        return is_first

    with Engine(discover=False, grace=0.05) as muna:
        stream = muna.predictions.stream(fails_in_cleaning_up(LookupError)["gen"])
        next(stream)
        monkeypatch.setattr(Ending, "claim", claim_and_read)
        raised = 0
        try:
            stream.close()
        except LookupError:
            raised = 1
        assert raised + logged(caplog, LookupError) == 1


class Stubborn:
    """Bodies that do not stop before they are let go of, and then fail."""

    def __init__(self) -> None:
        self.reached = threading.Event()
        self.go = threading.Event()

    def gen(self) -> Iterator[int]:
        yield 0
        self.reached.set()
        self.go.wait(LIMIT)
        raise LookupError("at last")

    async def agen(self) -> AsyncIterator[int]:
        yield 0
        self.reached.set()
        while not self.go.is_set():
            with suppress(asyncio.CancelledError):
                await asyncio.sleep(0.001)
        raise LookupError("at last")


def test_what_a_pull_raises_that_was_waited_for_in_vain_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    body = Stubborn()
    with Engine(discover=False, grace=0.01) as muna:
        stream = muna.predictions.stream(body.gen)
        next(stream)
        reader = threading.Thread(target=next, args=(stream, None))
        reader.start()
        assert body.reached.wait(LIMIT)
        stream.close()
        body.go.set()
        reader.join(LIMIT)
        assert logged(caplog, LookupError) == 1


def test_what_a_pull_in_a_task_raises_is_logged_where_its_stopper_is_cancelled(
    caplog: pytest.LogCaptureFixture,
) -> None:
    body = Stubborn()

    async def scenario(muna: Engine) -> None:
        stream = muna.predictions.astream(body.agen)
        await anext(stream)
        reader = asyncio.ensure_future(anext(stream))
        assert await asyncio.to_thread(body.reached.wait, LIMIT)
        closer = asyncio.create_task(stream.aclose())
        await asyncio.sleep(0)
        closer.cancel()
        await asyncio.wait([closer])
        body.go.set()
        with suppress(StopAsyncIteration):
            await reader

    with Engine(discover=False, grace=LIMIT) as muna:
        asyncio.run(scenario(muna))
    assert logged(caplog, LookupError) == 1


# Wherever Ctrl-C comes into the end of a call, that ends, and its body with it, once nothing refers to it.


class Kept:
    """A body of either colour that tells what it has come to."""

    def __init__(self) -> None:
        self.seen: list[str] = []
        self.finalised = threading.Event()

    def gen(self) -> Iterator[list[int]]:
        self.seen.append("begun")
        try:
            yield [0]
            yield [1]
        finally:
            self.seen.append("finalised")
            self.finalised.set()

    async def agen(self) -> AsyncIterator[list[int]]:
        self.seen.append("begun")
        try:
            yield [0]
            yield [1]
        finally:
            self.seen.append("finalised")
            self.finalised.set()


Point = tuple[Any, str, bool]


def interrupt_once(monkeypatch: pytest.MonkeyPatch, point: Point) -> None:
    """Have Ctrl-C come into the next call of a method: before it does anything, or after it did."""
    owner, name, is_after = point
    method = getattr(owner, name)

    def interrupted(*args: Any) -> None:
        monkeypatch.undo()
        if is_after:
            method(*args)
        raise KeyboardInterrupt

    monkeypatch.setattr(owner, name, interrupted)


@pytest.mark.parametrize(
    ("kind", "runner", "point"),
    [
        ("gen", None, (Execution, "end", False)),
        ("gen", None, (Execution, "end", True)),
        ("gen", None, (Body, "release_slot", False)),
        ("gen", "thread", (OwnedExecution, "_leave", False)),
        ("gen", "thread", (Execution, "end", False)),
        ("gen", "thread", (Execution, "end", True)),
        ("gen", "thread", (OwnedExecution, "_request_stop", False)),
        ("agen", None, (OwnedExecution, "_leave", False)),
        ("agen", None, (Execution, "end", True)),
        ("agen", None, (OwnedExecution, "_request_stop", False)),
    ],
)
@pytest.mark.parametrize("how", ["cancel", "read"])
def test_a_call_whose_end_ctrl_c_interrupts_lets_go_of_everything_once_it_is_dropped(
    kind: str, runner: str | None, point: Point, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = Kept()
    with Engine(discover=False, grace=LIMIT) as muna:
        predictor = Predictor("@tests/kept", getattr(body, kind), concurrency=1)
        slots = muna.predictions.resolve(predictor).slots
        assert slots is not None
        stream = muna.predictions.stream(predictor, runner=runner)
        partials = stream.values()
        next(partials)
        interrupt_once(monkeypatch, point)
        with suppress(KeyboardInterrupt):  # what is read to its end, no stop is interrupted in
            if how == "cancel":
                stream.cancel()
            else:
                list(partials)
        monkeypatch.undo()
        del stream, partials
        slots.wait_for(slots.leases, LIMIT)
        assert body.seen == ["begun", "finalised"]
        assert slots.leases == ()
        assert not muna._open_calls


def test_a_call_that_ctrl_c_interrupts_as_its_end_is_told_is_taken_out_of_those_that_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls: list[int] = []

    def interrupt_at_the_end(execution: object) -> int:  # as it comes straight after a call of `id`
        calls.append(id(execution))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return calls[-1]

    monkeypatch.setattr(base, "id", interrupt_at_the_end, raising=False)
    with Engine(discover=False) as muna:
        with pytest.raises(KeyboardInterrupt):
            muna.predictions.create(counts, runner="thread")
        assert len(calls) > 2
        assert not muna._open_calls


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_a_stop_in_a_task_that_ctrl_c_interrupts_is_carried_out_by_the_loop_once_the_stream_is_dropped(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    body = Kept()

    async def scenario(muna: Engine) -> None:
        stream = muna.predictions.astream(body.agen)
        await anext(stream)
        outcome = stream.outcome
        interrupt_once(monkeypatch, (TaskExecution, "_stop", False))
        with pytest.raises(KeyboardInterrupt):
            stream.cancel()
        del stream
        assert await asyncio.to_thread(body.finalised.wait, LIMIT)
        assert outcome.state == "cancelled"
        assert muna.predictions.open_calls == ()

    with Engine(discover=False) as muna:
        asyncio.run(scenario(muna))


# However a call ends, its inputs live no longer than the exception that it ended with: no collector is needed.


class Weighty:
    """An input that tells, by its end, that nothing refers to it."""

    def __init__(self) -> None:
        self.is_gone = threading.Event()

    def __del__(self) -> None:
        self.is_gone.set()

    def __reduce__(self) -> Any:
        return (Weighty, ())


def cleans_up_with(error: type[BaseException] | None) -> dict[str, Callable[[Weighty], Any]]:
    def gen(weighty: Weighty) -> Iterator[list[Weighty]]:
        try:
            yield []
            yield [weighty]
        finally:
            if error is not None:
                raise error("of the clean-up")

    async def agen(weighty: Weighty) -> AsyncIterator[list[Weighty]]:
        try:
            yield []
            yield [weighty]
        finally:
            if error is not None:
                raise error("of the clean-up")

    return {"gen": gen, "agen": agen}


async def waits(weighty: Weighty) -> list[Weighty]:
    await asyncio.sleep(LIMIT)
    return [weighty]


async def ends_by(muna: Engine, predictor: Any, consumer: str, runner: str | None, how: str) -> None:
    """Have a call end; nothing here names its stream while that raises, whose outcome keeps what that raises."""
    predictions: Any = muna.predictions
    inputs = {"weighty": Weighty()}
    is_gone, is_async = inputs["weighty"].is_gone, consumer == "asyncio"
    with suppress(LookupError, ValueError, PredictorError, PredictionCancelledError, asyncio.CancelledError):
        if how == "task cancelled":
            task = asyncio.ensure_future(predictions.acreate(predictor, inputs, runner=runner))
            del inputs
            await asyncio.sleep(0)
            task.cancel()
            await task
        elif how == "reducer":
            create = predictions.acreate if is_async else predictions.create
            created = create(predictor, inputs, runner=runner, reduce=fold(refuse, 0))
            await created if is_async else created
        else:
            stream = (predictions.astream if is_async else predictions.stream)(predictor, inputs, runner=runner)
            partials = stream.values()
            await anext(partials) if is_async else next(partials)
            if how == "cancelled":
                stream.cancel()
            del stream
            if how == "cancelled":
                await anext(partials, None) if is_async else next(partials, None)
            del partials
    inputs = {}
    if is_async:
        assert await asyncio.to_thread(is_gone.wait, LIMIT)
    else:
        assert is_gone.wait(LIMIT)


def refuse(_state: object, _value: object) -> object:
    raise LookupError("of the reducer")


@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.parametrize("how", ["cancelled", "dropped", "reducer"])
@pytest.mark.parametrize("error", [None, LookupError, SystemExit])
@pytest.mark.parametrize(("kind", "consumer", "runner"), EVERY)
def test_an_input_is_freed_without_a_collector_however_its_call_ends(
    kind: str, consumer: str, runner: str | None, error: type[BaseException] | None, how: str
) -> None:
    with Engine(discover=False, grace=LIMIT, workers=1) as muna, uncollected():
        ending = ends_by(muna, cleans_up_with(error)[kind], consumer, runner, how)
        if consumer == "asyncio":
            asyncio.run(ending)
        else:
            with pytest.raises(StopIteration):
                ending.send(None)


@pytest.mark.parametrize("runner", [None, "inline", "thread"])
def test_an_input_is_freed_without_a_collector_where_the_task_that_waits_is_cancelled(runner: str | None) -> None:
    with Engine(discover=False, grace=LIMIT) as muna, uncollected():
        asyncio.run(ends_by(muna, waits, "asyncio", runner, "task cancelled"))


@contextmanager
def uncollected() -> Iterator[None]:
    """Without a garbage collector, and without a log, whose records pytest keeps, and their exceptions with them."""
    log = logging.getLogger("engine")
    gc.collect()
    gc.disable()
    log.disabled = True
    try:
        yield
    finally:
        log.disabled = False
        gc.enable()


# A stream whose predictor is still to be found ends as any other.


class Opened:
    """An execution that a deferred one hands over to."""

    def __init__(self) -> None:
        self.is_shown = threading.Event()
        self.go = threading.Event()
        self.cancelled = 0

    def show_in(self, _outcome: Outcome) -> None:
        self.is_shown.set()
        self.go.wait(LIMIT)

    def cancel(self) -> None:
        self.cancelled += 1

    def values(self) -> Iterator[int]:
        return iter((1,))


def test_a_cancellation_that_comes_as_a_stream_is_opened_is_told_by_what_was_opened_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    opened: Any = Opened()
    stream = DeferredExecution(lambda: (opened, reducer_of("last")), "@tests/opened")
    seen: list[int] = []
    reader = threading.Thread(target=lambda: seen.extend(stream.values()))

    def open_first(*about: str) -> PredictionCancelledError:
        reader.start()
        assert opened.is_shown.wait(LIMIT)
        return PredictionCancelledError(*about)

    monkeypatch.setattr(deferred, "PredictionCancelledError", open_first)
    stream.cancel()
    opened.go.set()
    reader.join(LIMIT)
    assert (seen, opened.cancelled) == ([1], 1)


@pytest.mark.parametrize("is_async", [False, True], ids=["stream", "astream"])
@pytest.mark.parametrize(("how", "ended"), [("cancel", [PredictionCancelledError]), ("close", [])])
def test_a_stream_that_ends_while_its_predictor_is_looked_for_in_vain_tells_one_end(
    how: str, ended: list[type[Exception]], is_async: bool, caplog: pytest.LogCaptureFixture
) -> None:
    def open_now() -> Any:
        stream.cancel() if how == "cancel" else stream.close()
        raise LookupError("there is none")

    async def open_soon() -> Any:
        astream.cancel() if how == "cancel" else await astream.aclose()
        raise LookupError("there is none")

    stream = PredictionStream(DeferredExecution(open_now, "@tests/none"), None)
    astream = AsyncPredictionStream(AsyncDeferredExecution(open_soon, "@tests/none"), None)

    async def read() -> list[type[Exception]]:
        seen: list[type[Exception]] = []
        while len(seen) < 5:
            try:
                await anext(astream)
            except StopAsyncIteration:
                break
            except Exception as error:
                seen.append(type(error))
        return seen

    assert (asyncio.run(read()) if is_async else told(lambda: next(stream), StopIteration)) == ended
    outcome = (astream if is_async else stream).outcome
    assert outcome.state == ("cancelled" if how == "cancel" else "closed")
    assert [type(each) for each in [outcome.exception] if each is not None] == ended
    assert logged(caplog, LookupError) == 1


def test_a_stream_that_is_cancelled_before_its_predictor_is_looked_for_shows_that() -> None:
    stream = PredictionStream(DeferredExecution(lambda: pytest.fail("it is looked for"), "@tests/none"), None)
    stream.cancel()
    assert isinstance(stream.outcome.exception, PredictionCancelledError)
    assert told(lambda: next(stream), StopIteration) == [PredictionCancelledError]


@pytest.mark.parametrize("how", ["not opened", "failed"])
def test_what_a_late_stream_refers_to_is_freed_without_a_collector(how: str, muna: Engine) -> None:
    def fail(weighty: Weighty) -> Any:
        raise LookupError(str(weighty))

    outcomes: list[Outcome] = []

    def read() -> threading.Event:
        weighty = Weighty()
        is_gone = weighty.is_gone
        if how == "failed":
            loaded = muna.predictions.resolve(fail)
            open_now = partial(muna.predictions._opened, loaded, {"weighty": weighty}, "thread", None, None)
        else:
            open_now = partial(fail, weighty)
        execution = DeferredExecution(open_now, "@tests/none")
        outcomes.append(execution.outcome)
        partials = execution.values()
        del execution, open_now, weighty
        with suppress(LookupError):
            next(partials)
        return is_gone

    with uncollected():
        is_gone = read()
        assert not is_gone.is_set()
        assert [type(each.exception) for each in outcomes] == [LookupError]
        outcomes.clear()
        assert is_gone.wait(LIMIT)


def test_a_coroutine_that_is_closed_while_it_pulls_a_stream_just_stopped_raises_and_logs_nothing(
    muna: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    async def waiting() -> AsyncIterator[int]:
        yield 0
        await asyncio.sleep(LIMIT)

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


def inlet() -> Any:
    dispatcher: Any = object()
    return Inlet(3, "@tests/wire", dispatcher)


@pytest.mark.parametrize("make", [partial(Channel, 3), inlet], ids=["Channel", "Inlet"])
def test_what_waits_to_be_taken_lives_no_longer_than_its_consumer_stays(make: Callable[[], Any]) -> None:
    channel, early, late = make(), Weighty(), Weighty()
    are_gone = [early.is_gone, late.is_gone]
    channel.items.append((early, 0.0))
    channel.detach()
    if isinstance(channel, Channel):  # a worker's frames are not taken in any more
        channel.items.append((late, 0.0))
    del early, late
    channel.finish(Report())
    assert all(is_gone.is_set() for is_gone in are_gone)


@pytest.mark.parametrize("how", ["cancel", "close"])
def test_an_outcome_keeps_nothing_that_was_made_in_vain(how: str) -> None:
    """Where the consumer leaves, partials wait that nothing takes any more."""

    def weights() -> Iterator[Weighty]:
        while True:
            yield Weighty()

    with Engine(discover=False, grace=LIMIT) as muna:
        stream = muna.predictions.stream(weights, runner="thread", prefetch=3)
        next(stream.values())
        execution: Any = stream._execution
        deadline = time.monotonic() + LIMIT
        while not execution.ending.items and time.monotonic() < deadline:
            time.sleep(0.001)
        waiting = [value.is_gone for value, _ in execution.ending.items]
        getattr(stream, how)()
        outcome = stream.outcome
        del stream, execution
        assert waiting
        assert all(is_gone.wait(LIMIT) for is_gone in waiting)
        assert outcome.ended


@pytest.mark.parametrize("how", ["close", "cancel", "shut", "pull"])
@pytest.mark.parametrize("is_reached", [False, True], ids=["before-the-body", "in-the-body"])
def test_ctrl_c_in_a_clean_up_on_the_main_thread_reaches_the_caller_and_the_body_is_finalised(
    is_reached: bool, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    finalised: list[bool] = []

    def body() -> Iterator[int]:
        try:
            yield 0
            stream.cancel()
            yield 1
        finally:
            finalised.append(True)
            if is_reached:
                raise KeyboardInterrupt

    with Engine(discover=False) as muna:
        stream = muna.predictions.stream(Predictor("@tests/body", body, concurrency=1))
        next(stream)
        if not is_reached:
            interrupt_once(monkeypatch, (inline, "close_iterator", False))
        end_by: dict[str, Callable[[], object]] = {
            "close": stream.close,
            "cancel": stream.cancel,
            "shut": muna.close,
            "pull": lambda: next(stream),
        }
        with pytest.raises(KeyboardInterrupt):
            end_by[how]()
        assert finalised == [True]
        assert stream.outcome.ended
        assert not muna._open_calls
