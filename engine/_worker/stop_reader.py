"""The thread of a worker that reads requests to stop, and ends the process with its engine."""

from __future__ import annotations

import contextlib
import os
import select
import signal
from typing import TYPE_CHECKING, Any, Final

from engine._wire.frames import Decoder
from engine._wire.nonblocking import READ_SIZE
from engine._worker.process_state import start_thread, stop_thread

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable


_JOIN_TIMEOUT: Final = 5.0  # seconds


class StopReader:
    """Reads requests to stop in a thread of its own, and kills this process when the engine is gone.

    Args:
        stops: the pipe that brings them.
        lifeline: the pipe that is closed when the engine is gone.

    Attributes:
        on_stop: called in that thread with the number of the call to stop.
    """

    def __init__(self, stops: int, lifeline: int) -> None:
        """Start no thread yet."""
        self.on_stop: Callable[[int], None] = _ignore
        self._stops = stops
        self._decoder = Decoder()
        self._wake_reader, self._wake_writer = os.pipe()
        self._poll = select.poll()
        for each in (stops, lifeline, self._wake_reader):
            self._poll.register(each, select.POLLIN)
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Start the thread, unless it runs already or the system gives none; the next command tries again."""
        if self._thread is None:
            with contextlib.suppress(RuntimeError):
                self._thread = start_thread(self._run, "engine-stops")

    def stop(self) -> None:
        """End the thread, as before a fork; requests that come meanwhile stay in the pipe for the next one."""
        thread, self._thread = self._thread, None
        if thread is not None:
            os.write(self._wake_writer, b"\0")
            stop_thread(thread, _JOIN_TIMEOUT)

    def _run(self) -> None:
        while True:
            ready = [descriptor for descriptor, _ in self._poll.poll()]
            for descriptor in ready:
                data = os.read(descriptor, READ_SIZE)
                if not data:  # the engine is gone: no clean-up of a predictor's may keep this process
                    os.kill(os.getpid(), signal.SIGKILL)
                # Nothing is ever written to the lifeline: it is ready only at its end.
                if descriptor == self._stops:
                    self._decoder.feed(data)
            while self._decoder.frames:
                self.on_stop(self._decoder.frames.popleft().number)
            if self._wake_reader in ready:  # last, so that no request is lost that was read with it
                return


def _ignore(_number: int) -> None:
    """Stand in until the host has set `on_stop`."""


def ignore_interrupt(_number: int, _frame: Any) -> None:
    """Ignore SIGINT: Ctrl-C at a terminal reaches every process there, and the engine decides what it means."""
