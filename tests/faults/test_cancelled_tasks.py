"""The consumer's task is cancelled, the predictor swallows its cancellation, or raises one of its own."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import AsyncIterator, Iterator

import pytest

from engine import Engine, Predictor, PredictorError
from tests._kit.waits import TIMEOUT, auntil, within
from tests.faults.consumers import aconsume, areturns, consume, waiting_async_body
from tests.faults.scripts import run_script_in_debug_mode

# 75: the consumer's task is cancelled.


@pytest.mark.fault(75)
@pytest.mark.parametrize("runner", [None, "thread"])
@pytest.mark.parametrize("how", ["acreate", "astream"])
@pytest.mark.parametrize("place", range(4))
def test_cancelling_the_consumer_at_any_await_ends_the_predictor_and_gives_its_slot_back(
    muna: Engine, runner: str | None, how: str, place: int
) -> None:
    reached = threading.Event()
    steps: list[str] = []
    places = iter([place])

    async def wait_here(number: int, stop: int | None) -> None:
        if number == stop:
            reached.set()
            await asyncio.sleep(3600)
        await asyncio.sleep(0)

    async def three() -> AsyncIterator[int]:
        stop = next(places, None)
        try:
            for number in range(4):
                await wait_here(number, stop)
                yield number
        except asyncio.CancelledError:
            steps.append("cancelled")
            raise
        finally:
            await asyncio.sleep(0)
            steps.append("finished")

    predictor = Predictor("@tests/three", three, concurrency=1)

    async def main() -> None:
        consumer = asyncio.create_task(aconsume(muna, predictor, how, runner=runner))
        await auntil(reached.is_set, "the wait inside the body")
        consumer.cancel()
        with pytest.raises(asyncio.CancelledError):
            await within(consumer)
        assert consumer.cancelled()
        assert await within(aconsume(muna, predictor, "astream", runner=runner)) == [0, 1, 2, 3]
        assert steps == ["cancelled", "finished", "finished"]

    muna.predictors.register(predictor)
    asyncio.run(main())


@pytest.mark.fault(75)
@pytest.mark.parametrize("runner", [None, "thread"])
def test_a_stream_whose_consumer_was_cancelled_is_cancelled_and_stays_so(muna: Engine, runner: str | None) -> None:
    reached, finished = threading.Event(), threading.Event()

    async def main() -> None:
        # The body does not run ahead, so it reaches its wait only once the other task pulls.
        stream = muna.predictions.astream(waiting_async_body(reached, finished), runner=runner, prefetch=0)
        assert (await within(anext(stream))).value == "first"
        pull = asyncio.create_task(anext(stream, None))
        await auntil(reached.is_set, "the wait inside the body")
        pull.cancel()
        with pytest.raises(asyncio.CancelledError):
            await within(pull)
        await auntil(finished.is_set, "the clean-up")
        assert stream.outcome.state == "cancelled"
        assert [item async for item in stream] == []

    asyncio.run(main())


@pytest.mark.fault(75)
def test_cancelling_the_consumer_of_a_thread_leaves_at_once_and_the_slot_comes_back_at_its_end(muna: Engine) -> None:
    reached, go = threading.Event(), threading.Event()

    def waits() -> str:
        reached.set()
        assert go.wait(TIMEOUT)
        return "done"

    predictor = Predictor("@tests/waits", waits, concurrency=1)
    muna.predictors.register(predictor)

    async def main() -> None:
        consumer = asyncio.create_task(muna.predictions.acreate("@tests/waits"))
        await auntil(reached.is_set, "the body")
        consumer.cancel()
        with pytest.raises(asyncio.CancelledError):
            await within(consumer)
        next_call = asyncio.create_task(muna.predictions.acreate("@tests/waits"))
        for _ in range(10):
            await asyncio.sleep(0)
        assert not next_call.done()  # the abandoned thread holds the slot until it ends
        go.set()
        assert (await within(next_call)).value == "done"

    asyncio.run(main())


@pytest.mark.fault(75)
@pytest.mark.parametrize("runner", [None, "thread"])
def test_cancelling_a_consumer_that_waits_for_a_slot_starts_no_body(muna: Engine, runner: str | None) -> None:
    reached, go = threading.Event(), threading.Event()
    starts: list[int] = []

    async def holds() -> int:
        starts.append(1)
        reached.set()
        await auntil(go.is_set, "the gate")
        return len(starts)

    muna.predictors.register(Predictor("@tests/holds", holds, concurrency=1))

    async def main() -> None:
        first = asyncio.create_task(muna.predictions.acreate("@tests/holds", runner=runner))
        await auntil(reached.is_set, "the body")
        second = asyncio.create_task(muna.predictions.acreate("@tests/holds", runner=runner))
        for _ in range(10):
            await asyncio.sleep(0)
        second.cancel()
        with pytest.raises(asyncio.CancelledError):
            await within(second)
        go.set()
        assert (await within(first)).value == 1
        assert (await within(muna.predictions.acreate("@tests/holds", runner=runner))).value == 2

    asyncio.run(main())


@pytest.mark.fault(75)
@pytest.mark.parametrize("runner", [None, "inline", "thread"])
@pytest.mark.parametrize("how", ["acreate", "astream"])
@pytest.mark.parametrize("is_async", [True, False], ids=["async", "sync"])
def test_a_cancellation_asked_for_right_before_a_pull_is_the_consumers_own(
    muna: Engine, runner: str | None, how: str, is_async: bool
) -> None:
    async def waits() -> AsyncIterator[int]:
        while True:
            await asyncio.sleep(0)
            yield 1

    def ends() -> Iterator[int]:
        yield from range(3)

    async def consumer() -> None:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        await aconsume(muna, waits if is_async else ends, how, runner=runner)
        await asyncio.sleep(0)  # on the loop itself a sync body never waits, so this is where it arrives

    async def main() -> None:
        task = asyncio.create_task(consumer())
        with pytest.raises(asyncio.CancelledError):
            await within(task)
        assert task.cancelled()

    asyncio.run(main())
    assert consume(muna, areturns, "create", {"name": "Ada"}) == ["hello Ada"]


@pytest.mark.fault(75)
@pytest.mark.parametrize("how", ["acreate", "astream"])
@pytest.mark.parametrize("kind", ["return", "yield"])
def test_a_cancellation_asked_for_while_the_body_computes_is_the_consumers_own(
    muna: Engine, how: str, kind: str
) -> None:
    finished: list[str] = []

    async def ayields_then_waits() -> AsyncIterator[int]:
        try:
            yield 1
            cancel_the_consumer()
            await asyncio.sleep(3600)
            yield 2
        finally:
            await asyncio.sleep(0)
            finished.append("finally")

    async def awaits() -> None:
        try:
            cancel_the_consumer()
            await asyncio.sleep(3600)
        finally:
            await asyncio.sleep(0)
            finished.append("finally")

    def cancel_the_consumer() -> None:  # as a signal handler does
        task = asyncio.current_task()
        assert task is not None
        task.cancel()

    async def main() -> None:
        task = asyncio.create_task(aconsume(muna, awaits if kind == "return" else ayields_then_waits, how))
        with pytest.raises(asyncio.CancelledError):
            await within(task)
        assert task.cancelled()

    asyncio.run(main())
    assert finished == ["finally"]


@pytest.mark.fault(75)
@pytest.mark.parametrize("runner", [None, "thread"])
@pytest.mark.parametrize("how", ["acreate", "astream"])
def test_a_consumers_own_timeout_ends_the_predictor_and_arrives_as_a_timeout(
    muna: Engine, runner: str | None, how: str
) -> None:
    reached, finished = threading.Event(), threading.Event()

    async def main() -> None:
        with pytest.raises(TimeoutError):
            await read()
        task = asyncio.current_task()
        assert task is not None
        assert task.cancelling() == 0
        await auntil(finished.is_set, "the clean-up")

    async def read() -> None:
        async with asyncio.timeout(None) as scope:
            expiring = asyncio.create_task(expire(scope))
            await aconsume(muna, waiting_async_body(reached, finished), how, runner=runner)
        await expiring

    async def expire(scope: asyncio.Timeout) -> None:
        await auntil(reached.is_set, "the wait inside the body")
        scope.reschedule(0)

    asyncio.run(main())


# 76: the predictor swallows its cancellation.


@pytest.mark.fault(76)
@pytest.mark.parametrize("runner", [None, "thread"])
def test_a_predictor_that_swallows_its_cancellation_is_abandoned_after_the_grace_and_reported(
    runner: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    reached, go = threading.Event(), threading.Event()

    async def stubborn() -> str:
        reached.set()
        while not go.is_set():
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(0.01)
        return "at last"

    async def main(muna: Engine) -> None:
        consumer = asyncio.create_task(muna.predictions.acreate(stubborn, runner=runner))
        await auntil(reached.is_set, "the body")
        consumer.cancel()
        with pytest.raises(asyncio.CancelledError):
            await within(consumer)
        assert consumer.cancelled()

    with caplog.at_level(logging.WARNING, "engine"), Engine(discover=False, grace=0.05) as muna:
        asyncio.run(main(muna))
        if runner is None:
            assert "is abandoned" in caplog.text
        go.set()


@pytest.mark.fault(76)
def test_closing_a_stream_whose_predictor_swallows_the_request_returns_after_the_grace_and_says_so(
    caplog: pytest.LogCaptureFixture,
) -> None:
    reached, go, ended = threading.Event(), threading.Event(), threading.Event()

    async def stubborn() -> AsyncIterator[str]:
        yield "first"
        reached.set()
        while not go.is_set():
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(0.01)
        ended.set()

    async def main(muna: Engine) -> None:
        stream = muna.predictions.astream(stubborn, runner="thread", prefetch=0)
        assert (await within(anext(stream))).value == "first"
        pull = asyncio.create_task(anext(stream, None))
        await auntil(reached.is_set, "the body")
        await within(stream.aclose())
        assert await within(pull) is None
        assert "did not stop within 0.05 s" in caplog.text
        go.set()
        await auntil(ended.is_set, "the body's end")

    with caplog.at_level(logging.WARNING, "engine"), Engine(discover=False, grace=0.05) as muna:
        asyncio.run(main(muna))


@pytest.mark.fault(76)
@pytest.mark.parametrize("kind", ["yield", "return"])
def test_an_engine_closed_over_a_predictor_that_never_stops_ends_and_shows_no_traceback(kind: str) -> None:
    done = run_script_in_debug_mode(
        f"""
        import asyncio, contextlib, gc, threading
        from engine import Engine

        reached = threading.Event()

        async def yields():
            yield 1
            await returns()

        async def returns():
            reached.set()
            while True:
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.sleep(0.01)

        with Engine(discover=False, grace=0.05) as muna:
            stream = muna.predictions.stream({kind}s)
            reader = threading.Thread(target=lambda: list(stream))
            reader.start()
            assert reached.wait(10)
            stream.close()
            reader.join(10)
        gc.collect()
        print("ok")
        """
    )
    assert (done.returncode, done.stdout) == (0, "ok\n")
    assert done.stderr.count("did not stop within") == 1
    assert "Traceback" not in done.stderr


# 77: the predictor itself raises CancelledError.


@pytest.mark.fault(77)
@pytest.mark.parametrize("runner", [None, "inline", "thread"])
@pytest.mark.parametrize("is_async", [True, False], ids=["async", "sync"])
def test_a_cancelled_error_of_the_predictors_own_is_its_failure_and_cancels_no_task(
    muna: Engine, runner: str | None, is_async: bool
) -> None:
    async def araises() -> AsyncIterator[int]:
        yield 1
        raise asyncio.CancelledError("mine")

    def raises() -> Iterator[int]:
        yield 1
        raise asyncio.CancelledError("mine")

    async def consumer() -> str:
        stream = muna.predictions.astream(araises if is_async else raises, runner=runner)
        values = stream.values()
        assert await anext(values) == 1
        with pytest.raises(PredictorError, match="CancelledError: mine") as caught:
            await anext(values)
        assert isinstance(caught.value.__cause__, asyncio.CancelledError)
        assert stream.outcome.state == "failed"
        await asyncio.sleep(0)  # would raise, were this task cancelled
        return "went on"

    async def main() -> None:
        task = asyncio.create_task(consumer())
        assert await within(task) == "went on"
        assert not task.cancelled()
        assert task.cancelling() == 0

    asyncio.run(main())


@pytest.mark.fault(77)
@pytest.mark.parametrize("runner", [None, "thread"])
def test_a_sync_caller_gets_a_predictors_cancelled_error_as_its_failure(muna: Engine, runner: str | None) -> None:
    async def araises() -> None:
        raise asyncio.CancelledError

    def raises() -> None:
        raise asyncio.CancelledError

    for predictor in (araises, raises):
        with pytest.raises(PredictorError, match="CancelledError") as caught:
            muna.predictions.create(predictor, runner=runner)
        assert isinstance(caught.value.__cause__, asyncio.CancelledError)
    assert muna.predictions.create(areturns, {"name": "Ada"}, runner=runner).value == "hello Ada"


@pytest.mark.fault(77)
def test_a_task_the_predictor_cancelled_itself_is_the_predictors_own_affair(muna: Engine) -> None:
    async def cancels_its_helper() -> str:
        helper = asyncio.create_task(asyncio.sleep(3600))
        await asyncio.sleep(0)
        helper.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await helper
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0):
                await asyncio.sleep(3600)
        return "fine"

    async def main() -> None:
        for runner in (None, "thread"):
            assert (await within(muna.predictions.acreate(cancels_its_helper, runner=runner))).value == "fine"

    asyncio.run(main())


# 82: nothing for asyncio to complain about.


@pytest.mark.fault(77)
def test_a_body_that_waits_on_after_a_future_of_its_own_was_cancelled_is_left_alone() -> None:
    async def main() -> list[str]:
        given_up = asyncio.get_running_loop().create_future()

        async def waits_on() -> AsyncIterator[str]:
            asyncio.get_running_loop().call_soon(given_up.cancel)
            with contextlib.suppress(asyncio.CancelledError):
                await given_up
            released = asyncio.get_running_loop().create_future()
            asyncio.get_running_loop().call_later(0.2, released.set_result, None)  # several times the grace below
            await released
            yield "done"

        async with Engine(discover=False, grace=0.02) as muna:
            return [value async for value in muna.predictions.astream(waits_on).values()]

    assert asyncio.run(main()) == ["done"]
