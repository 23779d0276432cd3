"""A runner in another process, in the simplest way there is: one process with an engine, one question at a time.

It is written from what `engine.runners` says alone. `FarRunner` is this side; the other side runs this file.
"""

from __future__ import annotations

import itertools
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from functools import partial
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Final

import cloudpickle

from engine import Engine
from engine.runners import Body, Channel, Report, ServedPredictor, describe
from tests._kit.waits import TIMEOUT

ROOT: Final = Path(__file__).parent.parent.parent
numbers: Final = itertools.count(1)


class FarRunner:
    """Runs bodies in one other process, which is started when it is first needed.

    Attributes:
        closed: how often it was closed.
    """

    name = "far"
    is_elsewhere = True

    def __init__(self) -> None:
        self.closed = 0
        self._lock = threading.Lock()
        self._here: Connection[Any, Any] | None = None
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, body: Body, channel: Channel) -> None:
        threading.Thread(target=self._own, args=(body, channel), name="far").start()

    def _own(self, body: Body, channel: Channel) -> None:
        end = Report()
        try:
            what, inputs = (body.call.tag, sent(body.target), body.follows), (body.args, body.kwargs, body.bind)
            number = self._ask("open", what, inputs)
            body.is_started = True
            is_over, end.returned = self._feed(number, channel)
            if not is_over:
                end.is_cleanup = True
                self._ask("close", number)
        except BaseException as error:
            end.error = error
        body.release_slot()
        channel.finish(end)

    def _feed(self, number: int, channel: Channel) -> tuple[bool, Any]:
        """Hand over every partial; tell whether the body ended by itself, and what it returned."""
        while not channel.stop:
            is_over, value, latency = self._ask("pull", number)
            if is_over:
                return True, value
            if channel.offer(value, latency, time.perf_counter()) and channel.pause():
                break
        return False, None

    def describe(self, _tag: str, text: str) -> Mapping[str, Any]:
        told: Mapping[str, Any] = self._ask("describe", text)
        return told

    def load(self, predictor: ServedPredictor) -> None:
        self._ask("load", predictor.profile.tag, sent(predictor.target))

    def unload(self, predictor: ServedPredictor) -> None:
        self._ask("unload", predictor.profile.tag)

    def loaded(self) -> tuple[str, ...]:
        loaded: tuple[str, ...] = () if self._process is None else self._ask("loaded")
        return loaded

    def close(self) -> None:
        self.closed += 1
        self.end()

    def end(self) -> None:
        """End the other process, if there is one."""
        if self._process is not None and self._here is not None:
            self._here.close()
            self._process.wait(TIMEOUT)

    @property
    def pid(self) -> int:
        """The number of the other process."""
        assert self._process is not None
        return self._process.pid

    def _ask(self, *question: Any) -> Any:
        with self._lock:
            if self._here is None:
                self._begin()
            assert self._here is not None
            self._here.send(question)
            error, answer = self._here.recv()
        if error is not None:
            raise error from answer
        return answer

    def _begin(self) -> None:
        self._here, there = Pipe()
        command = [sys.executable, "-c", f"from tests.policies.elsewhere import serve; serve({there.fileno()})"]
        self._process = subprocess.Popen(command, cwd=ROOT, pass_fds=[there.fileno()])
        there.close()


class LastingRunner(FarRunner):
    """Outlives the engines that share it."""

    close: Any = None


def sent(target: Any) -> Any:
    """A predictor as it travels: by name, or by value."""
    return target if isinstance(target, str) else cloudpickle.dumps(target)


# The other side.


def serve(descriptor: int) -> None:
    """Answer questions until the other process asks no more."""
    questions: Connection[Any, Any] = Connection(descriptor)
    with Engine(discover=False) as muna:
        far = _Far(muna)
        while True:
            try:
                what, *rest = questions.recv()
            except EOFError:
                return
            answer: tuple[Exception | None, Any]
            try:
                answer = None, getattr(far, what)(*rest)
            except Exception as error:
                answer = error, error.__cause__  # which does not travel with it
            questions.send(answer)


class _Far:
    def __init__(self, muna: Engine) -> None:
        self._muna = muna
        self._opened: dict[int, Any] = {}

    def _known(self, tag: str, target: Any, follows: bool | None = None) -> str:
        """The tag that a predictor has here; a plain function has one for each call."""
        tag = tag if tag.startswith("@") else f"@far/{next(numbers)}"
        if tag not in self._muna.predictors:
            self._muna.predictors.register(tag, received(target), yields=follows or None)
        return tag

    def open(self, what: tuple[str, Any, bool], inputs: tuple[tuple[Any, ...], dict[str, Any], bool | None]) -> int:
        (tag, target, follows), (args, kwargs, check) = what, inputs
        known = self._known(tag, partial(received(target), *args) if args else target, follows)
        # In a thread, so that nothing a body raises ends this one; a partial ahead at this side would be one too many.
        stream = self._muna.predictions.stream(known, kwargs, check=check, runner="thread", prefetch=0)
        number = next(numbers)
        self._opened[number] = stream
        return number

    def pull(self, number: int) -> tuple[bool, Any, float]:
        stream = self._opened[number]
        try:
            prediction = next(stream)
        except StopIteration:
            del self._opened[number]
            return True, stream.outcome.returned, 0.0
        return False, prediction.value, prediction.latency

    def close(self, number: int) -> None:
        self._opened.pop(number).close()

    def describe(self, text: str) -> Mapping[str, Any]:
        return describe(text)

    def load(self, tag: str, target: Any) -> None:
        self._muna.load(self._known(tag, target))

    def unload(self, tag: str) -> None:
        self._muna.unload(tag)
        self._muna.predictors.unregister(tag)

    def loaded(self) -> tuple[str, ...]:
        return self._muna.loaded


def received(target: Any) -> Any:
    """What came by value; what came by name is imported where it is needed."""
    return cloudpickle.loads(target) if isinstance(target, bytes) else target
