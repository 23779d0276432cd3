"""Waiting in line: for a concurrency slot, or for anything else that calls hold and give back.

A slot is held from the start of a body until it is finalised. Taking one may wait, in a thread or an asyncio task;
giving one back takes no lock, so a collector may do it. A wait that could never end is refused at once.
"""

from __future__ import annotations

import math
import sys
import threading
import weakref
from abc import ABC, abstractmethod
from collections import deque
from contextlib import suppress
from contextvars import ContextVar
from functools import partial
from time import perf_counter
from typing import TYPE_CHECKING, Any, Final

from engine._channel import park_task, park_thread, wait_until, wake_all
from engine._errors import NestingError, PredictionCancelledError, warn
from engine._records import LOCK_STEP

if TYPE_CHECKING:
    import asyncio

    from engine._channel import Wake
    from engine._partials import Body
    from engine._records import Call

_PATIENCE: Final = 5.0  # seconds after which a wait is logged with its holder
_QUIET: Final = 60.0  # seconds in which one line logs one wait, while somebody stands in it
_MOST_NAMED: Final = 3  # holders a log line names


class Line(ABC):
    """Calls that wait, in a thread or an asyncio task, for what other calls hold."""

    __slots__ = ("_quiet_until",)

    advice = ""  # what the log says to whoever finds the wait too long

    def __init__(self) -> None:
        """Make a line of nobody."""
        self._quiet_until = 0.0

    @property
    @abstractmethod
    def holders(self) -> tuple[Holder, ...]:
        """Who holds what is waited for."""

    @property
    @abstractmethod
    def waiting(self) -> int:
        """How many calls wait."""

    @property
    @abstractmethod
    def tag(self) -> str:
        """What is waited for, for the log."""

    def wait(self, ticket: Ticket, body: Body) -> None:
        """Wait in a thread until `ticket` is granted.

        Raises:
            NestingError: the wait would be for the same thread, task or call chain.
            PredictionCancelledError: the call was stopped meanwhile.
        """
        waited = Patience(self.tag, self)
        try:
            body.nudge = ticket.wake
            self._note_first()
            self._enter(ticket, None)
            while not ticket.is_granted:
                park_thread(ticket.parked, ticket.has_news, waited.left())
                self._look_again(ticket, waited, None)
        except BaseException:
            self._leave(ticket)
            raise
        finally:
            body.nudge = None

    async def await_(self, ticket: Ticket, body: Body) -> None:
        """The same for an asyncio task."""
        import asyncio  # a loop runs, so it is imported

        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        waited, lost = Patience(self.tag, self), partial(self._lose, ticket)
        try:
            body.nudge = ticket.wake
            self._note_first()
            self._enter(ticket, task)
            while not ticket.is_granted:
                timer = loop.call_later(waited.left(), ticket.wake)
                try:
                    await park_task(ticket.parked, ticket.has_news, None, lost)
                finally:
                    timer.cancel()
                self._look_again(ticket, waited, task)
        except BaseException:
            self._leave(ticket)
            raise
        finally:
            body.nudge = None

    def _note_first(self) -> None:
        """What was logged of those who waited before says nothing of a call that came when they were gone."""
        if not self.waiting:
            self._quiet_until = 0.0

    def may_tell(self) -> bool:
        """Whether a long wait is logged now: one for all who wait, and no other for a while."""
        now = perf_counter()
        if now < self._quiet_until:
            return False
        self._quiet_until = now + _QUIET  # no call stands between the test and this line: one thread gets here
        return True

    def _look_again(self, ticket: Ticket, waited: Patience, task: object) -> None:
        refuse_stopped(ticket.call)
        if not ticket.is_granted:
            self._refuse(ticket, task)
            waited.report()

    @abstractmethod
    def _enter(self, ticket: Ticket, task: object) -> None:
        """Stand in line, unless that could never end."""

    @abstractmethod
    def _leave(self, ticket: Ticket) -> None:
        """Stand in line no more, and give back what was granted."""

    def _lose(self, ticket: Ticket) -> None:  # noqa: B027 - a line may have nothing to take back
        """The event loop of the task that waits was closed: nobody will ever take what it was granted."""

    @abstractmethod
    def _refuse(self, ticket: Ticket, task: object) -> None:
        """Refuse a wait that could never end.

        Raises:
            NestingError: it would be for the same thread, task or call chain.
        """


