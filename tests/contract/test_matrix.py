"""The cells of the cube by name, for the promises of sections 4 and 5 that need a gate, a clock or a heartbeat.

A *place* is one column of the contract's table: who consumes, and with which runner. Bodies wait at gates that tests
open; nothing sleeps, and every wait has a bound. `EVERYWHERE` counts workers in, where no test can share memory with a
body; what a test looks at there has to be among the partials, or in a file.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import pickle
import re
import sys
import threading
import time
import uuid
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Awaitable,
    Callable,
    Generator,
    Iterable,
    Iterator,
)
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar, copy_context
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import attrs
import pytest

from engine import (
    Engine,
    EngineError,
    InvalidInputError,
    InvalidTagError,
    NestingError,
    NoPartialsError,
    PredictionCancelledError,
    Predictor,
    PredictorError,
    PredictorNotFoundError,
    current_call,
)
from engine.runners import Channel
from tests._kit.gates import Gate
from tests._kit.internals import loaded_of
from tests._kit.waits import TIMEOUT, Clock, auntil, until


@attrs.frozen
class Place:
    """Who consumes, and with which runner."""

    consumer: str
    runner: str | None

    def __str__(self) -> str:
        return f"{self.consumer}-{self.runner or 'default'}"


SYNC: Final = [Place("sync", runner) for runner in (None, "inline", "thread")]
ASYNCIO: Final = [Place("asyncio", runner) for runner in (None, "inline", "thread")]
PROCESS: Final = [Place("sync", "process"), Place("asyncio", "process")]
PLACES: Final = [*SYNC, *ASYNCIO]
EVERYWHERE: Final = [*PLACES, *PROCESS]


def cells(kinds: tuple[str, ...], places: list[Place] = PLACES, *, elsewhere: bool = False) -> pytest.MarkDecorator:
    """Parametrise by every cell that is not refused; with `elsewhere` only where the body has an owner of its own."""
    chosen = [
        (kind, place)
        for kind in kinds
        for place in places
        if not (place in SYNC and place.runner == "inline" and "async" in kind)
        and not (elsewhere and is_lock_step(kind, place))
    ]
    return pytest.mark.parametrize(("kind", "place"), chosen, ids=[f"{kind}-{place}" for kind, place in chosen])


def is_lock_step(kind: str, place: Place) -> bool:
    if place.runner in {"thread", "process"}:
        return False
    return ("async" in kind) == (place.consumer == "asyncio") or place.runner == "inline"


YIELDING: Final = ("yield", "async-yield")
KINDS: Final = ("return", "yield", "async-return", "async-yield")


# One way to read, for every place: what differs is only the caller's colour


class Reader:
    """One stream, stepped from sync code whichever its face: asyncio steps run on one loop."""

    def __init__(self, muna: Engine, loop: asyncio.Runner, place: Place) -> None:
        self.muna = muna
        self._loop = loop
        self._place = place

    def open(self, tag: Any, inputs: dict[str, Any] | None = None, **options: Any) -> Any:
        predictions = self.muna.predictions
        options.setdefault("runner", self._place.runner)
        if self._place.consumer == "sync":
            return predictions.stream(tag, inputs, **options)

        async def call() -> Any:
            return predictions.astream(tag, inputs, **options)

        return self._run(call())

    def next(self, stream: Any) -> Any:
        """The next partial; StopIteration at the end, whichever the face."""
        if self._place.consumer == "sync":
            return next(stream.values())
        return self._anext(stream.values())

    def next_prediction(self, stream: Any) -> Any:
        return next(stream) if self._place.consumer == "sync" else self._anext(stream)

    def _anext(self, values: Any) -> Any:
        async def pull() -> Any:
            return await anext(values, StopIteration)

        value = self._run(pull())
        if value is StopIteration:
            raise StopIteration
        return value

    def rest(self, stream: Any) -> list[Any]:
        seen = []
        with contextlib.suppress(StopIteration):
            while True:
                seen.append(self.next(stream))
        return seen

    def close(self, stream: Any) -> None:
        if self._place.consumer == "sync":
            stream.close()
        else:
            self._run(stream.aclose())

    def create(self, tag: Any, inputs: dict[str, Any] | None = None, **options: Any) -> Any:
        options.setdefault("runner", self._place.runner)
        if self._place.consumer == "sync":
            return self.muna.predictions.create(tag, inputs, **options)
        return self._run(self.muna.predictions.acreate(tag, inputs, **options))

    def _run(self, coroutine: Any) -> Any:
        """In the caller's context: a runner of asyncio has one of its own."""
        return self._loop.run(coroutine, context=copy_context())


@pytest.fixture
def loop() -> Iterator[asyncio.Runner]:
    with asyncio.Runner() as runner:
        yield runner


def pid_and_wait() -> Iterator[int]:
    yield os.getpid()
    yield 0


@pytest.fixture(scope="module")
def crew() -> Iterator[Engine]:
    """Give an engine whose two workers outlive the tests that ask for it: each fails that has another one started."""
    with Engine(discover=False, workers=2, grace=TIMEOUT) as muna:
        streams = [muna.predictions.stream(pid_and_wait, runner="process") for _ in range(2)]
        assert len({next(stream).value for stream in streams}) == 2
        for stream in streams:
            stream.close()
        yield muna


@pytest.fixture
def reader(muna: Engine, crew: Engine, loop: asyncio.Runner, place: Place) -> Reader:
    return Reader(crew if place in PROCESS else muna, loop, place)


def giving(kind: str, values: Iterable[Any], step: Callable[[], object] = lambda: None) -> Callable[[], Any]:
    """A predictor of a kind that calls `step` before each partial; one that returns gives the last value."""

    def yields() -> Generator[Any, None, None]:
        for value in values:
            step()
            yield value

    async def yields_later() -> AsyncGenerator[Any]:
        for value in values:
            step()
            yield value

    def returns() -> Any:
        last = None
        for last in values:  # noqa: B007
            step()
        return last

    async def returns_later() -> Any:
        return returns()

    kinds: dict[str, Callable[[], Any]] = {
        "return": returns,
        "yield": yields,
        "async-return": returns_later,
        "async-yield": yields_later,
    }
    return kinds[kind]


# 3, the rule it starts from


@cells(KINDS)
def test_the_rule_of_muna_holds_in_every_cell(kind: str, place: Place, reader: Reader) -> None:
    partials = ["hello", "hello from", "hello from Muna"]
    target = giving(kind, partials)
    assert reader.create(target).value == "hello from Muna"
    assert reader.rest(reader.open(target)) == (partials if "yield" in kind else partials[-1:])


