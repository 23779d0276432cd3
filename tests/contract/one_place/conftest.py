"""Engines that are observed, for calls of every kind in every place."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from engine import Engine
from tests._kit.internals import open_calls_of
from tests.contract.one_place.cases import Cases, Place, new_engine
from tests.faults.worker_bodies import number_of_worker


@pytest.fixture(scope="module")
def lasting() -> Iterator[Engine]:
    """Give an engine whose one worker outlives the tests: each fails that costs it."""
    with new_engine() as muna:
        yield muna


@pytest.fixture
def crew(lasting: Engine) -> Engine:
    """Give that engine with its worker at work, which has not been idle for long enough to be retired."""
    lasting.predictions.create(number_of_worker, runner="process")
    return lasting


@pytest.fixture(autouse=True)
def leaves_nothing_behind(crew: Engine, leaves_nothing_behind: None) -> None:
    """Count from where the worker is there."""


@pytest.fixture(autouse=True)
def nothing_is_logged(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """An end that a caller hears of is not logged."""
    yield
    assert [record.getMessage() for record in caplog.get_records("call")] == []


@pytest.fixture
def cases(crew: Engine, place: Place, tmp_path: Path) -> Iterator[Cases]:
    if place.runner == "process":
        yield Cases(crew, tmp_path)
        open_calls_of(crew).observers = ()
        return
    with new_engine() as muna:
        yield Cases(muna, tmp_path)
