"""What values an annotation accepts: their classes, their bounds, and how a message says what is expected.

An annotation is read once into an `Accepted`, which tells a value that passes from one that does not, and changes no
value. What cannot be read or resolved is not guessed at: it accepts anything. Nothing here knows parameters or inputs.
"""

from __future__ import annotations

import contextlib
import enum
import functools
import itertools
import math
import numbers
import operator
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Final, TypeAlias

import attrs

from engine._errors import quote

Bounds: TypeAlias = tuple[tuple[str, Any], ...]
Limits: TypeAlias = tuple[frozenset[Any] | None, Bounds]  # the only values (None: all), and the bounds
Check: TypeAlias = Callable[[Any], Iterable[str]]  # the problems with a value; empty where it passes


class _Missing:
    """The type of `MISSING`, which stays one object through a copy and a pickle."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "MISSING"

    def __reduce__(self) -> str:
        return "MISSING"


MISSING: Final = _Missing()

ORDER: Final = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}
LENGTH: Final = {"min_length": ">=", "max_length": "<="}
COMPARE: Final = {">=": operator.ge, ">": operator.gt, "<=": operator.le, "<": operator.lt}
SHOWN: Final = 20  # members of an enumeration, and unknown names, that one message lists
DEPTH: Final = 16  # wrappers followed around one function or type; more is a cycle


# Bounds and descriptions, read from the metadata of `Annotated`


def _attribute(item: object, name: str) -> Any:
    """`item.name`, or None where it has none, cannot say, or has a method of that name (`Series.ge`)."""
    try:
        value = getattr(item, name, None)
    except Exception:
        return None
    return None if callable(value) else value


def _parts(item: object) -> Iterable[object]:
    """What a group of metadata holds: pydantic's `FieldInfo.metadata`, or the items of an iterable group."""
    held = _attribute(item, "metadata")
    if isinstance(held, (list, tuple)):
        return held
    with contextlib.suppress(Exception):  # a foreign __iter__ may raise anything
        if isinstance(item, Iterable) and not isinstance(item, (str, bytes, Mapping, Iterator)):
            return list(itertools.islice(item, 32))  # a group is short; an endless one must not hang us
    return ()


def bounds_of(metadata: Iterable[object], depth: int = 3) -> Bounds:
    """The bounds in the metadata of an `Annotated`, and in its groups, nested at most `depth` deep."""
    found: list[tuple[str, Any]] = []
    for item in metadata:
        if isinstance(item, (type, str)):  # a class has descriptors under these names, not bounds
            continue
        own = [(name, _attribute(item, name)) for name in (*ORDER, *LENGTH, "multiple_of")]
        own = [(name, bound) for name, bound in own if bound is not None]
        found += own or (bounds_of(_parts(item), depth - 1) if depth else ())
    return tuple(found)


def description_of(metadata: Iterable[object]) -> str:
    """The first text in the metadata of an `Annotated`, or "": an item itself, or what describes one."""
    for item in metadata:
        for text in (item, _attribute(item, "documentation"), _attribute(item, "description")):
            if isinstance(text, str):
                return text
    return ""


def _is_multiple(value: Any, bound: Any) -> bool:
    if isinstance(value, numbers.Integral) and isinstance(bound, numbers.Integral):
        return bool(value % bound == 0)
    share = value / bound  # 0.3 is a multiple of 0.1 although 0.3 % 0.1 is not 0
    return math.isclose(share, round(share), rel_tol=1e-9)


def _violation(name: str, bound: Any, value: Any) -> str:
    """What `value` must be instead, or "" where it keeps the bound; a comparison that raises does not keep it."""
    try:
        if name in LENGTH:
            length = len(value)
            kept = COMPARE[LENGTH[name]](length, bound)
            return "" if kept else f"have a length {LENGTH[name]} {quote(bound)}, not {length}"
        kept = _is_multiple(value, bound) if name == "multiple_of" else COMPARE[ORDER[name]](value, bound)
        if kept:
            return ""
    except Exception:
        if name in LENGTH:
            return f"have a length {LENGTH[name]} {quote(bound)}, and {shown(value)} has none"
    return f"be {_bounds_text(((name, bound),))}, not {quote(value)}"


