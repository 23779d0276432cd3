"""How values, predictors and failures become bytes and come back; no worker is started here.

Most of it is packed and unpacked in this one process. What only a process can show that never saw the originals, such
as functions that go by value, is packed by one script and used by another.
"""

from __future__ import annotations

import array
import collections
import dataclasses
import datetime as dt
import decimal
import enum
import functools
import gc
import importlib
import operator
import pathlib
import pickle
import re
import socket
import subprocess
import sys
import textwrap
import threading
import types
import uuid
import weakref
import zipfile
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import attrs
import cloudpickle
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine import PayloadError, PredictorError
from engine._wire import by_name as _importable
from engine._wire import decode as _decode
from engine._wire.by_name import is_importable
from engine._wire.decode import BufferCache, decode, decode_in_pieces, decode_known, read_only_bits
from engine._wire.encode import SMALL, Payload, are_plain, encode, encode_inputs, encode_whole, is_plain
from engine._wire.failures import LARGEST_FAILURE, pack_failure, unpack_failure
from engine._wire.pieces import AT_ONCE, PIECE
from engine._wire.targets import encode_target

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


def unpacked(payload: Payload) -> Any:
    """What comes out on the other side; the memory it came through is used again at once."""
    memory = bytearray(b"".join(map(bytes, payload.chunks)))
    with memoryview(memory) as view:
        value = decode(view, payload.sizes, read_only_bits(payload.buffers))
    memory[:] = b"\xff" * len(memory)
    return value


def travelled(value: Any) -> Any:
    return unpacked(encode(value))


@pytest.fixture
def forgotten() -> Iterator[None]:
    """Have modules of a test, and what is noted about them, forgotten after it."""
    modules, noted = dict(sys.modules), cloudpickle.list_registry_pickle_by_value()
    known = dict(_importable._known)
    yield
    _importable._known.clear()
    _importable._known.update(known)
    for name in set(cloudpickle.list_registry_pickle_by_value()) - set(noted):
        cloudpickle.cloudpickle._PICKLE_BY_VALUE_MODULES.discard(name)
    for name in set(sys.modules) - set(modules):
        del sys.modules[name]
    sys.modules.update(modules)


def made_by_hand(name: str, source: str = "") -> types.ModuleType:
    module = types.ModuleType(name)
    sys.modules[name] = module
    exec(textwrap.dedent(source), module.__dict__)
    return module


# Values


class Word(str):
    __slots__ = ()


class Shade(enum.IntEnum):
    DARK = 1


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
class WaitQueue:
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
    "an attrs class": WaitQueue([1]),
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


SENTINELS: Final = """
    class Unset: pass
    class Slotted: __slots__ = ()
    class Named:
        def __init__(self, name): self.name = name
    class Kept:
        __slots__ = ("name",)
        def __init__(self, name): self.name = name
    BARE, UNSET, SLOTTED, NAMED, KEPT = object(), Unset(), Slotted(), Named("NAMED"), Kept("KEPT")
"""


