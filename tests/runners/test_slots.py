"""Waiting for a slot: what is refused at once, what only after a grace, and what is waited for.

The clock by which a grace passes is the tests' own: it stands still until a test moves it on.
"""

from __future__ import annotations

import asyncio
import gc
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from contextvars import copy_context
from functools import partial
from typing import Any, Final

import attrs
import pytest

import engine.runners.slots
from engine import Engine, NestingError, Predictor
from engine._predictors.body import Body
from engine.runners.slots import LongWait, Slots, Waiter
from tests._kit.internals import blocker_of, is_parked, let_log_again, slots_of, tokens_of, waiters_of
from tests._kit.waits import TIMEOUT, Clock, auntil, until
from tests.runners.process.pool_of_fakes import body_of, call_of

GRACE: Final = 30.0  # seconds, by the clock of the tests
TAG: Final = "@tests/counts"


def counts() -> Iterator[int]:
    yield from range(3)


class Counts:
    def predict(self) -> Iterator[int]:
        yield from range(3)


async def acounts() -> AsyncIterator[int]:
    for number in range(3):
        yield number


class Gated:
    """Waits before its second partial until the gate is open."""

    def __init__(self) -> None:
        self.is_reached, self.gate = threading.Event(), threading.Event()

    def predict(self) -> Iterator[int]:
        yield 0
        self.is_reached.set()
        assert self.gate.wait(TIMEOUT)
        yield 1


@attrs.frozen(eq=False)
class Scene:
    """One predictor with one slot, threads that start its streams and call it, and the clock that its waiters read."""

    muna: Engine
    clock: Clock
    _stack: ExitStack

    def register(self, target: Any, concurrency: int = 1) -> None:
        self.muna.predictors.register(Predictor(TAG, target, concurrency=concurrency), replace=True)

    def thread(self) -> Thread:
        return Thread(self._stack.enter_context(ThreadPoolExecutor(1)))

    @property
    def slots(self) -> Any:
        return slots_of(self.muna, TAG)

    def stream(self, runner: str | None = None) -> Any:
        stream = self.muna.predictions.stream(TAG, runner=runner, prefetch=0)
        self._stack.callback(stream.close)
        return stream

    def call(self, runner: str | None = None) -> Any:
        return self.muna.predictions.create(TAG, runner=runner).value

    def begin_call(self, thread: Thread, runner: str | None = None) -> Future[Any]:
        """Have a thread call the predictor; come back once it waits for the slot."""
        called = thread.begin(lambda: self.call(runner))
        until(lambda: called.done() or self.waiter(thread) is not None, "the wait for the slot")
        return called

    def waiter(self, thread: Thread) -> Any:
        return next((each for each in tuple(waiters_of(self.slots)) if each.thread is thread.itself), None)

    def is_in_vain(self, thread: Thread) -> bool:
        """Whether a thread that waits would be refused if it looked at this time."""
        return blocker_of(self.slots, self.waiter(thread)) is not None

    def pass_a_grace(self) -> None:
        self.clock.now += GRACE


class Thread:
    """A thread that does one thing after the other, as those of a server do."""

    def __init__(self, executor: ThreadPoolExecutor) -> None:
        self._executor = executor
        self.itself = self.do(threading.current_thread)

    def begin(self, work: Callable[[], Any]) -> Future[Any]:
        return self._executor.submit(work)

    def do(self, work: Callable[[], Any]) -> Any:
        return self.begin(work).result(TIMEOUT)


@pytest.fixture
def scene(monkeypatch: pytest.MonkeyPatch) -> Iterator[Scene]:
    clock = Clock()
    monkeypatch.setattr(engine.runners.slots, "perf_counter", clock)
    with ExitStack() as threads, Engine(discover=False, grace=GRACE) as muna, ExitStack() as streams:
        threads.callback(streams.close)  # first, for a thread may wait for what they hold
        made = Scene(muna, clock, threads)
        made.register(counts)
        yield made


def told_by(called: Future[Any], scene: Scene, thread: Thread) -> NestingError:
    """What a call is told that waits in vain."""
    scene.waiter(thread).wake()
    with pytest.raises(NestingError) as caught:
        called.result(TIMEOUT)
    return caught.value


ANYWHERE = pytest.mark.parametrize("runner", [None, "thread"])


# A thread that pulled a stream is not, for that, the one that goes on with it.


def reads_to_its_end(stream: Any) -> None:
    assert list(stream.values()) == [1, 2]


def closes(stream: Any) -> None:
    stream.close()


