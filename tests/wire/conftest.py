"""Fixtures that several files of this folder use."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import cloudpickle
import pytest

from tests._kit.internals import known_modules
from tests.wire.failing import Loud

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def forgotten() -> Iterator[None]:
    """Have modules of a test, and what is noted about them, forgotten after it."""
    modules, noted = dict(sys.modules), cloudpickle.list_registry_pickle_by_value()
    known = dict(known_modules())
    yield
    known_modules().clear()
    known_modules().update(known)
    for name in set(cloudpickle.list_registry_pickle_by_value()) - set(noted):
        cloudpickle.cloudpickle._PICKLE_BY_VALUE_MODULES.discard(name)
    for name in set(sys.modules) - set(modules):
        del sys.modules[name]
    sys.modules.update(modules)


@pytest.fixture
def silence() -> Iterator[None]:
    """Assert that a `repr` is made of no more than a few of many elements."""
    Loud.rendered = 0
    yield
    assert Loud.rendered < 50
