"""Queues of calls that wait for a lease: of a concurrency slot, or of anything else that calls lease and release.

A slot is leased from the start of a body until it is finalised. Taking one may wait, in a thread or an asyncio task;
releasing one takes no lock, so a collector may do it. A wait that could never end is refused: at once where that is
certain, after a grace where only the thread suggests it, for another thread may go on with what this one began.
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
    from engine.runners.parking import Wake

_LONG_WAIT: Final = 5.0  # seconds after which a wait is logged, with the calls it waits for
_LOG_INTERVAL: Final = 60.0  # seconds in which one queue logs one wait, unless it was empty meanwhile
_MAX_NAMED: Final = 3  # leases a log line names
_RECHECK_INTERVAL: Final = 0.1  # seconds between two checks of a suspicion that has lasted a grace

CERTAIN: Final = "certain"
SUSPECTED: Final = "suspected"  # until it has lasted a grace


class WaitQueue(ABC):
    """Calls that wait, in a thread or an asyncio task, for what other calls lease."""

    __slots__ = ("_collected", "_next_log_at", "grace")

    advice = ""  # what the log says may be done about a long wait

    def __init__(self, grace: float) -> None:
        """Make an empty queue; a suspicion has to last `grace` seconds before a wait is refused for it."""
        self.grace = grace
        self._next_log_at = 0.0
        self._collected = -math.inf  # when the garbage collector was last run for a waiter of this queue

    @property
    @abstractmethod
    def leases(self) -> tuple[Lease, ...]:
        """The leases of what is waited for."""

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
        body.recheck = waiter.wake  # before `has_news` tests what a stop stores: see `parking`
        if not self.waiting:  # what was logged of earlier waits says nothing of one that begins after them
            self._next_log_at = 0.0
        self._enqueue(waiter)
        self._refuse(waiter)

    def may_log(self) -> bool:
        """Whether a long wait is logged now: one for all waiters of the queue, and no other for `_LOG_INTERVAL`."""
        now = perf_counter()
        if now < self._next_log_at:
            return False
        self._next_log_at = now + _LOG_INTERVAL  # call-free store: of several threads one gets here
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
        if blocker is not None and self._collects_garbage(waiter):
            blocker = self._blocker(waiter)
        if blocker is not None:
            raise NestingError(self._refusal(waiter, blocker), str(blocker))

    def _collects_garbage(self, waiter: Waiter) -> bool:
        """Run the collector where a stream in a reference cycle may be what `waiter` waits for; tell whether it may.

        Such a stream was dropped before the wait began, so one collection serves all that waited by then.
        """
        if waiter.suspected_since is None:
            return False
        if self._collected < waiter.suspected_since:
            self._collected = perf_counter()
            gc.collect()
        return True

    @abstractmethod
    def _enqueue(self, waiter: Waiter) -> None:
        """Join the queue."""

    @abstractmethod
    def _abandon(self, waiter: Waiter) -> None:
        """Leave the queue, release what was granted, and grant what is free to the waiters left."""

    def _withdraw(self, waiter: Waiter) -> None:  # noqa: B027 - a queue may have nothing to take back
        """Leave the queue, for the waiter's event loop is closed: its task will never take what it was granted."""

    @abstractmethod
    def _blocker(self, waiter: Waiter) -> Lease | None:
        """A lease for which this call would wait for ever; `None` while any may still be released to it."""

    @abstractmethod
    def _refusal(self, waiter: Waiter, blocker: Lease) -> str:
        """What the error says."""


