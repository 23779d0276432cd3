"""Context variables that travel to workers: those that were named, where a call finds them set."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from engine._errors import quote
from engine._wire.encode import encode_whole, encode_whole_at_once
from engine._wire.picklers import payload_error

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from engine._predictors.body import Body

named: Final[dict[str, Any]] = {}
"""The variables that travel, by `"module:NAME"`."""


def carry_context(names: Iterable[str]) -> None:
    """Have these context variables travel, as `engine.runners.carry` tells its users."""
    from contextvars import ContextVar

    from engine._predictors.predictor import import_name

    for name in names:
        variable = import_name(name)
        if not isinstance(variable, ContextVar):
            raise TypeError(_no_variable(name, variable))
        named[name] = variable


def _no_variable(name: str, found: Any) -> str:
    """The message for a name of something else than a context variable: an object may keep some of its own."""
    from contextvars import ContextVar

    kept = [each for each, value in getattr(found, "__dict__", {}).items() if isinstance(value, ContextVar)]
    advice = "name one as 'module:NAME'"
    if kept:
        advice = f"name what it keeps, {' and '.join(repr(f'{name}.{each}') for each in kept)}"
    elif found is None:
        advice = "nothing is there yet; name it once it is, as 'module:NAME'"
    return f"{name} is no ContextVar but {quote(found)} of type {type(found).__qualname__}: {advice}"


def encode_variables(body: Body, is_abandoned: Callable[[], bool] | None = None) -> tuple[tuple[str, bytes], ...]:
    """Encode the named variables that are set where the call was made.

    Raises:
        PayloadError: the value of one cannot travel.
    """
    found = []
    for name, value in _values_of(body):
        try:
            found.append((name, encode_whole(value, is_abandoned)))
        except Exception as error:
            raise payload_error(f"the context variable {name}", value, error) from error
    return tuple(found)


def encode_variables_at_once(body: Body) -> tuple[tuple[str, bytes], ...] | None:
    """Encode them on an event loop; `None` where they are too large for that, or cannot travel."""
    found = [(name, encode_whole_at_once(value)) for name, value in _values_of(body)]
    small = tuple((name, data) for name, data in found if data is not None)
    return small if len(small) == len(found) else None


def _values_of(body: Body) -> list[tuple[str, Any]]:
    context = body.context
    return [(name, context[variable]) for name, variable in tuple(named.items()) if variable in context]
