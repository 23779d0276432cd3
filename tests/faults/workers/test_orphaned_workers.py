"""Workers whose engine's process dies."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from engine import Engine
from tests._kit.processes import state_of
from tests._kit.waits import OtherThread, until
from tests.faults.workers.losses import GRACE, kill, process_of

# 12: the engine's own process dies.


BUSY = """
import collections, itertools, os, signal, sys, threading, time
from engine import Engine

def turns_in_c():
    yield os.getpid()
    collections.deque(itertools.repeat(None), maxlen=0)

def heeds_nothing():
    signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 65))
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGPIPE, signal.SIGIO):
        signal.signal(number, signal.SIG_IGN)
    yield os.getpid()
    while True:
        try:
            time.sleep(600)
        except BaseException:
            pass

def is_stopped():
    yield os.getpid()
    os.kill(os.getpid(), signal.SIGSTOP)

def number():
    return os.getpid()

BODIES = [turns_in_c, heeds_nothing, is_stopped, turns_in_c]
"""


@pytest.mark.fault(12)
def test_workers_are_gone_within_two_seconds_of_their_engines_death_whatever_they_do(tmp_path: Path) -> None:
    """Each was started by a thread that has ended, and a forked child of the engine's process lives on."""
    script = (
        BUSY
        + """
muna = Engine(discover=False, workers=len(BODIES) + 1)
streams = [muna.predictions.stream(body, runner="process", prefetch=8) for body in BODIES]
pids = []
for stream in streams:
    thread = threading.Thread(target=lambda: pids.append(next(stream).value))
    thread.start()
    thread.join()
pids.append(muna.predictions.create(number, runner="process").value)  # idle
child = os.fork()
if not child:
    time.sleep(600)
print(child, *pids, flush=True)
sys.stdin.readline()
os.kill(os.getpid(), signal.SIGKILL)
"""
    )
    with subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdin is not None
        assert parent.stdout is not None
        child, *pids = map(int, parent.stdout.readline().split())
        try:
            assert len(set(pids)) == 5
            until(lambda: state_of(pids[2]) == "T", "one of them is stopped")
            assert [pid for pid in pids if state_of(pid) is None] == []
            parent.stdin.write("now\n")
            parent.stdin.flush()
            assert parent.wait(5.0) == -signal.SIGKILL
            moment = time.monotonic()
            until(lambda: all(state_of(pid) is None for pid in pids), "every worker is gone")
            assert time.monotonic() - moment < 2.0
            assert state_of(child) is not None
        finally:
            for pid in (child, *pids):
                with contextlib.suppress(ProcessLookupError):
                    kill(pid)


@pytest.mark.fault(12)
def test_a_worker_outlives_the_thread_that_started_it() -> None:
    with Engine(discover=False, workers=1, grace=GRACE) as muna:
        started: list[int] = []
        with OtherThread(lambda: started.append(process_of(muna))):
            pass
        for _ in range(3):
            assert process_of(muna) == started[0]
