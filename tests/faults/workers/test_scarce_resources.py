"""Workers without room in shared memory, without descriptors, and with a thousand calls to serve."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from engine import Engine, WorkerLostError
from tests.conftest import Census
from tests.faults.producers import aecho, athree, echo, three
from tests.faults.scripts import run_script

GRACE = 0.5  # seconds; no test here needs more than the first rung


# 90, 91: shared memory.


@pytest.mark.fault(90)
def test_without_room_in_shared_memory_values_take_the_pipe() -> None:
    done = run_script(
        """
        import os, resource
        from engine import Engine

        def echo(value):
            resource.setrlimit(resource.RLIMIT_NOFILE, (8, 10_000))  # none is left to map what is yielded
            yield value
            yield value + value
            resource.setrlimit(resource.RLIMIT_NOFILE, (10_000, 10_000))

        for limit in (0, 1 << 16, 1 << 21):
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
            with Engine(discover=False, workers=1) as muna:
                for size in (1 << 14, 1 << 20, 1 << 22):
                    value = os.urandom(size)
                    once, twice = muna.predictions.stream(echo, {"value": value}, runner="process").values()
                    assert (once, twice) == (value, value + value)
        """
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.fault(91)
def test_shared_memory_has_no_name_that_a_killed_worker_could_leave() -> None:
    def names() -> set[Path]:
        return set(Path("/dev/shm").glob("*"))

    def large() -> Iterator[Any]:
        yield bytes(1 << 22)
        os.kill(os.getpid(), signal.SIGKILL)

    before = names()
    with Engine(discover=False, workers=1, grace=GRACE) as muna:
        values = muna.predictions.stream(large, runner="process").values()
        assert len(next(values)) == 1 << 22
        assert names() <= before
        with pytest.raises(WorkerLostError):
            next(values)


# 92: no descriptors.


@pytest.mark.fault(92)
@pytest.mark.parametrize("how", ["create", "acreate"])
def test_without_descriptors_a_call_fails_leaves_nothing_and_the_next_works_once_there_are(how: str) -> None:
    done = run_script(
        f"""
        import asyncio, errno, os, resource
        from engine import Engine

        def used():
            return sorted(map(int, os.listdir("/dev/fd")))[:-1]  # the last one is what lists them

        def one():
            return 1

        def create():
            return muna.predictions.create(one, runner="process").value

        async def acreate():
            return (await muna.predictions.acreate(one, runner="process")).value

        loop = asyncio.new_event_loop()
        call = create if "{how}" == "create" else lambda: loop.run_until_complete(acreate())
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        with Engine(discover=False, workers=1) as other:
            other.predictions.create(one, runner="process")  # has everything imported
        muna, ends, before = Engine(discover=False, workers=1), [], used()
        for spare in range(40):
            resource.setrlimit(resource.RLIMIT_NOFILE, (before[-1] + 1 + spare, hard))
            try:
                ends.append(call())
            except OSError as error:
                ends.append(errno.errorcode[error.errno])
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
            if ends[-1] == 1:
                break
            assert used() == before, (spare, used(), before)
            assert open(f"/proc/self/task/{{os.getpid()}}/children").read() == ""
        print(sorted(set(ends), key=str), len(ends) > 5)
        print(call())
        muna.close()
        assert used() == before
        """
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "[1, 'EMFILE'] True\n1\n", "")


@pytest.mark.fault(92)
@pytest.mark.parametrize("kind", ["async", "agen"])
@pytest.mark.parametrize("way", ["create", "stream"])
def test_a_worker_without_descriptors_for_an_event_loop_fails_that_call_and_serves_on(kind: str, way: str) -> None:
    def allows(descriptors: int) -> int:
        import resource

        resource.setrlimit(resource.RLIMIT_NOFILE, (descriptors, 10_000))
        return os.getpid()

    async def returns() -> int:
        return os.getpid()

    async def yields() -> AsyncIterator[int]:
        yield os.getpid()

    target = returns if kind == "async" else yields

    def call() -> Any:
        if way == "create":
            return muna.predictions.create(target).value
        (value,) = muna.predictions.stream(target).values()
        return value

    with Engine(discover=False, workers=1, runner="process", grace=GRACE) as muna:
        pid = muna.predictions.create(allows, {"descriptors": 8}).value
        with pytest.raises(OSError, match="Too many open files") as failure:
            call()
        assert not isinstance(failure.value, WorkerLostError)
        assert muna.predictions.create(allows, {"descriptors": 10_000}).value == pid
        assert call() == pid


# 93: crowds.


@pytest.mark.fault(93)
def test_a_thousand_calls_and_streams_at_a_time_share_two_workers() -> None:
    async def create(muna: Engine, number: int) -> Any:
        return (
            await muna.predictions.acreate(echo if number % 2 else aecho, {"value": number}, runner="process")
        ).value

    async def read(muna: Engine, number: int) -> list[Any]:
        stream = muna.predictions.astream(three if number % 2 else athree, {"number": number}, runner="process")
        return [value async for value in stream.values()]

    async def main() -> None:
        async with Engine(discover=False, workers=2) as muna:
            before = Census.take()
            assert await asyncio.gather(*(create(muna, number) for number in range(1000))) == list(range(1000))
            assert await asyncio.gather(*(read(muna, number) for number in range(200))) == [
                [number, number + 1, number + 2] for number in range(200)
            ]
            after = Census.take()
            assert len(after.children - before.children) == 2
            gained = sorted(thread.name for thread in after.threads - before.threads)
            # One owner may be left that imported what all of them need, and one that encoded a predictor for all.
            assert gained in (["engine-owner"] * owners + ["engine-supervisor"] for owners in range(3))
            assert len(after.descriptors - before.descriptors) <= 2 * 16 + 4

    asyncio.run(main())
