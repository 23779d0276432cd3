"""Fixtures that several files of this folder use."""

from __future__ import annotations

import pytest

from engine import Engine
from tests.runners.bound_instances import TAG, Notes, bound


@pytest.fixture
def notes() -> Notes:
    return Notes()


@pytest.fixture
def pinned(notes: Notes, muna: Engine) -> Engine:
    muna.predictors.register(TAG, bound(notes))
    return muna
