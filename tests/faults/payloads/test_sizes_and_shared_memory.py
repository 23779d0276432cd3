"""Payloads of every size arrive whole, through the pipe or shared memory, be that full or cut off."""

from __future__ import annotations

import asyncio
import functools
import gc
import os
import pathlib
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, Final

import numpy as np
import pytest

from engine import Engine, PayloadError, WorkerLostError
from engine._wire import segments as _segments
from engine._wire.frames import ITEM, pack
from engine._wire.segments import SHARED_FROM, Segment
from engine._worker.pipes import Pipes
from tests._kit.gates import Journal
from tests._kit.internals import memory_of, worker_of
from tests._kit.processes import SCRIPT_TIMEOUT, child_processes
from tests._kit.waits import OtherThread, until
from tests.faults.awkward_values import gives_back, yields_back
from tests.faults.conftest import END, Cell, Consumer
from tests.faults.payloads.round_trips import MIB, each_way, each_yielding, number_of, values_of
from tests.faults.worker_bodies import AGES

# 29: sizes.


SIZES: Final = (0, 1, 4096, 4097, SHARED_FROM - 1, SHARED_FROM, SHARED_FROM + 1, MIB - 1, MIB, MIB + 1, 5 * MIB + 3)


@pytest.mark.fault(29)
@each_way
def test_every_size_arrives_whole_in_both_directions(muna: Engine, worker: int, way: str) -> None:
    def measures(value: Any) -> Any:
        return len(value), value[-1:], value

    for size in SIZES:
        data = (b"0123456789abcdef!" * (size // 17 + 1))[:size]
        for value in (data, data.decode(), bytearray(data), np.frombuffer(data, np.uint8)):
            ((length, last, back),) = values_of(muna, way, measures, {"value": value})
            assert (length, bytes(last) if not isinstance(last, str) else last.encode()) == (size, data[-1:])
            assert type(back) is type(value)
            assert back.tobytes() == data if isinstance(back, np.ndarray) else back == value


@pytest.mark.fault(29)
@each_yielding
def test_partials_of_every_size_arrive_in_order(muna: Engine, worker: int, cell: Cell) -> None:
    def yields() -> Iterator[Any]:
        for number, size in enumerate(SIZES * 2):
            yield number
            yield bytes([number]) * size

    async def async_yields() -> AsyncIterator[Any]:
        for value in yields():
            yield value

    async def scenario(consumer: Consumer) -> None:
        predictor = async_yields if cell.is_async else yields
        for prefetch in (None, 0, 100):
            found = await consumer.read(predictor, prefetch=prefetch)
            assert found == list(yields())
        assert (await consumer.create(predictor, reduce="collect")).value == list(yields())

    cell.run_on(muna, scenario)


# 30: bytes that are no frame.


def speak(data: bytes) -> Callable[[], Iterator[int]]:
    """Make a predictor that writes to its worker's pipe behind the engine's back."""

    def speaks() -> Iterator[int]:
        yield os.getpid()
        (pipes,) = [each for each in gc.get_objects() if type(each) is Pipes]
        os.write(pipes.answers, data)
        time.sleep(AGES)
        yield 2

    return speaks


HEADER: Final = bytes(pack(ITEM, 1, b"")[0])


@pytest.mark.fault(30)
def test_a_worker_that_does_not_speak_the_protocol_is_killed_and_costs_its_own_call(
    caplog: pytest.LogCaptureFixture,
) -> None:
    foreign = {
        "garbage": b"Segmentation fault\n" * 5,
        "giant": HEADER[:8] + b"\xff" * 16,
        "another-call": bytes(pack(ITEM, 999, b"")[0]),
    }
    with Engine(discover=False, workers=1) as muna:
        for name, data in foreign.items():
            caplog.clear()
            stream = muna.predictions.stream(speak(data), runner="process", prefetch=4)
            pid = next(stream).value
            with pytest.raises(WorkerLostError) as lost:
                next(stream)
            assert (lost.value.pid, lost.value.delivered, list(stream)) == (pid, 1, []), name
            assert "does not speak the engine's protocol" in caplog.text, name
            assert pid not in child_processes()
            assert number_of(muna) != pid


# Shared memory that is full.


@pytest.mark.fault(21, 90)
@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the space of addresses has no limit")
def test_an_input_that_a_worker_cannot_map_is_refused_and_its_worker_serves_on() -> None:
    def limits() -> int:
        import resource  # the others need none

        pages = int(pathlib.Path("/proc/self/statm").read_text().split()[0])
        now = pages * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (now + 16 * MIB, resource.getrlimit(resource.RLIMIT_AS)[1]))
        return os.getpid()

    with Engine(discover=False, workers=1) as muna:
        pid = muna.predictions.create(limits, runner="process").value
        with pytest.raises(PayloadError, match="cannot be mapped in a worker") as refused:
            muna.predictions.create(gives_back, {"value": bytes(64 * MIB)}, runner="process")
        assert "Cannot allocate memory" in str(refused.value)
        assert number_of(muna) == pid


VANDAL: Final = """
import fcntl, os
from engine import Engine

def cuts_off(data):
    cut = 0
    for number in os.listdir("/dev/fd"):
        try:
            is_ours = os.readlink(f"/dev/fd/{number}").startswith("/memfd:engine")
            if not is_ours or not os.fstat(int(number)).st_size:
                continue
        except OSError:
            continue
        for cut_off in (os.ftruncate, lambda it, _: fcntl.fcntl(it, fcntl.F_ADD_SEALS, fcntl.F_SEAL_GROW)):
            try:
                cut_off(int(number), 0)
                cut += 1
            except PermissionError:
                pass
    yield cut
    yield data

with Engine(discover=False, workers=1, runner="process") as muna:
    large = os.urandom(1 << 20)
    for _ in range(2):
        assert list(muna.predictions.stream(cuts_off, {"data": large}).values()) == [0, large]
"""


@pytest.mark.fault(9, 90)
def test_a_worker_cannot_cut_shared_memory_off_under_its_engine() -> None:
    done = subprocess.run(
        [sys.executable, "-c", VANDAL], check=False, capture_output=True, text=True, timeout=SCRIPT_TIMEOUT
    )
    assert (done.returncode, done.stderr) == (0, "")


FULL: Final = """
import asyncio, os, resource, signal, sys, threading
import numpy as np
from engine import Engine

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
MIB = 1 << 20

def doubles(value):
    return value * 2

def counts():
    try:
        number = 0
        while True:
            number += 1
            yield np.full(MIB // 4, number)
    finally:
        print("finally", flush=True)

async def acounts():
    for number in range(1, 4):
        yield np.full(MIB // 4, number)

def is_doubled(value):
    return bool((value == np.arange(MIB // 4) * 2).all())

async def main(muna):
    predictions = muna.predictions
    assert is_doubled((await predictions.acreate(doubles, {"value": np.arange(MIB // 4)}, runner="process")).value)
    async with predictions.astream(counts, runner="process") as stream:
        for number in range(1, 4):
            value = (await anext(stream)).value
            assert (value == number).all()
    assert stream.outcome.rung == "asked"
    seen = [int(value[-1]) async for value in predictions.astream(acounts, runner="process", prefetch=8).values()]
    assert seen == [1, 2, 3]

with Engine(discover=False, workers=1) as muna:
    predictions = muna.predictions
    assert is_doubled(predictions.create(doubles, {"value": np.arange(MIB // 4)}, runner="process").value)
    with predictions.stream(counts, runner="process") as stream:
        for number in range(1, 4):
            assert (next(stream).value == number).all()
    assert stream.outcome.rung == "asked"
    assert [int(value[-1]) for value in predictions.stream(acounts, runner="process", prefetch=8).values()] == [1, 2, 3]
    asyncio.run(main(muna))
    (worker,) = muna._workers()._pool.workers
    assert (worker.inbound.size, worker.outbound.size) == (0, 0)
    assert os.fstat(worker.inbound._descriptor).st_size == os.fstat(worker.outbound._descriptor).st_size == 0
"""


@pytest.mark.fault(90)
def test_where_shared_memory_is_full_everything_goes_through_the_pipe(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COVERAGE_PROCESS_CONFIG", raising=False)  # which could not keep what it measures, either
    done = subprocess.run(
        [sys.executable, "-c", FULL], check=False, capture_output=True, text=True, timeout=SCRIPT_TIMEOUT
    )
    assert (done.returncode, done.stderr, done.stdout) == (0, "", "finally\n" * 2)


@pytest.mark.fault(90)
def test_large_payloads_do_go_through_shared_memory_where_there_is_room(muna: Engine, worker: int) -> None:
    one = worker_of(muna)
    assert values_of(muna, "stream", gives_back, {"value": bytes(16 * MIB)}) == [bytes(16 * MIB)]
    assert one.inbound.size >= 16 * MIB
    assert one.outbound.size >= 16 * MIB


@pytest.mark.fault(90)
def test_memory_for_a_giant_input_is_given_back_as_soon_as_a_call_does_without_it(
    muna: Engine, worker: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_segments, "SEGMENT_LIMIT", 2 * MIB)
    one = worker_of(muna)

    def room() -> int:
        status = os.fstat(memory_of(one.inbound))
        return status.st_blocks * 512 if hasattr(os, "memfd_create") else status.st_size

    for size in (8 * MIB, 5 * MIB):  # giant calls in a row use the same memory
        assert values_of(muna, "create", gives_back, {"value": bytes(size)}) == [bytes(size)]
        assert room() == one.inbound.size >= 8 * MIB
    for value in (None, bytes(MIB)):
        assert values_of(muna, "create", gives_back, {"value": bytes(5 * MIB)}) == [bytes(5 * MIB)]
        with muna.predictions.stream(yields_back, {"value": value}, runner="process") as stream:
            assert next(stream).value == value
            assert room() == 2 * MIB  # while the call lasts


def leave_room(size: int) -> None:
    """From now on, in this worker, partials find that much room in shared memory, and no more."""
    grow = Segment.grow
    vars(engine_segments := sys.modules["engine._wire.segments"]).update(SEGMENT_LIMIT=size)
    engine_segments.Segment.grow = lambda self, wanted: wanted <= size and grow(self, wanted)


@pytest.mark.fault(83, 90)
def test_partials_that_find_no_room_beside_others_overtake_none() -> None:
    def yields() -> Iterator[bytes]:
        leave_room(2 * MIB)
        for number in range(12):
            yield bytes([number]) * (700_000 if number % 4 else 3 * MIB)

    with Engine(discover=False, workers=1) as muna:
        stream = muna.predictions.stream(yields, runner="process", prefetch=6)
        found = [(value[0], value.count(value[:1]) == len(value)) for value in stream.values()]
        assert found == [(number, True) for number in range(12)]


def continue_once_full(muna: Engine, pid: int) -> None:
    """Wait until the pipe to a stopped worker is full, then have that go on."""
    worker = worker_of(muna)
    until(lambda: bool(worker.unsent), "the pipe is full")
    os.kill(pid, signal.SIGCONT)


@pytest.mark.fault(90)
def test_inputs_larger_than_the_pipe_wait_for_a_worker_that_does_not_read_yet(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    value = bytes(range(256)) * (4 * MIB // 256)
    with Engine(discover=False, workers=1) as muna:
        pid = number_of(muna)
        monkeypatch.setattr(Segment, "grow", lambda *_: False)

        os.kill(pid, signal.SIGSTOP)
        with OtherThread(functools.partial(continue_once_full, muna, pid)):
            assert muna.predictions.create(gives_back, {"value": value}, runner="process").value == value

        async def scenario() -> None:
            os.kill(pid, signal.SIGSTOP)
            call = asyncio.create_task(muna.predictions.acreate(gives_back, {"value": value}, runner="process"))
            await asyncio.to_thread(continue_once_full, muna, pid)  # so this loop turns meanwhile
            assert (await call).value == value

        asyncio.run(scenario())
        assert number_of(muna) == pid


@pytest.mark.fault(90)
@pytest.mark.parametrize("consumer", ["sync", "asyncio"])
def test_a_call_whose_inputs_are_still_on_their_way_can_be_left(
    consumer: str, monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path
) -> None:
    journal = Journal(tmp_path / "journal")

    def takes(value: bytes) -> Iterator[int]:
        journal.note("start")
        yield len(value)

    inputs = {"value": bytes(4 * MIB)}
    with Engine(discover=False, workers=1, grace=0.1) as muna:
        pid = number_of(muna)
        worker = worker_of(muna)
        monkeypatch.setattr(Segment, "grow", lambda *_: False)
        os.kill(pid, signal.SIGSTOP)
        if consumer == "sync":
            stream = muna.predictions.stream(takes, inputs, runner="process")

            def close() -> None:
                until(lambda: bool(worker.unsent), "the pipe is full")
                stream.close()

            with OtherThread(close):
                assert next(stream, END) == END
            assert stream.outcome.state == "closed"
        else:

            async def scenario() -> None:
                call = asyncio.create_task(muna.predictions.acreate(takes, inputs, runner="process"))
                await asyncio.to_thread(until, lambda: bool(worker.unsent), "the pipe is full")
                call.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await call

            asyncio.run(scenario())
        until(lambda: pid not in child_processes(), "a worker that does not answer is killed")
        assert journal.words == []
        assert muna.predictions.create(takes, inputs, runner="process").value == 4 * MIB
