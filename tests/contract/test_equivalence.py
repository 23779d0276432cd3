"""The product itself: every kind of predictor, consumed every way, in every place, shows the transcript of one model.

`engine.testing.expected` is the model. Hypothesis writes the scripts; for each script every cell of one kind (consumers
times runners times reducers) is run and compared with it. A body in a worker keeps its journal in a file, gives copies,
and does not see the caller's mark; it gets fewer scripts, for each of its steps costs a system call.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
from collections.abc import Callable, Iterator
from contextvars import copy_context
from pathlib import Path
from typing import Any, Final

import attrs
import pytest
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from engine import Engine, Reducer
from engine._reducers import reducer_of
from engine.testing import KINDS, Fail, Give, Journal, Kind, Pause, Return, Script, SetMark, Step, described, expected
from tests._kit.internals import executions_of
from tests.contract.cells import (
    AREADERS,
    ASTOPPERS,
    CONCAT,
    PROCESS,
    READERS,
    REDUCTIONS,
    RUNNERS,
    STOPPERS,
    Cell,
    Reduction,
    place_for_asyncio,
    place_for_sync_code,
)

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
    assert executions_of(muna) == ()


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
    assert executions_of(worker.muna) == ()
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
