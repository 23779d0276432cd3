"""Waits with a limit, in a thread or in a task, for what another one brings about."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeVar

Value = TypeVar("Value")

PATIENCE: Final = 10.0  # seconds; only a test that fails waits as long


def until(condition: Callable[[], bool], what: str) -> None:
    """Wait for something another thread brings about."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not come about within {PATIENCE} s"
        time.sleep(0.001)


async def auntil(condition: Callable[[], bool], what: str) -> None:
    """Wait for something another thread or task brings about, without blocking this loop."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not come about within {PATIENCE} s"
        await asyncio.sleep(0.001)


async def within(awaitable: Awaitable[Value]) -> Value:
    return await asyncio.wait_for(awaitable, PATIENCE)


async def within_this_task(awaitable: Any) -> Any:
    """Await in this very task, with a limit."""
    async with asyncio.timeout(PATIENCE):
        return await awaitable


def in_time(function: Callable[[], Any]) -> Any:
    """Call in a thread of its own, so that a deadlock fails the test at once and by name."""
    answers: list[Any] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            answers.append(function())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(PATIENCE)
    assert not thread.is_alive(), "a deadlock"
    if errors:
        raise errors[0]
    return answers[0]
