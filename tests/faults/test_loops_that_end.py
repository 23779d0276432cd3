"""Event loops that end while calls wait in them, and the engine's own loop, which nothing ends."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from engine import AsyncPredictionStream, Engine, PredictorError
from tests.faults.scripts import run_script_in_debug_mode

# 78: the consumer's loop is closed.


@pytest.mark.fault(78)
def test_a_loop_closed_while_its_task_waits_for_a_thread_ends_the_body_in_silence() -> None:
    done = run_script_in_debug_mode(
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
    done = run_script_in_debug_mode(
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
        slots = muna._resolver.resolve(predictor).slots
        holder = threading.Thread(target=muna.predictions.create, args=(predictor,), kwargs=dict(runner="thread"))
        holder.start()
        assert reached.wait(10)
        loop = asyncio.new_event_loop()
        loop.slow_callback_duration = 10.0  # seconds: what a busy machine delays is no fault here
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


# 82: nothing for asyncio to complain about.


def test_a_loop_closed_while_its_tasks_wait_for_a_worker_takes_no_worker_with_it(tmp_path: Path) -> None:
    done = run_script_in_debug_mode(
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
