"""The product itself: every kind of predictor, consumed every way, in every place, shows the transcript of one model.

`engine.testing.expected` is the model. Hypothesis writes the scripts; for each script every cell of one kind (consumers
times runners times reducers) is run and compared with it. A body in a worker keeps its journal in a file, gives copies,
and does not see the caller's mark; it gets fewer scripts, for each of its steps costs a system call.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import itertools
import os
import threading
import warnings
from collections.abc import Callable, Iterator
from contextvars import copy_context
from pathlib import Path
from typing import Any, Final

import attrs
import pytest
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from engine import Engine, NoPartialsError, PredictionCancelledError, Reducer, fold
from engine._reducers import reducer_of
from engine.testing import (
    KINDS,
    MARK,
    Fail,
    Give,
    Journal,
    Kind,
    Pause,
    Return,
    Script,
    SetMark,
    Step,
    Transcript,
    arrival,
    described,
    expected,
)

RUNNERS: Final = (None, "inline", "thread")
PROCESS: Final = "process"


# Where a body runs: the table of the contract, 5.4


def place_for_sync_code(kind: Kind, runner: str | None) -> str:
    if runner == "inline" and (kind.is_async or kind.is_driven_async):
        return "refused"
    return "elsewhere" if runner in {"thread", PROCESS} or kind.is_async or kind.is_driven_async else "caller"


def place_for_asyncio(kind: Kind, runner: str | None) -> str:
    if "class-async" in kind.name and kind.is_async:
        return "elsewhere"  # it lives on the engine's loop, with its clients and locks
    if runner == "inline":
        return "caller"
    return "caller" if runner is None and kind.is_async and kind.is_driven_async else "elsewhere"


# Reducers, said once more in the plainest way


class Joiner:
    """A reducer of somebody else's."""

    name = "joiner"

    def start(self) -> str:
        return "<"

    def step(self, state: str, partial: object) -> str:
        return f"{state}{partial!r}|"

    def finish(self, state: str) -> str:
        return f"{state}>"


def folded(state: list[Any], partial: Any) -> list[Any]:
    return [*state, partial, len(state)]


def reduced_by_fold(partials: tuple[Any, ...]) -> list[Any]:
    state: list[Any] = []
    for each in partials:
        state = folded(state, each)
    return state


@attrs.frozen
class Reduction:
    """A reducer, and the plain function from partials that it must equal; `None` stands for the return value."""

    name: str
    given: Any
    plainly: Callable[[tuple[Any, ...]], Any] | None
    needs_partials: bool = False


REDUCTIONS: Final = {
    each.name: each
    for each in (
        Reduction("last", "last", lambda partials: partials[-1], needs_partials=True),
        Reduction("collect", "collect", list),
        Reduction("fold", fold(folded, list), reduced_by_fold),
        Reduction("own", Joiner(), lambda partials: f"<{''.join(f'{each!r}|' for each in partials)}>"),
        Reduction("returned", "returned", None),
    )
}
CONCAT: Final = Reduction("concat", "concat", "".join, needs_partials=True)


# One cell: a script performed by a kind, for one consumer, in one place


_numbers: Final = itertools.count()


