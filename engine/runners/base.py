"""What every runner shares: the protocol of a runner, and the state table of one execution.

An execution is one run of one predictor as its consumer sees it. It goes from `pending` over `running` into exactly
one of `done`, `failed`, `cancelled` and `closed`, once. Where its partials come from is its subclasses' affair.
"""

from __future__ import annotations

import sys
import threading
import weakref
from _thread import allocate_lock
from abc import ABC, abstractmethod
from collections import deque
from time import perf_counter
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from engine._channel import wait_until, wait_until_task, wake_all
from engine._errors import EngineClosedError, PredictionCancelledError, warn
from engine._records import Outcome

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator

    from engine._channel import Channel, Wake
    from engine._partials import Body
    from engine._records import Call, Prediction, State


@runtime_checkable
class Runner(Protocol):
    """Decides where a body runs, and feeds what it yields into a channel.

    `start` returns at once; the owner it starts calls the body once, offers each partial, honours the channel's
    requests to stop, finalises the body, gives its slot back (`body.release`) and calls `channel.finish` exactly
    once, on every path.
    """

    @property
    def name(self) -> str:
        """What `runner=` is called with."""
        ...

    def start(self, body: Body, channel: Channel) -> None:
        """Start an owner for `body`.

        Raises:
            EngineError: no owner can be started; the body has not run.
        """
        ...


class Stop:
    """A request to end an execution, posted to whoever owns it: which end it asks for, and who waits for it."""

    __slots__ = ("_is_settled", "_waiting", "error", "failure", "is_awaited", "is_delivered", "state")

    def __init__(self, state: State, failure: BaseException | None = None) -> None:
        """Ask for the end `state`; `failure` is what the next pull raises, once."""
        self.state = state
        self.failure = failure
        self.error: BaseException | None = None  # what the body's clean-up raised
        self.is_awaited = False
        self.is_delivered = False
        self._is_settled = False
        self._waiting: deque[Wake] = deque()

    def settle(self, error: BaseException | None = None) -> None:
        """Say that the body is finalised; an error nobody waits for goes to the log."""
        self.error = error
        self._is_settled = True
        wake_all(self._waiting)
        if error is not None and not self.is_awaited:
            warn(f"error while a stream was being {self.state}", error)

    def is_settled(self) -> bool:
        """Whether the body is finalised."""
        return self._is_settled

    def wait(self, seconds: float) -> bool:
        """Wait, in a thread, at most `seconds` for the body to be finalised; tell whether it is."""
        return wait_until(self.is_settled, self._waiting, seconds)

    async def wait_task(self, seconds: float) -> bool:
        """The same for an asyncio task."""
        return await wait_until_task(self.is_settled, self._waiting, seconds)


class Live(dict[int, "weakref.ref[Any]"]):
    """What runs just now, executions and errands, by `id`; through it each of them keeps its engine.

    Attributes:
        engine: what they belong to.
        is_closed: whether that was closed, so that no more may begin.
    """

    def __init__(self, engine: object = None) -> None:
        """Make it for an engine where nothing runs yet."""
        super().__init__()
        self.engine = engine
        self.is_closed = False


class Execution(ABC):
    """One run of one predictor: its state, its outcome, and the error its next pull raises.

    Attributes:
        call: the identity of the call.
        outcome: how it went; read by anyone, written only here.
        grace: seconds a close waits for the body to be finalised.
    """

    __slots__ = ("_began", "_live", "_pending", "call", "grace", "outcome")

    def __init__(self, call: Call, grace: float, live: Live) -> None:
        """Make a pending execution that is listed in `live` while it runs."""
        self.call = call
        self.grace = grace
        self.outcome = Outcome()
        self._began = 0.0
        self._pending: BaseException | None = None
        self._live = live

    @property
    @abstractmethod
    def is_started(self) -> bool:
        """Whether the predictor's code has been reached: what fails before is not the body's failure."""

    def begin(self) -> None:
        """`pending` becomes `running`.

        Raises:
            PredictionCancelledError: the engine was closed since the call; the execution is stopped by now.
        """
        if self._live.is_closed:
            self.stop(Stop("closed", EngineClosedError()))
            raise PredictionCancelledError(self.call.tag, self.call.id)
        self._began = perf_counter()
        self._enlist()
        if self.outcome.state == "pending":  # no call stands between this and the next line, so no stop does either
            self.outcome.state = "running"
        else:  # stopped while it was about to begin
            self._live.pop(id(self), None)

    @abstractmethod
    def _enlist(self) -> None:
        """Note that it runs, where the engine finds it when it closes."""

    def end(self, state: State, exception: BaseException | None = None, returned: Any = None) -> None:
        """`pending` or `running` becomes `state`; a second end changes nothing."""
        outcome = self.outcome
        if outcome.ended:
            return
        if outcome.state == "running":
            outcome.duration = (perf_counter() - self._began) * 1000.0
            self._live.pop(id(self), None)
        outcome.state = state
        outcome.exception = exception
        outcome.returned = returned
        if (
            exception is not None
        ):  # the faces keep it; whatever iterates must not, or a reader's frame and it are a cycle
            self.outcome = Outcome(
                state, outcome.count, returned, None, outcome.first, outcome.duration, outcome.ladder
            )
        self.call.parent = None  # nothing waits on this call's behalf any more, so its callers need not live

    def take_pending(self) -> BaseException | None:
        """What an ended stream still owes its consumer, the first time; later pulls just stop."""
        failure, self._pending = self._pending, None
        return failure

    def raise_pending(self) -> None:
        """Raise it, if there is anything."""
        failure = self.take_pending()
        if failure is not None:
            try:
                raise failure
            finally:
                del failure, self  # or this frame and the exception keep each other alive

    def cancel(self) -> None:
        """Ask for the end `cancelled`: from any thread, at any time, any number of times; waits for nothing."""
        self.stop(Stop("cancelled", PredictionCancelledError(self.call.tag, self.call.id)))

    def shut(self) -> None:
        """End because the engine closes."""
        self.stop(self._shut())

    def _shut(self) -> Stop:
        return Stop("closed", EngineClosedError(f"{self.call.tag}: the engine was closed while this stream ran"))

    @abstractmethod
    def stop(self, stop: Stop) -> None:
        """Post a request to stop; carried out here where nobody owns the body just now."""

    def forget(self) -> None:
        """In a forked child: this stream belongs to the parent, its body is never touched here."""
        _parents_own.append(self)
        self._pending = EngineClosedError(f"{self.call.tag}: this stream belongs to the parent process; open your own")
        self.outcome.state = "closed"
        self._seal()

    @abstractmethod
    def _seal(self) -> None:
        """Let no later pull reach the body."""


