"""Measures one case: contenders interleaved in rounds, so that whatever slows the machine slows all of them.

Each round measures every contender once, beginning with another one each time, after a garbage collection. A ratio is
only ever taken within a round; what is reported is the median over rounds, with the quartiles.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import inspect
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from importlib import metadata
from typing import Any

import attrs

from benchmarks._case import CannotError, Case, Contender, Subject

ROUNDS = 9
QUICK_ROUNDS = 3
_ENOUGH = 0.05  # seconds a contender is driven for in a round
_QUICK = 0.001
_MOST = 1 << 20  # repetitions in a round


@attrs.frozen
class Row:
    """What was measured of one contender at one size.

    Attributes:
        case: the case's name.
        contender: who.
        role: its role; `"missing"` if it is not installed, `"cannot"` if this is no job for it, `"failed"` if it gave
            something else or broke.
        size: the size; 1 for a case without.
        pinned: whether everything ran on one processor.
        rounds: a figure a round, in the case's unit.
        repetitions: how often the job was done in a round.
        package: its distribution.
        version: of that.
        note: what it does less or more; for a missing one, how to install it; else what happened.
    """

    case: str
    contender: str
    role: str
    size: int
    pinned: bool
    rounds: tuple[float, ...]
    repetitions: int = 0
    package: str = ""
    version: str = ""
    note: str = ""


Told = Callable[[str], None]


class Opened:
    """A contender ready to be driven, on an event loop of its own if it is async.

    Args:
        case: what it takes part in.
        contender: who.
        size: the size it is made for.
    """

    def __init__(self, case: Case, contender: Contender, size: int) -> None:
        self.contender = contender
        self.times = 1
        self._case = case
        self._size = size
        self._subject: Subject = ()
        self._runner: asyncio.Runner | None = None
        self._made: Any = None

    def open(self) -> None:
        """Have it make what it needs."""
        self._made = self.contender.make(self._size)
        if inspect.isasyncgen(self._made):
            self._runner = asyncio.Runner()
        self._subject = self._step()

    def _step(self) -> Any:
        if self._runner is not None:
            return self._runner.run(_anext(self._made))
        return next(self._made)

    def time(self) -> float:
        """The figure of one round."""
        return self._drive("time", self.times)

    def prove(self) -> list[Any]:
        """What comes out of it."""
        return self._drive("prove")

    def _drive(self, what: str, *more: Any) -> Any:
        found = getattr(self._case.drive, what)(self._subject, self._size, *more)
        if not self._case.drive.is_async:
            return found
        if self._runner is None:
            self._runner = asyncio.Runner()
        return self._runner.run(found)

    def close(self) -> None:
        """Have it clean up."""
        try:
            if self._made is not None:
                with contextlib.suppress(StopIteration, StopAsyncIteration):
                    self._step()
        finally:
            if self._runner is not None:
                self._runner.close()


async def _anext(made: Any) -> Any:
    return await anext(made)


def measure(case: Case, *, quick: bool, tell: Told, prove: bool = True) -> list[Row]:
    """Measure a case at all its sizes; cases that hand over between threads or processes also on one processor.

    Args:
        case: the case.
        quick: whether figures may be rough.
        tell: called with a few words whenever there is progress.
        prove: whether what contenders give is compared first.
    """
    rows: list[Row] = []
    for pinned in (False, True) if case.is_hand_off and hasattr(os, "sched_setaffinity") else (False,):
        with _pinned() if pinned else contextlib.nullcontext():
            for size in case.quick if quick else case.sizes:
                rows += _measure(case, size, pinned=pinned, quick=quick, tell=tell, prove=prove)
    return rows


def _measure(case: Case, size: int, *, pinned: bool, quick: bool, tell: Told, prove: bool) -> list[Row]:
    words = " ".join([case.name, *([f"{size:,} {case.axis}"] if case.axis else []), *(["pinned"] if pinned else [])])
    rows: list[Row] = []
    with ExitStack() as stack:
        opened: list[Opened] = []
        expected: list[Any] | None = None
        for contender in case.contenders:
            if contender.largest is not None and size > contender.largest:
                continue
            each = Opened(case, contender, size)
            tell(f"{words}: {contender.name}")
            try:
                stack.callback(each.close)
                each.open()
                if prove:
                    found = each.prove()
                    expected = found if expected is None else expected
                    if found != expected:
                        raise AssertionError(f"it gave {_short(found)} where the first gave {_short(expected)}")
                _settle(each, _QUICK if quick else _ENOUGH, once=case.is_once)
            except Exception as error:
                rows.append(_without(case, contender, size, pinned, error))
            else:
                opened.append(each)
        rounds: dict[Opened, list[float]] = {each: [] for each in opened}
        for number in range(QUICK_ROUNDS if quick else ROUNDS):
            tell(f"{words}: round {number + 1}")
            turn = number % len(opened) if opened else 0
            for each in (*opened[turn:], *opened[:turn]):
                gc.collect()
                rounds[each].append(each.time())
        rows += [_row(case, each, size, pinned, rounds[each]) for each in opened]
    order = [each.name for each in case.contenders]
    return sorted(rows, key=lambda row: order.index(row.contender))


def _settle(each: Opened, enough: float, *, once: bool) -> None:
    """Warm it up, and find how often it does the job in a round."""
    from time import perf_counter

    while not once:
        started = perf_counter()
        each.time()
        elapsed = perf_counter() - started
        if elapsed >= enough or each.times >= _MOST:
            return
        each.times *= 2 if elapsed * 4 > enough else 4


def _short(found: list[Any]) -> str:
    text = repr(found)
    return text if len(text) <= 200 else f"{text[:200]}… ({len(found)} items)"


def _row(case: Case, each: Opened, size: int, pinned: bool, rounds: list[float]) -> Row:
    who = each.contender
    version = _version(who)
    return Row(case.name, who.name, who.role, size, pinned, tuple(rounds), each.times, who.package, version, who.note)


def _version(who: Contender) -> str:
    try:
        return metadata.version(who.package) if who.package else ""
    except metadata.PackageNotFoundError:
        return ""


def _without(case: Case, who: Contender, size: int, pinned: bool, error: Exception) -> Row:
    if isinstance(error, ImportError) and who.package and not _version(who):
        role, note = "missing", f"not installed: pip install {who.package}"
    elif isinstance(error, CannotError):
        role, note = "cannot", str(error)
    else:
        role, note = "failed", f"{type(error).__name__}: {error}"
    return Row(case.name, who.name, role, size, pinned, (), package=who.package, note=note)


@contextlib.contextmanager
def _pinned() -> Iterator[None]:
    """Keep this thread, and whatever it starts, on one processor."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def as_on_a_terminal() -> None:
    """Handle Ctrl-C as a program in the foreground: ignored, as for a shell's background job, asyncio costs less."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
