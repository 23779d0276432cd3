"""The hand-written best: for each case what somebody would write who needs that case only, and nothing else of it."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import AsyncIterator, Iterator
from itertools import count as numbers
from time import perf_counter
from typing import Any


class Record:
    """What a call gives: as much as its caller may ask for."""

    __slots__ = ("created", "error", "id", "index", "latency", "logs", "tag", "value")

    def __init__(self, id: int, tag: str, value: Any, index: int, latency: float, created: float) -> None:
        self.id = id
        self.tag = tag
        self.value = value
        self.index = index
        self.latency = latency
        self.created = created
        self.error = None
        self.logs = ""


identity = numbers(1).__next__


class Registry:
    """Functions by tag, called with a clock and a record."""

    def __init__(self, **functions: Any) -> None:
        self.functions = functions

    def create(self, tag: str, inputs: dict[str, Any]) -> Record:
        """Look up, call, note."""
        function = self.functions[tag]
        started = perf_counter()
        try:
            value = function(**inputs)
        except Exception as error:
            raise RuntimeError(tag) from error
        ended = perf_counter()
        return Record(identity(), tag, value, 0, (ended - started) * 1000, started)

    async def acreate(self, tag: str, inputs: dict[str, Any]) -> Record:
        """The same for a coroutine function."""
        function = self.functions[tag]
        started = perf_counter()
        try:
            value = await function(**inputs)
        except Exception as error:
            raise RuntimeError(tag) from error
        ended = perf_counter()
        return Record(identity(), tag, value, 0, (ended - started) * 1000, started)


_END = object()
_BOUND = 256  # partials a pump is ahead of its reader at most


async def pumped(partials: Iterator[Any]) -> AsyncIterator[Any]:
    """Read a sync iterator that a thread of its own runs, through a bounded deque; the reader is woken once a batch."""
    loop = asyncio.get_running_loop()
    items: deque[Any] = deque()
    room = threading.Semaphore(0)
    parked: list[asyncio.Future[None]] = []

    def wake(future: asyncio.Future[None]) -> None:
        if not future.done():
            future.set_result(None)

    def put() -> None:
        for value in partials:
            items.append(value)
            if parked:
                loop.call_soon_threadsafe(wake, parked.pop())
            while len(items) >= _BOUND:
                room.acquire(timeout=1.0)
        items.append(_END)
        if parked:
            loop.call_soon_threadsafe(wake, parked.pop())

    thread = threading.Thread(target=put)
    is_started = False
    while True:
        while items:
            value = items.popleft()
            if value is _END:
                thread.join()
                return
            if len(items) == _BOUND // 2:
                room.release()
            yield value
        future = loop.create_future()
        parked.append(future)  # parked before the thread starts, or the first partial waits a switch interval
        if not is_started:
            is_started = True
            thread.start()
        if items and parked:
            parked.clear()
            continue
        await future
