"""What arrives in a worker and comes back is a copy, made in time, of the same type and value."""

from __future__ import annotations

import array
import copy
import dataclasses
import datetime as dt
import decimal
import enum
import fractions
import functools
import io
import math
import pathlib
import re
import struct
import uuid
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, Final

import attrs
import numpy as np
import pydantic
import pytest

from engine import Engine, PayloadError
from engine._wire import decode as _decode
from tests.faults import awkward_values
from tests.faults.awkward_values import Keeper, gives_back, yields_back
from tests.faults.conftest import Cell, Consumer
from tests.faults.payloads.round_trips import MIB, each_way, each_yielding, values_of

# 27, 28, 124: copies, and when they are made.


@pytest.mark.fault(27)
@pytest.mark.parametrize("prefetch", [None, 0, 100])
@each_yielding
def test_a_list_that_is_yielded_again_and_again_arrives_as_it_was_at_each_yield(
    muna: Engine, worker: int, cell: Cell, prefetch: int | None
) -> None:
    def yields() -> Iterator[list[int]]:
        items: list[int] = []
        for number in range(20):
            items.append(number)
            yield items

    async def async_yields() -> AsyncIterator[list[int]]:
        items: list[int] = []
        for number in range(20):
            items.append(number)
            yield items

    async def scenario(consumer: Consumer) -> None:
        predictor = async_yields if cell.is_async else yields
        found = await consumer.read(predictor, prefetch=prefetch)
        assert found == [list(range(count)) for count in range(1, 21)]
        found = (await consumer.create(predictor, reduce="collect")).value
        assert found[-1] == list(range(20))

    cell.run_on(muna, scenario)


@pytest.mark.fault(124)
@pytest.mark.parametrize("is_large", [False, True], ids=["small", "large"])
@each_yielding
def test_neither_side_sees_the_other_change_an_input(muna: Engine, worker: int, cell: Cell, is_large: bool) -> None:
    size = 100_000 if is_large else 1

    def follows(items: Any) -> Iterator[tuple[int, int]]:
        for _ in range(3):
            items[0] += 1
            yield int(items[0]), len(items)

    async def afollows(items: Any) -> AsyncIterator[tuple[int, int]]:
        for _ in range(3):
            items[0] += 1
            yield int(items[0]), len(items)

    async def scenario(consumer: Consumer) -> None:
        for items in ([0] * size, np.zeros(size, dtype=np.int64), bytearray(size)):
            inputs: dict[str, Any] = {"items": items}
            reader = consumer.open(afollows if cell.is_async else follows, inputs=inputs, prefetch=0)
            assert await reader.pull() == (1, size)
            items[0] = 50
            inputs["items"] = None
            assert await reader.rest() == [(2, size), (3, size)]
            assert items[0] == 50

    cell.run_on(muna, scenario)


@pytest.mark.fault(124)
def test_neither_side_sees_the_other_change_a_partial(muna: Engine, worker: int) -> None:
    def yields() -> Iterator[Any]:
        board = np.zeros(50_000)
        small = [0]
        for number in range(5):
            board[:] += 1
            small[0] += 1
            yield board
            yield small
            assert board[0] == small[0] == number + 1  # what got them writes into them

    received = []
    for value in muna.predictions.stream(yields, runner="process").values():
        before = copy.deepcopy(value)
        received.append(before)
        value[:] = [99] * len(value)
    assert [float(each[0]) for each in received] == [1, 1, 2, 2, 3, 3, 4, 4, 5, 5]
    assert all((each == each[0]).all() for each in received[::2])


@pytest.mark.fault(28)
@each_way
def test_what_says_something_else_of_itself_arrives_or_is_named(muna: Engine, worker: int, way: str) -> None:
    for make in (awkward_values.Masked, awkward_values.Veiled):
        (value,) = values_of(muna, way, yields_back, {"value": make()})
        assert type(value) is make
    for hard in (awkward_values.OfUnhashed, awkward_values.OfHardToHash):  # which `pickle` itself cannot take
        with pytest.raises(PayloadError, match=f"input 'value' of type {hard.__qualname__} cannot be carried"):
            values_of(muna, way, yields_back, {"value": hard()})
        with pytest.raises(PayloadError, match=f"of type {hard.__qualname__} cannot be carried"):
            values_of(muna, way, lambda kind: getattr(awkward_values, kind)(), {"kind": hard.__name__})


