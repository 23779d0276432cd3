"""What every runner shares: the protocols of a runner, and the states of one execution.

An execution is one run of one predictor as its consumer sees it. It goes from `pending` over `running` into exactly
one of `done`, `failed`, `cancelled` and `closed`, once. Where its partials come from its subclasses decide; each begins
in `Execution.begin` and ends in `Execution.end`.
"""

from __future__ import annotations

import sys
import threading
import weakref
from _thread import allocate_lock
from abc import ABC, abstractmethod
from time import perf_counter
from typing import TYPE_CHECKING, Any, Final, Protocol, runtime_checkable

from engine._errors import EngineClosedError, EngineError, PredictionCancelledError
from engine._fork import keep_for_parent
from engine._records import Outcome, current_call
from engine.runners.channel import Channel
from engine.runners.ending import Report

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Iterator, Mapping

    from engine._predictors.body import Body
    from engine._predictors.profile import Profile
    from engine._records import Call, Prediction, State
    from engine.runners.channel import Reduction
    from engine.runners.ending import ConsumerEnd
    from engine.runners.slots import Slots

    InOwner = Callable[..., Awaitable[Any]]  # calls a function in an owner thread on behalf of an asyncio task
    # Has a body, with the channel it was started with, go on under an owner of the colour of what it produced, after so
    # many seconds.
    HandOver = Callable[[Body, Any, Any, float], None]


CLEAN: Final = Report()  # the end of a body that raised nothing, or never ran


@runtime_checkable
class Runner(Protocol):
    """A place where predictors run.

    It is offered by the hook `engine_runners`, or given to `Engine(plugins=[...])` as it is. It needs a `name` and a
    `start`, which returns at once; the owner that it starts (a thread, a task, another process) runs one body, from its
    call to its finalisation:

    1. It calls `body.start()` in `body.context`, once. What that gives is a value, an iterator, an awaitable or an
       async iterator, and every step of it belongs in that context, too. `own(body, channel)` does this, and all that
       follows, for a body of any kind, in the thread that calls it.
    2. It hands each partial over: `channel.offer(value, latency, now)`, with the producer's time so far in ms and
       `time.perf_counter()` in s. Where that is true it calls `channel.pause()` (an asyncio task awaits
       `channel.apause()`), which waits until the body may go on, and tells whether it is to stop instead.
    3. Once `channel.stop` is true it finalises the body, at its next yield or sooner. An owner that waits for something
       else sets `channel.on_stop` to a function that is called then, from any thread.
    4. On every path it calls `body.release_slot()`, so that the next call may begin, and
       `channel.finish(Report(...))`, once and last, with what the body raised or returned.

    Example:
        >>> import threading
        >>> from engine.runners import own
        >>> class Elsewhere:
        ...     name = "elsewhere"
        ...
        ...     def start(self, body, channel):
        ...         threading.Thread(target=own, args=(body, channel), daemon=True).start()

    A runner may have more. What it leaves out, or has as `None`, is filled in when an engine first meets it:

    - `is_elsewhere`: whether bodies run in other processes. Then `start` never calls `body.start()`: it has
      `body.target` called elsewhere with `body.args` and `body.kwargs`, see `Body`, and sets `body.is_started` once
      that has begun. `False`, where it is left out.
    - `open(body, prefetch)`: makes the channel that `start` will get, a `Channel` or what inherits from it; `prefetch`
      is how many partials the body may be ahead, `None` to adapt. Left out: `Channel(prefetch, body.call.tag)`, and
      for a `create` what reduces each partial as it is handed over.
    - `place(predictor, runner, *, is_task)`: who runs a body: this runner, another one (of which no more than `name`,
      `start`, `open` and `is_elsewhere` counts), or `None`, the caller itself, step by step. `predictor` is a
      `ServedPredictor`, `runner` the name that the caller gave, if it did, and `is_task` says whether the caller is an
      asyncio task, whose event loop must not be kept. Left out: this runner runs all.
    - `describe(tag, text)`: has another process import `"module:name"` and gives what `engine.runners.describe` tells
      of it there, so that this process need not import what it only calls; counts only with `is_elsewhere`. Left out:
      it is imported here. What it raises is a `PluginError` for the caller.
    - `load(predictor)` and `unload(predictor)`: make a `ServedPredictor` ready before its first call, and tear a class
      down; they are called in a thread that may wait, and `unload` once no call uses it. Left out: the engine sets it
      up and tears it down in this process; with `is_elsewhere` nothing is done.
    - `loaded()`: the tags that are ready there, for the engine's `loaded`, which may be read at any time; it should
      not wait. Left out: none.
    - `close()`: releases what the runner holds. Every engine that has used the runner calls it once, when it closes
      itself: after its streams were asked to stop, in the thread that closes it, which waits for it. What it raises
      comes out of the engine's `close()`. Engines may share a runner; one that is to outlive them leaves `close` out.
      An engine that is never closed does not call it, but warns. Left out: nothing is done.
    """

    @property
    def name(self) -> str:
        """What `runner=` is called with."""
        ...

    def start(self, body: Body, channel: Channel) -> None:
        """Start an owner for `body`.

        Raises:
            Exception: no owner can be started; the body has not run.
        """
        ...


