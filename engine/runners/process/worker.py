"""One worker as its engine sees it: a process, its pipes, its shared memory, and what it has loaded.

Workers are a program of our own, `engine._worker`, started by the interpreter that runs here. Four pipes join them:
calls go down one and answers come up another, requests to stop have one of their own, and nothing is ever written to
the lifeline, whose end tells a worker that its engine has ended.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import signal
import termios
import threading
from array import array
from collections import OrderedDict, deque
from time import monotonic
from typing import TYPE_CHECKING, Any, Final

from engine._wire import nonblocking
from engine._wire.by_reference import add_worker, remove_worker
from engine._wire.frames import Decoder, pack_stop
from engine._wire.segments import Segment

if TYPE_CHECKING:
    import asyncio
    import subprocess
    from collections.abc import Collection, Mapping, Sequence

    from engine._wire.frames import Chunk
    from engine.runners.slots import Lease

MOST_KNOWN: Final = 256  # predictors one worker keeps; beyond, those used longest ago are evicted
_REPORT: Final = 8_192  # characters of a crash report
_KILL_TIMEOUT: Final = 5.0  # seconds that the end of a killed process is waited for


class Worker:
    """A process that runs predictors, one call at a time.

    Attributes:
        pid: its process id.
        lease: what the call holds it by that it serves, or that it was granted to; `None` while it is free.
        inlet: the channel of that call, once there is one.
        idle_since: the monotonic time, in s, since when it is free.
        known: keys of the predictors it has, those used last at the end.
        set_up: keys of the class predictors that are set up in it.
        decoder: what makes frames of the bytes that come from it.
        inbound: shared memory that it reads.
        outbound: shared memory that it writes.
        calls: number of the last call or request it was given.
        path: the `sys.path` it was told last.
        to_evict: keys of predictors that it has to evict before its next call.
        unsent: what its pipe did not take yet.
        is_retired: whether it was told to end, so that it serves no more calls.
        is_new: whether it was just started, and its pool does not have it yet.
        is_closed: whether its descriptors are closed, but for those that an event loop still watches.
        calls_pipe: descriptor of the pipe that brings it calls, credit and requests.
        answers: descriptor of the pipe that brings its answers.
        stops_pipe: descriptor of the pipe that brings it requests to stop.
        report: descriptor of what it writes a crash report to.
        exit_pipe: descriptor that is readable once the process is over; -1 where the system has no such thing.
        wake_reader: descriptor that is readable once the reader of its answers was woken.
        wake_writer: descriptor that wakes that reader.
        poll: waits for its answers, and to be woken.
        registrations: which inlet each event loop that watches its pipes reads for.
    """

    __slots__ = (
        "__weakref__",
        "_descriptors",
        "_is_reaped_elsewhere",
        "_process",
        "_segments",
        "_sending",
        "answers",
        "calls",
        "calls_pipe",
        "decoder",
        "exit_pipe",
        "idle_since",
        "inbound",
        "inlet",
        "is_closed",
        "is_new",
        "is_retired",
        "known",
        "lease",
        "outbound",
        "path",
        "pid",
        "poll",
        "registrations",
        "report",
        "set_up",
        "stops_pipe",
        "to_evict",
        "unsent",
        "wake_reader",
        "wake_writer",
    )

    def __init__(self, process: subprocess.Popen[bytes], descriptors: Mapping[str, int]) -> None:
        """Take charge of a process that was just started, and of the descriptors that lead to it."""
        self._process = process
        self._is_reaped_elsewhere = False
        self.pid = process.pid
        add_worker(self)
        self.lease: Lease | None = None
        self.inlet: Any = None  # an `Inlet`, whose module imports this one
        self.idle_since = monotonic()
        self.known: OrderedDict[int, str] = OrderedDict()
        self.set_up: set[int] = set()
        self.to_evict: list[int] = []
        self.decoder = Decoder()
        self.calls = 0
        self.path: list[str] = []
        self.is_retired = False
        self.is_closed = False
        self.is_new = True
        self.calls_pipe = descriptors["calls"]
        self.answers = descriptors["answers"]
        self.stops_pipe = descriptors["stops"]
        self.report = descriptors["report"]
        self.wake_reader = descriptors["wake_reader"]
        self.wake_writer = descriptors["wake_writer"]
        self.exit_pipe = descriptors["exit"]
        self.inbound = Segment(descriptors["inbound"])
        self.outbound = Segment(descriptors["outbound"])
        self._descriptors = [each for each in descriptors.values() if each >= 0]
        self.unsent: deque[memoryview] = deque()
        self._sending = threading.Lock()
        self.poll = select.poll()  # for the reader of its answers
        self.poll.register(self.answers, select.POLLIN)
        self.poll.register(self.wake_reader, select.POLLIN)
        self.registrations: dict[asyncio.AbstractEventLoop, object] = {}

    # Its life

    def is_alive(self) -> bool:
        """Whether the process still runs; one that ended is reaped."""
        # `waitid` looks without reaping, so that a process that was reaped by other code is told from one that ended.
        if self._process.returncode is None and hasattr(os, "waitid"):
            try:
                if os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
                    return True
            except ChildProcessError:  # reaped by other code: `subprocess` takes that for a clean end
                self._is_reaped_elsewhere = True
        return self._process.poll() is None

    def wait(self, seconds: float) -> bool:
        """Wait at most `seconds` for the process to end; tell whether it has."""
        import subprocess

        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(seconds)
        return self._process.returncode is not None

    def signal(self, number: int) -> None:
        """Send a signal, unless the process has ended."""
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(number)

    def exit_reason(self) -> str:
        """The exit code, or the name of the signal that ended it."""
        code = self._process.returncode
        if code is None:
            return "it does not answer"
        if code == 0 and (self._is_reaped_elsewhere or signal.getsignal(signal.SIGCHLD) is signal.SIG_IGN):
            return "how it ended is not known, for this program ignores SIGCHLD or reaps every child itself"
        if code >= 0:
            return f"exit code {code}"
        try:
            return signal.Signals(-code).name
        except ValueError:
            return f"signal {-code}"

    def crash_report(self) -> str:
        """What the interpreter wrote when the process crashed, if it did."""
        try:
            text = os.pread(self.report, 4 * _REPORT, 0)
        except OSError:
            return ""
        return _arranged(text.decode(errors="replace").strip())[:_REPORT].rstrip()

    def close(self) -> bool:
        """Close what led to a process that is over; tell whether that could be done, or a call is about to be sent.

        An event loop that still watches the pipes keeps these until it turns again and calls `unwatched`.
        """
        if self.is_new or self.lease is not None or self.inlet is not None:
            return False
        watched = () if self._is_unwatched() else (self.answers, self.calls_pipe)
        self._close([each for each in self._descriptors if each not in watched])
        return True

    def _is_unwatched(self) -> bool:
        for loop in tuple(self.registrations):
            if loop.is_closed():
                self.registrations.pop(loop, None)
        return not self.registrations

    def unwatched(self) -> None:
        """Close the pipes of a process that is over, once no event loop watches them any more."""
        if self.is_closed and self._is_unwatched():
            self._close(self._descriptors)

    def _close(self, descriptors: Sequence[int]) -> None:
        self.is_closed = True
        remove_worker(self)
        self.inbound.close()
        self.outbound.close()
        # A collector or another thread may still be about to use one: the number must not lead to a file opened later.
        for name in ("stops_pipe", "wake_writer", "wake_reader", "calls_pipe", "answers"):
            if getattr(self, name) in descriptors:
                setattr(self, name, -1)
        for each in tuple(descriptors):
            with contextlib.suppress(ValueError, OSError):
                self._descriptors.remove(each)  # one atomic operation: the thread that takes it out closes it
                os.close(each)

    def kill(self) -> None:
        """Kill a process that serves no call, wait for its end, and close what led to it."""
        self.signal(signal.SIGKILL)
        self.wait(_KILL_TIMEOUT)
        self._close(self._descriptors)

    def after_fork(self) -> None:
        """Close only this copy of what leads to the process, which is the parent's."""
        self._process.returncode = 0  # or its finaliser would wait for a child that is not ours
        self._close(self._descriptors)

    # Its pipes

    def send(self, chunks: Sequence[Chunk]) -> bool:
        """Write as much as the pipe takes now, and keep the rest; tell whether nothing is left.

        Raises:
            BrokenPipeError: the worker has ended, and has not read all of it.
        """
        with self._sending:  # a credit must not come between two parts of a command
            if len(chunks) == 1 and not self.unsent:  # the fast path: one small frame, and room for it
                frame = chunks[0]
                try:
                    written = os.write(self.calls_pipe, frame)
                except BlockingIOError:
                    written = 0
                if written == len(frame):
                    return True
                # A pipe takes less of what is longer than its atomic size: the rest follows, in this order.
                chunks = [memoryview(frame)[written:]]
            try:
                return nonblocking.write(self.calls_pipe, chunks, self.unsent)
            except BrokenPipeError:
                self.unsent.clear()
                raise

    @property
    def is_untried(self) -> bool:
        """Whether what it does now is the first command it was given."""
        return self.calls <= 1

    def unread(self) -> int:
        """Bytes that were sent and that it has not read; 0 where the system does not tell."""
        found = array("i", [0])
        with contextlib.suppress(OSError):
            fcntl.ioctl(self.calls_pipe, termios.FIONREAD, found)
        return found[0] + sum(view.nbytes for view in tuple(self.unsent))

    def ask_to_stop(self, number: int) -> None:
        """Ask it to stop a call; takes no lock, so that a collector or a signal handler may do it."""
        frame = pack_stop(number)
        with contextlib.suppress(OSError):  # it has ended, or the pipe is full of requests that it has not read
            os.write(self.stops_pipe, frame)

    def wake(self) -> None:
        """Wake the thread that waits for its answers; takes no lock."""
        with contextlib.suppress(OSError):  # it is woken already
            os.write(self.wake_writer, b"\0")

    def clear_wake(self) -> None:
        """Read what `wake` wrote, so that the next wait sleeps."""
        with contextlib.suppress(OSError):
            os.read(self.wake_reader, 4096)

    # The predictors it has

    def lacks(self, key: int) -> tuple[bool, tuple[int, ...]]:
        """Whether it lacks a predictor that it is about to use, and which ones it has to evict; notes nothing yet."""
        evicted = list(self.to_evict)
        is_new = key not in self.known or key in evicted
        others = [each for each in self.known if each not in evicted and each != key]
        if len(others) >= MOST_KNOWN:
            evicted += [each for each in others if each not in self.set_up][:1]
        return is_new, tuple(evicted)

    def note_known(self, key: int, tag: str, evicted: Collection[int]) -> None:
        """Note what it has once it has read the command sent now: a predictor, and no longer those `evicted`."""
        for each in evicted:
            self.evict(each)
            with contextlib.suppress(ValueError):  # one that makes room for this
                self.to_evict.remove(each)
        self.known[key] = tag
        self.known.move_to_end(key)

    def evict(self, key: int) -> None:
        """Note that it does not have a predictor, or need not keep it."""
        self.known.pop(key, None)
        self.set_up.discard(key)


def _arranged(report: str) -> str:
    """Put the thread first that crashed, and leave out the one that reads requests to stop."""
    headline, *rest = report.split("\n\n")
    rest = [each for each in rest if not (each.startswith("Thread ") and "stop_reader.py" in each)]
    rest.sort(key=lambda each: not each.startswith("Current thread "))  # the others keep their order
    return "\n\n".join([headline, *rest])
