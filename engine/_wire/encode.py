"""Values and inputs to bytes, with large buffers beside them.

Plain pickle serves built-in types and classes of modules that the other side can import; anything else, and all of
`__main__`, goes by value through cloudpickle. No I/O happens here.
"""

from __future__ import annotations

import contextlib
import pickle
from itertools import islice
from typing import TYPE_CHECKING, Any, Final

import attrs

from engine._errors import name_shown, quote, say
from engine._wire.failures import DEEPEST
from engine._wire.frames import PROTOCOL
from engine._wire.incremental import COPY_STEP, PICKLE_STEP, AbandonedError, PickleWriter
from engine._wire.picklers import DEFAULT_ADVICE, BoundedFile, dump, payload_error, pickled
from engine._wire.sentinels import AS_ANY_OBJECT

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Sequence

    from engine._wire.frames import Chunk

SMALL: Final = 4096  # characters or bytes of a value that may stand in a frame's `meta`, or be batched with others
_PLAIN_INPUTS: Final = 64  # inputs of one call that may stand there

# Immutable, and encoding them runs no Python code.
_ATOMS: Final = frozenset({str, bytes, int, float, complex, bool, type(None)})


@attrs.define(eq=False)
class Payload:
    """An encoded value: a pickle, and the buffers it refers to.

    Attributes:
        data: the pickle, or its beginning.
        buffers: contiguous bytes outside it, in its order.
        more: the rest of the pickle, where it was made in steps.
    """

    data: bytes
    buffers: Sequence[Chunk] = ()
    more: Sequence[Chunk] = ()

    @property
    def chunks(self) -> list[Chunk]:
        """The pickle and the buffers, in order."""
        return [self.data, *self.more, *self.buffers]

    @property
    def sizes(self) -> tuple[int, ...]:
        """The length of the pickle and of each buffer, in bytes."""
        return (len(self.data) + sum(map(len, self.more)), *map(len, self.buffers))


def encode(value: Any, by_value_modules: Collection[str] = ()) -> Payload:
    """Encode any value, its large buffers outside.

    Args:
        value: what is to travel.
        by_value_modules: names of modules of which everything is taken by value.

    Raises:
        BaseException: whatever its pickling raises; see `payload_error`.
    """
    if _is_atom(value):
        return Payload(pickle.dumps(value, PROTOCOL))
    buffers: list[Chunk] = []
    data = pickled(value, buffers, by_value_modules=by_value_modules)
    return Payload(data, buffers)


def is_plain(value: object) -> bool:
    """Whether a value is immutable, small, and defined by its value alone, so that it may stand in a frame's `meta`."""
    kind = type(value)
    if kind is str or kind is bytes:
        return len(value) <= SMALL  # type: ignore[arg-type]
    if kind is int:
        return value.bit_length() <= 8 * SMALL  # type: ignore[attr-defined, no-any-return]
    return value is None or kind is bool or kind is float or kind is complex


def _is_atom(value: object) -> bool:
    kind = type(value)
    return type(kind) is type and kind in _ATOMS  # a class of another kind may refuse to be hashed


