"""What a clean-up raises arrives once, in every cell: where the stream is closed, or in the log."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from typing import Any

import pytest

from engine import Engine, PredictorError
from engine.runners import Body, Channel, Report
from engine.runners.ending import Ending
from tests._kit.waits import TIMEOUT
from tests.contract.ended_streams import EVERY, HandsOverByHand, counts, logged

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


@pytest.mark.parametrize(("kind", "consumer", "runner"), EVERY)
def test_a_cancelled_error_of_a_clean_up_is_a_failure_like_any_other(
    muna: Engine, kind: str, consumer: str, runner: str | None
) -> None:
    raised, outcome = closed(muna, fails_in_cleaning_up(asyncio.CancelledError)[kind], consumer, runner)
    assert isinstance(raised, PredictorError)
    assert isinstance(raised.__cause__, asyncio.CancelledError)
    assert outcome.state == "closed"


# What a clean-up raises arrives once: where the stream is closed, or in the log.


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
    """Bodies that do not stop before they are abandoned, and then fail."""

    def __init__(self) -> None:
        self.reached = threading.Event()
        self.go = threading.Event()

    def gen(self) -> Iterator[int]:
        yield 0
        self.reached.set()
        self.go.wait(TIMEOUT)
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
        assert body.reached.wait(TIMEOUT)
        stream.close()
        body.go.set()
        reader.join(TIMEOUT)
        assert logged(caplog, LookupError) == 1


def test_what_a_pull_in_a_task_raises_is_logged_where_its_stopper_is_cancelled(
    caplog: pytest.LogCaptureFixture,
) -> None:
    body = Stubborn()

    async def scenario(muna: Engine) -> None:
        stream = muna.predictions.astream(body.agen)
        await anext(stream)
        reader = asyncio.ensure_future(anext(stream))
        assert await asyncio.to_thread(body.reached.wait, TIMEOUT)
        closer = asyncio.create_task(stream.aclose())
        await asyncio.sleep(0)
        closer.cancel()
        await asyncio.wait([closer])
        body.go.set()
        with suppress(StopAsyncIteration):
            await reader

    with Engine(discover=False, grace=TIMEOUT) as muna:
        asyncio.run(scenario(muna))
    assert logged(caplog, LookupError) == 1
