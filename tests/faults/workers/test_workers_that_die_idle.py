"""Workers that die while they serve no call, and the event loops that watch their pipes."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import signal
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextvars import ContextVar
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from engine import Engine, PredictionCancelledError, WorkerLostError
from engine.runners import parking as _parking
from engine.runners.process import reader as reader_module
from engine.runners.process.inlet import Inlet
from engine.runners.process.supervisor import Supervisor
from engine.runners.process.worker import Worker
from tests._kit.gates import FileGate, Journal
from tests._kit.internals import (
    WATCH_OF_A_LOOP,
    leases_of,
    supervised_by,
    supervisor_of,
    thread_of,
    worker_of,
)
from tests._kit.processes import child_processes, is_child, state_of
from tests._kit.waits import OtherThread, auntil, until
from tests.faults import worker_bodies
from tests.faults.conftest import Cell
from tests.faults.worker_bodies import KINDS, Trouble, number_of_worker, numbers_after_worker, predictor_with
from tests.faults.workers.losses import GRACE, each_consumer, kill, once_sending, process_of

if TYPE_CHECKING:
    from tests.faults.conftest import Consumer


# 5, 8: dead while no call needs it.


@pytest.mark.fault(5, 15)
def test_a_worker_that_died_while_idle_is_replaced_and_no_caller_hears_of_it(caplog: pytest.LogCaptureFixture) -> None:
    with Engine(discover=False, workers=1, grace=GRACE) as muna:
        seen = [process_of(muna)]
        for is_over in (lambda pid: not is_child(pid), lambda pid: state_of(pid) is None):  # noticed by then, or not
            kill(seen[-1])
            until(lambda is_over=is_over: is_over(seen[-1]), "it is over")  # type: ignore[misc]
            seen.append(process_of(muna))
        assert len(set(seen)) == len(seen)
        until(lambda: not is_child(seen[1]), "it is reaped")
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
        worker = worker_of(consumer.engine)
        os.kill(pid, signal.SIGSTOP)
        await auntil(lambda: state_of(pid) == "T", "it is stopped")

        def kill_once_told() -> None:
            until(worker.unread, "the order is sent")
            kill(pid)

        with OtherThread(kill_once_told):
            assert await consumer.read(predictor_with("gen", Trouble(journal))) == ["first", "second"]
        assert journal.words == ["start", "finally"]
        assert (await consumer.create(number_of_worker)).value != pid

    Cell("gen", consumer, "process").run(scenario, workers=1, grace=GRACE)


@pytest.mark.fault(5)
@each_consumer
def test_a_worker_that_is_replaced_before_its_reader_has_looked_up_leaves_no_reader_waiting_for_it(
    consumer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The supervisor may be faster than the thread that found the pipe closed and told it so."""
    journal = Journal(tmp_path / "journal")
    escalate = Supervisor.escalate

    def escalate_at_once(supervisor: Supervisor, inlet: Inlet) -> None:
        escalate(supervisor, inlet)
        # Else the supervisor was the one that found it closed.
        if threading.current_thread() is not thread_of(supervisor):
            until(lambda: inlet.is_sent and not inlet.is_disconnected, "the call is sent to another worker")

    monkeypatch.setattr(Supervisor, "escalate", escalate_at_once)

    async def scenario(consumer: Consumer) -> None:
        pid = (await consumer.create(number_of_worker)).value
        worker = worker_of(consumer.engine)
        os.kill(pid, signal.SIGSTOP)
        await auntil(lambda: state_of(pid) == "T", "it is stopped")

        def kill_once_told() -> None:
            until(worker.unread, "the order is sent")
            kill(pid)

        with OtherThread(kill_once_told):
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
    park_thread, watch = _parking.park_thread, WATCH_OF_A_LOOP.now

    def hold(_nothing: None) -> None:
        """The supervisor sees to nothing until the reader is about to sleep."""
        is_held.set()
        is_at_rest.wait(GRACE)

    def let_it_be_replaced(inlet: Inlet) -> None:
        if inlet.is_disconnected:
            is_at_rest.set()
            until(lambda: inlet.is_sent and not inlet.is_disconnected, "the call is sent to another worker")

    def park_late(parked: Any, is_news: Any, seconds: float, ready: Any = None) -> None:
        inlet = getattr(is_news, "__self__", None)
        if isinstance(inlet, Inlet):
            let_it_be_replaced(inlet)
        park_thread(parked, is_news, seconds, ready)

    def watch_early(inlet: Inlet, loop: Any) -> None:
        watch(inlet, loop)
        let_it_be_replaced(inlet)

    monkeypatch.setattr(reader_module, "POLL_INTERVAL", 1000.0)  # so that a reader that is not woken hangs
    monkeypatch.setattr(reader_module, "park_thread", park_late)
    WATCH_OF_A_LOOP.replace(monkeypatch, watch_early)

    async def scenario(consumer: Consumer) -> None:
        pid = (await consumer.create(number_of_worker)).value
        worker = worker_of(consumer.engine)
        os.kill(pid, signal.SIGSTOP)
        await auntil(lambda: state_of(pid) == "T", "it is stopped")

        def kill_once_told() -> None:
            until(worker.unread, "the order is sent")
            supervisor_of(consumer.engine).post(hold, None)
            assert is_held.wait(GRACE)
            kill(pid)

        with OtherThread(kill_once_told):
            assert await consumer.read(predictor_with("gen", Trouble(journal))) == ["first", "second"]
        assert journal.words == ["start", "finally"]

    Cell("gen", consumer, "process").run(scenario, workers=1, grace=GRACE)


