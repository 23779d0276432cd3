"""Streams: one execution each, seen through two thin faces, for sync code and for asyncio.

A face adds no behaviour. It hands out predictions, raw values or running reductions of its execution, which keeps the
position and the outcome; it never keeps what it delivered. Iterators taken from a stream refer to the execution, not
to the stream, so that a `for` loop that is left lets go of everything.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any, Self

from engine._errors import EngineClosedError, PredictionCancelledError, counted
from engine._partials import is_foreign_cancel
from engine._records import Outcome
from engine._reducers import RETURNED
from engine.runners.base import primed

if TYPE_CHECKING:
    from asyncio import Event
    from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Generator, Iterator
    from types import TracebackType

    from engine._records import Prediction, State
    from engine._reducers import Reducer
    from engine.runners.base import AsyncExecution, SyncExecution


class PredictionStream:
    """One prediction as it is produced, for sync code: an iterator of predictions and a context manager.

    Iterating and `values()` share one position. Leaving a `for` loop does not end a stream that is still referred to;
    `close()`, leaving its `with`, or dropping it does.
    """

    __slots__ = ("__weakref__", "_describing", "_execution", "_open", "_outcome", "_reducer", "_tag")

    def __init__(
        self,
        execution: SyncExecution | None,
        reducer: Reducer | None,
        resolve: Callable[[], tuple[SyncExecution, Reducer]] | None = None,
        tag: str = "",
    ) -> None:
        """Show an execution, or what `resolve` gives at the first pull, where the predictor is not described yet."""
        self._execution = execution
        self._reducer = reducer
        self._open = resolve
        self._describing = None if resolve is None else threading.Lock()
        self._outcome = Outcome() if execution is None else execution.outcome
        self._tag = tag if execution is None else execution.call.tag

    @property
    def id(self) -> str:
        """The prediction's id, unique across processes; empty until the predictor is described."""
        return "" if self._execution is None else self._execution.call.id

    @property
    def tag(self) -> str:
        """The predictor's tag."""
        return self._tag

    @property
    def outcome(self) -> Outcome:
        """How the stream went so far: state, count of partials, return value, exception, times."""
        return self._outcome

    def __iter__(self) -> Iterator[Prediction]:
        """A `Prediction` for each partial from the shared position on."""
        execution = self._execution
        return self._late_predictions() if execution is None else execution.predictions()

    def __next__(self) -> Prediction:
        """The next prediction.

        Raises:
            StopIteration: the stream has ended, however.
            PredictionCancelledError: it was cancelled; raised once.
            EngineClosedError: its engine was closed; raised once.
            BaseException: what the predictor raised, as its own type; raised once.
        """
        for prediction in self:
            return prediction
        raise StopIteration

    def values(self) -> Iterator[Any]:
        """The raw partials from the shared position on: the cheap way, no record is made."""
        execution = self._execution
        return self._late_values() if execution is None else execution.values()

    def snapshots(self) -> Iterator[Any]:
        """The running reduction after each partial from here on: the text so far, out of deltas.

        For `last` these are the partials themselves. The last snapshot of a whole stream is what `create` gives.

        Raises:
            ValueError: the reducer is `returned`, which has no value before the end.
        """
        reducer = self._reducer
        return self._late_snapshots() if reducer is None else _snapshots(self.values(), _running(reducer))

    def _resolved(self) -> SyncExecution | None:
        if self._describing is None:
            return self._execution
        with self._describing:  # of several readers the first has it described, and the others wait
            while self._execution is None and self._open is not None:
                resolve, self._open = self._open, None
                try:
                    execution, reducer = resolve()
                except BaseException as error:
                    if not self._outcome.ended:  # else it was cancelled before
                        self._outcome.state = _state_after(error)
                    self._outcome.exception = error
                    raise
                if not self._outcome.ended:  # else it was stopped meanwhile, and a cancellation is still to be told
                    self._execution, self._reducer, self._outcome = execution, reducer, execution.outcome
        return self._execution

    def _late_values(self) -> Iterator[Any]:
        execution = self._resolved()
        if execution is not None:
            yield from execution.values()

    def _late_predictions(self) -> Iterator[Prediction]:
        execution = self._resolved()
        if execution is not None:
            yield from execution.predictions()

    def _late_snapshots(self) -> Iterator[Any]:
        execution = self._resolved()
        if execution is not None and self._reducer is not None:
            yield from _snapshots(execution.values(), _running(self._reducer))

    def close(self) -> None:
        """End the stream; when this returns, the predictor's `finally` has run (within the engine's grace).

        Raises:
            BaseException: what the predictor's clean-up raised.
        """
        self._open = None
        if self._execution is not None:
            self._execution.close()
        elif not self._outcome.ended:
            self._outcome.state = "closed"

    def cancel(self) -> None:
        """Ask the stream to end as cancelled: from any thread, at any time, any number of times; waits for nothing.

        Whoever reads it gets one `PredictionCancelledError`.
        """
        if self._execution is not None:
            self._execution.cancel()
        elif not self._outcome.ended:
            self._open = _refused(self._tag)
            self._outcome.state = "cancelled"

    def __enter__(self) -> Self:
        """The stream itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close."""
        self.close()

    def __repr__(self) -> str:
        """Tag, state and count."""
        return f"<PredictionStream {self.tag} {self.outcome.state} after {counted(self.outcome.count)}>"

    def __reduce__(self) -> Any:
        """Refuse to travel."""
        raise TypeError("a stream is one live execution and cannot be pickled: send its values")


