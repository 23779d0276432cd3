"""What inputs a callable takes: its parameters, and one generated function that binds a mapping to them.

Inputs are checked, never coerced: every value arrives as the same object. Names travel as text in the generated
source, never as identifiers, so a parameter may be called anything. What cannot be read or resolved is not guessed at:
it accepts anything. This module knows no JSON and turns no text into values.
"""

from __future__ import annotations

import builtins
import collections.abc
import contextlib
import functools
import inspect
import sys
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final, TypeAlias, cast

import attrs

from engine._errors import InvalidInputError, quote
from engine._kinds import (
    DEPTH,
    LENGTH,
    MISSING,
    ORDER,
    SHOWN,
    Bounds,
    Check,
    Kind,
    bounds_of,
    description_of,
    expectation,
    kind_of,
    peel,
    shown,
    swift_with,
    violations,
)

Binder: TypeAlias = Callable[[Mapping[str, Any] | None], tuple[tuple[Any, ...], dict[str, Any]]]


_ABSENT: Final = object()  # "not among the inputs"; private, so that no input can be mistaken for it

_POSITIONAL_ONLY, _NAMED, _KEYWORD_ONLY = "positional-only", "positional-or-keyword", "keyword-only"
_VAR_POSITIONAL, _VAR_KEYWORD = "var-positional", "var-keyword"
_KINDS: Final = (_POSITIONAL_ONLY, _NAMED, _VAR_POSITIONAL, _KEYWORD_ONLY, _VAR_KEYWORD)  # in the order of `inspect`


def _function_of(target: Any) -> Any:
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
class _Scope:
    """Where the text annotations of one function are evaluated: its globals, and what surrounds it in turn."""

    names: dict[str, Any]
    surroundings: tuple[dict[str, Any], ...]

    @classmethod
    def of(cls, target: Any) -> _Scope:
        function = _function_of(target)
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
    annotation, _ = peel(annotation)
    origin, arguments = typing.get_origin(annotation) or annotation, typing.get_args(annotation)
    if origin in {typing.Union, types.UnionType}:
        return any(map(_says_stream, arguments))
    if origin in _WAITED and arguments:
        return _says_stream(arguments[-1])
    if isinstance(text := getattr(origin, "__forward_arg__", origin), str):  # imported for type checkers alone
        return text.partition("[")[0].strip().rpartition(".")[2] in _STREAMS
    return isinstance(origin, type) and origin in _STREAM_CLASSES


def _yields(annotation: object, scope: _Scope) -> bool:
    try:
        resolved = scope.resolve(annotation) if isinstance(annotation, str) else annotation
        return _says_stream(annotation if resolved is MISSING else resolved)
    except Exception:
        return False


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
        return self.default is MISSING and self.kind not in {_VAR_POSITIONAL, _VAR_KEYWORD}

    @property
    def expects(self) -> str:
        """The type and its bounds in a few words, such as `float >= 0`."""
        each = expectation(kind_of(self.annotation), self.constraints)
        return f"list or tuple of {each}" if self.kind == _VAR_POSITIONAL else each

    def check(self, kind: Kind | None) -> Check | None:
        """The slow and complete check of one value; None where anything passes."""
        if kind is None and not self.constraints:
            return None
        name, default, expects = quote(self.name), self.default, expectation(kind, ())

        def check(value: object) -> list[str]:
            if _is_default(value, default):
                return []
            reason = None
            with contextlib.suppress(Exception):  # a foreign metaclass or a static protocol cannot tell: accept
                reason = kind.refusal(value) if kind else None
            if reason is not None:
                return [f"{name} must be {expects}, not {shown(value)}{reason and ': '}{reason}"]
            return [f"{name} must {instead}" for instead in violations(self.constraints, value)]

        return check

    @classmethod
    def read(cls, read: inspect.Parameter, scope: _Scope) -> Parameter:
        """Make one from what `inspect` read."""
        plain, metadata = MISSING, ()
        if read.annotation is not read.empty:
            with contextlib.suppress(Exception):  # an alias whose value cannot be evaluated
                plain, metadata = peel(scope.resolve(read.annotation))
        return cls(
            name=read.name,
            kind=_KINDS[read.kind],
            annotation=plain,
            default=MISSING if read.default is read.empty else read.default,
            description=description_of(metadata),
            constraints=bounds_of(metadata),
        )


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
            found, scope = read(target), _Scope.of(target)
            parameters = tuple(Parameter.read(each, scope) for each in found.parameters.values())
            open_ended = any(each.kind == _VAR_KEYWORD for each in parameters)
            given = _given_names(target, read) if open_ended else frozenset()
        except Exception:
            return cls(readable=False)
        return cls(parameters, _yields(found.return_annotation, scope), given=given)

    def without_instance(self) -> Signature:
        """The inputs of a method that reads as if its instance were one of them."""
        first = self.parameters[:1]
        is_shown = bool(first) and first[0].name == "self" and first[0].kind in {_POSITIONAL_ONLY, _NAMED}
        return attrs.evolve(self, parameters=self.parameters[1:]) if is_shown else self

    def dispatched(self) -> Signature:
        """The inputs of what is chosen by its first argument: that one goes by position and may be of any type."""
        first, *others = self.parameters or (None,)
        if first is None or first.kind not in {_POSITIONAL_ONLY, _NAMED}:
            return self
        taken = attrs.evolve(first, kind=_POSITIONAL_ONLY, annotation=MISSING, constraints=())
        return attrs.evolve(self, parameters=(taken, *others))

    def names(self) -> tuple[str, ...]:
        """The names an input may have; `**kwargs`, which takes any other, is not one."""
        return tuple(each.name for each in self.parameters if each.kind != _VAR_KEYWORD)

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
        return _Compiler(self, tag, check).compile()


