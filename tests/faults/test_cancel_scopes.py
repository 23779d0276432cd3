"""Clean-up under cancellations that come more than once: anyio's cancel scopes, so every disconnect under Starlette.

A scope that is cancelled delivers its cancellation at every turn of the loop until it is left. An async body in its
caller's task is cleaned up in that task, so what its `finally` awaits would be cancelled again and again.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import itertools
import logging
import math
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, Final

import anyio
import attrs
import pytest
from starlette.responses import StreamingResponse

from engine import AsyncPredictionStream, Engine, PredictionCancelledError, PredictorError
from tests.faults.test_asyncio import until, within
from tests.faults.worker_bodies import AGES, FileGate, Journal

# From 3.12 on a task may run its first step where it is made.
EAGER: Any = getattr(asyncio, "eager_task_factory", None)


def run(main: Awaitable[None], factory: Any = None) -> None:
    """Run to the end, with what the loop cannot tell anybody else taken for a failure."""
    told: list[dict[str, Any]] = []

    async def watched() -> None:
        loop = asyncio.get_running_loop()
        loop.set_task_factory(factory)
        loop.set_exception_handler(lambda _loop, context: told.append(context))
        await main

    asyncio.run(watched())
    assert told == []


# The matrix: consumers, runners, the places where a consumer is cancelled, and what cancels it.


@attrs.frozen
class Scene:
    """One call: who makes it, where it runs, and where its consumer is when it is cancelled.

    Attributes:
        muna: the engine.
        runner: where the body runs.
        place: `"before"` the first partial, `"between"` two, while the consumer has one (`"held"`), or in the
            `"clean-up"` of a stream that it closes.
        folder: where the journal lies.
    """

    muna: Engine
    runner: str | None
    place: str
    folder: Path
    streams: list[AsyncPredictionStream] = attrs.field(factory=list)

    @property
    def journal(self) -> Journal:
        return Journal(self.folder / "journal")

    @property
    def gate(self) -> FileGate:
        """Where the clean-up of a stream that is closed waits."""
        return FileGate(self.folder / "gate")

    @property
    def is_here(self) -> bool:
        """Whether the body runs in its caller's task."""
        return self.runner in {None, "inline"}

    def is_reached(self) -> bool:
        return ("begin" if self.place == "clean-up" else "reached") in self.journal.words

    @property
    def expected(self) -> list[str]:
        if self.place != "clean-up":
            return ["reached", "begin", "end"]
        # A first cancellation reaches an orderly clean-up, once; an owner elsewhere is not the one that is cancelled.
        return ["begin", "cancelled", "end"] if self.is_here else ["begin", "end"]

    async def holds_partial(self) -> bool:
        """What the consumer does with each partial; tell whether it then leaves."""
        if self.place == "held":
            self.journal.note("reached")
            await asyncio.sleep(AGES)
        return self.place == "clean-up"

    def bodies(self) -> tuple[Callable[[], Any], Callable[[], Any]]:
        """An async function and an async generator; they go to a worker by value, with nothing of this class."""
        place, journal, gate = self.place, self.journal, self.gate

        async def reach() -> None:
            journal.note("reached")
            await asyncio.sleep(AGES)

        async def clean_up() -> None:
            journal.note("begin")
            try:
                if place == "clean-up":
                    await gate.await_()
            except asyncio.CancelledError:
                journal.note("cancelled")
            for _ in range(3):
                await asyncio.sleep(0)
            await asyncio.create_task(asyncio.sleep(0.001))
            async with asyncio.Lock():
                await asyncio.get_running_loop().run_in_executor(None, int)
            journal.note("end")

        async def returns() -> str:
            try:
                await reach()
            finally:
                await clean_up()
            return "done"

        async def yields() -> AsyncIterator[str]:
            try:
                if place == "before":
                    await reach()
                yield "first"
                await reach()
            finally:
                await clean_up()

        return returns, yields

    def stream(self) -> AsyncPredictionStream:
        # Nothing runs ahead, so that each place is reached by the consumer alone.
        stream = self.muna.predictions.astream(self.bodies()[1], runner=self.runner, prefetch=0)
        self.streams[:] = [stream]
        return stream


async def acreate_of_a_function(scene: Scene) -> None:
    await scene.muna.predictions.acreate(scene.bodies()[0], runner=scene.runner)


async def acreate_of_a_generator(scene: Scene) -> None:
    await scene.muna.predictions.acreate(scene.bodies()[1], runner=scene.runner)


async def values(scene: Scene) -> None:
    async with scene.stream() as stream:
        async for _ in stream.values():
            if await scene.holds_partial():
                break


async def predictions(scene: Scene) -> None:
    async with scene.stream() as stream:
        async for _ in stream:
            if await scene.holds_partial():
                break


