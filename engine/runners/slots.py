"""Waiting in line: for a concurrency slot, or for anything else that calls hold and give back.

A slot is held from the start of a body until it is finalised. Taking one may wait, in a thread or an asyncio task;
giving one back takes no lock, so a collector may do it. A wait that could never end is refused: at once where that is
certain, after a grace where nothing but a thread says so, for another thread may go on with what this one began.
"""

from __future__ import annotations

import gc
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

from engine._errors import NestingError, PredictionCancelledError, warn
from engine._records import LOCK_STEP
from engine.runners.parking import park_task, park_thread, wait_until, wake_all

if TYPE_CHECKING:
    import asyncio

    from engine._predictors.body import Body
    from engine._records import Call
    from engine.runners.channel import Wake

_LONG_WAIT: Final = 5.0  # seconds after which a wait is logged with its holder
_LOG_INTERVAL: Final = 60.0  # seconds in which one line logs one wait, while somebody stands in it
_MAX_NAMED: Final = 3  # holders a log line names
_RECHECK_INTERVAL: Final = 0.1  # seconds between two looks at a suspicion that has lasted

CERTAIN: Final = "certain"
SUSPECTED: Final = "suspected"  # until it has lasted a grace


class WaitQueue(ABC):
    """Calls that wait, in a thread or an asyncio task, for what other calls hold."""

    __slots__ = ("_collected", "_next_log_at", "grace")

    advice = ""  # what the log says to whoever finds the wait too long

    def __init__(self, grace: float) -> None:
        """Make a line of nobody; a suspicion has to last `grace` seconds before a wait is refused for it."""
        self.grace = grace
        self._next_log_at = 0.0
        self._collected = -math.inf  # when the garbage collector was last run for those who wait here

    @property
    @abstractmethod
    def leases(self) -> tuple[Lease, ...]:
        """Who holds what is waited for."""

    @property
    @abstractmethod
    def waiting(self) -> int:
        """How many calls wait."""

    @property
    @abstractmethod
    def tag(self) -> str:
        """What is waited for, for the log."""

    def wait(self, waiter: Waiter, body: Body) -> None:
        """Wait in a thread until `waiter` is granted.

        Raises:
            NestingError: the wait would never end.
            PredictionCancelledError: the call was stopped meanwhile.
        """
        long_wait = LongWait(self.tag, self)
        try:
            self._begin_wait(waiter, body)
            while not waiter.is_granted:
                park_thread(waiter.parked, waiter.has_news, min(long_wait.left(), waiter.left()))
                self._look_again(waiter, long_wait)
        except BaseException:
            self._abandon(waiter)
            raise
        finally:
            body.recheck = None

    async def wait_task(self, waiter: Waiter, body: Body) -> None:
        """Wait in an asyncio task until `waiter` is granted.

        Raises:
            NestingError: the wait would never end.
            PredictionCancelledError: the call was stopped meanwhile.
        """
        long_wait, lost = LongWait(self.tag, self), partial(self._withdraw, waiter)
        try:
            self._begin_wait(waiter, body)
            while not waiter.is_granted:
                left = min(long_wait.left(), waiter.left())
                await park_task(waiter.parked, waiter.has_news, None, lost, left)
                self._look_again(waiter, long_wait)
        except BaseException:
            self._abandon(waiter)
            raise
        finally:
            body.recheck = None

    def _begin_wait(self, waiter: Waiter, body: Body) -> None:
        """Join the queue.

        Raises:
            NestingError: the wait would never end.
        """
        body.recheck = waiter.wake  # before `has_news` looks at what a stop stores: see `parking`
        if not self.waiting:  # what was logged of earlier waits says nothing of one that begins after them
            self._next_log_at = 0.0
        self._enqueue(waiter)
        self._refuse(waiter)

    def may_log(self) -> bool:
        """Whether a long wait is logged now: one for all who wait, and no other for a while."""
        now = perf_counter()
        if now < self._next_log_at:
            return False
        self._next_log_at = now + _LOG_INTERVAL  # no call stands between the test and this line: one thread gets here
        return True

    def _look_again(self, waiter: Waiter, long_wait: LongWait) -> None:
        refuse_stopped(waiter.call)
        if not waiter.is_granted:
            self._refuse(waiter)
            long_wait.report()

    def _refuse(self, waiter: Waiter) -> None:
        """Refuse a wait that could never end, but none for a stream that is garbage.

        Raises:
            NestingError: it could not.
        """
        blocker = self._blocker(waiter)
        if blocker is not None and self._collects(waiter):
            blocker = self._blocker(waiter)
        if blocker is not None:
            raise NestingError(self._refusal(waiter, blocker), str(blocker))

    def _collects(self, waiter: Waiter) -> bool:
        """Have streams that are garbage in reference cycles finalised, where one may be what `waiter` waits for.

        Such a stream was dropped before the wait began, so one collection will do for all who waited by then.
        """
        if waiter.suspicious_since is None:
            return False
        if self._collected < waiter.suspicious_since:
            self._collected = perf_counter()
            gc.collect()
        return True

    @abstractmethod
    def _enqueue(self, waiter: Waiter) -> None:
        """Stand in line."""

    @abstractmethod
    def _abandon(self, waiter: Waiter) -> None:
        """Stand in line no more, and give back what was granted."""

    def _withdraw(self, waiter: Waiter) -> None:  # noqa: B027 - a line may have nothing to take back
        """The event loop of the task that waits was closed: nobody will ever take what it was granted."""

    @abstractmethod
    def _blocker(self, waiter: Waiter) -> Lease | None:
        """A call for which this one would wait for ever; `None` while somebody may still give back what it wants."""

    @abstractmethod
    def _refusal(self, waiter: Waiter, blocker: Lease) -> str:
        """What the error says."""


