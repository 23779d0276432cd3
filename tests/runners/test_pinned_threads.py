"""Where instances of classes live: in the thread that set them up, which is their own unless a caller runs them inline.

What `setup` makes may work in its own thread only: a connection of `sqlite3` refuses every other, and so does `Bound`.
"""

from __future__ import annotations

import asyncio
import gc
import os
import threading
import weakref
from typing import TYPE_CHECKING, Any

import pytest

from engine import Engine, Predictor
from tests._kit.waits import TIMEOUT, joined, started, until
from tests.runners.bound_instances import BEGINNINGS, CALLS, ENDS, TAG, Notes, bound, moving, pinned_threads

if TYPE_CHECKING:
    from collections.abc import Callable

# Set up in a thread of its own.


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("beginning", BEGINNINGS)
def test_the_thread_that_sets_an_instance_up_makes_every_call_of_it_and_tears_it_down(
    pinned: Engine, notes: Notes, beginning: str, end: str
) -> None:
    BEGINNINGS[beginning](pinned)
    for call in CALLS.values():
        pinned.predictions.create(lambda: 1, runner="thread")  # takes turns with other owners
        call(pinned)
    ENDS[end](pinned)
    assert notes.count("predict") == notes.count("finally") == len(CALLS) + (beginning in CALLS)
    assert notes.count("setup") == notes.count("teardown") == 1
    (thread,) = notes.threads()
    assert thread is not threading.current_thread()
    joined(thread)  # it is kept for the instance, and no longer


def test_calls_that_come_from_many_threads_and_tasks_at_once_share_its_thread(pinned: Engine, notes: Notes) -> None:
    async def many() -> list[Any]:
        return await asyncio.gather(*(pinned.predictions.acreate(TAG) for _ in range(20)))

    callers = [started(lambda: asyncio.run(many())) for _ in range(2)]
    for _ in range(20):
        pinned.predictions.create(TAG, runner="thread")
    for caller in callers:
        joined(caller)
    assert notes.count("finally") == 60
    assert notes.count("setup") == 1
    assert len(notes.threads()) == 1


@pytest.mark.parametrize("beginning", ["load", "create"])
def test_with_calls_at_a_time_each_has_a_thread_and_only_setup_and_teardown_share_one(
    muna: Engine, notes: Notes, beginning: str
) -> None:
    meeting = threading.Barrier(3)

    class Meeting(moving(notes)):  # type: ignore[misc]
        def predict(self) -> int:
            meeting.wait(TIMEOUT)
            result: int = super().predict()
            return result

    muna.predictors.register(Predictor(TAG, Meeting, concurrency=3))
    if beginning == "load":
        muna.load(TAG)
    for _ in range(2):
        callers = [started(lambda: muna.predictions.create(TAG, runner="thread")) for _ in range(3)]
        for caller in callers:
            joined(caller)
    muna.unload(TAG)
    assert notes.count("predict") == 6
    assert notes.count("setup") == notes.count("teardown") == 1
    (home,) = notes.threads("setup", "teardown")
    assert len(notes.threads("predict")) >= 3
    assert home not in notes.threads("predict")


@pytest.mark.parametrize("concurrency", [1, 2])
def test_a_class_passed_to_create_is_set_up_once_for_all_its_callers(
    muna: Engine, notes: Notes, concurrency: int
) -> None:
    model = moving(notes)
    model.__predictor__ = {"tag": TAG, "concurrency": concurrency}  # type: ignore[attr-defined]
    go = threading.Barrier(4)

    def call(create: Callable[[], object]) -> None:
        go.wait(TIMEOUT)
        create()

    callers = [
        started(lambda create=create: call(create))  # type: ignore[misc]
        for create in (
            lambda: muna.predictions.create(model),
            lambda: muna.predictions.create(model, runner="thread"),
            lambda: asyncio.run(muna.predictions.acreate(model)),
            lambda: list(muna.predictions.stream(model, runner="thread")),
        )
    ]
    for caller in callers:
        joined(caller)
    muna.load(model)
    muna.close()
    assert [line for line, _ in notes.lines if line != "predict"] == ["setup", "teardown"]
    assert notes.count("predict") == 4


