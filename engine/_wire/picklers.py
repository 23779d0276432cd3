"""Plain pickle for what the other side can import, cloudpickle for anything else; and what is said of a refusal."""

from __future__ import annotations

import io
import pickle
import sys
import types
from typing import TYPE_CHECKING, Any, Final

from engine._errors import PayloadError, name_shown, say
from engine._records import traceback_of
from engine._wire.by_reference import HEAP_TYPE, NAMED, importable, is_importable
from engine._wire.frames import PROTOCOL
from engine._wire.sentinels import note_importable, reduced_sentinel, sentinel_classes

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from engine._wire.frames import Chunk

_OUT_OF_BAND: Final = 4096  # bytes from which a buffer goes beside its pickle, where it is not copied


DEFAULT_ADVICE: Final = "Pass what it is made from instead, or run the predictor with runner='thread'"


def payload_error(
    what: str, value: object, error: BaseException, place: str = "", advice: str = DEFAULT_ADVICE
) -> PayloadError:
    """Make the error of a value that cannot travel, because of what is at some `place` in it."""
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
    """Raised where what is encoded has more bytes than it may."""


# Pickling


class BoundedFile:
    """A file that is pickled into: keeps each chunk as it comes, and refuses to grow beyond `most` bytes."""

    __slots__ = ("_left", "chunks")

    def __init__(self, most: int) -> None:
        self.chunks: list[bytes] = []
        self._left = most

    def write(self, data: bytes) -> None:
        self._left -= len(data)
        if self._left < 0:
            raise TooLargeError
        self.chunks.append(
            data if data.__class__ is bytes else bytes(data)
        )  # pickle's own buffer, which it fills again

    def seek(self, _start: int) -> None:
        """Go back to the beginning; only `dump` does, and never to another position."""

    def truncate(self) -> None:
        """Drop what came so far."""
        self._left += sum(map(len, self.chunks))
        self.chunks.clear()

    def getvalue(self) -> bytes:
        """Join all chunks."""
        return b"".join(self.chunks)


class _MeasuringPickler(pickle.Pickler):
    """Pickles without running code of the value's classes: an object of any but built-in types counts as empty text."""

    def reducer_override(self, obj: object) -> Any:
        return NotImplemented if obj is str else (str, ())


def measured(value: Any, _buffers: None, most: int) -> None:
    """Raise `TooLargeError` for a value of more than `most` bytes, of which only built-in types count."""
    _MeasuringPickler(BoundedFile(most), PROTOCOL).dump(value)


class _NotByReferenceError(Exception):
    """Raised where a class or function is met that the other side cannot import."""


class _PlainPickler(pickle.Pickler):
    """Plain pickle that stops at any class or function that the other side cannot import."""

    without_constructor: Collection[int] = ()

    def reducer_override(self, obj: Any) -> Any:
        cls = type(obj)
        named = obj if (type(cls) is type and cls in NAMED) or issubclass(cls, type) else cls
        if id(named) not in importable:
            if not is_importable(named):
                raise _NotByReferenceError
            note_importable(named)
        if id(cls) in sentinel_classes:
            return reduced_sentinel(obj) or NotImplemented
        return _reduced(obj, self.without_constructor) if issubclass(cls, BaseException) else NotImplemented


class _BuiltInPickler(_PlainPickler):
    """Plain pickle that stops at anything that is of no built-in type."""

    def reducer_override(self, _obj: Any) -> Any:
        raise _NotByReferenceError


def _reduced(error: BaseException, without_constructor: Collection[int]) -> Any:
    """Reduce an exception whose `id` is in `without_constructor`, so that it is rebuilt without its constructor.

    An exception that refuses to have attributes set, as a frozen dataclass does, is reduced specially, too; any other
    as its class says.
    """
    kind = type(error)
    if id(error) in without_constructor:
        args, *state = _builtin_base(kind).__reduce__(error)[1:]
        return _made_without_constructor, (kind, args, {**(state[0] if state else {}), **_slots_of(error)})
    if kind.__setattr__ is BaseException.__setattr__ or kind.__setstate__ is not BaseException.__setstate__:
        return NotImplemented
    reduced = error.__reduce__()
    return (_refill, reduced) if len(reduced) == _WITH_STATE else NotImplemented