def _running(reducer: Reducer) -> Reducer:
    if reducer is RETURNED:
        raise ValueError("the reducer 'returned' has no running value: use values(), and outcome.returned at the end")
    return reducer


def _snapshots(values: Iterator[Any], reducer: Reducer) -> Iterator[Any]:
    state = reducer.start()
    for value in values:
        state = reducer.step(state, value)
        yield reducer.finish(state)


class AsyncPredictionStream:
    """One prediction as it is produced, for asyncio: an async iterator of predictions and an async context manager.

    `await`ing the stream itself returns it once the tag is resolved and the inputs are checked, before the body runs.
    """

    __slots__ = ("__weakref__", "_described", "_execution", "_open", "_outcome", "_reducer", "_tag")

    def __init__(
        self,
        execution: AsyncExecution | None,
        reducer: Reducer | None,
        resolve: Callable[[], Awaitable[tuple[AsyncExecution, Reducer]]] | None = None,
        tag: str = "",
    ) -> None:
        """Show an execution, or what `resolve` gives at the first await, where the predictor is not imported yet."""
        self._execution = execution
        self._reducer = reducer
        self._open = resolve
        self._described: Event | None = None  # while one task has it described, others wait for this
        self._outcome = Outcome() if execution is None else execution.outcome
        self._tag = tag if execution is None else execution.call.tag

    @property
    def id(self) -> str:
        """The prediction's id, unique across processes; empty until the predictor is imported."""
        return "" if self._execution is None else self._execution.call.id

    @property
    def tag(self) -> str:
        """The predictor's tag."""
        return self._tag

    @property
    def outcome(self) -> Outcome:
        """How the stream went so far: state, count of partials, return value, exception, times."""
        return self._outcome

    def __await__(self) -> Generator[Any, Any, AsyncPredictionStream]:
        """Wait until the tag is resolved and the inputs are checked; give the stream itself.

        Raises:
            EngineError: the tag or the inputs are refused.
        """
        yield from self._resolved().__await__()
        return self

    async def _resolved(self) -> AsyncExecution | None:
        if self._described is not None:
            await self._described.wait()
        while self._execution is None and self._open is not None:
            import asyncio  # a loop runs, so it is imported

            resolve, self._open = self._open, None
            self._described = asyncio.Event()
            try:
                execution, reducer = await resolve()
            except BaseException as error:
                if not self._outcome.ended:  # else it was cancelled before
                    self._outcome.state = _state_after(error)
                self._outcome.exception = error
                raise
            finally:
                self._described.set()
            if not self._outcome.ended:  # else it was stopped meanwhile, and a cancellation is still to be told
                self._execution, self._reducer, self._outcome = execution, reducer, execution.outcome
        return self._execution

    def __aiter__(self) -> AsyncIterator[Prediction]:
        """A `Prediction` for each partial from the shared position on."""
        execution = self._execution
        return primed(self._late(records=True) if execution is None else execution.apartials(records=True))

    def __anext__(self) -> Awaitable[Prediction]:
        """The next prediction.

        Raises:
            StopAsyncIteration: the stream has ended, however.
            PredictionCancelledError: it was cancelled; raised once.
            EngineClosedError: its engine was closed; raised once.
            BaseException: what the predictor raised, as its own type; raised once.
        """
        execution = self._execution
        return self._late_prediction() if execution is None else execution.pull_prediction()

    async def _late_prediction(self) -> Prediction:
        execution = await self._resolved()
        if execution is None:
            raise StopAsyncIteration
        return await execution.pull_prediction()

    def _pull(self) -> Awaitable[Any]:
        execution = self._execution
        return self._late_value() if execution is None else execution.pull()

    async def _late_value(self) -> Any:
        execution = await self._resolved()
        if execution is None:
            raise StopAsyncIteration
        return await execution.pull()

    def values(self) -> AsyncIterator[Any]:
        """The raw partials from the shared position on: the cheap way, no record is made."""
        execution = self._execution
        return primed(self._late(records=False) if execution is None else execution.apartials(records=False))

    async def _late(self, *, records: bool) -> AsyncGenerator[Any, None]:
        yield None
        execution = await self._resolved()
        if execution is not None:
            async for partial in primed(execution.apartials(records=records)):
                yield partial

    def snapshots(self) -> AsyncIterator[Any]:
        """The running reduction after each partial from here on: the text so far, out of deltas.

        For `last` these are the partials themselves. The last snapshot of a whole stream is what `acreate` gives.

        Raises:
            ValueError: the reducer is `returned`, which has no value before the end.
        """
        return _Snapshots(self, None if self._reducer is None else _running(self._reducer))

    async def aclose(self) -> None:
        """End the stream; when this returns, the predictor's `finally` has run (within the engine's grace).

        Raises:
            BaseException: what the predictor's clean-up raised.
        """
        self._open = None
        if self._execution is not None:
            await self._execution.aclose()
        elif not self._outcome.ended:
            self._outcome.state = "closed"

    def cancel(self) -> None:
        """Ask the stream to end as cancelled: from any thread, at any time, any number of times; waits for nothing.

        Whoever reads it gets one `PredictionCancelledError`.
        """
        if self._execution is not None:
            self._execution.cancel()
        elif not self._outcome.ended:
            self._open = _cancelled(self._tag)
            self._outcome.state = "cancelled"

    async def __aenter__(self) -> Self:
        """Resolve the stream and give it."""
        await self._resolved()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close."""
        await self.aclose()

    def __repr__(self) -> str:
        """Tag, state and count."""
        return f"<AsyncPredictionStream {self.tag} {self.outcome.state} after {counted(self.outcome.count)}>"

    def __reduce__(self) -> Any:
        """Refuse to travel."""
        raise TypeError("a stream is one live execution and cannot be pickled: send its values")


def _state_after(error: BaseException) -> State:
    """The end of a stream that did not begin, for its predictor could not be found."""
    if is_foreign_cancel(error):
        return "cancelled"
    return "closed" if isinstance(error, EngineClosedError) else "failed"


def _refused(tag: str) -> Callable[[], tuple[SyncExecution, Reducer]]:
    def refuse() -> tuple[SyncExecution, Reducer]:
        raise PredictionCancelledError(tag, "")

    return refuse


def _cancelled(tag: str) -> Callable[[], Awaitable[tuple[AsyncExecution, Reducer]]]:
    async def refuse() -> tuple[AsyncExecution, Reducer]:
        raise PredictionCancelledError(tag, "")

    return refuse


class _Snapshots:
    """The running reduction of one async stream."""

    __slots__ = ("_is_begun", "_reducer", "_state", "_stream")

    def __init__(self, stream: AsyncPredictionStream, reducer: Reducer | None) -> None:
        self._stream = stream
        self._reducer = reducer
        self._is_begun = False
        self._state: Any = None

    def __aiter__(self) -> _Snapshots:
        return self

    async def __anext__(self) -> Any:
        value = await self._stream._pull()  # noqa: SLF001 - the stream's own iterator
        reducer = self._reducer or _running(self._stream._reducer)  # type: ignore[arg-type]  # noqa: SLF001
        if not self._is_begun:
            self._is_begun, self._reducer, self._state = True, reducer, reducer.start()
        self._state = reducer.step(self._state, value)
        return reducer.finish(self._state)


for _face in (PredictionStream, AsyncPredictionStream):
    _face.__module__ = "engine"  # where people import them from
