"""Lock-step execution in the asyncio task that consumes it: no queue, one step of the body per pull.

The body is a machine that is stepped inside the call's own context: what it waits for is passed on to the loop, what
the loop answers is passed in. A body that rests has no owner: `aclose` finalises it in the task that calls it, any
other stop has its loop do so; while a pull waits, a stop interrupts it where it waits.

A body is cleaned up in the task that stepped it, since cancel scopes belong to their task, but once it was cancelled
nothing cancels what its clean-up waits for: a cancel scope may deliver its cancellation at every turn of the loop. The
task then waits for something else in its place, see `shield`.

An open stream is three objects: the `TaskExecution`, which its event loop's `LoopExit` keeps; its machine; and what the
consumer holds of it, a `Handle`. A `Handle` that is dropped, or the end of the loop, has the body closed.
"""

from __future__ import annotations

import sys
import types
import warnings
from time import perf_counter
from typing import TYPE_CHECKING, Any, Final

from engine._errors import PredictionCancelledError, counted, warn
from engine._predictors.failures import explain, is_foreign_cancel
from engine._predictors.normaliser import ASYNC, ITERATOR, ONE, aclose_iterator, awaited, close_iterator, first_step
from engine._records import Prediction, current
from engine.runners.base import primed
from engine.runners.ending import Ending
from engine.runners.interruptions import ITEM, BodyEnded, Interruptions, drive, finalise
from engine.runners.lock_step import ABANDONED, BUSY, ENDED, STOPPED, LockStepExecution, is_main_thread
from engine.runners.loop_exit import LoopExit, exhaust, finalising, loop_exits

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Generator, Iterator

    from engine._predictors.body import Body
    from engine._records import Call, Outcome, State
    from engine.runners.base import OpenCalls
    from engine.runners.channel import Reduction
    from engine.runners.lock_step import HandOverFromCaller
    from engine.runners.owned import OwnedExecution


_send: Final = types.GeneratorType.send  # a bound one for each stream would stay as long as that


