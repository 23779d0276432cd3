"""An observer hears of each call that begins, once of its beginning and once of its end, and of no other."""

from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Final

import pytest

from engine import Engine, EngineClosedError, NoPartialsError, PredictionCancelledError, Predictor
from engine._policies.placement import FAST
from engine._records import Outcome
from engine.runners import base
from engine.runners.base import Execution
from engine.runners.deferred import AsyncDeferredExecution, DeferredExecution
from tests._kit.internals import check_runner, close_calls_of, execution_of, executions_of, loaded_of, observe
from tests._kit.waits import TIMEOUT, OtherThread, auntil
from tests.contract.one_place.cases import (
    ASYNC,
    FINALISED,
    GEN,
    GRACE,
    RUNNERS,
    Case,
    Cases,
    Place,
    Witness,
    about,
    each_place,
    new_engine,
    read_all,
    taken,
)
from tests.faults.conftest import END

# An observer hears of each call.


async def reads_to_its_end(case: Case, reading: Any) -> None:
    count, error = await read_all(reading)
    assert (count, error) == (1 if case.place.is_create else case.kind.partials, None)
    case.check_told("done", case.kind.partials, None, reading)


async def reads_nothing(case: Case, reading: Any) -> None:
    count, error = await read_all(reading)
    assert (count, type(error)) == (0, NoPartialsError if case.place.is_create else type(None))
    case.check_told("done", 0, None, reading)


async def reads_a_failure(case: Case, reading: Any) -> None:
    _, error = await read_all(reading)
    assert isinstance(error, ZeroDivisionError)
    case.check_told("failed", case.kind.partials - 1, error, reading)


@each_place(lambda _: True)
def test_a_call_that_is_read_to_its_end_is_told_of_once(cases: Cases, place: Place) -> None:
    for kind in place.kinds:
        with about(kind):
            whole = cases.make(place, kind)
            whole.have()
            whole.run(reads_to_its_end)
            assert whole.journal.words == FINALISED
            if kind.is_yielding:
                empty = cases.make(place, kind)
                empty.have(partials=())
                empty.run(reads_nothing)
            fails = cases.make(place, kind)
            fails.have(lambda: 1 / 0)
            fails.run(reads_a_failure)


async def closes(case: Case, reading: Any) -> None:
    await reading.pull()
    await reading.close()
    case.check_told("closed", 1, None, reading)


async def cancels(case: Case, reading: Any) -> None:
    await reading.pull()
    reading.stream.cancel()
    with pytest.raises(PredictionCancelledError) as caught:
        await reading.pull()
    assert await reading.has_ended("cancelled")
    case.check_told("cancelled", 1, caught.value, reading)


async def drops(case: Case, reading: Any) -> None:
    await reading.pull()
    reading.drop()
    gc.collect()
    await case.check_finalised()
    case.check_told("closed", 1, None)


@pytest.mark.parametrize("leaves", [closes, cancels, drops])
@each_place(lambda place: not place.is_create)
@pytest.mark.filterwarnings("ignore:a stream of .* was abandoned:ResourceWarning")
def test_a_stream_that_is_left_after_a_partial_is_told_of_once(
    cases: Cases, place: Place, leaves: Callable[[Case, Any], Any]
) -> None:
    async def whole(case: Case, reading: Any) -> None:
        await leaves(case, reading)
        await case.check_finalised()

    for kind in place.kinds:
        with about(kind):
            case = cases.make(place, kind)
            case.have()
            case.run(whole)


async def loses_its_task(case: Case, reading: Any, moment: str) -> None:
    count, seen = 0, []

    async def reads() -> None:
        nonlocal count
        try:
            while await reading.pull() is not END:
                count += 1
        except asyncio.CancelledError as error:
            seen.append(error)
            raise

    task = asyncio.ensure_future(reads())
    await auntil(lambda: case.slots.waiting if moment == "slot" else case.at.is_open, "it waits")
    await auntil(lambda: count or moment != "middle" or case.place.is_create, "it has its first partial")
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    case.check_told("cancelled", None if case.place.is_create else count, seen[0], reading)
    case.let_on()
    if moment != "slot":
        await case.check_finalised()


