"""Writes to a pipe that may be full: as much as it takes, the rest kept in order; used by both sides."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections import deque
    from collections.abc import Sequence

    from engine._wire.frames import Chunk

READ_SIZE: Final = 1 << 16  # bytes one read takes at most: memory for more would come from the system each time
_CHUNKS_AT_ONCE: Final = 64  # chunks in one system call, far below the limit of any system


def write(descriptor: int, chunks: Sequence[Chunk], unsent: deque[memoryview]) -> bool:
    """Write chunks after what is `unsent`, and keep there what the pipe does not take; tell whether nothing is left.

    Raises:
        OSError: the pipe is broken.
    """
    unsent.extend(memoryview(chunk) for chunk in chunks if len(chunk))
    return flush(descriptor, unsent)


def flush(descriptor: int, unsent: deque[memoryview]) -> bool:
    """Write what is `unsent`, as far as the pipe takes it; tell whether nothing is left.

    Raises:
        OSError: the pipe is broken.
    """
    try:
        while unsent:
            written = os.writev(descriptor, list(unsent)[:_CHUNKS_AT_ONCE])
            while written:
                first = unsent[0]
                if written < first.nbytes:
                    unsent[0] = first[written:]
                    break
                written -= first.nbytes
                unsent.popleft()
    except BlockingIOError:
        return False
    return True
