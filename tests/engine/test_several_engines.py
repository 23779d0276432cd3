"""Several engines share nothing, and a predictor may call another engine."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from engine import Engine, PredictorNotFoundError
from tests.engine.conftest import BOTH, Lifecycle, acoloured


@BOTH
def test_two_engines_share_nothing(lifecycle: Lifecycle, kind: str) -> None:
    model = lifecycle.make(kind)
    with Engine(discover=False) as one, Engine(discover=False) as other:
        one.predictors.register("@tests/model", model)
        with pytest.raises(PredictorNotFoundError):
            other.predictions.create("@tests/model")
        other.predictors.register("@tests/model", model)
        one.load("@tests/model")
        assert (one.loaded, other.loaded) == (("@tests/model",), ())
        with one.predictions.stream("@tests/model") as stream:
            next(stream)
            assert other.predictions.create("@tests/model").value == "two"  # slots are each engine's own
            one_loop = one.predictions.create(where).value
            assert one_loop is not other.predictions.create(where).value
        one.close()
        assert other.predictions.create("@tests/model").value == "two"


async def where() -> object:
    return asyncio.get_running_loop()


def test_a_predictor_may_call_another_engine(muna: Engine) -> None:
    with Engine(discover=False) as other:

        def outer() -> Any:
            return other.predictions.create(acoloured).value

        async def aouter() -> Any:
            return other.predictions.create(acoloured).value  # another engine's loop: waits, but not for itself

        assert muna.predictions.create(outer).value == "coloured"
        assert muna.predictions.create(aouter).value == "coloured"
