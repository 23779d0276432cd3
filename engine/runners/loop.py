"""The engine's own event loop, in a thread of its own: async bodies whose consumer is not an asyncio task of theirs.

Each body is one asyncio task, from its call to its finalisation, in the caller's context. The loop starts when first
needed and ends with the engine. Nothing a body raises leaves its task.
"""

from __future__ import annotations

import contextlib
import threading
import types
from contextvars import copy_context
from functools import partial
from time import perf_counter
from typing import TYPE_CHECKING, Any

from engine._errors import EngineClosedError, NestingError
from engine._fork import keep_for_parent, renew_after_fork
from engine._predictors.body import stopped
from engine._predictors.failures import is_foreign_cancel
from engine._predictors.normaliser import (
    ASYNC,
    AWAITABLE,
    ONE,
    aclose_iterator,
    awaited,
    close_unstarted,
    first_step,
    look,
)
from engine._records import current, current_call, refuse_parents_call
from engine.runners.base import DaemonThread, open_here
from engine.runners.ending import Report
from engine.runners.parking import POLL_INTERVAL

if TYPE_CHECKING:
    import asyncio
    from collections.abc import AsyncIterator, Callable, Coroutine, Generator
    from contextvars import Context

    from engine._predictors.body import Body
    from engine.runners.base import HandOver
    from engine.runners.ending import Ending, OwnerEnd


_YIELD_EVERY = 64  # partials after which a body that never suspends lets the loop's other tasks run