@pytest.mark.fault(28)
def test_a_class_of_the_callers_is_not_changed_by_its_copies_return(muna: Engine, worker: int) -> None:
    class Counted:
        made = 0

        def __init__(self) -> None:
            type(self).made += 1

        def level(self) -> int:
            return level

    level = 1
    method = Counted.level
    (first,) = values_of(muna, "create", lambda: Counted())  # noqa: PLW0108 - a class is set up, a lambda called
    level, Counted.made = 2, 5
    (second,) = values_of(muna, "astream", gives_back, {"value": first})
    assert type(first) is type(second) is Counted
    assert (Counted.made, Counted.level) == (5, method)
    assert second.level() == 2


@pytest.mark.fault(22, 28)
def test_a_class_inside_another_has_its_full_name_in_a_worker(muna: Engine, worker: int) -> None:
    class Outer:
        @dataclasses.dataclass
        class Inner:
            x: int

        class Shade(enum.Enum):
            DARK = 1

    def shows(value: Any) -> str:
        return repr(value)

    for value in (Outer.Inner(1), Outer.Inner, Outer.Shade.DARK, Outer.Shade):
        assert values_of(muna, "create", shows, {"value": value}) == [repr(value)]


# 28, 123, 125, 126: the table of round trips.


class Shape(pydantic.BaseModel):
    """A pydantic model."""

    x: int


@attrs.frozen
class Trip:
    """One value on its way to a worker and back.

    Attributes:
        value: what is sent.
        arrives_as: the type that comes back; `None` for that of the value.
        is_same: whether the very same object comes back.
        shown: how two of them are compared.
    """

    value: Any
    arrives_as: type | None = None
    is_same: bool = False
    shown: Callable[[Any], Any] = attrs.field(default=lambda value: value)


def bits(value: float) -> bytes:
    return struct.pack("<d", value)


def array_facts(value: Any) -> Any:
    return value.dtype, value.shape, value.tobytes(), value.flags.writeable, value.flags.f_contiguous


def read_only(value: Any) -> Any:
    value.flags.writeable = False
    return value


NAN: Final = struct.unpack("<d", b"\x01\x00\x00\x00\x00\x00\xf8\x7f")[0]  # with a payload of its own