class TaskExecution(LockStepExecution):
    """An async body in lock-step with the asyncio task that consumes it, stepped in the call's own context.

    With runner `"inline"` a sync body is stepped the same way, on the loop itself. While it runs it is listed, and so
    kept, with the `LoopExit` of its loop; that it was abandoned is noticed by a `Handle`, to which it does not refer.

    Args:
        body: what to run.
        hand_over: makes the execution that goes on, under an owner, where an async body produced a sync iterator;
            `None` to step that here as well.
        grace: seconds a close waits for a running pull, and a cancelled body may go on.
        open_calls: where the execution is listed while it runs.
        is_closed_at_exit: whether the loop closes it where it ends; not for one that no consumer can abandon.

    Attributes:
        hand_over: as given; `None` once there is nothing that could be handed over.
        partial: what the machine yielded last.
    """

    __slots__ = (
        "__weakref__",
        "_body",
        "_context",
        "_interruptions",
        "_is_closed_at_exit",
        "_is_interrupted",
        "_is_started",
        "_loop_exit",
        "_machine",
        "_time",
        "_turn",
        "hand_over",
        "partial",
    )

    def __init__(
        self,
        body: Body,
        hand_over: HandOverFromCaller | None,
        grace: float,
        open_calls: OpenCalls,
        *,
        is_closed_at_exit: bool = True,
    ) -> None:
        """Make a pending execution."""
        super().__init__(body.call, Ending(body.call.tag), grace, open_calls)
        self._body: Body | None = body  # `None` once nothing of it is needed, for its memory
        self.hand_over = hand_over
        self._is_closed_at_exit = is_closed_at_exit
        self._is_interrupted = False  # a stop has reached the body where it waits
        self._context = body.context  # kept apart: an owner that it is handed over to gives the body another context
        self._machine: Any = None  # it refers to this, a cycle, so it is made at the first pull and dropped at the end
        self._loop_exit: LoopExit | None = None
        self._time = 0.0
        self._turn: Any = None
        self._interruptions: Interruptions | None = None
        self._is_started = False
        self.partial: Any = None

    @property
    def is_started(self) -> bool:
        """Whether the predictor's code has been reached."""
        return self._is_started

    @types.coroutine
    def pull(self, handle: Handle | None = None) -> Generator[Any, None, Any]:
        """The next partial; meanwhile `handle` is referred to, or the stream might count as abandoned.

        A step that does not suspend costs one send.
        """
        if self._turn is not None and self._is_over():
            raise StopAsyncIteration
        self._turn = BUSY  # call-free store: takes the turn, which the test above found free
        try:
            if self._loop_exit is None:  # nothing has begun
                yield from self._begin()
            answer = self._context.run(_send, self._machine, None)
            if answer is not ITEM:
                yield from self._wait(answer)
        except BaseException as error:
            failure = self._failed(error)  # always something to raise: the end of a stream is an exception here, too
            try:
                raise failure
            finally:  # or these frames and the exception keep each other, and the inputs, alive
                del failure, self, handle
        ending = self.ending
        if ending.claimed is not None:
            yield from _iterate(self._carry_out())
            self.raise_failure()
            raise StopAsyncIteration
        # call-free store: a stop that is claimed from here on finds the body at rest, and has the loop finalise it.
        self._turn = None
        if not ending.count:
            ending.first = (perf_counter() - self._began) * 1000.0
        ending.count += 1
        return self.partial

    async def apartials(  # noqa: C901 - the hot loop
        self, *, records: bool, handle: Handle | None = None
    ) -> AsyncGenerator[Any, None]:
        """The partials or records from the shared position on; `None` first, see `primed`.

        `pull` in a loop, the hot path of `async for`: a partial costs a step of this generator and one send.

        As much of a stream's memory as any is this frame's: it has no more variables than it needs.
        """
        yield None
        try:
            yield await (self.pull_prediction() if records else self.pull())
        except StopAsyncIteration:
            return
        except BaseException:
            del self, handle  # as in `pull`
            raise
        context, machine, ending, started = self._context, self._machine, self.ending, 0.0
        while True:
            if self._turn is not None and self._is_over():
                return
            self._turn = (
                BUSY  # call-free store, as in `pull`; as a condition of the loop the test would stand before its jump
            )
            if records:
                started = perf_counter()
            try:
                answer = context.run(_send, machine, None)
                if answer is not ITEM:
                    await self._wait(answer)
            except BaseException as error:
                answer = self._failed(error)
                if type(answer) is StopAsyncIteration:
                    return
                try:
                    raise answer
                finally:
                    del answer, self, handle, context, machine, ending
            if ending.claimed is not None:
                await self._carry_out()
                self.raise_failure()
                return
            self._turn = None  # call-free store, as in `pull`
            index = ending.count
            ending.count = index + 1
            if records:
                self._time += (perf_counter() - started) * 1000.0
                yield Prediction(self.call, self.partial, index, self._time)
            else:
                yield self.partial

    async def pull_prediction(self, handle: Handle | None = None) -> Prediction:
        """The next partial with its record."""
        started = perf_counter()
        try:
            value = await self.pull()
        except BaseException:
            del self, handle  # as in `pull`
            raise
        self._time += (perf_counter() - started) * 1000.0
        return Prediction(self.call, value, self.ending.count - 1, self._time)

    @types.coroutine
    def _begin(self) -> Generator[Any, None, None]:
        import asyncio

        loop = asyncio.get_running_loop()
        self._loop_exit = loop_exits.get(loop) or LoopExit(loop)
        try:
            self.begin()
            self._loop_exit.open[self] = None
        except PredictionCancelledError:
            if self._body is None or not self._body.is_started:
                raise
            # The engine was closed during the body's first step, on a fast path of `acreate`: the machine goes on with
            # what that step gave, is stopped where it waits, and so cleans up.
        if self._body is not None and self._body.slots is not None:
            yield from _iterate(self.ending.aadmit(self._body))
        self._machine = _machine(self)
        self._is_started = True

    def start(self) -> Awaitable[tuple[str, Any]]:
        """Call the function; await what it produced."""
        body = self._body
        if body is None:
            raise AssertionError("a body is started once")
        return awaited(body.start(), body.follows)

    def iterator_of(self, kind: str, produced: Any) -> Any:
        """What to iterate for what the body produced; from here on a body without a slot is not needed."""
        body = self._body
        if kind is ITERATOR and self.hand_over is not None and body is not None:
            return _OwnedIterator(self.hand_over(body, produced, kind))
        self.hand_over = None
        if body is not None and body.release is None:
            self._body = None
        return produced if type(produced) is types.AsyncGeneratorType else _ForeignIterator(produced)

    def step(self) -> Any:
        """Run the body on, to its next partial, which gives `ITEM`, or to what it waits for."""
        try:
            return self._context.run(_send, self._machine, None)
        except StopIteration as stop:
            raise BodyEnded(stop.value) from None

    def throw(self, error: BaseException) -> Any:
        """Raise `error` where the body stands, and run it on to its next partial, or to what it waits for."""
        try:
            if self._machine is None:
                raise error
            return self._context.run(self._machine.throw, error)
        except StopIteration as stop:
            raise BodyEnded(stop.value) from None
        finally:
            del error  # or this frame and the exception, where it comes back, keep each other alive

    @types.coroutine
    def _wait(self, answer: Any) -> Generator[Any, None, None]:
        """Pass on what the body waits for until it yields a partial; a cancellation goes to the body first."""
        self._interruptions = interruptions = Interruptions(self.grace)
        try:
            # Tested after the store: a stop that is claimed later has the loop interrupt what is stored here.
            if self.ending.claimed is not None:
                self.interrupt()
            yield from drive(self, answer, interruptions)
        finally:
            interruptions.end()
        if interruptions.is_cancelled():  # the body swallowed its consumer's cancellation and went on
            yield from finalise(self)
            raise interruptions.cancellation or AssertionError
        self._interruptions = None

    def _failed(self, error: BaseException) -> BaseException:
        """What a pull raises that brought no partial.

        Of a body that ended by itself this claims the end; where a stop was claimed before, that decides it, whatever
        the body raised.
        """
        self._turn, ending = ENDED, self.ending
        interruptions, self._interruptions = self._interruptions, None
        is_quiet = isinstance(error, (BodyEnded, StopIteration, PredictionCancelledError)) or is_foreign_cancel(error)
        state, failure = self._state_and_failure(error, interruptions, is_quiet=is_quiet)
        if interruptions is not None:
            interruptions.cancellation = None  # its frames refer to the interruptions: they would keep each other alive
        if ending.claim(state):
            has_value = isinstance(error, (BodyEnded, StopIteration)) and failure is None
            self.end(failure, getattr(error, "value", None) if has_value else None)
            self._release()  # before the settling: an `aclose` that waits for that may call again at once
            self._settle(None)
            return failure or StopAsyncIteration()
        self.end()
        self._release()
        self._settle(None if is_quiet or state == "closed" else explain(error, self.call, ending.count))
        if failure is not None and state != "failed":  # the task is cancelled, or its coroutine closed, all the same
            return failure
        return self.take_failure() or StopAsyncIteration()

    def _state_and_failure(
        self, error: BaseException, interruptions: Interruptions | None, *, is_quiet: bool
    ) -> tuple[State, BaseException | None]:
        """The end of a call that no stop was posted for, by what came out of its body, and what its consumer gets."""
        cancellation = interruptions.cancellation if interruptions is not None and is_quiet else None
        if cancellation is not None:
            return "cancelled", cancellation
        if isinstance(error, (BodyEnded, StopIteration)):  # the latter straight from the hot path's step
            return "done", None
        if interruptions is not None and interruptions.is_closed and isinstance(error, GeneratorExit):
            return "closed", error
        if is_foreign_cancel(error) and not self.is_started:  # the consumer's task was, while it waited for a slot
            return "cancelled", error
        if isinstance(error, KeyboardInterrupt) and is_main_thread():
            return "failed", error
        return "failed", explain(error, self.call, self.ending.count)

    def _release(self) -> None:
        self._machine = None
        if self._body is not None:
            self._body.release_slot()
        if self._loop_exit is not None:
            self._loop_exit.open.pop(self, None)

    # Stopping.

    def _stop(self) -> None:
        """Have the claimed end carried out: by the loop where the body rests, else by the pull, where it waits."""
        if self._turn is not None:
            self._post(self.interrupt)
            return
        self._turn = STOPPED  # call-free store: no pull begins from here on, in whatever thread this runs
        is_pending = self.ending.state == "pending"
        self.end()  # in this thread, so that the consumer's next pull finds the end though the loop has not turned yet
        if is_pending:  # there is no body, nor a loop that knows of it
            self._turn = ENDED
            self._settle(None)
        else:
            self._post(self._finalise_now)

    def _finalise_now(self) -> None:
        self._finalise_with(self._carry_out(is_shielded=True))

    def _finalise_with(self, coroutine: Any) -> None:
        """Finalise the body in a task of its own, which only the end of its loop cancels."""
        if self._loop_exit is not None:
            task = self._loop_exit.loop.create_task(coroutine)
            finalising.add(task)  # asyncio refers to a task weakly
            task.add_done_callback(finalising.discard)

    def _post(self, function: Callable[..., None], *args: Any) -> None:
        self.call.stopping = True
        body, loop_exit = self._body, self._loop_exit
        recheck = None if body is None else body.recheck
        if recheck is not None:
            recheck()
        if loop_exit is not None:
            try:
                loop_exit.loop.call_soon_threadsafe(function, *args)
            except RuntimeError:  # that loop is closed, and closed its streams
                return

    def interrupt(self) -> None:
        """Carry a stop that was posted to the body, where it waits."""
        interruptions = self._interruptions
        if self.ending.claimed is not None and interruptions is not None and not self._is_interrupted:
            self._is_interrupted = interruptions.interrupt()

    async def adrain(self, reduction: Reduction) -> None:
        """Reduce it to its end.

        Raises:
            BaseException: what ended it before, or what the reducer raised.
        """
        try:
            async for value in primed(self.apartials(records=False)):
                reduction.add(value)
        finally:
            if not self.ending.is_over:  # the reducer failed, or an interrupt came between two pulls
                await self.aclose()

    async def aclose(self) -> None:
        """End as `closed`; wait until the body is finalised: at most a grace, and one more once it was cancelled.

        Raises:
            BaseException: what the body's clean-up raised.
        """
        ending, is_inside = self.ending, self.is_inside()
        is_mine = ending.claim("closed")
        if is_mine and self._turn is None:
            self._turn = STOPPED  # call-free store: takes the turn, so this task finalises the body
            ending.is_awaited = True
            await self._carry_out()
            is_final = True
        else:
            if is_mine:
                ending.is_awaited = not is_inside
                self._stop()
            is_final = is_inside or ending.end is not None or not (is_mine or self._turn is not ENDED)
            try:
                is_final = is_final or await ending.wait_end_task(self.grace * 2)
            except BaseException:
                if is_mine:
                    self._stop_awaiting()
                raise
        self._end_close(is_mine=is_mine, is_final=is_final)

    async def _carry_out(self, *, is_shielded: bool = False) -> None:
        """Finalise the body as its end was claimed to be.

        Raises:
            BaseException: the calling task was cancelled, or is being closed.
        """
        caught: BaseException | None = None
        interruption: BaseException | None = None
        try:
            await finalise(self, is_shielded=is_shielded)
        except BaseException as error:
            if is_foreign_cancel(error) or isinstance(error, GeneratorExit):
                interruption = error
            else:
                caught = error
        self._turn = ENDED
        if not self.ending.is_over:  # it is where the stop came while the body rested
            self.end(self.ending.failure or caught)
        self._release()
        self._settle(caught)
        del caught  # or this frame and the exception keep each other alive
        if interruption is not None:
            try:
                raise interruption
            finally:
                del interruption, self  # as above

    def abandon(self) -> None:
        """Have the loop close the body, for its consumer has dropped the stream.

        A collector may call this in any thread: no lock is taken, and nothing is waited for.
        """
        loop_exit = self._loop_exit
        if loop_exit is None or self._turn is ENDED or sys.is_finalizing():
            return
        if self._turn is None:
            self._turn = ABANDONED  # call-free store: a stop that comes later posts itself, and finds this done
            self.ending.claim("closed")  # else Ctrl-C came into a stop, which is carried out here
            self.end()
        self.call.stopping = True  # so that a call that waits for its slot knows that it will be free
        try:
            loop_exit.loop.call_soon_threadsafe(self._close_if_abandoned)
        except RuntimeError:  # that loop was closed without closing its streams: a clean-up that never waits runs here
            exhaust(self.close_abandoned())

    def _close_if_abandoned(self) -> None:
        if self._turn is ABANDONED:  # else a pull or a stop has the turn, and carries the end out
            self._finalise_with(self.close_abandoned())

    async def close_abandoned(self) -> None:
        """Close a body whose consumer has dropped the stream, or whose loop ends."""
        if self._turn is ENDED:
            return
        # Otherwise another thread has stopped it just now.
        is_abandoned = self.ending.claim("closed") or self._turn is ABANDONED
        self._turn = ENDED
        if not self.ending.is_over:
            self.end()
        try:
            await finalise(self, is_shielded=True)
        except Exception as error:
            warn(f"{self.call.tag}: error while an abandoned stream was closed", error)
        finally:
            self._release()
            self._settle(None)
        if is_abandoned:
            warnings.warn(
                f"a stream of {self.call.tag} was abandoned after {counted(self.ending.count)}; close it, or use "
                "`async with`",
                ResourceWarning,
                stacklevel=2,
            )

    @property
    def is_open_at_exit(self) -> bool:
        """Whether there is a body that the loop has to close where it ends."""
        return self._is_closed_at_exit and self.is_started


