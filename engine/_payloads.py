"""How values, predictors and failures travel between processes: as bytes, with large buffers beside them.

Plain pickle serves built-in types and classes of modules that the other side can import; anything else, and whatever
`__main__` holds, goes by value through cloudpickle. What cannot travel is told apart from what failed: encoding raises
`PayloadError`, and a failure that cannot be rebuilt arrives as a `PredictorError` with its text. No I/O happens here.
"""

from __future__ import annotations

import contextlib
import functools
import io
import pickle
import sys
import types
from itertools import islice
from typing import TYPE_CHECKING, Any, Final

import attrs

from engine._errors import PayloadError, PredictorError, name_shown, quote, say
from engine._importable import NAMED, by_reference, is_found
from engine._pieces import AT_ONCE, PIECE, Pieces, Source, Turns, UnwantedError, copied
from engine._records import cut, traceback_of
from engine._sentinels import AS_ANY_OBJECT, find_sentinel, note_found, reduced_sentinel, with_sentinels

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Sequence

    from engine._frames import Chunk

_PROTOCOL: Final = 5
LARGEST_FAILURE: Final = 1 << 20  # bytes of an encoded exception; a larger one travels as text, cut
SMALL: Final = 4096  # characters or bytes of what may stand in a frame's own words, or wait for others
_FEW: Final = 64  # inputs that may
_ASIDE: Final = 4096  # bytes from which a buffer stands beside its pickle, where it is not copied
_LENT_FROM: Final = 1 << 25  # bytes from which glibc's allocator, which most have, gives memory back at once
_LENT_UP_TO: Final = 1 << 28  # bytes up to which memory is kept for the next call
_LENT_FOR: Final = 8  # calls after which it is not, if none of them needed it
_WIDEST: Final = 15  # exceptions of a group whose tracebacks are shown
_DEEPEST: Final = 8  # causes of causes, and contexts of contexts, that travel with a failure

# Immutable, and no code of anybody's runs when they are encoded.
_ATOMS: Final = frozenset({str, bytes, int, float, complex, bool, type(None)})


@attrs.define(eq=False)
class Payload:
    """An encoded value: a pickle, and the buffers it refers to.

    Attributes:
        data: the pickle, or its beginning.
        buffers: contiguous bytes outside it, in its order.
        more: the rest of the pickle, where it was made in pieces.
    """

    data: bytes
    buffers: Sequence[Chunk] = ()
    more: Sequence[Chunk] = ()

    @property
    def chunks(self) -> list[Chunk]:
        """Everything, one after the other."""
        return [self.data, *self.more, *self.buffers]

    @property
    def sizes(self) -> tuple[int, ...]:
        """The length of the pickle and of each buffer, in bytes."""
        return (len(self.data) + sum(map(len, self.more)), *map(len, self.buffers))


def encode(value: Any, whole: Collection[str] = ()) -> Payload:
    """Encode any value, its large buffers outside.

    Args:
        value: what is to travel.
        whole: names of modules of which everything is taken by value.

    Raises:
        BaseException: whatever its pickling raises; see `refused`.
    """
    if _is_atom(value):
        return Payload(pickle.dumps(value, _PROTOCOL))
    buffers: list[Chunk] = []
    data = _pickled(value, buffers, whole=whole)
    return Payload(data, buffers)


def is_plain(value: object) -> bool:
    """Whether a value is immutable, small, and told by its value alone, so that it may stand in a frame's own words."""
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
    if args or len(kwargs) > _FEW:
        return False
    for value in kwargs.values():  # noqa: SIM110 - with every call
        if not is_plain(value):
            return False
    return True


def encode_at_once(args: tuple[Any, ...], kwargs: dict[str, Any], whole: Collection[str] = ()) -> Payload | None:
    """Encode the inputs of a call on an event loop; `None` where they are too large for that, or cannot travel.

    Buffers, bytes and text are sized by looking. Everything else is begun, and left once it is more than pickle writes
    at a time.
    """
    buffers: list[Chunk] = []
    chunks = _at_once((args, kwargs), buffers, whole)
    return None if chunks is None else Payload(chunks[0], buffers, chunks[1:])


