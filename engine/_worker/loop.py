"""The event loop of a worker, which its main thread turns while an async predictor runs."""

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
    """An event loop that the main thread turns while there is something for it to do."""

    def __init__(self, hand_over_sync: HandOver) -> None:
        """Turn nothing yet."""
        super().__init__(hand_over_sync)
        self.is_turning = False
        self.is_made = False

    def after_fork(self) -> None:
        """Go on: the child that a predictor forks is this loop's own thread, and may let the predictor go on, too."""

    def is_current_thread(self) -> bool:
        """Whether the calling thread turns this loop just now."""
        return self.is_turning and threading.current_thread() is threading.main_thread()

    def loop(self) -> asyncio.AbstractEventLoop:
        """The loop, made if it was not."""
        if self._loop is None:
            import asyncio

            self._loop = asyncio.new_event_loop()
            self.is_made = True
            asyncio.set_event_loop(self._loop)
        return self._loop

    def refuse_to_wait(self, what: str) -> None:
        """Refuse a wait for this loop by what it runs."""
        if self.is_current_thread():
            raise NestingError(f"{what} is async and would be waited for on the very loop it needs: await it instead")

    def run(
        self, coroutine: Coroutine[Any, Any, Any], context: Context, what: str, seconds: float | None = None
    ) -> Any:
        """Turn the loop until a coroutine is done, at most `seconds`."""
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
        self.is_turning = True
        try:
            while True:
                try:
                    return loop.run_until_complete(task)
                except (SystemExit, KeyboardInterrupt):  # as in `turn`
                    if task.done():
                        raise
        finally:
            self.is_turning = False

    def turn(self) -> None:
        """Turn the loop until it is stopped, or a task of a body's stops it: the caller looks whether to go on."""
        self.is_turning = True
        try:
            # asyncio raises these out of the loop though the task, one that a body made, has them as its exception.
            with contextlib.suppress(SystemExit, KeyboardInterrupt):
                self.loop().run_forever()
        finally:
            self.is_turning = False

    def stop_turning(self) -> None:
        """Let `turn` return."""
        if self.is_turning and self._loop is not None:
            self._loop.stop()

    def end(self, seconds: float) -> None:
        """Cancel what still runs, and close the loop."""
        import asyncio

        loop, self._loop, self.is_made = self._loop, None, False
        if loop is None:
            return
        tasks = asyncio.all_tasks(loop)
        for task in tasks:
            task.cancel()
        if tasks:
            loop.run_until_complete(asyncio.wait(tasks, timeout=seconds))
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()
