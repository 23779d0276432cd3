"""Text becomes values, by the annotation of the parameter it is meant for. Nowhere else does the engine coerce.

What is not annotated is JSON where it parses, else text; `@file` stands for what a file holds, `@@text` for `@text`.
Whether a value fits is not decided here: the engine checks every input afterwards, and this module asks it.
"""

from __future__ import annotations

import enum
import json
import types
import typing
from collections import abc, deque
from contextlib import suppress
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any, Final, cast

from engine._errors import InvalidInputError, quote
from engine._predictors.annotations import MISSING, unwrap
from engine._predictors.parameter import Parameter
from engine._predictors.signature import Signature

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_YES: Final = frozenset({"true", "yes", "on", "1"})
_NO: Final = frozenset({"false", "no", "off", "0"})
_NONE: Final = type(None)
_ANYTHING: Final = (MISSING, Any, object)
_BINARY: Final = (bytes, bytearray, memoryview)
# What JSON has no form of its own for: a list of it is made into these.
_FROM_LIST: Final[dict[Any, Callable[[list[Any]], Any]]] = {
    tuple: tuple,
    set: set,
    frozenset: frozenset,
    deque: deque,
    abc.Set: frozenset,
    abc.MutableSet: set,
}


class UnreadableError(Exception):
    """Raised when text does not stand for a value of the type that is wanted; the text says why, or is empty."""


def value_of(parameter: Parameter, text: str) -> Any:
    """Turn text into the value of one parameter.

    Args:
        parameter: what the value is for; its annotation decides.
        text: what the user wrote: a value, `@file`, or `@@text` for a text that begins with `@`.

    Raises:
        UnreadableError: it does not convert; the message names the parameter and what it expects.
    """
    annotation = _annotation_of(parameter)
    try:
        if text.startswith("@@"):
            return _from_text(annotation, text[1:])
        return _from_file(annotation, text[1:]) if text.startswith("@") else _from_text(annotation, text)
    except UnreadableError as error:
        reason = f": {error}" if str(error) else ""
        raise UnreadableError(
            f"{quote(parameter.name)} must be {parameter.expects}, not {quote(text)}{reason}"
        ) from None


def value_of_json(parameter: Parameter, value: Any) -> Any:
    """Turn a value read from JSON into what its parameter wants where JSON has no form for it: paths, enums, tuples.

    A value that has no such form comes back as it is, for the engine to refuse.
    """
    return _fit(_annotation_of(parameter), value)


def is_flag(parameter: Parameter) -> bool:
    """Whether a parameter is a `bool`, or a `bool` that may be `None`."""
    members = _members(_annotation_of(parameter))
    return any(each is bool for each in members) and all(each is bool or each is _NONE for each in members)


def json_of(text: str, *, is_strict: bool = False) -> Any:
    """Parse JSON.

    Args:
        text: the JSON.
        is_strict: whether `NaN` and `Infinity`, which Python reads and writes, are refused.

    Raises:
        UnreadableError: it is not JSON; the message says where it stops being so.
    """
    try:
        return json.loads(text, parse_constant=_refuse_constant if is_strict else None)
    except json.JSONDecodeError as error:
        raise UnreadableError(f"not JSON: {error.msg} at line {error.lineno}, column {error.colno}") from None
    except (ValueError, RecursionError) as error:  # a number of too many digits, a tower of brackets
        raise UnreadableError(f"not readable as JSON: {quote(str(error))[1:-1]}") from None


def text_in(name: str) -> str:
    """What a UTF-8 file holds.

    Raises:
        UnreadableError: there is no such file, or it is not text.
    """
    try:
        return _bytes_in(name).decode("utf-8")
    except UnicodeDecodeError as error:
        raise UnreadableError(f"the file {quote(name)} is not UTF-8 text (byte {error.start})") from None


def _bytes_in(name: str) -> bytes:
    if not name:
        raise UnreadableError("'@' is followed by the name of a file; write '@@' for a text that begins with '@'")
    try:
        return Path(name).read_bytes()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UnreadableError(
            f"cannot read the file {quote(name)} ({reason}); write '@@' for a text that begins with '@'"
        ) from None


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


# Annotations