TRIPS = {
    # K 123: awkward values.
    "nan": Trip(NAN, shown=bits),
    "nan-inside": Trip([NAN], shown=lambda value: bits(value[0])),
    "minus-zero": Trip(-0.0, shown=bits),
    "infinity": Trip(math.inf),
    "huge-int": Trip(-(10**5000)),
    "lone-surrogate": Trip("\ud800 and \x00"),
    "long-lone-surrogates": Trip("\ud800" * 50_000),
    "bytes": Trip(bytes(range(256))),
    "empty": Trip([b"", "", (), {}, [], set(), frozenset()]),
    "huge-key": Trip({"k" * MIB: 1, 10**5000: 2, None: 3, (1, "a"): 4}),
    "order-of-keys": Trip({3: 1, 1: 2, 2: 3}, shown=list),
    # 28: identity.
    "none": Trip(None, is_same=True),
    "true": Trip(True, is_same=True),
    "ellipsis": Trip(..., is_same=True),
    "not-implemented": Trip(NotImplemented, is_same=True),
    "enum": Trip(awkward_values.Shade.DARK, is_same=True),
    "flag": Trip(awkward_values.Flags.RED | awkward_values.Flags.BLUE, is_same=True),
    "singleton": Trip(awkward_values.ONLY, is_same=True),
    "class": Trip(awkward_values.Point, is_same=True),
    "built-in": Trip(len, is_same=True),
    "function": Trip(gives_back, is_same=True),
    "module": Trip(math, is_same=True),
    "one-object-twice": Trip([shared := [1], shared], shown=lambda value: value[0] is value[1]),
    # 126: types.
    "str-subclass": Trip(awkward_values.Word("text")),
    "named-tuple": Trip(awkward_values.Named(1)),
    "dataclass": Trip(awkward_values.Point(1)),
    "frozen-dataclass": Trip(awkward_values.Fixed(1)),
    "attrs": Trip(awkward_values.Declared([1, awkward_values.Declared(2)])),
    "dict-subclass": Trip(awkward_values.Many(a=1)),
    "pydantic": Trip(Shape(x=1)),
    "exception": Trip(ValueError("a value"), shown=repr),
    "decimal": Trip(decimal.Decimal("0.10"), shown=str),
    "fraction": Trip(fractions.Fraction(1, 3)),
    "datetime": Trip(dt.datetime(2020, 2, 29, tzinfo=dt.UTC)),
    "uuid": Trip(uuid.UUID(int=5)),
    "path": Trip(pathlib.Path("a") / "b"),
    "collections": Trip([Counter("aab"), OrderedDict(a=1), deque([1, 2], 2)]),
    "default-dict": Trip(defaultdict(list, a=[1]), shown=lambda value: (value, value.default_factory)),
    "bytearray": Trip(bytearray(b"abc")),
    "array": Trip(array.array("d", [0.5])),
    "range": Trip(range(1, 9, 2)),
    "slice": Trip(slice(1, None)),
    "complex": Trip(1 + 2j),
    "pattern": Trip(re.compile("a+", re.IGNORECASE)),
    "partial": Trip(functools.partial(int, base=2), shown=lambda value: value("101")),
    "lambda": Trip(lambda: 5, shown=lambda value: value()),
    "memoryview": Trip(memoryview(b"abc"), bytes),  # no view is left where nothing is shared
    # 125: iterators and files.
    "list-iterator": Trip(iter([1, 2]), shown=list),
    "map": Trip(map(str, (1, 2)), shown=list),
    "text-buffer": Trip(io.StringIO("one\ntwo\n"), shown=io.StringIO.read),
    "byte-buffer": Trip(io.BytesIO(b"one"), shown=io.BytesIO.read),
    # numpy.
    "numpy-bool": Trip(np.True_, is_same=True),
    "numpy-int": Trip(np.int64(5)),
    "numpy-float": Trip(np.float32(0.5)),
    "numpy-type": Trip(np.float32, is_same=True),
    "numpy-dtype": Trip(np.dtype([("a", "<i4"), ("b", "S3")])),
    "numpy-function": Trip(np.add, is_same=True),
    "numpy-random": Trip(np.random.default_rng(5), shown=lambda value: copy.deepcopy(value).random()),
    **{
        f"numpy-{name}-{size}": Trip(value, shown=array_facts)
        for size, count in (("small", 4), ("large", 500))
        for name, value in {
            "array": np.arange(count**2, dtype=np.float64).reshape(count, count),
            "read-only": read_only(np.arange(count**2)),
            "fortran": np.asfortranarray(np.arange(count**2).reshape(count, count)),
            "strided": np.arange(count**2).reshape(count, count)[::2, ::-1].copy(order="K"),
            "big-endian": np.arange(count**2, dtype=">i4"),
            "structured": np.zeros(count**2, dtype=[("a", "<i4"), ("b", "S3")]),
            "text": np.array(["ab", "c"] * count),
            "dates": np.arange("2020-01", "2020-03", dtype="datetime64[D]"),
        }.items()
    },
    "numpy-empty": Trip(np.zeros((0, 3), dtype=np.int8), shown=array_facts),
    "numpy-scalar-array": Trip(np.array(5.5), shown=array_facts),
    "numpy-objects": Trip(np.array([None, [1], "a"], dtype=object), shown=lambda value: value.tolist()),
    "numpy-masked": Trip(np.ma.masked_array([1, 2], [True, False]), shown=lambda value: value.tolist()),
    "numpy-view": Trip(np.arange(100_000).reshape(200, 500)[3:90, ::2], shown=lambda value: value.tolist()),
    "numpy-many": Trip([np.full(9000, number) for number in range(70)], shown=lambda value: [list(x) for x in value]),
}


@pytest.mark.fault(28, 123, 125, 126)
@pytest.mark.parametrize("name", TRIPS)
def test_a_value_arrives_in_a_worker_and_comes_back_as_what_it_was(muna: Engine, worker: int, name: str) -> None:
    trip = TRIPS[name]
    expected = trip.shown(copy.deepcopy(trip.value) if name in {"list-iterator", "map"} else trip.value)
    if isinstance(trip.value, io.IOBase):
        trip.value.seek(0)

    def tells(value: Any) -> tuple[Any, str]:
        kind = type(value)
        return value, f"{kind.__module__}.{kind.__qualname__}"

    value, kind = muna.predictions.create(tells, {"value": trip.value}, runner="process").value
    partials = values_of(muna, "astream", yields_back, {"value": trip.value})
    arrived_as = trip.arrives_as or type(trip.value)
    assert kind == f"{arrived_as.__module__}.{arrived_as.__qualname__}"
    for each in (value, *partials):
        assert type(each) is arrived_as
        assert trip.shown(each) == expected
        assert (each is trip.value) == trip.is_same


