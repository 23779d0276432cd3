"""One cell of the cube: a script performed by a kind, read by one consumer in one place, and held against its model."""

from __future__ import annotations

import asyncio
import gc
import itertools
import warnings
from collections.abc import Callable
from contextvars import copy_context
from pathlib import Path
from typing import Any, Final

import attrs
import pytest

from engine import Engine, NoPartialsError, PredictionCancelledError, fold
from engine.testing import MARK, Journal, Kind, Script, Transcript, arrival, described, expected
from tests._kit.waits import auntil

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
    """A reducer of a caller's own."""

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
        """Whether what a reducer made is as wanted: it is no predictor's own object, so an equal one will do here."""
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
    """What is left of a stream that nothing refers to any more."""

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
        await auntil(lambda: not cell.stop_after or (ends_with_finally(cell) and bool(caught)))
    place = place_for_asyncio(cell.kind, cell.runner)
    check_abandoned(cell, left, place, [each.category for each in caught], needs_owner=True)


async def astop_by_cancel(cell: Cell) -> None:
    stream = cell.aopen()
    check_partials(cell, await atake(cell, stream), cell.wanted.partials[: cell.stop_after])
    stream.cancel()
    stream.cancel()
    with pytest.raises(PredictionCancelledError):
        await anext(stream)
    assert [each async for each in stream] == []
    await auntil(lambda: ends_with_finally(cell))
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
    await auntil(lambda: ends_with_finally(cell))
    check_stopped(cell, "closed", found[0], place_for_asyncio(cell.kind, cell.runner), raised=raised)


READERS: Final = (read_predictions, read_values, read_snapshots, read_create)
AREADERS: Final = (aread_predictions, aread_values, aread_snapshots, aread_create)
STOPPERS: Final = (stop_by_close, stop_by_leaving, stop_by_cancel)
ASTOPPERS: Final = (astop_by_close, astop_by_leaving, astop_by_cancel, astop_by_cancelled_task)
