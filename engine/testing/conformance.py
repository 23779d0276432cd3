"""What a consumer must see of a script wherever it runs, and the suite that holds a runner against that."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
import warnings
from collections.abc import (  # noqa: TC003 - the engine reads the annotations of predictors
    AsyncIterator,
    Callable,
    Iterable,
    Iterator,
    Mapping,
)
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path  # noqa: TC003 - and attrs those of records
from typing import Any, ClassVar, Final

import attrs

from engine._engine import Engine
from engine._errors import (
    EngineBusyError,
    EngineClosedError,
    NestingError,
    NoPartialsError,
    PredictionCancelledError,
    quote,
)
from engine._reducers import reducer_of
from engine.runners.channel import is_immutable
from engine.testing.kinds import KINDS, Kind
from engine.testing.script import FEW, MARK, Fail, Give, Journal, Pause, Return, Script, SetMark

_DEEP: Final = 5  # calls, one in another
_IDLE_TIME: Final = 0.1  # seconds without another body that is started, after which no more are expected
_CLOSING: Final = 5.0  # seconds that calls which hung have to end, once their engine is closed


# What a consumer must see.


@attrs.frozen
class Transcript:
    """What there is to see of one execution of a script that is not stopped.

    Attributes:
        partials: in order.
        failure: the error as `described` tells it, or `None`.
        returned: the outcome's return value.
        lines: what the journal holds at the end.
        cuts: what it holds where the body is stopped at its first, second … partial.
        waits: what it holds where an async body that ran on after so many partials is interrupted while it waits.
    """

    partials: tuple[Any, ...]
    failure: tuple[str, str, str] | None
    returned: Any
    lines: tuple[str, ...]
    cuts: tuple[tuple[str, ...], ...]
    waits: tuple[tuple[int, tuple[str, ...]], ...] = ()

    def lines_if_stopped(self, delivered: int, *, is_in_lock_step: bool) -> set[tuple[str, ...]]:
        """What the journal may hold where the consumer stopped after `delivered` partials.

        In lock-step that is one thing. A producer elsewhere may have run on, but not past a partial that could change.
        """
        if not delivered:
            return {()}
        allowed: set[tuple[str, ...]] = set()
        for count in range(delivered, len(self.partials) + 1):
            allowed.add(self.cuts[count - 1])
            if is_in_lock_step or not is_immutable(self.partials[count - 1]):
                return allowed
            allowed.update(lines for given, lines in self.waits if given == count)
        return allowed | {self.lines}


def expected(script: Script, kind: Kind, mark: str = "unset") -> Transcript:
    """Tell what a consumer must see of `script` performed by `kind`, called where `MARK` is `mark`."""
    partials: list[Any] = []
    lines: list[str] = []
    cuts: list[tuple[str, ...]] = []
    waits: list[tuple[int, tuple[str, ...]]] = []
    fail: Fail | None = None
    returned: Any = None
    for number, step in enumerate(script.steps):
        lines.append(f"{number} {mark}")
        if isinstance(step, Give) and kind.is_yielding:
            partials.append(step.value)
            cuts.append((*lines, f"finally {mark}"))
        elif isinstance(step, Pause) and kind.is_driven_async:
            waits.append((len(partials), (*lines, f"finally {mark}")))
        elif isinstance(step, SetMark):
            mark = step.text
        elif isinstance(step, Fail):
            fail = step
            break
        elif isinstance(step, Return):
            returned = step.value
            break
    lines.append(f"finally {mark}")
    fail = script.spoils or fail
    if fail is None and not kind.is_yielding:
        partials, cuts = [returned], [tuple(lines)]
    is_kept = fail is None and kind.keeps_return
    failure = None if fail is None else arrival(fail)
    return Transcript(tuple(partials), failure, returned if is_kept else None, tuple(lines), tuple(cuts), tuple(waits))


def arrival(fail: Fail) -> tuple[str, str, str]:
    """How what a body raises must arrive at its consumer, as `described` tells it."""
    name = fail.error.__name__
    if issubclass(fail.error, StopIteration | StopAsyncIteration):
        return "RuntimeError", "", name
    if not issubclass(fail.error, Exception):
        return "PredictorError", "", name
    return name, str(fail.error(fail.text)), ""


def described(error: BaseException) -> tuple[str, str, str]:
    """An error's type, text and the type of its cause; the text is empty where a cause speaks for itself."""
    cause = error.__cause__
    return type(error).__name__, "" if cause is not None else str(error), "" if cause is None else type(cause).__name__


# What a runner must do.