class Slots(Line):
    """Bounds a predictor's calls, from the start of a body until it is finalised, in this one place.

    Giving a slot back takes no lock, so a collector may do it.
    """

    __slots__ = ("_holders", "_queue", "_tag", "_tokens", "_watchers")

    def __init__(self, tag: str, limit: float) -> None:
        """Make slots for `limit` calls at a time; `math.inf` only keeps count."""
        super().__init__()
        self._tag = tag
        self._tokens: deque[None] | None = None if limit == math.inf else deque([None] * int(limit))
        self._holders: dict[int, Holder] = {}
        self._queue: deque[Ticket] = deque()
        self._watchers: deque[Wake] = deque()

    @property
    def holders(self) -> tuple[Holder, ...]:
        """Who holds a slot just now."""
        return tuple(self._holders.values())

    @property
    def waiting(self) -> int:
        """How many calls wait for one."""
        return len(self._queue)

    @property
    def tag(self) -> str:
        """The predictor's tag."""
        return self._tag

    def take(self, body: Body) -> None:
        """Take a slot for `body`, waiting in a thread behind those who wait already.

        Raises:
            NestingError: the wait would be for the same thread, task or call chain.
            PredictionCancelledError: the call was stopped meanwhile.
        """
        holder = Holder(body.call)  # first: what could raise comes before there is a slot to be lost
        if not self._takes_token(body):
            self.wait(Ticket(body.call), body)
        self._hold(holder, body)

    async def atake(self, body: Body) -> None:
        """The same for an asyncio task."""
        holder = Holder(body.call, needs_loop=body.call.runner == LOCK_STEP)  # as in `take`
        if not self._takes_token(body):
            await self.await_(Ticket(body.call), body)
        self._hold(holder, body)

    def _takes_token(self, body: Body) -> bool:
        refuse_stopped(body.call)
        if self._tokens is None:
            return True
        if self._queue:  # others were here first
            return False
        try:
            self._tokens.pop()
        except IndexError:
            return False
        return True

    def _enter(self, ticket: Ticket, task: object) -> None:
        self._refuse(ticket, task)
        self._queue.append(ticket)
        self._serve()  # a slot may have been given back just before

    def _leave(self, ticket: Ticket) -> None:
        self._lose(ticket)
        self._serve()

    def _lose(self, ticket: Ticket) -> None:
        if ticket.is_left:
            return
        ticket.is_left = True  # no call stands between the test and this line: what was granted is given back once
        with suppress(ValueError):  # taken out already, by whoever serves, who also sees the token that comes back
            self._queue.remove(ticket)
        if ticket.is_granted and self._tokens is not None:
            self._tokens.append(None)

    def _hold(self, holder: Holder, body: Body) -> None:
        self._holders[id(holder)] = holder
        body.release = partial(self._give, holder)

    def _give(self, holder: Holder) -> None:
        self._holders.pop(id(holder), None)
        if self._tokens is not None:
            self._tokens.append(None)
            self._serve()
        wake_all(self._watchers)

    def _serve(self) -> None:
        """Hand free slots to those who wait, in the order they came; takes no lock, so a collector may do it."""
        tokens, queue = self._tokens, self._queue
        while tokens and queue:
            try:
                tokens.pop()
            except IndexError:  # somebody else serves
                return
            try:
                ticket = queue.popleft()
            except IndexError:
                tokens.append(None)
                continue
            if not ticket.is_left:  # no call stands between this test and the next line: nobody leaves in between
                ticket.is_granted = True
            if ticket.is_granted:
                ticket.wake()
            else:
                tokens.append(None)

    def wait_for(self, holders: tuple[Holder, ...], seconds: float) -> tuple[Holder, ...]:
        """Wait, in a thread, at most `seconds` until these give their slots back; give those that did not."""

        def still() -> tuple[Holder, ...]:
            return tuple(holder for holder in holders if id(holder) in self._holders)

        wait_until(lambda: not still(), self._watchers, seconds)
        return still()

    def _refuse(self, ticket: Ticket, task: object) -> None:
        for holder in self.holders:
            if holder.blocks(ticket.call, task):
                raise NestingError(
                    f"{self._tag} takes no more calls at a time, and this call would wait for {holder} of the same "
                    f"{'task' if task else 'thread'} or call chain, which cannot go on meanwhile: read that stream to "
                    "its end or close it first, or raise the predictor's concurrency",
                    str(holder),
                )


