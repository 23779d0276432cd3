"""Ways to consume a predictor that several rooms go through, and what leaves its streams in odd ways."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

    from engine import Engine


class Letters:
    """A class predictor of two partials."""

    def predict(self) -> Iterator[str]:
        yield from "ab"


FOUR: Final[list[Any]] = ["ab", ["a", "b"]] * 2  # what `consumed` gives for the partials of `Letters`


def consumed(muna: Engine, predictor: Any, **options: Any) -> list[Any]:
    """What each of the four consumers gets, in the order create, stream, acreate, astream."""

    async def consume() -> list[Any]:
        created = await muna.predictions.acreate(predictor, **options, reduce="concat")
        async with muna.predictions.astream(predictor, **options) as stream:
            return [created.value, [value async for value in stream.values()]]

    created = muna.predictions.create(predictor, **options, reduce="concat").value
    return [created, list(muna.predictions.stream(predictor, **options).values()), *asyncio.run(consume())]


class ConsumerFailed(Exception):
    """What a consumer's loop raises."""


class Knot:
    """Holds a stream in a reference cycle, so that only a collector frees it."""

    def __init__(self, *held: Any) -> None:
        self.held = held
        self.itself = self