@attrs.frozen
class Cell:
    """One cell of the cube, and the engine to run it in.

    Attributes:
        folder: where bodies in workers keep their journals.
    """

    muna: Engine
    loop: asyncio.Runner
    kind: Kind
    script: Script
    runner: str | None
    reduction: Reduction
    stop_after: int
    folder: Path | None = None
    journal: Journal = attrs.field(init=False)

    @journal.default
    def _first_journal(self) -> Journal:
        return self.new_journal()

    def new_journal(self) -> Journal:
        return Journal() if self.folder is None else Journal(self.folder / f"{next(_numbers)}")

    @property
    def wanted(self) -> Transcript:
        return expected(self.script, self.kind, "caller" if self.folder is None else "unset")

    def lines_if_stopped(self, place: str) -> set[tuple[str, ...]]:
        """What the journal may hold where the stream was left after `stop_after` partials."""
        wanted, taken = self.wanted, self.stop_after
        if self.folder is None or not taken:
            return wanted.lines_if_stopped(taken, is_in_lock_step=place == "caller")
        # A worker copies each partial before its predictor runs on, so it runs on past those that could change, too.
        waits = (lines for given, lines in wanted.waits if given >= taken)
        return {*wanted.cuts[taken - 1 :], *waits, wanted.lines}

    def is_same(self, found: Any, wanted: Any) -> bool:
        """Whether a value came as it was: itself where memory is shared, a faithful copy out of a worker."""
        return found is wanted if self.folder is None else is_copy(found, wanted)

    def is_same_reduction(self, found: Any, wanted: Any) -> bool:
        """The same for what a reducer made, which is nobody's own object."""
        if self.folder is not None:
            return is_copy(found, wanted)
        return found is wanted or (type(found) is type(wanted) and bool(found == wanted))

    def arguments(self) -> tuple[Any, dict[str, Any]]:
        return self.kind.predictor(self.reduction.given), {"script": self.script, "journal": self.journal}

    def open(self) -> Any:
        """A stream; what the caller sets after the call is none of the body's business."""
        MARK.set("caller")
        stream = self.muna.predictions.stream(*self.arguments(), runner=self.runner)
        MARK.set("changed")
        return stream

    def aopen(self) -> Any:
        MARK.set("caller")
        stream = self.muna.predictions.astream(*self.arguments(), runner=self.runner)
        MARK.set("changed")
        return stream

    def run(self, coroutine: Any) -> Any:
        async def alone() -> Any:
            found = await coroutine
            for _ in range(1_000):  # what the engine still finalises on this loop ends in a few rounds of it
                if len(asyncio.all_tasks()) == 1:
                    return found
                await asyncio.sleep(0.001)
            raise AssertionError(f"left on the loop: {asyncio.all_tasks()}")

        return self.loop.run(alone(), context=copy_context())


def is_copy(found: Any, wanted: Any) -> bool:
    """Whether a value is the like of another, of the same type all the way down; exceptions are by their arguments."""
    if type(found) is not type(wanted):
        return False
    if isinstance(wanted, list | tuple):
        return len(found) == len(wanted) and all(map(is_copy, found, wanted))
    if isinstance(wanted, BaseException):
        return is_copy(found.args, wanted.args)
    return bool(found == wanted)


def check_partials(cell: Cell, seen: list[Any], wanted: tuple[Any, ...]) -> None:
    assert len(seen) == len(wanted), (seen, wanted)
    assert all(map(cell.is_same, seen, wanted)), (seen, wanted)


def check_note(error: BaseException, cell: Cell, delivered: int) -> None:
    ours = [note for note in getattr(error, "__notes__", ()) if note.startswith("predictor @testing/")]
    assert len(ours) == 1, ours
    assert ours[0].startswith(f"predictor @testing/{cell.kind.name}, prediction "), ours
    assert ours[0].endswith(f", after {delivered} partials"), (ours, delivered)


def check_left(cell: Cell, allowed: set[tuple[str, ...]]) -> None:
    """The body is finalised, once, where it was to be; and nothing of it reached the caller's context."""
    lines = cell.journal.wait_for_end() if allowed != {()} else cell.journal.lines
    assert lines in allowed, (lines, allowed)
    assert MARK.get() == "changed"


# Consumers that read to the end


def check_end(stream: Any, seen: list[Any], error: BaseException | None, cell: Cell) -> None:
    wanted = cell.wanted
    outcome = stream.outcome
    if error is None:
        assert wanted.failure is None
    else:
        assert described(error) == wanted.failure, error
        check_note(error, cell, len(wanted.partials))
    check_partials(cell, seen, wanted.partials)
    assert outcome.state == ("done" if wanted.failure is None else "failed")
    assert outcome.count == len(wanted.partials)
    assert cell.is_same(outcome.returned, wanted.returned)
    assert outcome.exception is error
    check_left(cell, {wanted.lines})


