"""Faults of worker processes themselves: killed, crashed, ended, stopped or never started, at any point of a call.

A loss costs exactly the call that was served, which hears of it once, after every partial that had reached this
process; the worker is reaped and replaced, and nothing of another worker's is lost. No body is ever run twice.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextvars import ContextVar
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from engine import Engine, EngineError, PredictionCancelledError, Predictor, WorkerLostError
from engine._wire.frames import DONE, ITEM, ITEMS
from engine.runners import parking as _parking
from engine.runners.process import inlet as wire_module
from engine.runners.process import runner as process
from engine.runners.process.inlet import Inlet
from engine.runners.process.spawn import start_worker
from engine.runners.process.supervisor import Supervisor
from engine.runners.process.worker import Worker
from tests.conftest import child_processes, open_descriptors
from tests.faults import worker_bodies
from tests.faults.conftest import Cell, Elsewhere, aeventually, eventually
from tests.faults.worker_bodies import (
    KINDS,
    FileGate,
    Interception,
    Journal,
    Trouble,
    number_of_worker,
    numbers_after_worker,
    predictor_with,
)

if TYPE_CHECKING:
    from tests.faults.conftest import Consumer, Reader

GRACE = 10.0  # seconds; no test here is about the ladder
LAST = "second"

each_consumer = pytest.mark.parametrize("consumer", ["sync", "asyncio"])


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)


def is_there(pid: int) -> bool:
    """Whether a process of ours runs, or has ended and was not reaped."""
    return pid in child_processes()


def state_of(pid: int) -> str | None:
    """The letter the system has for what a process does; `None` for one that is over, reaped or not."""
    told = Path(f"/proc/{pid}/stat")
    if Path("/proc/self/stat").exists():
        letter = ""
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it may go while it is read
            letter = told.read_text().rpartition(")")[2].strip()[:1]
    else:
        ps = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True, check=False)
        letter = ps.stdout.strip()[:1]
    return None if letter in {"", "Z", "X"} else letter


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


def process_of(muna: Engine) -> int:
    """The worker that serves the next call."""
    pid: int = muna.predictions.create(number_of_worker, runner="process").value
    return pid


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
            with Elsewhere(killing(gate)):
                error = await has_lost_its_worker(reader, 0)
            assert (error.tag, error.pid) == ("@tests/killed", pid)
            assert gate.opener == pid
            assert f"@tests/killed: worker {gate.opener} was lost (SIGKILL" in str(error)
            assert "after 0 partials" in str(error)
            assert "memory" in str(error)  # the system kills in this way where there is none left
            assert its_trouble.journal.words == ["start"]  # it is not tried again
        gate, its_trouble = trouble("create")
        with Elsewhere(killing(gate)), pytest.raises(WorkerLostError) as raised:
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
        await aeventually(lambda: gate.is_open, "every partial has left")
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
            await aeventually(lambda: len(child_processes()) == children, f"one killed {point} is reaped")
        assert (await consumer.create(number_of_worker)).value != pid
        await neighbour.close()

    Cell("gen", consumer, "process").run(scenario, workers=2, grace=GRACE)


# 5, 8: dead while nobody needs it.


@pytest.mark.fault(5, 15)
def test_a_worker_that_died_while_idle_is_replaced_and_nobody_hears_of_it(caplog: pytest.LogCaptureFixture) -> None:
    with Engine(discover=False, workers=1, grace=GRACE) as muna:
        seen = [process_of(muna)]
        for is_over in (lambda pid: not is_there(pid), lambda pid: state_of(pid) is None):  # noticed by then, or not
            kill(seen[-1])
            eventually(lambda is_over=is_over: is_over(seen[-1]), "it is over")  # type: ignore[misc]
            seen.append(process_of(muna))
        assert len(set(seen)) == len(seen)
        eventually(lambda: not is_there(seen[1]), "it is reaped")
    assert caplog.text == ""


@pytest.mark.fault(5)
def test_a_worker_that_dies_between_being_chosen_and_being_told_is_replaced_and_the_body_runs_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = Journal(tmp_path / "journal")
    send = Worker.send
    lost: list[int] = []

    def send_too_late(worker: Worker, chunks: Any) -> bool:
        monkeypatch.undo()
        worker.signal(signal.SIGKILL)
        assert worker.wait(5.0)
        lost.append(worker.pid)
        return send(worker, chunks)

    with Engine(discover=False, workers=1, grace=GRACE) as muna:
        pid = process_of(muna)
        monkeypatch.setattr(Worker, "send", send_too_late)
        prediction = muna.predictions.create(predictor_with("gen", Trouble(journal)), runner="process")
        assert prediction.value == "second"
        assert lost == [pid]
        assert journal.words == ["start", "finally"]
        assert process_of(muna) != pid


@pytest.mark.fault(5)
@each_consumer
def test_a_worker_killed_after_it_was_told_and_before_it_read_it_is_replaced_and_the_body_runs_once(
    consumer: str, tmp_path: Path
) -> None:
    """The order lies in its pipe as a whole, so that the body cannot have started there."""
    journal = Journal(tmp_path / "journal")

    async def scenario(consumer: Consumer) -> None:
        pid = (await consumer.create(number_of_worker)).value
        (worker,) = consumer.engine._workers()._pool.workers
        os.kill(pid, signal.SIGSTOP)
        await aeventually(lambda: state_of(pid) == "T", "it is stopped")

        def kill_once_told() -> None:
            eventually(worker.unread, "the order is sent")
            kill(pid)

        with Elsewhere(kill_once_told):
            assert await consumer.read(predictor_with("gen", Trouble(journal))) == ["first", "second"]
        assert journal.words == ["start", "finally"]
        assert (await consumer.create(number_of_worker)).value != pid

    Cell("gen", consumer, "process").run(scenario, workers=1, grace=GRACE)


@pytest.mark.fault(5)
@each_consumer
def test_a_worker_that_is_replaced_before_its_reader_has_looked_up_leaves_nobody_waiting_for_it(
    consumer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The supervisor may be faster than the thread that found the pipe closed and told it so."""
    journal = Journal(tmp_path / "journal")
    see_to = Supervisor.see_to

    def see_to_it_at_once(supervisor: Supervisor, inlet: Inlet) -> None:
        see_to(supervisor, inlet)
        if threading.current_thread() is not supervisor._thread:  # else the supervisor was the one that found it closed
            eventually(lambda: inlet.is_sent and not inlet.is_cut, "the call is sent to another worker")

    monkeypatch.setattr(Supervisor, "see_to", see_to_it_at_once)

    async def scenario(consumer: Consumer) -> None:
        pid = (await consumer.create(number_of_worker)).value
        (worker,) = consumer.engine._workers()._pool.workers
        os.kill(pid, signal.SIGSTOP)
        await aeventually(lambda: state_of(pid) == "T", "it is stopped")

        def kill_once_told() -> None:
            eventually(worker.unread, "the order is sent")
            kill(pid)

        with Elsewhere(kill_once_told):
            assert await consumer.read(predictor_with("gen", Trouble(journal))) == ["first", "second"]
        assert journal.words == ["start", "finally"]

    Cell("gen", consumer, "process").run(scenario, workers=1, grace=GRACE)


