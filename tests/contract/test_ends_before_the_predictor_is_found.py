"""A stream whose predictor is still to be found ends as any other."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from engine import AsyncPredictionStream, Outcome, PredictionCancelledError, PredictionStream
from engine._reducers import reducer_of
from engine.runners import deferred
from engine.runners.deferred import AsyncDeferredExecution, DeferredExecution
from tests._kit.waits import TIMEOUT
from tests.contract.ended_streams import logged, told

# A stream whose predictor is still to be found ends as any other.


class Opened:
    """An execution that a deferred one hands over to."""

    def __init__(self) -> None:
        self.is_shown = threading.Event()
        self.go = threading.Event()
        self.cancelled = 0

    def show_in(self, _outcome: Outcome) -> None:
        self.is_shown.set()
        self.go.wait(TIMEOUT)

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
        assert opened.is_shown.wait(TIMEOUT)
        return PredictionCancelledError(*about)

    monkeypatch.setattr(deferred, "PredictionCancelledError", open_first)
    stream.cancel()
    opened.go.set()
    reader.join(TIMEOUT)
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