class Slots(WaitQueue):
    """Bounds a predictor's calls, from the start of a body until it is finalised, in this one place.

    A token stands for each free slot; popping it, which is atomic, takes the slot. Nothing here takes a lock, so a
    collector or a signal handler may release a slot at any time.
    """

    __slots__ = ("_leases", "_queue", "_tag", "_tokens", "_watchers")

    def __init__(self, tag: str, limit: float, grace: float = 0.0) -> None:
        """Make slots for `limit` calls at a time, where `math.inf` only keeps count; `grace` as for any queue, in s."""
        super().__init__(grace)
        self._tag = tag
        self._tokens: deque[None] | None = None if limit == math.inf else deque([None] * int(limit))
        self._leases: dict[int, Lease] = {}
        self._queue: deque[Waiter] = deque()
        self._watchers: deque[Wake] = deque()

    @property
    def leases(self) -> tuple[Lease, ...]:
        """The leases of slots at this time."""
        return tuple(self._leases.values())

    @property
    def waiting(self) -> int:
        """How many calls wait for a slot."""
        return len(self._queue)

    @property
    def tag(self) -> str:
        """The predictor's tag."""
        return self._tag

    def take(self, body: Body) -> None:
        """Take a slot for `body`, waiting in a thread behind the calls queued before.

        Raises:
            NestingError: the wait would be for the same thread, task or call chain.
            PredictionCancelledError: the call was stopped meanwhile.
        """
        lease = Lease(body.call)  # first: what could raise comes before there is a slot to be lost
        key, release = id(lease), partial(self._release, lease)
        if not self._takes_token(body):
            self.wait(Waiter(body.call, self.grace), body)
        self._leases[key], body.release = lease, release  # call-free store: no Ctrl-C comes between slot and lease

    async def atake(self, body: Body) -> None:
        """Take a slot for `body`, waiting in an asyncio task behind the calls queued before.

        Raises:
            NestingError: the wait would be for the same thread, task or call chain.
            PredictionCancelledError: the call was stopped meanwhile.
        """
        lease = Lease(body.call, is_task=True)  # first, as in `take`
        key, release = id(lease), partial(self._release, lease)
        if not self._takes_token(body):
            await self.wait_task(Waiter(body.call, self.grace, current_task()), body)
        self._leases[key], body.release = lease, release  # call-free store: as in `take`

    def _takes_token(self, body: Body) -> bool:
        refuse_stopped(body.call)
        if self._tokens is None:
            return True
        if self._queue:  # first come, first served
            return False
        try:
            self._tokens.pop()
        except IndexError:
            return False
        except BaseException:  # Ctrl-C, which is raised here once `pop` has returned, and nowhere before
            self._tokens.append(None)
            raise
        return True

    def _enqueue(self, waiter: Waiter) -> None:
        self._queue.append(waiter)
        self._serve()  # a slot may have been released after `_takes_token` found none and before this was queued

    def _abandon(self, waiter: Waiter) -> None:
        self._withdraw(waiter)
        self._serve()  # the token that was granted, if one was, is the next waiter's

    def _withdraw(self, waiter: Waiter) -> None:
        if waiter.is_withdrawn:
            return
        waiter.is_withdrawn = True  # call-free store: what was granted is released once
        with suppress(ValueError):  # `_serve` took it out already, and also sees the token that comes back
            self._queue.remove(waiter)
        if waiter.is_granted and self._tokens is not None:
            self._tokens.append(None)

    def _release(self, lease: Lease) -> None:
        """Release a slot, once; a further call serves the waiters that Ctrl-C kept an earlier one from serving."""
        key, tokens = id(lease), self._tokens
        try:
            self._leases.pop(key)  # first: no waiter is refused because of a lease that ends
        except KeyError:
            pass
        except BaseException:  # Ctrl-C, as in `_takes_token`
            if tokens is not None:
                tokens.append(None)
            raise
        else:
            if tokens is not None:
                tokens.append(None)
        if tokens is not None:
            self._serve()
        wake_all(self._watchers)

    def _serve(self) -> None:
        """Grant free slots to the waiters, in the order they came.

        A collector or a signal handler may run this inside of itself, and several threads at once: each pops a token of
        its own, and grants it to a waiter of its own or puts it back.
        """
        tokens, queue = self._tokens, self._queue
        while tokens and queue:
            try:
                tokens.pop()
            except IndexError:  # another thread serves
                return
            try:
                waiter = queue.popleft()
            except IndexError:  # that waiter withdrew, or another thread serves it
                tokens.append(None)
                continue  # and test again: another may have been queued before the token was back
            if not waiter.is_withdrawn:  # call-free store: a waiter that withdraws later releases what it was granted
                waiter.is_granted = True
            if waiter.is_granted:
                waiter.wake()
            else:
                tokens.append(None)

    def wait_for(self, leases: tuple[Lease, ...], seconds: float) -> tuple[Lease, ...]:
        """Wait, in a thread, at most `seconds` until these are released; give those that are not."""

        def still() -> tuple[Lease, ...]:
            return tuple(lease for lease in leases if id(lease) in self._leases)

        wait_until(lambda: not still(), self._watchers, seconds)
        return still()

    def _blocker(self, waiter: Waiter) -> Lease | None:
        leases = () if waiter.is_granted else self.leases
        kept = [lease for lease in leases if waiter.blocks(lease)]
        if not kept:  # the fast path
            return None
        others = tuple(self._queue)  # one C call: no other thread changes the queue while it is copied
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
    """Refuse a call that was stopped what it would wait for.

    Raises:
        PredictionCancelledError: it was.
    """
    if call.stopping:
        raise PredictionCancelledError(call.tag, call.id)


