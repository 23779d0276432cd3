"""A worker that could not be started: its place is given back, and which of the calls that wait is told."""

from __future__ import annotations

import asyncio
import threading

import pytest

from engine.runners.process.queue import Need
from tests._kit.internals import starts_of
from tests._kit.waits import TIMEOUT, auntil, begun, until
from tests.runners.process.pool_of_fakes import CLASS, Scene, each_way, leave, taking

pytestmark = pytest.mark.usefixtures("looks_only_when_woken")


@pytest.mark.fault(11)
def test_a_start_that_fails_gives_its_place_back() -> None:
    scene = Scene.of(1)
    for trouble in (OSError("no process is to be had"), KeyboardInterrupt()):
        scene.fakes.trouble.append(trouble)
        with pytest.raises(type(trouble)):
            scene.take()
        assert scene.pool.leases == ()
    assert scene.take().name == "worker 0"


@pytest.mark.fault(11)
def test_a_call_that_waits_gets_the_place_of_a_start_that_failed() -> None:
    scene = Scene.of(1)
    scene.fakes.gate = threading.Event()
    scene.fakes.trouble.append(BlockingIOError("try again"))
    unlucky = begun(scene.take)
    scene.await_waiting(1)
    lucky = begun(scene.take)
    scene.await_waiting(2)
    scene.fakes.gate.set()
    with pytest.raises(BlockingIOError):
        unlucky.join()
    assert lucky.join().name == "worker 0"


def test_without_a_thread_to_start_a_worker_in_a_call_fails_and_the_next_gets_its_place(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    scene = Scene.of(1)
    monkeypatch.setattr(threading.Thread, "start", refuse)
    with pytest.raises(RuntimeError, match="new thread"):
        scene.take()
    monkeypatch.undo()
    assert not scene.pool.is_starting
    assert scene.take().name == "worker 0"


@each_way
@pytest.mark.fault(11)
def test_a_start_that_fails_after_its_call_took_a_freed_worker_fails_no_call_and_the_next_one_starts_another(
    way: str, caplog: pytest.LogCaptureFixture
) -> None:
    scene = Scene.of(2)
    worker = scene.take()
    scene.fakes.gate = threading.Event()
    scene.fakes.trouble.append(BlockingIOError("try again"))
    call = taking(scene, way)
    scene.release(worker)
    assert call.join() is worker
    scene.fakes.gate.set()
    scene.pool.join(TIMEOUT)
    assert (scene.workers, scene.waiting()) == ([worker], 0)
    assert taking(scene, way).join() is scene.fakes.made[1]
    assert caplog.text == ""


@each_way
@pytest.mark.fault(11)
def test_a_start_that_fails_while_another_worker_is_freed_is_told_to_the_call_that_still_waits_for_it(way: str) -> None:
    scene = Scene.of(2)
    worker = scene.take()
    scene.fakes.gate = threading.Event()
    scene.fakes.trouble.append(BlockingIOError("try again"))
    first, second = taking(scene, way), taking(scene, way)
    scene.release(worker)
    assert first.join() is worker
    scene.fakes.gate.set()
    with pytest.raises(BlockingIOError):
        second.join()
    assert (scene.waiting(), scene.fakes.begun) == (0, 2)


@each_way
@pytest.mark.fault(11)
def test_a_start_that_fails_is_told_to_no_call_where_those_left_are_enough_for_all_that_wait(way: str) -> None:
    scene = Scene.of(3)
    worker = scene.take()
    scene.fakes.turns = threading.Semaphore(0)
    first, second = taking(scene, way), taking(scene, way)
    until(lambda: scene.fakes.held == 2)
    scene.release(worker)
    assert first.join() is worker
    scene.fakes.trouble.append(BlockingIOError("try again"))
    scene.fakes.turns.release()
    until(lambda: len(starts_of(scene.pool)) == 1)
    assert scene.waiting() == 1
    scene.fakes.turns.release()
    assert second.join() is scene.fakes.made[1]
    assert scene.fakes.begun == 3


@each_way
@pytest.mark.parametrize("most", [1, 2])
@pytest.mark.fault(11)
def test_a_start_that_fails_is_told_to_the_first_in_line_alone_and_another_is_begun_for_the_others(
    most: int, way: str
) -> None:
    scene = Scene.of(most)
    scene.fakes.turns = threading.Semaphore(0)
    calls = [taking(scene, way) for _ in range(3)]
    for number in range(2):
        scene.fakes.trouble.append(OSError(f"failure {number}"))
        scene.fakes.turns.release()
        with pytest.raises(OSError, match=f"failure {number}"):
            calls[number].join()
        until(lambda number=number: scene.fakes.held == min(most, 2 - number))  # type: ignore[misc]
        assert scene.waiting() == 2 - number
    scene.fakes.turns.release()
    assert calls[2].join() is scene.fakes.made[0]
    assert scene.fakes.begun == 3


@each_way
@pytest.mark.fault(11)
def test_where_every_start_fails_each_call_is_told_of_one_and_none_hangs_or_starts_more(way: str) -> None:
    scene = Scene.of(2)
    scene.fakes.gate = threading.Event()
    scene.fakes.trouble += [OSError(f"failure {number}") for number in range(9)]
    calls = [taking(scene, way, need) for need in (Need(1), CLASS, CLASS, Need(2), Need(1))]
    scene.fakes.gate.set()
    told = set()
    for each in calls:
        with pytest.raises(OSError, match="failure") as raised:
            each.join()
        told.add(str(raised.value))
    scene.pool.join(TIMEOUT)
    assert len(told) == 5
    assert scene.fakes.begun - len(told) in (0, 1)  # two may fail while one call waits
    assert (scene.waiting(), scene.pool.leases, scene.pool.is_starting) == (0, (), False)


@each_way
@pytest.mark.fault(11)
def test_where_no_thread_can_be_started_each_call_is_told_and_none_hangs(
    way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse_starters(thread: threading.Thread) -> None:
        if thread.name == "engine-starter":
            raise RuntimeError("can't start new thread")
        start(thread)

    start = threading.Thread.start
    scene = Scene.of(1)
    held = scene.take()
    calls = [taking(scene, way) for _ in range(3)]
    monkeypatch.setattr(threading.Thread, "start", refuse_starters)
    scene.evict(held)  # the caller that makes room hears nothing of it
    for each in calls:
        with pytest.raises(RuntimeError, match="new thread"):
            each.join()
    monkeypatch.undo()
    assert not scene.pool.is_starting
    assert scene.take().name == "worker 1"


@pytest.mark.fault(11)
def test_a_start_that_fails_is_not_told_to_a_task_whose_loop_was_closed_but_to_the_next_in_line() -> None:
    scene = Scene.of(1)
    scene.fakes.gate = threading.Event()
    scene.fakes.trouble.append(BlockingIOError("try again"))
    loop = asyncio.new_event_loop()
    task = loop.create_task(scene.atake())
    loop.run_until_complete(auntil(lambda: scene.waiting() == 1))
    loop.close()
    second = taking(scene, "sync")
    scene.fakes.gate.set()
    with pytest.raises(BlockingIOError):
        second.join()
    assert (scene.waiting(), scene.fakes.begun) == (0, 1)
    leave(task)
