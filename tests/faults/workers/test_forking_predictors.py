"""Forks: of a program that has workers, and of predictors in them."""

from __future__ import annotations

import importlib
import logging
import multiprocessing
import os
import signal
import sys
import threading
import time
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from engine import Engine
from tests._kit.gates import FileGate
from tests._kit.processes import child_processes
from tests._kit.waits import OtherThread, until
from tests.faults.producers import forks, forks_and_stands, stands
from tests.faults.worker_bodies import KINDS, number_of_worker

GRACE = 0.5  # seconds; no test here needs more than the first rung


each_kind = pytest.mark.parametrize("kind", KINDS)


# 86, 87: forks.


@pytest.mark.fault(86)
def test_a_worker_starts_and_serves_while_other_threads_hold_the_locks_of_logging_and_of_an_import(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a bare fork would copy locked for ever: workers are programs of their own."""
    (tmp_path / "imported_slowly.py").write_text("import slow_gate\nslow_gate.wait()\n")
    reached, go = threading.Event(), threading.Event()

    def waits() -> None:
        reached.set()
        go.wait(10)

    def holds() -> None:
        with logging._lock:  # type: ignore[attr-defined]  # what a handler that writes holds
            importlib.import_module("imported_slowly")

    def logs() -> int:
        logging.getLogger("tests").error("from a worker")
        return os.getpid()

    logging.getLogger("engine")  # there already, as in any program that logs
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(sys.modules, "slow_gate", types.SimpleNamespace(wait=waits))
    with OtherThread(holds) as holding, Engine(discover=False, workers=1, grace=GRACE) as muna:
        assert reached.wait(10)
        pid = muna.predictions.create(logs, runner="process").value
        assert pid in child_processes()
        assert not holding.is_over
        go.set()
    sys.modules.pop("imported_slowly")


@pytest.mark.fault(87)
@each_kind
def test_a_predictor_that_forks_and_lets_both_go_on_speaks_with_one_voice(kind: str, lasting: Engine) -> None:
    """The copy of the worker ends as soon as it would speak for it; the worker itself serves on."""
    predictions = lasting.predictions
    pid = predictions.create(number_of_worker, runner="process").value
    for _ in range(3):
        got = list(predictions.stream(forks(kind), runner="process").values())
        assert got == ([0, 1, (pid, 1)] if kind in {"gen", "agen"} else [(pid, 1)])
    assert predictions.create(number_of_worker, runner="process").value == pid


@pytest.mark.fault(87)
def test_processes_that_a_predictor_forks_are_its_own(lasting: Engine) -> None:
    """They are not held by the engine's signals, nor do they hold up the loss of the worker."""

    def ends_a_process() -> Any:
        context = multiprocessing.get_context("fork")
        process = context.Process(target=time.sleep, args=(60,))
        process.start()
        process.terminate()
        process.join(10)
        with context.Pool(1) as pool:
            return process.exitcode, pool.map(abs, [-1, -2])

    assert lasting.predictions.create(ends_a_process, runner="process").value == (-signal.SIGTERM, [1, 2])


@pytest.mark.fault(87)
@pytest.mark.parametrize("is_main", [True, False], ids=["main thread", "another thread"])
def test_a_child_that_forks_again_has_no_thread_of_the_engines_and_takes_none_of_its_workers_requests(
    is_main: bool, tmp_path: Path
) -> None:
    gate = FileGate(tmp_path / "gate")

    def forks_twice() -> int:
        if not (child := os.fork()):
            if not (grandchild := os.fork()):
                os._exit(0)
            os.waitpid(grandchild, 0)
            os._exit(threading.active_count())
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

    def yields() -> Iterator[int]:
        found: list[int] = []
        if is_main:
            found.append(forks_twice())
        else:
            thread = threading.Thread(target=lambda: found.append(forks_twice()))
            thread.start()
            thread.join()
        yield found[0]
        gate.open()
        stands()

    with Engine(discover=False, workers=1, grace=10.0) as muna:
        with muna.predictions.stream(yields, runner="process", prefetch=2) as stream:
            assert next(stream).value == 1
            gate.wait()
        until(lambda: stream.outcome.rung is not None, "its worker has ended the call")
        assert stream.outcome.rung == "asked"


@pytest.mark.fault(87)
@each_kind
def test_a_predictor_that_forks_in_a_worker_is_warned_of_no_threads_but_its_own(kind: str, tmp_path: Path) -> None:
    """Those of the engine are gone meanwhile, and there again after it: the body is stopped as any other."""

    gate = FileGate(tmp_path / "gate")

    def leaves() -> None:
        gate.wait()
        stream.close()

    with Engine(discover=False, workers=1, grace=10.0) as muna:
        pid = muna.predictions.create(number_of_worker, runner="process").value
        with muna.predictions.stream(forks_and_stands(kind, gate), runner="process", prefetch=200) as stream:
            if kind in {"gen", "agen"}:
                assert [next(stream).value for _ in range(101)] == [*range(100), []]
            else:
                with OtherThread(leaves):
                    assert list(stream.values()) == []
        until(lambda: stream.outcome.rung is not None, "its worker has ended the call")
        assert stream.outcome.rung == "asked"
        assert muna.predictions.create(number_of_worker, runner="process").value == pid
