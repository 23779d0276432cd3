"""What fails in a worker at each point of a body, in its clean-up, or at a limit, and what `errors` gives back."""

from __future__ import annotations

import asyncio
import os
import pathlib
import sys
import threading
import traceback
import weakref
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest

from engine import Engine, PayloadError, Prediction, PredictorError, WorkerLostError
from tests._kit.gates import Journal
from tests.faults.conftest import Cell, Consumer
from tests.faults.worker_bodies import Trouble, predictor_with
from tests.faults.workers.failures import (
    PLACES,
    KeywordsOnly,
    caught,
    check_worker_lives,
    each_consumer,
    each_kind,
    each_point,
    failure_of,
    notes_of,
    partials_before,
    pid_of,
    raising,
)

# Bodies with a `finally`, at every place and for every consumer.


@pytest.mark.fault(31)
@each_point
def test_what_goes_along_with_an_exception_comes_along(
    cell: Cell, place: str, lasting: Engine, tmp_path: pathlib.Path
) -> None:
    def strikes() -> None:
        try:
            raise KeyError("voice")
        except KeyError:
            error = LookupError("no such voice", 7)
            error.add_note("a note of the predictor's own")
            error.hint = "ask for another"  # type: ignore[attr-defined]
            raise error  # the line that struck  # noqa: B904 - its context is what this is about

    async def scenario(consumer: Consumer) -> None:
        for error in await caught(consumer, Trouble(Journal(tmp_path / "journal"), strikes, place)):
            assert (type(error), error.args) == (LookupError, ("no such voice", 7))
            assert vars(error)["hint"] == "ask for another"
            assert error.__cause__ is None
            assert repr(error.__context__) == "KeyError('voice')"
            assert error.__notes__[0] == "a note of the predictor's own"
            (remote,), (ours,) = notes_of(error)
            assert "the line that struck" in remote
            assert "During handling of the above exception" in remote
            assert f"after {len(partials_before(cell, place))} partials" in ours
            assert "".join(traceback.format_exception(error)).count("the line that struck") == 1

    pid = pid_of(lasting)
    cell.run_on(lasting, scenario)
    check_worker_lives(lasting, pid)


@pytest.mark.fault(39, 40, 62)
@pytest.mark.parametrize(
    "kind", [SystemExit, KeyboardInterrupt, GeneratorExit, asyncio.CancelledError, StopIteration, StopAsyncIteration]
)
@each_point
def test_what_would_end_more_than_the_call_arrives_as_the_cause_of_its_failure(
    cell: Cell, place: str, kind: type[BaseException], lasting: Engine, tmp_path: pathlib.Path
) -> None:
    def strikes() -> None:
        raise kind("of the body")

    async def scenario(consumer: Consumer) -> None:
        expected = RuntimeError if kind in {StopIteration, StopAsyncIteration} else PredictorError
        for error in await caught(consumer, Trouble(Journal(tmp_path / "journal"), strikes, place)):
            assert type(error) is expected
            assert (type(error.__cause__), str(error.__cause__)) == (kind, "of the body")
            assert kind.__name__ in str(error)
            assert 'raise kind("of the body")' in "".join(traceback.format_exception(error))
            assert len(notes_of(error)[1]) == 1
        returned = await consumer.create(
            predictor_with(cell.kind, Trouble(Journal(tmp_path / "unread"), strikes, place)), errors="return"
        )
        assert type(returned.exception) is expected
        assert returned.error is not None
        assert 'raise kind("of the body")' in returned.error
        assert returned.value == (partials_before(cell, place) or [None])[-1]

    pid = pid_of(lasting)
    cell.run_on(lasting, scenario)
    check_worker_lives(lasting, pid)


@pytest.mark.fault(45)
@each_point
def test_what_a_finally_raises_in_a_worker_at_the_end_of_a_body_is_its_failure(
    cell: Cell, place: str, lasting: Engine, tmp_path: pathlib.Path
) -> None:
    def strikes() -> None:
        raise ValueError("the body")

    def cleanup() -> None:
        raise OSError("its clean-up")

    async def scenario(consumer: Consumer) -> None:
        for error in await caught(consumer, Trouble(Journal(tmp_path / "journal"), strikes, place, cleanup)):
            assert repr(error) == "OSError('its clean-up')"
            assert repr(error.__context__) == "ValueError('the body')"

    pid = pid_of(lasting)
    cell.run_on(lasting, scenario)
    check_worker_lives(lasting, pid)