async def snapshots(scene: Scene) -> None:
    async with contextlib.aclosing(scene.stream()) as stream:
        async for _ in stream.snapshots():
            if await scene.holds_partial():
                break


async def pulls(scene: Scene) -> None:
    stream = scene.stream()
    try:
        while await anext(stream, None) is not None and not await scene.holds_partial():
            pass
    finally:
        await stream.aclose()


async def dropped(scene: Scene) -> None:
    """Nobody closes it."""
    async for _ in scene.muna.predictions.astream(scene.bodies()[1], runner=scene.runner, prefetch=0).values():
        await scene.holds_partial()


CONSUMERS: Final[dict[Callable[[Scene], Awaitable[None]], tuple[str, ...]]] = {
    acreate_of_a_function: ("before",),
    acreate_of_a_generator: ("before", "between"),
    values: ("before", "between", "held", "clean-up"),
    predictions: ("before", "between", "held", "clean-up"),
    snapshots: ("before", "between", "held", "clean-up"),
    pulls: ("before", "between", "held", "clean-up"),
    dropped: ("before", "between", "held"),
}
CELLS: Final = [(consumer, place) for consumer, places in CONSUMERS.items() for place in places]
each_cell = pytest.mark.parametrize(
    ("consumer", "place"), CELLS, ids=[f"{consumer.__name__}-{place}" for consumer, place in CELLS]
)

Consume = Callable[[], Awaitable[None]]


async def scope_is_cancelled(scene: Scene, consume: Consume) -> None:
    with anyio.CancelScope() as scope:
        trigger = asyncio.create_task(when_reached(scene, scope.cancel))
        await consume()
    await trigger
    assert scope.cancelled_caught


async def scope_moves_on(scene: Scene, consume: Consume) -> None:
    with anyio.move_on_after(AGES) as scope:
        trigger = asyncio.create_task(when_reached(scene, lambda: setattr(scope, "deadline", -math.inf)))
        await consume()
    await trigger
    assert scope.cancelled_caught


async def scope_fails(scene: Scene, consume: Consume) -> None:
    async def bounded() -> None:
        with anyio.fail_after(AGES) as scope:
            triggers.append(asyncio.create_task(when_reached(scene, lambda: setattr(scope, "deadline", -math.inf))))
            await consume()

    triggers: list[asyncio.Task[None]] = []
    with pytest.raises(TimeoutError):
        await bounded()
    await triggers[0]


async def sibling_fails(scene: Scene, consume: Consume) -> None:
    async def fails() -> None:
        await until(scene.is_reached, scene.place)
        raise LookupError("a sibling")

    async def grouped() -> None:
        async with anyio.create_task_group() as group:
            group.start_soon(fails)
            group.start_soon(consume)

    with pytest.raises(ExceptionGroup) as raised:
        await grouped()
    assert [type(error) for error in raised.value.exceptions] == [LookupError]


async def client_disconnects(scene: Scene, consume: Consume) -> None:
    """As Starlette runs a response beside its wait for the client to leave."""

    async def first(work: Consume) -> None:
        await work()
        group.cancel_scope.cancel()

    async with anyio.create_task_group() as group:
        group.start_soon(first, consume)
        await first(lambda: until(scene.is_reached, scene.place))


WAYS: Final = (scope_is_cancelled, scope_moves_on, scope_fails, sibling_fails, client_disconnects)


async def when_reached(scene: Scene, act: Callable[[], object]) -> None:
    await until(scene.is_reached, scene.place)
    act()


async def is_cut_once_at_most(scene: Scene, consumer: Callable[[Scene], Awaitable[None]], way: Any) -> None:
    """Cancel one consumer in one way, and look at its body's clean-up, at its task and at its stream."""
    task = asyncio.current_task()
    assert task is not None
    others = asyncio.all_tasks()
    ended: list[str] = []

    async def consume() -> None:
        try:
            await consumer(scene)
        except asyncio.CancelledError:
            ended.append("cancelled")
            raise
        finally:
            ended.append("end" if scene.journal.words[-1:] == ["end"] else "before the end")

    await within(way(scene, consume))
    scene.gate.open()
    assert ended[0] == "cancelled"
    if scene.is_here and (consumer, scene.place) != (dropped, "held"):
        assert ended[1] == "end", "the clean-up was not over when its consumer went on"
    await until(lambda: "end" in scene.journal.words, "the end of the clean-up")
    assert scene.journal.words == scene.expected
    assert task.cancelling() == 0
    await until(lambda: asyncio.all_tasks() <= others, "the end of every task")
    for stream in scene.streams:
        assert stream.outcome.state == ("cancelled" if scene.place in {"before", "between"} else "closed")
        assert [item async for item in stream] == []


