"""Wherever Ctrl-C comes into the end of a call, that ends, and its body with it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from typing import Any

import pytest

from engine import Engine, Predictor
from engine.runners import Body, base, inline
from engine.runners.base import Execution
from engine.runners.owned import OwnedExecution
from engine.runners.task import TaskExecution
from tests._kit.internals import executions_of, open_calls_of, slots_of
from tests._kit.waits import TIMEOUT
from tests.contract.ended_streams import counts

# Wherever Ctrl-C comes into the end of a call, that ends, and its body with it, once nothing refers to it.


class Kept:
    """A body of either colour that tells what it has come to."""

    def __init__(self) -> None:
        self.seen: list[str] = []
        self.finalised = threading.Event()

    def gen(self) -> Iterator[list[int]]:
        self.seen.append("begun")
        try:
            yield [0]
            yield [1]
        finally:
            self.seen.append("finalised")
            self.finalised.set()

    async def agen(self) -> AsyncIterator[list[int]]:
        self.seen.append("begun")
        try:
            yield [0]
            yield [1]
        finally:
            self.seen.append("finalised")
            self.finalised.set()


Point = tuple[Any, str, bool]


def interrupt_once(monkeypatch: pytest.MonkeyPatch, point: Point) -> None:
    """Have Ctrl-C come into the next call of a method: before it does anything, or after it did."""
    owner, name, is_after = point
    method = getattr(owner, name)

    def interrupted(*args: Any) -> None:
        monkeypatch.undo()
        if is_after:
            method(*args)
        raise KeyboardInterrupt

    monkeypatch.setattr(owner, name, interrupted)


@pytest.mark.parametrize(
    ("kind", "runner", "point"),
    [
        ("gen", None, (Execution, "end", False)),
        ("gen", None, (Execution, "end", True)),
        ("gen", None, (Body, "release_slot", False)),
        ("gen", "thread", (OwnedExecution, "_detach", False)),
        ("gen", "thread", (Execution, "end", False)),
        ("gen", "thread", (Execution, "end", True)),
        ("gen", "thread", (OwnedExecution, "_request_stop", False)),
        ("agen", None, (OwnedExecution, "_detach", False)),
        ("agen", None, (Execution, "end", True)),
        ("agen", None, (OwnedExecution, "_request_stop", False)),
    ],
)
@pytest.mark.parametrize("how", ["cancel", "read"])
def test_a_call_whose_end_ctrl_c_interrupts_lets_go_of_everything_once_it_is_dropped(
    kind: str, runner: str | None, point: Point, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = Kept()
    with Engine(discover=False, grace=TIMEOUT) as muna:
        predictor = Predictor("@tests/kept", getattr(body, kind), concurrency=1)
        slots = slots_of(muna, predictor)
        assert slots is not None
        stream = muna.predictions.stream(predictor, runner=runner)
        partials = stream.values()
        next(partials)
        interrupt_once(monkeypatch, point)
        with suppress(KeyboardInterrupt):  # what is read to its end, no stop is interrupted in
            if how == "cancel":
                stream.cancel()
            else:
                list(partials)
        monkeypatch.undo()
        del stream, partials
        slots.wait_for(slots.leases, TIMEOUT)
        assert body.seen == ["begun", "finalised"]
        assert slots.leases == ()
        assert not open_calls_of(muna)


def test_a_call_that_ctrl_c_interrupts_as_its_end_is_told_is_taken_out_of_those_that_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls: list[int] = []

    def interrupt_at_the_end(execution: object) -> int:  # as it comes straight after a call of `id`
        calls.append(id(execution))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return calls[-1]

    monkeypatch.setattr(base, "id", interrupt_at_the_end, raising=False)
    with Engine(discover=False) as muna:
        with pytest.raises(KeyboardInterrupt):
            muna.predictions.create(counts, runner="thread")
        assert len(calls) > 2
        assert not open_calls_of(muna)


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_a_stop_in_a_task_that_ctrl_c_interrupts_is_carried_out_by_the_loop_once_the_stream_is_dropped(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    body = Kept()

    async def scenario(muna: Engine) -> None:
        stream = muna.predictions.astream(body.agen)
        await anext(stream)
        outcome = stream.outcome
        interrupt_once(monkeypatch, (TaskExecution, "_stop", False))
        with pytest.raises(KeyboardInterrupt):
            stream.cancel()
        del stream
        assert await asyncio.to_thread(body.finalised.wait, TIMEOUT)
        assert outcome.state == "cancelled"
        assert executions_of(muna) == ()

    with Engine(discover=False) as muna:
        asyncio.run(scenario(muna))


# A stream whose predictor is still to be found ends as any other.


@pytest.mark.parametrize("how", ["close", "cancel", "shut", "pull"])
@pytest.mark.parametrize("is_reached", [False, True], ids=["before-the-body", "in-the-body"])
def test_ctrl_c_in_a_clean_up_on_the_main_thread_reaches_the_caller_and_the_body_is_finalised(
    is_reached: bool, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    finalised: list[bool] = []

    def body() -> Iterator[int]:
        try:
            yield 0
            stream.cancel()
            yield 1
        finally:
            finalised.append(True)
            if is_reached:
                raise KeyboardInterrupt

    with Engine(discover=False) as muna:
        stream = muna.predictions.stream(Predictor("@tests/body", body, concurrency=1))
        next(stream)
        if not is_reached:
            interrupt_once(monkeypatch, (inline, "close_iterator", False))
        end_by: dict[str, Callable[[], object]] = {
            "close": stream.close,
            "cancel": stream.cancel,
            "shut": muna.close,
            "pull": lambda: next(stream),
        }
        with pytest.raises(KeyboardInterrupt):
            end_by[how]()
        assert finalised == [True]
        assert stream.outcome.ended
        assert not open_calls_of(muna)