class Waiter:
    """One call in a queue: a whole thread waits for it, or one asyncio task, beside which its thread goes on.

    What keeps a call from going on is certain where it is that very call or task, or an event loop that stands still.
    That this thread was the last to pull a stream is a suspicion: it holds once no thread has pulled it for a grace.

    Attributes:
        call: on whose behalf.
        thread: the one that waits.
        task: the task that waits, if it is one.
        enclosing_task: the task that waits; where a whole thread waits, the task that runs in it.
        blocks_loop: whether an event loop stands still meanwhile.
        suspected_since: when it was first suspected that the wait is in vain, by `perf_counter`.
        parked: the wake-up of the thread or task, while it sleeps.
        is_granted: whether it has what it waited for.
        is_withdrawn: whether it left the queue, and gives back what it was granted.
    """

    __slots__ = (
        "_grace",
        "_suspects",
        "blocks_loop",
        "call",
        "enclosing_task",
        "is_granted",
        "is_withdrawn",
        "parked",
        "suspected_since",
        "task",
        "thread",
    )

    def __init__(self, call: Call, grace: float = 0.0, task: weakref.ref[asyncio.Task[Any]] | None = None) -> None:
        """Wait on behalf of `call`; suspicions have to last `grace` seconds."""
        self.call = call
        self.thread = threading.current_thread()
        self.task = task
        self.blocks_loop = task is None and is_on_a_loop()
        self.enclosing_task = current_task() if self.blocks_loop else task
        self._grace = grace
        self._suspects: dict[Lease, tuple[float, object]] = {}
        self.suspected_since: float | None = None
        self.parked: deque[Wake] = deque()
        self.is_granted = False
        self.is_withdrawn = False

    def has_news(self) -> bool:
        """Whether the wait is over: it was granted, or its call stopped."""
        return self.is_granted or self.call.stopping

    def wake(self) -> None:
        """Have the thread or task that waits look again."""
        wake_all(self.parked)

    def blocks(self, lease: Lease) -> bool:
        """Whether this wait keeps the call of `lease` from ever going on, as far as can be told by now."""
        evidence = lease.evidence_for(self)
        return evidence is CERTAIN or (evidence is SUSPECTED and self._has_suspected_for_a_grace(lease))

    def _has_suspected_for_a_grace(self, lease: Lease) -> bool:
        """Whether no thread has pulled what is suspected for a grace; a pull clears it, for another thread goes on."""
        now, position = perf_counter(), lease.position
        if self.suspected_since is None:
            self.suspected_since = now
        due, seen = self._suspects.setdefault(lease, (now + self._grace, position))
        if position != seen or lease.is_being_pulled:
            self._suspects[lease] = math.inf, position
            return False
        return now >= due

    def left(self) -> float:
        """Seconds until a suspicion of this waiter has lasted a grace, or, after that, one of another may have."""
        now, again = perf_counter(), max(self._grace, _RECHECK_INTERVAL)
        return min((due - now if due > now else again for due, _ in self._suspects.values()), default=math.inf)