def test_after_unload_it_is_set_up_anew_and_lives_in_that_thread(pinned: Engine, notes: Notes) -> None:
    for _ in range(2):
        pinned.predictions.create(TAG, runner="thread")
        pinned.predictions.create(TAG, runner="thread")
        pinned.unload(TAG)
    assert [line for line, _ in notes.lines].count("setup") == 2
    halves = notes.lines[: len(notes.lines) // 2], notes.lines[len(notes.lines) // 2 :]
    assert [len({thread for _, thread in half}) for half in halves] == [1, 1]


@pytest.mark.fault(107)
def test_a_setup_that_fails_leaves_no_thread_and_the_next_call_tries_again(muna: Engine) -> None:
    failing = [True]

    class Fickle:
        def setup(self) -> None:
            if failing:
                raise OSError("no model file")
            self.thread = threading.get_ident()

        def predict(self) -> bool:
            return self.thread == threading.get_ident()

    for first in (lambda: muna.load(Fickle), lambda: muna.predictions.create(Fickle, runner="thread")):
        with pytest.raises(OSError, match="no model file"):
            first()
        until(lambda: not pinned_threads(), "the end of its thread")
    failing.clear()
    assert muna.predictions.create(Fickle, runner="thread").value is True
    assert asyncio.run(muna.predictions.acreate(Fickle)).value is True


@pytest.mark.parametrize("beginning", ["load", "create"])
def test_a_thread_that_cannot_be_started_fails_that_call_and_the_next_one_works(
    pinned: Engine, notes: Notes, beginning: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cannot(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", cannot)
        with pytest.raises(RuntimeError, match="can't start new thread"):
            BEGINNINGS[beginning](pinned)
    assert pinned.predictions.create(TAG, runner="thread").value == 2
    assert len(notes.threads()) == 1


# Run inline.


def test_an_inline_caller_calls_it_in_a_thread_of_its_own_and_load_may_set_it_up_there(
    pinned: Engine, notes: Notes
) -> None:
    pinned.load(TAG, runner="inline")
    assert pinned.predictions.create(TAG).value == 2
    assert list(pinned.predictions.stream(TAG, runner="inline").values()) == [1, 2]
    pinned.unload(TAG)
    assert notes.threads() == {threading.current_thread()}
    assert not pinned_threads()


def test_a_predictor_whose_author_or_engine_runs_it_inline_is_loaded_in_the_callers_thread(notes: Notes) -> None:
    with Engine([Predictor(TAG, bound(notes), runner="inline")], discover=False) as by_author:
        by_author.load(TAG)
        by_author.predictions.create(TAG)
    with Engine([Predictor(TAG, bound(notes))], discover=False, runner="inline") as by_engine:
        by_engine.load(TAG)
        by_engine.predictions.create(TAG)
    assert notes.count("finally") == notes.count("teardown") == 2
    assert notes.threads() == {threading.current_thread()}


def test_an_asyncio_caller_that_runs_it_inline_has_it_set_up_on_the_event_loop(pinned: Engine, notes: Notes) -> None:
    async def main() -> None:
        await pinned.aload(TAG, runner="inline")
        assert (await pinned.predictions.acreate(TAG, runner="inline")).value == 2
        pinned.unload(TAG)

    asyncio.run(main())
    assert notes.threads() == {threading.current_thread()}


def test_one_that_was_loaded_is_called_by_inline_callers_in_their_own_threads_all_the_same(
    muna: Engine, notes: Notes
) -> None:
    muna.predictors.register(TAG, moving(notes))
    muna.load(TAG)
    muna.predictions.create(TAG)
    joined(started(lambda: muna.predictions.create(TAG)))
    asyncio.run(muna.predictions.acreate(TAG))
    muna.unload(TAG)
    assert notes.count("setup") == notes.count("teardown") == 1
    inline, other, owned = [thread for line, thread in notes.lines if line == "predict"]
    assert inline is threading.current_thread()
    assert other is not owned
    assert notes.threads("setup", "teardown") == {owned}


def test_one_that_an_inline_caller_set_up_has_one_thread_for_all_other_calls_and_is_torn_down_where_it_is_asked_for(
    muna: Engine, notes: Notes
) -> None:
    muna.predictors.register(TAG, moving(notes))
    muna.predictions.create(TAG)
    for _ in range(2):
        muna.predictions.create(lambda: 1, runner="thread")
        muna.predictions.create(TAG, runner="thread")
        asyncio.run(muna.predictions.acreate(TAG))
    (thread,) = notes.threads("predict") - {threading.current_thread()}
    muna.unload(TAG)
    assert notes.threads("setup", "teardown") == {threading.current_thread()}
    joined(thread)


# What ends without being closed, and what is forked.


@pytest.mark.filterwarnings("ignore:an engine was left unclosed:ResourceWarning")
def test_an_engine_that_is_dropped_lets_the_threads_of_its_instances_go(notes: Notes) -> None:
    muna = Engine(discover=False)
    muna.predictions.create(moving(notes), runner="thread")
    gone = weakref.ref(muna)
    (thread,) = pinned_threads()
    del muna
    gc.collect()
    joined(thread)
    assert gone() is None


def forked(function: Callable[[], bool]) -> int:
    """The exit code of a forked child: 0 where `function` gives true there."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            code = 0 if function() else 2
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_forked_child_sets_an_instance_of_a_thread_up_anew_and_keeps_one_of_a_caller(
    pinned: Engine, notes: Notes
) -> None:
    pinned.predictors.register("@tests/inline", moving(inline := Notes()))
    pinned.predictions.create(TAG, runner="thread")
    pinned.predictions.create("@tests/inline")

    def in_child() -> bool:
        pinned.predictions.create(TAG, runner="thread")
        pinned.predictions.create(TAG, runner="thread")
        pinned.predictions.create("@tests/inline")
        pinned.unload(TAG)
        child = notes.lines[4:]
        is_one = len({thread for _, thread in child}) == 1 and child[0][1] is not notes.lines[0][1]
        return is_one and notes.count("setup") == 2 and notes.count("teardown") == 1 and inline.count("setup") == 1

    assert forked(in_child) == 0
    assert asyncio.run(pinned.predictions.acreate(TAG)).value == 2
    assert len(notes.threads()) == 1


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_child_that_an_instances_own_thread_forks_and_leaves_to_return_ends(muna: Engine) -> None:
    class Forks:
        def predict(self) -> int:
            return os.fork()

    child = muna.predictions.create(Forks, runner="thread").value
    ended = 0, 0

    def has_ended() -> bool:
        nonlocal ended
        ended = os.waitpid(child, os.WNOHANG)
        return ended[0] != 0

    until(has_ended, "the child ends")
    assert os.waitstatus_to_exitcode(ended[1]) == 0
