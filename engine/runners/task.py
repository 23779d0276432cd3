"""Lock-step execution in the asyncio task that consumes it: no queue, one step of the body per pull.

The body is a machine that is stepped inside the call's own context: what it waits for is passed on to the loop, what
the loop answers is passed in. Nobody owns an idle one, so whoever stops it finalises it; while a pull waits, a stop
interrupts it where it waits. Turns are taken as in `inline`. A guard, the one async generator the event loop sees, has
abandoned bodies closed.
"""

from __future__ import annotations

import types
import warnings
import weakref
from contextlib import suppress
from functools import partial
from time import perf_counter
from typing import TYPE_CHECKING, Any, Final

from engine._errors import PredictionCancelledError, counted, warn
from engine._partials import (
    ITERATOR,
    ONE,
    aclose_iterator,
    close_iterator,
    explain,
    first_step,
    is_foreign_cancel,
    settle,
)
from engine._records import Prediction, current, current_call
from engine.runners.base import AsyncExecution, Stop, is_finalising
from engine.runners.inline import BUSY, ENDED, is_main_thread, reading_twice

if TYPE_CHECKING:
    import asyncio
    from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Generator, Iterator

    from engine._partials import Body
    from engine._records import Outcome
    from engine.runners.base import Live
    from engine.runners.bridge import Bridged

    AsyncAdmit = Callable[[Body], Awaitable[None]]
    Bridge = Callable[[Body, Any, str], Bridged]

_ITEM: Final = object()  # what a body's machine yields when a partial lies in its cell; anything else is asyncio's


