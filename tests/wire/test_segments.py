"""Shared memory between an engine and a worker, both sides of it played here, and the ring that lends it out.

What the system's limits forbid is tried in processes of their own.
"""

from __future__ import annotations

import fcntl
import os
import stat
import subprocess
import sys
import textwrap
from typing import TYPE_CHECKING, Final, cast
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine._wire import segments as _segments
from engine._wire.segments import SEGMENT_LIMIT, Ring, Segment, make_segment

if TYPE_CHECKING:
    from collections.abc import Iterator

MiB: Final = 1 << 20


@pytest.fixture
def descriptor() -> Iterator[int]:
    descriptor = make_segment()
    yield descriptor
    os.close(descriptor)


@pytest.fixture
def writer(descriptor: int) -> Iterator[Segment]:
    segment = Segment(descriptor)
    yield segment
    segment.close()


@pytest.fixture
def reader(descriptor: int) -> Iterator[Segment]:
    segment = Segment(descriptor)
    yield segment
    segment.close()


def seen(segment: Segment, start: int, size: int) -> bytes:
    with segment.read(start, size) as view:
        return bytes(view)


def size_of(descriptor: int) -> int:
    return os.fstat(descriptor).st_size


def memory_of(descriptor: int) -> int:
    return os.fstat(descriptor).st_blocks * 512


# Segments


def test_a_segment_is_its_owners_alone_and_is_never_cut_off_under_the_other_side(descriptor: int) -> None:
    assert stat.S_IMODE(os.fstat(descriptor).st_mode) == 0o600
    os.ftruncate(descriptor, 3 * MiB)
    if hasattr(os, "memfd_create"):  # elsewhere nothing can be sealed
        with pytest.raises(PermissionError):
            os.ftruncate(descriptor, MiB)
        with pytest.raises(PermissionError):
            fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_GROW)
    assert size_of(descriptor) == 3 * MiB


def test_a_segment_has_no_name_is_inherited_by_no_process_unasked_and_takes_no_memory(descriptor: int) -> None:
    assert os.fstat(descriptor).st_nlink == 0
    assert not os.get_inheritable(descriptor)
    assert size_of(descriptor) == 0


def test_one_side_reads_what_the_other_wrote_however_the_segment_grew_meanwhile(
    writer: Segment, reader: Segment
) -> None:
    assert writer.grow(10)
    writer.write(0, [b"first", bytearray(b"-"), memoryview(b"half")])
    assert seen(reader, 0, 10) == b"first-half"
    assert writer.grow(5 * MiB)
    writer.write(5 * MiB - 4, [b"last"])
    assert seen(reader, 5 * MiB - 4, 4) == b"last"
    assert seen(reader, 0, 10) == b"first-half"
    writer.write(0, [b"FIRST"])
    assert seen(reader, 0, 10) == b"FIRST-half"


def test_a_segment_that_is_large_enough_stays_as_it_is(descriptor: int, writer: Segment) -> None:
    assert writer.grow(3 * MiB)
    for size in (0, 1, 3 * MiB):
        assert writer.grow(size)
        assert writer.size == size_of(descriptor) == 3 * MiB


def test_what_the_other_side_never_wrote_is_refused(writer: Segment, reader: Segment) -> None:
    with pytest.raises(ValueError, match="1 bytes of 0"):
        reader.read(0, 1)
    assert writer.grow(MiB)
    assert seen(reader, MiB - 1, 1) == b"\0"
    with pytest.raises(ValueError, match=f"{MiB + 1} bytes of {MiB}"):
        reader.read(MiB, 1)
    assert seen(reader, 0, 1) == b"\0"


def test_what_was_written_outlives_the_writers_view(writer: Segment, reader: Segment) -> None:
    assert writer.grow(4)
    writer.write(0, [b"text"])
    writer.close()
    writer.close()
    assert writer.size == 0
    assert seen(reader, 0, 4) == b"text"
    assert writer.grow(4)
    assert seen(writer, 0, 4) == b"text"