@pytest.fixture
def sentinels(forgotten: None, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A module that can be imported, with sentinels of every make."""
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "with_sentinels.py").write_text(textwrap.dedent(SENTINELS))
    return importlib.import_module("with_sentinels")


@pytest.mark.parametrize("name", ["BARE", "UNSET", "SLOTTED", "NAMED", "KEPT"])
def test_a_sentinel_of_a_module_comes_back_as_itself(sentinels: Any, name: str) -> None:
    sentinel = getattr(sentinels, name)
    for value in (sentinel, [sentinel, lambda: None]):  # by plain pickle, and beside what goes by value
        back = travelled(value)
        assert (back[0] if isinstance(back, list) else back) is sentinel
    assert decode_known(encode_whole(sentinel), None) is sentinel


def test_the_sentinels_of_dataclasses_come_back_as_themselves() -> None:
    for each in (dataclasses.MISSING, dataclasses.KW_ONLY):
        assert travelled([each])[0] is each
    (back,) = dataclasses.fields(travelled(dataclasses.make_dataclass("Local", ["x"])))
    assert back.default is dataclasses.MISSING


def test_an_object_that_is_no_sentinel_of_its_module_any_more_comes_back_as_a_copy(sentinels: Any) -> None:
    for value in (object(), sentinels.Unset(), sentinels.Named("other"), sentinels.Kept("other")):
        back = travelled(value)
        assert back is not value
        assert type(back) is type(value)
        assert getattr(back, "name", "other") == "other"
    data = encode_whole((sentinels.UNSET, sentinels.NAMED))
    sentinels.UNSET.mark = sentinels.NAMED.name = 1  # what the other side has differs from what was sent
    unset, named = decode(data)
    assert (vars(unset), vars(named)) == ({}, {"name": "NAMED"})
    assert vars(travelled(sentinels.UNSET)) == {"mark": 1}


def test_a_sentinel_of_a_module_that_nobody_else_can_import_is_one_object_however_often_it_comes(
    forgotten: None,
) -> None:
    module: Any = made_by_hand("with_sentinels_by_hand", SENTINELS)
    for sentinel in (module.BARE, module.UNSET, module.SLOTTED):
        assert travelled(sentinel) is sentinel


def test_objects_that_a_script_has_under_one_name_after_the_other_are_not_kept_for_having_travelled(
    forgotten: None,
) -> None:
    module: Any = made_by_hand("with_sentinels_by_hand", SENTINELS)
    data = []
    for _ in range(3):
        module.UNSET = module.Unset()
        gone = weakref.ref(module.UNSET)
        data.append(encode_whole(module.UNSET))
        assert decode(data[-1]) is module.UNSET
        del module.UNSET
        gc.collect()
        assert gone() is None
    made = [decode(each) for each in (*data, *data)]
    assert made[:3] == made[3:]
    assert len(set(map(id, made))) == 3


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


def test_large_buffers_stand_beside_the_pickle_uncopied_and_small_ones_in_it() -> None:
    large, small = np.ones(100_000), np.ones(3)
    payload = encode({"large": large, "small": small})
    (buffer,) = payload.buffers
    assert np.shares_memory(np.frombuffer(buffer, dtype=np.uint8), large)
    assert payload.sizes == (len(payload.data), large.nbytes)
    assert len(payload.data) < 1000
    assert not encode(small).buffers


def test_an_array_of_a_class_by_value_still_stands_aside_once() -> None:
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


@pytest.mark.parametrize("count", [0, 1, AT_ONCE - 1, AT_ONCE, PIECE - 1, PIECE, PIECE + 1, 3 * PIECE])
@pytest.mark.parametrize("of", [bytes, bytearray, lambda data: data.decode(), lambda data: list(data[::50])])
def test_what_is_encoded_and_decoded_in_pieces_is_what_it_was(of: Callable[[bytes], Any], count: int) -> None:
    value = of(b"x" * count)
    payload = encode_inputs((value, [value, "y"]), {"blob": Blob(value)} if type(value) in {bytes, bytearray} else {})
    assert max(map(len, payload.chunks)) <= max(PIECE, count)
    data = b"".join(payload.chunks)
    for rebuild in (decode, decode_in_pieces):
        args, kwargs = rebuild(data, payload.sizes, read_only_bits(payload.buffers))
        found = (*args, *(blob.content for blob in kwargs.values()))
        assert found == (value, [value, "y"], *[value for _ in kwargs])
        assert {type(each) for each in found if type(each) is not list} <= {type(value)}
    with pytest.raises(ValueError, match="announced"):
        decode_in_pieces(data + b"z", payload.sizes)


@pytest.mark.fault(28)
@pytest.mark.parametrize("count", [0, 10, 100_000])
def test_bytes_that_stand_aside_come_back_as_bytes_and_a_bytearray_as_such(count: int) -> None:
    for content in (b"x" * count, bytearray(b"x" * count)):
        back = travelled(Blob(content)).content
        assert (type(back), back) == (type(content), content)


def test_a_buffer_that_is_not_in_one_piece_is_refused() -> None:
    with pytest.raises(PayloadError, match=r"^input 'blob' of type Blob cannot be carried"):
        encode_inputs((), {"blob": Blob(memoryview(bytearray(100))[::2])})


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


# Plain values


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


# What cannot travel


class Raising:
    """Calls something where it is packed (`pack`) or unpacked."""

    def __init__(self, act: Callable[[], Any], *, pack: bool = False) -> None:
        self.act, self.pack = act, pack

    def __reduce__(self) -> Any:
        if self.pack:
            self.act()
        return self.act, ()


def raising_lookup() -> Any:
    raise LookupError("it will not")


def raising_exit() -> Any:
    raise SystemExit(3)


def raising_interrupt() -> Any:
    raise KeyboardInterrupt


def deep(levels: int = 100_000, inmost: Any = ()) -> list[Any]:
    found: list[Any] = [inmost]
    for _ in range(levels):
        found = [found]
    return found


UNPACKABLE: Final[dict[str, tuple[Callable[[], Any], str]]] = {
    "a lock": (threading.Lock, "_thread.lock"),
    "a socket": (socket.socket, "socket"),
    "a generator": (lambda: (each for each in "ab"), "generator"),
    "a context variable": (lambda: ContextVar("variable"), "ContextVar"),
    "a frame": (sys._getframe, "frame"),
    "something deep": (deep, "list"),
    "one that raises": (lambda: Raising(raising_lookup, pack=True), "Raising"),
    "one that exits": (lambda: Raising(raising_exit, pack=True), "Raising"),
}


@pytest.mark.fault(17, 19, 26)
@pytest.mark.parametrize("name", UNPACKABLE)
def test_an_input_that_cannot_travel_is_named_with_its_type_and_what_to_do(name: str) -> None:
    make, kind = UNPACKABLE[name]
    value = make()
    try:
        for harmless in ({"x": 1}, {}):
            with pytest.raises(PayloadError) as caught:
                encode_inputs((), {**harmless, "wanted": value, "y": 2})
            text = str(caught.value)
            assert text.startswith("input 'wanted' of type ")
            assert kind.rpartition(".")[2] in text
            assert "Pass what it is made from instead, or run the predictor with runner='thread'." in text
            assert len(text) < 1000
            assert caught.value.type_name == f"{type(value).__module__}.{type(value).__qualname__}"
            assert "Traceback" in caught.value.traceback
    finally:
        if isinstance(value, socket.socket):
            value.close()


def test_an_input_without_a_name_is_told_by_its_place_and_a_hostile_name_is_escaped() -> None:
    with pytest.raises(PayloadError, match=r"^input 1 of type lock"):
        encode_inputs((1, threading.Lock()), {})
    with pytest.raises(PayloadError) as caught:
        encode_inputs((), {"\x1b[31m\n": threading.Lock()})
    assert str(caught.value).isprintable()


def test_inputs_that_only_together_cannot_travel_are_refused_as_a_whole() -> None:
    attempts: list[None] = []

    def fail_twice() -> None:
        attempts.append(None)
        if len(attempts) <= 2:
            raise LookupError("not yet")

    with pytest.raises(PayloadError, match=r"^the inputs of type dict .*LookupError: not yet"):
        encode_inputs((), {"a": Raising(fail_twice, pack=True)})


@pytest.mark.fault(17, 40)
def test_ctrl_c_while_something_is_packed_is_no_matter_of_payloads() -> None:
    value = Raising(raising_interrupt, pack=True)
    for pack in (
        encode,
        encode_whole,
        lambda each: encode_inputs((), {"a": each}),
        functools.partial(encode_target, "t"),
    ):
        with pytest.raises(KeyboardInterrupt):
            pack(value)


def test_what_is_no_exception_ends_packing_at_once_instead_of_trying_another_way() -> None:
    attempts = []

    class Terminated(BaseException):
        pass

    def terminate() -> None:
        attempts.append(1)
        raise Terminated

    with pytest.raises(Terminated):
        encode(Raising(terminate, pack=True))
    assert len(attempts) == 1


@attrs.define
class Box:
    inside: Any


class Shelf:
    def __init__(self, *boxes: Any) -> None:
        self.number = 3
        self.boxes = boxes


class Discreet(Shelf):
    def __getstate__(self) -> Any:
        return {"number": self.number}

    def __reduce__(self) -> Any:
        raise LookupError("it keeps to itself")


class Veiled(Shelf):
    def __getattr__(self, name: str) -> Any:
        raise OSError(f"no {name}")

    __dict__ = property(lambda self: self.nothing)


LOCK: Final = threading.Lock()
PLACES: Final[dict[str, tuple[Any, str]]] = {
    "itself": (LOCK, ""),
    "nested": ({"a": [{"b": LOCK}]}, "inputs['x']['a'][0]['b'] of type lock"),
    "behind-others": ([1, "two", {3: b"four"}, (LOCK, LOCK)], "inputs['x'][3][0] of type lock"),
    "attributes": (Shelf(Box(1), Box(LOCK)), "inputs['x'].boxes[1].inside of type lock"),
    "local-class": ([Box(lambda: LOCK)], "inputs['x'][0].inside of type function"),
    "its-own-way": ([Discreet(LOCK)], "inputs['x'][0] of type Discreet"),
    "odd-key": ({(1, "\n"): LOCK}, r"inputs['x'][(1, '\n')] of type lock"),
    "too-many": ([[Box(1)] * 100_000, [*[Box(number) for number in range(300)], LOCK]], "inputs['x'][1] of type list"),
    "too-deep": (deep(50, LOCK), ""),
    "veiled": ([Veiled(LOCK)], ""),
}


@pytest.mark.fault(17)
@pytest.mark.parametrize("case", PLACES)
def test_an_input_that_cannot_travel_names_the_place_in_it_that_keeps_it(case: str) -> None:
    value, place = PLACES[case]
    with pytest.raises(PayloadError) as caught:
        encode_inputs((), {"harmless": [1], "x": value})
    because = f" because of {place}" if place else ""
    start = f"input 'x' of type {type(value).__name__} cannot be carried to or from a worker{because}: "
    assert str(caught.value).startswith(start)


@pytest.mark.fault(17, 25)
def test_what_cannot_travel_is_told_with_the_one_failure_that_says_so() -> None:
    for pack in (lambda value: encode_inputs((), {"x": value}), functools.partial(encode_target, "@me/it")):
        with pytest.raises(PayloadError) as caught:
            pack({"a": threading.Lock()})
        cause = caught.value.__cause__
        assert isinstance(cause, TypeError)
        assert cause.__context__ is cause.__cause__ is None
        assert caught.value.__context__ in {cause, None}
        assert "ByReference" not in caught.value.traceback


def culprits() -> Iterator[tuple[str, Any, str]]:
    guard = threading.Lock()

    def free() -> Any:
        return guard

    def with_default(harmless: int = 1, guarded: Any = guard) -> Any:
        return guarded

    def with_named_default(*, guarded: Any = guard) -> Any:
        return guarded

    class Predictor:
        harmless = 1

        def predict(self) -> Any:
            return guard

    def by_hand(source: Any) -> Any:
        scope: dict[str, Any] = {"GUARD": guard, "harmless": [1]}
        exec(source, scope)
        return scope["f"]

    yield "free", free, "guard"
    yield "global", by_hand("def f(): return harmless, GUARD"), "GUARD"
    yield "deep-inside", by_hand("def f(): return [(lambda: GUARD)() for _ in harmless]"), "GUARD"
    yield "default", with_default, "guarded"
    yield "named-default", with_named_default, "guarded"
    yield "method-of-a-class", Predictor, "guard"
    source = compile(
        "class f:\n    size: int = 1\n    def predict(self, x: int): return GUARD", "", "exec", dont_inherit=True
    )
    yield "method-of-an-annotated-class", by_hand(source), "GUARD"
    yield "method", Predictor().predict, "guard"


@pytest.mark.fault(25)
@pytest.mark.parametrize(("target", "name"), [each[1:] for each in culprits()], ids=[each[0] for each in culprits()])
def test_a_predictor_that_cannot_travel_names_the_variable_that_keeps_it(target: Any, name: str) -> None:
    with pytest.raises(
        PayloadError, match=f"^'{name}', which the predictor @me/it uses, of type lock cannot"
    ) as caught:
        encode_target("@me/it", target)
    assert caught.value.type_name == "_thread.lock"


@pytest.mark.fault(25)
def test_a_predictor_without_variables_of_its_own_is_named_itself() -> None:
    class Holding:
        def __init__(self) -> None:
            self.guard = threading.Lock()

        def predict(self) -> None:
            pass

    for target in (Holding(), functools.partial(print, threading.Lock())):
        with pytest.raises(PayloadError, match=f"^the predictor @me/it of type {type(target).__qualname__} cannot"):
            encode_target("@me/it", target)


def test_a_variable_that_has_no_value_yet_hinders_nobody() -> None:
    def early() -> Any:
        return late, threading.Lock

    assert decode(encode_target("@me/it", early)).__name__ == "early"
    late = 1


# Modules


@pytest.mark.parametrize(
    "name",
    ["sys", "builtins", "_io", "_collections_abc", "os", "json", "json.decoder", "numpy", "numpy.linalg", "math"],
)
def test_modules_of_python_and_of_packages_are_importable(name: str) -> None:
    assert is_importable(importlib.import_module(name))


@pytest.mark.usefixtures("forgotten")
def test_what_was_made_by_hand_or_is_gone_is_not_importable(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "there.py").write_text("")
    (tmp_path / "gone.py").write_text("")
    (tmp_path / "shadowed.py").write_text("")
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "__init__.py").write_text("")
    (tmp_path / "package" / "inside.py").write_text("")
    (tmp_path / "space").mkdir()
    (tmp_path / "space" / "inside.py").write_text("")
    with zipfile.ZipFile(tmp_path / "archive.zip", "w") as archive:
        archive.writestr("zipped.py", "")
    monkeypatch.syspath_prepend(str(tmp_path / "archive.zip"))
    good = ["there", "package", "package.inside", "space", "space.inside", "zipped"]
    for name in good:
        assert is_importable(importlib.import_module(name)), name

    gone, shadowed = importlib.import_module("gone"), importlib.import_module("shadowed")
    (tmp_path / "gone.py").unlink()
    assert not is_importable(gone)
    sys.modules["shadowed"] = types.ModuleType("shadowed")
    assert not is_importable(shadowed)
    assert not is_importable(sys.modules["shadowed"])
    assert not is_importable(made_by_hand("by_hand"))
    assert not is_importable(made_by_hand("package.by_hand"))
    assert not is_importable(made_by_hand("json"))  # another of that name could be found
    assert not is_importable(importlib.import_module("__main__"))
    for name in ("elsewhere", "shadowed"):  # a file that is found under another name, and one in the place of another
        spec = importlib.util.spec_from_file_location(name, tmp_path / "there.py")
        assert spec is not None
        elsewhere = sys.modules[name] = importlib.util.module_from_spec(spec)
        assert not is_importable(elsewhere)


@pytest.mark.usefixtures("forgotten")
def test_a_package_made_by_hand_hides_even_a_module_with_a_file(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "inside.py").write_text("")
    package = made_by_hand("owner")
    package.__path__ = [str(tmp_path)]
    assert not is_importable(importlib.import_module("owner.inside"))


@pytest.mark.usefixtures("forgotten")
def test_an_object_that_stands_for_a_module_and_a_finder_that_raises_are_survived(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Standing:
        __hash__ = None  # type: ignore[assignment]
        __slots__ = ()

    class Finder:
        @staticmethod
        def find_spec(*_facts: object) -> None:
            raise LookupError("broken")

    encode_whole(lambda: None)  # what that needs is imported
    monkeypatch.setattr(sys, "meta_path", [Finder, *sys.meta_path])
    sys.modules["standing"] = Standing()  # type: ignore[assignment]
    Local = type("Local", (), {"__module__": "standing"})
    assert not is_importable(sys.modules["standing"])
    assert type(travelled(Local())).__name__ == "Local"
    assert is_importable(importlib.import_module("json.scanner"))


FINDER: Final = """
    import importlib.abc, importlib.machinery, sys

    class Finder(importlib.abc.Loader):
        def find_spec(self, name, path=None, target=None):
            wanted = name.rpartition(".")[2].startswith("virtual")
            return importlib.machinery.ModuleSpec(name, self, origin="nowhere") if wanted else None
        def exec_module(self, module):
            pass

    def install():
        sys.meta_path.append(Finder())
"""


@pytest.mark.usefixtures("forgotten")
def test_what_a_finder_imports_is_importable_only_where_workers_have_that_finder(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "with_own_finder").mkdir()
    (tmp_path / "with_own_finder" / "__init__.py").write_text(textwrap.dedent(FINDER) + "install()\n")
    monkeypatch.setattr("site.getsitepackages", lambda: [str(tmp_path)])
    monkeypatch.setattr(_importable, "_at_start", None)
    assert is_importable(importlib.import_module("with_own_finder.virtual"))  # its package brings the finder
    assert not is_importable(importlib.import_module("virtual_of_the_program"))
    made_by_hand("of_an_editable_install", FINDER).install()
    sys.meta_path.append(sys.meta_path.pop(-2))  # it comes first of the two
    assert not is_importable(importlib.import_module("virtual_of_another"))
    (tmp_path / "editable.pth").write_text(
        "/some/folder\nimport of_an_editable_install; of_an_editable_install.install()\n"
    )
    monkeypatch.setattr(_importable, "_at_start", None)
    assert is_importable(importlib.import_module("virtual_of_an_editable_install"))


def test_a_pickle_is_rebuilt_out_of_modules_that_are_there_or_not_at_all() -> None:
    assert decode_known(encode_whole([1, Shade.DARK]), "otherwise") == [1, Shade.DARK]
    name = "wave" if "wave" not in sys.modules else "sndhdr"
    data = f"c{name}\nopen\n.".encode()
    assert decode_known(data, "otherwise") == "otherwise"
    assert name not in sys.modules
    assert decode_known(b"garbage", "otherwise") == "otherwise"


# By value, for a process that never saw the originals

DEFINITIONS: Final = """
    import asyncio, dataclasses, enum, functools, sys, types
    import attrs

    LEVEL = 3

    def doubled(x):
        return 2 * x

    @functools.lru_cache(maxsize=3)
    def halved(x):
        return x // 2

    def factorial(n):
        return 1 if n < 2 else n * factorial(n - 1)

    def outer():
        def inner(n):
            return [] if not n else [n, *inner(n - 1)]
        return inner

    class Shade(enum.Enum):
        DARK = "dark"

    @dataclasses.dataclass
    class Point:
        x: int
        def moved(self):
            return Point(self.x + LEVEL)

    @attrs.define
    class WaitQueue:
        x: int
        kind: Shade = Shade.DARK

    class Base:
        def __init__(self, x):
            self.x = x
        def tell(self):
            return self.x

    class Derived(Base):
        def tell(self):
            return super().tell() + [type(self).__name__]
        @classmethod
        def make(cls, x):
            return cls(x)
        @staticmethod
        def double(x):
            return doubled(x)
        @property
        def shown(self):
            return f"<{self.x}>"
        def __call__(self, y):
            return self.x, y

    def local_class():
        class Local(Base):
            pass
        return Local(7)

    def generating(n):
        for each in range(n):
            yield doubled(each)

    async def waiting(x):
        await asyncio.sleep(0)
        return doubled(x)

    def made_by_hand(name, source):
        module = types.ModuleType(name)
        sys.modules[name] = module
        exec(source, module.__dict__)
        return module

    others = made_by_hand("others_by_hand", "BASE = 200\\ndef add(x): return BASE + x")
    tools = made_by_hand("tools_by_hand", "BASE = 100\\ndef add(x): return BASE + x")
    more = made_by_hand("more_by_hand", "import tools_by_hand\\ndef add(x): return tools_by_hand.add(x) + 1")

    def using_others(x):
        return others.add(x)

    VALUES = {
        "lambda": lambda x: x + LEVEL,
        "function": doubled,
        "recursive": factorial,
        "recursive closure": outer(),
        "enum": Shade.DARK,
        "dataclass": Point(4),
        "attrs": WaitQueue(5),
        "object": Derived([1]),
        "bound method": Derived([1]).tell,
        "class method": Derived.make,
        "static method": Derived.double,
        "class": Derived,
        "local class": local_class(),
        "partial": functools.partial(doubled, 21),
        "partial of a partial": functools.partial(functools.partial(max, 1), 2),
        "generator function": generating,
        "async function": waiting,
        "of a module by hand": tools.add,
        "that refers to a module by hand": using_others,
        "of a module by hand that refers to another": more.add,
        "cached": halved,
        "pair of one class": (Point(1), Point(2)),
    }
"""

PACKS: Final = """
    import pickle, sys
    from engine._wire.encode import encode, read_only_bits
    packed = {}
    for name, value in VALUES.items():
        payload = encode(value)
        packed[name] = b"".join(map(bytes, payload.chunks)), payload.sizes, read_only_bits(payload.buffers)
    with open(sys.argv[1], "wb") as file:
        pickle.dump(packed, file)
"""

USES: Final = """
    import asyncio, pickle, sys
    from engine._wire.encode import decode
    with open(sys.argv[1], "rb") as file:
        packed = pickle.load(file)
    made = {name: decode(*each) for name, each in packed.items()}
    tells = made["object"]
    print([
        made["lambda"](1), made["function"](2), made["recursive"](5), made["recursive closure"](3),
        made["enum"].value, made["enum"] is type(made["enum"])("dark"),
        made["dataclass"].moved().x, made["dataclass"] == type(made["dataclass"])(4),
        made["attrs"].x, made["attrs"].kind.name,
        tells.tell(), tells.shown, tells(2), made["bound method"](), made["class method"]([2]).tell(),
        made["static method"](4), made["class"]([3]).tell(), made["local class"].tell(), made["partial"](),
        made["partial of a partial"](3), list(made["generator function"](3)), asyncio.run(made["async function"](6)),
        made["of a module by hand"](1), made["that refers to a module by hand"](2),
        made["of a module by hand that refers to another"](3), made["cached"](8),
        made["cached"].cache_parameters()["maxsize"],
        type(made["pair of one class"][0]) is type(made["pair of one class"][1]),
    ])
"""

EXPECTED: Final = [
    4,
    4,
    120,
    [3, 2, 1],
    "dark",
    True,
    7,
    True,
    5,
    "DARK",
    [1, "Derived"],
    "<[1]>",
    ([1], 2),
    [1, "Derived"],
    [2, "Derived"],
    8,
    [3, "Derived"],
    7,
    42,
    3,
    [0, 2, 4],
    12,
    101,
    202,
    104,
    4,
    3,
    True,
]


def run(script: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), *arguments],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


@pytest.mark.fault(22, 24)
def test_what_a_script_defines_works_in_a_process_that_has_never_seen_it(tmp_path: pathlib.Path) -> None:
    place = str(tmp_path / "packed")
    run(textwrap.dedent(DEFINITIONS) + textwrap.dedent(PACKS), place)
    assert run(USES, place).strip() == repr(EXPECTED)


@pytest.mark.fault(24)
@pytest.mark.usefixtures("forgotten")
def test_what_a_module_without_a_file_defines_is_packed_whole() -> None:
    module = made_by_hand(
        "by_hand_here",
        """
        LEVEL = 2
        class Voice:
            def __init__(self, name): self.name = name
            def tell(self): return self.name * LEVEL
        def speak(name): return Voice(name).tell()
        """,
    )
    data = [encode_target("@me/it", module.speak), encode_whole(module.Voice("b"))]
    del sys.modules["by_hand_here"]
    assert decode(data[0])("a") == "aa"
    assert decode(data[1]).tell() == "bb"


@pytest.fixture
def anew(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Give a module whose class and function have travelled by name."""
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "anew.py").write_text("class Voice: pass\ndef speak(): return 1\n")
    module: Any = importlib.import_module("anew")
    before = module.Voice, module.speak
    assert decode(encode_whole(before)) == before
    return module


