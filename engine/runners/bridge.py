"""The consumer's side of a body that runs elsewhere: partials come through a channel, whoever owns the body.

One class serves sync and asyncio consumers, since only their waiting differs. It never touches the body's iterator:
a request to stop is posted through the channel, and the owner carries it out.
"""

from __future__ import annotations

import warnings
from _thread import get_ident
from functools import partial
from time import perf_counter
from typing import TYPE_CHECKING, Any, Final

from engine._channel import End
from engine._errors import EngineBusyError, EngineClosedError, NestingError, PredictionCancelledError, counted, warn
from engine._partials import explain, is_foreign_cancel
from engine._records import Prediction, current_call
from engine.runners.base import Stop, SyncExecution, is_finalising, tell_of_abandoned

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator

    from engine._channel import Channel
    from engine._partials import Body
    from engine.runners.base import Live, Runner

    Admit = Callable[[Body], None]
    AsyncAdmit = Callable[[Body], Awaitable[None]]

NOTHING: Final = End()  # the end of a body that never ran
_DONE: Final = Stop("done")  # how a body ends that nobody stopped and that raised nothing


class Bridged(SyncExecution):
    """An execution whose body has an owner of its own.

    Args:
        body: what to run.
        channel: where its owner puts partials.
        runner: starts the owner, at the first pull; `None` where one works on the channel already.
        admit: called before the start, in the consumer, when that is sync code: takes a slot, sets up a class.
        aadmit: the same for an asyncio consumer.
        grace: seconds a close waits.
        live: where the execution is listed while it runs.
    """

    __slots__ = ("_aadmit", "_admit", "_body", "_channel", "_claim", "_is_begun", "_runner", "_stop")

    def __init__(  # noqa: PLR0917 - one record of independent facts, built in one place
        self,
        body: Body,
        channel: Channel,
        runner: Runner | None,
        admit: Admit | None,
        aadmit: AsyncAdmit | None,
        grace: float,
        live: Live,
    ) -> None:
        """Make a pending execution."""
        super().__init__(body.call, grace, live)
        self.outcome.ladder = channel.ladder
        self._body = body
        self._channel = channel
        self._runner = runner
        self._admit = admit
        self._aadmit = aadmit
        self._is_begun = False  # an owner was started
        self._claim: Stop | None = None  # how it ends, once somebody has decided that
        self._stop: Stop | None = None  # the same, once everything about it can be read

    @property
    def is_started(self) -> bool:
        """Whether the predictor's code has been reached."""
        return self._body.is_started

    # Pulling.

    def get(self) -> tuple[Any, float] | None:
        """The next partial and its latency in ms, waiting in a thread; `None` at the end, see `take_pending`."""
        while not self._is_over():
            item = self._next()
            if item is not None:
                return item
            self.call.blocked = get_ident()
            if self._runner is None:
                self._channel.wait()
            else:
                self._wait_first()
        return None

    def _wait_first(self) -> None:
        try:
            self._channel.wait(self._start())
        except BaseException as error:
            if not self._is_begun and not self.outcome.ended:  # Ctrl-C before the owner was started, or just then
                self._channel.request_stop()
                self._never_started(error)
            raise

    async def aget(self) -> tuple[Any, float] | None:
        """The same for an asyncio consumer."""
        while not self._is_over():
            item = self._next()
            if item is not None:
                return item
            await self._wait_task()
        return None

    def _is_over(self) -> bool:
        """Whether nothing is left to take; the body's end is noted here, once everything before it was taken."""
        if self._stop is None:
            end = self._channel.end  # read before the buffer: what was put before the end is taken before it
            if end is not None and not self._channel.items:
                self._conclude(end)
        return self._stop is not None

    def _next(self) -> tuple[Any, float] | None:
        if not self._channel.items:
            return None
        try:
            item = self._channel.take()
        except IndexError:  # another reader was faster
            return None
        self._count()
        return item

    def _count(self) -> None:
        outcome = self.outcome
        if not outcome.count:
            outcome.first = (perf_counter() - self._began) * 1000.0
        outcome.count += 1

    def _start(self) -> Callable[[], None] | None:
        """Admit the call; give what starts its owner once the consumer is parked."""
        runner, self._runner = self._runner, None
        return partial(self._go, runner) if runner is not None and self._is_admitted() else None

    def _is_admitted(self) -> bool:
        """Begin, and have the call admitted; tell whether it was, or was stopped while it waited for its slot."""
        try:
            self.begin()
            if self._admit is not None:
                self._admit(self._body)
        except PredictionCancelledError:
            self._channel.finish(NOTHING)
            return False
        except BaseException as error:
            self._never_started(error)
            raise
        return True

    async def _wait_task(self) -> None:
        runner, self._runner = self._runner, None
        try:
            if runner is None:
                await self._channel.wait_task()
                return
            try:
                self.begin()
                if self._aadmit is not None:
                    await self._aadmit(self._body)
            except PredictionCancelledError:
                self._channel.finish(NOTHING)
                return
            except BaseException as error:
                self._never_started(error)
                raise
            await self._channel.wait_task(partial(self._go, runner))
        except BaseException as error:
            stop = Stop("cancelled")
            if is_foreign_cancel(error) and self._claims(stop):  # this consumer's own task was cancelled
                self._finish(stop, error)
                self._leave()
            raise

    def _go(self, runner: Runner) -> None:
        """Start the owner."""
        if self._claim is not None:  # stopped while it waited for its slot: the body never runs
            self._body.let_go()
            self._channel.finish(NOTHING)
            return
        try:
            runner.start(self._body, self._channel)
            self._is_begun = True
        except BaseException as error:
            if self._body.withhold():
                self._never_started(error)
            else:  # Ctrl-C, just after its owner had begun: as if it came while the partial is waited for
                self._is_begun = True
            raise

    def _never_started(self, error: BaseException) -> None:
        self._body.let_go()
        self._channel.finish(NOTHING)
        stop = Stop("failed")
        if is_foreign_cancel(error):
            stop.state = "cancelled"
        elif isinstance(error, EngineClosedError) and self._live.is_closed:  # just then
            stop.state = "closed"
        elif not isinstance(error, (NestingError, EngineBusyError)):
            explain(error, self.call, 0)
        if self._claims(stop):
            self._finish(stop, error)

    def _conclude(self, end: End) -> None:
        """The body ended by itself: of several consumers one notes it, and one is told of its failure."""
        if end.error is None and not self._channel.stop:
            if self._claim is None:  # as in `_claims`
                self._claim = _DONE
                self.end("done", None, end.returned)
                self._stop = _DONE
            return
        is_shut = end.error is None and self._channel.stop  # by its runner, since nobody of this execution did it
        stop = self._shut() if is_shut else Stop("done" if end.error is None else "failed")
        if not self._claims(stop):
            return
        if end.error is not None:
            reduction = self._body.reduction
            count = self.outcome.count if reduction is None else reduction.count
            error, end.error = end.error, None  # or the channel, which its frames refer to, keeps it alive
            stop.failure = explain(error, self.call, count)
        self._finish(stop, returned=end.returned)

    # The faces' iterators. Each raises in a frame that refers to nothing, or the exception would keep it all alive.

    def values(self) -> Iterator[Any]:
        """The raw partials from the shared position on; the hot loop of every sync stream from an owner elsewhere."""
        get, channel, outcome = self.get, self._channel, self.outcome
        items, take = channel.items, channel.take
        while (item := get()) is not None:
            yield item[0]
            while items and self._stop is None:  # the fast path: it is there already
                try:
                    item = take()
                except IndexError:  # another reader was faster
                    break
                outcome.count += 1
                yield item[0]
        failure = self.take_pending()
        del self, get, item, channel, outcome, items, take
        if failure is not None:
            try:
                raise failure
            finally:
                del failure

    def predictions(self) -> Iterator[Prediction]:
        """A record for each partial from the shared position on."""
        get, call, channel, outcome = self.get, self.call, self._channel, self.outcome
        items, take = channel.items, channel.take
        while (item := get()) is not None:
            yield Prediction(call, item[0], outcome.count - 1, item[1])
            while items and self._stop is None:  # the fast path, as in `values`
                try:
                    item = take()
                except IndexError:
                    break
                index = outcome.count
                outcome.count = index + 1
                yield Prediction(call, item[0], index, item[1])
        failure = self.take_pending()
        del self, get, item, call, channel, outcome, items, take
        if failure is not None:
            try:
                raise failure
            finally:
                del failure

    async def apartials(self, *, records: bool) -> AsyncGenerator[Any, None]:
        """`values` or `predictions` for asyncio."""
        yield None
        call, channel, outcome = self.call, self._channel, self.outcome
        items, take = channel.items, channel.take
        while (item := await self.aget()) is not None:
            yield Prediction(call, item[0], outcome.count - 1, item[1]) if records else item[0]
            while items and self._stop is None:  # the fast path: it is there already
                try:
                    item = take()
                except IndexError:
                    break
                index = outcome.count
                outcome.count = index + 1
                yield Prediction(call, item[0], index, item[1]) if records else item[0]
        failure = self.take_pending()
        del self, item, call, channel, outcome, items, take
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
        failure = self.take_pending() or StopAsyncIteration()
        del self, item
        try:
            raise failure
        finally:
            del failure

    async def pull_prediction(self) -> Prediction:
        """The next partial with its record."""
        item = await self.aget()
        if item is not None:
            return Prediction(self.call, item[0], self.outcome.count - 1, item[1])
        failure = self.take_pending() or StopAsyncIteration()
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
        failure = self.take_pending() or StopIteration(self.outcome.returned)
        del self, item
        try:
            raise failure
        finally:
            del failure

    # Stopping.

    def stop(self, stop: Stop) -> None:
        """Post a request to stop and return at once; the consumer is woken, the owner finalises the body."""
        if self._claims(stop):
            self._finish(stop)
            self._leave()

    def _claims(self, stop: Stop) -> bool:
        if self._claim is None:  # no call stands between this test and the next line, so no thread does either
            self._claim = stop
        return self._claim is stop

    def _finish(self, stop: Stop, exception: BaseException | None = None, returned: Any = None) -> None:
        """Reach the end that was claimed; readers see it last, so that what they find is complete."""
        self._pending, stop.failure = stop.failure, None
        self.end(stop.state, exception or self._pending, returned)
        self._stop = stop

    def _leave(self) -> None:
        """Ask the owner to finalise the body; from here on its errors go to the log."""
        channel = self._channel
        channel.desert()
        self._request_stop()
        self._log_unseen(channel.end)

    def close(self) -> None:
        """End as `closed` and wait, at most the grace, until the body is finalised."""
        stop, is_pending = Stop("closed"), self.outcome.state == "pending"
        if not self._claims(stop):
            return
        self._finish(stop)
        if not is_pending:
            self._request_stop()
            self._closed(self._is_inside() or self._channel.wait_end(self.grace))

    async def aclose(self) -> None:
        """The same for an asyncio consumer."""
        await self._aclose(is_inside=self._is_inside())

    async def afinalise(self) -> None:
        """The same for the lock-step execution this is a part of, which closes it in the body's own context."""
        await self._aclose(is_inside=False)

    async def _aclose(self, *, is_inside: bool) -> None:
        stop, is_pending = Stop("closed"), self.outcome.state == "pending"
        if not self._claims(stop):
            return
        self._finish(stop)
        if not is_pending:
            self._request_stop()
            try:
                is_final = is_inside or await self._channel.wait_end_task(self.grace)
            except BaseException:  # this task was cancelled: it leaves the clean-up to its owner, as it leaves a pull
                self._channel.desert()
                self._log_unseen(self._channel.end)
                raise
            self._closed(is_final)

    def _seal(self) -> None:
        self._claim = self._stop = Stop("closed")

    def _request_stop(self) -> None:
        self.call.stopping = True
        self._channel.request_stop()
        nudge = self._body.nudge
        if nudge is not None:  # it waits for a slot: let it look again
            nudge()

    def _is_inside(self) -> bool:
        """Whether this is the body closing itself, which cannot be waited for."""
        call = current_call()
        return call is not None and call.is_within(self.call)

    def _closed(self, is_final: bool) -> None:  # noqa: FBT001
        channel = self._channel
        channel.desert()
        end = channel.end
        if end is not None and end.is_cleanup and end.error is not None:
            error, end.error = end.error, None
            raise explain(error, self.call, self.outcome.count)
        self._log_unseen(end)
        if not is_final:
            tell_of_abandoned(self.call, self.grace)

    def _log_unseen(self, end: End | None) -> None:
        if end is not None and end.error is not None and self._stop is not None and self._stop.state != "failed":
            warn(f"{self.call.tag}: error nobody waited for", end.error)

    def __del__(self) -> None:
        """An abandoned stream is finalised by its owner, which is told here, without lock or wait."""
        if self.outcome.state != "running" or is_finalising():
            return
        self.end("closed")
        self._leave()
        warnings.warn(
            f"a stream of {self.call.tag} was abandoned after {counted(self.outcome.count)}; close it, or use `with`",
            ResourceWarning,
            stacklevel=2,
            source=self,
        )