class TaskExecution(AsyncExecution):
    """An async body in lock-step with the asyncio task that consumes it, stepped in the call's own context.

    With runner `"inline"` a sync body is stepped the same way, on the loop itself.

    Args:
        body: what to run.
        aadmit: awaited before the body starts: takes a slot.
        bridge: makes the execution that goes on where an async body produced a sync iterator; `None` to step that
            here as well.
        grace: seconds a close waits for a running pull, and a cancelled body may go on.
        live: where the execution is listed while it runs.
    """

    __slots__ = ("_aadmit", "_drive", "_guard", "_is_guarded", "_loop", "_time", "_turn", "_watch")

    def __init__(
        self,
        body: Body,
        aadmit: AsyncAdmit | None,
        bridge: Bridge | None,
        grace: float,
        live: Live,
        *,
        is_guarded: bool = True,
    ) -> None:
        """Make a pending execution; one that nobody can abandon needs no guard."""
        super().__init__(body.call, grace, live)
        self._aadmit = aadmit
        self._is_guarded = is_guarded
        self._drive = Drive(body, bridge)
        self._guard: Any = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._time = 0.0
        self._turn: Any = None
        self._watch: Watch | None = None

    @property
    def is_started(self) -> bool:
        """Whether the predictor's code has been reached."""
        return self._drive.body.is_started

    @types.coroutine
    def pull(self) -> Generator[Any, None, Any]:
        """The next partial.

        The hot path of every async stream in its consumer's task: a step that does not suspend costs one send.
        """
        if self._turn is not None and self._is_over():
            raise StopAsyncIteration
        self._turn = BUSY
        drive = self._drive
        try:
            if self._loop is None:
                yield from self._begin()
            answer = drive.send()
            if answer is not _ITEM:
                yield from self._wait(answer)
        except BaseException as error:
            failure = self._failed(error)
            try:
                raise failure
            finally:  # or these frames and the exception keep each other, and the inputs, alive
                del failure, self, drive
        if self._turn is not BUSY:
            self._pending = self._turn.failure
            yield from _iterate(self._carry_out(self._turn))
            self.raise_pending()
            raise StopAsyncIteration
        self._turn = None
        if not self.outcome.count:
            self.outcome.first = (perf_counter() - self._began) * 1000.0
        self.outcome.count += 1
        return drive.cell[0]

    async def apartials(self, *, records: bool) -> AsyncGenerator[Any, None]:
        """`pull` in a loop: the hot path of `async for`; a partial costs a step of this generator and one send."""
        yield None
        try:
            first = await (self.pull_prediction() if records else self.pull())
        except StopAsyncIteration:
            return
        except BaseException:
            del self  # see pull
            raise
        yield first
        del first
        drive, outcome, call, clock, started = self._drive, self.outcome, self.call, perf_counter, 0.0
        send, cell = drive.send, drive.cell
        while self._turn is None or not self._is_over():
            self._turn = BUSY
            if records:
                started = clock()
            try:
                answer = send()
                if answer is not _ITEM:
                    await self._wait(answer)
            except BaseException as error:
                failure = self._failed(error)
                if failure.__class__ is StopAsyncIteration:
                    return
                try:
                    raise failure
                finally:
                    del failure, self, drive, outcome, call, send, cell
            if self._turn is not BUSY:
                self._pending = self._turn.failure
                await self._carry_out(self._turn)
                self.raise_pending()
                return
            self._turn = None
            index = outcome.count
            outcome.count = index + 1
            if records:
                self._time += clock() - started
                yield Prediction(call, cell[0], index, self._time * 1000.0)
            else:
                yield cell[0]

    async def pull_prediction(self) -> Prediction:
        """The next partial with its record."""
        started = perf_counter()
        try:
            value = await self.pull()
        except BaseException:
            del self  # see pull
            raise
        self._time += perf_counter() - started
        return Prediction(self.call, value, self.outcome.count - 1, self._time * 1000.0)

    @types.coroutine
    def _begin(self) -> Generator[Any, None, None]:
        import asyncio

        self._loop = asyncio.get_running_loop()
        self.begin()
        if self._aadmit is not None:
            yield from _iterate(self._aadmit(self._drive.body))
        if self._is_guarded:
            self._guard = _guard(self._drive, weakref.ref(self), self.outcome)
            _open.add(self._guard)
            yield from _iterate(self._guard.__anext__())  # the loop now knows the guard, and only the guard
        self._drive.is_started = True

    def _is_over(self) -> bool:
        if self._turn is BUSY:
            raise reading_twice(self.call)
        self.raise_pending()
        return True

    @types.coroutine
    def _wait(self, answer: Any) -> Generator[Any, None, None]:
        """Pass on what the body waits for until it yields a partial; a cancellation goes to the body first."""
        self._watch = watch = Watch(self.grace)
        try:
            if isinstance(self._turn, Stop):  # posted before there was anything to interrupt
                self._interrupt()
            yield from attend(self._drive, answer, watch)
        finally:
            watch.over()
        if watch.is_cancelled():  # the body swallowed its consumer's cancellation and went on
            yield from finish(self._drive, self.grace)
            raise watch.cancellation or AssertionError

    def _failed(self, error: BaseException) -> BaseException:
        """The pull ended without a partial: give what it raises."""
        turn, self._turn = self._turn, ENDED
        watch, self._watch = self._watch, None
        is_cancelled = watch is not None and watch.is_cancelled()
        is_quiet = isinstance(error, (Over, StopIteration, PredictionCancelledError)) or is_foreign_cancel(error)
        failure: BaseException
        if is_cancelled and is_quiet and watch is not None and watch.cancellation is not None:
            failure = watch.cancellation
            self.end("cancelled", failure)
        elif isinstance(turn, Stop):
            failure = turn.failure or StopAsyncIteration()
            self.end(turn.state, turn.failure)
        elif isinstance(error, (Over, StopIteration)):  # the latter straight from the hot path's step
            failure = StopAsyncIteration()
            self.end("done", returned=error.value)
        elif watch is not None and watch.is_closed and isinstance(error, GeneratorExit):
            failure = error
            self.end("closed", error)
        elif is_foreign_cancel(error) and not self._drive.is_started:
            failure = error  # the consumer's task was cancelled while it waited for a slot
            self.end("cancelled", error)
        else:
            is_interrupt = isinstance(error, KeyboardInterrupt) and is_main_thread()
            failure = error if is_interrupt else explain(error, self.call, self.outcome.count)
            self.end("failed", failure)
        self._let_go()
        if isinstance(turn, Stop):
            turn.settle(None if is_quiet else explain(error, self.call, self.outcome.count))
        return failure

    def _let_go(self) -> None:
        self._drive.is_over = True
        self._drive.body.let_go()
        guard, self._guard = self._guard, None
        if guard is not None:
            _open.discard(guard)
            _exhaust(guard.aclose())

    # Stopping.

    def stop(self, stop: Stop) -> None:
        """Post a request to stop, from any thread; an idle body is finalised by its loop. Waits for nothing."""
        if self._turn is None:
            self._turn = stop  # claimed: straight after the test, see the module's docstring
            self._pending = stop.failure
            self._finalise_later(stop)
            return
        if self._turn is BUSY:
            self._turn = stop  # posted: the pull is interrupted where it waits
            self._post(self._interrupt)

    def _finalise_later(self, stop: Stop) -> None:
        is_pending = self.outcome.state == "pending"
        self.end(stop.state, stop.failure)
        if is_pending:
            self._turn = ENDED
            stop.settle()
        else:
            self._post(self._finalise_now, stop)

    def _finalise_now(self, stop: Stop) -> None:
        if self._loop is not None:
            finalising = self._loop.create_task(self._carry_out(stop))
            _finalising.add(finalising)
            finalising.add_done_callback(_finalising.discard)

    def _post(self, function: Callable[..., None], *args: Any) -> None:
        loop = self._loop
        self.call.stopping = True
        nudge = self._drive.body.nudge
        if nudge is not None:
            nudge()
        if loop is not None:
            try:
                loop.call_soon_threadsafe(function, *args)
            except RuntimeError:  # that loop is closed, and closed its streams
                return

    def _interrupt(self) -> None:
        stop, watch = self._turn, self._watch
        if isinstance(stop, Stop) and watch is not None:
            watch.interrupt(stop)

    async def aclose(self) -> None:
        """End as `closed`; wait, at most the grace, until the body is finalised."""
        stop = Stop("closed")
        if self._turn is None:
            self._turn = stop
            stop.is_awaited = True
            await self._carry_out(stop)
        elif self._turn is not ENDED:
            call = current_call()
            stop.is_awaited = call is None or not call.is_within(self.call)
            self.stop(stop)
            waiting = self._turn
            if stop.is_awaited and isinstance(waiting, Stop) and not await waiting.wait_task(self.grace * 2):
                warn(f"{self.call.tag}: a pull did not end within {self.grace} s of its stream being closed")
        if stop.error is not None:
            try:
                raise stop.error
            finally:
                del stop

    def _seal(self) -> None:
        self._turn = ENDED
        self._drive.is_over = True

    async def _carry_out(self, stop: Stop) -> None:
        caught: BaseException | None = None
        try:
            await finish(self._drive, self.grace)
        except BaseException as error:
            caught = error if is_foreign_cancel(error) else explain(error, self.call, self.outcome.count)
        self._turn = ENDED
        self.end(stop.state, stop.failure or caught)
        self._let_go()
        stop.settle(caught)

    def left_open(self) -> None:
        """The loop ends, or nobody refers to the stream any more: its guard has closed the body."""
        self._turn = ENDED
        self.end("closed")

    def __del__(self) -> None:
        """An abandoned stream is closed by its loop, which is told here, without lock or wait."""
        self._live.pop(id(self), None)
        guard, loop = self._guard, self._loop
        if guard is None or loop is None or self._drive.is_over or is_finalising():
            return
        try:
            loop.call_soon_threadsafe(_close_guard, loop, guard)
        except RuntimeError:  # that loop was closed without closing its generators: what can be done is done here
            _open.discard(guard)
            _exhaust(guard.aclose())


