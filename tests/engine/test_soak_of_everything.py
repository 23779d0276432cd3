"""Calls of every kind, by every consumer, in every place, all at once and at random, held against a model of each.

Threads and an event loop call, leave and cancel; workers are killed; one engine stays, another comes and goes. Each
call must give what its script says, or the one error that what was done to it explains. At the end nothing may have
grown: threads, descriptors, processes, memory, or anything that the engine keeps. A short run is part of the suite; the
hypothesis profile `nightly` makes it last ten minutes.
"""

from __future__ import annotations

import asyncio
import contextlib
import faulthandler
import gc
import itertools
import logging
import os
import random
import signal
import sys
import threading
import time
import traceback
import weakref
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import Any, Final

import attrs
import pytest
from hypothesis import settings

from engine import (
    AsyncPredictionStream,
    Engine,
    EngineClosedError,
    NoPartialsError,
    PredictionCancelledError,
    PredictionStream,
    WorkerLostError,
)
from tests._kit.internals import executions_of, workers_of
from tests._kit.processes import child_processes, open_descriptors
from tests._kit.waits import TIMEOUT
from tests.engine.soaked import ASYNC, LIVES, MIXED, SYNC, partial_of

IS_NIGHTLY: Final = settings().max_examples > 1_000
SECONDS: Final = float(os.environ.get("SOAK_SECONDS", "600"))  # of a nightly run
LIMIT: Final = SECONDS + 120.0 if IS_NIGHTLY else 60.0  # seconds until it counts as stuck
SEED: Final = 4711
ROUND: Final = 240  # calls of a round, of which the suite runs one after another that warms up
SIDES: Final = 4  # threads that call at one time; one of them has an event loop, with as many tasks
EACH_KILL: Final = 150  # calls, on average
EACH_ENGINE: Final = 120  # calls that an engine serves, on average, before it is closed
SLACK: Final = 40  # how much longer anything the engine keeps may be after a round


# What runs, and what must arrive.


@attrs.frozen
class Script:
    """What a body does: its partials, and how it ends."""

    kind: str
    sort: str
    count: int
    fails: bool

    @property
    def inputs(self) -> dict[str, Any]:
        return {"sort": self.sort, "count": self.count, "fails": self.fails}

    @property
    def partials(self) -> list[Any]:
        if self.kind in {"plain", "aplain"}:
            return [] if self.fails else [partial_of(self.sort, self.count)]
        return [partial_of(self.sort, index) for index in range(self.count)]

    @property
    def returned(self) -> Any:
        if self.kind in {"acounting", "gives_acounting", "AsyncModel"}:
            return None
        return partial_of(self.sort, self.count)


TARGETS: Final[dict[str, Any]] = {**SYNC, **ASYNC, **MIXED}


def new_engine() -> Engine:
    muna = Engine(discover=False, workers=2, grace=2.0)
    for kind, target in TARGETS.items():
        concurrency = SIDES * SIDES if isinstance(target, type) else None
        muna.predictors.register(f"@soak/{kind.lower()}", target, concurrency=concurrency)
    return muna


@attrs.define
class Soak:
    """One run: its engines, and what became of its calls."""

    lasting: Engine
    passing: Engine
    outcomes: Counter[str] = attrs.field(factory=Counter)
    killed: set[int] = attrs.field(factory=set)
    closed: list[Engine] = attrs.field(factory=list)
    wrong: list[str] = attrs.field(factory=list)
    lock: threading.Lock = attrs.field(factory=threading.Lock)

    @property
    def calls(self) -> int:
        return sum(self.outcomes.values())

    def note(self, what: str) -> None:
        with self.lock:
            self.outcomes[what] += 1

    def judge(self, error: BaseException, muna: Engine, name: str) -> None:
        """Note a call that ended in an error: explained by what was done to it, or wrong."""
        if isinstance(error, WorkerLostError) and error.pid in self.killed:
            self.note("lost")
        elif isinstance(error, EngineClosedError) and muna in self.closed:
            self.note("closed")
        else:
            text = "".join(traceback.format_exception(error)[-12:])
            self.wrong.append(f"{name}: {text}")
            self.note("wrong")


# Consumers. Each makes one call and asserts what it brought.