class Slots(WaitQueue):
    """Bounds a predictor's calls, from the start of a body until it is finalised, in this one place.

    Giving a slot back takes no lock, so a collector may do it.
    """

    __slots__ = ("_leases", "_queue", "_tag", "_tokens", "_watchers")

    def __init__(self, tag: str, limit: float, grace: float = 0.0) -> None:
        """Make slots for `limit` calls at a time, where `math.inf` only keeps count; `grace` as for any line, in s."""
        super().__init__(grace)
        self._tag = tag
        self._tokens: deque[None] | None = None if limit == math.inf else deque([None] * int(limit))
        self._leases: dict[int, Lease] = {}
        self._queue: deque[Waiter] = deque()
        self._watchers: deque[Wake] = deque()

    @property
    def leases(self) -> tuple[Lease, ...]:
        """Who holds a slot just now."""
        return tuple(self._leases.values())

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
        lease = Lease(body.call)  # first: what could raise comes before there is a slot to be lost
        if not self._takes_token(body):
            self.wait(Waiter(body.call, self.grace), body)
        self._grant(lease, body)

    async def atake(self, body: Body) -> None:
        """Take a slot for `body`, waiting in an asyncio task behind those who wait already.

        Raises:
            NestingError: the wait would be for the same thread, task or call chain.
            PredictionCancelledError: the call was stopped meanwhile.
        """
        lease = Lease(body.call, is_awaited=True)  # as in `take`
        if not self._takes_token(body):
            await self.wait_task(Waiter(body.call, self.grace, current_task()), body)
        self._grant(lease, body)

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

    def _enqueue(self, waiter: Waiter) -> None:
        self._queue.append(waiter)
        self._serve()  # a slot may have been given back just before

    def _abandon(self, waiter: Waiter) -> None:
        self._withdraw(waiter)
        self._serve()

    def _withdraw(self, waiter: Waiter) -> None:
        if waiter.is_left:
            return
        waiter.is_left = True  # no call stands between the test and this line: what was granted is given back once
        with suppress(ValueError):  # taken out already, by whoever serves, who also sees the token that comes back
            self._queue.remove(waiter)
        if waiter.is_granted and self._tokens is not None:
            self._tokens.append(None)

    def _grant(self, lease: Lease, body: Body) -> None:
        self._leases[id(lease)] = lease
        body.release = partial(self._release, lease)

    def _release(self, lease: Lease) -> None:
        self._leases.pop(id(lease), None)
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
                waiter = queue.popleft()
            except IndexError:
                tokens.append(None)
                continue
            if not waiter.is_left:  # no call stands between this test and the next line: nobody leaves in between
                waiter.is_granted = True
            if waiter.is_granted:
                waiter.wake()
            else:
                tokens.append(None)

    def wait_for(self, leases: tuple[Lease, ...], seconds: float) -> tuple[Lease, ...]:
        """Wait, in a thread, at most `seconds` until these give their slots back; give those that did not."""

        def still() -> tuple[Lease, ...]:
            return tuple(lease for lease in leases if id(lease) in self._leases)

        wait_until(lambda: not still(), self._watchers, seconds)
        return still()

    def _blocker(self, waiter: Waiter) -> Lease | None:
        leases = () if waiter.is_granted else self.leases
        kept = [lease for lease in leases if waiter.blocks(lease)]
        if not kept:  # as almost always
            return None
        others = tuple(self._queue)
        if all(lease in kept or any(each.blocks(lease) for each in others) for lease in leases):
            return kept[0]
        return None

    def _refusal(self, waiter: Waiter, blocker: Lease) -> str:
        if blocker.evidence_for(waiter) is CERTAIN:
            kind = "thread" if waiter.task is None else "task"
            why = f"would wait for {blocker} of the same {kind} or call chain, which cannot go on meanwhile"
        else:
            why = f"waited {self.grace:g} s in vain for {blocker}, which this thread was the last to read"
        return (
            f"{self._tag} takes no more calls at a time, and this call {why}: read that stream to its end or close it "
            "first, or raise the predictor's concurrency"
        )


