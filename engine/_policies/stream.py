"""Streams: one execution each, seen through two thin faces, for sync code and for asyncio.

A face adds no behaviour. It hands out predictions, raw values or running reductions of its execution, which keeps the
position and the outcome; it never keeps what it delivered. Iterators taken from a stream refer to the execution, not
to the stream, so that leaving a `for` loop releases everything.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

from engine._errors import counted
from engine._reducers import RETURNED
from engine.runners.base import primed

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Generator, Iterator
    from types import TracebackType

    from engine._records import Outcome, Prediction
    from engine._reducers import Reducer
    from engine.runners.base import AsyncExecution, SyncExecution
    from engine.runners.deferred import AsyncDeferredExecution, DeferredExecution


class PredictionStream:
    """One prediction as it is produced, for sync code: an iterator of predictions and a context manager.

    Iterating and `values()` share one position. Leaving a `for` loop does not end a stream that is still referred to;
    `close()`, leaving its `with`, or dropping it does.
    """

    __slots__ = ("__weakref__", "_execution", "_outcome", "_reducer")

    def __init__(self, execution: SyncExecution | DeferredExecution, reducer: Reducer | None) -> None:
        """Show an execution; its reducer is not known while it is still to be opened."""
        self._execution = execution
        self._reducer = reducer
        self._outcome = execution.outcome

    @property
    def id(self) -> str:
        """The prediction's id, unique across processes; empty until the predictor is described."""
        call = self._execution.call
        return "" if call is None else call.id

    @property
    def tag(self) -> str:
        """The predictor's tag."""
        return _tag_of(self._execution)

    @property
    def outcome(self) -> Outcome:
        """How the stream went so far: state, count of partials, return value, exception, times."""
        return self._outcome

    def __iter__(self) -> Iterator[Prediction]:
        """A `Prediction` for each partial from the shared position on."""
        return self._execution.predictions()

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
        return self._execution.values()

    def snapshots(self) -> Iterator[Any]:
        """The running reduction after each partial from here on: the text so far, out of deltas.

        For `last` these are the partials themselves. The last snapshot of a whole stream is what `create` gives.

        Raises:
            ValueError: the reducer is `returned`, which has no value before the end.
        """
        reducer = self._reducer
        return self._late_snapshots() if reducer is None else _snapshots(self.values(), _running(reducer))

    def _late_snapshots(self) -> Iterator[Any]:
        """The snapshots of a stream that is opened by their first pull, which tells its reducer."""
        deferred: Any = self._execution
        if deferred.resolve() is not None:
            yield from _snapshots(deferred.values(), _running(deferred.reducer))

    def close(self) -> None:
        """End the stream; when this returns, the predictor's `finally` has run (within the engine's grace).

        Raises:
            BaseException: what the predictor's clean-up raised.
        """
        self._execution.close()

    def cancel(self) -> None:
        """Ask the stream to end as cancelled: from any thread, at any time, any number of times; waits for nothing.

        Its consumer gets one `PredictionCancelledError`.
        """
        self._execution.cancel()

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
    """A reducer that has a value after each partial."""
    if reducer is RETURNED:
        raise ValueError("the reducer 'returned' has no running value: use values(), and outcome.returned at the end")
    return reducer


def _snapshots(values: Iterator[Any], reducer: Reducer) -> Iterator[Any]:
    """The running reduction of partials."""
    state = reducer.start()
    for value in values:
        state = reducer.step(state, value)
        yield reducer.finish(state)


class AsyncPredictionStream:
    """One prediction as it is produced, for asyncio: an async iterator of predictions and an async context manager.

    `await`ing the stream itself returns it once the tag is resolved and the inputs are checked, before the body runs.
    """

    __slots__ = ("__weakref__", "_execution", "_outcome", "_reducer")

    def __init__(self, execution: AsyncExecution | AsyncDeferredExecution, reducer: Reducer | None) -> None:
        """Show an execution; its reducer is not known while it is still to be opened."""
        self._execution = execution
        self._reducer = reducer
        self._outcome = execution.outcome

    @property
    def id(self) -> str:
        """The prediction's id, unique across processes; empty until the predictor is imported."""
        call = self._execution.call
        return "" if call is None else call.id

    @property
    def tag(self) -> str:
        """The predictor's tag."""
        return _tag_of(self._execution)

    @property
    def outcome(self) -> Outcome:
        """How the stream went so far: state, count of partials, return value, exception, times."""
        return self._outcome

    def __await__(self) -> Generator[Any, Any, AsyncPredictionStream]:
        """Wait until the tag is resolved and the inputs are checked; give the stream itself.

        Raises:
            EngineError: the tag or the inputs are refused.
        """
        if self._reducer is None:
            yield from self._resolved().__await__()
        return self

    async def _resolved(self) -> None:
        """Open the execution, where it is not, which tells its reducer."""
        deferred: Any = self._execution
        if self._reducer is None and await deferred.resolve() is not None:
            self._reducer = deferred.reducer

    def __aiter__(self) -> AsyncIterator[Prediction]:
        """A `Prediction` for each partial from the shared position on."""
        return primed(self._execution.apartials(records=True))

    def __anext__(self) -> Awaitable[Prediction]:
        """The next prediction.

        Raises:
            StopAsyncIteration: the stream has ended, however.
            PredictionCancelledError: it was cancelled; raised once.
            EngineClosedError: its engine was closed; raised once.
            BaseException: what the predictor raised, as its own type; raised once.
        """
        return self._execution.pull_prediction()

    def values(self) -> AsyncIterator[Any]:
        """The raw partials from the shared position on: the cheap way, no record is made."""
        return primed(self._execution.apartials(records=False))

    def snapshots(self) -> AsyncIterator[Any]:
        """The running reduction after each partial from here on: the text so far, out of deltas.

        For `last` these are the partials themselves. The last snapshot of a whole stream is what `acreate` gives.

        Raises:
            ValueError: the reducer is `returned`, which has no value before the end.
        """
        return _AsyncSnapshots(self._execution, None if self._reducer is None else _running(self._reducer))

    async def aclose(self) -> None:
        """End the stream; when this returns, the predictor's `finally` has run (within the engine's grace).

        Raises:
            BaseException: what the predictor's clean-up raised.
        """
        await self._execution.aclose()

    def cancel(self) -> None:
        """Ask the stream to end as cancelled: from any thread, at any time, any number of times; waits for nothing.

        Its consumer gets one `PredictionCancelledError`.
        """
        self._execution.cancel()

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


def _tag_of(execution: Any) -> str:
    """The tag of a call, or of what is still to be opened."""
    call = execution.call
    tag: str = execution.tag if call is None else call.tag
    return tag


class _AsyncSnapshots:
    """The running reduction of one async stream; a generator would be over once one pull of it is cancelled."""

    __slots__ = ("_execution", "_is_begun", "_reducer", "_state")

    def __init__(self, execution: AsyncExecution | AsyncDeferredExecution, reducer: Reducer | None) -> None:
        self._execution: Any = execution
        self._reducer = reducer
        self._is_begun = False
        self._state: Any = None

    def __aiter__(self) -> _AsyncSnapshots:
        return self

    async def __anext__(self) -> Any:
        value = await self._execution.pull()
        reducer = self._reducer or _running(self._execution.reducer)
        if not self._is_begun:
            self._is_begun, self._reducer, self._state = True, reducer, reducer.start()
        self._state = reducer.step(self._state, value)
        return reducer.finish(self._state)


for _face in (PredictionStream, AsyncPredictionStream):
    _face.__module__ = "engine"  # where users import them from