@attrs.frozen
class Case:
    """One call to be made."""

    muna: Engine
    dice: random.Random
    script: Script
    place: str | None
    target: Any

    @classmethod
    def drawn(cls, muna: Engine, dice: random.Random, *, is_asyncio: bool) -> Case:
        place = dice.choice((None, None, "inline", "thread", "thread", "process", "process"))
        kinds = tuple(TARGETS)
        if place == "inline":  # what else there is, is refused there
            kinds = (*SYNC, *ASYNC) if is_asyncio else tuple(SYNC)
        kind = dice.choice(kinds)
        sort = dice.choice(("number", "number", "text", "large"))
        count = dice.choice((0, 1, 2, 3, 10, 10 if sort == "large" else 300))
        target = dice.choice((f"@soak/{kind.lower()}", TARGETS[kind]))
        return cls(muna, dice, Script(kind, sort, count, dice.random() < 0.15), place, target)

    @property
    def name(self) -> str:
        return f"{self.script} {self.place} {self.target}"

    def stream(self) -> PredictionStream:
        prefetch = self.dice.choice((None, None, None, 0, 3))
        return self.muna.predictions.stream(self.target, self.script.inputs, runner=self.place, prefetch=prefetch)

    def astream(self) -> AsyncPredictionStream:
        prefetch = self.dice.choice((None, None, None, 0, 3))
        return self.muna.predictions.astream(self.target, self.script.inputs, runner=self.place, prefetch=prefetch)

    def check_values(self, taken: list[Any], stream: Any) -> None:
        """What a stream gave that was read to its end."""
        assert taken == self.script.partials
        assert stream.outcome.count == len(taken)
        assert stream.outcome.state == ("failed" if self.script.fails else "done")
        if not self.script.fails:
            assert stream.outcome.returned == self.script.returned

    def check_prefix(self, taken: list[Any], stream: Any, states: set[str]) -> None:
        """What one gave that was left, unless the end of its engine came first."""
        if isinstance(stream.outcome.exception, EngineClosedError):
            raise stream.outcome.exception
        assert taken == self.script.partials[: len(taken)]
        assert stream.outcome.state in states, stream.outcome.state

    def expected(self, reduce: str) -> Any:
        if reduce == "collect":
            return self.script.partials
        if reduce == "returned":
            return self.script.returned
        return self.script.partials[-1] if self.script.partials else NoPartialsError


def failing(script: Script) -> contextlib.AbstractContextManager[Any]:
    return pytest.raises(LookupError, match=str(script.count)) if script.fails else contextlib.nullcontext()


REDUCERS: Final = ("last", "collect", "returned")


def create(case: Case) -> None:
    reduce = case.dice.choice(REDUCERS)
    options: dict[str, Any] = {"runner": case.place, "reduce": reduce}
    check_created(case, reduce, lambda: case.muna.predictions.create(case.target, case.script.inputs, **options))


def check_created(case: Case, reduce: str, call: Callable[[], Any]) -> None:
    with failing(case.script):
        expected = case.expected(reduce)
        if expected is NoPartialsError and not case.script.fails:
            with pytest.raises(NoPartialsError):
                call()
        else:
            assert call().value == expected


def create_with_its_error(case: Case) -> None:
    prediction = case.muna.predictions.create(
        case.target, case.script.inputs, runner=case.place, reduce="collect", errors="return"
    )
    if isinstance(prediction.exception, (WorkerLostError, EngineClosedError)):
        raise prediction.exception
    assert (prediction.exception is not None) == case.script.fails
    assert prediction.value == (case.script.partials or (None if case.script.fails else []))


def read_values(case: Case) -> None:
    stream = case.stream()
    taken: list[Any] = []
    with failing(case.script):
        taken.extend(stream.values())
    case.check_values(taken, stream)


def read_predictions(case: Case) -> None:
    stream = case.stream()
    taken: list[Any] = []
    with failing(case.script):
        taken.extend((each.index, each.value) for each in stream)
    assert [index for index, _ in taken] == list(range(len(taken)))
    case.check_values([value for _, value in taken], stream)


def read_with_next(case: Case) -> None:
    stream = case.stream()
    taken: list[Any] = []
    with failing(case.script), contextlib.suppress(StopIteration):
        while True:
            taken.append(next(stream).value)
    case.check_values(taken, stream)


def leave_by_close(case: Case) -> None:
    with case.stream() as stream:
        wanted = case.dice.randrange(len(case.script.partials) + 1)
        taken = [value for _, value in zip(range(wanted), stream.values(), strict=False)]
    assert len(taken) == wanted
    case.check_prefix(taken, stream, {"closed"})


