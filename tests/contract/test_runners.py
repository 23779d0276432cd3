"""The built-in runners pass the suite that plugins' runners are held against."""

from __future__ import annotations

from typing import ClassVar

from engine import Engine
from engine.testing import KINDS, RunnerConformance


class TestDefault(RunnerConformance):
    runner = None


class TestThread(RunnerConformance):
    runner = "thread"


class TestInline(RunnerConformance):
    runner = "inline"
    # Sync code has no event loop: what is async, or turns out to be, is refused there with advice.
    kinds: ClassVar = {name: kind for name, kind in KINDS.items() if not (kind.is_async or kind.is_driven_async)}


class TestDefaultOfTheEngine(RunnerConformance):
    """A runner may be the engine's default as well as the call's choice."""

    def engine(self) -> Engine:
        return Engine(discover=False, runner="thread")
