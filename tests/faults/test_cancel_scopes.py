"""Clean-up under anyio's cancel scopes, which cancel more than once, and so under every disconnect of Starlette's."""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, Final

import anyio
import attrs
import pytest
from starlette.responses import StreamingResponse

from engine import AsyncPredictionStream, Engine
from tests._kit.gates import FileGate, Journal
from tests._kit.waits import auntil, within
from tests.faults.watched_loops import run
from tests.faults.worker_bodies import AGES

# From 3.12 on a task may run its first step where it is made.
EAGER: Any = getattr(asyncio, "eager_task_factory", None)


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
    """It is left open."""
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
        await auntil(scene.is_reached, scene.place)
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
        await first(lambda: auntil(scene.is_reached, scene.place))


WAYS: Final = (scope_is_cancelled, scope_moves_on, scope_fails, sibling_fails, client_disconnects)


async def when_reached(scene: Scene, act: Callable[[], object]) -> None:
    await auntil(scene.is_reached, scene.place)
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
    await auntil(lambda: "end" in scene.journal.words, "the end of the clean-up")
    assert scene.journal.words == scene.expected
    assert task.cancelling() == 0
    await auntil(lambda: asyncio.all_tasks() <= others, "the end of every task")
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
        await auntil(scene.is_reached, "the body's wait")
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
