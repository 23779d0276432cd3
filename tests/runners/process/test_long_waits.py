"""What is logged of a long wait for a worker, and what is not."""

from __future__ import annotations

import re
import threading
from collections import Counter
from typing import Any

import pytest

import engine.runners.slots
from engine.runners.process.pool import Pool
from tests._kit.internals import REFUSAL_BY_A_POOL
from tests._kit.waits import begun, in_other_thread, until
from tests.runners.process.pool_of_fakes import Scene, each_way, taking

pytestmark = pytest.mark.usefixtures("looks_only_when_woken")


@each_way
def test_a_long_wait_for_a_start_alone_is_not_logged_as_if_a_call_had_the_worker(
    way: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: Counter[int] = Counter()
    refuse = REFUSAL_BY_A_POOL.now

    def count_looks(self: Pool, waiter: Any) -> None:
        looks[id(self)] += 1
        refuse(self, waiter)

    monkeypatch.setattr(engine.runners.slots, "_LONG_WAIT", 0.0)
    REFUSAL_BY_A_POOL.replace(monkeypatch, count_looks)
    scene = Scene.of(1)
    scene.fakes.gate = threading.Event()
    call = taking(scene, way)
    until(lambda: looks[id(scene.pool)] > 3)
    scene.fakes.gate.set()
    call.join()
    assert caplog.text == ""


def test_of_all_that_wait_long_for_a_worker_one_is_logged_until_none_waits_any_more(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: Counter[int] = Counter()
    refuse = REFUSAL_BY_A_POOL.now

    def count_looks(self: Pool, waiter: Any) -> None:
        looks[id(waiter)] += 1
        refuse(self, waiter)

    monkeypatch.setattr(engine.runners.slots, "_LONG_WAIT", 0.0)
    REFUSAL_BY_A_POOL.replace(monkeypatch, count_looks)
    scene = Scene.of(2)
    for seen in (1, 2):
        held = [in_other_thread(scene.take) for _ in range(2)]
        looks.clear()
        waiting = [begun(lambda: scene.release(scene.take()))]
        scene.await_waiting(1)
        waiting += [begun(lambda: scene.release(scene.take())) for _ in range(19)]
        until(lambda: len(looks) == 20 and min(looks.values()) > 2)  # one as it came, one before it was logged
        for worker in held:
            scene.release(worker)
        for each in waiting:
            each.join()
        assert len(caplog.records) == seen
    message = caplog.records[-1].getMessage()
    assert re.fullmatch(
        r"one of 2 workers has been waited for during 0 s(, and \d+ calls wait for it)?; held by the open prediction "
        r"@me/it \S+, the open prediction @me/it \S+; if that is too long, let the engine have more of them: "
        r"Engine\(workers=\.\.\.\)",
        message,
    )
