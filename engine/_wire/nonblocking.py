"""Writing to pipes that may be full: as much as they take, the rest kept in order; both ends of a worker do so."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections import deque
    from collections.abc import Sequence

    from engine._wire.frames import Chunk

_MOST: Final = 64  # chunks written at once


def send(descriptor: int, chunks: Sequence[Chunk], unsent: deque[memoryview]) -> bool:
    """Write chunks behind what is `unsent`, and keep there what the pipe does not take; tell whether nothing is left.

    Raises:
        OSError: the pipe is broken.
    """
    unsent.extend(memoryview(chunk) for chunk in chunks if len(chunk))
    return send_rest(descriptor, unsent)


def send_rest(descriptor: int, unsent: deque[memoryview]) -> bool:
    """Write more of what is `unsent`; tell whether nothing is left.

    Raises:
        OSError: the pipe is broken.
    """
    try:
        while unsent:
            written = os.writev(descriptor, list(unsent)[:_MOST])
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
