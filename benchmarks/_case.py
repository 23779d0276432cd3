"""A case and its contenders: who does the same job, and how each of them is driven.

A contender is a generator function. It makes what it needs, yields what is to be driven (a callable and its arguments)
and cleans up after it; an async generator function does the same on an event loop of its own. What is imported inside
it and not installed makes it a missing contender, never one that is left out.

The loop that is timed and the loop that proves what comes out of it drive the same subject, so a fast row cannot be a
wrong row.
"""

from __future__ import annotations

import importlib
import pkgutil
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Iterator
from itertools import repeat
from time import perf_counter
from typing import Any, Literal

import attrs

Role = Literal["limit", "best", "engine", "peer"]
Subject = tuple[Any, ...]  # what is called, and its arguments
Make = Callable[[int], Iterator[Subject]] | Callable[[int], AsyncIterator[Subject]]


@attrs.frozen
class Contender:
    """One who does the job of a case.

    Attributes:
        name: what it is called in tables.
        role: `"limit"` for the bare loop, `"best"` for code written by hand for this one case, `"engine"`, `"peer"`.
        make: called with the size, see above.
        package: the distribution it comes from; its version is recorded.
        note: what it does less or more than the engine in this case.
        largest: the largest size it is asked for; `None` for every.
        is_apart: whether what it keeps running disturbs others, so that it has rounds of its own; see `_measure`.
    """

    name: str
    role: Role
    make: Make
    package: str = ""
    note: str = ""
    largest: int | None = None
    is_apart: bool = False


class CannotError(Exception):
    """A contender cannot do the job at all, for the reason given: that is said of it, too."""


def cannot(why: str) -> Any:
    """Say so; put it where a subject would be yielded."""
    raise CannotError(why)


class Drive(ABC):
    """Drives subjects in sync code.

    Subclasses say what one repetition is. `time` gives seconds a unit, `prove` what came out.
    """

    is_async = False

    @abstractmethod
    def time(self, subject: Subject, size: int, times: int) -> float:
        """Seconds a unit of work takes, over so many repetitions."""

    @abstractmethod
    def prove(self, subject: Subject, size: int) -> list[Any]:
        """What comes out of one repetition."""


class AsyncDrive(ABC):
    """Drives subjects on an event loop."""

    is_async = True

    @abstractmethod
    async def time(self, subject: Subject, size: int, times: int) -> float:
        """Seconds a unit of work takes, over so many repetitions."""

    @abstractmethod
    async def prove(self, subject: Subject, size: int) -> list[Any]:
        """What comes out of one repetition."""


def plain(found: Any) -> Any:
    """The value of a record, or anything else as it is; of an array, what tells it from another."""
    value = found.value if hasattr(found, "value") and hasattr(found, "latency") else found
    return ("array", value.shape, float(value[0]), float(value[-1])) if hasattr(value, "nbytes") else value


class Calls(Drive):
    """Calls the subject again and again.

    Args:
        per_size: whether the unit is one of `size` partials, and not the call.
    """

    def __init__(self, *, per_size: bool = False) -> None:
        self._per_size = per_size

    def time(self, subject: Subject, size: int, times: int) -> float:
        call, *args = subject
        started = perf_counter()
        for _ in repeat(None, times):
            call(*args)
        elapsed = perf_counter() - started
        return elapsed / times / (size if self._per_size else 1)

    def prove(self, subject: Subject, size: int) -> list[Any]:
        call, *args = subject
        return [plain(call(*args)) for _ in range(2)]


class Partials(Drive):
    """Reads the iterable the subject gives, again and again; the unit is one partial.

    Args:
        count: how many partials there are; `None` for as many as the size.
    """

    def __init__(self, count: int | None = None) -> None:
        self._count = count

    def time(self, subject: Subject, size: int, times: int) -> float:
        opening, *args = subject
        started = perf_counter()
        for _ in repeat(None, times):
            for _value in opening(*args):
                pass
        return (perf_counter() - started) / times / (self._count or size)

    def prove(self, subject: Subject, size: int) -> list[Any]:
        opening, *args = subject
        return [plain(value) for value in opening(*args)]


