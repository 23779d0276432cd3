"""What a predictor does step by step, and the journal it keeps of what happened to it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import (  # noqa: TC003 - the engine reads the annotations of predictors
    Iterable,
    Iterator,
)
from contextvars import ContextVar
from pathlib import Path  # noqa: TC003 - and attrs those of records
from typing import Any, Final

import attrs

FEW: Final = 1_000  # steps: far more than any window, far fewer than the script has

MARK: Final[ContextVar[str]] = ContextVar("engine.testing.mark", default="unset")
"""What scripts set, and what bodies note at every step, to see whose context they run in."""


# What a body is told to do.


@attrs.frozen
class Give:
    """Yield `value`, in a kind that yields; one that returns does nothing here."""

    value: Any


@attrs.frozen
class Pause:
    """Let other tasks run, in an async kind; with `is_suspended` by waiting for a callback of the loop."""

    is_suspended: bool = False


@attrs.frozen
class SetMark:
    """Set the context variable `MARK`."""

    text: str


@attrs.frozen
class Fail:
    """Raise a new `error(text)`."""

    error: type[BaseException]
    text: str = ""


@attrs.frozen
class Return:
    """Return `value`; an async generator, which cannot, just ends."""

    value: Any = None


Step = Give | Pause | SetMark | Fail | Return


def _tuple(steps: Iterable[Step]) -> tuple[Step, ...]:
    return tuple(steps)


@attrs.frozen
class Script:
    """What a body does: its steps in turn, then its `finally`.

    Attributes:
        steps: without a `Return` among them the body returns `None` after the last.
        lingers: whether the `finally` of an async kind waits for a callback of the loop.
        spoils: what the `finally` raises, if anything.
    """

    steps: tuple[Step, ...] = attrs.field(default=(), converter=_tuple)
    lingers: bool = False
    spoils: Fail | None = None


@attrs.define(eq=False)
class Journal:
    """What a body did, as lines of text: kept in memory, or in the file `path` for a body in another process."""

    path: Path | None = None
    _lines: list[str] = attrs.field(factory=list)

    def note(self, line: str) -> None:
        """Add one line."""
        if self.path is None:
            self._lines.append(line)
            return
        with self.path.open("a", encoding="utf-8") as file:
            file.write(f"{line}\n")

    @property
    def lines(self) -> tuple[str, ...]:
        """The lines so far."""
        if self.path is None:
            return tuple(self._lines)
        return tuple(self.path.read_text(encoding="utf-8").splitlines()) if self.path.exists() else ()

    def wait_for_end(self, seconds: float = 5.0) -> tuple[str, ...]:
        """Wait at most `seconds` until the body's `finally` has run; give the lines, at the latest then."""
        deadline = time.monotonic() + seconds
        while not any(line.startswith("finally") for line in self.lines) and time.monotonic() < deadline:
            time.sleep(0.0005)
        return self.lines


# Predictors of every kind, each of them performing any script.


def act(step: Step) -> None:
    """Do what a step does besides giving a partial."""
    if isinstance(step, SetMark):
        MARK.set(step.text)
    elif isinstance(step, Fail):
        raise step.error(step.text)


async def aact(step: Step) -> None:
    """Do what a step of an async predictor does besides giving a partial: it may wait."""
    if not isinstance(step, Pause):
        act(step)
    elif step.is_suspended:
        called = asyncio.Event()
        asyncio.get_running_loop().call_soon(called.set)
        await called.wait()
    else:
        await asyncio.sleep(0)


def clean_up(script: Script, journal: Journal) -> None:
    """Do what a sync body does in its `finally`."""
    journal.note(f"finally {MARK.get()}")
    if script.spoils is not None:
        act(script.spoils)


async def aclean_up(script: Script, journal: Journal) -> None:
    """Do what an async body does in its `finally`."""
    journal.note(f"finally {MARK.get()}")
    if script.lingers:
        await aact(Pause(is_suspended=True))
    if script.spoils is not None:
        act(script.spoils)


def numbered(script: Script, journal: Journal) -> Iterator[Step]:
    """Give the steps in turn, each noted as it begins."""
    for number, step in enumerate(script.steps):
        journal.note(f"{number} {MARK.get()}")
        yield step