class Handle:
    """What a consumer and its iterators refer to of a `TaskExecution`: where all of them drop it, that is abandoned."""

    __slots__ = ("_execution",)

    def __init__(self, execution: TaskExecution) -> None:
        """Stand for an execution that its loop keeps, so that a collector never takes that itself."""
        self._execution = execution

    @property
    def call(self) -> Call:
        """The identity of the call."""
        return self._execution.call

    @property
    def outcome(self) -> Outcome:
        """How it went."""
        return self._execution.outcome

    @property
    def is_started(self) -> bool:
        """Whether the predictor's code has been reached."""
        return self._execution.is_started

    def show_in(self, outcome: Outcome) -> None:
        """Have an outcome that was given out before show how this goes."""
        self._execution.show_in(outcome)

    def pull(self) -> Awaitable[Any]:
        """The next partial."""
        return self._execution.pull(self)

    def pull_prediction(self) -> Awaitable[Prediction]:
        """The next partial with its record."""
        return self._execution.pull_prediction(self)

    def apartials(self, *, records: bool) -> AsyncGenerator[Any, None]:
        """The partials or records from the shared position on; `None` first, see `primed`."""
        return self._execution.apartials(records=records, handle=self)

    def cancel(self) -> None:
        """Ask for the end `cancelled`."""
        self._execution.cancel()

    async def aclose(self) -> None:
        """End as `closed` and wait, at most the grace, until the body is finalised."""
        await self._execution.aclose()

    def __del__(self) -> None:
        """Have an abandoned stream closed by its loop."""
        self._execution.abandon()


