"""Waits for a worker that could never end are refused, and those that can end go on."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING, Any, cast

import pytest

import engine.runners.slots
from engine import NestingError
from engine._records import Call
from engine.runners.process.queue import Need
from engine.runners.process.worker import Worker
from tests._kit.internals import blocker_of, waiters_of
from tests._kit.waits import TIMEOUT, auntil, begun, in_other_thread, until
from tests.runners.process.pool_of_fakes import CLASS, OTHER_CLASS, Fake, Scene, call_of

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.usefixtures("looks_only_when_woken")


def refused(work: Callable[[], Any], holder: Call) -> None:
    with pytest.raises(NestingError) as caught:
        work()
    assert holder.id in caught.value.holder
    assert holder.id in str(caught.value)


@pytest.mark.fault(97)
def test_a_thread_that_holds_the_only_worker_and_wants_another_is_refused_at_once_naming_what_it_holds() -> None:
    scene, held = Scene.of(1), call_of("@me/open")
    worker = scene.take(call=held)
    refused(scene.take, held)
    assert scene.waiting() == 0
    scene.release(worker)
    assert scene.take() is worker


@pytest.mark.fault(97)
@pytest.mark.parametrize("comes_back", [False, True], ids=["refused", "served"])
def test_a_thread_that_holds_the_only_worker_waits_a_grace_for_another_to_give_it_back(
    comes_back: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [1000.0]
    monkeypatch.setattr(engine.runners.slots, "perf_counter", lambda: now[0])
    scene, held = Scene.of(1), call_of("@me/open")
    scene.pool.grace = 30.0

    def hold_and_wait() -> Fake:
        scene.take(call=held)
        return scene.take()

    waiting = begun(hold_and_wait)
    until(lambda: any(each.call is not held for each in waiters_of(scene.pool)))
    [wish] = waiters_of(scene.pool)
    [worker] = scene.workers
    for seconds, is_in_vain in ((0.0, False), (29.9, False), (0.1, True)):
        now[0] += seconds
        assert (blocker_of(scene.pool, wish) is not None) is is_in_vain
    if comes_back:
        scene.release(worker)
        assert waiting.join() is worker
    else:
        wish.wake()
        refused(waiting.join, held)


@pytest.mark.fault(97)
def test_a_call_made_by_the_body_that_holds_the_only_worker_is_refused_wherever_it_waits() -> None:
    scene, held = Scene.of(1), call_of("@me/open")
    scene.take(call=held)
    inner = call_of("@me/inner", parent=call_of("@me/between", parent=held))
    refused(lambda: in_other_thread(lambda: scene.take(call=inner)), held)


@pytest.mark.fault(97)
def test_of_two_threads_that_wait_for_each_others_workers_the_second_is_refused_and_the_first_is_served() -> None:
    scene, held = Scene.of(2), [call_of("@me/one"), call_of("@me/two")]
    is_held, may_wait = threading.Event(), threading.Event()

    def hold_and_wait() -> Fake:
        scene.take(call=held[0])
        is_held.set()
        assert may_wait.wait(TIMEOUT)
        return scene.take()

    first = begun(hold_and_wait)
    assert is_held.wait(TIMEOUT)
    mine = scene.take(call=held[1])
    may_wait.set()
    scene.await_waiting(1)
    with pytest.raises(NestingError, match="@me/it would wait for ever: every worker that could serve it is held"):
        scene.take()
    scene.release(mine)
    assert first.join() is mine


@pytest.mark.fault(97)
def test_of_a_ring_of_tasks_and_threads_only_the_one_that_would_close_it_is_refused() -> None:
    async def scenario() -> None:
        scene = Scene.of(3)
        may_wait = [asyncio.Event() for _ in range(2)]
        go = threading.Event()

        async def hold_and_wait(number: int) -> Fake:
            mine = await scene.atake()
            await may_wait[number].wait()
            got = await scene.atake()
            scene.release(mine)
            return got

        def hold_and_wait_in_thread() -> Fake:
            mine = scene.take()
            assert go.wait(TIMEOUT)
            got = scene.take()
            scene.release(mine)
            return got

        tasks = [asyncio.create_task(hold_and_wait(number)) for number in range(2)]
        await auntil(lambda: len(scene.fakes.made) == 2)
        thread = begun(hold_and_wait_in_thread)
        await auntil(lambda: len(scene.workers) == 3)
        may_wait[0].set()
        await auntil(lambda: scene.waiting() == 1)
        go.set()
        await auntil(lambda: scene.waiting() == 2)
        may_wait[1].set()
        with pytest.raises(NestingError):
            await tasks[1]
        assert scene.waiting() == 2
        scene.release(scene.workers[1])  # as the task that was refused would have it
        got = await tasks[0]
        assert await asyncio.to_thread(thread.join) is scene.fakes.made[0]
        assert got is scene.fakes.made[1]

    asyncio.run(scenario())


@pytest.mark.fault(97)
def test_a_task_that_holds_the_only_worker_is_refused_and_another_task_of_its_loop_waits_for_it() -> None:
    async def scenario() -> None:
        scene, held = Scene.of(1), call_of("@me/open")
        worker = await scene.atake(call=held)
        with pytest.raises(NestingError) as caught:
            await scene.atake()
        assert held.id in caught.value.holder
        other = asyncio.create_task(scene.atake())
        await auntil(lambda: scene.waiting() == 1)
        scene.release(worker)
        assert await other is worker

    asyncio.run(scenario())


@pytest.mark.fault(97)
@pytest.mark.parametrize("is_there", [False, True], ids=["started-for-it", "free-before"])
def test_a_sync_wait_that_blocks_the_loop_of_the_task_that_holds_the_only_worker_is_refused_at_once(
    is_there: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def sleep(*_facts: object) -> None:
        raise AssertionError("it is certain, and not waited for")

    async def scenario() -> None:
        scene, held = Scene.of(1), call_of("@me/open")
        scene.pool.grace = TIMEOUT
        go = asyncio.Event()
        if is_there:
            scene.release(in_other_thread(lambda: scene.take(Need(1))))

        async def hold() -> None:
            worker = await scene.atake(Need(1), held)
            await go.wait()
            scene.release(worker)

        holder = asyncio.create_task(hold())
        await auntil(lambda: len(scene.pool.leases) == 1)
        monkeypatch.setattr(engine.runners.slots, "park_thread", sleep)
        refused(scene.take, held)
        go.set()
        await holder

    asyncio.run(scenario())


@pytest.mark.fault(97)
def test_a_stream_that_a_task_opened_for_others_before_it_ended_keeps_no_task_from_waiting() -> None:
    async def scenario() -> None:
        scene = Scene.of(1)
        worker = await asyncio.create_task(scene.atake())  # as asyncio.wait_for opens streams before Python 3.12
        other = asyncio.create_task(scene.atake())
        await auntil(lambda: scene.waiting() == 1 or other.done())
        scene.release(worker)
        assert await other is worker

    asyncio.run(scenario())


@pytest.mark.fault(97)
def test_a_thread_may_wait_while_any_of_those_it_waits_for_goes_on() -> None:
    scene = Scene.of(2)
    mine = scene.take()
    others = in_other_thread(scene.take)
    waiting = begun(scene.take)
    scene.await_waiting(1)
    timer = threading.Timer(0.01, scene.release, [others])
    timer.start()
    assert waiting.join() is others
    timer.join()
    timer = threading.Timer(0.01, scene.release, [others])
    timer.start()
    assert scene.take() is others
    timer.join()
    assert mine.lease is not None


@pytest.mark.fault(97)
def test_a_thread_may_wait_for_one_who_waits_for_one_who_goes_on() -> None:
    scene = Scene.of(3)
    theirs = scene.take(OTHER_CLASS)

    def hold_and_wait() -> None:
        mine = scene.take(CLASS)
        scene.release(scene.take(OTHER_CLASS))
        scene.release(mine)

    first = begun(hold_and_wait)
    until(lambda: any(each.need is OTHER_CLASS for each in waiters_of(scene.pool)))
    second = begun(lambda: scene.take(CLASS))
    scene.await_waiting(2)
    scene.release(theirs)
    first.join()
    assert CLASS.key in second.join().has


@pytest.mark.fault(97)
def test_a_stopped_call_ends_by_itself_so_its_worker_may_be_waited_for() -> None:
    scene, held = Scene.of(1), call_of()
    worker = scene.take(call=held)
    held.stopping = True
    timer = threading.Timer(0.01, scene.release, [worker])
    timer.start()
    assert scene.take() is worker
    timer.join()


@pytest.mark.fault(97)
def test_a_thread_that_keeps_a_class_busy_is_refused_the_same_class_and_gets_any_other() -> None:
    scene, held = Scene.of(2), call_of("@me/class")
    home = scene.take(CLASS, held)
    refused(lambda: scene.take(CLASS), held)
    other = scene.take(OTHER_CLASS)
    assert other is not home
    refused(lambda: scene.take(OTHER_CLASS), other.lease.call)
    refused(lambda: scene.take(Need(only=cast("Worker", home))), held)


@pytest.mark.fault(97)
def test_a_sync_call_that_would_keep_the_loop_of_a_task_that_waits_for_the_only_start_is_refused() -> None:
    async def scenario() -> None:
        scene, waits = Scene.of(1), call_of("@me/waits")
        scene.fakes.gate = threading.Event()
        task = asyncio.create_task(scene.atake(call=waits))
        await auntil(lambda: scene.pool.is_starting)
        refused(scene.take, waits)
        scene.fakes.gate.set()
        assert await task is scene.fakes.made[0]

    asyncio.run(scenario())


@pytest.mark.fault(97)
def test_a_thread_that_keeps_one_instance_of_a_class_busy_may_wait_for_another_that_is_about_to_be_set_up() -> None:
    scene, twice = Scene.of(3), Need(9, 2)
    mine = scene.take(twice)
    scene.fakes.gate = threading.Event()
    first = begun(lambda: scene.release(scene.take(twice)))
    scene.await_waiting(1)
    timer = threading.Timer(0.01, scene.fakes.gate.set)
    timer.start()
    assert scene.take(twice) is scene.fakes.made[1]
    first.join()
    timer.join()
    assert mine.lease is not None
