"""The slots of a predictor: how many calls run at a time, and in which order the others are served."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from engine import Engine, EngineError, NestingError, Predictor
from tests._kit.internals import slots_of, waiters_of
from tests._kit.waits import TIMEOUT, auntil, joined, started, until
from tests.engine.conftest import ANYWHERE, BOTH


def gated(kind: str) -> tuple[Any, threading.Event, list[str]]:
    """A predictor that stays inside its `finally` until the gate opens."""
    go = threading.Event()
    steps: list[str] = []

    def sync() -> Iterator[str]:
        try:
            steps.append("begun")
            yield "one"
        finally:
            assert go.wait(TIMEOUT)
            steps.append("finalised")

    async def coloured() -> AsyncIterator[str]:
        try:
            steps.append("begun")
            yield "one"
        finally:
            await auntil(go.is_set, "the gate")
            steps.append("finalised")

    return (sync if kind == "sync" else coloured), go, steps


@BOTH
def test_a_slot_is_held_until_the_body_is_finalised(kind: str) -> None:
    body, go, steps = gated(kind)
    with Engine(discover=False, grace=TIMEOUT) as muna:
        muna.predictors.register(Predictor("@tests/one", body, concurrency=1))
        first = muna.predictions.stream("@tests/one", runner="thread", prefetch=0)
        next(first)
        closer = started(first.close)
        second = started(lambda: muna.predictions.create("@tests/one", runner="thread"))
        second.join(0.05)
        assert second.is_alive()
        assert steps == ["begun"]
        go.set()
        joined(closer, second)
    assert steps == ["begun", "finalised", "begun", "finalised"]


@pytest.mark.parametrize("limit", [1, 3])
@BOTH
@ANYWHERE
def test_no_more_calls_run_at_a_time_than_the_predictor_allows(
    muna: Engine, limit: int, kind: str, runner: str | None
) -> None:
    lock, inside, most = threading.Lock(), [0], [0]

    def enter(step: int) -> None:
        with lock:
            inside[0] += step
            most[0] = max(most[0], inside[0])

    def sync() -> str:
        enter(1)
        time.sleep(0)
        enter(-1)
        return "fine"

    async def coloured() -> str:
        enter(1)
        await asyncio.sleep(0)
        enter(-1)
        return "fine"

    muna.predictors.register(Predictor("@tests/few", sync if kind == "sync" else coloured, concurrency=limit))
    got: list[Any] = []

    def call() -> None:
        for _ in range(20):
            got.append(muna.predictions.create("@tests/few", runner=runner).value)  # noqa: PERF401 - shared

    joined(*[started(call) for _ in range(8)])

    async def main() -> None:
        calls = (muna.predictions.acreate("@tests/few", runner=runner) for _ in range(50))
        async with asyncio.timeout(TIMEOUT):
            got.extend(prediction.value for prediction in await asyncio.gather(*calls))

    asyncio.run(main())
    assert got == ["fine"] * (160 + 50)
    assert 1 <= most[0] <= limit


def test_classes_and_objects_take_one_call_at_a_time_and_functions_any_number(muna: Engine) -> None:
    class Model:
        def predict(self) -> Iterator[int]:
            yield 1
            yield 2

    def function() -> Iterator[int]:
        yield 1
        yield 2

    for single in (Model, Model()):
        with muna.predictions.stream(single) as stream:
            next(stream)
            with pytest.raises(NestingError):
                muna.predictions.create(single)
    streams = [muna.predictions.stream(function) for _ in range(20)]
    assert [next(stream).value for stream in streams] == [1] * 20


@BOTH
@ANYWHERE
def test_threads_that_wait_for_a_slot_are_served_in_the_order_they_came(
    muna: Engine, kind: str, runner: str | None
) -> None:
    reached, go = threading.Event(), threading.Event()
    served: list[int] = []

    def sync(number: int) -> int:
        served.append(number)
        if number == 0:
            reached.set()
            assert go.wait(TIMEOUT)
        return number

    async def coloured(number: int) -> int:
        served.append(number)
        if number == 0:
            reached.set()
            await auntil(go.is_set, "the gate")
        return number

    muna.predictors.register(Predictor("@tests/one", sync if kind == "sync" else coloured, concurrency=1))

    def call(number: int) -> threading.Thread:
        return started(lambda: muna.predictions.create("@tests/one", {"number": number}, runner=runner))

    slots = slots_of(muna, "@tests/one")
    assert slots is not None
    callers = [call(0)]
    assert reached.wait(TIMEOUT)
    for number in range(1, 6):
        callers.append(call(number))
        until(lambda number=number: len(waiters_of(slots)) == number, "the wait")  # type: ignore[misc]
    go.set()
    joined(*callers)
    assert served == [0, 1, 2, 3, 4, 5]


@ANYWHERE
def test_tasks_that_wait_for_a_slot_are_served_in_the_order_they_came(muna: Engine, runner: str | None) -> None:
    served: list[int] = []

    async def one(number: int) -> int:
        served.append(number)
        await asyncio.sleep(0)
        return number

    muna.predictors.register(Predictor("@tests/one", one, concurrency=1))

    async def main() -> None:
        calls = (muna.predictions.acreate("@tests/one", {"number": number}, runner=runner) for number in range(20))
        async with asyncio.timeout(TIMEOUT):
            await asyncio.gather(*calls)

    asyncio.run(main())
    assert served == list(range(20))


@ANYWHERE
def test_a_call_that_comes_when_a_slot_is_released_waits_behind_the_calls_queued_before(
    muna: Engine, runner: str | None
) -> None:
    served: list[int] = []

    def one(number: int) -> Iterator[int]:
        served.append(number)
        yield number

    muna.predictors.register(Predictor("@tests/one", one, concurrency=1))
    slots = slots_of(muna, "@tests/one")
    assert slots is not None
    for _ in range(20):
        served.clear()
        holder = muna.predictions.stream("@tests/one", {"number": 0}, runner=runner, prefetch=0)
        next(holder)
        waiting = started(lambda: muna.predictions.create("@tests/one", {"number": 1}, runner=runner))
        until(lambda: len(waiters_of(slots)) == 1, "the wait")
        holder.close()
        muna.predictions.create("@tests/one", {"number": 2}, runner=runner)
        joined(waiting)
        assert served == [0, 1, 2]


def test_threads_and_tasks_share_the_same_slots(muna: Engine) -> None:
    reached, go = threading.Event(), threading.Event()

    def holds(wait: bool = False) -> str:
        if wait:
            reached.set()
            assert go.wait(TIMEOUT)
        return "fine"

    muna.predictors.register(Predictor("@tests/holds", holds, concurrency=1))
    holder = started(lambda: muna.predictions.create("@tests/holds", {"wait": True}))
    assert reached.wait(TIMEOUT)

    async def main() -> None:
        waiting = asyncio.create_task(muna.predictions.acreate("@tests/holds"))
        for _ in range(20):
            await asyncio.sleep(0)
        assert not waiting.done()
        go.set()
        async with asyncio.timeout(TIMEOUT):
            assert (await waiting).value == "fine"

    asyncio.run(main())
    joined(holder)


def test_a_wait_for_a_slot_ends_when_the_stream_is_cancelled_or_closed(muna: Engine) -> None:
    reached, go = threading.Event(), threading.Event()

    def holds(wait: bool = False) -> str:
        if wait:
            reached.set()
            assert go.wait(TIMEOUT)
        return "fine"

    muna.predictors.register(Predictor("@tests/holds", holds, concurrency=1))
    holder = started(lambda: muna.predictions.create("@tests/holds", {"wait": True}))
    assert reached.wait(TIMEOUT)
    slots = slots_of(muna, "@tests/holds")
    assert slots is not None
    for runner in (None, "thread"):
        for stop in ("cancel", "close"):
            stream = muna.predictions.stream("@tests/holds", runner=runner)
            ends: list[str] = []

            def read(stream: Any = stream, ends: list[str] = ends) -> None:
                try:
                    ends.extend(str(each) for each in stream)
                except EngineError as error:
                    ends.append(type(error).__name__)

            reader = started(read)
            until(lambda: len(waiters_of(slots)) == 1, "the wait")
            getattr(stream, stop)()
            joined(reader)
            assert ends == (["PredictionCancelledError"] if stop == "cancel" else [])
    go.set()
    joined(holder)
    assert muna.predictions.create("@tests/holds").value == "fine"