def read_predictions(cell: Cell) -> None:
    stream, seen, failure = cell.open(), [], None
    try:
        for each in stream:
            seen.append(each)  # noqa: PERF402 - what came before a failure counts
    except BaseException as error:
        failure = error
    assert [each.index for each in seen] == list(range(len(seen)))
    assert {each.id for each in seen} <= {stream.id}
    check_end(stream, [each.value for each in seen], failure, cell)
    assert list(stream) == []
    assert next(stream, "over") == "over"


def read_values(cell: Cell) -> None:
    stream, seen, failure = cell.open(), [], None
    try:
        for each in stream.values():
            seen.append(each)  # noqa: PERF402
    except BaseException as error:
        failure = error
    check_end(stream, seen, failure, cell)
    assert list(stream.values()) == []


def read_snapshots(cell: Cell) -> None:
    stream, seen = cell.open(), []
    try:
        for each in stream.snapshots():
            seen.append(each)  # noqa: PERF402
    except BaseException as error:
        check_snapshots(seen, error, cell)
    else:
        check_snapshots(seen, None, cell)
    stream.close()
    check_left(cell, {cell.wanted.lines} if cell.reduction.plainly else {()})


async def aread_predictions(cell: Cell) -> None:
    stream, seen, failure = cell.aopen(), [], None
    try:
        async for each in stream:
            seen.append(each)  # noqa: PERF401
    except BaseException as error:
        failure = error
    assert [each.index for each in seen] == list(range(len(seen)))
    check_end(stream, [each.value for each in seen], failure, cell)
    assert [each async for each in stream] == []


async def aread_values(cell: Cell) -> None:
    stream, seen, failure = cell.aopen(), [], None
    try:
        async for each in stream.values():
            seen.append(each)  # noqa: PERF401
    except BaseException as error:
        failure = error
    check_end(stream, seen, failure, cell)
    assert [each async for each in stream.values()] == []


async def aread_snapshots(cell: Cell) -> None:
    stream, seen = cell.aopen(), []
    try:
        async for each in stream.snapshots():
            seen.append(each)  # noqa: PERF401
    except BaseException as error:
        check_snapshots(seen, error, cell)
    else:
        check_snapshots(seen, None, cell)
    await stream.aclose()
    check_left(cell, {cell.wanted.lines} if cell.reduction.plainly else {()})


def check_snapshots(seen: list[Any], error: BaseException | None, cell: Cell) -> None:
    plainly, wanted = cell.reduction.plainly, cell.wanted
    if plainly is None:
        assert isinstance(error, ValueError), error
        assert seen == []
        return
    if error is None:
        assert wanted.failure is None
    else:
        assert described(error) == wanted.failure, error
    partials = wanted.partials
    assert len(seen) == len(partials)
    assert all(cell.is_same_reduction(found, plainly(partials[: count + 1])) for count, found in enumerate(seen))


def read_create(cell: Cell) -> None:
    MARK.set("caller")
    tag, inputs = cell.arguments()
    for errors in ("raise", "return"):
        journal = cell.new_journal()
        made = caught = None
        try:
            made = cell.muna.predictions.create(tag, {**inputs, "journal": journal}, runner=cell.runner, errors=errors)
        except BaseException as error:
            caught = error
        check_created(cell, made, caught, errors)
        assert journal.wait_for_end() == cell.wanted.lines
    assert MARK.get() == "caller"


async def aread_create(cell: Cell) -> None:
    MARK.set("caller")
    tag, inputs = cell.arguments()
    for errors in ("raise", "return"):
        journal = cell.new_journal()
        made = caught = None
        try:
            made = await cell.muna.predictions.acreate(
                tag, {**inputs, "journal": journal}, runner=cell.runner, errors=errors
            )
        except BaseException as error:
            caught = error
        check_created(cell, made, caught, errors)
        assert journal.wait_for_end() == cell.wanted.lines
    assert MARK.get() == "caller"


