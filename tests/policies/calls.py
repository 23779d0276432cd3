"""Predictors that yield, fail or take types, and a create of either face."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from engine import Engine, Prediction


def yields() -> Iterator[str]:
    yield "a"
    yield "b"
    return "the end"  # type: ignore[return-value]


async def yields_later() -> AsyncIterator[str]:
    yield "a"
    yield "b"


def fails_late() -> Iterator[str]:
    yield "first"
    yield "second"
    raise LookupError("third")


async def fails_later() -> AsyncIterator[str]:
    yield "first"
    yield "second"
    raise LookupError("third")


def created(muna: Engine, face: str, *arguments: Any, **options: Any) -> Prediction:
    if face == "create":
        return muna.predictions.create(*arguments, **options)
    return asyncio.run(muna.predictions.acreate(*arguments, **options))


both_faces = pytest.mark.parametrize("face", ["create", "acreate"])
both_colours = pytest.mark.parametrize("target", [fails_late, fails_later], ids=["yield", "async-yield"])
both_places = pytest.mark.parametrize("runner", [None, "thread"])


def typed(number: int, times: int = 1) -> Any:
    return number * times
