"""Where instances of classes live: in the thread that set them up, which is their own unless a caller runs them inline.

What `setup` makes may work in its own thread only: a connection of `sqlite3` refuses every other, and so does `Bound`.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import signal
import sqlite3
import threading
import time
import weakref
from typing import TYPE_CHECKING, Any, Final

import pytest

from engine import Engine, EngineClosedError, EngineError, NestingError, Predictor
from engine.runners import slots as slots_module
from engine.runners.pinned import PinnedThread
from engine.runners.slots import Slots

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

PATIENCE: Final = 10.0  # seconds; only a test that fails waits as long
TAG: Final = "@tests/bound"
PINNED: Final = "engine-pinned"


def until(condition: Callable[[], bool], what: str) -> None:
    """Wait for something another thread brings about."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not come about within {PATIENCE} s"
        time.sleep(0.001)


def in_thread(function: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=function, daemon=True)
    thread.start()
    return thread


def joined(thread: threading.Thread) -> None:
    thread.join(PATIENCE)
    assert not thread.is_alive()


class Notes:
    """What happened to an instance, and in which threads."""

    def __init__(self) -> None:
        self.lines: list[tuple[str, threading.Thread]] = []

    def add(self, line: str) -> None:
        self.lines.append((line, threading.current_thread()))

    def threads(self, *lines: str) -> set[threading.Thread]:
        return {thread for line, thread in self.lines if line in lines or not lines}

    def count(self, line: str) -> int:
        return sum(each == line for each, _ in self.lines)


def bound(notes: Notes) -> type:
    """A class whose instances work in the thread of their `setup` only."""

    class Bound:
        def __init__(self) -> None:
            notes.add("constructor")

        def setup(self) -> None:
            notes.add("setup")
            self.database = sqlite3.connect(":memory:")

        def predict(self) -> Iterator[int]:
            try:
                notes.add("predict")
                yield self.database.execute("select 1").fetchone()[0]
                yield self.database.execute("select 2").fetchone()[0]
            finally:
                notes.add("finally")

        def teardown(self) -> None:
            notes.add("teardown")
            self.database.close()

    return Bound


def moving(notes: Notes) -> type:
    """A class whose instances work in every thread."""

    class Moving:
        def setup(self) -> None:
            notes.add("setup")

        def predict(self) -> int:
            notes.add("predict")
            return 2

        def teardown(self) -> None:
            notes.add("teardown")

    return Moving


@pytest.fixture
def notes() -> Notes:
    return Notes()


@pytest.fixture
def pinned(notes: Notes, muna: Engine) -> Engine:
    muna.predictors.register(TAG, bound(notes))
    return muna


def pinned_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == PINNED]


# Set up in a thread of its own.


async def aread(muna: Engine) -> list[int]:
    return [value async for value in muna.predictions.astream(TAG).values()]


async def aleave(muna: Engine) -> None:
    async with muna.predictions.astream(TAG) as stream:
        await anext(stream)


class ListOf:
    """A reducer of the test's own, which runs where it is consumed."""

    name = "list_of"

    def start(self) -> list[Any]:
        return []

    def step(self, state: list[Any], partial: Any) -> list[Any]:
        return [*state, partial]

    def finish(self, state: list[Any]) -> list[Any]:
        return state


list_of: Final[ListOf] = ListOf()


