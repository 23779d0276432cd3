"""The only hand-off between an owner, which runs a body, and a consumer elsewhere: a bounded buffer with two ends.

The policy is pure: when the producer may run on, when its consumer must be woken. Each end parks in its own way (a
thread on a lock, an asyncio task on a future) by leaving a callable that wakes it, and whoever takes that callable out
of the deque, an atomic operation, is the one that calls it. So no lock is held, nothing of the user's runs under one,
and a wake-up is paid only when somebody sleeps: a busy pair exchanges thousands of partials without any.

Rules, all under one GIL: an end appends its wake-up first and looks again second; the other end changes the buffer
first and looks for wake-ups second. Whichever comes later sees the other. The channel does not close iterators, keep
outcomes or know predictors.
"""

from __future__ import annotations

import sys
from _thread import allocate_lock
from collections import deque
from contextlib import suppress
from time import perf_counter, sleep
from typing import TYPE_CHECKING, Any, Final, Protocol
from weakref import WeakKeyDictionary

import attrs

from engine._errors import warn
from engine._records import Progress
from engine._reducers import EMPTY, LAST

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop, Future
    from collections.abc import Callable

    from engine._records import State
    from engine._reducers import Reducer

    Wake = Callable[[], None]

MOST: Final = 256  # partials in the largest default window
BOUND: Final = 5.0  # seconds any wait sleeps before it looks again
_HAND_OVER: Final = 0.0005  # seconds since the last wake-up after which a producer lets the woken consumer run first
_COURTESY: Final = 0.0005  # seconds it does: a consumer that is not there by then is busy with something else
_RESTRAINT: Final = 3  # times as long as that took, the wait for the GIL included, it runs on without doing so again

# A producer runs on past these: they cannot change under a consumer that still holds them.
_FIXED: Final = frozenset({str, bytes, int, float, complex, bool, type(None)})


def is_fixed(value: object) -> bool:
    """Whether a producer may run on past this partial: immutable text, bytes, numbers, None, or a tuple of these."""
    kind = type(value)
    return all(_is_one(type(item)) for item in value) if kind is tuple else _is_one(kind)  # type: ignore[attr-defined]


def _is_one(kind: type) -> bool:
    return type(kind) is type and kind in _FIXED  # a class of another kind may refuse to be hashed


class OwnerEnd(Protocol):
    """What an owner has of every hand-off: requests to stop, which come, and the body's end, which goes.

    Where the owner keeps the reduction, it needs no more.

    Attributes:
        stop: whether the owner was asked to finalise the body.
        on_stop: has a request to stop reach an owner that does not look.
    """

    stop: bool
    on_stop: Callable[[], None] | None

    def request_stop(self) -> None:
        """Ask the owner to finalise the body; waits for nothing."""
        ...

    def finish(self, end: End) -> None:
        """Say that the body is over and finalised; the last thing an owner does, once."""
        ...


