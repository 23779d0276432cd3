"""Graces and windows that mean nothing or are extreme, and a wall clock that runs backwards."""

from __future__ import annotations

import itertools
import math
import time
from typing import TYPE_CHECKING, Any

import pytest

from engine import Engine
from tests._kit.gates import Gate
from tests._kit.waits import OtherThread, auntil
from tests.faults.conftest import END, Fault, predictor_with
from tests.faults.stopping import drained, waiting, when

if TYPE_CHECKING:
    from tests.faults.conftest import Cell, Consumer


# 59: bad numbers.


@pytest.mark.fault(59)
@pytest.mark.parametrize(
    "grace", [-1, -0.001, math.nan, math.inf, -math.inf, 1e9, 10**400, "1", None, True, [1]], ids=repr
)
def test_a_grace_that_means_nothing_is_refused(grace: Any) -> None:
    with pytest.raises(ValueError, match="grace must be a number of seconds"):
        Engine(discover=False, grace=grace)


@pytest.mark.fault(59)
@pytest.mark.parametrize(
    "prefetch", [-1, -(10**400), 1.0, math.nan, math.inf, "1", True, [1]], ids=lambda value: repr(value)[:12]
)
def test_a_prefetch_that_means_nothing_is_refused_before_anything_starts(cell: Cell, prefetch: Any) -> None:
    fault = Fault()

    async def scenario(consumer: Consumer) -> None:
        with pytest.raises(ValueError, match="prefetch must be a whole number"):
            consumer.open(predictor_with(cell.kind, fault), prefetch=prefetch)
        assert await consumer.still_works()

    cell.run(scenario)
    assert fault.started == 0


@pytest.mark.fault(59)
@pytest.mark.parametrize("grace", [0, 5e-324, 3600])
@pytest.mark.parametrize("prefetch", [0, 1, 10**400], ids=["0", "1", "huge"])
def test_extreme_numbers_that_mean_something_work(cell: Cell, grace: float, prefetch: int) -> None:
    fault = Fault()

    async def scenario(consumer: Consumer) -> None:
        predictor = predictor_with(cell.kind, fault)
        assert await consumer.open(predictor, prefetch=prefetch).rest() == list(cell.partials)
        reader = consumer.open(predictor, prefetch=prefetch)
        await drained(reader, 1)
        await reader.close()
        assert await reader.has_ended("closed")
        await auntil(lambda: fault.finalised == 2, "the body was finalised")

    cell.run(scenario, grace=grace)


# 60: a wall clock that runs backwards.


@pytest.mark.fault(60)
def test_deadlines_and_durations_do_not_read_the_wall_clock(cell: Cell, monkeypatch: pytest.MonkeyPatch) -> None:
    backwards = itertools.count(10**9, -3600)
    monkeypatch.setattr(time, "time", lambda: float(next(backwards)))
    monkeypatch.setattr(time, "time_ns", lambda: next(backwards) * 10**9)
    reached, go = Gate(), Gate()
    fault = Fault(cleanup=waiting(cell, reached, go))

    async def scenario(consumer: Consumer) -> None:
        reader = consumer.open(predictor_with(cell.kind, Fault()))
        latencies = []
        while (prediction := await reader.prediction()) is not END:
            latencies.append(prediction.latency)  # type: ignore[union-attr]
        assert latencies == sorted(latencies)
        assert min(latencies) >= 0
        first, whole = reader.outcome.first, reader.outcome.duration
        assert first is not None
        assert whole is not None
        assert 0 <= first <= whole < 60_000
        slow = consumer.open(predictor_with(cell.kind, fault), prefetch=0)
        with OtherThread(when(reached, go.open)):
            await slow.pull()
            await slow.close()
        assert fault.finalised == 1

    cell.run(scenario)