def check_created(cell: Cell, made: Any, caught: BaseException | None, errors: str) -> None:
    wanted, reduction = cell.wanted, cell.reduction
    if wanted.failure is not None:
        failure = caught if errors == "raise" else made and made.exception
        assert failure is not None
        assert described(failure) == wanted.failure, failure
        check_note(failure, cell, len(wanted.partials))
        if errors == "return":
            assert cell.is_same_reduction(made.value, before_the_failure(wanted, reduction)), made.value
            assert made.error
    elif reduction.needs_partials and not wanted.partials:
        assert type(caught) is NoPartialsError, caught
    else:
        assert caught is None, caught
        reduced = wanted.returned if reduction.plainly is None else reduction.plainly(wanted.partials)
        assert cell.is_same_reduction(made.value, reduced)
        assert (made.index, made.exception, made.error) == (max(0, len(wanted.partials) - 1), None, None)


def before_the_failure(wanted: Transcript, reduction: Reduction) -> Any:
    if reduction.plainly is None or not wanted.partials:
        return None
    return reduction.plainly(wanted.partials)


# Consumers that stop after some partials


def check_stopped(cell: Cell, state: str, stream: Any, place: str, *, raised: BaseException | None = None) -> None:
    """The stream was left after `stop_after` partials; `raised` is what stopping it raised."""
    wanted, spoils = cell.wanted, cell.script.spoils
    assert (stream.outcome.state, stream.outcome.count) == (state, cell.stop_after)
    check_left(cell, cell.lines_if_stopped(place))
    was_at_a_partial = cell.kind.is_yielding and cell.journal.lines != wanted.lines
    if state == "closed" and spoils is not None and cell.stop_after and was_at_a_partial:
        assert raised is not None
        assert described(raised) == arrival(spoils), raised
    elif cell.journal.lines != wanted.lines or spoils is None:
        assert raised is None, raised
    assert stream.outcome.returned is None


def take(cell: Cell, stream: Any) -> list[Any]:
    values = stream.values()
    return [next(values) for _ in range(cell.stop_after)]


async def atake(cell: Cell, stream: Any) -> list[Any]:
    values = stream.values()
    return [await anext(values) for _ in range(cell.stop_after)]


def stop_by_close(cell: Cell) -> None:
    stream, raised = cell.open(), None
    check_partials(cell, take(cell, stream), cell.wanted.partials[: cell.stop_after])
    try:
        stream.close()
    except BaseException as error:
        raised = error
    assert ends_with_finally(cell), "close() returned before the clean-up had run"
    check_stopped(cell, "closed", stream, place_for_sync_code(cell.kind, cell.runner), raised=raised)
    stream.close()
    assert next(stream, "over") == "over"


def ends_with_finally(cell: Cell) -> bool:
    lines = cell.journal.lines
    return not cell.stop_after or lines[-1].startswith("finally")


def stop_by_leaving(cell: Cell) -> None:
    stream = cell.open()
    outcome = stream.outcome
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        check_partials(cell, take(cell, stream), cell.wanted.partials[: cell.stop_after])
        left = Left(outcome)
        del stream
        gc.collect(0)
        if cell.stop_after:
            cell.journal.wait_for_end()
    place = place_for_sync_code(cell.kind, cell.runner)
    check_abandoned(cell, left, place, [each.category for each in caught], needs_owner=place == "elsewhere")


@attrs.frozen
class Left:
    """What is left of a stream that nobody refers to any more."""

    outcome: Any


def check_abandoned(cell: Cell, left: Left, place: str, caught: list[Any], *, needs_owner: bool) -> None:
    assert caught == ([ResourceWarning] if needs_owner and cell.stop_after else []), caught
    if cell.stop_after:
        assert left.outcome.state == "closed"
    check_left(cell, cell.lines_if_stopped(place))


def stop_by_cancel(cell: Cell) -> None:
    stream = cell.open()
    check_partials(cell, take(cell, stream), cell.wanted.partials[: cell.stop_after])
    stream.cancel()
    stream.cancel()
    with pytest.raises(PredictionCancelledError):
        next(stream)
    assert list(stream) == []
    check_stopped(cell, "cancelled", stream, place_for_sync_code(cell.kind, cell.runner))


