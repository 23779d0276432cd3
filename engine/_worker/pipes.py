"""A worker's ends of the pipes between it and its engine: frames are read, and written as far as there is room."""

from __future__ import annotations

import contextlib
import os
import select
import threading
from collections import deque
from typing import TYPE_CHECKING, Final

from engine._wire import nonblocking
from engine._wire.frames import Decoder

if TYPE_CHECKING:
    from collections.abc import Sequence

    from engine._wire.frames import Chunk

_READ: Final = 1 << 16  # bytes one read takes at most
_BOUND: Final = 5.0  # seconds any wait sleeps before it looks again


class Pipes:
    """The worker's ends of its pipes.

    Writing may be done by any thread, reading by the main one alone.
    """

    def __init__(self, calls: int, answers: int) -> None:
        self.calls = calls
        self.answers = answers
        os.set_blocking(answers, False)
        self.decoder = Decoder()
        self.lock = threading.Lock()
        self.unsent: deque[memoryview] = deque()
        self.is_over = False  # the engine has closed its end
        self.is_child = False  # this process was forked from the worker, and has no business here
        self.is_busy = False  # the main thread is writing: a signal must not cut a frame in two
        self.is_waited_for = False  # the main thread waits, and pushes what was left over itself
        self._wake_reader, self._wake_writer = os.pipe()
        os.set_blocking(self._wake_reader, False)
        os.set_blocking(self._wake_writer, False)

    def write(self, chunks: Sequence[Chunk]) -> None:
        """Write as much as the pipe takes now, and keep the rest."""
        with self.lock:
            if len(chunks) == 1 and not self.unsent and not self.is_child:  # the fast path: one small frame
                frame = chunks[0]
                try:
                    written = os.write(self.answers, frame)
                except OSError:  # there is no room, or the engine is gone: `put` will see
                    written = 0
                if written == len(frame):
                    return
                chunks = [memoryview(frame)[written:]]
            self.put(chunks)

    def put(self, chunks: Sequence[Chunk]) -> None:
        """Write as much as the pipe takes now, and keep the rest; the caller holds the lock."""
        if self.is_child:
            os._exit(1)
        try:
            nonblocking.write(self.answers, chunks, self.unsent)
        except OSError:  # the engine is gone
            self.unsent.clear()
            self.is_over = True

    def flush(self) -> None:
        """Write more of what was kept."""
        with self.lock:
            self.put(())

    def flush_within(self, seconds: float) -> None:
        """Write more of what was kept once the pipe has room; for a thread that looks after it beside the main one."""
        poll = select.poll()
        poll.register(self.answers, select.POLLOUT)
        if not poll.poll(seconds * 1000):
            return
        self.flush()
        if not self.unsent:
            self.wake()  # the main thread may be about to wait for what is done now

    def read(self) -> bool:
        """Read once, waiting if there is nothing; tell whether the engine still talks."""
        try:
            data = os.read(self.calls, _READ)
        except OSError:
            data = b""
        if data:
            self.decoder.feed(data)
        else:
            self.is_over = True
        return not self.is_over

    def wait(self) -> bool:
        """Wait until there is something to read, to write, or an alarm; tell whether there is something to read."""
        poll = select.poll()
        poll.register(self.calls, select.POLLIN)
        poll.register(self._wake_reader, select.POLLIN)
        if self.unsent:
            poll.register(self.answers, select.POLLOUT)
        is_readable = False
        self.is_waited_for = True
        try:
            ready = poll.poll(_BOUND * 1000)
        finally:
            self.is_waited_for = False
        for descriptor, _ in ready:
            if descriptor == self.calls:
                is_readable = True
            elif descriptor == self.answers:
                self.flush()
            else:
                with contextlib.suppress(OSError):
                    os.read(self._wake_reader, 4096)
        return is_readable

    def wake(self) -> None:
        """Have the main thread look again."""
        with contextlib.suppress(OSError):
            os.write(self._wake_writer, b"\0")

    def forget(self) -> None:
        """In a forked child: only the worker may speak, and its end must be seen by the engine."""
        self.is_child = True
        self.lock = threading.Lock()  # a thread that is not here may hold the other
        for each in (self.calls, self.answers):
            with contextlib.suppress(OSError):
                os.close(each)
