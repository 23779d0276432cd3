"""Faults of what travels to a worker and back: inputs, predictors, partials and results, small, large, odd or broken.

Almost every test uses one engine with one worker, and that worker must be the same before and after: whatever cannot
travel costs its own call and nothing else.
"""

from __future__ import annotations

import array
import asyncio
import contextvars
import copy
import dataclasses
import datetime as dt
import decimal
import enum
import fractions
import functools
import gc
import importlib
import importlib.abc
import importlib.machinery
import io
import math
import os
import pathlib
import re
import signal
import socket
import struct
import subprocess
import sys
import textwrap
import threading
import time
import types
import uuid
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from typing import Any, Final

import attrs
import numpy as np
import pydantic
import pytest

from engine import Engine, PayloadError, Predictor, PredictorError, WorkerLostError
from engine._wire import by_reference as _by_reference
from engine._wire import decode as _decode
from engine._wire import incremental as _incremental
from engine._wire import segments as _segments
from engine._wire import targets as _targets
from engine._wire.by_reference import is_importable_module
from engine._wire.frames import ITEM, pack, pack_command
from engine._wire.segments import SHARED_FROM, Segment
from engine._worker.pipes import Pipes
from engine.runners.process import runner as process
from engine.runners.process import worker as workers
from tests.conftest import child_processes
from tests.faults import awkward_values
from tests.faults.awkward_values import (
    HERE,
    THERE,
    UNPACKABLE,
    Earthquake,
    HardToPack,
    HardToUnpack,
    Keeper,
    gives_back,
    raising,
    yields_back,
)
from tests.faults.conftest import END, Cell, Consumer, Elsewhere, aeventually, eventually
from tests.faults.worker_bodies import AGES, KINDS, FileGate, Journal, number_of_worker, numbers_after_worker

MIB: Final = 1 << 20
LIMIT: Final = 30.0  # seconds a script may take

CELLS = [Cell(kind, consumer, "process") for kind in KINDS for consumer in ("sync", "asyncio")]
each_cell = pytest.mark.parametrize("cell", CELLS, ids=str)
each_yielding = pytest.mark.parametrize("cell", [cell for cell in CELLS if cell.is_yielding], ids=str)
each_way = pytest.mark.parametrize("way", ["create", "stream", "acreate", "astream"])


@pytest.fixture(scope="module")
def muna() -> Iterator[Engine]:
    """Give an engine with one worker that serves every test of this file, its shared memory mapped already."""
    with Engine(discover=False, workers=1) as muna:
        large = bytes(16 * MIB)
        assert muna.predictions.create(gives_back, {"value": large}, runner="process").value == large
        yield muna


@pytest.fixture
def worker(muna: Engine) -> Iterator[int]:
    """Give the number of that worker, and see to it that the next call finds the same one."""
    pid = number_of(muna)
    yield pid
    assert number_of(muna) == pid


def number_of(muna: Engine) -> int:
    pid: int = muna.predictions.create(number_of_worker, runner="process").value
    return pid


def values_of(muna: Engine, way: str, target: Any, inputs: dict[str, Any] | None = None, **options: Any) -> list[Any]:
    """What one call gives, whichever way it is consumed."""
    options.setdefault("runner", "process")
    predictions = muna.predictions

    async def acreated() -> list[Any]:
        return [(await predictions.acreate(target, inputs, **options)).value]

    async def astreamed() -> list[Any]:
        return [value async for value in predictions.astream(target, inputs, **options).values()]

    if way == "create":
        return [predictions.create(target, inputs, **options).value]
    if way == "stream":
        return list(predictions.stream(target, inputs, **options).values())
    return asyncio.run(acreated() if way == "acreate" else astreamed())


def predictor_giving(kind: str, journal: Journal, makes: Callable[[], Any]) -> Callable[[], Any]:
    """Make a predictor whose second partial, or whose result, is what `makes` makes in the worker."""

    def returns() -> Any:
        try:
            return makes()
        finally:
            journal.note("finally")

    def yields() -> Iterator[Any]:
        try:
            yield 1
            yield makes()
            yield 3
        finally:
            journal.note("finally")

    async def async_returns() -> Any:
        try:
            return makes()
        finally:
            journal.note("finally")

    async def async_yields() -> AsyncIterator[Any]:
        try:
            yield 1
            yield makes()
            yield 3
        finally:
            journal.note("finally")

    return {"def": returns, "gen": yields, "async": async_returns, "agen": async_yields}[kind]


async def refused(consumer: Consumer, predictor: Callable[[], Any]) -> PayloadError:
    """Stream a predictor one of whose partials cannot travel; check how the stream ends, and give what it ends with."""
    reader = consumer.open(predictor)
    before = [1] if consumer.cell.is_yielding else []
    assert [await reader.pull() for _ in before] == before
    with pytest.raises(PayloadError) as arrived:
        await reader.pull()
    assert await reader.has_ended("failed")
    assert reader.outcome.count == len(before)
    assert f"after {len(before)} partials" in arrived.value.__notes__[-1]
    return arrived.value


# 17: inputs that cannot travel.


def unpackable_inputs() -> Iterator[Any]:
    for make in UNPACKABLE:
        yield make()
    yield contextvars.ContextVar("of_the_caller")
    yield HardToPack(HERE, raising(ValueError))
    yield HardToPack(HERE, raising(SystemExit))
    yield HardToPack(HERE, raising(Earthquake))
    yield [1, {"inside": awkward_values.lock()}]


@pytest.mark.fault(17, 19, 26)
@each_way
def test_an_input_that_cannot_be_pickled_is_named_before_any_worker_is_touched(
    way: str, tmp_path: pathlib.Path
) -> None:
    journal = Journal(tmp_path / "journal")

    def takes(value: Any, other: int) -> Any:
        journal.note("start")

    with Engine(discover=False) as muna, socket.socket() as open_socket:
        before = child_processes()
        for value in [*unpackable_inputs(), open_socket, muna, muna.predictions.stream(numbers_after_worker)]:
            with pytest.raises(PayloadError, match=r"^input 'value' of type") as caught:
                values_of(muna, way, takes, {"other": 1, "value": value})
            kind = type(value)
            assert caught.value.type_name == f"{kind.__module__}.{kind.__qualname__}"
            assert "Traceback" in caught.value.traceback
            assert child_processes() == before
        muna.predictions.create(takes, {"other": 1, "value": 2}, runner="process")
    assert journal.words == ["start"]


@pytest.mark.fault(17)
def test_an_input_that_cannot_be_pickled_is_refused_at_once_while_every_worker_is_busy(
    muna: Engine, worker: int
) -> None:
    with muna.predictions.stream(numbers_after_worker, runner="process") as stream:
        assert next(stream).value == worker
        refused = muna.predictions.stream(gives_back, {"value": awkward_values.lock()}, runner="process")
        with pytest.raises(PayloadError):
            next(refused)
        assert (refused.outcome.state, refused.outcome.count, list(refused)) == ("failed", 0, [])
        assert next(stream).value == 0


@pytest.mark.fault(17, 40)
def test_ctrl_c_while_an_input_is_pickled_reaches_the_caller_and_costs_nothing_else(muna: Engine, worker: int) -> None:
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            muna.predictions.create(
                gives_back, {"value": HardToPack(HERE, raising(KeyboardInterrupt))}, runner="process"
            )
    assert muna.predictions.create(gives_back, {"value": 1}, runner="process").value == 1


class HardName(str):
    """The name of an input, which does not travel."""

    __slots__ = ()

    def __reduce__(self) -> Any:
        raise ValueError("this name stays here")


class Interrupted:
    """Stands for a function of the engine's in which Ctrl-C comes once, before it does anything or after all of it."""

    def __init__(self, original: Callable[..., Any], *, is_late: bool) -> None:
        self._original = original
        self._is_late = is_late
        self._is_due = True

    def __call__(self, *args: Any) -> Any:
        is_due, self._is_due = self._is_due, False
        if is_due and not self._is_late:
            raise KeyboardInterrupt
        result = self._original(*args)
        if is_due:
            raise KeyboardInterrupt
        return result


