"""A stream to a worker, and beside it what its consumer must see of it."""

from __future__ import annotations

import asyncio
import math
import reprlib
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Final

import attrs

from engine import WorkerLostError
from tests.runners.process.far_worker import Far, Served

WIDEST: Final = 256  # partials in the largest default window


def predict() -> Iterator[str]:
    """What is never run: `Far` answers for it."""
    yield "never"


def predict_too() -> Iterator[str]:
    """Another."""
    yield "never"


@attrs.frozen
class Plan:
    """How a stream is opened.

    Attributes:
        is_async: whether its consumer is asyncio code.
        window: its `prefetch`.
        body: its predictor.
        pulls: consumers that ask for a partial at once.
    """

    is_async: bool
    window: int | None
    body: Callable[[], Any]
    pulls: int


@attrs.define(eq=False)
class Reader:
    """A stream, and what its consumer must see of it.

    Attributes:
        pulls: consumers that wait for it.
        sent: partials that were sent, and not delivered yet.
        count: partials delivered.
        far: the worker that serves it, or did.
        served: the call there.
        failure: what the call raises in its worker, after `sent`.
        reached: partials that were sent before that.
        is_ended: whether the worker told of the end, or is lost.
        stop: the state its consumer, or the engine's closing, ended it in.
        owed: what a pull raises then, once.
        is_begun: whether it was ever pulled.
        is_told: whether a pull has raised.
        is_over: whether a pull has seen the end.
    """

    stream: Any
    plan: Plan
    outcome: Any
    identity: str
    threads: ThreadPoolExecutor
    pulls: list[Future[tuple[str, Any]]] = attrs.field(factory=list)
    sent: deque[Any] = attrs.field(factory=deque, repr=reprlib.repr)
    count: int = 0
    far: Far | None = None
    served: Served | None = None
    failure: type[BaseException] | None = None
    is_ended: bool = False
    reached: int = 0
    stop: str = ""
    owed: type[BaseException] | None = None
    is_begun: bool = False
    is_told: bool = False
    is_over: bool = False

    @property
    def is_concluded(self) -> bool:
        """Whether its consumer knows the end."""
        return bool(self.stop) or self.is_told or self.is_over

    @property
    def is_open(self) -> bool:
        """Whether a consumer still holds it."""
        return self.stream is not None

    @property
    def most_ahead(self) -> float:
        """Partials that may be made beyond those taken: its window, and one that is waited for."""
        given = self.plan.window
        window = min(WIDEST, math.pow(2, min(self.count, 10))) if given is None else given
        return window + 1 + len(self.pulls)  # a partial that a waiting consumer took may not be counted here yet

    def must_stop(self, state: str, owed: type[BaseException] | None = None) -> None:
        """Its consumer has left, or the engine closes: what was not delivered is dropped."""
        if not self.is_concluded:
            self.stop, self.owed = state, owed
            self.sent.clear()

    def must_end(self, failure: type[BaseException] | None = None) -> None:
        """Its worker tells of the end."""
        if not self.is_ended:
            self.is_ended, self.failure = True, failure
            self.reached = 0 if self.served is None else self.served.made

    def take_in(self, kind: str, found: Any) -> None:
        """One of its consumers has an answer."""
        others = len(self.pulls)  # they may have taken what stood before it
        if kind == "partial":
            assert not self.stop, f"{found!r} was delivered after the end"
            assert found in list(self.sent)[: others + 1], f"{reprlib.repr(found)} came out of turn: {self}"
            self.sent.remove(found)
            self.count += 1
            return
        if not self.stop and not self.is_ended:
            raise AssertionError(f"{kind} {found!r} before the end") from found
        assert len(self.sent) <= others, f"{kind} {found!r} before its turn: {self}"
        owed = self.owed if self.stop else self.failure
        if kind == "over":
            self.is_over = True
            assert owed is None or self.is_told or others, f"the end came without its {owed}"
        else:
            assert owed is not None, f"{found!r} out of nothing"
            assert type(found) is owed, f"{found!r} for {owed}"
            assert not self.is_told, f"{found!r} came again"
            self.is_told = True
            if isinstance(found, WorkerLostError):
                assert self.far is not None
                assert (found.pid, found.delivered) == (self.far.pid, self.reached), found

    @property
    def final_state(self) -> str:
        """The state it must be in once its consumer knows the end."""
        return self.stop or ("done" if self.failure is None else "failed")


def pull(values: Iterator[Any]) -> tuple[str, Any]:
    try:
        return "partial", next(values)
    except StopIteration:
        return "over", None
    except BaseException as error:
        return "raised", error


async def apull(values: Any) -> tuple[str, Any]:
    try:
        return "partial", await anext(values)
    except StopAsyncIteration:
        return "over", None
    except asyncio.CancelledError:
        raise
    except BaseException as error:
        return "raised", error
