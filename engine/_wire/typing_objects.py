"""Type aliases, type variables, new types and sentinels of scripts, which pickle saves by their names alone.

Where the other side cannot import that name, each is made again there, and is the same object each time it arrives. An
alias may refer to itself and to type variables of its own, so it is made by a `type` statement, empty at first, and its
value is filled in afterwards.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, Final

from engine._wire.by_reference import SELF_NAMED, is_importable
from engine._wire.sentinels import assign_identity, identity_of, object_of

if TYPE_CHECKING:
    from collections.abc import Callable

_NAME_OF: Final = {id(kind): name for name, kind in SELF_NAMED.items()}
_STARS: Final = {"TypeVar": "", "TypeVarTuple": "*", "ParamSpec": "**"}
_LAZY: Final = "__evaluated_by_the_engine__"  # the name of the function that gives what an alias evaluates lazily


def is_self_named(kind: type) -> bool:
    """Whether pickle saves instances of a class by their names."""
    return id(kind) in _NAME_OF


class TypingReducer:
    """Reduces aliases, type variables, new types and sentinels for one pickle."""

    __slots__ = ("_owners",)

    def __init__(self) -> None:
        """Know no type variable of an alias yet."""
        self._owners: dict[int, tuple[Any, int]] = {}  # by a type variable's address: its alias, and its index there

    def reduced(self, obj: Any) -> Any:
        """Reduce an object; `None` for one of another kind, or that the other side can import."""
        name = _NAME_OF.get(id(type(obj)))
        if name is None or is_importable(obj):
            return None
        if id(obj) in self._owners:
            return _variable_of, self._owners[id(obj)]
        if name == "TypeAliasType":
            return self._reduced_alias(obj)
        return _make, (identity_of(obj), name, obj.__module__, _FACTS[name](obj))

    def _reduced_alias(self, alias: Any) -> Any:
        variables = alias.__type_params__
        if any(_is_bound(each) for each in variables) or not _are_identifiers(alias, *variables):
            return _make, (identity_of(alias), "TypeAliasType", alias.__module__, _facts_of_alias(alias))
        self._owners.update((id(each), (alias, index)) for index, each in enumerate(variables))
        held: dict[str, Any] = {"value": _evaluated(alias, "__value__")}
        shape = [_shape(variable, index, held) for index, variable in enumerate(variables)]
        empty: dict[str, Any] = {}
        made = (identity_of(alias), alias.__name__, alias.__module__, shape, empty)
        return _make_alias, made, (empty, held), None, None, _fill_alias


def _is_bound(variable: Any) -> bool:
    """Whether a type variable is a module's own, and not an alias's."""
    return getattr(sys.modules.get(variable.__module__), variable.__name__, None) is variable


def _are_identifiers(*named: Any) -> bool:
    return all(each.__name__.isidentifier() for each in named)


def _evaluated(owner: Any, name: str) -> tuple[bool, Any]:
    """Read a lazily evaluated attribute: whether that succeeded, and its value or else what was raised."""
    try:
        return True, getattr(owner, name)
    except Exception as error:
        return False, error


def _shape(variable: Any, index: int, held: dict[str, Any]) -> str:
    """Write a type variable as in a `type` statement; what is evaluated lazily goes into `held`."""

    def hold(name: str, value: tuple[bool, Any]) -> str:
        held[f"{name}{index}"] = value
        return f"{_LAZY}('{name}{index}')"

    stars = _STARS[_NAME_OF[id(type(variable))]]
    text = f"{stars}{variable.__name__}"
    if not stars:
        constraints = getattr(variable, "__constraints__", ())
        parts = [hold(f"constraint{number}_", (True, each)) for number, each in enumerate(constraints)]
        bound = _evaluated(variable, "__bound__")
        if parts:
            text += f": ({', '.join(parts)},)"
        elif bound != (True, None):
            text += f": {hold('bound', bound)}"
    if getattr(variable, "has_default", bool)():
        default = _evaluated(variable, "__default__")
        text += f" = {'*' if stars == '*' else ''}{hold('default', default)}"
    return text


def _make_alias(identity: str, name: str, module: str, shape: list[str], held: dict[str, Any]) -> Any:
    """Make an alias whose value will be in `held`."""
    known = object_of(identity)
    if known is not None:
        return known

    def evaluate(key: str) -> Any:
        is_value, value = held[key]
        if not is_value:
            raise value
        return value

    scope: dict[str, Any] = {"__name__": module, _LAZY: evaluate}
    variables = f"[{', '.join(shape)}]" if shape else ""
    exec(f"type {name}{variables} = {_LAZY}('value')", scope)  # noqa: S102 - made of tested identifiers only
    return assign_identity(identity, scope[name])


def _fill_alias(_alias: Any, state: tuple[dict[str, Any], dict[str, Any]]) -> None:
    empty, held = state
    empty.update(held)


def _variable_of(alias: Any, index: int) -> Any:
    return alias.__type_params__[index]


def _make(identity: str, kind: str, module: str, facts: tuple[str, tuple[Any, ...], dict[str, Any]]) -> Any:
    """Make a type variable, new type, alias or sentinel, unless it is here already."""
    known = object_of(identity)
    if known is not None:
        return known
    name, args, options = facts
    made = SELF_NAMED[kind](name, *args, **options)
    if kind != "TypeAliasType":  # whose `__module__` is read-only, and names the frame that made it
        made.__module__ = module
    return assign_identity(identity, made)


def _facts_of_variable(variable: Any) -> tuple[str, tuple[Any, ...], dict[str, Any]]:
    names = {"__bound__": "bound", "__covariant__": "covariant", "__contravariant__": "contravariant"}
    if getattr(variable, "__infer_variance__", False):
        names = {"__bound__": "bound", "__infer_variance__": "infer_variance"}
    options = {option: getattr(variable, name) for name, option in names.items() if getattr(variable, name, None)}
    if getattr(variable, "has_default", bool)():
        options["default"] = variable.__default__
    return variable.__name__, getattr(variable, "__constraints__", ()), options


def _facts_of_alias(alias: Any) -> tuple[str, tuple[Any, ...], dict[str, Any]]:
    return alias.__name__, (alias.__value__,), {"type_params": alias.__type_params__}


_FACTS: Final[dict[str, Callable[[Any], tuple[str, tuple[Any, ...], dict[str, Any]]]]] = {
    **dict.fromkeys(("TypeVar", "ParamSpec", "TypeVarTuple"), _facts_of_variable),
    "NewType": lambda made: (made.__name__, (made.__supertype__,), {}),
    "sentinel": lambda made: (made.__name__, (), {}),
}