@pytest.mark.fault(24)
@pytest.mark.usefixtures("forgotten")
def test_a_module_that_is_imported_again_goes_by_value_while_a_worker_may_have_it_as_it_was(anew: Any) -> None:
    before = anew.Voice(), anew.speak
    older, newer = object(), object()
    _importable.note_worker(older)
    try:
        importlib.reload(anew)
        data = encode_whole((anew.Voice, anew.speak))
        del sys.modules["anew"]
        voice, speak = decode(data)
        sys.modules["anew"] = anew
        assert (voice, speak()) == (anew.Voice, 1)
        for value in before:
            assert decode(encode_whole(value)) is not None  # by value, for by name another is found
        _importable.note_worker(newer)
        assert not is_importable(anew)
        _importable.forget_worker(older)
        assert is_importable(anew)
    finally:
        _importable.forget_worker(older)
        _importable.forget_worker(newer)


@pytest.mark.fault(24)
@pytest.mark.usefixtures("forgotten")
def test_a_module_that_is_imported_again_goes_by_name_where_no_worker_runs(anew: Any) -> None:
    importlib.reload(anew)
    assert is_importable(anew)
    assert decode(encode_whole((anew.Voice, anew.speak))) == (anew.Voice, anew.speak)


# Failures


class NeedsMore(Exception):
    def __init__(self, message: str, code: Any) -> None:
        super().__init__(message)
        self.code = code