def _at_once(value: Any, buffers: list[Chunk] | None, whole: Collection[str] = ()) -> list[bytes] | None:
    seen = _sizes_in(value)
    if seen > PIECE:
        return None
    file = _Hurried(AT_ONCE + seen)
    try:
        _dump(value, file, buffers, whole=whole, is_hurried=True)
    except KeyboardInterrupt:
        raise
    except BaseException:  # too large, or told where all of it is tried
        return None
    return file.chunks


def _sizes_in(value: object) -> int:
    """Bytes, as far as a short look goes, that a value has in texts, bytes and buffers, each taken in one step."""
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


_MOST_SIZED: Final = 32  # objects that are looked at


def _size_of_buffer(value: object) -> int:
    """Bytes in a buffer, or in something that says how many it has; 0 for anything else."""
    known: Any = value
    try:
        return int(known.nbytes) if hasattr(type(known), "nbytes") else memoryview(known).nbytes
    except Exception:
        return 0


def encode_inputs(
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    whole: Collection[str] = (),
    is_unwanted: Callable[[], bool] | None = None,
) -> Payload:
    """Encode the inputs of a call, in pieces between which other threads have their turn.

    Args:
        args: inputs by place.
        kwargs: inputs by name.
        whole: names of modules of which everything is taken by value.
        is_unwanted: tells, between two pieces, whether the call no longer waits for it.

    Raises:
        PayloadError: one of them cannot travel; it is named.
        UnwantedError: the call no longer waits for it.
    """
    try:
        return _encode_in_pieces((args, kwargs), is_unwanted, whole)
    except (KeyboardInterrupt, UnwantedError):
        raise
    except BaseException as error:
        failure = error
    advice = _LEAVE_ALONE if isinstance(failure, RuntimeError) and "during iteration" in say(failure) else _OTHERWISE
    for name, value in (*enumerate(args), *kwargs.items()):
        own = _failure_of(value, is_unwanted)
        if own is not None:
            place = _place_in(value, f"inputs[{quote(name)}]", is_unwanted)
            raise refused(f"input {quote(name)}", value, own, place, advice) from own
    raise refused("the inputs", kwargs, failure, "", advice) from failure


_OTHERWISE: Final = "Pass what it is made from instead, or run the predictor with runner='thread'"
_LEAVE_ALONE: Final = (
    "It was changed while it was encoded: leave inputs as they are from the first await of a call until its body has "
    "started, or pass a copy"
)


def _encode_in_pieces(value: Any, is_unwanted: Callable[[], bool] | None, whole: Collection[str] = ()) -> Payload:
    buffers: list[Chunk] = []
    pieces = Pieces(is_unwanted)
    _dump(value, pieces, buffers, whole=whole)
    first, *more = pieces.chunks
    return Payload(first, buffers, more)


def _failure_of(value: object, is_unwanted: Callable[[], bool] | None) -> BaseException | None:
    """What keeps a value from being encoded."""
    try:
        _encode_in_pieces(value, is_unwanted)
    except (KeyboardInterrupt, UnwantedError):
        raise
    except BaseException as error:
        return error
    return None


def _place_in(value: object, path: str, is_unwanted: Callable[[], bool] | None) -> str:
    """Where in a value that cannot be encoded the innermost part is that cannot; empty if that is not soon found."""
    found = ""
    left = iter(range(_MOST_TRIED))
    with contextlib.suppress(Exception):  # an object may refuse to be looked into
        for _ in range(_DEEPEST):
            parts = ((step, part) for step, part in _parts_of(value) if not _is_atom(part))
            tried = ((step, part) for _, (step, part) in zip(left, parts, strict=False))
            step, value = next((each for each in tried if _failure_of(each[1], is_unwanted) is not None), ("", None))
            if not step:  # nothing in it, so that it is the one itself
                return found
            path += step
            found = f"{name_shown(path)} of type {name_shown(type(value).__qualname__)}"
    return ""


_MOST_TRIED: Final = 256  # parts of an input that are tried


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


_MOST_LOOKED_AT: Final = 10_000  # of one container


