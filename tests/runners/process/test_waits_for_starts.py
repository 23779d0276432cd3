"""Calls that wait while workers start take what comes first, a freed worker or a new one, and leave the other free."""

from __future__ import annotations

import asyncio
import threading

import pytest

import engine.runners.process.pool
import engine.runners.slots
from engine import EngineError, PredictionCancelledError
from engine.runners.process.queue import Need
from tests._kit.internals import starts_of
from tests._kit.waits import TIMEOUT, auntil, begun, in_other_thread, until
from tests.runners.process.pool_of_fakes import CLASS, Scene, body_of, call_of, each_way, leave, taking

pytestmark = pytest.mark.usefixtures("looks_only_when_woken")


def test_a_worker_whose_call_no_longer_waits_for_its_start_goes_to_the_next_in_line() -> None:
    async def scenario() -> None:
        scene = Scene.of(1)
        scene.fakes.gate = threading.Event()
        left = asyncio.create_task(scene.atake(CLASS))
        await auntil(lambda: scene.pool.is_starting)
        next_one = asyncio.create_task(scene.atake(Need(1)))
        await auntil(lambda: scene.waiting() == 2)
        left.cancel()
        with pytest.raises(asyncio.CancelledError):
            await left
        assert scene.pool.leases == ()
        assert scene.waiting() == 1  # the place is taken until the worker is there
        scene.fakes.gate.set()
        worker = await next_one
        assert scene.fakes.made == scene.workers == [worker]
        assert worker.set_up == set()

    asyncio.run(scenario())


def test_a_call_that_is_stopped_while_its_worker_starts_does_not_wait_for_it() -> None:
    scene, body = Scene.of(1), body_of(call_of())
    scene.fakes.gate = threading.Event()
    consumer = begun(lambda: scene.pool.take(body, Need()))
    until(lambda: body.recheck is not None)
    body.call.stopping = True
    assert body.recheck is not None
    body.recheck()
    with pytest.raises(PredictionCancelledError):
        consumer.join()
    scene.fakes.gate.set()
    assert scene.take() is scene.fakes.made[0]


def test_what_is_started_for_a_task_whose_loop_was_closed_goes_to_others() -> None:
    scene = Scene.of(1)
    scene.fakes.gate = threading.Event()
    loop = asyncio.new_event_loop()
    task = loop.create_task(scene.atake(CLASS))
    loop.run_until_complete(auntil(lambda: scene.pool.is_starting))
    loop.close()
    scene.fakes.gate.set()
    until(lambda: not scene.pool.is_starting)
    worker = scene.take(Need(1))
    assert worker.set_up == set()
    leave(task)


def test_a_start_that_takes_too_long_fails_its_call_and_leaves_the_worker_to_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(engine.runners.process.pool, "LONGEST_START", 0.01)
    scene = Scene.of(1)
    scene.fakes.gate = threading.Event()
    monkeypatch.setattr(engine.runners.slots, "_LONG_WAIT", 0.0)  # it looks all the time
    with pytest.raises(EngineError, match="no worker could be started within"):
        scene.take()
    monkeypatch.undo()
    scene.fakes.gate.set()
    assert scene.take() is scene.fakes.made[0]


@each_way
def test_a_call_that_waits_while_a_worker_starts_takes_one_that_is_freed_and_the_new_one_is_free(way: str) -> None:
    scene = Scene.of(2)
    worker = scene.take()
    scene.fakes.gate = threading.Event()
    call = taking(scene, way)
    assert (scene.waiting(), scene.pool.is_starting) == (1, True)
    scene.release(worker)
    assert call.join() is worker
    assert (scene.waiting(), scene.pool.is_starting, scene.workers) == (0, True, [worker])
    scene.fakes.gate.set()
    scene.pool.join(TIMEOUT)
    started = scene.fakes.made[1]
    assert (scene.workers, started.lease) == ([worker, started], None)
    assert in_other_thread(scene.take) is started


@each_way
def test_a_call_that_waits_takes_the_new_worker_where_that_comes_first_and_the_freed_one_is_free(way: str) -> None:
    scene = Scene.of(2)
    worker = scene.take()
    assert taking(scene, way).join() is scene.fakes.made[1]
    scene.release(worker)
    assert (worker.lease, scene.fakes.begun) == (None, 2)


@each_way
@pytest.mark.parametrize("is_freed_first", [True, False], ids=["freed-first", "started-first"])
def test_of_two_calls_that_wait_the_first_takes_what_comes_first_and_the_second_what_comes_next(
    is_freed_first: bool, way: str
) -> None:
    scene = Scene.of(2)
    worker = scene.take()
    scene.fakes.gate = threading.Event()
    first, second = taking(scene, way), taking(scene, way)
    until(lambda: scene.fakes.begun == 2)
    assert (scene.waiting(), len(starts_of(scene.pool))) == (2, 1)  # there is room for one
    if is_freed_first:
        scene.release(worker)
        assert first.join() is worker
        scene.fakes.gate.set()
        assert second.join() is scene.fakes.made[1]
    else:
        scene.fakes.gate.set()
        assert first.join() is scene.fakes.made[1]
        assert scene.waiting() == 1
        scene.release(worker)
        assert second.join() is worker
    assert scene.fakes.begun == 2


