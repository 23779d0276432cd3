"""Reducers turn the partials of one prediction into its result.

They are declared by a predictor's author, may be overridden by the caller of `create`, and are never guessed from
what the partials look like. A reducer keeps no state of its own: `start` makes it, `step` moves it on, `finish` reads
it, so one reducer serves any number of calls at once.
"""

from __future__ import annotations

from itertools import chain
from typing import TYPE_CHECKING, Any, Final, Protocol, runtime_checkable

from engine._errors import NoPartialsError, quote

if TYPE_CHECKING:
    from collections.abc import Callable


@runtime_checkable
class Reducer(Protocol):
    """What `reduce=` accepts beside a name: three steps and a name for messages."""

    @property
    def name(self) -> str:
        """The reducer's name, for messages."""
        ...

    def start(self) -> Any:
        """Make the state of one prediction, before its first partial."""
        ...

    def step(self, state: Any, partial: Any, /) -> Any:
        """Give the state after one more `partial`."""
        ...

    def finish(self, state: Any, /) -> Any:
        """Give the result of everything seen so far; the state may be stepped on afterwards.

        Raises:
            NoPartialsError: nothing was seen, and a result needs something.
        """
        ...


EMPTY: Final = object()  # the state of `last` before a partial; None is a partial like any other


class _Last:
    """Partials are snapshots that replace each other: the result is the last one."""

    name = "last"

    def start(self) -> Any:
        return EMPTY

    def step(self, _state: Any, partial: Any) -> Any:
        return partial

    def finish(self, state: Any) -> Any:
        if state is EMPTY:
            raise NoPartialsError("", self.name)
        return state


class _Concat:
    """Partials are deltas of `str`, `bytes` or `list`: the result is all of them, joined in linear time."""

    name = "concat"

    def start(self) -> list[Any]:
        return []

    def step(self, state: list[Any], partial: Any) -> list[Any]:
        state.append(partial)
        return state

    def finish(self, state: list[Any]) -> Any:
        if not state:
            raise NoPartialsError("", self.name)
        joined = _join(state)
        state[:] = [joined]  # running reductions join once per partial: what is joined already stays one piece
        return list(joined) if isinstance(joined, list) else joined


def _join(pieces: list[Any]) -> Any:
    kind = next((kind for kind in (str, bytes, list) if issubclass(type(pieces[0]), kind)), None)
    stranger = next((piece for piece in pieces if kind is None or not issubclass(type(piece), kind)), EMPTY)
    if stranger is not EMPTY or kind is None:
        raise TypeError(
            f"the reducer 'concat' joins partials that are all str, all bytes or all lists, not {quote(stranger)}: "
            "declare another reducer, or override it with create(..., reduce=...)"
        )
    if kind is list:
        return list(chain.from_iterable(pieces))
    return "".join(pieces) if kind is str else b"".join(pieces)


class _Collect:
    """The result is the list of all partials."""

    name = "collect"

    def start(self) -> list[Any]:
        return []

    def step(self, state: list[Any], partial: Any) -> list[Any]:
        state.append(partial)
        return state

    def finish(self, state: list[Any]) -> list[Any]:
        return list(state)


class _Returned(_Last):
    """The result is the generator's return value, or a plain function's value; partials are passed over.

    The value is not among the partials, so the code that drains the iterator puts it in as the state.
    """

    name = "returned"

    def step(self, state: Any, _partial: Any) -> Any:
        return state


class _Fold:
    """The result of a function over the state and each partial in turn."""

    name = "fold"

    def __init__(self, function: Callable[[Any, Any], Any], initial: object) -> None:
        self._function = function
        self._initial = initial

    def start(self) -> Any:
        return self._initial() if callable(self._initial) else self._initial

    def step(self, state: Any, partial: Any) -> Any:
        return self._function(state, partial)

    def finish(self, state: Any) -> Any:
        return state


def fold(function: Callable[[Any, Any], Any], initial: object) -> Reducer:
    """A reducer that folds partials with a function of one's own.

    Args:
        function: `(state, partial) -> state`, called once per partial, in order.
        initial: the state before the first partial; a callable is a factory, called once per prediction. Give a
            mutable one as a factory (`list`, not `[]`).

    Returns:
        A reducer for `reduce=`.

    Raises:
        TypeError: `function` cannot be called.
    """
    if not callable(function):
        raise TypeError(f"fold() takes a function of (state, partial), not {quote(function)}")
    return _Fold(function, initial)


LAST: Final = _Last()
CONCAT: Final = _Concat()
COLLECT: Final = _Collect()
RETURNED: Final = _Returned()

BY_NAME: Final[dict[str, Reducer]] = {each.name: each for each in (LAST, CONCAT, COLLECT, RETURNED)}


def reducer_of(choice: object) -> Reducer:
    """Find the reducer a name stands for, or check one given as an object; `None` is `last`.

    Raises:
        ValueError: no reducer has that name, or the object is none.
    """
    if choice is None:
        return LAST
    if isinstance(choice, str):
        if choice in BY_NAME:
            return BY_NAME[choice]
    elif isinstance(choice, Reducer) and not isinstance(choice, type):
        return choice
    raise ValueError(
        f"reduce must be one of {', '.join(map(repr, BY_NAME))}, fold(function, initial), "
        f"or an object with name, start, step and finish, not {quote(choice)}"
    )
