"""Gates that bodies and tests wait at, in one process or across several, and a journal that several processes keep.

Workers import this module, so it imports no asyncio before something async waits.
"""

from __future__ import annotations

import contextlib
import os
import threading
import weakref
from pathlib import Path
from typing import Any, ClassVar, Final

import attrs

from tests._kit.waits import TIMEOUT, auntil, until

BODY_TIMEOUT: Final = 30.0  # seconds that a body waits for a test, which has waits of its own meanwhile


class Gate:
    """Where threads and asyncio tasks wait until another thread opens it.

    Attributes:
        made: all gates there are, so that none that a failed test left shut keeps a thread.
    """

    made: ClassVar[weakref.WeakSet[Gate]] = weakref.WeakSet()

    def __init__(self) -> None:
        self.made.add(self)
        self._opened = threading.Event()
        self._reached = threading.Event()
        self._lock = threading.Lock()
        self._waiting: list[tuple[Any, Any]] = []  # an event loop, and the event that a task of it waits for

    @property
    def is_open(self) -> bool:
        return self._opened.is_set()

    @property
    def is_reached(self) -> bool:
        """Whether a thread or task has come to it."""
        return self._reached.is_set()

    def open(self) -> None:
        with self._lock:
            self._opened.set()
            waiting, self._waiting = self._waiting, []
        for loop, opened in waiting:
            with contextlib.suppress(RuntimeError):  # that loop is closed
                loop.call_soon_threadsafe(opened.set)

    def wait(self) -> None:
        """Wait in a thread."""
        self._reached.set()
        if not self._opened.wait(TIMEOUT):
            raise TimeoutError("the gate was never opened")

    async def await_(self) -> None:
        """Wait in an asyncio task."""
        import asyncio

        opened = asyncio.Event()
        with self._lock:
            self._reached.set()
            if self._opened.is_set():
                return
            self._waiting.append((asyncio.get_running_loop(), opened))
        await asyncio.wait_for(opened.wait(), TIMEOUT)

    def wait_until_reached(self) -> None:
        """Wait in a thread for what is to come to this gate."""
        until(self._reached.is_set, "something comes to the gate")

    async def await_until_reached(self) -> None:
        """Wait in a task for what is to come to this gate."""
        await auntil(self._reached.is_set, "something comes to the gate")


@attrs.frozen
class FileGate:
    """Where a body waits for its test, or the other way round, across processes: it is open once its file is there.

    Attributes:
        path: the file; the folder it lies in exists.
    """

    path: Path

    def open(self) -> None:
        """Put the file there, with this process's number, at one stroke."""
        unfinished = self.path.with_suffix(f".{os.getpid()}-{threading.get_ident()}")
        unfinished.write_text(str(os.getpid()))
        unfinished.rename(self.path)

    @property
    def is_open(self) -> bool:
        return self.path.exists()

    @property
    def opener(self) -> int:
        """The number of the process that opened it."""
        return int(self.path.read_text())

    def wait(self) -> None:
        """Wait in a body; in a test too, where nothing else has to go on."""
        until(lambda: self.is_open, f"the gate {self.path.name} is opened", BODY_TIMEOUT)

    async def await_(self) -> None:
        """Wait in an async body."""
        await auntil(lambda: self.is_open, f"the gate {self.path.name} is opened", BODY_TIMEOUT)


@attrs.frozen
class Journal:
    """What happened in several processes, in order: one word a line.

    Attributes:
        path: the file it is kept in.
    """

    path: Path

    def note(self, word: str) -> None:
        with self.path.open("a") as file:
            file.write(f"{word}\n")

    @property
    def words(self) -> list[str]:
        return self.path.read_text().split() if self.path.exists() else []
