"""The far ends of a worker's pipes, held by a test, which speaks frames as a worker does and serves calls by hand.

No process is started; `Process` is what `subprocess.Popen` is to a worker.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import pickle
import select
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from typing import Any, Final

import attrs

from engine._wire.decode import read_only_bits
from engine._wire.encode import encode
from engine._wire.failures import pack_failure
from engine._wire.frames import (
    COMMAND,
    CREDIT,
    DONE,
    FAILED,
    ITEM,
    ITEMS,
    STOP,
    Decoder,
    pack,
    read_command,
    read_credit,
)
from engine._wire.segments import Ring, Segment
from engine.runners.process import spawn
from engine.runners.process import worker as workers

LARGE: Final = 40_000  # bytes of a partial that goes by shared memory

SILENT: Final = ("waits for SIGTERM", "waits for SIGKILL", "leaves half an answer")
REACTIONS: Final = ("finalises", "fails in its clean-up", "gives on", "dies", "talks nonsense", *SILENT)
"""How a worker takes a request to stop."""

NONSENSE: Final = (
    b"\0" * 64,
    b"Traceback (most recent call last): of a predictor that prints to the wrong descriptor",
    b"\xe9\x63\x05\0" + b"\0" * 60,  # another version
    b"\xe9\x01\x05\0\1\0\0\0" + b"\xff" * 16,  # a giant length
    b"\xe9\x01\x01\0\1\0\0\0" + b"\0" * 16,  # an order
    pack(ITEMS, 1, b"not a pickle")[0],
    pack(DONE, 1, pickle.dumps("what a done frame never says"))[0],
)

_numbers: Final = itertools.count(5_000_000)  # of processes: no system gives numbers as large


def explode() -> None:
    raise ArithmeticError("this cannot be rebuilt")


class Poison:
    """What can be pickled, and not unpickled."""

    def __reduce__(self) -> Any:
        return explode, ()


class Clock:
    """The monotonic clock, and whatever it was put on by."""

    def __init__(self) -> None:
        self._ahead = 0.0

    def __call__(self) -> float:
        return time.monotonic() + self._ahead

    def put_on(self, seconds: float) -> None:
        self._ahead += seconds


@attrs.define(eq=False)
class Served:
    """A call as its worker knows it.

    Attributes:
        number: what its frames carry.
        identity: the call's id.
        limit: partials that may be made.
        made: partials that were.
        is_over: whether the worker has said how it ended, or has ended itself.
        is_asked: whether it was asked to stop.
        answer: how it took that.
        is_mad: whether it said what means nothing, so that nothing after it counts.
    """

    number: int
    identity: str
    limit: int
    made: int = 0
    is_over: bool = False
    is_asked: bool = False
    answer: str = ""
    is_mad: bool = False


class Process:
    """What `subprocess.Popen` is to a worker."""

    def __init__(self, far: Far) -> None:
        self.pid = next(_numbers)
        self.returncode: int | None = None
        self._far = far

    def poll(self) -> int | None:
        if self.returncode is None:
            self.returncode = self._far.exit_code
        return self.returncode

    def wait(self, timeout: float) -> int:
        code = self.poll()
        if code is None:
            raise subprocess.TimeoutExpired("a worker", timeout)
        return code

    def send_signal(self, number: int) -> None:
        self._far.hear(number)


class Far:
    """The far ends of one worker's pipes, and what the process that has them does.

    Args:
        reaction: tells how it takes requests to stop just now.
    """

    def __init__(self, reaction: Callable[[], str]) -> None:
        ours: dict[str, int] = {}
        theirs: list[int] = []
        spawn._open(ours, theirs)
        self._orders, self._answers, self._stops, *others = theirs
        for each in others:
            os.close(each)
        ours["exit"], self._exit = os.pipe()
        for each in (self._orders, self._stops):
            os.set_blocking(each, False)
        process_: Any = Process(self)
        self.near = workers.Worker(process_, ours)
        self.pid = process_.pid
        self.exit_code: int | None = None
        self.is_deaf = False  # it reads nothing
        self.is_silent = False  # it was asked for something, and only a signal gets an answer
        self.served: list[Served] = []
        self._reaction = reaction
        self._lock = threading.RLock()
        self._memory = os.dup(ours["outbound"])
        self._ring = Ring(Segment(self._memory))
        self._decoders = Decoder(), Decoder()
        self._stopped = 0
        self._leave = 0

    @property
    def call(self) -> Served | None:
        """The call it serves, or served last."""
        return self.served[-1] if self.served else None

    @property
    def is_alive(self) -> bool:
        return self.exit_code is None

    def __repr__(self) -> str:
        near = self.near
        facts = "alive" if self.is_alive else f"exit {self.exit_code}", self.call, near.lease
        flags = [name for name in ("is_deaf", "is_silent") if getattr(self, name)]
        flags += [name for name in ("is_new", "is_retired", "is_closed") if getattr(near, name)]
        return f"<{self.pid} {' '.join(map(str, (*facts, *flags)))}>"

    # What it hears

    def turn(self) -> None:
        """Read what came, and do what is asked for."""
        with self._lock:
            if self.is_deaf and self.is_alive and select.select([self._orders], [], [], 0)[0]:
                self.die(-signal.SIGKILL)
            for descriptor, decoder in ((self._orders, self._decoders[0]), (self._stops, self._decoders[1])):
                if self.is_alive and not self.is_deaf:
                    self._take_in(descriptor, decoder)

    def _take_in(self, descriptor: int, decoder: Decoder) -> None:
        try:
            data = os.read(descriptor, 1 << 20)
        except BlockingIOError:
            return
        if not data:
            self.die(0)
            return
        decoder.feed(data)
        while decoder.frames and self.is_alive:
            frame = decoder.frames.popleft()
            if frame.kind == COMMAND:
                self._obey(frame)
            elif frame.kind == CREDIT:
                self._allow(frame.number, *read_credit(frame))
            else:
                assert frame.kind == STOP, frame
                self._stopped = frame.number
                self._look()

    def _obey(self, frame: Any) -> None:
        assert self.call is None or self.call.is_over, "a worker serves one call at a time"
        order = read_command(frame)
        if order.what == "exit":
            self._leave = frame.number
            self._take_leave()
            return
        assert order.what == "run", order
        self.served.append(Served(frame.number, order.identity, order.limit))
        self._ring.clear()
        self._look()

    def _allow(self, number: int, taken: int, limit: int) -> None:
        call = self.call
        if call is not None and call.number == number:
            assert taken <= call.made, "more was taken than made"
            call.limit = max(call.limit, limit)
            self._ring.free(taken)

    def _take_leave(self) -> None:
        if self._reaction() in SILENT:
            self.is_silent = True
        else:
            self.write(done(self._leave))
            self.die(0)

    def _look(self) -> None:
        call = self.call
        if call is None or call.is_over or call.is_asked or call.number != self._stopped:
            return
        call.is_asked = True
        call.answer = reaction = self._reaction()
        if reaction == "gives on":
            self.give(call.limit - call.made, "words")
        if reaction in {"gives on", "finalises"}:
            self.end(done(call.number))
        elif reaction == "fails in its clean-up":
            self.end(failed(call.number, OSError("in clean-up"), is_cleanup=True))
        elif reaction == "dies":
            self.die(-signal.SIGSEGV)
        elif reaction == "talks nonsense":
            self.write(NONSENSE[0])
            self.is_silent = True
        else:
            if reaction == "leaves half an answer":
                self.write(done(call.number)[:-3])
            self.is_silent = True

    def hear(self, number: int) -> None:
        """A signal, in whichever thread sends it."""
        with self._lock:
            if not self.is_alive:
                return
            if number == signal.SIGTERM:
                if self._reaction() == "waits for SIGKILL" or self.is_deaf:
                    self.is_silent = True
                    return
                self.turn()  # what it was asked for meanwhile comes first
                call = self.call
                if call is not None and not call.is_over and call.answer == "waits for SIGTERM":
                    self.end(done(call.number, keep=False))
            self.die(-number)

    # What it says

    def write(self, data: bytes) -> None:
        with self._lock, contextlib.suppress(BrokenPipeError):
            while data and self.is_alive:
                data = data[os.write(self._answers, data) :]

    def end(self, frame: bytes) -> None:
        """Say how the call ended."""
        call = self.call
        assert call is not None
        call.is_over = True
        self.write(frame)

    def give(self, count: int, form: str) -> list[Any]:
        """Send so many partials."""
        call = self.call
        assert call is not None
        given = [value_of(form, call.made + each) for each in range(count)]
        if form == "words":
            self.write(items(call.number, given))
        else:
            for each in given:
                self.write(self.item(call, each))
        call.made += count
        return given

    def item(self, call: Served, value: Any) -> bytes:
        payload = encode(value)
        size = sum(payload.sizes)
        start = self._ring.find(call.made, size) if size >= LARGE else None
        location = payload.sizes, read_only_bits(payload.buffers), start
        chunks = payload.chunks
        if start is not None:
            self._ring._segment.write(start, chunks)
            chunks = []
        return b"".join(pack(ITEM, call.number, pickle.dumps((0.0, location), 5), chunks))

    def die(self, code: int) -> None:
        """The process is over: the system closes what it had open, and tells."""
        with self._lock:
            if not self.is_alive:
                return
            for call in self.served:
                call.is_over = True
            self.is_silent = False
            self._ring._segment.close()
            for each in (self._orders, self._answers, self._stops, self._memory):
                os.close(each)
            self.exit_code = code
            os.close(self._exit)


def value_of(form: str, number: int) -> Any:
    if form == "large":
        return bytes([number % 251]) * LARGE
    return [number] if form == "lists" else f"partial {number}"


def items(number: int, values: list[Any]) -> bytes:
    return b"".join(pack(ITEMS, number, pickle.dumps((tuple(values), (0.0,) * len(values)), 5)))


def done(number: int, *, keep: bool = True, only: tuple[Any, ...] = ()) -> bytes:
    value = only[0] if only else f"returned by {number}"
    return b"".join(pack(DONE, number, pickle.dumps((0.0, None, bool(only), None, value, keep), 5)))


def failed(number: int, error: Exception, *, is_bodys: bool = True, is_cleanup: bool = False) -> bytes:
    meta = (pack_failure(error), is_bodys, is_cleanup, None, None, True)
    return b"".join(pack(FAILED, number, pickle.dumps(meta, 5)))