class NeedsNoMore(Exception):
    def __init__(self, message: str, code: int = 0) -> None:
        super().__init__(message)
        self.code = code


@attrs.define(kw_only=True)
class KeywordsOnly(Exception):
    code: Any


@attrs.frozen
class FrozenAttrs(Exception):
    code: int


@dataclasses.dataclass(frozen=True)
class Frozen(Exception):
    code: int


@dataclasses.dataclass(frozen=True, slots=True)
class FrozenSlots(Exception):
    code: int


class Slotted(Exception):
    __slots__ = ("code",)

    def add_note(self, _note: str) -> None:
        raise AttributeError("no notes")


class OfItsOwn(BaseException):
    """No Exception."""


class Stubborn(Exception):
    """Its reduction is what its one argument gives."""

    def __reduce__(self) -> Any:
        return self.args[0]()


class Mute(Exception):
    def __str__(self) -> str:
        raise LookupError("it cannot be shown")

    __repr__ = __str__


class Numeric(Exception):
    def __str__(self) -> str:
        return 7  # type: ignore[return-value]  # noqa: PLE0307 - the point


class Holding(Exception):
    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.guard = threading.Lock()


class Hostile(Exception):
    def __str__(self) -> str:
        raise SystemExit(3)


class Closed(Exception):
    def __getattribute__(self, _name: str) -> Any:
        raise LookupError("nothing to see")