# 4.1, what is followed


def kind_of(value: object) -> str:
    return type(value).__name__


@pytest.mark.parametrize(
    "value",
    [[1], (1, 2), "text", b"bytes", {"a": 1}, {1, 2}, range(3), memoryview(b"abc"), iter([1, 2]), map(str, [1]), zip()],
    ids=kind_of,
)
@pytest.mark.parametrize("place", PLACES, ids=str)
def test_a_container_or_an_undeclared_iterator_is_a_result(value: Any, place: Place, reader: Reader) -> None:
    def returns() -> Any:
        return value

    [found] = reader.rest(reader.open(returns))
    assert found is value
    assert reader.create(returns).value is value


@pytest.mark.parametrize(
    "value",
    [[1], (1, 2), "text", b"bytes", {"a": 1}, {1, 2}, range(3), iter([1, 2]), map(str, [1]), zip()],
    ids=kind_of,
)
@pytest.mark.parametrize("place", PROCESS, ids=str)
def test_a_container_or_an_undeclared_iterator_is_a_result_of_a_worker_too(
    value: Any, place: Place, reader: Reader
) -> None:
    def returns() -> Any:
        return value

    for found in (*reader.rest(reader.open(returns)), reader.create(returns).value):
        assert type(found) is type(value)
        assert found == value or list(found) == list(pickle.loads(pickle.dumps(value)))


def test_a_file_is_a_result(muna: Engine) -> None:
    with open(__file__, encoding="utf-8") as file:  # noqa: PTH123

        def returns() -> Any:
            return file

        assert muna.predictions.create(returns).value is file


class Numbers:
    """Both an iterator and an async iterator, and neither kind of generator."""

    def __init__(self) -> None:
        self._numbers = iter([1, 2, 3])

    def __iter__(self) -> Numbers:
        return self

    def __next__(self) -> int:
        return next(self._numbers)


class AsyncNumbers:
    def __init__(self) -> None:
        self._numbers = iter([1, 2, 3])

    def __aiter__(self) -> AsyncNumbers:
        return self

    async def __anext__(self) -> int:
        for number in self._numbers:
            return number
        raise StopAsyncIteration


ANNOTATIONS: Final = [
    (Iterator, Numbers),
    (Iterator[int], Numbers),
    (Iterable[int], Numbers),
    (Generator[int, None, None], Numbers),
    ("Iterator[int]", Numbers),
    (AsyncIterator[int], AsyncNumbers),
    (AsyncIterable[int], AsyncNumbers),
    (AsyncGenerator[int, None], AsyncNumbers),
]


@pytest.mark.parametrize(
    ("annotation", "made"), ANNOTATIONS, ids=lambda each: re.sub(r".*\.", "", str(each)).strip("'>")
)
@pytest.mark.parametrize("place", [PLACES[0], PLACES[2], PLACES[3], PLACES[5], *PROCESS], ids=str)
def test_an_iterator_is_followed_where_the_return_annotation_says_so(
    annotation: Any, made: Any, place: Place, reader: Reader
) -> None:
    def returns() -> Any:
        return made()

    returns.__annotations__["return"] = annotation
    assert reader.rest(reader.open(returns)) == [1, 2, 3]
    assert reader.create(returns, reduce="collect").value == [1, 2, 3]


@pytest.mark.parametrize("place", [PLACES[0], *PROCESS], ids=str)
def test_the_declaration_yields_outweighs_the_annotation(place: Place, reader: Reader) -> None:
    def annotated() -> Iterator[int]:
        return Numbers()

    def silent() -> Any:
        return Numbers()

    as_value = Predictor("@me/value", annotated, yields=False)
    followed = Predictor("@me/followed", silent, yields=True)
    assert type(reader.create(as_value).value).__name__ == "Numbers"
    assert reader.rest(reader.open(followed)) == [1, 2, 3]


@pytest.mark.parametrize("place", [PLACES[0], *PROCESS], ids=str)
def test_a_generator_is_followed_even_where_yields_is_denied(place: Place, reader: Reader) -> None:
    def yields() -> Iterator[int]:
        yield 1
        yield 2

    assert reader.rest(reader.open(Predictor("@me/generator", yields, yields=False))) == [1, 2]


def test_an_awaitable_is_awaited_until_something_else_comes_out(muna: Engine) -> None:
    async def inner() -> str:
        return "at last"

    async def middle() -> Awaitable[str]:
        return inner()

    async def outer() -> Awaitable[Awaitable[str]]:
        return middle()

    assert muna.predictions.create(outer).value == "at last"
    assert asyncio.run(muna.predictions.acreate(outer)).value == "at last"


def test_a_future_of_another_running_loop_is_refused_with_advice(muna: Engine) -> None:
    async def main() -> None:
        future = asyncio.get_running_loop().create_future()

        async def predict() -> Any:
            return future

        with pytest.raises(PredictorError, match="another event loop: await it inside"):
            await muna.predictions.acreate(predict, runner="thread")
        future.cancel()

    asyncio.run(main())


# 4.3, nothing is mistaken for an end

ODD: Final[tuple[Any, ...]] = (
    *(None, 0, "", b"", (), [], False, NotImplemented, ...),
    *(StopIteration("a value"), StopAsyncIteration(), object()),
)


@cells(YIELDING)
def test_odd_values_are_partials_like_any_other(kind: str, place: Place, reader: Reader) -> None:
    seen = reader.rest(reader.open(giving(kind, ODD)))
    assert len(seen) == len(ODD)
    assert all(found is value for found, value in zip(seen, ODD, strict=True))


@cells(("return", "async-return"))
@pytest.mark.parametrize("value", ODD, ids=lambda value: type(value).__name__)
def test_odd_values_are_results_like_any_other(kind: str, place: Place, value: Any, reader: Reader) -> None:
    target = giving(kind, [value])
    assert reader.create(target).value is value
    [found] = reader.rest(reader.open(target))
    assert found is value


# 4.6, no partials


@cells(YIELDING, EVERYWHERE)
def test_zero_partials_are_an_empty_stream_and_no_result(kind: str, place: Place, reader: Reader) -> None:
    target = giving(kind, [])
    stream = reader.open(target)
    assert reader.rest(stream) == []
    assert (stream.outcome.state, stream.outcome.count) == ("done", 0)
    for reducer in ("last", "concat"):
        with pytest.raises(NoPartialsError, match=f"without a partial, and the reducer '{reducer}'") as caught:
            reader.create(target, reduce=reducer)
        assert caught.value.tag == stream.tag
    assert reader.create(target, reduce="collect").value == []
    assert reader.create(target, reduce="returned").value is None


