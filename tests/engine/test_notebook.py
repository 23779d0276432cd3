"""Cells of a notebook, which run on an event loop of its own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from engine import Engine, predictor
from tests.engine.conftest import Lifecycle, acoloured


def test_a_notebook_cell_calls_async_predictors_without_await(muna: Engine, lifecycle: Lifecycle) -> None:
    async def words() -> AsyncIterator[str]:
        for word in ("hello", "world"):
            await asyncio.sleep(0)
            yield word

    async def cell() -> None:
        assert muna.predictions.create(acoloured).value == "coloured"
        assert muna.predictions.create(words).value == "world"
        assert list(muna.predictions.stream(words).values()) == ["hello", "world"]
        assert muna.predictions.create(lifecycle.coloured()).value == "two"
        with muna.predictions.stream(words) as stream:
            assert next(stream).value == "hello"
        muna.load(lifecycle.coloured())
        muna.unload(lifecycle.coloured())

    asyncio.run(cell())


def test_running_a_notebook_cell_again_replaces_its_predictor(muna: Engine) -> None:
    def cell(text: str) -> Any:
        @predictor("@tests/cell")
        def says() -> str:
            return text

        muna.predictors.register(says)
        return muna.predictions.create("@tests/cell").value

    assert cell("first") == "first"
    assert cell("second") == "second"
