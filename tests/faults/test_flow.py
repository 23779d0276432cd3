"""Faults of flow: consumers that stop reading or read slowly, huge partials, very many streams, and leaks over time."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest

from engine import Engine, EngineBusyError, EngineError, PredictionCancelledError, Predictor
from engine.runners import thread as thread_runner
from tests._kit.internals import COUNT_OF_THREADS, executions_of, slots_of, threads_of
from tests._kit.streams import Knot
from tests._kit.waits import TIMEOUT, until
from tests.faults.producers import afailing, failing, three

STILL = 0.05  # seconds in which nothing more may happen


def settles_at(number: int, count: Callable[[], int]) -> None:
    """Hold a producer to `number` partials: it gets there, and no further."""
    until(lambda: count() >= number, f"partial {number}, after {count()},")
    deadline = time.monotonic() + STILL
    while time.monotonic() < deadline:
        assert count() == number
        time.sleep(0.001)


class Source:
    """Predictors that count what they have produced, and whether their `finally` ran."""

    def __init__(self, length: int = 10_000) -> None:
        self.length = length
        self.produced = 0
        self.finished = threading.Event()
        self.first_is_taken = threading.Event()
        self.first_is_taken.set()

    def sync(self) -> Iterator[int]:
        try:
            for number in range(self.length):
                self.first_is_taken.wait(TIMEOUT if number == 1 else 0.0)
                self.produced = number + 1
                yield number
        finally:
            self.finished.set()

    async def coloured(self) -> AsyncIterator[int]:
        try:
            for number in range(self.length):
                self.first_is_taken.wait(TIMEOUT if number == 1 else 0.0)
                self.produced = number + 1
                yield number
        finally:
            self.finished.set()

    def count(self) -> int:
        return self.produced


def body(source: Source, kind: str) -> Any:
    return source.sync if kind == "sync" else source.coloured


# 83: a consumer that stops reading.


@pytest.mark.fault(83)
@pytest.mark.parametrize("kind", ["sync", "async"])
@pytest.mark.parametrize("window", [0, 1, 2, 8])
def test_a_producer_whose_consumer_stops_reading_stops_at_its_window(muna: Engine, kind: str, window: int) -> None:
    source = Source()
    with muna.predictions.stream(body(source, kind), runner="thread", prefetch=window) as stream:
        values = stream.values()
        for number in range(5):
            assert next(values) == number
        settles_at(5 + window, source.count)
    assert source.finished.is_set()
    assert source.produced == 5 + window


@pytest.mark.fault(83)
@pytest.mark.parametrize("kind", ["sync", "async"])
def test_a_consumer_that_reads_on_after_a_pause_gets_everything_in_order(muna: Engine, kind: str) -> None:
    source = Source(1000)
    values = muna.predictions.stream(body(source, kind), runner="thread", prefetch=4).values()
    got = [next(values), next(values)]
    settles_at(6, source.count)
    got.extend(values)
    assert got == list(range(1000))


@pytest.mark.fault(83)
@pytest.mark.parametrize("kind", ["sync", "async"])
def test_the_default_window_is_one_until_a_slow_consumer_is_seen_to_be_fast(muna: Engine, kind: str) -> None:
    source = Source()
    source.first_is_taken.clear()  # or a consumer that is woken late finds two, and is given a wider window
    with muna.predictions.stream(body(source, kind), runner="thread") as stream:
        values = stream.values()
        assert next(values) == 0
        source.first_is_taken.set()
        settles_at(2, source.count)
    assert source.finished.is_set()


@pytest.mark.fault(83)
@pytest.mark.parametrize("kind", ["sync", "async"])
def test_the_default_window_never_grows_beyond_256_partials(muna: Engine, kind: str) -> None:
    source = Source()
    with muna.predictions.stream(body(source, kind), runner="thread") as stream:
        values = stream.values()
        for read in range(1, 3000):
            next(values)
            assert source.produced - read <= 257  # and the one the producer is about to put down
    assert source.finished.is_set()


@pytest.mark.fault(83)
@pytest.mark.parametrize("is_cancelled", [False, True], ids=["close", "cancel"])
@pytest.mark.parametrize("kind", ["sync", "async"])
def test_a_producer_that_waits_for_room_is_stopped_at_once(muna: Engine, kind: str, is_cancelled: bool) -> None:
    source = Source()
    stream = muna.predictions.stream(body(source, kind), runner="thread", prefetch=3)
    next(stream)
    settles_at(4, source.count)
    if is_cancelled:
        stream.cancel()
        with pytest.raises(PredictionCancelledError):
            next(stream)
    else:
        stream.close()
    assert source.finished.wait(TIMEOUT)
    assert list(stream) == []
    assert source.produced == 4


@pytest.mark.fault(83)
def test_a_lock_step_stream_produces_nothing_that_was_not_asked_for(muna: Engine) -> None:
    source = Source()
    with muna.predictions.stream(source.sync) as stream:
        for read in range(1, 50):
            next(stream)
            assert source.produced == read

    async def main() -> None:
        other = Source()
        async with muna.predictions.astream(other.coloured) as astream:
            for read in range(1, 50):
                await anext(astream)
                await asyncio.sleep(0)
                assert other.produced == read

    asyncio.run(main())


# 84: a slow consumer.


@pytest.mark.fault(84)
@pytest.mark.parametrize("kind", ["sync", "async"])
@pytest.mark.parametrize("window", [0, 1, 4])
def test_a_slow_consumer_is_never_further_behind_than_the_window(muna: Engine, kind: str, window: int) -> None:
    source = Source()
    with muna.predictions.stream(body(source, kind), runner="thread", prefetch=window) as stream:
        values = stream.values()
        for read in range(1, 101):
            next(values)
            until(lambda read=read: source.produced >= read + window, "a full window")  # type: ignore[misc]
            assert source.produced == read + window
        settles_at(100 + window, source.count)


@pytest.mark.fault(84)
@pytest.mark.parametrize("kind", ["sync", "async"])
@pytest.mark.parametrize("window", [0, 1, 4])
def test_a_slow_asyncio_consumer_is_never_further_behind_than_the_window(muna: Engine, kind: str, window: int) -> None:
    source = Source()

    async def main() -> None:
        async with muna.predictions.astream(body(source, kind), runner="thread", prefetch=window) as stream:
            values = stream.values()
            for read in range(1, 101):
                await anext(values)
                until(lambda read=read: source.produced >= read + window, "a full window")  # type: ignore[misc]
                assert source.produced == read + window
            settles_at(100 + window, source.count)

    asyncio.run(main())


# 85: huge partials.


class Huge:
    """A partial that is too big to have many of."""

    alive = 0
    most = 0

    def __init__(self) -> None:
        Huge.alive += 1
        Huge.most = max(Huge.most, Huge.alive)

    def __del__(self) -> None:
        Huge.alive -= 1


@pytest.fixture
def count_the_huge() -> Iterator[type[Huge]]:
    Huge.alive = Huge.most = 0
    yield Huge
    gc.collect()
    until(lambda: Huge.alive == 0, "that the owner, who may still be about to leave, let the last one go")


@pytest.mark.fault(85)
@pytest.mark.parametrize("runner", [None, "thread"])
@pytest.mark.parametrize("kind", ["sync", "async"])
def test_of_huge_partials_only_the_consumers_and_the_next_are_alive(
    muna: Engine, count_the_huge: type[Huge], runner: str | None, kind: str
) -> None:
    def produces() -> Iterator[Huge]:
        for _ in range(100):
            yield Huge()

    async def aproduces() -> AsyncIterator[Huge]:
        for _ in range(100):
            yield Huge()

    for prediction in muna.predictions.stream(produces if kind == "sync" else aproduces, runner=runner):
        assert isinstance(prediction.value, Huge)
    assert count_the_huge.most <= 3  # the consumer's, the producer's, and the one being made


@pytest.mark.fault(85)
@pytest.mark.parametrize("kind", ["sync", "async"])
def test_a_fixed_window_counts_huge_partials_like_any(muna: Engine, count_the_huge: type[Huge], kind: str) -> None:
    def produces() -> Iterator[Huge]:
        for _ in range(100):
            yield Huge()

    async def aproduces() -> AsyncIterator[Huge]:
        for _ in range(100):
            yield Huge()

    predictor = produces if kind == "sync" else aproduces
    for prediction in muna.predictions.stream(predictor, runner="thread", prefetch=8):
        assert isinstance(prediction.value, Huge)
    assert count_the_huge.most <= 8 + 3


@pytest.mark.fault(85)
@pytest.mark.parametrize("runner", [None, "thread"])
@pytest.mark.parametrize("kind", ["sync", "async"])
def test_create_keeps_no_partial_but_the_last(
    muna: Engine, count_the_huge: type[Huge], runner: str | None, kind: str
) -> None:
    def produces() -> Iterator[Huge]:
        for _ in range(1000):
            yield Huge()

    async def aproduces() -> AsyncIterator[Huge]:
        for _ in range(1000):
            yield Huge()

    prediction = muna.predictions.create(produces if kind == "sync" else aproduces, runner=runner)
    assert count_the_huge.alive == 1
    assert count_the_huge.most <= 3
    assert isinstance(prediction.value, Huge)


# 93: a thousand streams at a time.


async def athree(number: int) -> AsyncIterator[int]:
    yield number
    await asyncio.sleep(0)
    yield number + 1
    yield number + 2


@pytest.mark.fault(93)
@pytest.mark.parametrize("runner", [None, "thread"])
@pytest.mark.parametrize("kind", ["sync", "async"])
def test_a_thousand_streams_open_at_a_time_all_finish(muna: Engine, runner: str | None, kind: str) -> None:
    predictor = three if kind == "sync" else athree
    streams = [muna.predictions.stream(predictor, {"number": number}, runner=runner) for number in range(1000)]
    for step in range(3):
        assert [next(stream).value for stream in streams] == [number + step for number in range(1000)]
    assert [list(stream) for stream in streams] == [[]] * 1000
    assert {stream.outcome.state for stream in streams} == {"done"}
    assert {stream.outcome.count for stream in streams} == {3}


@pytest.mark.fault(93)
@pytest.mark.parametrize("runner", [None, "inline", "thread"])
@pytest.mark.parametrize("kind", ["sync", "async"])
def test_a_thousand_streams_of_asyncio_consumers_all_finish(muna: Engine, runner: str | None, kind: str) -> None:
    predictor = three if kind == "sync" else athree
    threads_before, descriptors_before = threading.active_count(), len(os.listdir("/dev/fd"))  # noqa: PTH208

    async def read(number: int) -> list[Any]:
        return [
            value async for value in muna.predictions.astream(predictor, {"number": number}, runner=runner).values()
        ]

    async def main() -> None:
        got = await asyncio.gather(*(read(number) for number in range(1000)))
        assert got == [[number, number + 1, number + 2] for number in range(1000)]
        most_threads = 1 if kind == "async" else 0 if runner == "inline" else 1000
        assert threading.active_count() - threads_before <= most_threads
        assert len(os.listdir("/dev/fd")) - descriptors_before <= 8  # noqa: PTH208  # two event loops

    asyncio.run(main())


@pytest.mark.fault(93)
def test_streams_beyond_the_stated_number_of_threads_are_refused_and_the_others_finish(
    muna: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert thread_runner.MOST_THREADS >= 1000
    monkeypatch.setattr(thread_runner, "MOST_THREADS", 8)
    streams = [muna.predictions.stream(three, {"number": 0}, runner="thread", prefetch=0) for _ in range(9)]
    for stream in streams[:8]:
        assert next(stream).value == 0
    with pytest.raises(EngineBusyError, match="8 predictor bodies run in threads"):
        next(streams[8])
    assert list(streams[8]) == []
    assert [list(stream.values()) for stream in streams[:8]] == [[1, 2]] * 8


@contextlib.contextmanager
def no_collector() -> Iterator[None]:
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


class Lingering:
    """A predictor whose clean-up waits at a gate, so that its thread outlasts its consumer."""

    def __init__(self) -> None:
        self.go = threading.Event()

    def __call__(self) -> Iterator[int]:
        try:
            yield 1
            yield 2
        finally:
            self.go.wait(TIMEOUT)


def begun(muna: Engine, predictor: Any, **options: Any) -> Any:
    stream = muna.predictions.stream(predictor, runner="thread", **options)
    next(stream)
    return stream


def cancel_all(muna: Engine, predictor: Any, number: int) -> None:
    for stream in [begun(muna, predictor) for _ in range(number)]:
        stream.cancel()


def cancel_all_tasks(muna: Engine, predictor: Any, number: int) -> None:
    async def read() -> None:
        async for _ in muna.predictions.astream(predictor).values():
            await asyncio.Event().wait()

    async def main() -> None:
        tasks = [asyncio.create_task(read()) for _ in range(number)]
        while len(executions_of(muna)) < number:  # noqa: ASYNC110 - streams set no event
            await asyncio.sleep(0.001)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    asyncio.run(main())


def lose_all_in_cycles(muna: Engine, predictor: Any, number: int) -> None:
    with no_collector():
        for _ in range(number):
            Knot(begun(muna, predictor))
    gc.collect()


@pytest.mark.fault(93)
@pytest.mark.filterwarnings("ignore:a stream of .* was abandoned:ResourceWarning")
@pytest.mark.parametrize(("leave", "number"), [(cancel_all, 100), (cancel_all_tasks, 100), (lose_all_in_cycles, 400)])
def test_a_burst_of_streams_that_were_left_a_moment_ago_makes_no_other_call_fail(
    leave: Callable[[Engine, Any, int], None], number: int
) -> None:
    lingering = Lingering()
    with Engine(discover=False, grace=60.0) as muna:
        leave(muna, lingering, number)
        assert muna.predictions.create(three, {"number": 0}, runner="thread").value == 2
        assert asyncio.run(muna.predictions.acreate(three, {"number": 0})).value == 2
        assert next(begun(muna, lingering)).value == 2
        assert threads_of(muna).abandoned == number + 1
        lingering.go.set()


@pytest.mark.fault(46, 93)
def test_threads_that_outlast_their_consumers_by_the_grace_make_their_predictor_busy_and_then_the_engine(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(thread_runner, "MOST_ABANDONED", 5)
    monkeypatch.setattr(thread_runner, "MOST_ABANDONED_OF_ONE", 3)
    one, other = Lingering(), Lingering()
    tags = {"@tests/one": one, "@tests/other": other}
    with Engine([Predictor(tag, target) for tag, target in tags.items()], discover=False, grace=0.0) as muna:

        def calls(tag: str) -> None:
            muna.predictions.create(tag, runner="thread")

        cancel_all(muna, "@tests/one", 3)
        for _ in range(2):
            with pytest.raises(EngineBusyError, match=r"@tests/one: 3 threads still run .*\.stopping") as caught:
                calls("@tests/one")
            assert caught.value.limit == 3
        assert muna.predictions.create(three, {"number": 0}, runner="thread").value == 2
        cancel_all(muna, "@tests/other", 2)
        with pytest.raises(EngineBusyError, match=r"^5 threads still run") as caught:
            muna.predictions.create(three, {"number": 0}, runner="thread")
        assert caught.value.limit == 5
        with pytest.raises(EngineBusyError, match=r"^5 threads still run"):
            asyncio.run(muna.predictions.acreate("@tests/other"))
        other.go.set()
        until(lambda: threads_of(muna).abandoned == 3, "the end of two threads")
        calls("@tests/other")
        with pytest.raises(EngineBusyError, match="@tests/one"):
            calls("@tests/one")
        one.go.set()
        until(lambda: threads_of(muna).abandoned == 0, "the end of the others")
        calls("@tests/one")


@pytest.mark.fault(93)
@pytest.mark.filterwarnings("ignore:a stream of .* was abandoned:ResourceWarning")
def test_streams_that_are_garbage_in_cycles_count_for_nothing_when_a_call_would_be_refused(
    muna: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(thread_runner, "MOST_THREADS", 8)
    with no_collector():
        for _ in range(8):
            Knot(begun(muna, three, inputs={"number": 0}, prefetch=0))
        assert muna.predictions.create(three, {"number": 0}, runner="thread").value == 2
        held = [begun(muna, three, inputs={"number": 0}, prefetch=0) for _ in range(8)]
        with pytest.raises(EngineBusyError, match="8 predictor bodies"):
            muna.predictions.create(three, {"number": 0}, runner="thread")
        for stream in held:
            stream.close()


@pytest.mark.fault(93)
def test_the_threads_that_run_are_looked_through_once_a_grace_however_many_calls_come(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    looks: list[int] = []
    look = COUNT_OF_THREADS.now

    def counted(runner: thread_runner.ThreadRunner) -> Any:
        looks.append(1)
        return look(runner)

    COUNT_OF_THREADS.replace(monkeypatch, counted)
    with Engine(discover=False, grace=60.0) as muna:
        streams = [begun(muna, three, inputs={"number": 0}, prefetch=0) for _ in range(100)]
        assert [list(stream.values()) for stream in streams] == [[1, 2]] * 100
    assert looks == [1]


@pytest.mark.parametrize("consumer", ["create", "stream", "acreate", "astream"])
def test_a_sync_iterator_of_an_async_body_that_no_thread_may_take_is_that_calls_failure(
    muna: Engine, consumer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed = []

    class Iterating(Iterator[int]):
        def __next__(self) -> int:
            raise AssertionError("it may not be pulled")

        def close(self) -> None:
            closed.append(True)

    async def gives() -> Iterator[int]:
        return Iterating()

    predictor = Predictor("@tests/gives", gives, concurrency=1, yields=True)
    slots = slots_of(muna, predictor)
    assert slots is not None
    monkeypatch.setattr(thread_runner, "MOST_THREADS", 0)

    async def areads() -> Any:
        return [value async for value in muna.predictions.astream(predictor, runner="thread").values()]

    async def acreates() -> Any:
        return await muna.predictions.acreate(predictor, runner="thread")

    consume: Callable[[], Any] = {
        "create": lambda: muna.predictions.create(predictor),
        "stream": lambda: list(muna.predictions.stream(predictor).values()),
        "acreate": lambda: asyncio.run(asyncio.wait_for(acreates(), TIMEOUT)),
        "astream": lambda: asyncio.run(asyncio.wait_for(areads(), TIMEOUT)),
    }[consumer]
    for _ in range(2):
        with pytest.raises(EngineError, match="0 predictor bodies run in threads"):
            consume()
        assert slots.leases == ()
    assert closed == [True, True]


@pytest.mark.fault(93)
def test_a_consumer_that_has_read_a_stream_to_its_end_finds_its_place_free(
    muna: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(thread_runner, "MOST_THREADS", 1)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)  # so that threads change places at the worst of moments
    try:
        for _ in range(300):
            assert muna.predictions.create(three, {"number": 0}, runner="thread").value == 2
            assert list(muna.predictions.stream(three, {"number": 0}, runner="thread").values()) == [0, 1, 2]
    finally:
        sys.setswitchinterval(interval)


# 94: leaks over time.


def plain(number: int) -> int:
    return number


async def aplain(number: int) -> int:
    return number


def one_round(muna: Engine, runner: str | None) -> None:
    """Every way a call can end, once."""
    inputs, predictions = {"number": 5}, muna.predictions
    for predictor in (plain, aplain, three, athree):
        predictions.create(predictor, inputs, runner=runner)
        list(predictions.stream(predictor, inputs, runner=runner))
        with predictions.stream(predictor, inputs, runner=runner) as stream:
            next(stream)
        predictions.stream(predictor, inputs, runner=runner).cancel()
    for predictor in (failing, afailing):
        with contextlib.suppress(ValueError):
            predictions.create(predictor, inputs, runner=runner)
        predictions.create(predictor, inputs, runner=runner, errors="return")
        with contextlib.suppress(ValueError):
            list(predictions.stream(predictor, inputs, runner=runner))


async def one_async_round(muna: Engine, runner: str | None) -> None:
    inputs, predictions = {"number": 5}, muna.predictions
    for predictor in (plain, aplain, three, athree):
        await predictions.acreate(predictor, inputs, runner=runner)
        async for _ in predictions.astream(predictor, inputs, runner=runner):
            pass
        async with predictions.astream(predictor, inputs, runner=runner) as stream:
            await anext(stream)
        predictions.astream(predictor, inputs, runner=runner).cancel()
    for predictor in (failing, afailing):
        with contextlib.suppress(ValueError):
            await predictions.acreate(predictor, inputs, runner=runner)
        await predictions.acreate(predictor, inputs, runner=runner, errors="return")


def held() -> tuple[int, int, int]:
    """Blocks of memory, threads and descriptors in use."""
    gc.collect()
    return sys.getallocatedblocks(), threading.active_count(), len(os.listdir("/dev/fd"))  # noqa: PTH208


def assert_flat(before: tuple[int, int, int], after: tuple[int, int, int], calls: int) -> None:
    blocks, threads, descriptors = (late - early for early, late in zip(before, after, strict=True))
    assert blocks < calls / 4, f"{blocks} blocks of memory more after {calls} calls"
    assert threads <= 4  # a thread may still be on its way to rest when the next one is needed
    assert descriptors <= 0


@pytest.mark.fault(94)
@pytest.mark.parametrize("runner", [None, "thread"])
def test_thousands_of_calls_leave_nothing_behind(muna: Engine, runner: str | None) -> None:
    for _ in range(40):
        one_round(muna, runner)
    before = held()
    for _ in range(150):
        one_round(muna, runner)
    assert_flat(before, held(), 150 * 22)


@pytest.mark.fault(94)
@pytest.mark.parametrize("runner", [None, "inline", "thread"])
def test_thousands_of_asyncio_calls_leave_nothing_behind(muna: Engine, runner: str | None) -> None:
    async def main() -> None:
        for _ in range(40):
            await one_async_round(muna, runner)
        before = held()
        for _ in range(150):
            await one_async_round(muna, runner)
        assert_flat(before, held(), 150 * 20)

    asyncio.run(main())


@pytest.mark.fault(94)
def test_engines_that_come_and_go_leave_nothing_behind() -> None:
    def come_and_go() -> None:
        with Engine(discover=False) as muna:
            one_round(muna, None)
            one_round(muna, "thread")

    for _ in range(10):
        come_and_go()
    before = held()
    for _ in range(50):
        come_and_go()
    # A tool that measures coverage keeps a little for every thread there was. An engine that stayed would be more than
    # 80 blocks, so 40 for each that came and went is bound enough.
    assert_flat(before, held(), 50 * 160)


@pytest.mark.fault(94)
def test_functions_made_for_one_call_are_forgotten_with_it(muna: Engine) -> None:
    def call() -> None:
        def made(number: int) -> int:
            return number

        muna.predictions.create(made, {"number": 1})
        muna.predictions.create(lambda number: number, {"number": 1})

    for _ in range(100):
        call()
    before = held()
    for _ in range(1000):
        call()
    assert_flat(before, held(), 2000)
