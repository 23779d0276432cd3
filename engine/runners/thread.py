"""Owner threads: each runs one sync body at a time, from its call to its finalisation, in the caller's context.

Threads are daemons, started when first needed, kept for the next call and let go after a while. A body cannot be
stopped inside a `def`: its consumer leaves, the thread is abandoned, counted, and keeps its slot until it ends. No
exception is ever injected into a thread.
"""

from __future__ import annotations

import threading
from _thread import allocate_lock
from collections import deque
from contextvars import copy_context
from functools import partial
from time import perf_counter
from typing import TYPE_CHECKING, Any, Final

from engine._channel import End
from engine._errors import EngineClosedError, EngineError
from engine._partials import ITERATOR, ONE, close_iterator, dispose, look, one
from engine._records import current

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from engine._channel import Channel
    from engine._partials import Body, Reduction

    Adopt = Callable[[Body, Channel, Any, float], None]

MOST_ABANDONED: Final = 64  # threads whose consumers have left; beyond, new calls are refused
MOST_THREADS: Final = 4096  # owner threads of one engine at one time
_IDLE: Final = 10.0  # seconds a thread waits for its next body


class ThreadRunner:
    """Runs sync bodies in owner threads; what turns out to be async is handed to `adopt`, the loop."""

    name = "thread"

    def __init__(self) -> None:
        """Make a runner without threads."""
        self.adopt: Adopt = _unjoined
        self._idle: deque[_Owner] = deque()
        self._owners: set[_Owner] = set()
        self._busy: set[Channel] = set()
        self._is_closed = False

    @property
    def abandoned(self) -> int:
        """Owner threads still running a body whose consumer has left."""
        return sum(channel.deserted is not None for channel in tuple(self._busy))

    def start(self, body: Body, channel: Channel) -> None:
        """Run `body` on an owner thread.

        Raises:
            EngineClosedError: the engine is closed.
            EngineError: too many threads are abandoned or running already.
        """
        self.run(channel, partial(body.context.run, _own, body, channel, self.adopt))

    def take_over(self, body: Body, channel: Channel, iterator: Iterator[Any], elapsed: float) -> None:
        """Go on, on an owner thread, with a sync iterator that an async body produced after `elapsed` seconds."""
        body.context = copy_context()  # the body's own one is entered, and stays so, where this is called
        self.run(channel, lambda: body.context.run(go_on, body, channel, iterator, elapsed))

    def run(self, channel: Channel, work: Callable[[], None]) -> None:
        """Run `work`, which ends by finishing `channel`, on an idle thread or a new one."""
        self._refuse()
        self._busy.add(channel)
        channel.before_end = partial(self._busy.discard, channel)
        try:
            owner = self._idle.pop()
        except IndexError:
            owner = _Owner(self)
            try:
                owner.start(channel, work)
            except BaseException:
                self._busy.discard(channel)
                raise
        else:
            owner.give(channel, work)

    def _refuse(self) -> None:
        if self._is_closed:
            raise EngineClosedError
        running = len(self._busy)
        if running >= MOST_THREADS:
            raise EngineError(
                f"{running} predictor bodies run in threads, the most one engine allows: read or close some first"
            )
        if running >= MOST_ABANDONED and self.abandoned >= MOST_ABANDONED:
            raise EngineError(
                f"{self.abandoned} abandoned threads still run predictors that were cancelled or closed and did not "
                "stop: let them look at current_call().stopping, or yield more often"
            )

    def finished(self, channel: Channel) -> None:
        """An owner is done with a channel."""
        self._busy.discard(channel)

    @property
    def is_started(self) -> bool:
        """Whether there are threads to let go."""
        return bool(self._owners)

    def close(self, grace: float) -> None:
        """Refuse new bodies, let idle threads go, and wait at most `grace` seconds for those that are about to end."""
        self._is_closed = True
        while self._idle:
            try:
                self._idle.pop().give(None, None)
            except IndexError:
                break
        deadline = perf_counter() + grace
        for owner in tuple(self._owners):
            if owner.thread is not threading.current_thread():
                owner.thread.join(max(0.0, min(deadline, owner.patience(grace)) - perf_counter()))

    def retire(self, owner: _Owner) -> bool:
        """Whether an idle `owner` may end; not if a body has just been given to it."""
        try:
            self._idle.remove(owner)
        except ValueError:
            return False
        return True

    def rest(self, owner: _Owner) -> bool:
        """Keep `owner` for the next body; tell it to end instead if the engine is closed."""
        self._idle.append(owner)
        return not (self._is_closed and self.retire(owner))


def _unjoined(_body: Body, _channel: Channel, produced: Any, _elapsed: float) -> None:
    dispose(produced)
    raise AssertionError("a thread runner is joined with a loop before it is used")