def refuse_stopped(call: Call) -> None:
    """Do not wait any longer for a call that was stopped.

    Raises:
        PredictionCancelledError: it was.
    """
    if call.stopping:
        raise PredictionCancelledError(call.tag, call.id)


class Waiter:
    """One wait in line: of a whole thread, or of one asyncio task, beside which its thread goes on.

    What keeps a call from going on is certain where it is that very call or task, or an event loop that stands still.
    That this thread was the last to pull a stream is a suspicion: it holds once nobody has pulled it for a grace.

    Attributes:
        call: on whose behalf.
        thread: where it is waited.
        task: the task that waits, if it is one.
        inside: the task that this is part of; for the wait of a thread the one that runs there.
        blocks_loop: whether an event loop stands still meanwhile.
        suspicious_since: when it was first suspected that the wait is in vain, by `perf_counter`.
    """

    __slots__ = (
        "_grace",
        "_suspects",
        "blocks_loop",
        "call",
        "inside",
        "is_granted",
        "is_left",
        "parked",
        "suspicious_since",
        "task",
        "thread",
    )

    def __init__(self, call: Call, grace: float = 0.0, task: weakref.ref[asyncio.Task[Any]] | None = None) -> None:
        """Wait on behalf of `call`; suspicions have to last `grace` seconds."""
        self.call = call
        self.thread = threading.current_thread()
        self.task = task
        self.blocks_loop = task is None and is_on_a_loop()
        self.inside = current_task() if self.blocks_loop else task
        self._grace = grace
        self._suspects: dict[Lease, tuple[float, object]] = {}
        self.suspicious_since: float | None = None
        self.parked: deque[Wake] = deque()
        self.is_granted = False
        self.is_left = False

    def has_news(self) -> bool:
        """Whether there is a reason to look again."""
        return self.is_granted or self.call.stopping

    def wake(self) -> None:
        """Have whoever waits look again."""
        wake_all(self.parked)

    def blocks(self, lease: Lease) -> bool:
        """Whether this wait keeps `lease` from ever going on, as far as can be told by now."""
        sign = lease.evidence_for(self)
        return sign is CERTAIN or (sign is SUSPECTED and self._is_out_of_patience_with(lease))

    def _is_out_of_patience_with(self, lease: Lease) -> bool:
        """Whether nobody has pulled what is suspected for a grace; what is pulled meanwhile is another thread's."""
        now, position = perf_counter(), lease.position
        if self.suspicious_since is None:
            self.suspicious_since = now
        due, seen = self._suspects.setdefault(lease, (now + self._grace, position))
        if position != seen or lease.is_being_pulled:
            self._suspects[lease] = math.inf, position
            return False
        return now >= due

    def left(self) -> float:
        """Seconds until a suspicion has lasted a grace, or those of others, too, may have."""
        now, again = perf_counter(), max(self._grace, _RECHECK_INTERVAL)
        return min((due - now if due > now else again for due, _ in self._suspects.values()), default=math.inf)


