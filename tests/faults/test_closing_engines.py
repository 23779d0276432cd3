"""Closing an engine under live streams, and everything that is asked of it afterwards."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from engine import Engine, EngineClosedError, NestingError, PredictionStream
from tests._kit.waits import TIMEOUT, auntil, in_other_thread, until
from tests.faults.waiting_predictors import GatedPredictors, coloured, plain

# 102: closing under live streams.


@pytest.mark.fault(102)
@pytest.mark.parametrize(
    ("kind", "runner"), [("resting", None), ("resting", "thread"), ("coloured", None), ("coloured", "thread")]
)
def test_each_stream_that_was_open_gets_one_engine_closed_error_and_is_finalised(kind: str, runner: str | None) -> None:
    gates = [GatedPredictors() for _ in range(5)]
    muna = Engine(discover=False)
    streams = [muna.predictions.stream(getattr(gate, kind), runner=runner, prefetch=0) for gate in gates]
    for stream in streams:
        assert next(stream).value == "first"
    in_other_thread(muna.close)
    for stream, gate in zip(streams, gates, strict=True):
        assert gate.finished.is_set()
        with pytest.raises(EngineClosedError):
            next(stream)
        assert list(stream) == []
        assert stream.outcome.state == "closed"


@pytest.mark.fault(102)
@pytest.mark.parametrize(("kind", "runner"), [("sync", "thread"), ("coloured", None)])
def test_readers_that_wait_are_woken_with_one_engine_closed_error(kind: str, runner: str | None) -> None:
    gates = [GatedPredictors() for _ in range(5)]
    ends: list[list[str]] = [[] for _ in gates]
    muna = Engine(discover=False, grace=0.2)

    def read(stream: PredictionStream, end: list[str]) -> None:
        try:
            for _ in stream:
                pass
        except EngineClosedError:
            end.append("closed")
        end.extend(str(left) for left in stream)

    readers = [
        threading.Thread(
            target=read, args=(muna.predictions.stream(getattr(gate, kind), runner=runner), end), daemon=True
        )
        for gate, end in zip(gates, ends, strict=True)
    ]
    for reader, gate in zip(readers, gates, strict=True):
        reader.start()
        assert gate.reached.wait(TIMEOUT)
    in_other_thread(muna.close)
    for reader in readers:
        reader.join(TIMEOUT)
        assert not reader.is_alive()
    assert ends == [["closed"]] * 5
    for gate in gates:
        gate.go.set()
        assert gate.finished.wait(TIMEOUT)


@pytest.mark.fault(102)
def test_closing_does_not_wait_for_bodies_that_cannot_be_stopped() -> None:
    gate = GatedPredictors()
    muna = Engine(discover=False, grace=0.05)
    stream = muna.predictions.stream(gate.sync, runner="thread")
    assert next(stream).value == "first"
    assert gate.reached.wait(TIMEOUT)
    started = time.monotonic()
    in_other_thread(muna.close)
    assert time.monotonic() - started < TIMEOUT / 2
    assert not gate.finished.is_set()
    gate.go.set()
    assert gate.finished.wait(TIMEOUT)
    with pytest.raises(EngineClosedError):
        next(stream)


@pytest.mark.fault(102)
@pytest.mark.parametrize("runner", [None, "inline", "thread"])
@pytest.mark.parametrize("kind", ["resting", "coloured"])
def test_aclose_finalises_the_streams_of_its_own_loop_too(runner: str | None, kind: str) -> None:
    gates = [GatedPredictors() for _ in range(5)]

    async def main() -> None:
        muna = Engine(discover=False)
        streams = [muna.predictions.astream(getattr(gate, kind), runner=runner, prefetch=0) for gate in gates]
        for stream in streams:
            assert (await anext(stream)).value == "first"
        async with asyncio.timeout(TIMEOUT):
            await muna.aclose()
        for stream, gate in zip(streams, gates, strict=True):
            assert gate.finished.is_set()
            with pytest.raises(EngineClosedError):
                await anext(stream)
            assert [item async for item in stream] == []
            assert stream.outcome.state == "closed"

    asyncio.run(main())


@pytest.mark.fault(102)
@pytest.mark.parametrize("runner", [None, "thread"])
def test_tasks_that_wait_in_a_predictor_get_one_engine_closed_error(runner: str | None) -> None:
    gates = [GatedPredictors() for _ in range(5)]

    async def read(muna: Engine, gate: GatedPredictors) -> str:
        try:
            async for _ in muna.predictions.astream(gate.coloured, runner=runner):
                pass
        except EngineClosedError:
            return "closed"
        return "ended"

    async def main() -> None:
        muna = Engine(discover=False)
        readers = [asyncio.create_task(read(muna, gate)) for gate in gates]
        await auntil(lambda: all(gate.reached.is_set() for gate in gates), "the waits in the bodies")
        async with asyncio.timeout(TIMEOUT):
            await muna.aclose()
            assert await asyncio.gather(*readers) == ["closed"] * 5
        assert all(gate.finished.is_set() for gate in gates)

    asyncio.run(main())


# 102: closing while `create` waits, for each of what it may wait for.


@pytest.mark.fault(102)
@pytest.mark.parametrize("place", ["rests", "waits"])
@pytest.mark.parametrize("consumer", ["stream", "create", "astream"])
def test_closing_an_engine_lets_the_bodies_on_its_own_loop_clean_up_with_all_that_they_need_for_it(
    consumer: str, place: str
) -> None:
    seen: list[str] = []
    reached, is_taken = threading.Event(), threading.Event()

    async def serve(asked: asyncio.Event, answered: asyncio.Event) -> None:
        await asked.wait()
        answered.set()

    async def yields() -> AsyncIterator[list[int]]:
        asked, answered = asyncio.Event(), asyncio.Event()
        connection = asyncio.create_task(serve(asked, answered))
        try:
            if place == "rests" and consumer != "create":
                yield [1]  # it waits until another is asked for
            reached.set()
            await asyncio.sleep(TIMEOUT)
        finally:
            asked.set()
            await answered.wait()
            await connection
            seen.append("end")

    async def aread() -> None:
        async for _ in muna.predictions.astream(yields, runner="thread").values():
            is_taken.set()
            await asyncio.to_thread(closing.wait, TIMEOUT)

    def read() -> None:
        with contextlib.suppress(EngineClosedError):
            if consumer == "create":
                muna.predictions.create(yields)
            elif consumer == "astream":
                asyncio.run(aread())
            else:
                for _ in muna.predictions.stream(yields).values():
                    is_taken.set()
                    closing.wait(TIMEOUT)

    muna, closing = Engine(discover=False), threading.Event()
    reader = threading.Thread(target=read)
    reader.start()
    assert (is_taken if place == "rests" and consumer != "create" else reached).wait(TIMEOUT)
    muna.close()
    closing.set()
    reader.join(TIMEOUT)
    assert seen == ["end"]


@pytest.mark.fault(102)
@pytest.mark.parametrize("runner", [None, "inline", "thread"])
def test_an_async_body_whose_engine_is_closed_while_it_computes_is_stopped_at_its_next_await_and_cleans_up(
    runner: str | None,
) -> None:
    seen: list[str] = []

    def is_closed() -> bool:
        try:
            muna.predictions.create(str)
        except EngineClosedError:
            return True
        return False

    async def computes() -> None:
        closer.start()
        until(is_closed, "the end of the engine")
        try:
            seen.append("computed")
            await asyncio.sleep(TIMEOUT)
        finally:
            for _ in range(3):
                await asyncio.sleep(0)
            seen.append("end")

    async def main() -> None:
        with pytest.raises(EngineClosedError):
            await muna.predictions.acreate(computes, runner=runner)
        await auntil(lambda: "end" in seen, "the clean-up")

    muna = Engine(discover=False)
    closer = threading.Thread(target=muna.close)
    asyncio.run(main())
    closer.join(TIMEOUT)
    assert seen == ["computed", "end"]


@pytest.mark.fault(102)
@pytest.mark.parametrize("runner", [None, "thread"])
def test_a_sync_close_on_a_loops_own_thread_does_not_wait_for_that_loops_streams(runner: str | None) -> None:
    gate = GatedPredictors()

    async def main() -> None:
        muna = Engine(discover=False)
        stream = muna.predictions.astream(gate.coloured, runner=runner, prefetch=0)
        assert (await anext(stream)).value == "first"
        started = time.monotonic()
        muna.close()
        assert time.monotonic() - started < TIMEOUT / 2
        with pytest.raises(EngineClosedError):
            await anext(stream)
        await auntil(gate.finished.is_set, "the body is finalised")
        assert [item async for item in stream] == []

    asyncio.run(main())


# 103: after closing.


@pytest.mark.fault(103)
@pytest.mark.parametrize("predictor", [plain, coloured])
@pytest.mark.parametrize("runner", [None, "thread"])
def test_a_closed_engine_refuses_every_call(predictor: Callable[[], Any], runner: str | None) -> None:
    muna = Engine(discover=False)
    muna.predictors.register("@tests/known", predictor)
    muna.predictions.create("@tests/known", runner=runner)
    muna.close()
    for tag in (predictor, "@tests/known"):
        with pytest.raises(EngineClosedError):
            muna.predictions.create(tag, runner=runner)
        with pytest.raises(EngineClosedError):
            list(muna.predictions.stream(tag, runner=runner))

        async def main(tag: Any = tag) -> None:
            with pytest.raises(EngineClosedError):
                await muna.predictions.acreate(tag, runner=runner)
            with pytest.raises(EngineClosedError):
                async for _ in muna.predictions.astream(tag, runner=runner):
                    pass

        asyncio.run(main())
    assert issubclass(EngineClosedError, RuntimeError)


@pytest.mark.fault(103)
def test_a_closed_engine_sets_no_class_up() -> None:
    class Model:
        def setup(self) -> None:
            raise AssertionError("set up")

        def predict(self) -> str:
            return "never"

    muna = Engine(discover=False)
    muna.close()
    with pytest.raises(EngineClosedError):
        muna.load(Model)
    with pytest.raises(EngineClosedError):
        asyncio.run(muna.aload(Model))
    with pytest.raises(EngineClosedError):
        muna.predictions.create(Model)


@pytest.mark.fault(103)
def test_closing_twice_in_every_way_does_nothing_more() -> None:
    torn_down: list[int] = []

    class Model:
        def predict(self) -> str:
            return "fine"

        def teardown(self) -> None:
            torn_down.append(1)

    with Engine(discover=False) as muna:
        muna.predictions.create(Model)
        muna.predictions.create(plain, runner="thread")
        muna.predictions.create(coloured)
        muna.close()
        muna.close()
        asyncio.run(muna.aclose())
    assert torn_down == [1]


@pytest.mark.fault(103)
def test_of_two_threads_that_close_one_waits_for_the_other() -> None:
    reached, go = threading.Event(), threading.Event()
    steps: list[str] = []

    class Model:
        def predict(self) -> str:
            return "fine"

        def teardown(self) -> None:
            reached.set()
            assert go.wait(TIMEOUT)
            steps.append("torn down")

    muna = Engine(discover=False)
    muna.predictions.create(Model)

    def close() -> None:
        muna.close()
        steps.append("closed")

    first, second = threading.Thread(target=close, daemon=True), threading.Thread(target=close, daemon=True)
    first.start()
    assert reached.wait(TIMEOUT)
    second.start()
    second.join(0.05)
    assert second.is_alive()
    go.set()
    for thread in (first, second):
        thread.join(TIMEOUT)
        assert not thread.is_alive()
    assert steps == ["torn down", "closed", "closed"]


@pytest.mark.fault(103)
@pytest.mark.parametrize("runner", [None, "thread"])
def test_a_predictor_that_closes_its_own_engine_gets_an_error_and_the_engine_goes_on(
    muna: Engine, runner: str | None
) -> None:
    def closes() -> None:
        muna.close()

    async def acloses() -> None:
        await muna.aclose()

    async def main() -> None:
        for predictor in (closes, acloses):
            with pytest.raises(NestingError, match="close it from outside"):
                await muna.predictions.acreate(predictor, runner=runner)

    for predictor in (closes, acloses):
        with pytest.raises(NestingError, match="close it from outside"):
            in_other_thread(lambda predictor=predictor: muna.predictions.create(predictor, runner=runner))  # type: ignore[misc]
    asyncio.run(main())
    assert muna.predictions.create(plain).value == "plain"


@pytest.mark.fault(103)
def test_a_predictor_may_make_and_close_an_engine_of_its_own(muna: Engine) -> None:
    def nested() -> Any:
        with Engine(discover=False) as own:
            return own.predictions.create(coloured).value

    for runner in (None, "thread"):
        assert in_other_thread(lambda runner=runner: muna.predictions.create(nested, runner=runner)).value == "coloured"  # type: ignore[misc]


@pytest.mark.fault(103)
def test_calls_that_race_with_closing_work_or_are_refused_and_never_hang() -> None:
    for _ in range(30):
        muna = Engine(discover=False)
        ends: list[str] = []
        barrier = threading.Barrier(4)

        def call(
            runner: str | None, predictor: Any, muna: Engine = muna, ends: Any = ends, barrier: Any = barrier
        ) -> None:
            barrier.wait(TIMEOUT)
            try:
                for _ in range(50):
                    muna.predictions.create(predictor, runner=runner)
            except EngineClosedError:
                ends.append("refused")
            except BaseException as error:
                ends.append(repr(error))
            else:
                ends.append("worked")

        callers = [
            threading.Thread(target=call, args=arguments, daemon=True)
            for arguments in ((None, plain), ("thread", plain), (None, coloured))
        ]
        for caller in callers:
            caller.start()
        barrier.wait(TIMEOUT)
        muna.close()
        for caller in callers:
            caller.join(TIMEOUT)
            assert not caller.is_alive(), "a call hangs"
        assert set(ends) <= {"refused", "worked"}