async def astop_by_close(cell: Cell) -> None:
    stream, raised = cell.aopen(), None
    check_partials(cell, await atake(cell, stream), cell.wanted.partials[: cell.stop_after])
    try:
        await stream.aclose()
    except BaseException as error:
        raised = error
    assert ends_with_finally(cell), "aclose() returned before the clean-up had run"
    check_stopped(cell, "closed", stream, place_for_asyncio(cell.kind, cell.runner), raised=raised)
    await stream.aclose()
    assert [each async for each in stream] == []


async def astop_by_leaving(cell: Cell) -> None:
    stream = cell.aopen()
    outcome = stream.outcome
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        check_partials(cell, await atake(cell, stream), cell.wanted.partials[: cell.stop_after])
        left = Left(outcome)
        del stream
        gc.collect(0)
        await until(lambda: not cell.stop_after or (ends_with_finally(cell) and bool(caught)))
    place = place_for_asyncio(cell.kind, cell.runner)
    check_abandoned(cell, left, place, [each.category for each in caught], needs_owner=True)


async def until(is_so: Callable[[], bool]) -> None:
    for _ in range(2_000):
        if is_so():
            return
        await asyncio.sleep(0.0005)


async def astop_by_cancel(cell: Cell) -> None:
    stream = cell.aopen()
    check_partials(cell, await atake(cell, stream), cell.wanted.partials[: cell.stop_after])
    stream.cancel()
    stream.cancel()
    with pytest.raises(PredictionCancelledError):
        await anext(stream)
    assert [each async for each in stream] == []
    await until(lambda: ends_with_finally(cell))
    check_stopped(cell, "cancelled", stream, place_for_asyncio(cell.kind, cell.runner))


async def astop_by_cancelled_task(cell: Cell) -> None:
    """The task is cancelled while it holds a partial: what it leaves by is its `async with`."""
    found: list[Any] = []

    async def consume() -> None:
        async with cell.aopen() as stream:
            found.append(stream)
            check_partials(cell, await atake(cell, stream), cell.wanted.partials[: cell.stop_after])
            task.cancel()
            await asyncio.sleep(0)

    task = asyncio.create_task(consume())
    raised: BaseException | None = None
    try:
        await task
    except asyncio.CancelledError:
        pass
    except BaseException as error:
        raised = error
    assert raised is None or isinstance(raised.__context__, asyncio.CancelledError)
    MARK.set("changed")
    await until(lambda: ends_with_finally(cell))
    check_stopped(cell, "closed", found[0], place_for_asyncio(cell.kind, cell.runner), raised=raised)


READERS: Final = (read_predictions, read_values, read_snapshots, read_create)
AREADERS: Final = (aread_predictions, aread_values, aread_snapshots, aread_create)
STOPPERS: Final = (stop_by_close, stop_by_leaving, stop_by_cancel)
ASTOPPERS: Final = (astop_by_close, astop_by_leaving, astop_by_cancel, astop_by_cancelled_task)


# Scripts

WORDS: Final = st.sampled_from(["", "a", "bc", "Ω"])
VALUES: Final = st.sampled_from(
    [
        None,
        0,
        False,
        "",
        b"",
        (),
        ("a", 1),
        NotImplemented,
        ...,
        StopIteration("value"),
        ValueError("value"),
        1.5,
        object,
    ]
) | st.builds(lambda: ["a", "buffer"])
ERRORS: Final = st.sampled_from(
    [
        Fail(ValueError, "wrong"),
        Fail(KeyError, "missing"),
        Fail(TimeoutError, "late"),
        Fail(StopIteration),
        Fail(StopAsyncIteration),
        Fail(SystemExit, "out"),
        Fail(GeneratorExit),
        Fail(asyncio.CancelledError),
        Fail(KeyboardInterrupt),
    ]
)