# 4.7 and 5.6, who may run ahead of whom


def counting(kind: str, values: Iterable[Any]) -> tuple[Callable[[], Any], list[int]]:
    made: list[int] = [0]

    def step() -> None:
        made[0] += 1

    return giving(kind, values, step), made


@cells(YIELDING)
def test_a_buffer_that_is_used_again_is_never_overtaken(kind: str, place: Place, reader: Reader) -> None:
    buffer = [0]

    def fill() -> None:
        buffer[0] += 1

    stream = reader.open(giving(kind, [buffer] * 50, fill))
    for number in range(1, 51):
        assert reader.next(stream) is buffer
        assert buffer == [number]
    assert reader.rest(stream) == []


@cells(YIELDING)
def test_a_producer_waits_past_a_mutable_partial_until_the_next_is_asked_for(
    kind: str, place: Place, reader: Reader
) -> None:
    target, made = counting(kind, [["mutable"] for _ in range(5)])
    stream = reader.open(target)
    for number in range(1, 4):
        reader.next(stream)
        assert made == [number]
    reader.close(stream)
    assert made == [3]


@cells(YIELDING)
def test_a_tuple_with_something_mutable_in_it_is_mutable(kind: str, place: Place, reader: Reader) -> None:
    target, made = counting(kind, [("fixed", []) for _ in range(5)])
    stream = reader.open(target)
    reader.next(stream)
    reader.close(stream)
    assert made == [1]


@cells(YIELDING, elsewhere=True)
@pytest.mark.parametrize("window", [1, 3, 7])
def test_prefetch_lifts_the_wait_for_exactly_so_many_partials(
    kind: str, place: Place, window: int, reader: Reader
) -> None:
    target, made = counting(kind, [["mutable"] for _ in range(50)])
    stream = reader.open(target, prefetch=window)
    for number in range(1, 6):
        reader.next(stream)
        until(lambda: made[0] >= number + window)  # noqa: B023
        assert made[0] <= number + window
    reader.close(stream)
    assert made[0] <= 5 + window


@cells(YIELDING)
def test_prefetch_zero_is_lock_step_for_everything(kind: str, place: Place, reader: Reader) -> None:
    target, made = counting(kind, range(50))
    stream = reader.open(target, prefetch=0)
    for number in range(1, 6):
        assert reader.next(stream) == number - 1
        assert made == [number]
    reader.close(stream)
    assert made == [5]


def test_the_default_window_grows_only_while_more_than_one_partial_is_found_waiting() -> None:
    channel = Channel()
    for number in range(100):
        assert channel.offer(number, 0.0, 0.0), "a producer ran on past a partial that was not taken"
        channel.producers.append(lambda: None)
        assert channel.take() == (number, 0.0)
    waiting = []
    for _ in range(20):
        channel.offer("one more than fits", 0.0, 0.0)
        while not channel.offer("as many as fit", 0.0, 0.0):
            pass
        waiting.append(len(channel.items))
        while channel.items:
            channel.producers.append(lambda: None)
            channel.take()
    assert waiting == sorted(waiting)
    assert (waiting[0], waiting[-1]) == (2, 256)


@cells(YIELDING, elsewhere=True)
def test_the_default_window_never_exceeds_256_partials(kind: str, place: Place, reader: Reader) -> None:
    target, made = counting(kind, range(100_000))
    stream = reader.open(target)
    for _ in range(3_000):
        reader.next(stream)
    reader.close(stream)
    assert made[0] <= 3_000 + 256 + 1


@cells(YIELDING)
def test_a_lone_partial_is_never_held_back(kind: str, place: Place, reader: Reader) -> None:
    """The body waits at a gate that only opens once its partial has arrived."""
    gate = Gate()

    def yields() -> Iterator[str]:
        yield "first"
        gate.wait()
        yield "second"
        yield "third"

    async def yields_later() -> AsyncIterator[str]:
        yield "first"
        await gate.await_()
        yield "second"
        yield "third"

    stream = reader.open(yields if kind == "yield" else yields_later)
    assert reader.next(stream) == "first"
    assert (stream.outcome.state, stream.outcome.count) == ("running", 1)
    gate.open()
    assert reader.rest(stream) == ["second", "third"]


@attrs.frozen
class Failing:
    """So many numbers, and then a failure."""

    count: int

    def __iter__(self) -> Iterator[int]:
        yield from range(self.count)
        raise LookupError(f"after {self.count}")


@cells(YIELDING, EVERYWHERE)
def test_partials_before_a_failure_come_first_in_order_and_once(kind: str, place: Place, reader: Reader) -> None:
    stream = reader.open(giving(kind, Failing(200)))
    for number in range(200):
        assert reader.next(stream) == number
    with pytest.raises(LookupError, match="after 200"):
        reader.next(stream)
    assert reader.rest(stream) == []
    assert (stream.outcome.state, stream.outcome.count) == ("failed", 200)


@cells(YIELDING, elsewhere=True)
def test_a_failure_ahead_of_the_consumer_is_logged_when_its_stream_is_closed(
    kind: str, place: Place, reader: Reader, caplog: pytest.LogCaptureFixture
) -> None:
    failing = threading.Event()

    def values() -> Iterator[int]:
        yield 1
        failing.set()
        raise LookupError("ahead")

    stream = reader.open(giving(kind, values()), prefetch=5)
    assert reader.next(stream) == 1
    assert failing.wait(TIMEOUT)
    reader.close(stream)
    assert (stream.outcome.state, stream.outcome.exception) == ("closed", None)
    until(lambda: "ahead" in caplog.text)