def encode_whole(value: Any, is_unwanted: Callable[[], bool] | None = None) -> bytes:
    """Encode any value, with everything inside, in pieces between which other threads have their turn.

    Raises:
        UnwantedError: the call no longer waits for it.
        BaseException: whatever its pickling raises; see `refused`.
    """
    pieces = Pieces(is_unwanted)
    _dump(value, pieces, None)
    return pieces.joined()


def encode_whole_at_once(value: Any) -> bytes | None:
    """Encode any value on an event loop; `None` where it is too large for that, or cannot travel."""
    chunks = _at_once(value, None)
    return None if chunks is None else b"".join(chunks)


class Spare:
    """Keeps the memory of one large buffer for the next of its size, once nothing else refers to it.

    An allocator gives memory of that size back to the system at once, and fresh pages cost five times what a copy
    costs. Smaller buffers it keeps itself.
    """

    __slots__ = ("_references_alone", "_unused", "kept")

    def __init__(self) -> None:
        """Keep nothing yet."""
        self.kept: bytearray | None = bytearray(1)
        self._references_alone = self._references()
        self.kept = None
        self._unused = 0  # calls since it was

    def copied(self, part: memoryview) -> bytearray:
        """Give a copy that may be written, in the memory that is kept if it is free and of that size."""
        size = len(part)
        if not _LENT_FROM <= size <= _LENT_UP_TO:
            return bytearray(part)
        self._unused = 0
        if self.kept is None or not self._is_free(size):
            self.kept = bytearray(part)
            return self.kept
        with memoryview(self.kept) as there:  # assigning to the bytearray itself would make one more copy
            there[:] = part
        return self.kept

    def _is_free(self, size: int) -> bool:
        """Whether what is kept has that size, and no array, view or variable of a predictor's refers to it.

        Two signs have to agree, for a wrong answer would overwrite what a predictor keeps.
        """
        if self.kept is None or len(self.kept) != size or self._references() != self._references_alone:
            return False
        try:
            last = self.kept.pop()  # refused while an array or a view looks at its memory; allocates nothing
        except BufferError:
            return False
        self.kept.append(last)
        return True

    def _references(self) -> int:
        # Counted through the attribute, always in this one place: what a local variable adds differs from one version
        # of the interpreter to the next, so the number that means "alone" is measured rather than known.
        return sys.getrefcount(self.kept)

    def tidy(self) -> None:
        """After a call: what the last few did not need is not kept for another."""
        self._unused += 1
        if self._unused > _LENT_FOR:
            self.kept = None


def decode(view: Chunk, sizes: Sequence[int] = (), read_only: int = 0, spare: Spare | None = None) -> Any:
    """Rebuild a value; it keeps nothing of `view`, which may be overwritten then.

    Args:
        view: its pickle, and its buffers behind it.
        sizes: the length of the pickle and of each buffer; without any, all of it is the pickle.
        read_only: a bit for each buffer that was read-only where it came from.
        spare: has memory for large buffers.

    Raises:
        ValueError: there are more or fewer bytes than that.
        BaseException: whatever its unpickling raises.
    """
    if len(sizes) <= 1:
        if sizes and sizes[0] != len(view):
            raise ValueError(f"{len(view)} bytes, where {sizes[0]} were announced")
        return pickle.loads(view)  # noqa: S301 - from our own workers, or from the engine that started us
    if sum(sizes) != len(view):
        raise ValueError(f"{len(view)} bytes, where {sum(sizes)} were announced")
    start = sizes[0]
    buffers: list[Chunk] = []
    with memoryview(view) as whole:
        for number, size in enumerate(sizes[1:]):
            with whole[start : start + size] as part:
                is_fixed = read_only >> number & 1
                buffers.append(bytes(part) if is_fixed else bytearray(part) if spare is None else spare.copied(part))
            start += size
        with whole[: sizes[0]] as part:
            return pickle.loads(part, buffers=buffers)  # noqa: S301


