"""The built-in runners, and one a plugin might bring, pass the public suite; runners with a fault do not."""

from __future__ import annotations

import contextlib
import itertools
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextvars import copy_context
from pathlib import Path
from typing import Any, ClassVar

import pytest

from engine import Call, Engine, NestingError, current_call, hookimpl
from engine.runners import Body, Channel, Report, own
from engine.testing import KINDS, Give, Journal, Kind, Return, RunnerConformance, Script, expected, yields
from tests._kit.internals import executions_of
from tests._kit.waits import until


class TestDefault(RunnerConformance):
    runner = None


class TestThread(RunnerConformance):
    runner = "thread"


class TestInline(RunnerConformance):
    runner = "inline"
    # Sync code has no event loop: what is async, or turns out to be, is refused there with advice.
    kinds: ClassVar = {name: kind for name, kind in KINDS.items() if not (kind.is_async or kind.is_driven_async)}


class SharedEngine(Engine):
    """An engine that many tests use, with workers that are at work already: the end of a `with` leaves it open."""

    def __exit__(self, *_: object) -> None:
        # What was dropped is finalised in its worker, which tells a little later.
        until(lambda: not executions_of(self), "every call of this engine ends")

    def warm_up(self) -> None:
        """Have both workers serve at the same time, so that neither is to be started after this, nor idle for long.

        The input is a large one: that is when memory is shared with a worker for inputs, and it stays.
        """
        streams = [self.predictions.stream(count, {"large": bytes(200_000)}, runner="process") for _ in range(2)]
        pids = {next(stream).value for stream in streams}
        for stream in streams:
            stream.close()
        assert len(pids) == 2


def count(large: bytes) -> Iterator[int]:
    """The number of the process, then more without end."""
    yield os.getpid()
    yield from itertools.count()


@pytest.fixture(scope="class")
def shared() -> Iterator[SharedEngine]:
    with contextlib.closing(SharedEngine(discover=False, workers=2, grace=30.0)) as shared:
        yield shared


class TestProcess(RunnerConformance):
    """Bodies in workers keep their journals in files. None may cost its worker, for another would be left behind."""

    runner = "process"

    @pytest.fixture
    def warm(self, shared: SharedEngine) -> SharedEngine:
        shared.warm_up()
        return shared

    @pytest.fixture(autouse=True)
    def leaves_nothing_behind(self, warm: SharedEngine, leaves_nothing_behind: None) -> None:
        """Count from where the workers are there."""

    @pytest.fixture(autouse=True)
    def use(self, warm: SharedEngine, tmp_path: Path) -> None:
        self.given: Engine | None = warm
        self.folder = tmp_path

    def engine(self) -> Engine:
        return self.given or Engine(discover=False)

    def test_closing_the_engine_ends_its_streams(self, yielding: Kind) -> None:
        self.given = None
        super().test_closing_the_engine_ends_its_streams(yielding)


class TestDefaultOfTheEngine(RunnerConformance):
    """A runner may be the engine's default as well as the call's choice."""

    def engine(self) -> Engine:
        return Engine(discover=False, runner="thread")


# A runner from a plugin


class Elsewhere:
    """Runs each body in a new thread; `serve` is what that thread does."""

    name = "elsewhere"

    def __init__(self, serve: Callable[[Body, Channel], None] = own) -> None:
        self._serve = serve

    def start(self, body: Body, channel: Channel) -> None:
        threading.Thread(target=self._serve, args=(body, channel), name="elsewhere").start()


class Plugin:
    """Offers one runner."""

    def __init__(self, runner: Elsewhere) -> None:
        self._runner = runner

    @hookimpl
    def engine_runners(self) -> Iterator[Elsewhere]:
        yield self._runner


class TestPlugin(RunnerConformance):
    runner = "elsewhere"

    def engine(self) -> Engine:
        return Engine(discover=False, plugins=[Plugin(Elsewhere())])


class TestFileJournals(RunnerConformance):
    """Bodies in other processes keep their journals in files."""

    runner = "thread"
    kinds: ClassVar = {name: KINDS[name] for name in ("def-yield", "async-return")}

    @pytest.fixture(autouse=True)
    def keep_journals_in(self, tmp_path: Path) -> None:
        self.folder = tmp_path


# A runner whose threads wait for each other


