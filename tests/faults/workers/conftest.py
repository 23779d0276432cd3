"""An engine for the tests of faults in workers."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from engine import Engine
from tests.faults.worker_bodies import number_of_worker


@pytest.fixture(scope="module")
def lasting() -> Iterator[Engine]:
    """Give an engine whose one worker outlives the tests that ask for it: each fails that has another one started."""
    with Engine(discover=False, workers=1, grace=10.0) as muna:
        muna.predictions.create(number_of_worker, runner="process")
        yield muna