def _annotation_of(parameter: Parameter) -> Any:
    """What the value as a whole is: `*args` takes a list."""
    if parameter.kind != "var-positional":
        return parameter.annotation
    return list[Any] if parameter.annotation is MISSING else list[parameter.annotation]  # type: ignore[name-defined]  # a type made at run time


def _members(annotation: Any) -> tuple[Any, ...]:
    """The alternatives of an annotation, unions taken apart; empty where anything goes, or where it cannot be read."""
    try:
        return _alternatives(annotation)
    except Exception:  # an alias that cannot be evaluated, or has no end
        return ()


def _alternatives(annotation: Any) -> tuple[Any, ...]:
    annotation, _ = unwrap(annotation)
    if any(annotation is each for each in _ANYTHING):
        return ()
    if hasattr(annotation, "__supertype__"):  # NewType
        return _alternatives(annotation.__supertype__)
    if isinstance(annotation, typing.TypeVar):
        bound = annotation.__constraints__ or (annotation.__bound__,)
        return () if bound == (None,) else _all_members(bound)
    if typing.get_origin(annotation) in {typing.Union, types.UnionType}:
        return _all_members(typing.get_args(annotation))
    return (_NONE if annotation is None else annotation,)


def _all_members(annotations: tuple[Any, ...]) -> tuple[Any, ...]:
    members = [_alternatives(each) for each in annotations]
    return tuple(each for some in members for each in some) if all(members) else ()


def _is_a(member: Any, *classes: type) -> bool:
    return isinstance(member, type) and typing.get_origin(member) is None and issubclass(member, classes)


def _is_text(member: Any) -> bool:
    return member is str or member is typing.LiteralString


def _accepts(annotation: Any, value: Any) -> bool:
    """Whether the engine would take `value`."""
    bind = Signature((Parameter("value", "keyword-only", annotation),)).binder("")
    try:
        bind({"value": value})
    except InvalidInputError:
        return False
    return True


# Text


def _from_text(annotation: Any, text: str) -> Any:
    members = _members(annotation)
    if not members:
        with suppress(UnreadableError):
            return json_of(text, is_strict=True)
        return text
    if len(members) == 1:
        return _reader_of(members[0])(text)
    return _from_union(annotation, members, text)


def _from_union(annotation: Any, members: tuple[Any, ...], text: str) -> Any:
    """JSON where a member takes it; else members that can refuse; then text; then what is made of any text."""
    with suppress(UnreadableError):
        value = _fit(annotation, json_of(text, is_strict=any(map(_is_text, members))))
        if _accepts(annotation, value):
            return value
    takes_text = any(map(_is_text, members))
    for member in sorted(members, key=_takes_any_text):
        if takes_text and not _is_named(member):
            continue  # "yes" or "1_000" for `bool | str` or `int | str` is text
        with suppress(UnreadableError):
            value = _reader_of(member)(text)
            if _accepts(member, value):
                return value
    if takes_text:
        return text
    raise UnreadableError


def _takes_any_text(member: Any) -> bool:
    return _is_a(member, PurePath, *_BINARY) or _is_path(member)


def _is_path(member: Any) -> bool:
    import os

    return (typing.get_origin(member) or member) is os.PathLike


def _is_named(member: Any) -> bool:
    """Whether a type has a few values, each of which has a text of its own."""
    return typing.get_origin(member) is typing.Literal or _is_a(member, enum.Enum)


def _reader_of(member: Any) -> Callable[[str], Any]:  # noqa: PLR0911 - one table of types, one line each
    if _is_text(member):
        return str
    if typing.get_origin(member) is typing.Literal:
        return lambda text: _named(text, _texts_of_literal(member))
    if _is_a(member, enum.Enum):
        return lambda text: _enumerated(member, text)
    if member is bool:
        return _bool
    if any(member is each for each in (int, float, complex)):
        return lambda text: _number(member, text)
    if _is_a(member, *_BINARY):
        return lambda text: member(text.encode("utf-8", "surrogateescape"))  # as the shell gave them
    if _is_path(member):
        return Path
    if _is_a(member, PurePath):
        return cast("type[PurePath]", member)
    return lambda text: _from_json(member, text)


def _bool(text: str) -> bool:
    word = text.strip().lower()
    if word not in _YES | _NO:
        raise UnreadableError("write true or false")
    return word in _YES


