"""How long a partial is on its way while its producer is busy."""

from collections.abc import AsyncIterator, Callable
from statistics import median
from time import perf_counter
from typing import Any

from benchmarks._case import AsyncSamples, Case
from benchmarks.cases import _busy

PARTIALS, BUSY = 20, 0.002

case = Case(
    name="delay",
    title="delay from yield to receipt, busy producer",
    about="A sync generator computes 2 ms in Python before each partial and yields the clock; an asyncio task reads it "
    "and looks at the clock again: the median over a stream.",
    drive=AsyncSamples(),
    per="partial",
    is_hand_off=True,
    is_once=True,
)


async def read(opening: Callable[[], AsyncIterator[float]]) -> tuple[float, list[Any]]:
    """Seconds that a partial was on its way."""
    delays = [perf_counter() - stamp async for stamp in opening()]
    return median(delays), [len(delays)]


_busy.add(case, lambda _size: read, PARTIALS, BUSY)