def others() -> st.SearchStrategy[Step]:
    """Steps that give nothing."""
    return st.builds(Pause, st.booleans()) | st.builds(SetMark, st.sampled_from(["one", "two"]))


def scripts(values: st.SearchStrategy[Any], *, always_ends: bool = False) -> st.SearchStrategy[Script]:
    plain = st.lists(st.one_of(st.builds(Give, values), st.builds(Give, values), others()), max_size=7)
    return scripts_of(plain, values, always_ends=always_ends)


def long_scripts(values: st.SearchStrategy[Any], *, always_ends: bool = False) -> st.SearchStrategy[Script]:
    """Scripts that give more than one partial."""
    gives: st.SearchStrategy[list[Step]] = st.lists(st.builds(Give, values), min_size=2, max_size=5)
    plain = st.tuples(gives, st.lists(others(), max_size=3)).flatmap(lambda both: st.permutations(both[0] + both[1]))
    return scripts_of(plain, values, always_ends=always_ends)


def scripts_of(
    plain: st.SearchStrategy[list[Step]], values: st.SearchStrategy[Any], *, always_ends: bool
) -> st.SearchStrategy[Script]:
    ends: st.SearchStrategy[Step | None] = st.builds(Return, values) | ERRORS
    if not always_ends:
        ends |= st.none()
    spoils = st.none() | st.none() | st.just(Fail(OSError, "in clean-up"))

    def whole(steps: list[Step], end: Step | None, lingers: bool, spoils: Fail | None) -> Script:
        return Script(tuple(steps if end is None else [*steps, end]), lingers, spoils)

    return st.builds(whole, plain, ends, st.booleans(), spoils)


@attrs.frozen
class Case:
    """A script, how it is reduced, and after how many partials a consumer leaves that does not read to the end."""

    script: Script
    reduction: Reduction
    stop_after: int


def cases_of(reduction: Reduction) -> st.SearchStrategy[Case]:
    """Long scripts, since there are few: the shortest are left to the other runners."""
    is_text = reduction is CONCAT
    script = long_scripts(WORDS if is_text else VALUES, always_ends=is_text)
    return st.builds(Case, script, st.just(reduction), st.integers(0, 4))


CASES: Final = st.sampled_from([*REDUCTIONS.values(), CONCAT]).flatmap(cases_of)


def has(script: Script, error: type[BaseException]) -> bool:
    return any(isinstance(step, Fail) and step.error is error for step in script.steps)


@pytest.fixture
def loop() -> Iterator[asyncio.Runner]:
    with asyncio.Runner() as runner:
        yield runner


@attrs.frozen
class Worker:
    """An engine with one worker, which no script must cost it.

    Attributes:
        folder: where the worker's bodies keep their journals.
        pid: the number of its process.
    """

    muna: Engine
    loop: asyncio.Runner
    folder: Path
    pid: int

    def is_the_same_process(self) -> bool:
        return bool(self.muna.predictions.create(os.getpid, runner=PROCESS).value == self.pid)


@pytest.fixture
def worker(loop: asyncio.Runner, tmp_path: Path) -> Iterator[Worker]:
    with Engine(discover=False, workers=1, grace=30.0) as muna:
        yield Worker(muna, loop, tmp_path, muna.predictions.create(os.getpid, runner=PROCESS).value)


@contextlib.contextmanager
def naming(runner: str | None, consume: Callable[[Cell], object]) -> Iterator[None]:
    try:
        yield
    except BaseException as error:
        error.add_note(f"in the cell of {consume.__name__} with runner {runner!r}")
        raise


