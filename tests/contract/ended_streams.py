"""Cells whose streams come to an end, and what is told and logged of that."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final

import pytest

from engine.runners import Body, Channel


def counts() -> Iterator[int]:
    yield from range(3)


def told(step: Callable[[], object], stop: type[Exception]) -> list[type[BaseException]]:
    """What a reader gets that reads on until it is told that the stream has ended."""
    seen: list[type[BaseException]] = []
    while len(seen) < 5:
        try:
            step()
        except stop:
            break
        except Exception as error:
            seen.append(type(error))
    return seen


class HandsOverByHand:
    """Gives its channel away, for a test to be the owner."""

    name = "by-hand"

    def start(self, body: Body, channel: Channel) -> None:
        self.channel = channel
        channel.offer(0, 0.0, 0.0)


IN_LOCK_STEP: Final = [
    ("gen", "sync", None),
    ("gen", "sync", "inline"),
    ("gen", "asyncio", "inline"),
    ("agen", "asyncio", None),
    ("agen", "asyncio", "inline"),
]
WITH_AN_OWNER: Final = [
    ("gen", "sync", "thread"),
    ("gen", "asyncio", None),
    ("agen", "sync", None),
    ("agen", "asyncio", "thread"),
    ("agen", "asyncio", "process"),
]


EVERY: Final = IN_LOCK_STEP + WITH_AN_OWNER


def logged(caplog: pytest.LogCaptureFixture, error: type[BaseException]) -> int:
    """How often an error is in the log."""
    return sum(f"{error.__name__}: " in record.message for record in caplog.records)