class LoopRunner:
    """Runs async bodies as tasks of one background loop.

    Args:
        hand_over_sync: where a body goes on, in a thread, that turns out to have produced a sync iterator.

    Attributes:
        hand_over_sync: as given.
        owners: the tasks that own bodies.
    """

    name = "loop"
    is_here = True
    is_elsewhere = False
    open = staticmethod(open_here)

    def __init__(self, hand_over_sync: HandOver) -> None:
        """Make a runner whose loop is not started yet."""
        self.hand_over_sync = hand_over_sync
        self._is_closed = False
        self._start_over()
        renew_after_fork(self)

    def _start_over(self) -> None:
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._may_end: list[bool] = []  # filled once the loop may end
        self.owners: set[_TaskOwner] = set()  # asyncio itself would let a task be collected while it waits

    def after_fork(self) -> None:
        """Have no loop yet, as when it was made; nothing of the parent's may be touched, not even by a finaliser."""
        if self._loop is not None:
            self._loop._closed = True  # type: ignore[attr-defined]  # noqa: SLF001 - its finaliser would change the parent's selector
            keep_for_parent(self._loop, self.owners)
        self._start_over()

    def is_current_thread(self) -> bool:
        """Whether the calling thread is this loop's own."""
        return self._thread is threading.current_thread()

    def loop(self) -> asyncio.AbstractEventLoop:
        """The loop, started if it was not.

        Raises:
            EngineClosedError: the engine is closed.
        """
        with self._lock:
            if self._is_closed:
                raise EngineClosedError
            if self._loop is None:
                import asyncio  # here and below: an engine without async predictors never imports it

                return self._begin(asyncio.new_event_loop())
            return self._loop

    def _begin(self, loop: asyncio.AbstractEventLoop) -> asyncio.AbstractEventLoop:
        """Have a new loop run in a thread; where there is none to be had, it is as if it had never been made."""
        thread = DaemonThread(partial(_run, loop, self._may_end), "engine-loop")
        try:
            thread.start()
        except BaseException:
            if thread.withdraw():
                loop.close()
            else:  # Ctrl-C, while its start was waited for
                self._loop, self._thread = loop, thread
            raise
        self._loop, self._thread = loop, thread
        return loop

    def refuse_to_wait(self, what: str) -> None:
        """Refuse a wait, in a thread, for this loop, where the wait would keep the loop from ever going on.

        Raises:
            NestingError: this is the loop's own thread, or it waits for the call this is part of.
        """
        ident = None if self._thread is None else self._thread.ident
        if ident is None:  # no loop yet, so nothing is held by one
            return
        call = current_call()
        while call is not None and call.blocked != ident:
            call = call.parent
        if call is not None or self.is_current_thread():
            holder = f"{call.tag} {call.id}" if call is not None else ""
            held = f" (held by {holder})" if holder else ""
            raise NestingError(
                f"{what} is async and would be waited for on the engine's own event loop{held}, which could then "
                "never run it: use `await acreate(...)` or `astream(...)` inside an async predictor",
                holder,
            )

    def start(self, body: Body, channel: OwnerEnd) -> None:
        """Run `body` as a task of the loop.

        Raises:
            EngineClosedError: the engine is closed, or the call is of a process that this one was forked from.
        """
        refuse_parents_call(body.call)
        self._post_owner(body, channel, None, 0.0)

    def hand_over(self, body: Body, channel: OwnerEnd, produced: Any, elapsed: float) -> None:
        """Have a body go on, as a task of the loop, with something async that it, being sync, produced.

        Args:
            body: what produced it.
            channel: what it was started with; it ends also where there is no loop to be had.
            produced: the awaitable or async iterator.
            elapsed: the seconds that took.
        """
        body.context = copy_context()  # the body's own one is entered, and stays so, where this is called
        try:
            self._post_owner(body, channel, produced, elapsed)
        except BaseException as error:
            close_unstarted(produced)
            body.release_slot()
            channel.finish(Report(error))

    def _post_owner(self, body: Body, channel: OwnerEnd, produced: Any, elapsed: float) -> None:
        owner = _TaskOwner(self, body, channel, self._loop or self.loop())
        channel.on_stop = owner.post_stop  # before the post: its task, which takes it back, may be over by then
        try:
            self.post(owner.spawn, produced, elapsed)
        except BaseException:
            channel.on_stop = None
            raise

    def post(self, function: Callable[..., object], *args: Any) -> None:
        """Have the loop call `function`; what is posted before the engine closes is called before the loop ends."""
        if self._loop is None:
            self.loop()
        with self._lock:  # or a `close` might come between, and the loop end with the call in its queue
            if self._loop is None or self._is_closed:
                raise EngineClosedError
            self._loop.call_soon_threadsafe(function, *args)

    def run(
        self, coroutine: Coroutine[Any, Any, Any], context: Context, what: str, seconds: float | None = None
    ) -> Any:
        """Run a coroutine on the loop and wait for it in this thread.

        Raises:
            NestingError: this is the loop's own thread.
            TimeoutError: it took longer than `seconds`.
        """
        try:
            self.refuse_to_wait(what)
        except BaseException:
            coroutine.close()
            raise
        return self.submit(coroutine, context).result(seconds)

    def submit(self, coroutine: Coroutine[Any, Any, Any], context: Context) -> Any:
        """Run a coroutine on the loop in `context`; give a `concurrent.futures.Future` of its result."""
        import asyncio

        try:
            return context.run(asyncio.run_coroutine_threadsafe, coroutine, self.loop())
        except BaseException:  # there is no loop to run it
            coroutine.close()
            raise

    @property
    def is_started(self) -> bool:
        """Whether there is a loop to close."""
        return self._loop is not None

    def close(self, grace: float, *, wait: bool = True) -> None:
        """Close the loop, once what was asked to stop has cleaned up and all else was cancelled.

        Args:
            grace: seconds for each of the two.
            wait: whether this thread waits for the loop's own, with a bound.
        """
        with self._lock:
            self._is_closed = True
            loop, thread, self._loop = self._loop, self._thread, None
            if loop is not None:
                loop.call_soon_threadsafe(_start_shutdown, loop, grace, self._may_end, self.owners)
        if wait and thread is not None and thread is not threading.current_thread():
            thread.join(grace * 3 + 1.0)


