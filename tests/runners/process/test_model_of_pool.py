"""Whatever comes and goes in a pool, a worker serves one call, a class keeps its limit, and all are served in turn."""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections import Counter
from typing import Any, Final, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.runners.process.queue import Need
from engine.runners.process.worker import Worker
from tests._kit.internals import lock_of, starts_of, waiters_of
from tests.runners.process.pool_of_fakes import CLASS, Fake, Scene, body_of, used

pytestmark = pytest.mark.usefixtures("looks_only_when_woken")


NEEDS: Final = (Need(1), Need(2), CLASS, Need(9, 2), Need(10, 3))

WHATS: Final = ("release", "evict", "cancel", "reap", "reap busy", "retire", "start ends", "start ends", "start fails")

steps: Final = st.lists(
    st.tuples(st.just("call"), st.integers(0, len(NEEDS) - 1)) | st.tuples(st.sampled_from(WHATS), st.integers(0, 9)),
    max_size=30,
)


@given(most=st.integers(1, 4), are_slow=st.booleans(), steps=steps)
def test_whatever_comes_and_goes_a_worker_serves_one_call_a_class_keeps_its_limit_and_all_are_served_in_turn(
    most: int, are_slow: bool, steps: list[tuple[str, int]]
) -> None:
    asyncio.run(Scenario(most, are_slow).tell(steps))


