"""The program a worker runs: it takes one command after the other, and runs predictors as an engine in-process would.

The main thread runs everything, so that signals reach the predictor: a sync body directly, an async one as a task of a
loop that the main thread runs, also while it waits for the next command. A second thread reads requests to stop.
Normaliser and owners are those of an engine in-process; only the channel differs, whose consumer is elsewhere.

SIGTERM, sent to a body that did not stop when asked, raises in it, so that its `finally` runs; the worker then ends.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import signal
import sys
from typing import TYPE_CHECKING, Any

from engine import _errors
from engine._records import become_worker
from engine._wire.segments import Segment
from engine._worker.host import Host, program_path
from engine._worker.outlet import Terminated
from engine._worker.pipes import Pipes
from engine._worker.process_state import ProcessState
from engine._worker.stop_reader import StopReader

if TYPE_CHECKING:
    from collections.abc import Sequence


def _hold_lifeline(lifeline: int) -> None:
    """End with the engine: the kernel sends SIGKILL when the other end closes, whatever this process does then."""
    if sys.platform == "linux":
        # The end of a pipe counts as input, for which O_ASYNC has the kernel send a signal: that needs no thread, which
        # C code of a predictor could keep from running.
        fcntl.fcntl(lifeline, fcntl.F_SETOWN, os.getpid())
        fcntl.fcntl(lifeline, fcntl.F_SETSIG, signal.SIGKILL)
        fcntl.fcntl(lifeline, fcntl.F_SETFL, fcntl.fcntl(lifeline, fcntl.F_GETFL) | os.O_ASYNC)
    poll = select.poll()
    poll.register(lifeline, select.POLLIN)
    if poll.poll(0):  # it was closed before the kernel was asked to tell
        os._exit(0)


def main(descriptors: Sequence[int], hello: dict[str, Any]) -> None:
    """Run a worker until it is told to exit, terminated, or its engine is gone."""
    import faulthandler

    calls, answers, stops, lifeline, inbound, outbound, report = descriptors
    for each in descriptors:
        os.set_inheritable(each, False)  # noqa: FBT003 - its only signature
    _hold_lifeline(lifeline)
    faulthandler.enable(report)
    become_worker()
    sys.argv[:] = hello["argv"]
    program_path.update(hello["path"])
    pipes = Pipes(calls, answers)
    host = Host(pipes, Segment(inbound), Segment(outbound), StopReader(stops, lifeline))
    _errors.diverted.append(host.log)
    os.register_at_fork(
        before=host.before_fork, after_in_parent=host.after_fork, after_in_child=host.after_fork_in_child
    )
    host.stop_reader.start()  # before the first command, which may be asked to stop at once
    try:
        host.install_handlers()
        host.serve(ProcessState(report))
    except Terminated:
        host.is_terminated = True
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # what the loop still runs may be ended at any point
    with contextlib.suppress(BaseException):
        host.loop.end(1.0)
    if host.is_terminated:  # its sender, and the engine, see in the exit status that SIGTERM ended the process
        os.kill(os.getpid(), signal.SIGTERM)
