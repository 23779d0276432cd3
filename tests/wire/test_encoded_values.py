"""Values become bytes and come back as what they were."""

from __future__ import annotations

import array
import collections
import dataclasses
import datetime as dt
import decimal
import enum
import functools
import operator
import pathlib
import textwrap
import types
import uuid
from typing import Any, Final, NamedTuple

import attrs
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine._wire.decode import decode
from engine._wire.encode import SMALL, are_plain, encode, encode_whole, is_plain
from tests.wire.travelling import Raising, Shade, raising_lookup, travelled


class Word(str):
    __slots__ = ()


class Colours(enum.Flag):
    RED = 1
    BLUE = 2


class Named(NamedTuple):
    x: int
    y: str = "y"


@dataclasses.dataclass
class Point:
    x: Any


@attrs.frozen
class Vector:
    x: Any


class Plain:
    def __init__(self, x: Any) -> None:
        self.x = x

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Plain) and other.x == self.x

    def __hash__(self) -> int:
        return hash(self.x)

    def __repr__(self) -> str:
        return f"Plain({self.x!r})"


VALUES: Final[dict[str, Any]] = {
    "nothing": None,
    "an empty text": "",
    "a surrogate": "\ud800",
    "a long text": "ä" * 100_000,
    "a huge number": 10**4000,
    "infinity": float("-inf"),
    "minus zero": -0.0,
    "a complex number": complex(1, -0.0),
    "ellipsis": ...,
    "not implemented": NotImplemented,
    "long bytes": b"\0\xff" * 100_000,
    "a bytearray": bytearray(b"x" * 100_000),
    "containers": {"a": [1, (2, {3, frozenset({4})})], None: {}},
    "a range": range(3, 30, 4),
    "a text of another type": Word("word"),
    "an enum": Shade.DARK,
    "flags": Colours.RED | Colours.BLUE,
    "a named tuple": Named(1),
    "a dataclass": Point([1]),
    "an attrs class": Vector([1]),
    "an object": Plain("x"),
    "a decimal": decimal.Decimal("1.10"),
    "a moment": dt.datetime.now(dt.UTC),
    "a uuid": uuid.uuid4(),
    "a path": pathlib.PurePosixPath("/a/b"),
    "an array of the library": array.array("d", [1.5] * 10_000),
    "an ordered dict": collections.OrderedDict(a=1),
    "a deque": collections.deque([1, 2], maxlen=5),
    "a counter": collections.Counter("aab"),
    "a type": Plain,
    "a built-in type": dict,
    "a function of a module": textwrap.dedent,
    "a built-in function": len,
    "a function in C": operator.add,
    "a partial": functools.partial(divmod, 7),
    "a scalar of numpy": np.float32(1.5),
    "a date of numpy": np.datetime64("2024-01-01"),
}


@pytest.mark.fault(28, 123, 126)
@pytest.mark.parametrize("name", VALUES)
def test_a_value_comes_back_as_what_it_was(name: str) -> None:
    value = VALUES[name]
    for back in (travelled(value), decode(encode_whole(value)), travelled([value])[0]):
        assert type(back) is type(value)
        if isinstance(value, functools.partial):
            assert back(2) == value(2)
        else:
            assert back == value
            assert repr(back) == repr(value)
        if value is None or value is ... or isinstance(value, (type, enum.Enum, types.FunctionType)):
            assert back is value


@given(
    value=st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner) | st.tuples(inner, inner),
    )
)
def test_whatever_is_built_in_comes_back_equal(value: Any) -> None:
    assert travelled(value) == value
    assert repr(travelled(value)) == repr(value)


def test_a_value_that_holds_itself_comes_back_so() -> None:
    value: list[Any] = []
    value.append(value)
    back = travelled(value)
    assert back[0] is back


@pytest.mark.fault(30)
@pytest.mark.parametrize("change", [-1, 1])
def test_another_number_of_bytes_than_was_announced_is_refused(change: int) -> None:
    for value in ("text", np.ones(10_000)):
        payload = encode(value)
        data = b"".join(map(bytes, payload.chunks))
        wrong = data[:change] if change < 0 else data + b"x"
        with pytest.raises(ValueError, match=f"{len(wrong)} bytes, where {len(data)} were announced"):
            decode(memoryview(wrong), payload.sizes)


def test_a_failed_decode_keeps_nothing_of_the_memory_either() -> None:
    payload = encode([np.ones(10_000), Raising(raising_lookup)])
    memory = bytearray(b"".join(map(bytes, payload.chunks)))
    with memoryview(memory) as view, pytest.raises(LookupError):
        decode(view, payload.sizes)
    memory.clear()  # refused where something still looked at it


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, True),
        (True, True),
        (1.5, True),
        ("x" * SMALL, True),
        ("x" * (SMALL + 1), False),
        (b"x" * SMALL, True),
        (b"x" * (SMALL + 1), False),
        (1 << (8 * SMALL - 1), True),
        (1 << (8 * SMALL), False),
        (-(1 << (8 * SMALL)), False),
        (Word("x"), False),
        (Shade.DARK, False),
        ((), False),
        ([], False),
        (np.float64(1), False),
    ],
    ids=lambda value: type(value).__name__,
)
def test_plain_is_what_is_small_immutable_and_of_a_built_in_type(value: Any, expected: bool) -> None:
    assert is_plain(value) is expected
    assert are_plain((), {"a": None, "b": value}) is expected


def test_inputs_are_plain_only_where_they_are_few_and_have_names() -> None:
    assert are_plain((), {})
    assert not are_plain((1,), {})
    assert are_plain((), dict.fromkeys(map(str, range(64))))
    assert not are_plain((), dict.fromkeys(map(str, range(65))))
