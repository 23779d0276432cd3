"""Large buffers go out of band uncopied, and the memory they are read into is reused."""

from __future__ import annotations

import pickle
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine import PayloadError
from engine._wire import decode as _decode
from engine._wire.decode import BufferCache, decode, decode_in_steps, read_only_bits
from engine._wire.encode import encode, encode_inputs
from engine._wire.incremental import COPY_STEP, PICKLE_STEP
from tests.wire.travelling import travelled, unpacked

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


def arrays() -> Iterator[tuple[str, Any]]:
    for count in (0, 3, 10_000):
        plain = np.arange(count, dtype=np.float64)
        yield f"{count}", plain
        yield f"{count}-reversed", plain[::-1]
        yield f"{count}-columns", np.asfortranarray(np.ones((count, 2), dtype=np.uint8))
        yield f"{count}-of-structures", np.zeros(count, dtype=[("x", "i4"), ("y", "S3")])
        yield f"{count}-of-objects", np.array([{"a": 1}] * count, dtype=object)
    yield "without-dimensions", np.array(2.5)


ARRAYS: Final = dict(arrays())


@pytest.mark.fault(28)
@pytest.mark.parametrize("is_writable", [True, False], ids=["writable", "read-only"])
@pytest.mark.parametrize("name", ARRAYS)
def test_an_array_comes_back_as_writable_as_it_was(name: str, is_writable: bool) -> None:
    value = ARRAYS[name].copy(order="K") if "reversed" not in name else ARRAYS[name].base.copy()[::-1]
    value.flags.writeable = is_writable
    back = travelled(value)
    np.testing.assert_array_equal(back, value)
    assert (back.dtype, back.shape) == (value.dtype, value.shape)
    is_in_one_piece = value.flags.forc and not value.dtype.hasobject
    assert back.flags.writeable == (is_writable or not is_in_one_piece)  # else it is copied into one


def test_of_many_arrays_each_keeps_whether_it_can_be_written() -> None:
    value = [np.full(5000, number) for number in range(20)]
    for each in value[::3]:
        each.flags.writeable = False
    back = travelled(value)
    assert [each.flags.writeable for each in back] == [number % 3 != 0 for number in range(20)]
    assert [each[-1] for each in back] == list(range(20))


def test_large_buffers_go_out_of_band_uncopied_and_small_ones_in_the_pickle() -> None:
    large, small = np.ones(100_000), np.ones(3)
    payload = encode({"large": large, "small": small})
    (buffer,) = payload.buffers
    assert np.shares_memory(np.frombuffer(buffer, dtype=np.uint8), large)
    assert payload.sizes == (len(payload.data), large.nbytes)
    assert len(payload.data) < 1000
    assert not encode(small).buffers


def test_an_array_of_a_class_by_value_goes_out_of_band_once() -> None:
    class Local:
        def __init__(self) -> None:
            self.large = np.ones(100_000)

    payload = encode([np.zeros(50_000), Local()])  # the plain way, tried first, comes as far as the first array
    assert [len(buffer) for buffer in payload.buffers] == [400_000, 800_000]
    first, second = unpacked(payload)
    np.testing.assert_array_equal(first, np.zeros(50_000))
    np.testing.assert_array_equal(second.large, np.ones(100_000))


class Blob:
    """Lets its bytes stand aside."""

    def __init__(self, content: Any) -> None:
        self.content = content

    def __reduce__(self) -> Any:
        return Blob, (pickle.PickleBuffer(self.content),)


@pytest.mark.parametrize(
    "count", [0, 1, PICKLE_STEP - 1, PICKLE_STEP, COPY_STEP - 1, COPY_STEP, COPY_STEP + 1, 3 * COPY_STEP]
)
@pytest.mark.parametrize("of", [bytes, bytearray, lambda data: data.decode(), lambda data: list(data[::50])])
def test_what_is_encoded_and_decoded_in_steps_is_what_it_was(of: Callable[[bytes], Any], count: int) -> None:
    value = of(b"x" * count)
    payload = encode_inputs((value, [value, "y"]), {"blob": Blob(value)} if type(value) in {bytes, bytearray} else {})
    assert max(map(len, payload.chunks)) <= max(COPY_STEP, count)
    data = b"".join(payload.chunks)
    for rebuild in (decode, decode_in_steps):
        args, kwargs = rebuild(data, payload.sizes, read_only_bits(payload.buffers))
        found = (*args, *(blob.content for blob in kwargs.values()))
        assert found == (value, [value, "y"], *[value for _ in kwargs])
        assert {type(each) for each in found if type(each) is not list} <= {type(value)}
    with pytest.raises(ValueError, match="announced"):
        decode_in_steps(data + b"z", payload.sizes)