@each_way
def test_as_many_workers_are_started_as_calls_wait_for_and_no_more_than_there_is_room_for(way: str) -> None:
    scene = Scene.of(3)
    scene.fakes.turns = threading.Semaphore(0)
    calls = []
    for waiting, starts in enumerate([1, 2, 3, 3], 1):
        calls.append(taking(scene, way))
        until(lambda starts=starts: scene.fakes.held == starts)  # type: ignore[misc]
        assert scene.waiting() == waiting
    for each in range(3):
        scene.fakes.turns.release()
        assert calls[each].join() is scene.fakes.made[each]
    scene.release(scene.fakes.made[1])
    assert calls[3].join() is scene.fakes.made[1]
    assert scene.fakes.begun == 3


@each_way
@pytest.mark.parametrize("is_freed", [False, True], ids=["while-it-starts", "as-one-is-freed"])
def test_a_call_that_is_stopped_while_a_worker_starts_leaves_it_to_the_next(is_freed: bool, way: str) -> None:
    scene, body = Scene.of(2), body_of(call_of())
    worker = scene.take()
    scene.fakes.gate = threading.Event()
    stopped, second = taking(scene, way, body=body), taking(scene, way)
    recheck = body.recheck
    assert recheck is not None
    body.call.stopping = True
    if is_freed:
        scene.release(worker)  # before it has looked: it gets nothing any more
        assert second.join() is worker
    recheck()
    with pytest.raises(PredictionCancelledError):
        stopped.join()
    scene.fakes.gate.set()
    scene.pool.join(TIMEOUT)
    assert (scene.fakes.begun, scene.waiting()) == (2, 0)
    started = scene.fakes.made[1]
    if is_freed:
        assert started.lease is None
    else:
        assert second.join() is started


@pytest.mark.parametrize("way", ["release", "evict"])
def test_a_call_that_was_stopped_on_a_loop_that_does_not_turn_gets_no_worker_and_no_failure(way: str) -> None:
    scene, body = Scene.of(1), body_of(call_of())
    worker = in_other_thread(scene.take)
    loop = asyncio.new_event_loop()
    stopped = loop.create_task(scene.pool.atake(body, Need()))
    loop.run_until_complete(auntil(lambda: scene.waiting() == 1))
    second = taking(scene, "sync")
    body.call.stopping = True
    scene.fakes.trouble.append(BlockingIOError("try again"))
    getattr(scene, way)(worker)
    if way == "release":
        assert second.join() is worker
    else:
        with pytest.raises(BlockingIOError):
            second.join()
    scene.pool.join(TIMEOUT)
    assert (scene.waiting(), scene.fakes.begun) == (1, 1 if way == "release" else 2)
    assert body.recheck is not None
    body.recheck()
    with pytest.raises(PredictionCancelledError):
        loop.run_until_complete(stopped)
    loop.close()


def test_a_task_that_is_cancelled_while_a_worker_starts_leaves_it_to_the_next_that_comes() -> None:
    async def scenario() -> None:
        scene = Scene.of(2)
        scene.fakes.gate = threading.Event()
        cancelled = asyncio.create_task(scene.atake(CLASS))
        await auntil(lambda: scene.fakes.begun == 1)
        cancelled.cancel()
        with pytest.raises(asyncio.CancelledError):
            await cancelled
        next_one = asyncio.create_task(scene.atake(Need(1)))
        await auntil(lambda: scene.waiting() == 1)
        scene.fakes.gate.set()
        assert await next_one is scene.fakes.made[0]
        assert scene.fakes.begun == 1

    asyncio.run(scenario())


@each_way
def test_no_call_waits_too_long_for_starts_that_do_not_end_and_each_is_told(
    way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene = Scene.of(1)
    scene.fakes.gate = threading.Event()
    monkeypatch.setattr(engine.runners.slots, "_LONG_WAIT", 0.0)  # they look all the time
    monkeypatch.setattr(engine.runners.process.pool, "LONGEST_START", 0.01)
    calls = [taking(scene, way) for _ in range(3)]
    for each in calls:
        with pytest.raises(EngineError, match="no worker could be started within"):
            each.join()
    assert (scene.waiting(), scene.fakes.begun) == (0, 1)
    scene.fakes.gate.set()
    assert scene.take() is scene.fakes.made[0]