class DaemonThread(threading.Thread):
    """A daemon thread whose start can be taken back where it fails, or is interrupted before it is known to run."""

    def __init__(self, target: Callable[[], None], name: str) -> None:
        """Make a thread that is to call `target`."""
        super().__init__(name=name, daemon=True)
        self._call = target
        self._claim = allocate_lock()

    def run(self) -> None:
        """Call the target, unless that was taken back."""
        call = self._call
        del self._call  # or the thread, and what it was started by, would keep each other alive
        if self._claim.acquire(blocking=False):
            call()

    def withdraw(self) -> bool:
        """Have it never call its target; tell whether that can be said, or it has begun already."""
        return self._claim.acquire(blocking=False)


_parents_own: list[Execution] = []  # keeps a parent's bodies from being finalised by a forked child's collector


class SyncExecution(Execution):
    """An execution that sync code can pull."""

    __slots__ = ("__weakref__",)

    def _enlist(self) -> None:
        self._live[id(self)] = weakref.ref(self)

    @abstractmethod
    def values(self) -> Iterator[Any]:
        """The raw partials from the shared position on."""

    @abstractmethod
    def predictions(self) -> Iterator[Prediction]:
        """A record for each partial from the shared position on."""

    @abstractmethod
    def close(self) -> None:
        """End as `closed` and wait, at most the grace, until the body is finalised."""


class AsyncExecution(Protocol):
    """An execution, or what stands for one, that asyncio code can pull."""

    @property
    def call(self) -> Call:
        """The identity of the call."""
        ...

    @property
    def outcome(self) -> Outcome:
        """How it went."""
        ...

    @property
    def is_started(self) -> bool:
        """Whether the predictor's code has been reached."""
        ...

    def pull(self) -> Awaitable[Any]:
        """The next partial."""
        ...

    def pull_prediction(self) -> Awaitable[Prediction]:
        """The next partial with its record."""
        ...

    def apartials(self, *, records: bool) -> AsyncGenerator[Any, None]:
        """Either in a loop, which costs less: `None` first, see `primed`, then each partial or record from here on."""
        ...

    def cancel(self) -> None:
        """Ask for the end `cancelled`."""
        ...

    async def aclose(self) -> None:
        """End as `closed` and wait, at most the grace, until the body is finalised."""
        ...


def primed(partials: AsyncGenerator[Any, None]) -> AsyncGenerator[Any, None]:
    """Take the first item out, so that no event loop adopts the generator: it has nothing to finalise.

    A loop would make a task to close one that is left early. The execution behind it is closed in its own way.
    """
    hooks = sys.get_asyncgen_hooks()
    sys.set_asyncgen_hooks(None, None)
    try:
        partials.__anext__().__await__().send(None)  # one step, by hand
    except StopIteration:
        pass
    finally:
        sys.set_asyncgen_hooks(*hooks)
    return partials


def is_finalising() -> bool:
    """Whether the interpreter is going away, so that nothing should be started or reported."""
    return sys.is_finalizing()


def has_gil() -> bool:
    """Whether only one thread at a time runs Python code here, as in every interpreter but a free-threaded one."""
    asked: Any = getattr(sys, "_is_gil_enabled", None)  # from 3.13 on
    return asked is None or bool(asked())


def tell_of_abandoned(call: Call, grace: float) -> None:
    """Log that a body did not stop within the grace, in s."""
    warn(
        f"{call.tag}: the body did not stop within {grace} s of being closed; it is abandoned, and keeps its slot "
        "until it ends"
    )
