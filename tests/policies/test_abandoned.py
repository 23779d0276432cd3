"""A thousand streams left half-way, in every cell and every way there is to leave one.

Afterwards no stream, thread, task or slot is left, and every body's `finally` has run exactly once. The bodies are as
cheap as bodies can be, since it is the numbers that count here.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import itertools
import sys
import threading
import time
import warnings
import weakref
from typing import TYPE_CHECKING, Any, Final

import attrs
import pytest

from engine import Engine, Predictor
from tests._kit.internals import executions_of, slots_of, threads_of
from tests._kit.streams import ConsumerFailed, Knot
from tests._kit.waits import TIMEOUT

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    from engine import AsyncPredictionStream

TIMES: Final = 1_000
ROUND: Final = 100  # streams kept in reference cycles before the collector runs


@attrs.define
class Tally:
    """How many bodies began, and how many times a `finally` ran; lists, since appending is safe in any thread."""

    starts: list[None] = attrs.field(factory=list)
    ends: list[None] = attrs.field(factory=list)

    @property
    def counts(self) -> tuple[int, int]:
        return len(self.starts), len(self.ends)


def predictor_of(kind: str, tally: Tally) -> Callable[[], Any]:
    def returns() -> int:
        tally.starts.append(None)
        try:
            return 1
        finally:
            tally.ends.append(None)

    def yields() -> Iterator[int]:
        tally.starts.append(None)
        try:
            while True:
                yield 1
        finally:
            tally.ends.append(None)

    async def async_returns() -> int:
        tally.starts.append(None)
        try:
            return 1
        finally:
            tally.ends.append(None)

    async def async_yields() -> AsyncIterator[int]:
        tally.starts.append(None)
        try:
            while True:
                yield 1
        finally:
            await asyncio.sleep(0)
            tally.ends.append(None)

    return {"def": returns, "gen": yields, "async": async_returns, "agen": async_yields}[kind]


# The ways to leave a stream, for sync code.


def leave_by_break(open_stream: Callable[[], Any]) -> None:
    for _ in open_stream().values():
        break


def leave_by_close(open_stream: Callable[[], Any]) -> None:
    stream = open_stream()
    next(stream)
    stream.close()


def leave_by_cancel(open_stream: Callable[[], Any]) -> None:
    stream = open_stream()
    next(stream)
    stream.cancel()


def leave_by_error(open_stream: Callable[[], Any]) -> None:
    with contextlib.suppress(ConsumerFailed), open_stream() as stream:
        next(stream)
        raise ConsumerFailed


def leave_to_the_collector(open_stream: Callable[[], Any]) -> None:
    stream = open_stream()
    next(stream)
    Knot(stream)


# The ways to leave a stream, for asyncio.


async def aleave_by_break(open_stream: Callable[[], Any]) -> None:
    async for _ in open_stream().values():
        break


async def aleave_by_close(open_stream: Callable[[], Any]) -> None:
    stream = open_stream()
    await anext(stream)
    await stream.aclose()


async def aleave_by_cancel(open_stream: Callable[[], Any]) -> None:
    stream = open_stream()
    await anext(stream)
    stream.cancel()


async def aleave_by_error(open_stream: Callable[[], Any]) -> None:
    with contextlib.suppress(ConsumerFailed):
        async with open_stream() as stream:
            await anext(stream)
            raise ConsumerFailed


async def aleave_to_the_collector(open_stream: Callable[[], Any]) -> None:
    stream = open_stream()
    await anext(stream)
    Knot(stream)


WAYS: Final = {
    "break": (leave_by_break, aleave_by_break),
    "close": (leave_by_close, aleave_by_close),
    "cancel": (leave_by_cancel, aleave_by_cancel),
    "error": (leave_by_error, aleave_by_error),
    "collector": (leave_to_the_collector, aleave_to_the_collector),
}
CELLS: Final = [
    (kind, consumer, runner)
    for kind, consumer, runner in itertools.product(
        ("def", "gen", "async", "agen"), ("sync", "asyncio"), (None, "inline", "thread")
    )
    if not (kind in {"async", "agen"} and consumer == "sync" and runner == "inline")  # refused, with advice
]


def is_settled(engine: Engine, tally: Tally, predictor: Predictor) -> bool:
    slots = slots_of(engine, predictor)
    assert slots is not None
    started, finalised = tally.counts
    is_over = finalised >= started and not executions_of(engine) and not slots.leases
    return is_over and threads_of(engine).abandoned == 0


def leave_all(engine: Engine, tally: Tally, predictor: Predictor, runner: str | None, way: str) -> None:
    leave, _ = WAYS[way]
    for count in range(TIMES):
        leave(lambda: engine.predictions.stream(predictor, runner=runner))
        if way == "collector" and not count % ROUND:
            gc.collect(1)
    gc.collect()
    deadline = time.monotonic() + TIMEOUT
    while not is_settled(engine, tally, predictor) and time.monotonic() < deadline:
        time.sleep(0.001)


async def aleave_all(engine: Engine, tally: Tally, predictor: Predictor, runner: str | None, way: str) -> None:
    _, leave = WAYS[way]
    for count in range(TIMES):
        await leave(lambda: engine.predictions.astream(predictor, runner=runner))
        if way == "collector" and not count % ROUND:
            gc.collect(1)
    gc.collect()
    deadline = time.monotonic() + TIMEOUT
    while not is_settled(engine, tally, predictor) and time.monotonic() < deadline:  # noqa: ASYNC110 - owners set no event
        await asyncio.sleep(0.001)
    others = asyncio.all_tasks() - {asyncio.current_task()}
    if others:
        await asyncio.wait(others, timeout=TIMEOUT)
    assert asyncio.all_tasks() == {asyncio.current_task()}


@pytest.mark.fault(57, 61)
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    ("kind", "consumer", "runner"),
    CELLS,
    ids=[f"{kind}-{consumer}-{runner or 'default'}" for kind, consumer, runner in CELLS],
)
def test_a_thousand_streams_left_half_way_leave_nothing_and_are_finalised_once_each(
    kind: str, consumer: str, runner: str | None, way: str
) -> None:
    tally = Tally()
    before = threading.active_count()
    with Engine(discover=False) as engine, warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # how many there are of these is another test's affair
        predictor = Predictor("@tests/left", predictor_of(kind, tally), concurrency=TIMES)
        if consumer == "sync":
            leave_all(engine, tally, predictor, runner, way)
        else:
            asyncio.run(aleave_all(engine, tally, predictor, runner, way))
        assert tally.counts == (TIMES, TIMES)
        assert executions_of(engine) == ()
        assert is_settled(engine, tally, predictor)
        # Owners are kept for the next call, but only as many as were ever busy at one time.
        assert threading.active_count() - before <= 2 * ROUND


async def half_read(engine: Engine, function: Callable[[], Any], number: int) -> list[AsyncPredictionStream]:
    streams = [engine.predictions.astream(function) for _ in range(number)]
    for stream in streams:
        await anext(stream)
    return streams


@pytest.mark.fault(61)
def test_a_loop_that_ends_closes_every_stream_that_was_left_open_there() -> None:
    tally = Tally()
    with Engine(discover=False) as engine:
        with pytest.warns(ResourceWarning, match=r"abandoned after 1 partial\b") as told:
            streams = asyncio.run(half_read(engine, predictor_of("agen", tally), ROUND))
        assert tally.counts == (ROUND, ROUND)
        assert len(told) == ROUND
        assert {stream.outcome.state for stream in streams} == {"closed"}
        assert executions_of(engine) == ()


@pytest.mark.fault(61)
def test_a_loop_that_never_closed_its_streams_is_kept_no_longer_than_to_the_next_loop() -> None:
    tally = Tally()

    async def yields() -> AsyncIterator[int]:
        tally.starts.append(None)
        try:
            while True:
                yield 1
        finally:  # which waits for nothing, so that it needs no loop
            tally.ends.append(None)

    loop = asyncio.new_event_loop()
    kept = weakref.ref(loop)
    with Engine(discover=False) as engine, warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        streams = loop.run_until_complete(half_read(engine, yields, 3))
        loop.close()
        del loop, streams
        gc.collect()
        assert tally.counts == (3, 3)
        assert executions_of(engine) == ()
        asyncio.run(half_read(engine, yields, 1))
        gc.collect()
        assert kept() is None


@pytest.mark.fault(94)
def test_a_loop_that_is_closed_just_after_it_waited_for_an_owner_thread_is_let_go_of(
    muna: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "getswitchinterval", lambda: 60.0)  # the loop ends before it would give up the GIL
    gate = threading.Event()

    async def main() -> None:
        asyncio.get_running_loop().call_soon(gate.set)
        assert (await muna.predictions.acreate(gate.wait, {"timeout": TIMEOUT}, runner="thread")).value is True

    loop = asyncio.new_event_loop()
    kept = weakref.ref(loop)
    loop.run_until_complete(main())
    loop.close()
    del loop
    deadline = time.monotonic() + TIMEOUT
    while kept() is not None and time.monotonic() < deadline:  # its owner, which woke it, may just be leaving
        gc.collect()
        time.sleep(0.001)
    assert kept() is None
