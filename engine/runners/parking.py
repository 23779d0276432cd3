"""Parking and waking: how a thread or a task waits until the other end of a hand-off has news.

Each end parks in its own way (a thread on a lock, an asyncio task on a future) by leaving a callable that wakes it, and
the end that takes that callable out of the deque, an atomic operation, is the one that calls it. So no lock is held,
nothing of the user's runs under one, and a wake-up is paid only when an end sleeps: a busy pair exchanges thousands of
partials without any.

Rules, all under one GIL: an end appends its wake-up first and looks again second; the other end changes the buffer
first and looks for wake-ups second. Whichever comes later sees the other.
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

    Wake = Callable[[], None]

POLL_INTERVAL: Final = 5.0  # seconds any wait sleeps before it looks again


def wait_until(is_news: Callable[[], bool], parked: deque[Wake], seconds: float) -> bool:
    """Wait, in a thread, at most `seconds` until `is_news`, which whoever makes it true tells by waking `parked`."""
    deadline = perf_counter() + seconds
    while not is_news() and (left := deadline - perf_counter()) > 0:
        park_thread(parked, is_news, min(left, POLL_INTERVAL))
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


def withdraw(parked: deque[Wake], wake: Wake) -> None:
    """Take a wake-up back that its owner needs no more."""
    if not parked:  # as almost always: the end that woke this one took it out
        return
    with suppress(ValueError, RuntimeError):  # taken already, or changed meanwhile: a stale wake-up is harmless
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
        withdraw(parked, lock.release)


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
        withdraw(parked, wake)


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


def sharing_of(loop: AbstractEventLoop) -> _Sharing:
    """Give what the readers of one loop share."""
    try:
        return _sharings[loop]
    except KeyError:
        return _sharings.setdefault(loop, _Sharing())
