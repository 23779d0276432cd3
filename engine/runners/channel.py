"""The channel between an owner in this process and a consumer elsewhere: a bounded buffer, or a reduction.

The buffer decides when the producer may run on and when its consumer must be woken; how either end waits is written in
`engine.runners.parking`. It does not close iterators, keep outcomes or know predictors.
"""

from __future__ import annotations

import sys
from collections import deque
from time import perf_counter
from typing import TYPE_CHECKING, Any, Final

from engine._reducers import EMPTY, LAST
from engine.runners.ending import (
    Ending,
    Report,
)
from engine.runners.parking import (
    POLL_INTERVAL,
    park_task,
    park_thread,
    sharing_of,
    wake_all,
    wake_one,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from engine._reducers import Reducer
    from engine.runners.parking import Wake

MAX_WINDOW: Final = 256  # partials in the largest default window
_YIELD_AFTER: Final = 0.0005  # seconds since its last wake-up after which a producer yields the GIL to the consumer
_YIELD_BOUND: Final = 0.0005  # seconds it yields at most: a consumer that has taken nothing by then is busy elsewhere
_YIELD_BACK_OFF: Final = 3  # times as long as yielding took, with the wait for the GIL, before it yields again

# A producer may run on past these: they cannot change under a consumer that still holds them.
_IMMUTABLE: Final = frozenset({str, bytes, int, float, complex, bool, type(None)})


def is_immutable(value: object) -> bool:
    """Whether a producer may run on past this partial: immutable text, bytes, numbers, None, or a tuple of these."""
    kind = type(value)
    return all(_is_immutable_type(type(item)) for item in value) if kind is tuple else _is_immutable_type(kind)  # type: ignore[attr-defined]


def _is_immutable_type(kind: type) -> bool:
    return type(kind) is type and kind in _IMMUTABLE  # a class of another kind may refuse to be hashed


class Channel(Ending):
    """A bounded buffer of `(partial, latency in ms)` between one owner and the consumers of one stream.

    Args:
        prefetch: `None` for the default: a window that starts at 1 and doubles up to 256 while the consumer finds it
            full, and lock-step for partials that could still change. A number fixes the window and lifts the
            lock-step; 0 makes every partial wait until it is asked for.
        label: names it in the log.
    """

    __slots__ = (
        "_floor",
        "_in_hand_over",
        "_is_on_demand",
        "_is_thread_asleep",
        "_last_wake",
        "_must_yield",
        "_next_yield",
        "_window",
        "consumers",
        "is_adaptive",
        "items",
        "producers",
    )

    def __init__(self, prefetch: int | None = None, label: str = "") -> None:
        """Make an empty channel."""
        super().__init__(label)
        self.items: deque[tuple[Any, float]] = deque()
        self.consumers: deque[Wake] = deque()
        self.producers: deque[Wake] = deque()
        self.is_adaptive = prefetch is None
        self._is_thread_asleep = False
        self._window = 1 if prefetch is None else prefetch
        self._floor = max(0, self._window - 1)  # a parked producer is woken once no more than this many wait
        self._is_on_demand = False
        self._in_hand_over = 0  # 1 while a woken consumer has not taken its partial, which does not count as buffered
        self._must_yield = False
        self._last_wake = 0.0
        self._next_yield = 0.0

    # The producer's end

    def finish(self, end: Report) -> None:
        """Report that the body is over and finalised; the last thing an owner does with a channel."""
        self.end = end  # before the wake-ups are looked at: see `parking`
        wake_all(self.consumers)
        super().finish(end)
        if self.detached_at is not None:
            self.items.clear()  # what was offered since: see `detach`

    def offer(self, value: Any, latency: float, now: float) -> bool:
        """Hand over one partial.

        Args:
            value: the partial.
            latency: the producer's time up to it, in ms.
            now: `perf_counter()` as just read, in s.

        Returns:
            Whether the producer must `pause` before it goes on.
        """
        self.items.append((value, latency))  # before the wake-ups are looked at: see `parking`
        if self.consumers:
            self._in_hand_over = 1
            self._must_yield = now - self._last_wake > _YIELD_AFTER and now >= self._next_yield
            self._last_wake = now
            wake_one(self.consumers)
        if self.is_adaptive:
            kind = type(value)
            if kind is not str and kind is not int and not is_immutable(value):
                self._is_on_demand = True
                return True
        elif not self._window:
            self._is_on_demand = True
            return True
        return self.stop or self._must_yield or len(self.items) >= self._window + self._in_hand_over

    def offer_only(self, value: Any, latency: float, _now: float) -> None:
        """Hand over the one value a body returned; the end, which follows, wakes its consumer."""
        self.items.append((value, latency))

    def pause(self) -> bool:
        """Wait, in a thread, until the producer may go on; tell whether it must stop instead."""
        if self._must_yield:
            self._must_yield = False
            # The woken thread needs the GIL that this one holds: without this wait it gets it a switch interval later.
            # Beside a busy loop this thread in turn gets it back a switch interval later, and would do nothing else
            # than wait for that: hence the back-off.
            if not self.stop and self.items:
                started = perf_counter()
                park_thread(self.producers, self._is_taken, _YIELD_BOUND)
                ended = perf_counter()
                self._next_yield = ended + _YIELD_BACK_OFF * (ended - started)
        while not self._may_go():
            park_thread(self.producers, self._may_go, POLL_INTERVAL)
        self._is_on_demand = False
        return self.stop

    async def apause(self) -> bool:
        """Wait, in an asyncio task, until the producer may go on; tell whether it must stop instead."""
        if self._must_yield:
            self._must_yield = False
            if self._is_thread_asleep and not self.stop and self.items:  # yield the GIL to the woken thread
                park_thread(self.producers, self._is_taken, sys.getswitchinterval() / 5)
        while not self._may_go():
            await park_task(self.producers, self._may_go)
        self._is_on_demand = False
        return self.stop

    def _is_taken(self) -> bool:
        return not self.items or self.stop

    def _may_go(self) -> bool:
        if self.stop:
            return True
        if self._is_on_demand:
            return not self.items and bool(self.consumers)
        return len(self.items) < self._window + self._in_hand_over

    # The consumer's end

    def take(self) -> tuple[Any, float]:
        """Take the oldest partial.

        Raises:
            IndexError: none is waiting.
        """
        item = self.items.popleft()  # atomic: each of several consumers takes another partial
        if self._in_hand_over:
            self._in_hand_over = 0
        if self.producers:
            self._make_room()
        if self.consumers and self.items:
            wake_one(self.consumers)  # of several consumers one was woken, and there is a partial for the next one
        return item

    def _make_room(self) -> None:
        waiting = len(self.items)
        if self.is_adaptive and waiting and not self._is_on_demand and self._window < MAX_WINDOW:
            self._window *= 2
            self._floor = self._window // 2
        if waiting <= self._floor and not self._is_on_demand:  # a producer in lock-step is woken by `_ask`
            wake_one(self.producers)

    def wait(self, start: Callable[[], None] | None = None) -> None:
        """Sleep, in a thread, until a partial or the end may be there; `start` is called once this thread is parked."""
        self._is_thread_asleep = True
        park_thread(self.consumers, self._has_news, POLL_INTERVAL, start or self._ask)

    async def wait_task(self, start: Callable[[], None] | None = None) -> None:
        """Sleep, in an asyncio task that shares the GIL with a busy owner, until a partial or the end may be there."""
        from asyncio import get_running_loop

        self._is_thread_asleep = False
        loop = get_running_loop()
        sharing = sharing_of(loop)
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
        self.stop = True  # before the wake-ups are looked at: see `parking`
        wake_all(self.producers)
        wake_all(self.consumers)
        super().request_stop()

    def detach(self) -> None:
        """Note that the consumer has left: drop what waits to be taken, for an outcome that is kept keeps this."""
        super().detach()
        self.items.clear()


class Reduction(Ending):
    """What the partials of one call are reduced to, kept where a failure cannot lose it.

    Where the owner keeps it, it is the whole channel of the call: what a runner hands over, as to any channel, is
    reduced here.

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
