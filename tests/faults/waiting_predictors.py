"""Predictors that wait at a gate, or rest between two partials, and tell when they are finalised; and calls of them."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Any

from engine import Engine
from tests._kit.waits import TIMEOUT, auntil


class GatedPredictors:
    """Predictors that wait at a gate, announce that they got there, and tell when they are finalised."""

    def __init__(self) -> None:
        self.reached = threading.Event()
        self.go = threading.Event()
        self.finished = threading.Event()

    def sync(self) -> Iterator[str]:
        try:
            yield "first"
            self.reached.set()
            self.go.wait(TIMEOUT)
            yield "second"
        finally:
            self.finished.set()

    async def coloured(self) -> AsyncIterator[str]:
        try:
            yield "first"
            self.reached.set()
            await auntil(self.go.is_set, "the gate")
            yield "second"
        finally:
            self.finished.set()

    def resting(self) -> Iterator[str]:
        try:
            yield "first"
            yield "second"
        finally:
            self.finished.set()


async def acreated(muna: Engine, predictor: Any) -> Any:
    return (await muna.predictions.acreate(predictor, runner="thread")).value


def created(muna: Engine, predictor: Any, consumer: str) -> Any:
    if consumer == "sync":
        return muna.predictions.create(predictor, runner="thread").value
    return asyncio.run(acreated(muna, predictor))


class Waiting:
    """What a call may wait for when its engine closes; each ends with its test."""

    def __init__(self) -> None:
        self.reached = threading.Event()
        self.go = threading.Event()
        self.calls: list[str] = []

    def body(self) -> str:
        self.calls.append("body")
        self.reached.set()
        self.go.wait(TIMEOUT)
        return "given"

    async def coloured(self) -> str:
        self.calls.append("body")
        self.reached.set()
        await auntil(self.go.is_set, "the gate")
        return "given"

    async def stubborn(self) -> str:
        self.calls.append("body")
        self.reached.set()
        while not self.go.is_set():
            with contextlib.suppress(asyncio.CancelledError):
                await auntil(self.go.is_set, "the gate")
        return "given"

    def model(self) -> Any:
        waiting = self

        class Model:
            def setup(self) -> None:
                waiting.body()

            def predict(self) -> str:
                waiting.calls.append("predict")
                return "predicted"

        return Model


def plain() -> str:
    return "plain"


async def coloured() -> str:
    return "coloured"