@pytest.mark.fault(17)
@pytest.mark.parametrize("is_class", [False, True], ids=["function", "class"])
@pytest.mark.parametrize("moment", ["a name", "before packing", "after packing", "before sending", "after sending"])
def test_a_call_that_fails_on_its_way_leaves_no_false_note_of_what_its_worker_has(
    moment: str, is_class: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Model:
        def predict(self, **inputs: Any) -> Any:
            return inputs

    predictor: Any = Model if is_class else lambda **inputs: inputs  # new to every worker
    when, _, what = moment.partition(" ")
    with Engine(discover=False, workers=1, grace=0.1) as muna:
        assert muna.predictions.create(gives_back, {"value": 1}, runner="process").value == 1
        if what == "packing":
            interrupted = Interrupted(pack_command, is_late=when == "after")
            monkeypatch.setattr(process, "pack_command", interrupted)
        elif what == "sending":
            once = Interrupted(workers.Worker.send, is_late=when == "after")
            monkeypatch.setattr(workers.Worker, "send", lambda *args: once(*args))  # noqa: PLW0108 - a function binds
        first: dict[str, Any] = {HardName("name"): 1} if what == "name" else {"name": 1}
        with pytest.raises(PayloadError if what == "name" else KeyboardInterrupt):
            muna.predictions.create(predictor, first, runner="process", check=False)
        assert muna.predictions.create(predictor, {"name": 2}, runner="process").value == {"name": 2}
        assert muna.predictions.create(gives_back, {"value": 3}, runner="process").value == 3


# 18, 19: partials and results that cannot be pickled.


@pytest.mark.fault(18, 26)
@each_cell
def test_a_partial_that_cannot_be_pickled_fails_its_stream_after_those_before_it(
    muna: Engine, worker: int, cell: Cell, tmp_path: pathlib.Path
) -> None:
    journal = Journal(tmp_path / "journal")

    async def scenario(consumer: Consumer) -> None:
        what = "partial 1" if cell.is_yielding else "the result"
        for done, make in enumerate(UNPACKABLE, 1):
            error = await refused(consumer, predictor_giving(cell.kind, journal, make))
            kind = type(make())
            assert str(error).startswith(f"{what} of type {kind.__qualname__} cannot be carried")
            assert error.type_name == f"{kind.__module__}.{kind.__qualname__}"
            assert "Traceback" in error.traceback
            assert journal.words == ["finally"] * done
            with pytest.raises(PayloadError):  # it is no failure of the body's
                await consumer.create(
                    predictor_giving(cell.kind, Journal(tmp_path / "unread"), make), errors="return", reduce="collect"
                )

    cell.run_on(muna, scenario)


@pytest.mark.fault(19)
@pytest.mark.parametrize("kind", [ValueError, SystemExit, GeneratorExit, StopIteration, KeyboardInterrupt, Earthquake])
@each_cell
def test_whatever_the_pickling_of_a_partial_raises_fails_its_stream_alone(
    muna: Engine, worker: int, cell: Cell, kind: type[BaseException], tmp_path: pathlib.Path
) -> None:
    journal = Journal(tmp_path / "journal")
    makes = functools.partial(HardToPack, THERE, raising(kind, "not packed"))

    async def scenario(consumer: Consumer) -> None:
        error = await refused(consumer, predictor_giving(cell.kind, journal, makes))
        assert f"of type HardToPack cannot be carried to or from a worker: {kind.__name__}: not packed" in str(error)
        assert "the line that struck" in error.traceback
        assert journal.words == ["finally"]

    cell.run_on(muna, scenario)


@pytest.mark.fault(19)
def test_a_partial_whose_pickling_crashes_or_never_ends_costs_its_own_call(tmp_path: pathlib.Path) -> None:
    reached, journal = FileGate(tmp_path / "reached"), Journal(tmp_path / "journal")

    def crashes() -> Iterator[Any]:
        yield 1
        yield HardToPack(THERE, lambda: os._exit(7))

    def never_ends() -> Iterator[Any]:
        def wait() -> None:
            reached.open()
            time.sleep(AGES)

        try:
            yield 1
            yield HardToPack(THERE, wait)
        finally:
            journal.note("finally")

    with Engine(discover=False, workers=1, grace=0.1) as muna:
        stream = muna.predictions.stream(crashes, runner="process")
        assert next(stream).value == 1
        with pytest.raises(WorkerLostError, match="exit code 7") as lost:
            next(stream)
        assert lost.value.delivered == 1
        stream = muna.predictions.stream(never_ends, runner="process", prefetch=8)
        assert next(stream).value == 1
        reached.wait()
        stream.close()
        assert (stream.outcome.state, stream.outcome.rung) == ("closed", "terminated")
        assert journal.words == ["finally"]
        assert muna.predictions.create(gives_back, {"value": 1}, runner="process").value == 1


@pytest.mark.fault(18)
@pytest.mark.parametrize(
    ("reduce", "values", "expected"),
    [
        ("last", "LL3", 3),
        ("last", "1L", PayloadError),
        ("collect", "12", [1, 2]),
        ("collect", "1L3", PayloadError),
        ("returned", "1L3r", 4),
        ("returned", "1R", PayloadError),
        ("last", "1R", 1),
        ("stream", "1R", PayloadError),
        ("stream", "12r", [1, 2]),
    ],
)
def test_only_what_is_asked_for_has_to_travel(
    muna: Engine, worker: int, reduce: str, values: str, expected: Any
) -> None:
    def yields() -> Generator[Any, None, Any]:
        for each in values:
            if each in "rR":
                return 4 if each == "r" else awkward_values.lock()
            yield awkward_values.lock() if each == "L" else int(each)

    def call() -> Any:
        if reduce == "stream":
            return list(muna.predictions.stream(yields, runner="process").values())
        return muna.predictions.create(yields, runner="process", reduce=reduce).value

    if expected is PayloadError:
        with pytest.raises(PayloadError, match=r"of type (lock|list) cannot be carried"):
            call()
    else:
        assert call() == expected


@pytest.mark.fault(18)
def test_what_cannot_travel_is_called_by_what_it_is(muna: Engine, worker: int) -> None:
    def returns_a_lock() -> Generator[Any, None, Any]:
        yield 1
        return awkward_values.lock()

    def yields_a_lock() -> Iterator[Any]:
        yield 1
        yield awkward_values.lock()
        yield 3

    def message(target: Any, reduce: str) -> str:
        with pytest.raises(PayloadError) as caught:
            muna.predictions.create(target, runner="process", reduce=reduce)
        return str(caught.value)

    def is_a_lock() -> Any:
        return awkward_values.lock()

    async def is_a_lock_later() -> Any:
        return awkward_values.lock()

    for target in (is_a_lock, is_a_lock_later):
        for way in ("create", "stream", "acreate", "astream"):
            with pytest.raises(PayloadError, match=r"^the result of type lock ") as caught:
                values_of(muna, way, target)
            assert caught.value.__notes__[-1].endswith("after 0 partials")
    assert message(returns_a_lock, "returned").startswith("the return value of type lock ")
    assert message(yields_a_lock, "collect").startswith("the result of type list ")
    with pytest.raises(PayloadError, match=r"^the return value of type lock "):
        list(muna.predictions.stream(returns_a_lock, runner="process"))


@pytest.mark.fault(18, 45)
def test_what_the_clean_up_after_an_unpicklable_partial_raises_is_told_with_it(muna: Engine, worker: int) -> None:
    def yields() -> Iterator[Any]:
        try:
            yield awkward_values.lock()
        finally:
            raise OSError("the clean-up failed, too")

    with pytest.raises(PayloadError) as caught:
        list(muna.predictions.stream(yields, runner="process"))
    told = [str(caught.value.__context__), str(caught.value.__cause__), *caught.value.__notes__]
    assert any("the clean-up failed, too" in each for each in told)


# 20, 21: what cannot be unpickled.


UNPICKLING = [ValueError, SystemExit, GeneratorExit, StopIteration, asyncio.CancelledError, Earthquake]


@pytest.mark.fault(20)
@pytest.mark.parametrize("kind", UNPICKLING)
@each_cell
def test_a_partial_that_cannot_be_unpickled_here_fails_its_stream_alone(
    muna: Engine, worker: int, cell: Cell, kind: type[BaseException], tmp_path: pathlib.Path
) -> None:
    journal = Journal(tmp_path / "journal")
    makes = functools.partial(HardToUnpack, HERE, raising(kind, "not unpacked"))

    async def scenario(consumer: Consumer) -> None:
        error = await refused(consumer, predictor_giving(cell.kind, journal, makes))
        assert f"cannot be rebuilt here: {kind.__name__}: not unpacked" in str(error)
        assert "the line that struck" in error.traceback
        with pytest.raises(PayloadError, match="cannot be rebuilt here"):
            await consumer.create(predictor_giving(cell.kind, journal, makes), reduce="collect", errors="return")

    cell.run_on(muna, scenario)
    assert journal.words == ["finally"] * 2


@pytest.mark.fault(20)
def test_what_cannot_be_unpickled_here_costs_another_stream_nothing() -> None:
    def yields() -> Iterator[Any]:
        yield 1
        while True:
            yield HardToUnpack(HERE, raising(ValueError))

    with Engine(discover=False, workers=2) as muna:
        stream = muna.predictions.stream(numbers_after_worker, runner="process")
        other = stream.values()
        mine = next(other)
        numbers = set()
        for number in range(5):
            failing = muna.predictions.stream(yields, runner="process")
            assert next(failing).value == 1
            with pytest.raises(PayloadError):
                next(failing)
            numbers.add(number_of(muna))
            assert next(other) == number
        assert len(numbers) == 1
        assert mine not in numbers
        stream.close()


@pytest.mark.fault(20)
def test_a_return_value_that_cannot_be_unpickled_here_comes_after_the_partials(muna: Engine, worker: int) -> None:
    def yields() -> Generator[Any, None, Any]:
        yield 1
        return HardToUnpack(HERE, raising(ValueError))

    stream = muna.predictions.stream(yields, runner="process").values()
    assert next(stream) == 1
    with pytest.raises(PayloadError, match="cannot be rebuilt here"):
        next(stream)
    assert muna.predictions.create(yields, runner="process").value == 1


@pytest.mark.fault(20, 32)
def test_an_exception_that_cannot_be_unpickled_here_arrives_as_its_text(muna: Engine, worker: int) -> None:
    def fails() -> None:
        raise LookupError("no such voice", HardToUnpack(HERE, raising(ValueError)))

    with pytest.raises(PredictorError, match="no such voice") as caught:
        muna.predictions.create(fails, runner="process")
    assert caught.value.type_name == "LookupError"
    assert 'raise LookupError("no such voice"' in caught.value.traceback


@pytest.mark.fault(20, 40)
@pytest.mark.parametrize("consumer", ["sync", "asyncio"])
def test_ctrl_c_while_a_partial_is_unpickled_leaves_no_hole_in_the_stream(consumer: str) -> None:
    def yields() -> Iterator[Any]:
        yield 1
        yield HardToUnpack(HERE, raising(KeyboardInterrupt))
        while True:
            yield 3

    with Engine(discover=False, workers=1) as muna, asyncio.Runner() as runner:
        if consumer == "sync":
            stream = muna.predictions.stream(yields, runner="process", prefetch=0)
            pull: Callable[[], Any] = functools.partial(next, stream)
        else:
            astream = muna.predictions.astream(yields, runner="process", prefetch=0)

            async def step() -> Any:
                return await anext(astream)

            pull = lambda: runner.run(step())  # noqa: E731 - as the one above
        assert pull().value == 1
        with pytest.raises(KeyboardInterrupt):
            pull()
        with pytest.raises((PayloadError, WorkerLostError, StopIteration, StopAsyncIteration)):
            pull()  # whatever it is, it is nothing that came after what was lost
        with pytest.raises((StopIteration, StopAsyncIteration)):
            pull()
        assert muna.predictions.create(gives_back, {"value": 1}, runner="process").value == 1


@pytest.mark.fault(108)
def test_an_engine_closes_while_the_traceback_of_a_ctrl_c_is_kept_that_interrupted_the_reading_of_a_large_partial(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def yields() -> Iterator[list[str]]:
        yield list(map(str, range(50_000)))

    before = child_processes()
    muna = Engine(discover=False, workers=1)
    stream = muna.predictions.stream(yields, runner="process")
    with monkeypatch.context() as patched:
        patched.setattr(_incremental.TimeSlice, "yield_gil", raising(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt) as kept:
            next(stream)
    assert any(entry.name == "read" for entry in kept.traceback)  # which looked at shared memory just then
    muna.close()
    assert child_processes() == before
    assert "while workers were seen to" not in caplog.text


@pytest.mark.fault(21)
@pytest.mark.parametrize("kind", [*UNPICKLING, KeyboardInterrupt])
@each_way
def test_an_input_that_cannot_be_unpickled_in_the_worker_is_told_with_the_workers_traceback(
    muna: Engine, worker: int, way: str, kind: type[BaseException], tmp_path: pathlib.Path
) -> None:
    journal = Journal(tmp_path / "journal")

    def takes(value: Any) -> None:
        journal.note("start")

    with pytest.raises(PayloadError, match=f"an input of .*takes cannot be rebuilt in a worker: {kind.__name__}: no"):
        values_of(muna, way, takes, {"value": HardToUnpack(THERE, raising(kind, "not there"))})
    try:
        values_of(muna, way, takes, {"value": [HardToUnpack(THERE, raising(kind, "not there"))]})
    except PayloadError as error:
        assert "the line that struck" in error.traceback  # noqa: PT017 - what failed is known by now
        assert error.type_name == kind.__qualname__  # noqa: PT017
    assert journal.words == []
    values_of(muna, way, takes, {"value": 1})
    assert journal.words == ["start"]


@pytest.mark.fault(21)
def test_a_predictor_that_cannot_be_unpickled_in_the_worker_is_named_and_tried_again(muna: Engine, worker: int) -> None:
    heavy = HardToUnpack(THERE, raising(ValueError, "not there"))

    def uses() -> Any:
        return heavy

    for _ in range(2):
        with pytest.raises(PayloadError, match=r"the predictor .*uses cannot be rebuilt in a worker") as caught:
            muna.predictions.create(uses, runner="process")
        assert "the line that struck" in caught.value.traceback


# 22, 23: predictors out of scripts.


SCRIPT: Final = """
import asyncio, dataclasses, enum, functools, math, os, sys, typing
from engine import Engine

print("main runs", os.getpid())
HOME = os.getpid()
OFFSET = 100
settings = {"offset": OFFSET}

class Shade(enum.Enum):
    DARK = "dark"
    LIGHT = "light"

@dataclasses.dataclass
class Point:
    x: int
    shade: Shade = Shade.DARK
    def shifted(self):
        return Point(self.x + OFFSET, Shade.LIGHT)

class Model:
    scale = 2
    def __init__(self, bias=0):
        self.bias = bias
    def setup(self):
        self.is_set_up = os.getpid() != HOME
    def predict(self, x: int):
        assert self.is_set_up
        return x * self.scale + self.bias + OFFSET

class Client:
    def __init__(self, factor):
        self.factor = factor
    def times(self, x):
        return x * self.factor
    def __call__(self, x):
        yield from (x, self.times(x))

class Error(Exception):
    pass

def away():
    assert os.getpid() != HOME

def plain(x: int = 1, *, point: "Point | None" = None):
    away()
    return point.shifted() if point else x + settings["offset"]

def factorial(n):
    away()
    return n * factorial(n - 1) if n else 1

def even(n): return not n or odd(n - 1)
def odd(n): return bool(n) and even(n - 1)

def counts(n):
    away()
    yield from range(n)

async def waits(x):
    away()
    await asyncio.sleep(0)
    return plain(x)

async def streams(n):
    for number in range(n):
        await asyncio.sleep(0)
        yield number, Shade.DARK

def fails():
    raise Error("of the script")

def nested(x):
    def inner(y):
        return x + y + OFFSET
    return inner

def local():
    class Local:
        def predict(self, x):
            return Point(x)
    return Local

def kwonly(*, a, b=2, **more): return a, b, more

UNSET = object()

@dataclasses.dataclass
class Config:
    name: str
    sizes: list = dataclasses.field(default_factory=list)

def required():
    return [each.name for each in dataclasses.fields(Config) if each.default is dataclasses.MISSING]

def derived():
    return dataclasses.make_dataclass("Derived", ["x"], bases=(Config,), kw_only=True)(name="a", x=1).sizes

def is_unset(value=UNSET, other=None):
    return value is UNSET and other in (None, UNSET)

def gives_unset():
    yield UNSET

UserId = typing.NewType("UserId", int)
Item, Rest, Items = typing.TypeVar("Item", bound=UserId), typing.ParamSpec("Rest"), typing.TypeVarTuple("Items")

def typed(user: UserId = UserId(1), call: "typing.Callable[Rest, Item] | None" = None):
    yield UserId(user), UserId.__supertype__, Item.__bound__ is UserId, f"{Item} {Rest} {Items}"
    yield UserId

NEWER = []
if sys.version_info >= (3, 12):
    exec('''
type Text = str
type Json = dict[str, Json] | list[Json] | Text
type Tree[T: (int, Text), *Ts, **P] = T | list[Tree[T, *Ts, P]]
type Lazy = Missing
Late = typing.TypeAliasType("Late", list[Item], type_params=(Item,))
def aliased(x: Json = "a", y: Tree[int, int, [int]] = 1):
    tree = Tree.__value__.__args__[1].__args__[0]
    try:
        Lazy.__value__
    except NameError as error:
        lazy = str(error)
    yield Json.__value__.__args__[1].__args__[0] is Json, tree.__origin__ is Tree, str(Tree.__value__), lazy
    yield Tree.__type_params__[0] is Tree.__value__.__args__[0], Tree.__type_params__[0].__constraints__[1] is Text
    yield str(Late.__value__), Late.__type_params__[0] is Item
    yield Json
def generic[T](x: T = 1) -> T:
    return str(generic.__type_params__)
class Box[T]:
    size: T
    def predict(self, x: T = 1) -> T:
        return str(Box[int]), str(Box.__type_params__)
NEWER += [
    (aliased, {}, list(aliased())), (generic, {}, ["(T,)"]), (Box, {}, [("__main__.Box[int]", "(T,)")])
]
''')
if sys.version_info >= (3, 14):
    exec('''
import annotationlib
def helper(x: Missing) -> Missing: return x
def lazy(x: Missing = 1) -> Missing:
    texts = annotationlib.Format.STRING
    return helper(x), [annotationlib.get_annotations(each, format=texts) for each in (lazy, helper, Lease)]
class Lease:
    size: Missing = 2
    also: int = 3
    def predict(self, x: Missing = 1) -> Missing:
        return self.size + x
NEWER += [(lazy, {}, [lazy()]), (Lease, {}, [3])]
''')
if sys.version_info >= (3, 15):
    exec('''
UNKNOWN = sentinel("UNKNOWN")
def is_unknown(x=UNKNOWN):
    yield x is UNKNOWN
    yield UNKNOWN
NEWER += [(is_unknown, {"x": UNKNOWN}, [True, UNKNOWN])]
''')

CASES = [
    *NEWER,
    (typed, {}, list(typed())),
    (lambda x: x + OFFSET, {"x": 1}, [101]),
    (nested(5), {"y": 1}, [106]),
    (plain, None, [101]),
    (plain, {"point": Point(1)}, [Point(101, Shade.LIGHT)]),
    (functools.partial(plain, 7), {}, [107]),
    (factorial, {"n": 5}, [120]),
    (even, {"n": 7}, [False]),
    (counts, {"n": 3}, [0, 1, 2]),
    (waits, {"x": 3}, [103]),
    (streams, {"n": 2}, [(0, Shade.DARK), (1, Shade.DARK)]),
    (Client(3).times, {"x": 2}, [6]),
    (Client(3), {"x": 2}, [2, 6]),
    (Model, {"x": 2}, [104]),
    (functools.partial(Model, bias=1), {"x": 2}, [105]),
    (local(), {"x": 2}, [Point(2)]),
    (local()(), {"x": 2}, [Point(2)]),
    (kwonly, {"a": 1, "c": 3}, [(1, 2, {"c": 3})]),
    (math.hypot, {}, [0.0]),
    (required, {}, [["name", "sizes"]]),
    (derived, {}, [[]]),
    (is_unset, {"other": UNSET}, [True]),
    (gives_unset, {}, [UNSET]),
]

async def main(muna):
    for target, inputs, expected in CASES:
        stream = muna.predictions.astream(target, inputs, runner="process")
        assert [value async for value in stream.values()] == expected, target
        assert (await muna.predictions.acreate(target, inputs, runner="process")).value == expected[-1], target

muna = Engine(discover=False, workers=2)
for target, inputs, expected in CASES:
    assert list(muna.predictions.stream(target, inputs, runner="process").values()) == expected, target
    assert muna.predictions.create(target, inputs, runner="process").value == expected[-1], target
asyncio.run(main(muna))
point = muna.predictions.create(plain, {"point": Point(1)}, runner="process").value
assert type(point) is Point and point.shade is Shade.LIGHT
try:
    muna.predictions.create(fails, runner="process")
except Error as error:
    assert "in fails" in error.__notes__[0], error.__notes__
else:
    raise AssertionError("nothing was raised")

def plain(x):  # as in a cell that was run again
    return "again"
assert muna.predictions.create(plain, {"x": 1}, runner="process").value == "again"
if os.path.exists("sibling.py"):
    import sibling
    from package import inner
    assert muna.predictions.create(sibling.greet, {"name": "Ada"}, runner="process").value == "hello Ada"
    assert muna.predictions.create(lambda: inner.Voice(sibling.WORD), runner="process").value == inner.Voice("hello")
muna.close()
print("main ends")
"""


@pytest.mark.fault(22, 23, 28)
@pytest.mark.parametrize("how", ["command", "script", "stdin", "module"])
def test_whatever_a_script_defines_can_run_in_a_worker_and_main_runs_once(how: str, tmp_path: pathlib.Path) -> None:
    path = tmp_path / ("a script" if how == "script" else "script.py")
    path.write_text(SCRIPT)
    (tmp_path / "sibling.py").write_text("WORD = 'hello'\ndef greet(name): return f'{WORD} {name}'\n")
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "__init__.py").touch()
    (tmp_path / "package" / "inner.py").write_text(
        "import dataclasses\n@dataclasses.dataclass\nclass Voice:\n    word: str\n"
    )
    arguments = {
        "command": ["-c", SCRIPT],
        "script": [str(path)],
        "stdin": ["-"],
        "module": ["-m", "script"],
    }[how]
    done = subprocess.run(
        [sys.executable, *arguments],
        check=False,
        capture_output=True,
        text=True,
        timeout=LIMIT,
        cwd=tmp_path,
        input=SCRIPT if how == "stdin" else "",
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert re.fullmatch(r"main runs \d+\nmain ends\n", done.stdout)


OF_MAIN: Final = """
from __future__ import annotations
import dataclasses, multiprocessing, pickle, sys, threading, typing
import __main__ as main
from engine import Engine

LEVEL = 3

class Guarded:
    guard = threading.Lock()  # it cannot travel, and is nothing but named

@dataclasses.dataclass
class Inner:
    number: int

@dataclasses.dataclass
class Point:
    inner: Inner | None = None
    guarded: Guarded | None = None

class OfAnInput:
    def __eq__(self, other):
        return type(other) is OfAnInput

def copied(value):
    return pickle.loads(pickle.dumps(value))

def helper(number):
    return number * LEVEL

def callback():
    return LEVEL

def pickles(value):
    class Local:
        pass
    try:
        pickle.dumps(Local)
    except (AttributeError, pickle.PicklingError):
        refused = True
    return copied(value) == value, copied(Point) is Point, copied(helper) is helper, copied(pickles) is pickles, refused

def pools():
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.map(helper, [1, 2])

def hints(point: Point | None = None, guarded: Guarded | None = None):
    try:
        names = [str(each) for each in typing.get_type_hints(pools_of).values()]
    except NameError as error:
        names = str(error)
    return names, str(typing.get_type_hints(Inner)), str(typing.get_type_hints(Point, localns={"Guarded": int}))

def pools_of(inner: Inner, points: list[Point]):
    pass

def asks():
    import __main__
    return __main__.LEVEL, __main__.asks is asks, main is __main__, __main__.__name__, sys.modules["__main__"] is main

class Model:
    def setup(self):
        self.copy = pickle.loads(pickle.dumps(self))
    def predict(self):
        return type(self.copy) is Model is main.Model
    def teardown(self):
        print("torn down", copied(Model) is Model)

def sets():
    global LEVEL
    LEVEL += 1
    return LEVEL, main.LEVEL

def own():
    return main.LEVEL, LEVEL

if __name__ == "__main__":
    with Engine(discover=False, workers=1) as muna:
        cases = [(pickles, {"value": OfAnInput()}), (pickles, {"value": [Inner(1), callback]}), (pools, {}),
                 (hints, {}), (asks, {}), (Model, {}), (pickles, {"value": OfAnInput()})]
        for target, inputs in cases:
            here, there = (muna.predictions.create(target, inputs, runner=each).value for each in ("inline", "process"))
            assert here == there, (target, here, there)
        for target, expected in ((sets, 4), (sets, 5), (own, 3)):  # each has its own
            assert muna.predictions.create(target, runner="process").value == (expected, expected), target
        muna.unload(Model, runner="inline")
        muna.unload(Model, runner="process")
"""


@pytest.mark.fault(22, 23)
@pytest.mark.parametrize("how", ["script", "module"])
def test_what_asks_for_main_in_a_worker_finds_what_it_finds_in_the_program(how: str, tmp_path: pathlib.Path) -> None:
    (tmp_path / "script.py").write_text(OF_MAIN)
    done = subprocess.run(
        [sys.executable, *(["-m", "script"] if how == "module" else ["script.py"])],
        check=False,
        capture_output=True,
        text=True,
        timeout=LIMIT,
        cwd=tmp_path,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == ["torn down True"] * 2


# 22, 24: modules that are not where their name says.


CELL: Final = """
import enum
LEVEL = 1
class Voice:
    def __init__(self, name):
        self.name = name
    def __eq__(self, other):
        return vars(self) == vars(other)
class Tone(enum.Enum):
    LOW = 1
def speaks(name):
    return Voice(name), Tone.LOW, LEVEL
"""


def notebook(name: str, *, is_known: bool) -> types.ModuleType:
    """A module as notebooks and `exec` make them: there is no file to find it by."""
    module = types.ModuleType(name)
    if is_known:
        sys.modules[name] = module
    exec(textwrap.dedent(CELL), vars(module))
    return module


@pytest.fixture
def forgotten_modules() -> Iterator[None]:
    """Take the modules that a test made out of `sys.modules` again."""
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if name.startswith("made_up"):
            del sys.modules[name]
    importlib.invalidate_caches()


@pytest.mark.fault(22, 24)
@pytest.mark.parametrize("is_known", [True, False], ids=["in-sys.modules", "nowhere"])
@each_way
@pytest.mark.usefixtures("forgotten_modules")
def test_what_a_module_without_a_file_defines_travels_and_comes_back_as_itself(
    muna: Engine, worker: int, way: str, is_known: bool
) -> None:
    module: Any = notebook(f"made_up_{way}", is_known=is_known)
    ((voice, tone, level),) = values_of(muna, way, module.speaks, {"name": "Ada"})
    assert type(voice) is module.Voice
    assert (voice.name, tone, level) == ("Ada", module.Tone.LOW, 1)
    assert values_of(muna, way, gives_back, {"value": [voice, tone]}) == [[voice, tone]]


@pytest.mark.fault(22, 24)
@pytest.mark.usefixtures("forgotten_modules")
def test_a_function_that_is_defined_again_is_sent_again(muna: Engine, worker: int) -> None:
    module: Any = notebook("made_up_cells", is_known=True)
    muna.predictors.register("@tests/cell", module.speaks)
    assert muna.predictions.create("@tests/cell", {"name": "Ada"}, runner="process").value[2] == 1
    exec(textwrap.dedent(CELL).replace("LEVEL = 1", "LEVEL = 2"), vars(module))
    muna.predictors.register("@tests/cell", module.speaks)
    assert muna.predictions.create(module.speaks, {"name": "Ada"}, runner="process").value[2] == 2
    (voice, tone, level) = muna.predictions.create("@tests/cell", {"name": "Ada"}, runner="process").value
    assert (type(voice), tone, level) == (module.Voice, module.Tone.LOW, 2)
    muna.predictors.unregister("@tests/cell")


SETTINGS: Final = """
LEVEL = 1
def helper():
    return "before"
def tells():
    class Inner:
        level = LEVEL
    return Inner.level, helper()
class Model:
    def setup(self):
        self.level = LEVEL
    def predict(self):
        return self.level, LEVEL
"""


@pytest.fixture
def settings(forgotten_modules: None) -> Any:
    """A module as a script or a notebook has it: nobody else can import it, and its variables are assigned anew."""
    module = types.ModuleType("made_up_settings")
    sys.modules[module.__name__] = module
    exec(SETTINGS, vars(module))
    return module


@pytest.mark.fault(22)
@each_way
def test_what_is_assigned_anew_counts_for_the_next_call(muna: Engine, worker: int, settings: Any, way: str) -> None:
    assert values_of(muna, way, settings.tells) == [(1, "before")]
    settings.LEVEL = 2
    assert values_of(muna, way, settings.tells) == [(2, "before")]
    exec("def helper(): return 'after'", vars(settings))
    assert values_of(muna, way, settings.tells) == [(2, "after")]
    assert values_of(muna, way, settings.tells) == [(2, "after")]


@pytest.mark.fault(22)
def test_what_a_function_stored_in_a_worker_stays_there_until_it_is_sent_again(
    muna: Engine, worker: int, settings: Any
) -> None:
    exec("def counts():\n    global COUNT\n    COUNT += STEP\n    return COUNT\nCOUNT, STEP = 0, 1", vars(settings))
    counts = [muna.predictions.create(settings.counts, runner="process").value for _ in range(3)]
    assert (counts, settings.COUNT) == ([1, 2, 3], 0)
    settings.STEP = 5
    assert muna.predictions.create(settings.counts, runner="process").value == 5


@pytest.mark.fault(22)
def test_a_stream_goes_on_as_what_it_began_as_though_its_function_was_sent_again(settings: Any) -> None:
    exec("def streams():\n    for _ in range(3):\n        yield LEVEL", vars(settings))
    with Engine(discover=False, workers=2) as muna:
        stream = muna.predictions.stream(settings.streams, runner="process", prefetch=0)
        before = next(stream).value
        settings.LEVEL = 2
        after = muna.predictions.create(settings.streams, runner="process").value
        assert [before, after, *stream.values()] == [1, 2, 1, 1]


@pytest.mark.fault(22)
@pytest.mark.parametrize("is_object", [False, True], ids=["class", "object"])
def test_a_class_or_object_stays_as_it_was_until_it_is_unloaded_and_that_is_logged_once(
    muna: Engine, settings: Any, caplog: pytest.LogCaptureFixture, is_object: bool
) -> None:
    target = settings.Model() if is_object else settings.Model
    if is_object:
        target.setup()
    muna.predictors.register("@tests/model", target)
    assert muna.predictions.create("@tests/model", runner="process").value == (1, 1)
    settings.LEVEL = 2
    for _ in range(2):
        assert muna.predictions.create("@tests/model", runner="process").value == (1, 1)
    (record,) = caplog.records
    assert "@tests/model: 'LEVEL' has changed" in record.getMessage()
    assert "unload" in record.getMessage()
    muna.unload("@tests/model", runner="process")
    assert muna.predictions.create("@tests/model", runner="process").value == (1 if is_object else 2, 2)
    muna.unload("@tests/model", runner="process")
    muna.predictors.unregister("@tests/model")
    assert len(caplog.records) == 1


@pytest.mark.fault(22)
def test_a_new_function_is_never_taken_for_one_that_lived_at_its_address(muna: Engine, worker: int) -> None:
    addresses = set()
    for number in range(20):
        scope: dict[str, Any] = {}
        exec(f"def tells(): return {number}", scope)
        addresses.add(id(scope["tells"]))
        assert muna.predictions.create(scope["tells"], runner="process").value == number
        del scope
        gc.collect()
    assert len(addresses) < 20


@pytest.mark.fault(22)
def test_a_worker_that_forgot_a_predictor_learns_it_again(muna: Engine, worker: int) -> None:
    def tells(number: int) -> Callable[[], int]:
        return lambda: number

    predictors = [tells(number) for number in range(300)]
    for _ in range(2):
        for number, predictor in enumerate(predictors):
            assert muna.predictions.create(predictor, runner="process").value == number


@pytest.mark.fault(24)
@pytest.mark.usefixtures("forgotten_modules")
def test_a_module_whose_file_is_gone_travels_whole_or_is_named(
    muna: Engine, worker: int, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    early, late = tmp_path / "made_up_early.py", tmp_path / "made_up_late.py"
    early.write_text(CELL)
    late.write_text(CELL)
    first: Any = importlib.import_module("made_up_early")
    early.unlink()
    importlib.invalidate_caches()
    voice, _, _ = muna.predictions.create(first.speaks, {"name": "Ada"}, runner="process").value
    assert type(voice) is first.Voice
    second: Any = importlib.import_module("made_up_late")
    (data,) = values_of(muna, "create", second.speaks, {"name": "Ada"})
    assert type(data[0]) is second.Voice
    assert is_importable_module(second)
    late.unlink()
    with Engine(discover=False, workers=1) as other, pytest.raises(PayloadError, match="made_up_late"):
        other.predictions.create(second.speaks, {"name": "Ada"}, runner="process")


MODULE: Final = """
import dataclasses
LEVEL = "{level}"
@dataclasses.dataclass
class Voice:
    name: str
    def tells(self):
        return self.name, LEVEL
def speaks(name="Ada"):
    return "{level}", Voice(name).tells()
def answers(voice: Voice):
    yield isinstance(voice, Voice), voice.tells()
    yield voice
class Model:
    def setup(self):
        self.level = LEVEL
    def predict(self):
        return self.level, LEVEL
"""


@pytest.fixture
def write(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, forgotten_modules: None) -> Callable[..., Any]:
    """Write a module that can be imported, and import it; or write it again, and reload it."""
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)  # a file written twice in a second looks like the same

    def write(name: str, level: str) -> Any:
        (tmp_path / f"{name}.py").write_text(MODULE.replace("{level}", level))
        importlib.invalidate_caches()
        known = sys.modules.get(name)
        return importlib.import_module(name) if known is None else importlib.reload(known)

    return write


@pytest.mark.fault(24)
def test_after_a_reload_workers_run_what_runs_here(muna: Engine, worker: int, write: Callable[..., Any]) -> None:
    module = write("made_up_reloaded", "before")
    by_text = Predictor("@tests/text", "made_up_reloaded:speaks")
    targets = [module.speaks, by_text]
    assert {values_of(muna, "create", each)[0][0] for each in targets} == {"before"}
    write("made_up_reloaded", "after it")
    for target in (*targets, module.speaks, Predictor("@tests/new", "made_up_reloaded:speaks")):
        here = values_of(muna, "create", target, runner="inline")
        assert values_of(muna, "create", target) == here
        assert here[0][1] == ("Ada", "after it")
    (told, voice) = values_of(muna, "stream", module.answers, {"voice": module.Voice("Bo")})
    assert (told, type(voice)) == ((True, ("Bo", "after it")), module.Voice)


@pytest.mark.fault(24)
def test_a_task_that_waits_for_anothers_encoding_sends_what_was_assigned_before_its_own_call(
    muna: Engine, worker: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    level = "old"

    def tells() -> str:
        return level

    is_encoded, go_on = threading.Event(), threading.Event()
    encode_target = _targets.encode_target  # as `process` knows it

    def encoded(*facts: Any) -> bytes:
        data = encode_target(*facts)
        is_encoded.set()
        assert go_on.wait(LIMIT)
        return data

    async def main() -> list[str]:
        nonlocal level
        first = asyncio.create_task(muna.predictions.acreate(tells, runner="process"))
        assert await asyncio.to_thread(is_encoded.wait, LIMIT)
        level = "new"
        second = asyncio.create_task(muna.predictions.acreate(tells, runner="process"))
        (encoding,) = muna._workers()._encodings.values()
        await aeventually(lambda: len(encoding.parked()) == 2, "both wait for it")
        go_on.set()
        return [each.value for each in await asyncio.gather(first, second)]

    monkeypatch.setattr(process, "encode_target", encoded)
    assert asyncio.run(main()) == ["old", "new"]


@pytest.mark.fault(24)
def test_once_no_worker_has_a_reloaded_module_as_it_was_a_predictor_and_its_inputs_agree_on_its_classes(
    write: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_by_reference, "_workers", {})  # those of other engines here have nothing to do with it
    before = write("made_up_twice", "before")

    def is_voice(voice: object) -> tuple[bool, int]:
        return isinstance(voice, Voice), os.getpid()

    def is_one_too(voice: object) -> tuple[bool, int]:
        return isinstance(voice, Voice), os.getpid()

    Voice = before.Voice
    with Engine(discover=False, workers=1) as muna:
        is_known, first = values_of(muna, "create", is_voice, {"voice": Voice("Ada")})[0]
        Voice = write("made_up_twice", "after it").Voice
        assert values_of(muna, "create", is_voice, {"voice": Voice("Ada")}) == [(True, first)]
        os.kill(first, signal.SIGKILL)
        eventually(lambda: not _by_reference._workers, "the worker is over")
        is_still_known, second = values_of(muna, "create", is_voice, {"voice": Voice("Ada")})[0]
        assert values_of(muna, "create", is_one_too, {"voice": Voice("Ada")}) == [(True, second)]
        assert (is_known, is_still_known, second == first) == (True, True, False)


@pytest.mark.fault(24)
def test_what_stands_under_a_predictors_name_meanwhile_is_not_run_for_it(
    muna: Engine, worker: int, write: Callable[..., Any]
) -> None:
    module = write("made_up_replaced", "one")
    by_text = Predictor("@tests/text", "made_up_replaced:speaks")
    assert values_of(muna, "create", by_text) == [("one", ("Ada", "one"))]
    speaks, module.speaks = module.speaks, lambda: "another"
    for target in (by_text, speaks):
        assert values_of(muna, "create", target) == [("one", ("Ada", "one"))]


@pytest.mark.fault(24)
def test_a_class_that_was_reloaded_stays_as_it_was_until_it_is_unloaded(
    write: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    write("made_up_class", "before")
    with Engine([Predictor("@tests/model", "made_up_class:Model")], discover=False, workers=1) as muna:
        assert values_of(muna, "create", "@tests/model") == [("before", "before")]
        write("made_up_class", "after it")
        for _ in range(2):
            assert values_of(muna, "create", "@tests/model") == [("before", "before")]
        (record,) = caplog.records
        assert "@tests/model: made_up_class:Model is another" in record.getMessage()
        muna.unload("@tests/model", runner="process")
        assert values_of(muna, "create", "@tests/model") == [("after it", "after it")]


@pytest.mark.fault(24)
def test_a_path_that_grew_is_told_to_workers_that_run_and_what_a_predictor_added_there_stays(
    muna: Engine, worker: int, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, forgotten_modules: None
) -> None:
    def adds() -> None:
        sys.path.insert(0, "/ahead/of/all")
        sys.path.append("/behind/all")

    values_of(muna, "create", adds)
    (tmp_path / "made_up_grown.py").write_text(MODULE.replace("{level}", "grown"))
    monkeypatch.syspath_prepend(str(tmp_path))
    assert values_of(muna, "create", Predictor("@tests/grown", "made_up_grown:speaks")) == [("grown", ("Ada", "grown"))]
    path = values_of(muna, "create", lambda: list(sys.path))[0]
    assert (path[0], path[1], path[-1]) == ("/ahead/of/all", str(tmp_path), "/behind/all")
    monkeypatch.undo()

    def removes() -> list[str]:
        sys.path[:] = [each for each in sys.path if not each.endswith("/all")]
        return list(sys.path)

    assert values_of(muna, "create", removes)[0][: len(sys.path)] == sys.path


class Finder(importlib.abc.Loader):
    """Imports modules out of nothing, as a program may have it."""

    @classmethod
    def find_spec(cls, name: str, _path: Any = None, _target: Any = None) -> Any:
        return importlib.machinery.ModuleSpec(name, cls(), origin="nothing") if name == "made_up_found" else None

    def exec_module(self, module: Any) -> None:
        exec(MODULE.replace("{level}", "found"), vars(module))


@pytest.mark.fault(24)
@each_way
def test_what_a_finder_of_the_programs_own_imported_travels_whole(
    muna: Engine, worker: int, way: str, monkeypatch: pytest.MonkeyPatch, forgotten_modules: None
) -> None:
    monkeypatch.setattr(sys, "meta_path", [*sys.meta_path, Finder])
    module: Any = importlib.import_module("made_up_found")
    assert values_of(muna, way, module.speaks) == [("found", ("Ada", "found"))]
    voice = values_of(muna, way, module.answers, {"voice": module.Voice("Bo")})[-1]
    assert type(voice) is module.Voice


@pytest.mark.fault(24)
def test_by_value_a_predictor_has_what_the_program_set_in_its_module(
    muna: Engine, worker: int, write: Callable[..., Any]
) -> None:
    module = write("made_up_by_value", "in the file")
    module.LEVEL = "set"
    for target, expected in (
        (Predictor("@tests/by-name", "made_up_by_value:speaks"), "in the file"),
        (Predictor("@tests/by-text", "made_up_by_value:speaks", by_value=True), "set"),
        (Predictor("@tests/by-value", module.speaks, by_value=True), "set"),
    ):
        assert values_of(muna, "create", target) == [("in the file", ("Ada", expected))]
    target = Predictor("@tests/answers", module.answers, by_value=True)
    module.LEVEL = "set again"
    told, voice = values_of(muna, "stream", target, {"voice": module.Voice("Bo")})
    assert (told, type(voice)) == ((True, ("Bo", "set again")), module.Voice)
    assert values_of(muna, "create", Predictor("@tests/model", module.Model, by_value=True)) == [("set again",) * 2]
    muna.unload(Predictor("@tests/model", module.Model, by_value=True), runner="process")


@pytest.mark.fault(24)
def test_by_value_on_a_mark_counts_though_only_a_worker_has_imported_it(
    muna: Engine, worker: int, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, forgotten_modules: None
) -> None:
    source = "LEVEL = 'in the file'\ndef tells(): return LEVEL\ntells.__predictor__ = {'by_value': True}\n"
    (tmp_path / "made_up_marked.py").write_text(source)
    monkeypatch.syspath_prepend(str(tmp_path))
    target = Predictor("@tests/marked", "made_up_marked:tells")
    assert values_of(muna, "create", target) == ["in the file"]
    sys.modules["made_up_marked"].LEVEL = "set"  # type: ignore[attr-defined]
    assert values_of(muna, "create", target) == ["set"]


# 25: predictors that cannot travel.


@pytest.mark.fault(25)
@pytest.mark.parametrize("make", [awkward_values.lock, awkward_values.generator, awkward_values.frame])
@each_way
def test_a_closure_over_something_that_cannot_travel_names_the_variable(
    muna: Engine, worker: int, way: str, make: Callable[[], Any]
) -> None:
    guard, harmless = make(), [1]

    def uses() -> Any:
        return harmless, guard

    scope: dict[str, Any] = {"harmless": [1], "precious": guard}
    exec("def uses(): return harmless, precious", scope)
    for target, name in ((uses, "guard"), (scope["uses"], "precious")):
        with pytest.raises(PayloadError, match=f"^'{name}', which the predictor .*uses uses, of type") as caught:
            values_of(muna, way, target)
        assert caught.value.type_name == f"{type(guard).__module__}.{type(guard).__qualname__}"


@pytest.mark.fault(25)
def test_a_file_opened_for_writing_is_named(muna: Engine, worker: int, tmp_path: pathlib.Path) -> None:
    with (tmp_path / "log").open("w") as log:

        def writes() -> None:
            log.write("a line")

        with pytest.raises(PayloadError, match=r"^'log', which the predictor .*writes uses, of type TextIOWrapper"):
            muna.predictions.create(writes, runner="process")


@pytest.mark.fault(25)
@pytest.mark.parametrize("mode", ["r", "w+", "rb", "r+b"])
def test_an_open_file_of_a_predictor_is_never_silently_a_copy(
    muna: Engine, worker: int, tmp_path: pathlib.Path, mode: str
) -> None:
    path = tmp_path / "log"
    path.write_text("a line")
    with path.open(mode) as log:
        scope: dict[str, Any] = {"log": log}
        exec("def reads(): return log.read()\nclass Reads:\n  def predict(self): return log.read()", scope)

        def reads(source: Any = log) -> Any:
            return source.read()

        for target, name in ((scope["reads"], "log"), (scope["Reads"], "log"), (reads, "source")):
            with pytest.raises(PayloadError, match=rf"^'{name}', which the predictor .* uses, of type") as caught:
                muna.predictions.create(target, runner="process")
            assert ("open it inside the predictor" in str(caught.value)) == ("b" not in mode)
        if mode == "w+":
            with pytest.raises(PayloadError, match=r"input 'value' of type TextIOWrapper.*pass its path"):
                muna.predictions.create(gives_back, {"value": log}, runner="process")


@pytest.mark.fault(25, 88)
def test_what_a_predictor_keeps_of_its_output_is_the_workers_own_there(
    muna: Engine, worker: int, capsys: pytest.CaptureFixture[str]
) -> None:
    with capsys.disabled():
        scope: dict[str, Any] = {"out": sys.stdout}
        exec("import sys\ndef is_its_own(): return out is sys.stdout", scope)
        assert muna.predictions.create(scope["is_its_own"], runner="process").value


@pytest.mark.fault(25)
def test_an_object_that_cannot_travel_is_named_by_its_tag(muna: Engine, worker: int) -> None:
    keeper = Keeper()
    keeper.kept.append(awkward_values.lock())
    for target in (keeper, keeper.predict, functools.partial(gives_back, awkward_values.lock())):
        with pytest.raises(PayloadError, match=r"the predictor .* of type (Keeper|method|partial) cannot be carried"):
            muna.predictions.create(target, runner="process")


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
            assert board[0] == small[0] == number + 1  # whoever got them writes into them

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
    "attrs": Trip(awkward_values.WaitQueue([1, awkward_values.WaitQueue(2)])),
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


# 29: sizes.


SIZES: Final = (0, 1, 4096, 4097, SHARED_FROM - 1, SHARED_FROM, SHARED_FROM + 1, MIB - 1, MIB, MIB + 1, 5 * MIB + 3)


@pytest.mark.fault(29)
@each_way
def test_every_size_arrives_whole_in_both_directions(muna: Engine, worker: int, way: str) -> None:
    def measures(value: Any) -> Any:
        return len(value), value[-1:], value

    for size in SIZES:
        data = (b"0123456789abcdef!" * (size // 17 + 1))[:size]
        for value in (data, data.decode(), bytearray(data), np.frombuffer(data, np.uint8)):
            ((length, last, back),) = values_of(muna, way, measures, {"value": value})
            assert (length, bytes(last) if not isinstance(last, str) else last.encode()) == (size, data[-1:])
            assert type(back) is type(value)
            assert back.tobytes() == data if isinstance(back, np.ndarray) else back == value


@pytest.mark.fault(29)
@each_yielding
def test_partials_of_every_size_arrive_in_order(muna: Engine, worker: int, cell: Cell) -> None:
    def yields() -> Iterator[Any]:
        for number, size in enumerate(SIZES * 2):
            yield number
            yield bytes([number]) * size

    async def async_yields() -> AsyncIterator[Any]:
        for value in yields():
            yield value

    async def scenario(consumer: Consumer) -> None:
        predictor = async_yields if cell.is_async else yields
        for prefetch in (None, 0, 100):
            found = await consumer.read(predictor, prefetch=prefetch)
            assert found == list(yields())
        assert (await consumer.create(predictor, reduce="collect")).value == list(yields())

    cell.run_on(muna, scenario)


# 30: bytes that are no frame.


def speak(data: bytes) -> Callable[[], Iterator[int]]:
    """Make a predictor that writes to its worker's pipe behind the engine's back."""

    def speaks() -> Iterator[int]:
        yield os.getpid()
        (pipes,) = [each for each in gc.get_objects() if type(each) is Pipes]
        os.write(pipes.answers, data)
        time.sleep(AGES)
        yield 2

    return speaks


HEADER: Final = bytes(pack(ITEM, 1, b"")[0])


@pytest.mark.fault(30)
def test_a_worker_that_does_not_speak_the_protocol_is_killed_and_costs_its_own_call(
    caplog: pytest.LogCaptureFixture,
) -> None:
    foreign = {
        "garbage": b"Segmentation fault\n" * 5,
        "giant": HEADER[:8] + b"\xff" * 16,
        "another-call": bytes(pack(ITEM, 999, b"")[0]),
    }
    with Engine(discover=False, workers=1) as muna:
        for name, data in foreign.items():
            caplog.clear()
            stream = muna.predictions.stream(speak(data), runner="process", prefetch=4)
            pid = next(stream).value
            with pytest.raises(WorkerLostError) as lost:
                next(stream)
            assert (lost.value.pid, lost.value.delivered, list(stream)) == (pid, 1, []), name
            assert "does not speak the engine's protocol" in caplog.text, name
            assert pid not in child_processes()
            assert number_of(muna) != pid


# Shared memory that is full.


@pytest.mark.fault(21, 90)
@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the space of addresses has no limit")
def test_an_input_that_a_worker_cannot_map_is_refused_and_its_worker_serves_on() -> None:
    def limits() -> int:
        import resource  # the others need none

        pages = int(pathlib.Path("/proc/self/statm").read_text().split()[0])
        now = pages * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (now + 16 * MIB, resource.getrlimit(resource.RLIMIT_AS)[1]))
        return os.getpid()

    with Engine(discover=False, workers=1) as muna:
        pid = muna.predictions.create(limits, runner="process").value
        with pytest.raises(PayloadError, match="cannot be mapped in a worker") as refused:
            muna.predictions.create(gives_back, {"value": bytes(64 * MIB)}, runner="process")
        assert "Cannot allocate memory" in str(refused.value)
        assert number_of(muna) == pid


VANDAL: Final = """
import fcntl, os
from engine import Engine

def cuts_off(data):
    cut = 0
    for number in os.listdir("/dev/fd"):
        try:
            is_ours = os.readlink(f"/dev/fd/{number}").startswith("/memfd:engine")
            if not is_ours or not os.fstat(int(number)).st_size:
                continue
        except OSError:
            continue
        for cut_off in (os.ftruncate, lambda it, _: fcntl.fcntl(it, fcntl.F_ADD_SEALS, fcntl.F_SEAL_GROW)):
            try:
                cut_off(int(number), 0)
                cut += 1
            except PermissionError:
                pass
    yield cut
    yield data

with Engine(discover=False, workers=1, runner="process") as muna:
    large = os.urandom(1 << 20)
    for _ in range(2):
        assert list(muna.predictions.stream(cuts_off, {"data": large}).values()) == [0, large]
"""


@pytest.mark.fault(9, 90)
def test_a_worker_cannot_cut_shared_memory_off_under_its_engine() -> None:
    done = subprocess.run([sys.executable, "-c", VANDAL], check=False, capture_output=True, text=True, timeout=LIMIT)
    assert (done.returncode, done.stderr) == (0, "")


FULL: Final = """
import asyncio, os, resource, signal, sys, threading
import numpy as np
from engine import Engine

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
MIB = 1 << 20

def doubles(value):
    return value * 2

def counts():
    try:
        number = 0
        while True:
            number += 1
            yield np.full(MIB // 4, number)
    finally:
        print("finally", flush=True)

async def acounts():
    for number in range(1, 4):
        yield np.full(MIB // 4, number)

def is_doubled(value):
    return bool((value == np.arange(MIB // 4) * 2).all())

async def main(muna):
    predictions = muna.predictions
    assert is_doubled((await predictions.acreate(doubles, {"value": np.arange(MIB // 4)}, runner="process")).value)
    async with predictions.astream(counts, runner="process") as stream:
        for number in range(1, 4):
            value = (await anext(stream)).value
            assert (value == number).all()
    assert stream.outcome.rung == "asked"
    seen = [int(value[-1]) async for value in predictions.astream(acounts, runner="process", prefetch=8).values()]
    assert seen == [1, 2, 3]

with Engine(discover=False, workers=1) as muna:
    predictions = muna.predictions
    assert is_doubled(predictions.create(doubles, {"value": np.arange(MIB // 4)}, runner="process").value)
    with predictions.stream(counts, runner="process") as stream:
        for number in range(1, 4):
            assert (next(stream).value == number).all()
    assert stream.outcome.rung == "asked"
    assert [int(value[-1]) for value in predictions.stream(acounts, runner="process", prefetch=8).values()] == [1, 2, 3]
    asyncio.run(main(muna))
    (worker,) = muna._workers()._pool.workers
    assert (worker.inbound.size, worker.outbound.size) == (0, 0)
    assert os.fstat(worker.inbound._descriptor).st_size == os.fstat(worker.outbound._descriptor).st_size == 0
"""


@pytest.mark.fault(90)
def test_where_shared_memory_is_full_everything_goes_through_the_pipe(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COVERAGE_PROCESS_CONFIG", raising=False)  # which could not keep what it measures, either
    done = subprocess.run([sys.executable, "-c", FULL], check=False, capture_output=True, text=True, timeout=LIMIT)
    assert (done.returncode, done.stderr, done.stdout) == (0, "", "finally\n" * 2)


@pytest.mark.fault(90)
def test_large_payloads_do_go_through_shared_memory_where_there_is_room(muna: Engine, worker: int) -> None:
    (one,) = muna._workers()._pool.workers
    assert values_of(muna, "stream", gives_back, {"value": bytes(16 * MIB)}) == [bytes(16 * MIB)]
    assert one.inbound.size >= 16 * MIB
    assert one.outbound.size >= 16 * MIB


@pytest.mark.fault(90)
def test_memory_for_a_giant_input_is_given_back_as_soon_as_a_call_does_without_it(
    muna: Engine, worker: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_segments, "SEGMENT_LIMIT", 2 * MIB)
    (one,) = muna._workers()._pool.workers

    def room() -> int:
        status = os.fstat(one.inbound._descriptor)
        return status.st_blocks * 512 if hasattr(os, "memfd_create") else status.st_size

    for size in (8 * MIB, 5 * MIB):  # giant calls in a row use the same memory
        assert values_of(muna, "create", gives_back, {"value": bytes(size)}) == [bytes(size)]
        assert room() == one.inbound.size >= 8 * MIB
    for value in (None, bytes(MIB)):
        assert values_of(muna, "create", gives_back, {"value": bytes(5 * MIB)}) == [bytes(5 * MIB)]
        with muna.predictions.stream(yields_back, {"value": value}, runner="process") as stream:
            assert next(stream).value == value
            assert room() == 2 * MIB  # while the call lasts


def leave_room(size: int) -> None:
    """From now on, in this worker, partials find that much room in shared memory, and no more."""
    grow = Segment.grow
    vars(engine_segments := sys.modules["engine._wire.segments"]).update(SEGMENT_LIMIT=size)
    engine_segments.Segment.grow = lambda self, wanted: wanted <= size and grow(self, wanted)


@pytest.mark.fault(83, 90)
def test_partials_that_find_no_room_beside_others_overtake_none() -> None:
    def yields() -> Iterator[bytes]:
        leave_room(2 * MIB)
        for number in range(12):
            yield bytes([number]) * (700_000 if number % 4 else 3 * MIB)

    with Engine(discover=False, workers=1) as muna:
        stream = muna.predictions.stream(yields, runner="process", prefetch=6)
        found = [(value[0], value.count(value[:1]) == len(value)) for value in stream.values()]
        assert found == [(number, True) for number in range(12)]


def continue_once_full(muna: Engine, pid: int) -> None:
    """Wait until the pipe to a stopped worker is full, then have that go on."""
    (worker,) = muna._workers()._pool.workers
    eventually(lambda: bool(worker.unsent), "the pipe is full")
    os.kill(pid, signal.SIGCONT)


@pytest.mark.fault(90)
def test_inputs_larger_than_the_pipe_wait_for_a_worker_that_does_not_read_yet(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    value = bytes(range(256)) * (4 * MIB // 256)
    with Engine(discover=False, workers=1) as muna:
        pid = number_of(muna)
        monkeypatch.setattr(Segment, "grow", lambda *_: False)

        os.kill(pid, signal.SIGSTOP)
        with Elsewhere(functools.partial(continue_once_full, muna, pid)):
            assert muna.predictions.create(gives_back, {"value": value}, runner="process").value == value

        async def scenario() -> None:
            os.kill(pid, signal.SIGSTOP)
            call = asyncio.create_task(muna.predictions.acreate(gives_back, {"value": value}, runner="process"))
            await asyncio.to_thread(continue_once_full, muna, pid)  # so this loop turns meanwhile
            assert (await call).value == value

        asyncio.run(scenario())
        assert number_of(muna) == pid


@pytest.mark.fault(90)
@pytest.mark.parametrize("consumer", ["sync", "asyncio"])
def test_a_call_whose_inputs_are_still_on_their_way_can_be_left(
    consumer: str, monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path
) -> None:
    journal = Journal(tmp_path / "journal")

    def takes(value: bytes) -> Iterator[int]:
        journal.note("start")
        yield len(value)

    inputs = {"value": bytes(4 * MIB)}
    with Engine(discover=False, workers=1, grace=0.1) as muna:
        pid = number_of(muna)
        (worker,) = muna._workers()._pool.workers
        monkeypatch.setattr(Segment, "grow", lambda *_: False)
        os.kill(pid, signal.SIGSTOP)
        if consumer == "sync":
            stream = muna.predictions.stream(takes, inputs, runner="process")

            def close() -> None:
                eventually(lambda: bool(worker.unsent), "the pipe is full")
                stream.close()

            with Elsewhere(close):
                assert next(stream, END) == END
            assert stream.outcome.state == "closed"
        else:

            async def scenario() -> None:
                call = asyncio.create_task(muna.predictions.acreate(takes, inputs, runner="process"))
                await asyncio.to_thread(eventually, lambda: bool(worker.unsent), "the pipe is full")
                call.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await call

            asyncio.run(scenario())
        eventually(lambda: pid not in child_processes(), "a worker that does not answer is killed")
        assert journal.words == []
        assert muna.predictions.create(takes, inputs, runner="process").value == 4 * MIB
