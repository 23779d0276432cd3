"""What inputs a callable takes: its parameters, read once, and whether it says that it gives a stream."""

from __future__ import annotations

import collections.abc
import functools
import inspect
import sys
import types
import typing
from typing import Any, Final

import attrs

from engine._predictors.annotations import MISSING, unwrap
from engine._predictors.binder import Binder, Compiler
from engine._predictors.parameter import NAMED, POSITIONAL_ONLY, VAR_KEYWORD, Parameter, Scope

if typing.TYPE_CHECKING:
    from collections.abc import Callable


def _given_names(target: Any, read: Callable[[Any], Any]) -> frozenset[str]:
    """Names that a bound method or `functools.partial` has filled by position: Python refuses them as keywords."""
    if isinstance(target, functools.partial):
        inner = target.func
    elif isinstance(target, types.MethodType):
        inner = target.__func__
    elif isinstance(type(target).__call__, types.FunctionType) and not isinstance(target, type):
        inner = type(target).__call__
    else:
        return frozenset()
    named = {str(name) for name, each in read(inner).parameters.items() if each.kind is each.POSITIONAL_OR_KEYWORD}
    return (_given_names(inner, read) | named) - set(read(target).parameters)


_STREAMS: Final = ("Iterator", "Iterable", "Generator", "AsyncIterator", "AsyncIterable", "AsyncGenerator")
_STREAM_CLASSES: Final = frozenset(getattr(collections.abc, name) for name in _STREAMS)
_WAITED: Final = frozenset({collections.abc.Awaitable, collections.abc.Coroutine})


def _says_stream(annotation: Any) -> bool:
    """Whether a return annotation says "an iterator": itself, in a union, or once awaited."""
    annotation, _ = unwrap(annotation)
    origin, arguments = typing.get_origin(annotation) or annotation, typing.get_args(annotation)
    if origin in {typing.Union, types.UnionType}:
        return any(map(_says_stream, arguments))
    if origin in _WAITED and arguments:
        return _says_stream(arguments[-1])
    if isinstance(text := getattr(origin, "__forward_arg__", origin), str):  # imported for type checkers alone
        return text.partition("[")[0].strip().rpartition(".")[2] in _STREAMS
    return isinstance(origin, type) and origin in _STREAM_CLASSES


def _yields(annotation: object, scope: Scope) -> bool:
    try:
        resolved = scope.resolve(annotation) if isinstance(annotation, str) else annotation
        return _says_stream(annotation if resolved is MISSING else resolved)
    except Exception:
        return False


@attrs.frozen
class Signature:
    """The inputs of a predictor.

    Attributes:
        parameters: in the order of the callable.
        yields: whether the return annotation says that an iterator is returned to be followed.
        readable: False where the callable cannot be read (some written in C): every input is then passed on by name,
            unchecked, and the callable itself refuses what does not fit.
        given: names a bound method or `functools.partial` has filled already, which `**kwargs` cannot take.
    """

    parameters: tuple[Parameter, ...] = ()
    yields: bool = False
    readable: bool = True
    given: frozenset[str] = frozenset()

    @classmethod
    def of(cls, target: Any) -> Signature:
        """Read a callable that is ready to be called with inputs; what cannot be read gives `readable=False`."""
        read: Callable[[Any], Any] = inspect.signature
        if sys.version_info >= (3, 14):  # annotations are evaluated late there: a missing name must not fail them all
            import annotationlib

            read = functools.partial(read, annotation_format=annotationlib.Format.FORWARDREF)
        try:
            found, scope = read(target), Scope.of(target)
            parameters = tuple(Parameter.read(each, scope) for each in found.parameters.values())
            open_ended = any(each.kind == VAR_KEYWORD for each in parameters)
            given = _given_names(target, read) if open_ended else frozenset()
        except Exception:
            return cls(readable=False)
        return cls(parameters, _yields(found.return_annotation, scope), given=given)

    def without_instance(self) -> Signature:
        """The inputs of a method that reads as if its instance were one of them."""
        first = self.parameters[:1]
        is_shown = bool(first) and first[0].name == "self" and first[0].kind in {POSITIONAL_ONLY, NAMED}
        return attrs.evolve(self, parameters=self.parameters[1:]) if is_shown else self

    def dispatched(self) -> Signature:
        """The inputs of what is chosen by its first argument: that one goes by position and may be of any type."""
        first, *others = self.parameters or (None,)
        if first is None or first.kind not in {POSITIONAL_ONLY, NAMED}:
            return self
        taken = attrs.evolve(first, kind=POSITIONAL_ONLY, annotation=MISSING, constraints=())
        return attrs.evolve(self, parameters=(taken, *others))

    def names(self) -> tuple[str, ...]:
        """The names an input may have; `**kwargs`, which takes any other, is not one."""
        return tuple(each.name for each in self.parameters if each.kind != VAR_KEYWORD)

    def binder(self, tag: str, *, check: bool = True) -> Binder:
        """Make the function that turns inputs into the arguments of one call.

        It is compiled once, for the lifetime of a predictor. It takes a mapping, or None for no inputs, and returns
        `(args, kwargs)` for `function(*args, **kwargs)`; a call without inputs always returns the same two objects,
        which Python copies at the call. Inputs that are absent are left to their defaults.

        Args:
            tag: what the errors name.
            check: False leaves types and bounds unchecked; names, and whether the call can be made, are still checked.

        Returns:
            The binder. It raises `InvalidInputError`, with every problem, where inputs do not fit.
        """
        made = Compiler(self.parameters, tag, check=check, readable=self.readable, given=self.given)
        return made.compile()
