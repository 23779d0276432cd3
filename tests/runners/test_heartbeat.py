"""An event loop that waits for workers goes on turning: a heartbeat beside what takes long here.

Nothing is timed. What takes long is held open by a gate that only the heartbeat opens, once it has been heard often
enough: where the loop were kept, it would never be, and the gate's own time-out ends the test.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import signal
import subprocess
import sys
import textwrap
import threading
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Final

import pytest

import engine.runners.process.offload
import engine.runners.process.runner
from engine import Engine, EngineClosedError, PayloadError, PredictionCancelledError
from engine._wire.segments import Segment
from engine.runners.process.spawn import start_worker
from engine.runners.process.worker import Worker
from tests._kit.internals import WORD_OF_AN_ENCODING
from tests._kit.waits import TIMEOUT

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine, Iterator

    from engine._records import Start

ENOUGH: Final = 20  # beats that prove that the loop turns
ROWS: Final = [{"a": number} for number in range(20_000)]  # some hundred KiB of pickle
LARGE: Final = bytes(1 << 19)


class LoopGate:
    """Holds up what passes it, in any thread, until the loop's heartbeat was heard often enough meanwhile."""

    def __init__(self) -> None:
        self.beats = 0
        self.passed = 0
        self.enough = threading.Event()
        self.is_reached = threading.Event()  # a thread stands before it

    def hold(self) -> None:
        self.is_reached.set()
        assert self.enough.wait(TIMEOUT), "the loop did not turn"
        self.passed += 1

    async def beat(self) -> None:
        while True:
            await asyncio.sleep(0.001)
            if self.is_reached.is_set():
                self.beats += 1
                if self.beats == ENOUGH:
                    self.enough.set()


@contextlib.asynccontextmanager
async def heartbeat(gate: LoopGate) -> AsyncIterator[None]:
    beating = asyncio.create_task(gate.beat())
    try:
        yield
    finally:
        beating.cancel()
        await asyncio.wait([beating])


