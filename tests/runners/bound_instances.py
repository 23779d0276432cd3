"""Classes whose instances note in which threads they are set up, called and torn down."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from typing import TYPE_CHECKING, Any, Final

from engine import Engine

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

TAG: Final = "@tests/bound"
PINNED: Final = "engine-pinned"


class Notes:
    """What happened to an instance, and in which threads."""

    def __init__(self) -> None:
        self.lines: list[tuple[str, threading.Thread]] = []

    def add(self, line: str) -> None:
        self.lines.append((line, threading.current_thread()))

    def threads(self, *lines: str) -> set[threading.Thread]:
        return {thread for line, thread in self.lines if line in lines or not lines}

    def count(self, line: str) -> int:
        return sum(each == line for each, _ in self.lines)


def bound(notes: Notes) -> type:
    """A class whose instances work in the thread of their `setup` only."""

    class Bound:
        def __init__(self) -> None:
            notes.add("constructor")

        def setup(self) -> None:
            notes.add("setup")
            self.database = sqlite3.connect(":memory:")

        def predict(self) -> Iterator[int]:
            try:
                notes.add("predict")
                yield self.database.execute("select 1").fetchone()[0]
                yield self.database.execute("select 2").fetchone()[0]
            finally:
                notes.add("finally")

        def teardown(self) -> None:
            notes.add("teardown")
            self.database.close()

    return Bound


def moving(notes: Notes) -> type:
    """A class whose instances work in every thread."""

    class Moving:
        def setup(self) -> None:
            notes.add("setup")

        def predict(self) -> int:
            notes.add("predict")
            return 2

        def teardown(self) -> None:
            notes.add("teardown")

    return Moving


def pinned_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == PINNED]


async def aread(muna: Engine) -> list[int]:
    return [value async for value in muna.predictions.astream(TAG).values()]


async def aleave(muna: Engine) -> None:
    async with muna.predictions.astream(TAG) as stream:
        await anext(stream)


class ListOf:
    """A reducer of the test's own, which runs where it is consumed."""

    name = "list_of"

    def start(self) -> list[Any]:
        return []

    def step(self, state: list[Any], partial: Any) -> list[Any]:
        return [*state, partial]

    def finish(self, state: list[Any]) -> list[Any]:
        return state


list_of: Final[ListOf] = ListOf()

CALLS: Final[dict[str, Callable[[Engine], object]]] = {
    "acreate": lambda muna: asyncio.run(muna.predictions.acreate(TAG)),
    "astream": lambda muna: asyncio.run(aread(muna)),
    "astream-left": lambda muna: asyncio.run(aleave(muna)),
    "create": lambda muna: muna.predictions.create(TAG, runner="thread"),
    "create-collected": lambda muna: muna.predictions.create(TAG, runner="thread", reduce=list_of),
    "stream": lambda muna: list(muna.predictions.stream(TAG, runner="thread").values()),
}
BEGINNINGS: Final[dict[str, Callable[[Engine], object]]] = {
    "load": lambda muna: muna.load(TAG),
    "load-thread": lambda muna: muna.load(TAG, runner="thread"),
    "aload": lambda muna: asyncio.run(muna.aload(TAG)),
    **CALLS,
}
ENDS: Final[dict[str, Callable[[Engine], object]]] = {
    "unload": lambda muna: muna.unload(TAG),
    "aunload": lambda muna: asyncio.run(muna.aunload(TAG)),
    "close": lambda muna: muna.close(),
    "aclose": lambda muna: asyncio.run(muna.aclose()),
}