class WithoutCause(Exception):
    @property
    def __cause__(self) -> Any:  # type: ignore[override]
        raise LookupError("no cause")


def struck(error: BaseException) -> BaseException:
    """An exception that was raised."""
    try:
        raise error  # the line that struck
    except BaseException as caught:
        return caught


def arrived(error: BaseException, place: str = "in worker 7") -> BaseException:
    """What becomes of an exception; on its way it is built-in types alone."""
    packed = decode(pickle.dumps(pack_failure(error), 5))
    return unpack_failure(packed, place)


def told(error: BaseException) -> PredictorError:
    found = arrived(error)
    assert isinstance(found, PredictorError)
    assert type(found) is PredictorError
    return found


def notes_of(error: BaseException) -> list[str]:
    return list(getattr(error, "__notes__", ()))


REBUILT: Final[dict[str, Callable[[], BaseException]]] = {
    "a text": lambda: ValueError("text"),
    "nothing": KeyError,
    "several arguments": lambda: OSError(2, "no such thing", "name"),
    "of a module": lambda: UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"),
    "an attribute of its own": lambda: NeedsNoMore("text", 5),
    "frozen": lambda: Frozen(5),
    "frozen with slots": lambda: FrozenSlots(5),
    "frozen by attrs": lambda: FrozenAttrs(5),
    "without notes": lambda: Slotted("text"),
    "no Exception": lambda: OfItsOwn("text"),
    "an exit": lambda: SystemExit(3),
    "a limit": lambda: RecursionError("too deep"),
    "no memory": MemoryError,
    "not to be shown": lambda: Mute(1),
    "shown wrongly": lambda: Numeric(1),
    "of a local class": lambda: type("Local", (Exception,), {})("text"),
}


