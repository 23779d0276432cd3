"""However a call ends, what it refers to is freed without a collector."""

from __future__ import annotations

import asyncio
import gc
import logging
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

import pytest

from engine import Engine, Outcome, PredictionCancelledError, PredictorError, fold
from engine.runners import Channel, Report
from engine.runners.deferred import DeferredExecution
from engine.runners.process.inlet import Inlet
from tests._kit.internals import execution_of, loaded_of, opened
from tests._kit.waits import TIMEOUT
from tests.contract.ended_streams import EVERY

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
    await asyncio.sleep(TIMEOUT)
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
        assert await asyncio.to_thread(is_gone.wait, TIMEOUT)
    else:
        assert is_gone.wait(TIMEOUT)


def refuse(_state: object, _value: object) -> object:
    raise LookupError("of the reducer")


@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.parametrize("how", ["cancelled", "dropped", "reducer"])
@pytest.mark.parametrize("error", [None, LookupError, SystemExit])
@pytest.mark.parametrize(("kind", "consumer", "runner"), EVERY)
def test_an_input_is_freed_without_a_collector_however_its_call_ends(
    kind: str, consumer: str, runner: str | None, error: type[BaseException] | None, how: str
) -> None:
    with Engine(discover=False, grace=TIMEOUT, workers=1) as muna, uncollected():
        ending = ends_by(muna, cleans_up_with(error)[kind], consumer, runner, how)
        if consumer == "asyncio":
            asyncio.run(ending)
        else:
            with pytest.raises(StopIteration):
                ending.send(None)


@pytest.mark.parametrize("runner", [None, "inline", "thread"])
def test_an_input_is_freed_without_a_collector_where_the_task_that_waits_is_cancelled(runner: str | None) -> None:
    with Engine(discover=False, grace=TIMEOUT) as muna, uncollected():
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


@pytest.mark.parametrize("how", ["not opened", "failed"])
def test_what_a_late_stream_refers_to_is_freed_without_a_collector(how: str, muna: Engine) -> None:
    def fail(weighty: Weighty) -> Any:
        raise LookupError(str(weighty))

    outcomes: list[Outcome] = []

    def read() -> threading.Event:
        weighty = Weighty()
        is_gone = weighty.is_gone
        if how == "failed":
            loaded = loaded_of(muna, fail)
            open_now = partial(opened, muna, loaded, {"weighty": weighty}, "thread", None, None)
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
        assert is_gone.wait(TIMEOUT)


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

    with Engine(discover=False, grace=TIMEOUT) as muna:
        stream = muna.predictions.stream(weights, runner="thread", prefetch=3)
        next(stream.values())
        execution: Any = execution_of(stream)
        deadline = time.monotonic() + TIMEOUT
        while not execution.ending.items and time.monotonic() < deadline:
            time.sleep(0.001)
        waiting = [value.is_gone for value, _ in execution.ending.items]
        getattr(stream, how)()
        outcome = stream.outcome
        del stream, execution
        assert waiting
        assert all(is_gone.wait(TIMEOUT) for is_gone in waiting)
        assert outcome.ended
