"""Four predictors that arrive at one greeting, one of each kind of function.

They are plain functions: the table of entry points in this distribution's metadata is all that makes them predictors.
Nothing of the engine is imported here, so that any package can follow the example without depending on it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

__all__ = ["async_eager", "async_generator", "eager", "generator"]


def eager() -> str:
    """Return the whole greeting at once."""
    return "hello from Muna"


def generator() -> Iterator[str]:
    """Yield the greeting as it grows: each partial is the text so far and replaces the one before."""
    yield "hello"
    yield "hello from"
    yield "hello from Muna"


async def async_eager() -> str:
    """Return the whole greeting at once, from a coroutine."""
    return eager()


async def async_generator() -> AsyncIterator[str]:
    """Yield the greeting as it grows, from an async generator."""
    for text in generator():
        yield text