def _bounds_text(bounds: Bounds) -> str:
    order = " and ".join(f"{ORDER[name]} {quote(bound)}" for name, bound in bounds if name in ORDER)
    length = " and ".join(f"{LENGTH[name]} {quote(bound)}" for name, bound in bounds if name in LENGTH)
    multiple = " and ".join(f"a multiple of {quote(bound)}" for name, bound in bounds if name == "multiple_of")
    return ", ".join(filter(None, (order, length and f"of length {length}", multiple)))


# What one annotation accepts


@attrs.frozen(eq=False)
class Accepted:
    """What an annotation accepts.

    Attributes:
        expects: the type in a few words.
        refusal: None where a value passes, else why not ("" where `expects` says it all). May raise where a foreign
            class cannot tell; the value is then accepted.
        exact: classes that pass when they are exactly the value's own, each with the only values (None: all) and the
            bounds that go with it. The generated test is made of these; what it does not know, `refusal` decides.
    """

    expects: str
    refusal: Callable[[Any], str | None]
    exact: Mapping[type, Limits] = attrs.field(factory=dict)


def shown(value: object) -> str:
    """A value and its type, for a message."""
    return "None" if value is None else f"{quote(value)} ({quote(type(value).__name__)[1:-1]})"


def _name_of(annotation: Any) -> str:
    """A short name: `list[int]` where its arguments are plain classes, else the outer class alone."""
    name = getattr(annotation, "__name__", None)
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is None:
        return quote(name or str(annotation))[1:-1]
    plain = all(isinstance(each, type) and typing.get_origin(each) is None for each in arguments)
    inner = f"[{', '.join(map(_name_of, arguments))}]" if arguments and plain else ""
    return _name_of(origin) + inner


def _listing(values: Iterable[str]) -> str:
    texts = list(values)
    more = f" ... ({len(texts)} in all)" if len(texts) > SHOWN else ""
    return ("one of " if len(texts) > 1 else "") + ", ".join(texts[:SHOWN]) + more


def _by_class(cls: type, expects: str = "") -> Accepted:
    return Accepted(expects or _name_of(cls), lambda value: None if isinstance(value, cls) else "", {cls: (None, ())})


def _by_test(expects: str, test: Callable[[Any], bool], *exact: type) -> Accepted:
    return Accepted(expects, lambda value: None if test(value) else "", dict.fromkeys(exact, (None, ())))


def _is_bool(value: object) -> bool:
    """`bool`, and numpy's own, known by name: numpy is not imported, and registers it with no abstract class."""
    cls = type(value)
    return cls is bool or (cls.__module__ == "numpy" and cls.__name__ in {"bool", "bool_"})


def _number_test(abstract: type) -> Callable[[Any], bool]:
    return lambda value: not _is_bool(value) and isinstance(value, abstract)


def _is_file(value: object) -> bool:
    """`typing.IO` and its kin are no base classes of real files: anything that reads or writes passes."""
    return hasattr(value, "read") or hasattr(value, "write")


# bytes is strict: a bytearray can change under a predictor that asked for bytes.
_PLAIN: Final[dict[Any, Accepted]] = {
    bool: _by_test("bool", _is_bool, bool),
    int: _by_test("int", _number_test(numbers.Integral), int),
    float: _by_test("float", _number_test(numbers.Real), float, int),
    complex: _by_test("complex", _number_test(numbers.Complex), complex, float, int),
    type(None): _by_test("None", lambda value: value is None, type(None)),
    typing.LiteralString: _by_class(str),
    typing.IO: _by_test("a file", _is_file),
    typing.TextIO: _by_test("a text file", _is_file),
    typing.BinaryIO: _by_test("a binary file", _is_file),
}
_ANYTHING: Final = (Any, object, MISSING)


def accepted_by(annotation: Any) -> Accepted | None:
    """What `annotation` accepts; None: anything, also where reading it fails (foreign types, endless aliases)."""
    try:
        return _read(annotation)
    except Exception:
        return None