@pytest.mark.fault(5)
@each_consumer
def test_a_worker_that_is_replaced_while_its_reader_goes_to_sleep_is_heard_at_once(
    consumer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the look that finds no worker to hear and the sleep that follows, there may be one."""
    journal = Journal(tmp_path / "journal")
    is_held, is_at_rest = threading.Event(), threading.Event()
    park_thread, watch = _parking.park_thread, Inlet._watch

    def hold(_nothing: None) -> None:
        """The supervisor sees to nothing until the reader is about to sleep."""
        is_held.set()
        is_at_rest.wait(GRACE)

    def let_it_be_replaced(inlet: Inlet) -> None:
        if inlet.is_cut:
            is_at_rest.set()
            eventually(lambda: inlet.is_sent and not inlet.is_cut, "the call is sent to another worker")

    def park_late(parked: Any, is_news: Any, seconds: float, ready: Any = None) -> None:
        inlet = getattr(is_news, "__self__", None)
        if isinstance(inlet, Inlet):
            let_it_be_replaced(inlet)
        park_thread(parked, is_news, seconds, ready)

    def watch_early(inlet: Inlet, loop: Any) -> None:
        watch(inlet, loop)
        let_it_be_replaced(inlet)

    monkeypatch.setattr(wire_module, "POLL_INTERVAL", 1000.0)  # so that whoever is not woken hangs
    monkeypatch.setattr(wire_module, "park_thread", park_late)
    monkeypatch.setattr(Inlet, "_watch", watch_early)

    async def scenario(consumer: Consumer) -> None:
        pid = (await consumer.create(number_of_worker)).value
        runner = consumer.engine._workers()
        (worker,) = runner._pool.workers
        os.kill(pid, signal.SIGSTOP)
        await aeventually(lambda: state_of(pid) == "T", "it is stopped")

        def kill_once_told() -> None:
            eventually(worker.unread, "the order is sent")
            runner._supervisor.post(hold, None)
            assert is_held.wait(GRACE)
            kill(pid)

        with Elsewhere(kill_once_told):
            assert await consumer.read(predictor_with("gen", Trouble(journal))) == ["first", "second"]
        assert journal.words == ["start", "finally"]

    Cell("gen", consumer, "process").run(scenario, workers=1, grace=GRACE)


def once_sending(monkeypatch: pytest.MonkeyPatch, action: Callable[[Worker], object]) -> None:
    """Kill the worker that the next call is about to be sent to, and do something before it is."""
    send = Worker.send

    def send_too_late(worker: Worker, chunks: Any) -> bool:
        monkeypatch.setattr(Worker, "send", send)
        worker.signal(signal.SIGKILL)
        assert worker.wait(GRACE)
        action(worker)
        return send(worker, chunks)

    monkeypatch.setattr(Worker, "send", send_too_late)


@pytest.mark.fault(5, 56)
@each_consumer
def test_a_second_reader_waits_until_a_call_whose_worker_died_idle_was_sent_to_another(
    consumer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = Journal(tmp_path / "journal")
    taken: list[list[Any]] = [[], []]
    monkeypatch.setattr(wire_module, "POLL_INTERVAL", 1000.0)  # so that a reader that is not woken hangs

    async def scenario(consumer: Consumer) -> None:
        stream = consumer.open(predictor_with("gen", Trouble(journal, partials=(0, 1, 2, 3)))).stream

        async def aread(mine: list[Any]) -> None:
            mine.extend([value async for value in stream.values()])

        def read(mine: list[Any]) -> None:
            if consumer.cell.is_asyncio:
                asyncio.run(aread(mine), debug=True)  # in which a loop refuses to be woken from another thread
            else:
                mine.extend(stream.values())

        second = Elsewhere(partial(read, taken[1]))

        def let_another_read(worker: Worker) -> None:
            second.__enter__()
            eventually(lambda: worker.inlet is None or worker.inlet.consumers, "the second reader waits")

        await consumer.create(number_of_worker)
        once_sending(monkeypatch, let_another_read)
        with Elsewhere(partial(read, taken[0])):
            pass
        second.join()
        assert stream.outcome.state == "done"

    Cell("gen", consumer, "process").run(scenario, workers=1, grace=GRACE)
    assert sorted(taken[0] + taken[1]) == [0, 1, 2, 3]
    assert [sorted(mine) for mine in taken] == taken
    assert journal.words == ["start", "finally"]


@pytest.mark.fault(5, 51)
@pytest.mark.parametrize("is_noticed", [False, True], ids=["at-once", "noticed-first"])
def test_a_call_that_is_stopped_while_it_is_sent_to_a_worker_that_is_gone_ends_once_and_never_starts(
    is_noticed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = Journal(tmp_path / "journal")
    with Engine(discover=False, workers=1, grace=GRACE) as muna:
        process_of(muna)
        supervisor = muna._workers()._supervisor
        stream = muna.predictions.stream(predictor_with("gen", Trouble(journal)), runner="process")

        def stop(worker: Worker) -> None:
            is_seen_to = threading.Event()
            if is_noticed:
                eventually(lambda: worker not in supervisor._workers, "the warden knows that it is over")
            stream.cancel()
            supervisor.post(lambda _nothing: is_seen_to.set(), None)
            assert is_seen_to.wait(GRACE)

        once_sending(monkeypatch, stop)
        with pytest.raises(PredictionCancelledError):
            next(stream)
        assert list(stream) == []
        assert (stream.outcome.state, journal.words) == ("cancelled", [])
        assert muna.predictions.create(number_of_worker, runner="process").value in child_processes()
        assert muna._workers()._pool.leases == ()


# 78: an event loop and the pipes it watches.


class Registrations(dict[Any, Any]):
    """Which loops watch a worker; does something, once, as soon as one is taken out."""

    def __init__(self, action: Callable[[], None]) -> None:
        super().__init__()
        self._actions = [action]

    def __delitem__(self, loop: Any) -> None:
        super().__delitem__(loop)
        while self._actions:
            self._actions.pop()()


@contextlib.contextmanager
def pipe() -> Iterator[tuple[int, int]]:
    ends = os.pipe()
    try:
        yield ends
    finally:
        for each in ends:
            os.close(each)


async def is_heard(number: int, reader: int, writer: int) -> bool:
    """Whether the running loop hears a pipe once it has this number, which is free."""
    arrived = asyncio.Event()
    os.dup2(reader, number)
    try:
        asyncio.get_running_loop().add_reader(number, arrived.set)
        os.write(writer, b"news")
        await asyncio.wait_for(arrived.wait(), GRACE)
    finally:
        asyncio.get_running_loop().remove_reader(number)
        os.close(number)
    return True


@pytest.mark.fault(5, 78)
def test_an_event_loop_hears_the_worker_that_takes_the_descriptors_of_one_that_went_as_its_call_ended() -> None:
    async def scenario() -> None:
        with pipe() as ends:
            async with Engine(discover=False, workers=1, grace=GRACE) as muna:
                await with_a_worker_that_goes(muna, *ends)

    async def with_a_worker_that_goes(muna: Engine, *ends: int) -> None:
        first = (await muna.predictions.acreate(number_of_worker, runner="process")).value
        supervisor = muna._workers()._supervisor
        (worker,) = muna._workers()._pool.workers
        was = worker.answers

        def lose_it() -> None:
            kill(worker.pid)
            for _ in range(3):  # by then it is noticed, and closed if that can be done
                eventually(lambda: worker not in supervisor._workers, "the warden knows that it is over")
                is_seen_to = threading.Event()
                supervisor.post(lambda _nothing, event=is_seen_to: event.set(), None)
                assert is_seen_to.wait(GRACE)

        worker.registrations = Registrations(lose_it)
        assert (await muna.predictions.acreate(number_of_worker, runner="process")).value == first
        assert worker.answers == -1  # it is closed
        assert await is_heard(was, *ends)
        assert (await muna.predictions.acreate(number_of_worker, runner="process")).value != first

    asyncio.run(scenario())


@pytest.mark.fault(78)
def test_where_an_event_loop_cannot_watch_a_worker_the_call_fails_and_the_next_is_heard(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def scenario() -> None:
        loop = asyncio.get_running_loop()
        add_reader = loop.add_reader

        def no_room(*_arguments: object) -> None:
            monkeypatch.setattr(loop, "add_reader", add_reader)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))  # as where a user watches too much

        async with Engine(discover=False, workers=1, grace=GRACE) as muna:
            monkeypatch.setattr(loop, "add_reader", no_room)
            async with muna.predictions.astream(numbers_after_worker, runner="process") as stream:
                with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
                    await anext(stream)
                assert (await asyncio.wait_for(anext(stream), GRACE)).value in child_processes()

    asyncio.run(scenario())


@pytest.mark.fault(5, 78)
def test_a_worker_that_is_lost_and_closed_while_an_event_loop_begins_to_watch_it_is_that_calls_loss(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    watch = Inlet._watch

    async def scenario() -> None:
        async with Engine(discover=False, workers=1, grace=GRACE) as muna:

            def lose_it(inlet: Inlet, loop: Any) -> None:
                worker: Any = inlet.worker
                if worker is None or not inlet.is_sent:
                    watch(inlet, loop)
                    return
                monkeypatch.setattr(Inlet, "_watch", watch)
                assert worker.registrations == {}

                class Late(dict[Any, Any]):
                    """Takes note of the loop once everything is over."""

                    def get(self, key: Any, default: Any = None) -> Any:
                        kill(worker.pid)
                        eventually(lambda: inlet.end is not None, "the call is lost")
                        eventually(lambda: worker.answers == -1, "the worker is closed")
                        worker.registrations = {}
                        return default

                worker.registrations = Late()
                watch(inlet, loop)

            monkeypatch.setattr(Inlet, "_watch", lose_it)
            with pytest.raises(WorkerLostError):
                await muna.predictions.acreate(worker_bodies.sleeps, runner="process")
            assert (await muna.predictions.acreate(number_of_worker, runner="process")).value in child_processes()

    asyncio.run(scenario())


def burning(kind: str) -> Callable[..., Any]:
    """A predictor that leaves its input where it is let go of once the call is over."""

    def returns(fuse: object) -> str:
        ContextVar[object]("kept").set(fuse)
        return "unharmed"

    def yields(fuse: object) -> Iterator[str]:
        yield returns(fuse)

    async def async_returns(fuse: object) -> str:
        return returns(fuse)

    async def async_yields(fuse: object) -> AsyncIterator[str]:
        yield returns(fuse)

    return {"def": returns, "gen": yields, "async": async_returns, "agen": async_yields}[kind]


@pytest.mark.fault(8)
def test_a_worker_that_ends_in_a_del_after_the_result_was_sent_dies_idle(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with Engine(discover=False, workers=1, grace=GRACE) as muna:
        for kind in KINDS:
            gate = FileGate(tmp_path / kind)
            fuse = worker_bodies.Fuse(os.getpid(), gate)
            assert muna.predictions.create(burning(kind), {"fuse": fuse}, runner="process").value == "unharmed"
            gate.wait()
            eventually(lambda pid=gate.opener: not is_there(pid), "the worker is gone")  # type: ignore[misc]
        assert process_of(muna) in child_processes()
    assert caplog.text == ""


@pytest.mark.fault(8)
def test_a_worker_that_ends_in_the_del_of_an_input_before_the_result_was_sent_is_that_calls_own_loss(
    tmp_path: Path,
) -> None:
    """An input is let go of with its body, and its finaliser is as much a part of the call as a `finally` is."""

    def returns(fuse: object) -> str:
        return "lost"

    gate = FileGate(tmp_path / "gate")
    with Engine(discover=False, workers=1, grace=GRACE) as muna:
        with pytest.raises(WorkerLostError, match="exit code 3"):
            muna.predictions.create(returns, {"fuse": worker_bodies.Fuse(os.getpid(), gate)}, runner="process")
        assert process_of(muna) != gate.opener


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
            assert not any("hear_stops" in each for each in others)
            assert len(error.report) < 10_000
            assert error.report in str(error)
        assert process_of(muna) in child_processes()


# 10, 11: workers that cannot be had.


@pytest.mark.fault(10)
def test_a_predictor_whose_import_ends_the_worker_costs_each_call_one_worker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "deadly_import.py").write_text("import os\nos._exit(3)\n")
    monkeypatch.syspath_prepend(tmp_path)
    with Engine([Predictor("@tests/deadly", "deadly_import:predict")], discover=False, workers=1) as muna:
        started = counted(monkeypatch)
        for calls in range(1, 4):
            with pytest.raises(WorkerLostError, match="exit code 3"):
                muna.predictions.create("@tests/deadly", runner="process")
            assert len(started) == calls
        assert process_of(muna) in child_processes()


@pytest.mark.fault(10)
@pytest.mark.parametrize("is_seen", [False, True], ids=["told-first", "dead-first"])
def test_workers_that_end_as_they_start_are_an_error_of_each_call_and_never_a_loop(
    is_seen: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An interpreter that is broken; its end may be seen before the call is sent, or after."""
    broken = tmp_path / "python"
    broken.write_text("#!/bin/sh\nexit 9\n")
    broken.chmod(0o755)
    with Engine(discover=False, workers=1, grace=GRACE) as muna:
        with monkeypatch.context() as patched:
            patched.setattr(sys, "executable", str(broken))
            started = counted(patched, wait=is_seen)
            for calls in range(1, 4):
                with pytest.raises(EngineError, match="exit code 9"):
                    muna.predictions.create(number_of_worker, runner="process")
                assert len(started) <= 5 * calls
        assert process_of(muna) in child_processes()


def counted(monkeypatch: pytest.MonkeyPatch, *, wait: bool = False) -> list[Worker]:
    """Count the workers that are started; with `wait` each is over before it is used."""
    started: list[Worker] = []

    def start_and_count(*args: Any) -> Worker:
        if len(started) == 50:
            raise AssertionError("workers are started without end")
        worker = start_worker(*args)
        started.append(worker)
        if wait:
            worker.wait(5.0)
        return worker

    monkeypatch.setattr(process, "start_worker", start_and_count)
    return started


@pytest.mark.fault(11)
@each_consumer
def test_a_worker_that_cannot_be_started_fails_its_call_alone_and_leaves_nothing(
    consumer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    predictor = Predictor("@tests/single", number_of_worker, concurrency=1)
    popen = subprocess.Popen

    def no_process(*args: Any, **options: Any) -> Any:
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    async def scenario(consumer: Consumer) -> None:
        left: list[Any] = []
        for _ in range(3):
            with pytest.raises(BlockingIOError):
                await consumer.create(predictor)
            left.append((open_descriptors(), child_processes()))
        assert left[0] == left[1] == left[2]
        monkeypatch.setattr(sys, "executable", "/nonexistent/python")
        monkeypatch.setattr(subprocess, "Popen", popen)
        with pytest.raises(FileNotFoundError, match="nonexistent") as raised:
            await consumer.create(predictor)
        assert "sys.executable" in raised.value.__notes__[0]
        monkeypatch.setattr(sys, "executable", "")
        with pytest.raises(EngineError, match=r"sys\.executable names none"):
            await consumer.create(predictor)
        monkeypatch.undo()
        assert left[2] == (open_descriptors(), child_processes())
        assert (await consumer.create(predictor)).value in child_processes()  # slot and place are free

    monkeypatch.setattr(subprocess, "Popen", no_process)
    Cell("def", consumer, "process").run(scenario, workers=1, grace=GRACE)


@pytest.mark.fault(11)
@each_consumer
def test_a_call_that_waits_while_a_worker_starts_is_served_by_another_that_is_free_first(
    consumer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    is_begun, may_end = threading.Event(), threading.Event()
    pids: list[int] = []

    def fail_late(*_args: Any) -> Worker:
        is_begun.set()
        assert may_end.wait(GRACE)
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    with Engine(discover=False, workers=2, grace=GRACE) as muna:
        pool = muna._workers()._pool

        def call() -> None:
            if consumer == "sync":
                pids.append(process_of(muna))
            else:
                pids.append(asyncio.run(muna.predictions.acreate(number_of_worker, runner="process")).value)

        stream = muna.predictions.stream(numbers_after_worker, runner="process")
        pid = next(stream).value
        with monkeypatch.context() as patched:
            patched.setattr(process, "start_worker", fail_late)
            with Elsewhere(call):
                assert is_begun.wait(GRACE)
                stream.close()
            assert (pids, pool.is_starting) == ([pid], True)
            may_end.set()
            pool.join(GRACE)
        assert [each.pid for each in pool.workers] == [pid]
        stream = muna.predictions.stream(numbers_after_worker, runner="process")
        assert next(stream).value == pid
        assert process_of(muna) in child_processes() - {pid}
        stream.close()


def is_moved_unsent(muna: Engine, monkeypatch: pytest.MonkeyPatch, trouble: Callable[[], None]) -> None:
    """A call finds out that its worker died while idle."""
    process_of(muna)
    once_sending(monkeypatch, lambda _worker: trouble())
    process_of(muna)


def is_moved_unread(muna: Engine, monkeypatch: pytest.MonkeyPatch, trouble: Callable[[], None]) -> None:
    """The supervisor finds out that a worker died before it read its call."""
    pid = process_of(muna)
    (worker,) = muna._workers()._pool.workers
    os.kill(pid, signal.SIGSTOP)
    eventually(lambda: state_of(pid) == "T", "it is stopped")

    def kill_once_told() -> None:
        eventually(worker.unread, "the order is sent")
        trouble()
        kill(pid)

    with Elsewhere(kill_once_told):
        process_of(muna)


def is_described(muna: Engine, monkeypatch: pytest.MonkeyPatch, trouble: Callable[[], None]) -> None:
    trouble()
    muna.predictors.register("@tests/described", "tests.faults.worker_bodies:number_of_worker", runner="process")
    muna.predictions.create("@tests/described")


@pytest.mark.fault(11)
@pytest.mark.parametrize("scenario", [is_moved_unsent, is_moved_unread, is_described])
def test_where_no_worker_can_be_started_for_a_call_under_way_it_fails_and_the_next_works(
    scenario: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    popen = subprocess.Popen

    def no_process(*args: Any, **options: Any) -> Any:
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    with Engine(discover=False, workers=1, grace=GRACE) as muna:
        with pytest.raises(BlockingIOError):
            scenario(muna, monkeypatch, lambda: monkeypatch.setattr(subprocess, "Popen", no_process))
        monkeypatch.setattr(subprocess, "Popen", popen)
        assert (muna._workers()._pool.leases, muna._workers()._pool.workers) == ((), ())
        assert process_of(muna) in child_processes()


# 12: the engine's own process dies.

BUSY = """
import collections, itertools, os, signal, sys, threading, time
from engine import Engine

def turns_in_c():
    yield os.getpid()
    collections.deque(itertools.repeat(None), maxlen=0)

def heeds_nothing():
    signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 65))
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGPIPE, signal.SIGIO):
        signal.signal(number, signal.SIG_IGN)
    yield os.getpid()
    while True:
        try:
            time.sleep(600)
        except BaseException:
            pass

def is_stopped():
    yield os.getpid()
    os.kill(os.getpid(), signal.SIGSTOP)

def number():
    return os.getpid()

BODIES = [turns_in_c, heeds_nothing, is_stopped, turns_in_c]
"""


@pytest.mark.fault(12)
def test_workers_are_gone_within_two_seconds_of_their_engines_death_whatever_they_do(tmp_path: Path) -> None:
    """Each was started by a thread that has ended, and a forked child of the engine's process lives on."""
    script = (
        BUSY
        + """
muna = Engine(discover=False, workers=len(BODIES) + 1)
streams = [muna.predictions.stream(body, runner="process", prefetch=8) for body in BODIES]
pids = []
for stream in streams:
    thread = threading.Thread(target=lambda: pids.append(next(stream).value))
    thread.start()
    thread.join()
pids.append(muna.predictions.create(number, runner="process").value)  # idle
child = os.fork()
if not child:
    time.sleep(600)
print(child, *pids, flush=True)
sys.stdin.readline()
os.kill(os.getpid(), signal.SIGKILL)
"""
    )
    with subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdin is not None
        assert parent.stdout is not None
        child, *pids = map(int, parent.stdout.readline().split())
        try:
            assert len(set(pids)) == 5
            eventually(lambda: state_of(pids[2]) == "T", "one of them is stopped")
            assert [pid for pid in pids if state_of(pid) is None] == []
            parent.stdin.write("now\n")
            parent.stdin.flush()
            assert parent.wait(5.0) == -signal.SIGKILL
            moment = time.monotonic()
            eventually(lambda: all(state_of(pid) is None for pid in pids), "every worker is gone")
            assert time.monotonic() - moment < 2.0
            assert state_of(child) is not None
        finally:
            for pid in (child, *pids):
                with contextlib.suppress(ProcessLookupError):
                    kill(pid)


@pytest.mark.fault(12)
def test_a_worker_outlives_the_thread_that_started_it() -> None:
    with Engine(discover=False, workers=1, grace=GRACE) as muna:
        started: list[int] = []
        with Elsewhere(lambda: started.append(process_of(muna))):
            pass
        for _ in range(3):
            assert process_of(muna) == started[0]


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
        import subprocess
        import sys

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
