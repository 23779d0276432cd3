"""Inputs, predictors, partials and results that cannot be rebuilt where they arrive."""

from __future__ import annotations

import asyncio
import functools
import pathlib
from collections.abc import Callable, Generator, Iterator
from typing import Any

import pytest

from engine import Engine, PayloadError, PredictorError, WorkerLostError
from engine._wire import incremental as _incremental
from tests._kit.gates import Journal
from tests._kit.processes import child_processes
from tests.faults.awkward_values import HERE, THERE, Earthquake, HardToUnpack, gives_back, raising
from tests.faults.conftest import Cell, Consumer
from tests.faults.payloads.round_trips import each_cell, each_way, number_of, predictor_giving, refused, values_of
from tests.faults.worker_bodies import numbers_after_worker

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
    assert "while workers were supervised" not in caplog.text


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