@pytest.mark.fault(31, 34, 36, 41, 44)
@pytest.mark.parametrize("name", REBUILT)
def test_an_exception_that_can_be_rebuilt_arrives_as_itself_with_the_remote_traceback(name: str) -> None:
    error = struck(REBUILT[name]())
    back = arrived(error)
    assert type(back) is type(error)
    assert back is not error
    assert back.args == error.args
    assert getattr(back, "code", None) == getattr(error, "code", None)
    if "frozen" in name or "notes" in name:
        return  # such refuse attributes, and some of them notes
    (note,) = notes_of(back)
    assert note.startswith("in worker 7:\nTraceback (most recent call last):\n")
    assert "raise error  # the line that struck" in note
    assert f"{struck.__code__.co_firstlineno + 3}, in struck" in note


@pytest.mark.fault(31)
def test_notes_travel_and_where_no_place_is_named_none_is_added() -> None:
    error = struck(ValueError("text"))
    error.add_note("a note")
    assert notes_of(arrived(error))[:-1] == ["a note"]
    assert notes_of(arrived(error, "")) == ["a note"]


@pytest.mark.fault(36)
def test_an_exception_that_refuses_attributes_arrives_without_cause_and_notes() -> None:
    error = Frozen(5)
    try:
        raise error from KeyError("reason")
    except Frozen as caught:
        back = arrived(caught)
    assert back == error
    assert notes_of(back) == []
    assert back.__cause__ is None


def unpackable() -> Iterator[tuple[str, BaseException, str, str]]:
    yield "needs-more", NeedsMore("text", threading.Lock()), "NeedsMore", "text"
    yield "keywords-only", KeywordsOnly(code=threading.Lock()), "KeywordsOnly", ""
    yield "holds-a-lock", Holding("text"), "Holding", "text"
    yield "holds-a-generator", ValueError("text", (each for each in "ab")), "ValueError", "('text', <generator"
    yield "raises", Stubborn(raising_lookup), "Stubborn", "raising_lookup"
    yield "exits", Stubborn(raising_exit), "Stubborn", "raising_exit"
    yield "interrupts", Stubborn(raising_interrupt), "Stubborn", "raising_interrupt"
    yield "is-no-reduction", Stubborn(int), "Stubborn", "int"
    yield "is-another-type", Stubborn(lambda: (KeyError, ())), "Stubborn", "lambda"
    yield "is-another-name", Stubborn(lambda: "Stubborn"), "Stubborn", "lambda"
    yield "raises-when-rebuilt", Stubborn(lambda: (raising_lookup, ())), "Stubborn", "lambda"
    yield "mute", Mute(threading.Lock()), "Mute", "unrepresentable"
    yield "deep", ValueError(deep()), "ValueError", "unrepresentable"
    yield "numeric", Numeric(threading.Lock()), "Numeric", "unrepresentable"


@pytest.mark.fault(32, 33, 34, 37)
@pytest.mark.parametrize(
    ("error", "kind", "text"), [each[1:] for each in unpackable()], ids=[each[0] for each in unpackable()]
)
def test_an_exception_that_cannot_be_rebuilt_arrives_as_its_type_text_and_traceback(
    error: BaseException, kind: str, text: str
) -> None:
    back = told(struck(error))
    assert back.type_name == kind
    assert str(back).startswith(f"{kind}: ")
    assert text in str(back)
    assert "raise error  # the line that struck" in back.traceback
    assert notes_of(back) == [f"in worker 7:\n{back.traceback.rstrip()}"]


@pytest.mark.fault(34)
def test_an_exception_that_nothing_can_be_learnt_of_is_still_told_by_its_type() -> None:
    back = told(struck(Hostile("text")))
    assert back.type_name == "Hostile"
    assert "unrepresentable" in str(back)
    back = told(struck(Closed("text")))
    assert (back.type_name, str(back)[:6]) == ("Closed", "Closed")
    assert "LookupError: nothing to see" in str(back)
    assert "the line that struck" in notes_of(back)[0]
    assert type(arrived(struck(WithoutCause("text")))) is WithoutCause


