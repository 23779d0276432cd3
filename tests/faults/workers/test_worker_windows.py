"""Consumers that stop reading, or read slowly, while a worker produces, small partials and huge ones."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from engine import Engine
from tests._kit.gates import FileGate
from tests._kit.waits import OtherThread, auntil, until
from tests.faults.conftest import Cell, Consumer
from tests.faults.producers import Tally, bursts, counts, echo, megabytes, overflows
from tests.faults.workers.stopping import run

STILL = 0.05  # seconds in which nothing more may happen
GRACE = 0.5  # seconds; no test here needs more than the first rung

CELLS = [Cell(kind, consumer, "process") for kind in ("gen", "agen") for consumer in ("sync", "asyncio")]
each_cell = pytest.mark.parametrize("cell", CELLS, ids=str)


@pytest.fixture(scope="module")
def lasting() -> Iterator[Engine]:
    """Give an engine whose one worker outlives the tests that ask for it."""
    with Engine(discover=False, workers=1, grace=10.0) as muna:
        large = bytes(64 << 20)  # so that its shared memory is mapped, both ways, and need not grow
        assert muna.predictions.create(echo, {"value": large}, runner="process").value == large
        yield muna


async def settles_within(least: int, most: int, tally: Tally) -> None:
    """Hold a producer to so many partials: it makes `least` of them, and never more than `most`."""
    await auntil(lambda: tally.count >= least, f"{least} partials were made, and not {tally.count}")
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

    with OtherThread(lambda: lasting.predictions.create(warns, runner="process")) as calling:
        until(lambda: "x" * (1 << 20) in caplog.text, "all of the line is in the log")
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
def test_huge_partials_need_the_memory_of_a_few_whichever_side_is_slow(lasting: Engine) -> None:
    values = lasting.predictions.stream(megabytes, {"count": 24}, runner="process").values()
    first, _ = next(values)
    for most, data in values:  # noqa: B007 - the last one counts
        assert len(data) == 8 << 20
    assert most - first < 5 * (8 << 20)  # the one that is made, the one that is carried, and room to grow