class AsyncCalls(AsyncDrive):
    """Awaits what the subject gives, again and again."""

    def __init__(self, *, per_size: bool = False) -> None:
        self._per_size = per_size

    async def time(self, subject: Subject, size: int, times: int) -> float:
        call, *args = subject
        started = perf_counter()
        for _ in repeat(None, times):
            await call(*args)
        elapsed = perf_counter() - started
        return elapsed / times / (size if self._per_size else 1)

    async def prove(self, subject: Subject, size: int) -> list[Any]:
        call, *args = subject
        return [plain(await call(*args)) for _ in range(2)]


class AsyncPartials(AsyncDrive):
    """Reads the async iterable the subject gives, again and again; the unit is one partial."""

    async def time(self, subject: Subject, size: int, times: int) -> float:
        opening, *args = subject
        started = perf_counter()
        for _ in repeat(None, times):
            async for _value in opening(*args):
                pass
        return (perf_counter() - started) / times / size

    async def prove(self, subject: Subject, size: int) -> list[Any]:
        opening, *args = subject
        return [plain(value) async for value in opening(*args)]


class Samples(Drive):
    """Has the subject measure something itself: it gives one figure in the case's unit, and what came out."""

    def time(self, subject: Subject, size: int, times: int) -> float:
        call, *args = subject
        return float(sum(call(*args)[0] for _ in range(times)) / times)

    def prove(self, subject: Subject, size: int) -> list[Any]:
        call, *args = subject
        return [plain(value) for value in call(*args)[1]]


class AsyncSamples(AsyncDrive):
    """The same for a coroutine function."""

    async def time(self, subject: Subject, size: int, times: int) -> float:
        call, *args = subject
        return float(sum([(await call(*args))[0] for _ in range(times)]) / times)

    async def prove(self, subject: Subject, size: int) -> list[Any]:
        call, *args = subject
        return [plain(value) for value in (await call(*args))[1]]


@attrs.define
class Case:
    """One job, and everybody who does it.

    Attributes:
        name: what it is called on the command line: the name of its file.
        title: what is measured, in a few words.
        about: the same in a sentence or two, for whoever reads the figures.
        drive: how contenders are driven.
        per: what the figure is of: a call, a partial, a stream.
        unit: `"s"` for seconds, `"B"` for bytes.
        axis: what sizes count; empty for a case of one size.
        sizes: the sizes of a full run.
        quick: those of a quick one.
        is_hand_off: whether threads or processes hand over, so that it is also measured pinned to one processor.
        is_once: whether one repetition a round is enough, however short.
        contenders: who takes part, in the order they are shown.
    """

    name: str
    title: str
    about: str
    drive: Drive | AsyncDrive
    per: str = "call"
    unit: str = "s"
    axis: str = ""
    sizes: tuple[int, ...] = (1,)
    quick: tuple[int, ...] = (1,)
    is_hand_off: bool = False
    is_once: bool = False
    contenders: list[Contender] = attrs.field(factory=list)

    def contender(
        self,
        name: str,
        *,
        role: Role = "peer",
        package: str = "",
        note: str = "",
        largest: int | None = None,
        is_apart: bool = False,
    ) -> Callable[[Make], Make]:
        """Add a contender; see `Contender`."""

        def add(make: Make) -> Make:
            self.contenders.append(Contender(name, role, make, package, note, largest, is_apart))
            return make

        return add


def load(name: str) -> Case:
    """The case in the file of that name."""
    case: Case = importlib.import_module(f"benchmarks.cases.{name}").case
    assert case.name == name, f"the case in {name}.py is called {case.name}"
    return case


def names() -> list[str]:
    """All cases, in the order they are shown."""
    from benchmarks import cases

    found = {each.name for each in pkgutil.iter_modules(cases.__path__) if not each.name.startswith("_")}
    assert found == set(cases.ORDER), f"cases/__init__.py and the files beside it differ: {found ^ set(cases.ORDER)}"
    return list(cases.ORDER)
