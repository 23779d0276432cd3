"""An engine with one worker for the tests of what travels there and back."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from engine import Engine
from tests.faults.awkward_values import gives_back
from tests.faults.payloads.round_trips import MIB, number_of


@pytest.fixture(scope="module")
def muna() -> Iterator[Engine]:
    """Give an engine with one worker that serves every test of this file, its shared memory mapped already."""
    with Engine(discover=False, workers=1) as muna:
        large = bytes(16 * MIB)
        assert muna.predictions.create(gives_back, {"value": large}, runner="process").value == large
        yield muna


@pytest.fixture
def worker(muna: Engine) -> Iterator[int]:
    """Give the number of that worker, and see to it that the next call finds the same one."""
    pid = number_of(muna)
    yield pid
    assert number_of(muna) == pid