class ServedPredictor(Protocol):
    """A predictor as runners see it.

    Attributes:
        profile: what is known of it: its `tag`, whether it `is_async` and whether it `is_class`, the `limit` of its
            calls at one time, and whether its author wishes it to travel `by_value`.
    """

    profile: Profile

    @property
    def target(self) -> Any:
        """The function, class or object itself, or `"module:name"` where other processes find it by that."""
        ...


class Loaded(ServedPredictor, Protocol):
    """A predictor as the engine's own runners see it: with all that this process has made ready of it."""

    slots: Slots | None

    @property
    def slots_elsewhere(self) -> Mapping[str, Slots | None]:
        """What bounds its calls in other processes, by the name of the runner that runs them."""
        ...

    @property
    def owner(self) -> BodyRunner | None:
        """What runs its calls in owner threads, where that is not any of them."""
        ...

    @property
    def thread(self) -> object:
        """The thread kept for a class without async methods, if one is."""
        ...

    @property
    def is_ready(self) -> bool:
        """Whether nothing stands between a call and its body."""
        ...

    @property
    def is_described(self) -> bool:
        """Whether only other processes have imported it."""
        ...

    def prepare(self) -> object:
        """Set the class up in this thread, if it is not."""

    def prepare_in_thread(self) -> object:
        """Set the class up in the thread kept for it, if it is not."""

    async def aprepare(self) -> object:
        """Set the class up on the event loop that runs this, if it is not."""

    def unload(self, grace: float) -> None:
        """Tear the class down, here, once its calls are over."""


class BodyRunner(Protocol):
    """What runs bodies, with nothing left out: what `FullRunner.place` gives.

    Attributes:
        is_here: whether its owners are this engine's in this process, where classes have threads kept for them.
        is_elsewhere: whether bodies run in other processes.
    """

    is_here: bool
    is_elsewhere: bool

    @property
    def name(self) -> str:
        """What `Call.runner` says."""
        ...

    def open(self, body: Body, prefetch: int | None) -> ConsumerEnd:
        """Make the consumer's end of a body's channel."""
        ...

    def start(self, body: Body, channel: Any) -> None:
        """Start an owner for a body."""


