"""What the tests of workers send there: bodies of every kind that get into trouble, and files that say where they are.

Nothing in memory is shared with a worker, so a file stands for an event, and another for the list of what happened.
Workers import this module when a body refers to it, so it imports little, and nothing of pytest's.
"""

from __future__ import annotations

import collections
import itertools
import os
import signal
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import attrs

from engine import current_call
from tests._kit.gates import BODY_TIMEOUT, FileGate, Journal
from tests._kit.waits import awaited, until

if TYPE_CHECKING:
    from collections.abc import Sequence

KINDS: Final = ("def", "gen", "async", "agen")
PARTIALS: Final = ("first", "second")
AGES: Final = 60.0  # seconds that only a signal cuts short


def _nothing() -> None:
    """No trouble."""


@attrs.frozen
class Trouble:
    """What a body made by `predictor_with` suffers, and where; its journal tells of its start and its `finally`.

    Attributes:
        journal: where it notes `"start"` and `"finally"`.
        strikes: called at `place`, and awaited where it gives something awaitable.
        place: `"before"` the first partial, in the `"middle"`, or `"after"` the last one.
        cleanup: the same in its `finally`.
        partials: what it produces; a kind that returns gives the last one.
    """

    journal: Journal
    strikes: Callable[[], Any] = _nothing
    place: str = "before"
    cleanup: Callable[[], Any] = _nothing
    partials: tuple[Any, ...] = PARTIALS

    def strike(self, place: str) -> Any:
        return self.strikes() if place == self.place else None

    def begin(self) -> None:
        self.journal.note("start")

    def end(self) -> Any:
        self.journal.note("finally")
        return self.cleanup()


def predictor_with(kind: str, trouble: Trouble) -> Callable[[], Any]:
    """Make a predictor of one kind that gets into `trouble`."""

    def returns() -> Any:
        trouble.begin()
        try:
            trouble.strike("before")
            return trouble.partials[-1]
        finally:
            trouble.end()

    def yields() -> Iterator[Any]:
        trouble.begin()
        try:
            trouble.strike("before")
            for index, partial in enumerate(trouble.partials):
                if index:
                    trouble.strike("middle")
                yield partial
            trouble.strike("after")
        finally:
            trouble.end()

    async def async_returns() -> Any:
        trouble.begin()
        try:
            await awaited(trouble.strike("before"))
            return trouble.partials[-1]
        finally:
            await awaited(trouble.end())

    async def async_yields() -> AsyncIterator[Any]:
        trouble.begin()
        try:
            await awaited(trouble.strike("before"))
            for index, partial in enumerate(trouble.partials):
                if index:
                    await awaited(trouble.strike("middle"))
                yield partial
            await awaited(trouble.strike("after"))
        finally:
            await awaited(trouble.end())

    return {"def": returns, "gen": yields, "async": async_returns, "agen": async_yields}[kind]


# Predictors without trouble.


def number_of_worker() -> int:
    """Tell which process serves."""
    return os.getpid()


def numbers_after_worker() -> Iterator[int]:
    """Tell which process serves, then count without end."""
    yield os.getpid()
    yield from itertools.count()


async def anumbers_after_worker() -> AsyncIterator[int]:
    """Tell on a loop which process serves, then count without end."""
    yield os.getpid()
    for number in itertools.count():
        yield number


# Classes, which are imported where they are set up.


class Model:
    """Notes what becomes of it."""

    def __init__(self, journal: Journal, trouble: str = "") -> None:
        self.journal = journal
        self.trouble = trouble

    def setup(self) -> None:
        if self.trouble == "setup" and "setup" not in self.journal.words:
            self.journal.note("setup")
            raise LookupError("no model yet")
        self.journal.note(f"setup:{os.getpid()}")

    def predict(self, wait: float = 0.0) -> int:
        time.sleep(wait)
        return os.getpid()

    def teardown(self) -> None:
        self.journal.note(f"teardown:{os.getpid()}")
        if self.trouble == "teardown":
            raise LookupError("it cannot be torn down")


class AsyncModel(Model):
    """Does on the loop of a worker what `Model` does in a thread."""

    async def setup(self) -> None:  # type: ignore[override]
        Model.setup(self)

    async def predict(self, wait: float = 0.0) -> int:  # type: ignore[override]
        return Model.predict(self, wait)

    async def teardown(self) -> None:  # type: ignore[override]
        Model.teardown(self)


# Ways to be stuck.


def sleeps() -> None:
    """A wait in C that lets others run."""
    time.sleep(AGES)