def _close_guard(loop: asyncio.AbstractEventLoop, guard: Any) -> None:
    closing = loop.create_task(guard.aclose())
    _finalising.add(closing)
    closing.add_done_callback(_finalising.discard)
    closing.add_done_callback(lambda _task: _open.discard(guard))


_open: set[Any] = set()  # guards of open streams: a collector that takes a whole cycle must leave the body alone
_finalising: set[asyncio.Task[None]] = set()  # asyncio itself would let a task be collected while it waits


async def finalised(seconds: float) -> None:
    """Wait at most `seconds` for the clean-up of this loop's stopped streams."""
    import asyncio

    mine = {each for each in tuple(_finalising) if each.get_loop() is asyncio.get_running_loop()}
    if mine:
        await asyncio.wait(mine, timeout=seconds)


class Drive:
    """A body as a machine that one task steps: each step gives `_ITEM`, a partial in `cell`, or a future to wait for.

    It refers to no execution, so an abandoned stream is freed at once, and its guard can still close the body.
    """

    __slots__ = ("_machine", "_run", "body", "cell", "is_over", "is_started", "send")

    def __init__(self, body: Body, bridge: Bridge | None) -> None:
        self.body = body
        self.cell: list[Any] = [None]
        self.is_over = False
        self.is_started = False
        self._run = body.context.run
        self._machine = _machine(body, self.cell, bridge)
        self.send: Callable[[], Any] = partial(
            self._run, self._machine.send, None
        )  # the hot path's step: C all the way to the body

    def step(self) -> Any:
        """Run the body on, to its next partial or to what it waits for."""
        try:
            return self.send()
        except StopIteration as stop:
            raise Over(stop.value) from None

    def throw(self, error: BaseException) -> Any:
        """The same, raising `error` where the body stands."""
        try:
            return self._run(self._machine.throw, error)
        except StopIteration as stop:
            raise Over(stop.value) from None