class FullRunner(Protocol):
    """What a call may choose by its name, with nothing left out: all that policies know of a runner.

    Attributes:
        is_elsewhere: whether what it serves need never be imported in this process.
        is_constant: whether `place` gives the same at each call, unless it refuses to wait for the engine's loop.
        stays_with_caller: whether a body is stepped by its caller even where it turns out to be of the other colour, or
            is refused.
        describe: see `Runner`; `None` where what is called has to be imported here.
    """

    is_elsewhere: bool
    is_constant: bool
    stays_with_caller: bool

    @property
    def name(self) -> str:
        """What `runner=` is called with."""
        ...

    @property
    def describe(self) -> Callable[[str, str], Mapping[str, Any]] | None:
        """Tells of a predictor that this process has not imported; `None` where it has to."""
        ...

    @property
    def is_ready(self) -> bool:
        """Whether `place` answers at once; else `prepare` has to import something first, in a thread that may wait."""
        ...

    def prepare(self) -> None:
        """Import what `place` needs, in a thread."""

    def place(self, loaded: Loaded, runner: str | None, *, is_task: bool) -> BodyRunner | None:
        """Who runs a body of a predictor; `None` is the caller, in lock-step.

        Args:
            loaded: the predictor.
            runner: what the caller asked for by name, if it did.
            is_task: whether the caller is an asyncio task.
        """

    def load(self, loaded: Loaded) -> None:
        """Make a predictor ready, from a thread."""

    async def aload(self, loaded: Loaded, in_owner: InOwner) -> None:
        """Make a predictor ready, from an asyncio task."""

    def unload(self, loaded: Loaded) -> None:
        """Tear a class down, from a thread, once its calls are over."""

    def loaded(self) -> Iterable[str]:
        """Tags that are ready elsewhere than in this engine's process."""
        ...

    @property
    def is_started(self) -> bool:
        """Whether there is something to close."""
        ...

    def close_soon(self) -> None:
        """Refuse what is new and release what there is, without a lock or a wait."""

    def close(self, grace: float) -> list[BaseException]:
        """Release what there is, within a few times `grace` seconds; give what went wrong."""
        ...


def refuse_in_use(tag: str, slots: Slots | None, grace: float) -> None:
    """Wait at most `grace` seconds for the calls of a predictor that is to be unloaded.

    Raises:
        EngineError: a call still uses it.
    """
    left = () if slots is None else slots.wait_for(slots.leases, grace)
    if left:
        raise in_use_error(tag, left)


def in_use_error(tag: str, leases: Iterable[object]) -> EngineError:
    """The error for a predictor that cannot be unloaded now."""
    return EngineError(
        f"{tag} is in use by {', '.join(map(str, leases))}: read that stream to its end or close it, then unload again"
    )


class OpenCalls(dict[int, "weakref.ref[Execution]"]):
    """The calls of one engine that have begun and not ended, by `id`; through it each of them keeps its engine.

    Every execution passes here, wherever it runs: `Execution.begin` puts it in. Taking it out is atomic, and the thread
    that does so notifies of its end. What is to happen at the beginning or the end of every call is done by
    `observers`: only while there are none do fast paths of the executor run calls that are never listed.

    Attributes:
        engine: what they belong to.
        is_closed: whether that was closed, so that no more may begin.
        observers: each has a `started(execution)`, called before the call waits for anything, and a
            `finished(execution, outcome)`, called once its end can be read; neither may raise.
        notified: the observers that were notified of a call's beginning, by the `id` of its execution: they, and no
            others, are notified of its end.
    """

    def __init__(self, engine: object = None) -> None:
        """Make it for an engine where nothing runs yet."""
        super().__init__()
        self.engine = engine
        self.is_closed = False
        self.observers: tuple[Observer, ...] = ()
        self.notified: dict[int, tuple[Observer, ...]] = {}

    def after_fork(self) -> None:
        """End what runs in the parent, of whose end no observer is notified here."""
        for execution in self.executions():
            execution.after_fork()
        self.clear()
        self.notified.clear()

    def executions(self) -> tuple[Execution, ...]:
        """The execution of each open call, where a consumer still has it."""
        found = (reference() for reference in tuple(self.values()))
        return tuple(execution for execution in found if execution is not None)


class Observer(Protocol):
    """What is notified of the beginning and the end of every call of an engine; see `OpenCalls`."""

    def started(self, execution: Execution) -> None:
        """A call has begun."""
        ...

    def finished(self, execution: Execution, outcome: Outcome) -> None:
        """A call that began has ended."""
        ...


