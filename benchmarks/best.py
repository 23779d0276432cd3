"""The hand-written best: for each case what somebody would write who needs that case only, and nothing else of it."""

import asyncio
import multiprocessing
import os
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import count as numbers
from time import perf_counter
from typing import Any


class Record:
    """What a call gives: as much as its caller may ask for."""

    __slots__ = ("created", "error", "index", "latency", "logs", "number", "tag", "value")

    def __init__(self, number: int, tag: str, value: Any, index: int, latency: float, created: float) -> None:
        self.number = number
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


async def avalues(partials: AsyncIterator[Any]) -> AsyncIterator[Any]:
    """Read an async generator through another one, which is where whatever is done for each partial would be done."""
    async for value in partials:
        yield value


async def arecords(partials: AsyncIterator[Any]) -> AsyncIterator[Record]:
    """Read an async generator with a clock pair and a record for each partial."""
    clock, number, index, spent = perf_counter, identity(), 0, 0.0
    created = started = clock()
    async for value in partials:
        spent += clock() - started
        yield Record(number, "count", value, index, spent * 1000, created)
        index += 1
        started = clock()


# --- a sync generator for an asyncio reader --------------------------------------------------------------------------

_END = object()
_BOUND = 256  # partials a pump is ahead of its reader at most
_RARE = 0.0005  # seconds since the last wake-up after which the next one is also waited for
_PATIENCE = 0.01  # seconds it is waited for at most


class _Pump:
    """A thread that runs a generator, and what it shares with the task that reads it."""

    def __init__(self, partials: Iterator[Any]) -> None:
        self.items: deque[Any] = deque()
        self.room = threading.Semaphore(0)
        self.failure: BaseException | None = None
        self.is_left = False
        self._partials = partials
        self._loop = asyncio.get_running_loop()
        self._parked: deque[tuple[asyncio.Future[None], threading.Lock]] = deque()
        self._thread = threading.Thread(target=self._run)
        self._last = 0.0

    async def more(self) -> None:
        """Wait until there are items. The reader parks before the thread starts, or the first one would come late."""
        future, seen = self._loop.create_future(), threading.Lock()
        seen.acquire()
        self._parked.append((future, seen))
        if self._thread.ident is None:
            self._thread.start()
        if self.items:  # put before the thread could see who is parked
            with suppress(IndexError):
                self._parked.pop()
        else:
            await future
        seen.release()

    def leave(self) -> None:
        """Have the thread end after the step under way, and wait for that."""
        self.is_left = True
        self.room.release()
        self._thread.join()

    def _run(self) -> None:
        items, parked = self.items, self._parked
        try:
            for value in self._partials:
                items.append(value)
                if parked:
                    self._wake()
                while len(items) >= _BOUND and not self.is_left:
                    self.room.acquire()
                if self.is_left:
                    break
        except BaseException as error:
            self.failure = error
        items.append(_END)
        self._wake()

    def _wake(self) -> None:
        """Wake the reader; where that is rare wait until it ran, or it would get the interpreter a whole turn late."""
        try:
            future, seen = self._parked.pop()
        except IndexError:
            return
        self._loop.call_soon_threadsafe(_resolve, future)
        now = perf_counter()
        if now - self._last > _RARE:
            seen.acquire(timeout=_PATIENCE)
        self._last = now


def _resolve(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


async def pumped(partials: Iterator[Any]) -> AsyncIterator[Any]:
    """Read a sync iterator that a thread of its own runs, through a bounded deque; the reader is woken once a batch."""
    pump = _Pump(partials)
    items = pump.items
    try:
        while True:
            await pump.more()
            while items:
                value = items.popleft()
                if value is _END:
                    if pump.failure is not None:
                        raise pump.failure
                    return
                if len(items) == _BOUND // 2:  # a thread that waits for room puts nothing, so this is never passed over
                    pump.room.release()
                yield value
    finally:
        pump.leave()


# --- an async generator for a sync reader ----------------------------------------------------------------------------

_AHEAD = 64  # partials a task is ahead of its reader at most


def stepped_ahead(loop: asyncio.AbstractEventLoop, partials: AsyncIterator[Any]) -> Iterator[Any]:
    """Read an async generator by a task that runs ahead; whenever it waits, what it has is handed over."""
    items: list[Any] = []

    async def run() -> None:
        try:
            async for value in partials:
                items.append(value)
                if len(items) == 1:
                    loop.stop()  # as soon as this task waits
                elif len(items) == _AHEAD:
                    await asyncio.sleep(0)
        finally:
            loop.stop()

    task = loop.create_task(run())
    while not task.done():
        loop.run_forever()
        yield from items
        items.clear()
    task.result()


# --- a process at the other end of a pipe ----------------------------------------------------------------------------


@contextmanager
def forked_on_pipes(serve: Callable[[int, int], None]) -> Iterator[tuple[int, int]]:
    """A bare fork that reads from one descriptor to its end, and writes to another; gives the opposite two."""
    going, coming = os.pipe(), os.pipe()
    pid = os.fork()
    if not pid:
        try:
            os.close(going[1])
            serve(going[0], coming[1])
        finally:
            os._exit(0)
    os.close(going[0])
    os.close(coming[1])
    try:
        yield coming[0], going[1]
    finally:
        os.close(going[1])
        os.close(coming[0])
        os.waitpid(pid, 0)


@contextmanager
def forked(serve: Callable[..., None], *args: Any) -> Iterator[Any]:
    """A process that serves one end of a pipe until it receives `None`; gives the other end."""
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("fork").Process(target=serve, args=(*args, theirs))
    process.start()
    theirs.close()
    try:
        with ours, suppress(BrokenPipeError):
            yield ours
            ours.send(None)
            process.join(1.0)
    finally:
        process.kill()
        process.join()
        process.close()
