"""An asyncio consumer on a loop that is busy with other things."""

import asyncio
from collections.abc import AsyncIterator, Callable
from time import perf_counter
from typing import Any

from benchmarks._case import AsyncSamples, Case
from benchmarks.cases import _busy

PARTIALS = 20

case = Case(
    name="busy_loop",
    title="asyncio beside a busy loop, per partial",
    about="A sync generator of short work is read by a task whose event loop runs callbacks of so many microseconds "
    "one after the other: a producer in a thread must get its turn of the interpreter.",
    drive=AsyncSamples(),
    per="partial",
    axis="µs a callback",
    sizes=(200, 1_000, 4_000),
    quick=(1_000,),
    is_hand_off=True,
    is_once=True,
)


def reader(size: int) -> _busy.Read:
    """Reads while the loop runs callbacks of so many microseconds."""
    seconds = size / 1e6

    async def read(opening: Callable[[], AsyncIterator[float]]) -> tuple[float, list[Any]]:
        loop, is_over = asyncio.get_running_loop(), False

        def work() -> None:
            if not is_over:
                _busy.work(seconds)
                loop.call_soon(work)

        loop.call_soon(work)
        started, seen = perf_counter(), 0
        async for _ in opening():
            seen += 1
        elapsed = perf_counter() - started
        is_over = True
        return elapsed / seen, [seen]

    return read


_busy.add(case, reader, PARTIALS, 0.0001)
