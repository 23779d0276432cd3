"""Inputs, partials and results that cannot be pickled on either side."""

from __future__ import annotations

import contextvars
import functools
import os
import pathlib
import socket
import time
from collections.abc import Callable, Generator, Iterator
from typing import Any

import pytest

from engine import Engine, PayloadError, WorkerLostError
from engine._wire.frames import pack_command
from engine.runners.process import commands
from engine.runners.process import worker as workers
from tests._kit.gates import FileGate, Journal
from tests._kit.processes import child_processes
from tests.faults import awkward_values
from tests.faults.awkward_values import HERE, THERE, UNPACKABLE, Earthquake, HardToPack, gives_back, raising
from tests.faults.conftest import Cell, Consumer
from tests.faults.payloads.round_trips import each_cell, each_way, predictor_giving, refused, values_of
from tests.faults.worker_bodies import AGES, numbers_after_worker

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
            monkeypatch.setattr(commands, "pack_command", interrupted)
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
