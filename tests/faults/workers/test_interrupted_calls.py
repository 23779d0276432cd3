"""What a call leaves behind that is interrupted as it is sent, described, or stopped by its runner."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from engine import Engine, NestingError, PredictionCancelledError
from engine.runners.process import inlet as inlet_module
from engine.runners.process.inlet import Inlet
from engine.runners.process.worker import Worker
from tests._kit.gates import FileGate, Journal
from tests._kit.internals import FRAME_OF_A_CALL, executions_of, leases_of, process_runner_of
from tests._kit.waits import TIMEOUT, OtherThread, until
from tests.faults.awkward_values import gives_back
from tests.faults.worker_bodies import number_of_worker, numbers_after_worker
from tests.faults.workers.stopping import LONG

# What the interruption of a call leaves behind.


class _Interrupted(BaseException):
    """Stands for a Ctrl-C at a chosen moment, which no test runner takes for its own."""


@pytest.mark.fault(108)
@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize("kind", ["create", "stream"])
def test_a_call_interrupted_while_it_is_sent_leaves_its_worker_to_the_next(
    kind: str, moment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    send = Worker.send

    def sends(worker: Worker, chunks: Any) -> bool:
        if moment == "after":
            send(worker, chunks)
        monkeypatch.undo()
        raise _Interrupted

    with Engine(discover=False, workers=1, grace=0.3) as muna:
        assert muna.predictions.create(number_of_worker, runner="process").value > 0
        stream = muna.predictions.stream(number_of_worker, runner="process")
        monkeypatch.setattr(Worker, "send", sends)
        call = partial(muna.predictions.create, number_of_worker, runner="process")
        with pytest.raises(_Interrupted):
            call() if kind == "create" else next(stream)
        stream.close()
        assert muna.predictions.create(number_of_worker, runner="process").value > 0
        assert executions_of(muna) == ()


@pytest.mark.fault(108)
@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize("kind", ["acreate", "astream"])
def test_a_large_call_interrupted_as_a_thread_begins_to_send_it_keeps_its_worker_until_that_is_over(
    kind: str, moment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    reached, go_on, late = threading.Event(), threading.Event(), list[Callable[[], None]]()
    make_frame = FRAME_OF_A_CALL.now
    inputs = {"value": [bytes(1 << 16)] * 8 + [bytearray(1 << 20)]}

    def frame(*facts: Any) -> Any:
        if threading.current_thread() is not threading.main_thread():
            reached.set()
            assert go_on.wait(LONG)
        return make_frame(*facts)

    async def call(muna: Engine) -> None:
        if kind == "acreate":
            await muna.predictions.acreate(gives_back, inputs, runner="process")
        else:
            await anext(muna.predictions.astream(gives_back, inputs, runner="process"))

    with Engine(discover=False, workers=1, grace=LONG) as muna:
        number = muna.predictions.create(number_of_worker, runner="process").value
        runner = process_runner_of(muna)
        offload = runner.offload

        def interrupted(channel: Any, work: Callable[[], None]) -> None:
            if not isinstance(channel, Inlet):
                return offload(channel, work)
            if moment == "after":
                offload(channel, work)
                assert reached.wait(LONG)
            else:
                late.append(work)
            raise _Interrupted

        FRAME_OF_A_CALL.replace(monkeypatch, frame)
        monkeypatch.setattr(runner, "offload", interrupted)
        with pytest.raises(_Interrupted):
            asyncio.run(call(muna))
        assert bool(leases_of(muna)) is (moment == "after")
        go_on.set()
        for work in late:
            work()
        assert muna.predictions.create(number_of_worker, runner="process").value == number
        assert (leases_of(muna), executions_of(muna)) == ((), ())


@pytest.mark.fault(97)
def test_a_description_or_load_from_asyncio_that_would_wait_for_its_own_tasks_stream_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "described_late.py").write_text("def late(): return 1\n")
    monkeypatch.syspath_prepend(str(tmp_path))

    async def main() -> None:
        async with Engine(discover=False, workers=1) as muna:
            muna.predictors.register("@me/late", "described_late:late")
            async with muna.predictions.astream(numbers_after_worker, runner="process") as stream:
                await anext(stream)
                with pytest.raises(NestingError):
                    await muna.predictions.acreate("@me/late", runner="process")
                with pytest.raises(NestingError):
                    await muna.aload(number_of_worker, runner="process")
            assert (await muna.predictions.acreate("@me/late", runner="process")).value == 1

    asyncio.run(main())


@pytest.mark.fault(46)
def test_sigterm_reaches_a_body_that_waits_in_an_engine_of_its_own(tmp_path: Path) -> None:
    gate = FileGate(tmp_path / "reached")
    journal = Journal(tmp_path / "journal")

    def waits() -> Any:
        def sleeps() -> None:
            gate.open()
            time.sleep(60)

        inner = Engine(discover=False, grace=0.1)
        try:
            return inner.predictions.create(sleeps, runner="thread").value
        finally:
            journal.note("finally")

    with Engine(discover=False, workers=1, grace=1.0) as muna:
        stream = muna.predictions.stream(waits, runner="process")

        def close() -> None:
            gate.wait()
            stream.close()

        closer = threading.Thread(target=close)
        closer.start()
        assert list(stream) == []
        closer.join(10)
        assert (stream.outcome.rung, journal.words) == ("terminated", ["finally"])


@pytest.mark.fault(51)
def test_a_stream_that_is_stopped_while_it_is_described_ends_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reached, go = FileGate(tmp_path / "reached"), FileGate(tmp_path / "go")
    source = f"""
import time
from pathlib import Path
Path({str(reached.path)!r}).touch()
while not Path({str(go.path)!r}).exists():
    time.sleep(0.001)
def late():
    yield from (1, 2, 3)
"""
    (tmp_path / "described_slowly.py").write_text(source)
    monkeypatch.syspath_prepend(str(tmp_path))
    for stop, ended in (("cancel", PredictionCancelledError), ("close", None)):
        for gate in (reached, go):
            gate.path.unlink(missing_ok=True)
        with Engine(discover=False, workers=1) as muna:
            muna.predictors.register("@me/late", "described_slowly:late")
            stream = muna.predictions.stream("@me/late", runner="process")
            told: list[Any] = []

            def read(stream: Any = stream, told: list[Any] = told) -> None:
                try:
                    told.extend(stream.values())
                except PredictionCancelledError as error:
                    told.append(type(error))

            reader = threading.Thread(target=read)
            reader.start()
            reached.wait()
            getattr(stream, stop)()
            go.open()
            reader.join(10)
            assert told == ([] if ended is None else [ended])
            assert stream.outcome.state == ("closed" if ended is None else "cancelled")


@pytest.mark.parametrize("is_async", [False, True], ids=["thread", "task"])
def test_a_reader_of_a_call_that_its_runner_stopped_hears_of_a_cancellation_at_once(
    is_async: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It waits for what its worker still says, which may be long in coming."""
    monkeypatch.setattr(inlet_module, "POLL_INTERVAL", 10 * TIMEOUT)
    dispatcher: Any = object()
    inlet = Inlet(None, "@tests/stopped", dispatcher)
    inlet.request_stop()
    with OtherThread(lambda: asyncio.run(inlet.wait_task()) if is_async else inlet.wait()):
        until(lambda: inlet.end_waiters, "the reader waits")
        assert inlet.claim("cancelled")
        inlet.is_over = True
        inlet.request_stop()
