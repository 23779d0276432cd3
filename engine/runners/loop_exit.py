"""What an event loop that ends closes: the streams left open on it, and the tasks that finalise stopped ones."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import asyncio
    from collections.abc import AsyncGenerator, Awaitable


class _Open(Protocol):
    """What the guard of a loop knows of an execution that began there."""

    @property
    def is_left_open(self) -> bool:
        """Whether its consumer left it without closing it."""
        ...

    def leave(self) -> Awaitable[None]:
        """Close it: its loop ends."""
        ...


class LoopExit:
    """The open executions of one event loop, and the one async generator of theirs that the loop sees.

    Where the loop ends, it closes that, and with it the bodies of all streams that were left open.

    Attributes:
        loop: the event loop.
        open: what began there and is not finalised yet. A collector that takes a whole cycle must leave a body alone,
            so this keeps it.
    """

    __slots__ = ("_generator", "loop", "open")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        """Become the guard of the running event loop."""
        self.loop = loop
        self.open: dict[_Open, None] = {}
        for each in tuple(guards):
            if each.is_closed():  # it never closed its generators
                guards.pop(each, None)
        guards[loop] = self
        self._generator = self._watch()
        exhaust(self._generator.__anext__())  # the loop now knows it

    async def _watch(self) -> AsyncGenerator[None, None]:
        try:
            yield
        finally:
            guards.pop(self.loop, None)
            left = [each.leave() for each in tuple(self.open) if each.is_left_open]
            errors: list[Any] = []
            if left:
                import asyncio

                errors = await asyncio.gather(*left, return_exceptions=True)
            await finalised()
            for error in errors:
                if error is not None:
                    raise error  # the loop reports it


guards: dict[asyncio.AbstractEventLoop, LoopExit] = {}
finalising: set[asyncio.Task[None]] = set()  # asyncio itself would let a task be collected while it waits


async def finalised(seconds: float | None = None) -> None:
    """Wait, at most `seconds`, for the clean-up of this loop's stopped streams, each of which has its own bound."""
    import asyncio

    mine = {each for each in tuple(finalising) if each.get_loop() is asyncio.get_running_loop()}
    if mine:
        await asyncio.wait(mine, timeout=seconds)


def exhaust(closing: Any) -> None:
    """Step a coroutine that has nothing to wait for."""
    with suppress(StopIteration, RuntimeError):
        closing.send(None)