class Lease:
    """A call that holds a slot, and the thread and task that took it.

    Attributes:
        is_awaited: whether an asyncio task consumes it, which its event loop has to turn for.
        needs_loop: whether its body is cleaned up by that loop.
    """

    __slots__ = ("call", "is_awaited", "needs_loop", "task", "thread")

    def __init__(self, call: Call, *, is_awaited: bool = False) -> None:
        """Note where the slot is taken."""
        self.call = call
        self.is_awaited = is_awaited
        self.needs_loop = is_awaited and call.runner == LOCK_STEP
        self.thread = threading.current_thread()  # itself: the number of one that is over is used again
        self.task = current_task() if "asyncio" in sys.modules else None

    def evidence_for(self, waiter: Waiter) -> str | None:
        """What speaks for it that the wait of `waiter` keeps this from going on: `CERTAIN`, `SUSPECTED`, or nothing."""
        if waiter.call is not self.call and waiter.call.is_within(self.call):
            return CERTAIN
        is_thread = waiter.task is None
        if self.call.stopping and not (self.needs_loop and is_thread):
            return None  # it ends by itself, whatever its consumer does, unless its loop stands still
        thread, task = self.reader
        if is_thread and self.is_awaited:
            is_certain = waiter.blocks_loop and thread is waiter.thread
        else:
            is_certain = task is not None and task == waiter.inside
        if is_certain:
            return CERTAIN
        is_elsewhere = thread is not waiter.thread or not (is_thread or task is None)  # a task that is over left it
        return None if is_elsewhere else SUSPECTED

    @property
    def reader(self) -> tuple[threading.Thread, weakref.ref[asyncio.Task[Any]] | None]:
        """The thread, and the task if it was one, that is known to have consumed it last."""
        execution = self._execution
        reader = None if execution is None else execution.reader
        return (self.thread, self.task) if reader is None or reader is self.thread else (reader, None)

    @property
    def position(self) -> object:
        """How far its consumer has come; another value than before, if that has gone on since."""
        execution = self._execution
        return None if execution is None else execution.ending.count

    @property
    def is_being_pulled(self) -> bool:
        """Whether a thread runs a step of it just now; not the first one, in which whoever took the slot still is."""
        execution = self._execution
        return execution is not None and execution.ending.count > 0 and execution.is_being_pulled

    @property
    def _execution(self) -> Any:
        return self.call.execution and self.call.execution()

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


class LongWait:
    """Logs a wait that has become long, once, with who is waited for; of a whole line it is one wait that is logged."""

    __slots__ = ("_due", "_is_reported", "_queue", "_tag")

    def __init__(self, tag: str, line: WaitQueue | None) -> None:
        self._tag = tag
        self._queue = line
        self._due = perf_counter() + _LONG_WAIT
        self._is_reported = False

    def left(self) -> float:
        """Give the seconds until the wait has become long."""
        return _LONG_WAIT if self._is_reported else max(0.01, self._due - perf_counter())

    def report(self) -> None:
        """Log it, if it has become long and no other wait of its line is in the log."""
        if self._is_reported or perf_counter() < self._due:
            return
        line = self._queue
        if line is None:
            self._is_reported = True
            warn(f"{self._tag} has been waited for during {_LONG_WAIT:.0f} s; held by its setup in another call")
        elif line.may_log():
            self._is_reported = True
            count, leases = line.waiting, tuple(map(str, line.leases))
            held = ", ".join(leases[:_MAX_NAMED])
            held += f" and {len(leases) - _MAX_NAMED} more" if len(leases) > _MAX_NAMED else ""
            others = f", and {count} calls wait for it" if count > 1 else ""
            warn(f"{self._tag} has been waited for during {_LONG_WAIT:.0f} s{others}; held by {held}{line.advice}")
        else:  # another call's wait is in the log
            self._due = perf_counter() + _LONG_WAIT