def in_loop(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Run a test in an event loop of its own."""

    @functools.wraps(test)
    def run(**fixtures: Any) -> None:
        asyncio.run(test(**fixtures))

    return run


@pytest.fixture(scope="module")
def worker() -> Iterator[Engine]:
    """Give an engine whose worker is there."""
    with Engine(discover=False, workers=1) as muna:
        muna.predictions.create(echo, {"value": LARGE}, runner="process")  # so that its shared memory is there, too
        yield muna


@pytest.fixture
def gate() -> LoopGate:
    return LoopGate()


def echo(value: Any) -> Any:
    return value


def letters() -> Iterator[str]:
    yield from "abc"


# The start of a worker


@pytest.fixture
def held_start(gate: LoopGate, monkeypatch: pytest.MonkeyPatch) -> LoopGate:
    """Have each start of a worker wait at the gate."""

    def start(facts: Start) -> Worker:
        gate.hold()
        return start_worker(facts)

    monkeypatch.setattr(engine.runners.process.runner, "start_worker", start)
    return gate


@pytest.mark.parametrize("consumer", ["acreate", "astream", "aload"])
@in_loop
async def test_the_loop_turns_while_the_first_worker_starts(consumer: str, held_start: LoopGate) -> None:
    async with Engine(discover=False, workers=1) as muna, heartbeat(held_start):
        if consumer == "acreate":
            prediction = await muna.predictions.acreate(echo, {"value": 1}, runner="process")
            assert prediction.value == 1
        elif consumer == "astream":
            stream = muna.predictions.astream(letters, runner="process")
            assert [value async for value in stream.values()] == ["a", "b", "c"]
        else:
            muna.predictors.register("@me/echo", echo)
            await muna.aload("@me/echo", runner="process")
    assert held_start.passed == 1


@in_loop
async def test_the_loop_turns_while_a_worker_that_died_idle_is_replaced(
    held_start: LoopGate, monkeypatch: pytest.MonkeyPatch
) -> None:
    send = Worker.send
    lost: list[int] = []

    def send_too_late(worker: Worker, chunks: Any) -> bool:
        if not lost and worker.calls > 1:
            lost.append(worker.pid)
            held_start.beats = 0
            worker.signal(signal.SIGKILL)
            assert worker.wait(TIMEOUT)
        return send(worker, chunks)

    async with Engine(discover=False, workers=1) as muna, heartbeat(held_start):
        await muna.predictions.acreate(echo, {"value": 1}, runner="process")
        held_start.enough.clear()
        monkeypatch.setattr(Worker, "send", send_too_late)
        prediction = await muna.predictions.acreate(echo, {"value": 2}, runner="process")
        assert prediction.value == 2
    assert len(lost) == 1
    assert held_start.passed == 2


@in_loop
async def test_a_worker_started_for_a_task_that_was_cancelled_serves_the_next_call(held_start: LoopGate) -> None:
    async with Engine(discover=False, workers=1) as muna:
        left = asyncio.create_task(muna.predictions.acreate(echo, {"value": 1}, runner="process"))
        await asyncio.to_thread(held_start.is_reached.wait, TIMEOUT)
        left.cancel()
        with pytest.raises(asyncio.CancelledError):
            await left
        async with heartbeat(held_start):
            prediction = await muna.predictions.acreate(echo, {"value": 2}, runner="process")
        assert prediction.value == 2
    assert held_start.passed == 1


@in_loop
async def test_why_a_worker_could_not_be_started_reaches_the_call_that_waits_and_the_next_one_works(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(_facts: Start) -> Worker:
        raise OSError("no process is to be had")

    async with Engine(discover=False, workers=1) as muna:
        monkeypatch.setattr(engine.runners.process.runner, "start_worker", refuse)
        with pytest.raises(OSError, match="no process"):
            await muna.predictions.acreate(echo, {"value": 1}, runner="process")
        monkeypatch.undo()
        prediction = await muna.predictions.acreate(echo, {"value": 2}, runner="process")
        assert prediction.value == 2


@in_loop
async def test_an_engine_that_closes_while_a_worker_starts_waits_for_it_and_leaves_nothing(
    held_start: LoopGate,
) -> None:
    muna = Engine(discover=False, workers=1)
    waiting = asyncio.create_task(muna.predictions.acreate(echo, {"value": 1}, runner="process"))
    await asyncio.to_thread(held_start.is_reached.wait, TIMEOUT)
    async with heartbeat(held_start):
        await muna.aclose()
    with pytest.raises(EngineClosedError):
        await waiting
    assert held_start.passed == 1
    assert not [each for each in threading.enumerate() if each.name in {"engine-starter", "engine-supervisor"}]


# Large inputs


class Noting:
    """Notes in which thread it is pickled, after whatever it is told to do; arrives as a number."""

    def __init__(self, first: Callable[[], object] = bool) -> None:
        self.first = first
        self.threads: list[threading.Thread] = []

    def __reduce__(self) -> tuple[Any, ...]:
        self.threads.append(threading.current_thread())
        self.first()
        return int, (7,)


def measured(value: Any) -> tuple[int, int]:
    return len(value[0]), value[-1]


def measured_again(value: Any) -> Iterator[tuple[int, int]]:
    yield measured(value)
    yield measured(value)


@pytest.mark.parametrize("part", [ROWS, LARGE], ids=["records", "bytes"])
@pytest.mark.parametrize("consumer", ["acreate", "astream"])
@in_loop
async def test_the_loop_turns_while_large_inputs_are_encoded(
    worker: Engine, consumer: str, part: Any, gate: LoopGate
) -> None:
    noting = Noting(gate.hold)
    inputs = {"value": [part, noting]}
    async with heartbeat(gate):
        if consumer == "acreate":
            assert (await worker.predictions.acreate(measured, inputs, runner="process")).value == (len(part), 7)
        else:
            stream = worker.predictions.astream(measured_again, inputs, runner="process")
            assert [value async for value in stream.values()] == [(len(part), 7)] * 2
    assert threading.main_thread() not in noting.threads


@in_loop
async def test_what_is_small_is_encoded_where_it_is_and_costs_no_other_thread(worker: Engine) -> None:
    noting = Noting()
    inputs = {"value": [[1.5] * 200, bytearray(1 << 15), {"a": "b" * 10_000}, noting]}
    await worker.predictions.acreate(measured, inputs, runner="process")
    before = set(threading.enumerate())  # with those that imported what runs workers, and encoded the predictor
    await worker.predictions.acreate(measured, inputs, runner="process")
    assert set(threading.enumerate()) <= before
    assert set(noting.threads) == {threading.main_thread()}


@in_loop
async def test_the_loop_turns_while_buffers_are_copied_to_where_a_worker_finds_them(
    worker: Engine, gate: LoopGate, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = Segment.write

    def hold(segment: Segment, *args: Any) -> None:
        gate.hold()
        write(segment, *args)

    async with heartbeat(gate):
        monkeypatch.setattr(Segment, "write", hold)
        prediction = await worker.predictions.acreate(measured, {"value": [LARGE, 7]}, runner="process")
        assert prediction.value == (len(LARGE), 7)
    assert gate.passed == 1


@pytest.mark.parametrize("is_async", [False, True], ids=["sync", "asyncio"])
@in_loop
async def test_inputs_that_change_while_they_are_encoded_are_refused_with_advice(
    worker: Engine, is_async: bool
) -> None:
    value: dict[Any, Any] = {"rows": ROWS}
    value["changing"] = Noting(lambda: value.update({len(value): 0}))
    advised = pytest.raises(PayloadError, match="leave inputs as they are from the first await of a call")
    if is_async:
        with advised:
            await worker.predictions.acreate(echo, {"value": value}, runner="process")
    else:
        with advised:
            worker.predictions.create(echo, {"value": value}, runner="process")


@pytest.mark.parametrize("way", ["cancelled", "closed"])
@in_loop
async def test_a_call_that_ends_while_its_inputs_are_encoded_waits_for_nothing_and_the_rest_is_left(
    way: str, gate: LoopGate
) -> None:
    first, second = Noting(gate.hold), Noting()
    inputs = {"value": [ROWS, first, list(range(100_000)), second]}
    muna = Engine(discover=False, workers=1)
    task = asyncio.create_task(muna.predictions.acreate(measured, inputs, runner="process"))
    await asyncio.to_thread(gate.is_reached.wait, TIMEOUT)
    closing = asyncio.create_task(muna.aclose()) if way == "closed" else None
    if closing is None:
        task.cancel()
    with pytest.raises((asyncio.CancelledError, EngineClosedError)):
        await task
    async with heartbeat(gate):
        if closing is None:
            assert (await muna.predictions.acreate(echo, {"value": 1}, runner="process")).value == 1
        await (closing or muna.aclose())
    assert gate.passed == 1
    assert second.threads == []


@in_loop
async def test_a_call_that_is_stopped_is_stopped_even_where_its_encoding_saw_that_before_its_task(
    worker: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, released, is_over = threading.Event(), threading.Event(), threading.Event()
    tell = WORD_OF_AN_ENCODING.now

    def told(*facts: Any) -> None:
        tell(*facts)
        is_over.set()

    def hold() -> None:
        begun.set()
        assert released.wait(TIMEOUT)

    WORD_OF_AN_ENCODING.replace(monkeypatch, told)
    value = [ROWS, Noting(hold), list(range(100_000))]
    stream = worker.predictions.astream(echo, {"value": value}, runner="process")
    pull = asyncio.ensure_future(anext(stream.values()))
    await asyncio.to_thread(begun.wait, TIMEOUT)
    stream.cancel()
    released.set()
    assert is_over.wait(TIMEOUT)  # while this loop does not turn
    with pytest.raises(PredictionCancelledError):
        await pull
    assert stream.outcome.state == "cancelled"


held_variable: ContextVar[Any] = ContextVar("held_variable")


def variable_seen() -> int:
    return len(held_variable.get()[0])


@in_loop
async def test_the_loop_turns_while_a_large_context_variable_is_encoded(worker: Engine, gate: LoopGate) -> None:
    engine.runners.carry("tests.runners.test_heartbeat:held_variable")
    noting = Noting(gate.hold)
    held_variable.set([ROWS, noting])
    async with heartbeat(gate):
        assert (await worker.predictions.acreate(variable_seen, runner="process")).value == len(ROWS)
    assert threading.main_thread() not in noting.threads


# Predictors that travel by value


def measuring(part: Any) -> Callable[[], Any]:
    """Make a predictor that cannot be imported, and takes something along."""

    def measure() -> int:
        return len(part[0])

    return measure


@pytest.mark.parametrize("consumer", ["acreate", "astream"])
@in_loop
async def test_the_loop_turns_while_a_large_predictor_is_encoded_once_for_all_who_call_it(
    worker: Engine, consumer: str, gate: LoopGate
) -> None:
    noting = Noting(gate.hold)
    predictor = measuring([LARGE, noting])

    async def call() -> Any:
        if consumer == "acreate":
            return (await worker.predictions.acreate(predictor, runner="process")).value
        async with worker.predictions.astream(predictor, runner="process") as stream:
            return await anext(stream.values())

    async with heartbeat(gate):
        assert await asyncio.gather(*(call() for _ in range(5))) == [len(LARGE)] * 5
    assert gate.passed == 1
    assert threading.main_thread() not in noting.threads


@in_loop
async def test_each_call_of_a_predictor_that_cannot_travel_is_told_why(worker: Engine) -> None:
    predictor = measuring([threading.Lock()])
    calls = (worker.predictions.acreate(predictor, runner="process") for _ in range(3))
    told = await asyncio.gather(*calls, return_exceptions=True)
    assert [type(each) for each in told] == [PayloadError] * 3
    assert len({id(each) for each in told}) == 3
    assert all("'part', which the predictor" in str(each) for each in told)


@in_loop
async def test_a_call_that_is_cancelled_while_its_predictor_is_encoded_keeps_no_other_from_it(
    worker: Engine, gate: LoopGate
) -> None:
    predictor = measuring([LARGE, Noting(gate.hold)])
    left, other = (asyncio.ensure_future(worker.predictions.acreate(predictor, runner="process")) for _ in range(2))
    await asyncio.to_thread(gate.is_reached.wait, TIMEOUT)
    left.cancel()
    with pytest.raises(asyncio.CancelledError):
        await left
    async with heartbeat(gate):
        assert (await other).value == len(LARGE)
    assert gate.passed == 1


@pytest.mark.parametrize("verb", ["acreate", "astream"])
def test_what_runs_workers_is_imported_beside_the_loop(verb: str) -> None:
    """In a process of its own, for here it is imported by now; the call gets no further than its inputs."""
    script = f"""
        import asyncio, sys, threading
        from engine import Engine, PayloadError

        class Finder:
            seen = []

            def find_spec(self, name, path=None, target=None):
                if name == "engine.runners.process.runner":
                    self.seen.append(threading.current_thread() is threading.main_thread())

        def show(value):
            return value

        async def main():
            inputs = {{"value": threading.Lock()}}
            async with Engine(discover=False, runner="process") as muna:
                try:
                    if "{verb}" == "acreate":
                        await muna.predictions.acreate(show, inputs)
                    else:
                        await anext(muna.predictions.astream(show, inputs).values())
                except PayloadError:
                    print(Finder.seen)

        sys.meta_path.insert(0, Finder())
        asyncio.run(main())
    """
    command = [sys.executable, "-c", textwrap.dedent(script)]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=50)
    assert (done.stdout, done.stderr) == ("[False]\n", "")


# Large partials and results


class Rebuilt:
    """Passes a gate when it is unpickled in the process that has set one."""

    gate: LoopGate | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return rebuilt, ()


def rebuilt() -> Rebuilt:
    if Rebuilt.gate is not None:
        Rebuilt.gate.hold()
    return Rebuilt()


@pytest.fixture
def held_arrival(gate: LoopGate) -> Iterator[LoopGate]:
    Rebuilt.gate = gate
    yield gate
    Rebuilt.gate = None


def large() -> Any:
    return [[{"a": number} for number in range(20_000)], Rebuilt()]


def large_and_small(count: int) -> Iterator[Any]:
    for number in range(count):
        yield number
        yield large()
        yield str(number)


def large_then_failing() -> Iterator[Any]:
    yield large()
    raise ValueError("after it")


@in_loop
async def test_the_loop_turns_while_a_large_result_is_decoded(worker: Engine, held_arrival: LoopGate) -> None:
    async with heartbeat(held_arrival):
        prediction = await worker.predictions.acreate(large, runner="process")
        assert len(prediction.value[0]) == 20_000
        assert held_arrival.passed == 1
        failed = await worker.predictions.acreate(large_then_failing, runner="process", errors="return")
        assert isinstance(failed.exception, ValueError)
        assert len(failed.value[0]) == 20_000


@in_loop
async def test_large_partials_are_decoded_beside_the_loop_and_arrive_in_order(
    worker: Engine, held_arrival: LoopGate
) -> None:
    async with heartbeat(held_arrival):
        stream = worker.predictions.astream(large_and_small, {"count": 3}, runner="process")
        kinds = [value if isinstance(value, (int, str)) else len(value[0]) async for value in stream.values()]
        assert kinds == [0, 20_000, "0", 1, 20_000, "1", 2, 20_000, "2"]
    assert held_arrival.passed == 3


@in_loop
async def test_two_tasks_share_a_stream_of_large_partials_without_losing_or_doubling_one(
    worker: Engine,
) -> None:
    async def read(stream: Any) -> list[Any]:
        return [value async for value in stream.values()]

    stream = worker.predictions.astream(large_and_small, {"count": 10}, runner="process")
    both = await asyncio.gather(read(stream), read(stream))
    found = [value if isinstance(value, (int, str)) else "large" for part in both for value in part]
    assert sorted(map(str, found)) == sorted([*map(str, range(10)), *map(str, range(10)), *["large"] * 10])


@in_loop
async def test_a_stream_that_is_closed_while_a_large_partial_is_decoded_ends_and_the_next_call_works(
    worker: Engine,
    held_arrival: LoopGate,
) -> None:
    stream = worker.predictions.astream(large_and_small, {"count": 3}, runner="process")
    values = stream.values()
    assert await anext(values) == 0
    pull = asyncio.ensure_future(anext(values))
    await asyncio.to_thread(held_arrival.is_reached.wait, TIMEOUT)
    async with heartbeat(held_arrival):
        await stream.aclose()
        with pytest.raises(StopAsyncIteration):
            await pull
    assert stream.outcome.state == "closed"
    assert (await worker.predictions.acreate(echo, {"value": 1}, runner="process")).value == 1
    assert held_arrival.passed == 1