def _read(annotation: Any) -> Accepted | None:  # noqa: PLR0911 - one table of forms, one line each
    if any(annotation is each for each in _ANYTHING):
        return None
    if annotation is None:
        annotation = type(None)
    with contextlib.suppress(TypeError):  # unhashable
        if annotation in _PLAIN:
            return _PLAIN[annotation]
    if hasattr(annotation, "__supertype__"):  # NewType
        return _read(annotation.__supertype__)
    if isinstance(annotation, typing.TypeVar):
        bound = annotation.__constraints__ or (annotation.__bound__,)
        return None if bound == (None,) else _of_union(bound)
    inner, metadata = unwrap(annotation)
    if inner is not annotation:
        return _with_bounds(_read(inner), bounds_of(metadata))
    origin = typing.get_origin(annotation)
    if origin is not None:
        return _of_generic(annotation, origin)
    return _of_class(annotation) if isinstance(annotation, type) else None


def _of_generic(annotation: Any, origin: Any) -> Accepted | None:
    arguments = typing.get_args(annotation)
    if origin is typing.Literal:
        return _of_literal(arguments)
    if origin in {typing.Union, types.UnionType}:
        return _of_union(arguments)
    if origin in _PLAIN:  # typing.IO[str]
        return _PLAIN[origin]
    return _by_class(origin, _name_of(annotation)) if isinstance(origin, type) else None  # the outer type only


def _of_class(cls: type) -> Accepted:
    if issubclass(cls, enum.Enum):
        return _of_enum(cls)
    if dict in cls.__mro__ and hasattr(cls, "__required_keys__"):  # TypedDict, of typing or typing_extensions
        return _by_test(f"a mapping ({_name_of(cls)})", lambda value: isinstance(value, Mapping), dict)
    if callable(getattr(cls, "model_validate", None)):
        return Accepted(_name_of(cls), functools.partial(_model_refusal, cls), {cls: (None, ())})
    return _by_class(cls)


# An enum of one of these takes their values too: how a value of that type is told, and a member's without its enum.
_MIXED_IN: Final[Mapping[type, tuple[Callable[[Any], bool], Callable[[Any], Any]]]] = {
    int: (_number_test(numbers.Integral), int.__int__),
    float: (_number_test(numbers.Real), float.__float__),
    str: (lambda value: isinstance(value, str), str.__str__),
}


def _of_enum(cls: type[enum.Enum]) -> Accepted:
    """Members, and, of an enum that is also a text or a number, their values as they are."""
    members = tuple(cls)
    expects = _listing(_member_text(member) for member in members) or _name_of(cls)
    mixed_in = next((each for each in _MIXED_IN if issubclass(cls, each)), None)
    if mixed_in is None:
        return Accepted(expects, functools.partial(_member_refusal, cls, members), {cls: (None, ())})
    is_of_kind, plain = _MIXED_IN[mixed_in]
    values = frozenset(map(plain, members))
    is_flag = issubclass(cls, enum.Flag)  # whose members may be combined

    def refusal(value: Any) -> str | None:
        if isinstance(value, cls):
            return None
        is_value = is_of_kind(value) and (value in values or (is_flag and _is_made_of(cls, value)))
        return None if is_value else ""

    exact: dict[type, Limits] = {cls: (None, ()), mixed_in: (values, ())}
    return Accepted(expects, refusal, exact)


def _is_made_of(cls: type[enum.Enum], value: Any) -> bool:
    try:
        return isinstance(cls(value), cls)
    except ValueError:
        return False


def _member_text(member: enum.Enum) -> str:
    return quote(f"{type(member).__name__}.{member.name}")[1:-1]


def _member_refusal(cls: type[enum.Enum], members: Iterable[enum.Enum], value: object) -> str | None:
    """None for a member; for the name or the value of one, what is to be given instead."""
    if isinstance(value, cls):
        return None
    for member in members:
        with contextlib.suppress(Exception):  # values may be anything, and compare in any way
            if value == member.name or (type(value) is type(member.value) and value == member.value):
                return f"give {_member_text(member)}"
    return ""


