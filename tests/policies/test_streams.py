"""Streams: what they show of themselves and keep, what their outcome tells, and how they are entered and awaited."""

from __future__ import annotations

import asyncio
import pickle
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest

from engine import AsyncPredictionStream, Engine, PredictionStream
from tests.policies.calls import yields, yields_later


def test_a_stream_shows_what_it_is_and_how_far_it_got(muna: Engine) -> None:
    stream = muna.predictions.stream(yields)
    assert repr(stream) == f"<PredictionStream {stream.tag} pending after 0 partials>"
    next(stream)
    assert repr(stream) == f"<PredictionStream {stream.tag} running after 1 partial>"
    list(stream)
    assert repr(stream) == f"<PredictionStream {stream.tag} done after 2 partials>"


def test_an_async_stream_shows_what_it_is_and_how_far_it_got(muna: Engine) -> None:
    async def read() -> None:
        stream = muna.predictions.astream(yields_later)
        assert repr(stream) == f"<AsyncPredictionStream {stream.tag} pending after 0 partials>"
        assert [each.value async for each in stream] == ["a", "b"]
        assert repr(stream) == f"<AsyncPredictionStream {stream.tag} done after 2 partials>"

    asyncio.run(read())


@pytest.mark.parametrize("target", [yields, yields_later])
def test_a_stream_cannot_be_pickled_and_says_what_can(target: Callable[..., Any], muna: Engine) -> None:
    for stream in (muna.predictions.stream(target), muna.predictions.astream(target)):
        with pytest.raises(TypeError, match="send its values"):
            pickle.dumps(stream)


def test_the_outcome_tells_the_end_the_return_value_and_the_times(muna: Engine) -> None:
    stream = muna.predictions.stream(yields)
    outcome = stream.outcome
    assert (outcome.state, outcome.count, outcome.ended) == ("pending", 0, False)
    assert (outcome.first, outcome.duration) == (None, None)
    next(stream)
    assert (outcome.state, outcome.count, outcome.ended) == ("running", 1, False)
    assert outcome.first is not None
    assert list(stream.values()) == ["b"]
    assert (outcome.state, outcome.count, outcome.returned, outcome.ended) == ("done", 2, "the end", True)
    assert outcome.duration is not None
    assert outcome.duration >= outcome.first >= 0.0
    assert stream.outcome is outcome


def test_a_stream_keeps_nothing_it_delivered(muna: Engine) -> None:
    import weakref

    class Heavy:
        pass

    def gives() -> Iterator[Heavy]:
        for _ in range(3):
            yield Heavy()

    stream = muna.predictions.stream(gives)
    seen = [weakref.ref(each) for each in stream.values()]
    assert [reference() for reference in seen] == [None, None, None]
    assert stream.outcome.count == 3


def test_awaiting_a_stream_gives_itself_before_anything_ran(muna: Engine) -> None:
    ran: list[int] = []

    async def body() -> AsyncIterator[int]:
        ran.append(1)
        yield 1

    async def read() -> None:
        stream = muna.predictions.astream(body)
        assert await stream is stream
        assert await stream is stream
        assert ran == []
        assert [each async for each in stream.values()] == [1]

    asyncio.run(read())


def test_a_stream_is_its_own_context(muna: Engine) -> None:
    with muna.predictions.stream(yields) as stream:
        assert isinstance(stream, PredictionStream)

    async def read() -> None:
        async with muna.predictions.astream(yields_later) as stream:
            assert isinstance(stream, AsyncPredictionStream)

    asyncio.run(read())
    assert stream.outcome.state == "closed"
