"""The picklers that values pass through, and what they refuse."""

from __future__ import annotations

import io
import pickle
import sys
import types
from typing import TYPE_CHECKING, Any, Final

from engine._errors import PayloadError, name_shown, say
from engine._records import traceback_of
from engine._wire.by_reference import NAMED, importable, is_importable
from engine._wire.sentinels import note_importable, reduced_sentinel, sentinel_classes

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from engine._wire.frames import Chunk

PROTOCOL: Final = 5
_ASIDE: Final = 4096  # bytes from which a buffer stands beside its pickle, where it is not copied


DEFAULT_ADVICE: Final = "Pass what it is made from instead, or run the predictor with runner='thread'"


def payload_error(
    what: str, value: object, error: BaseException, place: str = "", advice: str = DEFAULT_ADVICE
) -> PayloadError:
    """What somebody is told whose value cannot travel, because of what is at some `place` in it."""
    kind = type(value)
    because = f" because of {place}" if place else ""
    return PayloadError(
        f"{what} of type {name_shown(kind.__qualname__)} cannot be carried to or from a worker{because}: "
        f"{name_shown(type(error).__name__)}: "
        f"{say(error).rstrip('.')}. {advice}.",
        f"{kind.__module__}.{kind.__qualname__}",
        traceback_of(error),
    )


class TooLargeError(Exception):
    """What is encoded has more bytes than it may."""


# Pickling


class _Bounded(io.BytesIO):
    """A file that refuses to grow beyond some size."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self._most = most

    def write(self, data: Any) -> int:
        if self.tell() + len(data) > self._most:
            raise TooLargeError
        return super().write(data)


class BoundedChunks:
    """A file that keeps what comes, and refuses to grow beyond some size."""

    __slots__ = ("_left", "chunks")

    def __init__(self, most: int) -> None:
        self.chunks: list[bytes] = []
        self._left = most

    def write(self, data: bytes) -> None:
        self._left -= len(data)
        if self._left < 0:
            raise TooLargeError
        self.chunks.append(data if data.__class__ is bytes else bytes(data))  # or it may change

    def seek(self, _start: int) -> None:
        """Go back to the beginning."""

    def truncate(self) -> None:
        self._left += sum(map(len, self.chunks))
        self.chunks.clear()


class _Measure(pickle.Pickler):
    """Runs no code of anybody's: of other than built-in types it counts nothing."""

    def reducer_override(self, obj: object) -> Any:
        return NotImplemented if obj is str else (str, ())


def measured(value: Any, _buffers: None, most: int) -> None:
    _Measure(_Bounded(most), PROTOCOL).dump(value)


class _NotByReferenceError(Exception):
    """A class or function was met that the other side cannot import."""


class _Plain(pickle.Pickler):
    """Plain pickle that stops at whatever would be found by reference, and could not be."""

    apart: Collection[int] = ()

    def reducer_override(self, obj: Any) -> Any:
        cls = type(obj)
        named = obj if (type(cls) is type and cls in NAMED) or issubclass(cls, type) else cls
        if id(named) not in importable:
            if not is_importable(named):
                raise _NotByReferenceError
            note_importable(named)
        if id(cls) in sentinel_classes:
            return reduced_sentinel(obj) or NotImplemented
        return _reduced(obj, self.apart) if issubclass(cls, BaseException) else NotImplemented


class _BuiltIn(_Plain):
    """Plain pickle that stops at whatever is of no built-in type."""

    def reducer_override(self, _obj: Any) -> Any:
        raise _NotByReferenceError


def _reduced(error: BaseException, apart: Collection[int]) -> Any:
    """How an exception travels that is rebuilt without its constructor, for it is one of those `apart`.

    One that refuses to have attributes set, as a frozen dataclass does, has its own way, too; all others have theirs.
    """
    kind = type(error)
    if id(error) in apart:
        args, *state = _builtin_base(kind).__reduce__(error)[1:]
        return _made_without_constructor, (kind, args, {**(state[0] if state else {}), **_slots_of(error)})
    if kind.__setattr__ is BaseException.__setattr__ or kind.__setstate__ is not BaseException.__setstate__:
        return NotImplemented
    reduced = error.__reduce__()
    return (_refill, reduced) if len(reduced) == _WITH_STATE else NotImplemented