@pytest.mark.fault(45)
@pytest.mark.parametrize("kind", ["gen", "agen"])
@each_consumer
def test_what_a_finally_raises_in_a_worker_has_the_consumers_error_as_its_context(
    kind: str, consumer: str, lasting: Engine, tmp_path: pathlib.Path
) -> None:
    cell = Cell(kind, consumer, "process")
    journal = Journal(tmp_path / "journal")

    def cleanup() -> None:
        raise OSError("its clean-up")

    async def scenario(consumer: Consumer) -> None:
        mine = KeyError("the consumer's")
        reader = consumer.open(predictor_with(kind, Trouble(journal, cleanup=cleanup)), prefetch=0)

        async def fails() -> None:
            async with reader.opened():
                await reader.pull()
                raise mine

        with pytest.raises(OSError, match="its clean-up") as arrived:
            await fails()
        behind = arrived.value.__context__
        while behind is not mine and behind is not None:
            behind = behind.__context__
        assert behind is mine
        assert await reader.has_ended("closed")

    pid = pid_of(lasting)
    cell.run_on(lasting, scenario)
    assert journal.words == ["start", "finally"]
    check_worker_lives(lasting, pid)


# 42, 43, 44.


@pytest.mark.fault(43)
@each_kind
def test_an_input_is_freed_in_its_worker_with_the_failure_that_held_it(kind: str, lasting: Engine) -> None:
    def fails(weighty: Any) -> None:
        import builtins
        import gc

        gc.disable()  # until the test looks
        builtins.seen = weakref.ref(weighty)  # type: ignore[attr-defined]
        raise ValueError("it holds this frame")

    def yields(weighty: Any) -> Iterator[int]:
        yield 1
        fails(weighty)

    async def areturns(weighty: Any) -> None:
        fails(weighty)

    async def ayields(weighty: Any) -> AsyncIterator[int]:
        yield 1
        fails(weighty)

    def is_freed() -> bool:
        import builtins
        import gc

        gc.enable()
        return builtins.seen() is None  # type: ignore[attr-defined]

    predictors: dict[str, Callable[..., Any]] = {"def": fails, "gen": yields, "async": areturns, "agen": ayields}
    pid = pid_of(lasting)
    for _ in range(2):
        with pytest.raises(ValueError, match="it holds this frame"):
            lasting.predictions.create(predictors[kind], {"weighty": KeywordsOnly}, runner="process")
        with pytest.raises(ValueError, match="it holds this frame"):
            lasting.predictions.create(predictors[kind], {"weighty": Weighty()}, runner="process")
        assert lasting.predictions.create(is_freed, runner="process").value
    check_worker_lives(lasting, pid)


class Weighty:
    """An input one would not like to keep."""


@pytest.mark.fault(44)
@each_kind
@each_consumer
def test_a_limit_of_the_interpreter_that_a_body_meets_in_a_worker_is_an_ordinary_failure(
    consumer: str, kind: str, lasting: Engine
) -> None:
    def dive(depth: int = 0) -> Any:
        return dive(depth + 1)

    def take_all_memory() -> Any:
        return bytearray(sys.maxsize)

    pid = pid_of(lasting)
    place = "middle" if kind in {"gen", "agen"} else "before"
    for strike, expected in ((dive, RecursionError), (take_all_memory, MemoryError)):
        seen, error = failure_of(lasting, raising(kind, strike, place), consumer)
        assert seen == list(PLACES[: PLACES.index(place)])
        assert type(error) is expected
        (remote,), _ = notes_of(error)
        assert strike.__name__ in remote
        assert len(remote) < 100_000
    check_worker_lives(lasting, pid)


@pytest.mark.fault(7)
def test_a_loss_says_what_happened_and_what_to_do(lasting: Engine) -> None:
    def ends() -> Iterator[int]:
        yield 1
        os._exit(9)

    seen, error = failure_of(lasting, ends, "sync")
    assert seen == [1]
    assert str(error).endswith("was lost (exit code 9) after 1 partial; call again, which starts a new worker.")


class Unready:
    def setup(self) -> None:
        raise LookupError("no model")

    def predict(self) -> None: ...


def exits() -> Iterator[int]:
    yield 1
    raise SystemExit(3)


def dies() -> None:
    os._exit(3)


def gives_what_cannot_travel() -> Iterator[object]:
    yield 1
    yield threading.Lock()


@pytest.mark.parametrize("consumer", ["create", "acreate"])
def test_errors_return_gives_back_what_a_predictor_raised_and_never_what_became_of_its_worker_or_its_payloads(
    consumer: str,
) -> None:
    def made(target: Any, inputs: dict[str, Any]) -> Prediction:
        if consumer == "create":
            return muna.predictions.create(target, inputs, runner="process", check=False, errors="return")
        asked = muna.predictions.acreate(target, inputs, runner="process", check=False, errors="return")
        return asyncio.run(asked)

    with Engine(discover=False, workers=1) as muna:
        for target, kind in ((Unready, LookupError), (exits, PredictorError), (input, EOFError)):
            assert type(made(target, {}).exception) is kind
        for other, inputs, error in (
            (dies, {}, WorkerLostError),
            (gives_what_cannot_travel, {}, PayloadError),
            (len, {"obj": threading.Lock()}, PayloadError),
        ):
            with pytest.raises(error):
                made(other, inputs)
