"""Faults over an engine's life: closing under streams, use after closing, exits and signals of the process, set-up."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
import warnings
import weakref
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest

from engine import Engine, EngineClosedError, NestingError, PluginError, PredictionStream, Predictor, current_call
from engine._predictors.body import Body
from engine.runners.ending import Ending
from engine.runners.slots import Slots

PATIENCE = 10.0  # seconds; only a test that fails waits as long


def until(condition: Callable[[], bool], what: str) -> None:
    """Wait for something another thread brings about."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not come about within {PATIENCE} s"
        time.sleep(0.001)


async def auntil(condition: Callable[[], bool], what: str) -> None:
    """The same without blocking this loop."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not come about within {PATIENCE} s"
        await asyncio.sleep(0.001)


def in_time(function: Callable[[], Any]) -> Any:
    """Call in a thread of its own, so that a deadlock fails the test at once and by name."""
    answers: list[Any] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            answers.append(function())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(PATIENCE)
    assert not thread.is_alive(), "a deadlock"
    if errors:
        raise errors[0]
    return answers[0]


def run_script(source: str) -> subprocess.CompletedProcess[str]:
    """Run a script as its user would; ended by force, and so a failure, if it takes longer than it may."""
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(source)], capture_output=True, text=True, timeout=50, check=False
    )


class Gate:
    """Predictors that wait at a gate, announce that they got there, and tell when they are finalised."""

    def __init__(self) -> None:
        self.reached = threading.Event()
        self.go = threading.Event()
        self.finished = threading.Event()

    def sync(self) -> Iterator[str]:
        try:
            yield "first"
            self.reached.set()
            self.go.wait(PATIENCE)
            yield "second"
        finally:
            self.finished.set()

    async def coloured(self) -> AsyncIterator[str]:
        try:
            yield "first"
            self.reached.set()
            await auntil(self.go.is_set, "the gate")
            yield "second"
        finally:
            self.finished.set()

    def resting(self) -> Iterator[str]:
        try:
            yield "first"
            yield "second"
        finally:
            self.finished.set()


# 102: closing under live streams.


@pytest.mark.fault(102)
@pytest.mark.parametrize(
    ("kind", "runner"), [("resting", None), ("resting", "thread"), ("coloured", None), ("coloured", "thread")]
)
def test_each_stream_that_was_open_gets_one_engine_closed_error_and_is_finalised(kind: str, runner: str | None) -> None:
    gates = [Gate() for _ in range(5)]
    muna = Engine(discover=False)
    streams = [muna.predictions.stream(getattr(gate, kind), runner=runner, prefetch=0) for gate in gates]
    for stream in streams:
        assert next(stream).value == "first"
    in_time(muna.close)
    for stream, gate in zip(streams, gates, strict=True):
        assert gate.finished.is_set()
        with pytest.raises(EngineClosedError):
            next(stream)
        assert list(stream) == []
        assert stream.outcome.state == "closed"


@pytest.mark.fault(102)
@pytest.mark.parametrize(("kind", "runner"), [("sync", "thread"), ("coloured", None)])
def test_readers_that_wait_are_woken_with_one_engine_closed_error(kind: str, runner: str | None) -> None:
    gates = [Gate() for _ in range(5)]
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
        assert gate.reached.wait(PATIENCE)
    in_time(muna.close)
    for reader in readers:
        reader.join(PATIENCE)
        assert not reader.is_alive()
    assert ends == [["closed"]] * 5
    for gate in gates:
        gate.go.set()
        assert gate.finished.wait(PATIENCE)


@pytest.mark.fault(102)
def test_closing_does_not_wait_for_bodies_that_cannot_be_stopped() -> None:
    gate = Gate()
    muna = Engine(discover=False, grace=0.05)
    stream = muna.predictions.stream(gate.sync, runner="thread")
    assert next(stream).value == "first"
    assert gate.reached.wait(PATIENCE)
    started = time.monotonic()
    in_time(muna.close)
    assert time.monotonic() - started < PATIENCE / 2
    assert not gate.finished.is_set()
    gate.go.set()
    assert gate.finished.wait(PATIENCE)
    with pytest.raises(EngineClosedError):
        next(stream)


@pytest.mark.fault(102)
@pytest.mark.parametrize("runner", [None, "inline", "thread"])
@pytest.mark.parametrize("kind", ["resting", "coloured"])
def test_aclose_finalises_the_streams_of_its_own_loop_too(runner: str | None, kind: str) -> None:
    gates = [Gate() for _ in range(5)]

    async def main() -> None:
        muna = Engine(discover=False)
        streams = [muna.predictions.astream(getattr(gate, kind), runner=runner, prefetch=0) for gate in gates]
        for stream in streams:
            assert (await anext(stream)).value == "first"
        async with asyncio.timeout(PATIENCE):
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
    gates = [Gate() for _ in range(5)]

    async def read(muna: Engine, gate: Gate) -> str:
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
        async with asyncio.timeout(PATIENCE):
            await muna.aclose()
            assert await asyncio.gather(*readers) == ["closed"] * 5
        assert all(gate.finished.is_set() for gate in gates)

    asyncio.run(main())


# 102: closing while `create` waits, for each of what it may wait for.


async def acreated(muna: Engine, predictor: Any) -> Any:
    return (await muna.predictions.acreate(predictor, runner="thread")).value


def created(muna: Engine, predictor: Any, consumer: str) -> Any:
    if consumer == "sync":
        return muna.predictions.create(predictor, runner="thread").value
    return asyncio.run(acreated(muna, predictor))


class Waiting:
    """What a call may wait for when its engine closes; each lets go at the end of its test."""

    def __init__(self) -> None:
        self.reached = threading.Event()
        self.go = threading.Event()
        self.calls: list[str] = []

    def body(self) -> str:
        self.calls.append("body")
        self.reached.set()
        self.go.wait(PATIENCE)
        return "given"

    async def coloured(self) -> str:
        self.calls.append("body")
        self.reached.set()
        await auntil(self.go.is_set, "the gate")
        return "given"

    async def stubborn(self) -> str:
        self.calls.append("body")
        self.reached.set()
        while not self.go.is_set():
            with contextlib.suppress(asyncio.CancelledError):
                await auntil(self.go.is_set, "the gate")
        return "given"

    def model(self) -> Any:
        waiting = self

        class Model:
            def setup(self) -> None:
                waiting.body()

            def predict(self) -> str:
                waiting.calls.append("predict")
                return "predicted"

        return Model


@pytest.mark.parametrize("errors", ["raise", "return"])
@pytest.mark.parametrize("consumer", ["sync", "asyncio"])
@pytest.mark.parametrize("place", ["body", "coloured", "setup"])
def test_a_create_that_waits_for_its_owner_is_woken_with_an_engine_closed_error(
    place: str, consumer: str, errors: Any
) -> None:
    waiting = Waiting()
    muna = Engine(discover=False, grace=0.05)
    predictor = Predictor(
        "@tests/waits", waiting.model() if place == "setup" else getattr(waiting, place), concurrency=1
    )
    slots = muna.predictions.resolve(predictor).slots
    assert slots is not None

    async def acreate() -> Any:
        return await muna.predictions.acreate(predictor, runner="thread", errors=errors)

    def create() -> Any:
        if consumer == "asyncio":
            return asyncio.run(acreate())
        return muna.predictions.create(predictor, runner="thread", errors=errors)

    def close() -> None:
        assert waiting.reached.wait(PATIENCE)
        muna.close()

    closer = threading.Thread(target=close)
    closer.start()
    with pytest.raises(EngineClosedError):
        in_time(create)
    closer.join(PATIENCE)
    assert not closer.is_alive()
    assert muna.predictions.open_calls == ()
    waiting.go.set()
    until(lambda: slots.leases == (), "the end of the body, which gives its slot back")
    assert waiting.calls == ["body"]


@pytest.mark.parametrize("consumer", ["sync", "asyncio"])
def test_a_create_that_waits_for_its_slot_is_woken_with_an_engine_closed_error_and_never_runs(consumer: str) -> None:
    waiting = Waiting()
    muna = Engine(discover=False, grace=0.05)
    predictor = Predictor("@tests/waits", waiting.body, concurrency=1)
    slots = muna.predictions.resolve(predictor).slots
    assert slots is not None

    def hold() -> None:
        with contextlib.suppress(EngineClosedError):
            created(muna, predictor, "sync")

    def close() -> None:
        until(lambda: slots.waiting == 1, "the wait for the slot")
        muna.close()

    holder, closer = threading.Thread(target=hold), threading.Thread(target=close)
    holder.start()
    assert waiting.reached.wait(PATIENCE)
    closer.start()
    with pytest.raises(EngineClosedError):
        in_time(lambda: created(muna, predictor, consumer))
    closer.join(PATIENCE)
    holder.join(PATIENCE)
    assert (muna.predictions.open_calls, slots.waiting, len(slots.leases)) == ((), 0, 1)
    waiting.go.set()
    until(lambda: slots.leases == (), "the end of the body that held the slot")
    assert waiting.calls == ["body"]


@pytest.mark.parametrize("consumer", ["sync", "asyncio"])
def test_a_create_whose_engine_closes_in_the_moment_it_gets_its_slot_gives_that_back(
    consumer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    waiting = Waiting()
    muna = Engine(discover=False, grace=0.05)
    predictor = Predictor("@tests/waits", waiting.body, concurrency=1)
    slots = muna.predictions.resolve(predictor).slots
    assert slots is not None
    take, atake = Slots.take, Slots.atake

    def take_and_close(self: Slots, body: Any) -> None:
        take(self, body)
        in_time(muna.close)

    async def atake_and_close(self: Slots, body: Any) -> None:
        await atake(self, body)
        in_time(muna.close)

    monkeypatch.setattr(Slots, "take", take_and_close)
    monkeypatch.setattr(Slots, "atake", atake_and_close)
    with pytest.raises(EngineClosedError):
        created(muna, predictor, consumer)
    assert (slots.leases, waiting.calls, muna.predictions.open_calls) == ((), [], ())


def test_an_engine_closed_error_of_create_is_gone_once_nobody_refers_to_it() -> None:
    waiting = Waiting()
    muna = Engine(discover=False, grace=0.05)

    def close() -> None:
        assert waiting.reached.wait(PATIENCE)
        muna.close()
        waiting.go.set()

    closer = threading.Thread(target=close)
    gc.collect()
    gc.disable()
    try:
        closer.start()
        try:
            created(muna, waiting.body, "sync")
        except EngineClosedError as error:
            reference = weakref.ref(error)
        closer.join(PATIENCE)
        until(lambda: reference() is None, "the end of the error, without a collector")
    finally:
        gc.enable()


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
            await asyncio.sleep(PATIENCE)
        finally:
            asked.set()
            await answered.wait()
            await connection
            seen.append("end")

    async def aread() -> None:
        async for _ in muna.predictions.astream(yields, runner="thread").values():
            is_taken.set()
            await asyncio.to_thread(closing.wait, PATIENCE)

    def read() -> None:
        with contextlib.suppress(EngineClosedError):
            if consumer == "create":
                muna.predictions.create(yields)
            elif consumer == "astream":
                asyncio.run(aread())
            else:
                for _ in muna.predictions.stream(yields).values():
                    is_taken.set()
                    closing.wait(PATIENCE)

    muna, closing = Engine(discover=False), threading.Event()
    reader = threading.Thread(target=read)
    reader.start()
    assert (is_taken if place == "rests" and consumer != "create" else reached).wait(PATIENCE)
    muna.close()
    closing.set()
    reader.join(PATIENCE)
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
            await asyncio.sleep(PATIENCE)
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
    closer.join(PATIENCE)
    assert seen == ["computed", "end"]


@pytest.mark.fault(102)
@pytest.mark.parametrize("runner", [None, "thread"])
def test_a_sync_close_on_a_loops_own_thread_does_not_wait_for_that_loops_streams(runner: str | None) -> None:
    gate = Gate()

    async def main() -> None:
        muna = Engine(discover=False)
        stream = muna.predictions.astream(gate.coloured, runner=runner, prefetch=0)
        assert (await anext(stream)).value == "first"
        started = time.monotonic()
        muna.close()
        assert time.monotonic() - started < PATIENCE / 2
        with pytest.raises(EngineClosedError):
            await anext(stream)
        deadline = time.monotonic() + PATIENCE
        while not gate.finished.is_set():
            assert time.monotonic() < deadline
            await asyncio.sleep(0.001)
        assert [item async for item in stream] == []

    asyncio.run(main())


# 103: after closing.


def plain() -> str:
    return "plain"


async def coloured() -> str:
    return "coloured"


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
            assert go.wait(PATIENCE)
            steps.append("torn down")

    muna = Engine(discover=False)
    muna.predictions.create(Model)

    def close() -> None:
        muna.close()
        steps.append("closed")

    first, second = threading.Thread(target=close, daemon=True), threading.Thread(target=close, daemon=True)
    first.start()
    assert reached.wait(PATIENCE)
    second.start()
    second.join(0.05)
    assert second.is_alive()
    go.set()
    for thread in (first, second):
        thread.join(PATIENCE)
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
            in_time(lambda predictor=predictor: muna.predictions.create(predictor, runner=runner))  # type: ignore[misc]
    asyncio.run(main())
    assert muna.predictions.create(plain).value == "plain"


@pytest.mark.fault(103)
def test_a_predictor_may_make_and_close_an_engine_of_its_own(muna: Engine) -> None:
    def nested() -> Any:
        with Engine(discover=False) as own:
            return own.predictions.create(coloured).value

    for runner in (None, "thread"):
        assert in_time(lambda runner=runner: muna.predictions.create(nested, runner=runner)).value == "coloured"  # type: ignore[misc]


@pytest.mark.fault(103)
def test_calls_that_race_with_closing_work_or_are_refused_and_never_hang() -> None:
    for _ in range(30):
        muna = Engine(discover=False)
        ends: list[str] = []
        barrier = threading.Barrier(4)

        def call(
            runner: str | None, predictor: Any, muna: Engine = muna, ends: Any = ends, barrier: Any = barrier
        ) -> None:
            barrier.wait(PATIENCE)
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
        barrier.wait(PATIENCE)
        muna.close()
        for caller in callers:
            caller.join(PATIENCE)
            assert not caller.is_alive(), "a call hangs"
        assert set(ends) <= {"refused", "worked"}


# 104 and 105: the interpreter exits.

LIVE = """
import asyncio, os, sys, threading
from engine import Engine, EngineClosedError

