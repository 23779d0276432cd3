"""Single-flight: work that several threads or tasks want at one time is done by one, and the others wait for it."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any

from engine.runners.parking import park_task, park_thread, wake_all

if TYPE_CHECKING:
    from types import TracebackType

    from engine.runners.parking import Wake


class SingleFlight:
    """One piece of work that is under way, and the threads and tasks that wait for its outcome.

    Attributes:
        is_decided: whether it returned or failed; work that was abandoned did neither, and a waiter may take it over.
    """

    __slots__ = ("_error", "_found", "_is_over", "_parked", "_traceback", "is_decided")

    def __init__(self) -> None:
        """Begin it; nothing waits yet."""
        self._parked: deque[Wake] = deque()
        self._is_over = self.is_decided = False
        self._found: Any = None
        self._error: BaseException | None = None
        self._traceback: TracebackType | None = None

    def succeed(self, found: Any = None) -> None:
        """Note what it returned; `finish` wakes the waiters."""
        self._found, self.is_decided = found, True

    def fail(self, error: BaseException) -> None:
        """Note what it raised, for each waiter; `finish` wakes them."""
        self._error, self._traceback, self.is_decided = error, error.__traceback__, True

    def finish(self) -> None:
        """End the work, and wake the waiters; it was abandoned where neither `succeed` nor `fail` was called."""
        self._is_over = True  # before the wake-ups: a waiter tests it again once it is parked
        wake_all(self._parked)

    def is_over(self) -> bool:
        """Whether it has finished."""
        return self._is_over

    def wait(self, seconds: float) -> None:
        """Wait, in a thread, at most `seconds` for its end; `is_over` tells whether it has come."""
        park_thread(self._parked, self.is_over, seconds)

    async def wait_task(self) -> None:
        """Wait, in an asyncio task, for its end."""
        while not self._is_over:
            await park_task(self._parked, self.is_over)

    def outcome(self) -> Any:
        """What it returned.

        Raises:
            BaseException: what it raised.
        """
        error = self._error
        if error is None:
            return self._found
        try:
            raise error.with_traceback(self._traceback)  # which else would grow with each waiter
        finally:
            del error, self  # or this frame and the exception keep each other alive
