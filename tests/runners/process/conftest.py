"""Fixtures that several files of this folder use."""

from __future__ import annotations

import pytest

import engine.runners.slots


@pytest.fixture
def looks_only_when_woken(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a waiter that is not woken hang."""
    monkeypatch.setattr(engine.runners.slots, "_LONG_WAIT", 1000.0)
