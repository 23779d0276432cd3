"""Faults of flow where a worker produces: consumers that stop reading, floods, forks, limits, crowds, and leaks.

The window is counted in a file the body writes to, so that what is asked is what it has made and not what has arrived.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import importlib
import logging
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import textwrap
import threading
import time
import types
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest

from engine import Engine, PayloadError, WorkerLostError
from engine.runners.process import supervisor
from tests.conftest import Census, child_processes
from tests.faults.conftest import Cell, Consumer, Elsewhere, aeventually, eventually
from tests.faults.conftest import _step_through as step_through
from tests.faults.producers import (
    Tally,
    aecho,
    afailing,
    athree,
    bursts,
    counts,
    echo,
    failing,
    forks,
    forks_and_stands,
    holdings,
    megabytes,
    overflows,
    stands,
    three,
)
from tests.faults.worker_bodies import KINDS, FileGate, Journal, number_of_worker, numbers_after_worker

STILL = 0.05  # seconds in which nothing more may happen
GRACE = 0.5  # seconds; no test here needs more than the first rung

CELLS = [Cell(kind, consumer, "process") for kind in ("gen", "agen") for consumer in ("sync", "asyncio")]
each_cell = pytest.mark.parametrize("cell", CELLS, ids=str)
each_kind = pytest.mark.parametrize("kind", KINDS)


@pytest.fixture(scope="module")
def lasting() -> Iterator[Engine]:
    """Give an engine whose one worker outlives the tests that ask for it."""
    with Engine(discover=False, workers=1, grace=10.0) as muna:
        large = bytes(64 << 20)  # so that its shared memory is mapped, both ways, and need not grow
        assert muna.predictions.create(echo, {"value": large}, runner="process").value == large
        yield muna


def run(cell: Cell, scenario: Callable[[Consumer], Coroutine[Any, Any, None]], muna: Engine) -> None:
    """Run a scenario as this cell's consumer of an engine that lives on."""
    if cell.is_asyncio:
        asyncio.run(scenario(Consumer(muna, cell)))
    else:
        step_through(scenario(Consumer(muna, cell)))


def run_script(source: str) -> subprocess.CompletedProcess[str]:
    """Run a script as its user would; ended by force, and so a failure, if it takes longer than it may."""
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(source)], capture_output=True, text=True, timeout=50, check=False
    )


async def settles_within(least: int, most: int, tally: Tally) -> None:
    """Hold a producer to so many partials: it makes `least` of them, and never more than `most`."""
    await aeventually(lambda: tally.count >= least, f"{least} partials were made, and not {tally.count}")
    deadline = time.monotonic() + STILL
    while time.monotonic() < deadline:
        assert least <= tally.count <= most
        time.sleep(0.001)  # noqa: ASYNC251 - for a sync consumer, too, and for a moment only


# 83, 84: consumers that stop reading, or read slowly.