def _same(found: object, wanted: object, what: str) -> None:
    if found != wanted:
        raise AssertionError(f"{what}: expected {wanted!r}, found {found!r}")


def _raised(function: Callable[[], object]) -> BaseException:
    try:
        value = function()
    except BaseException as error:
        return error
    raise AssertionError(f"nothing was raised; it gave {value!r}")


def _drained(partials: Iterable[Any]) -> tuple[list[Any], tuple[str, str, str] | None]:
    seen: list[Any] = []
    try:
        seen.extend(iter(partials))
    except BaseException as error:
        return seen, described(error)
    return seen, None


async def _adrained(partials: AsyncIterator[Any]) -> tuple[list[Any], tuple[str, str, str] | None]:
    seen: list[Any] = []
    try:
        async for each in partials:
            seen.append(each)  # noqa: PERF401 - what came before a failure counts
    except Exception as error:
        return seen, described(error)
    return seen, None


# Predictors that call predictors.


class _Meeting:
    """A barrier at which bodies wait until all that are expected have come, or no more come."""

    def __init__(self, expected: int) -> None:
        self._expected = expected
        self._came = 0
        self._more = threading.Condition()

    def attend(self) -> None:
        with self._more:
            self._came += 1
            self._more.notify_all()
            before = 0
            while before < self._came < self._expected:
                before = self._came
                self._more.wait(_IDLE_TIME)


class _Caller(threading.Thread):
    """Makes one call in a thread that nothing has to wait for."""

    def __init__(self, call: Callable[[], object]) -> None:
        super().__init__(daemon=True)
        self._make = call
        self.value: object = None
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            self.value = self._make()
        except BaseException as error:
            self.error = error


def _nesting(muna: Engine, runner: str | None, how: str, deepest: int, meeting: _Meeting) -> Callable[..., Any]:
    """A predictor that calls itself `depth` deep and gives that number; sync bodies called from outside meet first."""

    def creates(depth: int) -> int:
        if depth == deepest:
            meeting.attend()
        return 1 + muna.predictions.create(creates, {"depth": depth - 1}, runner=runner).value if depth else 0

    def streams(depth: int) -> Iterator[int]:
        if depth == deepest:
            meeting.attend()
        if depth:
            yield from muna.predictions.stream(streams, {"depth": depth - 1}, runner=runner).values()
        yield depth

    async def acreates(depth: int) -> int:
        return 1 + (await muna.predictions.acreate(acreates, {"depth": depth - 1}, runner=runner)).value if depth else 0

    async def astreams(depth: int) -> AsyncIterator[int]:
        if depth:
            async for each in muna.predictions.astream(astreams, {"depth": depth - 1}, runner=runner).values():
                yield each
        yield depth

    ways: dict[str, Callable[..., Any]] = {
        "create": creates,
        "stream": streams,
        "acreate": acreates,
        "astream": astreams,
    }
    return ways[how]