@types.coroutine
def _machine(execution: TaskExecution) -> Generator[Any, Any, Any]:
    """A body as what one task steps: each step gives `ITEM`, a partial is noted then, or a future to wait for.

    As much of a stream's memory as any is this frame's: it has no more variables than it needs.
    """
    current.set(execution.call)
    kind, iterator = yield from _iterate(execution.start())
    if kind is ONE:
        execution.partial = iterator  # the one value
        yield ITEM
        return iterator
    if kind is ITERATOR and execution.hand_over is None:
        return (yield from _each(execution, iterator))
    iterator = execution.iterator_of(kind, iterator)
    try:
        execution.partial = yield from first_step(iterator)  # type: ignore[misc]
        while True:
            yield ITEM
            execution.partial = yield from anext(iterator)
    except StopAsyncIteration:
        return None if kind is ASYNC else iterator.returned
    except GeneratorExit:
        if not getattr(iterator, "ag_running", False):  # else this was dropped while the body waited
            yield from _iterate(aclose_iterator(iterator))
        raise


@types.coroutine
def resumed(coroutine: Any, answer: Any) -> Generator[Any, Any, Any]:
    """Go on awaiting a coroutine that was stepped without a loop and gave `answer`, what it waits for."""
    while True:
        try:
            yield answer
        except BaseException as error:
            try:
                answer = coroutine.throw(error)
            except StopIteration as stop:
                return stop.value
        else:
            return (yield from coroutine)