class Execution(ABC):
    """One run of one predictor: what its consumer pulls, and how it ends.

    `begin` and `end` are where every execution begins and ends, whatever its kind, consumer and runner.

    Attributes:
        call: the identity of the call.
        ending: who decided how it ends, and how far it has come; of a body that is owned elsewhere, the consumer's end
            of the channel as well.
        grace: seconds a close waits for the body to be finalised.
        reader: the thread that is known to have pulled it last, where that may be another than the first to pull it.
    """

    __slots__ = ("_began", "_open_calls", "_outcome", "call", "ending", "grace", "reader")

    def __init__(self, call: Call, ending: Any, grace: float, open_calls: OpenCalls) -> None:
        """Make a pending execution that is listed in `open_calls` while it runs."""
        self.call = call
        self.ending = ending
        self.grace = grace
        self.reader: threading.Thread | None = None
        self._outcome: Outcome | None = None
        self._began = 0.0
        self._open_calls = open_calls

    @property
    @abstractmethod
    def is_started(self) -> bool:
        """Whether the predictor's code has been reached: what fails before is not the body's failure."""

    @property
    def is_being_pulled(self) -> bool:
        """Whether a thread steps the body at this time; where the body has an owner, `reader` says as much."""
        return False

    @property
    def outcome(self) -> Outcome:
        """How it went; made when it is first read.

        Once the call ended with an exception, an outcome that was read before shows that, and this is another one: the
        exception refers to frames that may refer to this execution, and the two would keep each other alive.
        """
        if self._outcome is None:
            self._outcome = Outcome.of(self.ending)
        return self._outcome

    def begin(self) -> None:
        """`pending` becomes `running`.

        Raises:
            PredictionCancelledError: it was stopped before; by its engine, where that was closed since the call.
        """
        open_calls, ending = self._open_calls, self.ending
        self._began = perf_counter()
        if open_calls.observers and ending.claimed is None and not open_calls.is_closed:
            open_calls.notified[id(self)] = open_calls.observers
            for each in open_calls.notified[id(self)]:  # not of `observers`, which may change meanwhile
                each.started(self)
        open_calls[id(self)] = self.call.execution = weakref.ref(self)
        if open_calls.is_closed:  # tested after that: what closes the engine either finds this or is seen here
            self.stop("closed", EngineClosedError())
        if ending.claimed is None:
            ending.state = "running"  # call-free store: a stop that comes later sees that it runs
            return
        # Its stopper may have looked it up before this was listed: of the two, one takes it out.
        if ending.is_over and open_calls.pop(id(self), None) is not None and open_calls.notified:
            outcome = Outcome.of(ending)
            outcome.exception = ending.failure
            self._notify_finished(outcome)
        raise PredictionCancelledError(self.call.tag, self.call.id)

    def end(self, exception: BaseException | None = None, returned: Any = None) -> None:
        """Reach the state that was claimed; called once, by the thread that claimed it or carries it out.

        Args:
            exception: what the outcome shows; `None` for what the next pull raises, if anything.
            returned: the generator's return value; a plain function's value.
        """
        ending = self.ending
        if ending.state == "running":
            ending.duration = (perf_counter() - self._began) * 1000.0
        ending.returned = returned
        if exception is None:
            exception = ending.failure
        outcome, open_calls = self._outcome, self._open_calls
        if exception is not None and (outcome is not None or open_calls.notified):
            outcome = self.outcome
            outcome.exception = exception
            self._outcome = None
        self.call.parent = None  # nothing waits on behalf of this call any more, so its callers need not be kept
        mine = id(self)
        ending.state = ending.claimed
        ending.is_over = True  # last, for readers test this: what they find is complete
        # Call-free store, up to `pop`: Ctrl-C does not come between these lines, so no call that is over stays listed.
        if open_calls.pop(mine, None) is not None and open_calls.notified:
            self._notify_finished(outcome)

    def show_in(self, outcome: Outcome) -> None:
        """Have an outcome that was given out before show how this goes."""
        outcome.follow(self.ending)
        self._outcome = outcome

    def show(self, exception: BaseException) -> None:
        """Have the outcome show what the body's clean-up raised after the end."""
        if self._outcome is not None:
            self._outcome.exception = exception
            self._outcome = None  # as in `end`

    def _notify_finished(self, outcome: Outcome | None) -> None:
        """Notify of its end the observers that were notified of its beginning; it is out of the open calls by now."""
        outcome = outcome or self.outcome
        for each in self._open_calls.notified.pop(id(self), ()):
            each.finished(self, outcome)

    def take_failure(self) -> BaseException | None:
        """What an ended stream still owes its consumer, the first time; later pulls just stop."""
        ending = self.ending
        failure: BaseException | None = ending.failure
        ending.failure = None  # call-free store: of several readers one raises it
        return failure

    def raise_failure(self) -> None:
        """Raise it, if there is anything."""
        failure = self.take_failure()
        if failure is not None:
            try:
                raise failure
            finally:
                del failure, self  # or this frame and the exception keep each other alive

    def cancel(self) -> None:
        """Ask for the end `cancelled`: from any thread, at any time, any number of times; waits for nothing."""
        self.stop("cancelled", PredictionCancelledError(self.call.tag, self.call.id))

    def closed_error(self) -> EngineClosedError:
        """What the consumer gets where the engine was closed before the end."""
        return EngineClosedError(f"{self.call.tag}: the engine was closed while this stream ran")

    def stop(self, state: State, failure: BaseException | None = None) -> None:
        """Have it end so, from any thread, unless its end was decided; waits for nothing.

        Args:
            state: the end.
            failure: what the next pull raises, once.
        """
        if self.ending.claim(state, failure):
            self._stop()

    @abstractmethod
    def _stop(self) -> None:
        """Carry out the end that was claimed, or have the thread that steps the body carry it out."""

    def is_inside(self) -> bool:
        """Whether this is called by the body itself, whose end cannot be waited for."""
        call = current_call()
        return call is not None and call.is_within(self.call)

    def after_fork(self) -> None:
        """End in a forked child, without its body, which belongs to the parent, being touched there."""
        keep_for_parent(self)
        ending = self.ending
        self.call.stopping = ending.stop = True  # a consumer that was copied while it waited tests this by itself
        ending.failure = EngineClosedError(f"{self.call.tag}: this call belongs to the parent process; make your own")
        ending.claimed = ending.state = "closed"
        ending.is_over = True
        self._seal()

    @abstractmethod
    def _seal(self) -> None:
        """Let no later pull reach the body."""