class RunnerConformance:
    """What every runner must do; subclass it in your tests under a name that pytest collects.

        class TestElsewhere(RunnerConformance):
            runner = "elsewhere"

            def engine(self):
                return Engine(discover=False, plugins=[my_plugin])

    Attributes:
        runner: what is given as `runner=`; `None` is the engine's own choice.
        kinds: the kinds of predictors the runner takes; leave one out where it refuses it with advice.
        folder: where bodies in other processes keep their journals; `None` where they share this process's memory.
        calls_at_a_time: how many calls are made at one time whose bodies call others; more than it has threads, where
            it has a fixed number of them.
        patience: seconds that such calls may take before they are said to hang.
    """

    runner: ClassVar[str | None] = None
    kinds: ClassVar[Mapping[str, Kind]] = KINDS
    folder: Path | None = None
    calls_at_a_time: ClassVar[int] = 64
    patience: ClassVar[float] = 10.0

    def engine(self) -> Engine:
        """A new engine that knows the runner; each test makes and closes its own."""
        return Engine(discover=False)

    def pytest_generate_tests(self, metafunc: Any) -> None:
        """Run each test that takes a kind once for every kind."""
        if "kind" in metafunc.fixturenames:
            metafunc.parametrize("kind", list(self.kinds.values()), ids=list(self.kinds))
        if "yielding" in metafunc.fixturenames:
            chosen = [kind for kind in self.kinds.values() if kind.is_yielding]
            metafunc.parametrize("yielding", chosen, ids=[kind.name for kind in chosen])

    def journal(self) -> Journal:
        """An empty journal that the runner's bodies can write."""
        if self.folder is None:
            return Journal()
        return Journal(self.folder / f"{time.monotonic_ns()}.journal")

    script: ClassVar[Script] = Script(
        (SetMark("own"), Give("hel"), Pause(), Give("lo"), Pause(is_suspended=True), Give(" you"), Return("returned"))
    )
    failing: ClassVar[Script] = Script((Give("first"), Give("second"), Fail(KeyError, "broken")))

    def test_every_consumer_sees_the_same_partials(self, kind: Kind) -> None:
        """Values and predictions, from sync code and from asyncio, are what the script says."""
        mark = "caller" if self.folder is None else MARK.get()  # another process gets the variables named for it only
        wanted = expected(self.script, kind, mark)
        token = MARK.set(mark)
        try:
            self._check_every_reader(kind, wanted)
            _same(MARK.get(), mark, "the mark in the caller's context")
        finally:
            MARK.reset(token)

    def _check_every_reader(self, kind: Kind, wanted: Transcript) -> None:
        with self.engine() as muna:
            for read in (self._values, self._predictions, self._avalues, self._apredictions):
                journal = self.journal()
                seen, failure = read(muna, kind, {"script": self.script, "journal": journal})
                _same((tuple(seen), failure), (wanted.partials, None), read.__name__)
                _same(journal.wait_for_end(), wanted.lines, f"the journal after {read.__name__}")

    def _values(self, muna: Engine, kind: Kind, inputs: dict[str, Any]) -> Any:
        return _drained(muna.predictions.stream(kind.predictor(), inputs, runner=self.runner).values())

    def _predictions(self, muna: Engine, kind: Kind, inputs: dict[str, Any]) -> Any:
        seen, failure = _drained(muna.predictions.stream(kind.predictor(), inputs, runner=self.runner))
        _same([each.index for each in seen], list(range(len(seen))), "the indices")
        return [each.value for each in seen], failure

    def _avalues(self, muna: Engine, kind: Kind, inputs: dict[str, Any]) -> Any:
        async def read() -> Any:
            return await _adrained(muna.predictions.astream(kind.predictor(), inputs, runner=self.runner).values())

        return asyncio.run(read())

    def _apredictions(self, muna: Engine, kind: Kind, inputs: dict[str, Any]) -> Any:
        async def read() -> Any:
            return await _adrained(muna.predictions.astream(kind.predictor(), inputs, runner=self.runner))

        seen, failure = asyncio.run(read())
        _same([each.index for each in seen], list(range(len(seen))), "the indices")
        return [each.value for each in seen], failure

    def test_create_gives_what_the_reducer_makes_of_the_partials(self, kind: Kind) -> None:
        """The law: for every reducer but `returned`, `create` is the reduction of what `stream` gives."""
        inputs = {"script": self.script, "journal": self.journal()}
        with self.engine() as muna:
            for name in ("last", "concat", "collect"):
                partials = list(muna.predictions.stream(kind.predictor(), inputs, runner=self.runner).values())
                reducer = reducer_of(name)
                state = reducer.start()
                for each in partials:
                    state = reducer.step(state, each)
                made = muna.predictions.create(kind.predictor(), inputs, runner=self.runner, reduce=name)
                _same(made.value, reducer.finish(state), name)
            made = muna.predictions.create(kind.predictor(), inputs, runner=self.runner, reduce="returned")
            _same(made.value, expected(self.script, kind).returned, "returned")

    def test_no_partials_are_no_result(self, yielding: Kind) -> None:
        """An empty stream is empty, and `create` says so unless the reducer accepts it."""
        with self.engine() as muna:
            inputs = {"script": Script(), "journal": self.journal()}
            run = partial(muna.predictions.create, yielding.predictor(), inputs, runner=self.runner)
            _same(self._values(muna, yielding, inputs), ([], None), "the stream")
            _same(type(_raised(run)), NoPartialsError, "create")
            _same(run(reduce="collect").value, [], "collect")

    def test_no_value_is_mistaken_for_an_end(self, yielding: Kind) -> None:
        """None, falsy values, NotImplemented and exceptions are partials like any other."""
        values = (None, 0, "", (), NotImplemented, False, StopIteration("a value"), None)
        script = Script(tuple(map(Give, values)))
        with self.engine() as muna:
            seen, failure = self._values(muna, yielding, {"script": script, "journal": self.journal()})
        _same((list(map(repr, seen)), failure), (list(map(repr, values)), None), "the partials")

    def test_a_failure_follows_its_partials_once(self, kind: Kind) -> None:
        """What the body raised comes as its own type, after its partials, once; then the stream is over."""
        wanted = expected(self.failing, kind)
        with self.engine() as muna:
            inputs = {"script": self.failing, "journal": self.journal()}
            stream = muna.predictions.stream(kind.predictor(), inputs, runner=self.runner)
            _same(_drained(stream.values()), (list(wanted.partials), wanted.failure), "the stream")
            _same(_drained(stream.values()), ([], None), "the stream after its end")
            _same((stream.outcome.state, stream.outcome.count), ("failed", len(wanted.partials)), "the outcome")
            run = partial(muna.predictions.create, kind.predictor(), inputs, runner=self.runner)
            _same(described(_raised(run)), wanted.failure, "create")
            returned = run(errors="return")
            _same(described(returned.exception or AssertionError()), wanted.failure, "errors='return'")

    def test_nothing_a_body_raises_ends_more_than_its_call(self, kind: Kind) -> None:
        """SystemExit and the like arrive as PredictorError, StopIteration as RuntimeError, in every place."""
        with self.engine() as muna:
            for error in (SystemExit, GeneratorExit, asyncio.CancelledError, StopIteration, StopAsyncIteration):
                inputs = {"script": Script((Fail(error, "out"),)), "journal": self.journal()}
                for read in (self._values, self._avalues):
                    _same(read(muna, kind, inputs), ([], arrival(Fail(error))), f"{error.__name__} by {read.__name__}")

    def test_a_stream_that_is_never_pulled_never_starts(self, kind: Kind) -> None:
        """The body starts at the first pull, and a stream closed before that has nothing to clean up."""
        with self.engine() as muna:
            journal = self.journal()
            inputs = {"script": self.script, "journal": journal}
            stream = muna.predictions.stream(kind.predictor(), inputs, runner=self.runner)
            _same(stream.outcome.state, "pending", "the state")
            stream.close()
            _same((stream.outcome.state, journal.lines), ("closed", ()), "the state and journal")

    def test_close_runs_the_clean_up_once_before_it_returns(self, yielding: Kind) -> None:
        """Where the producer had run on, it stops wherever it was; its `finally` runs once either way."""
        wanted = expected(self.script, yielding)
        with self.engine() as muna:
            journal = self.journal()
            inputs = {"script": self.script, "journal": journal}
            with muna.predictions.stream(yielding.predictor(), inputs, runner=self.runner) as stream:
                _same(next(stream.values()), "hel", "the first partial")
            self._check_stopped(journal.lines, wanted)
            _same((stream.outcome.state, stream.outcome.count), ("closed", 1), "the outcome")
            _same(_drained(stream.values()), ([], None), "the stream after its end")

    def _check_stopped(self, lines: tuple[str, ...], wanted: Transcript) -> None:
        allowed = wanted.lines_if_stopped(1, is_in_lock_step=False)
        if lines not in allowed:
            raise AssertionError(f"the journal holds {lines!r}, expected one of {allowed!r}")

    def test_cancel_is_told_once(self, yielding: Kind) -> None:
        """A cancelled stream raises PredictionCancelledError once, and its body is finalised."""
        wanted = expected(self.script, yielding)
        with self.engine() as muna:
            journal = self.journal()
            inputs = {"script": self.script, "journal": journal}
            stream = muna.predictions.stream(yielding.predictor(), inputs, runner=self.runner)
            next(stream)
            stream.cancel()
            stream.cancel()
            _same(type(_raised(partial(next, stream))), PredictionCancelledError, "the next pull")
            _same(type(_raised(partial(next, stream))), StopIteration, "the pull after it")
            _same(stream.outcome.state, "cancelled", "the state")
            self._check_stopped(journal.wait_for_end(), wanted)

    def test_a_stream_that_is_dropped_is_finalised(self, yielding: Kind) -> None:
        """The `finally` of a stream that was left and dropped runs, with at most one ResourceWarning."""
        wanted = expected(self.script, yielding)
        with self.engine() as muna, warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            journal = self.journal()
            inputs = {"script": self.script, "journal": journal}
            for _ in muna.predictions.stream(yielding.predictor(), inputs, runner=self.runner).values():
                break
            gc.collect()
            self._check_stopped(journal.wait_for_end(), wanted)
        _same([each.category for each in caught][1:], [], "warnings beyond the first")

    def test_closing_the_engine_ends_its_streams(self, yielding: Kind) -> None:
        """An open stream gets one EngineClosedError, and its body is finalised."""
        wanted = expected(self.script, yielding)
        with self.engine() as muna:
            journal = self.journal()
            inputs = {"script": self.script, "journal": journal}
            stream = muna.predictions.stream(yielding.predictor(), inputs, runner=self.runner)
            next(stream)
        _same(type(_raised(partial(next, stream))), EngineClosedError, "the next pull")
        _same(type(_raised(partial(next, stream))), StopIteration, "the pull after it")
        self._check_stopped(journal.wait_for_end(), wanted)

    def test_a_producer_waits_past_a_partial_that_could_change(self, yielding: Kind) -> None:
        """A partial that is a buffer stays as it is until the next one is asked for."""
        script = Script((Give(["a buffer"]), SetMark("too far"), Give("next")))
        with self.engine() as muna:
            journal = self.journal()
            inputs = {"script": script, "journal": journal}
            with muna.predictions.stream(yielding.predictor(), inputs, runner=self.runner) as stream:
                next(stream)
        if self.folder is None:
            _same(journal.lines, ("0 unset", "finally unset"), "the journal")

    def test_a_producer_stops_when_its_consumer_reads_no_more(self, yielding: Kind) -> None:
        """However much there is to give, a consumer that took three partials finds a bounded number made."""
        with self.engine() as muna:
            journal = self.journal()
            inputs = {"script": Script(tuple(map(Give, range(5_000)))), "journal": journal}
            with muna.predictions.stream(yielding.predictor(), inputs, runner=self.runner) as stream:
                seen = [value for value, _ in zip(stream.values(), range(3), strict=False)]
        _same(seen, [0, 1, 2], "the partials")
        if len(journal.lines) > FEW:
            raise AssertionError(f"the producer took {len(journal.lines)} steps, its consumer read no more than 3 or 4")

    def test_calls_at_the_same_time_do_not_mix(self, kind: Kind) -> None:
        """Four threads with calls of their own each get their own partials."""
        with self.engine() as muna, ThreadPoolExecutor(4) as threads:
            scripts = [Script((Give((n, 0)), Pause(), Give((n, 1)), Return((n, 2)))) for n in range(8)]
            inputs = [{"script": script, "journal": self.journal()} for script in scripts]
            seen = list(threads.map(partial(self._values, muna, kind), inputs))
        _same(seen, [(list(expected(script, kind).partials), None) for script in scripts], "the partials")

    def test_a_body_may_call_another_on_the_same_runner(self) -> None:
        """The body waits for the call it makes, which ends, or is refused with NestingError, and never hangs.

        Bodies in other processes are not looked at: these call an engine of their own.
        """
        for how in self._ways_to_call():
            self._check_nesting(how, depth=1)

    def test_bodies_may_call_each_other_several_deep(self) -> None:
        """A runner needs room for every body that waits for another one, or refuses with NestingError."""
        for how in self._ways_to_call():
            self._check_nesting(how, depth=_DEEP)

    def test_bodies_at_the_same_time_may_each_call_another(self) -> None:
        """However many calls run, what their bodies call runs too, or is refused with NestingError."""
        for how in ("create", "stream"):
            self._check_nesting(how, depth=1, calls=self.calls_at_a_time)

    def _ways_to_call(self) -> tuple[str, ...]:
        is_async = any(kind.is_async for kind in self.kinds.values())
        return ("create", "stream", "acreate", "astream") if is_async else ("create", "stream")

    def _check_nesting(self, how: str, depth: int, calls: int = 1) -> None:
        if self.folder is not None:  # an engine does not travel
            return
        with self.engine() as muna:
            body = _nesting(muna, self.runner, how, depth, _Meeting(calls))
            call = partial(muna.predictions.create, body, {"depth": depth}, runner=self.runner)
            callers = [_Caller(call) for _ in range(calls)]
            for caller in callers:
                caller.start()
            self._refuse_hanging(muna, callers)
        for caller in callers:
            if caller.error is None:
                _same(getattr(caller.value, "value", None), depth, f"what calls give that are made by {how}")
            elif not isinstance(caller.error, (NestingError, EngineBusyError)):
                raise caller.error

    def _refuse_hanging(self, muna: Engine, callers: list[_Caller]) -> None:
        deadline = time.monotonic() + self.patience
        for caller in callers:
            caller.join(max(0.0, deadline - time.monotonic()))
        if not any(caller.is_alive() for caller in callers):
            return
        muna.close()  # which ends what the bodies wait for, and with it the bodies, if their runner lets it
        deadline = time.monotonic() + _CLOSING
        for caller in callers:
            caller.join(max(0.0, deadline - time.monotonic()))
        raise AssertionError(
            f"the runner {quote(self.runner)} hangs: bodies have waited {self.patience:g} s for calls on the same "
            "runner, and the threads that could run these are taken by bodies that wait. Run each body in a thread of "
            "its own, or have start() raise NestingError where no other thread is left to run it"
        )