_WITH_STATE: Final = 3  # parts of an exception's reduction where it has attributes


def has_own_constructor(kind: type[BaseException]) -> bool:
    """Whether a constructor is Python code, so that there are arguments which `args` may not tell."""
    return isinstance(kind.__init__, types.FunctionType) or isinstance(kind.__new__, types.FunctionType)


def _builtin_base(kind: type[BaseException]) -> Any:
    """The exception of the interpreter's own that a class is made from."""
    while kind.__flags__ & _MADE_AT_RUN_TIME:
        kind = kind.__base__  # type: ignore[assignment]  # there is always one
    return kind


_MADE_AT_RUN_TIME: Final = 1 << 9  # of a type's flags


def _slots_of(error: BaseException) -> dict[str, Any]:
    """What an exception has in slots of its classes, which its reduction leaves out."""
    import copyreg

    names = copyreg._slotnames(type(error))  # type: ignore[attr-defined]  # noqa: SLF001 - what `object.__reduce_ex__` uses
    return {name: value for name in names if (value := getattr(error, name, _slots_of)) is not _slots_of}


def _made_without_constructor(kind: type[BaseException], args: tuple[Any, ...], state: dict[str, Any]) -> Any:
    base = _builtin_base(kind)
    error = base.__new__(kind, *args)
    base.__init__(error, *args)
    for name, value in state.items():
        try:
            base.__setattr__(error, name, value)
        except AttributeError:  # something of the class's is in the way
            error.__dict__[name] = value
    return error


def _refill(make: Callable[..., Any], args: tuple[Any, ...], state: dict[str, Any]) -> Any:
    error = make(*args)
    error.__dict__.update(state)
    return error


def pickled(
    value: Any,
    buffers: list[Chunk] | None,
    most: int | None = None,
    apart: Collection[int] = (),
    *,
    holds_files: bool = True,
    whole: Collection[str] = (),
) -> bytes:
    """Pickle a value into one piece; see `dump`.

    Raises:
        TooLargeError: it has more than `most` bytes.
        BaseException: whatever its pickling raises.
    """
    file = io.BytesIO() if most is None else _Bounded(most)
    dump(value, file, buffers, apart, holds_files=holds_files, whole=whole)
    return file.getvalue()


def dump(
    value: Any,
    file: Any,
    buffers: list[Chunk] | None,
    apart: Collection[int] = (),
    *,
    holds_files: bool = True,
    whole: Collection[str] = (),
    is_hurried: bool = False,
) -> None:
    """Pickle a value into an empty file, its large buffers into `buffers` if there is such a list.

    Exceptions whose `id` is in `apart` will be rebuilt without their constructor. A text file that is open for reading
    arrives as what is left to read in it, if the value `holds_files`. What a module of those `whole` defines goes by
    value.

    Raises:
        TooLargeError: the file takes no more; or cloudpickle would have to be imported, and it `is_hurried`.
        BaseException: whatever its pickling raises.
    """

    def aside(buffer: pickle.PickleBuffer) -> bool:
        view = buffer.raw()
        is_small = len(view) < _ASIDE
        if not is_small:
            buffers.append(view)  # type: ignore[union-attr]  # there is one
        return is_small

    callback = None if buffers is None else aside
    try:
        plain = (_BuiltIn if whole else _Plain)(file, PROTOCOL, buffer_callback=callback)
        plain.apart = apart
        plain.dump(value)
        return
    except TooLargeError:
        raise
    except Exception:  # what is no Exception wants to be out of here
        if is_hurried and "engine._wire.by_value" not in sys.modules:
            raise TooLargeError from None
        file.seek(0)
        file.truncate()
        if buffers is not None:
            buffers.clear()
    cloud = _by_value(file, callback)  # out here, so that what it raises is told alone
    cloud.apart, cloud.holds_files, cloud.whole = apart, holds_files, whole
    cloud.dump(value)


def _by_value(file: Any, callback: Callable[[pickle.PickleBuffer], Any] | None) -> Any:
    """A pickler of what is taken by value; imported only where something needs it, for it is not cheap to import."""
    from engine._wire.by_value import Cloud

    made = Cloud(file, PROTOCOL, callback)
    made.reduce_failure = _reduced
    return made