class ProducerEnd(OwnerEnd, Protocol):
    """One end of a channel: where an owner puts the partials of its body, whoever takes them."""

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
    """The other end: how a call ends, and what an execution takes of what its owner hands over, whoever that is.

    Attributes:
        state: see `Progress`, as the next two.
        count: of what was taken here.
        first: of what was taken here, in ms.
        returned: see `Progress`.
        duration: see `Progress`.
        claimed: see `Ending`, as the others.
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
    end: End | None

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

    def finish(self, end: End) -> None:
        """Say that the body is over, where it never ran."""
        ...

    def request_stop(self) -> None:
        """Ask the owner to finalise the body; waits for nothing."""
        ...

    def desert(self) -> None:
        """Note that the consumer has left."""
        ...

    def wait_end(self, seconds: float) -> bool:
        """Wait, in a thread, at most `seconds` for the body to be finalised; tell whether it is."""
        ...

    async def wait_end_task(self, seconds: float) -> bool:
        """Wait, in an asyncio task, at most `seconds` for the body to be finalised; tell whether it is."""
        ...


@attrs.define(eq=False)
class End:
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
    """How one call ends: who decided that and as what, whether its owner was told, and whether the body is finalised.

    Each step happens once. `claim`: of all that would end the call (its body, `close`, `cancel`, a consumer that is
    cancelled, the engine that closes) the first one decides. `request_stop` tells the owner. `finish`: the owner says
    that the body is finalised, which `wait_end` waits for. Alone it serves whatever hands over nothing but its end; a
    `Channel` adds a buffer, a `Reduction` the value that partials are reduced to.

    Attributes:
        claimed: the end that was decided on.
        failure: what the next pull raises, once.
        is_over: whether everything about the claimed end can be read.
        stop: whether the owner was asked to finalise the body.
        end: how the body ended, once it is over and finalised.
        is_awaited: whether the stopper waits to hear what clean-up raises; else that goes to the log.
        deserted: when the consumer left, by `perf_counter`, if it did.
        on_stop: has a request to stop reach an owner that does not look.
        closers: wake-ups of those who wait for the end; made for the first of them.
        label: names it in the log.
    """

    __slots__ = (
        "__weakref__",
        "claimed",
        "closers",
        "deserted",
        "end",
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
        self.end: End | None = None
        self.is_awaited = False
        self.deserted: float | None = None
        self.on_stop: Callable[[], None] | None = None
        self.closers: deque[Wake] | None = None
        self.label = label

    # Deciding

    def claim(self, state: State, failure: BaseException | None = None) -> bool:
        """Decide how the call ends; tell whether this was the first to do so.

        All of the engine rests on one rule, here and at every place that refers to this one: with a GIL, no other
        thread, signal handler or finaliser runs between a test and the stores after it, unless a call or a backward
        jump stands between them. None does here.

        Args:
            state: the end.
            failure: what the next pull raises then, once.
        """
        if self.claimed is None:
            self.claimed = state
            self.failure = failure
            return True
        return False

    def finish(self, end: End) -> None:
        """Say that the body is over and finalised; the last thing an owner does."""
        self.end = end
        if self.closers:
            wake_all(self.closers)
        if self.deserted is not None and end.error is not None:
            error, end.error = end.error, None  # as in `claim`: it is logged here, or by the consumer that left
            warn(f"{self.label}: error after its stream was left", error)

    def request_stop(self) -> None:
        """Ask the owner to finalise the body.

        No lock is taken and nothing is waited for, so any thread, finaliser or signal handler may call it.
        """
        self.stop = True
        if self.closers:
            wake_all(self.closers)
        if self.on_stop is not None:
            self.on_stop()

    def desert(self) -> None:
        """Note that the consumer has left: what the body still raises goes to the log."""
        if self.deserted is None:
            self.deserted = perf_counter()

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
        lock = allocate_lock()  # as `park_thread`, without its calls: a `create` elsewhere waits here
        lock.acquire()
        parked = self.parked()
        parked.append(lock.release)
        try:
            if start is not None:
                start()
            if self.end is None and not self.stop:
                lock.acquire(timeout=BOUND)
        finally:
            if parked:
                _withdraw(parked, lock.release)

    async def wait_task(self, start: Callable[[], None] | None = None) -> None:
        """Sleep, in an asyncio task that shares the GIL with a busy owner, until the end or a stop may be there.

        Args:
            start: called once this task is parked.
        """
        from asyncio import get_running_loop

        loop = get_running_loop()
        sharing = _sharing_of(loop)
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
        """The wake-ups of those who wait for the end."""
        parked = self.closers
        if parked is None:
            made: deque[Wake] = deque()
            if self.closers is None:  # as in `claim`
                self.closers = made
            parked = self.closers
        return parked

    def _has_news(self) -> bool:
        return self.end is not None or self.stop

    def _has_ended(self) -> bool:
        return self.end is not None


class Channel(Ending):
    """A bounded buffer of `(partial, latency in ms)` between one owner and the consumers of one stream.

    Args:
        prefetch: `None` for the default: a window that starts at 1 and doubles up to 256 while the consumer finds it
            full, and lock-step for partials that could still change. A number fixes the window and lifts the
            lock-step; 0 makes every partial wait until it is asked for.
    """

    __slots__ = (
        "_demand",
        "_floor",
        "_handed",
        "_is_slept_by_thread",
        "_last_wake",
        "_polite_from",
        "_window",
        "_yielding",
        "consumers",
        "is_adaptive",
        "items",
        "producers",
    )

    def __init__(self, prefetch: int | None = None, label: str = "") -> None:
        """Make an empty channel; `label` names it in the log."""
        super().__init__(label)
        self.items: deque[tuple[Any, float]] = deque()
        self.consumers: deque[Wake] = deque()
        self.producers: deque[Wake] = deque()
        self.is_adaptive = prefetch is None
        self._is_slept_by_thread = False
        self._window = 1 if prefetch is None else prefetch
        self._floor = max(0, self._window - 1)  # a parked producer is woken once no more than this many wait
        self._demand = False
        self._handed = 0  # 1 while a woken consumer has not taken its partial: that one does not count as waiting
        self._yielding = False
        self._last_wake = 0.0
        self._polite_from = 0.0

    # The producer's end

    def finish(self, end: End) -> None:
        """Say that the body is over and finalised; the last thing an owner does with a channel."""
        self.end = end
        wake_all(self.consumers)
        super().finish(end)
        if self.deserted is not None:
            self.items.clear()  # of what was offered meanwhile: see `desert`

    def offer(self, value: Any, latency: float, now: float) -> bool:
        """Hand over one partial.

        Args:
            value: the partial.
            latency: the producer's time up to it, in ms.
            now: `perf_counter()` as just read, in s.

        Returns:
            Whether the producer must `pause` before it goes on.
        """
        self.items.append((value, latency))
        if self.consumers:
            self._handed = 1
            self._yielding = now - self._last_wake > _HAND_OVER and now >= self._polite_from
            self._last_wake = now
            wake_one(self.consumers)
        if self.is_adaptive:
            kind = type(value)
            if kind is not str and kind is not int and not is_fixed(value):
                self._demand = True
                return True
        elif not self._window:
            self._demand = True
            return True
        return self.stop or self._yielding or len(self.items) >= self._window + self._handed

    def offer_only(self, value: Any, latency: float, _now: float) -> None:
        """Hand over the one value a body returned; the end, which follows, wakes its consumer."""
        self.items.append((value, latency))

    def pause(self) -> bool:
        """Wait, in a thread, until the producer may go on; tell whether it must stop instead."""
        if self._yielding:
            self._yielding = False
            # The woken thread needs the GIL this one holds: without this it comes a switch interval later.
            # Beside a busy loop it gets the GIL back a switch interval later, and would spend its life on that.
            if not self.stop and self.items:
                started = perf_counter()
                park_thread(self.producers, self._is_taken, _COURTESY)
                ended = perf_counter()
                self._polite_from = ended + _RESTRAINT * (ended - started)
        while not self._may_go():
            park_thread(self.producers, self._may_go, BOUND)
        self._demand = False
        return self.stop

    async def apause(self) -> bool:
        """Wait, in an asyncio task, until the producer may go on; tell whether it must stop instead."""
        if self._yielding:
            self._yielding = False
            if self._is_slept_by_thread and not self.stop and self.items:  # a moment, to give that thread the GIL
                park_thread(self.producers, self._is_taken, sys.getswitchinterval() / 5)
        while not self._may_go():
            await park_task(self.producers, self._may_go)
        self._demand = False
        return self.stop

    def _is_taken(self) -> bool:
        return not self.items or self.stop

    def _may_go(self) -> bool:
        if self.stop:
            return True
        if self._demand:
            return not self.items and bool(self.consumers)
        return len(self.items) < self._window + self._handed

    # The consumer's end

    def take(self) -> tuple[Any, float]:
        """Take the oldest partial.

        Raises:
            IndexError: none is waiting.
        """
        item = self.items.popleft()
        if self._handed:
            self._handed = 0
        if self.producers:
            self._make_room()
        if self.consumers and self.items:
            wake_one(self.consumers)  # another consumer may have slept through its wake-up
        return item

    def _make_room(self) -> None:
        waiting = len(self.items)
        if self.is_adaptive and waiting and not self._demand and self._window < MOST:
            self._window *= 2
            self._floor = self._window // 2
        if waiting <= self._floor and not self._demand:  # a producer in lock-step is woken by asking, not by taking
            wake_one(self.producers)

    def wait(self, start: Callable[[], None] | None = None) -> None:
        """Sleep, in a thread, until a partial or the end may be there; `start` is called once this thread is parked."""
        self._is_slept_by_thread = True
        park_thread(self.consumers, self._has_news, BOUND, start or self._ask)

    async def wait_task(self, start: Callable[[], None] | None = None) -> None:
        """Sleep, in an asyncio task that shares the GIL with a busy owner, until a partial or the end may be there."""
        from asyncio import get_running_loop

        self._is_slept_by_thread = False
        loop = get_running_loop()
        sharing = _sharing_of(loop)
        sharing.enter(loop)
        try:
            await park_task(self.consumers, self._has_news, start or self._ask, self.request_stop)
        finally:
            sharing.leave()
            if self.items and self.consumers:
                wake_one(self.consumers)  # this task may be leaving (cancelled) with a wake-up meant for a partial

    def _ask(self) -> None:
        if self.producers:
            wake_one(self.producers)  # a producer in lock-step waits until it is asked

    def _has_news(self) -> bool:
        return bool(self.items) or self.end is not None or self.stop

    def request_stop(self) -> None:
        """Ask the owner to finalise the body.

        No lock is taken and nothing is waited for, so any thread, finaliser or signal handler may call it.
        """
        self.stop = True
        wake_all(self.producers)
        wake_all(self.consumers)
        super().request_stop()

    def desert(self) -> None:
        """Note that the consumer has left: drop what waits to be taken, for an outcome that is kept keeps this."""
        super().desert()
        self.items.clear()


class Reduction(Ending):
    """What the partials of one call are reduced to, kept where a failure cannot lose it.

    Where the owner keeps it, it is the whole channel of the call: a runner that hands partials over, as to any channel,
    has them reduced here.

    Attributes:
        reducer: turns partials into the result.
        value: the reducer's state so far.
        count: partials reduced so far.
        elapsed: the producer's time, in s, once the body is over.
    """

    __slots__ = ("elapsed", "reducer", "value")

    def __init__(self, reducer: Reducer, label: str = "") -> None:
        """Nothing is reduced yet."""
        super().__init__(label)
        self.reducer = reducer
        self.value: Any = EMPTY if reducer is LAST else reducer.start()
        self.elapsed = 0.0

    def add(self, value: Any) -> None:
        """Reduce one more partial."""
        self.count += 1
        self.value = value if self.reducer is LAST else self.reducer.step(self.value, value)

    def offer(self, value: Any, latency: float, now: float) -> bool:  # noqa: ARG002 - as of a channel
        """Reduce one partial that was handed over; tell whether the body is to stop."""
        self.add(value)
        self.elapsed = latency / 1000.0
        return self.stop

    def offer_only(self, value: Any, latency: float, now: float) -> None:
        """Reduce the one value a body returned."""
        self.offer(value, latency, now)

    def pause(self) -> bool:
        """Tell whether the body is to stop; there is nothing to wait for."""
        return self.stop

    async def apause(self) -> bool:
        """Tell whether the body is to stop; there is nothing to wait for."""
        return self.stop


def wait_until(is_news: Callable[[], bool], parked: deque[Wake], seconds: float) -> bool:
    """Wait, in a thread, at most `seconds` until `is_news`, which whoever makes it true tells by waking `parked`."""
    deadline = perf_counter() + seconds
    while not is_news() and (left := deadline - perf_counter()) > 0:
        park_thread(parked, is_news, min(left, BOUND))
    return is_news()


async def wait_until_task(
    is_news: Callable[[], bool], parked: deque[Wake], seconds: float, lost: Callable[[], None] | None = None
) -> bool:
    """Do what `wait_until` does in an asyncio task; `lost` is called where its loop is closed when it is woken."""
    from asyncio import get_running_loop

    late: list[bool] = []

    def expire() -> None:
        late.append(True)
        wake_all(parked)

    timer = get_running_loop().call_later(seconds, expire)
    try:
        while not is_news() and not late:
            await park_task(parked, is_news, None, lost)
    finally:
        timer.cancel()
    return is_news()


def wake_one(parked: deque[Wake]) -> None:
    """Wake whoever parked first; whoever takes the wake-up out is the only one to call it."""
    try:
        wake = parked.popleft()
    except IndexError:
        return
    wake()


def wake_all(parked: deque[Wake]) -> None:
    """Wake everyone parked here."""
    while parked:
        wake_one(parked)


def _withdraw(parked: deque[Wake], wake: Wake) -> None:
    if not parked:  # as almost always: whoever woke us took it out
        return
    with suppress(
        ValueError, RuntimeError
    ):  # taken already, or the deque changed meanwhile: a stale wake-up is harmless
        parked.remove(wake)


def park_thread(
    parked: deque[Wake], is_news: Callable[[], bool], seconds: float, ready: Callable[[], None] | None = None
) -> None:
    """Sleep in a thread, at most `seconds`, among `parked`; `ready` is called once the wake-up lies there."""
    lock = allocate_lock()
    lock.acquire()
    parked.append(lock.release)
    try:
        if ready is not None:
            ready()
        if not is_news():
            lock.acquire(timeout=seconds)
    finally:
        _withdraw(parked, lock.release)


async def park_task(
    parked: deque[Wake],
    is_news: Callable[[], bool],
    ready: Callable[[], None] | None = None,
    lost: Callable[[], None] | None = None,
) -> None:
    """Sleep in an asyncio task among `parked`; `lost` is called where its loop is closed when the wake-up comes."""
    from asyncio import get_running_loop

    loop = get_running_loop()
    future: Future[None] = loop.create_future()

    def wake() -> None:
        try:
            loop.call_soon_threadsafe(_resolve, future)
        except RuntimeError:  # that loop is closed: nobody will ever take what comes
            if lost is not None:
                lost()

    parked.append(wake)
    try:
        if ready is not None:
            ready()
        if not is_news():
            await future
    finally:
        _withdraw(parked, wake)


def _resolve(future: Future[None]) -> None:
    if not future.done():
        future.set_result(None)


class _Sharing:
    """Gives up the GIL once per switch interval while tasks of one loop wait for owner threads.

    A loop that runs callback after callback releases the GIL only for moments too short for a waiting thread to take
    it, and would starve the very owner it waits for. It refers to neither its loop nor the loop's timer: a loop that is
    closed before the timer rings would be kept for ever.
    """

    __slots__ = ("_is_timed", "_waiting")

    def __init__(self) -> None:
        self._waiting = 0
        self._is_timed = False

    def enter(self, loop: AbstractEventLoop) -> None:
        self._waiting += 1
        if not self._is_timed:
            self._is_timed = True
            loop.call_later(sys.getswitchinterval(), self._tick, loop)

    def leave(self) -> None:
        self._waiting -= 1

    def _tick(self, loop: AbstractEventLoop) -> None:
        self._is_timed = False
        if self._waiting:
            sleep(0.00005)  # long enough for a thread that waits for the GIL to get it
            self._is_timed = True
            loop.call_later(sys.getswitchinterval(), self._tick, loop)


_sharings: WeakKeyDictionary[AbstractEventLoop, _Sharing] = WeakKeyDictionary()


def _sharing_of(loop: AbstractEventLoop) -> _Sharing:
    try:
        return _sharings[loop]
    except KeyError:
        return _sharings.setdefault(loop, _Sharing())