def hand_over_and_wait(hand_over_sync: HandOver, body: Body, channel: Ending, produced: Any, elapsed: float) -> None:
    """Have a body go on, on a loop made for it, and wait in this thread until it is over.

    Args:
        hand_over_sync: where it goes on, in the thread of that loop, if it then produces a sync iterator.
        body: what produced something async.
        channel: what it was started with.
        produced: the awaitable or async iterator.
        elapsed: the seconds that took.
    """
    loop = LoopRunner(hand_over_sync)
    loop.hand_over(body, channel, produced, elapsed)
    while not channel.wait_end(POLL_INTERVAL):  # for as long as the body runs
        pass
    loop.close(0.0)


def _start_shutdown(
    loop: asyncio.AbstractEventLoop, grace: float, may_end: list[bool], owners: set[_TaskOwner]
) -> None:
    def stop(_task: object) -> None:
        may_end.append(True)
        loop.stop()

    loop.create_task(_shut_down(grace, owners)).add_done_callback(stop)


@types.coroutine
def _yield_to_loop() -> Generator[None, None, None]:
    """Let the loop's other tasks run once."""
    yield


async def _shut_down(grace: float, owners: set[_TaskOwner]) -> None:
    import asyncio

    # What was asked to stop cleans up, and is not to be interrupted in that, nor lose the tasks it made for itself.
    cleaning = {task for owner in owners if (task := owner.stopping_task) is not None}
    if cleaning:
        await asyncio.wait(cleaning, timeout=grace)
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    if others:
        await asyncio.wait(others, timeout=grace)
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(asyncio.get_running_loop().shutdown_asyncgens(), grace or 0.1)


def _run(loop: asyncio.AbstractEventLoop, may_end: list[bool]) -> None:
    """Run the loop until it may end, though a body stops it or raises out of it: other calls have bodies there."""
    import asyncio

    asyncio.set_event_loop(loop)
    try:
        while not may_end:  # a body may have called its `stop`
            # asyncio raises these out of the loop though the task, one that a body made, has them as its exception.
            with contextlib.suppress(SystemExit, KeyboardInterrupt):
                loop.run_forever()
    finally:
        for task in asyncio.all_tasks(loop):
            # It outlived its cancellation by the whole grace; its stream has ended, and it will not be stepped again.
            task._log_destroy_pending = False  # type: ignore[attr-defined]  # noqa: SLF001
        loop.close()


