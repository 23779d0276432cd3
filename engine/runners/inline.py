"""Lock-step execution in the sync code that consumes it: no thread, no queue, one step of the body per pull.

The body is stepped inside the call's own context. Nobody owns an idle one, so whoever stops it finalises it there;
while a pull runs, a stop is posted and the puller carries it out.

One attribute, `_turn`, says whose turn it is: nobody's (`None`), a puller's (`BUSY`), a stopper's (the `Stop` itself)
or nobody's any more (`ENDED`). Taking the turn is a test and a store with no call between them, which CPython never
interrupts; that saves a lock of twice the price of the whole pull.
"""

from __future__ import annotations

import threading
from time import perf_counter
from typing import TYPE_CHECKING, Any, Final

from engine._errors import PredictionCancelledError, warn
from engine._partials import (
    ITERATOR,
    ONE,
    close_iterator,
    explain,
    look,
    one,
)
from engine._records import Prediction, current, current_call
from engine.runners.base import Stop, SyncExecution, is_finalising

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextvars import Context

    from engine._partials import Body
    from engine.runners.base import Live
    from engine.runners.bridge import Bridged

    Admit = Callable[[Body], None]
    Bridge = Callable[[Body, Any, str], Bridged]

BUSY: Final = "a pull runs"
ENDED: Final = "ended"


def reading_twice(call: object) -> ValueError:
    """What a second reader gets while a pull runs."""
    return ValueError(f"{call} is being read already: a stream without an owner of its own has one reader at a time")


