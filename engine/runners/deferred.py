"""An execution that is still to be opened, for its predictor has to be found, imported or described first.

Look-up and checks of most calls happen at the call. Where they would block an event loop, or need a worker, they happen
at the first pull or await: until then a stream has one of these, which ends like any execution, and hands over to the
execution that it opens. What its consumer has of it, the outcome above all, stays the same.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from engine._errors import EngineClosedError, EngineError, PredictionCancelledError, warn
from engine._predictors.failures import is_foreign_cancel
from engine._records import Outcome
from engine.runners.base import primed
from engine.runners.ending import Ending

if TYPE_CHECKING:
    from asyncio import Event
    from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator

    from engine._records import Call, Prediction, State
    from engine._reducers import Reducer
    from engine.runners.base import AsyncExecution, SyncExecution

E = TypeVar("E", "SyncExecution", "AsyncExecution")


class _Deferred(Generic[E]):
    """What a deferred execution does, whether sync code or asyncio consumes it.

    Attributes:
        tag: what was called, as far as it is known.
        reducer: how its partials are reduced, once that is known.
        outcome: how it goes, for the stream that is made of this.
    """

    __slots__ = ("_ending", "_execution", "outcome", "reducer", "tag")

    def __init__(self, tag: str) -> None:
        """Stand for a call of `tag`."""
        self.tag = tag
        self.reducer: Reducer | None = None
        self._ending = Ending(tag)
        self._execution: E | None = None
        self.outcome = Outcome.of(self._ending)

    @property
    def call(self) -> Call | None:
        """The identity of the call, once it is opened."""
        return None if self._execution is None else self._execution.call

    def cancel(self) -> None:
        """Ask for the end `cancelled`: from any thread, at any time, any number of times; waits for nothing."""
        if self._execution is None and self._ending.claim("cancelled", PredictionCancelledError(self.tag, "")):
            self._settle()
        if self._execution is not None:  # opened before the claim: that execution has to end
            self._execution.cancel()

    def _hand_over(self, execution: E, reducer: Reducer) -> None:
        """Hand over to what was opened, unless this was stopped meanwhile: then that has not begun, and never does."""
        self.reducer = reducer
        if self._ending.claimed is None:
            self._execution = execution  # call-free store: a stop that comes later finds the execution
        if self._execution is not None:
            outcome, self.outcome = self.outcome, Outcome.of(self._ending)  # or it and what it shows are a cycle
            execution.show_in(outcome)

    def _fail(self, error: BaseException) -> bool:
        """End because it cannot be opened; tell whether the consumer is to get `error`.

        It does not where its end was decided before, for a consumer gets the end of its stream once.
        """
        state: State = "closed" if isinstance(error, EngineClosedError) else "failed"
        if self._ending.claim("cancelled" if is_foreign_cancel(error) else state):
            self._settle(error)
            return True
        if isinstance(error, Exception) and not isinstance(error, EngineError):
            warn(f"{self.tag}: error that no consumer waited for", error)
        return not isinstance(error, Exception)

    def _settle(self, exception: BaseException | None = None) -> None:
        """Reach the end that was claimed before anything was opened.

        Args:
            exception: what the outcome shows; `None` for what the next pull raises, if anything.
        """
        ending = self._ending
        if self._execution is None and ending.claimed is not None:
            outcome, self.outcome = self.outcome, Outcome.of(ending)  # as in `_hand_over`
            outcome.exception = exception or ending.failure
            ending.state = ending.claimed
            ending.is_over = True

    def _raise_failure(self) -> None:
        """Raise what an end before the opening has for the consumer, once."""
        if self._execution is not None:  # which was asked to stop as well, and raises that
            return
        failure, self._ending.failure = self._ending.failure, None
        if failure is not None:
            try:
                raise failure
            finally:
                del failure, self  # or this frame and the exception keep each other alive


class DeferredExecution(_Deferred["SyncExecution"]):
    """An execution for sync code that is opened at its first pull.

    Args:
        open_now: opens it, and tells its reducer.
        tag: what was called.
    """

    __slots__ = ("_open", "_opening")

    def __init__(self, open_now: Callable[[], tuple[SyncExecution, Reducer]], tag: str) -> None:
        """Open nothing yet."""
        super().__init__(tag)
        self._open: Callable[[], tuple[SyncExecution, Reducer]] | None = open_now
        self._opening = threading.Lock()

    def resolve(self) -> SyncExecution | None:
        """The execution: of several readers the first opens it, and the others wait; `None` where it ended before.

        Raises:
            BaseException: why it cannot be opened, or was ended; once.
        """
        if self._execution is None:
            with self._opening:
                if not self._ending.is_over and self._open is not None:
                    open_now, self._open = self._open, None  # what failed to open is not opened again
                    try:
                        self._hand_over(*open_now())
                    except BaseException as error:
                        if self._fail(error):
                            raise
                self._raise_failure()
        return self._execution

    def values(self) -> Iterator[Any]:
        """The raw partials from the shared position on."""
        return self._deferred_values() if self._execution is None else self._execution.values()

    def _deferred_values(self) -> Iterator[Any]:
        execution = self.resolve()
        if execution is not None:
            yield from execution.values()

    def predictions(self) -> Iterator[Prediction]:
        """A record for each partial from the shared position on."""
        return self._deferred_predictions() if self._execution is None else self._execution.predictions()

    def _deferred_predictions(self) -> Iterator[Prediction]:
        execution = self.resolve()
        if execution is not None:
            yield from execution.predictions()

    def close(self) -> None:
        """End as `closed` and wait, at most the grace, until the body is finalised, if there is one."""
        if self._execution is None and self._ending.claim("closed"):
            self._settle()
        if self._execution is not None:
            self._execution.close()


class AsyncDeferredExecution(_Deferred["AsyncExecution"]):
    """An execution for asyncio that is opened at its first pull or await.

    Args:
        open_soon: opens it, and tells its reducer.
        tag: what was called.
    """

    __slots__ = ("_is_opened", "_open")

    def __init__(self, open_soon: Callable[[], Awaitable[tuple[AsyncExecution, Reducer]]], tag: str) -> None:
        """Open nothing yet."""
        super().__init__(tag)
        self._open: Callable[[], Awaitable[tuple[AsyncExecution, Reducer]]] | None = open_soon
        self._is_opened: Event | None = None  # while one task opens it, others wait for this

    async def resolve(self) -> AsyncExecution | None:
        """The execution: of several tasks the first opens it, and the others wait; `None` where it ended before.

        Raises:
            BaseException: why it cannot be opened, or was ended; once.
        """
        if self._is_opened is not None:
            await self._is_opened.wait()
        if self._execution is None:
            if not self._ending.is_over and self._open is not None:
                import asyncio  # a loop runs, so it is imported

                open_soon, self._open = self._open, None
                self._is_opened = asyncio.Event()  # before the first await: tasks that come later wait for it
                try:
                    self._hand_over(*await open_soon())
                except BaseException as error:
                    if self._fail(error):
                        raise
                finally:
                    self._is_opened.set()
            self._raise_failure()
        return self._execution

    async def apartials(self, *, records: bool) -> AsyncGenerator[Any, None]:
        """The partials or records from the shared position on; `None` first, see `primed`."""
        yield None
        execution = await self.resolve()
        if execution is not None:
            async for partial in primed(execution.apartials(records=records)):
                yield partial

    async def pull(self) -> Any:
        """The next partial."""
        execution = await self.resolve()
        if execution is None:
            raise StopAsyncIteration
        return await execution.pull()

    async def pull_prediction(self) -> Prediction:
        """The next partial with its record."""
        execution = await self.resolve()
        if execution is None:
            raise StopAsyncIteration
        return await execution.pull_prediction()

    async def aclose(self) -> None:
        """End as `closed` and wait, at most the grace, until the body is finalised, if there is one."""
        if self._execution is None and self._ending.claim("closed"):
            self._settle()
        if self._execution is not None:
            await self._execution.aclose()
