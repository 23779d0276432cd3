"""Clean-up that is cancelled, times out, fails, never ends, or has scopes and tasks of its own."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import itertools
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, Final

import anyio
import pytest

from engine import AsyncPredictionStream, Engine, PredictionCancelledError, PredictorError
from tests._kit.gates import FileGate, Journal
from tests._kit.waits import auntil, within
from tests.faults.watched_loops import run
from tests.faults.worker_bodies import AGES

# What else may happen to a clean-up.


async def waits_for_an_event() -> None:
    await asyncio.Event().wait()


async def lets_the_loop_turn() -> None:
    for _ in itertools.count():
        await asyncio.sleep(0)


helpers: list[asyncio.Task[None]] = []


async def waits_for_a_task() -> None:
    helpers.append(asyncio.create_task(waits_for_an_event()))
    await helpers[-1]


async def cancelled_in_a_pull(stream: AsyncPredictionStream, reached: asyncio.Event) -> None:
    await anext(stream)
    with anyio.CancelScope() as scope:
        asyncio.get_running_loop().call_soon(scope.cancel)
        await anext(stream)
    assert scope.cancelled_caught
    assert stream.outcome.state == "cancelled"


async def closed_by_a_cancelled_task(stream: AsyncPredictionStream, reached: asyncio.Event) -> None:
    await anext(stream)
    with anyio.CancelScope() as scope:
        try:
            asyncio.get_running_loop().call_soon(scope.cancel)
            await asyncio.sleep(AGES)
        finally:
            await stream.aclose()
    assert scope.cancelled_caught
    assert stream.outcome.state == "closed"


async def closed_and_then_cancelled(stream: AsyncPredictionStream, reached: asyncio.Event) -> None:
    await anext(stream)
    with anyio.CancelScope() as scope:
        trigger = asyncio.create_task(cancel_when(reached, scope))
        await stream.aclose()
    await trigger
    assert scope.cancelled_caught
    assert stream.outcome.state == "closed"


async def cancel_when(reached: asyncio.Event, scope: Any) -> None:
    await reached.wait()
    scope.cancel()


async def closed_in_order(stream: AsyncPredictionStream, reached: asyncio.Event) -> None:
    await anext(stream)
    await stream.aclose()
    assert stream.outcome.state == "closed"


async def stopped_in_a_pull(stream: AsyncPredictionStream, reached: asyncio.Event) -> None:
    await anext(stream)
    asyncio.get_running_loop().call_soon(stream.cancel)
    with pytest.raises(PredictionCancelledError):
        await anext(stream)
    assert stream.outcome.state == "cancelled"


async def dropped_half_read(stream: AsyncPredictionStream, reached: asyncio.Event) -> None:
    await anext(stream)
    del stream


ENDINGS: Final = (
    cancelled_in_a_pull,
    closed_by_a_cancelled_task,
    closed_and_then_cancelled,
    closed_in_order,
    stopped_in_a_pull,
    dropped_half_read,
)
each_ending = pytest.mark.parametrize("ending", ENDINGS, ids=lambda ending: ending.__name__)


@pytest.mark.fault(50, 76)
@pytest.mark.filterwarnings("ignore:a stream of:ResourceWarning")
@pytest.mark.parametrize("waits", [waits_for_an_event, lets_the_loop_turn, waits_for_a_task])
@each_ending
def test_a_clean_up_that_never_ends_is_cancelled_once_after_the_grace_and_given_up_after_one_more(
    caplog: pytest.LogCaptureFixture, ending: Any, waits: Callable[[], Awaitable[None]]
) -> None:
    cancellations: list[str] = []
    reached: list[asyncio.Event] = []

    async def never_ends() -> AsyncIterator[int]:
        try:
            yield 1
            await asyncio.sleep(AGES)
        finally:
            reached[0].set()
            while True:
                try:
                    await waits()
                except asyncio.CancelledError:
                    cancellations.append("cancelled")

    async def main(muna: Engine) -> None:
        reached.append(asyncio.Event())
        await within(ending(muna.predictions.astream(never_ends), reached[0]))
        await auntil(lambda: "the body went on after being cancelled; it is abandoned" in caplog.text, "the report")
        task = asyncio.current_task()
        assert task is not None
        assert task.cancelling() == 0
        while helpers:
            helpers.pop().cancel()

    with caplog.at_level(logging.WARNING, "engine"), Engine(discover=False, grace=0.02) as muna:
        run(main(muna))
    # That of the consumer's reaches a clean-up that began in order, and there is the one after the grace.
    assert len(cancellations) == (2 if ending is closed_and_then_cancelled else 1)
    assert len(caplog.records) == 1


@pytest.mark.fault(50)
@pytest.mark.filterwarnings("ignore:a stream of:ResourceWarning")
@each_ending
def test_a_task_that_a_clean_up_waits_for_is_not_cancelled_with_its_consumer(muna: Engine, ending: Any) -> None:
    seen: list[str] = []
    reached: list[asyncio.Event] = []

    async def turns(count: int) -> None:
        for _ in range(count):
            await asyncio.sleep(0)
        seen.append("closed")

    async def yields() -> AsyncIterator[int]:
        try:
            yield 1
            await asyncio.sleep(AGES)
        finally:
            if ending is closed_and_then_cancelled:
                reached[0].set()
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.sleep(AGES)
            await asyncio.create_task(turns(5))
            async with asyncio.TaskGroup() as group:
                group.create_task(turns(3))
                group.create_task(turns(4))
            await asyncio.wait_for(turns(3), AGES)
            seen.append("end")

    async def main() -> None:
        reached.append(asyncio.Event())
        await within(ending(muna.predictions.astream(yields), reached[0]))
        await auntil(lambda: "end" in seen, "the end of the clean-up")
        assert seen == ["closed"] * 4 + ["end"]

    run(main())


async def by_asyncios_timeout(work: Callable[[], Awaitable[None]]) -> None:
    async with asyncio.timeout(0):
        await work()


async def by_a_cancel_scope(work: Callable[[], Awaitable[None]]) -> None:
    with anyio.fail_after(0, shield=True):
        await work()


@pytest.mark.fault(50)
@pytest.mark.parametrize("bounded", [by_asyncios_timeout, by_a_cancel_scope])
@pytest.mark.parametrize("ending", [cancelled_in_a_pull, closed_by_a_cancelled_task, closed_in_order])
def test_a_clean_ups_own_timeout_is_on_time_unless_its_task_is_being_cancelled(
    muna: Engine, ending: Any, bounded: Any
) -> None:
    seen: list[str] = []

    async def ten_turns() -> None:
        for _ in range(10):
            await asyncio.sleep(0)
        seen.append("all of it")

    async def yields() -> AsyncIterator[int]:
        try:
            yield 1
            await asyncio.sleep(AGES)
        finally:
            try:
                await bounded(ten_turns)
            except TimeoutError:
                seen.append("timeout")
            await asyncio.sleep(0)
            seen.append("end")

    async def main() -> None:
        await within(ending(muna.predictions.astream(yields), asyncio.Event()))

    run(main())
    assert seen == ["timeout" if ending is closed_in_order else "all of it", "end"]


@pytest.mark.fault(50)
@pytest.mark.parametrize("bounded", [by_asyncios_timeout, by_a_cancel_scope])
def test_a_clean_ups_own_timeout_is_late_by_the_grace_at_most(bounded: Any) -> None:
    seen: list[str] = []

    async def waits() -> AsyncIterator[int]:
        try:
            yield 1
            await asyncio.sleep(AGES)
        finally:
            try:
                await bounded(waits_for_an_event)
            except TimeoutError:
                seen.append("timeout")
            await asyncio.sleep(0)
            seen.append("end")

    async def main(muna: Engine) -> None:
        stream = muna.predictions.astream(waits)
        await anext(stream)
        with pytest.raises(TimeoutError):
            await pull_for_a_moment(stream)

    with Engine(discover=False, grace=0.02) as muna:
        run(main(muna))
    assert seen == ["timeout", "end"]


@pytest.mark.fault(50, 75)
@pytest.mark.parametrize("bounded", [by_asyncios_timeout, by_a_cancel_scope])
def test_a_scope_of_the_bodys_own_that_expires_is_left_and_a_later_cancellation_still_reaches_the_body(
    muna: Engine, bounded: Any
) -> None:
    seen: list[str] = []

    async def goes_on() -> AsyncIterator[int]:
        yield 1
        for _ in range(3):
            try:
                await bounded(waits_for_an_event)
            except TimeoutError:
                seen.append("timeout")
            await asyncio.sleep(0)
        yield 2
        try:
            seen.append("reached")
            await asyncio.sleep(AGES)
        except asyncio.CancelledError:
            await asyncio.sleep(0)
            seen.append("cancelled")
            raise

    async def main() -> None:
        async with muna.predictions.astream(goes_on) as stream:
            assert [(await within(anext(stream))).value for _ in range(2)] == [1, 2]
            with anyio.CancelScope() as scope:
                trigger = asyncio.create_task(cancel_once(scope))
                await anext(stream)
            assert scope.cancelled_caught
            await trigger

    async def cancel_once(scope: Any) -> None:
        await auntil(lambda: "reached" in seen, "the wait")
        scope.cancel()

    run(main())
    assert seen == ["timeout"] * 3 + ["reached", "cancelled"]


async def pull_for_a_moment(stream: AsyncPredictionStream) -> None:
    async with asyncio.timeout(0):
        await anext(stream)


async def gives_a_value() -> int:
    return 1


async def raises_an_error() -> None:
    raise LookupError("of its own")


@pytest.mark.fault(75, 76)
@pytest.mark.parametrize("then", [gives_a_value, raises_an_error, lambda: asyncio.sleep(0)])
def test_whatever_a_body_makes_of_its_cancellation_its_consumers_task_ends_as_its_scope_expects(
    muna: Engine, then: Callable[[], Awaitable[Any]]
) -> None:
    async def swallows() -> Any:
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(AGES)
        return await then()

    async def main() -> None:
        with contextlib.suppress(LookupError), anyio.CancelScope() as scope:
            asyncio.get_running_loop().call_soon(scope.cancel)
            await within_task(muna.predictions.acreate(swallows))
        assert scope.cancelled_caught is (then is not raises_an_error)
        task = asyncio.current_task()
        assert task is not None
        assert task.cancelling() == 0
        await asyncio.sleep(0)  # and nothing is still to come

    run(main())


async def within_task(awaitable: Awaitable[Any]) -> Any:
    """Await it here, not in a task that a bound would make."""
    return await awaitable


@pytest.mark.fault(51, 75)
def test_a_cancellation_while_a_posted_stop_is_carried_out_is_the_consumers_own(muna: Engine) -> None:
    streams: list[AsyncPredictionStream] = []
    scopes: list[Any] = []
    seen: list[str] = []

    async def stops_itself() -> AsyncIterator[int]:
        try:
            yield 1
            streams[0].cancel()
            yield 2
        finally:
            asyncio.get_running_loop().call_soon(scopes[0].cancel)
            try:
                await asyncio.sleep(AGES)
            except asyncio.CancelledError:
                await asyncio.sleep(0)
                seen.append("end")
                raise

    async def main() -> None:
        streams.append(muna.predictions.astream(stops_itself))
        with anyio.CancelScope() as scope:
            scopes.append(scope)
            async for _ in streams[0].values():
                pass
            seen.append("its consumer went on")
        assert scope.cancelled_caught
        assert streams[0].outcome.state == "cancelled"

    run(main())
    assert seen == ["end"]


@pytest.mark.fault(51)
@pytest.mark.parametrize("bounded", [by_asyncios_timeout, by_a_cancel_scope])
def test_a_stop_that_comes_while_a_body_cleans_up_after_a_scope_of_its_own_is_carried_out_if_it_goes_on(
    muna: Engine, bounded: Any
) -> None:
    streams: list[AsyncPredictionStream] = []
    seen: list[str] = []

    async def expires() -> None:
        try:
            await asyncio.sleep(AGES)
        finally:
            streams[0].cancel()
            for _ in range(5):
                await asyncio.sleep(0)
            seen.append("left the scope")

    async def goes_on() -> None:
        with contextlib.suppress(TimeoutError):
            await bounded(expires)
        try:
            await asyncio.sleep(AGES)
        finally:
            seen.append("end")

    async def main() -> None:
        streams.append(muna.predictions.astream(goes_on))
        with pytest.raises(PredictionCancelledError):
            await within(anext(streams[0]))

    run(main())
    assert seen == ["left the scope", "end"]


@pytest.mark.fault(51, 75)
def test_a_stop_reaches_what_a_body_calls_as_a_cancellation_and_nothing_is_logged(
    muna: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    seen: list[str] = []

    async def inner() -> None:
        try:
            seen.append("reached")
            await asyncio.sleep(AGES)
        finally:
            for _ in range(3):
                await asyncio.sleep(0)
            seen.append("the inner end")

    async def outer() -> None:
        try:
            await muna.predictions.acreate(inner)
        except asyncio.CancelledError:
            await asyncio.sleep(0)
            seen.append("the outer end")
            raise

    async def main() -> None:
        for stop in ("cancel", "scope"):
            seen.clear()
            stream = muna.predictions.astream(outer)
            with anyio.CancelScope() as scope, contextlib.suppress(PredictionCancelledError):
                trigger = asyncio.create_task(act_when_reached(stream.cancel if stop == "cancel" else scope.cancel))
                await anext(stream)
            await trigger
            assert scope.cancelled_caught is (stop == "scope")
            assert stream.outcome.state == "cancelled"
            assert seen == ["reached", "the inner end", "the outer end"]

    async def act_when_reached(act: Callable[[], object]) -> None:
        await auntil(lambda: "reached" in seen, "the inner body")
        act()

    with caplog.at_level(logging.WARNING, "engine"):
        run(main())
    assert caplog.text == ""


@pytest.mark.fault(73, 78)
@pytest.mark.filterwarnings("ignore:a stream of:ResourceWarning")
@pytest.mark.parametrize("left", ["dropped", "cancelled", "open", "dropped at the end"])
def test_a_loop_that_ends_waits_for_the_clean_up_of_streams_that_no_consumer_reads_any_more(
    muna: Engine, left: str
) -> None:
    seen: list[str] = []
    kept: list[object] = []

    async def yields() -> AsyncIterator[int]:
        try:
            yield 1
        finally:
            seen.append("begin")
            for _ in range(10):
                await asyncio.sleep(0)
            await asyncio.create_task(asyncio.sleep(0.005))
            seen.append("end")

    async def rests_on_a_partial() -> None:
        async for _ in muna.predictions.astream(yields).values():
            await asyncio.sleep(AGES)

    async def main() -> None:
        stream = muna.predictions.astream(yields)
        await anext(stream)
        if left == "cancelled":
            stream.cancel()
        elif left == "open":
            kept.append(stream)
        elif left == "dropped at the end":
            kept.append(asyncio.create_task(rests_on_a_partial()))
        del stream
        await asyncio.sleep(0)
        await asyncio.sleep(0)

    run(main())
    assert sorted(seen) == sorted(["begin", "end"] * (2 if left == "dropped at the end" else 1))


@pytest.mark.fault(75)
@pytest.mark.parametrize("runner", ["thread", "process"])
def test_what_a_clean_up_raises_is_logged_where_its_consumer_was_cancelled_as_it_waited_for_it(
    muna: Engine, tmp_path: Path, caplog: pytest.LogCaptureFixture, runner: str
) -> None:
    journal, gate = Journal(tmp_path / "journal"), FileGate(tmp_path / "gate")

    async def fails() -> AsyncIterator[int]:
        try:
            yield 1
        finally:
            journal.note("begin")
            await gate.await_()
            raise LookupError("of the clean-up")

    async def main() -> None:
        stream = muna.predictions.astream(fails, runner=runner, prefetch=0)
        await anext(stream)
        with anyio.CancelScope() as scope:
            trigger = asyncio.create_task(act_when_begun(scope.cancel))
            await stream.aclose()
        await trigger
        assert scope.cancelled_caught
        gate.open()
        await auntil(lambda: "of the clean-up" in caplog.text, "the report")

    async def act_when_begun(act: Callable[[], object]) -> None:
        await auntil(lambda: "begin" in journal.words, "the clean-up")
        act()

    with caplog.at_level(logging.WARNING, "engine"):
        run(main())


@pytest.mark.fault(77)
@pytest.mark.parametrize("turns", [0, 1])
def test_a_cancelled_error_that_a_clean_up_raises_itself_is_its_failure_and_cancels_no_task(
    muna: Engine, turns: int
) -> None:
    async def raises() -> AsyncIterator[int]:
        try:
            yield 1
        finally:
            for _ in range(turns):
                await asyncio.sleep(0)
            raise asyncio.CancelledError("of its own")

    async def main() -> None:
        stream = muna.predictions.astream(raises)
        await anext(stream)
        with pytest.raises(PredictorError, match="raised CancelledError: of its own"):
            await stream.aclose()
        assert stream.outcome.state == "closed"

    run(main())


@pytest.mark.fault(78)
def test_a_consumer_whose_loop_is_gone_while_it_waits_for_a_clean_up_does_not_go_on(muna: Engine) -> None:
    seen: list[str] = []

    async def waits() -> AsyncIterator[int]:
        try:
            yield 1
        finally:
            seen.append("begin")
            await asyncio.sleep(AGES)

    async def consumer() -> None:
        stream = muna.predictions.astream(waits)
        await anext(stream)
        await stream.aclose()
        seen.append("went on")

    loop = asyncio.new_event_loop()
    task: Any = loop.create_task(consumer())
    loop.run_until_complete(auntil(lambda: "begin" in seen, "the clean-up"))
    task._log_destroy_pending = False
    loop.close()
    del task
    gc.collect()
    assert seen == ["begin"]