@ANYWHERE
@pytest.mark.parametrize("goes_on", [reads_to_its_end, closes])
@pytest.mark.parametrize("predictor", [counts, Counts])
def test_a_call_waits_for_a_stream_that_this_thread_pulled_and_another_one_goes_on_with(
    predictor: Any, runner: str | None, goes_on: Callable[[Any], None]
) -> None:
    caller, is_over = threading.current_thread(), threading.Event()

    def go_on() -> None:
        until(lambda: is_over.is_set() or is_parked(caller), "the wait for the slot")
        goes_on(stream)

    with Engine(discover=False, grace=GRACE) as muna:
        muna.predictors.register(Predictor("@tests/counts", predictor, concurrency=1))
        stream = muna.predictions.stream("@tests/counts", runner=runner, prefetch=0)
        assert next(stream).value == 0
        other = threading.Thread(target=go_on)
        other.start()
        try:
            assert muna.predictions.create("@tests/counts", runner=runner).value == 2
        finally:
            is_over.set()
            other.join(TIMEOUT)


@ANYWHERE
def test_a_call_whose_own_thread_keeps_the_stream_it_waits_for_is_refused_once_a_grace_has_passed(
    scene: Scene, runner: str | None
) -> None:
    mine = scene.thread()
    stream = scene.stream(runner)
    mine.do(lambda: next(stream))
    called = scene.begin_call(mine, runner)
    assert not scene.is_in_vain(mine)
    scene.clock.now += GRACE - 0.001
    assert not scene.is_in_vain(mine)
    scene.clock.now += 0.001
    error = told_by(called, scene, mine)
    assert f"waited 30 s in vain for the open prediction {TAG} {stream.id}, which this thread was the last" in str(
        error
    )
    assert "read that stream to its end or close it first" in str(error)
    assert stream.id in error.holder
    mine.do(stream.close)
    assert mine.do(lambda: scene.call(runner)) == 2


@ANYWHERE
@pytest.mark.parametrize("how", ["next", "the same iterator"])
def test_a_call_goes_on_waiting_where_another_thread_has_pulled_the_stream_meanwhile_however_slowly(
    scene: Scene, runner: str | None, how: str
) -> None:
    mine, other = scene.thread(), scene.thread()
    stream = scene.stream(runner)
    values = stream.values()
    mine.do(lambda: next(values))
    called = scene.begin_call(mine, runner)
    scene.clock.now += GRACE - 0.001
    other.do(lambda: next(stream if how == "next" else values))
    for _ in range(3):
        scene.pass_a_grace()
        assert not scene.is_in_vain(mine)
    other.do(stream.close)
    assert called.result(TIMEOUT) == 2


@ANYWHERE
def test_a_stream_that_another_thread_pulled_last_is_no_reason_to_refuse_a_call_in_the_thread_that_began_it(
    scene: Scene, runner: str | None
) -> None:
    mine, other = scene.thread(), scene.thread()
    stream = scene.stream(runner)
    mine.do(lambda: next(stream))
    other.do(lambda: next(stream))
    called = scene.begin_call(mine, runner)
    for _ in range(3):
        scene.pass_a_grace()
        assert not scene.is_in_vain(mine)
    other.do(stream.close)
    assert called.result(TIMEOUT) == 2


@ANYWHERE
def test_a_call_in_the_thread_that_has_gone_on_with_a_stream_of_another_one_is_refused_after_a_grace(
    scene: Scene, runner: str | None
) -> None:
    mine, other = scene.thread(), scene.thread()
    stream = scene.stream(runner)
    other.do(lambda: next(stream))
    mine.do(lambda: next(stream))
    called = scene.begin_call(mine, runner)
    assert not scene.is_in_vain(mine)
    scene.pass_a_grace()
    assert stream.id in told_by(called, scene, mine).holder


@ANYWHERE
@pytest.mark.parametrize("when", ["before", "meanwhile"])
def test_a_call_waits_for_a_pull_of_another_thread_however_long_that_takes(
    scene: Scene, runner: str | None, when: str
) -> None:
    mine, other = scene.thread(), scene.thread()
    gated = Gated()
    scene.register(gated)
    stream = scene.stream(runner)
    values = stream.values()
    mine.do(lambda: next(values))
    called = scene.begin_call(mine, runner) if when == "meanwhile" else None
    pulled = other.begin(lambda: next(values))
    assert gated.is_reached.wait(TIMEOUT)
    called = called or scene.begin_call(mine, runner)
    try:
        for _ in range(3):
            scene.pass_a_grace()
            assert not scene.is_in_vain(mine)
    finally:
        gated.gate.set()
    assert pulled.result(TIMEOUT) == 1
    scene.pass_a_grace()
    assert not scene.is_in_vain(mine)
    other.do(stream.close)
    assert called.result(TIMEOUT) == 1