@pytest.mark.parametrize("moment", ["before", "middle", "slot"])
@each_place(lambda place: place.is_asyncio and place.is_another)
def test_a_call_whose_consumers_task_is_cancelled_is_told_of_once(cases: Cases, place: Place, moment: str) -> None:
    for kind in place.kinds_at(moment):
        with about(kind):
            case = cases.make(place, kind)
            if moment == "slot":
                case.have()
                with taken(case.slots):
                    case.run(partial(loses_its_task, moment=moment))
                assert case.journal.words == []
            elif not place.blocks(kind):  # else nothing can cancel the task
                case.have_wait(moment)
                case.run(partial(loses_its_task, moment=moment))


# What never begins.


async def is_never_pulled(case: Case, reading: Any) -> None:
    reading.drop()
    gc.collect()


async def is_closed_before(case: Case, reading: Any) -> None:
    await reading.close()
    assert await reading.has_ended("closed")


async def is_cancelled_before(case: Case, reading: Any) -> None:
    reading.stream.cancel()
    with pytest.raises(PredictionCancelledError):
        await reading.pull()
    assert await reading.has_ended("cancelled")


async def is_pulled_once_its_engine_is_closed(case: Case, reading: Any) -> None:
    if case.place.is_asyncio:
        await case.muna.aclose()
    else:
        case.muna.close()
    with pytest.raises(EngineClosedError):
        await reading.pull()
    assert await reading.has_ended("closed")


@pytest.mark.parametrize(
    "scenario", [is_never_pulled, is_closed_before, is_cancelled_before, is_pulled_once_its_engine_is_closed]
)
@each_place(lambda place: not place.is_create and place.is_another)
def test_a_stream_that_never_began_is_never_told_of(place: Place, scenario: Any, tmp_path: Path) -> None:
    for kind in place.kinds:
        with about(kind), new_engine() as muna:
            case = Cases(muna, tmp_path).make(place, kind)
            case.have()
            case.run(scenario)
            case.check_not_told()


@pytest.mark.parametrize("runner", RUNNERS)
def test_a_call_whose_task_is_cancelled_before_it_begins_is_never_told_of(runner: str | None, tmp_path: Path) -> None:
    async def whole(case: Case) -> None:
        task = asyncio.ensure_future(case.muna.predictions.acreate(case.predictor, runner=runner))
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        coroutine = case.muna.predictions.acreate(case.predictor, runner=runner)
        coroutine.close()

    place = Place("acreate", runner)
    for kind in place.kinds:
        with about(kind), new_engine() as muna:
            case = Cases(muna, tmp_path).make(place, kind)
            case.have()
            asyncio.run(whole(case))
            case.check_not_told()


# Calls that take a shorter way, that begin late, or that end just as they begin.


def plain() -> int:
    return 1


async def plain_later() -> int:
    return 1


@pytest.mark.parametrize(
    "target", [plain, Predictor("@me/plain", plain), "@me/plain"], ids=["function", "record", "tag"]
)
@pytest.mark.parametrize("is_async", [False, True], ids=["create", "acreate"])
@pytest.mark.parametrize("runner", [None, "inline"])
def test_a_call_is_told_of_though_its_way_was_the_shortest_before(
    target: Any, is_async: bool, runner: str | None, muna: Engine
) -> None:
    predictor = Predictor("@me/plain", plain_later if is_async else plain)
    muna.predictors.register(predictor)
    target = target if isinstance(target, str) else predictor if isinstance(target, Predictor) else predictor.target

    def call() -> Any:
        predictions = muna.predictions
        if is_async:
            return asyncio.run(predictions.acreate(target, runner=runner)).value
        return predictions.create(target, runner=runner).value

    assert [call(), call()] == [1, 1]
    if not callable(target):  # the way of that is looked for at each call
        loaded = loaded_of(muna, target)
        assert loaded.is_plain if is_async and runner is None else is_async or loaded.places == {runner: FAST}
    witness, later = Witness(), Witness()
    observe(muna, witness)
    assert call() == 1
    observe(muna, later)
    assert call() == 1
    assert [(each.what, each.state) for each in witness.told] == [("started", "pending"), ("finished", "done")] * 2
    assert [each.what for each in later.told] == ["started", "finished"]


@each_place(lambda place: not place.is_create and place.runner != "process")
def test_an_observer_that_comes_late_hears_nothing_of_a_call_that_had_begun(place: Place, tmp_path: Path) -> None:
    async def whole(case: Case, reading: Any) -> None:
        await reading.pull()
        late = Witness()
        observe(case.muna, late)
        await read_all(reading)
        case.check_told("done", case.kind.partials, None, reading)
        assert late.told == []

    for kind in place.kinds:
        with about(kind), new_engine() as muna:
            case = Cases(muna, tmp_path).make(place, kind)
            case.have()
            case.run(whole)


