"""What waits for the own thread of an instance while that is busy, and calls that would wait for themselves."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import threading
from typing import TYPE_CHECKING, Any

import pytest

from engine import Engine, EngineClosedError, EngineError, NestingError, Predictor
from engine.runners import slots as slots_module
from engine.runners.pinned import PinnedThread
from engine.runners.slots import Slots
from tests._kit.internals import loaded_of
from tests._kit.waits import TIMEOUT, joined, started, until
from tests.runners.bound_instances import CALLS, TAG, Notes, bound, pinned_threads

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


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
                stuck.go.wait(TIMEOUT)
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
    task = started(lambda: asyncio.run(stuck.call(muna)))
    assert stuck.reached.wait(TIMEOUT)
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
        caller = started(lambda: muna.predictions.create(stuck.model, runner="thread"))
        assert stuck.reached.wait(TIMEOUT)
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
    caller = started(lambda: muna.predictions.create(TAG, runner="thread"))
    assert stuck.reached.wait(TIMEOUT)

    def wait_for(slots: Slots, leases: Any, _seconds: float) -> Any:
        muna.load(TAG)  # while the unloading waits for what still uses it
        return leases

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
    with Engine(discover=False, grace=TIMEOUT) as muna:
        caller = started(lambda: muna.predictions.create(stuck.model, runner="thread"))
        assert stuck.reached.wait(TIMEOUT)
        loaded = loaded_of(muna, stuck.model)
        unloader = started(lambda: muna.unload(stuck.model))
        until(lambda: not loaded.is_ready, "the unloading")
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
        assert go.wait(TIMEOUT)
        return post(thread, function, call)

    muna = Engine([Predictor(TAG, bound(notes))], discover=False, grace=0.05)
    muna.load(TAG)
    with monkeypatch.context() as patched:
        patched.setattr(PinnedThread, "post", slow_post)
        unloader = started(lambda: muna.unload(TAG))
        assert asked.wait(TIMEOUT)
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
        assert go.wait(TIMEOUT)
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
        loader = started(lambda: ended(lambda: muna.load(TAG)))
        assert asked.wait(TIMEOUT)
        joined(started(lambda: ended(lambda: muna.predictions.create(TAG, runner="thread").value)))
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

    joined(started(load_and_unload))
    assert ends == ["called", "refused"]


def test_a_call_that_waits_long_for_a_setup_that_load_began_is_told_of_in_the_log(
    muna: Engine, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slots_module, "_LONG_WAIT", 0.01)
    reached, go = threading.Event(), threading.Event()

    class Slow:
        def setup(self) -> None:
            reached.set()
            go.wait(TIMEOUT)

        def predict(self) -> int:
            return 1

    muna.predictors.register(TAG, Slow)
    loader = started(lambda: muna.load(TAG))
    assert reached.wait(TIMEOUT)
    caller = started(lambda: muna.predictions.create(TAG, runner="thread"))
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
        assert reached.wait(TIMEOUT)
        while not heard.wait(0.01):  # one that comes just before a wait does not end it
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    before = signal.signal(signal.SIGINT, hear)
    interrupter = started(interrupt)
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
            go.wait(TIMEOUT)

        def predict(self) -> int:
            return 1

    muna.predictors.register(TAG, Slow)
    with interrupted_once(reached), pytest.raises(KeyboardInterrupt):
        muna.load(TAG)
    caller = started(lambda: muna.predictions.create(TAG, runner="thread"))
    go.set()
    joined(caller)
    assert setups == [1]
