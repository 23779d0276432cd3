"""Faults between predictors and asyncio: blocked loops, lost generators, cancellations, loops that end, contexts."""

from __future__ import annotations

import asyncio
import contextlib
import decimal
import itertools
import logging
import subprocess
import sys
import textwrap
import threading
import time
import types
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextvars import ContextVar
from pathlib import Path
from typing import Any, Final, TypeVar

import pytest

from engine import AsyncPredictionStream, Engine, EngineError, Predictor, PredictorError

Value = TypeVar("Value")

PATIENCE = 10.0  # seconds; only a test that fails waits as long

colour: ContextVar[str] = ContextVar("colour", default="none")


async def until(condition: Callable[[], bool], what: str) -> None:
    """Wait for something another thread or task brings about, without blocking this loop."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not come about within {PATIENCE} s"
        await asyncio.sleep(0.001)


async def within(awaitable: Awaitable[Value]) -> Value:
    return await asyncio.wait_for(awaitable, PATIENCE)


# What every script begins with: on a busy machine asyncio's debug mode says of any step that it took long.
UNHURRIED: Final = """
import logging
logging.getLogger("asyncio").addFilter(lambda record: not record.getMessage().startswith("Executing "))
"""


def run_script(source: str, *options: str) -> subprocess.CompletedProcess[str]:
    """Run a script as its user would, with every warning shown."""
    return subprocess.run(
        [sys.executable, "-X", "dev", "-W", "always", *options, "-c", UNHURRIED + textwrap.dedent(source)],
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )


def no_running_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return True
    return False


async def aconsume(muna: Engine, predictor: Any, how: str, inputs: Any = None, runner: str | None = None) -> list[Any]:
    """The partials of one call, as an asyncio consumer gets them."""
    if how == "acreate":
        return [(await muna.predictions.acreate(predictor, inputs, runner=runner)).value]
    return [value async for value in muna.predictions.astream(predictor, inputs, runner=runner).values()]


def consume(muna: Engine, predictor: Any, how: str, inputs: Any = None, runner: str | None = None) -> list[Any]:
    """The partials of one call, as a sync consumer gets them."""
    if how == "create":
        return [muna.predictions.create(predictor, inputs, runner=runner).value]
    return list(muna.predictions.stream(predictor, inputs, runner=runner).values())


# 71: sync predictors, asyncio callers.


@pytest.mark.fault(71)
@pytest.mark.parametrize("how", ["acreate", "astream"])
@pytest.mark.parametrize("kind", ["return", "yield"])
def test_a_sync_predictor_never_blocks_the_loop_that_waits_for_it(muna: Engine, how: str, kind: str) -> None:
    go = threading.Event()

    def returns() -> str:
        assert go.wait(PATIENCE), "the loop was blocked"
        return "done"

    def yields() -> Iterator[str]:
        assert go.wait(PATIENCE), "the loop was blocked"
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


async def areturns(name: str) -> str:
    await asyncio.sleep(0)
    return f"hello {name}"


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


# 73: async generators left open.


@pytest.mark.fault(73)
@pytest.mark.parametrize("runner", [None, "inline", "thread"])
def test_a_break_runs_the_predictors_finally_soon_awaits_included(muna: Engine, runner: str | None) -> None:
    steps: list[str] = []

    async def endless() -> AsyncIterator[int]:
        try:
            for number in range(1_000_000):
                yield number
                await asyncio.sleep(0)
        finally:
            steps.append("started")
            await asyncio.sleep(0)
            steps.append("finished")

    async def main() -> None:
        async for prediction in muna.predictions.astream(endless, runner=runner):
            if prediction.index == 2:
                break
        await until(lambda: steps == ["started", "finished"], "the clean-up")

    with pytest.warns(ResourceWarning, match="abandoned after 3 partials"):
        asyncio.run(main())
    assert steps == ["started", "finished"]


@pytest.mark.fault(73)
@pytest.mark.parametrize("runner", [None, "inline", "thread"])
def test_leaving_the_async_with_runs_the_predictors_finally_before_it_goes_on(muna: Engine, runner: str | None) -> None:
    steps: list[str] = []

    async def endless() -> AsyncIterator[int]:
        try:
            for number in range(1_000_000):
                yield number
        finally:
            await asyncio.sleep(0)
            steps.append("finished")

    async def main() -> None:
        async with muna.predictions.astream(endless, runner=runner) as stream:
            async for prediction in stream:
                if prediction.index == 2:
                    break
        assert steps == ["finished"]
        assert stream.outcome.state == "closed"

    asyncio.run(main())


@pytest.mark.fault(73)
@pytest.mark.parametrize("runner", [None, "inline", "thread"])
def test_an_abandoned_sync_generator_is_finalised_too(muna: Engine, runner: str | None) -> None:
    finished = threading.Event()

    def endless() -> Iterator[int]:
        try:
            yield from range(1_000_000)
        finally:
            finished.set()

    async def main() -> None:
        async for _ in muna.predictions.astream(endless, runner=runner):
            break
        await until(finished.is_set, "the clean-up")

    with pytest.warns(ResourceWarning, match="abandoned after 1 partial;"):
        asyncio.run(main())


# 74: aclose while a pull runs.


def waiting_async_body(reached: threading.Event, finished: threading.Event) -> Callable[[], Any]:
    async def waits() -> AsyncIterator[str]:
        try:
            yield "first"
            reached.set()
            await asyncio.sleep(3600)
            yield "never"
        finally:
            finished.set()

    return waits


@pytest.mark.fault(74)
@pytest.mark.parametrize("runner", [None, "thread"])
def test_closing_while_another_task_pulls_ends_that_pull(muna: Engine, runner: str | None) -> None:
    reached, finished = threading.Event(), threading.Event()

    async def main() -> None:
        # The body does not run ahead, so it reaches its wait only once the other task pulls.
        stream = muna.predictions.astream(waiting_async_body(reached, finished), runner=runner, prefetch=0)
        assert (await within(anext(stream))).value == "first"
        pull = asyncio.create_task(anext(stream, None))
        await until(reached.is_set, "the wait inside the body")
        await within(stream.aclose())
        assert finished.is_set()
        assert await within(pull) is None
        assert stream.outcome.state == "closed"
        assert [item async for item in stream] == []

    asyncio.run(main())


@pytest.mark.fault(74)
def test_closing_while_another_task_pulls_a_thread_ends_that_pull(muna: Engine) -> None:
    reached, go, finished = threading.Event(), threading.Event(), threading.Event()

    def waits() -> Iterator[str]:
        try:
            yield "first"
            reached.set()
            assert go.wait(PATIENCE)
            yield "late"
        finally:
            finished.set()

    async def main() -> None:
        stream = muna.predictions.astream(waits, prefetch=0)
        assert (await within(anext(stream))).value == "first"
        pull = asyncio.create_task(anext(stream, None))
        await until(reached.is_set, "the wait inside the body")
        closing = asyncio.create_task(stream.aclose())
        assert await within(pull) is None
        go.set()
        await within(closing)
        assert finished.is_set()

    asyncio.run(main())


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
        await until(reached.is_set, "the wait inside the body")
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
        await until(reached.is_set, "the wait inside the body")
        pull.cancel()
        with pytest.raises(asyncio.CancelledError):
            await within(pull)
        await until(finished.is_set, "the clean-up")
        assert stream.outcome.state == "cancelled"
        assert [item async for item in stream] == []

    asyncio.run(main())


@pytest.mark.fault(75)
def test_cancelling_the_consumer_of_a_thread_leaves_at_once_and_the_slot_comes_back_at_its_end(muna: Engine) -> None:
    reached, go = threading.Event(), threading.Event()

    def waits() -> str:
        reached.set()
        assert go.wait(PATIENCE)
        return "done"

    predictor = Predictor("@tests/waits", waits, concurrency=1)
    muna.predictors.register(predictor)

    async def main() -> None:
        consumer = asyncio.create_task(muna.predictions.acreate("@tests/waits"))
        await until(reached.is_set, "the body")
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
        await until(go.is_set, "the gate")
        return len(starts)

    muna.predictors.register(Predictor("@tests/holds", holds, concurrency=1))

    async def main() -> None:
        first = asyncio.create_task(muna.predictions.acreate("@tests/holds", runner=runner))
        await until(reached.is_set, "the body")
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
        await until(finished.is_set, "the clean-up")

    async def read() -> None:
        async with asyncio.timeout(None) as scope:
            expiring = asyncio.create_task(expire(scope))
            await aconsume(muna, waiting_async_body(reached, finished), how, runner=runner)
        await expiring

    async def expire(scope: asyncio.Timeout) -> None:
        await until(reached.is_set, "the wait inside the body")
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
        await until(reached.is_set, "the body")
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
        await until(reached.is_set, "the body")
        await within(stream.aclose())
        assert await within(pull) is None
        assert "did not stop within 0.05 s" in caplog.text
        go.set()
        await until(ended.is_set, "the body's end")

    with caplog.at_level(logging.WARNING, "engine"), Engine(discover=False, grace=0.05) as muna:
        asyncio.run(main(muna))


@pytest.mark.fault(76)
@pytest.mark.parametrize("kind", ["yield", "return"])
def test_an_engine_closed_over_a_predictor_that_never_stops_ends_and_shows_no_traceback(kind: str) -> None:
    done = run_script(
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
def test_a_cancelled_error_of_the_predictors_own_is_its_failure_and_cancels_nobody(
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


# 78: the consumer's loop is closed.


@pytest.mark.fault(78)
def test_a_loop_closed_while_its_task_waits_for_a_thread_ends_the_body_in_silence() -> None:
    done = run_script(
        """
        import asyncio, threading
        from engine import Engine

        reached, go, finished = threading.Event(), threading.Event(), threading.Event()

        def body():
            try:
                yield "first"
                reached.set()
                assert go.wait(10)
                yield "second"
                yield "third"
            finally:
                finished.set()

        muna = Engine(discover=False)
        loop = asyncio.new_event_loop()
        stream = muna.predictions.astream(body, prefetch=0)  # so that the body goes on only once the task waits

        async def first():
            assert (await anext(stream)).value == "first"

        async def second():
            await anext(stream)

        loop.run_until_complete(first())
        task = loop.create_task(second())
        task._log_destroy_pending = False  # leaving it is this script's doing
        while not reached.is_set():
            loop.run_until_complete(asyncio.sleep(0.001))
        loop.close()
        go.set()
        assert finished.wait(10)
        del task, stream
        muna.close()
        print("ok")
        """
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "ok\n", "")


@pytest.mark.parametrize(("kind", "runner"), [("sync", None), ("sync", "thread"), ("coloured", "thread")])
def test_a_loop_closed_while_its_tasks_wait_for_a_slot_takes_no_slot_with_it(kind: str, runner: str | None) -> None:
    done = run_script(
        f"""
        import asyncio, gc, threading
        from engine import Engine, Predictor

        reached, go, calls = threading.Event(), threading.Event(), []

        def sync():
            calls.append(1)
            reached.set()
            assert go.wait(10)
            return "given"

        async def coloured():
            calls.append(1)
            reached.set()
            while not go.is_set():
                await asyncio.sleep(0.001)
            return "given"

        muna = Engine(discover=False)
        predictor = Predictor("@tests/holds", {kind}, concurrency=1)
        slots = muna.predictions.resolve(predictor).slots
        holder = threading.Thread(target=muna.predictions.create, args=(predictor,), kwargs=dict(runner="thread"))
        holder.start()
        assert reached.wait(10)
        loop = asyncio.new_event_loop()
        loop.slow_callback_duration = 10.0  # seconds: a busy machine is nobody's fault here
        tasks = [loop.create_task(muna.predictions.acreate(predictor, runner={runner!r})) for _ in range(500)]
        while slots.waiting < 500:
            loop.run_until_complete(asyncio.sleep(0.001))
        for task in tasks:
            task._log_destroy_pending = False  # leaving them is this script's doing
        loop.close()
        go.set()
        holder.join(10)
        assert not holder.is_alive()
        print((slots.leases, slots.waiting, len(slots._tokens)))
        print(muna.predictions.create(predictor, runner="thread").value, len(calls))
        del task, tasks, loop
        gc.collect()
        print((slots.leases, slots.waiting, len(slots._tokens)))
        muna.close()
        """
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "((), 0, 1)\ngiven 2\n((), 0, 1)\n", "")


@pytest.mark.fault(78)
def test_a_loop_closed_while_a_stream_rests_loses_nothing_of_it(muna: Engine) -> None:
    def three() -> Iterator[int]:
        yield from range(3)

    async def first(stream: AsyncPredictionStream) -> Any:
        return (await anext(stream)).value

    async def rest(stream: AsyncPredictionStream) -> list[Any]:
        return [value async for value in stream.values()]

    stream = muna.predictions.astream(three)
    assert asyncio.run(first(stream)) == 0
    assert asyncio.run(rest(stream)) == [1, 2]
    assert stream.outcome.state == "done"


@pytest.mark.fault(78)
def test_a_loop_that_ends_closes_the_streams_that_lived_in_its_tasks(muna: Engine) -> None:
    steps: list[str] = []

    async def three() -> AsyncIterator[int]:
        try:
            yield 0
            yield 1
        finally:
            await asyncio.sleep(0)
            steps.append("finished")

    async def first(stream: AsyncPredictionStream) -> Any:
        return (await anext(stream)).value

    async def rest(stream: AsyncPredictionStream) -> list[Any]:
        return [value async for value in stream.values()]

    stream = muna.predictions.astream(three)
    with pytest.warns(ResourceWarning, match="abandoned"):
        assert asyncio.run(first(stream)) == 0
    assert steps == ["finished"]
    assert stream.outcome.state == "closed"
    assert asyncio.run(rest(stream)) == []


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


# 80: context variables.


def watched(seen: list[str]) -> Callable[[], Iterator[str]]:
    def body() -> Iterator[str]:
        try:
            seen.append(colour.get())
            yield "one"
            seen.append(colour.get())
            colour.set("the predictor's")
            yield "two"
            seen.append(colour.get())
        finally:
            seen.append(colour.get())

    return body


def awatched(seen: list[str]) -> Callable[[], AsyncIterator[str]]:
    async def body() -> AsyncIterator[str]:
        try:
            seen.append(colour.get())
            yield "one"
            await asyncio.sleep(0)
            seen.append(colour.get())
            colour.set("the predictor's")
            yield "two"
            await asyncio.sleep(0)
            seen.append(colour.get())
        finally:
            seen.append(colour.get())

    return body


AS_SEEN = ["the caller's", "the caller's", "the predictor's", "the predictor's"]


@pytest.fixture
def the_callers_colour() -> Iterator[None]:
    token = colour.set("the caller's")
    yield
    colour.reset(token)


@pytest.mark.fault(80)
@pytest.mark.usefixtures("the_callers_colour")
@pytest.mark.parametrize("runner", [None, "thread"])
@pytest.mark.parametrize("make", [watched, awatched], ids=["sync", "async"])
def test_a_sync_callers_context_is_seen_as_it_was_at_the_call_and_nothing_leaks_back(
    muna: Engine, runner: str | None, make: Callable[[list[str]], Any]
) -> None:
    seen: list[str] = []
    stream = muna.predictions.stream(make(seen), runner=runner, prefetch=0)
    values = stream.values()
    colour.set("changed before the first pull")
    assert next(values) == "one"
    colour.set("changed between two pulls")
    assert next(values) == "two"
    assert colour.get() == "changed between two pulls"
    assert list(values) == []
    assert seen == AS_SEEN
    assert colour.get() == "changed between two pulls"


@pytest.mark.fault(80)
@pytest.mark.usefixtures("the_callers_colour")
@pytest.mark.parametrize("runner", [None, "inline", "thread"])
@pytest.mark.parametrize("make", [watched, awatched], ids=["sync", "async"])
def test_an_asyncio_callers_context_is_seen_as_it_was_at_the_call_and_nothing_leaks_back(
    muna: Engine, runner: str | None, make: Callable[[list[str]], Any]
) -> None:
    seen: list[str] = []

    async def main() -> None:
        stream = muna.predictions.astream(make(seen), runner=runner, prefetch=0)
        values = stream.values()
        colour.set("changed before the first pull")
        assert await anext(values) == "one"
        colour.set("changed between two pulls")
        assert await anext(values) == "two"
        assert colour.get() == "changed between two pulls"
        assert [value async for value in values] == []
        assert colour.get() == "changed between two pulls"

    asyncio.run(main())
    assert seen == AS_SEEN


@pytest.mark.fault(80)
@pytest.mark.usefixtures("the_callers_colour")
@pytest.mark.parametrize("runner", [None, "inline", "thread"])
@pytest.mark.parametrize("is_async", [True, False], ids=["async", "sync"])
def test_a_stream_closed_or_abandoned_by_another_task_cleans_up_in_its_own_context(
    muna: Engine, runner: str | None, is_async: bool
) -> None:
    seen: list[str] = []

    async def abody() -> AsyncIterator[str]:
        try:
            colour.set("the predictor's")
            yield "one"
            yield "two"
        finally:
            seen.append(colour.get())

    def body() -> Iterator[str]:
        try:
            colour.set("the predictor's")
            yield "one"
            yield "two"
        finally:
            seen.append(colour.get())

    async def close(stream: AsyncPredictionStream) -> None:
        colour.set("the closer's")
        await stream.aclose()

    async def main() -> None:
        stream = muna.predictions.astream(abody if is_async else body, runner=runner)
        await anext(stream)
        await asyncio.create_task(close(stream))
        assert seen == ["the predictor's"]
        other = muna.predictions.astream(abody if is_async else body, runner=runner)
        await anext(other)
        colour.set("the leaver's")
        with pytest.warns(ResourceWarning, match="abandoned"):  # noqa: PT031 - it comes with the clean-up
            del other
            await until(lambda: len(seen) == 2, "the clean-up")
            for _ in range(3):
                await asyncio.sleep(0)

    asyncio.run(main())
    assert seen == ["the predictor's"] * 2


@pytest.mark.fault(80)
@pytest.mark.parametrize("runner", [None, "thread"])
def test_a_predictor_that_calls_the_engine_hands_its_own_context_on(muna: Engine, runner: str | None) -> None:
    def inner() -> Iterator[str]:
        yield colour.get()
        colour.set("inner")
        yield colour.get()

    def outer() -> Iterator[str]:
        colour.set("outer")
        yield from muna.predictions.stream(inner, runner=runner).values()
        yield colour.get()

    assert list(muna.predictions.stream(outer, runner=runner).values()) == ["outer", "inner", "outer"]


@pytest.mark.fault(80)
def test_an_async_predictor_that_calls_the_engine_hands_its_own_context_on(muna: Engine) -> None:
    async def inner() -> AsyncIterator[str]:
        yield colour.get()
        colour.set("inner")
        await asyncio.sleep(0)
        yield colour.get()

    async def outer() -> AsyncIterator[str]:
        colour.set("outer")
        async with muna.predictions.astream(inner) as stream:
            async for value in stream.values():
                yield value
        yield colour.get()

    async def main() -> None:
        for runner in (None, "thread"):
            assert await within(aconsume(muna, outer, "astream", runner=runner)) == ["outer", "inner", "outer"]

    asyncio.run(main())


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


# 82: nothing for asyncio to complain about.

QUIET = """
import asyncio, logging, threading
from engine import Engine