def test_a_view_that_is_still_held_keeps_no_segment_from_growing_or_being_closed(
    writer: Segment, reader: Segment
) -> None:
    assert writer.grow(1)
    writer.write(0, [b"a"])
    held = reader.read(0, 1)  # as by the traceback of what interrupted its reader
    assert writer.grow(2 * MiB)
    writer.write(MiB, [b"b"])
    assert seen(reader, MiB, 1) == b"b"
    reader.close()
    assert bytes(held) == b"a"
    held.release()


@pytest.mark.parametrize("is_sealed", [True, False], ids=["sealed", "not-sealed"])
def test_memory_for_one_oversized_partial_is_given_back_once_a_call_did_without_it(
    is_sealed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_segments, "SEGMENT_LIMIT", 2 * MiB)
    if not is_sealed:
        monkeypatch.delattr(os, "memfd_create", raising=False)
    held = memory_of if is_sealed and hasattr(os, "memfd_create") else size_of
    descriptor = make_segment()
    writer, reader = Segment(descriptor), Segment(descriptor)
    ring = Ring(writer)
    sizes = []
    for index, size in enumerate([5 * MiB, 4 * MiB, MiB, MiB, 3 * MiB]):
        ring.clear()
        sizes.append(held(descriptor))
        start = ring.find(0, size)
        assert start == 0
        writer.write(start, [bytes([index]) * size])
        assert seen(reader, start, size) == bytes([index]) * size  # through a view that once was larger
    assert sizes == [0, 5 * MiB, 5 * MiB, 2 * MiB, 2 * MiB]
    writer.close()
    reader.close()
    os.close(descriptor)


def test_memory_within_the_usual_bound_is_kept_for_the_next_call(descriptor: int, writer: Segment) -> None:
    assert writer.grow(3 * MiB)
    for _ in range(3):
        Ring(writer).clear()
    assert size_of(descriptor) == writer.size == 3 * MiB < SEGMENT_LIMIT


SCRIPT: Final = """
    import os, resource
    from engine._wire.segments import Ring, Segment, make_segment

    MiB = 1 << 20
    descriptor = make_segment()
    writer, reader = Segment(descriptor), Segment(descriptor)
    ring = Ring(writer)
    assert ring.find(0, 8) == 0
    writer.write(0, [b"in there"])
    before = resource.getrlimit(LIMIT)
    resource.setrlimit(LIMIT, (SOFT, before[1]))
    assert ring.find(1, 256 * MiB) is None
    assert not writer.grow(256 * MiB)
    assert not writer.grow(1 << 70)
    with reader.read(0, 8) as view:
        assert view == b"in there"
    start = ring.find(1, 8)
    assert start == 8
    writer.write(start, [b"as usual"])
    resource.setrlimit(LIMIT, before)
    start = ring.find(2, 4 * MiB)
    writer.write(start, [b"x" * 4 * MiB])
    with reader.read(start, 4 * MiB) as view:
        assert view == b"x" * 4 * MiB
    with reader.read(0, 16) as view:
        assert view == b"in thereas usual"
    print("done")
"""


def test_where_the_system_knows_less_of_memory_a_file_without_a_name_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("memfd_create", "posix_fallocate"):
        monkeypatch.delattr(os, name, raising=False)
    descriptor = make_segment()
    writer, reader = Segment(descriptor), Segment(descriptor)
    try:
        assert os.fstat(descriptor).st_nlink == 0
        assert not os.get_inheritable(descriptor)
        assert writer.grow(MiB + 1)
        writer.write(MiB - 2, [b"text"])
        assert seen(reader, MiB - 2, 4) == b"text"
        assert not writer.grow(1 << 70)
        assert seen(writer, MiB - 2, 4) == b"text"
    finally:
        writer.close()
        reader.close()
        os.close(descriptor)


