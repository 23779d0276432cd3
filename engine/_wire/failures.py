"""Exceptions to what the other side can raise: the exception itself, or a `PredictorError` with its texts."""

from __future__ import annotations

import contextlib
import pickle
from typing import Any, Final

from engine._errors import PredictorError, name_shown, quote, say
from engine._records import cut, traceback_of
from engine._wire.picklers import TooLargeError, has_own_constructor, measured, pickled

LARGEST_FAILURE: Final = 1 << 20  # bytes of an encoded exception; a larger one travels as text, cut
_MOST_SHOWN: Final = 15  # exceptions of a group whose tracebacks are shown
DEEPEST: Final = 8  # levels of causes and contexts that travel with a failure, or are searched in a value


def sanitized(error: BaseException) -> BaseException:
    """Give an exception that is safe to handle: itself, or a `PredictorError` where its attributes cannot be read."""
    try:
        for name in ("__class__", "__dict__", "__traceback__", "args"):
            getattr(error, name)
        return error
    except BaseException as own:
        name = type(error).__qualname__
        shown = f"{name_shown(name)}, whose attributes cannot be read: {name_shown(type(own).__name__)}: {say(own)}"
        made = PredictorError(shown, name)
        made.__traceback__ = _traceback_in(error)
        return made


def pack_failure(error: BaseException, depth: int = 0) -> tuple[Any, ...]:
    """Turn an exception into built-in types: its pickle where it can be rebuilt, its texts, its cause and context."""
    error = sanitized(error)
    try:
        found = _rebuildable(error, set())
        whole = None if found is None else found[1]
        text, traceback = _texts_of(error)
        chained = [
            None if each is None or depth == DEEPEST else pack_failure(each, depth + 1) for each in _chained(error)
        ]
    except BaseException as own:  # a method of the exception's class raises
        traceback = ""
        with contextlib.suppress(BaseException):  # and showing that may raise again
            traceback = traceback_of(own)
        return None, type(error).__qualname__, "unrepresentable", traceback, None, None
    return whole, type(error).__qualname__, text, traceback, *chained


def _chained(error: BaseException) -> tuple[BaseException | None, BaseException | None]:
    """Give an exception's cause, and its context where that is not suppressed."""
    cause, context = _cause_in(error), None if _is_suppressed_in(error) else _context_in(error)
    return None if cause is None else sanitized(cause), None if context is None else sanitized(context)


# Read past the exception's class, which may define attributes of these names that raise.
_cause_in, _context_in, _is_suppressed_in, _traceback_in = (
    vars(BaseException)[name].__get__ for name in ("__cause__", "__context__", "__suppress_context__", "__traceback__")
)


def unpack_failure(packed: tuple[Any, ...], place: str) -> BaseException:
    """Rebuild an exception, its remote traceback attached as a note that begins with `place` (none for no place).

    One that cannot be rebuilt arrives as a `PredictorError` with its type's name, text and traceback.
    """
    whole, name, text, traceback, cause, context = packed
    error: BaseException | None = None
    if whole is not None:
        try:
            error = pickle.loads(whole)  # noqa: S301 - from our own worker
        except KeyboardInterrupt:
            raise
        except BaseException:
            error = None
    if not isinstance(error, BaseException):
        error = PredictorError(f"{name_shown(name)}: {text}", name, traceback)
    if place:
        with contextlib.suppress(Exception):  # its class may refuse attributes: then it arrives without its traceback
            error.add_note(f"{place}:\n{traceback.rstrip()}")
    with contextlib.suppress(Exception):  # nor these attributes
        if context is not None:
            error.__context__ = unpack_failure(context, "")  # its traceback stands above, in the note
        if cause is not None:
            error.__cause__ = unpack_failure(cause, "")
    return error


