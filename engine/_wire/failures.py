"""How failures travel: as they were raised, or as what stands for them where the other side cannot rebuild them."""

from __future__ import annotations

import contextlib
import pickle
from typing import Any, Final

from engine._errors import PredictorError, name_shown, quote, say
from engine._records import cut, traceback_of
from engine._wire.picklers import TooLargeError, has_own_constructor, measured, pickled

LARGEST_FAILURE: Final = 1 << 20  # bytes of an encoded exception; a larger one travels as text, cut
_WIDEST: Final = 15  # exceptions of a group whose tracebacks are shown
DEEPEST: Final = 8  # causes of causes, and contexts of contexts, that travel with a failure


# Failures


def sanitized(error: BaseException) -> BaseException:
    """An exception that can be handled: itself, or a `PredictorError` for one whose attributes cannot be read."""
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
    """Turn an exception into built-in types: itself encoded where that can be undone, its texts, what is behind it."""
    error = sanitized(error)
    try:
        found = _rebuildable(error, set())
        whole = None if found is None else found[1]
        text, traceback = _texts_of(error)
        behind = [
            None if each is None or depth == DEEPEST else pack_failure(each, depth + 1) for each in _behind(error)
        ]
    except BaseException as own:  # something in it raises that nothing should
        traceback = ""
        with contextlib.suppress(BaseException):  # and its own story may include that
            traceback = traceback_of(own)
        return None, type(error).__qualname__, "unrepresentable", traceback, None, None
    return whole, type(error).__qualname__, text, traceback, *behind


def _behind(error: BaseException) -> tuple[BaseException | None, BaseException | None]:
    """What an exception was raised from, and what was being handled then, where that is to be shown."""
    cause, context = _cause_in(error), None if _is_suppressed_in(error) else _context_in(error)
    return None if cause is None else sanitized(cause), None if context is None else sanitized(context)


# What an exception has, whatever its class has under these names.
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
        with contextlib.suppress(Exception):  # it may refuse attributes: then it arrives without its traceback
            error.add_note(f"{place}:\n{traceback.rstrip()}")
    with contextlib.suppress(Exception):  # the same
        if context is not None:
            error.__context__ = unpack_failure(context, "")  # its traceback stands above, in the note
        if cause is not None:
            error.__cause__ = unpack_failure(cause, "")
    return error


def _rebuildable(error: BaseException, apart: set[int]) -> tuple[BaseException, bytes] | None:
    """An exception and its pickle, if unpickling gives the like; a group keeps the leaves that can travel.

    Unpickling calls its class with its `args`. Where that fails or gives another text, since the constructor takes
    something else, the exception's `id` is put into `apart`, and it is rebuilt without its constructor.
    """
    second: bytes | None = None
    for is_apart in (False, True):
        if is_apart:
            if not has_own_constructor(type(error)):
                break
            apart.add(id(error))
        try:
            data = pickled(error, None, LARGEST_FAILURE, apart)
            made = pickle.loads(data)  # noqa: S301 - our own bytes
            if type(made) is type(error):
                if is_apart or say(made) == say(error):
                    return error, data
                second = data
        except TooLargeError:
            break
        except BaseException:  # noqa: S112 - the other way may do
            continue
    apart.discard(id(error))
    if second is not None:
        return error, second
    group = _portable_group(error, apart) if isinstance(error, BaseExceptionGroup) else None
    return None if group is None else _rebuildable(group, apart)


def _portable_group(group: BaseExceptionGroup[Any], apart: set[int]) -> BaseExceptionGroup[Any] | None:
    """A group whose leaves can travel; `None` if it is the group itself that cannot."""
    before = len(apart)
    leaves = [_portable_leaf(sanitized(each), apart) for each in group.exceptions]
    if len(apart) == before and all(leaf is each for leaf, each in zip(leaves, group.exceptions, strict=True)):
        return None
    derived = group.derive(leaves)
    for note in getattr(group, "__notes__", ()):
        derived.add_note(note)
    return derived


def _portable_leaf(error: BaseException, apart: set[int]) -> BaseException:
    found = _rebuildable(error, apart)
    if found is not None:
        return found[0]
    name = type(error).__qualname__
    text, traceback = _texts_of(error)
    return PredictorError(f"{name_shown(name)}: {text}", name, traceback)


def _texts_of(error: BaseException) -> tuple[str, str]:
    """An exception's text and its traceback's; what is huge in it, or in what goes with it, is not shown whole."""
    going_along = {id(error): error}
    left = [error]
    while left:
        each = left.pop()
        inner = map(sanitized, each.exceptions) if isinstance(each, BaseExceptionGroup) else ()
        news = [other for other in (*_behind(each), *inner) if other is not None and id(other) not in going_along]
        going_along.update((id(other), other) for other in news)
        left += news
    if not any(map(_is_huge, going_along.values())):
        return say(error), traceback_of(error)
    return _short_text_of(error), cut(_story_of(error))


def _story_of(error: BaseException, depth: int = 0) -> str:
    """The text of a traceback in which nothing is pictured that is huge."""
    from textwrap import indent

    story = f"{_frames_of(error)}{type(error).__qualname__}: {_short_text_of(error)}"
    if depth == DEEPEST:
        return story
    inner = error.exceptions[:_WIDEST] if isinstance(error, BaseExceptionGroup) else ()
    for each in inner:
        story += "\n" + indent(_story_of(each, depth + 1), "  | ")
    cause, context = _behind(error)
    before = context if cause is None else cause
    return story if before is None else f"{_story_of(before, depth + 1)}\n\nThis led to:\n\n{story}"


_shown_whole: Final = BaseException.__str__
_BRIEF: Final = {each.__str__ for each in (BaseExceptionGroup, UnicodeDecodeError, UnicodeEncodeError)}


def _short_text_of(error: BaseException) -> str:
    """An exception's text, made without a picture of what is huge in it."""
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
        except Exception:  # noqa: S112 - it cannot be pickled; measured it can
            continue
    return False


def _frames_of(error: BaseException) -> str:
    import traceback

    return "".join(["Traceback (most recent call last):\n", *traceback.format_tb(error.__traceback__)])
