"""One thread an engine that supervises its workers: stops are escalated, losses noticed, processes reaped.

A stopped call's worker is asked first; after the grace it gets SIGTERM, which raises in its main thread so that
`finally` can run; after another grace it gets SIGKILL. The supervisor reads what the worker still sends meanwhile. Work
is posted to it through a queue that collectors and signal handlers may use.
"""

from __future__ import annotations

import os
import select
import signal
import threading
from contextlib import suppress
from queue import SimpleQueue
from time import monotonic, sleep
from typing import TYPE_CHECKING, Any, Final

import attrs

from engine._errors import EngineClosedError, warn
from engine.runners.base import DaemonThread

if TYPE_CHECKING:
    from collections.abc import Callable

    from engine.runners.process.inlet import Inlet
    from engine.runners.process.pool import Pool
    from engine.runners.process.worker import Worker

IDLE: Final = 60.0  # seconds a worker is kept without a call
_LONGEST_SLEEP: Final = 5.0  # seconds the thread sleeps at most
_POLL_INTERVAL: Final = 0.1  # seconds it sleeps where no descriptor tells of a process's end, or a close has to wait
_EXIT_GRACE: Final = 0.5  # seconds a worker that closed its pipe has to end by itself
_MOST_TRIES: Final = 100  # times the supervisor waits for a reader to leave the pipe, 0.01 s each
_KILL_TIMEOUT: Final = 5.0  # seconds after SIGKILL before a process that is still there is given up


@attrs.define(eq=False)
class _Case:
    """A worker that has to finish its call, or to end, by a deadline.

    Attributes:
        worker: the worker.
        inlet: the call it still serves, if any.
        due: the monotonic time, in s, of the next step.
        step: how far it was escalated: 0 asked, 1 terminated, 2 killed, 3 given up.
        tries: times the next step waited for a reader to leave the pipe.
    """

    worker: Worker
    inlet: Inlet | None
    due: float
    step: int = 0
    tries: int = 0