logging.basicConfig(level=logging.WARNING)
# How long a callback took is the machine's affair; everything else asyncio says counts.
logging.getLogger("asyncio").addFilter(lambda record: not record.getMessage().startswith("Executing "))

async def fails():
    yield 1
    await asyncio.sleep(0)
    raise ValueError("expected")

async def waits(reached):
    try:
        yield 1
        reached.set()
        await asyncio.sleep(3600)
    finally:
        await asyncio.sleep(0)

def sync_fails():
    yield 1
    raise ValueError("expected")

def numbers():
    yield from range(1000)

async def anumbers():
    for number in range(1000):
        yield number

async def coroutine():
    return 1

def makes_coroutine():
    return coroutine()

async def expect_failure(muna, predictor, runner):
    try:
        async for _ in muna.predictions.astream(predictor, runner=runner):
            pass
    except ValueError:
        pass
    else:
        raise AssertionError("no failure")
    prediction = await muna.predictions.acreate(predictor, runner=runner, errors="return")
    assert prediction.exception is not None

async def cancelled(muna, runner):
    reached = threading.Event()
    async def read():
        async with muna.predictions.astream(waits, {"reached": reached}, runner=runner) as stream:
            async for _ in stream:
                pass
    task = asyncio.create_task(read())
    while not reached.is_set():
        await asyncio.sleep(0.001)
    task.cancel()
    try:
        await task
    except asyncio.CancelledError:
        return
    raise AssertionError("not cancelled")