@pytest.mark.fault(50, 75)
@pytest.mark.filterwarnings("ignore:a stream of:ResourceWarning")
@pytest.mark.parametrize("runner", [None, "inline", "thread"])
@each_cell
def test_a_cancel_scope_around_any_consumer_lets_the_clean_up_run_to_its_end(
    muna: Engine, tmp_path: Path, consumer: Callable[[Scene], Awaitable[None]], place: str, runner: str | None
) -> None:
    async def main() -> None:
        for way in WAYS:
            folder = tmp_path / way.__name__
            folder.mkdir()
            await is_cut_once_at_most(Scene(muna, runner, place, folder), consumer, way)

    run(main(), EAGER if runner == "inline" else None)


@pytest.mark.fault(50, 75)
@pytest.mark.parametrize("consumer", [acreate_of_a_function, acreate_of_a_generator, values, pulls])
def test_a_cancel_scope_around_a_consumer_of_a_worker_lets_the_clean_up_run_to_its_end(
    muna: Engine, tmp_path: Path, consumer: Callable[[Scene], Awaitable[None]]
) -> None:
    async def main() -> None:
        for place in CONSUMERS[consumer]:
            for way in (scope_is_cancelled, client_disconnects):
                folder = tmp_path / f"{place}-{way.__name__}"
                folder.mkdir()
                await is_cut_once_at_most(Scene(muna, "process", place, folder), consumer, way)

    run(main())


@pytest.mark.fault(50, 75)
def test_a_client_that_leaves_a_streaming_response_lets_the_clean_up_run_to_its_end(
    muna: Engine, tmp_path: Path
) -> None:
    scene = Scene(muna, None, "between", tmp_path)
    sent: list[bytes] = []

    async def receive() -> dict[str, str]:
        await until(scene.is_reached, "the body's wait")
        return {"type": "http.disconnect"}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message.get("body", b""))

    async def main() -> None:
        response = StreamingResponse(scene.stream().values())
        await within(response({"type": "http", "asgi": {"spec_version": "2.0"}}, receive, send))

    run(main())
    assert scene.journal.words == scene.expected
    assert sent == [b"", b"first"]


@pytest.mark.fault(75)
@pytest.mark.parametrize("how", [values, pulls])
def test_a_body_that_goes_on_in_a_thread_is_cleaned_up_before_its_cancelled_consumer_goes_on(
    muna: Engine, tmp_path: Path, how: Callable[[Scene], Awaitable[None]]
) -> None:
    class Scenes(Scene):
        def bodies(self) -> tuple[Callable[[], Any], Callable[[], Any]]:
            def yields() -> Iterator[list[str]]:
                try:
                    yield ["first"]  # a thread runs ahead past what cannot change
                finally:
                    self.journal.note("end")

            async def gives_it() -> Iterator[list[str]]:
                await asyncio.sleep(0)
                return yields()

            return gives_it, gives_it

    async def main() -> None:
        scene = Scenes(muna, None, "held", tmp_path)
        await within(scope_is_cancelled(scene, lambda: how(scene)))
        assert scene.journal.words == ["reached", "end"]

    run(main())


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
        await until(lambda: "the body went on after being cancelled; it is abandoned" in caplog.text, "the report")
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
        await until(lambda: "end" in seen, "the end of the clean-up")
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
        await until(lambda: "reached" in seen, "the wait")
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
        await until(lambda: "reached" in seen, "the inner body")
        act()

    with caplog.at_level(logging.WARNING, "engine"):
        run(main())
    assert caplog.text == ""


@pytest.mark.fault(73, 78)
@pytest.mark.filterwarnings("ignore:a stream of:ResourceWarning")
@pytest.mark.parametrize("left", ["dropped", "cancelled", "open", "dropped at the end"])
def test_a_loop_that_ends_waits_for_the_clean_up_of_streams_that_nobody_reads_any_more(muna: Engine, left: str) -> None:
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
        await until(lambda: "of the clean-up" in caplog.text, "the report")

    async def act_when_begun(act: Callable[[], object]) -> None:
        await until(lambda: "begin" in journal.words, "the clean-up")
        act()

    with caplog.at_level(logging.WARNING, "engine"):
        run(main())


@pytest.mark.fault(77)
@pytest.mark.parametrize("turns", [0, 1])
def test_a_cancelled_error_that_a_clean_up_raises_itself_is_its_failure_and_cancels_nobody(
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
    loop.run_until_complete(until(lambda: "begin" in seen, "the clean-up"))
    task._log_destroy_pending = False
    loop.close()
    del task
    gc.collect()
    assert seen == ["begin"]
