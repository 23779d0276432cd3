"""Who gets which worker, with workers that are no processes: order, affinity, refusals, and places given back.

A pool neither reads nor writes, so a fake with the few facts it looks at stands for a worker.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import re
import sys
import threading
import time
from collections import Counter, OrderedDict
from contextvars import copy_context
from typing import TYPE_CHECKING, Any, Final, cast

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

import engine._slots
import engine.runners.pool
from engine import EngineClosedError, EngineError, NestingError, PredictionCancelledError
from engine._partials import Body
from engine._records import Call
from engine._slots import Patience, Slots, Ticket
from engine.runners.pool import Need, Pool
from engine.runners.workers import MOST_KNOWN, Worker

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

PATIENCE: Final = 20.0  # seconds; only a test that fails waits as long


@attrs.define(eq=False)
class Fake:
    """What a pool looks at, and what the worker itself would know."""

    name: str
    holder: Any = None
    idle_since: float = attrs.field(factory=time.monotonic)
    known: dict[int, str] = attrs.field(factory=dict)
    set_up: set[int] = attrs.field(factory=set)
    is_new: bool = True
    is_doomed: bool = False
    wire: object = None
    calls: int = 0
    has: set[int] = attrs.field(factory=set)  # classes that really are set up there


@attrs.define(eq=False)
class Fakes:
    """Starts fake workers; `trouble` is raised instead, once each."""

    made: list[Fake] = attrs.field(factory=list)
    trouble: list[BaseException] = attrs.field(factory=list)
    gate: threading.Event | None = None

    def __call__(self) -> Worker:
        if self.gate is not None:
            assert self.gate.wait(PATIENCE)
        if self.trouble:
            raise self.trouble.pop()
        self.made.append(Fake(f"worker {len(self.made)}"))
        return cast("Worker", self.made[-1])


@attrs.frozen(eq=False)
class Scene:
    """A pool of fakes."""

    pool: Pool
    fakes: Fakes

    @classmethod
    def of(cls, most: int) -> Scene:
        fakes = Fakes()
        return cls(Pool(most, fakes), fakes)

    def take(self, need: Need = Need(), call: Call | None = None) -> Fake:  # noqa: B008 - immutable
        """Take a worker, and use it as a runner would."""
        return used(self.pool.take(body_of(call or call_of()), need), need)

    async def atake(self, need: Need = Need(), call: Call | None = None) -> Fake:  # noqa: B008
        return used(await self.pool.atake(body_of(call or call_of()), need), need)

    def give(self, worker: Fake) -> None:
        self.pool.give(cast("Worker", worker))

    def drop(self, worker: Fake) -> None:
        self.pool.drop(cast("Worker", worker))

    def bury(self, worker: Fake) -> None:
        self.pool.bury(cast("Worker", worker))

    def replace(self, worker: Fake) -> Fake:
        """Have a worker replaced, and wait for what the pool's thread says."""
        told: list[Any] = []
        self.pool.replace(cast("Worker", worker), lambda *news: told.extend(news))
        eventually(lambda: len(told) == 2)
        if told[1] is not None:
            raise told[1]
        return cast("Fake", told[0])

    def retire(self, since: float) -> list[Fake]:
        return cast("list[Fake]", self.pool.retire(since))

    @property
    def workers(self) -> list[Fake]:
        return cast("list[Fake]", list(self.pool.workers))

    def waiting(self) -> int:
        return len(self.pool._line)

    def await_waiting(self, count: int) -> None:
        eventually(lambda: self.waiting() == count)


def used(worker: Worker, need: Need) -> Fake:
    fake = cast("Fake", worker)
    if need.key:
        fake.known[need.key] = f"@me/{need.key}"
    if need.limit != math.inf:
        fake.has.add(need.key)
    return fake


def call_of(tag: str = "@me/it", parent: Call | None = None) -> Call:
    return Call(tag, "process", parent)


def body_of(call: Call) -> Body:
    return Body(call, None, (), {}, follows=False, context=copy_context())