@cells(YIELDING, PROCESS)
def test_a_failure_in_a_worker_ahead_of_the_consumer_is_logged_when_its_stream_is_closed(
    kind: str, place: Place, reader: Reader, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    failing = tmp_path / "failing"

    def yields() -> Iterator[int]:
        yield 1
        failing.touch()
        raise LookupError("ahead")

    async def yields_later() -> AsyncIterator[int]:
        yield 1
        failing.touch()
        raise LookupError("ahead")

    stream = reader.open(yields if kind == "yield" else yields_later, prefetch=5)
    assert reader.next(stream) == 1
    until(failing.exists)
    reader.close(stream)
    assert (stream.outcome.state, stream.outcome.exception) == ("closed", None)
    until(lambda: "ahead" in caplog.text)


# 4.8, facts of a prediction


@cells(KINDS, EVERYWHERE)
def test_predictions_carry_one_id_per_call_an_index_and_the_moment_of_the_call(
    kind: str, place: Place, reader: Reader
) -> None:
    target = giving(kind, ["a", "b"])
    before = datetime.now(UTC) - timedelta(seconds=1)
    streams = [reader.open(target), reader.open(target)]
    after = datetime.now(UTC) + timedelta(seconds=1)
    for stream in streams:
        count = 2 if "yield" in kind else 1
        seen = [reader.next_prediction(stream) for _ in range(count)]
        assert [each.index for each in seen] == list(range(count))
        assert {each.id for each in seen} == {stream.id}
        assert {each.tag for each in seen} == {stream.tag}
        assert all(before <= each.created <= after and each.created.tzinfo is UTC for each in seen)
        reader.close(stream)
    assert streams[0].id != streams[1].id
    assert reader.create(target).id not in {each.id for each in streams}


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Every clock the engine reads durations off."""
    clock = Clock()
    for name, module in list(sys.modules.items()):
        if name.startswith("engine.") and hasattr(module, "perf_counter"):
            monkeypatch.setattr(module, "perf_counter", clock)
    return clock


@cells(YIELDING)
def test_latency_is_the_producers_time_without_the_consumers(
    kind: str, place: Place, clock: Clock, reader: Reader
) -> None:
    def work() -> None:
        clock.now += 1.0

    stream = reader.open(giving(kind, [["mutable"] for _ in range(4)], work))
    for number in range(1, 5):
        assert reader.next_prediction(stream).latency == pytest.approx(number * 1_000.0)
        clock.now += 100.0
    assert reader.rest(stream) == []


@cells(KINDS)
def test_the_latency_of_create_is_the_producers_time(kind: str, place: Place, clock: Clock, reader: Reader) -> None:
    def work() -> None:
        clock.now += 1.0

    assert reader.create(giving(kind, [1, 2, 3], work)).latency == pytest.approx(3_000.0)


@cells(YIELDING)
def test_the_latency_of_a_create_without_partials_is_the_producers_time_too(
    kind: str, place: Place, clock: Clock, reader: Reader
) -> None:
    def yields() -> Iterator[int]:
        clock.now += 1.0
        yield from ()

    async def yields_later() -> AsyncIterator[int]:
        clock.now += 1.0
        if kind == "yield":
            yield 0

    prediction = reader.create(yields if kind == "yield" else yields_later, reduce="collect")
    assert (prediction.value, prediction.latency) == ([], pytest.approx(1_000.0))


@attrs.frozen
class FileClock:
    """A clock that only moves when told, in whichever process."""

    path: Path

    def __call__(self) -> float:
        return float(self.path.read_text() or 0)

    def advance(self, seconds: float) -> None:
        now = self()
        self.path.write_text(str(now + seconds))


def turn_clocks_to(clock: Callable[[], float]) -> None:
    """In a worker: every clock the engine reads durations off, from the next call on."""
    for name, module in list(sys.modules.items()):
        if name.startswith("engine.") and hasattr(module, "perf_counter"):
            vars(module)["perf_counter"] = clock


@pytest.mark.parametrize("place", PROCESS, ids=str)
def test_latency_in_a_worker_is_the_producers_time_without_the_consumers(
    place: Place, loop: asyncio.Runner, tmp_path: Path
) -> None:
    clock = FileClock(tmp_path / "clock")
    clock.path.write_text("1000")
    with Engine(discover=False, workers=1) as muna:
        reader = Reader(muna, loop, place)
        reader.create(turn_clocks_to, {"clock": clock})
        for kind in YIELDING:
            stream = reader.open(giving(kind, [["mutable"] for _ in range(4)], lambda: clock.advance(1.0)), prefetch=0)
            for number in range(1, 5):
                assert reader.next_prediction(stream).latency == pytest.approx(number * 1_000.0)
                clock.advance(100.0)  # the producer waits until it is asked
            assert reader.rest(stream) == []
        for kind in KINDS:
            made = reader.create(giving(kind, [1, 2, 3], lambda: clock.advance(1.0)))
            assert made.latency == pytest.approx(3_000.0)


# 5.1, what happens at the call


@pytest.mark.parametrize("place", EVERYWHERE, ids=str)
def test_what_is_wrong_with_a_call_is_told_at_the_call(place: Place, reader: Reader) -> None:
    ran: list[str] = []

    def shout(text: str) -> str:
        ran.append(text)
        return text.upper()

    reader.muna.predictors.register("@me/shout", shout, replace=True)
    for open_ in (reader.open, reader.create):
        with pytest.raises(PredictorNotFoundError):
            open_("@me/shoot", {"text": "a"})
        with pytest.raises(InvalidTagError):
            open_("Me Shout!", {"text": "a"})
        with pytest.raises(InvalidInputError):
            open_("@me/shout", {"txt": "a"})
        with pytest.raises(InvalidInputError):
            open_("@me/shout", {"text": 1})
        with pytest.raises(InvalidInputError):
            open_("@me/shout")
        with pytest.raises(ValueError, match="there is no runner 'nowhere': it is one of 'inline', 'thread'"):
            open_("@me/shout", {"text": "a"}, runner="nowhere")
    with pytest.raises(ValueError, match="prefetch must be a whole number"):
        reader.open("@me/shout", {"text": "a"}, prefetch=-1)
    with pytest.raises(ValueError, match="reduce must be one of"):
        reader.create("@me/shout", {"text": "a"}, reduce="lst")
    with pytest.raises(ValueError, match="errors must be 'raise' or 'return'"):
        reader.create("@me/shout", {"text": "a"}, errors="ignore")
    assert ran == []


@pytest.mark.parametrize("place", SYNC, ids=str)
def test_an_async_predictor_is_refused_inline_in_sync_code_with_advice(place: Place, muna: Engine) -> None:
    async def predict() -> None:
        raise AssertionError("it ran")

    for call in (muna.predictions.create, muna.predictions.stream):
        with pytest.raises(ValueError, match=r"async and cannot run inline .* acreate/astream from asyncio"):
            call(predict, runner="inline")


@cells(KINDS)
def test_the_body_starts_at_the_first_pull(kind: str, place: Place, reader: Reader) -> None:
    target, made = counting(kind, ["a"])
    stream = reader.open(target)
    assert (stream.outcome.state, made) == ("pending", [0])
    assert reader.next(stream) == "a"
    assert made == [1]
    assert reader.rest(stream) == []


@cells(KINDS)
def test_a_stream_closed_before_its_first_pull_never_starts(kind: str, place: Place, reader: Reader) -> None:
    target, made = counting(kind, ["a"])
    stream = reader.open(target)
    reader.close(stream)
    assert reader.rest(stream) == []
    assert (stream.outcome.state, made) == ("closed", [0])


WHO: Final[ContextVar[str]] = ContextVar("who")


@cells(KINDS)
def test_the_context_is_that_of_the_call_and_nothing_comes_back(kind: str, place: Place, reader: Reader) -> None:
    seen: list[str] = []

    def look() -> None:
        seen.append(WHO.get())
        WHO.set("the body")

    token = WHO.set("the caller")
    try:
        stream = reader.open(giving(kind, ["a", "b"], look))
        WHO.set("the caller, later")
        reader.rest(stream)
        assert seen == ["the caller", "the body"]
        assert WHO.get() == "the caller, later"
    finally:
        WHO.reset(token)


@cells(KINDS)
def test_the_body_sees_its_own_call(kind: str, place: Place, reader: Reader) -> None:
    seen: list[Any] = []
    stream = reader.open(giving(kind, ["a", "b"], lambda: seen.append(current_call())))
    reader.rest(stream)
    assert {(call.id, call.tag) for call in seen} == {(stream.id, stream.tag)}
    assert current_call() is None


# 5.4, where it runs


def where() -> tuple[str, bool]:
    thread = threading.current_thread()
    name = "caller" if thread is threading.main_thread() else re.sub(r"\W?\d+$", "", thread.name)
    return name, asyncio._get_running_loop() is not None


WHERE: Final = {
    ("def", "sync-default"): ("caller", False),
    ("def", "sync-inline"): ("caller", False),
    ("def", "sync-thread"): ("engine-owner", False),
    ("def", "asyncio-default"): ("engine-owner", False),
    ("def", "asyncio-inline"): ("caller", True),
    ("def", "asyncio-thread"): ("engine-owner", False),
    ("async", "sync-default"): ("engine-loop", True),
    ("async", "sync-thread"): ("engine-loop", True),
    ("async", "asyncio-default"): ("caller", True),
    ("async", "asyncio-inline"): ("caller", True),
    ("async", "asyncio-thread"): ("engine-loop", True),
}


@cells(KINDS)
def test_a_body_runs_where_the_table_says(kind: str, place: Place, reader: Reader) -> None:
    seen: list[tuple[str, bool]] = []
    target = giving(kind, ["a", "b"], lambda: seen.append(where()))
    reader.rest(reader.open(target))
    reader.create(target)
    assert set(seen) == {WHERE["async" if "async" in kind else "def", str(place)]}


def whereabouts() -> tuple[int, bool, bool]:
    is_main = threading.current_thread() is threading.main_thread()
    return os.getpid(), is_main, asyncio._get_running_loop() is not None


@cells(KINDS, PROCESS)
def test_a_body_in_a_worker_runs_in_its_main_thread_and_an_async_one_on_its_loop(
    kind: str, place: Place, reader: Reader
) -> None:
    def returns() -> Any:
        return whereabouts()

    def yields() -> Iterator[Any]:
        yield whereabouts()
        yield whereabouts()

    async def returns_later() -> Any:
        return whereabouts()

    async def yields_later() -> AsyncIterator[Any]:
        yield whereabouts()
        yield whereabouts()

    body: Any = {"return": returns, "yield": yields, "async-return": returns_later, "async-yield": yields_later}[kind]
    [(pid, is_main, is_on_a_loop)] = set(reader.rest(reader.open(body)))
    assert (is_main, is_on_a_loop) == (True, "async" in kind)
    assert pid != os.getpid()


@pytest.mark.parametrize("place", PLACES, ids=str)
def test_what_a_function_returns_is_driven_by_an_owner_of_its_own_colour(place: Place, reader: Reader) -> None:
    seen: list[tuple[str, bool]] = []
    gives_async = giving("async-yield", ["a", "b"], lambda: seen.append(where()))
    gives_sync = giving("yield", ["a", "b"], lambda: seen.append(where()))

    def returns() -> Any:
        return gives_async()

    async def returns_later() -> Any:
        return gives_sync()

    if place == Place("sync", "inline"):
        with pytest.raises(ValueError, match="cannot run inline in sync code"):
            reader.next(reader.open(returns))
        return
    assert reader.rest(reader.open(returns)) == ["a", "b"]
    assert set(seen) == {("caller", True) if place == Place("asyncio", "inline") else ("engine-loop", True)}
    seen.clear()
    assert reader.rest(reader.open(returns_later)) == ["a", "b"]
    assert set(seen) == {("caller", True) if place == Place("asyncio", "inline") else ("engine-owner", False)}


@pytest.mark.parametrize("place", [PLACES[0], PROCESS[0]], ids=str)
def test_an_async_predictor_works_from_sync_code_inside_a_running_loop(place: Place, reader: Reader) -> None:
    async def predict() -> str:
        await asyncio.sleep(0)
        return "from a notebook"

    async def cell() -> Any:
        return reader.create(predict).value

    assert asyncio.run(cell()) == "from a notebook"


def test_a_sync_call_of_an_async_predictor_on_the_engines_own_loop_is_refused_at_once(muna: Engine) -> None:
    async def inner() -> str:
        return "never"

    async def outer() -> Any:
        return muna.predictions.create(inner).value

    with pytest.raises(NestingError, match="use `await acreate"):
        muna.predictions.create(outer)


class Ticker:
    """Counts how often a loop went round while something was waited for."""

    def __init__(self, gate: Gate) -> None:
        self._gate = gate
        self.rounds = 0

    async def run(self) -> None:
        await self._gate.await_until_reached()
        for _ in range(20):
            self.rounds += 1
            await asyncio.sleep(0)
        self._gate.open()


def waiting_body(shape: str, gate: Any) -> Any:
    def returns() -> str:
        gate.wait()
        return "done"

    def yields() -> Iterator[str]:
        gate.wait()
        yield "done"

    def cleans_up() -> Iterator[str]:
        try:
            yield "done"
        finally:
            gate.wait()

    class SetsUp:
        def setup(self) -> None:
            gate.wait()

        def predict(self) -> str:
            return "done"

    return {"return": returns, "yield": yields, "setup": SetsUp, "finally": cleans_up}[shape]


@pytest.mark.parametrize("runner", [None, "thread"])
@pytest.mark.parametrize("shape", ["return", "yield", "setup", "finally"])
@pytest.mark.parametrize("consume", ["acreate", "astream"])
def test_the_event_loop_turns_while_a_sync_body_blocks(
    consume: str, shape: str, runner: str | None, muna: Engine
) -> None:
    async def main() -> None:
        gate = Gate()
        target, ticker = waiting_body(shape, gate), Ticker(gate)
        ticking = asyncio.create_task(ticker.run())
        if consume == "acreate":
            assert (await muna.predictions.acreate(target, runner=runner)).value == "done"
        else:
            assert [each async for each in muna.predictions.astream(target, runner=runner).values()] == ["done"]
        await ticking
        assert ticker.rounds == 20

    asyncio.run(main())


@pytest.mark.parametrize("action", ["aload", "aclose", "aunload"])
def test_the_event_loop_turns_while_the_engine_loads_closes_and_unloads(action: str, muna: Engine) -> None:
    async def main() -> None:
        gate = Gate()
        ticker = Ticker(gate)

        class Slow:
            def setup(self) -> None:
                if action == "aload":
                    gate.wait()

            def predict(self) -> str:
                return "done"

            def teardown(self) -> None:
                if action == "aunload":
                    gate.wait()

        stream = muna.predictions.astream(waiting_body("finally", gate))
        if action != "aload":
            await muna.aload(Slow)
        if action == "aclose":
            await anext(stream)
        ticking = asyncio.create_task(ticker.run())
        actions = {"aload": lambda: muna.aload(Slow), "aunload": lambda: muna.aunload(Slow), "aclose": stream.aclose}
        await actions[action]()
        await ticking
        assert ticker.rounds == 20
        gate.open()
        await stream.aclose()

    asyncio.run(main())


def waits_for(reached: Path, opened: Path) -> None:
    """The gate of a body in a worker."""
    reached.touch()
    until(opened.exists, "the gate is opened")


async def let_the_loop_turn(reached: Path, opened: Path) -> None:
    await auntil(reached.exists)
    for _ in range(20):
        await asyncio.sleep(0)
    opened.touch()  # noqa: ASYNC240 - an empty file


@pytest.mark.parametrize("shape", ["return", "yield", "setup", "finally"])
@pytest.mark.parametrize("consume", ["acreate", "astream"])
def test_the_event_loop_turns_while_a_body_in_a_worker_blocks(
    consume: str, shape: str, crew: Engine, loop: asyncio.Runner, tmp_path: Path
) -> None:
    gate = tmp_path / "reached", tmp_path / "opened"

    class Blocking:
        def wait(self) -> None:
            waits_for(*gate)

    target: Any = waiting_body(shape, Blocking())

    async def main() -> None:
        turning = asyncio.create_task(let_the_loop_turn(*gate))
        if consume == "acreate":
            assert (await crew.predictions.acreate(target, runner="process")).value == "done"
        else:
            stream = crew.predictions.astream(target, runner="process")
            assert [each async for each in stream.values()] == ["done"]
        await turning

    loop.run(main())
    crew.unload(target, runner="process")


@pytest.mark.parametrize("action", ["aload", "aunload", "aclose of a stream", "aclose"])
def test_the_event_loop_turns_while_a_worker_loads_unloads_and_ends(action: str, tmp_path: Path) -> None:
    gate = tmp_path / "reached", tmp_path / "opened"

    class Slow:
        def setup(self) -> None:
            if action == "aload":
                waits_for(*gate)

        def predict(self) -> Iterator[str]:
            try:
                yield "done"
            finally:
                if action == "aclose of a stream":
                    waits_for(*gate)

        def teardown(self) -> None:
            if action in {"aunload", "aclose"}:
                waits_for(*gate)

    async def main() -> None:
        muna = Engine(discover=False, workers=1, grace=TIMEOUT)
        if action != "aload":
            await muna.aload(Slow, runner="process")
        stream = muna.predictions.astream(Slow, runner="process")
        if action == "aclose of a stream":
            await anext(stream)
        actions = {
            "aload": lambda: muna.aload(Slow, runner="process"),
            "aunload": lambda: muna.aunload(Slow, runner="process"),
            "aclose of a stream": stream.aclose,
            "aclose": muna.aclose,
        }
        turning = asyncio.create_task(let_the_loop_turn(*gate))
        await actions[action]()
        await turning
        await stream.aclose()
        await muna.aclose()

    asyncio.run(main())


# 5.7 and 5.8, how a stream ends


def gated(kind: str, gate: Gate, left: list[str]) -> Callable[[], Any]:
    """A body that gives one partial and waits at the gate; it notes its clean-up in `left`."""

    def yields() -> Iterator[str]:
        try:
            yield "first"
            gate.wait()
            yield "second"
        finally:
            left.append("finally")

    async def yields_later() -> AsyncIterator[str]:
        try:
            yield "first"
            await gate.await_()
            yield "second"
        finally:
            left.append("finally")

    return yields if kind == "yield" else yields_later


@pytest.mark.parametrize("runner", [None, "thread"])
@pytest.mark.parametrize("kind", YIELDING)
def test_a_cancelled_task_cancels_the_prediction_it_waits_for(kind: str, runner: str | None, muna: Engine) -> None:
    gate = Gate()
    left: list[str] = []

    async def main() -> None:
        stream = muna.predictions.astream(gated(kind, gate, left), runner=runner)
        assert (await anext(stream)).value == "first"
        waiting = asyncio.ensure_future(anext(stream))
        await gate.await_until_reached()
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert stream.outcome.state == "cancelled"
        assert [each async for each in stream] == []
        gate.open()
        await auntil(lambda: left == ["finally"])

    asyncio.run(main())


@cells(YIELDING, elsewhere=True)
def test_cancel_reaches_a_consumer_that_waits(kind: str, place: Place, reader: Reader) -> None:
    gate = Gate()
    left: list[str] = []
    stream = reader.open(gated(kind, gate, left))
    assert reader.next(stream) == "first"

    def cancel() -> None:
        gate.wait_until_reached()
        for _ in range(3):
            stream.cancel()

    canceller = threading.Thread(target=cancel)
    canceller.start()
    with pytest.raises(PredictionCancelledError):
        reader.next(stream)
    canceller.join()
    gate.open()
    assert reader.rest(stream) == []
    assert stream.outcome.state == "cancelled"
    until(lambda: left == ["finally"])


def test_cancel_wakes_an_async_body_in_its_consumers_own_task(muna: Engine) -> None:
    gate = Gate()
    left: list[str] = []

    async def main() -> None:
        stream = muna.predictions.astream(gated("async-yield", gate, left))
        await anext(stream)
        waiting = asyncio.ensure_future(anext(stream))
        await gate.await_until_reached()
        stream.cancel()
        with pytest.raises(PredictionCancelledError):
            await waiting
        assert left == ["finally"]
        assert [each async for each in stream] == []

    asyncio.run(main())


@cells(YIELDING, EVERYWHERE)
def test_cancel_before_the_first_pull_is_told_and_nothing_starts(kind: str, place: Place, reader: Reader) -> None:
    target, made = counting(kind, ["a"])
    stream = reader.open(target)
    stream.cancel()
    with pytest.raises(PredictionCancelledError):
        reader.next(stream)
    assert reader.rest(stream) == []
    assert (stream.outcome.state, made) == ("cancelled", [0])


@cells(YIELDING, EVERYWHERE)
def test_cancel_after_the_end_changes_nothing(kind: str, place: Place, reader: Reader) -> None:
    stream = reader.open(giving(kind, ["a"]))
    assert reader.rest(stream) == ["a"]
    stream.cancel()
    reader.close(stream)
    assert reader.rest(stream) == []
    assert stream.outcome.state == "done"


@pytest.mark.parametrize("runner", ["thread", None])
def test_close_leaves_a_body_that_does_not_stop_within_the_grace(
    runner: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    gate = Gate()
    left: list[str] = []
    body = gated("yield", gate, left)
    with Engine(discover=False, grace=0.02) as muna:
        stream = muna.predictions.stream(body, runner="thread")
        values = stream.values()
        assert next(values) == "first"
        until(lambda: gate.is_reached)
        stream.close()
        assert (stream.outcome.state, left) == ("closed", [])
        assert "did not stop within 0.02 s" in caplog.text
        gate.open()
        until(lambda: left == ["finally"])


@cells(YIELDING)
def test_an_error_of_the_clean_up_comes_out_of_close(kind: str, place: Place, reader: Reader) -> None:
    def yields() -> Iterator[list[str]]:
        try:
            yield ["mutable"]
            yield ["never"]
        finally:
            raise OSError("in clean-up")

    async def yields_later() -> AsyncIterator[list[str]]:
        try:
            yield ["mutable"]
            yield ["never"]
        finally:
            raise OSError("in clean-up")

    stream = reader.open(yields if kind == "yield" else yields_later)
    reader.next(stream)
    with pytest.raises(OSError, match="in clean-up"):
        reader.close(stream)
    assert stream.outcome.state == "closed"
    reader.close(stream)


@pytest.mark.parametrize("place", [*SYNC, PROCESS[0]], ids=str)
def test_an_error_of_the_clean_up_keeps_the_one_in_flight_as_its_context(place: Place, reader: Reader) -> None:
    def yields() -> Iterator[list[str]]:
        try:
            yield ["mutable"]
        finally:
            raise OSError("in clean-up")

    with pytest.raises(OSError, match="in clean-up") as caught:  # noqa: PT012, SIM117
        with reader.open(yields, prefetch=0) as stream:
            next(stream)
            raise LookupError("in flight")
    assert isinstance(caught.value.__context__, LookupError)


@cells(YIELDING)
def test_a_consumer_that_raises_closes_its_stream_on_the_way_out(kind: str, place: Place, muna: Engine) -> None:
    left: list[str] = []
    gate = Gate()
    target = gated(kind, gate, left)

    def consume() -> None:
        with muna.predictions.stream(target, runner=place.runner) as stream:
            next(stream)
            gate.open()
            raise LookupError

    async def aconsume() -> None:
        async with muna.predictions.astream(target, runner=place.runner) as stream:
            await anext(stream)
            gate.open()
            raise LookupError

    with pytest.raises(LookupError):
        consume() if place.consumer == "sync" else asyncio.run(aconsume())
    assert left == ["finally"]


@cells(YIELDING, EVERYWHERE)
def test_leaving_a_loop_keeps_a_stream_that_is_still_referred_to(kind: str, place: Place, reader: Reader) -> None:
    stream = reader.open(giving(kind, range(5)))
    assert reader.next(stream) == 0
    assert reader.next_prediction(stream).index == 1
    assert reader.next(stream) == 2
    assert stream.outcome.state == "running"
    assert reader.rest(stream) == [3, 4]


@cells(YIELDING, EVERYWHERE)
def test_two_iterators_of_one_stream_share_its_position(kind: str, place: Place, reader: Reader) -> None:
    stream = reader.open(giving(kind, range(4)))
    assert [reader.next(stream), reader.next_prediction(stream).value] == [0, 1]
    assert [reader.next_prediction(stream).value, reader.next(stream)] == [2, 3]
    assert reader.rest(stream) == []


@cells(KINDS)
def test_a_body_starts_once_per_call_whatever_happens(kind: str, place: Place, reader: Reader) -> None:
    starts: list[int] = []

    def fail() -> None:
        starts.append(1)
        raise ConnectionError("flaky")

    with pytest.raises(ConnectionError):
        reader.create(giving(kind, ["a"], fail))
    stream = reader.open(giving(kind, ["a"], fail))
    with pytest.raises(ConnectionError):
        reader.next(stream)
    assert reader.rest(stream) == []
    assert starts == [1, 1]


# 5.10 and 5.11, slots and set-up


@cells(YIELDING, EVERYWHERE)
def test_a_call_that_would_wait_for_its_own_thread_or_task_is_refused(
    kind: str, place: Place, reader: Reader, monkeypatch: pytest.MonkeyPatch
) -> None:
    muna = reader.muna
    single = Predictor("@me/single", giving(kind, [["mutable"]] * 3), concurrency=1)
    loaded = loaded_of(muna, single)
    for slots in (loaded.slots, loaded.slots_elsewhere["process"]):
        monkeypatch.setattr(slots, "grace", 0.01)  # for a thread, a grace has to pass

    def consume() -> None:
        with muna.predictions.stream(single, runner=place.runner) as stream:
            next(stream)
            with pytest.raises(NestingError, match=re.escape(stream.id)):
                muna.predictions.create(single, runner=place.runner)
        assert muna.predictions.create(single, runner=place.runner).value == ["mutable"]

    async def aconsume() -> None:
        async with muna.predictions.astream(single, runner=place.runner) as stream:
            await anext(stream)
            with pytest.raises(NestingError, match=re.escape(stream.id)):
                await muna.predictions.acreate(single, runner=place.runner)
        assert (await muna.predictions.acreate(single, runner=place.runner)).value == ["mutable"]

    consume() if place.consumer == "sync" else asyncio.run(aconsume())


class Census:
    """How many are in at a time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self.most = 0

    def __enter__(self) -> None:
        with self._lock:
            self._inside += 1
            self.most = max(self.most, self._inside)

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1


@cells(("return", "async-return"))
def test_no_more_calls_run_at_a_time_than_the_author_allows(kind: str, place: Place, muna: Engine) -> None:
    census = Census()

    def returns() -> str:
        with census:
            time.sleep(0)  # let other threads have a go
        return "done"

    async def returns_later() -> str:
        with census:
            await asyncio.sleep(0)
        return "done"

    double = Predictor("@me/double", returns if kind == "return" else returns_later, concurrency=2)

    async def gather() -> list[Any]:
        return await asyncio.gather(*(muna.predictions.acreate(double, runner=place.runner) for _ in range(40)))

    def create(_number: int) -> Any:
        return muna.predictions.create(double, runner=place.runner)

    if place.consumer == "asyncio":
        made = asyncio.run(gather())
    else:
        with ThreadPoolExecutor(4) as threads:
            made = list(threads.map(create, range(40)))
    assert [each.value for each in made] == ["done"] * 40
    assert 1 <= census.most <= 2


@cells(("return", "async-return"), PROCESS)
def test_no_more_calls_run_at_a_time_in_all_workers_than_the_author_allows(
    kind: str, place: Place, crew: Engine, tmp_path: Path
) -> None:
    """The file is there as long as one body runs: a second one could not make it."""
    inside = tmp_path / "inside"

    def returns() -> int:
        inside.touch(exist_ok=False)
        time.sleep(0)
        inside.unlink()
        return os.getpid()

    async def returns_later() -> int:
        inside.touch(exist_ok=False)
        await asyncio.sleep(0)
        inside.unlink()
        return os.getpid()

    single = Predictor("@me/single-file", returns if kind == "return" else returns_later, concurrency=1)

    async def gather() -> list[Any]:
        return await asyncio.gather(*(crew.predictions.acreate(single, runner="process") for _ in range(40)))

    def create(_number: int) -> Any:
        return crew.predictions.create(single, runner="process")

    if place.consumer == "asyncio":
        made = asyncio.run(gather())
    else:
        with ThreadPoolExecutor(4) as threads:
            made = list(threads.map(create, range(40)))
    assert len(made) == 40


CLASSES: Final = ("setup", "async-setup")


def counted_class(kind: str, done: list[str]) -> type:
    class Sync:
        def setup(self) -> None:
            done.append("setup")

        def predict(self) -> str:
            done.append("predict")
            return "done"

        def teardown(self) -> None:
            done.append("teardown")

    class Async:
        async def setup(self) -> None:
            done.append("setup")

        async def predict(self) -> str:
            done.append("predict")
            return "done"

        async def teardown(self) -> None:
            done.append("teardown")

    return Sync if kind == "setup" else Async


@cells(CLASSES)
def test_a_class_is_set_up_once_and_torn_down_with_its_engine(kind: str, place: Place, loop: asyncio.Runner) -> None:
    done: list[str] = []
    target = counted_class(kind, done)
    with Engine(discover=False) as muna:
        reader = Reader(muna, loop, place)
        reader.create(target)
        reader.rest(reader.open(target))
        assert done == ["setup", "predict", "predict"]
    assert done == ["setup", "predict", "predict", "teardown"]


@cells(CLASSES)
def test_unload_tears_down_and_the_next_call_sets_up_again(
    kind: str, place: Place, reader: Reader, muna: Engine
) -> None:
    done: list[str] = []
    target = counted_class(kind, done)
    muna.load(target)
    muna.unload(target)
    muna.unload(target)
    reader.create(target)
    assert done == ["setup", "teardown", "setup", "predict"]


@pytest.mark.parametrize("place", PLACES, ids=str)
def test_a_failed_setup_is_reported_and_tried_again_by_the_next_call(place: Place, reader: Reader) -> None:
    attempts: list[int] = []

    class Flaky:
        def setup(self) -> None:
            attempts.append(1)
            if len(attempts) == 1:
                raise ConnectionError("the model server is not up")

        def predict(self) -> str:
            return "done"

    with pytest.raises(ConnectionError):
        reader.create(Flaky)
    assert reader.create(Flaky).value == "done"
    assert len(attempts) == 2


@pytest.mark.parametrize("kind", CLASSES)
def test_concurrent_first_calls_share_one_setup(kind: str, muna: Engine) -> None:
    gate = Gate()
    setups: list[int] = []

    class Sync:
        def setup(self) -> None:
            setups.append(1)
            gate.wait()

        def predict(self) -> str:
            return "done"

    class Async:
        async def setup(self) -> None:
            setups.append(1)
            await gate.await_()

        async def predict(self) -> str:
            return "done"

    target = Predictor("@me/shared", Sync if kind == "setup" else Async, concurrency=8)
    found: list[Any] = []
    threads = [threading.Thread(target=lambda: found.append(muna.predictions.create(target).value)) for _ in range(4)]
    for thread in threads:
        thread.start()
    gate.wait_until_reached()
    gate.open()
    for thread in threads:
        thread.join()
    assert (found, setups) == (["done"] * 4, [1])


# Callers may ask for anything by any name


@pytest.mark.parametrize("place", EVERYWHERE, ids=str)
def test_a_predictor_may_have_parameters_of_any_name(place: Place, reader: Reader) -> None:
    def predict(self: int, tag: int, inputs: int, *, runner: int, reduce: int, check: int, args: int) -> int:
        return self + tag + inputs + runner + reduce + check + args

    names = ("self", "tag", "inputs", "runner", "reduce", "check", "args")
    assert reader.create(predict, dict.fromkeys(names, 1)).value == 7


@pytest.mark.parametrize("place", EVERYWHERE, ids=str)
def test_a_plain_function_runs_without_being_registered_under_its_own_name(place: Place, reader: Reader) -> None:
    def predict() -> int:
        return 1

    found = reader.create(predict)
    assert found.tag == f"{__name__}:{predict.__qualname__}"
    assert uuid.uuid4().hex not in found.id


@pytest.mark.parametrize("place", EVERYWHERE, ids=str)
def test_what_is_no_predictor_at_all_is_refused(place: Place, reader: Reader) -> None:
    for nothing in (None, 5, object(), b"@me/shout"):
        with pytest.raises((EngineError, TypeError)):
            reader.create(nothing)
