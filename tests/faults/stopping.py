"""What the tests of stopping share"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from engine import PredictionCancelledError
from tests._kit.gates import Gate
from tests.faults.conftest import END

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.faults.conftest import Cell, Reader

GRACE = 0.05  # seconds; what is stuck on purpose is waited for no longer


def waiting(cell: Cell, reached: Gate, go: Gate) -> Callable[[], Any]:
    """A strike that tells where the body is and waits there until the test lets it go."""

    def wait() -> Any:
        reached.open()
        return cell.waits_at(go)()

    return wait


def when(reached: Gate, action: Callable[[], object]) -> Callable[[], None]:
    def act() -> None:
        reached.wait()
        action()

    return act


async def drained(reader: Reader, count: int) -> None:
    for _ in range(count):
        assert await reader.pull() is not END


async def is_cancelled(reader: Reader) -> bool:
    """Whether the reader gets the cancellation, once, and nothing after it."""
    with pytest.raises(PredictionCancelledError):
        await reader.pull()
    return await reader.has_ended("cancelled")
