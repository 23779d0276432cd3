"""Nothing is left behind by thousands of calls, or by workers that are retired and replaced."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import random
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from engine import Engine, PayloadError, WorkerLostError
from engine.runners.process import supervisor
from tests._kit.gates import Journal
from tests._kit.processes import child_processes
from tests._kit.waits import until
from tests.faults.producers import aecho, afailing, athree, echo, failing, holdings, three
from tests.faults.worker_bodies import number_of_worker, numbers_after_worker

GRACE = 0.5  # seconds; no test here needs more than the first rung


# 94: leaks over time.


def one_round(muna: Engine) -> int:
    """Every way a call in a worker can end but by its loss, once; give how many calls that were."""
    inputs, predictions = {"number": 5}, muna.predictions
    calls = 0
    predictor: Callable[..., Any]
    for predictor in (echo, aecho):
        predictions.create(predictor, {"value": [bytes(1 << 16)]}, runner="process")
        with predictions.stream(predictor, {"value": 1}, runner="process") as stream:
            next(stream)
        calls += 2
    for predictor in (three, athree):
        predictions.create(predictor, inputs, runner="process")
        list(predictions.stream(predictor, inputs, runner="process"))
        with predictions.stream(predictor, inputs, runner="process", prefetch=0) as stream:
            next(stream)
        stream = predictions.stream(predictor, inputs, runner="process")
        next(stream)
        stream.cancel()
        calls += 4
    for predictor in (failing, afailing):
        predictions.create(predictor, inputs, runner="process", errors="return")
        with contextlib.suppress(ValueError):
            list(predictions.stream(predictor, inputs, runner="process"))
        calls += 2

    def made(number: int) -> int:
        return number

    predictions.create(made, inputs, runner="process")
    with contextlib.suppress(PayloadError):
        predictions.create(made, {"number": threading.Lock()}, check=False, runner="process")
    return calls + 2


async def one_async_round(muna: Engine) -> int:
    inputs, predictions = {"number": 5}, muna.predictions
    for predictor in (three, athree):
        await predictions.acreate(predictor, inputs, runner="process")
        async with predictions.astream(predictor, inputs, runner="process", prefetch=0) as stream:
            await anext(stream)
        task = asyncio.create_task(predictions.acreate(predictor, inputs, runner="process"))
        await asyncio.sleep(0)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
    return 6


def held() -> tuple[int, int, int, int]:
    gc.collect()
    children, threads, descriptors = len(child_processes()), threading.active_count(), len(os.listdir("/dev/fd"))  # noqa: PTH208
    return sys.getallocatedblocks(), children, threads, descriptors


@pytest.mark.fault(94)
def test_two_thousand_calls_leave_nothing_behind_here_or_in_the_worker() -> None:
    with Engine(discover=False, workers=1) as muna, asyncio.Runner() as runner:

        def rounds(count: int) -> int:
            return sum(one_round(muna) + runner.run(one_async_round(muna)) for _ in range(count))

        rounds(60)  # until the caches of the interpreter are full
        there_before, here_before = muna.predictions.create(holdings, runner="process").value, held()
        calls = rounds(80)
        there_after, here_after = muna.predictions.create(holdings, runner="process").value, held()
        assert calls >= 1600
        pid, blocks, *others = zip(there_before, there_after, strict=True)
        assert pid[0] == pid[1]
        assert blocks[1] - blocks[0] < calls / 2, f"{blocks[1] - blocks[0]} blocks more in the worker"
        assert all(early == late for early, late in others), "threads or descriptors more in the worker"
        assert here_after[0] - here_before[0] < calls / 2, f"{here_after[0] - here_before[0]} blocks more here"
        assert here_after[1:] == here_before[1:]


@pytest.mark.fault(94)
def test_engines_with_workers_that_come_and_go_leave_nothing_behind() -> None:
    def come_and_go() -> None:
        with Engine(discover=False, workers=1, grace=GRACE) as muna:
            muna.predictions.create(echo, {"value": bytes(1 << 16)}, runner="process")

    come_and_go()
    before = held()
    for _ in range(3):
        come_and_go()
    assert held()[1:] == before[1:]


# 95, 96: workers that come and go.


@pytest.mark.fault(95)
def test_a_worker_that_is_idle_for_long_is_let_go_torn_down_and_replaced_when_it_is_needed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = Journal(tmp_path / "journal")

    class Model:
        def predict(self) -> int:
            return os.getpid()

        def teardown(self) -> None:
            journal.note("torn-down")

    monkeypatch.setattr(supervisor, "_LONGEST_SLEEP", 0.01)
    with Engine(discover=False, workers=1, grace=10) as muna:
        pid = muna.predictions.create(Model, runner="process").value
        with muna.predictions.stream(numbers_after_worker, runner="process") as stream:
            assert next(stream).value == pid
            monkeypatch.setattr(supervisor, "IDLE", 0.0)
            assert [next(stream).value for _ in range(500)] == list(range(500))  # busy: it is kept
        until(lambda: pid not in child_processes(), "the idle worker is gone")
        assert journal.words == ["torn-down"]
        monkeypatch.setattr(supervisor, "IDLE", 60.0)
        other = muna.predictions.create(Model, runner="process").value
        assert other != pid
        assert muna.predictions.create(Model, runner="process").value == other
    assert journal.words == ["torn-down"] * 2


@pytest.mark.fault(95)
def test_calls_that_come_while_idle_workers_are_let_go_all_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "_LONGEST_SLEEP", 0.001)
    monkeypatch.setattr(supervisor, "IDLE", 0.0)
    seeded = random.Random(95)
    pids: set[int] = set()

    async def main() -> None:
        async with Engine(discover=False, workers=2) as muna:
            for _ in range(200):
                if len(pids) > 5:
                    break
                got = await asyncio.gather(
                    *(muna.predictions.acreate(number_of_worker, runner="process") for _ in range(4))
                )
                pids.update(each.value for each in got)
                moment = time.perf_counter() + seeded.random() * 0.01
                while time.perf_counter() < moment:  # noqa: ASYNC110 - a moment that no event tells of
                    await asyncio.sleep(0)

    asyncio.run(main())
    assert len(pids) > 5  # several were retired meanwhile


@pytest.mark.fault(96)
def test_while_every_call_costs_its_worker_those_in_line_get_the_next_one() -> None:
    def ends(number: int) -> Iterator[int]:
        yield number
        os._exit(0)

    async def call(muna: Engine, number: int) -> Any:
        stream = muna.predictions.astream(ends, {"number": number}, runner="process")
        values = stream.values()
        first = await anext(values)
        with pytest.raises(WorkerLostError, match="exit code 0"):
            await anext(values)
        return first

    async def main() -> None:
        async with Engine(discover=False, workers=1, grace=GRACE) as muna:
            assert await asyncio.gather(*(call(muna, number) for number in range(5))) == list(range(5))
            assert (await muna.predictions.acreate(number_of_worker, runner="process")).value in child_processes()

    asyncio.run(main())