class Over(BaseException):
    """The body ended by itself: a StopIteration that may pass through generators."""

    def __init__(self, value: Any) -> None:
        super().__init__(value)
        self.value = value


@types.coroutine
def _machine(body: Body, cell: list[Any], bridge: Bridge | None) -> Generator[Any, Any, Any]:
    current.set(body.call)
    kind, produced = yield from _iterate(settle(body.start(), body.follows))
    if kind is ONE:
        cell[0] = produced
        yield _ITEM
        return produced
    if kind is ITERATOR and bridge is None:
        return (yield from _each(produced, cell))
    bridged = bridge(body, produced, kind) if kind is ITERATOR and bridge is not None else None
    iterator: AsyncIterator[Any] = produced if bridged is None else _Pulled(bridged)
    is_native = isinstance(iterator, types.AsyncGeneratorType)
    step = iterator.__anext__ if is_native else _Anext(iterator)
    awaitable = first_step(iterator) if is_native else step()
    try:
        while True:
            try:
                cell[0] = yield from awaitable  # type: ignore[misc]
            except StopAsyncIteration:
                return None if bridged is None else bridged.outcome.returned
            yield _ITEM
            awaitable = step()
    except GeneratorExit:
        if not getattr(iterator, "ag_running", False):  # else it was dropped while the body waited
            yield from _iterate(aclose_iterator(iterator))
        raise


@types.coroutine
def resumed(coroutine: Any, answer: Any) -> Generator[Any, Any, Any]:
    """Go on awaiting a coroutine that was stepped by hand and gave `answer`, what it waits for."""
    try:
        yield answer
    except BaseException as error:
        try:
            answer = coroutine.throw(error)
        except StopIteration as stop:
            return stop.value
        return (yield from resumed(coroutine, answer))
    return (yield from coroutine)


def _each(iterator: Iterator[Any], cell: list[Any]) -> Generator[Any, None, Any]:
    try:
        while True:
            try:
                cell[0] = next(iterator)
            except StopIteration as stop:
                return stop.value
            yield _ITEM
    except GeneratorExit:
        close_iterator(iterator)
        raise


class _Pulled:
    """A bridged execution as an async iterator."""

    __slots__ = ("_bridged",)

    def __init__(self, bridged: Bridged) -> None:
        self._bridged = bridged

    def __aiter__(self) -> _Pulled:
        return self

    async def __anext__(self) -> Any:
        return await self._bridged.pull()

    async def aclose(self) -> None:
        await self._bridged.afinalise()


class _Anext:
    """The `__anext__` of a foreign async iterator as a coroutine, whatever awaitable it gives."""

    __slots__ = ("_iterator",)

    def __init__(self, iterator: AsyncIterator[Any]) -> None:
        self._iterator = iterator

    async def __call__(self) -> Any:
        return await self._iterator.__anext__()


@types.coroutine
def _iterate(awaitable: Any) -> Generator[Any, Any, Any]:
    return (yield from awaitable)