reached = threading.Event()

def stuck():
    yield 1
    reached.set()
    threading.Event().wait()

async def astuck():
    yield 1
    reached.set()
    await asyncio.sleep(3600)

def resting():
    yield 1
    yield 2

def read(stream):
    try:
        list(stream)
    except EngineClosedError:
        pass

class Model:
    def predict(self):
        return 1
    async def setup(self):
        self.lock = asyncio.Lock()

muna = Engine(discover=False, grace=0.1)
live = [
    muna.predictions.stream(stuck, runner="thread"),
    muna.predictions.stream(astuck),
    muna.predictions.stream(resting),
    muna.predictions.stream(resting, runner="thread"),
]
for stream in live:
    next(stream)
muna.predictions.create(Model)
assert reached.wait(10)
print("ready", flush=True)
"""


@pytest.mark.fault(104)
@pytest.mark.parametrize(
    ("last_line", "code", "error"),
    [
        ("", 0, ""),
        ("sys.exit(3)", 3, ""),
        ("os._exit(4)", 4, ""),
        ("raise LookupError('mine')", 1, "LookupError: mine"),
        ("del muna, live", 0, ""),
        ("threading.Thread(target=read, args=(live[0],), daemon=True).start()", 0, ""),
        ("threading.Thread(target=read, args=(live[1],), daemon=True).start()", 0, ""),
    ],
    ids=["the-end", "exit-3", "os-exit", "error", "dropped", "read-in-a-thread", "read-from-the-loop-in-a-thread"],
)
def test_an_exit_with_live_streams_keeps_its_code_and_says_nothing_of_the_engines(
    last_line: str, code: int, error: str
) -> None:
    started = time.monotonic()
    done = run_script(LIVE + last_line)
    assert done.stdout == "ready\n"
    assert done.returncode == code
    if error:
        assert done.stderr.count("Traceback") == 1
        assert done.stderr.endswith(error + "\n")
    else:
        assert engine_lines(done.stderr) == []
    assert time.monotonic() - started < 15


def engine_lines(text: str) -> list[str]:
    """What a script said, but for the one line that names a thread body that could not be stopped."""
    return [line for line in text.splitlines() if "did not stop within" not in line]


@pytest.mark.fault(104)
@pytest.mark.parametrize("last_line", ["", "sys.exit(3)", "os._exit(0)"])
def test_an_exit_while_asyncio_consumers_read_says_nothing(last_line: str) -> None:
    done = run_script(
        f"""
        import asyncio, os, sys
        from engine import Engine

        def numbers():
            yield from range(10**9)

        async def anumbers():
            for number in range(10**9):
                yield number

        async def main():
            streams = [muna.predictions.astream(each) for each in (numbers, anumbers)]
            streams.append(muna.predictions.astream(anumbers, runner="thread"))
            for stream in streams:
                await anext(stream)
                await stream.aclose()
            {last_line or "pass"}

        muna = Engine(discover=False)
        asyncio.run(main())
        """
    )
    assert done.returncode == (3 if "3" in last_line else 0)
    assert done.stderr == ""


@pytest.mark.fault(104)
def test_an_engine_that_is_never_closed_lets_the_process_end_and_tears_its_classes_down() -> None:
    done = run_script(
        """
        from engine import Engine

        class Model:
            def predict(self):
                return 1
            def teardown(self):
                print("torn down")

        class AsyncModel:
            async def predict(self):
                return 1
            async def teardown(self):
                print("torn down too")

        muna = Engine(discover=False)
        muna.predictions.create(Model)
        muna.predictions.create(AsyncModel)
        """
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert sorted(done.stdout.splitlines()) == ["torn down", "torn down too"]


@pytest.mark.fault(105)
def test_an_engine_used_after_the_interpreter_closed_it_says_that_it_is_closed() -> None:
    done = run_script(
        """
        import atexit

        def late():
            for runner in (None, "thread"):
                try:
                    muna.predictions.create(lambda: 1, runner=runner)
                except RuntimeError as error:
                    print(type(error).__name__)

        atexit.register(late)  # before the engine is imported, so called after the engine's own
        from engine import Engine
        muna = Engine(discover=False)
        muna.predictions.create(lambda: 1, runner="thread")
        """
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "EngineClosedError\n" * 2, "")


@pytest.mark.fault(105)
def test_an_engine_made_in_an_exit_hook_works_or_is_refused_with_a_runtime_error_and_ends() -> None:
    done = run_script(
        """
        import atexit

        def late():
            from engine import Engine
            muna = Engine(discover=False)
            print(muna.predictions.create(lambda: "inline").value)
            async def coloured():
                return "works"
            for predictor in (lambda: "works", coloured):
                try:
                    print(muna.predictions.create(predictor, runner="thread").value)
                except RuntimeError as error:
                    print("refused")
            muna.close()

        atexit.register(late)
        """
    )
    assert done.returncode == 0
    first, *others = done.stdout.splitlines()
    assert first == "inline"
    assert len(others) == 2
    assert set(others) <= {"works", "refused"}
    assert done.stderr == ""


@pytest.mark.fault(105)
def test_an_exit_hook_registered_later_still_finds_the_engine_open() -> None:
    done = run_script(
        """
        import atexit
        from engine import Engine
        muna = Engine(discover=False)
        stream = muna.predictions.stream(lambda: iter("ab"), runner="thread")
        muna.predictions.create(lambda: 0, runner="thread")  # 3.12 starts no thread in exit hooks
        atexit.register(lambda: print(muna.predictions.create(lambda: "open", runner="thread").value))
        """
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "open\n", "")


# 106: an engine nobody closes.


@pytest.mark.fault(106)
@pytest.mark.parametrize("predictor", [plain, coloured])
def test_an_engine_that_is_dropped_lets_its_threads_go_with_one_warning(predictor: Callable[[], Any]) -> None:
    before = set(threading.enumerate())

    def use() -> weakref.ref[Engine]:
        muna = Engine(discover=False)
        muna.predictions.create(predictor, runner="thread")
        return weakref.ref(muna)

    with pytest.warns(ResourceWarning, match="left unclosed") as caught:  # noqa: PT031 - it comes with the collector
        reference = use()
        gc.collect()
    assert len(caught) == 1
    assert reference() is None
    until(lambda: set(threading.enumerate()) <= before, "the end of the engine's threads")


@pytest.mark.fault(106)
@pytest.mark.parametrize(("kind", "runner"), [("resting", None), ("resting", "thread"), ("coloured", None)])
def test_a_dropped_engines_live_streams_are_finalised(kind: str, runner: str | None) -> None:
    gate = Gate()

    def use() -> None:
        muna = Engine(discover=False)
        stream = muna.predictions.stream(getattr(gate, kind), runner=runner, prefetch=0)
        next(stream)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        use()
        gc.collect()
    assert gate.finished.wait(PATIENCE)


@pytest.mark.fault(106)
def test_a_stream_keeps_the_engine_it_needs(muna: Engine) -> None:
    def counts() -> Iterator[int]:
        yield from range(3)

    def make() -> PredictionStream:
        own = Engine(discover=False)
        return own.predictions.stream(counts, runner="thread", prefetch=0)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        stream = make()
        gc.collect()
        assert [item.value for item in stream] == [0, 1, 2]
        del stream
        gc.collect()


# 107: set-up that fails, hangs or is slow.


class Fickle:
    """Fails in its constructor or its `setup` until told otherwise."""

    failures: int = 0
    made: int = 0

    def __init__(self) -> None:
        type(self).made += 1
        if type(self).failures > 0:
            type(self).failures -= 1
            raise OSError("no model file")

    def predict(self) -> str:
        return "fine"


class FickleSetup:
    """The same, in `setup`."""

    failures: int = 0
    made: int = 0

    def setup(self) -> None:
        type(self).made += 1
        if type(self).failures > 0:
            type(self).failures -= 1
            raise OSError("no model file")

    def predict(self) -> str:
        return "fine"


class AsyncFickleSetup:
    """The same, on the engine's loop."""

    failures: int = 0
    made: int = 0

    async def setup(self) -> None:
        type(self).made += 1
        await asyncio.sleep(0)
        if type(self).failures > 0:
            type(self).failures -= 1
            raise OSError("no model file")

    async def predict(self) -> str:
        return "fine"


