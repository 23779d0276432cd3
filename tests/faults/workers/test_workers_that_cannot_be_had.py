"""Workers that end as they start, or cannot be started at all."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from engine import Engine, EngineError, Predictor, WorkerLostError
from engine.runners.process import runner as process
from engine.runners.process.spawn import start_worker
from engine.runners.process.worker import Worker
from tests._kit.internals import leases_of, pool_of, worker_of, workers_of
from tests._kit.processes import child_processes, open_descriptors, state_of
from tests._kit.waits import OtherThread, until
from tests.faults.conftest import Cell
from tests.faults.worker_bodies import number_of_worker, numbers_after_worker
from tests.faults.workers.losses import GRACE, each_consumer, kill, once_sending, process_of

if TYPE_CHECKING:
    from tests.faults.conftest import Consumer


# 10, 11: workers that cannot be had.


@pytest.mark.fault(10)
def test_a_predictor_whose_import_ends_the_worker_costs_each_call_one_worker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "deadly_import.py").write_text("import os\nos._exit(3)\n")
    monkeypatch.syspath_prepend(tmp_path)
    with Engine([Predictor("@tests/deadly", "deadly_import:predict")], discover=False, workers=1) as muna:
        started = counted(monkeypatch)
        for calls in range(1, 4):
            with pytest.raises(WorkerLostError, match="exit code 3"):
                muna.predictions.create("@tests/deadly", runner="process")
            assert len(started) == calls
        assert process_of(muna) in child_processes()


@pytest.mark.fault(10)
@pytest.mark.parametrize("is_seen", [False, True], ids=["told-first", "dead-first"])
def test_workers_that_end_as_they_start_are_an_error_of_each_call_and_never_a_loop(
    is_seen: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An interpreter that is broken; its end may be seen before the call is sent, or after."""
    broken = tmp_path / "python"
    broken.write_text("#!/bin/sh\nexit 9\n")
    broken.chmod(0o755)
    with Engine(discover=False, workers=1, grace=GRACE) as muna:
        with monkeypatch.context() as patched:
            patched.setattr(sys, "executable", str(broken))
            started = counted(patched, wait=is_seen)
            for calls in range(1, 4):
                with pytest.raises(EngineError, match="exit code 9"):
                    muna.predictions.create(number_of_worker, runner="process")
                assert len(started) <= 5 * calls
        assert process_of(muna) in child_processes()


def counted(monkeypatch: pytest.MonkeyPatch, *, wait: bool = False) -> list[Worker]:
    """Count the workers that are started; with `wait` each is over before it is used."""
    started: list[Worker] = []

    def start_and_count(*args: Any) -> Worker:
        if len(started) == 50:
            raise AssertionError("workers are started without end")
        worker = start_worker(*args)
        started.append(worker)
        if wait:
            worker.wait(5.0)
        return worker

    monkeypatch.setattr(process, "start_worker", start_and_count)
    return started


@pytest.mark.fault(11)
@each_consumer
def test_a_worker_that_cannot_be_started_fails_its_call_alone_and_leaves_nothing(
    consumer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    predictor = Predictor("@tests/single", number_of_worker, concurrency=1)
    popen = subprocess.Popen

    def no_process(*args: Any, **options: Any) -> Any:
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    async def scenario(consumer: Consumer) -> None:
        left: list[Any] = []
        for _ in range(3):
            with pytest.raises(BlockingIOError):
                await consumer.create(predictor)
            left.append((open_descriptors(), child_processes()))
        assert left[0] == left[1] == left[2]
        monkeypatch.setattr(sys, "executable", "/nonexistent/python")
        monkeypatch.setattr(subprocess, "Popen", popen)
        with pytest.raises(FileNotFoundError, match="nonexistent") as raised:
            await consumer.create(predictor)
        assert "sys.executable" in raised.value.__notes__[0]
        monkeypatch.setattr(sys, "executable", "")
        with pytest.raises(EngineError, match=r"sys\.executable names none"):
            await consumer.create(predictor)
        monkeypatch.undo()
        assert left[2] == (open_descriptors(), child_processes())
        assert (await consumer.create(predictor)).value in child_processes()  # slot and place are free

    monkeypatch.setattr(subprocess, "Popen", no_process)
    Cell("def", consumer, "process").run(scenario, workers=1, grace=GRACE)


@pytest.mark.fault(11)
@each_consumer
def test_a_call_that_waits_while_a_worker_starts_is_served_by_another_that_is_free_first(
    consumer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    is_begun, may_end = threading.Event(), threading.Event()
    pids: list[int] = []

    def fail_late(*_args: Any) -> Worker:
        is_begun.set()
        assert may_end.wait(GRACE)
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    with Engine(discover=False, workers=2, grace=GRACE) as muna:
        pool = pool_of(muna)

        def call() -> None:
            if consumer == "sync":
                pids.append(process_of(muna))
            else:
                pids.append(asyncio.run(muna.predictions.acreate(number_of_worker, runner="process")).value)

        stream = muna.predictions.stream(numbers_after_worker, runner="process")
        pid = next(stream).value
        with monkeypatch.context() as patched:
            patched.setattr(process, "start_worker", fail_late)
            with OtherThread(call):
                assert is_begun.wait(GRACE)
                stream.close()
            assert (pids, pool.is_starting) == ([pid], True)
            may_end.set()
            pool.join(GRACE)
        assert [each.pid for each in pool.workers] == [pid]
        stream = muna.predictions.stream(numbers_after_worker, runner="process")
        assert next(stream).value == pid
        assert process_of(muna) in child_processes() - {pid}
        stream.close()


def is_moved_unsent(muna: Engine, monkeypatch: pytest.MonkeyPatch, trouble: Callable[[], None]) -> None:
    """A call finds out that its worker died while idle."""
    process_of(muna)
    once_sending(monkeypatch, lambda _worker: trouble())
    process_of(muna)


def is_moved_unread(muna: Engine, monkeypatch: pytest.MonkeyPatch, trouble: Callable[[], None]) -> None:
    """The supervisor finds out that a worker died before it read its call."""
    pid = process_of(muna)
    worker = worker_of(muna)
    os.kill(pid, signal.SIGSTOP)
    until(lambda: state_of(pid) == "T", "it is stopped")

    def kill_once_told() -> None:
        until(worker.unread, "the order is sent")
        trouble()
        kill(pid)

    with OtherThread(kill_once_told):
        process_of(muna)


def is_described(muna: Engine, monkeypatch: pytest.MonkeyPatch, trouble: Callable[[], None]) -> None:
    trouble()
    muna.predictors.register("@tests/described", "tests.faults.worker_bodies:number_of_worker", runner="process")
    muna.predictions.create("@tests/described")


@pytest.mark.fault(11)
@pytest.mark.parametrize("scenario", [is_moved_unsent, is_moved_unread, is_described])
def test_where_no_worker_can_be_started_for_a_call_under_way_it_fails_and_the_next_works(
    scenario: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    popen = subprocess.Popen

    def no_process(*args: Any, **options: Any) -> Any:
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    with Engine(discover=False, workers=1, grace=GRACE) as muna:
        with pytest.raises(BlockingIOError):
            scenario(muna, monkeypatch, lambda: monkeypatch.setattr(subprocess, "Popen", no_process))
        monkeypatch.setattr(subprocess, "Popen", popen)
        assert (leases_of(muna), workers_of(muna)) == ((), ())
        assert process_of(muna) in child_processes()