# Certain is the call itself, a task, and an event loop that stands still: no clock is looked at for these.


def test_a_call_of_the_call_chain_that_holds_the_slot_is_refused_at_once_in_any_thread(scene: Scene) -> None:
    other = scene.thread()

    def calls_itself() -> Any:
        return scene.call()

    def calls_itself_elsewhere() -> Any:
        call = copy_context().run
        return other.do(lambda: call(scene.call))

    for each in (calls_itself, calls_itself_elsewhere):
        scene.register(each)
        with pytest.raises(NestingError, match="of the same thread or call chain, which cannot go on meanwhile"):
            scene.call()


@pytest.mark.parametrize("how", ["acreate", "create", "create in another task"])
@pytest.mark.parametrize("runner", [None, "inline", "thread"])
@pytest.mark.parametrize("predictor", [counts, acounts])
def test_a_call_of_the_task_that_holds_the_slot_or_one_that_keeps_its_loop_is_refused_at_once(
    scene: Scene, predictor: Any, runner: str | None, how: str
) -> None:
    scene.register(predictor)

    async def call() -> None:
        if how == "acreate":
            await scene.muna.predictions.acreate(TAG, runner=runner)
        else:
            scene.call()

    async def main() -> None:
        async with scene.muna.predictions.astream(TAG, runner=runner, prefetch=0) as stream:
            await anext(stream)
            with pytest.raises(NestingError, match="which cannot go on meanwhile") as caught:
                await (asyncio.create_task(call()) if "another" in how else call())
            assert stream.id in caught.value.holder

    asyncio.run(main())


def test_a_sync_call_of_the_task_that_began_a_sync_stream_is_refused_at_once(scene: Scene) -> None:
    async def main() -> None:
        stream = scene.stream()
        next(stream)
        with pytest.raises(NestingError, match="which cannot go on meanwhile"):
            scene.call()
        with pytest.raises(NestingError, match="which cannot go on meanwhile"):
            await scene.muna.predictions.acreate(TAG, runner="inline")

    asyncio.run(main())


# A task whose only sign is its thread


@pytest.mark.parametrize("goes_on", [reads_to_its_end, closes])
def test_a_task_waits_for_a_sync_stream_that_its_thread_began_before_the_loop_and_another_task_goes_on_with(
    scene: Scene, goes_on: Callable[[Any], None]
) -> None:
    stream = scene.stream()
    next(stream)

    async def main() -> None:
        called = asyncio.create_task(scene.muna.predictions.acreate(TAG, runner="inline"))
        await auntil(lambda: scene.slots.waiting, "the wait for the slot")
        goes_on(stream)
        async with asyncio.timeout(TIMEOUT):
            assert (await called).value == 2

    asyncio.run(main())


def test_a_task_that_waits_for_a_sync_stream_of_its_own_thread_is_refused_after_a_grace_that_keeps_no_loop(
    scene: Scene,
) -> None:
    stream = scene.stream()
    next(stream)

    async def main() -> None:
        called = asyncio.create_task(scene.muna.predictions.acreate(TAG, runner="inline"))
        await auntil(lambda: scene.slots.waiting, "the wait for the slot")
        [waiter] = waiters_of(scene.slots)
        assert blocker_of(scene.slots, waiter) is None
        scene.pass_a_grace()
        waiter.wake()
        with pytest.raises(NestingError, match="waited 30 s in vain"):
            async with asyncio.timeout(TIMEOUT):
                await called

    asyncio.run(main())


# Garbage


class Cycle:
    """Keeps a stream, and itself."""

    def __init__(self, stream: Any) -> None:
        self.stream, self.itself = stream, self


