"""Values that compare or show oddly arrive as they are, and types that cannot tell accept anything."""

# Every spelling of a type is tested, also those a linter would rewrite.
# ruff: noqa: UP045

from __future__ import annotations

import math
from typing import Annotated, Any, Literal, Optional, Protocol

import annotated_types
import pytest

from tests.predictors.binding import accepts, call, refuse
from tests.predictors.types_to_accept import POINT


class Unmade: ...


class Grumpy:
    def __repr__(self) -> str:
        raise RuntimeError


ODD_VALUES = {
    "nan": math.nan,
    "inf": math.inf,
    "-0.0": -0.0,
    "huge": 10**5000,
    "negative-huge": -(10**5000),
    "surrogate": "\ud800",
    "nul": "\0",
    "control": "\x1b[31m",
    "bytes": b"\xff\0",
    "huge-key": {"k" * 100_000: 1},
    "unshowable": Grumpy(),
    "nested-unshowable": [Grumpy()],
    "endless": (endless := [1]),
}
endless.append(endless)  # type: ignore[arg-type]


@pytest.mark.fault(123)
@pytest.mark.parametrize("value", ODD_VALUES.values(), ids=ODD_VALUES)
def test_odd_values_arrive_as_they_are_and_their_errors_can_be_shown(value: Any) -> None:
    assert call(lambda value: value, {"value": value}) is value

    def function(
        a: Unmade,
        b: Annotated[Any, annotated_types.Ge(POINT)],
        c: Annotated[Any, annotated_types.MaxLen(-1)],
        d: Literal["\ud801"],
        e: Annotated[Any, annotated_types.MultipleOf(3)],
    ) -> None: ...

    error = refuse(
        function, dict.fromkeys("abcdef", value) | ({value: 1} if isinstance(value, (str, bytes, int)) else {})
    )
    assert len(error.problems) >= 5
    str(error).encode("ascii")
    assert len(str(error)) < 4000


def hostile_types() -> list[Any]:
    class Meta(type):
        def __instancecheck__(cls, instance: object) -> bool:
            raise RuntimeError

    class Hostile(metaclass=Meta): ...

    class Static(Protocol):
        def run(self) -> None: ...

    class MetaModel(type):
        @property
        def model_validate(cls) -> Any:
            raise RuntimeError

    class HostileModel(metaclass=MetaModel): ...

    return [Hostile, Static, Optional[Static], HostileModel]


@pytest.mark.parametrize("annotation", hostile_types(), ids=str)
def test_a_type_that_cannot_tell_accepts_anything(annotation: Any) -> None:
    assert accepts(annotation, 5)
    assert accepts(annotation, None)