class _TaskOwner:
    """One asyncio task that owns one body, and the way requests to stop reach it."""

    __slots__ = ("_body", "_channel", "_is_cancelled", "_is_released", "_is_stepping", "_loop", "_runner", "_task")

    def __init__(self, runner: LoopRunner, body: Body, channel: OwnerEnd, loop: asyncio.AbstractEventLoop) -> None:
        self._runner = runner
        self._body = body
        self._channel = channel
        self._loop = loop
        self._task: asyncio.Task[None] | None = None
        self._is_stepping = False
        self._is_cancelled = False
        self._is_released = False  # the channel is no longer its own: it is finished, or another owner's to finish

    def spawn(self, produced: Any, elapsed: float) -> None:
        self._task = self._loop.create_task(self._run(produced, elapsed), context=self._body.context)
        self._task.add_done_callback(self._done)
        self._runner.owners.add(self)

    def post_stop(self) -> None:
        """Have a request to stop reach a body that waits."""
        try:
            self._loop.call_soon_threadsafe(self._stop)
        except RuntimeError:  # that loop is closed, and its tasks with it
            return

    @property
    def stopping_task(self) -> asyncio.Task[None] | None:
        """Its task, if that was asked to stop."""
        return self._task if self._channel.stop else None

    def cancel(self) -> None:
        """Interrupt the body wherever it waits, once more."""
        if self._task is not None:
            self._task.cancel()

    def _stop(self) -> None:
        # A body that waits is cancelled, once, so that its clean-up is not interrupted; one that rests at a yield is
        # woken by the channel and closed by its task.
        if self._is_stepping and not self._is_cancelled and self._task is not None:
            self._is_cancelled = True
            self._task.cancel()

    def _done(self, task: asyncio.Task[None]) -> None:
        self._runner.owners.discard(self)
        if not self._is_released:  # cancelled before its first step
            self._finish(Report(None if task.cancelled() else task.exception()))

    def _finish(self, end: Report) -> None:
        self._is_released = True
        self._channel.on_stop = None
        self._body.release_slot()  # before the report: a consumer that reads it may call again at once
        self._channel.finish(end)

    async def _run(self, produced: Any, elapsed: float) -> None:
        end = Report()
        try:
            await self._step_through(produced, elapsed, end)
        except BaseException as error:
            if self._loop.is_closed():  # the engine is closed, its stream has ended, and a collector takes the rest
                self._body.release_slot()
                raise
            # A body that is closed at a yield is not cancelled: what its clean-up raises then is its own.
            is_ours = self._is_cancelled or (self._task is not None and self._task.cancelling() > 0)
            if not (is_ours and is_foreign_cancel(error)):
                end.error = error
                end.is_cleanup = end.is_cleanup or self._is_cancelled
        if not self._is_released:
            self._finish(end)

    async def _step_through(self, produced: Any, elapsed: float, end: Report) -> None:
        body = self._body
        current.set(body.call)
        if self._channel.stop:
            close_unstarted(produced)
            return
        clock = perf_counter
        started = clock()
        self._is_stepping = True
        try:
            if produced is None:
                produced = await body.astart() if body.function is None else body.start()
            if type(produced) is types.CoroutineType:  # what most bodies here give, without the calls of `awaited`
                try:
                    produced = await produced
                except (StopIteration, StopAsyncIteration) as error:
                    raise stopped(error) from error
            kind = look(produced, body.follows)
            if kind is AWAITABLE:
                kind, produced = await awaited(produced, body.follows)
        finally:
            self._is_stepping = False
        now = clock()
        elapsed += now - started
        if kind is ONE:
            end.returned = produced
            self._deliver_one(produced, elapsed, now)
        elif kind is ASYNC:
            await self._step_iterator(produced, elapsed, end)
        else:
            self._is_released = True
            self._channel.on_stop = None
            try:
                self._runner.hand_over_sync(body, self._channel, produced, elapsed)
            except BaseException:  # no thread takes it: it ends here after all
                self._is_released = False
                close_unstarted(produced)
                raise

    def _deliver_one(self, value: Any, elapsed: float, now: float) -> None:
        reduction = self._body.reduction
        if reduction is not None:
            reduction.add(value)
            reduction.elapsed = elapsed
        else:
            producer: Any = self._channel  # as in `_pump`
            producer.offer_only(value, elapsed * 1000.0, now)

    async def _step_iterator(self, iterator: AsyncIterator[Any], elapsed: float, end: Report) -> None:
        try:
            is_over = await self._pump(iterator, elapsed)
        except BaseException:  # the body's own failure, even if a stop was on its way
            if not self._loop.is_closed():
                await aclose_iterator(iterator)
            raise
        if not is_over:
            end.is_cleanup = True
            await aclose_iterator(iterator)

    async def _pump(self, iterator: AsyncIterator[Any], elapsed: float) -> bool:
        """Put each partial into the channel (or the reduction); tell whether the iterator ended by itself.

        The hot loop of every async body whose partials go elsewhere: one step, one look at the clock, one offer, as in
        `thread.pump`.
        """
        reduction = self._body.reduction
        channel: Any = self._channel  # a producer's end wherever the owner does not keep the reduction
        clock, step = perf_counter, iterator.__anext__
        offer: Any = None if reduction is not None else channel.offer
        left = _YIELD_EVERY
        awaitable = first_step(iterator)
        started = clock()
        while True:
            self._is_stepping = True
            try:
                value = await awaitable
            except StopAsyncIteration:
                return True
            finally:
                self._is_stepping = False
            now = clock()
            elapsed += now - started
            started = now
            if reduction is not None:
                reduction.add(value)
                reduction.elapsed = elapsed
            elif offer(value, elapsed * 1000.0, now):
                await channel.apause()
                left = _YIELD_EVERY
                started = clock()
            left -= 1
            if not left:
                left = _YIELD_EVERY
                await _yield_to_loop()
                started = clock()
            if channel.stop:
                return False
            awaitable = step()
