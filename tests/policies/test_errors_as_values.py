"""Failures that are asked for as values, and those that are raised all the same."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest

from engine import Engine, InvalidInputError, InvalidTagError, NoPartialsError, PredictorNotFoundError
from tests.policies.calls import both_colours, both_faces, both_places, created


@both_faces
@both_colours
@both_places
@pytest.mark.parametrize(
    ("reduce", "value"),
    [("last", "second"), ("concat", "firstsecond"), ("collect", ["first", "second"]), ("returned", None)],
)
def test_a_failure_asked_for_as_a_value_carries_what_was_reduced_before(  # noqa: PLR0917
    face: str, target: Any, runner: str | None, reduce: str, value: Any, muna: Engine
) -> None:
    prediction = created(muna, face, target, runner=runner, reduce=reduce, errors="return")
    assert prediction.value == value
    assert isinstance(prediction.exception, LookupError)
    assert prediction.error is not None
    assert "LookupError: third" in prediction.error
    assert "raise LookupError(" in prediction.error
    assert prediction.index == 1
    with pytest.raises(LookupError, match="third") as caught:
        prediction.raise_for_error()
    assert caught.value is prediction.exception


@both_faces
@both_places
def test_errors_return_never_covers_what_is_not_the_bodys(face: str, runner: str | None, muna: Engine) -> None:
    def empty() -> Iterator[str]:
        yield from ()

    def typed(number: int) -> int:
        return number

    for error, target, inputs in (
        (PredictorNotFoundError, "@me/unknown", None),
        (InvalidTagError, "Unknown!", None),
        (InvalidInputError, typed, {"number": "one"}),
        (NoPartialsError, empty, None),
    ):
        with pytest.raises(error):
            created(muna, face, target, inputs, runner=runner, errors="return")


def test_errors_return_never_covers_the_cancellation_of_the_caller(muna: Engine) -> None:
    async def waits() -> None:
        await asyncio.Event().wait()

    async def read() -> None:
        for runner in (None, "thread"):
            creating = asyncio.create_task(muna.predictions.acreate(waits, runner=runner, errors="return"))
            await asyncio.sleep(0)
            creating.cancel()
            with pytest.raises(asyncio.CancelledError):
                await creating

    asyncio.run(read())