def check_every_cell(  # noqa: PLR0917
    muna: Engine, loop: asyncio.Runner, kind: Kind, script: Script, reduction: Reduction, stop_after: int
) -> None:
    whole = expected(script, kind, "caller")
    stops = min(stop_after, len(whole.partials))

    def cell(runner: str | None) -> Cell:
        return Cell(muna, loop, kind, script, runner, reduction, stops)

    for runner in RUNNERS:
        # Ctrl-C in the caller's own thread is the caller's; see test_ctrl_c_belongs_to_the_caller below.
        is_interrupt = has(script, KeyboardInterrupt) and script.spoils is None
        place = place_for_sync_code(kind, runner)
        if place != "refused" and not (is_interrupt and place == "caller"):
            for consume in (*READERS, *STOPPERS):
                with naming(runner, consume):
                    copy_context().run(consume, cell(runner))
        if not (is_interrupt and place_for_asyncio(kind, runner) == "caller"):
            for aconsume in (*AREADERS, *ASTOPPERS):
                one = cell(runner)
                with naming(runner, aconsume):
                    one.run(aconsume(one))
    assert muna.predictions.open_calls == ()


def check_every_cell_in_a_worker(worker: Worker, kind: Kind, case: Case) -> None:
    stops = min(case.stop_after, len(expected(case.script, kind).partials))

    def cell() -> Cell:
        return Cell(worker.muna, worker.loop, kind, case.script, PROCESS, case.reduction, stops, worker.folder)

    for consume in (*READERS, *STOPPERS):
        with naming(PROCESS, consume):
            copy_context().run(consume, cell())
    for aconsume in (*AREADERS, *ASTOPPERS):
        one = cell()
        with naming(PROCESS, aconsume):
            one.run(aconsume(one))
    assert worker.muna.predictions.open_calls == ()
    assert worker.is_the_same_process(), "a body cost its worker"
    for file in worker.folder.iterdir():
        file.unlink()


# The engine is made once for all examples of a kind, on purpose: what one call leaves would be seen by the next.
fixtures_are_shared = settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
every_kind = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)


@every_kind
@fixtures_are_shared
@given(script=scripts(VALUES), reduction=st.sampled_from(list(REDUCTIONS.values())), stop_after=st.integers(0, 4))
def test_every_cell_shows_the_transcript_of_the_model(  # noqa: PLR0917
    kind: Kind, muna: Engine, loop: asyncio.Runner, script: Script, reduction: Reduction, stop_after: int
) -> None:
    check_every_cell(muna, loop, kind, script, reduction, stop_after)


