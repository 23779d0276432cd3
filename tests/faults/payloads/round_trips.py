"""Calls that take a value to a worker and back, whichever way they are consumed, or that cannot."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, Final

import pytest

from engine import Engine, PayloadError
from tests._kit.gates import Journal
from tests.faults.conftest import Cell, Consumer
from tests.faults.worker_bodies import KINDS, number_of_worker

MIB: Final = 1 << 20
CELLS = [Cell(kind, consumer, "process") for kind in KINDS for consumer in ("sync", "asyncio")]
each_cell = pytest.mark.parametrize("cell", CELLS, ids=str)
each_yielding = pytest.mark.parametrize("cell", [cell for cell in CELLS if cell.is_yielding], ids=str)
each_way = pytest.mark.parametrize("way", ["create", "stream", "acreate", "astream"])


def number_of(muna: Engine) -> int:
    pid: int = muna.predictions.create(number_of_worker, runner="process").value
    return pid


def values_of(muna: Engine, way: str, target: Any, inputs: dict[str, Any] | None = None, **options: Any) -> list[Any]:
    """What one call gives, whichever way it is consumed."""
    options.setdefault("runner", "process")
    predictions = muna.predictions

    async def acreated() -> list[Any]:
        return [(await predictions.acreate(target, inputs, **options)).value]

    async def astreamed() -> list[Any]:
        return [value async for value in predictions.astream(target, inputs, **options).values()]

    if way == "create":
        return [predictions.create(target, inputs, **options).value]
    if way == "stream":
        return list(predictions.stream(target, inputs, **options).values())
    return asyncio.run(acreated() if way == "acreate" else astreamed())


def predictor_giving(kind: str, journal: Journal, makes: Callable[[], Any]) -> Callable[[], Any]:
    """Make a predictor whose second partial, or whose result, is what `makes` makes in the worker."""

    def returns() -> Any:
        try:
            return makes()
        finally:
            journal.note("finally")

    def yields() -> Iterator[Any]:
        try:
            yield 1
            yield makes()
            yield 3
        finally:
            journal.note("finally")

    async def async_returns() -> Any:
        try:
            return makes()
        finally:
            journal.note("finally")

    async def async_yields() -> AsyncIterator[Any]:
        try:
            yield 1
            yield makes()
            yield 3
        finally:
            journal.note("finally")

    return {"def": returns, "gen": yields, "async": async_returns, "agen": async_yields}[kind]


async def refused(consumer: Consumer, predictor: Callable[[], Any]) -> PayloadError:
    """Stream a predictor one of whose partials cannot travel; check how the stream ends, and give what it ends with."""
    reader = consumer.open(predictor)
    before = [1] if consumer.cell.is_yielding else []
    assert [await reader.pull() for _ in before] == before
    with pytest.raises(PayloadError) as arrived:
        await reader.pull()
    assert await reader.has_ended("failed")
    assert reader.outcome.count == len(before)
    assert f"after {len(before)} partials" in arrived.value.__notes__[-1]
    return arrived.value
