"""A clock that is wound up where a call begins ends it in time, wherever it is by then."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import copy_context
from typing import Any, Final

import pytest

from engine import Call, PredictionCancelledError
from engine._predictors.body import Body
from engine.runners.base import Execution
from engine.runners.process.pool import Pool
from engine.runners.process.queue import Need
from tests._kit.internals import pool_of
from tests._kit.waits import OtherThread, auntil
from tests.contract.one_place.cases import (
    ASYNC,
    DEF,
    FINALISED,
    GEN,
    Case,
    Cases,
    Clock,
    Kind,
    Place,
    about,
    each_place,
    each_place_at,
    moment_of,
    taken,
)
from tests.faults.conftest import END

# What a call may have to wait for.


@contextlib.contextmanager
def busy(pool: Pool) -> Iterator[None]:
    """Have the only worker serve a call of another thread's."""
    body, found = Body(Call("@me/holder", "process", None), int, (), {}, False, copy_context()), []
    with OtherThread(lambda: found.append(pool.take(body, Need()))):
        pass
    try:
        yield
    finally:
        pool.release(found[0])


# A clock ends each call in time.


HOW: Final = ("cancelled", "failed", "failed by the loop")


def ways_to_stop(place: Place, kind: Kind, moment: str) -> list[str]:
    """The ways that exist: a loop does nothing while a body blocks it, or while it begins a call."""
    has_loop = place.is_asyncio and moment != "begin" and (moment == "slot" or not place.blocks(kind))
    return [how for how in HOW if has_loop or how != HOW[2]]


def stop(case: Case, moment: str, how: str) -> None:
    """Have a clock stop the call at a moment: its consumer gets the very error, once, and an observer hears of it."""
    state = "cancelled" if how == "cancelled" else "failed"
    error = TimeoutError("late") if state == "failed" else PredictionCancelledError("", "")

    def ring(execution: Execution) -> None:
        if state == "failed":
            execution.stop("failed", error)
        else:
            execution.cancel()

    clock = Clock(moment_of(case, moment), ring, how == HOW[2])
    case.witness.on_start = clock.ring_at_once if moment == "begin" else clock.wind_up

    def lets_on() -> None:
        clock.wait()
        if moment == "setup":  # which is never interrupted
            case.go.open()
        else:
            case.let_on()

    async def whole(case: Case, reading: Any) -> None:
        count = 0
        if moment in {"middle", "held"} and not case.place.is_create:
            assert await reading.pull() is not END
            count = 1
        if moment == "held":
            case.at.open()
            await auntil(lambda: clock.has_rung, "the clock rings")
        with pytest.raises(type(error)) as caught:
            await reading.pull()
        assert state == "cancelled" or caught.value is error
        assert await reading.has_ended(state)
        case.check_told(state, None if case.place.is_create else count, caught.value, reading)
        if moment in {"before", "middle", "held"}:
            await case.check_finalised()

    with OtherThread(lets_on):
        case.run(whole)
    clock.join()
    case.witness.on_start = id


@each_place_at("begin", "before", "middle", "held", "slot")
def test_a_clock_stops_a_call_wherever_it_is(cases: Cases, place: Place, moment: str) -> None:
    for kind in place.kinds_at(moment):
        for how in ways_to_stop(place, kind, moment):
            with about(kind, how):
                case = cases.make(place, kind)
                if moment in {"before", "middle"}:
                    case.have_wait(moment)
                    stop(case, moment, how)
                else:
                    case.have()
                    with taken(case.slots) if moment == "slot" else contextlib.nullcontext():
                        stop(case, moment, how)
                    assert case.journal.words == (FINALISED if moment == "held" else [])


@each_place()
def test_a_clock_stops_a_call_while_its_class_is_set_up_and_the_body_never_begins(cases: Cases, place: Place) -> None:
    for kind in (DEF, ASYNC):
        for how in () if place.refuses(kind) else ways_to_stop(place, kind, "setup"):
            with about(kind, how):
                case = cases.make(place, kind)
                case.have_wait_in_setup()
                stop(case, "setup", how)
                case.muna.predictions.create(case.predictor, runner=None if place.runner == "inline" else place.runner)
                if place.runner != "process":  # to a worker a request is on its way for a moment
                    assert case.journal.words == FINALISED  # of this call


@each_place(lambda place: place.runner == "process" and place.is_another)
def test_a_clock_stops_a_call_that_waits_for_a_worker(cases: Cases, place: Place) -> None:
    with busy(pool_of(cases.muna)):
        for kind in (GEN, ASYNC):
            for how in ways_to_stop(place, kind, "worker"):
                with about(kind, how):
                    case = cases.make(place, kind)
                    case.have()
                    stop(case, "worker", how)
                    assert case.journal.words == []
