"""An event loop that waits for workers goes on turning: a heartbeat beside what takes long here.

Nothing is timed. What takes long is held open by a gate that only the heartbeat opens, once it has been heard often
enough: where the loop were kept, it would never be, and the gate's own patience ends the test.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import signal
import threading
from typing import TYPE_CHECKING, Any, Final

import pytest

import engine.runners.process
from engine import Engine, EngineClosedError
from engine.runners.workers import Worker, start_worker

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine, Iterator

    from engine._records import Start

PATIENCE: Final = 10.0  # seconds; only a test that fails waits as long
ENOUGH: Final = 20  # beats that prove that the loop turns


class Gate:
    """Holds up what passes it, in any thread, until the loop's heartbeat was heard often enough meanwhile."""

    def __init__(self) -> None:
        self.beats = 0
        self.passed = 0
        self._enough = threading.Event()
        self.is_shut = threading.Event()  # somebody stands before it

    def hold(self) -> None:
        self.is_shut.set()
        assert self._enough.wait(PATIENCE), "the loop did not turn"
        self.passed += 1

    async def beat(self) -> None:
        while True:
            await asyncio.sleep(0.0)
            if self.is_shut.is_set():
                self.beats += 1
                if self.beats == ENOUGH:
                    self._enough.set()


@contextlib.asynccontextmanager
async def heartbeat(gate: Gate) -> AsyncIterator[None]:
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


@pytest.fixture
def gate() -> Gate:
    return Gate()


def echo(value: Any) -> Any:
    return value


def letters() -> Iterator[str]:
    yield from "abc"


# The start of a worker


@pytest.fixture
def held_start(gate: Gate, monkeypatch: pytest.MonkeyPatch) -> Gate:
    """Have each start of a worker wait at the gate."""

    def start(facts: Start) -> Worker:
        gate.hold()
        return start_worker(facts)

    monkeypatch.setattr(engine.runners.process, "start_worker", start)
    return gate


@pytest.mark.parametrize("consumer", ["acreate", "astream", "aload"])
@in_loop
async def test_the_loop_turns_while_the_first_worker_starts(consumer: str, held_start: Gate) -> None:
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
    held_start: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    send = Worker.send
    lost: list[int] = []

    def send_too_late(worker: Worker, chunks: Any) -> bool:
        if not lost and worker.calls > 1:
            lost.append(worker.pid)
            held_start.beats = 0
            worker.signal(signal.SIGKILL)
            assert worker.wait(PATIENCE)
        return send(worker, chunks)

    async with Engine(discover=False, workers=1) as muna, heartbeat(held_start):
        await muna.predictions.acreate(echo, {"value": 1}, runner="process")
        held_start._enough.clear()
        monkeypatch.setattr(Worker, "send", send_too_late)
        prediction = await muna.predictions.acreate(echo, {"value": 2}, runner="process")
        assert prediction.value == 2
    assert len(lost) == 1
    assert held_start.passed == 2


@in_loop
async def test_a_worker_started_for_a_task_that_was_cancelled_serves_the_next_call(held_start: Gate) -> None:
    async with Engine(discover=False, workers=1) as muna:
        left = asyncio.create_task(muna.predictions.acreate(echo, {"value": 1}, runner="process"))
        await asyncio.to_thread(held_start.is_shut.wait, PATIENCE)
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
        monkeypatch.setattr(engine.runners.process, "start_worker", refuse)
        with pytest.raises(OSError, match="no process"):
            await muna.predictions.acreate(echo, {"value": 1}, runner="process")
        monkeypatch.undo()
        prediction = await muna.predictions.acreate(echo, {"value": 2}, runner="process")
        assert prediction.value == 2


@in_loop
async def test_an_engine_that_closes_while_a_worker_starts_waits_for_it_and_leaves_nothing(held_start: Gate) -> None:
    muna = Engine(discover=False, workers=1)
    waiting = asyncio.create_task(muna.predictions.acreate(echo, {"value": 1}, runner="process"))
    await asyncio.to_thread(held_start.is_shut.wait, PATIENCE)
    async with heartbeat(held_start):
        await muna.aclose()
    with pytest.raises(EngineClosedError):
        await waiting
    assert held_start.passed == 1
    assert not [each for each in threading.enumerate() if each.name in {"engine-starter", "engine-warden"}]