def decode_in_pieces(view: Chunk, sizes: Sequence[int], read_only: int = 0) -> Any:
    """Do what `decode` does, in pieces between which other threads have their turn.

    Raises:
        ValueError: there are more or fewer bytes than that.
        BaseException: whatever its unpickling raises.
    """
    if sum(sizes) != len(view):
        raise ValueError(f"{len(view)} bytes, where {sum(sizes)} were announced")
    turns, start = Turns(), sizes[0]
    buffers: list[Chunk] = []
    with memoryview(view) as whole:
        for number, size in enumerate(sizes[1:]):
            with whole[start : start + size] as part:
                buffers.append(copied(part, turns, is_fixed=bool(read_only >> number & 1)))
            start += size
        with whole[: sizes[0]] as part:
            return pickle.load(Source(part, turns), buffers=buffers)  # noqa: S301 - as in `decode`


def decode_known(data: bytes, otherwise: Any) -> Any:
    """Rebuild a value out of modules that are imported here already; `otherwise` where it needs others."""
    try:
        return _Known(io.BytesIO(data)).load()
    except Exception:
        return otherwise


class _Known(pickle.Unpickler):
    """Imports nothing."""

    def find_class(self, module: str, name: str) -> Any:
        if module not in sys.modules:
            raise ModuleNotFoundError(module)
        found = super().find_class(module, name)
        return _find_here if found is find_sentinel else found


_find_here: Final = functools.partial(find_sentinel, imports=False)


def read_only_bits(buffers: Iterable[Chunk]) -> int:
    """A bit for each buffer that may not be written."""
    return sum(1 << number for number, each in enumerate(buffers) if memoryview(each).readonly)


def refused(what: str, value: object, error: BaseException, place: str = "", advice: str = _OTHERWISE) -> PayloadError:
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


def encode_target(tag: str, target: Any, whole: Collection[str] = ()) -> bytes:
    """Encode a function, class or object to run: by reference where the other side can import it.

    Args:
        tag: its tag.
        target: itself.
        whole: names of modules of which everything is taken by value all the same.

    Raises:
        PayloadError: it cannot travel; what it holds that cannot is named.
    """
    try:
        return _pickled_target(target, whole)
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        failure = error
    name, value = _culprit(target, whole)
    what = f"the predictor {tag}" if name is None else f"{quote(name)}, which the predictor {tag} uses,"
    raise refused(what, target if name is None else value, failure) from failure


def _pickled_target(target: Any, whole: Collection[str]) -> bytes:
    pieces = Pieces()
    _dump(target, pieces, None, holds_files=False, whole=whole)
    return pieces.joined()


def _culprit(target: Any, whole: Collection[str]) -> tuple[str | None, object]:
    """The variable of a function, or of a class's methods, that keeps it from travelling."""
    own = (
        [each for name, each in vars(target).items() if name != "__annotate_func__"] if isinstance(target, type) else ()
    )
    for each in own or (target,):
        function = getattr(each, "__func__", each)
        if not isinstance(function, types.FunctionType):
            continue
        for name, value in _used_by(function).items():
            try:
                _pickled_target(value, whole)
            except KeyboardInterrupt:
                raise
            except BaseException:
                return name, value
    return None, None


def _used_by(function: types.FunctionType) -> dict[str, object]:
    """The variables of a function that are its own from elsewhere: global, free, or defaults of its parameters."""
    code, scope = function.__code__, function.__globals__
    used = {name: scope[name] for name in _names_in(code) if name in scope}
    for name, cell in zip(code.co_freevars, function.__closure__ or (), strict=False):
        with contextlib.suppress(ValueError):  # a variable that has no value yet
            used[name] = cell.cell_contents
    given = function.__defaults__ or ()
    used.update(zip(code.co_varnames[code.co_argcount - len(given) : code.co_argcount], given, strict=False))
    used.update(function.__kwdefaults__ or {})
    return used


def _names_in(code: types.CodeType) -> Iterator[str]:
    yield from code.co_names
    for each in code.co_consts:
        if isinstance(each, types.CodeType):
            yield from _names_in(each)


# Failures


