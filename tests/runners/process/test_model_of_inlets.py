"""Any sequence of what consumers and workers may do to each other, against the promises that hold for all of them.

The workers are fakes on real pipes: no process is started, and what a worker says, and when, is a move like any other.
What is checked after every move: partials are delivered in order and none twice (P2); a stream ends once, and in one
state (P1); no consumer waits longer than the ladder is high (P3); one stream's trouble is no other's (P4); nothing is
left.
"""

from __future__ import annotations

import contextlib
import gc
import os
import pickle
import signal
import time
import warnings
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Final, cast

import attrs
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

import engine.runners.process.runner
from engine import Engine, EngineError, PredictionCancelledError, WorkerLostError
from engine._wire.failures import pack_failure
from engine._wire.frames import (
    COMMAND,
    CREDIT,
    DONE,
    FAILED,
    HEADER_SIZE,
    ITEMS,
    Decoder,
    pack,
    read_command,
    read_credit,
)
from engine.runners.process.spawn import _open
from engine.runners.process.worker import Worker
from tests._kit.internals import executions_of
from tests._kit.waits import TIMEOUT

GRACE: Final = 0.05
END: Final = "(the end)"


def numbers() -> Iterator[int]:
    """What is never run: the fakes answer for it."""
    yield 0


class FakeProcess:
    """What `Worker` needs of a process."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self.is_stubborn = False
        self.signals: list[int] = []
        self.exit_reader, self._exit_writer = os.pipe()
        self.far_ends: list[int] = []

    def poll(self) -> int | None:
        return self.returncode

    def wait(self, _seconds: float | None = None) -> int | None:
        return self.returncode

    def send_signal(self, number: int) -> None:
        self.signals.append(number)
        if number == signal.SIGKILL or not self.is_stubborn:
            self.die(-number)

    def die(self, code: int) -> None:
        if self.returncode is None:
            self.returncode = code
            for each in (*self.far_ends, self._exit_writer):
                os.close(each)


@attrs.define(eq=False)
class Fake:
    """The far side of one worker: what it was told, and what it says."""

    process: FakeProcess
    calls: int
    answers: int
    stops: int
    decoder: Decoder = attrs.field(factory=Decoder)
    number: int = 0  # of the call it serves
    limit: int = 0
    sent: int = 0

    @property
    def is_alive(self) -> bool:
        return self.process.returncode is None

    def listen(self) -> None:
        """Read what there is; leave when told to, and heed a stop unless it is stubborn."""
        if not self.is_alive:
            return
        for data in iter(lambda: read_some(self.calls), b""):
            self.decoder.feed(data)
        for frame in iter(lambda: self.decoder.frames.popleft() if self.decoder.frames else None, None):
            if frame.kind == COMMAND:
                order = read_command(frame)
                if order.what == "exit":
                    self.say(pack(DONE, frame.number, done()))
                    self.process.die(0)
                    return
                self.number, self.limit, self.sent = frame.number, order.limit, 0
            elif frame.kind == CREDIT and frame.number == self.number:
                taken, limit = read_credit(frame)
                assert taken <= self.sent  # no consumer takes what was never made
                assert limit >= self.limit
                self.limit = limit
        asked = Decoder()
        asked.feed(b"".join(iter(lambda: read_some(self.stops), b"")))
        if any(frame.number == self.number for frame in asked.frames) and self.number and not self.process.is_stubborn:
            self.end(pack(DONE, self.number, done()))

    def say(self, chunks: Any) -> None:
        if self.is_alive:
            os.write(self.answers, b"".join(chunks))

    def end(self, chunks: Any) -> None:
        self.number = 0
        self.say(chunks)


def read_some(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, 1 << 16)
    except BlockingIOError:
        return b""


def done() -> bytes:
    return pickle.dumps((0.0, None, False, None, None, True))


def failed() -> bytes:
    return pickle.dumps((pack_failure(LookupError("told")), True, False, None, None, True))


@attrs.define(eq=False)
class Reader:
    """A consumer with a thread of its own, and what became of it."""

    stream: Any
    outcome: Any
    thread: ThreadPoolExecutor = attrs.field(factory=lambda: ThreadPoolExecutor(1))
    pull: Future[Any] | None = None
    seen: list[int] = attrs.field(factory=list)
    failures: list[BaseException] = attrs.field(factory=list)
    ends: int = 0
    fake: Fake | None = None


class Affairs(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.fakes: list[Fake] = []
        self.readers: list[Reader] = []
        self.pulls = 0  # what moves there are depends on moves alone, so that a run can be repeated
        self.muna = Engine(discover=False, workers=2, grace=GRACE)

    def make(self, _start: Any) -> Worker:
        ours: dict[str, int] = {}
        theirs: list[int] = []
        _open(ours, theirs)
        process = FakeProcess(100_000 + len(self.fakes))
        for each in theirs:
            os.set_blocking(each, False)
        process.far_ends = theirs
        calls, answers, stops, _lifeline = theirs
        self.fakes.append(Fake(process, calls, answers, stops))
        return Worker(cast("Any", process), {**ours, "exit": process.exit_reader})

    # What consumers do.

    @precondition(lambda self: len(self.readers) <= self.pulls // 3)
    @rule(prefetch=st.sampled_from([None, 0, 1, 3]))
    def open(self, prefetch: int | None) -> None:
        stream = self.muna.predictions.stream(numbers, runner="process", prefetch=prefetch)
        self.readers.append(Reader(stream, stream.outcome))

    @precondition(lambda self: self.readers)
    @rule(choice=st.integers(0, 3))
    def next(self, choice: int) -> None:
        self.pulls += 1
        reader = self.chosen(choice)
        if reader is not None and reader.pull is None and reader.stream is not None:
            reader.pull = reader.thread.submit(next, reader.stream.values(), END)
            self.settle()

    @precondition(lambda self: self.pulls > 1)
    @rule(choice=st.integers(0, 3), how=st.sampled_from(["close", "cancel", "drop"]))
    def stop(self, choice: int, how: str) -> None:
        reader = self.chosen(choice)
        if reader is None or reader.stream is None:
            return
        if how == "drop":
            if reader.pull is None:  # else its thread still refers to it
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", ResourceWarning)
                    reader.stream = None
                    gc.collect(0)
        elif how == "cancel":
            reader.stream.cancel()
        else:
            started = time.monotonic()
            closing = reader.thread if reader.pull is None else ThreadPoolExecutor(1)
            self.await_(closing.submit(reader.stream.close))
            if closing is not reader.thread:
                closing.shutdown()
            assert time.monotonic() - started < TIMEOUT
        self.settle()

    # What workers do.

    @precondition(lambda self: self.pulls)
    @rule(choice=st.integers(0, 3), count=st.integers(1, 5))
    def give(self, choice: int, count: int) -> None:
        fake = self.serving(choice)
        if fake is not None:
            count = min(count, fake.limit - fake.sent)
            if count > 0:
                made = tuple(range(fake.sent, fake.sent + count))
                fake.sent += count
                fake.say(pack(ITEMS, fake.number, pickle.dumps((made, (0.0,) * count))))
                self.settle()

    @precondition(lambda self: self.pulls > 2)
    @rule(choice=st.integers(0, 3), how=st.sampled_from(["done", "failed", "garbage", "half", "dies", "stubborn"]))
    def trouble(self, choice: int, how: str) -> None:
        fake = self.serving(choice)
        if fake is None:
            return
        number = fake.number
        if how == "done":
            fake.end(pack(DONE, number, done()))
        elif how == "failed":
            fake.end(pack(FAILED, number, failed()))
        elif how == "garbage":
            fake.end([b"\0" * HEADER_SIZE])
        elif how == "half":
            fake.end([pack(DONE, number, done())[0][:-3]])
            fake.process.die(-signal.SIGKILL)
        elif how == "dies":
            fake.process.die(-signal.SIGSEGV)
        else:
            fake.process.is_stubborn = True
        self.settle()

    @precondition(lambda self: self.pulls > 3)
    @rule()
    def an_idle_worker_dies(self) -> None:
        for fake in self.fakes:
            fake.listen()
            if fake.is_alive and not fake.number:
                fake.process.die(1)
                return

    # Holding it together.

    def chosen(self, choice: int) -> Reader | None:
        return self.readers[choice % len(self.readers)] if self.readers else None

    def serving(self, choice: int) -> Fake | None:
        for fake in self.fakes:
            fake.listen()
        busy = [fake for fake in self.fakes if fake.is_alive and fake.number]
        return busy[choice % len(busy)] if busy else None

    def await_(self, future: Future[Any]) -> Any:
        deadline = time.monotonic() + TIMEOUT
        while not future.done():
            assert time.monotonic() < deadline, "a consumer waits for ever"
            for fake in self.fakes:
                fake.listen()
            time.sleep(0.0005)
        return future.result()

    def settle(self) -> None:
        """Let all consumers go on for a while, and note what came of the pulls."""
        deadline = time.monotonic() + 0.004
        while time.monotonic() < deadline:
            for fake in self.fakes:
                fake.listen()
            time.sleep(0.0005)
        for reader in self.readers:
            self.note(reader)

    def note(self, reader: Reader) -> None:
        if reader.pull is None or not reader.pull.done():
            return
        pull, reader.pull = reader.pull, None
        error = pull.exception()
        if error is not None:
            reader.failures.append(error)
        elif pull.result() == END:
            reader.ends += 1
        else:
            assert not reader.ends
            assert not reader.failures
            reader.seen.append(pull.result())

    @invariant()
    def partials_come_in_order_and_failures_once(self) -> None:
        for reader in self.readers:
            assert reader.seen == list(range(len(reader.seen)))
            assert len(reader.failures) <= 1
            expected = LookupError | WorkerLostError | PredictionCancelledError
            assert all(isinstance(error, expected) for error in reader.failures)
            if reader.failures or reader.ends:
                assert reader.stream is None or reader.stream.outcome.ended

    def teardown(self) -> None:
        try:
            closer = ThreadPoolExecutor(1)
            self.await_(closer.submit(self.muna.close))
            closer.shutdown()
            for reader in self.readers:
                if reader.pull is not None:
                    with contextlib.suppress(EngineError, LookupError):
                        self.await_(reader.pull)
                if reader.stream is not None and reader.stream.outcome.state != "pending":
                    assert reader.stream.outcome.ended
                reader.thread.shutdown()
            assert executions_of(self.muna) == ()
            assert all(not fake.is_alive for fake in self.fakes)
        finally:
            for fake in self.fakes:
                fake.process.die(0)


def test_whatever_consumers_and_workers_do_the_promises_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    machines: list[Affairs] = []

    def make(start: Any) -> Worker:
        return machines[-1].make(start)

    def begin() -> Affairs:
        machines.append(Affairs())
        return machines[-1]

    monkeypatch.setattr(engine.runners.process.runner, "start_worker", make)
    few = settings(
        max_examples=max(20, settings().max_examples // 2),
        stateful_step_count=60,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    run_state_machine_as_test(cast("Any", begin), settings=few)  # type: ignore[no-untyped-call, unused-ignore]