@every_kind
@settings(fixtures_are_shared, max_examples=settings().max_examples // 5)
@given(script=scripts(WORDS, always_ends=True))
def test_every_cell_joins_the_same_text(kind: Kind, muna: Engine, loop: asyncio.Runner, script: Script) -> None:
    check_every_cell(muna, loop, kind, script, CONCAT, 1)


@every_kind
def test_every_cell_in_a_worker_shows_the_transcript_of_the_model(kind: Kind, worker: Worker) -> None:
    @settings(fixtures_are_shared, max_examples=settings().max_examples // 3)
    @given(CASES)
    def check(case: Case) -> None:
        check_every_cell_in_a_worker(worker, kind, case)

    if settings().derandomize:  # or every kind would get the same few
        check = seed(list(KINDS).index(kind.name))(check)
    check()


# The law


LAW: Final = Script((Give("a"), Pause(), Give(""), Give("bc"), Return("d")))


def reduced_by(reducer: Reducer, partials: list[Any]) -> Any:
    state = reducer.start()
    for each in partials:
        state = reducer.step(state, each)
    return reducer.finish(state)


@every_kind
@pytest.mark.parametrize("reduction", [*REDUCTIONS.values(), CONCAT], ids=lambda reduction: reduction.name)
@pytest.mark.parametrize("runner", RUNNERS, ids=str)
def test_create_is_the_reduction_of_what_stream_gives(
    runner: str | None, reduction: Reduction, kind: Kind, muna: Engine, loop: asyncio.Runner
) -> None:
    inputs = {"script": LAW, "journal": Journal()}
    tag = kind.predictor()
    whole = expected(LAW, kind)
    reducer = reducer_of(reduction.given)
    wanted = whole.returned if reduction.plainly is None else reduced_by(reducer, list(whole.partials))
    options: Any = {"runner": runner, "reduce": reduction.given}

    async def read() -> tuple[list[Any], Any]:
        values = [each async for each in muna.predictions.astream(tag, inputs, runner=runner).values()]
        return values, (await muna.predictions.acreate(tag, inputs, **options)).value

    assert loop.run(read()) == (list(whole.partials), wanted)
    if place_for_sync_code(kind, runner) == "refused":
        with pytest.raises(ValueError, match="inline in sync code"):
            muna.predictions.create(tag, inputs, **options)
        return
    assert list(muna.predictions.stream(tag, inputs, runner=runner).values()) == list(whole.partials)
    assert muna.predictions.create(tag, inputs, **options).value == wanted


@every_kind
@pytest.mark.parametrize("runner", RUNNERS, ids=str)
def test_what_a_reducer_raises_is_never_covered_by_errors_return(
    runner: str | None, kind: Kind, muna: Engine, loop: asyncio.Runner
) -> None:
    inputs = {"script": Script((Give(1), Give(2), Return(3))), "journal": Journal()}
    options: Any = {"runner": runner, "reduce": "concat", "errors": "return"}
    with pytest.raises(TypeError, match="joins partials that are all str") as caught:
        loop.run(muna.predictions.acreate(kind.predictor(), inputs, **options))
    assert not hasattr(caught.value, "__notes__")
    if place_for_sync_code(kind, runner) != "refused":
        with pytest.raises(TypeError, match="joins partials that are all str") as caught:
            muna.predictions.create(kind.predictor(), inputs, **options)
        assert not hasattr(caught.value, "__notes__")


def test_what_a_reducer_raises_is_no_failure_of_a_body_in_a_worker(worker: Worker) -> None:
    for kind in KINDS.values():
        inputs = {"script": Script((Give(1), Give(2), Return(3))), "journal": Journal(worker.folder / kind.name)}
        options: Any = {"runner": PROCESS, "reduce": "concat", "errors": "return"}
        with pytest.raises(TypeError, match="joins partials that are all str") as caught:
            worker.muna.predictions.create(kind.predictor(), inputs, **options)
        assert not hasattr(caught.value, "__notes__")
        with pytest.raises(TypeError, match="joins partials that are all str") as caught:
            worker.loop.run(worker.muna.predictions.acreate(kind.predictor(), inputs, **options))
        assert not hasattr(caught.value, "__notes__")
    assert worker.is_the_same_process()


# Ctrl-C, which the property leaves out where the body runs in the caller's main thread


IN_THE_CALLER: Final = [kind for kind in KINDS.values() if place_for_sync_code(kind, None) == "caller"]


@pytest.mark.parametrize("kind", IN_THE_CALLER, ids=lambda kind: kind.name)
@pytest.mark.parametrize("errors", ["raise", "return"])
def test_ctrl_c_belongs_to_the_caller_on_the_main_thread(errors: Any, kind: Kind, muna: Engine) -> None:
    journal = Journal()
    inputs = {"script": Script((Fail(KeyboardInterrupt),)), "journal": journal}
    with pytest.raises(KeyboardInterrupt):
        muna.predictions.create(kind.predictor(), inputs, errors=errors)
    stream = muna.predictions.stream(kind.predictor(), inputs)
    with pytest.raises(KeyboardInterrupt):
        next(stream)
    assert (stream.outcome.state, list(stream)) == ("failed", [])
    assert journal.lines == ("0 unset", "finally unset") * 2


@pytest.mark.parametrize("kind", IN_THE_CALLER, ids=lambda kind: kind.name)
def test_ctrl_c_elsewhere_is_a_failure_of_the_predictor(kind: Kind, muna: Engine) -> None:
    inputs = {"script": Script((Fail(KeyboardInterrupt),)), "journal": Journal()}
    caught: list[BaseException] = []

    def call() -> None:
        try:
            muna.predictions.create(kind.predictor(), inputs)
        except BaseException as error:
            caught.append(error)

    thread = threading.Thread(target=call)
    thread.start()
    thread.join()
    assert [described(error) for error in caught] == [("PredictorError", "", "KeyboardInterrupt")]
