"""Measures one case: contenders interleaved in rounds, so that whatever slows the machine slows all of them.

Each round measures every contender once, beginning with another one each time, after a garbage collection. A ratio is
only ever taken within a round; what is reported is the median over rounds, with the quartiles.

A contender that is apart starts when the others have been measured, and has rounds of its own with the limit, the
hand-written best and the engine. What these took there is kept beside its figures, and its ratios are taken to that.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import inspect
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from importlib import metadata
from time import perf_counter
from typing import Any, Final

import attrs

from benchmarks._case import CannotError, Case, Contender, Subject

_MOST: Final = 1 << 20  # repetitions in a round


@attrs.frozen
class Pace:
    """How thoroughly a case is measured.

    Attributes:
        rounds: how many there are.
        enough: seconds a contender is driven for in a round; 0 for one repetition.
        is_quick: whether the quick sizes do.
        is_brief: whether the first of them does, on all processors: what tests want, whose figures mean nothing.
        patience: seconds a contender may take for one step, before it has failed.
    """

    rounds: int
    enough: float
    is_quick: bool = False
    is_brief: bool = False
    patience: float = 120.0

    def sizes(self, case: Case) -> tuple[int, ...]:
        """The sizes of a case that are measured."""
        sizes = case.quick if self.is_quick else case.sizes
        return sizes[:1] if self.is_brief else sizes


PACES: Final = {
    "full": Pace(9, 0.03),
    "quick": Pace(3, 0.001, is_quick=True),
    "brief": Pace(1, 0.0, is_quick=True, is_brief=True, patience=30.0),
}


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
        beside: of a contender that is apart, what the others took in its rounds, by name.
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
    beside: dict[str, tuple[float, ...]] = attrs.field(factory=dict)


Told = Callable[[str], None]


class Opened:
    """A contender ready to be driven, on an event loop of its own if it is async.

    Args:
        case: what it takes part in.
        contender: who.
        size: the size it is made for.
        patience: seconds it may take for a step.
    """

    def __init__(self, case: Case, contender: Contender, size: int, patience: float) -> None:
        self.contender = contender
        self.times = 1
        self.error: Exception | None = None  # the first: it is out then
        self._case = case
        self._size = size
        self._patience = patience
        self._subject: Subject = ()
        self._runner: asyncio.Runner | None = None
        self._made: Any = None

    @contextlib.contextmanager
    def trying(self) -> Iterator[None]:
        """Keep what is raised, which ends the part of this contender and of no other."""
        try:
            with _bounded(self._patience):
                yield
        except Exception as error:
            self.error = self.error or error

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
        figure: float = self._drive("time", self.times)
        return figure

    def prove(self, expected: list[Any] | None) -> list[Any]:
        """What comes out of it, which must be as expected."""
        found: list[Any] = self._drive("prove")
        if expected is not None and found != expected:
            raise AssertionError(f"it gave {_short(found)} where the first gave {_short(expected)}")
        return found

    def settle(self, enough: float) -> None:
        """Warm it up, and find how often it does the job in a round."""
        while True:
            started = perf_counter()
            self.time()
            elapsed = perf_counter() - started
            if elapsed >= enough or self.times >= _MOST:
                return
            self.times *= 2 if elapsed * 4 > enough else 4

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


def measure(case: Case, pace: Pace, tell: Told) -> Iterator[Row]:
    """Measure a case at all its sizes; cases that hand over between threads or processes also on one processor.

    Args:
        case: the case.
        pace: how thoroughly.
        tell: called with a few words whenever there is progress.
    """
    pins = (False, True) if case.is_hand_off and hasattr(os, "sched_setaffinity") and not pace.is_brief else (False,)
    for is_pinned in pins:
        for size in pace.sizes(case):
            with _pinned() if is_pinned else contextlib.nullcontext():
                found = _Sizes(case, size, is_pinned, pace, tell).rows()
            yield from found


class _Sizes:
    """One size of a case.

    Args:
        case: the case.
        size: the size.
        is_pinned: whether everything runs on one processor; that has been seen to.
        pace: how thoroughly.
        tell: see `measure`.
    """

    def __init__(self, case: Case, size: int, is_pinned: bool, pace: Pace, tell: Told) -> None:
        words = [case.name, *([f"{size:,} {case.axis}"] if case.axis else []), *(["pinned"] if is_pinned else [])]
        self._words = " ".join(words)
        self._case = case
        self._size = size
        self._is_pinned = is_pinned
        self._pace = pace
        self._tell = tell
        self._expected: list[Any] | None = None
        self._rows: dict[str, Row] = {}

    def rows(self) -> list[Row]:
        """A row for each contender."""
        asked = [each for each in self._case.contenders if each.largest is None or self._size <= each.largest]
        with contextlib.ExitStack() as stack:
            together = [self._opened(each, stack) for each in asked if not each.is_apart]
            self._keep(together, self._rounds([each for each in together if each.error is None]))
            beside = [each for each in together if each.error is None and each.contender.role != "peer"]
            for contender in asked:
                if contender.is_apart:
                    with contextlib.ExitStack() as one:
                        each = self._opened(contender, one)
                        figures = self._rounds([*beside, each], f"{contender.name}, ") if each.error is None else {}
                        self._keep([each, *(other for other in beside if other.error is not None)], figures)
                        beside = [other for other in beside if other.error is None]
        return [self._rows[each.name] for each in asked]

    def _opened(self, contender: Contender, stack: contextlib.ExitStack) -> Opened:
        each = Opened(self._case, contender, self._size, self._pace.patience)
        self._tell(f"{self._words}: {contender.name}")
        stack.callback(self._close, each)
        with each.trying():
            each.open()
            self._expected = each.prove(self._expected)
            if not self._case.is_once and self._pace.enough:
                each.settle(self._pace.enough)
        return each

    def _close(self, each: Opened) -> None:
        was_well = each.error is None
        with each.trying():
            each.close()
        if was_well and each.error is not None:
            self._keep([each], {})

    def _rounds(self, opened: Sequence[Opened], whose: str = "") -> dict[str, list[float]]:
        """Figures by name. Who fails in a round is out of those that follow."""
        figures: dict[str, list[float]] = {each.contender.name: [] for each in opened}
        for number in range(self._pace.rounds):
            self._tell(f"{self._words}: {whose}round {number + 1}")
            turn = number % len(opened) if opened else 0
            for each in (*opened[turn:], *opened[:turn]):
                if each.error is None:
                    gc.collect()
                    with each.trying():
                        figures[each.contender.name].append(each.time())
        return figures

    def _keep(self, opened: Sequence[Opened], figures: dict[str, list[float]]) -> None:
        for each in opened:
            who, beside = each.contender, {}
            if who.is_apart:
                whole = {name: tuple(rounds) for name, rounds in figures.items() if len(rounds) == self._pace.rounds}
                beside = {name: rounds for name, rounds in whole.items() if name != who.name}
            role: str = who.role
            note, rounds = who.note, tuple(figures.get(who.name, ()))
            if each.error is not None:
                (role, note), rounds, beside = _what_of(who, each.error), (), {}
            self._rows[who.name] = Row(
                self._case.name,
                who.name,
                role,
                self._size,
                self._is_pinned,
                rounds,
                each.times if rounds else 0,
                who.package,
                _version(who),
                note,
                beside,
            )


def _short(found: list[Any]) -> str:
    text = repr(found)
    return text if len(text) <= 200 else f"{text[:200]}… ({len(found)} items)"


def _version(who: Contender) -> str:
    try:
        return metadata.version(who.package) if who.package else ""
    except metadata.PackageNotFoundError:
        return ""


def _what_of(who: Contender, error: Exception) -> tuple[str, str]:
    """The role and the note of a contender that has no figures."""
    if isinstance(error, ImportError) and who.package and not _version(who):
        return "missing", f"not installed: pip install {who.package}"
    if isinstance(error, CannotError):
        return "cannot", str(error)
    return "failed", f"{type(error).__name__}: {error}"


@contextlib.contextmanager
def _bounded(seconds: float) -> Iterator[None]:
    """Raise in the main thread when its body takes longer. A body that never gives up the interpreter is not ended."""
    if not hasattr(signal, "setitimer") or threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(_number: int, _frame: Any) -> None:
        raise TimeoutError(f"it took more than {seconds:g} s")

    before = signal.signal(signal.SIGALRM, end)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


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