# --- the binder --------------------------------------------------------------------------------------------------

_MOVED: Final = frozenset({_POSITIONAL_ONLY, _VAR_POSITIONAL})  # what may not stay in kwargs
_ORDERED: Final = frozenset({int, float})
_SIZED: Final = frozenset({str, bytes, list, tuple, dict})


class _Compiler:
    """Writes the binder's source for one signature, and keeps the slow path it calls when something is wrong.

    The source names variables by position (`v0`) and parameters by text (`inputs['name']`); all else reaches it as
    constants in its globals.
    """

    def __init__(self, signature: Signature, tag: str, check: bool) -> None:  # noqa: FBT001 - private
        self.tag = tag
        self.named = tuple(each for each in signature.parameters if each.kind != _VAR_KEYWORD)
        rest = [each for each in signature.parameters if each.kind == _VAR_KEYWORD]
        if not signature.readable:
            rest = [Parameter("inputs", _VAR_KEYWORD)]
        self.rest = rest[0] if rest else None
        self.known = frozenset(each.name for each in self.named)
        self.given = signature.given
        self.positional = tuple(each for each in self.named if each.kind in {_POSITIONAL_ONLY, _NAMED})
        self.leading = tuple(each for each in self.named if each.kind == _POSITIONAL_ONLY)
        self.kinds = {each.name: kind_of(each.annotation) if check else None for each in signature.parameters}
        self.checks: dict[str, Check] = {}
        for each in signature.parameters:
            one = each.check(self.kinds[each.name]) if check else None
            if each.kind == _VAR_POSITIONAL:
                one = functools.partial(_check_extra, quote(each.name), each.expects, one)
            if one is not None:
                self.checks[each.name] = one
        self.constants: dict[str, Any] = {}

    def compile(self) -> Binder:
        lines = "\n".join(self.lines())
        calls = (self.read, self.refused, self.fill, self.spread)
        self.constants |= {"absent": _ABSENT, "nothing": ((), {}), **{call.__name__: call for call in calls}}
        exec(compile(lines, "<engine binder>", "exec"), self.constants)  # noqa: S102 - source made of data only
        return cast("Binder", self.constants["bind"])

    # -- the source

    def constant(self, value: object) -> str:
        name = f"k{len(self.constants)}"
        self.constants[name] = value
        return name

    def lines(self) -> Iterator[str]:
        """The source, top down: no inputs; a copy; the required ones; if there are more, the optional and the rest.

        The copy comes first: what was checked is what is passed on, whoever changes the mapping meanwhile.
        """
        numbered = list(enumerate(self.named))
        required = [(number, each) for number, each in numbered if each.required]
        optional = [(number, each) for number, each in numbered if not each.required]
        yield "def bind(inputs=None):"
        yield "    if type(inputs) is dict:"
        if not required:
            yield "        if not inputs: return nothing"
        yield "        kwargs = inputs.copy()"
        if not required:
            yield "    elif inputs is None: return nothing"
        yield "    else: kwargs = read(inputs)"
        if required:
            yield "    try:"
            yield from (f"        v{number} = kwargs[{each.name!a}]" for number, each in required)
            yield "    except KeyError: raise refused(kwargs) from None"
        for number, each in required:
            yield from self.test(number, each, "    ")
        yield f"    more = len(kwargs) - {len(required)}"
        yield from (f"    v{number} = absent" for number, each in optional if each.kind in _MOVED)
        yield "    if more:"
        for number, each in optional:
            yield f"        if {each.name!a} in kwargs:"
            yield "            more -= 1"
            yield f"            v{number} = kwargs[{each.name!a}]"
            yield from self.test(number, each, "            ")
        yield from self.rest_lines()
        yield from self.move_lines(numbered)

    def rest_lines(self) -> Iterator[str]:
        """What is left over: an error, or for `**kwargs` to take."""
        yield "        if more:"
        if self.rest is None:
            yield "            raise refused(kwargs)"
            return
        check = self.checks.get(self.rest.name)
        tests = ["not isinstance(name, str)"]
        if self.given:
            tests.append(f"name in {self.constant(self.given)}")
        if check:
            tests.append(f"{self.constant(check)}(kwargs[name])")
        known = f"name not in {self.constant(self.known)} and " if self.known else ""
        yield "            for name in kwargs:"
        yield f"                if {known}({' or '.join(tests)}): raise refused(kwargs)"

    def move_lines(self, numbered: list[tuple[int, Parameter]]) -> Iterator[str]:
        """Take out of `kwargs` what goes by position."""
        for number, each in numbered:
            if each.kind in _MOVED:
                yield f"    if v{number} is not absent: del kwargs[{each.name!a}]"
        leading = "".join(f"v{number}, " for number, each in numbered if each.kind == _POSITIONAL_ONLY)
        doubtful = [number for number, each in numbered if each.kind == _POSITIONAL_ONLY and not each.required]
        gaps = " or ".join(f"v{number} is absent" for number in doubtful)
        yield f"    args = fill(({leading})) if {gaps} else ({leading})" if doubtful else f"    args = ({leading})"
        for number, each in numbered:
            if each.kind == _VAR_POSITIONAL:
                yield f"    if v{number} is not absent and v{number}: return spread(args, kwargs, v{number})"
        yield "    return args, kwargs"

    def test(self, number: int, parameter: Parameter, indent: str) -> Iterator[str]:
        """The happy test of one value, by exact class, before the check that takes its time."""
        check = self.checks.get(parameter.name)
        if check is None:
            return
        swift = self.swift(f"v{number}", parameter)
        yield f"{indent}if {f'not ({swift}) and ' if swift else ''}{self.constant(check)}(v{number}):"
        yield f"{indent}    raise refused(kwargs)"

    def swift(self, variable: str, parameter: Parameter) -> str:
        kind = self.kinds[parameter.name]
        if kind is None or parameter.kind == _VAR_POSITIONAL:
            return ""
        limits = swift_with(kind, parameter.constraints)
        tests = (self.swift_class(variable, cls, *limits[cls]) for cls in limits)
        return " or ".join(list(filter(None, tests))[:4])  # after four, one call is as fast

    def swift_class(self, variable: str, cls: type, values: frozenset[Any] | None, bounds: Bounds) -> str:
        """One exact class with its values and bounds as an expression; "" where the check has to decide."""
        tests = [f"{variable} is None" if cls is type(None) else f"type({variable}) is {self.constant(cls)}"]
        if values is not None:
            tests.append(f"{variable} in {self.constant(values)}")
        for name, bound in bounds:
            if name in ORDER and cls in _ORDERED and type(bound) in _ORDERED:
                tests.append(f"{variable} {ORDER[name]} {self.constant(bound)}")
            elif name in LENGTH and cls in _SIZED and type(bound) is int:
                tests.append(f"len({variable}) {LENGTH[name]} {self.constant(bound)}")
            else:
                return ""
        return " and ".join(tests)

    # -- what the source calls where the happy path ends

    def read(self, inputs: object) -> dict[str, Any]:
        """Any mapping as a plain dict, so that a `__missing__` of its own cannot answer for an absent input."""
        if inputs is None:
            return {}
        example = f"{{{quote(self.named[0].name)}: ...}}" if self.named else "{}" if not self.rest else "{'name': ...}"
        if not isinstance(inputs, Mapping):
            raise self.error(f"inputs must be one mapping such as {example}, not {shown(inputs)}")
        try:
            return dict(inputs)
        except Exception as error:
            raise self.error(f"inputs could not be read as a mapping ({type(error).__name__})") from error

    def fill(self, values: tuple[Any, ...]) -> tuple[Any, ...]:
        """Positional-only values up to the last one supplied, defaults in the gaps before it."""
        while values and values[-1] is _ABSENT:
            values = values[:-1]
        return tuple(
            each.default if value is _ABSENT else value for each, value in zip(self.leading, values, strict=False)
        )

    def spread(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], extra: list[Any] | tuple[Any, ...]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Values for `*args` reach a call only behind every positional parameter, so all of these go by position."""
        gaps = self.positional[len(args) :]
        moved = [
            each.default if each.kind == _POSITIONAL_ONLY else kwargs.pop(each.name, each.default) for each in gaps
        ]
        return (*args, *moved, *extra), kwargs

    def error(self, *problems: str) -> InvalidInputError:
        rest = [f"**{self.rest.name}"] if self.rest else []
        return InvalidInputError(self.tag, problems, (*(each.name for each in self.named), *rest))

    def refused(self, inputs: dict[Any, Any]) -> InvalidInputError:
        """Look again at everything, slowly, and name every problem."""
        problems = [*self.known_problems(inputs), *self.other_problems(inputs)]
        return self.error(*(problems or ["inputs changed while they were checked"]))

    def known_problems(self, inputs: dict[Any, Any]) -> Iterator[str]:
        for each in self.named:
            value = inputs.get(each.name, _ABSENT)
            if value is not _ABSENT:
                yield from self.checks.get(each.name, _no_problem)(value)
            elif each.required:
                expects = each.expects
                yield f"{quote(each.name)} is missing" + (f" ({expects})" if expects != "anything" else "")

    def other_problems(self, inputs: dict[Any, Any]) -> Iterator[str]:
        others = [name for name in inputs if name not in self.known]
        told = 0
        for number, name in enumerate(others):
            for problem in self.other_problem(name, inputs[name]):
                yield problem
                told += 1
            if told >= 5 * SHOWN and others[number + 1 :]:  # a message, not the whole mapping back
                yield f"{len(others) - number - 1} more names were not looked at"
                return

    def other_problem(self, name: object, value: object) -> Iterator[str]:
        if not isinstance(name, str):
            yield f"{shown(name)} is not a name: the keys of inputs are text"
        elif name in self.given:
            yield f"{quote(name)} has its value already and cannot be an input"
        elif self.rest is None:
            yield f"{quote(name)} is not an input{self.suggestion(name)}"
        elif self.rest.name in self.checks:
            check = attrs.evolve(self.rest, name=str(name)).check(self.kinds[self.rest.name])
            yield from (check or _no_problem)(value)

    def suggestion(self, name: str) -> str:
        import difflib

        close = difflib.get_close_matches(name[:100], [each.name for each in self.named], 1)
        return f"; did you mean {quote(close[0])}?" if close else ""


def _no_problem(_value: object) -> tuple[str, ...]:
    return ()


def _check_extra(name: str, expects: str, check: Check | None, values: object) -> list[str]:
    """`*args`: a list or tuple, each element checked; its shape is checked always, or the call could not be made."""
    if not isinstance(values, (list, tuple)):
        return [f"{name} must be {expects}, not {shown(values)}"]
    return [problem for value in values for problem in check(value)] if check else []
