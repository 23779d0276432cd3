"""How values that travelled are rebuilt, from bytes and from buffers that lie in shared memory."""

from __future__ import annotations

import functools
import io
import pickle
import sys
from typing import TYPE_CHECKING, Any, Final

from engine._wire.incremental import PickleReader, TimeSlice, copy_of
from engine._wire.sentinels import find_sentinel

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from engine._wire.frames import Chunk

_CACHED_FROM: Final = 1 << 25  # bytes from which glibc's allocator, which most have, gives memory back at once
_CACHED_UP_TO: Final = 1 << 28  # bytes up to which memory is kept for the next call
_CACHED_FOR: Final = 8  # calls for which it is kept, if none of them needs it


class BufferCache:
    """Keeps the memory of one large buffer, and gives it to the next of its size once nothing else refers to it.

    The allocator gives memory of that size back to the system at once, and fresh pages cost five times what a copy
    costs. Smaller buffers the allocator keeps itself.
    """

    __slots__ = ("_references_alone", "_unused", "kept")

    def __init__(self) -> None:
        """Keep nothing yet."""
        self.kept: bytearray | None = bytearray(1)
        self._references_alone = self._references()
        self.kept = None
        self._unused = 0  # calls since the kept buffer was used

    def copy_of(self, part: memoryview) -> bytearray:
        """Give a writable copy, in the kept memory if that is free and of the same size."""
        size = len(part)
        if not _CACHED_FROM <= size <= _CACHED_UP_TO:
            return bytearray(part)
        self._unused = 0
        if self.kept is None or not self._is_free(size):
            self.kept = bytearray(part)
            return self.kept
        with memoryview(self.kept) as target:  # assigning to the bytearray itself would make one more copy
            target[:] = part
        return self.kept

    def _is_free(self, size: int) -> bool:
        """Whether what is kept has that size, and no array, view or variable of a predictor's refers to it.

        Two tests have to agree, for a wrong answer would overwrite what a predictor keeps: nothing else refers to the
        bytearray, and no array or view exports its memory.
        """
        if self.kept is None or len(self.kept) != size or self._references() != self._references_alone:
            return False
        try:
            last = self.kept.pop()  # raises while its memory is exported; allocates nothing
        except BufferError:
            return False
        self.kept.append(last)
        return True

    def _references(self) -> int:
        # Counted through the attribute, always in this one place: what a local variable adds differs from one version
        # of the interpreter to the next, so the number that means "alone" is measured rather than known.
        return sys.getrefcount(self.kept)

    def tidy(self) -> None:
        """Count a call that is over; drop the kept buffer if the last few calls did not need it."""
        self._unused += 1
        if self._unused > _CACHED_FOR:
            self.kept = None


def decode(view: Chunk, sizes: Sequence[int] = (), read_only: int = 0, cache: BufferCache | None = None) -> Any:
    """Rebuild a value; it keeps nothing of `view`, which may be overwritten then.

    Args:
        view: its pickle, and its buffers behind it.
        sizes: the length of the pickle and of each buffer; without any, all of it is the pickle.
        read_only: a bit for each buffer that was read-only where it came from.
        cache: keeps the memory of large buffers.

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
                buffers.append(bytes(part) if is_fixed else bytearray(part) if cache is None else cache.copy_of(part))
            start += size
        with whole[: sizes[0]] as part:
            return pickle.loads(part, buffers=buffers)  # noqa: S301


def decode_in_steps(view: Chunk, sizes: Sequence[int], read_only: int = 0) -> Any:
    """Rebuild an encoded value in short steps, between which other threads get the GIL.

    Raises:
        ValueError: there are more or fewer bytes than that.
        BaseException: whatever its unpickling raises.
    """
    if sum(sizes) != len(view):
        raise ValueError(f"{len(view)} bytes, where {sum(sizes)} were announced")
    time_slice, start = TimeSlice(), sizes[0]
    buffers: list[Chunk] = []
    with memoryview(view) as whole:
        for number, size in enumerate(sizes[1:]):
            with whole[start : start + size] as part:
                buffers.append(copy_of(part, time_slice, is_fixed=bool(read_only >> number & 1)))
            start += size
        with whole[: sizes[0]] as part:
            return pickle.load(PickleReader(part, time_slice), buffers=buffers)  # noqa: S301 - as in `decode`


def decode_known(data: bytes, default: Any) -> Any:
    """Rebuild a value that needs only modules which are imported here already; `default` for any other."""
    try:
        return _NonImportingUnpickler(io.BytesIO(data)).load()
    except Exception:
        return default


class _NonImportingUnpickler(pickle.Unpickler):
    """Refuses what would have to be imported."""

    def find_class(self, module: str, name: str) -> Any:
        if module not in sys.modules:
            raise ModuleNotFoundError(module)
        found = super().find_class(module, name)
        return _find_imported_sentinel if found is find_sentinel else found


_find_imported_sentinel: Final = functools.partial(find_sentinel, imports=False)


def read_only_bits(buffers: Iterable[Chunk]) -> int:
    """A bit for each buffer that may not be written."""
    return sum(1 << number for number, each in enumerate(buffers) if memoryview(each).readonly)
