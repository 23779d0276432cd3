"""Calls whose worker turns out to be gone before they were sent get another, before all that wait, or are told why."""

from __future__ import annotations

import threading
from typing import cast

import pytest

from engine import PredictionCancelledError
from engine.runners.process.pool import Pool
from engine.runners.process.queue import Need
from engine.runners.process.worker import Worker
from tests._kit.waits import begun, until
from tests.runners.process.pool_of_fakes import CLASS, Fake, Scene, body_of, call_of, each_way, taking, used

pytestmark = pytest.mark.usefixtures("looks_only_when_woken")


@pytest.mark.fault(5)
def test_a_worker_that_ended_before_its_call_was_sent_keeps_its_place_until_its_holder_had_it_replaced() -> None:
    scene = Scene.of(1)
    gone = scene.take(CLASS)
    scene.reap(gone)
    waiting = begun(scene.take)
    scene.await_waiting(1)
    new = scene.replace(gone)
    assert new is not gone
    assert gone.lease is None
    assert new.set_up == {CLASS.key}
    assert len(scene.fakes.made) == 2
    assert scene.waiting() == 1
    scene.release(new)
    assert waiting.join() is new


def test_a_worker_that_ended_before_its_call_was_sent_and_is_given_back_unused_is_used_no_more() -> None:
    scene = Scene.of(1)
    gone = scene.take(Need(1))
    scene.reap(gone)
    waiting = begun(lambda: scene.take(Need(1)))
    scene.await_waiting(1)
    scene.release(gone)
    assert waiting.join() is not gone
    assert gone.lease is None
    assert gone not in scene.workers


@each_way
@pytest.mark.fault(5)
def test_a_worker_that_is_over_as_soon_as_it_is_started_is_its_calls_who_finds_out_and_no_other_is_started(
    way: str,
) -> None:
    scene = Scene.of(1)
    scene.fakes.gate = threading.Event()
    dead = Fake("dead", is_retired=True)
    pool = Pool(1, lambda: cast("Worker", dead))
    assert taking(Scene(pool, scene.fakes), way).join() is dead
    pool.release(cast("Worker", dead))
    assert (pool.workers, pool.is_starting) == ((), False)


@pytest.mark.fault(5)
@pytest.mark.parametrize("is_freed_first", [True, False], ids=["freed-first", "started-first"])
def test_a_call_whose_worker_is_gone_takes_what_comes_first_before_all_who_wait(is_freed_first: bool) -> None:
    scene = Scene.of(2)
    gone, other = scene.take(CLASS), scene.take()
    waiting = taking(scene, "sync")
    scene.fakes.gate = threading.Event()
    scene.reap(gone)
    lease = gone.lease
    told = scene.replacing(gone)
    until(lambda: scene.waiting() == 2 and scene.pool.is_starting)
    assert (told, gone.lease) == ([], None)
    if is_freed_first:
        scene.release(other)
    else:
        scene.fakes.gate.set()
    until(lambda: len(told) == 2)
    assert told == [other if is_freed_first else scene.fakes.made[2], None]
    assert told[0].set_up == {CLASS.key}
    assert told[0].lease is lease
    assert not waiting.is_over
    scene.fakes.gate.set()
    if not is_freed_first:
        scene.release(other)
    assert waiting.join() is (scene.fakes.made[2] if is_freed_first else other)
    assert scene.fakes.begun == 3


@pytest.mark.fault(11)
def test_a_call_whose_worker_is_gone_is_told_why_no_other_could_be_started() -> None:
    scene = Scene.of(1)
    gone = scene.take()
    scene.reap(gone)
    scene.fakes.trouble.append(BlockingIOError("try again"))
    with pytest.raises(BlockingIOError):
        scene.replace(gone)
    assert (scene.workers, scene.pool.leases, scene.waiting()) == ([], (), 0)


@pytest.mark.fault(5, 51)
def test_a_call_that_is_stopped_while_it_waits_for_another_worker_is_told_at_once() -> None:
    scene, body = Scene.of(1), body_of(call_of())
    gone = used(scene.pool.take(body, Need()), Need())
    scene.fakes.gate = threading.Event()
    told = scene.replacing(gone, body)
    until(lambda: scene.pool.is_starting and body.recheck is not None)
    body.call.stopping = True
    assert body.recheck is not None
    body.recheck()
    until(lambda: len(told) == 2)
    assert told[0] is None
    assert isinstance(told[1], PredictionCancelledError)
    assert (scene.waiting(), scene.pool.is_starting) == (0, True)
    scene.fakes.gate.set()


@pytest.mark.fault(5)
def test_a_call_that_was_given_up_before_it_could_wait_for_another_worker_leaves_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def start_later(thread: threading.Thread) -> None:
        if thread.name == "engine-replacer":
            scene.evict(gone)  # as who is interrupted just then does
            next_one.append(taking(scene, "sync").join())
        start(thread)

    start = threading.Thread.start
    next_one: list[Fake] = []
    scene = Scene.of(1)
    gone = scene.take()
    monkeypatch.setattr(threading.Thread, "start", start_later)
    with pytest.raises(PredictionCancelledError):
        scene.replace(gone)
    assert scene.workers == next_one == scene.fakes.made[1:]
    assert next_one[0].lease is not None


@pytest.mark.fault(5)
def test_a_request_for_a_certain_worker_that_is_gone_goes_to_any_other() -> None:
    scene = Scene.of(1)
    gone = scene.take()
    scene.release(gone)
    scene.take(Need(only=cast("Worker", gone)))
    scene.reap(gone)
    assert scene.replace(gone) is scene.fakes.made[1]
