"""Ways to lose a worker, and to see what became of it."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import Any

import pytest

from engine import Engine
from engine.runners.process.worker import Worker
from tests.faults.worker_bodies import number_of_worker

GRACE = 10.0  # seconds; no test here is about the ladder


each_consumer = pytest.mark.parametrize("consumer", ["sync", "asyncio"])


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)


def process_of(muna: Engine) -> int:
    """The worker that serves the next call."""
    pid: int = muna.predictions.create(number_of_worker, runner="process").value
    return pid


def once_sending(monkeypatch: pytest.MonkeyPatch, action: Callable[[Worker], object]) -> None:
    """Kill the worker that the next call is about to be sent to, and do something before it is."""
    send = Worker.send

    def send_too_late(worker: Worker, chunks: Any) -> bool:
        monkeypatch.setattr(Worker, "send", send)
        worker.signal(signal.SIGKILL)
        assert worker.wait(GRACE)
        action(worker)
        return send(worker, chunks)

    monkeypatch.setattr(Worker, "send", send_too_late)
