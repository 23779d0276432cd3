"""A worker's ends of the pipes between it and its engine: frames are read, and written as far as there is room."""

from __future__ import annotations

import contextlib
import os
import select
import threading
from collections import deque
from typing import TYPE_CHECKING

from engine._wire import nonblocking
from engine._wire.frames import Decoder
from engine.runners.parking import POLL_INTERVAL

if TYPE_CHECKING:
    from collections.abc import Sequence

    from engine._wire.frames import Chunk


class Pipes:
    """A worker's ends of its pipes: any thread may write, only the main thread reads.

    Args:
        calls: the descriptor that commands and credit come by.
        answers: the descriptor that frames go to.

    Attributes:
        lock: held while a frame is written, so that frames never mix.
        unsent: what the pipe has not taken yet, in order.
        is_over: the engine has closed its end.
        is_child: this process was forked from the worker, and must not use the pipes.
        is_busy: the main thread writes; a signal handler must not raise, for that would cut a frame in two.
        is_waited_for: the main thread waits in `wait`, and writes what is unsent itself.
    """

    def __init__(self, calls: int, answers: int) -> None:
        self.calls = calls
        self.answers = answers
        os.set_blocking(answers, False)
        self.decoder = Decoder()  # without a lock: only the main thread reads
        self.lock = threading.Lock()
        self.unsent: deque[memoryview] = deque()
        self.is_over = False
        self.is_child = False
        self.is_busy = False
        self.is_waited_for = False
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
                except OSError:  # the pipe is full, or the engine is gone: `write_locked` finds out which
                    written = 0
                if written == len(frame):
                    return
                chunks = [memoryview(frame)[written:]]
            self.write_locked(chunks)

    def write_locked(self, chunks: Sequence[Chunk]) -> None:
        """Write as much as the pipe takes now, and keep the rest; the caller holds the lock."""
        if self.is_child:  # a call that a forked child goes on with: only the worker may write
            os._exit(1)
        try:
            nonblocking.write(self.answers, chunks, self.unsent)
        except OSError:  # the engine is gone
            self.unsent.clear()  # or an owner that waits for room would wait for ever
            self.is_over = True

    def flush(self) -> None:
        """Write what is unsent, as far as the pipe takes it."""
        with self.lock:
            self.write_locked(())

    def flush_within(self, seconds: float) -> None:
        """Write what is unsent if the pipe has room within `seconds`; for the flusher's thread."""
        poll = select.poll()
        poll.register(self.answers, select.POLLOUT)
        if not poll.poll(seconds * 1000):
            return
        self.flush()
        if not self.unsent:
            self.wake()  # the main thread may be about to wait for room, and nothing else would wake it

    def read(self) -> bool:
        """Read once, waiting if there is nothing; tell whether the engine's end is still open."""
        try:
            data = os.read(self.calls, nonblocking.READ_SIZE)
        except OSError:
            data = b""
        if data:
            self.decoder.feed(data)
        else:
            self.is_over = True
        return not self.is_over

    def wait(self) -> bool:
        """Wait for input, for room to write what is unsent, or for `wake`; tell whether there is input."""
        poll = select.poll()
        poll.register(self.calls, select.POLLIN)
        poll.register(self._wake_reader, select.POLLIN)
        if self.unsent:
            poll.register(self.answers, select.POLLOUT)
        is_readable = False
        self.is_waited_for = True  # from here on the flusher's thread leaves the pipe to this one
        try:
            ready = poll.poll(POLL_INTERVAL * 1000)
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
        """Have the main thread return from `wait`; any thread and any signal handler may call it."""
        with contextlib.suppress(OSError):  # the pipe is full of wake-ups that are not read yet: one of them will do
            os.write(self._wake_writer, b"\0")

    def after_fork(self) -> None:
        """In a forked child, close the pipes: only the worker may write, and the engine must see when it ends."""
        self.is_child = True
        self.lock = threading.Lock()  # a thread that does not exist in this process may hold the other
        for each in (self.calls, self.answers):
            with contextlib.suppress(OSError):
                os.close(each)