@pytest.mark.parametrize("how", ["stopped", "engine closed"])
@each_place(lambda place: not place.is_create and place.is_another)
def test_a_stream_that_is_ended_as_its_first_pull_comes_never_begins(
    place: Place, how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`begin` looks at the clock first: that is when another thread comes in."""
    error = TimeoutError("late")

    async def whole(case: Case, reading: Any) -> None:
        execution = execution_of(reading.stream)
        execution = getattr(execution, "_execution", execution)  # a task's is behind what its consumer holds

        def stops() -> None:
            if how == "stopped":
                execution.stop("failed", error)
            else:
                close_calls_of(case.muna)

        def now() -> float:
            monkeypatch.undo()
            with OtherThread(stops):
                return 0.0

        monkeypatch.setattr(base, "perf_counter", now)
        with pytest.raises(TimeoutError if how == "stopped" else EngineClosedError) as caught:
            await reading.pull()
        assert how != "stopped" or caught.value is error
        assert await reading.has_ended("failed" if how == "stopped" else "closed")
        assert reading.outcome.exception is caught.value

    for kind in place.kinds:
        with about(kind), new_engine() as muna:
            check_runner(muna, place.runner)  # else its first call looks for plugins, which takes time, too
            case = Cases(muna, tmp_path).make(place, kind)
            case.have()
            case.run(whole)
            case.check_not_told()


def test_a_stream_that_is_stopped_as_its_loop_ends_was_not_abandoned(tmp_path: Path) -> None:
    has_ended = threading.Event()

    class SlowWitness(Witness):
        def finished(self, execution: Execution, outcome: Outcome) -> None:
            super().finished(execution, outcome)
            assert has_ended.wait(TIMEOUT)

    async def whole(case: Case, reading: Any) -> None:
        assert await reading.pull() is not END
        stopping.start()
        await auntil(lambda: case.witness.told[1:], "it is stopped")

    with new_engine() as muna:
        witness = SlowWitness()
        observe(muna, witness)

        def stop_all() -> None:
            for each in executions_of(muna):
                each.cancel()

        stopping = OtherThread(stop_all)
        case = Case(muna, witness, Place("avalues", None), ASYNC, tmp_path / "case")
        case.have()
        case.run(whole)
        has_ended.set()
        stopping.join()
        case.check_told("cancelled", 1, witness.told[1].exception)
        assert case.journal.words == FINALISED


# Its predictor is told of by a worker, at its first pull.
HOME: Final = "def numbers():\n    yield from (1, 2)"
SLOW_HOME: Final = """
import time
from pathlib import Path

Path(__file__).with_name("at").touch()
while not Path(__file__).with_name("go").exists():
    time.sleep(0.001)

def numbers():
    yield 1
"""


async def is_cancelled_while_it_is_described(case: Case, reading: Any) -> None:
    def cancels() -> None:
        case.at.wait()
        reading.stream.cancel()
        case.go.open()

    with OtherThread(cancels), pytest.raises(PredictionCancelledError):
        await reading.pull()
    assert await reading.has_ended("cancelled")
    case.check_not_told()


@pytest.mark.parametrize("place", [Place("values", None), Place("avalues", None)], ids=str)
def test_a_call_that_is_still_to_be_described_has_not_begun(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def whole(case: Case, reading: Any) -> None:
        assert isinstance(execution_of(reading.stream), DeferredExecution | AsyncDeferredExecution)
        await scenario(case, reading)

    scenarios = [reads_to_its_end, closes, cancels, is_never_pulled, is_closed_before, is_cancelled_before]
    with Engine(discover=False, runner="process", workers=1, grace=GRACE) as muna:
        cases = Cases(muna, tmp_path)
        for number, scenario in enumerate((*scenarios, is_cancelled_while_it_is_described)):
            with about(scenario.__name__):
                case = cases.make(place, GEN)
                home = case.folder / f"home_{place}_{number}.py".replace("-", "_")
                home.write_text(SLOW_HOME if scenario is is_cancelled_while_it_is_described else HOME)
                monkeypatch.syspath_prepend(str(case.folder))
                case.predictor = Predictor(f"@home/numbers-{number}", f"{home.stem}:numbers")
                case.run(whole)
                if scenario in scenarios[3:]:
                    case.check_not_told()
