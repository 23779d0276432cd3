"""Lock-step execution in the sync code that consumes it: no thread, no queue, one step of the body per pull.

The body is stepped inside the call's own context. A body that rests has no owner, so a stopper finalises it in its own
thread; while a pull runs, a stop is posted and the puller carries it out.
"""

from __future__ import annotations

import sys
import threading
from time import perf_counter
from typing import TYPE_CHECKING, Any

from engine._errors import PredictionCancelledError, warn
from engine._predictors.failures import explain
from engine._predictors.normaliser import ITERATOR, ONE, close_iterator, look, one
from engine._records import Prediction, current
from engine.runners.base import CLEAN, SyncExecution
from engine.runners.ending import Ending
from engine.runners.lock_step import BUSY, ENDED, LockStepExecution, is_main_thread

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextvars import Context

    from engine._predictors.body import Body
    from engine.runners.base import OpenCalls
    from engine.runners.lock_step import HandOverFromCaller
    from engine.runners.owned import OwnedExecution


class InlineExecution(LockStepExecution, SyncExecution):
    """A sync body in lock-step with the sync code that consumes it.

    Args:
        body: what to run.
        hand_over: makes the execution that goes on, under an owner, where the body produced something async.
        grace: seconds a close from elsewhere waits for a running pull.
        open_calls: where the execution is listed while it runs.
    """

    __slots__ = ("_body", "_context", "_hand_over", "_handed_over", "_iterator", "_step", "_time", "_turn")

    def __init__(self, body: Body, hand_over: HandOverFromCaller, grace: float, open_calls: OpenCalls) -> None:
        """Make a pending execution."""
        super().__init__(body.call, Ending(body.call.tag), grace, open_calls)
        self._body = body
        self._context = body.context  # kept apart: an owner that it is handed over to gives the body another context
        self._hand_over = hand_over
        self._handed_over: OwnedExecution | None = None
        self._iterator: Iterator[Any] | None = None
        self._step: Callable[[], Any] | None = None  # None until the first pull
        self._time = 0.0  # seconds that the body took up to its last partial, where records are made
        self._turn: Any = None

    @property
    def is_started(self) -> bool:
        """Whether the predictor's code has been reached."""
        return self._body.is_started

    def values(self) -> Iterator[Any]:
        """The raw partials from the shared position on.

        The hot loop of every sync stream: per partial one step in the call's context, one count, no record.
        """
        run, ending = self._context.run, self.ending
        if ending.count and self._body.slots is not None:
            self.reader = threading.current_thread()  # once an iterator: a partial costs hardly more than this
        while True:
            if self._turn is not None and self._is_over():
                return
            try:
                self._turn = BUSY  # call-free store: takes the turn, which the test above found free
                value = run(self._step or self._first)
            except BaseException as error:
                failure = self._failed(error)
                if failure is None:
                    return
                try:
                    raise failure
                finally:  # or these frames and the exception keep each other, and the inputs, alive
                    del failure, self, run, ending
            if ending.claimed is not None and self._is_stopped():
                return
            # call-free store: a stop that is claimed from here on finds the body at rest, and finalises it itself.
            self._turn = None
            ending.count += 1
            yield value

    def predictions(self) -> Iterator[Prediction]:
        """A record for each partial from the shared position on; the loop of `values`, with a clock pair too."""
        run, ending, call, clock = self._context.run, self.ending, self.call, perf_counter
        if ending.count and self._body.slots is not None:
            self.reader = threading.current_thread()
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
                    del failure, self, run, ending
            self._time += clock() - started
            if ending.claimed is not None and self._is_stopped():
                return
            self._turn = None  # call-free store, as in `values`
            index = ending.count
            ending.count = index + 1
            yield Prediction(call, value, index, self._time * 1000.0)

    def _first(self) -> Any:
        """The first step, inside the call's context: admission, the call of the function, its first partial."""
        body = self._body
        current.set(body.call)
        self.begin()
        if body.slots is not None:
            self.ending.admit(body)
        produced = body.start()
        kind = look(produced, body.follows)
        if kind is ONE:
            produced, kind = one(produced), ITERATOR
        if kind is ITERATOR:
            self._iterator = produced
            self._step = produced.__next__
        else:
            self._handed_over = self._hand_over(body, produced, kind)
            # Tested after the store: a stop that comes later finds there what to pass itself on to, see `_stop`.
            if self.ending.claimed is not None:
                self._handed_over.stop("closed")
            self._step = self._handed_over.step
        value = self._step()
        self.ending.first = (perf_counter() - self._began) * 1000.0
        return value

    @property
    def is_being_pulled(self) -> bool:
        """Whether a thread steps the body just now."""
        return self._turn is BUSY

    def _failed(self, error: BaseException) -> BaseException | None:
        """What a pull raises that brought no partial, `None` where the stream just ends.

        Of a body that ended by itself this claims the end; where a stop was claimed before, that is carried out.
        """
        ending, failure = self.ending, None
        # The turn is this pull's until the end can be read: another reader would take the failure that is to be shown
        # in the outcome. It is given back on every path, or Ctrl-C in here would leave a stream that refuses for ever.
        try:
            if isinstance(error, StopIteration) and ending.claim("done"):
                self.end(None, error.value)
            elif ending.claim("failed"):
                is_interrupt = isinstance(error, KeyboardInterrupt) and is_main_thread()
                failure = error if is_interrupt else explain(error, self.call, ending.count)
                self._finalise_quietly()
                self.end(failure)
            else:
                return self._stopped(error)
        finally:
            self._turn = ENDED
        self._body.release_slot()
        ending.end = CLEAN
        if ending.end_waiters:
            ending.finish(CLEAN)
        return failure

    def _stopped(self, error: BaseException) -> BaseException | None:
        """What a pull raises whose body ended while a stop was posted: the stop decides how the stream ends."""
        is_quiet = isinstance(error, (StopIteration, PredictionCancelledError))
        self._finalise_quietly()
        self._body.release_slot()
        self.end()
        self._settle(None if is_quiet else explain(error, self.call, self.ending.count))
        return self.take_failure()

    def _is_stopped(self) -> bool:
        """Carry out a stop that was posted while the pull ran; what the pull brought is not handed over."""
        self._carry_out()
        self.raise_failure()
        return True

    def _stop(self) -> None:
        """Carry the claimed end out in this thread where the body rests; else leave that to the puller."""
        if self._turn is None:
            self._turn = BUSY  # call-free store: takes the turn, so no pull begins and no other stopper comes in
            self._carry_out()
            return
        # The puller tests for the claim after its step. It may be this very thread, in a signal handler or in a
        # finaliser that runs in the body, so nothing is waited for.
        self.call.stopping = True
        if self._handed_over is not None:
            self._handed_over.stop("closed")
        recheck = self._body.recheck
        if recheck is not None:
            recheck()

    def close(self) -> None:
        """End as `closed`; wait, at most the grace, for a pull that runs in another thread.

        Raises:
            BaseException: what the body's clean-up raised.
        """
        ending, is_inside = self.ending, self.is_inside()
        is_mine = ending.claim("closed")
        if is_mine:
            ending.is_awaited = not is_inside  # before the stop, which reads it where it is carried out
            self._stop()
        is_final = is_inside or ending.end is not None or not (is_mine or self._turn is BUSY)
        try:
            is_final = is_final or ending.wait_end(self.grace)
        except BaseException:
            if is_mine:
                self._stop_awaiting()
            raise
        self._end_close(is_mine=is_mine, is_final=is_final)

    def _carry_out(self) -> None:
        """Finalise the body as its end was claimed to be.

        Raises:
            KeyboardInterrupt: Ctrl-C came on the main thread, where it is the caller's.
        """
        caught: BaseException | None = None
        interruption: KeyboardInterrupt | None = None
        try:
            self._finalise()
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt) and is_main_thread():
                interruption = error
                self._finalise_quietly()  # it may have come before the body was reached
            else:
                caught = explain(error, self.call, self.ending.count)
        try:  # the turn is kept until the end can be read, and given back on every path, as in `_failed`
            self._body.release_slot()
            self.end(self.ending.failure or caught or interruption)
        finally:
            self._turn = ENDED
        self._settle(caught)
        try:
            if interruption is not None:
                raise interruption
        finally:
            del caught, interruption, self  # or this frame and the exception keep each other alive

    def _finalise(self) -> None:
        """Run the body's `finally`, in the call's context."""
        if self._handed_over is not None:
            self._handed_over.close()
        elif self._iterator is not None:
            _enterable(self._context).run(close_iterator, self._iterator)

    def _finalise_quietly(self) -> None:
        try:
            self._finalise()
        except BaseException as error:
            warn(f"{self.call.tag}: error in clean-up", error)

    def __del__(self) -> None:
        """Finalise an abandoned body here, as Python does with any generator, but in its own context.

        A collector may call this in any thread, at any allocation: no lock is taken, and nothing is waited for.
        """
        if self.ending.state == "running" and not sys.is_finalizing():
            self._turn = ENDED  # nothing refers to this any more, so no test is needed
            if self._handed_over is None:  # else that is collected with this, and asks its owner
                self._finalise_quietly()
                self._body.release_slot()
            if self.ending.claim("closed") or not self.ending.is_over:  # the latter where Ctrl-C came into a stop
                self.end()
        elif self._body.release is not None:  # Ctrl-C came between the end and the release of the slot
            self._body.release_slot()


def _enterable(context: Context) -> Context:
    """The context, or a copy where it is entered just now: a collector may run inside of the body's own step."""
    try:
        context.run(int)
    except RuntimeError:
        return context.copy()
    return context
