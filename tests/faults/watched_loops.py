"""An event loop that fails its test with what it can tell no caller."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Any


def run(main: Awaitable[None], factory: Any = None) -> None:
    """Run to the end, with what the loop cannot tell any caller taken for a failure."""
    told: list[dict[str, Any]] = []

    async def watched() -> None:
        loop = asyncio.get_running_loop()
        loop.set_task_factory(factory)
        loop.set_exception_handler(lambda _loop, context: told.append(context))
        await main

    asyncio.run(watched())
    assert told == []