def _rebuildable(error: BaseException, without_constructor: set[int]) -> tuple[BaseException, bytes] | None:
    """Give an exception and its pickle, if unpickling gives its like; a group keeps the leaves that can travel.

    Unpickling calls its class with its `args`. Where that fails or gives another text, since the constructor takes
    something else, the exception's `id` is put into `without_constructor`, and it is rebuilt without its constructor.
    """
    second: bytes | None = None
    for is_apart in (False, True):
        if is_apart:
            if not has_own_constructor(type(error)):
                break
            without_constructor.add(id(error))
        try:
            data = pickled(error, None, LARGEST_FAILURE, without_constructor)
            made = pickle.loads(data)  # noqa: S301 - our own bytes
            if type(made) is type(error):
                if is_apart or say(made) == say(error):
                    return error, data
                second = data
        except TooLargeError:
            break
        except BaseException:  # noqa: S112 - it may succeed without the constructor
            continue
    without_constructor.discard(id(error))
    if second is not None:
        return error, second
    group = _portable_group(error, without_constructor) if isinstance(error, BaseExceptionGroup) else None
    return None if group is None else _rebuildable(group, without_constructor)


def _portable_group(group: BaseExceptionGroup[Any], without_constructor: set[int]) -> BaseExceptionGroup[Any] | None:
    """Make a group whose leaves can travel; `None` if they all can, so that it is the group itself that cannot."""
    before = len(without_constructor)
    leaves = [_portable_leaf(sanitized(each), without_constructor) for each in group.exceptions]
    if len(without_constructor) == before and all(
        leaf is each for leaf, each in zip(leaves, group.exceptions, strict=True)
    ):
        return None
    derived = group.derive(leaves)
    for note in getattr(group, "__notes__", ()):
        derived.add_note(note)
    return derived


def _portable_leaf(error: BaseException, without_constructor: set[int]) -> BaseException:
    found = _rebuildable(error, without_constructor)
    if found is not None:
        return found[0]
    name = type(error).__qualname__
    text, traceback = _texts_of(error)
    return PredictorError(f"{name_shown(name)}: {text}", name, traceback)


def _texts_of(error: BaseException) -> tuple[str, str]:
    """Give an exception's text and its traceback's; huge values in it, or in what it is chained to, are shown cut."""
    connected = {id(error): error}
    left = [error]
    while left:
        each = left.pop()
        inner = map(sanitized, each.exceptions) if isinstance(each, BaseExceptionGroup) else ()
        news = [other for other in (*_chained(each), *inner) if other is not None and id(other) not in connected]
        connected.update((id(other), other) for other in news)
        left += news
    if not any(map(_is_huge, connected.values())):
        return say(error), traceback_of(error)
    return _short_text_of(error), cut(_traceback_without_huge(error))


def _traceback_without_huge(error: BaseException, depth: int = 0) -> str:
    """Format a traceback without a `repr` of anything huge."""
    from textwrap import indent

    text = f"{_frames_of(error)}{type(error).__qualname__}: {_short_text_of(error)}"
    if depth == DEEPEST:
        return text
    inner = error.exceptions[:_MOST_SHOWN] if isinstance(error, BaseExceptionGroup) else ()
    for each in inner:
        text += "\n" + indent(_traceback_without_huge(each, depth + 1), "  | ")
    cause, context = _chained(error)
    before = context if cause is None else cause
    return text if before is None else f"{_traceback_without_huge(before, depth + 1)}\n\nThis led to:\n\n{text}"


_shown_whole: Final = BaseException.__str__
_BRIEF: Final = {each.__str__ for each in (BaseExceptionGroup, UnicodeDecodeError, UnicodeEncodeError)}


def _short_text_of(error: BaseException) -> str:
    """Give an exception's text without a `repr` of anything huge."""
    shown = type(error).__str__
    is_text = shown is _shown_whole and len(error.args) == 1 and type(error.args[0]) is str
    return say(error) if is_text or shown in _BRIEF or not _is_huge(error) else quote(error.args)


def _is_huge(error: BaseException) -> bool:
    """Whether the arguments of an exception are too large to be shown."""
    for measure in (pickled, measured):
        try:
            measure(error.args, None, LARGEST_FAILURE)
            return False
        except TooLargeError:
            return True
        except Exception:  # noqa: S112 - it cannot be pickled, but it can be measured
            continue
    return False


def _frames_of(error: BaseException) -> str:
    import traceback

    return "".join(["Traceback (most recent call last):\n", *traceback.format_tb(error.__traceback__)])
