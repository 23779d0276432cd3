"""The frames of a worker's pipes: whatever is packed is read again, however it was cut, and nothing else is.

Nothing is written to a pipe here. Frames too large for any memory are files full of holes, or only claim their length.
"""

from __future__ import annotations

import itertools
import mmap
import pickle
import select
import tracemalloc
from typing import TYPE_CHECKING, Any, Final, cast

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine._wire import encode as _payloads
from engine._wire.frames import (
    _HEADER,
    _MAGIC,
    COMMAND,
    CREDIT,
    FAILED,
    HEADER_SIZE,
    ITEM,
    ITEMS,
    LOG,
    LONGEST,
    LONGEST_META,
    STOP,
    VERSION,
    Command,
    Decoder,
    Frame,
    ProtocolError,
    pack,
    pack_command,
    pack_credit,
    pack_stop,
    read_command,
    read_credit,
)
from engine._worker import outlet as _outlet
from engine.runners import channel as _channel

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

NUMBERS: Final = st.integers(0, 2**32 - 1)
LENGTHS: Final = st.integers(0, 2**64 - 1)

Facts = tuple[int, int, bytes, bytes]


def joined(chunks: Iterable[Any]) -> bytes:
    return b"".join(map(bytes, chunks))


def facts_of(frame: Frame) -> Facts:
    return frame.kind, frame.number, bytes(frame.meta), bytes(frame.rest)


def read(*pieces: bytes) -> list[Frame]:
    decoder = Decoder()
    for piece in pieces:
        decoder.feed(piece)
    return list(decoder.frames)


def header(
    *, magic: int = _MAGIC, version: int = VERSION, kind: int = ITEM, number: int = 1, meta: int = 0, rest: int = 0
) -> bytes:
    return _HEADER.pack(magic, version, kind, number, meta, rest)


# Whole frames


@given(
    frames=st.lists(
        st.tuples(
            st.integers(COMMAND, LOG), NUMBERS, st.binary(max_size=60), st.lists(st.binary(max_size=60), max_size=3)
        ),
        max_size=6,
    ),
    cuts=st.lists(st.integers(0, 1000), max_size=12),
)
def test_frames_are_read_as_they_were_packed_wherever_the_bytes_are_cut(
    frames: list[tuple[int, int, bytes, list[bytes]]], cuts: list[int]
) -> None:
    data = joined(chunk for kind, number, meta, rest in frames for chunk in pack(kind, number, meta, rest))
    places = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    pieces = [data[start:end] for start, end in itertools.pairwise(places)]

    found = read(*pieces)

    assert list(map(facts_of, found)) == [(kind, number, meta, joined(rest)) for kind, number, meta, rest in frames]


def test_frames_are_read_byte_by_byte_and_as_soon_as_they_are_whole() -> None:
    decoder = Decoder()
    counts = []
    for byte in joined(pack(ITEM, 7, b"meta", [b"re", b"st"])) * 2:
        decoder.feed(bytes([byte]))
        counts.append(len(decoder.frames))
    size = HEADER_SIZE + 8
    assert counts == [0] * (size - 1) + [1] * size + [2]


def test_a_large_chunk_is_not_copied_when_it_is_packed() -> None:
    chunk = bytearray(1 << 20)
    assert pack(ITEM, 1, b"meta", [chunk])[1] is chunk


def test_what_follows_in_a_frame_is_seen_where_it_was_read() -> None:
    rest = b"r" * (1 << 20)
    (frame,) = read(joined(pack(ITEM, 1, b"", [rest])))
    assert isinstance(frame.rest, memoryview)
    assert frame.rest == rest


# Lengths


class Claim(bytes):
    """Claims any length, without the bytes."""

    claimed = 0

    def __len__(self) -> int:
        return self.claimed


WIDE: Final = [0, 2**31 - 1, 2**31, 2**32 + 1]


@pytest.mark.fault(29)
@pytest.mark.parametrize("length", WIDE)
def test_a_frame_tells_lengths_of_64_bits(length: int) -> None:
    chunk = Claim()
    chunk.claimed = length
    (first, *rest) = pack(ITEM, 1, b"meta", [chunk])
    assert first == header(meta=4, rest=length) + b"meta"
    assert rest == [chunk]


@pytest.mark.fault(29)
@pytest.mark.parametrize("length", WIDE)
def test_a_frame_of_any_length_is_read_and_so_is_the_one_behind_it(length: int, tmp_path: Path) -> None:
    place = tmp_path / "holes"
    with place.open("w+b") as file:
        file.write(header(meta=4, rest=length) + b"meta")
        file.seek(length, 1)
        file.write(joined(pack(ITEM, 2, b"next", [b"rest"])))
        file.flush()
        decoder = Decoder()
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            decoder.feed(cast("bytes", data))
            first, second = decoder.frames
            assert (first.meta, len(first.rest)) == (b"meta", length)
            assert facts_of(second) == (ITEM, 2, b"next", b"rest")
            for frame in (first, second):
                if isinstance(frame.rest, memoryview):
                    frame.rest.release()


@pytest.mark.fault(29)
@pytest.mark.parametrize("length", [2**31 - 1, 2**31, 2**32 + 1, LONGEST])
def test_nothing_of_the_length_a_frame_claims_is_allocated(length: int) -> None:
    tracemalloc.start()
    try:
        found = read(header(rest=length), b"begin")
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert found == []
    assert most < 1 << 16


def test_the_longest_batch_of_partials_there_is_may_be_sent() -> None:
    widest = 4 * _payloads.SMALL + 16  # bytes of a text, and of what pickle says about it
    assert _channel.MAX_WINDOW * (_outlet._BATCHED_ITEMS * widest + 64) < LONGEST_META


