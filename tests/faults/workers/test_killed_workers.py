"""Workers that are killed, crash or end themselves at any point of a call, lack memory, or leave children behind."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from engine import Engine, Predictor, WorkerLostError
from engine._wire.frames import DONE, ITEM, ITEMS
from tests._kit.gates import FileGate, Journal
from tests._kit.processes import child_processes, state_of
from tests._kit.waits import OtherThread, auntil
from tests.faults import worker_bodies
from tests.faults.conftest import Cell
from tests.faults.worker_bodies import Interception, Trouble, number_of_worker, numbers_after_worker, predictor_with
from tests.faults.workers.losses import GRACE, kill, process_of

if TYPE_CHECKING:
    from tests.faults.conftest import Consumer, Reader

LAST = "second"


def killing(gate: FileGate) -> Callable[[], None]:
    def kill_who_opened_it() -> None:
        gate.wait()
        kill(gate.opener)

    return kill_who_opened_it


def waits_at(gate: FileGate) -> Callable[[], None]:
    """A strike that tells where the body is, and stays there."""

    def strikes() -> None:
        gate.open()
        worker_bodies.sleeps()

    return strikes


async def has_lost_its_worker(reader: Reader, delivered: int, reason: str = "SIGKILL") -> WorkerLostError:
    """The loss a reader hears of: once, and nothing after it."""
    with pytest.raises(WorkerLostError) as raised:
        await reader.pull()
    error: WorkerLostError = raised.value
    assert (error.delivered, error.reason) == (delivered, reason)
    assert await reader.has_ended("failed")
    assert reader.outcome.exception is error
    return error


# 1, 2: killed before and between partials.


@pytest.mark.fault(1, 13)
@pytest.mark.parametrize(("consumer", "kinds"), [("sync", ("def", "agen")), ("asyncio", ("gen", "async"))])
def test_a_worker_killed_before_the_first_partial_costs_its_own_call_and_no_other(
    consumer: str, kinds: tuple[str, ...], tmp_path: Path
) -> None:
    def trouble(name: str) -> tuple[FileGate, Trouble]:
        gate = FileGate(tmp_path / f"{name}.gate")
        return gate, Trouble(Journal(tmp_path / f"{name}.journal"), waits_at(gate))

    async def scenario(consumer: Consumer) -> None:
        for kind in kinds:
            pid = (await consumer.create(number_of_worker)).value  # it has served before, and was not at fault
            gate, its_trouble = trouble(kind)
            predictor = Predictor("@tests/killed", predictor_with(kind, its_trouble), concurrency=1)
            reader = consumer.open(predictor)
            with OtherThread(killing(gate)):
                error = await has_lost_its_worker(reader, 0)
            assert (error.tag, error.pid) == ("@tests/killed", pid)
            assert gate.opener == pid
            assert f"@tests/killed: worker {gate.opener} was lost (SIGKILL" in str(error)
            assert "after 0 partials" in str(error)
            assert "memory" in str(error)  # the system kills in this way where there is none left
            assert its_trouble.journal.words == ["start"]  # it is not tried again
        gate, its_trouble = trouble("create")
        with OtherThread(killing(gate)), pytest.raises(WorkerLostError) as raised:
            await consumer.create(predictor_with(kinds[0], its_trouble))
        assert raised.value.pid == gate.opener
        assert its_trouble.journal.words == ["start"]
        replaced = Predictor("@tests/killed", number_of_worker, concurrency=1)
        assert (await consumer.create(replaced)).value != gate.opener

    Cell(kinds[0], consumer, "process").run(scenario, workers=1, grace=GRACE)


@pytest.mark.fault(2)
@pytest.mark.parametrize(("kind", "consumer"), [("gen", "sync"), ("agen", "asyncio")])
def test_partials_that_had_left_a_killed_worker_are_delivered_before_its_loss(
    kind: str, consumer: str, tmp_path: Path
) -> None:
    """One partial is read, two have arrived and are not, when the worker is killed: none of the three is lost."""
    gate = FileGate(tmp_path / "gate")
    partials = (["a list"], ("a", "tuple"), bytes(100_000))
    trouble = Trouble(Journal(tmp_path / "journal"), waits_at(gate), "after", partials=partials)

    async def scenario(consumer: Consumer) -> None:
        reader = consumer.open(predictor_with(kind, trouble), prefetch=8)
        assert await reader.pull() == partials[0]
        await auntil(lambda: gate.is_open, "every partial has left")
        kill(gate.opener)
        assert [await reader.pull() for _ in range(2)] == list(partials[1:])
        await has_lost_its_worker(reader, 3)

    Cell(kind, consumer, "process").run(scenario, workers=1, grace=GRACE)


# 3, 4, 9: killed at every point of a call.


@pytest.mark.fault(3)
@pytest.mark.parametrize(("consumer", "shares"), [("sync", (1e-6, 0.5)), ("asyncio", (1e-5, 0.9999999))])
def test_of_a_frame_that_was_cut_short_nothing_is_delivered(consumer: str, shares: tuple[float, ...]) -> None:
    """The frame is of a mebibyte, which does not go by shared memory here, and is cut everywhere from end to end."""
    large = "x" * (1 << 20)

    def cut(share: float) -> Callable[[], Iterator[Any]]:
        def yields() -> Iterator[Any]:
            import engine._worker.outlet

            vars(engine._worker.outlet).update(SHARED_FROM=1 << 40)
            yield "first"
            Interception((ITEM, ITEMS), partial(worker_bodies.dies_within, share)).set()
            yield large

        return yields

    async def scenario(consumer: Consumer) -> None:
        for share in shares:
            reader = consumer.open(cut(share))
            assert await reader.pull() == "first"
            await has_lost_its_worker(reader, 1)
        whole = consumer.open(cut(1.0))
        assert [await whole.pull(), await whole.pull()] == ["first", large]
        await has_lost_its_worker(whole, 2)

    Cell("gen", consumer, "process").run(scenario, workers=1, grace=GRACE)


@pytest.mark.fault(4)
@pytest.mark.parametrize(("consumer", "kinds"), [("sync", ("def", "agen")), ("asyncio", ("async", "gen"))])
def test_a_worker_killed_before_it_said_that_the_call_is_over_is_lost_whatever_it_gave(
    consumer: str, kinds: tuple[str, str], tmp_path: Path
) -> None:
    """The body has ended, and not even `create`, which wants nothing but its result, may guess so."""

    def trouble(name: str, share: float) -> Trouble:
        dying = Interception((DONE,), partial(worker_bodies.dies_within, share))
        return Trouble(Journal(tmp_path / name), dying.set)

    async def scenario(consumer: Consumer) -> None:
        reader = consumer.open(predictor_with(kinds[0], trouble("stream", 0.5)))
        await has_lost_its_worker(reader, 0)  # a value that is returned travels with the end
        creating = trouble("create", 0.0)
        with pytest.raises(WorkerLostError):
            await consumer.create(predictor_with(kinds[1], creating))
        assert creating.journal.words == ["start", "finally"]

    Cell(kinds[0], consumer, "process").run(scenario, workers=1, grace=GRACE)


class DiesOnArrival:
    """An input that kills the worker which unpickles it."""

    def __reduce__(self) -> tuple[Any, ...]:
        return worker_bodies.is_killed, ()


@pytest.mark.fault(3, 4, 9, 15)
@pytest.mark.parametrize(("consumer", "step"), [("sync", 1), ("asyncio", 3)], ids=["sync", "asyncio"])
def test_a_worker_killed_at_any_point_of_a_call_costs_its_neighbour_nothing_and_leaves_no_zombie(
    consumer: str, step: int
) -> None:
    def dies(kind_of_frame: int, share: float) -> Callable[[Any], Iterator[Any]]:
        def yields(given: Any = None) -> Iterator[Any]:
            Interception((kind_of_frame,), partial(worker_bodies.dies_within, share)).set()
            yield ["first"]
            yield from ["second"]

        return yields

    def echo(given: Any) -> Iterator[Any]:
        yield given

    points: dict[str, tuple[Callable[[Any], Iterator[Any]], Any, list[Any]]] = {
        "while the call arrives": (echo, DiesOnArrival(), []),
        "before a partial leaves": (dies(ITEM, 0.0), None, []),
        "while a partial leaves": (dies(ITEM, 0.5), None, []),
        "after a partial left": (dies(ITEM, 1.0), None, [["first"]]),
        "while light partials leave": (dies(ITEMS, 0.5), None, [["first"]]),
        "before the end is told": (dies(DONE, 0.0), None, [["first"], "second"]),
        "while the end is told": (dies(DONE, 0.5), None, [["first"], "second"]),
    }

    async def scenario(consumer: Consumer) -> None:
        neighbour = consumer.open(numbers_after_worker)
        pid = await neighbour.pull()
        children = len(child_processes())
        number = -1
        for point in list(points)[::step]:
            predictor, given, delivered = points[point]
            reader = consumer.open(predictor, inputs={"given": given})
            for expected in delivered:
                assert (point, await reader.pull()) == (point, expected)
            await has_lost_its_worker(reader, len(delivered))
            for _ in range(20):
                number += 1
                assert (point, await neighbour.pull()) == (point, number)
            await auntil(lambda: len(child_processes()) == children, f"one killed {point} is reaped")
        assert (await consumer.create(number_of_worker)).value != pid
        await neighbour.close()

    Cell("gen", consumer, "process").run(scenario, workers=2, grace=GRACE)


# 6, 7: ended by the body itself.


@pytest.mark.fault(6)
def test_a_body_that_ends_its_process_is_a_loss_whatever_its_exit_code() -> None:
    def yields(code: int) -> Iterator[str]:
        yield "first"
        worker_bodies.exits(code)

    async def returns(code: int) -> None:
        worker_bodies.exits(code)

    with Engine(discover=False, workers=1, grace=GRACE) as muna:
        stream = muna.predictions.stream(yields, {"code": 0}, runner="process")
        assert next(stream).value == "first"
        with pytest.raises(WorkerLostError, match=r"exit code 0.*after 1 partial;"):
            next(stream)
        with pytest.raises(WorkerLostError, match=r"exit code 7.*after 0 partials"):
            muna.predictions.create(returns, {"code": 7}, runner="process")
        assert process_of(muna) in child_processes()


@pytest.mark.fault(7)
def test_a_crash_in_c_is_a_loss_that_names_its_signal_and_shows_where_it_was() -> None:
    def overflows() -> None:
        import faulthandler

        faulthandler._stack_overflow()  # type: ignore[attr-defined]  # what the interpreter tests itself with

    def crashes_beside_others() -> None:
        others = [threading.Thread(target=time.sleep, args=(worker_bodies.AGES,), daemon=True) for _ in range(60)]
        for each in others:
            each.start()
        worker_bodies.crashes()

    with Engine(discover=False, workers=1, grace=GRACE) as muna:
        for body, name, reason in (
            (worker_bodies.crashes, "crashes", "SIGSEGV"),
            (os.abort, "", "SIGABRT"),
            (overflows, "overflows", "SIGSEGV"),
            (crashes_beside_others, "crashes_beside_others", "SIGSEGV"),
        ):
            with pytest.raises(WorkerLostError) as raised:
                muna.predictions.create(body, runner="process")
            error = raised.value
            assert error.reason == reason
            assert "Fatal Python error" in error.report
            assert f"in {name}" in error.report
            headline, crashed, *others = error.report.split("\n\n")
            assert headline.startswith("Fatal Python error")
            assert crashed.startswith("Current thread")
            assert not any("stop_reader" in each for each in others)
            assert len(error.report) < 10_000
            assert error.report in str(error)
        assert process_of(muna) in child_processes()


# 13: memory runs out.


@pytest.mark.fault(13)
def test_a_body_that_may_have_no_more_memory_fails_and_its_worker_serves_on() -> None:
    def wants_too_much() -> bytearray:
        import resource

        soft, hard = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (1 << 31, hard))
        try:
            return bytearray(1 << 32)
        finally:
            resource.setrlimit(resource.RLIMIT_AS, (soft, hard))

    with Engine(discover=False, workers=1, grace=GRACE) as muna:
        pid = process_of(muna)
        with pytest.raises(MemoryError):
            muna.predictions.create(wants_too_much, runner="process")
        assert process_of(muna) == pid


# 16: a worker's own children.


def children_of(way: str) -> Callable[[], Iterator[int]]:
    def starts_one() -> Iterator[int]:

        if way == "fork":
            child = os.fork()
            if not child:
                time.sleep(worker_bodies.AGES)
                os._exit(0)
        else:
            command = [sys.executable, "-c", f"import time; time.sleep({worker_bodies.AGES})"]
            child = subprocess.Popen(command, close_fds=way == "closing").pid
        yield child
        time.sleep(worker_bodies.AGES)

    return starts_one


@pytest.mark.fault(16)
def test_a_worker_that_leaves_children_behind_is_seen_to_be_lost_all_the_same() -> None:
    """They have got none of its pipes, so that its end is seen; they are its own, and live on."""
    with Engine(discover=False, workers=1, grace=GRACE) as muna:
        for way in ("fork", "closing", "inheriting"):
            pid = process_of(muna)
            stream = muna.predictions.stream(children_of(way), runner="process")
            child = next(stream).value
            try:
                kill(pid)
                moment = time.monotonic()
                with pytest.raises(WorkerLostError) as raised:
                    next(stream)
                assert (way, raised.value.pid) == (way, pid)
                assert time.monotonic() - moment < 1.0
                assert state_of(child) is not None
            finally:
                kill(child)
