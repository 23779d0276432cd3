"""What an event loop that ends closes: the streams left open on it, and the tasks that finalise stopped ones."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import asyncio
    from collections.abc import AsyncGenerator, Awaitable


class _OpenStream(Protocol):
    """An execution that began on a loop, as far as the loop's end concerns it."""

    @property
    def is_open_at_exit(self) -> bool:
        """Whether there is a body that the loop has to close where it ends."""
        ...

    def close_abandoned(self) -> Awaitable[None]:
        """Close it, for its loop ends."""
        ...


class LoopExit:
    """The open executions of one event loop, and the one async generator of theirs that the loop sees.

    Where the loop ends, it closes that, and with it the bodies of all streams that were left open.

    Attributes:
        loop: the event loop.
        open: what began there and is not finalised yet, in order. This keeps it, for a collector that takes a whole
            cycle must not touch a body.
    """

    __slots__ = ("_generator", "loop", "open")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        """Become what the running event loop closes where it ends; there is one for each loop, in `loop_exits`."""
        self.loop = loop
        self.open: dict[_OpenStream, None] = {}
        for each in tuple(loop_exits):
            if each.is_closed():  # it never closed its generators
                loop_exits.pop(each, None)
        loop_exits[loop] = self
        self._generator = self._close_all()
        exhaust(self._generator.__anext__())  # the loop now knows it

    async def _close_all(self) -> AsyncGenerator[None, None]:
        try:
            yield
        finally:
            loop_exits.pop(self.loop, None)
            left = [each.close_abandoned() for each in tuple(self.open) if each.is_open_at_exit]
            errors: list[Any] = []
            if left:
                import asyncio

                errors = await asyncio.gather(*left, return_exceptions=True)
            await finalised()
            for error in errors:
                if error is not None:
                    raise error  # the loop reports it


loop_exits: dict[asyncio.AbstractEventLoop, LoopExit] = {}
finalising: set[asyncio.Task[None]] = set()  # asyncio itself would let a task be collected while it waits


async def finalised(seconds: float | None = None) -> None:
    """Wait, at most `seconds`, for the clean-up of this loop's stopped streams, each of which has its own bound."""
    import asyncio

    mine = {each for each in tuple(finalising) if each.get_loop() is asyncio.get_running_loop()}
    if mine:
        await asyncio.wait(mine, timeout=seconds)


def exhaust(closing: Any) -> None:
    """Run a coroutine to its end, or to the first thing it waits for, since no loop would go on with it."""
    with suppress(StopIteration, RuntimeError):
        closing.send(None)