def open_here(body: Body, prefetch: int | None) -> Channel | Reduction:
    """Make the channel of a body that is owned in this process: no buffer where its owner keeps the reduction."""
    return Channel(prefetch, body.call.tag) if body.reduction is None else body.reduction


class Once:
    """A once flag: true for the first of several threads, signal handlers and finalisers that ask, false after."""

    __slots__ = ("_lock",)

    def __init__(self) -> None:
        """Make a flag that `is_first` has not been asked of yet."""
        self._lock = allocate_lock()

    def is_first(self) -> bool:
        """Tell, once, that this is the first to ask."""
        return self._lock.acquire(blocking=False)


class DaemonThread(threading.Thread):
    """A daemon thread whose start can be withdrawn where it fails, or is interrupted before it is known to run."""

    def __init__(self, target: Callable[[], None], name: str) -> None:
        """Make a thread that is to call `target`."""
        super().__init__(name=name, daemon=True)
        self._call = target
        self._once = Once()

    def run(self) -> None:
        """Call the target, unless the start was withdrawn."""
        call = self._call
        del self._call  # or the thread, and what it was started by, would keep each other alive
        if self._once.is_first():
            call()

    def withdraw(self) -> bool:
        """Have it never call its target; tell whether that holds, or it has begun already."""
        return self._once.is_first()


class SyncExecution(Execution):
    """An execution that sync code can pull."""

    __slots__ = ("__weakref__",)

    @abstractmethod
    def values(self) -> Iterator[Any]:
        """The raw partials from the shared position on."""

    @abstractmethod
    def predictions(self) -> Iterator[Prediction]:
        """A record for each partial from the shared position on."""

    def drain(self, reduction: Reduction) -> None:
        """Reduce it to its end.

        Raises:
            BaseException: what ended it before, or what the reducer raised.
        """
        try:
            for value in self.values():
                reduction.add(value)
        finally:
            if not self.ending.is_over:  # the reducer failed, or an interrupt came between two pulls
                self.close()

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
        """The partials or records from here on, for less than a pull each; `None` first, see `primed`."""
        ...

    def show_in(self, outcome: Outcome) -> None:
        """Have an outcome that was given out before show how this goes."""
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
        partials.__anext__().__await__().send(None)  # one step, without a loop
    except StopIteration:
        pass
    finally:
        sys.set_asyncgen_hooks(*hooks)
    return partials


def has_gil() -> bool:
    """Whether only one thread at a time runs Python code here, as in every interpreter but a free-threaded one."""
    asked: Any = getattr(sys, "_is_gil_enabled", None)  # from 3.13 on
    return asked is None or bool(asked())