@pytest.mark.fault(125)
@each_way
def test_an_input_that_can_be_read_once_is_read_there_and_not_here(
    muna: Engine, worker: int, way: str, tmp_path: pathlib.Path
) -> None:
    path = tmp_path / "lines.txt"
    path.write_text("one\ntwo\nthree\n")

    def reads(source: Any) -> list[Any]:
        return list(source)

    numbers = iter([1, 2, 3])
    next(numbers)
    assert values_of(muna, way, reads, {"source": numbers}) == [[2, 3]]
    assert list(numbers) == [2, 3]
    with path.open() as lines:
        assert lines.readline() == "one\n"
        assert values_of(muna, way, reads, {"source": lines}) == [["two\n", "three\n"]]
        assert lines.readline() == "two\n"
    numbers_made = (number for number in range(3))
    for source in (numbers_made, path.open("rb"), path.open("r+b")):
        with pytest.raises(PayloadError, match="input 'source' of type"):
            values_of(muna, way, reads, {"source": source})
        source.close() if hasattr(source, "fileno") else None
    assert list(numbers_made) == [0, 1, 2]


# 28: arrays are copies, whatever memory they travel through.


@pytest.mark.fault(28, 124)
def test_arrays_kept_by_either_side_outlive_the_memory_they_came_through(muna: Engine, worker: int) -> None:
    received = []
    for number in range(6):
        value = np.full(200_000, number)
        assert muna.predictions.create(Keeper, {"value": value}, runner="process").value == worker
        value[:] = -1
        (back,) = values_of(muna, "astream", yields_back, {"value": np.full(200_000, -number)})
        received.append(back)
    kept = muna.predictions.create(Keeper, runner="process").value
    assert [set(each.tolist()) for each in kept] == [{number} for number in range(6)]
    assert [set(each.tolist()) for each in received] == [{-number} for number in range(6)]


@pytest.mark.fault(28)
def test_a_large_input_that_a_predictor_keeps_is_not_changed_by_the_next_call() -> None:
    kept: list[Any] = []

    def keeps(given: Any, part: Callable[[Any], Any]) -> list[bytes]:
        kept.append(part(given))
        return [bytes(memoryview(each).cast("B")[:4]) for each in kept]

    parts: list[Any] = [lambda array: array, lambda array: array[8:], memoryview, lambda array: array.base]
    found: list[bytes] = []
    with Engine(discover=False, workers=1) as muna:
        for letter, part in zip("abcd", parts, strict=True):
            given = np.full(_decode._CACHED_FROM, ord(letter), np.uint8)
            found = muna.predictions.create(keeps, {"given": given, "part": part}, runner="process").value
    assert found == [b"aaaa", b"bbbb", b"cccc", b"dddd"]


@pytest.mark.fault(28)
@each_way
def test_what_is_read_only_stays_so_and_what_can_be_written_can_be_written_there_and_here(
    muna: Engine, worker: int, way: str
) -> None:
    def writes(into: Any, fixed: Any) -> Any:
        into[0] = 5
        with_error = ""
        try:
            fixed[0] = 5
        except (ValueError, TypeError) as error:
            with_error = type(error).__name__
        return into, fixed, with_error

    for size in (10, 200_000):
        mine = np.zeros(size)
        ((into, fixed, error),) = values_of(muna, way, writes, {"into": mine, "fixed": read_only(np.ones(size))})
        assert error == "ValueError"
        assert (into[0], mine[0], fixed[0]) == (5, 0, 1)
        into[1] = 6
        with pytest.raises(ValueError, match="read-only"):
            fixed[0] = 6
        own = bytearray(size)
        ((into, fixed, error),) = values_of(muna, way, writes, {"into": own, "fixed": bytes(size)})
        assert (error, type(into), type(fixed), into[0], own[0]) == ("TypeError", bytearray, bytes, 5, 0)