def are_plain(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether inputs are few and plain."""
    if args or len(kwargs) > _PLAIN_INPUTS:
        return False
    for value in kwargs.values():  # noqa: SIM110 - with every call, and `all` is slower
        if not is_plain(value):
            return False
    return True


def encode_at_once(
    args: tuple[Any, ...], kwargs: dict[str, Any], by_value_modules: Collection[str] = ()
) -> Payload | None:
    """Encode the inputs of a call on an event loop; `None` where they are too large for that, or cannot travel.

    Buffers, bytes and text are measured first. Everything else is pickled until it exceeds one step.
    """
    buffers: list[Chunk] = []
    chunks = _at_once((args, kwargs), buffers, by_value_modules)
    return None if chunks is None else Payload(chunks[0], buffers, chunks[1:])


def _at_once(value: Any, buffers: list[Chunk] | None, by_value_modules: Collection[str] = ()) -> list[bytes] | None:
    seen = _sizes_in(value)
    if seen > COPY_STEP:
        return None
    file = BoundedFile(PICKLE_STEP + seen)
    try:
        dump(value, file, buffers, by_value_modules=by_value_modules, is_on_loop=True)
    except KeyboardInterrupt:
        raise
    except BaseException:  # too large, or it cannot travel: `encode_inputs` will say why
        return None
    return file.chunks


def _sizes_in(value: object) -> int:
    """Count the bytes of texts, bytes and buffers in a value's first few objects: pickle copies each in one step."""
    size, seen = 0, [value]
    for each in islice(seen, _MOST_SIZED):  # which grows meanwhile
        kind: Any = type(each)
        if kind is int or kind is float or kind is bool or each is None:
            continue
        if kind is str or kind is bytes:
            size += len(each)  # type: ignore[arg-type]
        elif kind is dict:
            seen += islice(dict.values(each), _MOST_SIZED)  # type: ignore[arg-type]
        elif kind is list or kind is tuple:
            seen += islice(each, _MOST_SIZED)  # type: ignore[call-overload]
        else:
            size += _size_of_buffer(each)
    return size


_MOST_SIZED: Final = 32  # objects that are measured


def _size_of_buffer(value: object) -> int:
    """Give the bytes of a buffer, or of an object with `nbytes`; 0 for anything else."""
    known: Any = value
    try:
        return int(known.nbytes) if hasattr(type(known), "nbytes") else memoryview(known).nbytes
    except Exception:
        return 0


def encode_inputs(
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    by_value_modules: Collection[str] = (),
    is_abandoned: Callable[[], bool] | None = None,
) -> Payload:
    """Encode the inputs of a call in short steps, between which other threads get the GIL.

    Args:
        args: inputs by position.
        kwargs: inputs by name.
        by_value_modules: names of modules of which everything is taken by value.
        is_abandoned: tells, between two steps, whether the call was abandoned.

    Raises:
        PayloadError: one of them cannot travel; it is named.
        AbandonedError: the call was abandoned.
    """
    try:
        return _encode_in_steps((args, kwargs), is_abandoned, by_value_modules)
    except (KeyboardInterrupt, AbandonedError):
        raise
    except BaseException as error:
        failure = error
    advice = (
        _CHANGED_ADVICE if isinstance(failure, RuntimeError) and "during iteration" in say(failure) else DEFAULT_ADVICE
    )
    for name, value in (*enumerate(args), *kwargs.items()):
        own = _failure_of(value, is_abandoned)
        if own is not None:
            place = _place_in(value, f"inputs[{quote(name)}]", is_abandoned)
            raise payload_error(f"input {quote(name)}", value, own, place, advice) from own
    raise payload_error("the inputs", kwargs, failure, "", advice) from failure


_CHANGED_ADVICE: Final = (
    "It was changed while it was encoded: leave inputs as they are from the first await of a call until its body has "
    "started, or pass a copy"
)


def _encode_in_steps(
    value: Any, is_abandoned: Callable[[], bool] | None, by_value_modules: Collection[str] = ()
) -> Payload:
    buffers: list[Chunk] = []
    file = PickleWriter(is_abandoned)
    dump(value, file, buffers, by_value_modules=by_value_modules)
    first, *more = file.chunks
    return Payload(first, buffers, more)


def _failure_of(value: object, is_abandoned: Callable[[], bool] | None) -> BaseException | None:
    """Give what is raised when a value is encoded; `None` if it can be."""
    try:
        _encode_in_steps(value, is_abandoned)
    except (KeyboardInterrupt, AbandonedError):
        raise
    except BaseException as error:
        return error
    return None


def _place_in(value: object, path: str, is_abandoned: Callable[[], bool] | None) -> str:
    """Find the innermost part of a value that cannot be encoded; empty if a bounded search does not find it."""
    found = ""
    left = iter(range(_MOST_TRIED))
    with contextlib.suppress(Exception):  # an object may raise when its parts are read
        for _ in range(DEEPEST):
            parts = ((step, part) for step, part in _parts_of(value) if not _is_atom(part))
            tried = ((step, part) for _, (step, part) in zip(left, parts, strict=False))
            step, value = next((each for each in tried if _failure_of(each[1], is_abandoned) is not None), ("", None))
            if not step:  # all parts of it can be encoded: it is the culprit itself
                return found
            path += step
            found = f"{name_shown(path)} of type {name_shown(type(value).__qualname__)}"
    return ""


_MOST_TRIED: Final = 256  # parts of an input that are encoded in the search


def _parts_of(value: object) -> Iterator[tuple[str, object]]:
    """What a container or an object that is pickled by its attributes holds, and how each is reached."""
    if isinstance(value, dict):
        yield from ((f"[{quote(key)}]", part) for key, part in islice(dict.items(value), _MOST_LOOKED_AT))
    elif isinstance(value, (list, tuple)):
        yield from ((f"[{index}]", part) for index, part in enumerate(islice(value, _MOST_LOOKED_AT)))
    kind: Any = type(value)
    is_attrs = attrs.has(kind)
    if is_attrs or (kind.__reduce_ex__, kind.__reduce__, kind.__getstate__) == AS_ANY_OBJECT:
        names = [each.name for each in attrs.fields(kind)] if is_attrs else getattr(value, "__dict__", ())
        yield from ((f".{name}", getattr(value, name, None)) for name in tuple(names))


_MOST_LOOKED_AT: Final = 10_000  # parts of one container


def encode_whole(value: Any, is_abandoned: Callable[[], bool] | None = None) -> bytes:
    """Encode any value with its buffers inside, in short steps, between which other threads get the GIL.

    Raises:
        AbandonedError: the call was abandoned.
        BaseException: whatever its pickling raises; see `payload_error`.
    """
    file = PickleWriter(is_abandoned)
    dump(value, file, None)
    return file.joined()


def encode_whole_at_once(value: Any) -> bytes | None:
    """Encode any value on an event loop; `None` where it is too large for that, or cannot travel."""
    chunks = _at_once(value, None)
    return None if chunks is None else b"".join(chunks)
