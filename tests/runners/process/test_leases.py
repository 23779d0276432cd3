"""Who gets which worker, and what becomes of its place once it is given back, dropped, retired or gone."""

from __future__ import annotations

import math
import threading
from collections import OrderedDict

import pytest

from engine.runners.process.queue import Need
from engine.runners.process.worker import MOST_KNOWN, Worker
from tests._kit.waits import begun, in_other_thread
from tests.runners.process.pool_of_fakes import Scene, taking

pytestmark = pytest.mark.usefixtures("looks_only_when_woken")


def test_workers_are_started_one_by_one_as_they_are_needed_and_used_again() -> None:
    scene = Scene.of(3)
    first = scene.take()
    scene.release(first)
    assert scene.take() is first
    second = scene.take()
    assert second is not first
    assert [each.name for each in scene.fakes.made] == ["worker 0", "worker 1"]
    assert [holder.call.tag for holder in scene.pool.leases] == ["@me/it", "@me/it"]


def test_the_worker_that_was_free_last_is_preferred_unless_another_knows_the_predictor() -> None:
    scene = Scene.of(3)
    first, second, third = scene.take(Need(1)), scene.take(Need(2)), scene.take(Need(3))
    for worker in (third, first, second):
        scene.release(worker)
    assert scene.take(Need(2)) is second  # free last, and it knows it
    scene.release(second)
    assert scene.take(Need(4)) is second
    scene.release(second)
    assert scene.take(Need(3)) is third
    scene.release(third)
    assert scene.take(Need(1)) is first


def test_a_worker_that_is_dropped_leaves_its_place_to_another() -> None:
    scene = Scene.of(1)
    first = scene.take(Need(1))
    waiting = begun(lambda: scene.take(Need(1)))
    scene.await_waiting(1)
    scene.evict(first)
    second = waiting.join()
    assert second is not first
    assert scene.workers == [second]
    scene.release(second)
    assert scene.take(Need(1)) is second


@pytest.mark.fault(5)
def test_a_worker_that_ended_while_it_was_free_is_never_leased() -> None:
    scene = Scene.of(2)
    first = scene.take(Need(1))
    scene.release(first)
    scene.reap(first)
    assert scene.workers == []
    assert scene.take(Need(1)) is not first


@pytest.mark.fault(95)
def test_workers_that_are_retired_are_those_that_were_free_so_long_and_no_call_gets_them() -> None:
    scene = Scene.of(3)
    long, short, busy = scene.take(Need(1)), scene.take(Need(1)), scene.take(Need(1))
    scene.release(short)
    scene.release(long)
    long.idle_since, short.idle_since, busy.idle_since = 10.0, 20.0, 5.0
    assert scene.retire(9.9) == []
    assert scene.retire(10.0) == [long]
    assert scene.take(Need(1)) is short
    scene.release(short)
    assert scene.retire(math.inf) == [short]
    assert scene.workers == [busy]
    assert scene.take(Need(1)) not in (long, short, busy)


def test_a_worker_that_keeps_many_predictors_forgets_those_used_longest_ago_but_no_class() -> None:
    worker = Worker.__new__(Worker)
    worker.known, worker.set_up, worker.to_evict = OrderedDict(), set(), []

    def sent(key: int) -> tuple[bool, tuple[int, ...]]:
        lacks = worker.lacks(key)
        assert worker.lacks(key) == lacks  # which notes nothing
        worker.note_known(key, "@me/it", lacks[1])
        return lacks

    for key in range(1, MOST_KNOWN + 1):
        assert sent(key) == (True, ())
    assert sent(1) == (False, ())
    worker.set_up.update({2, 3})
    assert sent(1000) == (True, (4,))
    assert sent(4) == (True, (5,))
    worker.set_up.update(worker.known)
    assert sent(2000) == (True, ())
    assert 2000 in worker.known
    worker.to_evict += [2000, 2]
    assert sent(2000) == (True, (2000, 2))
    assert sent(2000) == (False, ())
    assert 2 not in worker.known
    assert 2 not in worker.set_up


def test_starting_a_worker_holds_no_lock_so_others_come_and_go_meanwhile() -> None:
    scene = Scene.of(3)
    worker, other = scene.take(Need(1)), scene.take(Need(1))
    scene.fakes.gate = threading.Event()
    starting = taking(scene, "sync", Need(2))
    assert not starting.is_over
    scene.release(worker)
    assert starting.join() is worker
    scene.release(other)
    assert in_other_thread(lambda: scene.take(Need(1))) is other
    assert scene.pool.is_starting
    scene.fakes.gate.set()