class _Owner:
    """One thread that owns one body at a time."""

    __slots__ = ("_channel", "_lock", "_runner", "_work", "thread")

    def __init__(self, runner: ThreadRunner) -> None:
        self._runner = runner
        self._lock = allocate_lock()
        self._lock.acquire()
        self._channel: Channel | None = None
        self._work: Callable[[], None] | None = None
        self.thread = threading.Thread(target=self._main, name="engine-owner", daemon=True)

    def patience(self, grace: float) -> float:
        """Until when to wait for this owner: one whose consumer has left gets no second grace."""
        channel = self._channel
        return perf_counter() + grace if channel is None or channel.deserted is None else channel.deserted + grace

    def start(self, channel: Channel, work: Callable[[], None]) -> None:
        self._channel, self._work = channel, work
        self._runner._owners.add(self)  # noqa: SLF001 - one class in two halves
        try:
            self.thread.start()
        except BaseException:
            self._runner._owners.discard(self)  # noqa: SLF001
            raise

    def give(self, channel: Channel | None, work: Callable[[], None] | None) -> None:
        self._channel, self._work = channel, work
        self._lock.release()

    def _main(self) -> None:
        runner = self._runner
        try:
            while self._work is not None:
                self._do(self._work)
                if not runner.rest(self) or not self._is_given_more():
                    break
        finally:
            runner._owners.discard(self)  # noqa: SLF001

    def _do(self, work: Callable[[], None]) -> None:
        channel = self._channel
        self._work = None
        try:
            work()
        except BaseException as error:  # a defect of a runner: its consumer must hear of it, and not wait for ever
            if channel is not None and channel.end is None:
                channel.finish(End(error))
        self._channel = None
        if channel is not None:
            self._runner.finished(channel)

    def _is_given_more(self) -> bool:
        while not self._lock.acquire(timeout=_IDLE):
            if self._runner.retire(self):
                return False
        return True


def own(body: Body, channel: Channel, adopt: Adopt) -> None:
    """Be the owner of a sync body, in the calling thread, from its call to its finalisation.

    Args:
        body: what to run; it runs in its own context.
        channel: where its partials go, and where requests to stop come from.
        adopt: takes over what turns out to be async, with the seconds spent so far.
    """
    body.context.run(_own, body, channel, adopt)


def _own(body: Body, channel: Channel, adopt: Adopt) -> None:
    current.set(body.call)
    clock = perf_counter
    started = clock()
    try:
        produced = body.start()
        kind = look(produced, body.follows)
    except BaseException as error:
        _finish(body, channel, End(error))
        return
    if kind is ONE and body.reduction is not None:  # the fast path of `create`: there is nothing to hand over
        end = End(returned=produced)
        try:
            body.reduction.add(produced)
            body.reduction.elapsed = clock() - started
        except BaseException as error:
            end = End(error)
        _finish(body, channel, end)
        return
    if kind is ONE:
        produced, kind = one(produced), ITERATOR
    if kind is ITERATOR:
        go_on(body, channel, produced, clock() - started)
    else:
        adopt(body, channel, produced, clock() - started)


def go_on(body: Body, channel: Channel, iterator: Iterator[Any], elapsed: float) -> None:
    """Go on, in the calling thread, with a sync iterator a body produced after `elapsed` seconds."""
    end = End()
    try:
        try:
            if body.reduction is None:
                is_over = pump(iterator, channel, elapsed, end)
            else:
                is_over = reduce(iterator, channel, elapsed, end, body.reduction)
        except BaseException:
            close_iterator(iterator)  # it is open where its partial could not be handed over or reduced
            raise
        if not is_over:
            end.is_cleanup = True
            close_iterator(iterator)
    except BaseException as error:
        end.error = error
    del iterator
    _finish(body, channel, end)


def _finish(body: Body, channel: Channel, end: End) -> None:
    body.let_go()  # first the slot, then the news: whoever reads the end may call again at once
    channel.finish(end)


def pump(iterator: Iterator[Any], channel: Channel, elapsed: float, end: End) -> bool:
    """Put each partial into the channel; tell whether the iterator ended by itself.

    The hot loop of every bridge from a sync body: one step, one look at the clock, one hand-over. Where there is no
    pause, the hand-over itself counts as the producer's time: a clock is a third of its price.
    """
    clock, step, offer = perf_counter, iterator.__next__, channel.offer
    started = clock()
    while not channel.stop:
        try:
            value = step()
        except StopIteration as stop:
            end.returned = stop.value
            return True
        now = clock()
        elapsed += now - started
        started = now
        if offer(value, elapsed * 1000.0, now):
            if channel.pause():
                break
            started = clock()
        # `value` stays bound while the body runs on, as in any for loop
    return False


def reduce(iterator: Iterator[Any], channel: Channel, elapsed: float, end: End, reduction: Reduction) -> bool:
    """Keep the running reduction in the owner and hand over nothing but the end."""
    started = perf_counter()
    step, add = iterator.__next__, reduction.add
    is_over = False
    while not channel.stop:
        try:
            value = step()
        except StopIteration as stop:
            end.returned = stop.value
            is_over = True
            break
        add(value)
    reduction.elapsed = elapsed + perf_counter() - started
    return is_over