def tamed(error: BaseException) -> BaseException:
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
    error = tamed(error)
    try:
        found = _rebuildable(error, set())
        whole = None if found is None else found[1]
        text, traceback = _texts_of(error)
        behind = [
            None if each is None or depth == _DEEPEST else pack_failure(each, depth + 1) for each in _behind(error)
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
    return None if cause is None else tamed(cause), None if context is None else tamed(context)


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
            if not _has_own_constructor(type(error)):
                break
            apart.add(id(error))
        try:
            data = _pickled(error, None, LARGEST_FAILURE, apart)
            made = pickle.loads(data)  # noqa: S301 - our own bytes
            if type(made) is type(error):
                if is_apart or say(made) == say(error):
                    return error, data
                second = data
        except _TooLargeError:
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
    leaves = [_portable_leaf(tamed(each), apart) for each in group.exceptions]
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
        inner = map(tamed, each.exceptions) if isinstance(each, BaseExceptionGroup) else ()
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
    if depth == _DEEPEST:
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


class _TooLargeError(Exception):
    """What is encoded has more bytes than it may."""


def _is_huge(error: BaseException) -> bool:
    """Whether the arguments of an exception are too large to be shown."""
    for measure in (_pickled, _measured):
        try:
            measure(error.args, None, LARGEST_FAILURE)
            return False
        except _TooLargeError:
            return True
        except Exception:  # noqa: S112 - it cannot be pickled; measured it can
            continue
    return False


def _frames_of(error: BaseException) -> str:
    import traceback

    return "".join(["Traceback (most recent call last):\n", *traceback.format_tb(error.__traceback__)])


# Pickling


class _Bounded(io.BytesIO):
    """A file that refuses to grow beyond some size."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self._most = most

    def write(self, data: Any) -> int:
        if self.tell() + len(data) > self._most:
            raise _TooLargeError
        return super().write(data)


class _Hurried:
    """A file that keeps what comes, and refuses to grow beyond some size."""

    __slots__ = ("_left", "chunks")

    def __init__(self, most: int) -> None:
        self.chunks: list[bytes] = []
        self._left = most

    def write(self, data: bytes) -> None:
        self._left -= len(data)
        if self._left < 0:
            raise _TooLargeError
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


def _measured(value: Any, _buffers: None, most: int) -> None:
    _Measure(_Bounded(most), _PROTOCOL).dump(value)


class _NotByReferenceError(Exception):
    """A class or function was met that the other side cannot import."""


class _Plain(pickle.Pickler):
    """Plain pickle that stops at whatever would be found by reference, and could not be."""

    apart: Collection[int] = ()

    def reducer_override(self, obj: Any) -> Any:
        cls = type(obj)
        named = obj if (type(cls) is type and cls in NAMED) or issubclass(cls, type) else cls
        if id(named) not in by_reference:
            if not is_found(named):
                raise _NotByReferenceError
            note_found(named)
        if id(cls) in with_sentinels:
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


def _has_own_constructor(kind: type[BaseException]) -> bool:
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


def _pickled(
    value: Any,
    buffers: list[Chunk] | None,
    most: int | None = None,
    apart: Collection[int] = (),
    *,
    holds_files: bool = True,
    whole: Collection[str] = (),
) -> bytes:
    """Pickle a value into one piece; see `_dump`.

    Raises:
        _TooLargeError: it has more than `most` bytes.
        BaseException: whatever its pickling raises.
    """
    file = io.BytesIO() if most is None else _Bounded(most)
    _dump(value, file, buffers, apart, holds_files=holds_files, whole=whole)
    return file.getvalue()


def _dump(
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
        _TooLargeError: the file takes no more; or cloudpickle would have to be imported, and it `is_hurried`.
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
        plain = (_BuiltIn if whole else _Plain)(file, _PROTOCOL, buffer_callback=callback)
        plain.apart = apart
        plain.dump(value)
        return
    except _TooLargeError:
        raise
    except Exception:  # what is no Exception wants to be out of here
        if is_hurried and "engine._cloud" not in sys.modules:
            raise _TooLargeError from None
        file.seek(0)
        file.truncate()
        if buffers is not None:
            buffers.clear()
    cloud = _by_value(file, callback)  # out here, so that what it raises is told alone
    cloud.apart, cloud.holds_files, cloud.whole = apart, holds_files, whole
    cloud.dump(value)


def _by_value(file: Any, callback: Callable[[pickle.PickleBuffer], Any] | None) -> Any:
    """A pickler of what is taken by value; imported only where something needs it, for it is not cheap to import."""
    from engine._cloud import Cloud

    made = Cloud(file, _PROTOCOL, callback)
    made.reduce_failure = _reduced
    return made
