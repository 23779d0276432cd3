"""Concurrency slots: how many calls of one predictor run at a time, who holds them, and who would wait for itself.

A slot is held from the start of a body until it is finalised. Taking one may wait, in a thread or an asyncio task;
giving one back takes no lock, so a collector may do it. A wait that could never end is refused at once.
"""

from __future__ import annotations

import math
import sys
import threading
import weakref
from collections import deque
from functools import partial
from time import perf_counter
from typing import TYPE_CHECKING, Any, Final

from engine._channel import park_task, park_thread, wait_until, wake_all, wake_one
from engine._errors import NestingError, PredictionCancelledError, warn

if TYPE_CHECKING:
    import asyncio

    from engine._channel import Wake
    from engine._partials import Body
    from engine._records import Call

_PATIENCE: Final = 5.0  # seconds after which a wait is logged with its holder


class Slots:
    """Bounds a predictor's calls, from the start of a body until it is finalised, in this one place.

    Giving a slot back takes no lock, so a collector may do it.
    """

    __slots__ = ("_holders", "_parked", "_tag", "_tokens", "_watchers")

    def __init__(self, tag: str, limit: float) -> None:
        """Make slots for `limit` calls at a time; `math.inf` only keeps count."""
        self._tag = tag
        self._tokens: deque[None] | None = None if limit == math.inf else deque([None] * int(limit))
        self._holders: dict[int, Holder] = {}
        self._parked: deque[Wake] = deque()
        self._watchers: deque[Wake] = deque()

    @property
    def holders(self) -> tuple[Holder, ...]:
        """Who holds a slot just now."""
        return tuple(self._holders.values())

    def take(self, body: Body) -> None:
        """Take a slot for `body`, waiting in a thread.

        Raises:
            NestingError: the wait would be for the same thread, task or call chain.
            PredictionCancelledError: the call was stopped meanwhile.
        """
        if self._try(body):
            return
        waited = Patience(self._tag, self)
        body.nudge = self._nudge
        try:
            while not self._try(body):
                self._refuse(body, None)
                waited.report()
                park_thread(self._parked, lambda: self._is_free(body.call), waited.left())
        finally:
            self._leave(body)

    async def atake(self, body: Body) -> None:
        """The same for an asyncio task."""
        if self._try(body):
            return
        import asyncio

        waited = Patience(self._tag, self)
        body.nudge = self._nudge
        loop = asyncio.get_running_loop()
        try:
            while not self._try(body):
                self._refuse(body, asyncio.current_task())
                waited.report()
                timer = loop.call_later(waited.left(), self._nudge)
                try:
                    await park_task(self._parked, lambda: self._is_free(body.call))
                finally:
                    timer.cancel()
        finally:
            self._leave(body)

    def _leave(self, body: Body) -> None:
        body.nudge = None
        if self._tokens and self._parked:
            wake_one(self._parked)  # this one may have been woken for a slot it did not take

    def _nudge(self) -> None:
        wake_all(self._parked)

    def _is_free(self, call: Call) -> bool:
        return bool(self._tokens) or call.stopping

    def _try(self, body: Body) -> bool:
        if body.call.stopping:
            raise PredictionCancelledError(body.call.tag, body.call.id)
        if self._tokens is not None:
            try:
                self._tokens.pop()
            except IndexError:
                return False
        holder = Holder(body.call)
        self._holders[id(holder)] = holder
        body.release = partial(self._give, holder)
        return True

    def _give(self, holder: Holder) -> None:
        self._holders.pop(id(holder), None)
        if self._tokens is not None:
            self._tokens.append(None)
        wake_one(self._parked)
        wake_all(self._watchers)

    def wait_for(self, holders: tuple[Holder, ...], seconds: float) -> tuple[Holder, ...]:
        """Wait, in a thread, at most `seconds` until these give their slots back; give those that did not."""

        def still() -> tuple[Holder, ...]:
            return tuple(holder for holder in holders if id(holder) in self._holders)

        wait_until(lambda: not still(), self._watchers, seconds)
        return still()

    def _refuse(self, body: Body, task: object) -> None:
        for holder in self.holders:
            if holder.blocks(body.call, task):
                raise NestingError(
                    f"{self._tag} takes no more calls at a time, and this call would wait for {holder} of the same "
                    f"{'task' if task else 'thread'} or call chain, which cannot go on meanwhile: read that stream to "
                    "its end or close it first, or raise the predictor's concurrency",
                    str(holder),
                )


class Holder:
    """A call that holds a slot, and the thread and task that consume it."""

    __slots__ = ("_task", "_thread", "call")

    def __init__(self, call: Call) -> None:
        """Note where the slot is taken."""
        self.call = call
        self._thread = threading.get_ident()
        self._task = current_task()

    def blocks(self, call: Call, task: object) -> bool:
        """Whether `call`, waiting in this thread or in `task`, would keep this holder from ever going on."""
        if call is not self.call and call.is_within(self.call):
            return True
        if self.call.stopping:  # abandoned: it ends by itself, whatever its consumer does
            return False
        mine = self._task() if self._task is not None else None
        if task is not None and mine is not None:
            return mine is task
        return self._thread == threading.get_ident()

    def __str__(self) -> str:
        """Name the call."""
        return f"the open prediction {self.call.tag} {self.call.id}"


def current_task() -> weakref.ref[asyncio.Task[Any]] | None:
    """The running asyncio task, if asyncio is at work in this thread at all."""
    module: Any = sys.modules.get("asyncio")
    if module is None or module._get_running_loop() is None:  # noqa: SLF001 - the public getter raises instead
        return None
    task = module.current_task()
    return None if task is None else weakref.ref(task)


class Patience:
    """Logs a wait that has become long, once, with who is waited for."""

    __slots__ = ("_due", "_is_reported", "_slots", "_tag")

    def __init__(self, tag: str, slots: Slots | None) -> None:
        self._tag = tag
        self._slots = slots
        self._due = perf_counter() + _PATIENCE
        self._is_reported = False

    def left(self) -> float:
        return _PATIENCE if self._is_reported else max(0.01, self._due - perf_counter())

    def report(self) -> None:
        if not self._is_reported and perf_counter() >= self._due:
            self._is_reported = True
            holders = ", ".join(map(str, self._slots.holders)) if self._slots else "its setup in another call"
            warn(f"{self._tag} has been waited for during {_PATIENCE:.0f} s; held by {holders}")
