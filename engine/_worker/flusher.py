"""A thread that sends the partials that wait, so that the owner need not be interrupted for each."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from typing import TYPE_CHECKING, Final, Protocol

from engine._worker.process_state import end_thread, start_thread

if TYPE_CHECKING:
    from collections.abc import Callable

    from engine._worker.pipes import Pipes


_TAIL: Final = 0.001  # seconds after which a partial that waits is sent, though no other came
_CALM: Final = 50  # times the tail is looked at without finding one before its thread sleeps
_BOUND: Final = 5.0  # seconds any wait sleeps before it looks again
_GLANCE: Final = 0.05  # seconds the tail waits for room in a full pipe before it looks whether it is to end


def flush_streams() -> None:
    """What a predictor printed is out before its end is known."""
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except Exception:  # one of them is closed, or none
        with contextlib.suppress(Exception):
            sys.stderr.flush()


class _Flushed(Protocol):
    """What the flusher knows of an outlet."""

    def flush_from_anywhere(self) -> bool:
        """Send what waits; tell whether anything did."""
        ...


class Flusher:
    """A thread that sends what waits, while partials come fast and for a moment longer; started when first needed.

    What a full pipe leaves over it pushes as soon as there is room, whatever the body does meanwhile.

    Args:
        link: the worker's ends of its pipes.
        outlet: gives the outlet of the call that runs, if one does.
    """

    def __init__(self, pipes: Pipes, outlet: Callable[[], _Flushed | None]) -> None:
        """Make a tail that is not armed."""
        self.is_armed = False
        self._pipes = pipes
        self._outlet = outlet
        self._thread: threading.Thread | None = None
        self._is_ending = False
        self._lock = threading.Lock()
        self._lock.acquire()

    def arm(self) -> bool:
        """Something waits: look after it; tell whether that can be done, for the system may give no thread."""
        self.is_armed = True
        if self._thread is None and not self._starts():
            self.is_armed = False
            return False
        with contextlib.suppress(RuntimeError):  # both sides armed it at once
            self._lock.release()
        return True

    def stop(self) -> bool:
        """Have the thread end, as before a fork; tell whether there was one, so that it is to be armed again."""
        thread = self._thread
        if thread is None:
            return False
        self._is_ending = True
        with contextlib.suppress(RuntimeError):  # it was armed
            self._lock.release()
        end_thread(thread, _BOUND)
        self._thread, self._is_ending = None, False
        return True

    def _starts(self) -> bool:
        try:
            self._thread = start_thread(self._run, "engine-tail")
        except RuntimeError:
            return False
        return True

    def _run(self) -> None:
        while True:
            self._lock.acquire()
            calm = 0
            while calm < _CALM and not self._is_ending:
                self._rest()
                calm = 0 if self._flush() else calm + 1
            if self._is_ending:
                return
            self.is_armed = False
            if self._flush() and not self.is_armed:  # it came just before
                self.arm()

    def _rest(self) -> None:
        """Give what follows a moment to come; where the pipe was too full for what came before, push that."""
        pipes = self._pipes
        if pipes.unsent and not pipes.is_waited_for:
            pipes.flush_within(_GLANCE)
        else:
            time.sleep(_TAIL)

    def _flush(self) -> bool:
        """Send what waits; tell whether there was anything, or what is left over is not pushed by the main thread."""
        outlet = self._outlet()
        was_waiting = outlet is not None and outlet.flush_from_anywhere()
        return was_waiting or (bool(self._pipes.unsent) and not self._pipes.is_waited_for)
