"""Large values a piece at a time, so that other threads have their turn in between.

One C call over a large value holds the GIL from its beginning to its end, whichever thread makes it, and the event
loops beside it stand still as long. Pickling into a file that is written in Python, unpickling from one, and copying
slice by slice give it up in between. No I/O happens here.
"""

from __future__ import annotations

import io
from time import perf_counter, sleep
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from engine._wire.frames import Chunk

PICKLE_STEP: Final = 1 << 16  # bytes of pickle that are made or read in one go: what pickle itself writes at a time
COPY_STEP: Final = 1 << 18  # bytes that are copied in one go
_TURN: Final = 0.001  # seconds one thread keeps the GIL
_NAP: Final = 0.00005  # seconds it gives it up: long enough for a thread that waits for it to get it


def fits_event_loop(sizes: Sequence[int]) -> bool:
    """Whether a payload, told by the sizes of its pickle and its buffers, may be handled on an event loop."""
    return sizes[0] <= PICKLE_STEP and sum(sizes) <= COPY_STEP


class AbandonedError(BaseException):
    """Raised where what is pickled is wanted no more; no `Exception`, so that nothing tries another way."""


class TimeSlice:
    """Gives up the GIL, once it was kept for a while."""

    __slots__ = ("_since",)

    def __init__(self) -> None:
        """Begin a turn."""
        self._since = perf_counter()

    def yield_gil(self) -> None:
        """Let another thread have its turn, if this one's is over."""
        if perf_counter() - self._since >= _TURN:
            sleep(_NAP)
            self._since = perf_counter()


def copy_into(there: memoryview, chunk: Chunk, turns: TimeSlice) -> None:
    """Copy `chunk` to `there`, of the same length."""
    with memoryview(chunk) as view:
        for start in range(0, len(view), COPY_STEP):
            there[start : start + COPY_STEP] = view[start : start + COPY_STEP]
            turns.yield_gil()


def copy_of(view: memoryview, turns: TimeSlice, *, is_fixed: bool) -> bytes | bytearray:
    """A copy of bytes, as `bytes` if it `is_fixed`, else as a `bytearray`.

    Neither is allocated beforehand, since filling it with zeros would be one long step; growing it moves no memory.
    """
    file, made = io.BytesIO(), bytearray()
    for start in range(0, len(view), COPY_STEP):
        if is_fixed:
            file.write(view[start : start + COPY_STEP])
        else:
            made += view[start : start + COPY_STEP]
        turns.yield_gil()
    return file.getvalue() if is_fixed else made


class PickleWriter:
    """A file that is pickled into: keeps each piece as it comes, and what is large in the value without a copy.

    Args:
        is_abandoned: tells, between two pieces, whether to give up.
    """

    def __init__(self, is_abandoned: Callable[[], bool] | None = None) -> None:
        """Keep nothing yet."""
        self.chunks: list[bytes] = []
        self._is_unwanted = is_abandoned
        self._turns = TimeSlice()

    def write(self, data: Any) -> int:
        """Keep one more piece.

        Raises:
            UnwantedError: the call no longer waits for the rest.
        """
        if self.chunks:
            self._turns.yield_gil()
        if self._is_unwanted is not None and self._is_unwanted():
            raise AbandonedError
        if data.__class__ is bytes:
            self.chunks.append(data)
            return len(data)
        with memoryview(data) as view, view.cast("B") as flat:  # a buffer that may change
            for start in range(0, len(flat), COPY_STEP):
                self.chunks.append(bytes(flat[start : start + COPY_STEP]))
                self._turns.yield_gil()
            return len(flat)

    def seek(self, _start: int) -> None:
        """Go back to the beginning, where alone anybody goes."""

    def truncate(self) -> None:
        """Keep nothing of what came so far."""
        self.chunks.clear()

    def joined(self) -> bytes:
        """All of it as one."""
        if len(self.chunks) == 1:
            return self.chunks[0]
        file = io.BytesIO()
        for chunk in self.chunks:
            for start in range(0, len(chunk), COPY_STEP):
                with memoryview(chunk) as view:
                    file.write(view[start : start + COPY_STEP])
                self._turns.yield_gil()
        return file.getvalue()


class PickleReader:
    """A file that is unpickled from.

    Args:
        view: what it holds; it is only looked at.
        turns: when to let others have theirs.
    """

    def __init__(self, view: memoryview, turns: TimeSlice) -> None:
        """Begin at its beginning."""
        self._view = view
        self._at = 0
        self._turns = turns

    def read(self, size: int) -> bytes:
        """Give the next bytes."""
        part = self._view[self._at : self._at + size]
        self._at += len(part)
        self._turns.yield_gil()
        return bytes(part) if size <= COPY_STEP else bytes(copy_of(part, self._turns, is_fixed=True))

    def readinto(self, there: Any) -> int:
        """Copy the next bytes to where a value is made of them."""
        with memoryview(there) as room:
            part = self._view[self._at : self._at + len(room)]
            copy_into(room[: len(part)], part, self._turns)
        self._at += len(part)
        return len(part)

    def readline(self) -> bytes:
        """Give the next line, of which a pickle of today's has none."""
        rest = bytes(self._view[self._at :])
        line, ending, _ = rest.partition(b"\n")
        self._at += len(line) + len(ending)
        return line + ending
