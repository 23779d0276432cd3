"""A call bound and made, a refusal and an acceptance, each in one line."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from engine._errors import InvalidInputError
from engine._predictors.signature import Signature
from tests.predictors.types_to_accept import Point  # noqa: F401 - what text names is looked for beside `takes`

TAG = "@test/case"


def refuse(function: Any, inputs: Any, **options: Any) -> InvalidInputError:
    """The error `inputs` are refused with."""
    with pytest.raises(InvalidInputError) as caught:
        Signature.of(function).binder(TAG, **options)(inputs)
    str(caught.value).encode("utf-8")  # can be shown
    return caught.value


def call(function: Any, inputs: Any, **options: Any) -> Any:
    args, kwargs = Signature.of(function).binder(TAG, **options)(inputs)
    return function(*args, **kwargs)


def takes(annotation: Any) -> Callable[..., Any]:
    def function(value: Any) -> Any:
        return value

    function.__annotations__["value"] = annotation
    return function


def accepts(annotation: Any, value: Any) -> bool:
    """Whether an input of this annotation takes `value`, as the same object or with a problem that can be shown."""
    try:
        args, kwargs = Signature.of(takes(annotation)).binder(TAG)({"value": value})
    except InvalidInputError as error:
        problems, text = error.problems, str(error)
    else:
        return args == () and list(kwargs) == ["value"] and kwargs["value"] is value
    text.encode("ascii")
    assert problems
    assert all(problem.startswith("'value' must ") for problem in problems)
    return False