@pytest.fixture
def no_collection() -> Iterator[None]:
    """What is garbage in reference cycles stays until the collector is called."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("no_collection")
@pytest.mark.filterwarnings("ignore:a stream of:ResourceWarning")
@ANYWHERE
@pytest.mark.parametrize("predictor", [counts, Counts])
def test_a_call_waits_for_a_half_read_stream_that_is_garbage_in_a_reference_cycle(
    predictor: Any, runner: str | None
) -> None:
    with Engine(discover=False, grace=0.01) as muna:
        muna.predictors.register(Predictor(TAG, predictor, concurrency=1))
        for _ in range(3):  # each time
            kept = Cycle(muna.predictions.stream(TAG, runner=runner, prefetch=0))
            next(kept.stream)
            del kept
            assert muna.predictions.create(TAG, runner=runner).value == 2


@pytest.mark.usefixtures("no_collection")
def test_one_collection_will_do_for_a_wait_and_what_is_certain_needs_none(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    collections: list[str] = []
    monkeypatch.setattr(gc, "collect", lambda: collections.append("one"))
    mine = scene.thread()
    stream = scene.stream()
    mine.do(lambda: next(stream))
    called = scene.begin_call(mine)
    assert collections == []
    scene.pass_a_grace()
    told_by(called, scene, mine)
    assert collections == ["one"]

    def calls_itself() -> Any:
        return scene.call()

    scene.register(calls_itself)
    with pytest.raises(NestingError):
        scene.call()
    assert collections == ["one"]


# More slots than one


def test_a_call_waits_where_only_some_of_the_slots_are_held_by_what_it_keeps(scene: Scene) -> None:
    gated = Gated()
    scene.register(gated, concurrency=2)
    mine, other = scene.thread(), scene.thread()
    stream = scene.stream()
    mine.do(lambda: next(stream))
    others = other.begin(scene.call)
    assert gated.is_reached.wait(TIMEOUT)
    called = scene.begin_call(mine)
    try:
        for _ in range(3):
            scene.pass_a_grace()
            assert not scene.is_in_vain(mine)
    finally:
        gated.gate.set()
    assert (others.result(TIMEOUT), called.result(TIMEOUT)) == (1, 1)


def test_of_threads_that_keep_each_others_slots_one_is_refused_and_the_other_served(scene: Scene) -> None:
    scene.register(counts, concurrency=2)
    mine, other = scene.thread(), scene.thread()
    stream = scene.stream()
    for thread, each in ((mine, scene.stream()), (other, stream)):
        thread.do(partial(next, each))
    first = scene.begin_call(mine)
    scene.pass_a_grace()
    assert not scene.is_in_vain(mine)
    second = scene.begin_call(other)
    assert not scene.is_in_vain(mine)
    scene.pass_a_grace()
    assert scene.is_in_vain(mine)
    assert stream.id in told_by(second, scene, other).holder
    other.do(stream.close)
    assert first.result(TIMEOUT) == 2


# What is logged, and what is not lost


def test_a_long_wait_tells_how_many_calls_wait_and_names_a_few_of_the_leases(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine.runners.slots, "_LONG_WAIT", 0.0)
    slots = Slots("@me/it", 5)
    for _ in range(5):
        slots.take(body_of(call_of()))
    waiters_of(slots).extend(Waiter(call_of()) for _ in range(200))
    for _ in range(200):
        LongWait(slots.tag, slots).report()
    [message] = [record.getMessage() for record in caplog.records]
    assert message.startswith("@me/it has been waited for during 0 s, and 200 calls wait for it; held by the open")
    assert message.endswith(" and 2 more")
    monkeypatch.setattr(engine.runners.slots, "_LOG_INTERVAL", 0.0)
    let_log_again(slots)
    for _ in range(3):
        LongWait(slots.tag, slots).report()  # a while later
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
    body.release_slot()
    asyncio.run(asyncio.wait_for(wait(), TIMEOUT))


@contextmanager
def interrupted_at(codes: set[Any], step: int) -> Iterator[list[int]]:
    """Have Ctrl-C come as Python hears it while these functions run: as one is entered, or a call in it has returned.

    Args:
        codes: of the functions.
        step: which of these times it comes at, from 1.

    Yields:
        The times there were.
    """
    times = [0]

    def profile(frame: Any, what: str, _argument: object) -> None:
        if frame.f_code in codes and what in {"call", "c_return"}:
            times[0] += 1
            if times[0] == step:
                sys.setprofile(None)
                raise KeyboardInterrupt

    before = sys.getprofile()
    sys.setprofile(profile)
    try:
        yield times
    finally:
        sys.setprofile(before)


def test_a_slot_is_free_again_wherever_ctrl_c_interrupts_its_taking_or_its_release() -> None:
    codes = {getattr(Slots, name).__code__ for name in ("take", "_takes_token", "_release")} | {
        Body.release_slot.__code__
    }
    interrupted = 0
    while True:
        slots, body = Slots("@me/it", 1), body_of(call_of())
        try:
            with interrupted_at(codes, interrupted + 1):
                slots.take(body)
                body.release_slot()
            break
        except KeyboardInterrupt:
            interrupted += 1
        body.release_slot()  # as whatever drops the body does
        assert (tokens_of(slots), slots.leases) == (1, ())
    assert interrupted > 6