async def left_early(muna, predictor, runner):
    async with muna.predictions.astream(predictor, runner=runner) as stream:
        async for _ in stream:
            break
    never_started = muna.predictions.astream(predictor, runner=runner)

async def main(muna):
    assert asyncio.get_running_loop().get_debug()
    for runner in (None, "inline", "thread"):
        await expect_failure(muna, fails, runner)
        await expect_failure(muna, sync_fails, runner)
        await cancelled(muna, runner)
        await left_early(muna, anumbers, runner)
        await left_early(muna, numbers, runner)
        assert (await muna.predictions.acreate(makes_coroutine, runner=runner)).value == 1
    task = asyncio.create_task(muna.predictions.acreate(waits, {"reached": threading.Event()}))
    await asyncio.sleep(0)
    muna.predictions.stream(anumbers)
    with muna.predictions.stream(anumbers) as stream:
        next(stream)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)

with Engine(discover=False) as muna:
    asyncio.run(main(muna), debug=True)
print("ok")
"""


@pytest.mark.fault(82)
def test_asyncio_in_debug_mode_has_nothing_to_say() -> None:
    done = run_script(QUIET)
    assert (done.returncode, done.stdout, done.stderr) == (0, "ok\n", "")


@pytest.mark.fault(82)
def test_a_stream_left_open_when_the_loop_ends_gives_one_warning_and_nothing_else() -> None:
    done = run_script(
        """
        import asyncio
        from engine import Engine

        async def numbers():
            try:
                for number in range(1000):
                    yield number
            finally:
                await asyncio.sleep(0)
                print("finished")

        async def main(muna):
            kept.append(muna.predictions.astream(numbers))
            await anext(kept[0])

        kept = []
        with Engine(discover=False) as muna:
            asyncio.run(main(muna), debug=True)
        """
    )
    assert (done.returncode, done.stdout) == (0, "finished\n")
    assert done.stderr.count("ResourceWarning") == 1
    assert "Traceback" not in done.stderr
    assert "destroyed" not in done.stderr


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


def test_a_loop_closed_while_its_tasks_wait_for_a_worker_takes_no_worker_with_it(tmp_path: Path) -> None:
    done = run_script(
        f"""
        import asyncio, gc, os, threading
        from engine import Engine

        folder = {str(tmp_path)!r}

        def waits(folder):
            import os, time
            open(os.path.join(folder, "reached"), "w").close()
            while not os.path.exists(os.path.join(folder, "go")):
                time.sleep(0.001)
            return "given"

        inputs = dict(folder=folder)
        muna = Engine(discover=False, workers=1)
        create = muna.predictions.create
        holder = threading.Thread(target=create, args=(waits, inputs), kwargs=dict(runner="process"))
        holder.start()
        loop = asyncio.new_event_loop()
        loop.slow_callback_duration = 60.0  # what a busy machine makes slow is not this script's affair
        while not os.path.exists(os.path.join(folder, "reached")):
            loop.run_until_complete(asyncio.sleep(0.001))
        pool = muna._workers()._pool
        tasks = [loop.create_task(muna.predictions.acreate(waits, inputs, runner="process")) for _ in range(500)]
        while pool.waiting < 500:
            loop.run_until_complete(asyncio.sleep(0.001))
        for task in tasks:
            task._log_destroy_pending = False  # leaving them is this script's doing
        loop.close()
        open(os.path.join(folder, "go"), "w").close()
        holder.join(10)
        assert not holder.is_alive()
        print(create(waits, inputs, runner="process").value, pool.leases, pool.waiting)
        del task, tasks, loop
        gc.collect()
        print(create(waits, inputs, runner="process").value, pool.leases, pool.waiting)
        muna.close()
        """
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "given () 0\ngiven () 0\n", "")


# asyncio, as another thread imports it just now.

HALF_IMPORTED = """
    import sys, threading
    from importlib.machinery import PathFinder
    from engine import Engine, EngineClosedError

    reached, go = threading.Event(), threading.Event()

    class Gate:
        def find_spec(self, name, path=None, target=None):
            if name != "asyncio.constants":
                return None
            spec = PathFinder.find_spec(name, path)
            execute = spec.loader.exec_module

            def execute_late(module):
                reached.set()
                go.wait(20)
                execute(module)

            spec.loader.exec_module = execute_late
            return spec

    class Model:
        def predict(self):
            return "given"

    def gives():
        return "given"

    sys.meta_path.insert(0, Gate())
    importing = threading.Thread(target=__import__, args=("asyncio",))
    importing.start()
    assert reached.wait(20) and not hasattr(sys.modules["asyncio"], "current_task")
    found = []
    with Engine(discover=False, workers=1) as muna:
        for runner in (None, "thread", "process"):
            for predictor in (Model, Model, gives):
                found.append(muna.predictions.create(predictor, runner=runner).value)
                found += muna.predictions.stream(predictor, runner=runner).values()
    try:
        muna.predictions.create(gives)
    except EngineClosedError:
        found.append("closed")
    go.set()
    importing.join()
    print(found == ["given"] * 18 + ["closed"])