class Lease:
    """What a call holds: a slot, or a worker; with the thread and task that took it.

    Attributes:
        call: the call.
        thread: the thread that took it.
        task: the asyncio task that ran there, if one did.
        is_task: whether an asyncio task consumes it, which its event loop has to turn for.
        needs_loop: whether its body is cleaned up by that loop.
    """

    __slots__ = ("call", "is_task", "needs_loop", "task", "thread")

    def __init__(self, call: Call, *, is_task: bool = False) -> None:
        """Note where it is taken."""
        self.call = call
        self.is_task = is_task
        self.needs_loop = is_task and call.runner == LOCK_STEP
        self.thread = threading.current_thread()  # the object: the number of a thread that is over is used again
        self.task = current_task() if "asyncio" in sys.modules else None

    def evidence_for(self, waiter: Waiter) -> str | None:
        """How sure it is that the wait of `waiter` keeps this call from going on: `CERTAIN`, `SUSPECTED`, or `None`."""
        if waiter.call is not self.call and waiter.call.is_within(self.call):
            return CERTAIN
        is_thread = waiter.task is None
        if self.call.stopping and not (self.needs_loop and is_thread):
            return None  # it ends by itself, whatever its consumer does, unless its loop stands still
        return self._evidence_of_reader(waiter, is_thread=is_thread)

    def _evidence_of_reader(self, waiter: Waiter, *, is_thread: bool) -> str | None:
        """How sure it is by the thread and the task that read it last."""
        thread, task = self.reader
        if is_thread and self.is_task:
            is_certain = waiter.blocks_loop and thread is waiter.thread
        else:
            is_certain = task is not None and task == waiter.enclosing_task
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
        """How far its consumer has come: it changes with each pull."""
        execution = self._execution
        return None if execution is None else execution.ending.count

    @property
    def is_being_pulled(self) -> bool:
        """Whether a thread runs a step of it at this time; not the first one, in which its slot was taken."""
        execution = self._execution
        return execution is not None and execution.ending.count > 0 and execution.is_being_pulled

    @property
    def _execution(self) -> Any:
        return self.call.execution and self.call.execution()

    def __str__(self) -> str:
        """Name the call."""
        return f"the open prediction {self.call.tag} {self.call.id}"


def current_task() -> weakref.ref[asyncio.Task[Any]] | None:
    """The running asyncio task, if an event loop runs in this thread."""
    if not is_on_a_loop():
        return None
    module: Any = sys.modules["asyncio"]  # a loop runs, so all of it is there
    task = module.current_task()
    return None if task is None else weakref.ref(task)


def is_on_a_loop() -> bool:
    """Whether an event loop runs in this thread, told without importing asyncio."""
    # The function is looked up, not the module: another thread may have imported only half of that so far.
    running_loop: Any = getattr(sys.modules.get("asyncio"), "_get_running_loop", None)  # the public one raises
    return running_loop is not None and running_loop() is not None


awaiting: Final[ContextVar[weakref.ref[asyncio.Task[Any]] | None]] = ContextVar("engine.awaiting", default=None)
"""The asyncio task that waits for what this thread does, where a thread works on a task's behalf."""


class LongWait:
    """Logs a wait that has become long, once, with the leases it waits for; one wait stands for a whole queue.

    Args:
        tag: what is waited for.
        queue: where the call waits; `None` where it waits for a set-up.
    """

    __slots__ = ("_due", "_is_reported", "_queue", "_tag")

    def __init__(self, tag: str, queue: WaitQueue | None) -> None:
        """Begin the wait now."""
        self._tag = tag
        self._queue = queue
        self._due = perf_counter() + _LONG_WAIT
        self._is_reported = False

    def left(self) -> float:
        """Seconds until the wait has become long."""
        return _LONG_WAIT if self._is_reported else max(0.01, self._due - perf_counter())

    def report(self) -> None:
        """Log it, if it has become long and no other wait of its queue was logged lately."""
        if self._is_reported or perf_counter() < self._due:
            return
        queue = self._queue
        if queue is None:
            self._is_reported = True
            warn(f"{self._tag} has been waited for during {_LONG_WAIT:.0f} s; held by its setup in another call")
        elif queue.may_log():
            self._is_reported = True
            count, leases = queue.waiting, tuple(map(str, queue.leases))
            held = ", ".join(leases[:_MAX_NAMED])
            held += f" and {len(leases) - _MAX_NAMED} more" if len(leases) > _MAX_NAMED else ""
            others = f", and {count} calls wait for it" if count > 1 else ""
            warn(f"{self._tag} has been waited for during {_LONG_WAIT:.0f} s{others}; held by {held}{queue.advice}")
        else:  # another call's wait was logged lately
            self._due = perf_counter() + _LONG_WAIT
