"""The event loop of a worker, which its main thread runs while it serves an async predictor or waits for a command."""

from __future__ import annotations

import contextlib
import threading
from typing import TYPE_CHECKING, Any

from engine._errors import NestingError
from engine.runners.loop import LoopRunner

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Coroutine
    from contextvars import Context

    from engine.runners.base import HandOver


class MainLoop(LoopRunner):
    """An event loop that the main thread runs while a call needs it.

    Attributes:
        is_running: the main thread runs it now.
        is_made: there is a loop.
    """

    def __init__(self, hand_over_sync: HandOver) -> None:
        """Make no loop yet."""
        super().__init__(hand_over_sync)
        self.is_running = False
        self.is_made = False

    def after_fork(self) -> None:
        """Change nothing: the child that a predictor forks has the thread of this loop, and may go on with it."""

    def is_current_thread(self) -> bool:
        """Whether the calling thread runs this loop now."""
        return self.is_running and threading.current_thread() is threading.main_thread()

    def loop(self) -> asyncio.AbstractEventLoop:
        """Give the loop, which is made when first needed."""
        if self._loop is None:
            import asyncio

            self._loop = asyncio.new_event_loop()
            self.is_made = True
            asyncio.set_event_loop(self._loop)
        return self._loop

    def refuse_to_wait(self, what: str) -> None:
        """Raise `NestingError` where code that runs on this loop would block until this loop does `what`."""
        if self.is_current_thread():
            raise NestingError(f"{what} is async and would be waited for on the very loop it needs: await it instead")

    def run(
        self, coroutine: Coroutine[Any, Any, Any], context: Context, what: str, seconds: float | None = None
    ) -> Any:
        """Run the loop until a coroutine is done, at most `seconds`, and return its result."""
        import asyncio

        try:
            self.refuse_to_wait(what)
            loop = self.loop()
        except BaseException:
            coroutine.close()
            raise
        task = loop.create_task(coroutine, context=context)
        if seconds is not None:
            task = loop.create_task(asyncio.wait_for(task, seconds))
        self.is_running = True
        try:
            while True:
                try:
                    return loop.run_until_complete(task)
                # Raised by another task, as in `run_until_stopped`; then this one is not done, and the loop goes on.
                except (SystemExit, KeyboardInterrupt):
                    if task.done():
                        raise
        finally:
            self.is_running = False

    def run_until_stopped(self) -> None:
        """Run the loop until it is stopped, by the host or by a predictor's task; the caller tests whether to go on."""
        self.is_running = True
        try:
            # asyncio raises these out of the loop, though they are the outcome of a task that the predictor made.
            with contextlib.suppress(SystemExit, KeyboardInterrupt):
                self.loop().run_forever()
        finally:
            self.is_running = False

    def stop_running(self) -> None:
        """Have `run_until_stopped` return, if it runs; for the main thread."""
        if self.is_running and self._loop is not None:
            self._loop.stop()

    def cancel_owners(self) -> None:
        """Cancel the owners of all bodies; only for the thread that runs the loop."""
        for owner in tuple(self.owners):
            owner.cancel()

    def end(self, seconds: float) -> None:
        """Cancel all tasks, wait for them at most `seconds`, and close the loop."""
        import asyncio

        loop, self._loop, self.is_made = self._loop, None, False  # first: what runs below must not use the loop again
        if loop is None:
            return
        tasks = asyncio.all_tasks(loop)
        for task in tasks:
            task.cancel()
        if tasks:
            loop.run_until_complete(asyncio.wait(tasks, timeout=seconds))
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()
