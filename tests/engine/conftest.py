"""A lifecycle that predictors write, and some predictors that need none."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from contextvars import ContextVar

import pytest

colour: ContextVar[str] = ContextVar("colour", default="none")


class Lifecycle:
    """Makes class predictors of both colours that write down what happens to them."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.threads: dict[str, int] = {}

    def note(self, line: str) -> None:
        self.lines.append(line)
        self.threads[line] = threading.get_ident()

    def sync(self) -> type:
        note = self.note

        class Model:
            def __init__(self) -> None:
                note("constructor")

            def setup(self) -> None:
                note("setup")

            def predict(self) -> Iterator[str]:
                try:
                    note("predict")
                    yield "one"
                    yield "two"
                finally:
                    note("finally")

            def teardown(self) -> None:
                note("teardown")

        return Model

    def coloured(self) -> type:
        note = self.note

        class Model:
            def __init__(self) -> None:
                note("constructor")

            async def setup(self) -> None:
                await asyncio.sleep(0)
                note("setup")

            async def predict(self) -> AsyncIterator[str]:
                try:
                    note("predict")
                    yield "one"
                    await asyncio.sleep(0)
                    yield "two"
                finally:
                    note("finally")

            async def teardown(self) -> None:
                await asyncio.sleep(0)
                note("teardown")

        return Model

    def make(self, kind: str) -> type:
        return self.sync() if kind == "sync" else self.coloured()


BOTH = pytest.mark.parametrize("kind", ["sync", "async"])
ANYWHERE = pytest.mark.parametrize("runner", [None, "thread"])


@pytest.fixture
def lifecycle() -> Lifecycle:
    return Lifecycle()


def plain() -> str:
    return "plain"


async def acoloured() -> str:
    return "coloured"
