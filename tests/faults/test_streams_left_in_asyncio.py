"""Streams that asyncio consumers break off, abandon, or close while another task pulls them."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator

import pytest

from engine import Engine
from tests._kit.waits import TIMEOUT, auntil, within
from tests.faults.consumers import waiting_async_body

# 73: async generators left open.


@pytest.mark.fault(73)
@pytest.mark.parametrize("runner", [None, "inline", "thread"])
def test_a_break_runs_the_predictors_finally_soon_awaits_included(muna: Engine, runner: str | None) -> None:
    steps: list[str] = []

    async def endless() -> AsyncIterator[int]:
        try:
            for number in range(1_000_000):
                yield number
                await asyncio.sleep(0)
        finally:
            steps.append("started")
            await asyncio.sleep(0)
            steps.append("finished")

    async def main() -> None:
        async for prediction in muna.predictions.astream(endless, runner=runner):
            if prediction.index == 2:
                break
        await auntil(lambda: steps == ["started", "finished"], "the clean-up")

    with pytest.warns(ResourceWarning, match="abandoned after 3 partials"):
        asyncio.run(main())
    assert steps == ["started", "finished"]


@pytest.mark.fault(73)
@pytest.mark.parametrize("runner", [None, "inline", "thread"])
def test_leaving_the_async_with_runs_the_predictors_finally_before_it_goes_on(muna: Engine, runner: str | None) -> None:
    steps: list[str] = []

    async def endless() -> AsyncIterator[int]:
        try:
            for number in range(1_000_000):
                yield number
        finally:
            await asyncio.sleep(0)
            steps.append("finished")

    async def main() -> None:
        async with muna.predictions.astream(endless, runner=runner) as stream:
            async for prediction in stream:
                if prediction.index == 2:
                    break
        assert steps == ["finished"]
        assert stream.outcome.state == "closed"

    asyncio.run(main())


@pytest.mark.fault(73)
@pytest.mark.parametrize("runner", [None, "inline", "thread"])
def test_an_abandoned_sync_generator_is_finalised_too(muna: Engine, runner: str | None) -> None:
    finished = threading.Event()

    def endless() -> Iterator[int]:
        try:
            yield from range(1_000_000)
        finally:
            finished.set()

    async def main() -> None:
        async for _ in muna.predictions.astream(endless, runner=runner):
            break
        await auntil(finished.is_set, "the clean-up")

    with pytest.warns(ResourceWarning, match="abandoned after 1 partial;"):
        asyncio.run(main())


# 74: aclose while a pull runs.


@pytest.mark.fault(74)
@pytest.mark.parametrize("runner", [None, "thread"])
def test_closing_while_another_task_pulls_ends_that_pull(muna: Engine, runner: str | None) -> None:
    reached, finished = threading.Event(), threading.Event()

    async def main() -> None:
        # The body does not run ahead, so it reaches its wait only once the other task pulls.
        stream = muna.predictions.astream(waiting_async_body(reached, finished), runner=runner, prefetch=0)
        assert (await within(anext(stream))).value == "first"
        pull = asyncio.create_task(anext(stream, None))
        await auntil(reached.is_set, "the wait inside the body")
        await within(stream.aclose())
        assert finished.is_set()
        assert await within(pull) is None
        assert stream.outcome.state == "closed"
        assert [item async for item in stream] == []

    asyncio.run(main())


@pytest.mark.fault(74)
def test_closing_while_another_task_pulls_a_thread_ends_that_pull(muna: Engine) -> None:
    reached, go, finished = threading.Event(), threading.Event(), threading.Event()

    def waits() -> Iterator[str]:
        try:
            yield "first"
            reached.set()
            assert go.wait(TIMEOUT)
            yield "late"
        finally:
            finished.set()

    async def main() -> None:
        stream = muna.predictions.astream(waits, prefetch=0)
        assert (await within(anext(stream))).value == "first"
        pull = asyncio.create_task(anext(stream, None))
        await auntil(reached.is_set, "the wait inside the body")
        closing = asyncio.create_task(stream.aclose())
        assert await within(pull) is None
        go.set()
        await within(closing)
        assert finished.is_set()

    asyncio.run(main())
