"""What is told of workers: what they warn of, who has one that is waited for, and how one ended that another reaped."""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import engine.runners.slots
from engine import Engine, WorkerLostError
from tests._kit.waits import TIMEOUT


def test_what_the_engine_in_a_worker_warns_of_is_in_the_log_of_the_engine_here(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def leave_a_stream_with_a_fault() -> int:
        def spoilt() -> Iterator[int]:
            try:
                yield 1
            finally:
                raise OSError("in clean-up")

        with Engine(discover=False) as inner:
            stream = inner.predictions.stream(spoilt)
            next(stream)
            stream.cancel()
        return os.getpid()

    with caplog.at_level(logging.WARNING, logger="engine"), Engine(discover=False, workers=1) as muna:
        pid = muna.predictions.create(leave_a_stream_with_a_fault, runner="process").value
    [told] = [record.getMessage() for record in caplog.records]
    assert told.startswith(f"worker {pid}: error while a stream was being cancelled: OSError: in clean-up")


def test_a_call_that_waits_long_for_a_worker_says_who_has_it(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine.runners.slots, "_LONG_WAIT", 0.05)
    told = threading.Event()

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            told.set()

    listener = Listener()
    logging.getLogger("engine").addHandler(listener)
    try:
        with caplog.at_level(logging.WARNING, logger="engine"), Engine(discover=False, workers=1) as muna:
            with muna.predictions.stream(forever, runner="process") as stream:
                next(stream)
                waiting = threading.Thread(target=muna.predictions.create, args=(one,), kwargs={"runner": "process"})
                waiting.start()
                assert told.wait(TIMEOUT)
            waiting.join(TIMEOUT)
    finally:
        logging.getLogger("engine").removeHandler(listener)
    [message] = {record.getMessage() for record in caplog.records}
    assert message == (
        f"the only worker has been waited for during 0 s; held by the open prediction {stream.tag} {stream.id}; if "
        "that is too long, let the engine have more of them: Engine(workers=...)"
    )


def forever() -> Iterator[int]:
    while True:
        yield 1


def one() -> int:
    return 1


def is_killed() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def ignore(monkeypatch: pytest.MonkeyPatch) -> Callable[[], object]:
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    return lambda: signal.signal(signal.SIGCHLD, before)


def reap_first(monkeypatch: pytest.MonkeyPatch) -> Callable[[], object]:
    waitid = os.waitid

    def reap(kind: int, number: int, options: int) -> Any:
        found = waitid(kind, number, options)
        if found is not None:
            os.waitpid(number, 0)
            return waitid(kind, number, options)
        return None

    monkeypatch.setattr(os, "waitid", reap)
    return monkeypatch.undo


@pytest.mark.parametrize("elsewhere", [ignore, reap_first])
def test_where_another_reaps_a_killed_worker_its_loss_does_not_claim_an_exit_code(
    elsewhere: Callable[[pytest.MonkeyPatch], Callable[[], object]], monkeypatch: pytest.MonkeyPatch
) -> None:
    with Engine(discover=False, workers=1) as muna:
        undo = elsewhere(monkeypatch)
        try:
            with pytest.raises(WorkerLostError) as raised:
                muna.predictions.create(is_killed, runner="process")
        finally:
            undo()
        assert raised.value.reason.startswith("how it ended is not known, for this program ignores SIGCHLD")
