"""Consumers of either colour, and async bodies that wait, for tests that cross from sync code to asyncio and back."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from typing import Any

from engine import Engine


async def aconsume(muna: Engine, predictor: Any, how: str, inputs: Any = None, runner: str | None = None) -> list[Any]:
    """The partials of one call, as an asyncio consumer gets them."""
    if how == "acreate":
        return [(await muna.predictions.acreate(predictor, inputs, runner=runner)).value]
    return [value async for value in muna.predictions.astream(predictor, inputs, runner=runner).values()]


def consume(muna: Engine, predictor: Any, how: str, inputs: Any = None, runner: str | None = None) -> list[Any]:
    """The partials of one call, as a sync consumer gets them."""
    if how == "create":
        return [muna.predictions.create(predictor, inputs, runner=runner).value]
    return list(muna.predictions.stream(predictor, inputs, runner=runner).values())


async def areturns(name: str) -> str:
    await asyncio.sleep(0)
    return f"hello {name}"


def waiting_async_body(reached: threading.Event, finished: threading.Event) -> Callable[[], Any]:
    async def waits() -> AsyncIterator[str]:
        try:
            yield "first"
            reached.set()
            await asyncio.sleep(3600)
            yield "never"
        finally:
            finished.set()

    return waits
