"""Who gets which worker, with workers that are no processes: order, affinity, refusals, and places given back.

A pool neither reads nor writes, so a fake with the few facts it looks at stands for a worker.
"""

from __future__ import annotations

import asyncio
import contextlib
import linecache
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

import engine.runners.process.pool
import engine.runners.slots
from engine import EngineClosedError, EngineError, NestingError, PredictionCancelledError
from engine._predictors.body import Body
from engine._records import Call
from engine.runners.process.pool import Need, Pool
from engine.runners.process.worker import MOST_KNOWN, Worker
from engine.runners.slots import Patience, Slots, Ticket

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
    """Starts fake workers; `trouble` is raised instead, once each.

    Attributes:
        gate: where there is one, starts wait until it is open.
        turns: where there is one, a start ends each time it is released.
        begun: starts that were begun.
        held: those of them that wait.
    """

    made: list[Fake] = attrs.field(factory=list)
    trouble: list[BaseException] = attrs.field(factory=list)
    gate: threading.Event | None = None
    turns: threading.Semaphore | None = None
    begun: int = 0
    held: int = 0

    def __call__(self) -> Worker:
        self.begun += 1
        self.held += 1
        if self.gate is not None:
            assert self.gate.wait(PATIENCE)
        if self.turns is not None:
            assert self.turns.acquire(timeout=PATIENCE)
        self.held -= 1
        if self.trouble:
            raise self.trouble.pop(0)
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

    def replacing(self, worker: Fake, body: Body | None = None) -> list[Any]:
        """Have a worker replaced; give where the pool's thread puts what it says, a worker and an error."""
        told: list[Any] = []
        holder_body = body or body_of(worker.holder.call)
        self.pool.replace(cast("Worker", worker), holder_body, lambda *news: told.extend(news))
        return told

    def replace(self, worker: Fake) -> Fake:
        """Have a worker replaced, and wait for what the pool's thread says."""
        told = self.replacing(worker)
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
        return self.pool.waiting

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

    @property
    def is_waiting(self) -> bool:
        return self._thread.is_alive()

    def join(self) -> Any:
        self._thread.join(PATIENCE)
        assert not self._thread.is_alive()
        if self.error is not None:
            raise self.error
        return self.result


def elsewhere(work: Callable[[], Any]) -> Any:
    """Do something in another thread, which is over then."""
    return Consumer(work).join()


