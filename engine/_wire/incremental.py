"""Pickling, unpickling and copying large values in short steps, so that other threads get the GIL in between.

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

PICKLE_STEP: Final = 1 << 16  # bytes of pickle that are made or read in one step: what pickle itself writes at a time
COPY_STEP: Final = 1 << 18  # bytes that are copied in one step
_SLICE: Final = 0.001  # seconds a thread keeps the GIL before it offers it
_PAUSE: Final = 0.00005  # seconds it sleeps then: long enough for a thread that waits for the GIL to get it


def fits_event_loop(sizes: Sequence[int]) -> bool:
    """Whether a payload, given the sizes of its pickle and buffers, is so small that an event loop may handle it."""
    return sizes[0] <= PICKLE_STEP and sum(sizes) <= COPY_STEP


class AbandonedError(BaseException):
    """Raised where the call of what is pickled was abandoned; no `Exception`, so that no pickler tries another way."""


class TimeSlice:
    """How long a thread has kept the GIL, which it yields between two steps."""

    __slots__ = ("_since",)

    def __init__(self) -> None:
        """Begin the first slice."""
        self._since = perf_counter()

    def yield_gil(self) -> None:
        """Let another thread run, if this one has used up its slice."""
        if perf_counter() - self._since >= _SLICE:
            sleep(_PAUSE)
            self._since = perf_counter()


def copy_into(target: memoryview, chunk: Chunk, time_slice: TimeSlice) -> None:
    """Copy `chunk` into `target`, of the same length."""
    with memoryview(chunk) as view:
        for start in range(0, len(view), COPY_STEP):
            target[start : start + COPY_STEP] = view[start : start + COPY_STEP]
            time_slice.yield_gil()


def copy_of(view: memoryview, time_slice: TimeSlice, *, is_fixed: bool) -> bytes | bytearray:
    """Copy bytes, to `bytes` if the copy `is_fixed`, else to a `bytearray`.

    Neither is allocated beforehand, since filling it with zeros would be one long step; growing it moves no memory.
    """
    file, made = io.BytesIO(), bytearray()
    for start in range(0, len(view), COPY_STEP):
        if is_fixed:
            file.write(view[start : start + COPY_STEP])
        else:
            made += view[start : start + COPY_STEP]
        time_slice.yield_gil()
    return file.getvalue() if is_fixed else made


class PickleWriter:
    """A file that is pickled into: keeps each chunk as it comes, and large bytes of the value without a copy.

    Args:
        is_abandoned: tells, between two steps, whether the call was abandoned.
    """

    def __init__(self, is_abandoned: Callable[[], bool] | None = None) -> None:
        """Keep nothing yet."""
        self.chunks: list[bytes] = []
        self._is_abandoned = is_abandoned
        self._time_slice = TimeSlice()

    def write(self, data: Any) -> int:
        """Keep one more chunk.

        Raises:
            AbandonedError: the call was abandoned.
        """
        if self.chunks:
            self._time_slice.yield_gil()
        if self._is_abandoned is not None and self._is_abandoned():
            raise AbandonedError
        if data.__class__ is bytes:
            self.chunks.append(data)
            return len(data)
        with memoryview(data) as view, view.cast("B") as flat:  # pickle's own buffer, which it fills again
            for start in range(0, len(flat), COPY_STEP):
                self.chunks.append(bytes(flat[start : start + COPY_STEP]))
                self._time_slice.yield_gil()
            return len(flat)

    def seek(self, _start: int) -> None:
        """Go back to the beginning; only `dump` does, to try another pickler, and never to another position."""

    def truncate(self) -> None:
        """Drop what came so far."""
        self.chunks.clear()

    def joined(self) -> bytes:
        """Join all chunks."""
        if len(self.chunks) == 1:
            return self.chunks[0]
        file = io.BytesIO()
        for chunk in self.chunks:
            for start in range(0, len(chunk), COPY_STEP):
                with memoryview(chunk) as view:
                    file.write(view[start : start + COPY_STEP])
                self._time_slice.yield_gil()
        return file.getvalue()


class PickleReader:
    """A file that is unpickled from.

    Args:
        view: what it holds; no reference to it is kept in what is rebuilt.
        time_slice: when to let other threads run.
    """

    def __init__(self, view: memoryview, time_slice: TimeSlice) -> None:
        """Begin at the beginning."""
        self._view = view
        self._at = 0
        self._time_slice = time_slice

    def read(self, size: int) -> bytes:
        """Give the next bytes."""
        part = self._view[self._at : self._at + size]
        self._at += len(part)
        self._time_slice.yield_gil()
        return bytes(part) if size <= COPY_STEP else bytes(copy_of(part, self._time_slice, is_fixed=True))

    def readinto(self, target: Any) -> int:
        """Copy the next bytes into `target`, of which a value is made."""
        with memoryview(target) as room:
            part = self._view[self._at : self._at + len(room)]
            copy_into(room[: len(part)], part, self._time_slice)
        self._at += len(part)
        return len(part)

    def readline(self) -> bytes:
        """Give the next line; only pickles of protocol 0, which `__reduce__` methods may nest, consist of lines."""
        rest = bytes(self._view[self._at :])
        line, ending, _ = rest.partition(b"\n")
        self._at += len(line) + len(ending)
        return line + ending
