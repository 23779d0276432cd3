"""One parameter of a predictor, and how its annotation is resolved."""

from __future__ import annotations

import builtins
import contextlib
import functools
import sys
import types
import typing
from typing import Any, Final

import attrs

from engine._errors import quote
from engine._predictors.annotations import (
    DEPTH,
    MISSING,
    Accepted,
    Bounds,
    Check,
    accepted_by,
    bounds_of,
    description_of,
    expectation,
    shown,
    unwrap,
    violations,
)

if typing.TYPE_CHECKING:
    import inspect

POSITIONAL_ONLY, NAMED, KEYWORD_ONLY = "positional-only", "positional-or-keyword", "keyword-only"
VAR_POSITIONAL, VAR_KEYWORD = "var-positional", "var-keyword"
_KINDS: Final = (POSITIONAL_ONLY, NAMED, VAR_POSITIONAL, KEYWORD_ONLY, VAR_KEYWORD)  # in the order of `inspect`


def innermost(target: Any) -> Any:
    """The innermost function `inspect` reads, whose globals its annotations were written in."""
    for _ in range(DEPTH):
        if isinstance(target, functools.partial):
            target = target.func
        elif isinstance(target, types.MethodType):
            target = target.__func__
        elif hasattr(target, "__wrapped__") and not hasattr(target, "__signature__"):
            target = target.__wrapped__
        elif isinstance(target, type):
            target = target.__init__ if isinstance(target.__init__, types.FunctionType) else target.__new__  # type: ignore[misc]  # read, not called
        elif hasattr(target, "__globals__") or not isinstance(type(target).__call__, types.FunctionType):
            break
        else:
            target = type(target).__call__
    return target


@attrs.frozen(eq=False)
class Scope:
    """Where the text annotations of one function are evaluated: its globals, and what surrounds it in turn."""

    names: dict[str, Any]
    surroundings: tuple[dict[str, Any], ...]

    @classmethod
    def of(cls, target: Any) -> Scope:
        function = innermost(target)
        names = getattr(function, "__globals__", None)
        if not isinstance(names, dict):
            names = dict(vars(sys.modules.get(getattr(function, "__module__", None) or "", builtins)))
        inner = {each.__name__: each for each in getattr(function, "__type_params__", ())}
        free = getattr(getattr(function, "__code__", None), "co_freevars", ())
        for name, cell in zip(free, getattr(function, "__closure__", None) or (), strict=False):
            with contextlib.suppress(ValueError):  # a variable that has no value yet
                inner[name] = cell.cell_contents
        owner = getattr(target, "__self__", target)
        owner = owner if isinstance(owner, type) else type(owner)
        return cls(names, (inner, {**vars(owner), **inner}))  # the class last: its methods may be called like types

    def resolve(self, annotation: Any) -> Any:
        """The annotation with every text in it evaluated; MISSING where one cannot be, for this parameter alone."""
        holder = types.SimpleNamespace(__annotations__={"it": annotation})
        for inner in self.surroundings:
            with contextlib.suppress(Exception):  # evaluating foreign text may raise anything
                return typing.get_type_hints(holder, self.names, inner, include_extras=True)["it"]
        return MISSING


_SCALARS: Final = frozenset({bool, int, float, complex, str, bytes})


def _is_default(value: object, default: object) -> bool:
    """Whether a value is what a parameter has anyway: the very object, or a text or a number of which there is another.

    Which texts and numbers are one object is the interpreter's choice, and no process shares them with another.
    """
    if value is default:
        return default is not MISSING
    return type(value) is type(default) and type(value) in _SCALARS and value == default


@attrs.frozen
class Parameter:
    """One parameter of a predictor.

    Attributes:
        name: its name, any identifier.
        kind: `"positional-only"`, `"positional-or-keyword"`, `"keyword-only"`, `"var-positional"` or `"var-keyword"`.
        annotation: the resolved type without its outer `Annotated`; `MISSING` where there is none or it cannot be
            resolved, and then anything is accepted.
        default: `MISSING` where there is none.
        description: what its `Annotated` says in words, else "".
        constraints: the bounds of its outer `Annotated`: `(name, bound)` with the names `ge`, `gt`, `le`, `lt`,
            `min_length`, `max_length` and `multiple_of`.
    """

    name: str
    kind: str
    annotation: Any = MISSING
    default: Any = attrs.field(default=MISSING, repr=quote)
    description: str = ""
    constraints: Bounds = ()

    @property
    def required(self) -> bool:
        """Whether a call without this input cannot be made."""
        return self.default is MISSING and self.kind not in {VAR_POSITIONAL, VAR_KEYWORD}

    @property
    def expects(self) -> str:
        """The type and its bounds in a few words, such as `float >= 0`."""
        each = expectation(accepted_by(self.annotation), self.constraints)
        return f"list or tuple of {each}" if self.kind == VAR_POSITIONAL else each

    def check(self, accepted: Accepted | None) -> Check | None:
        """The slow and complete check of one value; None where anything passes."""
        if accepted is None and not self.constraints:
            return None
        name, default, expects = quote(self.name), self.default, expectation(accepted, ())

        def check(value: object) -> list[str]:
            if _is_default(value, default):
                return []
            reason = None
            with contextlib.suppress(Exception):  # a foreign metaclass or a static protocol cannot tell: accept
                reason = accepted.refusal(value) if accepted else None
            if reason is not None:
                return [f"{name} must be {expects}, not {shown(value)}{reason and ': '}{reason}"]
            return [f"{name} must {instead}" for instead in violations(self.constraints, value)]

        return check

    @classmethod
    def read(cls, read: inspect.Parameter, scope: Scope) -> Parameter:
        """Make one from what `inspect` read."""
        plain, metadata = MISSING, ()
        if read.annotation is not read.empty:
            with contextlib.suppress(Exception):  # an alias whose value cannot be evaluated
                plain, metadata = unwrap(scope.resolve(read.annotation))
        return cls(
            name=read.name,
            kind=_KINDS[read.kind],
            annotation=plain,
            default=MISSING if read.default is read.empty else read.default,
            description=description_of(metadata),
            constraints=bounds_of(metadata),
        )
