"""Requests to stop, heard by a thread of their own, and signals that are left to the engine."""

from __future__ import annotations

import contextlib
import os
import select
import signal
from typing import TYPE_CHECKING, Any, Final

from engine._wire.frames import Decoder
from engine._worker.process_state import end_thread, start_thread

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable


_READ: Final = 1 << 16  # bytes one read takes at most
_BOUND: Final = 5.0  # seconds a thread that is to end has to do so


class StopReader:
    """A thread that hears requests to stop, until the engine is gone; then so is this process.

    Args:
        stops: the pipe they come by.
        lifeline: the pipe whose end tells that the engine is gone.
    """

    def __init__(self, stops: int, lifeline: int) -> None:
        """Hear nothing yet."""
        self.on_stop: Callable[[int], None] = _ignore
        self._stops = stops
        self._decoder = Decoder()
        self._wake_reader, self._wake_writer = os.pipe()
        self._poll = select.poll()
        for each in (stops, lifeline, self._wake_reader):
            self._poll.register(each, select.POLLIN)
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin to listen, unless that is done already, or the system gives no thread just now."""
        if self._thread is None:
            with contextlib.suppress(RuntimeError):
                self._thread = start_thread(self._hear_stops, "engine-stops")

    def stop(self) -> None:
        """Have the thread end; what comes meanwhile is heard by the next."""
        thread, self._thread = self._thread, None
        if thread is not None:
            os.write(self._wake_writer, b"\0")
            end_thread(thread, _BOUND)

    def _hear_stops(self) -> None:
        while True:
            ready = [descriptor for descriptor, _ in self._poll.poll()]
            for descriptor in ready:
                data = os.read(descriptor, _READ)
                if not data:
                    os.kill(os.getpid(), signal.SIGKILL)
                if descriptor == self._stops:
                    self._decoder.feed(data)
            while self._decoder.frames:
                self.on_stop(self._decoder.frames.popleft().number)
            if self._wake_reader in ready:
                return


def _ignore(_number: int) -> None:
    """What a listener tells that was not started."""


def ignore_interrupt(_number: int, _frame: Any) -> None:
    """Ctrl-C at a terminal reaches every process there; what it means is the engine's to decide."""
