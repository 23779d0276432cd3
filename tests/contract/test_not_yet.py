"""What is promised and does not hold yet: each test here fails, and says so on the day on which it does not.

Whoever mends one takes its marker off and moves it to the tests of the room it belongs to. Each fails in the same way
every time: where two threads have to meet, one waits until the other is seen to wait.
"""

from __future__ import annotations

import queue
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, Final

import pytest

from engine import Engine, NestingError, hookimpl
from engine._channel import Ending, park_thread
from engine.runners import Body, Channel, own

PATIENCE: Final = 10.0  # seconds; only a test that fails otherwise than it should waits as long
GRACE: Final = 30.0  # seconds; none of these waits takes as long


def is_parked(thread: threading.Thread) -> bool:
    """Whether a thread waits in the engine just now."""
    frame = sys._current_frames().get(thread.ident or 0)
    return frame is not None and frame.f_code in {park_thread.__code__, Ending.wait.__code__}


def until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(what)
        time.sleep(0.001)


class Plugin:
    """Offers one runner."""

    def __init__(self, runner: Any) -> None:
        self._runner = runner

    @hookimpl
    def engine_runners(self) -> list[Any]:
        return [self._runner]


def counts() -> Iterator[int]:
    yield from range(3)


# A runner needs no more than what `Runner` says.


class OneThread:
    """Runs every body in the same thread, one after another."""

    name = "one-thread"

    def __init__(self) -> None:
        self.waiting: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.thread = threading.Thread(target=self._serve)
        self.thread.start()

    def start(self, body: Body, channel: Channel) -> None:
        self.waiting.put((body, channel))

    def _serve(self) -> None:
        while (work := self.waiting.get()) is not None:
            own(*work)

    def is_stuck(self) -> bool:
        """Whether its thread waits for what only that thread could run."""
        return self.waiting.qsize() > 0 and is_parked(self.thread)


@pytest.mark.xfail(
    strict=True, raises=AssertionError, reason="the engine does not see that a runner's only thread waits for itself"
)
@pytest.mark.parametrize("inner", ["create", "stream"])
def test_a_call_that_only_the_thread_that_waits_for_it_could_run_is_refused(inner: str) -> None:
    raised: list[BaseException] = []
    runner = OneThread()

    def calls_another() -> Any:
        if inner == "create":
            return muna.predictions.create(counts, runner="one-thread").value
        return list(muna.predictions.stream(counts, runner="one-thread").values())

    def call() -> None:
        try:
            muna.predictions.create(calls_another, runner="one-thread")
        except BaseException as error:
            raised.append(error)

    muna = Engine(discover=False, plugins=[Plugin(runner)], grace=0.05)
    caller = threading.Thread(target=call)
    caller.start()
    try:
        until(lambda: not caller.is_alive() or runner.is_stuck(), "the call's end, or the wait for itself")
        assert not runner.is_stuck()
        assert [type(error) for error in raised] == [NestingError]
    finally:
        muna.close()
        runner.waiting.put(None)
        caller.join(PATIENCE)
        runner.thread.join(PATIENCE)
