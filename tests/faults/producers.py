"""Predictors for the tests of flow, nesting and life in workers, which tell through files what they have done.

Workers import this module, so it imports little, and nothing of pytest's.
"""

from __future__ import annotations

import os
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

if TYPE_CHECKING:
    from tests._kit.gates import FileGate, Journal


@attrs.frozen
class Tally:
    """Counts in a file what a body has produced, so that its test sees it: one byte for each partial.

    Attributes:
        path: the file.
    """

    path: Path

    @property
    def count(self) -> int:
        return self.path.stat().st_size if self.path.exists() else 0

    def opened(self) -> int:
        """A descriptor, to which one byte is written for each partial."""
        return os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)


def counts(kind: str, tally: Tally, length: int, partial: bytes | None = None) -> Callable[[], Any]:
    """Make a predictor that counts each partial just before it yields it: `partial`, or numbers from 0 on."""

    def yields() -> Iterator[Any]:
        descriptor = tally.opened()
        try:
            for number in range(length):
                os.write(descriptor, b".")
                yield number if partial is None else partial
        finally:
            os.close(descriptor)

    async def async_yields() -> AsyncIterator[Any]:
        descriptor = tally.opened()
        try:
            for number in range(length):
                os.write(descriptor, b".")
                yield number if partial is None else partial
        finally:
            os.close(descriptor)

    return {"gen": yields, "agen": async_yields}[kind]


def bursts(kind: str, length: int, gate: FileGate) -> Callable[[], Any]:
    """Make a predictor that yields `length` numbers as fast as it can, then blocks at a gate, and yields `"last"`."""

    def yields() -> Iterator[Any]:
        yield from range(length)
        gate.wait()
        yield "last"

    async def async_yields() -> AsyncIterator[Any]:
        for number in range(length):
            yield number
        gate.wait()  # and blocks its loop: whatever waits to be sent must not need it
        yield "last"

    return {"gen": yields, "agen": async_yields}[kind]


def overflows(kind: str, count: int, full: FileGate, gate: FileGate) -> Callable[[], Any]:
    """Make a predictor that yields `count` long texts at once, then computes until its gate opens, and yields `"last"`.

    They are sent by the thread that looks after partials that wait, which opens `full` where the pipe takes no more.
    """
    from engine._worker import outlet as _outlet
    from tests.faults.worker_bodies import tell_when_pipe_is_full

    def begin() -> float:
        before, vars(_outlet)["_BATCH_TIME"] = _outlet._BATCH_TIME, 60.0
        vars(_outlet)["_SLOW_STEP"] *= 1e6
        tell_when_pipe_is_full(full)
        return before

    def end(before: float) -> None:
        vars(_outlet)["_BATCH_TIME"] = before
        vars(_outlet)["_SLOW_STEP"] /= 1e6

    def yields() -> Iterator[Any]:
        before = begin()
        yield from (str(number).ljust(4096) for number in range(count))
        gate.wait()
        end(before)
        yield "last"

    async def async_yields() -> AsyncIterator[Any]:
        before = begin()
        for number in range(count):
            yield str(number).ljust(4096)
        gate.wait()  # and blocks its loop
        end(before)
        yield "last"

    async def rests() -> AsyncIterator[Any]:
        import asyncio  # the others need none

        before = begin()
        for number in range(count):
            yield str(number).ljust(4096)
        while not gate.is_open:  # noqa: ASYNC110 - no event of this process tells of it
            await asyncio.sleep(0.001)
        end(before)
        yield "last"

    return {"gen": yields, "agen": async_yields, "agen that awaits": rests}[kind]


def megabytes(count: int) -> Iterator[tuple[int, bytes]]:
    """Yield large partials, each with the most memory that this process has had so far, in bytes."""
    import resource  # the others need none
    import sys

    unit = 1 if sys.platform == "darwin" else 1024
    for _ in range(count):
        yield resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit, b"x" * (8 << 20)


def echo(value: Any) -> Any:
    return value


async def aecho(value: Any) -> Any:
    return value


def three(number: int) -> Iterator[int]:
    yield number
    yield number + 1
    yield number + 2


async def athree(number: int) -> AsyncIterator[int]:
    yield number
    yield number + 1
    yield number + 2


def failing(number: int) -> Iterator[int]:
    yield number
    raise ValueError(number)


async def afailing(number: int) -> AsyncIterator[int]:
    yield number
    raise ValueError(number)


def holdings() -> tuple[int, int, int, int]:
    """What this process holds: its number, blocks of memory, threads and descriptors."""
    import gc
    import sys
    import threading

    gc.collect()
    return os.getpid(), sys.getallocatedblocks(), threading.active_count(), len(os.listdir("/dev/fd"))  # noqa: PTH208


def waits_noted(journal: Journal, gate: FileGate) -> Iterator[int]:
    """Yield the worker's number, then wait at a gate; note the start and the `finally`."""
    journal.note("start")
    try:
        yield os.getpid()
        gate.wait()
        yield 2
    finally:
        journal.note("finally")


def sleeps_noted(journal: Journal) -> Iterator[int]:
    """Yield the worker's number, then sleep in C; note the start and the `finally`."""
    journal.note("start")
    try:
        yield os.getpid()
        time.sleep(60)
    finally:
        journal.note("finally")


def forks(kind: str) -> Callable[[], Any]:
    """Make a predictor that forks, and whose copy goes on like itself; it gives its number and the copy's exit code."""

    def forked() -> int:
        """What a copy gives, which is never heard; or its exit code, for the worker itself."""
        copy = os.fork()
        return os.waitstatus_to_exitcode(os.waitpid(copy, 0)[1]) if copy else -1

    def returns() -> Any:
        return os.getpid(), forked()

    def yields() -> Iterator[Any]:
        yield 0
        code = forked()
        yield 1
        yield os.getpid(), code

    async def async_returns() -> Any:
        return os.getpid(), forked()

    async def async_yields() -> AsyncIterator[Any]:
        yield 0
        code = forked()
        yield 1
        yield os.getpid(), code

    return {"def": returns, "gen": yields, "async": async_returns, "agen": async_yields}[kind]


def warnings_of_forks(gate: FileGate) -> list[str]:
    """Fork a few times; tell what was said of it, or open a gate where nothing was."""
    import warnings  # the others need none

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(5):
            if not (copy := os.fork()):
                os._exit(0)
            os.waitpid(copy, 0)
    if not caught:
        gate.open()
    return [str(each.message) for each in caught]


def stands() -> list[str]:
    """Go on until this call is asked to stop."""
    from engine import current_call

    call = current_call()
    while call is not None and not call.stopping:
        time.sleep(0.001)
    return []


def forks_and_stands(kind: str, gate: FileGate) -> Callable[[], Any]:
    """Make a predictor that forks and tells what it was warned of, or else goes on until it is asked to stop.

    One that yields gives a hundred numbers before, so fast that a thread looks after them.
    """

    def returns() -> Any:
        return warnings_of_forks(gate) or stands()

    def yields() -> Iterator[Any]:
        yield from range(100)
        yield warnings_of_forks(gate)
        stands()

    async def async_returns() -> Any:
        return returns()

    async def async_yields() -> AsyncIterator[Any]:
        for each in yields():
            yield each

    return {"def": returns, "gen": yields, "async": async_returns, "agen": async_yields}[kind]


def raising(error: BaseException) -> Callable[[], None]:
    """A strike that raises this very error."""

    def strike() -> None:
        raise error  # the line that struck

    return strike