FICKLE = [Fickle, FickleSetup, AsyncFickleSetup]


@pytest.mark.fault(107)
@pytest.mark.parametrize("model", FICKLE)
@pytest.mark.parametrize("runner", [None, "thread"])
def test_a_setup_that_fails_is_reported_to_its_caller_and_tried_again_by_the_next(
    muna: Engine, model: Any, runner: str | None
) -> None:
    model.failures, model.made = 2, 0
    for _ in range(2):
        with pytest.raises(OSError, match="no model file"):
            muna.predictions.create(model, runner=runner)
    assert muna.predictions.create(model, runner=runner).value == "fine"
    assert muna.predictions.create(model, runner=runner).value == "fine"
    assert model.made == 3


@pytest.mark.fault(107)
@pytest.mark.parametrize("model", FICKLE)
@pytest.mark.parametrize("runner", [None, "thread"])
def test_an_asyncio_callers_failed_setup_is_tried_again_too(muna: Engine, model: Any, runner: str | None) -> None:
    model.failures, model.made = 2, 0

    async def main() -> None:
        with pytest.raises(OSError, match="no model file"):
            await muna.predictions.acreate(model, runner=runner)
        with pytest.raises(OSError, match="no model file"):
            await muna.aload(model, runner=runner)
        await muna.aload(model, runner=runner)
        assert (await muna.predictions.acreate(model, runner=runner)).value == "fine"

    asyncio.run(main())
    assert model.made == 3