def eventually(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not is_so():
        assert time.monotonic() < deadline, "it did not come to pass"
        time.sleep(0.001)


async def soon(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not is_so():
        assert time.monotonic() < deadline, "it did not come to pass"
        await asyncio.sleep(0.001)


class Consumer:
    """A thread that does one thing after the other, so that it is the one that holds and waits."""

    def __init__(self, work: Callable[[], Any]) -> None:
        self.result: Any = None
        self.error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, args=(work,), daemon=True)
        self._thread.start()

    def _run(self, work: Callable[[], Any]) -> None:
        try:
            self.result = work()
        except BaseException as error:
            self.error = error

    def join(self) -> Any:
        self._thread.join(PATIENCE)
        assert not self._thread.is_alive()
        if self.error is not None:
            raise self.error
        return self.result


def elsewhere(work: Callable[[], Any]) -> Any:
    """Do something in another thread, which is over then."""
    return Consumer(work).join()


@pytest.fixture
def clean() -> Iterator[list[Callable[[], None]]]:
    """What has to be done at the end, so that a test that fails leaves no thread waiting."""
    steps: list[Callable[[], None]] = []
    yield steps
    for step in steps:
        step()


CLASS: Final = Need(7, 1)
OTHER_CLASS: Final = Need(8, 1)


# Places


def test_workers_are_started_one_by_one_as_they_are_needed_and_used_again() -> None:
    scene = Scene.of(3)
    first = scene.take()
    scene.give(first)
    assert scene.take() is first
    second = scene.take()
    assert second is not first
    assert [each.name for each in scene.fakes.made] == ["worker 0", "worker 1"]
    assert [holder.call.tag for holder in scene.pool.holders] == ["@me/it", "@me/it"]


def test_the_worker_that_was_free_last_is_preferred_unless_another_knows_the_predictor() -> None:
    scene = Scene.of(3)
    first, second, third = scene.take(Need(1)), scene.take(Need(2)), scene.take(Need(3))
    for worker in (third, first, second):
        scene.give(worker)
    assert scene.take(Need(2)) is second  # free last, and it knows it
    scene.give(second)
    assert scene.take(Need(4)) is second
    scene.give(second)
    assert scene.take(Need(3)) is third
    scene.give(third)
    assert scene.take(Need(1)) is first


@pytest.mark.fault(11)
def test_a_start_that_fails_gives_its_place_back() -> None:
    scene = Scene.of(1)
    for trouble in (OSError("no process is to be had"), KeyboardInterrupt()):
        scene.fakes.trouble.append(trouble)
        with pytest.raises(type(trouble)):
            scene.take()
        assert scene.pool.holders == ()
    assert scene.take().name == "worker 0"


@pytest.mark.fault(11)
def test_whoever_waits_gets_the_place_of_a_start_that_failed() -> None:
    scene = Scene.of(1)
    scene.fakes.gate = threading.Event()
    scene.fakes.trouble.append(BlockingIOError("try again"))
    unlucky = Consumer(scene.take)
    eventually(lambda: len(scene.pool.holders) == 1)
    lucky = Consumer(scene.take)
    scene.await_waiting(1)
    scene.fakes.gate.set()
    with pytest.raises(BlockingIOError):
        unlucky.join()
    assert lucky.join().name == "worker 0"


def test_a_worker_that_is_dropped_leaves_its_place_to_another() -> None:
    scene = Scene.of(1)
    first = scene.take(Need(1))
    waiting = Consumer(lambda: scene.take(Need(1)))
    scene.await_waiting(1)
    scene.drop(first)
    second = waiting.join()
    assert second is not first
    assert scene.workers == [second]
    scene.give(second)
    assert scene.take(Need(1)) is second


@pytest.mark.fault(5)
def test_a_worker_that_ended_while_it_was_free_is_never_given_to_anybody() -> None:
    scene = Scene.of(2)
    first = scene.take(Need(1))
    scene.give(first)
    scene.bury(first)
    assert scene.workers == []
    assert scene.take(Need(1)) is not first


@pytest.mark.fault(5)
def test_a_worker_that_ended_before_its_call_was_sent_keeps_its_place_until_its_holder_had_it_replaced() -> None:
    scene = Scene.of(1)
    gone = scene.take(CLASS)
    scene.bury(gone)
    waiting = Consumer(scene.take)
    scene.await_waiting(1)
    new = scene.replace(gone)
    assert new is not gone
    assert gone.holder is None
    assert new.set_up == {CLASS.key}
    assert len(scene.fakes.made) == 2
    assert scene.waiting() == 1
    scene.give(new)
    assert waiting.join() is new


def test_a_worker_that_ended_before_its_call_was_sent_and_is_given_back_unused_is_used_no_more() -> None:
    scene = Scene.of(1)
    gone = scene.take(Need(1))
    scene.bury(gone)
    waiting = Consumer(lambda: scene.take(Need(1)))
    scene.await_waiting(1)
    scene.give(gone)
    assert waiting.join() is not gone
    assert gone.holder is None
    assert gone not in scene.workers


@pytest.mark.fault(95)
def test_workers_that_are_let_go_are_those_that_were_free_so_long_and_nobody_gets_them() -> None:
    scene = Scene.of(3)
    long, short, busy = scene.take(Need(1)), scene.take(Need(1)), scene.take(Need(1))
    scene.give(short)
    scene.give(long)
    long.idle_since, short.idle_since, busy.idle_since = 10.0, 20.0, 5.0
    assert scene.retire(9.9) == []
    assert scene.retire(10.0) == [long]
    assert scene.take(Need(1)) is short
    scene.give(short)
    assert scene.retire(math.inf) == [short]
    assert scene.workers == [busy]
    assert scene.take(Need(1)) not in (long, short, busy)


def test_a_call_that_was_interrupted_while_it_took_a_worker_has_none_afterwards() -> None:
    scene, call = Scene.of(2), call_of()
    worker = scene.take(Need(1), call)
    other = scene.take(Need(1))
    waiting = Consumer(scene.take)
    scene.await_waiting(1)
    scene.pool.forsake(call)
    assert waiting.join() is worker
    scene.pool.forsake(call)
    assert worker.holder is not None  # by whoever waited
    other.wire = object()
    scene.pool.forsake(other.holder.call)
    assert other.holder is not None  # its call is about to be sent


def test_a_call_that_was_interrupted_while_its_worker_started_leaves_its_place() -> None:
    scene, call = Scene.of(1), call_of()
    scene.fakes.trouble.append(KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        scene.take(call=call)
    scene.pool.forsake(call)
    assert scene.take().name == "worker 0"


@contextlib.contextmanager
def interrupted_at(code: Any, step: int) -> Iterator[list[int]]:
    """Have Ctrl-C come just before the line that a function runs as its `step`-th; give the lines it got to."""
    lines: list[int] = []

    def trace(frame: Any, what: str, _argument: object) -> Any:
        if frame.f_code is not code:
            return None
        if what == "line":
            lines.append(frame.f_lineno)
            if len(lines) == step:
                raise KeyboardInterrupt
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        yield lines
    finally:
        sys.settrace(before)


@pytest.mark.parametrize("need", [Need(), Need(key=7, limit=1)], ids=["function", "class"])
@pytest.mark.parametrize("way", ["take", "replace"])
def test_wherever_ctrl_c_interrupts_whoever_has_a_worker_started_it_is_the_pools_and_free(way: str, need: Need) -> None:
    interrupted = 0
    code = Pool._started.__code__ if way == "take" else Pool.replace.__code__
    while True:
        scene, call = Scene.of(1), call_of()
        gone = scene.take(need, call) if way == "replace" else None
        try:
            # The first line is one that nobody is interrupted before.
            with interrupted_at(code, interrupted + 2):
                scene.replace(gone) if gone is not None else scene.take(need, call)
            break
        except KeyboardInterrupt:
            interrupted += 1
        scene.pool.forsake(call)
        eventually(lambda scene=scene: not scene.pool.is_starting)  # type: ignore[misc]
        assert scene.pool.holders == ()
        assert all(each in scene.fakes.made for each in scene.workers)
        assert not any(each.is_new or (each.set_up and each is not gone) for each in scene.workers)
        assert scene.take(Need(key=8, limit=1)) in scene.workers
        assert len(scene.workers) == 1
    assert interrupted > 3


def test_a_worker_whose_call_no_longer_waits_for_its_start_goes_to_the_next_in_line() -> None:
    async def scenario() -> None:
        scene = Scene.of(1)
        scene.fakes.gate = threading.Event()
        left = asyncio.create_task(scene.atake(CLASS))
        await soon(lambda: scene.pool.is_starting)
        next_one = asyncio.create_task(scene.atake(Need(1)))
        await soon(lambda: scene.waiting() == 1)
        left.cancel()
        with pytest.raises(asyncio.CancelledError):
            await left
        assert scene.pool.holders == ()
        assert scene.waiting() == 1  # the place is taken until the worker is there
        scene.fakes.gate.set()
        worker = await next_one
        assert scene.fakes.made == scene.workers == [worker]
        assert worker.set_up == set()

    asyncio.run(scenario())


def test_a_call_that_is_stopped_while_its_worker_starts_does_not_wait_for_it() -> None:
    scene, body = Scene.of(1), body_of(call_of())
    scene.fakes.gate = threading.Event()
    consumer = Consumer(lambda: scene.pool.take(body, Need()))
    eventually(lambda: body.nudge is not None)
    body.call.stopping = True
    assert body.nudge is not None
    body.nudge()
    with pytest.raises(PredictionCancelledError):
        consumer.join()
    scene.fakes.gate.set()
    assert scene.take() is scene.fakes.made[0]


def test_what_is_started_for_a_task_whose_loop_was_closed_goes_to_others() -> None:
    scene = Scene.of(1)
    scene.fakes.gate = threading.Event()
    loop = asyncio.new_event_loop()
    task = loop.create_task(scene.atake(CLASS))
    loop.run_until_complete(soon(lambda: scene.pool.is_starting))
    loop.close()
    scene.fakes.gate.set()
    eventually(lambda: not scene.pool.is_starting)
    worker = scene.take(Need(1))
    assert worker.set_up == set()
    with contextlib.suppress(RuntimeError, asyncio.CancelledError):
        task.get_coro().throw(asyncio.CancelledError())  # or it would be told as pending
    task._log_destroy_pending = False  # type: ignore[attr-defined]


def test_a_start_that_takes_too_long_fails_its_call_and_leaves_the_worker_to_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(engine.runners.pool, "LONGEST_START", 0.01)
    scene = Scene.of(1)
    scene.fakes.gate = threading.Event()
    with pytest.raises(EngineError, match="no worker could be started within"):
        scene.take()
    monkeypatch.undo()
    scene.fakes.gate.set()
    assert scene.take() is scene.fakes.made[0]


def test_closing_while_a_worker_starts_refuses_its_call_and_gives_the_worker_to_whoever_lets_it_go() -> None:
    scene = Scene.of(1)
    scene.fakes.gate = threading.Event()
    consumer = Consumer(scene.take)
    eventually(lambda: scene.pool.is_starting)
    scene.pool.close()
    scene.fakes.gate.set()
    with pytest.raises(EngineClosedError):
        consumer.join()
    scene.pool.join(PATIENCE)
    assert scene.retire(math.inf) == scene.fakes.made


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


# Order


def test_threads_are_served_in_the_order_they_came() -> None:
    scene = Scene.of(1)
    worker, served = scene.take(), list[int]()
    consumers = []

    def consume(number: int) -> None:
        taken = scene.take()
        served.append(number)
        scene.give(taken)

    for number in range(5):
        consumers.append(Consumer(lambda number=number: consume(number)))  # type: ignore[misc]
        scene.await_waiting(number + 1)
    scene.give(worker)
    for consumer in consumers:
        consumer.join()
    assert served == [0, 1, 2, 3, 4]


def test_tasks_and_threads_wait_in_one_line_and_nobody_who_comes_later_goes_first() -> None:
    async def scenario() -> None:
        scene = Scene.of(1)
        worker, served = elsewhere(lambda: scene.take(Need(1))), list[str]()

        async def consume(name: str) -> None:
            taken = await scene.atake(Need(1))
            served.append(name)
            scene.give(taken)

        def consume_in_thread(name: str) -> None:
            taken = scene.take(Need(1))
            served.append(name)
            scene.give(taken)

        first = asyncio.create_task(consume("task"))
        await soon(lambda: scene.waiting() == 1)
        second = Consumer(lambda: consume_in_thread("thread"))
        await soon(lambda: scene.waiting() == 2)
        third = asyncio.create_task(consume("later task"))
        await soon(lambda: scene.waiting() == 3)
        scene.give(worker)
        await consume("last")  # the worker is free, and was so last, but others wait for it
        await asyncio.gather(first, third)
        await asyncio.to_thread(second.join)
        assert served == ["task", "thread", "later task", "last"]

    asyncio.run(scenario())


def test_a_call_that_waits_for_a_certain_worker_keeps_nobody_from_another() -> None:
    scene = Scene.of(2)
    certain = scene.take(CLASS)
    pinned = Consumer(lambda: scene.take(CLASS))
    scene.await_waiting(1)
    other = elsewhere(scene.take)
    assert other is not certain
    scene.give(other)
    assert elsewhere(scene.take) is other
    scene.give(certain)
    assert pinned.join() is certain


def test_an_errand_waits_for_the_very_worker_it_is_for() -> None:
    scene = Scene.of(2)
    certain, other = scene.take(), scene.take()
    scene.give(other)
    errand = Consumer(lambda: scene.take(Need(only=cast("Worker", certain))))
    scene.await_waiting(1)
    later = Consumer(lambda: [scene.take(), scene.take()])
    scene.await_waiting(2)
    scene.give(certain)
    assert errand.join() is certain
    scene.give(certain)
    assert later.join() == [other, certain]


# Classes


def test_a_class_goes_where_it_is_set_up_and_waits_for_that_worker_rather_than_be_set_up_in_another() -> None:
    scene = Scene.of(3)
    home = scene.take(CLASS)
    for _ in range(2):
        waiting = Consumer(lambda: scene.take(CLASS))
        scene.await_waiting(1)
        scene.give(home)
        assert waiting.join() is home
    scene.give(home)
    function = scene.take(Need(1))
    assert scene.take(CLASS) is home
    assert function is not home


def test_a_class_that_was_unloaded_may_be_set_up_anywhere_and_then_stays_there() -> None:
    scene = Scene.of(2)
    home = scene.take(CLASS)
    scene.give(home)
    home.set_up.discard(CLASS.key)  # as `unload` does
    assert scene.take(CLASS) is home
    scene.give(home)
    function = scene.take(Need(1))
    assert function is not home
    assert scene.take(CLASS) is home
    assert home.set_up == {CLASS.key}


def test_functions_leave_workers_with_a_class_alone_while_there_is_another_way() -> None:
    scene = Scene.of(2)
    home = scene.take(CLASS)
    scene.give(home)
    plain = scene.take(Need(1))
    assert plain is not home
    scene.give(home)
    scene.give(plain)
    assert scene.take(Need(2)) is plain
    assert scene.take(Need(2)) is home  # no other way


def test_calls_of_a_class_that_come_while_its_worker_starts_wait_for_that_one() -> None:
    scene = Scene.of(3)
    scene.fakes.gate = threading.Event()
    first = Consumer(lambda: scene.take(CLASS))
    eventually(lambda: len(scene.pool.holders) == 1)
    second = Consumer(lambda: scene.take(CLASS))
    scene.await_waiting(1)
    scene.fakes.gate.set()
    home = first.join()
    assert scene.waiting() == 1
    scene.give(home)
    assert second.join() is home
    assert len(scene.fakes.made) == 1


def test_a_class_whose_worker_ended_is_set_up_anew() -> None:
    scene = Scene.of(2)
    home = scene.take(CLASS)
    scene.drop(home)
    assert scene.take(CLASS) is not home


NEEDS: Final = (Need(1), Need(2), CLASS, Need(9, 2), Need(10, 3))

steps: Final = st.lists(
    st.tuples(st.just("call"), st.integers(0, len(NEEDS) - 1))
    | st.tuples(st.sampled_from(["give", "drop", "cancel", "bury", "bury busy", "retire"]), st.integers(0, 9)),
    max_size=30,
)


@given(most=st.integers(1, 4), steps=steps)
def test_whatever_comes_and_goes_a_worker_serves_one_call_a_class_keeps_its_limit_and_everybody_is_served_in_turn(
    most: int, steps: list[tuple[str, int]]
) -> None:
    asyncio.run(Story(most).tell(steps))


class Story:
    """Calls that come, wait, are served, stopped and lost, each in a task of its own."""

    def __init__(self, most: int) -> None:
        self.scene = Scene.of(most)
        self.most = most
        self.serving: dict[int, tuple[Need, Fake, asyncio.Future[str]]] = {}
        self.order: dict[Need, list[int]] = {need: [] for need in NEEDS}
        self.tasks: dict[int, asyncio.Task[None]] = {}

    async def tell(self, steps: list[tuple[str, int]]) -> None:
        for number, (what, choice) in enumerate(steps):
            if what == "call":
                self.tasks[number] = asyncio.create_task(self.call(number, NEEDS[choice]))
            else:
                self.do(what, choice)
            await self.settle()
        while self.serving:
            self.do("give", 0)
            await self.settle()
        assert all(task.done() for task in self.tasks.values()), "somebody was never served"
        await asyncio.gather(*self.tasks.values(), return_exceptions=True)
        assert self.scene.pool.holders == ()
        assert self.scene.waiting() == 0

    async def call(self, number: int, need: Need) -> None:
        self.order[need].append(number)
        try:
            worker = await self.scene.atake(need)
        except asyncio.CancelledError:
            self.order[need].remove(number)
            raise
        assert self.order[need].pop(0) == number, "somebody who came later was served first"
        assert not any(worker is other for _, other, _ in self.serving.values())
        assert worker in self.scene.workers
        end: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self.serving[number] = need, worker, end
        how = await end
        if how == "replace":
            worker = used(cast("Worker", self.scene.replace(worker)), need)
            how = "give"
        del self.serving[number]
        getattr(self.scene, how)(worker)

    def do(self, what: str, choice: int) -> None:
        going = [each for each in self.serving.values() if not each[2].done()]
        idle = [each for each in self.scene.workers if each.holder is None]
        waiting = [task for number, task in self.tasks.items() if not task.done() and number not in self.serving]
        if what in {"give", "drop"} and going:
            going[choice % len(going)][2].set_result(what)
        elif what == "bury busy" and going:
            _, worker, end = going[choice % len(going)]
            self.scene.bury(worker)
            end.set_result("replace" if choice % 2 else "give")
        elif what == "bury" and idle:
            self.scene.bury(idle[choice % len(idle)])
        elif what == "cancel" and waiting:
            waiting[choice % len(waiting)].cancel()
        elif what == "retire":
            self.scene.retire(math.inf if choice % 2 else time.monotonic() - 60)

    async def settle(self) -> None:
        is_settled = False
        while not is_settled:
            is_settled = not self.is_starting()
            for _ in range(6):
                await asyncio.sleep(0.0 if is_settled else 0.0005)  # a start ends when its thread comes to it
            is_settled = is_settled and not self.is_starting()
        workers = self.scene.workers
        assert len(workers) <= self.most
        places = Counter(key for worker in workers for key in worker.has)
        assert all(places[need.key] <= need.limit for need in NEEDS)

    def is_starting(self) -> bool:
        with self.scene.pool._lock:  # in which a start both ends and wakes its call
            return self.scene.pool.is_starting


def test_a_worker_that_keeps_many_predictors_forgets_those_used_longest_ago_but_no_class() -> None:
    worker = Worker.__new__(Worker)
    worker.known, worker.set_up, worker.forgotten = OrderedDict(), set(), []

    def sent(key: int) -> tuple[bool, tuple[int, ...]]:
        lesson = worker.lesson(key)
        assert worker.lesson(key) == lesson  # which notes nothing
        worker.learn(key, "@me/it", lesson[1])
        return lesson

    for key in range(1, MOST_KNOWN + 1):
        assert sent(key) == (True, ())
    assert sent(1) == (False, ())
    worker.set_up.update({2, 3})
    assert sent(1000) == (True, (4,))
    assert sent(4) == (True, (5,))
    worker.set_up.update(worker.known)
    assert sent(2000) == (True, ())
    assert 2000 in worker.known
    worker.forgotten += [2000, 2]
    assert sent(2000) == (True, (2000, 2))
    assert sent(2000) == (False, ())
    assert 2 not in worker.known
    assert 2 not in worker.set_up


# Waits that could never end


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
    scene.give(worker)
    assert scene.take() is worker


@pytest.mark.fault(97)
@pytest.mark.parametrize("comes_back", [False, True], ids=["refused", "served"])
def test_a_thread_that_holds_the_only_worker_waits_a_grace_for_another_to_give_it_back(
    comes_back: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [1000.0]
    monkeypatch.setattr(engine._slots, "perf_counter", lambda: now[0])
    scene, held = Scene.of(1), call_of("@me/open")
    scene.pool.grace = 30.0

    def hold_and_wait() -> Fake:
        scene.take(call=held)
        return scene.take()

    waiting = Consumer(hold_and_wait)
    scene.await_waiting(1)
    [wish] = scene.pool._line
    [worker] = scene.workers
    for seconds, is_in_vain in ((0.0, False), (29.9, False), (0.1, True)):
        now[0] += seconds
        assert (scene.pool._blocker(wish) is not None) is is_in_vain
    if comes_back:
        scene.give(worker)
        assert waiting.join() is worker
    else:
        wish.wake()
        refused(waiting.join, held)


@pytest.mark.fault(97)
def test_a_call_made_by_the_body_that_holds_the_only_worker_is_refused_wherever_it_waits() -> None:
    scene, held = Scene.of(1), call_of("@me/open")
    scene.take(call=held)
    inner = call_of("@me/inner", parent=call_of("@me/between", parent=held))
    refused(lambda: elsewhere(lambda: scene.take(call=inner)), held)


@pytest.mark.fault(97)
def test_of_two_threads_that_wait_for_each_others_workers_the_second_is_refused_and_the_first_is_served() -> None:
    scene, held = Scene.of(2), [call_of("@me/one"), call_of("@me/two")]
    is_held, may_wait = threading.Event(), threading.Event()

    def hold_and_wait() -> Fake:
        scene.take(call=held[0])
        is_held.set()
        assert may_wait.wait(PATIENCE)
        return scene.take()

    first = Consumer(hold_and_wait)
    assert is_held.wait(PATIENCE)
    mine = scene.take(call=held[1])
    may_wait.set()
    scene.await_waiting(1)
    with pytest.raises(NestingError, match="@me/it would wait for ever: every worker that could serve it is held"):
        scene.take()
    scene.give(mine)
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
            scene.give(mine)
            return got

        def hold_and_wait_in_thread() -> Fake:
            mine = scene.take()
            assert go.wait(PATIENCE)
            got = scene.take()
            scene.give(mine)
            return got

        tasks = [asyncio.create_task(hold_and_wait(number)) for number in range(2)]
        await soon(lambda: len(scene.fakes.made) == 2)
        thread = Consumer(hold_and_wait_in_thread)
        await soon(lambda: len(scene.workers) == 3)
        may_wait[0].set()
        await soon(lambda: scene.waiting() == 1)
        go.set()
        await soon(lambda: scene.waiting() == 2)
        may_wait[1].set()
        with pytest.raises(NestingError):
            await tasks[1]
        assert scene.waiting() == 2
        scene.give(scene.workers[1])  # as the task that was refused would have it
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
        await soon(lambda: scene.waiting() == 1)
        scene.give(worker)
        assert await other is worker

    asyncio.run(scenario())


@pytest.mark.fault(97)
def test_a_sync_wait_that_blocks_the_loop_of_the_task_that_holds_the_only_worker_is_refused() -> None:
    async def scenario() -> None:
        scene, held = Scene.of(1), call_of("@me/open")
        go = asyncio.Event()

        async def hold() -> None:
            worker = await scene.atake(call=held)
            await go.wait()
            scene.give(worker)

        holder = asyncio.create_task(hold())
        await soon(lambda: len(scene.workers) == 1)
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
        await soon(lambda: scene.waiting() == 1 or other.done())
        scene.give(worker)
        assert await other is worker

    asyncio.run(scenario())


@pytest.mark.fault(97)
def test_a_thread_may_wait_while_anybody_it_waits_for_goes_on() -> None:
    scene = Scene.of(2)
    mine = scene.take()
    others = elsewhere(scene.take)
    waiting = Consumer(scene.take)
    scene.await_waiting(1)
    timer = threading.Timer(0.01, scene.give, [others])
    timer.start()
    assert waiting.join() is others
    timer.join()
    timer = threading.Timer(0.01, scene.give, [others])
    timer.start()
    assert scene.take() is others
    timer.join()
    assert mine.holder is not None


@pytest.mark.fault(97)
def test_a_thread_may_wait_for_one_who_waits_for_one_who_goes_on() -> None:
    scene = Scene.of(3)
    theirs = scene.take(OTHER_CLASS)

    def hold_and_wait() -> None:
        mine = scene.take(CLASS)
        scene.give(scene.take(OTHER_CLASS))
        scene.give(mine)

    first = Consumer(hold_and_wait)
    scene.await_waiting(1)

    second = Consumer(lambda: scene.take(CLASS))
    scene.await_waiting(2)
    scene.give(theirs)
    first.join()
    assert CLASS.key in second.join().has


@pytest.mark.fault(97)
def test_a_stopped_call_ends_by_itself_so_its_worker_may_be_waited_for() -> None:
    scene, held = Scene.of(1), call_of()
    worker = scene.take(call=held)
    held.stopping = True
    timer = threading.Timer(0.01, scene.give, [worker])
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
    refused(lambda: scene.take(OTHER_CLASS), other.holder.call)
    refused(lambda: scene.take(Need(only=cast("Worker", home))), held)


@pytest.mark.fault(97)
@pytest.mark.fault(103)
def test_a_pool_that_closes_refuses_whoever_waits_or_comes() -> None:
    async def scenario() -> None:
        scene = Scene.of(1)
        worker = elsewhere(lambda: scene.take(Need(1)))
        thread = Consumer(scene.take)
        await soon(lambda: scene.waiting() == 1)
        task = asyncio.create_task(scene.atake())
        await soon(lambda: scene.waiting() == 2)
        scene.pool.close()
        with pytest.raises(EngineClosedError):
            await asyncio.to_thread(thread.join)
        with pytest.raises(EngineClosedError):
            await task
        scene.give(worker)
        for need in (Need(), Need(1), CLASS):
            with pytest.raises(EngineClosedError):
                scene.take(need)
            with pytest.raises(EngineClosedError):
                await scene.atake(need)
        assert (scene.waiting(), scene.pool.holders) == (0, ())

    asyncio.run(scenario())


@pytest.mark.fault(103)
@pytest.mark.parametrize("is_cancelled", [False, True], ids=["it-goes-on", "it-is-cancelled"])
def test_a_worker_granted_to_a_task_that_has_not_heard_of_it_is_free_once_the_pool_closes(is_cancelled: bool) -> None:
    async def scenario() -> None:
        scene = Scene.of(1)
        worker = elsewhere(scene.take)
        task = asyncio.create_task(scene.atake())
        await soon(lambda: scene.waiting() == 1)
        scene.give(worker)
        assert worker.holder is not None
        scene.pool.close()
        assert scene.retire(time.monotonic()) == [worker]
        worker.holder = leaving = object()  # as by who has it tear down what it set up
        if is_cancelled:
            task.cancel()
        with pytest.raises((EngineClosedError, asyncio.CancelledError)):
            await task
        assert (task.cancelled(), worker.holder, scene.workers) == (is_cancelled, leaving, [])

    asyncio.run(scenario())


@pytest.mark.fault(103)
@pytest.mark.parametrize("is_cancelled", [False, True], ids=["it-goes-on", "it-is-cancelled"])
def test_a_place_granted_to_a_task_that_has_not_heard_of_it_keeps_no_closed_pool_starting(is_cancelled: bool) -> None:
    async def scenario() -> None:
        scene = Scene.of(1)
        worker = elsewhere(scene.take)
        task = asyncio.create_task(scene.atake())
        await soon(lambda: scene.waiting() == 1)
        scene.drop(worker)
        assert (scene.waiting(), scene.pool.is_starting) == (0, True)
        scene.pool.close()
        assert not scene.pool.is_starting
        if is_cancelled:
            task.cancel()
        with pytest.raises((EngineClosedError, asyncio.CancelledError)):
            await task
        assert (task.cancelled(), scene.pool.is_starting, scene.fakes.made) == (is_cancelled, False, [worker])

    asyncio.run(scenario())


def test_a_place_that_was_got_just_before_the_pool_closed_starts_nobody() -> None:
    scene = Scene.of(1)
    gone = scene.take()
    scene.pool.close()
    with pytest.raises(EngineClosedError):
        scene.replace(gone)
    assert (len(scene.fakes.made), scene.pool.holders, scene.workers) == (1, (), [])


@pytest.mark.fault(51)
def test_a_call_that_was_stopped_gets_no_worker_and_one_that_waits_leaves_the_line() -> None:
    scene = Scene.of(1)
    worker = scene.take(Need(1))
    body = body_of(call_of())
    waiting = Consumer(lambda: scene.pool.take(body, Need(1)))
    scene.await_waiting(1)
    body.call.stopping = True
    nudge = body.nudge
    assert nudge is not None
    nudge()
    with pytest.raises(PredictionCancelledError):
        waiting.join()
    assert (scene.waiting(), body.nudge) == (0, None)
    scene.give(worker)
    with pytest.raises(PredictionCancelledError):
        scene.take(Need(1), body.call)
    assert scene.pool.holders == ()


@pytest.mark.fault(75)
@pytest.mark.parametrize("has_worker", [True, False], ids=["a-worker", "a-place"])
def test_what_a_task_was_granted_just_before_it_was_cancelled_goes_to_the_next(has_worker: bool) -> None:
    async def scenario() -> None:
        scene = Scene.of(1)
        worker = elsewhere(scene.take)
        cancelled, next_one = (asyncio.create_task(scene.atake()) for _ in range(2))
        await soon(lambda: scene.waiting() == 2)
        if has_worker:
            scene.give(worker)
        else:
            scene.drop(worker)
        cancelled.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await cancelled
        assert cancelled.cancelled()
        assert (await next_one is worker) is has_worker

    asyncio.run(scenario())


def test_starting_a_worker_holds_no_lock_so_others_come_and_go_meanwhile() -> None:
    scene = Scene.of(2)
    worker = scene.take(Need(1))
    scene.fakes.gate = threading.Event()
    starting = Consumer(scene.take)
    eventually(lambda: len(scene.pool.holders) == 2)
    scene.give(worker)
    assert elsewhere(lambda: scene.take(Need(1))) is worker
    scene.fakes.gate.set()
    assert starting.join() is not worker


# What is logged


def test_of_all_that_wait_long_for_a_worker_one_is_logged_until_nobody_waits_any_more(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: Counter[int] = Counter()
    refuse = Pool._refuse

    def count_looks(self: Pool, ticket: Any) -> None:
        looks[id(ticket)] += 1
        refuse(self, ticket)

    monkeypatch.setattr(engine._slots, "_PATIENCE", 0.0)
    monkeypatch.setattr(Pool, "_refuse", count_looks)
    scene = Scene.of(2)
    for seen in (1, 2):
        looks.clear()
        held = [elsewhere(scene.take) for _ in range(2)]
        waiting = [Consumer(lambda: scene.give(scene.take()))]
        scene.await_waiting(1)
        waiting += [Consumer(lambda: scene.give(scene.take())) for _ in range(19)]
        eventually(lambda: len(looks) == 20 and min(looks.values()) > 2)  # one as it came, one before it was logged
        for worker in held:
            scene.give(worker)
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


def test_a_long_wait_tells_how_many_calls_wait_and_names_a_few_of_the_holders(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine._slots, "_PATIENCE", 0.0)
    slots = Slots("@me/it", 5)
    for _ in range(5):
        slots.take(body_of(call_of()))
    slots._queue.extend(Ticket(call_of()) for _ in range(200))
    for _ in range(200):
        Patience(slots.tag, slots).report()
    [message] = [record.getMessage() for record in caplog.records]
    assert message.startswith("@me/it has been waited for during 0 s, and 200 calls wait for it; held by the open")
    assert message.endswith(" and 2 more")
    monkeypatch.setattr(engine._slots, "_QUIET", 0.0)
    slots._quiet_until = 0.0
    for _ in range(3):
        Patience(slots.tag, slots).report()  # a while later
    assert len(caplog.records) == 4


def test_a_slot_that_could_not_be_held_is_not_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    slots = Slots("@me/it", 1)

    def fails() -> None:
        raise LookupError("who is it")

    async def wait() -> None:
        await slots.atake(body_of(call_of()))

    monkeypatch.setattr(engine._slots, "current_task", fails)
    with pytest.raises(LookupError):
        slots.take(body_of(call_of()))
    with pytest.raises(LookupError):
        asyncio.run(wait())
    monkeypatch.undo()
    body = body_of(call_of())
    slots.take(body)
    body.let_go()
    asyncio.run(asyncio.wait_for(wait(), PATIENCE))