class FewThreads:
    """Runs bodies in so many threads, in the order they come; with `refuses`, none of a body's calls waits for one."""

    name = "few-threads"

    def __init__(self, count: int, *, refuses: bool = False) -> None:
        self._refuses = refuses
        self._lock = threading.Lock()
        self._wanted = 0  # bodies that run or wait
        self._waiting: queue.SimpleQueue[tuple[Body, Channel] | None] = queue.SimpleQueue()
        self._threads = [threading.Thread(target=self._serve) for _ in range(count)]
        for thread in self._threads:
            thread.start()

    def start(self, body: Body, channel: Channel) -> None:
        with self._lock:
            if self._refuses and body.call.parent is not None and self._wanted >= len(self._threads):
                raise NestingError("every thread runs a body, and may wait for this one", str(body.call.parent))
            self._wanted += 1
        self._waiting.put((body, channel))

    def _serve(self) -> None:
        while (work := self._waiting.get()) is not None:
            own(*work)
            with self._lock:
                self._wanted -= 1

    def end(self) -> None:
        for _ in self._threads:
            self._waiting.put(None)
        for thread in self._threads:
            thread.join(10.0)
            assert not thread.is_alive(), "a body still waits for a call that its engine has ended"


@pytest.fixture
def few(request: pytest.FixtureRequest) -> Iterator[FewThreads]:
    few = FewThreads(**request.param)
    yield few
    few.end()


def suite_of(few: FewThreads, seconds: float = RunnerConformance.patience) -> RunnerConformance:
    class Suite(RunnerConformance):
        runner = "few-threads"
        calls_at_a_time = 8
        patience = seconds

        def engine(self) -> Engine:
            return Engine(discover=False, plugins=[few], grace=0.05)

    return Suite()


NESTING = (
    "test_a_body_may_call_another_on_the_same_runner",
    "test_bodies_may_call_each_other_several_deep",
    "test_bodies_at_the_same_time_may_each_call_another",
)
HANGS = (
    "the runner 'few-threads' hangs: bodies have waited 0.2 s for calls on the same runner, .* "
    r"Run each body in a thread of its own, or have start\(\) raise NestingError"
)


@pytest.mark.parametrize("few", [{"count": 1}], indirect=True, ids=["one thread"])
@pytest.mark.parametrize("how", ["create", "stream", "acreate", "astream"])
def test_the_suite_refuses_a_runner_whose_only_thread_waits_for_itself_and_ends_what_waits(
    few: FewThreads, how: str
) -> None:
    with pytest.raises(AssertionError, match=HANGS):
        suite_of(few, 0.2)._check_nesting(how, depth=1)


@pytest.mark.parametrize("few", [{"count": 4}], indirect=True, ids=["four threads"])
@pytest.mark.parametrize("name", NESTING[1:])
def test_the_suite_refuses_a_runner_whose_threads_may_all_wait_at_a_time(few: FewThreads, name: str) -> None:
    getattr(suite_of(few), NESTING[0])()
    with pytest.raises(AssertionError, match=HANGS):
        getattr(suite_of(few, 0.2), name)()


@pytest.mark.parametrize("few", [{"count": 1, "refuses": True}, {"count": 4, "refuses": True}], indirect=True, ids=str)
@pytest.mark.parametrize("name", NESTING)
def test_a_runner_passes_that_refuses_a_call_which_only_threads_that_wait_could_run(few: FewThreads, name: str) -> None:
    getattr(suite_of(few), name)()


def test_the_suite_says_that_a_runner_hangs_though_nothing_can_end_that(monkeypatch: pytest.MonkeyPatch) -> None:
    gate = threading.Event()

    class Stuck(Elsewhere):
        def start(self, body: Body, channel: Channel) -> None:
            if current_call() is not None:
                gate.wait()
            super().start(body, channel)

    class Suite(RunnerConformance):
        runner = "elsewhere"
        patience = 0.05

        def engine(self) -> Engine:
            return Engine(discover=False, plugins=[Stuck()], grace=0.05)

    monkeypatch.setattr("engine.testing.conformance._CLOSING", 0.05)
    try:
        with pytest.raises(AssertionError, match="the runner 'elsewhere' hangs"):
            getattr(Suite(), NESTING[0])()
    finally:
        gate.set()


# An owner of one's own


def body_of(function: Callable[[], Any]) -> Body:
    return Body(Call("@me/body", "elsewhere", None), function, (), {}, False, copy_context())


async def awaited(value: Any) -> Any:
    return value


@pytest.mark.parametrize("prefetch", [None, 0, 1])
@pytest.mark.parametrize("value", ["fixed", ["mutable"]], ids=["fixed", "mutable"])
@pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])
def test_a_returned_value_goes_with_its_end_and_wakes_its_consumer_once(
    value: Any, prefetch: int | None, *, is_async: bool
) -> None:
    channel = Channel(prefetch)
    woken: list[tuple[int, Report | None]] = []

    channel.consumers.append(lambda: woken.append((len(channel.items), channel.end)))
    own(body_of(lambda: awaited(value) if is_async else value), channel)
    assert woken == [(1, channel.end)]
    assert channel.end is not None
    assert channel.end.returned is value
    assert channel.take()[0] is value


@pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])
def test_a_body_that_was_asked_to_stop_before_its_owner_began_never_runs(*, is_async: bool) -> None:
    calls: list[str] = []

    def function() -> Any:
        calls.append("called")
        return awaited(None) if is_async else None

    channel = Channel()
    channel.request_stop()
    own(body_of(function), channel)
    assert calls == []
    assert channel.end is not None
    assert (channel.end.error, channel.end.returned, list(channel.items)) == (None, None, [])


# What the suite is good for


def drops_the_last(body: Body, channel: Channel) -> None:
    *partials, _ = body.context.run(lambda: list(body.start()))
    serve(body, channel, partials)


def turns_around(body: Body, channel: Channel) -> None:
    serve(body, channel, reversed(body.context.run(lambda: list(body.start()))))


def runs_ahead(body: Body, channel: Channel) -> None:
    """Takes no notice of what the channel says about pauses, or of a request to stop."""
    serve(body, channel, body.start())


def swallows_failures(body: Body, channel: Channel) -> None:
    partials = []
    with contextlib.suppress(Exception):
        partials.extend(body.context.run(body.start))
    serve(body, channel, partials)


def leaves_the_context(body: Body, channel: Channel) -> None:
    serve(body, channel, body.start())


def serve(body: Body, channel: Channel, partials: Any) -> None:
    for each in partials:
        channel.offer(each, 0.0, 0.0)
    body.release_slot()
    channel.finish(Report())


FAULTS = [
    (drops_the_last, "test_every_consumer_sees_the_same_partials"),
    (turns_around, "test_every_consumer_sees_the_same_partials"),
    (leaves_the_context, "test_every_consumer_sees_the_same_partials"),
    (swallows_failures, "test_a_failure_follows_its_partials_once"),
    (runs_ahead, "test_a_producer_waits_past_a_partial_that_could_change"),
    (runs_ahead, "test_a_producer_stops_when_its_consumer_reads_no_more"),
]


@pytest.mark.parametrize(("fault", "name"), FAULTS, ids=lambda each: getattr(each, "__name__", each))
def test_the_suite_refuses_a_runner_that(fault: Callable[[Body, Channel], None], name: str) -> None:
    class Suite(RunnerConformance):
        runner = "elsewhere"

        def engine(self) -> Engine:
            return Engine(discover=False, plugins=[Plugin(Elsewhere(fault))])

    with pytest.raises(AssertionError, match=r"expected|nothing was raised|its consumer read no more"):
        getattr(Suite(), name)(KINDS["def-yield"])


# The module itself


def test_every_kind_performs_the_same_script() -> None:
    script = Script((Give("a"), Give("b"), Return("c")))
    for kind in KINDS.values():
        wanted = expected(script, kind)
        assert wanted.partials == (("a", "b") if kind.is_yielding else ("c",))
        assert wanted.returned == ("c" if kind.keeps_return else None)


def test_every_kind_has_a_record_of_its_own_that_stays_the_same() -> None:
    records = [kind.predictor() for kind in KINDS.values()]
    assert len({record.tag for record in records}) == len(KINDS)
    assert all(kind.predictor() is record for kind, record in zip(KINDS.values(), records, strict=True))


def test_a_script_can_be_performed_without_an_engine() -> None:
    journal = Journal()
    assert list(yields(Script((Give(1), Give(2))), journal)) == [1, 2]
    assert journal.lines == ("0 unset", "1 unset", "finally unset")


@pytest.mark.parametrize("kind", [KINDS["def-yield"], KINDS["async-gives-generator"]], ids=lambda kind: kind.name)
def test_a_producer_elsewhere_may_have_run_on_and_one_in_lock_step_may_not(kind: Kind) -> None:
    wanted = expected(Script((Give(1), Give(["mutable"]), Give(3))), kind)
    first, second = wanted.cuts[:2]
    assert wanted.lines_if_stopped(0, is_in_lock_step=False) == {()}
    assert wanted.lines_if_stopped(1, is_in_lock_step=True) == {first}
    assert wanted.lines_if_stopped(1, is_in_lock_step=False) == {first, second}


def test_the_module_is_imported_without_pytest() -> None:
    code = "import sys, engine.testing; sys.exit('pytest' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