LIMITS: Final = {"RLIMIT_FSIZE": "2 * MiB"}
if sys.platform == "linux":  # elsewhere the space of addresses has no limit
    LIMITS["RLIMIT_AS"] = "32 * MiB + int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()"


@pytest.mark.fault(90)
@pytest.mark.parametrize("limit", LIMITS)
def test_where_the_system_gives_no_more_there_is_no_room_and_what_is_held_stays(limit: str) -> None:
    script = textwrap.dedent(SCRIPT).replace("LIMIT", f"resource.{limit}").replace("SOFT", LIMITS[limit])
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=30, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "done\n", "")


# Rings


class Room:
    """A segment of numbers alone, which grows by what is asked for and no further than to `most`."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.size = 0
        self.is_oversized = False

    def grow(self, size: int) -> bool:
        if size <= self.most:
            self.size = max(self.size, size)
        return size <= self.most

    def trim(self) -> None:
        pass


def ring_in(room: Room) -> Ring:
    return Ring(cast("Segment", room))


steps: Final = st.lists(
    st.tuples(st.just("find"), st.sampled_from([4, 5, 10, 10, 20])) | st.tuples(st.just("free"), st.integers(1, 3)),
    min_size=5,
    max_size=40,
)


@settings(max_examples=200)
@given(steps=steps, most=st.integers(1, 120), largest=st.integers(1, 120))
def test_room_is_given_once_until_it_is_freed_and_always_where_the_model_has_some(
    steps: list[tuple[str, int]], most: int, largest: int
) -> None:
    room = Room(most)
    ring = ring_in(room)
    held: dict[int, range] = {}
    index = 0
    with mock.patch.object(_segments, "SEGMENT_LIMIT", largest):
        for what, number in steps:
            if what == "free":
                taken = min(held, default=index) + number
                ring.free(taken)
                held = {each: place for each, place in held.items() if each >= taken}
                continue
            start = ring.find(index, number)
            if start is None:
                # Never refused where nothing is in the way, nor where there is room behind what was lent last.
                behind = max((place.stop for place in held.values()), default=0)
                has_wrapped = bool(held) and held[max(held)].start < held[min(held)].start
                assert number > most if not held else has_wrapped or behind + number > min(most, largest)
            else:
                place = range(start, start + number)
                assert place.stop <= room.size <= most
                assert not any(place.start < each.stop and each.start < place.stop for each in held.values())
                held[index] = place
            index += 1


@given(size=st.integers(1, 50), window=st.integers(1, 8))
def test_a_stream_of_like_partials_uses_the_same_room_again(size: int, window: int) -> None:
    room = Room(1 << 30)
    ring = ring_in(room)
    for index in range(100):
        ring.free(index - window + 1)
        assert ring.find(index, size) is not None
    assert room.size <= (window + 1) * size


def test_a_ring_that_is_cleared_holds_nothing() -> None:
    ring = ring_in(Room(100))
    assert ring.find(0, 100) == 0
    assert ring.find(1, 1) is None
    ring.clear()
    assert ring.find(0, 100) == 0


@settings(max_examples=20)
@given(sizes=st.lists(st.integers(1, 2 * MiB), min_size=1, max_size=8), window=st.integers(1, 3))
def test_every_partial_is_whole_when_it_is_read_late(sizes: list[int], window: int) -> None:
    descriptor = make_segment()
    writer, reader = Segment(descriptor), Segment(descriptor)
    ring, waiting = Ring(writer), dict[int, tuple[int, bytes]]()
    try:
        for index, size in enumerate([*sizes, *[0] * window]):
            if index - window in waiting:
                start, expected = waiting.pop(index - window)
                assert seen(reader, start, len(expected)) == expected
            ring.free(index - window + 1)
            place, content = ring.find(index, size) if size else None, bytes([index + 1]) * size
            if place is not None:  # else it goes another way
                writer.write(place, [content])
                waiting[index] = place, content
        assert not waiting
    finally:
        writer.close()
        reader.close()
        os.close(descriptor)