class Supervisor:
    """Supervises the workers of one pool.

    Args:
        pool: the pool; workers that end are taken out of it.
        grace: seconds from one step of an escalation to the next.
        send_exit: has an idle worker tear down what it set up, and end.
    """

    def __init__(self, pool: Pool, grace: float, send_exit: Callable[[Worker], Inlet | None]) -> None:
        """Make a supervisor whose thread is started with the first worker."""
        self._pool = pool
        self._grace = grace
        self._send_exit = send_exit
        self._posted: SimpleQueue[tuple[Callable[..., None], Any]] = SimpleQueue()
        self._workers: set[Worker] = set()
        self._cases: dict[Worker, _Case] = {}
        self._ended: list[Worker] = []  # to be closed once no event loop watches them
        self._reader = self._writer = -1
        self._thread: threading.Thread | None = None
        self._starting = threading.Lock()
        self._is_closing = False
        self._is_over = False

    # From anywhere

    def watch(self, worker: Worker) -> None:
        """Supervise a worker that was just started.

        Raises:
            EngineClosedError: the supervisor has ended, with the last of the others; the worker is killed then.
        """
        with self._starting:  # `_is_done` decides under this lock, too: none is posted to a thread that ends
            if self._is_over:
                worker.kill()
                raise EngineClosedError
            if self._thread is None:
                self._begin()
        self.post(self._add, worker)

    def _begin(self) -> None:
        """Start the thread; where there is none to be had, no pipe to it is left."""
        thread = DaemonThread(self._run, "engine-supervisor")
        self._open_pipe()
        try:
            thread.start()
        except BaseException:
            if thread.withdraw():
                self._close_pipe()
            else:  # Ctrl-C came while this thread waited for it to begin: it runs
                self._thread = thread
            raise
        self._thread = thread  # from here on it can be joined

    def _open_pipe(self) -> None:
        self._reader, self._writer = os.pipe()
        os.set_blocking(self._reader, False)
        os.set_blocking(self._writer, False)

    def _close_pipe(self) -> None:
        reader, writer = self._reader, self._writer
        self._reader = self._writer = -1
        for each in (reader, writer):
            if each >= 0:
                os.close(each)

    def post(self, function: Callable[..., None], argument: Any) -> None:
        """Have the thread call `function(argument)`; takes no lock."""
        self._posted.put((function, argument))  # first: a thread that is woken finds it
        if self._writer >= 0:
            with suppress(OSError):  # the pipe is full, so that it is woken already, or was closed just now
                os.write(self._writer, b"\0")

    def escalate(self, inlet: Inlet) -> None:
        """Supervise how a stopped call ends, or how the worker of one ended; takes no lock."""
        # The worker of now: the call may be another worker's before the thread opens its case.
        self.post(self._open_case, (inlet, inlet.worker))

    def close(self) -> None:
        """Have every worker finish and end; takes no lock, and waits for nothing."""
        self.post(self._close, None)

    def join(self, seconds: float) -> None:
        """Wait at most `seconds` until the last worker is reaped."""
        thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join(seconds)

    @property
    def is_started(self) -> bool:
        """Whether there was ever a worker to supervise."""
        return self._thread is not None

    def after_fork(self) -> None:
        """Have, in a forked child, no worker and no thread: they are the parent's."""
        for worker in (*self._workers, *self._ended):
            worker.after_fork()
        self._close_pipe()

    # In the thread

    def _run(self) -> None:
        try:
            while not self._is_done():
                try:
                    self._turn()
                except Exception as error:  # a defect of the engine; without this thread no worker would be reaped
                    warn("error while workers were supervised", error)
                    sleep(_POLL_INTERVAL)
        finally:
            self._close_pipe()

    def _turn(self) -> None:
        self._poll()
        self._do_posted()
        self._escalate()
        self._retire_idle()
        self._ended = [each for each in self._ended if not each.close()]

    def _is_done(self) -> bool:
        if not self._is_closing or self._workers or self._ended or self._pool.is_starting:
            return False
        with self._starting:  # no worker is handed to `watch` in between, and none after
            self._is_over = self._posted.empty()
        return self._is_over

    def _poll(self) -> None:
        poll = select.poll()
        for descriptor in (self._reader, *self._watched()):
            poll.register(descriptor, select.POLLIN)
        for descriptor, _ in poll.poll(self._timeout() * 1000):
            if descriptor == self._reader:
                with suppress(OSError):
                    os.read(self._reader, 4096)
        for worker in tuple(self._workers):
            if not worker.is_alive():
                self._reap(worker)

    def _watched(self) -> set[int]:
        """The descriptors that tell of a process's end, or of an answer that this thread has to read."""
        found = {worker.exit_pipe for worker in self._workers if worker.exit_pipe >= 0}
        for case in self._cases.values():
            if case.inlet is not None and case.inlet.worker is case.worker and not case.inlet.is_disconnected:
                found.add(case.worker.answers)
        return found

    def _timeout(self) -> float:
        """Seconds this thread may sleep."""
        dues = [case.due for case in self._cases.values()]
        dues += [each.idle_since + IDLE for each in self._pool.workers if each.lease is None]
        left = min(dues, default=_LONGEST_SLEEP + monotonic()) - monotonic()
        is_blind = any(each.exit_pipe < 0 for each in self._workers)
        is_blind = is_blind or (self._is_closing and self._pool.is_starting)
        return max(0.0, min(left, _POLL_INTERVAL if self._ended or is_blind else _LONGEST_SLEEP))

    def _do_posted(self) -> None:
        while not self._posted.empty():
            function, argument = self._posted.get()
            function(argument)

    def _add(self, worker: Worker) -> None:
        self._workers.add(worker)

    def _open_case(self, call: tuple[Inlet, Worker | None]) -> None:
        inlet, worker = call
        if worker is None or inlet.worker is not worker:  # the call is over, or served by another worker by now
            return
        if not inlet.is_sent:  # its sender requests the stop again once it is, and notices itself that a worker is lost
            return
        case = self._cases.get(worker)
        if worker not in self._workers:  # it was reaped before the call was sent
            inlet.settle_lost(worker)
        elif inlet.is_disconnected:
            # It has closed its pipes, so that it ends by itself, or is killed without being terminated first.
            self._cases[worker] = _Case(worker, inlet, monotonic() + _EXIT_GRACE, 1 if case is None else case.step)
            worker.is_retired = True
        elif case is None or case.inlet is not inlet:
            self._cases[worker] = _Case(worker, inlet, monotonic() + self._grace)

    def _escalate(self) -> None:
        for case in tuple(self._cases.values()):
            inlet, worker = case.inlet, case.worker
            if inlet is not None and inlet.worker is worker and not inlet.is_disconnected:
                inlet.read_rest(worker)
            if inlet is not None and inlet.worker is not worker and not worker.is_retired:
                del self._cases[worker]  # its call is over, and it serves others
            elif monotonic() >= case.due:
                self._escalate_case(case)

    def _escalate_case(self, case: _Case) -> None:
        worker, inlet = case.worker, case.inlet
        # Retired before it is signalled, while no consumer reads: else a call that ends just now would release a worker
        # that is about to be killed, and the next call would get it.
        if inlet is not None and inlet.worker is worker and not inlet.retire(worker):
            case.tries += 1
            if case.tries < _MOST_TRIES:
                return
            worker.is_retired = True  # a reader is stuck in rebuilding what the worker sent
        case.step += 1
        case.due = monotonic() + (self._grace if case.step == 1 else _KILL_TIMEOUT)
        if case.step == 1:
            worker.signal(signal.SIGTERM)
        elif case.step == 2:  # noqa: PLR2004 - as `_Case.step` tells
            worker.signal(signal.SIGKILL)
            if inlet is not None and inlet.is_disconnected:
                inlet.reason = inlet.reason or "it closed its pipes, and was killed"
        else:
            warn(f"worker {worker.pid} is still there {_KILL_TIMEOUT:.0f} s after it was killed; it is given up")
            self._reap(worker)
            return
        if inlet is not None and inlet.worker is worker and inlet.stop:
            inlet.rung = "terminated" if case.step == 1 else "killed"

    def _reap(self, worker: Worker) -> None:
        """Settle the call of a process that is over, and close what led to it."""
        inlet = worker.inlet
        if inlet is not None and inlet.is_sent:
            if not inlet.is_disconnected and not inlet.read_rest(worker):
                return  # a reader has to leave the pipe first; this is called again
            inlet.settle_lost(worker)
        self._workers.discard(worker)
        self._cases.pop(worker, None)
        self._pool.reap(worker)
        self._ended.append(worker)

    # Retiring

    def _retire_idle(self) -> None:
        now = monotonic()
        for worker in self._pool.retire(now if self._is_closing else now - IDLE):
            worker.is_retired = True  # the pool has taken it out already, under its lock: no call can lease it
            try:
                inlet = self._send_exit(worker)
            except OSError:  # its process is over already, and will be reaped
                inlet = None
            self._cases[worker] = _Case(worker, inlet, now + self._grace)

    def _close(self, _nothing: None) -> None:
        self._is_closing = True
        for worker in self._workers:
            if worker.inlet is not None and worker not in self._cases:
                worker.inlet.request_stop()