@pytest.mark.fault(28)
@pytest.mark.parametrize("count", [0, 10, 100_000])
def test_bytes_out_of_band_come_back_as_bytes_and_a_bytearray_as_such(count: int) -> None:
    for content in (b"x" * count, bytearray(b"x" * count)):
        back = travelled(Blob(content)).content
        assert (type(back), back) == (type(content), content)


def test_a_buffer_that_is_not_in_one_piece_is_refused() -> None:
    with pytest.raises(PayloadError, match=r"^input 'blob' of type Blob cannot be carried"):
        encode_inputs((), {"blob": Blob(memoryview(bytearray(100))[::2])})


def small_cache(monkeypatch: pytest.MonkeyPatch) -> tuple[BufferCache, Any]:
    """Make a cache of small buffers, and a function that takes values on a round trip with it."""
    monkeypatch.setattr(_decode, "_CACHED_FROM", 64)
    cache = BufferCache()

    def trip(value: Any) -> Any:
        payload = encode(value)
        data = b"".join(map(bytes, payload.chunks))
        return decode(data, payload.sizes, read_only_bits(payload.buffers), cache)

    return cache, trip


def test_memory_without_references_is_reused_for_the_next_buffer_of_its_size(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cache, trip = small_cache(monkeypatch)
    first = trip(np.arange(10_000))
    place = first.__array_interface__["data"][0]
    first += 1
    del first
    second = trip(np.arange(10_000))
    assert second.__array_interface__["data"][0] == place
    assert np.array_equal(second, np.arange(10_000))
    assert second.flags.writeable
    assert cache.kept is not None


@given(data=st.data())
def test_no_array_that_is_still_referred_to_changes_whatever_is_decoded_after_it(data: st.DataObject) -> None:
    with pytest.MonkeyPatch.context() as monkeypatch:
        cache, trip = small_cache(monkeypatch)
        flags, sizes = st.booleans(), st.sampled_from([1000, 2000])
        held: list[tuple[Any, int]] = []
        for number in range(data.draw(st.integers(1, 12))):
            array = trip(np.full(data.draw(sizes), number))
            memory = array
            while not isinstance(memory, (bytes, bytearray)):  # the memory itself, kept under a name and in no array
                memory = memory.obj if isinstance(memory, memoryview) else memory.base
            parts = (array, array[3:], memoryview(array), array.reshape(-1, 2), memory)
            part = parts[data.draw(st.integers(0, len(parts) - 1))]
            if data.draw(flags):
                held.append((part, number))
            del array, part, parts, memory
            if data.draw(flags):
                cache.tidy()
            is_one_dropped = data.draw(flags)
            if held and is_one_dropped:
                held.pop(data.draw(st.integers(0, len(held) - 1)))
        assert all((np.frombuffer(part, int) == number).all() for part, number in held)


def test_memory_that_the_last_calls_did_not_need_is_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    cache, trip = small_cache(monkeypatch)
    trip(np.arange(10_000))
    for _ in range(_decode._CACHED_FOR):
        cache.tidy()
    assert cache.kept is not None
    cache.tidy()
    assert cache.kept is None


def test_buffers_that_are_read_only_or_small_are_not_cached(monkeypatch: pytest.MonkeyPatch) -> None:
    cache, trip = small_cache(monkeypatch)
    fixed = np.arange(10_000)
    fixed.flags.writeable = False
    assert not trip(fixed).flags.writeable
    monkeypatch.setattr(_decode, "_CACHED_FROM", 1 << 25)
    trip(np.arange(10_000))
    assert cache.kept is None