@pytest.mark.fault(107)
def test_an_import_that_fails_is_tried_again(muna: Engine, tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    muna.predictors.register("@tests/late", "module_written_late:predict")
    with pytest.raises(PluginError, match="module_written_late"):
        muna.predictions.create("@tests/late")

    async def main() -> None:
        with pytest.raises(PluginError, match="module_written_late"):
            await muna.predictions.acreate("@tests/late")

    asyncio.run(main())
    (tmp_path / "module_written_late.py").write_text("def predict():\n    return 'here now'\n")
    import importlib

    importlib.invalidate_caches()
    try:
        assert muna.predictions.create("@tests/late").value == "here now"
    finally:
        sys.modules.pop("module_written_late", None)


@pytest.mark.fault(107)
@pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])
def test_first_calls_from_many_threads_wait_for_one_setup(muna: Engine, is_async: bool) -> None:
    reached, go = threading.Event(), threading.Event()
    setups: list[int] = []

    class Slow:
        def setup(self) -> None:
            setups.append(1)
            reached.set()
            assert go.wait(PATIENCE)

        def predict(self) -> str:
            return "fine"

    class AsyncSlow:
        async def setup(self) -> None:
            setups.append(1)
            reached.set()
            await auntil(go.is_set, "the gate")

        async def predict(self) -> str:
            return "fine"

    got: list[Any] = []
    model = AsyncSlow if is_async else Slow
    threads = [
        threading.Thread(target=lambda: got.append(muna.predictions.create(model).value), daemon=True) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    assert reached.wait(PATIENCE)
    go.set()
    for thread in threads:
        thread.join(PATIENCE)
        assert not thread.is_alive()
    assert got == ["fine"] * 8
    assert setups == [1]


@pytest.mark.fault(107)
def test_a_setup_that_hangs_blocks_no_other_predictor_and_is_left_by_a_cancelled_caller() -> None:
    reached, go = threading.Event(), threading.Event()

    class Hangs:
        def setup(self) -> None:
            reached.set()
            go.wait(PATIENCE)

        def predict(self) -> str:
            return "fine"

    async def main(muna: Engine) -> None:
        caller = asyncio.create_task(muna.predictions.acreate(Hangs))
        await auntil(reached.is_set, "the setup")
        assert muna.predictions.create(plain).value == "plain"
        assert (await muna.predictions.acreate(plain)).value == "plain"
        caller.cancel()
        with pytest.raises(asyncio.CancelledError):
            async with asyncio.timeout(PATIENCE):
                await caller
        go.set()
        async with asyncio.timeout(PATIENCE):
            assert (await muna.predictions.acreate(Hangs)).value == "fine"

    with Engine(discover=False, grace=0.1) as muna:
        asyncio.run(main(muna))


@pytest.mark.fault(107)
def test_an_engine_closes_in_spite_of_a_setup_that_hangs() -> None:
    reached, go, torn_down = threading.Event(), threading.Event(), threading.Event()

    class Hangs:
        def setup(self) -> None:
            reached.set()
            go.wait(PATIENCE)

        def predict(self) -> str:
            return "fine"

        def teardown(self) -> None:
            torn_down.set()

    muna = Engine(discover=False, grace=0.05)
    ends: list[str] = []

    def call() -> None:
        try:
            ends.append(muna.predictions.create(Hangs, runner="thread").value)
        except EngineClosedError:
            ends.append("closed")

    caller = threading.Thread(target=call, daemon=True)
    caller.start()
    assert reached.wait(PATIENCE)
    in_time(muna.close)
    caller.join(PATIENCE)
    assert ends == ["closed"]
    go.set()
    # What was set up in spite of the closed engine is let go as well.
    assert torn_down.wait(PATIENCE)


# 108: Ctrl-C.

# The bodies wait in short sleeps: a signal that comes right before a long one is only seen at its end.
WAITING = {
    "inline": """
        def body():
            yield 1
            try:
                print("ready", flush=True)
                while True:
                    time.sleep(0.01)
            finally:
                print("finally", flush=True)

        with Engine(discover=False, grace=0.5) as muna:
            for _ in muna.predictions.stream(body):
                pass
        """,
    "create": """
        def body():
            try:
                print("ready", flush=True)
                while True:
                    time.sleep(0.01)
            finally:
                print("finally", flush=True)

        with Engine(discover=False, grace=0.5) as muna:
            muna.predictions.create(body)
        """,
    "thread": """
        def body():
            yield 1
            try:
                print("ready", flush=True)
                while not current_call().stopping:
                    time.sleep(0.001)
            finally:
                print("finally", flush=True)

        with Engine(discover=False, grace=5) as muna:
            for _ in muna.predictions.stream(body, runner="thread"):
                pass
        """,
    "loop": """
        async def body():
            yield 1
            try:
                print("ready", flush=True)
                while True:
                    await asyncio.sleep(0.01)
            finally:
                print("finally", flush=True)

        with Engine(discover=False, grace=5) as muna:
            for _ in muna.predictions.stream(body):
                pass
        """,
    "asyncio": """
        async def body():
            yield 1
            try:
                print("ready", flush=True)
                while True:
                    await asyncio.sleep(0.01)
            finally:
                print("finally", flush=True)

        async def main():
            async with Engine(discover=False, grace=5) as muna:
                async for _ in muna.predictions.astream(body):
                    pass

        asyncio.run(main())
        """,
    "asyncio-thread": """
        def body():
            yield 1
            try:
                print("ready", flush=True)
                while not current_call().stopping:
                    time.sleep(0.001)
            finally:
                print("finally", flush=True)

        async def main():
            async with Engine(discover=False, grace=5) as muna:
                async for _ in muna.predictions.astream(body):
                    pass

        asyncio.run(main())
        """,
    "asyncio-loop": """
        async def body():
            yield 1
            try:
                print("ready", flush=True)
                while True:
                    await asyncio.sleep(0.01)
            finally:
                print("finally", flush=True)

        async def main():
            async with Engine(discover=False, grace=5) as muna:
                async for _ in muna.predictions.astream(body, runner="thread"):
                    pass

        asyncio.run(main())
        """,
}


def signalled(source: str, number: signal.Signals) -> tuple[int, str, str]:
    """Run a script in a session of its own, send its whole group a signal once it says "ready"."""
    script = (
        "import asyncio, signal, sys, threading, time\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a shell's background processes ignore it
        "from engine import Engine, current_call\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script + textwrap.dedent(source)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            os.killpg(process.pid, number)
            out, errors = process.communicate(timeout=30)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    return process.returncode, out, errors


@pytest.mark.fault(108)
@pytest.mark.parametrize("place", WAITING)
def test_ctrl_c_ends_a_script_with_exactly_one_traceback_and_the_predictors_finally(place: str) -> None:
    code, out, errors = signalled(WAITING[place], signal.SIGINT)
    assert code == -signal.SIGINT
    assert out == "finally\n"
    assert errors.splitlines().count("KeyboardInterrupt") == 1, errors
    # asyncio itself shows the cancellation that carried the interrupt as the context of the interrupt.
    assert errors.count("Traceback (most recent call last)") == (2 if place.startswith("asyncio") else 1), errors
    assert "predictor raised" not in errors


@pytest.mark.fault(108)
def test_ctrl_c_while_an_engine_is_closed_at_exit_says_so_in_one_line() -> None:
    done = run_script(
        """
        from engine import Engine

        class Handle:
            def predict(self):
                return 1

            def teardown(self):
                raise KeyboardInterrupt  # as Ctrl-C would while the interpreter ends

        muna = Engine(discover=False)
        muna.load(Handle)
        """
    )
    assert done.returncode == 0
    assert done.stderr == "the end of an engine was interrupted: what still ran was not waited for\n"


@pytest.mark.fault(108)
@pytest.mark.parametrize("runner", ["None", "'thread'"])
def test_after_a_ctrl_c_that_was_caught_the_engine_works_on(runner: str) -> None:
    code, out, errors = signalled(
        f"""
        def body():
            print("ready", flush=True)
            while not current_call().stopping:
                time.sleep(0.001)

        def fine():
            return "fine"

        with Engine(discover=False, grace=0.2) as muna:
            try:
                muna.predictions.create(body, runner={runner})
            except KeyboardInterrupt:
                print("caught")
            print(muna.predictions.create(fine, runner={runner}).value)
        """,
        signal.SIGINT,
    )
    assert (code, out) == (0, "caught\nfine\n")
    assert errors == ""


CLEANING_UP = {
    "generator": """
        def body():
            try:
                while True:
                    yield "going"
                    if not said:
                        say()
            finally:
                raise ValueError("clean-up")
        """,
    "coroutine": """
        async def body():
            try:
                say()
                while True:
                    await asyncio.sleep(0.01)
            finally:
                raise ValueError("clean-up")
        """,
    "async generator": """
        async def body():
            try:
                while True:
                    yield "going"
                    if not said:
                        say()
            finally:
                raise ValueError("clean-up")
        """,
}


@pytest.mark.parametrize("kind", CLEANING_UP)
def test_what_clean_up_raises_after_a_ctrl_c_arrives_with_the_interrupt_as_its_context(kind: str) -> None:
    source = textwrap.dedent(CLEANING_UP[kind])
    code, out, errors = signalled(
        f"""
said = []

def say():
    said.append(True)
    print("ready", flush=True)

{source}

with Engine(discover=False) as muna:
    try:
        muna.predictions.create(body, runner="thread")
    except ValueError as error:
        print(error, type(error.__context__).__name__, muna.predictions.open_calls)
""",
        signal.SIGINT,
    )
    assert (code, out, errors) == (0, "clean-up KeyboardInterrupt ()\n", "")


# What a thread or loop was just given when Ctrl-C came: its place is free when it has ended, and no sooner.


class Started:
    """The start of the runner of a kind, which Ctrl-C interrupts before or after what it starts has begun."""

    def __init__(self, muna: Engine, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
        runner: Any = muna._threads if kind == "body" else muna._loop
        self._start = runner.start
        self._then: Callable[[Any], None] = lambda _body: None
        monkeypatch.setattr(type(runner), "start", lambda _runner, *given: self._interrupted(*given))

    def interrupt(self, then: Callable[[Any], None]) -> None:
        self._then = then

    def _interrupted(self, body: Any, channel: Any) -> None:
        self._start(body, channel)
        self._then(body)


def interrupt() -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("consumer", ["sync", "asyncio"])
@pytest.mark.parametrize("kind", ["body", "coloured"])
def test_a_body_that_had_begun_when_ctrl_c_interrupted_its_start_keeps_its_slot_until_it_ends(
    kind: str, consumer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    waiting = Waiting()
    with Engine(discover=False, grace=0.05) as muna:
        predictor = Predictor("@tests/waits", waiting.stubborn if kind == "coloured" else waiting.body, concurrency=1)
        slots = muna.predictions.resolve(predictor).slots
        assert slots is not None
        started = Started(muna, kind, monkeypatch)

        def when_begun(_body: Any) -> None:
            assert waiting.reached.wait(PATIENCE)
            interrupt()

        started.interrupt(when_begun)
        with pytest.raises(KeyboardInterrupt):
            created(muna, predictor, consumer)
        assert len(slots.leases) == 1
        waiting.go.set()
        until(lambda: slots.leases == (), "the end of the body")
        started.interrupt(lambda _body: None)
        assert created(muna, predictor, consumer) == "given"
        assert waiting.calls == ["body", "body"]


def test_ctrl_c_while_an_owners_thread_starts_arrives_alone_and_leaves_that_thread_to_its_engine(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    waiting, start = Waiting(), threading.Thread.start
    waiting.go.set()

    def start_and_interrupt(thread: threading.Thread) -> None:
        start(thread)
        if thread.name == "engine-owner":
            interrupt()

    with Engine(discover=False) as muna:
        monkeypatch.setattr(threading.Thread, "start", start_and_interrupt)
        with pytest.raises(KeyboardInterrupt) as caught:
            muna.predictions.create(waiting.body, runner="thread")
        monkeypatch.undo()
        assert caught.value.__context__ is None
        until(lambda: len(muna._threads.idle) == 1, "the owner's rest")
        (owner,) = muna._threads.owners
        assert created(muna, waiting.body, "sync") == "given"
        assert muna._threads.owners == {owner}


@pytest.mark.parametrize("consumer", ["sync", "asyncio"])
@pytest.mark.parametrize("kind", ["body", "coloured"])
def test_a_stream_whose_body_had_begun_when_ctrl_c_interrupted_its_start_is_closed_as_any_other(
    kind: str, consumer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    reached, heard = threading.Event(), []

    def body() -> str:
        call = current_call()
        reached.set()
        until(lambda: call is not None and call.stopping, "the request to stop")
        heard.append("to stop")
        return "given"

    async def coloured() -> str:
        reached.set()
        try:
            await asyncio.sleep(PATIENCE)
        finally:
            heard.append("to stop")
        return "given"

    with Engine(discover=False) as muna:
        predictor = Predictor("@tests/waits", body if kind == "body" else coloured, concurrency=1)
        slots = muna.predictions.resolve(predictor).slots
        assert slots is not None
        started = Started(muna, kind, monkeypatch)

        def when_begun(_body: Any) -> None:
            assert reached.wait(PATIENCE)
            interrupt()

        async def read() -> None:
            async with muna.predictions.astream(predictor, runner="thread") as stream:
                await anext(stream)

        def read_here() -> None:
            with muna.predictions.stream(predictor, runner="thread") as stream:
                next(stream)

        started.interrupt(when_begun)
        with pytest.raises(KeyboardInterrupt):
            (read_here if consumer == "sync" else lambda: asyncio.run(read()))()
        until(lambda: slots.leases == (), "the end of the body")
        assert heard == ["to stop"]


@pytest.mark.parametrize("consumer", ["sync", "asyncio"])
@pytest.mark.parametrize("kind", ["body", "coloured"])
def test_a_body_that_had_not_begun_when_ctrl_c_interrupted_its_start_never_runs(
    kind: str, consumer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    waiting = Waiting()
    waiting.go.set()
    with Engine(discover=False, grace=0.05) as muna:
        predictor = Predictor("@tests/waits", getattr(waiting, kind), concurrency=1)
        slots = muna.predictions.resolve(predictor).slots
        assert slots is not None
        started = Started(muna, kind, monkeypatch)
        begin, ended = threading.Event(), threading.Event()
        start, finish = Body.start, Ending.finish

        def start_late(body: Body) -> Any:
            begin.wait(PATIENCE)
            return start(body)

        def finish_and_tell(ending: Ending, end: Any) -> None:
            finish(ending, end)
            ended.set()

        monkeypatch.setattr(Body, "start", start_late)
        monkeypatch.setattr(Ending, "finish", finish_and_tell)
        started.interrupt(lambda _body: interrupt())
        with pytest.raises(KeyboardInterrupt):
            created(muna, predictor, consumer)
        assert slots.leases == ()
        begin.set()
        assert ended.wait(PATIENCE)
        started.interrupt(lambda _body: None)
        assert waiting.calls == []
        assert created(muna, predictor, consumer) == "given"
        assert (waiting.calls, slots.leases) == (["body"], ())


# 109: SIGTERM.


@pytest.mark.fault(109)
def test_without_a_handler_sigterm_ends_the_process_in_silence() -> None:
    code, out, errors = signalled(LIVE + "threading.Event().wait()", signal.SIGTERM)
    assert (code, out, errors) == (-signal.SIGTERM, "", "")


EXITS_ON_SIGTERM = """
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))

        def body():
            try:
                yield 1
                print("ready", flush=True)
                while not current_call().stopping:
                    time.sleep(0.001)
                yield 2
            finally:
                print("finally", flush=True)

        with Engine(discover=False, grace=5) as muna:
            with muna.predictions.stream(body, runner={runner}) as stream:
                for _ in stream:
                    pass
        """


@pytest.mark.fault(109)
def test_a_sigterm_handler_that_exits_runs_the_predictors_finally() -> None:
    code, out, errors = signalled(EXITS_ON_SIGTERM.format(runner="'thread'"), signal.SIGTERM)
    assert (code, out, errors) == (7, "finally\n", "")


@pytest.mark.fault(109)
def test_a_handler_that_exits_inside_an_inline_body_cannot_be_told_from_that_body_exiting() -> None:
    code, out, errors = signalled(EXITS_ON_SIGTERM.format(runner="None"), signal.SIGTERM)
    assert (code, out) == (1, "finally\n")
    assert "SystemExit: 7" in errors
    assert "PredictorError: the predictor raised SystemExit: 7" in errors


@pytest.mark.fault(109)
@pytest.mark.parametrize("runner", ["None", "'thread'"])
def test_a_sigterm_handler_may_cancel_the_stream_that_runs(runner: str) -> None:
    code, out, errors = signalled(
        f"""
        def body():
            try:
                yield 1
                print("ready", flush=True)
                while not current_call().stopping:
                    time.sleep(0.001)
                yield 2
            finally:
                print("finally", flush=True)

        with Engine(discover=False, grace=5) as muna:
            stream = muna.predictions.stream(body, runner={runner})
            signal.signal(signal.SIGTERM, lambda *_: stream.cancel())
            try:
                for _ in stream:
                    pass
            except Exception as error:
                kind = type(error).__name__
            muna.close()
            print(kind, stream.outcome.state)
        """,
        signal.SIGTERM,
    )
    assert (code, out, errors) == (0, "finally\nPredictionCancelledError cancelled\n", "")


# 110: predictors that set signal handlers.


def sets_a_handler() -> str:
    signal.signal(signal.SIGUSR1, lambda *_: None)
    return "set"


@pytest.fixture
def the_handler_as_it_was() -> Iterator[None]:
    before = signal.getsignal(signal.SIGUSR1)
    yield
    signal.signal(signal.SIGUSR1, before)


@pytest.mark.fault(110)
@pytest.mark.usefixtures("the_handler_as_it_was")
def test_inline_on_the_main_thread_a_predictor_may_set_a_signal_handler(muna: Engine) -> None:
    assert muna.predictions.create(sets_a_handler).value == "set"
    assert callable(signal.getsignal(signal.SIGUSR1))


@pytest.mark.fault(110)
@pytest.mark.usefixtures("the_handler_as_it_was")
def test_in_a_thread_python_refuses_the_handler_and_the_caller_is_told_so(muna: Engine) -> None:
    async def asets_a_handler() -> str:
        return sets_a_handler()

    async def main() -> None:
        with pytest.raises(ValueError, match="main thread"):
            await muna.predictions.acreate(sets_a_handler)
        assert (await muna.predictions.acreate(asets_a_handler)).value == "set"  # in the caller's own task

    for predictor in (sets_a_handler, asets_a_handler):
        with pytest.raises(ValueError, match="main thread"):
            muna.predictions.create(predictor, runner="thread")
    asyncio.run(main())
