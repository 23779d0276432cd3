"""One thread an engine that sees to its workers when nobody else does: stops, losses, ends, and idleness.

A call that was stopped climbs a ladder: its worker is asked; after the grace it gets SIGTERM, which raises in its main
thread so that `finally` can run; after the next it gets SIGKILL. The supervisor reads what the worker still says
meanwhile, reaps every process, closes what led to it, and ends idle ones. What is posted to it comes through a queue
that collectors and signal handlers may use.
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
_LONGEST_SLEEP: Final = 5.0  # seconds the thread sleeps before it looks again
_POLL_INTERVAL: Final = 0.1  # the same where the system does not tell of a process's end, or something is in the way
_EXIT_GRACE: Final = 0.5  # seconds a worker that closed its pipe has to end by itself
_MOST_TRIES: Final = 100  # times a reader may be in the way, each for a hundredth of a second
_KILL_TIMEOUT: Final = 5.0  # seconds after SIGKILL before a process that is still there is given up


@attrs.define(eq=False)
class _Case:
    """A worker that is to finish its call, or to end.

    Attributes:
        worker: the worker.
        wire: the call it still serves, if any.
        due: the monotonic time, in s, of the next rung.
        step: rungs climbed: 0 asked, 1 terminated, 2 killed, 3 given up.
        tries: times a reader was in the way.
    """

    worker: Worker
    inlet: Inlet | None
    due: float
    step: int = 0
    tries: int = 0


class Supervisor:
    """Sees to the workers of one pool.

    Args:
        pool: the pool; workers that end are taken out of it.
        grace: seconds from one rung of the ladder to the next.
        leave: has an idle worker tear down what it set up, and end.
    """

    def __init__(self, pool: Pool, grace: float, send_leave: Callable[[Worker], Inlet | None]) -> None:
        """Make a supervisor whose thread is started with the first worker."""
        self._pool = pool
        self._grace = grace
        self._send_leave = send_leave
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
        """See to a worker that was just started.

        Raises:
            EngineClosedError: the last of the others is gone already; this one is, too, then.
        """
        with self._starting:
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
            else:  # Ctrl-C, while its start was waited for
                self._thread = thread
            raise
        self._thread = thread  # now it can be waited for

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
        self._posted.put((function, argument))
        if self._writer >= 0:
            with suppress(OSError):  # it is woken already, or gone
                os.write(self._writer, b"\0")

    def escalate(self, inlet: Inlet) -> None:
        """A call was stopped, or its worker lost; takes no lock."""
        self.post(self._open_case, (inlet, inlet.worker))

    def close(self) -> None:
        """Have every worker finish and end; takes no lock, and waits for nothing."""
        self.post(self._close, None)

    def join(self, seconds: float) -> None:
        """Wait at most `seconds` until the last worker is gone."""
        thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join(seconds)

    @property
    def is_started(self) -> bool:
        """Whether there was ever a worker to see to."""
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
                except Exception as error:  # a defect of ours; but nobody else would see to the workers
                    warn("error while workers were seen to", error)
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
        with self._starting:
            self._is_over = self._posted.empty()
        return self._is_over

    def _poll(self) -> None:
        poll = select.poll()
        poll.register(self._reader, select.POLLIN)
        found: dict[int, Worker] = {}
        for worker in self._workers:
            if worker.exit_pipe >= 0:
                found[worker.exit_pipe] = worker
        for case in self._cases.values():
            if case.inlet is not None and case.inlet.worker is case.worker and not case.inlet.is_disconnected:
                found[case.worker.answers] = case.worker
        for descriptor in found:
            poll.register(descriptor, select.POLLIN)
        for descriptor, _ in poll.poll(self._timeout() * 1000):
            if descriptor == self._reader:
                with suppress(OSError):
                    os.read(self._reader, 4096)
        for worker in tuple(self._workers):
            if not worker.is_alive():
                self._reap(worker)

    def _timeout(self) -> float:
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
        if worker is None or inlet.worker is not worker:  # it is over, or served by another by now
            return
        if not inlet.is_sent:  # its sender asks again once it is, and finds out itself that the worker is gone
            return
        case = self._cases.get(worker)
        if worker not in self._workers:  # it was over before the call was sent
            inlet.settle_lost(worker)
        elif inlet.is_disconnected:  # it will end, or be killed
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
                del self._cases[worker]  # its call is over, and it may serve others
            elif monotonic() >= case.due:
                self._escalate_case(case)

    def _escalate_case(self, case: _Case) -> None:
        worker, inlet = case.worker, case.inlet
        if inlet is not None and inlet.worker is worker and not inlet.retire(worker):
            case.tries += 1
            if case.tries < _MOST_TRIES:
                return
            worker.is_retired = True  # a reader is stuck in what the worker sent
        case.step += 1
        case.due = monotonic() + (self._grace if case.step == 1 else _KILL_TIMEOUT)
        if case.step == 1:
            worker.signal(signal.SIGTERM)
        elif case.step == 2:  # noqa: PLR2004 - the second rung
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
        """A process is over: its call hears of it, and what led to it is closed."""
        inlet = worker.inlet
        if inlet is not None and inlet.is_sent:
            if not inlet.is_disconnected and not inlet.read_rest(worker):
                return  # a reader is in the way for a moment
            inlet.settle_lost(worker)
        self._workers.discard(worker)
        self._cases.pop(worker, None)
        self._pool.reap(worker)
        self._ended.append(worker)

    # Letting go

    def _retire_idle(self) -> None:
        now = monotonic()
        for worker in self._pool.retire(now if self._is_closing else now - IDLE):
            worker.is_retired = True
            try:
                inlet = self._send_leave(worker)
            except OSError:  # it is over already
                inlet = None
            self._cases[worker] = _Case(worker, inlet, now + self._grace)

    def _close(self, _nothing: None) -> None:
        self._is_closing = True
        for worker in self._workers:
            if worker.inlet is not None and worker not in self._cases:
                worker.inlet.request_stop()
