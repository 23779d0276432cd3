"""Where bodies run in this process: the caller, an owner thread, or a task of the engine's own loop.

Three runners differ in who serves a body whose colour (sync or async) is its caller's or the other one. They start
nothing themselves: `place` names the owner that does. All of them share one instance of each class.
"""

from __future__ import annotations

from contextvars import copy_context
from typing import TYPE_CHECKING

from engine._records import LOCK_STEP

if TYPE_CHECKING:
    from engine.runners.base import BodyRunner, InOwner, Loaded
    from engine.runners.loop import LoopRunner
    from engine.runners.thread import ThreadRunner


class DefaultRunner:
    """The caller itself where its colour fits, else an owner of the body's colour.

    Args:
        threads: owners of sync bodies.
        loop: the owner of async bodies.
        grace: seconds that an `unload` waits for calls.
    """

    name = "default"  # no caller names it
    is_elsewhere = False
    is_constant = True
    stays_with_caller = False
    is_ready = True
    describe = None

    def __init__(self, threads: ThreadRunner, loop: LoopRunner, grace: float) -> None:
        """Know the owners of this process."""
        self._threads = threads
        self._loop = loop
        self._grace = grace

    def place(self, loaded: Loaded, runner: str | None, *, is_task: bool) -> BodyRunner | None:  # noqa: ARG002
        """Who runs a body; `None` is the caller, in lock-step.

        Raises:
            NestingError: the caller would wait for the engine's loop where that waits for the caller.
        """
        profile = loaded.profile
        if is_task:
            if profile.is_async:
                return self._loop if profile.lives_on_loop else None
            return loaded.owner or self._threads
        return self._loop_waited_for(loaded) if profile.is_async else None

    def _loop_waited_for(self, loaded: Loaded) -> LoopRunner:
        self._loop.refuse_to_wait(loaded.profile.tag)
        return self._loop

    @property
    def is_started(self) -> bool:
        """Nothing is to be closed here: its owners are closed by their engine."""
        return False

    def prepare(self) -> None:
        """Do nothing: it is imported already."""

    def load(self, loaded: Loaded) -> None:
        """Set a class up where its calls will find it: on the engine's loop, or in the thread kept for it."""
        profile = loaded.profile
        if not profile.is_async:
            loaded.prepare_in_thread()
        elif not loaded.is_ready:
            self._loop.run(loaded.aprepare(), copy_context(), f"setup() of {profile.tag}")

    async def aload(self, loaded: Loaded, in_owner: InOwner) -> None:
        """Set a class up from an asyncio task, on the engine's loop or in the thread kept for it."""
        if loaded.is_ready:
            return
        if loaded.profile.is_async:
            import asyncio  # a loop runs, so it is imported

            await asyncio.wrap_future(self._loop.submit(loaded.aprepare(), copy_context()))
        else:
            await in_owner(loaded.profile.tag, loaded.prepare_in_thread)

    def unload(self, loaded: Loaded) -> None:
        """Tear a class down where it lives."""
        loaded.unload(self._grace)

    def loaded(self) -> tuple[str, ...]:
        """No tags: the engine itself knows what is ready here."""
        return ()

    def close_soon(self) -> None:
        """Do nothing: its owners are closed by their engine."""

    def close(self, grace: float) -> list[BaseException]:  # noqa: ARG002
        """Do nothing: its owners are closed by their engine."""
        return []


class InlineRunner(DefaultRunner):
    """The caller itself, whatever the body's colour; sync code, which cannot step an async body, is refused."""

    name = LOCK_STEP
    stays_with_caller = True

    def place(self, loaded: Loaded, runner: str | None, *, is_task: bool) -> BodyRunner | None:
        """Who runs a body: the caller, but for what only the engine's loop can run.

        Raises:
            ValueError: it is async, and sync code asked for this runner by name.
            NestingError: the caller would wait for the engine's loop where that waits for the caller.
        """
        profile = loaded.profile
        if not profile.is_async:
            return None
        if is_task:
            return self._loop if profile.lives_on_loop else None
        if runner == self.name:  # else its author's choice, or the engine's, which were made for other callers, too
            raise ValueError(
                f"{profile.tag} is async and cannot run inline in sync code, which has no event loop: leave runner "
                "out (it then runs on the engine's own loop), or call acreate/astream from asyncio"
            )
        return self._loop_waited_for(loaded)

    def load(self, loaded: Loaded) -> None:
        """Set a class up in this thread, one with async methods on the engine's loop."""
        if loaded.profile.is_async:
            super().load(loaded)
        else:
            loaded.prepare()

    async def aload(self, loaded: Loaded, in_owner: InOwner) -> None:
        """Set a class up on the caller's event loop itself, as its calls run there; others as by default."""
        if loaded.thread is None or loaded.is_ready:
            await super().aload(loaded, in_owner)
        else:
            await loaded.aprepare()


class OwnerRunner(DefaultRunner):
    """An owner of the body's colour, whatever the caller's: an owner thread, or the engine's own loop."""

    name = "thread"

    def place(self, loaded: Loaded, runner: str | None, *, is_task: bool) -> BodyRunner:  # noqa: ARG002
        """Who runs a body.

        Raises:
            NestingError: the caller would wait for the engine's loop where that waits for the caller.
        """
        if not loaded.profile.is_async:
            return loaded.owner or self._threads
        return self._loop if is_task else self._loop_waited_for(loaded)
