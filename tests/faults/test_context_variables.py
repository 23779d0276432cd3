"""A body sees its caller's context as it was at the call, and nothing it sets leaks back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextvars import ContextVar
from typing import Any

import pytest

from engine import AsyncPredictionStream, Engine
from tests._kit.waits import auntil, within
from tests.faults.consumers import aconsume

colour: ContextVar[str] = ContextVar("colour", default="none")


# 80: context variables.


def watched(seen: list[str]) -> Callable[[], Iterator[str]]:
    def body() -> Iterator[str]:
        try:
            seen.append(colour.get())
            yield "one"
            seen.append(colour.get())
            colour.set("the predictor's")
            yield "two"
            seen.append(colour.get())
        finally:
            seen.append(colour.get())

    return body


def awatched(seen: list[str]) -> Callable[[], AsyncIterator[str]]:
    async def body() -> AsyncIterator[str]:
        try:
            seen.append(colour.get())
            yield "one"
            await asyncio.sleep(0)
            seen.append(colour.get())
            colour.set("the predictor's")
            yield "two"
            await asyncio.sleep(0)
            seen.append(colour.get())
        finally:
            seen.append(colour.get())

    return body


AS_SEEN = ["the caller's", "the caller's", "the predictor's", "the predictor's"]


@pytest.fixture
def the_callers_colour() -> Iterator[None]:
    token = colour.set("the caller's")
    yield
    colour.reset(token)


@pytest.mark.fault(80)
@pytest.mark.usefixtures("the_callers_colour")
@pytest.mark.parametrize("runner", [None, "thread"])
@pytest.mark.parametrize("make", [watched, awatched], ids=["sync", "async"])
def test_a_sync_callers_context_is_seen_as_it_was_at_the_call_and_nothing_leaks_back(
    muna: Engine, runner: str | None, make: Callable[[list[str]], Any]
) -> None:
    seen: list[str] = []
    stream = muna.predictions.stream(make(seen), runner=runner, prefetch=0)
    values = stream.values()
    colour.set("changed before the first pull")
    assert next(values) == "one"
    colour.set("changed between two pulls")
    assert next(values) == "two"
    assert colour.get() == "changed between two pulls"
    assert list(values) == []
    assert seen == AS_SEEN
    assert colour.get() == "changed between two pulls"


@pytest.mark.fault(80)
@pytest.mark.usefixtures("the_callers_colour")
@pytest.mark.parametrize("runner", [None, "inline", "thread"])
@pytest.mark.parametrize("make", [watched, awatched], ids=["sync", "async"])
def test_an_asyncio_callers_context_is_seen_as_it_was_at_the_call_and_nothing_leaks_back(
    muna: Engine, runner: str | None, make: Callable[[list[str]], Any]
) -> None:
    seen: list[str] = []

    async def main() -> None:
        stream = muna.predictions.astream(make(seen), runner=runner, prefetch=0)
        values = stream.values()
        colour.set("changed before the first pull")
        assert await anext(values) == "one"
        colour.set("changed between two pulls")
        assert await anext(values) == "two"
        assert colour.get() == "changed between two pulls"
        assert [value async for value in values] == []
        assert colour.get() == "changed between two pulls"

    asyncio.run(main())
    assert seen == AS_SEEN


@pytest.mark.fault(80)
@pytest.mark.usefixtures("the_callers_colour")
@pytest.mark.parametrize("runner", [None, "inline", "thread"])
@pytest.mark.parametrize("is_async", [True, False], ids=["async", "sync"])
def test_a_stream_closed_or_abandoned_by_another_task_cleans_up_in_its_own_context(
    muna: Engine, runner: str | None, is_async: bool
) -> None:
    seen: list[str] = []

    async def abody() -> AsyncIterator[str]:
        try:
            colour.set("the predictor's")
            yield "one"
            yield "two"
        finally:
            seen.append(colour.get())

    def body() -> Iterator[str]:
        try:
            colour.set("the predictor's")
            yield "one"
            yield "two"
        finally:
            seen.append(colour.get())

    async def close(stream: AsyncPredictionStream) -> None:
        colour.set("the closer's")
        await stream.aclose()

    async def main() -> None:
        stream = muna.predictions.astream(abody if is_async else body, runner=runner)
        await anext(stream)
        await asyncio.create_task(close(stream))
        assert seen == ["the predictor's"]
        other = muna.predictions.astream(abody if is_async else body, runner=runner)
        await anext(other)
        colour.set("the leaver's")
        with pytest.warns(ResourceWarning, match="abandoned"):  # noqa: PT031 - it comes with the clean-up
            del other
            await auntil(lambda: len(seen) == 2, "the clean-up")
            for _ in range(3):
                await asyncio.sleep(0)

    asyncio.run(main())
    assert seen == ["the predictor's"] * 2


@pytest.mark.fault(80)
@pytest.mark.parametrize("runner", [None, "thread"])
def test_a_predictor_that_calls_the_engine_hands_its_own_context_on(muna: Engine, runner: str | None) -> None:
    def inner() -> Iterator[str]:
        yield colour.get()
        colour.set("inner")
        yield colour.get()

    def outer() -> Iterator[str]:
        colour.set("outer")
        yield from muna.predictions.stream(inner, runner=runner).values()
        yield colour.get()

    assert list(muna.predictions.stream(outer, runner=runner).values()) == ["outer", "inner", "outer"]


@pytest.mark.fault(80)
def test_an_async_predictor_that_calls_the_engine_hands_its_own_context_on(muna: Engine) -> None:
    async def inner() -> AsyncIterator[str]:
        yield colour.get()
        colour.set("inner")
        await asyncio.sleep(0)
        yield colour.get()

    async def outer() -> AsyncIterator[str]:
        colour.set("outer")
        async with muna.predictions.astream(inner) as stream:
            async for value in stream.values():
                yield value
        yield colour.get()

    async def main() -> None:
        for runner in (None, "thread"):
            assert await within(aconsume(muna, outer, "astream", runner=runner)) == ["outer", "inner", "outer"]

    asyncio.run(main())
