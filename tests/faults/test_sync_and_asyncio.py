"""Sync predictors under asyncio, async ones under sync code, and calls that pass from one loop or thread to another."""

from __future__ import annotations

import asyncio
import decimal
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from engine import AsyncPredictionStream, Engine, EngineError, PredictorError
from tests._kit.waits import TIMEOUT, within
from tests.faults.consumers import aconsume, areturns, consume


def no_running_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return True
    return False


# 71: sync predictors, asyncio callers.


@pytest.mark.fault(71)
@pytest.mark.parametrize("how", ["acreate", "astream"])
@pytest.mark.parametrize("kind", ["return", "yield"])
def test_a_sync_predictor_never_blocks_the_loop_that_waits_for_it(muna: Engine, how: str, kind: str) -> None:
    go = threading.Event()

    def returns() -> str:
        assert go.wait(TIMEOUT), "the loop was blocked"
        return "done"

    def yields() -> Iterator[str]:
        assert go.wait(TIMEOUT), "the loop was blocked"
        yield "done"

    async def heart() -> None:
        for _ in range(100):
            await asyncio.sleep(0)
        go.set()

    async def main() -> None:
        predictor = returns if kind == "return" else yields
        values, _ = await within(asyncio.gather(aconsume(muna, predictor, how), heart()))
        assert values == ["done"]

    asyncio.run(main())


@pytest.mark.fault(71)
@pytest.mark.parametrize("how", ["acreate", "astream"])
def test_a_sync_predictor_sees_no_running_loop_and_may_run_one(muna: Engine, how: str) -> None:
    async def inner() -> str:
        await asyncio.sleep(0)
        return "inner"

    def runs_a_loop() -> Iterator[object]:
        yield no_running_loop()
        yield asyncio.run(inner())

    def returns() -> object:
        return no_running_loop(), asyncio.run(inner())

    async def main() -> None:
        if how == "astream":
            assert await within(aconsume(muna, runs_a_loop, how)) == [True, "inner"]
        assert await within(aconsume(muna, returns, how)) == [(True, "inner")]

    asyncio.run(main())


# 72: async predictors, sync callers.


async def ayields(name: str) -> AsyncIterator[str]:
    yield "hello"
    await asyncio.sleep(0)
    yield f"hello {name}"


@pytest.mark.fault(72)
@pytest.mark.parametrize("runner", [None, "thread"])
@pytest.mark.parametrize("is_in_a_loop", [False, True], ids=["plain", "in-a-running-loop"])
def test_an_async_predictor_works_from_sync_code_wherever_that_stands(
    muna: Engine, runner: str | None, is_in_a_loop: bool
) -> None:
    def call() -> None:
        inputs = {"name": "Ada"}
        assert consume(muna, areturns, "create", inputs, runner) == ["hello Ada"]
        assert consume(muna, ayields, "create", inputs, runner) == ["hello Ada"]
        assert consume(muna, areturns, "stream", inputs, runner) == ["hello Ada"]
        assert consume(muna, ayields, "stream", inputs, runner) == ["hello", "hello Ada"]

    async def main() -> None:
        call()

    asyncio.run(main()) if is_in_a_loop else call()


@pytest.mark.fault(72)
def test_a_sync_call_inside_a_coroutine_runs_on_the_engines_own_loop_not_on_the_callers(muna: Engine) -> None:
    async def where() -> object:
        return asyncio.get_running_loop()

    async def main() -> None:
        mine = asyncio.get_running_loop()
        first = muna.predictions.create(where).value
        assert isinstance(first, asyncio.AbstractEventLoop)
        assert first is not mine
        assert muna.predictions.create(where).value is first
        assert asyncio.get_running_loop() is mine

    asyncio.run(main())


# 79: made on one loop, consumed on another.


@pytest.mark.fault(79)
@pytest.mark.parametrize("runner", [None, "inline", "thread"])
@pytest.mark.parametrize("is_async", [True, False], ids=["async", "sync"])
def test_a_stream_made_in_one_loop_may_be_read_in_another(muna: Engine, runner: str | None, is_async: bool) -> None:
    def yields() -> Iterator[int]:
        yield 1
        yield 2

    async def ayields_two() -> AsyncIterator[int]:
        yield 1
        await asyncio.sleep(0)
        yield 2

    async def make() -> AsyncPredictionStream:
        return muna.predictions.astream(ayields_two if is_async else yields, runner=runner)

    async def read(stream: AsyncPredictionStream) -> list[Any]:
        return await within(collect(stream))

    assert asyncio.run(read(asyncio.run(make()))) == [1, 2]


