"""The consumer's side of a body with an owner of its own: a thread, a task of a loop, a worker.

One class serves `create` and streams, sync and asyncio consumers, since only their waiting differs. It never touches
the body's iterator: a request to stop goes through the channel, and the owner carries it out.
"""

from __future__ import annotations

import sys
import warnings
from _thread import get_ident
from functools import partial
from threading import current_thread
from time import perf_counter
from typing import TYPE_CHECKING, Any

from engine._errors import (
    EngineBusyError,
    EngineClosedError,
    EngineError,
    NestingError,
    PredictionCancelledError,
    counted,
    warn,
)
from engine._predictors.failures import explain, is_foreign_cancel
from engine._records import Prediction
from engine.runners.base import CLEAN, SyncExecution

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Iterator

    from engine._predictors.body import Body
    from engine._records import State
    from engine.runners.base import OpenCalls, Runner
    from engine.runners.channel import Reduction
    from engine.runners.ending import ConsumerEnd, Report


class OwnedExecution(SyncExecution):
    """An execution whose body has an owner of its own.

    Args:
        body: what to run.
        ending: the consumer's end of the channel in which its owner hands partials over, or keeps the reduction.
        runner: starts the owner, at the first pull; `None` where an owner has the channel already.
        grace: seconds a close waits.
        open_calls: where the execution is listed while it runs.
    """

    __slots__ = ("_body", "_is_owner_started", "_runner")

    ending: ConsumerEnd

    def __init__(
        self, body: Body, ending: ConsumerEnd, runner: Runner | None, grace: float, open_calls: OpenCalls
    ) -> None:
        """Make a pending execution."""
        super().__init__(body.call, ending, grace, open_calls)
        self._body = body
        self._runner = runner
        self._is_owner_started = False

    @property
    def is_started(self) -> bool:
        """Whether the predictor's code has been reached."""
        return self._body.is_started

    # Pulling

    def get(self) -> tuple[Any, float] | None:
        """The next partial and its latency in ms, waiting in a thread; `None` at the end, see `take_failure`."""
        while not self._is_over():
            item = self._next()
            if item is not None:
                return item
            self.call.blocked = get_ident()
            self.reader = current_thread()
            if self._runner is None:
                self.ending.wait()
            else:
                self._start_and_wait()
        return None

    def _start_and_wait(self) -> None:
        """Begin, have the call admitted, and its owner started once this thread is parked; sleep."""
        ending, runner, self._runner = self.ending, self._runner, None  # call-free store: of several readers one begins
        if runner is None:  # another reader was first, and begins
            ending.wait()
            return
        try:
            self.begin()
            ending.admit(self._body)
            ending.wait(partial(self._start_owner, runner))
        except BaseException as error:  # no admittance, no owner, or Ctrl-C, which may come once an owner has the body
            if not self._may_cancel_start() or self._fail_start(error):
                raise

    async def aget(self) -> tuple[Any, float] | None:
        """The next partial and its latency in ms, waiting in an asyncio task; `None` at the end."""
        while not self._is_over():
            item = self._next()
            if item is not None:
                return item
            await self._wait_task()
        return None

    async def _wait_task(self) -> None:
        """Sleep in an asyncio task; the first time, begin, and have the call admitted and its owner started before."""
        ending, runner, self._runner = self.ending, self._runner, None  # call-free store: as in `_start_and_wait`
        try:
            if runner is not None:
                try:
                    self.begin()
                    await ending.aadmit(self._body)
                    await ending.wait_task(partial(self._start_owner, runner))
                except BaseException as error:
                    if not self._may_cancel_start() or self._fail_start(error):
                        raise
            else:
                await ending.wait_task()
        except BaseException as error:
            if is_foreign_cancel(error) and ending.claim("cancelled"):  # this consumer's own task was
                self._detach(error)
            raise

    def _is_over(self) -> bool:
        """Whether nothing is left to take; the body's end is settled here, once everything before it was taken."""
        ending = self.ending
        if not ending.is_over:
            end = ending.end  # read before the buffer: what was put before the end is taken before it
            if end is not None and not ending.items:
                self._settle_report(end)
        is_over: bool = ending.is_over
        return is_over

    def _next(self) -> tuple[Any, float] | None:
        ending = self.ending
        if not ending.items:
            return None
        try:
            item: tuple[Any, float] = ending.take()
        except IndexError:  # another reader took it
            return None
        if not ending.count:
            ending.first = (perf_counter() - self._began) * 1000.0
        ending.count += 1
        return item

    def _seal(self) -> None:
        self._runner = None

    def _start_owner(self, runner: Any) -> None:
        """Start the owner; called once the consumer is parked, so that it misses no wake-up."""
        if self.ending.claimed is not None:  # stopped while it waited for its slot: the body never runs
            self._body.release_slot()
            self.ending.finish(CLEAN)
            return
        runner.start(self._body, self.ending)
        self._is_owner_started = True  # Ctrl-C may come before this: `_may_cancel_start` then asks the body itself

    def _may_cancel_start(self) -> bool:
        """Whether the body never runs; else an owner has it, and what was raised interrupts the wait for it only."""
        return not self._is_owner_started and self._body.cancel_start()

    def _fail_start(self, error: BaseException) -> bool:
        """End because the body cannot be started; tell whether the consumer is to get `error`.

        It does not where its end was decided before, for a consumer gets the end of its stream once.
        """
        ending = self.ending
        self._body.release_slot()  # an owner that was started all the same finds nothing to release
        ending.request_stop()
        ending.finish(CLEAN)
        state = self._state_after(error)
        if state == "failed" and not isinstance(error, (NestingError, EngineBusyError)):
            explain(error, self.call, 0)
        if ending.claim(state):
            self.end(error)
            return True
        if isinstance(error, Exception) and not isinstance(error, EngineError) and not is_foreign_cancel(error):
            warn(f"{self.call.tag}: error that no consumer waited for", error)
        return not isinstance(error, Exception)

    def _state_after(self, error: BaseException) -> State:
        """The state that an error which kept the body from being started ends the call in."""
        if isinstance(error, PredictionCancelledError) or is_foreign_cancel(error):
            return "cancelled"
        if isinstance(error, GeneratorExit) or (isinstance(error, EngineClosedError) and self._open_calls.is_closed):
            return "closed"
        return "failed"

    def _settle_report(self, end: Report) -> None:
        """Settle a body that ended by itself: of several consumers one does so, and one gets its failure."""
        ending, reduction = self.ending, self._body.reduction
        if reduction is not None:
            ending.count = reduction.count  # a worker that keeps the reduction reports its count with the end
        error = end.error
        if error is not None:
            if ending.claim("failed"):
                end.error = None  # or the channel, which its frames refer to, keeps it alive
                ending.failure = explain(error, self.call, ending.count)
                self.end()
        elif ending.stop:  # by its runner: a stop through this execution would have claimed the end before
            if ending.claim("closed", self.closed_error()):
                self.end()
        elif ending.claim("done"):
            self.end(None, end.returned)

    # Reducing

    def drain(self, reduction: Reduction) -> None:
        """Reduce it to its end: what is handed over, which is nothing where the owner keeps the reduction.

        Raises:
            BaseException: what ended it before, or what the reducer raised.
        """
        ending = self.ending
        try:
            self.call.blocked = get_ident()
            self._start_and_wait()
            if ending.end is not None and not ending.items and not ending.is_over:  # the fast path: all has come
                self._settle_report(ending.end)
            while not ending.is_over and (item := self.get()) is not None:
                reduction.add(item[0])
        finally:
            if not ending.is_over:  # the reducer failed, or Ctrl-C came
                self.close()
        if ending.failure is not None:
            self.raise_failure()

    async def adrain(self, reduction: Reduction) -> None:
        """Reduce it to its end, for an asyncio consumer; one that is cancelled does not wait for the body to stop.

        Raises:
            BaseException: what ended it before, or what the reducer raised.
        """
        ending = self.ending
        try:
            await self._wait_task()
            if ending.end is not None and not ending.items and not ending.is_over:  # the fast path: all has come
                self._settle_report(ending.end)
            while not ending.is_over and (item := await self.aget()) is not None:
                reduction.add(item[0])
        except Exception:
            if not ending.is_over:  # the reducer failed
                await self.aclose()
            raise
        except BaseException:
            if ending.claim("closed"):  # Ctrl-C, or the task is destroyed: neither waits for the body to be finalised
                self._detach()
            raise
        if ending.failure is not None:
            self.raise_failure()

    # What streams iterate. Each raises in a frame that refers to nothing, or the exception would keep it all alive.

    def values(self) -> Iterator[Any]:
        """The raw partials from the shared position on; the hot loop of every sync stream from an owner elsewhere."""
        get, ending = self.get, self.ending
        items, take = ending.items, ending.take
        self.reader = current_thread()
        while (item := get()) is not None:
            yield item[0]
            while items and not ending.is_over:  # the fast path: it is there already
                try:
                    item = take()
                except IndexError:  # another reader took it
                    break
                ending.count += 1
                yield item[0]
        failure = self.take_failure()
        del self, get, item, ending, items, take
        if failure is not None:
            try:
                raise failure
            finally:
                del failure

    def predictions(self) -> Iterator[Prediction]:
        """A record for each partial from the shared position on."""
        get, call, ending = self.get, self.call, self.ending
        items, take = ending.items, ending.take
        self.reader = current_thread()
        while (item := get()) is not None:
            yield Prediction(call, item[0], ending.count - 1, item[1])
            while items and not ending.is_over:  # the fast path, as in `values`
                try:
                    item = take()
                except IndexError:
                    break
                index = ending.count
                ending.count = index + 1
                yield Prediction(call, item[0], index, item[1])
        failure = self.take_failure()
        del self, get, item, call, ending, items, take
        if failure is not None:
            try:
                raise failure
            finally:
                del failure

    async def apartials(self, *, records: bool) -> AsyncGenerator[Any, None]:
        """The partials or records from the shared position on, for asyncio; `None` first, see `primed`."""
        yield None
        call, ending = self.call, self.ending
        items, take = ending.items, ending.take
        while (item := await self.aget()) is not None:
            yield Prediction(call, item[0], ending.count - 1, item[1]) if records else item[0]
            while items and not ending.is_over:  # the fast path: it is there already
                try:
                    item = take()
                except IndexError:
                    break
                index = ending.count
                ending.count = index + 1
                yield Prediction(call, item[0], index, item[1]) if records else item[0]
        failure = self.take_failure()
        del self, item, call, ending, items, take
        if failure is not None:
            try:
                raise failure
            finally:
                del failure

    async def pull(self) -> Any:
        """The next partial."""
        item = await self.aget()
        if item is not None:
            return item[0]
        failure = self.take_failure() or StopAsyncIteration()
        del self, item
        try:
            raise failure
        finally:
            del failure

    async def pull_prediction(self) -> Prediction:
        """The next partial with its record."""
        item = await self.aget()
        if item is not None:
            return Prediction(self.call, item[0], self.ending.count - 1, item[1])
        failure = self.take_failure() or StopAsyncIteration()
        del self, item
        try:
            raise failure
        finally:
            del failure

    def step(self) -> Any:
        """The next partial, as an inline execution steps it; ends with StopIteration and the return value."""
        item = self.get()
        if item is not None:
            return item[0]
        failure = self.take_failure() or StopIteration(self.ending.returned)
        del self, item
        try:
            raise failure
        finally:
            del failure

    # Stopping

    def _stop(self) -> None:
        """Carry out the end that was claimed: wake the consumer, and have the owner finalise the body."""
        self._detach()

    def _detach(self, exception: BaseException | None = None) -> None:
        """Reach the end that was claimed, and ask the owner to finalise the body; its errors go to the log."""
        self.end(exception)
        self.ending.detach()  # before the stop: what the owner finishes with from then on goes to the log
        self._request_stop()
        self._log_error(self.ending.end)

    def close(self) -> None:
        """End as `closed` and wait, at most the grace, until the body is finalised.

        Raises:
            BaseException: what the body's clean-up raised.
        """
        if self._begin_close():
            self._finish_close(self.is_inside() or self.ending.wait_end(self.grace))

    async def aclose(self) -> None:
        """End as `closed` and wait in an asyncio task, at most the grace, until the body is finalised.

        Raises:
            BaseException: what the body's clean-up raised.
        """
        if self._begin_close():
            self._finish_close(self.is_inside() or await self._wait_end_task())

    async def afinalise(self) -> None:
        """End as `closed` on behalf of the lock-step execution this is a part of, in the body's own context."""
        if self._begin_close():
            self._finish_close(await self._wait_end_task())

    async def _wait_end_task(self) -> bool:
        ending = self.ending
        try:
            is_final: bool = await ending.wait_end_task(self.grace)
        except BaseException:  # this task was cancelled: the clean-up is left to the owner, as after a cancelled pull
            ending.detach()
            self._log_error(ending.end)
            raise
        return is_final

    def _begin_close(self) -> bool:
        """End as `closed`; tell whether there is a body to wait for."""
        ending = self.ending
        is_pending = ending.state == "pending"
        if not ending.claim("closed"):
            return False
        self.end()
        if not is_pending:  # else no owner was started, and none will be: `begin` sees the claim
            self._request_stop()
        return not is_pending

    def _request_stop(self) -> None:
        self.call.stopping = True  # first: what waits for a slot tests this when it is woken
        self.ending.request_stop()
        recheck = self._body.recheck
        if recheck is not None:  # it waits for a slot, and shall see that it was stopped
            recheck()

    def _finish_close(self, is_final: bool) -> None:  # noqa: FBT001
        ending = self.ending
        ending.detach()
        end = ending.end
        if end is not None and end.is_cleanup and end.error is not None:
            error, end.error = end.error, None
            failure = explain(error, self.call, ending.count)
            self.show(failure)
            del self, ending, end, error
            try:
                raise failure
            finally:
                del failure  # or this frame and the exception keep each other alive
        self._log_error(end)
        if not is_final:
            warn(
                f"{self.call.tag}: the body did not stop within {self.grace} s of being closed; it is abandoned, and "
                "keeps its slot until it ends"
            )

    def _log_error(self, end: Report | None) -> None:
        if end is not None and end.error is not None and self.ending.claimed != "failed":
            error, end.error = end.error, None  # call-free store: it is logged here, or by `Ending.finish`
            warn(f"{self.call.tag}: error that no consumer waited for", error)

    def __del__(self) -> None:
        """Have the owner finalise an abandoned stream, without a lock or a wait: a collector may run this anywhere."""
        ending = self.ending
        if sys.is_finalizing():
            return
        if ending.state != "running":
            if self._runner is None and ending.end is None and not ending.stop:  # Ctrl-C came before it was asked
                self._request_stop()
            return
        is_abandoned = ending.claim("closed")  # else Ctrl-C interrupted a stop, which is carried out here
        self._detach()
        if is_abandoned:
            warnings.warn(
                f"a stream of {self.call.tag} was abandoned after {counted(ending.count)}; close it, or use `with`",
                ResourceWarning,
                stacklevel=2,
                source=self,
            )