"""


def test_where_another_thread_has_imported_asyncio_only_half_calls_work_and_the_engine_closes() -> None:
    done = run_script(HALF_IMPORTED)
    assert (done.stdout, done.stderr, done.returncode) == ("True\n", "", 0)


def test_what_a_predictor_raises_is_explained_while_asyncios_own_errors_are_not_there_yet(
    muna: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails() -> None:
        raise LookupError("in the body")

    monkeypatch.setitem(sys.modules, "asyncio.exceptions", types.ModuleType("asyncio.exceptions"))
    with pytest.raises(LookupError, match="in the body"):
        muna.predictions.create(fails)
    with pytest.raises(LookupError, match="in the body"):
        muna.predictions.create(fails, runner="thread")


# What a predictor does to the loop it shares.


async def ends(error: type[BaseException]) -> None:
    raise error


async def has_a_task_that_exits() -> None:
    await asyncio.create_task(ends(SystemExit))


async def has_a_task_that_is_interrupted() -> None:
    await asyncio.create_task(ends(KeyboardInterrupt))


async def leaves_a_task_that_exits() -> str:
    task = asyncio.create_task(ends(SystemExit))
    await asyncio.wait([task])
    return type(task.exception()).__name__


class HasATaskThatExits:
    async def setup(self) -> None:
        self.found = await leaves_a_task_that_exits()

    async def predict(self) -> str:
        return self.found


async def stops_its_loop() -> str:
    asyncio.get_running_loop().stop()
    await asyncio.sleep(0)
    return "it goes on"


@pytest.mark.fault(39)
@pytest.mark.parametrize("runner", ["thread", "process"])
def test_nothing_a_predictor_does_ends_the_engines_loop(muna: Engine, runner: str) -> None:
    create = muna.predictions.create
    waiting = muna.predictions.stream(counts_slowly, runner=runner)
    assert next(waiting).value == 0
    for predictor, cause in ((has_a_task_that_exits, SystemExit), (has_a_task_that_is_interrupted, KeyboardInterrupt)):
        with pytest.raises(PredictorError) as raised:
            create(predictor, runner=runner)
        assert cause.__name__ in str(raised.value)
    assert create(leaves_a_task_that_exits, runner=runner).value == "SystemExit"
    assert create(HasATaskThatExits, runner=runner).value == "SystemExit"
    assert create(stops_its_loop, runner=runner).value == "it goes on"
    assert next(waiting).value == 1
    waiting.close()


async def counts_slowly() -> AsyncIterator[int]:
    for number in itertools.count():
        yield number
        await asyncio.sleep(0)