# What is no frame


@pytest.mark.fault(30)
@pytest.mark.parametrize(
    ("data", "text"),
    [
        (header(version=VERSION + 1), f"version {VERSION + 1}, where version {VERSION} is expected"),
        (header(version=0), "version 0"),
        (header(magic=0), "no frame: 00"),
        (header(kind=0), "no frame"),
        (header(kind=LOG + 1), "no frame"),
        (header(meta=LONGEST_META + 1), "claims"),
        (header(meta=2**64 - 1), "claims"),
        (header(rest=LONGEST + 1), "claims"),
        (header(rest=2**64 - 1), "claims 18446744073709551615 bytes"),
        (b"Traceback (most recent call last):\n", "no frame: 5472616365626163"),
    ],
)
def test_bytes_that_are_no_frame_of_this_version_are_refused_by_their_header_alone(data: bytes, text: str) -> None:
    good = joined(pack(ITEM, 1, b"good", [b"rest"]))
    for *pieces, last in ([data], [good, data], [good + data], [good + data[:5], data[5:]]):
        decoder = Decoder()
        for piece in pieces:
            decoder.feed(piece)
        with pytest.raises(ProtocolError, match=text):
            decoder.feed(last)
        expected = [] if last is data and not pieces else [(ITEM, 1, b"good", b"rest")]
        assert list(map(facts_of, decoder.frames)) == expected


GOOD: Final = joined(pack(FAILED, 3, b"meta", [b"rest"]))
spoiled: Final = st.tuples(st.integers(0, len(GOOD) - 1), st.integers(1, 255)).map(
    lambda wrong: GOOD[: wrong[0]] + bytes([GOOD[wrong[0]] ^ wrong[1]]) + GOOD[wrong[0] + 1 :]
)


@pytest.mark.fault(30)
@given(pieces=st.lists(st.binary(max_size=80) | st.just(GOOD) | spoiled, max_size=5))
def test_of_any_bytes_nothing_comes_but_the_frames_they_are_or_a_protocol_error(pieces: list[bytes]) -> None:
    try:
        frames = read(*pieces)
    except ProtocolError:
        return
    data, start = bytearray(b"".join(pieces)), 0
    for frame in frames:
        packed = joined(pack(frame.kind, frame.number, frame.meta, [frame.rest]))
        data[start + 3] = 0  # the one byte of a header that has no meaning
        assert data[start : start + len(packed)] == packed
        start += len(packed)


# What frames say


@given(number=NUMBERS, taken=LENGTHS, limit=LENGTHS)
def test_a_credit_says_what_was_taken_and_what_may_be_made(number: int, taken: int, limit: int) -> None:
    (frame,) = read(pack_credit(number, taken, limit))
    assert (frame.kind, frame.number) == (CREDIT, number)
    assert read_credit(frame) == (taken, limit)


@given(number=NUMBERS)
def test_a_request_to_stop_names_its_call_and_is_written_whole_or_not_at_all(number: int) -> None:
    data = pack_stop(number)
    assert list(map(facts_of, read(data))) == [(STOP, number, b"", b"")]
    assert len(data) <= select.PIPE_BUF


values = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary()
commands = st.builds(
    Command,
    what=st.sampled_from(["run", "load", "unload", "describe", "exit"]),
    key=st.integers(0),
    tag=st.text(),
    text=st.none() | st.text(),
    size=LENGTHS,
    evict=st.lists(st.integers(0)).map(tuple),
    identity=st.text(),
    created_ns=LENGTHS,
    depth=st.integers(0),
    follows=st.booleans(),
    bind=st.none() | st.booleans(),
    reducer=st.none() | st.text(),
    limit=st.integers(0),
    is_adaptive=st.booleans(),
    variables=st.lists(st.tuples(st.text(), st.binary())).map(tuple),
    inputs=st.none() | st.tuples(st.just(()), st.dictionaries(st.text(), values)),
    location=st.none() | st.tuples(st.lists(LENGTHS).map(tuple), st.integers(0), st.none() | LENGTHS),
)


@given(number=NUMBERS, command=commands, rest=st.lists(st.binary(max_size=20), max_size=3))
def test_a_command_is_read_with_every_field_it_had(number: int, command: Command, rest: list[bytes]) -> None:
    (frame,) = read(joined(pack_command(number, command, rest)))
    assert (frame.kind, frame.number, bytes(frame.rest)) == (COMMAND, number, joined(rest))
    found, meant = read_command(frame), command
    assert attrs.astuple(found, recurse=False) == attrs.astuple(meant, recurse=False)


@pytest.mark.fault(30)
@pytest.mark.parametrize(
    "meta", [b"", b"garbage", pickle.dumps(7), pickle.dumps(()), pickle.dumps(("run",) * 99), b"\x80\x05", b"." * 99]
)
def test_a_command_that_cannot_be_read_is_refused(meta: bytes) -> None:
    with pytest.raises(ProtocolError, match="a command that cannot be read"):
        read_command(Frame(COMMAND, 1, meta))


@pytest.mark.fault(30)
@pytest.mark.parametrize("size", [0, 8, 15, 17])
def test_a_credit_of_another_length_is_refused(size: int) -> None:
    with pytest.raises(ProtocolError, match=f"a credit of {size} bytes"):
        read_credit(Frame(CREDIT, 1, bytes(size)))


def test_a_batch_of_partials_is_one_frame_without_a_rest() -> None:
    meta = pickle.dumps((("a", "b"), (0.1, 0.2)), 5)
    (chunk,) = pack(ITEMS, 9, meta)
    assert list(map(facts_of, read(bytes(chunk)))) == [(ITEMS, 9, meta, b"")]
