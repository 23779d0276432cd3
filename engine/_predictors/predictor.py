"""What a predictor is before it runs: its tag, its target and its options.

`Predictor` is the record hooks yield and the registry keeps; `@predictor` only notes the same options on a function
or class and returns it unchanged. Nothing here imports a target: `load` does, when its owner asks for it.
"""

from __future__ import annotations

import functools
import importlib
import math
import re
import typing
from typing import TYPE_CHECKING, Any, Final, TypeVar

import attrs

from engine._errors import InvalidTagError, name_shown, quote
from engine._reducers import reducer_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

Target = TypeVar("Target")

OPTIONS: Final = ("description", "reduce", "runner", "concurrency", "by_value", "yields", "check")
MARK: Final = "__predictor__"

_TAG = re.compile(r"@[a-z0-9._-]{1,64}/[a-z0-9._-]{1,64}")
_TARGET = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*(\.[^\W\d]\w*)*")


def tag_of(text: object) -> str:
    """Read a tag: `@owner/name`, or the same without its `@`.

    Args:
        text: what a user wrote.

    Returns:
        The tag, always with its `@`.

    Raises:
        InvalidTagError: `text` is not of that form.
    """
    if isinstance(text, str):
        tag = text if text.startswith("@") else f"@{text}"
        if _TAG.fullmatch(tag):
            return str(tag)
    raise InvalidTagError(text)


def is_name(value: object) -> bool:
    """Whether this can be a runner's name."""
    return isinstance(value, str) and bool(value)


def _check_reduce(_record: object, _field: object, value: Any) -> None:
    if value is not None:
        reducer_of(value)


def _check_runner(_record: object, _field: object, value: Any) -> None:
    if value is not None and not is_name(value):
        raise ValueError(f"runner must be a runner's name such as 'thread', or None, not {quote(value)}")


def _check_concurrency(_record: object, _field: object, value: Any) -> None:
    if value is None or value == math.inf:
        return
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"concurrency must be a whole number from 1, math.inf or None, not {quote(value)}")


def _check_flag(_record: object, field: attrs.Attribute[Any], value: Any) -> None:
    if value is not None and not isinstance(value, bool):
        raise ValueError(f"{field.name} must be True, False or None, not {quote(value)}")


def _check_description(_record: object, _field: object, value: Any) -> None:
    if value is not None and not isinstance(value, str):
        raise ValueError(f"description must be text or None, not {quote(value)}")


def class_behind(target: object) -> type | None:
    """The class that a target is: itself, or what an alias such as `Model[int]` is of; `None` where it is no class."""
    found = target if isinstance(target, type) else typing.get_origin(target)
    return found if isinstance(found, type) else None


def check_target(value: object) -> None:
    """Refuse what could never be called for a prediction.

    Raises:
        TypeError: it is no function, no class or object with `predict`, and no text.
        ValueError: it is text, but not `"module:name"`.
    """
    if isinstance(value, str):
        if not _TARGET.fullmatch(value):
            raise ValueError(f"a target given as text is written 'module:name', not {quote(value)}")
    elif class_behind(value) is not None and not callable(getattr(value, "predict", None)):
        raise TypeError(f"the class {quote(value)} cannot be a predictor: it has no method predict()")
    elif not callable(value) and not callable(getattr(value, "predict", None)):
        raise TypeError(
            "a predictor's target is a function, a class, an object with predict(), or 'module:name', "
            f"not {quote(value)}"
        )


