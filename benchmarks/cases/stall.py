"""How long a busy producer keeps the event loop from anything else."""

import asyncio
from collections.abc import AsyncIterator, Callable
from time import perf_counter
from typing import Any

from benchmarks._case import AsyncSamples, Case
from benchmarks.cases import _busy

PARTIALS, BUSY = 20, 0.005
TICK = 0.001

case = Case(
    name="stall",
    title="worst stall of the event loop, busy producer",
    about="A sync generator computes 5 ms in Python before each partial; beside its reader a task sleeps a millisecond "
    "again and again: how late it woke at worst.",
    drive=AsyncSamples(),
    per="stream",
    is_hand_off=True,
    is_once=True,
)


async def read(opening: Callable[[], AsyncIterator[float]]) -> tuple[float, list[Any]]:
    """Seconds the loop was late at worst."""
    worst = 0.0

    async def tick() -> None:
        nonlocal worst
        while True:
            due = perf_counter() + TICK
            await asyncio.sleep(TICK)
            worst = max(worst, perf_counter() - due)

    task, seen = asyncio.create_task(tick()), 0
    await asyncio.sleep(2 * TICK)
    async for _ in opening():
        seen += 1
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task])
    return worst, [seen]


_busy.add(case, lambda _size: read, PARTIALS, BUSY)