def leave_by_break(case: Case) -> None:
    stream = case.stream()
    stops = case.dice.randrange(1, 5)
    taken: list[Any] = []
    with failing(case.script) if stops > len(case.script.partials) else contextlib.nullcontext():
        for value in stream.values():
            taken.append(value)
            if len(taken) == stops:
                break
    assert taken == case.script.partials[:stops]


def leave_by_cancel(case: Case) -> None:
    stream = case.stream()
    taken: list[Any] = []
    stops = case.dice.randrange(len(case.script.partials) + 1)
    for value in stream.values() if stops else ():
        taken.append(value)
        if len(taken) == stops:
            break
    stream.cancel()
    with pytest.raises(PredictionCancelledError):
        taken.extend(stream.values())
    assert list(stream) == []
    assert len(taken) == stops
    case.check_prefix(taken, stream, {"cancelled"})


def cancelled_from_elsewhere(case: Case) -> None:
    stream = case.stream()
    taken: list[Any] = []
    timer = threading.Timer(case.dice.random() * 0.003, stream.cancel)
    timer.start()
    try:
        with contextlib.suppress(PredictionCancelledError), failing_perhaps(case.script):
            taken.extend(stream.values())
    finally:
        timer.join()
    case.check_prefix(taken, stream, {"cancelled", "done", "failed"})
    if stream.outcome.state == "done":
        assert taken == case.script.partials


def failing_perhaps(script: Script) -> contextlib.AbstractContextManager[Any]:
    return contextlib.suppress(LookupError) if script.fails else contextlib.nullcontext()


def never_pulled(case: Case) -> None:
    stream = case.stream()
    case.dice.choice((stream.close, stream.cancel, int))()


WAYS: Final[tuple[Callable[[Case], None], ...]] = (
    *(create, create, create, create_with_its_error, read_values, read_values, read_predictions, read_with_next),
    *(leave_by_close, leave_by_break, leave_by_cancel, cancelled_from_elsewhere, never_pulled),
)


async def acreate(case: Case) -> None:
    reduce = case.dice.choice(REDUCERS)
    options: dict[str, Any] = {"runner": case.place, "reduce": reduce}
    made = await asyncio.gather(
        case.muna.predictions.acreate(case.target, case.script.inputs, **options), return_exceptions=True
    )

    def call() -> Any:
        if isinstance(made[0], BaseException):
            raise made[0]
        return made[0]

    check_created(case, reduce, call)


async def aread_values(case: Case) -> None:
    stream = case.astream()
    taken: list[Any] = []
    with failing(case.script):
        async for value in stream.values():
            taken.append(value)  # noqa: PERF401 - what came before an error counts
    case.check_values(taken, stream)


async def aread_with_next(case: Case) -> None:
    stream = await case.astream()
    taken: list[Any] = []
    with failing(case.script), contextlib.suppress(StopAsyncIteration):
        while True:
            taken.append((await anext(stream)).value)
    case.check_values(taken, stream)


async def aleave_by_close(case: Case) -> None:
    stops = case.dice.randrange(1, 5)
    taken: list[Any] = []
    with failing(case.script) if stops > len(case.script.partials) else contextlib.nullcontext():
        async with case.astream() as stream:
            async for value in stream.values():
                taken.append(value)
                if len(taken) == stops:
                    break
    assert taken == case.script.partials[:stops]


async def aleave_by_drop(case: Case) -> None:
    stops = case.dice.randrange(1, 5)
    taken: list[Any] = []
    with failing(case.script) if stops > len(case.script.partials) else contextlib.nullcontext():
        async for value in case.astream().values():
            taken.append(value)
            if len(taken) == stops:
                break
    assert taken == case.script.partials[:stops]


async def acancelled(case: Case) -> None:
    """The task that consumes is cancelled at some moment."""
    taken: list[Any] = []
    stream = case.astream()

    async def consume() -> None:
        async for value in stream.values():
            taken.append(value)  # noqa: PERF401 - what came before the cancellation counts

    task = asyncio.ensure_future(consume())
    await asyncio.sleep(case.dice.choice((0.0, 0.0, 0.001, 0.003)))
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError), failing_perhaps(case.script):
        await task
    case.check_prefix(taken, stream, {"pending", "cancelled", "done", "failed"})
    await stream.aclose()


async def aleave_by_cancel(case: Case) -> None:
    stream = case.astream()
    taken: list[Any] = []
    if case.script.partials:
        taken.append((await anext(stream)).value)
    stream.cancel()
    with pytest.raises(PredictionCancelledError):
        await anext(stream)
    with pytest.raises(StopAsyncIteration):
        await anext(stream)
    case.check_prefix(taken, stream, {"cancelled"})


