"""The end of one call: what decides it, how its owner is asked to stop, and the two ends that a channel has."""

from __future__ import annotations

from _thread import allocate_lock
from collections import deque
from time import perf_counter
from typing import TYPE_CHECKING, Any, Protocol

import attrs

from engine._errors import warn
from engine._records import Progress
from engine.runners.parking import (
    POLL_INTERVAL,
    park_task,
    sharing_of,
    wait_until,
    wait_until_task,
    wake_all,
    withdraw,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from engine._records import State
    from engine.runners.parking import Wake


class OwnerEnd(Protocol):
    """What an owner has of every channel: requests to stop, which come, and the report of the body's end, which goes.

    Where the owner keeps the reduction, it needs no more.

    Attributes:
        stop: whether the owner was asked to finalise the body.
        on_stop: called at a request to stop, for an owner that does not poll `stop`.
    """

    stop: bool
    on_stop: Callable[[], None] | None

    def request_stop(self) -> None:
        """Ask the owner to finalise the body; waits for nothing."""
        ...

    def finish(self, end: Report) -> None:
        """Report that the body is over and finalised; the last thing an owner does, once."""
        ...


class ProducerEnd(OwnerEnd, Protocol):
    """The owner's end of a channel: where it puts the partials of its body."""

    def offer(self, value: Any, latency: float, now: float) -> bool:
        """Hand over one partial; tell whether the producer must pause before it goes on.

        Args:
            value: the partial.
            latency: the producer's time up to it, in ms.
            now: `perf_counter()` as just read, in s.
        """
        ...

    def offer_only(self, value: Any, latency: float, now: float) -> None:
        """Hand over the one value a body returned; the end follows at once, and alone wakes its consumer."""
        ...

    def pause(self) -> bool:
        """Wait, in a thread, until the producer may go on; tell whether it must stop instead."""
        ...

    async def apause(self) -> bool:
        """Wait, in an asyncio task, until the producer may go on; tell whether it must stop instead."""
        ...


class ConsumerEnd(Protocol):
    """The consumer's end of a channel: what an execution takes of what the owner hands over, and how the call ends.

    Attributes:
        state: see `Progress`.
        count: partials that were taken here.
        first: milliseconds from the beginning to the first partial that was taken here.
        returned: see `Progress`.
        duration: see `Progress`.
        claimed: see `Ending`.
        failure: see `Ending`.
        is_over: see `Ending`.
        stop: see `Ending`.
        end: see `Ending`.
    """

    state: State
    count: int
    first: float | None
    returned: Any
    duration: float | None
    claimed: State | None
    failure: BaseException | None
    is_over: bool
    stop: bool
    end: Report | None

    @property
    def items(self) -> Any:
        """What waits to be taken: true where there is something."""
        ...

    def claim(self, state: State, failure: BaseException | None = None) -> bool:
        """Decide how the call ends; tell whether this was the first to do so."""
        ...

    def admit(self, body: Any) -> None:
        """Get what a `Body` needs before it may start; waits in a thread."""
        ...

    async def aadmit(self, body: Any) -> None:
        """Get what a `Body` needs before it may start; waits in an asyncio task."""
        ...

    def take(self) -> tuple[Any, float]:
        """Take the oldest partial, with its latency in ms; IndexError where none waits."""
        ...

    def wait(self, start: Callable[[], None] | None = None) -> None:
        """Sleep, in a thread, until there may be news; `start` is called once this thread is parked."""
        ...

    async def wait_task(self, start: Callable[[], None] | None = None) -> None:
        """Sleep, in an asyncio task, until there may be news; `start` is called once this task is parked."""
        ...

    def finish(self, end: Report) -> None:
        """Report that the body is over, where it never ran."""
        ...

    def request_stop(self) -> None:
        """Ask the owner to finalise the body; waits for nothing."""
        ...

    def detach(self) -> None:
        """Note that the consumer has left."""
        ...

    def wait_end(self, seconds: float) -> bool:
        """Wait, in a thread, at most `seconds` for the body to be finalised; tell whether it is."""
        ...

    async def wait_end_task(self, seconds: float) -> bool:
        """Wait, in an asyncio task, at most `seconds` for the body to be finalised; tell whether it is."""
        ...


@attrs.define(eq=False)
class Report:
    """How a body ended, handed over after its last partial.

    Attributes:
        error: what the body or its clean-up raised.
        returned: a generator's return value, or a plain function's value.
        is_cleanup: whether `error` was raised while the body was being closed on request.
    """

    error: BaseException | None = None
    returned: Any = None
    is_cleanup: bool = False


class Ending(Progress):
    """How one call ends: as what, whether its owner was asked to stop, and whether the body is finalised.

    Each step happens once. `claim`: of all that would end the call (its body, `close`, `cancel`, a consumer that is
    cancelled, the engine that closes) the first one decides. `request_stop` asks the owner to finalise the body.
    `finish`: the owner reports that it is finalised, which `wait_end` waits for. Alone it serves a body in lock-step,
    which hands over nothing but its end; a `Channel` adds a buffer, a `Reduction` the value partials are reduced to.

    Attributes:
        claimed: the end that was decided on.
        failure: what the next pull raises, once.
        is_over: whether everything about the claimed end can be read.
        stop: whether the owner was asked to finalise the body.
        end: how the body ended, once it is over and finalised.
        is_awaited: whether the stopper waits for what clean-up raises; else that goes to the log.
        detached_at: when the consumer left, by `perf_counter`, if it did.
        on_stop: called at a request to stop, for an owner that does not poll `stop`.
        end_waiters: wake-ups of what waits for the end; made for the first of them.
        label: names it in the log.
    """

    __slots__ = (
        "__weakref__",
        "claimed",
        "detached_at",
        "end",
        "end_waiters",
        "failure",
        "is_awaited",
        "is_over",
        "label",
        "on_stop",
        "stop",
    )

    items: Any = ()  # nothing is handed over here

    def __init__(self, label: str = "") -> None:
        """Make it for a call whose end is open."""
        self.state = "pending"  # as in `Progress`
        self.count = 0
        self.returned = None
        self.first = None
        self.duration = None
        self.rung = None
        self.claimed: State | None = None
        self.failure: BaseException | None = None
        self.is_over = False
        self.stop = False
        self.end: Report | None = None
        self.is_awaited = False
        self.detached_at: float | None = None
        self.on_stop: Callable[[], None] | None = None
        self.end_waiters: deque[Wake] | None = None
        self.label = label

    # Deciding

    def claim(self, state: State, failure: BaseException | None = None) -> bool:
        """Decide how the call ends; tell whether this was the first to do so.

        All of the engine rests on one rule, the *call-free store*: with a GIL, no other thread, signal handler or
        finaliser runs between a test and the stores after it, unless a call or a backward jump stands between them.
        Neither does here, nor wherever a comment says so.

        Args:
            state: the end.
            failure: what the next pull raises then, once.
        """
        if self.claimed is None:
            self.claimed = state  # call-free store: it decides which of several claims is the first
            self.failure = failure
            return True
        return False

    def finish(self, end: Report) -> None:
        """Report that the body is over and finalised; the last thing an owner does."""
        self.end = end  # before the wake-ups are looked at: see `parking`
        if self.end_waiters:
            wake_all(self.end_waiters)
        if self.detached_at is not None and end.error is not None:
            error, end.error = end.error, None  # call-free store: it is logged here, or by the consumer that left
            warn(f"{self.label}: error after its stream was left", error)

    def request_stop(self) -> None:
        """Ask the owner to finalise the body.

        No lock is taken and nothing is waited for, so any thread, finaliser or signal handler may call it.
        """
        self.stop = True  # before the wake-ups are looked at: see `parking`
        if self.end_waiters:
            wake_all(self.end_waiters)
        if self.on_stop is not None:
            self.on_stop()

    def detach(self) -> None:
        """Note that the consumer has left: what the body still raises goes to the log."""
        if self.detached_at is None:
            self.detached_at = perf_counter()

    # The consumer's end

    def admit(self, body: Any) -> None:
        """Get what a `Body` needs before it may start, a slot; waits in a thread.

        Raises:
            NestingError: the wait would never end.
            PredictionCancelledError: the call was stopped meanwhile.
        """
        if body.slots is not None:
            body.slots.take(body)

    async def aadmit(self, body: Any) -> None:
        """Get what a `Body` needs before it may start, a slot; waits in an asyncio task.

        Raises:
            NestingError: the wait would never end.
            PredictionCancelledError: the call was stopped meanwhile.
        """
        if body.slots is not None:
            await body.slots.atake(body)

    def take(self) -> tuple[Any, float]:
        """Take the oldest partial: there is none here.

        Raises:
            IndexError: none is waiting.
        """
        raise IndexError

    def wait(self, start: Callable[[], None] | None = None) -> None:
        """Sleep, in a thread, until the end or a request to stop may be there.

        Args:
            start: called once this thread is parked.
        """
        lock = allocate_lock()  # `park_thread` written out, without its calls: the hot path of a `create` elsewhere
        lock.acquire()
        parked = self.parked()
        parked.append(lock.release)
        try:
            if start is not None:
                start()
            if self.end is None and not self.stop:
                lock.acquire(timeout=POLL_INTERVAL)
        finally:
            if parked:
                withdraw(parked, lock.release)

    async def wait_task(self, start: Callable[[], None] | None = None) -> None:
        """Sleep, in an asyncio task that shares the GIL with a busy owner, until the end or a stop may be there.

        Args:
            start: called once this task is parked.
        """
        from asyncio import get_running_loop

        loop = get_running_loop()
        sharing = sharing_of(loop)
        sharing.enter(loop)
        try:
            await park_task(self.parked(), self._has_news, start, self.request_stop)
        finally:
            sharing.leave()

    def wait_end(self, seconds: float) -> bool:
        """Wait, in a thread, at most `seconds` for the body to be finalised; tell whether it is."""
        return wait_until(self._has_ended, self.parked(), seconds)

    async def wait_end_task(self, seconds: float) -> bool:
        """Wait, in an asyncio task, at most `seconds` for the body to be finalised; tell whether it is."""
        return await wait_until_task(self._has_ended, self.parked(), seconds)

    def parked(self) -> deque[Wake]:
        """The wake-ups of what waits for the end."""
        parked = self.end_waiters
        if parked is None:
            made: deque[Wake] = deque()
            if self.end_waiters is None:
                self.end_waiters = made  # call-free store: all that wait share one
            parked = self.end_waiters
        return parked

    def _has_news(self) -> bool:
        return self.end is not None or self.stop

    def _has_ended(self) -> bool:
        return self.end is not None