@pytest.mark.fault(83, 84)
@each_cell
def test_a_producer_is_ahead_of_its_consumer_by_its_window_and_never_more(
    cell: Cell, tmp_path: Path, lasting: Engine
) -> None:
    """As many as that at the start; later at least half of it, for what was taken is told in good time, not each."""

    async def scenario(consumer: Consumer) -> None:
        for window in (0, 1, 2, 8):
            tally = Tally(tmp_path / str(window))
            reader = consumer.open(counts(cell.kind, tally, 1000), prefetch=window)
            async with reader.opened():
                assert await reader.pull() == 0
                await settles_within(1 + window, 1 + window, tally)
                for read in range(2, 101):
                    assert await reader.pull() == read - 1
                    assert tally.count <= read + window
                await settles_within(100 + (window + 1) // 2, 100 + window, tally)
            assert reader.outcome.rung == "asked"
            assert tally.count <= 100 + window  # closing it made nothing more

    run(cell, scenario, lasting)


@pytest.mark.fault(83, 84)
@each_cell
def test_the_default_window_begins_at_one_grows_for_a_fast_consumer_and_ends_at_256(
    cell: Cell, tmp_path: Path, lasting: Engine
) -> None:
    tally = Tally(tmp_path / "tally")

    async def scenario(consumer: Consumer) -> None:
        reader = consumer.open(counts(cell.kind, tally, 1_000_000))
        async with reader.opened():
            await reader.pull()
            await settles_within(2, 3, tally)  # a third one if two were waiting at once
            for read in range(2, 200_000):
                await reader.pull()
                ahead = tally.count - read
                assert ahead <= 257  # one more while the consumer waits
                if ahead > 200:
                    break
            await settles_within(read + 128, read + 257, tally)

    run(cell, scenario, lasting)


@pytest.mark.fault(83)
@each_cell
def test_a_consumer_that_reads_on_after_a_pause_gets_everything_in_order(
    cell: Cell, tmp_path: Path, lasting: Engine
) -> None:
    tally = Tally(tmp_path / "tally")

    async def scenario(consumer: Consumer) -> None:
        reader = consumer.open(counts(cell.kind, tally, 2000), prefetch=4)
        assert [await reader.pull(), await reader.pull()] == [0, 1]
        await settles_within(4, 6, tally)
        assert await reader.rest() == list(range(2, 2000))

    run(cell, scenario, lasting)


@pytest.mark.fault(83)
@pytest.mark.parametrize("prefetch", [None, 0, 8])
@each_cell
def test_neither_a_lone_partial_nor_the_first_nor_the_last_of_many_waits_for_another(
    cell: Cell, prefetch: int | None, tmp_path: Path, lasting: Engine
) -> None:
    async def scenario(consumer: Consumer) -> None:
        for length in (1, 2, 5):
            gate = FileGate(tmp_path / str(length))
            reader = consumer.open(bursts(cell.kind, length, gate), prefetch=prefetch)
            assert [await reader.pull() for _ in range(length)] == list(range(length))
            assert not gate.is_open  # the body stands there while its partials are here
            gate.open()
            assert await reader.rest() == ["last"]

    run(cell, scenario, lasting)


@pytest.mark.fault(83)
@pytest.mark.parametrize("kind", ["gen", "agen", "agen that awaits"])
def test_what_a_full_pipe_left_over_arrives_while_the_body_computes_on(
    kind: str, tmp_path: Path, lasting: Engine
) -> None:
    count = 200  # texts of 4 KiB, and so more than any pipe holds
    full, gate = FileGate(tmp_path / "full"), FileGate(tmp_path / "gate")
    predictor = overflows(kind, count, full, gate)
    with lasting.predictions.stream(predictor, runner="process", prefetch=2 * count) as stream:
        values = stream.values()
        first = next(values)
        full.wait()
        rest = [next(values) for _ in range(count - 1)]
        assert list(map(int, [first, *rest])) == list(range(count))
        assert not gate.is_open  # the body stands there while its partials are here
        gate.open()
        assert list(values) == ["last"]


@pytest.mark.fault(83)
def test_a_log_line_that_a_full_pipe_left_over_arrives_while_the_body_computes_on(
    tmp_path: Path, lasting: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    gate = FileGate(tmp_path / "gate")

    def warns() -> None:
        from engine._errors import warn

        warn("x" * (1 << 20))
        gate.wait()

    with Elsewhere(lambda: lasting.predictions.create(warns, runner="process")) as calling:
        eventually(lambda: "x" * (1 << 20) in caplog.text, "all of the line is in the log")
        assert not calling.is_over
        gate.open()


@pytest.mark.fault(83)
def test_partials_that_come_fast_arrive_where_the_system_gives_no_thread_to_look_after_them(tmp_path: Path) -> None:
    gate = FileGate(tmp_path / "gate")

    def yields() -> Iterator[Any]:
        def fails(thread: threading.Thread) -> None:
            raise RuntimeError("can't start new thread")

        before, vars(threading)["Thread"].start = threading.Thread.start, fails
        yield from range(100)
        gate.wait()
        vars(threading)["Thread"].start = before
        yield from range(100)
        gate.wait()

    with (
        Engine(discover=False, workers=1, grace=GRACE) as muna,
        muna.predictions.stream(yields, runner="process", prefetch=200) as stream,
    ):
        values = stream.values()
        assert [next(values) for _ in range(100)] == list(range(100))
        assert not gate.is_open
        gate.open()
        assert list(values) == list(range(100))


# 85: huge partials.


@pytest.mark.fault(85)
@each_cell
def test_by_default_a_producer_is_at_most_a_megabyte_ahead_and_a_fixed_window_counts_partials_alone(
    cell: Cell, tmp_path: Path, lasting: Engine
) -> None:
    size = 1 << 16

    async def scenario(consumer: Consumer) -> None:
        tally = Tally(tmp_path / "default")
        reader = consumer.open(counts(cell.kind, tally, 100_000, bytes(size)))
        async with reader.opened():
            ahead = 0
            for read in range(1, 20_000):
                await reader.pull()
                ahead = tally.count - read
                assert ahead * size <= (1 << 20) + size  # what is sent when there is still room may exceed it
                if ahead >= 8:
                    break
            assert ahead >= 8
        tally = Tally(tmp_path / "fixed")
        reader = consumer.open(counts(cell.kind, tally, 1000, bytes(size)), prefetch=40)
        async with reader.opened():
            await reader.pull()
            await settles_within(41, 41, tally)

    run(cell, scenario, lasting)


@pytest.mark.fault(85)
def test_huge_partials_need_the_memory_of_a_few_whoever_is_slow(lasting: Engine) -> None:
    values = lasting.predictions.stream(megabytes, {"count": 24}, runner="process").values()
    first, _ = next(values)
    for most, data in values:  # noqa: B007 - the last one counts
        assert len(data) == 8 << 20
    assert most - first < 5 * (8 << 20)  # the one that is made, the one that is carried, and room to grow


# 86, 87: forks.


@pytest.mark.fault(86)
def test_a_worker_starts_and_serves_while_other_threads_hold_the_locks_of_logging_and_of_an_import(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a bare fork would copy locked for ever: workers are programs of their own."""
    (tmp_path / "imported_slowly.py").write_text("import slow_gate\nslow_gate.wait()\n")
    reached, go = threading.Event(), threading.Event()

    def waits() -> None:
        reached.set()
        go.wait(10)

    def holds() -> None:
        with logging._lock:  # type: ignore[attr-defined]  # what a handler that writes holds
            importlib.import_module("imported_slowly")

    def logs() -> int:
        logging.getLogger("tests").error("from a worker")
        return os.getpid()

    logging.getLogger("engine")  # there already, as in any program that logs
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(sys.modules, "slow_gate", types.SimpleNamespace(wait=waits))
    with Elsewhere(holds) as holding, Engine(discover=False, workers=1, grace=GRACE) as muna:
        assert reached.wait(10)
        pid = muna.predictions.create(logs, runner="process").value
        assert pid in child_processes()
        assert not holding.is_over
        go.set()
    sys.modules.pop("imported_slowly")


@pytest.mark.fault(87)
@each_kind
def test_a_predictor_that_forks_and_lets_both_go_on_speaks_with_one_voice(kind: str, lasting: Engine) -> None:
    """The copy of the worker ends as soon as it would speak for it; the worker itself serves on."""
    predictions = lasting.predictions
    pid = predictions.create(number_of_worker, runner="process").value
    for _ in range(3):
        got = list(predictions.stream(forks(kind), runner="process").values())
        assert got == ([0, 1, (pid, 1)] if kind in {"gen", "agen"} else [(pid, 1)])
    assert predictions.create(number_of_worker, runner="process").value == pid


@pytest.mark.fault(87)
def test_processes_that_a_predictor_forks_are_its_own(lasting: Engine) -> None:
    """They are not held by the engine's signals, nor do they hold up the loss of the worker."""

    def ends_a_process() -> Any:
        context = multiprocessing.get_context("fork")
        process = context.Process(target=time.sleep, args=(60,))
        process.start()
        process.terminate()
        process.join(10)
        with context.Pool(1) as pool:
            return process.exitcode, pool.map(abs, [-1, -2])

    assert lasting.predictions.create(ends_a_process, runner="process").value == (-signal.SIGTERM, [1, 2])


@pytest.mark.fault(87)
@pytest.mark.parametrize("is_main", [True, False], ids=["main thread", "another thread"])
def test_a_child_that_forks_again_has_no_thread_of_the_engines_and_takes_none_of_its_workers_requests(
    is_main: bool, tmp_path: Path
) -> None:
    gate = FileGate(tmp_path / "gate")

    def forks_twice() -> int:
        if not (child := os.fork()):
            if not (grandchild := os.fork()):
                os._exit(0)
            os.waitpid(grandchild, 0)
            os._exit(threading.active_count())
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

    def yields() -> Iterator[int]:
        found: list[int] = []
        if is_main:
            found.append(forks_twice())
        else:
            thread = threading.Thread(target=lambda: found.append(forks_twice()))
            thread.start()
            thread.join()
        yield found[0]
        gate.open()
        stands()

    with Engine(discover=False, workers=1, grace=10.0) as muna:
        with muna.predictions.stream(yields, runner="process", prefetch=2) as stream:
            assert next(stream).value == 1
            gate.wait()
        eventually(lambda: stream.outcome.rung is not None, "its worker has let go")
        assert stream.outcome.rung == "asked"


@pytest.mark.fault(87)
@each_kind
def test_a_predictor_that_forks_in_a_worker_is_warned_of_no_threads_but_its_own(kind: str, tmp_path: Path) -> None:
    """Those of the engine are gone meanwhile, and there again after it: the body is stopped as any other."""

    gate = FileGate(tmp_path / "gate")

    def leaves() -> None:
        gate.wait()
        stream.close()

    with Engine(discover=False, workers=1, grace=10.0) as muna:
        pid = muna.predictions.create(number_of_worker, runner="process").value
        with muna.predictions.stream(forks_and_stands(kind, gate), runner="process", prefetch=200) as stream:
            if kind in {"gen", "agen"}:
                assert [next(stream).value for _ in range(101)] == [*range(100), []]
            else:
                with Elsewhere(leaves):
                    assert list(stream.values()) == []
        eventually(lambda: stream.outcome.rung is not None, "its worker has let go")
        assert stream.outcome.rung == "asked"
        assert muna.predictions.create(number_of_worker, runner="process").value == pid


# 88, 89: what predictors print.


@pytest.mark.fault(88)
def test_a_flood_on_stdout_and_stderr_arrives_whole_beside_the_partials() -> None:
    done = run_script(
        """
        import ctypes, os, sys
        from engine import Engine

        def floods():
            for number in range(64):
                print("p" * (1 << 14), end="")
                print("e" * (1 << 14), end="", file=sys.stderr)
                yield bytes(1 << 16)
            ctypes.CDLL(None).puts(b"c" * 100)

        def again():
            os.write(1, b"o" * 100)
            return "fine"

        with Engine(discover=False, workers=1) as muna:
            assert len(list(muna.predictions.stream(floods, runner="process"))) == 64
            assert muna.predictions.create(again, runner="process").value == "fine"
        """
    )
    assert done.returncode == 0
    assert {letter: done.stdout.count(letter) for letter in "pco"} == {"p": 1 << 20, "c": 100, "o": 100}
    assert done.stderr == "e" * (1 << 20)


@pytest.mark.fault(88)
def test_a_predictor_that_closes_the_standard_descriptors_is_served_on_and_so_are_those_after_it() -> None:
    def closes() -> Iterator[Any]:
        yield os.getpid()
        for descriptor in (0, 1, 2):
            os.close(descriptor)
        with contextlib.suppress(OSError):  # where the stream has no buffer
            print("unheard")  # noqa: T201
        yield bytes(1 << 20)

    def prints() -> Any:
        with contextlib.suppress(OSError):
            print("unheard", flush=False)  # noqa: T201
        return os.getpid(), open(os.devnull).fileno()  # noqa: PTH123  # would take the number of one that is closed

    with Engine(discover=False, workers=1, grace=GRACE) as muna:
        pid, data = muna.predictions.stream(closes, runner="process").values()
        assert len(data) == 1 << 20
        for _ in range(3):
            served, descriptor = muna.predictions.create(prints, runner="process").value
            assert served == pid
            assert descriptor > 2


@pytest.mark.fault(88)
@pytest.mark.parametrize("closed", ["0 1 2", "1", "2"])
def test_a_program_without_standard_descriptors_can_use_workers(closed: str, tmp_path: Path) -> None:
    done = run_script(
        f"""
        import os, sys
        from engine import Engine

        log = os.open({str(tmp_path / "log")!r}, os.O_WRONLY | os.O_CREAT)
        for each in "{closed}".split():
            os.close(int(each))

        def prints():
            print("printed")
            yield bytes(1 << 20)
            yield os.write(1, b"") + os.write(2, b"")

        with Engine(discover=False, workers=2) as muna:
            assert len(list(muna.predictions.stream(prints, runner="process"))) == 2
            assert muna.predictions.create(prints, runner="process").value == 0
        os.write(log, b"ok")
        os._exit(0)  # the interpreter itself complains about the streams it has lost
        """
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "log").read_text() == "ok"


@pytest.mark.fault(89)
def test_what_a_predictor_printed_is_out_before_its_end_is_seen() -> None:
    done = run_script(
        """
        import os, sys
        from engine import Engine

        def returns():
            print("returns")
            return 1

        def yields():
            print("yields")
            yield 1

        async def areturns():
            print("areturns")
            return 1

        async def ayields():
            print("ayields")
            yield 1

        def fails():
            print("fails")
            raise ValueError

        def closed():
            try:
                yield 1
            finally:
                print("closed")

        def end(name):
            os.write(1, f"end of {name}\\n".encode())

        with Engine(discover=False, workers=1, runner="process") as muna:
            for each in (returns, yields, areturns, ayields):
                muna.predictions.create(each)
                end(each.__name__)
                list(muna.predictions.stream(each))
                end(each.__name__)
            muna.predictions.create(fails, errors="return")
            end("fails")
            with muna.predictions.stream(closed, prefetch=0) as stream:
                next(stream)
            end("closed")
        """
    )
    assert (done.returncode, done.stderr) == (0, "")
    said = [line for name in ("returns", "yields", "areturns", "ayields") for line in (name, f"end of {name}") * 2]
    said += ["fails", "end of fails", "closed", "end of closed"]
    assert done.stdout.splitlines() == said


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
            assert gained in (["engine-owner"] * owners + ["engine-warden"] for owners in range(3))
            assert len(after.descriptors - before.descriptors) <= 2 * 16 + 4

    asyncio.run(main())


# 94: leaks over time.


def one_round(muna: Engine) -> int:
    """Every way a call in a worker can end but by its loss, once; give how many calls that were."""
    inputs, predictions = {"number": 5}, muna.predictions
    calls = 0
    predictor: Callable[..., Any]
    for predictor in (echo, aecho):
        predictions.create(predictor, {"value": [bytes(1 << 16)]}, runner="process")
        with predictions.stream(predictor, {"value": 1}, runner="process") as stream:
            next(stream)
        calls += 2
    for predictor in (three, athree):
        predictions.create(predictor, inputs, runner="process")
        list(predictions.stream(predictor, inputs, runner="process"))
        with predictions.stream(predictor, inputs, runner="process", prefetch=0) as stream:
            next(stream)
        stream = predictions.stream(predictor, inputs, runner="process")
        next(stream)
        stream.cancel()
        calls += 4
    for predictor in (failing, afailing):
        predictions.create(predictor, inputs, runner="process", errors="return")
        with contextlib.suppress(ValueError):
            list(predictions.stream(predictor, inputs, runner="process"))
        calls += 2

    def made(number: int) -> int:
        return number

    predictions.create(made, inputs, runner="process")
    with contextlib.suppress(PayloadError):
        predictions.create(made, {"number": threading.Lock()}, check=False, runner="process")
    return calls + 2


async def one_async_round(muna: Engine) -> int:
    inputs, predictions = {"number": 5}, muna.predictions
    for predictor in (three, athree):
        await predictions.acreate(predictor, inputs, runner="process")
        async with predictions.astream(predictor, inputs, runner="process", prefetch=0) as stream:
            await anext(stream)
        task = asyncio.create_task(predictions.acreate(predictor, inputs, runner="process"))
        await asyncio.sleep(0)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
    return 6


def held() -> tuple[int, int, int, int]:
    gc.collect()
    children, threads, descriptors = len(child_processes()), threading.active_count(), len(os.listdir("/dev/fd"))  # noqa: PTH208
    return sys.getallocatedblocks(), children, threads, descriptors


@pytest.mark.fault(94)
def test_two_thousand_calls_leave_nothing_behind_here_or_in_the_worker() -> None:
    with Engine(discover=False, workers=1) as muna, asyncio.Runner() as runner:

        def rounds(count: int) -> int:
            return sum(one_round(muna) + runner.run(one_async_round(muna)) for _ in range(count))

        rounds(60)  # until the caches of the interpreter are full
        there_before, here_before = muna.predictions.create(holdings, runner="process").value, held()
        calls = rounds(80)
        there_after, here_after = muna.predictions.create(holdings, runner="process").value, held()
        assert calls >= 1600
        pid, blocks, *others = zip(there_before, there_after, strict=True)
        assert pid[0] == pid[1]
        assert blocks[1] - blocks[0] < calls / 2, f"{blocks[1] - blocks[0]} blocks more in the worker"
        assert all(early == late for early, late in others), "threads or descriptors more in the worker"
        assert here_after[0] - here_before[0] < calls / 2, f"{here_after[0] - here_before[0]} blocks more here"
        assert here_after[1:] == here_before[1:]


@pytest.mark.fault(94)
def test_engines_with_workers_that_come_and_go_leave_nothing_behind() -> None:
    def come_and_go() -> None:
        with Engine(discover=False, workers=1, grace=GRACE) as muna:
            muna.predictions.create(echo, {"value": bytes(1 << 16)}, runner="process")

    come_and_go()
    before = held()
    for _ in range(3):
        come_and_go()
    assert held()[1:] == before[1:]


# 95, 96: workers that come and go.


@pytest.mark.fault(95)
def test_a_worker_that_is_idle_for_long_is_let_go_torn_down_and_replaced_when_it_is_needed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = Journal(tmp_path / "journal")

    class Model:
        def predict(self) -> int:
            return os.getpid()

        def teardown(self) -> None:
            journal.note("torn-down")

    monkeypatch.setattr(supervisor, "_BOUND", 0.01)
    with Engine(discover=False, workers=1, grace=10) as muna:
        pid = muna.predictions.create(Model, runner="process").value
        with muna.predictions.stream(numbers_after_worker, runner="process") as stream:
            assert next(stream).value == pid
            monkeypatch.setattr(supervisor, "IDLE", 0.0)
            assert [next(stream).value for _ in range(500)] == list(range(500))  # busy: it is kept
        eventually(lambda: pid not in child_processes(), "the idle worker is gone")
        assert journal.words == ["torn-down"]
        monkeypatch.setattr(supervisor, "IDLE", 60.0)
        other = muna.predictions.create(Model, runner="process").value
        assert other != pid
        assert muna.predictions.create(Model, runner="process").value == other
    assert journal.words == ["torn-down"] * 2


@pytest.mark.fault(95)
def test_calls_that_come_while_idle_workers_are_let_go_all_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "_BOUND", 0.001)
    monkeypatch.setattr(supervisor, "IDLE", 0.0)
    seeded = random.Random(95)
    pids: set[int] = set()

    async def main() -> None:
        async with Engine(discover=False, workers=2) as muna:
            for _ in range(200):
                if len(pids) > 5:
                    break
                got = await asyncio.gather(
                    *(muna.predictions.acreate(number_of_worker, runner="process") for _ in range(4))
                )
                pids.update(each.value for each in got)
                moment = time.perf_counter() + seeded.random() * 0.01
                while time.perf_counter() < moment:  # noqa: ASYNC110 - a moment that no event tells of
                    await asyncio.sleep(0)

    asyncio.run(main())
    assert len(pids) > 5  # several were let go meanwhile


@pytest.mark.fault(96)
def test_while_every_call_costs_its_worker_those_in_line_get_the_next_one() -> None:
    def ends(number: int) -> Iterator[int]:
        yield number
        os._exit(0)

    async def call(muna: Engine, number: int) -> Any:
        stream = muna.predictions.astream(ends, {"number": number}, runner="process")
        values = stream.values()
        first = await anext(values)
        with pytest.raises(WorkerLostError, match="exit code 0"):
            await anext(values)
        return first

    async def main() -> None:
        async with Engine(discover=False, workers=1, grace=GRACE) as muna:
            assert await asyncio.gather(*(call(muna, number) for number in range(5))) == list(range(5))
            assert (await muna.predictions.acreate(number_of_worker, runner="process")).value in child_processes()

    asyncio.run(main())
