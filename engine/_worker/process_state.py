"""Signals, timers and standard streams of a worker's process, restored after every call; threads of the engine's own.

What a call leaves changed of these would interrupt a later one, kill its worker or swallow what it prints. What a
predictor sets for its process on purpose stays, as it does inline, for a `setup` relies on it: the working directory,
the environment, limits, the umask, filters of warnings, imported modules. Nothing of the engine is imported here.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # it ships no types
import contextlib
import faulthandler
import fcntl
import os
import select
import signal
import sys
import threading
from operator import is_
from time import monotonic, sleep
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable

_SIGNALS: Final = range(1, 32)  # those with names; beyond are the real-time signals, which nothing sends by itself
_OURS: Final = frozenset({signal.SIGINT, signal.SIGTERM})  # sent by the engine, or by a terminal to it and its workers
_FAULTS: Final = frozenset({signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGABRT})
_STREAMS: Final = ("stdin", "stdout", "stderr")  # in the order of their descriptors

# Called after every call, so without the enumerations that `signal` makes of numbers.
_handler_of, _set_timer, _block = _signal.getsignal, _signal.setitimer, _signal.pthread_sigmask
_cancel_dump, _set_wakeup = faulthandler.cancel_dump_traceback_later, _signal.set_wakeup_fd
_REAL, _VIRTUAL, _PROF = _signal.ITIMER_REAL, _signal.ITIMER_VIRTUAL, _signal.ITIMER_PROF
_NO_CHANGE: Final = (_signal.SIG_BLOCK, ())


class ProcessState:
    """Signals, timers and streams as they were when this was made, in the main thread.

    Args:
        report: the descriptor that the interpreter writes to when it crashes.
    """

    def __init__(self, report: int) -> None:
        """Note how everything is now, before any predictor runs."""
        self._report = report
        self._handlers = list(map(_handler_of, _SIGNALS))
        self._mask = _block(*_NO_CHANGE)
        self._streams: list[Any] = [getattr(sys, name, None) for name in _STREAMS]
        self._poll = select.poll()
        self._copies: dict[int, int] = {}
        for number in range(len(_STREAMS)):
            with contextlib.suppress(OSError):  # it was closed before the worker started
                self._copies[number] = fcntl.fcntl(number, fcntl.F_DUPFD_CLOEXEC, len(_STREAMS))
                self._poll.register(number, 0)  # reports nothing but errors: POLLNVAL once it is closed
        for number, event in self._poll.poll(0):
            if event & select.POLLNVAL:  # which some systems always report for some kinds of files
                self._poll.unregister(number)

    def restore(self) -> None:
        """Restore what a predictor left changed; after every call, so by the cheapest tests there are."""
        _set_timer(_REAL, 0.0)
        _set_timer(_VIRTUAL, 0.0)
        _set_timer(_PROF, 0.0)
        _cancel_dump()
        _set_wakeup(-1)
        if _block(*_NO_CHANGE) != self._mask:
            self._restore_mask()
        if not all(map(is_, map(_handler_of, _SIGNALS), self._handlers)):
            self._restore_handlers()
        if not faulthandler.is_enabled():
            faulthandler.enable(self._report)
        if self._poll.poll(0):
            self._restore_descriptors()
        if not self._has_streams():
            self._restore_streams()

    def _restore_mask(self) -> None:
        for number in signal.sigpending() - _OURS:  # blocked while that call ran, they must not reach the next
            with contextlib.suppress(ValueError, OSError):
                signal.signal(number, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_SETMASK, self._mask)

    def _restore_handlers(self) -> None:
        for number, before in zip(_SIGNALS, self._handlers, strict=True):
            if before is not None and _handler_of(number) is not before:
                with contextlib.suppress(ValueError, OSError):
                    signal.signal(number, before)

    def _restore_descriptors(self) -> None:
        for number, event in self._poll.poll(0):
            if event & select.POLLNVAL:
                with contextlib.suppress(OSError):  # the copy was closed, too
                    os.dup2(self._copies[number], number)

    def _has_streams(self) -> bool:
        try:
            stdin, stdout, stderr = self._streams
            are_there = sys.stdout is stdout and sys.stderr is stderr and sys.stdin is stdin
            return are_there and not (stdout.closed or stderr.closed or stdin.closed)
        except (AttributeError, ValueError):  # the stream was deleted, or detached from its buffer
            return False

    def _restore_streams(self) -> None:
        for number, name in enumerate(_STREAMS):
            stream = self._streams[number]
            setattr(sys, name, stream)  # which may free a stream in its place that shares its buffer, and closes that
            if not _is_open(stream):
                self._streams[number] = stream = _stream_over(number, stream)
                setattr(sys, name, stream)
                setattr(sys, f"__{name}__", stream)


def start_thread(target: Callable[..., object], name: str, *args: Any) -> threading.Thread:
    """Start a daemon thread of the engine's own, in which all signals are blocked, so that they reach the main thread.

    Raises:
        RuntimeError: the system gives no thread.
    """
    thread = threading.Thread(target=target, args=args, name=name, daemon=True)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals() - _FAULTS)  # the new thread inherits it
    try:
        thread.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return thread


def stop_thread(thread: threading.Thread, seconds: float) -> None:
    """Wait at most `seconds` until a thread that is about to end is gone for the kernel, too."""
    deadline = monotonic() + seconds
    thread.join(seconds)
    while os.access(f"/proc/self/task/{thread.native_id}", os.F_OK) and monotonic() < deadline:
        sleep(0.0001)  # before Python 3.13, `join` returns just before the thread ends


def _is_open(stream: Any) -> bool:
    try:
        return stream is None or not stream.closed
    except ValueError:  # it was detached from its buffer
        return False


def _stream_over(number: int, before: Any) -> Any:
    """Open a stream over a standard descriptor, like the one `before` that cannot be used any more."""
    stream: Any = open(  # noqa: SIM115 - it stays open
        number,
        "w" if number else "r",
        encoding=before.encoding,
        errors=before.errors,
        closefd=False,
    )
    stream.reconfigure(line_buffering=before.line_buffering, write_through=before.write_through)
    return stream