_WITH_STATE: Final = 3  # parts of an exception's reduction where it has attributes


def has_own_constructor(kind: type[BaseException]) -> bool:
    """Whether a constructor is Python code, so that it may take other arguments than `args` has."""
    return isinstance(kind.__init__, types.FunctionType) or isinstance(kind.__new__, types.FunctionType)


def _builtin_base(kind: type[BaseException]) -> Any:
    """Find the built-in exception that a class is derived from."""
    while kind.__flags__ & HEAP_TYPE:
        kind = kind.__base__  # type: ignore[assignment]  # there is always one
    return kind


def _slots_of(error: BaseException) -> dict[str, Any]:
    """Give what an exception has in slots of its classes, which its reduction leaves out."""
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
        except AttributeError:  # the class has a read-only property of this name
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
    without_constructor: Collection[int] = (),
    *,
    allows_files: bool = True,
    by_value_modules: Collection[str] = (),
) -> bytes:
    """Pickle a value to bytes; see `dump`.

    Raises:
        TooLargeError: it has more than `most` bytes.
        BaseException: whatever its pickling raises.
    """
    file = io.BytesIO() if most is None else BoundedFile(most)
    dump(value, file, buffers, without_constructor, allows_files=allows_files, by_value_modules=by_value_modules)
    return file.getvalue()


def dump(
    value: Any,
    file: Any,
    buffers: list[Chunk] | None,
    without_constructor: Collection[int] = (),
    *,
    allows_files: bool = True,
    by_value_modules: Collection[str] = (),
    is_on_loop: bool = False,
) -> None:
    """Pickle a value into an empty file, its large buffers into `buffers` if there is such a list.

    Exceptions whose `id` is in `without_constructor` will be rebuilt without theirs. A text file that is open for
    reading arrives as what is left to read in it, if `allows_files`. What is defined in the `by_value_modules` goes by
    value.

    Raises:
        TooLargeError: the file takes no more; or it `is_on_loop`, and importing cloudpickle would block that.
        BaseException: whatever its pickling raises.
    """

    def out_of_band(buffer: pickle.PickleBuffer) -> bool:
        view = buffer.raw()
        is_small = len(view) < _OUT_OF_BAND
        if not is_small:
            buffers.append(view)  # type: ignore[union-attr]  # not None, or this is not the callback
        return is_small

    callback = None if buffers is None else out_of_band
    try:
        plain = (_BuiltInPickler if by_value_modules else _PlainPickler)(file, PROTOCOL, buffer_callback=callback)
        plain.without_constructor = without_constructor
        plain.dump(value)
        return
    except TooLargeError:
        raise
    except Exception:  # not BaseException: Ctrl-C, and an abandoned call, end the encoding
        if is_on_loop and "engine._wire.by_value" not in sys.modules:
            raise TooLargeError from None
        file.seek(0)
        file.truncate()
        if buffers is not None:
            buffers.clear()
    cloud = _by_value(
        file, callback
    )  # after the `except`, so that what it raises does not have the first failure as its context
    cloud.without_constructor, cloud.allows_files, cloud.by_value_modules = (
        without_constructor,
        allows_files,
        by_value_modules,
    )
    cloud.dump(value)


def _by_value(file: Any, callback: Callable[[pickle.PickleBuffer], Any] | None) -> Any:
    """Make a pickler that takes what cannot be imported by value; cloudpickle is imported here, for that is slow."""
    from engine._wire.by_value import ByValuePickler

    made = ByValuePickler(file, PROTOCOL, callback)
    made.reduce_failure = _reduced
    return made