AWAYS: Final[tuple[Callable[[Case], Awaitable[None]], ...]] = (
    *(acreate, acreate, acreate, aread_values, aread_values, aread_with_next),
    *(aleave_by_close, aleave_by_drop, aleave_by_cancel, acancelled),
)


# Who calls.


def draw(soak: Soak, dice: random.Random, *, is_asyncio: bool) -> Case:
    return Case.drawn(soak.lasting if dice.random() < 0.7 else soak.passing, dice, is_asyncio=is_asyncio)


def call_from_a_thread(soak: Soak, calls: int, seed: int) -> None:
    dice = random.Random(seed)
    for _ in range(calls):
        case, way = draw(soak, dice, is_asyncio=False), dice.choice(WAYS)
        try:
            way(case)
        except BaseException as error:
            soak.judge(error, case.muna, f"{way.__name__} {case.name}")
        else:
            soak.note("right")


def call_from_a_loop(soak: Soak, calls: int, seed: int) -> None:
    async def some(number: int) -> None:
        dice = random.Random(seed + number)
        for _ in range(calls // SIDES):
            case, way = draw(soak, dice, is_asyncio=True), dice.choice(AWAYS)
            try:
                await way(case)
            except BaseException as error:
                soak.judge(error, case.muna, f"{way.__name__} {case.name}")
            else:
                soak.note("right")

    async def main() -> None:
        await asyncio.gather(*map(some, range(SIDES)))

    asyncio.run(main())


def disturb(soak: Soak, is_over: threading.Event, seed: int) -> None:
    """Kill a worker, or close the engine that passes and make another, every so many calls."""
    dice = random.Random(seed)
    kill_due, close_due = EACH_KILL // 2, EACH_ENGINE // 2
    while not is_over.wait(0.002):
        if soak.calls >= kill_due:
            kill_due += EACH_KILL
            workers = workers_of(dice.choice((soak.lasting, soak.passing)))
            if workers:
                victim = dice.choice(workers)
                soak.killed.add(victim.pid)
                victim.signal(signal.SIGKILL)
        if soak.calls >= close_due:
            close_due += EACH_ENGINE
            gone, soak.passing = soak.passing, new_engine()
            soak.closed.append(gone)
            if dice.random() < 0.5:
                gone.close()
            else:
                asyncio.run(gone.aclose())


def run(soak: Soak, calls: int, seed: int) -> None:
    is_over = threading.Event()
    sides = [side(call_from_a_thread, soak, calls // SIDES, seed + number) for number in range(SIDES - 1)]
    sides.append(side(call_from_a_loop, soak, calls // SIDES, seed + SIDES))
    disturber = side(disturb, soak, is_over, seed)
    for thread in sides:
        join(thread, soak)
    is_over.set()
    join(disturber, soak)


def side(action: Callable[..., None], *args: Any) -> threading.Thread:
    thread = threading.Thread(target=action, args=args, name=action.__name__, daemon=True)
    thread.start()
    return thread


def join(thread: threading.Thread, soak: Soak) -> None:
    """Wait for a thread as long as calls still end."""
    seen = -1
    while thread.is_alive():
        thread.join(TIMEOUT)
        if thread.is_alive() and seen == soak.calls:
            faulthandler.dump_traceback(file=2)
            pytest.fail(f"{thread.name} hangs after {soak.calls} calls: {soak.wrong}")
        seen = soak.calls


# What is left.


def kept(muna: Engine) -> Counter[str]:
    """How long everything is that an engine, or a module of the engine's, keeps: by class and attribute."""
    found: Counter[str] = Counter()
    seen: set[int] = set()
    waiting: list[tuple[str, Any]] = [("Engine", muna)]
    for name, module in tuple(sys.modules.items()):
        if name.partition(".")[0] == "engine" and module is not None:
            waiting.extend((f"{name}.{each}", value) for each, value in tuple(vars(module).items()))
    while waiting:
        name, value = waiting.pop()
        if (
            id(value) in seen
            or isinstance(value, (type, str, bytes))
            or (isinstance(value, Engine) and value is not muna)
        ):
            continue
        seen.add(id(value))
        if isinstance(value, (Mapping, AbstractSet, list, deque, tuple, weakref.WeakSet)):
            found[name] += len(value)
            pairs = tuple(value.items()) if isinstance(value, Mapping) else ()
            waiting.extend((f"{name}[]", each) for each in (*(each for pair in pairs for each in pair), *value))
        if type(value).__module__.partition(".")[0] == "engine":
            waiting.extend((f"{type(value).__qualname__}.{each}", held) for each, held in attributes(value))
    return found


def attributes(value: Any) -> Iterator[tuple[str, Any]]:
    yield from getattr(value, "__dict__", {}).items()
    for base in type(value).__mro__:
        for name in getattr(base, "__slots__", ()):
            with contextlib.suppress(AttributeError):
                yield name, getattr(value, name)


@attrs.frozen
class Holdings:
    """What could pile up."""

    threads: int
    descriptors: int
    children: int
    memory: int  # bytes
    kept: Counter[str]

    @classmethod
    def take(cls, muna: Engine) -> Holdings:
        for _ in range(3):
            gc.collect()
        pages = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[1])
        size = pages * os.sysconf("SC_PAGE_SIZE")
        return cls(threading.active_count(), len(open_descriptors()), len(child_processes()), size, kept(muna))

    def grown_since(self, before: Holdings) -> list[str]:
        bounds = {"threads": SIDES * SIDES, "descriptors": 32, "children": 2, "memory": 48 << 20}
        counts = [(name, getattr(before, name), getattr(self, name), bound) for name, bound in bounds.items()]
        counts += [(name, before.kept[name], number, SLACK) for name, number in self.kept.items()]
        return [f"{name}: {old} -> {new}" for name, old, new, bound in counts if new > old + bound]


def warm_up(muna: Engine) -> None:
    """Call each predictor in each place, so that all that is kept of it is there."""
    script = Script("counting", "number", 1, fails=False)
    for kind, target in TARGETS.items():
        for each, place in itertools.product((f"@soak/{kind.lower()}", target), (None, "thread", "process")):
            muna.predictions.create(each, script.inputs, runner=place)


def settle(soak: Soak) -> None:
    """Wait until no body runs any more that began in this process, and the engines that were closed are collected."""
    deadline = time.monotonic() + TIMEOUT
    while (LIVES.going_on or executions_of(soak.lasting)) and time.monotonic() < deadline:
        gc.collect()
        time.sleep(0.01)
    assert LIVES.going_on == 0
    assert executions_of(soak.lasting) == ()
    closed = [weakref.ref(muna) for muna in soak.closed]
    soak.closed.clear()
    while any(reference() is not None for reference in closed) and time.monotonic() < deadline:
        gc.collect()
        time.sleep(0.01)
    assert [reference() for reference in closed if reference() is not None] == []


def without_traceback(record: logging.LogRecord) -> bool:
    """Let a record go on as text: pytest keeps records, and their frames would keep engines."""
    record.exc_info = None
    return True


@pytest.fixture
def texts_alone() -> Iterator[None]:
    logger = logging.getLogger("engine")
    logger.addFilter(without_traceback)
    yield
    logger.removeFilter(without_traceback)


@pytest.mark.fault(94)
@pytest.mark.usefixtures("texts_alone")
@pytest.mark.timeout(LIMIT)
@pytest.mark.filterwarnings("ignore:.*abandoned after:ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # such a warning, raised in a `__del__`
def test_every_call_gives_what_its_script_says_or_what_was_done_to_it_explains_and_nothing_grows() -> None:
    faulthandler.dump_traceback_later(LIMIT + 30.0, exit=True)  # instead of pytest's, which leaves no test that long
    began, rounds = time.monotonic(), 0
    seed = random.randrange(1 << 32) if IS_NIGHTLY else SEED
    with new_engine() as lasting:
        soak = Soak(lasting, new_engine())
        warm_up(lasting)
        run(soak, ROUND // 2, seed)  # threads, workers, segments and caches reach their size
        settle(soak)
        before = Holdings.take(lasting)
        while not soak.wrong and (rounds == 0 or (IS_NIGHTLY and time.monotonic() - began < SECONDS)):
            rounds += 1
            run(soak, ROUND, seed + 100 * rounds)
            settle(soak)
        after = Holdings.take(lasting)
        soak.passing.close()
    assert soak.wrong == [], "\n".join((f"with the seed {seed}:", *soak.wrong[:10]))
    assert after.grown_since(before) == []
    assert soak.killed, "no worker was killed"
    assert soak.outcomes["lost"] <= len(soak.killed)
    assert soak.outcomes["right"] >= 0.8 * soak.calls, soak.outcomes