def refuse_stopped(call: Call) -> None:
    """Do not wait any longer for a call that was stopped.

    Raises:
        PredictionCancelledError: it was.
    """
    if call.stopping:
        raise PredictionCancelledError(call.tag, call.id)


class Ticket:
    """One wait in line."""

    __slots__ = ("call", "is_granted", "is_left", "parked")

    def __init__(self, call: Call) -> None:
        """Wait on behalf of `call`."""
        self.call = call
        self.parked: deque[Wake] = deque()
        self.is_granted = False
        self.is_left = False

    def has_news(self) -> bool:
        """Whether there is a reason to look again."""
        return self.is_granted or self.call.stopping

    def wake(self) -> None:
        """Have whoever waits look again."""
        wake_all(self.parked)


class Holder:
    """A call that holds a slot, and the thread and task that consume it.

    Attributes:
        needs_loop: whether its body is cleaned up by the event loop of that thread.
    """

    __slots__ = ("call", "needs_loop", "task", "thread")

    def __init__(self, call: Call, *, needs_loop: bool = False) -> None:
        """Note where the slot is taken."""
        self.call = call
        self.needs_loop = needs_loop
        self.thread = threading.current_thread()  # itself: the number of one that is over is used again
        self.task = current_task() if "asyncio" in sys.modules else None

    def blocks(self, call: Call, task: object, thread: threading.Thread | None = None) -> bool:
        """Whether `call`, waiting in `thread` (this one) or in `task`, would keep this holder from ever going on."""
        if call is not self.call and call.is_within(self.call):
            return True
        if self.call.stopping and not (self.needs_loop and task is None):
            return False  # abandoned: it ends by itself, whatever its consumer does, unless its loop stands still
        if task is not None and self.task is not None:
            return self.task() is task  # a task that is over has left it to others
        return self.thread is (threading.current_thread() if thread is None else thread)

    def __str__(self) -> str:
        """Name the call."""
        return f"the open prediction {self.call.tag} {self.call.id}"


def current_task() -> weakref.ref[asyncio.Task[Any]] | None:
    """The running asyncio task, if asyncio is at work in this thread at all."""
    if not is_on_a_loop():
        return None
    module: Any = sys.modules["asyncio"]  # a loop runs, so all of it is there
    task = module.current_task()
    return None if task is None else weakref.ref(task)


def is_on_a_loop() -> bool:
    """Whether an event loop runs in this thread, told without importing asyncio."""
    # The function is looked for, not the module: another thread may have imported only half of that so far.
    running_loop: Any = getattr(sys.modules.get("asyncio"), "_get_running_loop", None)  # the public one raises
    return running_loop is not None and running_loop() is not None


awaiting: Final[ContextVar[weakref.ref[asyncio.Task[Any]] | None]] = ContextVar("engine.awaiting", default=None)
"""The asyncio task that waits for what this thread does, where a thread works on a task's behalf."""


class Patience:
    """Logs a wait that has become long, once, with who is waited for; of a whole line it is one wait that is logged."""

    __slots__ = ("_due", "_is_reported", "_line", "_tag")

    def __init__(self, tag: str, line: Line | None) -> None:
        self._tag = tag
        self._line = line
        self._due = perf_counter() + _PATIENCE
        self._is_reported = False

    def left(self) -> float:
        return _PATIENCE if self._is_reported else max(0.01, self._due - perf_counter())

    def report(self) -> None:
        if self._is_reported or perf_counter() < self._due:
            return
        line = self._line
        if line is None:
            self._is_reported = True
            warn(f"{self._tag} has been waited for during {_PATIENCE:.0f} s; held by its setup in another call")
        elif line.may_tell():
            self._is_reported = True
            count, holders = line.waiting, tuple(map(str, line.holders))
            held = ", ".join(holders[:_MOST_NAMED])
            held += f" and {len(holders) - _MOST_NAMED} more" if len(holders) > _MOST_NAMED else ""
            others = f", and {count} calls wait for it" if count > 1 else ""
            warn(f"{self._tag} has been waited for during {_PATIENCE:.0f} s{others}; held by {held}{line.advice}")
        else:  # another call's wait is in the log
            self._due = perf_counter() + _PATIENCE