@pytest.mark.fault(38)
@pytest.mark.usefixtures("forgotten")
def test_an_exception_of_a_class_that_only_the_worker_can_import_is_told_by_name(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "only_there.py").write_text("class Odd(Exception): pass\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    packed = pack_failure(struck(importlib.import_module("only_there").Odd("text")))
    assert packed[0] is not None
    monkeypatch.undo()
    del sys.modules["only_there"]
    back = unpack_failure(packed, "in worker 7")
    assert isinstance(back, PredictorError)
    assert (back.type_name, str(back)) == ("Odd", "Odd: text")


@pytest.mark.fault(38)
@pytest.mark.usefixtures("forgotten")
def test_an_exception_of_a_class_that_nobody_can_import_arrives_whole() -> None:
    module = made_by_hand("exceptions_by_hand", "class Odd(Exception): pass")
    packed = pack_failure(struck(module.Odd("text")))
    del sys.modules["exceptions_by_hand"]
    back = unpack_failure(packed, "in worker 7")
    assert (type(back).__name__, back.args) == ("Odd", ("text",))


class Unforeseen(Exception):
    """Rebuilt well where it was raised, and with trouble elsewhere."""

    trouble: type[BaseException] | None = None

    def __setstate__(self, _state: Any) -> None:
        if self.trouble is not None:
            raise self.trouble


@pytest.mark.fault(20)
@pytest.mark.parametrize("trouble", [LookupError, SystemExit, OfItsOwn])
def test_whatever_rebuilding_raises_here_the_failure_arrives(
    trouble: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    error = Unforeseen("text")
    error.code = 1  # type: ignore[attr-defined]  # so that it has a state
    packed = pack_failure(struck(error))
    assert type(unpack_failure(packed, "")) is Unforeseen
    monkeypatch.setattr(Unforeseen, "trouble", trouble)
    back = unpack_failure(packed, "in worker 7")
    assert isinstance(back, PredictorError)
    assert back.type_name == "Unforeseen"


# Huge failures

MOST: Final = LARGEST_FAILURE + 4 * 65_536 + 10_000  # bytes of one packed exception: itself, its texts, and the rest


class Loud:
    """Counts how often it is pictured."""

    pictured = 0

    def __repr__(self) -> str:
        Loud.pictured += 1
        return "Loud()"


@pytest.fixture
def silence() -> Iterator[None]:
    """See that no more than a few of many elements are pictured."""
    Loud.pictured = 0
    yield
    assert Loud.pictured < 50


def huge() -> list[Any]:
    return [Loud()] * 1_000_000


HUGE: Final[dict[str, tuple[Callable[[], BaseException], str]]] = {
    "a message": (lambda: ValueError("head" + "x" * 3_000_000 + "tail"), r"^ValueError: head.*tail$"),
    "bytes": (
        lambda: UnicodeDecodeError("utf-8", b"\xff" * 3_000_000, 0, 1, "invalid start byte"),
        r"^UnicodeDecodeError: 'utf-8' codec can't decode byte 0xff in position 0: invalid start byte$",
    ),
    "a list": (lambda: ValueError("text", huge()), r"^ValueError: \('text', \[Loud\(\), .*\.\.\."),
    "a list behind a lock": (lambda: ValueError(threading.Lock(), huge()), r"^ValueError: \(<unlocked"),
    "a list beside a lock": (
        lambda: ValueError([threading.Lock(), huge()]),
        r"^ValueError: \(\[<unlocked .* \[Loud\(\)",
    ),
    "a key": (lambda: KeyError(tuple(huge())), r"^KeyError: \(\(Loud\(\),"),
    "lists": (lambda: ValueError(*[["x" * 1000] * 1000 for _ in range(2000)]), r"^ValueError: "),
}


@pytest.mark.fault(35)
@pytest.mark.usefixtures("silence")
@pytest.mark.parametrize("name", HUGE)
def test_a_huge_exception_is_told_in_few_words_and_never_pictured_whole(name: str) -> None:
    make, text = HUGE[name]
    error = struck(make())
    assert len(pickle.dumps(pack_failure(error))) < MOST
    back = told(error)
    assert re.search(text, str(back))
    assert len(str(back)) < 5000
    assert "raise error  # the line that struck" in back.traceback
    assert len(back.traceback) < 70_000


@pytest.mark.fault(35)
@pytest.mark.usefixtures("silence")
@pytest.mark.parametrize("is_cause", [True, False], ids=["cause", "context"])
def test_what_led_to_an_exception_is_not_pictured_either_where_it_is_huge(is_cause: bool) -> None:
    try:
        try:
            raise ValueError("first", huge())
        except ValueError as first:
            if is_cause:
                raise KeyError("second") from first
            raise KeyError("second")  # noqa: B904 - the point
    except KeyError as second:
        back = arrived(second)
    assert type(back) is KeyError
    behind = back.__cause__ if is_cause else back.__context__
    assert isinstance(behind, PredictorError)
    (note,) = notes_of(back)
    assert note.index("ValueError: ('first', [Loud(), ") < note.index("KeyError: 'second'")


@pytest.mark.fault(35)
@pytest.mark.usefixtures("silence")
def test_a_long_story_with_something_huge_in_it_is_told_from_its_end() -> None:
    last = chain(100)
    causes_of(last)[-1].args = (huge(),)
    (note,) = notes_of(arrived(struck(last)))
    assert [f"ValueError: {number}\n" in f"{note}\n" for number in (99, 92, 91, 90)] == [True, True, True, False]


@pytest.mark.fault(35)
def test_an_exception_with_a_huge_attribute_is_told_in_all_its_words() -> None:
    error = ValueError("text", [1, 2])
    error.blob = bytes(3_000_000)  # type: ignore[attr-defined]
    back = told(struck(error))
    assert str(back) == "ValueError: ('text', [1, 2])"
    assert len(pickle.dumps(pack_failure(error))) < MOST


@pytest.mark.fault(35)
def test_an_exception_just_below_the_bound_arrives_as_itself() -> None:
    error = ValueError("x" * (LARGEST_FAILURE - 1000))
    assert arrived(error).args == error.args
    assert len(pickle.dumps(pack_failure(error))) < MOST


# Groups


def leaves_of(group: BaseException) -> list[BaseException]:
    if not isinstance(group, BaseExceptionGroup):
        return [group]
    return [leaf for each in group.exceptions for leaf in leaves_of(each)]


@pytest.mark.fault(41)
def test_a_group_arrives_intact_and_can_be_split() -> None:
    group = struck(ExceptionGroup("all", [KeyError(1), ExceptionGroup("inner", [OSError("x"), Frozen(3)])]))
    back = arrived(group)
    assert isinstance(back, ExceptionGroup)
    assert repr(back) == repr(group)
    mine, rest = back.split(OSError)
    assert repr(mine) == "ExceptionGroup('all', [ExceptionGroup('inner', [OSError('x')])])"
    assert rest is not None
    assert "the line that struck" in notes_of(back)[0]


@pytest.mark.fault(41)
def test_a_group_of_what_is_no_exception_arrives_as_such() -> None:
    back = arrived(struck(BaseExceptionGroup("all", [KeyboardInterrupt(), OfItsOwn("x"), ValueError(1)])))
    assert type(back) is BaseExceptionGroup
    assert [type(leaf) for leaf in leaves_of(back)] == [KeyboardInterrupt, OfItsOwn, ValueError]


@pytest.mark.fault(41, 32, 35)
@pytest.mark.usefixtures("silence")
def test_of_a_group_only_the_leaves_that_cannot_travel_are_told_the_others_are_kept() -> None:
    inner = ExceptionGroup(
        "inner", [NeedsMore("text", threading.Lock()), OSError("x"), Frozen(3), NeedsMore("text", 5)]
    )
    group = ExceptionGroup("all", [KeyError(1), ValueError(threading.Lock()), inner, ValueError("big", huge())])
    group.add_note("a note")
    back = arrived(struck(group))
    assert isinstance(back, ExceptionGroup)
    assert back.message == "all"
    assert [type(leaf) for leaf in leaves_of(back)] == [
        KeyError,
        PredictorError,
        PredictorError,
        OSError,
        Frozen,
        NeedsMore,
        PredictorError,
    ]
    names = [leaf.type_name for leaf in leaves_of(back) if isinstance(leaf, PredictorError)]
    assert names == ["ValueError", "NeedsMore", "ValueError"]
    assert "ValueError: ('big', [Loud()," in str(leaves_of(back)[-1])
    assert notes_of(back)[0] == "a note"
    assert re.search(r"(?s)all .*\n  \| KeyError: 1\n.*\n  \|   \| OSError: x", notes_of(back)[1])


class Family(ExceptionGroup[Exception]):
    def derive(self, excs: Any, /) -> Any:
        return Family(self.message, excs)


class Broken(ExceptionGroup[Exception]):
    def derive(self, _excs: Any, /) -> Any:
        raise SystemExit(3)


@pytest.mark.fault(41)
def test_a_group_of_another_type_keeps_it_and_one_that_cannot_be_made_again_is_told() -> None:
    assert type(arrived(struck(Family("all", [KeyError(1)])))) is Family
    assert type(arrived(struck(Family("all", [ValueError(threading.Lock())])))) is Family
    back = told(struck(Broken("all", [ValueError(threading.Lock())])))
    assert back.type_name == "Broken"


@pytest.mark.fault(41, 35)
def test_a_group_with_too_many_leaves_is_told_as_a_whole() -> None:
    group = struck(ExceptionGroup("all", [ValueError("x" * 10_000 + str(number)) for number in range(200)]))
    back = told(group)
    assert str(back) == "ExceptionGroup: all (200 sub-exceptions)"
    assert len(pickle.dumps(pack_failure(group))) < MOST


# Causes


def chain(length: int) -> BaseException:
    error: BaseException = ValueError(0)
    for number in range(1, length):
        later = ValueError(number)
        later.__cause__ = error
        error = later
    return error


def causes_of(error: BaseException | None) -> list[BaseException]:
    found = []
    while error is not None:
        found.append(error)
        error = error.__cause__
    return found


@pytest.mark.fault(31)
def test_causes_travel_as_themselves_or_told_and_so_does_a_context_that_is_shown() -> None:
    inner = Holding("inner")
    inner.__cause__ = KeyError("innermost")
    outer = ValueError("outer")
    outer.__cause__ = inner
    back = causes_of(arrived(outer))
    assert [type(each) for each in back] == [ValueError, PredictorError, KeyError]
    assert [len(notes_of(each)) for each in back] == [1, 0, 0]  # the first tells all of it
    error = KeyError("second")
    error.__context__ = OSError("first")
    assert repr(arrived(error).__context__) == "OSError('first')"
    error.__suppress_context__ = True
    assert arrived(error).__context__ is None


@pytest.mark.fault(31)
def test_a_chain_of_causes_without_an_end_is_cut() -> None:
    back = causes_of(arrived(chain(100)))
    assert [each.args for each in back] == [(number,) for number in range(99, 90, -1)]
    first, second = ValueError(1), ValueError(2)
    first.__cause__, second.__cause__ = second, first
    assert [each.args for each in causes_of(arrived(first))] == [(1,), (2,)] * 4 + [(1,)]


# Memory that is lent again.


def lent(monkeypatch: pytest.MonkeyPatch) -> tuple[BufferCache, Any]:
    """A spare that lends small buffers, and what takes a round trip with it."""
    monkeypatch.setattr(_decode, "_LENT_FROM", 64)
    spare = BufferCache()

    def trip(value: Any) -> Any:
        payload = encode(value)
        data = b"".join(map(bytes, payload.chunks))
        return decode(data, payload.sizes, read_only_bits(payload.buffers), spare)

    return spare, trip


def test_memory_nobody_refers_to_any_more_is_lent_to_the_next_buffer_of_its_size(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    spare, trip = lent(monkeypatch)
    first = trip(np.arange(10_000))
    place = first.__array_interface__["data"][0]
    first += 1
    del first
    second = trip(np.arange(10_000))
    assert second.__array_interface__["data"][0] == place
    assert np.array_equal(second, np.arange(10_000))
    assert second.flags.writeable
    assert spare.kept is not None


@given(data=st.data())
def test_no_array_changes_that_somebody_still_has_whatever_comes_after_it(data: st.DataObject) -> None:
    with pytest.MonkeyPatch.context() as monkeypatch:
        spare, trip = lent(monkeypatch)
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
                spare.tidy()
            is_one_dropped = data.draw(flags)
            if held and is_one_dropped:
                held.pop(data.draw(st.integers(0, len(held) - 1)))
        assert all((np.frombuffer(part, int) == number).all() for part, number in held)


def test_memory_that_the_last_calls_did_not_need_is_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    spare, trip = lent(monkeypatch)
    trip(np.arange(10_000))
    for _ in range(_decode._LENT_FOR):
        spare.tidy()
    assert spare.kept is not None
    spare.tidy()
    assert spare.kept is None


def test_buffers_that_are_read_only_or_small_are_not_lent(monkeypatch: pytest.MonkeyPatch) -> None:
    spare, trip = lent(monkeypatch)
    fixed = np.arange(10_000)
    fixed.flags.writeable = False
    assert not trip(fixed).flags.writeable
    monkeypatch.setattr(_decode, "_LENT_FROM", 1 << 25)
    trip(np.arange(10_000))
    assert spare.kept is None
