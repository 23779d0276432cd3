"""A pool that closes refuses all that wait or come, and gives up what it was about to start or grant."""

from __future__ import annotations

import asyncio
import math
import threading
import time

import pytest

from engine import EngineClosedError
from engine.runners.process.queue import Need
from tests._kit.waits import TIMEOUT, auntil, begun, in_other_thread, until
from tests.runners.process.pool_of_fakes import CLASS, Scene, each_way, interrupting_starts, taking

pytestmark = pytest.mark.usefixtures("looks_only_when_woken")


def test_closing_while_a_worker_starts_refuses_its_call_and_leaves_the_worker_to_be_closed() -> None:
    scene = Scene.of(1)
    scene.fakes.gate = threading.Event()
    consumer = begun(scene.take)
    until(lambda: scene.pool.is_starting)
    scene.pool.close()
    scene.fakes.gate.set()
    with pytest.raises(EngineClosedError):
        consumer.join()
    scene.pool.join(TIMEOUT)
    assert scene.retire(math.inf) == scene.fakes.made


@pytest.mark.fault(97)
@pytest.mark.fault(103)
def test_a_pool_that_closes_refuses_every_call_that_waits_or_comes() -> None:
    async def scenario() -> None:
        scene = Scene.of(1)
        worker = in_other_thread(lambda: scene.take(Need(1)))
        thread = begun(scene.take)
        await auntil(lambda: scene.waiting() == 1)
        task = asyncio.create_task(scene.atake())
        await auntil(lambda: scene.waiting() == 2)
        scene.pool.close()
        with pytest.raises(EngineClosedError):
            await asyncio.to_thread(thread.join)
        with pytest.raises(EngineClosedError):
            await task
        scene.release(worker)
        for need in (Need(), Need(1), CLASS):
            with pytest.raises(EngineClosedError):
                scene.take(need)
            with pytest.raises(EngineClosedError):
                await scene.atake(need)
        assert (scene.waiting(), scene.pool.leases) == (0, ())

    asyncio.run(scenario())


@pytest.mark.fault(103)
@pytest.mark.parametrize("is_cancelled", [False, True], ids=["it-goes-on", "it-is-cancelled"])
def test_a_worker_granted_to_a_task_that_has_not_heard_of_it_is_free_once_the_pool_closes(is_cancelled: bool) -> None:
    async def scenario() -> None:
        scene = Scene.of(1)
        worker = in_other_thread(scene.take)
        task = asyncio.create_task(scene.atake())
        await auntil(lambda: scene.waiting() == 1)
        scene.release(worker)
        assert worker.lease is not None
        scene.pool.close()
        assert scene.retire(time.monotonic()) == [worker]
        worker.lease = leaving = object()  # as by who has it tear down what it set up
        if is_cancelled:
            task.cancel()
        with pytest.raises((EngineClosedError, asyncio.CancelledError)):
            await task
        assert (task.cancelled(), worker.lease, scene.workers) == (is_cancelled, leaving, [])

    asyncio.run(scenario())


@pytest.mark.fault(103)
@pytest.mark.parametrize("is_cancelled", [False, True], ids=["it-goes-on", "it-is-cancelled"])
@pytest.mark.parametrize("fails", [False, True], ids=["started", "failed"])
def test_what_is_started_for_a_task_whose_loop_does_not_turn_as_the_pool_closes_is_let_go(
    fails: bool, is_cancelled: bool
) -> None:
    async def scenario() -> None:
        scene = Scene.of(1)
        worker = in_other_thread(scene.take)
        task = asyncio.create_task(scene.atake())
        await auntil(lambda: scene.waiting() == 1)
        scene.fakes.gate = threading.Event()
        scene.evict(worker)
        until(lambda: scene.fakes.begun == 2)
        scene.pool.close()
        if fails:
            scene.fakes.trouble.append(BlockingIOError("try again"))
        scene.fakes.gate.set()
        scene.pool.join(TIMEOUT)
        assert not scene.pool.is_starting
        assert scene.retire(math.inf) == scene.fakes.made[1:]
        if is_cancelled:
            task.cancel()
        with pytest.raises((EngineClosedError, asyncio.CancelledError)):
            await task
        assert (task.cancelled(), scene.pool.is_starting, scene.workers) == (is_cancelled, False, [])
        assert (scene.waiting(), scene.fakes.begun) == (0, 2)

    asyncio.run(scenario())


def test_a_place_that_was_got_just_before_the_pool_closed_starts_no_worker() -> None:
    scene = Scene.of(1)
    gone = scene.take()
    scene.pool.close()
    with pytest.raises(EngineClosedError):
        scene.replace(gone)
    assert (len(scene.fakes.made), scene.pool.leases, scene.workers) == (1, (), [])


@each_way
@pytest.mark.fault(103)
def test_closing_while_a_worker_starts_refuses_all_who_wait_at_once_and_starts_no_other(way: str) -> None:
    scene = Scene.of(2)
    worker = scene.take()
    scene.fakes.gate = threading.Event()
    calls = [taking(scene, way) for _ in range(3)]
    until(lambda: scene.fakes.begun == 2)
    scene.pool.close()
    for each in calls:
        with pytest.raises(EngineClosedError):
            each.join()
    assert (scene.waiting(), scene.pool.is_starting) == (0, True)
    scene.release(worker)
    scene.fakes.gate.set()
    scene.pool.join(TIMEOUT)
    assert scene.retire(math.inf) == [worker, scene.fakes.made[1]]
    assert scene.fakes.begun == 2


@pytest.mark.fault(103)
def test_a_pool_that_closes_just_as_a_start_begins_starts_no_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Scene.of(1)
    interrupting_starts(monkeypatch, scene.pool.close, when="before")
    with pytest.raises(EngineClosedError):
        scene.take()
    scene.pool.join(TIMEOUT)
    assert (scene.fakes.begun, scene.pool.is_starting) == (0, False)
