"""Bodies that are stuck in a worker, and the ladder: asked, terminated, killed."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import signal
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import pytest

from engine import Engine, EngineClosedError, PredictionCancelledError
from tests._kit.gates import FileGate, Journal
from tests._kit.internals import worker_of
from tests._kit.processes import is_child
from tests._kit.waits import OtherThread, auntil, until
from tests.faults import worker_bodies
from tests.faults.conftest import Cell, Consumer
from tests.faults.stopping import is_cancelled
from tests.faults.worker_bodies import Trouble, number_of_worker, numbers_after_worker, predictor_with
from tests.faults.workers.stopping import (
    GRACE,
    SLACK,
    announced,
    each_cell,
    each_consumer,
    run,
    rung_of,
    serving,
    when,
)

if TYPE_CHECKING:
    from engine._records import Outcome


class Neighbour:
    """A stream on another worker of the same engine, which must lose nothing whatever happens beside it."""

    def __init__(self, muna: Engine) -> None:
        self._stream = muna.predictions.stream(numbers_after_worker, runner="process")
        self._values = self._stream.values()
        self.pid = next(self._values)
        self._numbers = itertools.count()

    def goes_on(self) -> bool:
        for number in itertools.islice(self._numbers, 50):
            assert next(self._values) == number
        return True

    def close(self) -> None:
        self._stream.close()
        assert self._stream.outcome.rung == "asked"


# 46, 47, 48: stuck bodies, and the ladder.


@attrs.frozen
class Stuck:
    """A way to be stuck, the rung that ends it, and two ways to leave it: (kind of body, what its consumer does)."""

    strike: Callable[[], None]
    rung: str
    ways: tuple[tuple[str, str], tuple[str, str]]

    def __str__(self) -> str:
        return self.strike.__name__


RUNGS = ("asked", "terminated", "killed")
STUCK = [
    Stuck(worker_bodies.sleeps, "terminated", (("def", "cancel"), ("agen", "aclose"))),
    Stuck(worker_bodies.waits_for_a_lock, "terminated", (("gen", "drop"), ("async", "task"))),
    Stuck(worker_bodies.spins, "terminated", (("agen", "close"), ("gen", "task"))),
    Stuck(worker_bodies.turns_in_c, "killed", (("async", "cancel"), ("gen", "aclose"))),
    Stuck(worker_bodies.swallows, "killed", (("agen", "drop"), ("def", "task"))),
    Stuck(worker_bodies.ignores_sigterm, "killed", (("gen", "close"), ("async", "aclose"))),
    Stuck(worker_bodies.is_stopped, "killed", (("gen", "drop"), ("agen", "task"))),
]


def stop_in_thread(muna: Engine, predictor: Callable[[], Any], stuck: FileGate, how: str) -> tuple[Outcome, float]:
    """Be a sync consumer that stops, by `close` or `cancel` from another thread, a body it waits for."""
    stream = muna.predictions.stream(predictor, runner="process", prefetch=0)
    moments: list[float] = []

    def stop() -> None:
        moments.append(time.monotonic())
        getattr(stream, how)()

    with OtherThread(when(stuck, stop)):
        if how == "cancel":
            with pytest.raises(PredictionCancelledError):
                list(stream)
        else:
            list(stream)
        assert list(stream) == []
    assert stream.outcome.state == {"cancel": "cancelled", "close": "closed"}[how]
    return stream.outcome, moments[0]


def stop_by_dropping(muna: Engine, predictor: Callable[[], Any], stuck: FileGate) -> tuple[Outcome, float]:
    """Be a sync consumer that forgets about a body between two of its partials."""
    stream = muna.predictions.stream(predictor, runner="process", prefetch=8)
    next(stream)
    stuck.wait()
    outcome = stream.outcome
    moment = time.monotonic()
    with pytest.warns(ResourceWarning, match="was abandoned after 1 partial;"):
        del stream
    assert outcome.state == "closed"
    return outcome, moment


def stop_in_task(muna: Engine, predictor: Callable[[], Any], stuck: FileGate, how: str) -> tuple[Outcome, float]:
    """Be an asyncio consumer whose task is cancelled, or whose stream is closed by another task."""

    async def scenario() -> tuple[Outcome, float]:
        stream = muna.predictions.astream(predictor, runner="process", prefetch=0)

        async def read() -> None:
            async for _ in stream:
                pass

        reading = asyncio.create_task(read())
        await auntil(lambda: stuck.is_open, "the body is stuck")
        moment = time.monotonic()
        if how == "aclose":
            await stream.aclose()
            await reading
        else:
            reading.cancel()
            with pytest.raises(asyncio.CancelledError):
                await reading
        assert [item async for item in stream] == []
        assert stream.outcome.state == {"aclose": "closed", "task": "cancelled"}[how]
        return stream.outcome, moment

    return asyncio.run(scenario())


WAYS: dict[str, Callable[[Engine, Callable[[], Any], FileGate], tuple[Outcome, float]]] = {
    "close": partial(stop_in_thread, how="close"),
    "cancel": partial(stop_in_thread, how="cancel"),
    "drop": stop_by_dropping,
    "aclose": partial(stop_in_task, how="aclose"),
    "task": partial(stop_in_task, how="task"),
}


@pytest.mark.fault(14, 46, 47, 48, 54, 57)
@pytest.mark.parametrize("stuck", STUCK, ids=str)
def test_a_stuck_body_is_gone_within_twice_the_grace_and_costs_its_neighbour_nothing(
    stuck: Stuck, tmp_path: Path
) -> None:
    seen: set[int] = set()
    with Engine(discover=False, workers=2, grace=GRACE) as muna:
        neighbour = Neighbour(muna)
        for kind, how in stuck.ways:
            gate, journal = FileGate(tmp_path / f"{how}.gate"), Journal(tmp_path / f"{how}.journal")
            place = "middle" if kind in {"gen", "agen"} else "before"
            predictor = predictor_with(kind, Trouble(journal, announced(gate, stuck.strike), place))
            outcome, moment = WAYS[how](muna, predictor, gate)
            assert neighbour.goes_on()
            until(lambda pid=gate.opener: not is_child(pid), f"the worker is gone after {how}")  # type: ignore[misc]
            seconds = time.monotonic() - moment
            until(lambda outcome=outcome: outcome.rung, "the rung is told")  # type: ignore[misc]
            assert outcome.rung == stuck.rung, how
            assert GRACE * RUNGS.index(stuck.rung) <= seconds < 2 * GRACE + SLACK
            assert journal.words == ["start", "finally"][: 2 if stuck.rung == "terminated" else 1]
            assert gate.opener not in seen  # the one before was replaced
            seen.add(gate.opener)
        assert neighbour.goes_on()
        neighbour.close()


class SleepsThere:
    """A value that takes for ever to be rebuilt, or to be taken apart, in a worker.

    Attributes:
        gate: is opened just before.
        is_made_there: whether it is made in the worker, so that it is taken apart there.
    """

    def __init__(self, gate: FileGate, *, is_made_there: bool) -> None:
        self.gate = gate
        self.is_made_there = is_made_there

    def __reduce__(self) -> tuple[Any, ...]:
        if self.is_made_there:
            worker_bodies.opens_and_sleeps(self.gate)
        return worker_bodies.opens_and_sleeps, (self.gate,)


@pytest.mark.fault(46, 47)
@pytest.mark.parametrize("place", ["input", "setup", "partial"])
def test_a_call_that_is_stuck_around_its_body_is_stopped_like_any(place: str, tmp_path: Path) -> None:
    gate, journal = FileGate(tmp_path / "gate"), Journal(tmp_path / "journal")

    class Model:
        def setup(self) -> None:
            if not gate.is_open:
                worker_bodies.opens_and_sleeps(gate)

        def predict(self, given: Any) -> str:
            return "set up"

    def yields(given: Any) -> Iterator[Any]:
        try:
            yield SleepsThere(gate, is_made_there=True) if place == "partial" else given
        finally:
            journal.note("finally")

    predictor: Any = Model if place == "setup" else yields
    given = SleepsThere(gate, is_made_there=False) if place == "input" else None
    with Engine(discover=False, workers=1, grace=GRACE) as muna:
        stream = muna.predictions.stream(predictor, {"given": given}, runner="process")
        with OtherThread(when(gate, stream.cancel)), pytest.raises(PredictionCancelledError):
            next(stream)
        if place != "partial":
            prediction = muna.predictions.create(predictor, {"given": "next"}, runner="process")
            assert prediction.value == ("set up" if place == "setup" else "next")
        assert muna.predictions.create(number_of_worker, runner="process").value != gate.opener
        assert stream.outcome.rung == "terminated"
        assert journal.words == {"input": ["finally"], "setup": [], "partial": ["finally"]}[place]


@pytest.mark.fault(14)
def test_a_worker_that_is_stopped_while_idle_is_killed_when_a_call_or_its_engine_would_wait_for_it(
    tmp_path: Path,
) -> None:
    journal = Journal(tmp_path / "journal")
    with Engine(discover=False, workers=1, grace=GRACE) as muna:
        pid = muna.predictions.create(number_of_worker, runner="process").value
        os.kill(pid, signal.SIGSTOP)
        stream = muna.predictions.stream(predictor_with("gen", Trouble(journal)), runner="process")
        worker = worker_of(muna)

        def cancel_once_told() -> None:
            until(worker.unread, "the order is sent")
            stream.cancel()

        with OtherThread(cancel_once_told), pytest.raises(PredictionCancelledError):
            next(stream)
        replaced = muna.predictions.create(number_of_worker, runner="process").value
        assert replaced != pid
        assert stream.outcome.rung == "killed"
        assert journal.words == []  # a call that was stopped is not served elsewhere either
        os.kill(replaced, signal.SIGSTOP)
        moment = time.monotonic()
    assert time.monotonic() - moment < 2 * GRACE + SLACK
    assert not is_child(replaced)


@pytest.mark.fault(46, 47, 48)
def test_closing_an_engine_ends_every_stuck_worker_within_twice_the_grace(tmp_path: Path) -> None:
    strikes = (worker_bodies.turns_in_c, worker_bodies.swallows, worker_bodies.is_stopped)
    gates = [FileGate(tmp_path / strike.__name__) for strike in strikes]
    muna = Engine(discover=False, workers=3, grace=GRACE)
    streams = [
        muna.predictions.stream(
            predictor_with("gen", Trouble(Journal(tmp_path / "journal"), announced(gate, strike), "middle")),
            runner="process",
            prefetch=8,
        )
        for gate, strike in zip(gates, strikes, strict=True)
    ]
    for stream, gate in zip(streams, gates, strict=True):
        next(stream)
        gate.wait()
    moment = time.monotonic()
    muna.close()
    assert time.monotonic() - moment < 2 * GRACE + SLACK
    assert not any(is_child(gate.opener) for gate in gates)
    for stream in streams:
        with pytest.raises(EngineClosedError):
            next(stream)
        assert list(stream) == []
        assert (stream.outcome.state, stream.outcome.rung) == ("closed", "killed")


@pytest.mark.fault(48)
@each_consumer
def test_an_async_body_is_cancelled_by_the_request_and_by_sigterm_and_killed_if_it_swallows_both(
    cell: Cell, tmp_path: Path
) -> None:
    def swallowing(times: int, gate: FileGate) -> Callable[[], Any]:
        async def waits() -> None:
            gate.open()
            for _ in range(times):
                with contextlib.suppress(BaseException):
                    await worker_bodies.rests()
            await worker_bodies.rests()

        return waits

    async def scenario(consumer: Consumer) -> None:
        for times, rung in enumerate(RUNGS):
            gate = FileGate(tmp_path / rung)
            reader = consumer.open(swallowing(times, gate))
            with OtherThread(when(gate, reader.stream.cancel)):
                assert await is_cancelled(reader)
            assert (await serving(consumer) == gate.opener) == (rung == "asked")
            assert reader.outcome.rung == rung

    cell.run(scenario, grace=GRACE, workers=1)


@pytest.mark.fault(47)
@each_cell
def test_a_consumer_leaves_a_stuck_body_at_once_and_its_worker_serves_on_once_it_is_free(
    cell: Cell, tmp_path: Path, lasting: Engine
) -> None:
    reached, go, journal = FileGate(tmp_path / "reached"), FileGate(tmp_path / "go"), Journal(tmp_path / "journal")
    predictor = predictor_with(cell.kind, Trouble(journal, announced(reached, go.wait)))

    async def scenario(consumer: Consumer) -> None:
        reader = consumer.open(predictor)
        with OtherThread(when(reached, reader.stream.cancel)):
            assert await is_cancelled(reader)
        assert journal.words == ["start"]  # the body is where it was, and its consumer is gone
        assert rung_of(reader) is None
        with OtherThread(go.open):
            assert await serving(consumer) == reached.opener
        assert reader.outcome.rung == "asked"
        assert journal.words == ["start", "finally"]

    run(cell, scenario, lasting)
