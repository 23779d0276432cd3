"""One generated function that binds a mapping of inputs to the arguments of a call."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final, TypeAlias, cast

import attrs

from engine._errors import InvalidInputError, quote
from engine._predictors.annotations import LENGTH, ORDER, SHOWN, Bounds, Check, accepted_by, exact_with, shown
from engine._predictors.parameter import NAMED, POSITIONAL_ONLY, VAR_KEYWORD, VAR_POSITIONAL, Parameter

Binder: TypeAlias = Callable[[Mapping[str, Any] | None], tuple[tuple[Any, ...], dict[str, Any]]]


_ABSENT: Final = object()  # "not among the inputs"; private, so that no input can be mistaken for it


_MOVED: Final = frozenset({POSITIONAL_ONLY, VAR_POSITIONAL})  # what may not stay in kwargs
_ORDERED: Final = frozenset({int, float})
_SIZED: Final = frozenset({str, bytes, list, tuple, dict})


class Compiler:
    """Writes the binder's source for one signature, and keeps the slow path it calls when something is wrong.

    The source names variables by position (`v0`) and parameters by text (`inputs['name']`); all else reaches it as
    constants in its globals.
    """

    def __init__(
        self, parameters: tuple[Parameter, ...], tag: str, *, check: bool, readable: bool, given: frozenset[str]
    ) -> None:
        """Note what there is to bind; `readable` and `given` are as in `Signature`."""
        self.tag = tag
        self.named = tuple(each for each in parameters if each.kind != VAR_KEYWORD)
        rest = [each for each in parameters if each.kind == VAR_KEYWORD]
        if not readable:
            rest = [Parameter("inputs", VAR_KEYWORD)]
        self.rest = rest[0] if rest else None
        self.known = frozenset(each.name for each in self.named)
        self.given = given
        self.positional = tuple(each for each in self.named if each.kind in {POSITIONAL_ONLY, NAMED})
        self.leading = tuple(each for each in self.named if each.kind == POSITIONAL_ONLY)
        self.accepted = {each.name: accepted_by(each.annotation) if check else None for each in parameters}
        self.checks: dict[str, Check] = {}
        for each in parameters:
            one = each.check(self.accepted[each.name]) if check else None
            if each.kind == VAR_POSITIONAL:
                one = functools.partial(_check_extra, quote(each.name), each.expects, one)
            if one is not None:
                self.checks[each.name] = one
        self.constants: dict[str, Any] = {}

    def compile(self) -> Binder:
        """Write the source and make the binder of it."""
        lines = "\n".join(self.lines())
        calls = (self.read, self.refused, self.fill, self.spread)
        self.constants |= {"absent": _ABSENT, "nothing": ((), {}), **{call.__name__: call for call in calls}}
        exec(compile(lines, "<engine binder>", "exec"), self.constants)  # noqa: S102 - source made of data only
        return cast("Binder", self.constants["bind"])

    # The source

    def constant(self, value: object) -> str:
        """Put a value among the globals of the source; give its name there."""
        name = f"k{len(self.constants)}"
        self.constants[name] = value
        return name

    def lines(self) -> Iterator[str]:
        """The source, top down: no inputs; a copy; the required ones; if there are more, the optional and the rest.

        The copy comes first: what was checked is what is passed on, whatever changes the mapping meanwhile.
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
        leading = "".join(f"v{number}, " for number, each in numbered if each.kind == POSITIONAL_ONLY)
        doubtful = [number for number, each in numbered if each.kind == POSITIONAL_ONLY and not each.required]
        gaps = " or ".join(f"v{number} is absent" for number in doubtful)
        yield f"    args = fill(({leading})) if {gaps} else ({leading})" if doubtful else f"    args = ({leading})"
        for number, each in numbered:
            if each.kind == VAR_POSITIONAL:
                yield f"    if v{number} is not absent and v{number}: return spread(args, kwargs, v{number})"
        yield "    return args, kwargs"

    def test(self, number: int, parameter: Parameter, indent: str) -> Iterator[str]:
        """The quick test of one value, by exact class, before the complete check."""
        check = self.checks.get(parameter.name)
        if check is None:
            return
        exact = self.exact(f"v{number}", parameter)
        yield f"{indent}if {f'not ({exact}) and ' if exact else ''}{self.constant(check)}(v{number}):"
        yield f"{indent}    raise refused(kwargs)"

    def exact(self, variable: str, parameter: Parameter) -> str:
        """The exact classes that pass, as one expression; "" where the check has to decide."""
        accepted = self.accepted[parameter.name]
        if accepted is None or parameter.kind == VAR_POSITIONAL:
            return ""
        limits = exact_with(accepted, parameter.constraints)
        tests = (self.exact_class(variable, cls, *limits[cls]) for cls in limits)
        return " or ".join(list(filter(None, tests))[:4])  # after four, one call is as fast

    def exact_class(self, variable: str, cls: type, values: frozenset[Any] | None, bounds: Bounds) -> str:
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

    # What the source calls where a value does not pass its exact test

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
        moved = [each.default if each.kind == POSITIONAL_ONLY else kwargs.pop(each.name, each.default) for each in gaps]
        return (*args, *moved, *extra), kwargs

    def error(self, *problems: str) -> InvalidInputError:
        rest = [f"**{self.rest.name}"] if self.rest else []
        return InvalidInputError(self.tag, problems, (*(each.name for each in self.named), *rest))

    def refused(self, inputs: dict[Any, Any]) -> InvalidInputError:
        """Make the error for inputs that do not fit: everything is looked at again, slowly, and every problem named."""
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
            check = attrs.evolve(self.rest, name=str(name)).check(self.accepted[self.rest.name])
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