def _number(kind: Any, text: str) -> Any:
    try:
        return kind(text)
    except (ValueError, OverflowError):
        raise UnreadableError from None


def _from_json(annotation: Any, text: str) -> Any:
    """A value written as JSON; one of another type is the engine's to refuse, which says what it got."""
    return _fit(annotation, json_of(text))


def _named(text: str, texts: Iterator[tuple[str, Any]]) -> Any:
    for name, value in texts:
        if text == name:
            return value
    raise UnreadableError


def _texts_of_literal(literal: Any) -> Iterator[tuple[str, Any]]:
    """Each value of a `Literal` with what it is called; those that are text come first."""
    values = typing.get_args(literal)
    yield from ((value, value) for value in values if type(value) is str)
    for value in values:
        if isinstance(value, enum.Enum):
            yield from _texts_of_member(value)
        elif isinstance(value, bytes):
            yield value.decode("utf-8", "surrogateescape"), value
        elif isinstance(value, bool) or value is None:
            yield json.dumps(value), value
            yield str(value), value
        else:
            yield str(value), value


def _texts_of_member(member: enum.Enum) -> Iterator[tuple[str, enum.Enum]]:
    yield str(member.value), member
    yield member.name, member


def _enumerated(kind: Any, text: str) -> Any:
    """A member by its value, else by its name; combined flags by number."""
    members = [kind.__members__[name] for name in kind.__members__]
    pairs = [(str(member.value), member) for member in members] + list(kind.__members__.items())
    with suppress(UnreadableError):
        return _named(text, iter(pairs))
    try:
        return kind(json.loads(text))
    except Exception:  # an enum's own `_missing_` may raise anything
        raise UnreadableError from None


# Files


def _from_file(annotation: Any, name: str) -> Any:
    members = _members(annotation)
    binary = [each for each in members if _is_a(each, *_BINARY)]
    if binary:
        return binary[0](_bytes_in(name))
    if any(map(_is_text, members)):
        return text_in(name)
    return _from_json(annotation, text_in(name)) if members else _anything_in(name)


def _anything_in(name: str) -> Any:
    """JSON, else text, else bytes: what an unannotated parameter gets of a file."""
    held = _bytes_in(name)
    try:
        text = held.decode("utf-8")
    except UnicodeDecodeError:
        return held
    return _from_text(MISSING, text)


# JSON


def _fit(annotation: Any, value: Any) -> Any:
    """The first form of a JSON value that an alternative takes; the value itself where it passes, or nothing does."""
    if not isinstance(value, (list, dict)) and _accepts(annotation, value):  # a container is looked into
        return value
    for member in _members(annotation):
        fitted = _fit_member(member, value)
        if _accepts(member, fitted):
            return fitted
    return value


def _fit_member(member: Any, value: Any) -> Any:
    kind, arguments = typing.get_origin(member) or member, typing.get_args(member)
    if isinstance(value, str) and (_takes_any_text(member) or _is_a(member, enum.Enum)):
        with suppress(UnreadableError):
            return _reader_of(member)(value)
    if _is_a(member, enum.Enum):
        with suppress(Exception):  # as in `_enumerated`
            return member(value)
    if isinstance(value, list):
        return _fit_list(kind, arguments, value)
    if isinstance(value, dict) and len(arguments) == 2:  # noqa: PLR2004 - of keys and of values
        return {_key(arguments[0], key): _fit(arguments[1], each) for key, each in value.items()}
    return value


def _fit_list(kind: Any, arguments: tuple[Any, ...], values: list[Any]) -> Any:
    if kind is tuple and arguments and arguments[-1] is not Ellipsis:
        if len(arguments) == len(values):
            values = [_fit(each, value) for each, value in zip(arguments, values, strict=True)]
    elif arguments:
        values = [_fit(arguments[0], value) for value in values]
    try:
        return _FROM_LIST.get(kind, list)(values)
    except TypeError:  # elements of a set that cannot be hashed
        return values


def _key(annotation: Any, key: str) -> Any:
    """Keys in JSON are always text."""
    with suppress(UnreadableError):
        return _from_text(annotation, key) if _members(annotation) else key
    return key