def _model_refusal(cls: Any, value: object) -> str | None:
    """A model's instance passes, and a mapping the model itself accepts; the mapping still arrives as it is."""
    if isinstance(value, cls):
        return None
    if not isinstance(value, Mapping):
        return ""
    try:
        cls.model_validate(value)
    except Exception as error:
        return _model_error(error)
    return None


def _model_error(error: Any) -> str:
    """Pydantic's own message on one line, without the links it ends with."""
    try:
        told = [f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors()]
        return quote("; ".join(told))[1:-1]
    except Exception:
        return f"{type(error).__name__}: {quote(error)}"


def _of_literal(values: tuple[Any, ...]) -> Accepted:
    """By value and exact type: `Literal[1]` takes neither `True` nor `1.0`."""

    def refusal(value: object) -> str | None:
        return None if any(type(value) is type(each) and value == each for each in values) else ""

    exact: dict[type, Limits] = {
        cls: (frozenset(each for each in values if type(each) is cls), ())
        for cls in (str, int, bytes, bool)
        if cls in map(type, values)
    }
    return Accepted(_listing(map(quote, values)), refusal, exact)


def _of_union(members: Iterable[Any]) -> Accepted | None:
    accepted = [accepted_by(member) for member in members]
    known = [each for each in accepted if each is not None]
    if len(known) < len(accepted):
        return None
    exact: dict[type, Limits] = {}
    for cls, limits in (each for member in known for each in member.exact.items()):
        if limits == (None, ()):  # one member that takes the whole class is enough
            exact[cls] = limits
        else:
            exact.setdefault(cls, limits)

    def refusal(value: object) -> str | None:
        reasons = []
        for member in known:
            reason = member.refusal(value)
            if reason is None:
                return None
            reasons.append(reason)
        return "; ".join(filter(None, reasons))

    return Accepted(" or ".join(dict.fromkeys(member.expects for member in known)), refusal, exact)


def _with_bounds(accepted: Accepted | None, bounds: Bounds) -> Accepted | None:
    """Add the bounds of an annotation to what it accepts; a member of a union may have its own."""
    if not bounds:
        return accepted
    base = accepted or Accepted("a value", lambda _value: None)

    def refusal(value: object) -> str | None:
        reason = base.refusal(value)
        return "" if reason is None and any(violations(bounds, value)) else reason

    return Accepted(expectation(accepted, bounds), refusal, exact_with(base, bounds))


def exact_with(accepted: Accepted, bounds: Bounds) -> dict[type, Limits]:
    """The exact classes of `accepted` with `bounds` added to the limits of each; None has no size to bound."""
    return {
        cls: (values, limits if cls is type(None) else (*limits, *bounds))
        for cls, (values, limits) in accepted.exact.items()
    }


def violations(bounds: Bounds, value: object) -> Iterator[str]:
    """What an accepted value must be instead. None has no size: where the type accepts it, bounds do not apply."""
    return filter(None, (_violation(name, bound, value) for name, bound in bounds if value is not None))


def expectation(accepted: Accepted | None, bounds: Bounds) -> str:
    """What is accepted within the bounds, in a few words for a message."""
    text = accepted.expects if accepted else "a value" if bounds else "anything"
    if not bounds:
        return text
    limits = _bounds_text(bounds)
    return f"{text}{', ' if limits.startswith('a ') else ' '}{limits}"


def unwrap(annotation: Any) -> tuple[Any, tuple[Any, ...]]:
    """The type inside `Annotated`, `Required` and aliases (PEP 695), and all metadata met on the way."""
    metadata: tuple[Any, ...] = ()
    for _ in range(DEPTH):
        origin = typing.get_origin(annotation)
        if origin is typing.Annotated:
            metadata += annotation.__metadata__
            annotation = annotation.__origin__
        elif origin in {typing.Required, typing.NotRequired, typing.Final, typing.ClassVar}:
            annotation = typing.get_args(annotation)[0]
        elif type(alias := annotation if origin is None else origin).__name__ == "TypeAliasType":
            annotation = alias.__value__
        else:
            break
    return annotation, metadata