@attrs.frozen(eq=False, repr=False)
class Predictor:
    """A registered function or class: what to call, under which tag, and the author's choices.

    An option left `None` is taken from the target's `__predictor__` mark, else the engine's default applies.

    Attributes:
        tag: `@owner/name`.
        target: a function, a class, an object with `predict`, or `"module:name"` (imported when first used).
        description: one line for people.
        reduce: how partials become the result: `"last"` (default), `"concat"`, `"collect"`, `"returned"`, or a
            `Reducer`.
        runner: the author's default: `"inline"`, `"thread"`, `"process"`, the name of a plugin's runner, or `None` for
            the engine's choice.
        concurrency: calls at a time: from 1; default unlimited (`math.inf`) for functions, 1 for classes and objects.
        by_value: whether workers get it by value though they could import it, with all that is defined in its module
            and used by it, so that it has there what the program has set in that module (default no).
        yields: whether a returned iterator that is no generator is followed (default: what the return annotation says).
        check: whether inputs are checked against the signature (default yes).

    Raises:
        InvalidTagError: the tag is not of that form.
        TypeError: the target cannot be called.
        ValueError: an option has no meaning.
    """

    tag: str = attrs.field(converter=tag_of)
    target: Any = attrs.field(validator=lambda _record, _field, value: check_target(value))
    description: str | None = attrs.field(default=None, kw_only=True, validator=_check_description)
    reduce: Any = attrs.field(default=None, kw_only=True, validator=_check_reduce)
    runner: str | None = attrs.field(default=None, kw_only=True, validator=_check_runner)
    concurrency: float | None = attrs.field(default=None, kw_only=True, validator=_check_concurrency)
    by_value: bool | None = attrs.field(default=None, kw_only=True, validator=_check_flag)
    yields: bool | None = attrs.field(default=None, kw_only=True, validator=_check_flag)
    check: bool | None = attrs.field(default=None, kw_only=True, validator=_check_flag)

    def __repr__(self) -> str:
        """Short and safe: the tag and the target's name."""
        return f"<Predictor {self.tag} {name_of(self.target)}>"

    def load(self) -> Any:
        """Give the target itself, importing it where it is text.

        Raises:
            ImportError: the module or the name in it does not exist; whatever the import raises otherwise.
            TypeError: what was found cannot be called.
        """
        return import_target(self.target) if isinstance(self.target, str) else self.target

    def options(self, target: object) -> dict[str, Any]:
        """This record's options over those `target` is marked with; options that were not given are left out."""
        marked = mark_of(target)
        own: dict[str, Any] = {name: getattr(self, name) for name in OPTIONS}
        return {
            name: own[name] if own[name] is not None else marked[name]
            for name in OPTIONS
            if own[name] is not None or marked.get(name) is not None
        }


def predictor(
    tag: str,
    *,
    description: str | None = None,
    reduce: Any = None,
    runner: str | None = None,
    concurrency: float | None = None,
    by_value: bool | None = None,
    yields: bool | None = None,
    check: bool | None = None,
) -> Callable[[Target], Target]:
    """Mark a function or class as a predictor; it is returned unchanged, directly callable and picklable.

    All it does is set `__predictor__`, a plain dict of `tag` and the options given. A package may set that itself
    without importing `engine`.

    Args:
        tag: `@owner/name`.
        description: see `Predictor`, like all the following.
        reduce: a reducer's name or object.
        runner: a runner's name.
        concurrency: calls at a time.
        by_value: whether workers get it by value though they could import it.
        yields: whether a returned iterator is followed.
        check: whether inputs are checked.

    Raises:
        InvalidTagError: the tag is not of that form.
        ValueError: an option has no meaning.
        TypeError: what is decorated cannot be called.
    """
    given = zip(OPTIONS, (description, reduce, runner, concurrency, by_value, yields, check), strict=True)
    mark: dict[str, Any] = {"tag": tag_of(tag), **{name: value for name, value in given if value is not None}}

    def decorate(target: Target) -> Target:
        Predictor(target=target, **mark)  # refuses at the decorator's line what would fail at the first call
        setattr(target, MARK, dict(mark))
        return target

    return decorate


def mark_of(target: object) -> Mapping[str, Any]:
    """The `__predictor__` dict of a function, class or object; empty where there is none.

    A class's mark is its own: a subclass does not inherit the tag.
    """
    made = class_behind(target)
    mark = getattr(target, MARK, None) if made is None else vars(made).get(MARK)
    return mark if isinstance(mark, dict) else {}


def import_target(text: str) -> Any:
    """Import the predictor `"module:name"`.

    Raises:
        ImportError: there is no such module or name; an error of the import itself passes as it is.
        TypeError: what was found is neither callable nor an object with `predict`.
    """
    target = import_name(text)
    check_target(target)
    return target


def import_name(text: str) -> Any:
    """Import whatever `"module:name"` is.

    Raises:
        ImportError: there is no such module or name; an error of the import itself passes as it is.
    """
    module, _, path = text.partition(":")
    try:
        return functools.reduce(getattr, path.split("."), importlib.import_module(module))
    except AttributeError as error:
        if getattr(error, "obj", None) is None and error.name not in path.split("."):
            raise
        raise ImportError(f"module {module!r} has no {path!r}", name=module) from error


def name_of(target: object) -> str:
    """`module:qualname` of a target: what a plain callable's predictions carry as their tag."""
    if isinstance(target, str):
        return target
    while isinstance(target, functools.partial):
        target = target.func
    named = target if hasattr(target, "__qualname__") else class_behind(target) or type(target)
    module, name = getattr(named, "__module__", None) or "builtins", getattr(named, "__qualname__", "?")
    return f"{name_shown(module)}:{name_shown(name)}"
