"""Calls that wait for a worker are served in the order they came, and those that leave are skipped."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from typing import Any, cast

import pytest

from engine import EngineClosedError, PredictionCancelledError
from engine.runners.process.queue import Need
from engine.runners.process.worker import Worker
from tests._kit.internals import GOING_IN_A_POOL
from tests._kit.waits import auntil, begun, in_other_thread
from tests.runners.process.pool_of_fakes import CLASS, Scene, body_of, call_of, each_way, taking

pytestmark = pytest.mark.usefixtures("looks_only_when_woken")


def test_threads_are_served_in_the_order_they_came() -> None:
    scene = Scene.of(1)
    worker, served = scene.take(), list[int]()
    consumers = []

    def consume(number: int) -> None:
        taken = scene.take()
        served.append(number)
        scene.release(taken)

    for number in range(5):
        consumers.append(begun(lambda number=number: consume(number)))  # type: ignore[misc]
        scene.await_waiting(number + 1)
    scene.release(worker)
    for consumer in consumers:
        consumer.join()
    assert served == [0, 1, 2, 3, 4]


def test_tasks_and_threads_wait_in_one_queue_and_none_that_comes_later_goes_first() -> None:
    async def scenario() -> None:
        scene = Scene.of(1)
        worker, served = in_other_thread(lambda: scene.take(Need(1))), list[str]()

        async def consume(name: str) -> None:
            taken = await scene.atake(Need(1))
            served.append(name)
            scene.release(taken)

        def consume_in_thread(name: str) -> None:
            taken = scene.take(Need(1))
            served.append(name)
            scene.release(taken)

        first = asyncio.create_task(consume("task"))
        await auntil(lambda: scene.waiting() == 1)
        second = begun(lambda: consume_in_thread("thread"))
        await auntil(lambda: scene.waiting() == 2)
        third = asyncio.create_task(consume("later task"))
        await auntil(lambda: scene.waiting() == 3)
        scene.release(worker)
        await consume("last")  # the worker is free, and was so last, but others wait for it
        await asyncio.gather(first, third)
        await asyncio.to_thread(second.join)
        assert served == ["task", "thread", "later task", "last"]

    asyncio.run(scenario())


def test_a_call_that_waits_for_a_certain_worker_keeps_no_other_from_another_one() -> None:
    scene = Scene.of(2)
    certain = scene.take(CLASS)
    pinned = begun(lambda: scene.take(CLASS))
    scene.await_waiting(1)
    other = in_other_thread(scene.take)
    assert other is not certain
    scene.release(other)
    assert in_other_thread(scene.take) is other
    scene.release(certain)
    assert pinned.join() is certain


def test_a_request_for_a_certain_worker_waits_for_that_very_one() -> None:
    scene = Scene.of(2)
    certain, other = scene.take(), scene.take()
    scene.release(other)
    request = begun(lambda: scene.take(Need(only=cast("Worker", certain))))
    scene.await_waiting(1)
    later = begun(lambda: [scene.take(), scene.take()])
    scene.await_waiting(2)
    scene.release(certain)
    assert request.join() is certain
    scene.release(certain)
    assert later.join() == [other, certain]


@pytest.mark.fault(51)
def test_a_call_that_was_stopped_gets_no_worker_and_one_that_waits_leaves_the_line() -> None:
    scene = Scene.of(1)
    worker = scene.take(Need(1))
    body = body_of(call_of())
    waiting = begun(lambda: scene.pool.take(body, Need(1)))
    scene.await_waiting(1)
    body.call.stopping = True
    recheck = body.recheck
    assert recheck is not None
    recheck()
    with pytest.raises(PredictionCancelledError):
        waiting.join()
    assert (scene.waiting(), body.recheck) == (0, None)
    scene.release(worker)
    with pytest.raises(PredictionCancelledError):
        scene.take(Need(1), body.call)
    assert scene.pool.leases == ()


@pytest.mark.fault(75)
@pytest.mark.parametrize("has_worker", [True, False], ids=["a-worker", "a-place"])
def test_what_a_task_was_granted_just_before_it_was_cancelled_goes_to_the_next(has_worker: bool) -> None:
    async def scenario() -> None:
        scene = Scene.of(1)
        worker = in_other_thread(scene.take)
        cancelled, next_one = (asyncio.create_task(scene.atake()) for _ in range(2))
        await auntil(lambda: scene.waiting() == 2)
        if has_worker:
            scene.release(worker)
        else:
            scene.evict(worker)
        cancelled.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await cancelled
        assert cancelled.cancelled()
        assert (await next_one is worker) is has_worker

    asyncio.run(scenario())


@each_way
def test_many_calls_that_come_while_workers_start_are_not_each_held_against_all_others(
    way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def compare(_waits: object) -> set[Any]:
        raise AssertionError("this takes long for a long queue")

    GOING_IN_A_POOL.replace(monkeypatch, compare)
    scene = Scene.of(2)
    scene.fakes.gate = threading.Event()
    calls = [taking(scene, way) for _ in range(9)]
    assert scene.waiting() == 9
    scene.pool.close()
    scene.fakes.gate.set()
    for each in calls:
        with pytest.raises(EngineClosedError):
            each.join()