CALLS: Final[dict[str, Callable[[Engine], object]]] = {
    "acreate": lambda muna: asyncio.run(muna.predictions.acreate(TAG)),
    "astream": lambda muna: asyncio.run(aread(muna)),
    "astream-left": lambda muna: asyncio.run(aleave(muna)),
    "create": lambda muna: muna.predictions.create(TAG, runner="thread"),
    "create-collected": lambda muna: muna.predictions.create(TAG, runner="thread", reduce=list_of),
    "stream": lambda muna: list(muna.predictions.stream(TAG, runner="thread").values()),
}
BEGINNINGS: Final[dict[str, Callable[[Engine], object]]] = {
    "load": lambda muna: muna.load(TAG),
    "load-thread": lambda muna: muna.load(TAG, runner="thread"),
    "aload": lambda muna: asyncio.run(muna.aload(TAG)),
    **CALLS,
}
ENDS: Final[dict[str, Callable[[Engine], object]]] = {
    "unload": lambda muna: muna.unload(TAG),
    "aunload": lambda muna: asyncio.run(muna.aunload(TAG)),
    "close": lambda muna: muna.close(),
    "aclose": lambda muna: asyncio.run(muna.aclose()),
}


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

    callers = [in_thread(lambda: asyncio.run(many())) for _ in range(2)]
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
            meeting.wait(PATIENCE)
            result: int = super().predict()
            return result

    muna.predictors.register(Predictor(TAG, Meeting, concurrency=3))
    if beginning == "load":
        muna.load(TAG)
    for _ in range(2):
        callers = [in_thread(lambda: muna.predictions.create(TAG, runner="thread")) for _ in range(3)]
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
        go.wait(PATIENCE)
        create()

    callers = [
        in_thread(lambda create=create: call(create))  # type: ignore[misc]
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
    joined(in_thread(lambda: muna.predictions.create(TAG)))
    asyncio.run(muna.predictions.acreate(TAG))
    muna.unload(TAG)
    assert notes.count("setup") == notes.count("teardown") == 1
    inline, other, owned = [thread for line, thread in notes.lines if line == "predict"]
    assert inline is threading.current_thread()
    assert other is not owned
    assert notes.threads("setup", "teardown") == {owned}


def test_one_that_an_inline_caller_set_up_has_one_thread_for_all_other_calls_and_is_torn_down_by_whoever_asks(
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


# Threads that are busy, and calls that would wait for themselves.


class Stuck:
    """A class whose `predict` waits at a gate, whatever is asked of it."""

    def __init__(self, notes: Notes) -> None:
        self.reached, self.go = threading.Event(), threading.Event()
        stuck = self

        class Model:
            def setup(self) -> None:
                notes.add("setup")

            def predict(self) -> int:
                stuck.reached.set()
                stuck.go.wait(PATIENCE)
                notes.add("over")
                return 1

            def teardown(self) -> None:
                notes.add("teardown")

        self.model = Model

    async def call(self, muna: Engine) -> None:
        with pytest.raises(EngineClosedError):
            await muna.predictions.acreate(self.model)


@pytest.mark.fault(47)
def test_one_whose_thread_is_stuck_is_not_torn_down_anywhere_else_and_the_log_says_so(
    notes: Notes, caplog: pytest.LogCaptureFixture
) -> None:
    stuck = Stuck(notes)
    muna = Engine(discover=False, grace=0.05)
    task = in_thread(lambda: asyncio.run(stuck.call(muna)))
    assert stuck.reached.wait(PATIENCE)
    muna.close()
    assert "is not torn down: the thread that set it up" in caplog.text
    assert "is torn down while" not in caplog.text
    stuck.go.set()
    joined(task)
    until(lambda: not pinned_threads(), "the end of its thread")
    assert [line for line, _ in notes.lines] == ["setup", "over"]


def test_one_that_is_loaded_keeps_its_thread_while_it_cannot_be_unloaded(notes: Notes) -> None:
    stuck = Stuck(notes)
    with Engine(discover=False, grace=0.05) as muna:
        caller = in_thread(lambda: muna.predictions.create(stuck.model, runner="thread"))
        assert stuck.reached.wait(PATIENCE)
        with pytest.raises(EngineError, match="in use by"):
            muna.unload(stuck.model)
        stuck.go.set()
        joined(caller)
        muna.predictions.create(stuck.model, runner="thread")
        muna.unload(stuck.model)
    assert [line for line, _ in notes.lines] == ["setup", "over", "over", "teardown"]
    assert len(notes.threads()) == 1


def test_an_instance_that_could_not_be_unloaded_before_its_successor_stood_is_torn_down_with_the_engine(
    muna: Engine, notes: Notes, monkeypatch: pytest.MonkeyPatch
) -> None:
    stuck = Stuck(notes)
    muna.predictors.register(Predictor(TAG, stuck.model, concurrency=2))
    caller = in_thread(lambda: muna.predictions.create(TAG, runner="thread"))
    assert stuck.reached.wait(PATIENCE)

    def wait_for(slots: Slots, holders: Any, _seconds: float) -> Any:
        muna.load(TAG)  # while the unloading waits for what still uses it
        return holders

    with monkeypatch.context() as patched:
        patched.setattr(Slots, "wait_for", wait_for)
        with pytest.raises(EngineError, match="in use by"):
            muna.unload(TAG)
    stuck.go.set()
    joined(caller)
    muna.close()
    assert notes.count("setup") == notes.count("teardown") == 2
    assert len(notes.threads("setup", "teardown")) == 1
    until(lambda: not pinned_threads(), "the end of its thread")


def test_unload_waits_for_the_call_that_runs_and_tears_down_in_its_thread(notes: Notes) -> None:
    stuck = Stuck(notes)
    with Engine(discover=False, grace=PATIENCE) as muna:
        caller = in_thread(lambda: muna.predictions.create(stuck.model, runner="thread"))
        assert stuck.reached.wait(PATIENCE)
        resident = muna.predictions.resolve(stuck.model)
        unloader = in_thread(lambda: muna.unload(stuck.model))
        until(lambda: not resident.is_ready, "the unloading")
        stuck.go.set()
        joined(unloader)
        joined(caller)
    assert [line for line, _ in notes.lines] == ["setup", "over", "teardown"]
    assert len(notes.threads()) == 1


def test_an_unload_that_is_on_its_way_when_the_engine_closes_tears_down_in_its_thread_all_the_same(
    notes: Notes, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, go = threading.Event(), threading.Event()
    post = PinnedThread.post

    def slow_post(thread: PinnedThread, function: Any, call: Any) -> Any:
        asked.set()
        assert go.wait(PATIENCE)
        return post(thread, function, call)

    muna = Engine([Predictor(TAG, bound(notes))], discover=False, grace=0.05)
    muna.load(TAG)
    with monkeypatch.context() as patched:
        patched.setattr(PinnedThread, "post", slow_post)
        unloader = in_thread(lambda: muna.unload(TAG))
        assert asked.wait(PATIENCE)
        muna.close()
        go.set()
        joined(unloader)
    assert [line for line, _ in notes.lines] == ["constructor", "setup", "teardown"]
    (thread,) = notes.threads()
    joined(thread)


def test_a_sync_close_on_a_loops_own_thread_leaves_the_teardown_to_its_thread(notes: Notes) -> None:
    async def main() -> None:
        muna = Engine(discover=False)
        stream = muna.predictions.astream(bound(notes))
        await anext(stream)
        muna.close()

    asyncio.run(main())
    until(lambda: notes.count("teardown") == 1, "the teardown")
    assert [line for line, _ in notes.lines] == ["constructor", "setup", "predict", "finally", "teardown"]
    assert len(notes.threads()) == 1


@pytest.mark.fault(107)
@pytest.mark.parametrize("fails", [False, True])
def test_a_call_in_its_thread_does_not_wait_for_a_setup_that_waits_for_that_thread(
    muna: Engine, fails: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, go, setups = threading.Event(), threading.Event(), []
    post = PinnedThread.post

    def slow_post(thread: PinnedThread, function: Any, call: Any) -> Any:
        asked.set()
        assert go.wait(PATIENCE)
        return post(thread, function, call)

    class Model:
        def setup(self) -> None:
            setups.append(threading.current_thread())
            if fails:
                raise OSError("no model file")

        def predict(self) -> int:
            return 1

    muna.predictors.register(TAG, Model)
    ends: list[object] = []

    def ended(call: Callable[[], object]) -> None:
        try:
            ends.append(call())
        except OSError as error:
            ends.append(str(error))

    with monkeypatch.context() as patched:
        patched.setattr(PinnedThread, "post", slow_post)
        loader = in_thread(lambda: ended(lambda: muna.load(TAG)))
        assert asked.wait(PATIENCE)
        joined(in_thread(lambda: ended(lambda: muna.predictions.create(TAG, runner="thread").value)))
        go.set()
        joined(loader)
    assert ends == (["no model file"] * 2 if fails else [1, None])
    assert len(setups) == 1


@pytest.mark.fault(97)
@pytest.mark.parametrize("member", ["setup", "teardown"])
@pytest.mark.parametrize("call", [*CALLS, "through-another"])
def test_a_setup_or_teardown_that_calls_its_own_class_is_refused_and_does_not_wait_for_ever(
    muna: Engine, member: str, call: str
) -> None:
    ends: list[str] = []

    def through_another(muna: Engine) -> None:
        muna.predictions.create(lambda: muna.predictions.create(TAG, runner="thread"), runner="thread")

    def call_itself(name: str) -> None:
        if name != member or ends:
            return
        ends.append("called")
        try:
            {**CALLS, "through-another": through_another}[call](muna)
        except NestingError:
            ends.append("refused")

    class Model:
        def setup(self) -> None:
            call_itself("setup")

        def predict(self) -> int:
            return 1

        def teardown(self) -> None:
            call_itself("teardown")

    muna.predictors.register(TAG, Model)

    def load_and_unload() -> None:
        muna.load(TAG)
        muna.unload(TAG)

    joined(in_thread(load_and_unload))
    assert ends == ["called", "refused"]


def test_a_call_that_waits_long_for_a_setup_that_load_began_is_told_of_in_the_log(
    muna: Engine, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slots_module, "_PATIENCE", 0.01)
    reached, go = threading.Event(), threading.Event()

    class Slow:
        def setup(self) -> None:
            reached.set()
            go.wait(PATIENCE)

        def predict(self) -> int:
            return 1

    muna.predictors.register(TAG, Slow)
    loader = in_thread(lambda: muna.load(TAG))
    assert reached.wait(PATIENCE)
    caller = in_thread(lambda: muna.predictions.create(TAG, runner="thread"))
    until(lambda: "held by its setup in another call" in caplog.text, "the line in the log")
    go.set()
    joined(loader)
    joined(caller)
    assert caplog.text.count("has been waited for") == 1


@contextlib.contextmanager
def interrupted_once(reached: threading.Event) -> Iterator[None]:
    """Have Ctrl-C come to this thread once something is reached: as often as it takes to end a wait, and heard once."""
    heard = threading.Event()

    def hear(*_: object) -> None:
        if not heard.is_set():
            heard.set()
            raise KeyboardInterrupt

    def interrupt() -> None:
        assert reached.wait(PATIENCE)
        while not heard.wait(0.01):  # one that comes just before a wait does not end it
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    before = signal.signal(signal.SIGINT, hear)
    interrupter = in_thread(interrupt)
    try:
        yield
        joined(interrupter)
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.fault(107, 108)
def test_a_setup_goes_on_when_ctrl_c_ends_the_wait_for_it_and_serves_the_next_call(muna: Engine) -> None:
    reached, go = threading.Event(), threading.Event()
    setups: list[int] = []

    class Slow:
        def setup(self) -> None:
            setups.append(1)
            reached.set()
            go.wait(PATIENCE)

        def predict(self) -> int:
            return 1

    muna.predictors.register(TAG, Slow)
    with interrupted_once(reached), pytest.raises(KeyboardInterrupt):
        muna.load(TAG)
    caller = in_thread(lambda: muna.predictions.create(TAG, runner="thread"))
    go.set()
    joined(caller)
    assert setups == [1]


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
    deadline = time.monotonic() + PATIENCE
    while (ended := os.waitpid(child, os.WNOHANG))[0] == 0:
        assert time.monotonic() < deadline
        time.sleep(0.001)
    assert os.waitstatus_to_exitcode(ended[1]) == 0
