"""The thread of a worker that sends batched partials, and what a full pipe did not take."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from typing import TYPE_CHECKING, Final, Protocol

from engine._worker.process_state import start_thread, stop_thread

if TYPE_CHECKING:
    from collections.abc import Callable

    from engine._worker.pipes import Pipes


_DELAY: Final = 0.001  # seconds for which a batched partial waits for others
_IDLE_FLUSHES: Final = 50  # flushes that find nothing, one after the other, before the thread sleeps
_JOIN_TIMEOUT: Final = 5.0  # seconds
_POLL_INTERVAL: Final = 0.05  # seconds to wait for room in a full pipe before testing whether to end


def flush_streams() -> None:
    """Flush stdout and stderr, so that what a predictor printed is out before its end is known."""
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except Exception:  # one of them is closed, or none
        with contextlib.suppress(Exception):
            sys.stderr.flush()


class _Flushable(Protocol):
    """What the flusher needs of an outlet."""

    def flush_from_anywhere(self) -> bool:
        """Send the batched partials; tell whether there were any."""
        ...


class Flusher:
    """Sends batched partials in a thread of its own, which is started when first needed and sleeps while none come.

    It also writes what a full pipe did not take, as soon as there is room, whatever the body does meanwhile.

    Args:
        pipes: the worker's ends of its pipes.
        outlet: gives the outlet of the call that runs, if there is one.

    Attributes:
        is_armed: the thread flushes, or is about to; it is cleared before a last flush, so that no batch is missed.
    """

    def __init__(self, pipes: Pipes, outlet: Callable[[], _Flushable | None]) -> None:
        """Start no thread yet."""
        self.is_armed = False
        self._pipes = pipes
        self._outlet = outlet
        self._thread: threading.Thread | None = None
        self._is_ending = False
        self._wakeup = threading.Lock()  # a semaphore: the thread acquires it to sleep, and is woken by its release
        self._wakeup.acquire()

    def arm(self) -> bool:
        """Have the thread flush what waits now; tell whether there is one, for the system may give no thread."""
        self.is_armed = True
        if self._thread is None and not self._start():
            self.is_armed = False
            return False
        with contextlib.suppress(RuntimeError):  # it is released: owner and thread armed at once
            self._wakeup.release()
        return True

    def stop(self) -> bool:
        """End the thread, as before a fork; tell whether there was one, so that it is to be armed again."""
        thread = self._thread
        if thread is None:
            return False
        self._is_ending = True
        with contextlib.suppress(RuntimeError):  # it is released: the thread was armed
            self._wakeup.release()
        stop_thread(thread, _JOIN_TIMEOUT)
        self._thread, self._is_ending = None, False
        return True

    def _start(self) -> bool:
        try:
            self._thread = start_thread(self._run, "engine-flusher")
        except RuntimeError:
            return False
        return True

    def _run(self) -> None:
        while True:
            self._wakeup.acquire()
            idle = 0
            while idle < _IDLE_FLUSHES and not self._is_ending:
                self._pause()
                idle = 0 if self._flush() else idle + 1
            if self._is_ending:
                return
            self.is_armed = False
            # The owner appends a partial first and tests `is_armed` second: one for which it did not arm is found here.
            if self._flush() and not self.is_armed:
                self.arm()

    def _pause(self) -> None:
        """Wait for more partials to come; or write what is unsent, where the pipe was too full for it."""
        pipes = self._pipes
        if pipes.unsent and not pipes.is_waited_for:
            pipes.flush_within(_POLL_INTERVAL)
        else:
            time.sleep(_DELAY)

    def _flush(self) -> bool:
        """Send the batch; tell whether there was one, or there are unsent bytes that the main thread does not write."""
        outlet = self._outlet()
        was_waiting = outlet is not None and outlet.flush_from_anywhere()
        return was_waiting or (bool(self._pipes.unsent) and not self._pipes.is_waited_for)