@pytest.mark.fault(5, 56)
@each_consumer
def test_a_second_reader_waits_until_a_call_whose_worker_died_idle_was_sent_to_another(
    consumer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = Journal(tmp_path / "journal")
    taken: list[list[Any]] = [[], []]
    monkeypatch.setattr(reader_module, "POLL_INTERVAL", 1000.0)  # so that a reader that is not woken hangs

    async def scenario(consumer: Consumer) -> None:
        stream = consumer.open(predictor_with("gen", Trouble(journal, partials=(0, 1, 2, 3)))).stream

        async def aread(mine: list[Any]) -> None:
            mine.extend([value async for value in stream.values()])

        def read(mine: list[Any]) -> None:
            if consumer.cell.is_asyncio:
                asyncio.run(aread(mine), debug=True)  # in which a loop refuses to be woken from another thread
            else:
                mine.extend(stream.values())

        second = OtherThread(partial(read, taken[1]))

        def let_another_read(worker: Worker) -> None:
            second.start()
            until(lambda: worker.inlet is None or worker.inlet.consumers, "the second reader waits")

        await consumer.create(number_of_worker)
        once_sending(monkeypatch, let_another_read)
        with OtherThread(partial(read, taken[0])):
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
        supervisor = supervisor_of(muna)
        stream = muna.predictions.stream(predictor_with("gen", Trouble(journal)), runner="process")

        def stop(worker: Worker) -> None:
            is_seen_to = threading.Event()
            if is_noticed:
                until(lambda: worker not in supervised_by(supervisor), "the supervisor knows that it is over")
            stream.cancel()
            supervisor.post(lambda _nothing: is_seen_to.set(), None)
            assert is_seen_to.wait(GRACE)

        once_sending(monkeypatch, stop)
        with pytest.raises(PredictionCancelledError):
            next(stream)
        assert list(stream) == []
        assert (stream.outcome.state, journal.words) == ("cancelled", [])
        assert muna.predictions.create(number_of_worker, runner="process").value in child_processes()
        assert leases_of(muna) == ()


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
        supervisor = supervisor_of(muna)
        worker = worker_of(muna)
        was = worker.answers

        def lose_it() -> None:
            kill(worker.pid)
            for _ in range(3):  # by then it is noticed, and closed if that can be done
                until(lambda: worker not in supervised_by(supervisor), "the supervisor knows that it is over")
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
    watch = WATCH_OF_A_LOOP.now

    async def scenario() -> None:
        async with Engine(discover=False, workers=1, grace=GRACE) as muna:

            def lose_it(inlet: Inlet, loop: Any) -> None:
                worker: Any = inlet.worker
                if worker is None or not inlet.is_sent:
                    watch(inlet, loop)
                    return
                WATCH_OF_A_LOOP.replace(monkeypatch, watch)
                assert worker.registrations == {}

                class Late(dict[Any, Any]):
                    """Takes note of the loop once everything is over."""

                    def get(self, key: Any, default: Any = None) -> Any:
                        kill(worker.pid)
                        until(lambda: inlet.end is not None, "the call is lost")
                        until(lambda: worker.answers == -1, "the worker is closed")
                        worker.registrations = {}
                        return default

                worker.registrations = Late()
                watch(inlet, loop)

            WATCH_OF_A_LOOP.replace(monkeypatch, lose_it)
            with pytest.raises(WorkerLostError):
                await muna.predictions.acreate(worker_bodies.sleeps, runner="process")
            assert (await muna.predictions.acreate(number_of_worker, runner="process")).value in child_processes()

    asyncio.run(scenario())


def burning(kind: str) -> Callable[..., Any]:
    """A predictor that leaves its input where it is freed once the call is over."""

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
            until(lambda pid=gate.opener: not is_child(pid), "the worker is gone")  # type: ignore[misc]
        assert process_of(muna) in child_processes()
    assert caplog.text == ""


@pytest.mark.fault(8)
def test_a_worker_that_ends_in_the_del_of_an_input_before_the_result_was_sent_is_that_calls_own_loss(
    tmp_path: Path,
) -> None:
    """An input is freed with its body, and its finaliser is as much a part of the call as a `finally` is."""

    def returns(fuse: object) -> str:
        return "lost"

    gate = FileGate(tmp_path / "gate")
    with Engine(discover=False, workers=1, grace=GRACE) as muna:
        with pytest.raises(WorkerLostError, match="exit code 3"):
            muna.predictions.create(returns, {"fuse": worker_bodies.Fuse(os.getpid(), gate)}, runner="process")
        assert process_of(muna) != gate.opener
