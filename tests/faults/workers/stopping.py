"""Cells whose bodies run in a worker, strikes that tell where they are, and readers that hear of a stop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from engine import Engine
from tests._kit.gates import FileGate
from tests.faults.conftest import Cell, Consumer, Reader
from tests.faults.conftest import _step_through as step_through
from tests.faults.worker_bodies import KINDS, number_of_worker

GRACE = 0.2  # seconds from one rung to the next where the ladder is climbed on purpose
LONG = 10.0  # seconds; where no rung but the first must be reached
SLACK = 5.0  # seconds a busy machine may add to any bound; what does not end at all would take much longer

CELLS = [Cell(kind, consumer, "process") for kind in KINDS for consumer in ("sync", "asyncio")]
each_cell = pytest.mark.parametrize("cell", CELLS, ids=str)
each_yielding = pytest.mark.parametrize("cell", [cell for cell in CELLS if cell.is_yielding], ids=str)
each_consumer = pytest.mark.parametrize("cell", [cell for cell in CELLS if cell.kind == "gen"], ids=str)


def run(cell: Cell, scenario: Callable[[Consumer], Coroutine[Any, Any, None]], muna: Engine) -> None:
    """Run a scenario as this cell's consumer of an engine that lives on."""
    if cell.is_asyncio:
        asyncio.run(scenario(Consumer(muna, cell)))
    else:
        step_through(scenario(Consumer(muna, cell)))


def when(gate: FileGate, action: Callable[[], object]) -> Callable[[], None]:
    def act() -> None:
        gate.wait()
        action()

    return act


def announced(gate: FileGate, strike: Callable[[], Any]) -> Callable[[], Any]:
    """A strike before which the body tells where it is."""

    def strikes() -> Any:
        gate.open()
        return strike()

    return strikes


def rung_of(reader: Reader) -> str | None:
    return reader.outcome.rung


async def serving(consumer: Consumer) -> int:
    """The number of the worker that serves the next call."""
    pid: int = (await consumer.create(number_of_worker)).value
    return pid