class InlineExecution(SyncExecution):
    """A sync body in lock-step with the sync code that consumes it.

    Args:
        body: what to run.
        admit: called before the body starts: takes a slot, sets up a class.
        bridge: makes the execution that goes on where the body produced something async.
        grace: seconds a close from elsewhere waits for a running pull.
        live: where the execution is listed while it runs.
    """

    __slots__ = ("_admit", "_body", "_bridge", "_bridged", "_context", "_iterator", "_step", "_time", "_turn")

    def __init__(
        self,
        body: Body,
        admit: Admit | None,
        bridge: Bridge,
        grace: float,
        live: Live,
    ) -> None:
        """Make a pending execution."""
        super().__init__(body.call, grace, live)
        self._body = body
        self._context = body.context  # kept apart: whoever takes a body over gives it a context of its own
        self._admit = admit
        self._bridge = bridge
        self._bridged: Bridged | None = None
        self._iterator: Iterator[Any] | None = None
        self._step: Callable[[], Any] | None = None  # None until the first pull
        self._time = 0.0
        self._turn: Any = None

    @property
    def is_started(self) -> bool:
        """Whether the predictor's code has been reached."""
        return self._body.is_started

    def values(self) -> Iterator[Any]:
        """The raw partials from the shared position on.

        The hot loop of every sync stream: per partial one step in the call's context, one count, no record.
        """
        run, outcome = self._context.run, self.outcome
        while True:
            if self._turn is not None and self._is_over():
                return
            try:
                self._turn = BUSY
                value = run(self._step or self._first)
            except BaseException as error:
                failure = self._failed(error)
                if failure is None:
                    return
                try:
                    raise failure
                finally:  # or these frames and the exception keep each other, and the inputs, alive
                    del failure, self, run, outcome
            if self._turn is not BUSY and self._is_stopped():
                return
            self._turn = None
            outcome.count += 1
            yield value

    def predictions(self) -> Iterator[Prediction]:
        """A record for each partial from the shared position on; the same loop with a clock pair and a record."""
        run, outcome, call, clock = self._context.run, self.outcome, self.call, perf_counter
        while True:
            if self._turn is not None and self._is_over():
                return
            started = clock()
            try:
                self._turn = BUSY
                value = run(self._step or self._first)
            except BaseException as error:
                failure = self._failed(error)
                if failure is None:
                    return
                try:
                    raise failure
                finally:
                    del failure, self, run, outcome
            self._time += clock() - started
            if self._turn is not BUSY and self._is_stopped():
                return
            self._turn = None
            index = outcome.count
            outcome.count = index + 1
            yield Prediction(call, value, index, self._time * 1000.0)

    def _first(self) -> Any:
        """The first step, inside the call's context: admission, the call of the function, its first partial."""
        body = self._body
        current.set(body.call)
        self.begin()
        if self._admit is not None:
            self._admit(body)
        produced = body.start()
        kind = look(produced, body.follows)
        if kind is ONE:
            produced, kind = one(produced), ITERATOR
        if kind is ITERATOR:
            self._iterator = produced
            self._step = produced.__next__
        else:
            self._bridged = self._bridge(body, produced, kind)
            if self._turn is not BUSY:  # a stop came before there was anybody to pass it on to: see `stop`
                self._bridged.stop(Stop("closed"))
            self._step = self._bridged.step
        value = self._step()
        self.outcome.first = (perf_counter() - self._began) * 1000.0
        return value

    def _is_over(self) -> bool:
        if self._turn is BUSY:
            raise reading_twice(self.call)
        if self._turn is ENDED:
            self.raise_pending()
        return True

    def _failed(self, error: BaseException) -> BaseException | None:
        """A pull brought no partial: give what it raises, `None` where the stream just ends."""
        turn, self._turn = self._turn, ENDED
        if isinstance(turn, Stop):
            return self._stopped(turn, error)
        failure: BaseException | None = None
        if isinstance(error, StopIteration):
            self.end("done", returned=error.value)
        else:
            is_interrupt = isinstance(error, KeyboardInterrupt) and is_main_thread()
            failure = error if is_interrupt else explain(error, self.call, self.outcome.count)
            self._finalise_quietly()
            self.end("failed", failure)
        self._body.let_go()
        return failure

    def _stopped(self, stop: Stop, error: BaseException) -> BaseException | None:
        """The body ended while a stop was posted: the stop decides how the stream ends, whatever the body raised."""
        is_quiet = isinstance(error, (StopIteration, PredictionCancelledError))
        self._finalise_quietly()
        self._body.let_go()
        self.end(stop.state, stop.failure)
        stop.settle(None if is_quiet else explain(error, self.call, self.outcome.count))
        return stop.failure

    def _is_stopped(self) -> bool:
        """A stop was posted while the pull ran: carry it out instead of handing over what the pull brought."""
        self._carry_out(self._turn)
        self.raise_pending()
        return True

    def stop(self, stop: Stop) -> None:
        """Post a request to stop; carried out at once where the stream is idle. Waits for nothing."""
        if self._turn is None:
            self._turn = stop  # claimed: straight after the test, see the module's docstring
            self._carry_out(stop)
            return
        if self._turn is BUSY:
            self._turn = stop  # posted: the puller looks after its step
        self.call.stopping = True
        if self._bridged is not None:
            self._bridged.stop(Stop("closed"))
        nudge = self._body.nudge
        if nudge is not None:
            nudge()

    def close(self) -> None:
        """End as `closed`; wait, at most the grace, for a pull that runs in another thread."""
        stop = Stop("closed")
        stop.is_awaited = not self._is_inside()
        self.stop(stop)
        waiting = self._turn
        if stop.is_awaited and isinstance(waiting, Stop) and not waiting.wait(self.grace):
            warn(f"{self.call.tag}: a pull did not end within {self.grace} s of its stream being closed")
        if stop.error is not None:
            try:
                raise stop.error
            finally:
                del stop

    def _seal(self) -> None:
        self._turn = ENDED

    def _is_inside(self) -> bool:
        call = current_call()
        return call is not None and call.is_within(self.call)

    def _carry_out(self, stop: Stop) -> None:
        self._pending = stop.failure
        caught: BaseException | None = None
        try:
            self._finalise()
        except BaseException as error:
            caught = explain(error, self.call, self.outcome.count)
        self._turn = ENDED
        self._body.let_go()
        self.end(stop.state, stop.failure or caught)
        stop.settle(caught)

    def _finalise(self) -> None:
        """Run the body's `finally`, in the call's context."""
        if self._bridged is not None:
            self._bridged.close()
        elif self._iterator is not None:
            _enterable(self._context).run(close_iterator, self._iterator)

    def _finalise_quietly(self) -> None:
        try:
            self._finalise()
        except BaseException as error:
            warn(f"{self.call.tag}: error in clean-up", error)

    def __del__(self) -> None:
        """Finalise an abandoned body here, as Python does with any generator, but in its own context."""
        if self.outcome.state == "running" and not is_finalising():
            self._turn = ENDED
            if self._bridged is None:  # else it is let go of with this, and asks its owner
                self._finalise_quietly()
                self._body.let_go()
            self.end("closed")


def _enterable(context: Context) -> Context:
    """The context, or a copy where it is entered just now (a collector may run anywhere)."""
    try:
        context.run(int)
    except RuntimeError:
        return context.copy()
    return context


def is_main_thread() -> bool:
    """Whether this is the main thread, where Ctrl-C belongs to the caller and not to the predictor."""
    return threading.current_thread() is threading.main_thread()
