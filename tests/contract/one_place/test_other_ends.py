"""What else ends a call, or keeps it from beginning."""

from __future__ import annotations

import contextlib
import threading
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from engine import Engine, EngineClosedError, NestingError, PayloadError, WorkerLostError
from engine._predictors.body import Body
from engine.runners import Channel
from engine.runners.base import Execution
from tests._kit.waits import OtherThread, auntil, until
from tests.contract.one_place.cases import (
    ASYNC,
    GEN,
    KINDS,
    PLAIN,
    Case,
    Cases,
    Clock,
    Place,
    Yonder,
    about,
    each_place,
    each_place_at,
    moment_of,
    new_engine,
    read_all,
    taken,
)
from tests.faults.conftest import END
from tests.faults.worker_bodies import is_killed

# What else ends a call, or keeps it from beginning.


async def loses_its_engine(case: Case, reading: Any, moment: str) -> None:
    with contextlib.ExitStack() as stack:
        if moment == "held":
            assert await reading.pull() is not END
            stack.enter_context(OtherThread(case.muna.close))
            await auntil(lambda: case.witness.told[1:], "the engine closes")
        with pytest.raises(EngineClosedError) as caught:
            await reading.pull()
        assert await reading.has_ended("closed")
        case.check_told("closed", None if case.place.is_create else int(moment == "held"), caught.value, reading)
        await case.check_finalised()


def close_in_the_middle(case: Case, execution: Execution) -> None:
    """Close the engine from another thread, and let the body on once its call has heard of that."""
    with OtherThread(case.muna.close):
        until(lambda: execution.call.stopping, "the engine closes")
        case.let_on()


@each_place_at("before", "held")
def test_a_call_whose_engine_is_closed_meanwhile_is_told_of_once(place: Place, moment: str, tmp_path: Path) -> None:
    for kind in place.kinds if place.runner != "process" else (GEN,):
        with about(kind), new_engine() as muna:
            case = Cases(muna, tmp_path).make(place, kind)
            clock = Clock(moment_of(case, moment), partial(close_in_the_middle, case))
            if moment == "before":
                case.have_wait(moment)
                case.witness.on_start = clock.wind_up
            else:
                case.have()
            case.run(partial(loses_its_engine, moment=moment))
            clock.join()


async def fails_to_start(case: Case, reading: Any, error: type[Exception]) -> None:
    with pytest.raises(error) as caught:
        await reading.pull()
    assert await reading.has_ended("failed")
    case.check_told("failed", 0, caught.value, reading)
    assert case.journal.words == []


@each_place()
def test_a_call_that_would_wait_for_its_own_caller_is_told_of_once(cases: Cases, place: Place) -> None:
    for kind in place.kinds:
        with about(kind):
            case = cases.make(place, kind)
            case.have()
            with taken(case.slots, is_inside=True):
                case.run(partial(fails_to_start, error=NestingError))


@each_place(lambda place: place.runner == "elsewhere")
def test_a_call_that_its_runner_cannot_start_is_told_of_once(place: Place, tmp_path: Path) -> None:
    class Broken(Yonder):
        def start(self, body: Body, channel: Channel) -> None:
            raise LookupError("no thread")

    with Engine(discover=False, plugins=[Broken()]) as muna:
        cases = Cases(muna, tmp_path)
        for kind in place.kinds:
            with about(kind):
                case = cases.make(place, kind)
                case.have()
                case.run(partial(fails_to_start, error=LookupError))


@each_place(lambda place: place.runner == "process")
def test_a_call_that_cannot_travel_is_told_of_once(cases: Cases, place: Place) -> None:
    lock = threading.Lock()
    for kind in PLAIN:
        with about(kind):
            case = cases.make(place, kind)
            case.have(lambda: lock)
            case.run(partial(fails_to_start, error=PayloadError))


@each_place(lambda place: place.runner == "inline" and not place.is_asyncio)
def test_what_sync_code_cannot_run_inline_is_refused_before_or_told_of_once(cases: Cases, place: Place) -> None:
    async def whole(case: Case, reading: Any) -> None:
        try:
            await reading.pull()
        finally:
            seen.append(reading)

    for kind in filter(place.refuses, KINDS):
        with about(kind):
            seen: list[Any] = []
            case = cases.make(place, kind)
            case.have()
            with pytest.raises(ValueError, match="inline in sync code") as caught:
                case.run(whole)
            if case.witness.told:
                case.check_told("failed", 0, caught.value, *seen)
            assert bool(case.witness.told) is not kind.is_async


@each_place(lambda place: place.runner == "process" and place.is_another)
def test_a_call_whose_worker_is_killed_is_told_of_once(place: Place, tmp_path: Path) -> None:
    async def whole(case: Case, reading: Any) -> None:
        count, error = await read_all(reading)
        assert isinstance(error, WorkerLostError)
        case.check_told("failed", None if place.is_create else count, error, reading)

    with new_engine() as muna:
        cases = Cases(muna, tmp_path)
        for kind in (GEN, ASYNC):
            with about(kind):
                case = cases.make(place, kind)
                case.have(is_killed)
                case.run(whole)
