"""Predictors that are looked up, and the ways to call them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any, Final

from engine import Engine

WAYS: Final = ("create", "stream", "acreate", "astream")


def late() -> Iterator[str]:
    yield "late"


class Counter:
    def predict(self) -> int:
        return 1


def value_of(muna: Engine, way: str, tag: Any, **options: Any) -> Any:
    """What one call gives, whichever way it is consumed."""
    predictions = muna.predictions

    async def ahead() -> Any:
        if way == "acreate":
            return (await predictions.acreate(tag, **options)).value
        return [each async for each in predictions.astream(tag, **options).values()][-1]

    if way == "create":
        return predictions.create(tag, **options).value
    if way == "stream":
        return list(predictions.stream(tag, **options).values())[-1]
    return asyncio.run(ahead())


async def streamed(muna: Engine, tag: Any, **options: Any) -> Any:
    async with muna.predictions.astream(tag, **options) as stream:
        return [each async for each in stream.values()][-1]


async def created(muna: Engine, tag: Any, **options: Any) -> Any:
    return (await muna.predictions.acreate(tag, **options)).value
