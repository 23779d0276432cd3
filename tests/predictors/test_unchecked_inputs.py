"""Inputs are checked unless the call or the record says otherwise; their names are needed always."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from engine import Engine, InvalidInputError, Predictor
from tests.policies.calls import created, typed


@pytest.mark.parametrize("face", ["create", "acreate", "stream", "astream"])
def test_inputs_are_checked_unless_the_call_or_the_engine_says_otherwise(face: str, muna: Engine) -> None:
    async def read(tag: Any, inputs: dict[str, Any], **options: Any) -> list[Any]:
        return [each async for each in muna.predictions.astream(tag, inputs, **options).values()]

    def call(tag: Any, inputs: dict[str, Any], **options: Any) -> Any:
        if face == "stream":
            return next(muna.predictions.stream(tag, inputs, **options).values())
        if face == "astream":
            return asyncio.run(read(tag, inputs, **options))[0]
        return created(muna, face, tag, inputs, **options).value

    lax = Predictor("@me/lax", typed, check=False)
    text = {"number": "ab", "times": 2}
    with pytest.raises(InvalidInputError):
        call(typed, text)
    with pytest.raises(InvalidInputError):
        call(lax, text, check=True)
    assert call(typed, text, check=False) == "abab"
    assert call(lax, text) == "abab"


def test_unchecked_inputs_still_need_their_names(muna: Engine) -> None:
    with pytest.raises(InvalidInputError, match=r"number"):
        muna.predictions.create(typed, {}, check=False)
    with pytest.raises(InvalidInputError, match=r"its inputs are: number, times"):
        muna.predictions.create(typed, {"numbr": 1}, check=False)
