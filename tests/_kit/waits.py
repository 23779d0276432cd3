"""Waits for what others bring about, each with a bound, and threads that are waited for.

Workers import this module too, so it imports no asyncio before something waits on a loop.
"""

from __future__ import annotations

import faulthandler
import inspect
import sys
import threading
import time
from typing import TYPE_CHECKING, Any, Final, Self, TypeVar

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

Value = TypeVar("Value")

TIMEOUT: Final = 20.0  # seconds that a single wait may take; only a test that fails waits as long
POLL_INTERVAL: Final = 0.001  # seconds between two looks at what no event tells of


def until(is_so: Callable[[], object], what: str = "", seconds: float = TIMEOUT) -> None:
    """Poll for what another thread or process brings about; `what` names it where that never comes."""
    deadline = time.monotonic() + seconds
    while not is_so():
        if time.monotonic() > deadline:
            show_every_stack()
            raise AssertionError(f"waited {seconds:g} s in vain: {what or is_so}")
        time.sleep(POLL_INTERVAL)


async def auntil(is_so: Callable[[], object], what: str = "", seconds: float = TIMEOUT) -> None:
    """Poll as `until` does; an event loop goes on meanwhile where one runs this coroutine."""
    if not is_on_a_loop():
        until(is_so, what, seconds)
        return
    import asyncio

    deadline = time.monotonic() + seconds
    while not is_so():
        if time.monotonic() > deadline:
            show_every_stack()
            raise AssertionError(f"waited {seconds:g} s in vain: {what or is_so}")
        await asyncio.sleep(POLL_INTERVAL)


async def within(awaitable: Awaitable[Value]) -> Value:
    """Await, in this very task, something that has to come about within the time-out."""
    import asyncio

    async with asyncio.timeout(TIMEOUT):
        return await awaitable


async def awaited(answer: Any) -> None:
    """Await what a function gave, where that can be awaited."""
    if inspect.isawaitable(answer):
        await answer


def is_on_a_loop() -> bool:
    """Whether an event loop runs in this thread."""
    asyncio: Any = sys.modules.get("asyncio")
    try:
        return asyncio is not None and asyncio.get_running_loop() is not None
    except RuntimeError:
        return False


def show_every_stack() -> None:
    """Write what every thread does to stderr: the evidence of a hang."""
    faulthandler.dump_traceback(file=2)


def started(function: Callable[[], object]) -> threading.Thread:
    """Start a thread that dies with this process."""
    thread = threading.Thread(target=function, daemon=True)
    thread.start()
    return thread


def joined(*threads: threading.Thread) -> None:
    """Wait for the end of threads."""
    for thread in threads:
        thread.join(TIMEOUT)
        if thread.is_alive():
            show_every_stack()
            raise AssertionError(f"{thread.name} hangs")


class OtherThread:
    """Runs something in a thread of its own; what that raises is raised by `join`, as at the end of a `with`.

    Attributes:
        result: what it returned, once it is over.
        error: what it raised.
    """

    def __init__(self, action: Callable[[], object]) -> None:
        self._action = action
        self.result: Any = None
        self.error: BaseException | None = None
        self.thread = threading.Thread(target=self._run, name="other-thread", daemon=True)

    def _run(self) -> None:
        try:
            self.result = self._action()
        except BaseException as error:
            self.error = error

    @property
    def is_over(self) -> bool:
        return not self.thread.is_alive()

    def start(self) -> Self:
        self.thread.start()
        return self

    def join(self) -> Any:
        joined(self.thread)
        if self.error is not None:
            raise self.error
        return self.result

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *exit_arguments: object) -> None:
        self.join()


def begun(action: Callable[[], object]) -> OtherThread:
    """Begin something in a thread of its own, which is the one that holds, waits and goes on."""
    return OtherThread(action).start()


def in_other_thread(function: Callable[[], object]) -> Any:
    """Call something in a thread of its own, so that a deadlock fails the test at once and by name."""
    return begun(function).join()


class Clock:
    """Stands still until it is moved on."""

    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now
