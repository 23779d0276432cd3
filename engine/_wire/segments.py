"""Shared memory between an engine and one worker: where large payloads lie, so that a pipe carries only their location.

A segment is memory without a name, made before its worker starts and inherited by it, so the kernel frees it
when both processes are gone, however they ended. It grows as needed and is reused: fresh pages cost thirty times what a
copy costs. Room is allocated before it is written, and where there is none the caller sends the bytes by the pipe.
"""

from __future__ import annotations

import fcntl
import mmap
import os
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from engine._wire.incremental import copy_into

if TYPE_CHECKING:
    from collections.abc import Sequence

    from engine._wire.frames import Chunk
    from engine._wire.incremental import TimeSlice

SHARED_FROM: Final = 1 << 15  # bytes from which a payload goes by shared memory: below, a pipe is as fast
SEGMENT_LIMIT: Final = (
    1 << 28
)  # bytes a segment keeps between calls, and may hold several partials in; one may be larger
_STEP: Final = 1 << 20  # bytes a segment grows by


def make_segment() -> int:
    """Make an empty segment; give its descriptor, which a worker may inherit.

    Raises:
        OSError: no descriptor is left.
    """
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("engine", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        with suppress(OSError):  # a kernel without seals
            os.fchmod(descriptor, 0o600)  # other users could open it through /proc
            # What is mapped by one side must not be cut off by the other: reading it would end the process by SIGBUS.
            fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL)
        return descriptor
    import tempfile

    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


class Segment:
    """One side's view of a segment.

    Args:
        descriptor: what `make_segment` gave; it stays open when the view is closed.
    """

    __slots__ = ("_descriptor", "_map", "_wanted", "is_oversized")

    def __init__(self, descriptor: int) -> None:
        """Map nothing yet; memory is mapped when it is first used."""
        self._descriptor = descriptor
        self._map: mmap.mmap | None = None
        self._wanted = 0
        self.is_oversized = False  # more than `SEGMENT_LIMIT` was wanted, so that there may be memory to `trim`

    @property
    def size(self) -> int:
        """Bytes mapped here."""
        return 0 if self._map is None else len(self._map)

    def grow(self, size: int) -> bool:
        """Make room for `size` bytes; tell whether there is."""
        self._wanted = max(self._wanted, size)
        self.is_oversized = self.is_oversized or size > SEGMENT_LIMIT
        if size <= self.size:
            return True
        rounded = _rounded(size)
        try:
            if rounded > os.fstat(self._descriptor).st_size:
                os.ftruncate(
                    self._descriptor, rounded
                )  # takes no memory yet; where the segment is sealed, it can never be shortened again
            found = mmap.mmap(self._descriptor, rounded)
        except (OSError, ValueError, OverflowError):  # address space or file size at its limit
            return False
        try:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(
                    self._descriptor, 0, rounded
                )  # without it, a write could end in SIGBUS where memory is short
        except OSError:  # memory at its limit
            found.close()
            return False
        self.close()
        self._map = found
        return True

    def write(self, start: int, chunks: Sequence[Chunk], time_slice: TimeSlice | None = None) -> None:
        """Copy `chunks`, one after the other, to where there is room for them; with a `time_slice`, in steps."""
        if self._map is None:
            raise AssertionError("room is made before it is written")
        with memoryview(self._map) as view:
            for chunk in chunks:
                end = start + len(chunk)
                if time_slice is None:
                    view[start:end] = chunk
                else:
                    with view[start:end] as part:
                        copy_into(part, chunk, time_slice)
                start = end

    def read(self, start: int, size: int) -> memoryview:
        """Give a view of what the other side wrote; to be released before the segment is used again.

        Raises:
            ValueError: the other side never wrote so far.
        """
        if start + size > self.size:
            written = os.fstat(self._descriptor).st_size
            if start + size > written:
                raise ValueError(f"{start + size} bytes of {written} in shared memory")
            self._remap(min(written, _rounded(start + size)))
        with memoryview(self._map) as view:  # type: ignore[arg-type]  # mapped by now
            return view[start : start + size]

    def trim(self, coming: int = 0) -> None:
        """Give memory beyond `SEGMENT_LIMIT` back to the system, unless it was wanted since this was last called.

        It is kept for the `coming` bytes, too, if these need it.

        Only the side that writes may do so, and only while there is nothing to read.
        """
        if max(self._wanted, coming) <= SEGMENT_LIMIT:
            if self._map is not None and self.size > SEGMENT_LIMIT:
                _give_back(self._descriptor, self._map, SEGMENT_LIMIT)
                self.close()
            self.is_oversized = False
        self._wanted = 0

    def close(self) -> None:
        """Unmap; where Ctrl-C left a view in a traceback, that keeps its memory as long as there is the traceback."""
        mapped, self._map = self._map, None
        if mapped is not None:
            with suppress(BufferError):
                mapped.close()

    def _remap(self, size: int) -> None:
        mapped = mmap.mmap(self._descriptor, size)  # before the other is closed: it may fail
        self.close()
        self._map = mapped


def _rounded(size: int) -> int:
    return -(-size // _STEP) * _STEP


def _give_back(descriptor: int, mapped: mmap.mmap, start: int) -> None:
    """Give the memory of a segment from `start` on back to the system; one that is sealed keeps its length."""
    try:
        os.ftruncate(descriptor, start)
    except PermissionError:
        mapped.madvise(mmap.MADV_REMOVE, start, len(mapped) - start)


class Ring:
    """Where in a segment the partials lie that the engine has not taken yet; room is freed in their order."""

    __slots__ = ("_segment", "held")

    def __init__(self, segment: Segment) -> None:
        """Hold nothing."""
        self._segment = segment
        self.held: deque[tuple[int, int, int]] = deque()  # index of the partial, where it begins and ends

    def free(self, taken: int) -> None:
        """Free the room of the partials before the index `taken`."""
        while self.held and self.held[0][0] < taken:
            self.held.popleft()

    def clear(self) -> None:
        """Free all room, before the first partial of a call."""
        self.held.clear()
        if self._segment.is_oversized:
            self._segment.trim()

    def find(self, index: int, size: int) -> int | None:
        """Find room for the partial `index`; `None` if there is none."""
        start = self._place(size)
        if start is None or not self._segment.grow(start + size):
            return None
        self.held.append((index, start, start + size))
        return start

    def _place(self, size: int) -> int | None:
        if not self.held:
            return 0
        first, last = self.held[0][1], self.held[-1][2]
        if last <= first:  # it has wrapped around: what is free lies between the two
            return last if last + size <= first else None
        if last + size <= self._segment.size:
            return last
        if size <= first:
            return 0
        return last if last + size <= SEGMENT_LIMIT else None  # behind all others, where the segment grows