async def collect(stream: AsyncPredictionStream) -> list[Any]:
    return [value async for value in stream.values()]


@pytest.mark.fault(79)
@pytest.mark.parametrize("runner", [None, "inline", "thread"])
def test_a_stream_half_read_in_one_loop_may_be_read_on_in_another(muna: Engine, runner: str | None) -> None:
    async def three() -> AsyncIterator[int]:
        for number in range(3):
            await asyncio.sleep(0)
            yield number

    async def first(stream: AsyncPredictionStream) -> Any:
        return (await within(anext(stream))).value

    one, other = asyncio.new_event_loop(), asyncio.new_event_loop()
    stream = muna.predictions.astream(three, runner=runner)
    try:
        assert one.run_until_complete(first(stream)) == 0
        assert other.run_until_complete(within(collect(stream))) == [1, 2]
        assert stream.outcome.state == "done"
    finally:
        for loop in (one, other):
            loop.run_until_complete(loop.shutdown_asyncgens())
            loop.close()


@pytest.mark.fault(79)
def test_a_future_of_another_loop_is_refused_with_advice(muna: Engine) -> None:
    loop = asyncio.new_event_loop()
    future = loop.create_future()

    def gives_it() -> Any:
        return future

    try:
        with pytest.raises((PredictorError, EngineError), match="another event loop"):
            muna.predictions.create(gives_it)
    finally:
        future.cancel()
        loop.close()


# 81: one thread for one execution.


@pytest.mark.fault(81)
@pytest.mark.parametrize("runner", [None, "thread"])
def test_every_step_of_a_sync_call_happens_in_one_thread(muna: Engine, runner: str | None) -> None:
    seen: list[int] = []
    local = threading.local()

    def body() -> Iterator[str]:
        local.mark = "set in the first step"
        try:
            for word in ("one", "two", "three"):
                seen.append(threading.get_ident())
                yield local.mark + word
        finally:
            seen.append(threading.get_ident())
            del local.mark

    with muna.predictions.stream(body, runner=runner) as stream:
        values = stream.values()
        assert [next(values), next(values)] == ["set in the first stepone", "set in the first steptwo"]
    assert len(set(seen)) == 1
    assert (seen[0] == threading.get_ident()) == (runner is None)
    assert not hasattr(local, "mark")


@pytest.mark.fault(81)
@pytest.mark.parametrize("runner", [None, "inline", "thread"])
@pytest.mark.parametrize("is_async", [True, False], ids=["async", "sync"])
def test_every_step_of_a_call_from_asyncio_happens_in_one_thread(
    muna: Engine, runner: str | None, is_async: bool
) -> None:
    seen: list[int] = []

    def body() -> Iterator[int]:
        try:
            for number in range(5):
                seen.append(threading.get_ident())
                yield number
        finally:
            seen.append(threading.get_ident())

    async def abody() -> AsyncIterator[int]:
        try:
            for number in range(5):
                seen.append(threading.get_ident())
                yield number
        finally:
            seen.append(threading.get_ident())

    async def main() -> None:
        async with muna.predictions.astream(abody if is_async else body, runner=runner) as stream:
            await anext(stream)
            await anext(stream)

    asyncio.run(main())
    assert len(set(seen)) == 1
    is_here = runner == "inline" or (is_async and runner is None)
    assert (seen[0] == threading.get_ident()) == is_here


@pytest.mark.fault(81)
@pytest.mark.parametrize("runner", [None, "thread"])
def test_a_decimal_context_the_predictor_binds_stays_its_own(muna: Engine, runner: str | None) -> None:
    def thirds() -> Iterator[str]:
        with decimal.localcontext() as own:
            own.prec = 3
            yield str(decimal.Decimal(1) / 3)
            yield str(decimal.Decimal(2) / 3)

    mine = str(decimal.Decimal(1) / 3)
    values = muna.predictions.stream(thirds, runner=runner).values()
    assert next(values) == "0.333"
    assert str(decimal.Decimal(1) / 3) == mine
    assert list(values) == ["0.667"]
    assert str(decimal.Decimal(1) / 3) == mine