def waits_for_a_lock() -> None:
    """A wait for something that never comes."""
    lock = threading.Lock()
    lock.acquire()
    lock.acquire(timeout=AGES)


def spins() -> None:
    """A loop of pure Python that looks at nothing."""
    while True:
        pass


def turns_in_c() -> None:
    """A loop in C that never yields the interpreter, so that no Python code of any thread runs."""
    collections.deque(itertools.repeat(None), maxlen=0)


def swallows() -> None:
    """A loop that takes every exception for a reason to go on."""
    while True:
        try:
            time.sleep(AGES)
        except BaseException:
            continue


def ignores_sigterm() -> None:
    """A wait that no request and no SIGTERM ends."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    time.sleep(AGES)


def is_stopped() -> None:
    """A process that the system does not run at all, until it is continued or killed."""
    os.kill(os.getpid(), signal.SIGSTOP)
    time.sleep(AGES)


def opens_and_sleeps(gate: FileGate) -> None:
    """Tell where it is stuck."""
    gate.open()
    sleeps()


# Ways to stop.


def looks() -> None:
    """A body without a yield that looks whether it is asked to stop."""
    call = current_call()
    assert call is not None
    until(lambda: call.stopping, "this call is asked to stop", BODY_TIMEOUT)


async def rests() -> None:
    """A wait of an async body, which a request to stop interrupts."""
    import asyncio  # the others need none

    await asyncio.sleep(AGES)


# Ways to die.


def is_killed() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def exits(code: int) -> None:
    os._exit(code)


def crashes() -> None:
    """Read what is not there, in C."""
    import ctypes  # the others need none

    ctypes.string_at(0)


@attrs.frozen
class Fuse:
    """An input that ends the worker it was sent to when it is freed there.

    Attributes:
        home: the number of the process in which nothing happens.
        gate: is opened just before.
    """

    home: int
    gate: FileGate

    def __del__(self) -> None:
        if os.getpid() != self.home:
            self.gate.open()
            os._exit(3)


# Points at which a worker is stopped or killed while it writes.


Write = Callable[[bytes], int]


@attrs.frozen
class Interception:
    """Has something else done, once, where a worker is about to write a frame of some kind.

    Attributes:
        kinds: kinds of frames, by their numbers in `engine._wire.frames`.
        instead: called with the write itself, which takes bytes and tells how many it wrote, and with the bytes.
    """

    kinds: tuple[int, ...]
    instead: Callable[[Write, bytes], int]

    def set(self) -> None:
        """From now on, in this worker."""
        one, many = os.write, os.writev

        def intercepted(descriptor: int, chunks: Sequence[Any], otherwise: Callable[[], int]) -> int:
            data = b"".join(chunks)
            if data[:1] != b"\xe9" or data[2] not in self.kinds:  # a frame's header: magic, version, kind
                return otherwise()
            vars(os).update(write=one, writev=many)
            return self.instead(lambda part: one(descriptor, part), data)

        vars(os).update(
            write=lambda descriptor, data: intercepted(descriptor, [data], lambda: one(descriptor, data)),
            writev=lambda descriptor, chunks: intercepted(descriptor, chunks, lambda: many(descriptor, chunks)),
        )


def parks_before(parked: FileGate, go: FileGate, write: Write, data: bytes) -> int:
    """The frame is ready, and not on its way."""
    parked.open()
    go.wait()
    return write(data)


def parks_after(parked: FileGate, go: FileGate, write: Write, data: bytes) -> int:
    """The frame is on its way, and nothing has come after it."""
    written = write(data)
    parked.open()
    go.wait()
    return written


def dies_within(share: float, write: Write, data: bytes) -> int:
    """A share of the frame is on its way: 0 for none of it, 1 for all."""
    part = data[: int(len(data) * share)]
    while part:
        try:
            part = part[write(part) :]
        except BlockingIOError:  # a large frame waits for its reader
            time.sleep(0.001)
    is_killed()
    raise AssertionError("nothing comes after SIGKILL")


def tell_when_pipe_is_full(gate: FileGate) -> None:
    """Open a gate as soon as this worker cannot write for want of room."""
    one, many = os.write, os.writev

    def told(write: Callable[[int, Any], int], descriptor: int, data: Any) -> int:
        try:
            return write(descriptor, data)
        except BlockingIOError:
            vars(os).update(write=one, writev=many)
            gate.open()
            raise

    vars(os).update(write=partial(told, one), writev=partial(told, many))