def _each(execution: TaskExecution, iterator: Iterator[Any]) -> Generator[Any, None, Any]:
    try:
        while True:
            try:
                execution.partial = next(iterator)
            except StopIteration as stop:
                return stop.value
            yield ITEM
    except GeneratorExit:
        close_iterator(iterator)
        raise


class _OwnedIterator:
    """The execution that a body was handed over to, as an async iterator."""

    __slots__ = ("_handed_over",)

    def __init__(self, handed_over: OwnedExecution) -> None:
        self._handed_over = handed_over

    def __aiter__(self) -> _OwnedIterator:
        return self

    async def __anext__(self) -> Any:
        return await self._handed_over.pull()

    async def aclose(self) -> None:
        await self._handed_over.afinalise()

    @property
    def returned(self) -> Any:
        return self._handed_over.ending.returned


class _ForeignIterator:
    """An async iterator that is no native generator: its `__anext__` is a coroutine here, whatever it gives."""

    __slots__ = ("_iterator",)

    def __init__(self, iterator: AsyncIterator[Any]) -> None:
        self._iterator = iterator

    def __aiter__(self) -> _ForeignIterator:
        return self

    async def __anext__(self) -> Any:
        return await self._iterator.__anext__()

    async def aclose(self) -> None:
        await aclose_iterator(self._iterator)

    @property
    def ag_running(self) -> bool:
        return getattr(self._iterator, "ag_running", False)


@types.coroutine
def _iterate(awaitable: Any) -> Generator[Any, Any, Any]:
    return (yield from awaitable)
