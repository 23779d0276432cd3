"""Parking and waking: how a thread or a task waits until the other end of a hand-off has news.

Each end parks in its own way (a thread on a lock, an asyncio task on a future) by leaving a callable that wakes it, and
the end that takes that callable out of the deque, an atomic operation, is the one that calls it. So no lock is held,
nothing of the user's runs under one, and a wake-up is paid only when an end sleeps: a busy pair exchanges thousands of
partials without any.

Append first, look second. An end appends its wake-up first and looks at the buffer again second; the other end changes
the buffer first and looks for wake-ups second. All of it happens under one GIL: whichever comes later sees the other.
"""

from __future__ import annotations

import sys
from _thread import allocate_lock
from contextlib import suppress
from time import perf_counter, sleep
from typing import TYPE_CHECKING, Final
from weakref import WeakKeyDictionary

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop, Future
    from collections import deque
    from collections.abc import Callable

    Wake = Callable[[], None]  # wakes one parked thread or task; any thread, signal handler or finaliser may call it

POLL_INTERVAL: Final = 5.0  # seconds a parked thread sleeps at most before it looks again, woken or not
_GIL_RELEASE: Final = 0.00005  # seconds; long enough for a thread that waits for the GIL to get it


def wait_until(is_news: Callable[[], bool], parked: deque[Wake], seconds: float) -> bool:
    """Wait, in a thread, at most `seconds` until `is_news`, whose writer wakes `parked`; tell whether it is."""
    deadline = perf_counter() + seconds
    while not is_news() and (left := deadline - perf_counter()) > 0:
        park_thread(parked, is_news, min(left, POLL_INTERVAL))
    return is_news()


async def wait_until_task(
    is_news: Callable[[], bool], parked: deque[Wake], seconds: float, lost: Callable[[], None] | None = None
) -> bool:
    """Wait, in an asyncio task, at most `seconds` until `is_news`, whose writer wakes `parked`; tell whether it is.

    Args:
        is_news: what is waited for.
        parked: where the task parks.
        seconds: the bound; the loop turns once even where it is 0.
        lost: called where the loop is closed by the time the task is woken.
    """
    deadline, left = perf_counter() + seconds, seconds
    while not is_news() and left >= 0:
        await park_task(parked, is_news, None, lost, left)
        left = deadline - perf_counter()
    return is_news()


def wake_one(parked: deque[Wake]) -> None:
    """Wake what parked first."""
    try:
        wake = parked.popleft()  # one atomic operation: of several callers each gets another wake-up, or none
    except IndexError:
        return
    wake()


def wake_all(parked: deque[Wake]) -> None:
    """Wake all that is parked."""
    while parked:
        wake_one(parked)


def withdraw(parked: deque[Wake], wake: Wake) -> None:
    """Take back the wake-up of a thread or task that sleeps no more."""
    if not parked:  # the fast path: the end that woke this one took it out
        return
    with suppress(ValueError, RuntimeError):  # taken already, or changed meanwhile: a stale wake-up is harmless
        parked.remove(wake)


def park_thread(
    parked: deque[Wake], is_news: Callable[[], bool], seconds: float, ready: Callable[[], None] | None = None
) -> None:
    """Sleep in a thread, at most `seconds`, among `parked`; `ready` is called once the wake-up is there."""
    lock = allocate_lock()
    lock.acquire()
    parked.append(lock.release)  # before `is_news` is looked at: see the rule above
    try:
        if ready is not None:
            ready()
        if not is_news():
            lock.acquire(timeout=seconds)
    finally:
        withdraw(parked, lock.release)


async def park_task(
    parked: deque[Wake],
    is_news: Callable[[], bool],
    ready: Callable[[], None] | None = None,
    lost: Callable[[], None] | None = None,
    seconds: float | None = None,
) -> None:
    """Sleep in an asyncio task among `parked`.

    Args:
        parked: where its wake-up lies meanwhile.
        is_news: whether there is no reason to sleep.
        ready: called once the wake-up is there.
        lost: called where the loop is closed by the time the wake-up is called.
        seconds: how long it sleeps at most; `None` for as long as it takes.
    """
    from asyncio import get_running_loop

    loop = get_running_loop()
    future: Future[None] = loop.create_future()

    def wake() -> None:
        try:
            loop.call_soon_threadsafe(_resolve, future)
        except RuntimeError:  # that loop is closed: this task will never take what comes
            if lost is not None:
                lost()

    timer = None if seconds is None else loop.call_later(seconds, _resolve, future)
    parked.append(wake)
    try:
        if ready is not None:
            ready()
        if not is_news():
            await future
    finally:
        withdraw(parked, wake)
        if timer is not None:
            timer.cancel()


def _resolve(future: Future[None]) -> None:
    if not future.done():  # else its task was cancelled, or a timer came first
        future.set_result(None)


class GilSharing:
    """Releases the GIL once per switch interval while tasks of one loop wait for owner threads.

    A loop that runs callback after callback releases the GIL only for times too short for a waiting thread to take it,
    and would starve the very owner it waits for. This refers to neither its loop nor the loop's timer: a loop that is
    closed before the timer fires would be kept for ever.
    """

    __slots__ = ("_is_timed", "_waiting")

    def __init__(self) -> None:
        self._waiting = 0
        self._is_timed = False

    def enter(self, loop: AbstractEventLoop) -> None:
        """Count one more task that waits, and start the timer if none runs."""
        self._waiting += 1
        if not self._is_timed:
            self._is_timed = True
            loop.call_later(sys.getswitchinterval(), self._tick, loop)

    def leave(self) -> None:
        """Count one task less; the timer ends by itself."""
        self._waiting -= 1

    def _tick(self, loop: AbstractEventLoop) -> None:
        self._is_timed = False
        if self._waiting:
            sleep(_GIL_RELEASE)
            self._is_timed = True
            loop.call_later(sys.getswitchinterval(), self._tick, loop)


_sharings: WeakKeyDictionary[AbstractEventLoop, GilSharing] = WeakKeyDictionary()


def sharing_of(loop: AbstractEventLoop) -> GilSharing:
    """The `GilSharing` that all tasks of a loop share; made for the first of them."""
    try:
        return _sharings[loop]
    except KeyError:
        return _sharings.setdefault(loop, GilSharing())
