"""The engine's own work that would block an event loop, done in owner threads on behalf of asyncio tasks.

Imports, plugin discovery and waits for a worker are done there. What several tasks want at one time is a
single-flight: one task has it done, the others wait for its outcome.
"""

from __future__ import annotations

from contextvars import copy_context
from typing import TYPE_CHECKING, Any

from engine._fork import renew_after_fork
from engine._predictors.body import Body
from engine._records import Call
from engine.runners.base import OpenCalls
from engine.runners.channel import Channel
from engine.runners.owned import OwnedExecution
from engine.runners.single_flight import SingleFlight
from engine.runners.slots import awaiting, current_task

if TYPE_CHECKING:
    from collections.abc import Callable

    from engine.runners.thread import ThreadRunner


class OwnerWork:
    """Runs functions of the engine's in owner threads, each alone or once for all tasks that want it.

    Args:
        threads: the engine's owner threads.
        look_for_plugins: what they are looked for by.
        grace: seconds that a stop waits for a function to return.
    """

    def __init__(self, threads: ThreadRunner, look_for_plugins: Callable[[], None], grace: float) -> None:
        self._threads = threads
        self._look_for_plugins = look_for_plugins
        self._grace = grace
        self._flights: dict[Any, SingleFlight] = {}
        renew_after_fork(self)

    async def run(self, name: str, function: Callable[..., Any], *args: Any) -> Any:
        """Call a function in an owner thread, and wait for it in this task.

        Args:
            name: the predictor's tag, for messages.
            function: what to call; it returns one plain value.
            args: what with.

        Raises:
            BaseException: what it raised.
        """
        context = copy_context()
        context.run(awaiting.set, current_task())
        body = Body(Call(name, self._threads.name, None), function, args, {}, False, context)  # noqa: FBT003
        # Of no engine's open calls: closing the engine waits for its owner threads, not for this.
        execution = OwnedExecution(body, Channel(None, name), self._threads, self._grace, OpenCalls())
        try:
            found = await execution.pull()
        except BaseException as error:
            _drop_note(error)
            raise
        await _read_end(execution)
        return found

    async def run_once(self, key: Any, name: str, function: Callable[..., Any], *args: Any) -> tuple[Any, bool]:
        """Call a function in an owner thread on behalf of every task that comes with the same key meanwhile.

        Args:
            key: what makes it the same work.
            name: the predictor's tag, for messages.
            function: what to call; it returns one plain value.
            args: what with.

        Returns:
            What it gave, and whether this task had it called.

        Raises:
            BaseException: what it raised.
        """
        mine = SingleFlight()
        while (flight := self._flights.setdefault(key, mine)) is not mine:
            await flight.wait_task()
            if flight.is_decided:  # else its task was cancelled, and one of those that waited takes over
                return flight.outcome(), False
        try:
            found = await self.run(name, function, *args)
            mine.succeed(found)
        except Exception as error:
            mine.fail(error)
            raise
        finally:
            self._flights.pop(key, None)  # before the others wake: one that takes over finds no flight but its own
            mine.finish()
            del mine, flight  # which refer to the error, and its traceback to this frame
        return found, True

    async def look(self, name: str, is_wanted: Callable[[], bool]) -> None:
        """Have plugins looked for, once for all tasks that come meanwhile, as long as that is wanted.

        Args:
            name: the predictor's tag, for messages.
            is_wanted: whether there still is a reason to.

        Raises:
            BaseException: what looking for them raised.
        """
        is_mine = False
        while not is_mine and is_wanted():  # a look that had begun before may have missed what this task wants
            _, is_mine = await self.run_once("plugins", name, self._look_for_plugins)

    def after_fork(self) -> None:
        """Wait for no task of the parent's."""
        self._flights = {}


async def _read_end(execution: OwnedExecution) -> None:
    """Have an execution whose one partial was taken reach its end."""
    try:
        await execution.pull()
    except StopAsyncIteration:
        return


def _drop_note(error: BaseException) -> None:
    """Take off the note that `explain` puts on a predictor's failure: what failed here was no prediction."""
    notes = getattr(error, "__notes__", None)
    if isinstance(notes, list) and notes:
        notes.pop()