class Watch:
    """What reaches a task while it waits inside a body: its own cancellation, a stop, the end of patience.

    asyncio has one way to interrupt a waiting task, to cancel it, so the three are told apart here. A cancellation
    counts as the consumer's own only while `Task.cancelling()` says so: a timeout scope inside the body takes its own
    back.
    """

    __slots__ = (
        "_baseline",
        "_borrowed",
        "_grace",
        "_is_delivered",
        "_is_expired",
        "_task",
        "_timer",
        "cancellation",
        "is_closed",
    )

    def __init__(self, grace: float) -> None:
        import asyncio

        self._grace = grace
        self._task = asyncio.current_task()
        # A cancellation asked for while the task runs counts at once, and arrives only where it waits next: here.
        self._baseline = (
            0 if self._task is None else self._task.cancelling() - bool(getattr(self._task, "_must_cancel", False))
        )
        self._timer: asyncio.TimerHandle | None = None
        self._borrowed = 0
        self._is_delivered = False
        self._is_expired = False
        self.cancellation: BaseException | None = None
        self.is_closed = False  # the coroutine that waits was closed

    def arm(self) -> None:
        """Give the body one grace from now on."""
        if self._timer is not None:
            self._timer.cancel()
        if self._task is not None:
            self._timer = self._task.get_loop().call_later(self._grace, self._expire)

    def over(self) -> None:
        """Nothing is waited for any more."""
        if self._timer is not None:
            self._timer.cancel()
        self._give_back()
        task, self._task = self._task, None
        if self.cancellation is not None and task is not None and task.cancelling() <= self._baseline:
            self.cancellation = None  # the body took it back: it was a scope of its own

    def is_cancelled(self) -> bool:
        """Whether the consumer's own task was cancelled, for good, during this wait."""
        return self.cancellation is not None

    def interrupt(self, stop: Stop) -> None:
        """Carry a stop to the body that is waited in."""
        if self._task is not None and not stop.is_delivered:
            stop.is_delivered = True
            self._interrupt()

    def _expire(self) -> None:
        if self._task is not None and (self._is_delivered is False or self._is_final()):
            self._is_expired = True
            self._interrupt()

    def _is_final(self) -> bool:
        # A scope inside the body may have caused the cancellation and have dealt with it since.
        return self.cancellation is None or (self._task is not None and self._task.cancelling() > self._baseline)

    def _interrupt(self) -> None:
        if self._task is not None:
            self._borrowed += 1  # given back when it arrives: it was never the task's own cancellation
            self._task.cancel()

    def _give_back(self) -> None:
        while self._borrowed and self._task is not None:
            self._borrowed -= 1
            self._task.uncancel()

    def thrown(self, error: BaseException) -> bool:
        """Take note of what asyncio threw in; tell whether to give the body up."""
        if not is_foreign_cancel(error):
            self.is_closed = self.is_closed or isinstance(error, GeneratorExit)
            return False
        is_ours = bool(self._borrowed)
        self._give_back()
        if self._task is not None and self._task.cancelling() > self._baseline:
            self.cancellation = error
        elif not is_ours:  # a future the body waits for was cancelled: its own affair
            return False
        if self._is_expired and self._is_delivered:
            return True
        self._is_expired = False
        self._is_delivered = True
        self.arm()
        return False


def attend(drive: Drive, answer: Any, watch: Watch) -> Generator[Any, Any, None]:
    """Pass what a body waits for to the loop, and what the loop answers to the body, until it yields a partial."""
    while answer is not _ITEM:
        try:
            yield answer
        except BaseException as error:
            if watch.thrown(error):
                warn(f"{drive.body.call.tag}: the body went on after being cancelled; it is abandoned")
                raise
            answer = drive.throw(error)
        else:
            answer = drive.step()


@types.coroutine
def finish(drive: Drive, grace: float) -> Generator[Any, Any, None]:
    """Run the clean-up of a body that rests at a yield, in its context, as part of the calling task.

    It is given one grace, then cancelled, then given up after one more.

    Raises:
        BaseException: what the clean-up raised, or the calling task's own cancellation.
    """
    try:
        answer = drive.throw(GeneratorExit())
    except (GeneratorExit, Over):
        return
    watch = Watch(grace)
    watch.arm()
    try:
        yield from attend(drive, answer, watch)
    except (GeneratorExit, Over):
        return
    except BaseException as error:
        watch.over()
        if is_foreign_cancel(error) and not watch.is_cancelled():  # our own interruption came back
            return
        raise
    finally:
        watch.over()
    raise RuntimeError("the predictor ignored GeneratorExit and yielded again")


async def _guard(drive: Drive, execution: weakref.ref[TaskExecution], outcome: Outcome) -> AsyncGenerator[None, None]:
    """The only async generator the event loop's finaliser sees of a stream: closing it closes the body.

    It is what remains of an abandoned stream, and what a loop that ends finds of one left open.
    """
    try:
        yield
    finally:
        if not drive.is_over:
            drive.is_over = True
            await _clean_up(drive, execution(), outcome)


async def _clean_up(drive: Drive, execution: TaskExecution | None, outcome: Outcome) -> None:
    call = drive.body.call
    if execution is not None:
        execution.left_open()
    elif not outcome.ended:
        outcome.state = "closed"
    try:
        await finish(drive, 1.0 if execution is None else execution.grace)
    except Exception as error:
        warn(f"{call.tag}: error while an abandoned stream was closed", error)
    finally:
        drive.body.let_go()
    warnings.warn(
        f"a stream of {call.tag} was abandoned after {counted(outcome.count)}; close it, or use `async with`",
        ResourceWarning,
        stacklevel=2,
    )


def _exhaust(closing: Any) -> None:
    """Step a coroutine that has nothing to wait for."""
    with suppress(StopIteration, RuntimeError):
        closing.send(None)