@pytest.fixture(autouse=True)
def looks_only_when_woken(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let whoever is not woken hang."""
    monkeypatch.setattr(engine.runners.slots, "_PATIENCE", 1000.0)


each_way = pytest.mark.parametrize("way", ["sync", "asyncio"])


def taking(scene: Scene, way: str, need: Need = Need(), body: Body | None = None) -> Consumer:  # noqa: B008 - immutable
    """A thread, or a task of a loop of its own, that takes a worker and keeps it; it waits by now, or has one."""
    its_body = body or body_of(call_of())

    def take() -> Fake:
        return used(scene.pool.take(its_body, need), need)

    async def atake() -> Fake:
        return used(await scene.pool.atake(its_body, need), need)

    consumer = Consumer(take if way == "sync" else lambda: asyncio.run(atake()))

    def waits() -> bool:
        return any(each.call is its_body.call and each.parked for each in scene.pool._queue)

    eventually(lambda: waits() or not consumer.is_waiting)
    return consumer


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
    scene.await_waiting(1)
    lucky = Consumer(scene.take)
    scene.await_waiting(2)
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
def interrupted_at(codes: set[Any], step: int) -> Iterator[list[int]]:
    """Have Ctrl-C come just before the line that these functions run as their `step`-th; give the lines they got to."""
    lines: list[int] = []

    def trace(frame: Any, what: str, _argument: object) -> Any:
        if frame.f_code not in codes:
            return None
        text = linecache.getline(frame.f_code.co_filename, frame.f_lineno)
        if what == "line" and not text.lstrip().startswith("with "):  # as a lock is let go of, no signal is heard
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


def codes_of(*names: str) -> set[Any]:
    return {getattr(Pool, name).__code__ for name in names}


GRANTING: Final = ("_serve", "_grant_free", "_misses_start", "_expecting", "_eligible", "_begin_start")
TAKING: Final = ("take", "_is_granted_at_once", "_enter", "_blocker", "_acceptable", "_refuse_late", "_claim")


@pytest.mark.parametrize("need", [Need(), Need(key=7, limit=1)], ids=["function", "class"])
@pytest.mark.parametrize("way", ["take", "replace"])
def test_wherever_ctrl_c_interrupts_whoever_has_a_worker_started_it_is_the_pools_and_free(way: str, need: Need) -> None:
    interrupted = 0
    codes = codes_of(*TAKING, *GRANTING, "wait") if way == "take" else codes_of("replace")
    while True:
        scene, call = Scene.of(1), call_of()
        gone = scene.take(need, call) if way == "replace" else None
        try:
            with interrupted_at(codes, interrupted + 1):
                scene.replace(gone) if gone is not None else scene.take(need, call)
            break
        except KeyboardInterrupt:
            interrupted += 1
        scene.pool.forsake(call)
        eventually(lambda scene=scene: not scene.pool.is_starting)  # type: ignore[misc]
        assert scene.pool.holders == ()
        assert scene.waiting() == 0
        assert all(each in scene.fakes.made for each in scene.workers)
        assert not any(each.is_new or (each.set_up and each is not gone) for each in scene.workers)
        assert scene.take(Need(key=8, limit=1)) in scene.workers
        assert len(scene.workers) == 1
    assert interrupted > (3 if way == "take" else 2)


@pytest.mark.parametrize("way", ["give", "drop"])
def test_wherever_ctrl_c_interrupts_whoever_gives_a_worker_back_those_who_wait_are_served(way: str) -> None:
    interrupted = 0
    while True:
        scene = Scene.of(1)
        worker = scene.take()
        first, second = (taking(scene, "sync") for _ in range(2))
        lease = worker.holder
        try:
            with interrupted_at(codes_of(way, "_free", "_remove", *GRANTING), interrupted + 1):
                getattr(scene, way)(worker)
            is_over = True
        except KeyboardInterrupt:
            interrupted += 1
            is_over = False
            if worker.holder is lease:  # as a wire does that was interrupted there
                getattr(scene, way)(worker)
            scene.retire(-math.inf)  # as the warden does, now and then
        got = first.join()
        assert (got is worker) is (way == "give")
        scene.give(got)
        assert second.join() is got
        assert scene.workers == [got]
        if is_over:
            break
    assert interrupted > 3


def test_a_worker_whose_call_no_longer_waits_for_its_start_goes_to_the_next_in_line() -> None:
    async def scenario() -> None:
        scene = Scene.of(1)
        scene.fakes.gate = threading.Event()
        left = asyncio.create_task(scene.atake(CLASS))
        await soon(lambda: scene.pool.is_starting)
        next_one = asyncio.create_task(scene.atake(Need(1)))
        await soon(lambda: scene.waiting() == 2)
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
    leave(task)


def test_a_start_that_takes_too_long_fails_its_call_and_leaves_the_worker_to_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(engine.runners.process.pool, "LONGEST_START", 0.01)
    scene = Scene.of(1)
    scene.fakes.gate = threading.Event()
    monkeypatch.setattr(engine.runners.slots, "_PATIENCE", 0.0)  # it looks all the time
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
    scene.await_waiting(1)
    second = Consumer(lambda: scene.take(CLASS))
    scene.await_waiting(2)
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

WHATS: Final = ("give", "drop", "cancel", "bury", "bury busy", "retire", "start ends", "start ends", "start fails")

steps: Final = st.lists(
    st.tuples(st.just("call"), st.integers(0, len(NEEDS) - 1)) | st.tuples(st.sampled_from(WHATS), st.integers(0, 9)),
    max_size=30,
)


@given(most=st.integers(1, 4), are_slow=st.booleans(), steps=steps)
def test_whatever_comes_and_goes_a_worker_serves_one_call_a_class_keeps_its_limit_and_everybody_is_served_in_turn(
    most: int, are_slow: bool, steps: list[tuple[str, int]]
) -> None:
    asyncio.run(Story(most, are_slow).tell(steps))


class Story:
    """Calls that come, wait, are served, stopped and lost, each in a task of its own.

    Where starts are slow, each waits for a step in which it ends or fails.
    """

    def __init__(self, most: int, are_slow: bool) -> None:
        self.scene = Scene.of(most)
        self.most = most
        self.turns = 0  # starts that were let go on
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
            self.do("start ends" if self.scene.pool.is_starting else "give", 0)
            await self.settle()
        assert all(task.done() for task in self.tasks.values()), "somebody was never served"
        for outcome in await asyncio.gather(*self.tasks.values(), return_exceptions=True):
            assert isinstance(outcome, BlockingIOError | asyncio.CancelledError | None), outcome
        assert self.scene.pool.holders == ()
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
            assert self.order[need].pop(0) == number, "somebody who came earlier still waits"
            raise
        assert self.order[need].pop(0) == number, "somebody who came later was served first"
        assert not any(worker is other for _, other, _ in self.serving.values())
        assert worker in self.scene.workers
        end: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self.serving[number] = need, worker, end
        try:
            how = await end
            if how == "replace":
                worker = await self.replace(number, need, worker)
                how = "give"
        finally:
            del self.serving[number]
        getattr(self.scene, how)(worker)

    async def replace(self, number: int, need: Need, worker: Fake) -> Fake:
        """Wait for another worker, as a call does whose own is gone."""
        loop = asyncio.get_running_loop()
        news: asyncio.Future[tuple[Any, Any]] = loop.create_future()
        self.replacing[number] = need
        self.replaced += 1
        body = body_of(worker.holder.call)
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
        elif what == "start ends" and self.scene.pool.is_starting:
            self.let_one_go_on()

    async def fail(self) -> None:
        """Have a start fail: of those who wait for one, somebody is told if those left are not enough."""
        if not self.scene.pool.is_starting:
            return
        told, left = self.told, len(self.scene.pool._starting) - 1
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
        workers, starts = self.scene.workers, len(self.scene.pool._starting)
        assert len(workers) + starts <= self.most
        places = Counter(key for worker in workers for key in worker.has)
        assert all(places[need.key] <= need.limit for need in NEEDS)
        eligible, room = self.eligible(), self.most - len(workers)
        free = [worker for worker in workers if worker.holder is None]
        assert starts >= min(eligible, room), "a call waits for a start that nobody begins"
        assert not eligible or all(worker.set_up for worker in free), "a call waits beside a free worker"
        assert eligible <= room or not free, "a call waits for a start that cannot be"
        for need in NEEDS:
            assert not self.order[need] or not any(need.key in worker.set_up for worker in free)

    def is_still(self) -> bool:
        """Whether no thread of the pool's has anything to do."""
        pool, fakes = self.scene.pool, self.scene.fakes
        with pool._lock:
            moving = sum(request.gone is not None for request in pool._queue)
            passed = self.turns if fakes.turns is not None else fakes.begun
            are_held = fakes.begun - fakes.held == passed and len(pool._starting) == fakes.held
            return are_held and moving == len(self.replacing)


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
    monkeypatch.setattr(engine.runners.slots, "perf_counter", lambda: now[0])
    scene, held = Scene.of(1), call_of("@me/open")
    scene.pool.grace = 30.0

    def hold_and_wait() -> Fake:
        scene.take(call=held)
        return scene.take()

    waiting = Consumer(hold_and_wait)
    eventually(lambda: any(each.call is not held for each in scene.pool._queue))
    [wish] = scene.pool._queue
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
@pytest.mark.parametrize("is_there", [False, True], ids=["started-for-it", "free-before"])
def test_a_sync_wait_that_blocks_the_loop_of_the_task_that_holds_the_only_worker_is_refused_at_once(
    is_there: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def sleep(*_facts: object) -> None:
        raise AssertionError("it is certain, and not waited for")

    async def scenario() -> None:
        scene, held = Scene.of(1), call_of("@me/open")
        scene.pool.grace = PATIENCE
        go = asyncio.Event()
        if is_there:
            scene.give(elsewhere(lambda: scene.take(Need(1))))

        async def hold() -> None:
            worker = await scene.atake(Need(1), held)
            await go.wait()
            scene.give(worker)

        holder = asyncio.create_task(hold())
        await soon(lambda: len(scene.pool.holders) == 1)
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
    eventually(lambda: any(each.need is OTHER_CLASS for each in scene.pool._queue))
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
@pytest.mark.parametrize("fails", [False, True], ids=["started", "failed"])
def test_what_is_started_for_a_task_whose_loop_does_not_turn_as_the_pool_closes_is_let_go(
    fails: bool, is_cancelled: bool
) -> None:
    async def scenario() -> None:
        scene = Scene.of(1)
        worker = elsewhere(scene.take)
        task = asyncio.create_task(scene.atake())
        await soon(lambda: scene.waiting() == 1)
        scene.fakes.gate = threading.Event()
        scene.drop(worker)
        eventually(lambda: scene.fakes.begun == 2)
        scene.pool.close()
        if fails:
            scene.fakes.trouble.append(BlockingIOError("try again"))
        scene.fakes.gate.set()
        scene.pool.join(PATIENCE)
        assert not scene.pool.is_starting
        assert scene.retire(math.inf) == scene.fakes.made[1:]
        if is_cancelled:
            task.cancel()
        with pytest.raises((EngineClosedError, asyncio.CancelledError)):
            await task
        assert (task.cancelled(), scene.pool.is_starting, scene.workers) == (is_cancelled, False, [])
        assert (scene.waiting(), scene.fakes.begun) == (0, 2)

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
    scene = Scene.of(3)
    worker, other = scene.take(Need(1)), scene.take(Need(1))
    scene.fakes.gate = threading.Event()
    starting = taking(scene, "sync", Need(2))
    assert starting.is_waiting
    scene.give(worker)
    assert starting.join() is worker
    scene.give(other)
    assert elsewhere(lambda: scene.take(Need(1))) is other
    assert scene.pool.is_starting
    scene.fakes.gate.set()


# Whichever comes first, a freed worker or a new one


@each_way
def test_a_call_that_waits_while_a_worker_starts_takes_one_that_is_freed_and_the_new_one_is_free(way: str) -> None:
    scene = Scene.of(2)
    worker = scene.take()
    scene.fakes.gate = threading.Event()
    call = taking(scene, way)
    assert (scene.waiting(), scene.pool.is_starting) == (1, True)
    scene.give(worker)
    assert call.join() is worker
    assert (scene.waiting(), scene.pool.is_starting, scene.workers) == (0, True, [worker])
    scene.fakes.gate.set()
    scene.pool.join(PATIENCE)
    started = scene.fakes.made[1]
    assert (scene.workers, started.holder) == ([worker, started], None)
    assert elsewhere(scene.take) is started


@each_way
def test_a_call_that_waits_takes_the_new_worker_where_that_comes_first_and_the_freed_one_is_free(way: str) -> None:
    scene = Scene.of(2)
    worker = scene.take()
    assert taking(scene, way).join() is scene.fakes.made[1]
    scene.give(worker)
    assert (worker.holder, scene.fakes.begun) == (None, 2)


@each_way
@pytest.mark.parametrize("is_freed_first", [True, False], ids=["freed-first", "started-first"])
def test_of_two_calls_that_wait_the_first_takes_what_comes_first_and_the_second_what_comes_next(
    is_freed_first: bool, way: str
) -> None:
    scene = Scene.of(2)
    worker = scene.take()
    scene.fakes.gate = threading.Event()
    first, second = taking(scene, way), taking(scene, way)
    eventually(lambda: scene.fakes.begun == 2)
    assert (scene.waiting(), len(scene.pool._starting)) == (2, 1)  # there is room for one
    if is_freed_first:
        scene.give(worker)
        assert first.join() is worker
        scene.fakes.gate.set()
        assert second.join() is scene.fakes.made[1]
    else:
        scene.fakes.gate.set()
        assert first.join() is scene.fakes.made[1]
        assert scene.waiting() == 1
        scene.give(worker)
        assert second.join() is worker
    assert scene.fakes.begun == 2


@each_way
def test_as_many_workers_are_started_as_calls_wait_for_and_no_more_than_there_is_room_for(way: str) -> None:
    scene = Scene.of(3)
    scene.fakes.turns = threading.Semaphore(0)
    calls = []
    for waiting, starts in enumerate([1, 2, 3, 3], 1):
        calls.append(taking(scene, way))
        eventually(lambda starts=starts: scene.fakes.held == starts)  # type: ignore[misc]
        assert scene.waiting() == waiting
    for each in range(3):
        scene.fakes.turns.release()
        assert calls[each].join() is scene.fakes.made[each]
    scene.give(scene.fakes.made[1])
    assert calls[3].join() is scene.fakes.made[1]
    assert scene.fakes.begun == 3


@each_way
@pytest.mark.fault(11)
def test_a_start_that_fails_after_its_call_took_a_freed_worker_is_nobodys_and_the_next_call_starts_another(
    way: str, caplog: pytest.LogCaptureFixture
) -> None:
    scene = Scene.of(2)
    worker = scene.take()
    scene.fakes.gate = threading.Event()
    scene.fakes.trouble.append(BlockingIOError("try again"))
    call = taking(scene, way)
    scene.give(worker)
    assert call.join() is worker
    scene.fakes.gate.set()
    scene.pool.join(PATIENCE)
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
    scene.give(worker)
    assert first.join() is worker
    scene.fakes.gate.set()
    with pytest.raises(BlockingIOError):
        second.join()
    assert (scene.waiting(), scene.fakes.begun) == (0, 2)


@each_way
@pytest.mark.fault(11)
def test_a_start_that_fails_is_told_to_nobody_where_those_left_are_enough_for_all_who_wait(way: str) -> None:
    scene = Scene.of(3)
    worker = scene.take()
    scene.fakes.turns = threading.Semaphore(0)
    first, second = taking(scene, way), taking(scene, way)
    eventually(lambda: scene.fakes.held == 2)
    scene.give(worker)
    assert first.join() is worker
    scene.fakes.trouble.append(BlockingIOError("try again"))
    scene.fakes.turns.release()
    eventually(lambda: len(scene.pool._starting) == 1)
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
        eventually(lambda number=number: scene.fakes.held == min(most, 2 - number))  # type: ignore[misc]
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
    scene.pool.join(PATIENCE)
    assert len(told) == 5
    assert scene.fakes.begun - len(told) in (0, 1)  # two may fail while one call waits
    assert (scene.waiting(), scene.pool.holders, scene.pool.is_starting) == (0, (), False)


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
    scene.drop(held)  # whoever makes room hears nothing of it
    for each in calls:
        with pytest.raises(RuntimeError, match="new thread"):
            each.join()
    monkeypatch.undo()
    assert not scene.pool.is_starting
    assert scene.take().name == "worker 1"


@each_way
@pytest.mark.parametrize("is_freed", [False, True], ids=["while-it-starts", "as-one-is-freed"])
def test_a_call_that_is_stopped_while_a_worker_starts_leaves_it_to_the_next(is_freed: bool, way: str) -> None:
    scene, body = Scene.of(2), body_of(call_of())
    worker = scene.take()
    scene.fakes.gate = threading.Event()
    stopped, second = taking(scene, way, body=body), taking(scene, way)
    nudge = body.nudge
    assert nudge is not None
    body.call.stopping = True
    if is_freed:
        scene.give(worker)  # before it has looked: it gets nothing any more
        assert second.join() is worker
    nudge()
    with pytest.raises(PredictionCancelledError):
        stopped.join()
    scene.fakes.gate.set()
    scene.pool.join(PATIENCE)
    assert (scene.fakes.begun, scene.waiting()) == (2, 0)
    started = scene.fakes.made[1]
    if is_freed:
        assert started.holder is None
    else:
        assert second.join() is started


@pytest.mark.parametrize("way", ["give", "drop"])
def test_a_call_that_was_stopped_on_a_loop_that_does_not_turn_gets_no_worker_and_no_failure(way: str) -> None:
    scene, body = Scene.of(1), body_of(call_of())
    worker = elsewhere(scene.take)
    loop = asyncio.new_event_loop()
    stopped = loop.create_task(scene.pool.atake(body, Need()))
    loop.run_until_complete(soon(lambda: scene.waiting() == 1))
    second = taking(scene, "sync")
    body.call.stopping = True
    scene.fakes.trouble.append(BlockingIOError("try again"))
    getattr(scene, way)(worker)
    if way == "give":
        assert second.join() is worker
    else:
        with pytest.raises(BlockingIOError):
            second.join()
    scene.pool.join(PATIENCE)
    assert (scene.waiting(), scene.fakes.begun) == (1, 1 if way == "give" else 2)
    assert body.nudge is not None
    body.nudge()
    with pytest.raises(PredictionCancelledError):
        loop.run_until_complete(stopped)
    loop.close()


@pytest.mark.fault(11)
def test_a_start_that_fails_is_not_told_to_a_task_whose_loop_was_closed_but_to_the_next_in_line() -> None:
    scene = Scene.of(1)
    scene.fakes.gate = threading.Event()
    scene.fakes.trouble.append(BlockingIOError("try again"))
    loop = asyncio.new_event_loop()
    task = loop.create_task(scene.atake())
    loop.run_until_complete(soon(lambda: scene.waiting() == 1))
    loop.close()
    second = taking(scene, "sync")
    scene.fakes.gate.set()
    with pytest.raises(BlockingIOError):
        second.join()
    assert (scene.waiting(), scene.fakes.begun) == (0, 1)
    leave(task)


def leave(task: asyncio.Task[Any]) -> None:
    """Let go of a task whose loop was closed, which would be told as pending."""
    with contextlib.suppress(RuntimeError, asyncio.CancelledError):
        task.get_coro().throw(asyncio.CancelledError())
    task._log_destroy_pending = False  # type: ignore[attr-defined]


def test_a_task_that_is_cancelled_while_a_worker_starts_leaves_it_to_the_next_that_comes() -> None:
    async def scenario() -> None:
        scene = Scene.of(2)
        scene.fakes.gate = threading.Event()
        cancelled = asyncio.create_task(scene.atake(CLASS))
        await soon(lambda: scene.fakes.begun == 1)
        cancelled.cancel()
        with pytest.raises(asyncio.CancelledError):
            await cancelled
        next_one = asyncio.create_task(scene.atake(Need(1)))
        await soon(lambda: scene.waiting() == 1)
        scene.fakes.gate.set()
        assert await next_one is scene.fakes.made[0]
        assert scene.fakes.begun == 1

    asyncio.run(scenario())


@each_way
@pytest.mark.fault(103)
def test_closing_while_a_worker_starts_refuses_all_who_wait_at_once_and_starts_no_other(way: str) -> None:
    scene = Scene.of(2)
    worker = scene.take()
    scene.fakes.gate = threading.Event()
    calls = [taking(scene, way) for _ in range(3)]
    eventually(lambda: scene.fakes.begun == 2)
    scene.pool.close()
    for each in calls:
        with pytest.raises(EngineClosedError):
            each.join()
    assert (scene.waiting(), scene.pool.is_starting) == (0, True)
    scene.give(worker)
    scene.fakes.gate.set()
    scene.pool.join(PATIENCE)
    assert scene.retire(math.inf) == [worker, scene.fakes.made[1]]
    assert scene.fakes.begun == 2


@each_way
def test_a_class_that_may_be_set_up_once_has_one_worker_started_and_where_its_first_call_goes_there_go_all(
    way: str,
) -> None:
    scene = Scene.of(3)
    home = scene.take()
    scene.fakes.gate = threading.Event()
    first, second = taking(scene, way, CLASS), taking(scene, way, CLASS)
    assert (scene.waiting(), len(scene.pool._starting)) == (2, 1)
    scene.give(home)
    assert first.join() is home
    scene.fakes.gate.set()
    scene.pool.join(PATIENCE)
    started = scene.fakes.made[1]
    assert (started.holder, started.set_up, scene.waiting()) == (None, set(), 1)
    scene.give(home)
    assert second.join() is home
    assert scene.fakes.begun == 2


@each_way
def test_a_class_whose_first_call_leaves_while_its_worker_starts_is_set_up_there_by_the_next(way: str) -> None:
    scene, body = Scene.of(3), body_of(call_of())
    scene.fakes.gate = threading.Event()
    first, second = taking(scene, way, CLASS, body), taking(scene, way, CLASS)
    body.call.stopping = True
    assert body.nudge is not None
    body.nudge()
    with pytest.raises(PredictionCancelledError):
        first.join()
    scene.fakes.gate.set()
    home = second.join()
    assert (scene.fakes.made, home.set_up) == ([home], {CLASS.key})


@each_way
def test_workers_that_keep_classes_go_to_the_first_in_line_as_far_as_those_that_start_are_not_enough(way: str) -> None:
    scene = Scene.of(3)
    home, other_home = scene.take(CLASS), scene.take(OTHER_CLASS)
    scene.give(home)
    scene.give(other_home)
    scene.fakes.gate = threading.Event()
    first = taking(scene, way, Need(1))
    assert home.holder is None  # one is being started for it
    second = taking(scene, way, Need(1))
    assert first.join() is home
    assert second.is_waiting
    assert other_home.holder is None
    scene.fakes.gate.set()
    assert second.join() is scene.fakes.made[2]


@each_way
@pytest.mark.fault(5)
def test_a_worker_that_is_over_as_soon_as_it_is_started_is_its_calls_who_finds_out_and_no_other_is_started(
    way: str,
) -> None:
    scene = Scene.of(1)
    scene.fakes.gate = threading.Event()
    dead = Fake("dead", is_doomed=True)
    pool = Pool(1, lambda: cast("Worker", dead))
    assert taking(Scene(pool, scene.fakes), way).join() is dead
    pool.give(cast("Worker", dead))
    assert (pool.workers, pool.is_starting) == ((), False)


@each_way
def test_no_call_waits_too_long_for_starts_that_do_not_end_and_each_is_told(
    way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene = Scene.of(1)
    scene.fakes.gate = threading.Event()
    monkeypatch.setattr(engine.runners.slots, "_PATIENCE", 0.0)  # they look all the time
    monkeypatch.setattr(engine.runners.process.pool, "LONGEST_START", 0.01)
    calls = [taking(scene, way) for _ in range(3)]
    for each in calls:
        with pytest.raises(EngineError, match="no worker could be started within"):
            each.join()
    assert (scene.waiting(), scene.fakes.begun) == (0, 1)
    scene.fakes.gate.set()
    assert scene.take() is scene.fakes.made[0]


@each_way
def test_a_long_wait_for_a_start_alone_is_not_logged_as_if_a_call_had_the_worker(
    way: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: Counter[int] = Counter()
    refuse = Pool._refuse

    def count_looks(self: Pool, ticket: Any) -> None:
        looks[id(self)] += 1
        refuse(self, ticket)

    monkeypatch.setattr(engine.runners.slots, "_PATIENCE", 0.0)
    monkeypatch.setattr(Pool, "_refuse", count_looks)
    scene = Scene.of(1)
    scene.fakes.gate = threading.Event()
    call = taking(scene, way)
    eventually(lambda: looks[id(scene.pool)] > 3)
    scene.fakes.gate.set()
    call.join()
    assert caplog.text == ""


@pytest.mark.fault(97)
def test_a_sync_call_that_would_keep_the_loop_of_a_task_that_waits_for_the_only_start_is_refused() -> None:
    async def scenario() -> None:
        scene, waits = Scene.of(1), call_of("@me/waits")
        scene.fakes.gate = threading.Event()
        task = asyncio.create_task(scene.atake(call=waits))
        await soon(lambda: scene.pool.is_starting)
        refused(scene.take, waits)
        scene.fakes.gate.set()
        assert await task is scene.fakes.made[0]

    asyncio.run(scenario())


@pytest.mark.fault(97)
def test_a_thread_that_keeps_one_instance_of_a_class_busy_may_wait_for_another_that_is_about_to_be_set_up() -> None:
    scene, twice = Scene.of(3), Need(9, 2)
    mine = scene.take(twice)
    scene.fakes.gate = threading.Event()
    first = Consumer(lambda: scene.give(scene.take(twice)))
    scene.await_waiting(1)
    timer = threading.Timer(0.01, scene.fakes.gate.set)
    timer.start()
    assert scene.take(twice) is scene.fakes.made[1]
    first.join()
    timer.join()
    assert mine.holder is not None


@each_way
def test_many_calls_that_come_while_workers_start_are_not_each_held_against_all_others(
    way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def compare(_pool: Pool) -> set[Any]:
        raise AssertionError("this takes long for a long queue")

    monkeypatch.setattr(Pool, "_going", compare)
    scene = Scene.of(2)
    scene.fakes.gate = threading.Event()
    calls = [taking(scene, way) for _ in range(9)]
    assert scene.waiting() == 9
    scene.pool.close()
    scene.fakes.gate.set()
    for each in calls:
        with pytest.raises(EngineClosedError):
            each.join()


def interrupting_starts(monkeypatch: pytest.MonkeyPatch, action: Callable[[], None], *, when: str) -> None:
    """Do something before or after the thread of a start begins, in the thread that begins it."""

    def begin(thread: threading.Thread) -> None:
        if thread.name == "engine-starter" and when == "before":
            action()
        start(thread)
        if thread.name == "engine-starter" and when == "after":
            action()

    start = threading.Thread.start
    monkeypatch.setattr(threading.Thread, "start", begin)


def test_a_start_that_ctrl_c_comes_too_late_for_goes_on_and_its_worker_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt() -> None:
        eventually(lambda: scene.fakes.held == 1)
        raise KeyboardInterrupt

    scene = Scene.of(1)
    scene.fakes.gate = threading.Event()
    interrupting_starts(monkeypatch, interrupt, when="after")
    with pytest.raises(KeyboardInterrupt):
        scene.take()
    assert (scene.waiting(), scene.pool.is_starting) == (0, True)
    scene.fakes.gate.set()
    scene.pool.join(PATIENCE)
    assert scene.take() is scene.fakes.made[0]


@pytest.mark.fault(103)
def test_a_pool_that_closes_just_as_a_start_begins_starts_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Scene.of(1)
    interrupting_starts(monkeypatch, scene.pool.close, when="before")
    with pytest.raises(EngineClosedError):
        scene.take()
    scene.pool.join(PATIENCE)
    assert (scene.fakes.begun, scene.pool.is_starting) == (0, False)


# Calls whose worker turned out to be gone


@pytest.mark.fault(5)
@pytest.mark.parametrize("is_freed_first", [True, False], ids=["freed-first", "started-first"])
def test_a_call_whose_worker_is_gone_takes_what_comes_first_before_all_who_wait(is_freed_first: bool) -> None:
    scene = Scene.of(2)
    gone, other = scene.take(CLASS), scene.take()
    waiting = taking(scene, "sync")
    scene.fakes.gate = threading.Event()
    scene.bury(gone)
    lease = gone.holder
    told = scene.replacing(gone)
    eventually(lambda: scene.waiting() == 2 and scene.pool.is_starting)
    assert (told, gone.holder) == ([], None)
    if is_freed_first:
        scene.give(other)
    else:
        scene.fakes.gate.set()
    eventually(lambda: len(told) == 2)
    assert told == [other if is_freed_first else scene.fakes.made[2], None]
    assert told[0].set_up == {CLASS.key}
    assert told[0].holder is lease
    assert waiting.is_waiting
    scene.fakes.gate.set()
    if not is_freed_first:
        scene.give(other)
    assert waiting.join() is (scene.fakes.made[2] if is_freed_first else other)
    assert scene.fakes.begun == 3


@pytest.mark.fault(11)
def test_a_call_whose_worker_is_gone_is_told_why_no_other_could_be_started() -> None:
    scene = Scene.of(1)
    gone = scene.take()
    scene.bury(gone)
    scene.fakes.trouble.append(BlockingIOError("try again"))
    with pytest.raises(BlockingIOError):
        scene.replace(gone)
    assert (scene.workers, scene.pool.holders, scene.waiting()) == ([], (), 0)


@pytest.mark.fault(5, 51)
def test_a_call_that_is_stopped_while_it_waits_for_another_worker_is_told_at_once() -> None:
    scene, body = Scene.of(1), body_of(call_of())
    gone = used(scene.pool.take(body, Need()), Need())
    scene.fakes.gate = threading.Event()
    told = scene.replacing(gone, body)
    eventually(lambda: scene.pool.is_starting and body.nudge is not None)
    body.call.stopping = True
    assert body.nudge is not None
    body.nudge()
    eventually(lambda: len(told) == 2)
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
            scene.drop(gone)  # as who is interrupted just then does
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
    assert next_one[0].holder is not None


@pytest.mark.fault(5)
def test_an_errand_for_a_certain_worker_that_is_gone_goes_to_any_other() -> None:
    scene = Scene.of(1)
    gone = scene.take()
    scene.give(gone)
    scene.take(Need(only=cast("Worker", gone)))
    scene.bury(gone)
    assert scene.replace(gone) is scene.fakes.made[1]


# What is logged


def test_of_all_that_wait_long_for_a_worker_one_is_logged_until_nobody_waits_any_more(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: Counter[int] = Counter()
    refuse = Pool._refuse

    def count_looks(self: Pool, ticket: Any) -> None:
        looks[id(ticket)] += 1
        refuse(self, ticket)

    monkeypatch.setattr(engine.runners.slots, "_PATIENCE", 0.0)
    monkeypatch.setattr(Pool, "_refuse", count_looks)
    scene = Scene.of(2)
    for seen in (1, 2):
        held = [elsewhere(scene.take) for _ in range(2)]
        looks.clear()
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
    monkeypatch.setattr(engine.runners.slots, "_PATIENCE", 0.0)
    slots = Slots("@me/it", 5)
    for _ in range(5):
        slots.take(body_of(call_of()))
    slots._queue.extend(Ticket(call_of()) for _ in range(200))
    for _ in range(200):
        Patience(slots.tag, slots).report()
    [message] = [record.getMessage() for record in caplog.records]
    assert message.startswith("@me/it has been waited for during 0 s, and 200 calls wait for it; held by the open")
    assert message.endswith(" and 2 more")
    monkeypatch.setattr(engine.runners.slots, "_QUIET", 0.0)
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

    monkeypatch.setattr(engine.runners.slots, "current_task", fails)
    with pytest.raises(LookupError):
        slots.take(body_of(call_of()))
    with pytest.raises(LookupError):
        asyncio.run(wait())
    monkeypatch.undo()
    body = body_of(call_of())
    slots.take(body)
    body.let_go()
    asyncio.run(asyncio.wait_for(wait(), PATIENCE))