class Scenario:
    """Calls that come, wait, are served, stopped and lost, each in a task of its own.

    Where starts are slow, each waits for a step in which it ends or fails.
    """

    def __init__(self, most: int, are_slow: bool) -> None:
        self.scene = Scene.of(most)
        self.most = most
        self.turns = 0  # starts that were released
        if are_slow:
            self.scene.fakes.turns = threading.Semaphore(0)
        self.serving: dict[int, tuple[Need, Fake, asyncio.Future[str]]] = {}
        self.replacing: dict[int, Need] = {}
        self.order: dict[Need, list[int]] = {need: [] for need in NEEDS}
        self.tasks: dict[int, asyncio.Task[None]] = {}
        self.replaced = self.failed = self.told = 0

    async def tell(self, steps: list[tuple[str, int]]) -> None:
        for number, (what, choice) in enumerate(steps):
            if what == "call":
                self.tasks[number] = asyncio.create_task(self.call(number, NEEDS[choice]))
                await self.settle()
            elif what == "start fails":
                await self.fail()
            else:
                self.do(what, choice)
                await self.settle()
        while self.scene.pool.is_starting or self.serving:
            self.do("start ends" if self.scene.pool.is_starting else "release", 0)
            await self.settle()
        assert all(task.done() for task in self.tasks.values()), "a call was never served"
        for outcome in await asyncio.gather(*self.tasks.values(), return_exceptions=True):
            assert isinstance(outcome, BlockingIOError | asyncio.CancelledError | None), outcome
        assert self.scene.pool.leases == ()
        assert self.scene.waiting() == 0
        most_begun = len(self.tasks) + self.replaced + self.failed - self.told
        assert self.scene.fakes.begun <= most_begun, "more was started than calls waited for"

    async def call(self, number: int, need: Need) -> None:
        self.order[need].append(number)
        try:
            worker = await self.scene.atake(need)
        except asyncio.CancelledError:
            self.order[need].remove(number)
            raise
        except BlockingIOError:
            self.told += 1
            assert self.order[need].pop(0) == number, "a call that came earlier still waits"
            raise
        assert self.order[need].pop(0) == number, "a call that came later was served first"
        assert not any(worker is other for _, other, _ in self.serving.values())
        assert worker in self.scene.workers
        end: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self.serving[number] = need, worker, end
        try:
            how = await end
            if how == "replace":
                worker = await self.replace(number, need, worker)
                how = "release"
        finally:
            del self.serving[number]
        getattr(self.scene, how)(worker)

    async def replace(self, number: int, need: Need, worker: Fake) -> Fake:
        """Wait for another worker, as a call does whose own is gone."""
        loop = asyncio.get_running_loop()
        news: asyncio.Future[tuple[Any, Any]] = loop.create_future()
        self.replacing[number] = need
        self.replaced += 1
        body = body_of(worker.lease.call)
        self.scene.pool.replace(
            cast("Worker", worker), body, lambda *told: cast("None", loop.call_soon_threadsafe(news.set_result, told))
        )
        found, error = await news
        del self.replacing[number]
        if error is not None:
            self.told += 1
            raise error
        return used(found, need)

    def do(self, what: str, choice: int) -> None:
        going = [each for each in self.serving.values() if not each[2].done()]
        idle = [each for each in self.scene.workers if each.lease is None]
        waiting = [task for number, task in self.tasks.items() if not task.done() and number not in self.serving]
        if what in {"release", "evict"} and going:
            going[choice % len(going)][2].set_result(what)
        elif what == "reap busy" and going:
            _, worker, end = going[choice % len(going)]
            self.scene.reap(worker)
            end.set_result("replace" if choice % 2 else "release")
        elif what == "reap" and idle:
            self.scene.reap(idle[choice % len(idle)])
        elif what == "cancel" and waiting:
            waiting[choice % len(waiting)].cancel()
        elif what == "retire":
            self.scene.retire(math.inf if choice % 2 else time.monotonic() - 60)
        elif what == "start ends" and self.scene.pool.is_starting:
            self.let_one_go_on()

    async def fail(self) -> None:
        """Have a start fail: of those that wait for one, one is told if those left are not enough."""
        if not self.scene.pool.is_starting:
            return
        told, left = self.told, len(starts_of(self.scene.pool)) - 1
        expecting = min(self.eligible(), self.most - len(self.scene.workers))
        self.failed += 1
        self.scene.fakes.trouble.append(BlockingIOError("try again"))
        self.let_one_go_on()
        await self.settle()
        assert self.told - told == (expecting > left)

    def let_one_go_on(self) -> None:
        turns = self.scene.fakes.turns
        assert turns is not None
        self.turns += 1
        turns.release()

    def eligible(self) -> int:
        """How many of those who wait a new worker could serve."""
        count = 0
        for need in NEEDS:
            waiting = len(self.order[need]) + sum(each is need for each in self.replacing.values())
            has_it = sum(need.key in worker.set_up for worker in self.scene.workers)
            count += waiting if need.limit == math.inf else min(waiting, max(0, int(need.limit) - has_it))
        return count

    async def settle(self) -> None:
        is_settled = False
        while not is_settled:
            is_settled = self.is_still()
            for _ in range(6):
                await asyncio.sleep(0.0 if is_settled else 0.0005)  # threads come to what they do
            is_settled = is_settled and self.is_still()
        workers, starts = self.scene.workers, len(starts_of(self.scene.pool))
        assert len(workers) + starts <= self.most
        places = Counter(key for worker in workers for key in worker.has)
        assert all(places[need.key] <= need.limit for need in NEEDS)
        eligible, room = self.eligible(), self.most - len(workers)
        free = [worker for worker in workers if worker.lease is None]
        assert starts >= min(eligible, room), "a call waits for a start that does not begin"
        assert not eligible or all(worker.set_up for worker in free), "a call waits beside a free worker"
        assert eligible <= room or not free, "a call waits for a start that cannot be"
        for need in NEEDS:
            assert not self.order[need] or not any(need.key in worker.set_up for worker in free)

    def is_still(self) -> bool:
        """Whether no thread of the pool's has anything to do."""
        pool, fakes = self.scene.pool, self.scene.fakes
        with lock_of(pool):
            moving = sum(request.lost is not None for request in waiters_of(pool))
            passed = self.turns if fakes.turns is not None else fakes.begun
            are_held = fakes.begun - fakes.held == passed and len(starts_of(pool)) == fakes.held
            return are_held and moving == len(self.replacing)
