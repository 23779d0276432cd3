"""The executor, `engine.predictions`: the verbs by which predictors are consumed.

`create` reduces a run's partials to one prediction, `stream` hands each over; neither knows the kinds of functions.
Look-up, input checks and the context snapshot happen at the call, before anything starts. Each verb's fast path stands
in the verb itself and says so; what it does not serve becomes an `Opening`, and by that an execution.
"""

from __future__ import annotations

from contextvars import copy_context
from functools import partial
from time import perf_counter
from types import CoroutineType
from typing import TYPE_CHECKING, Any, ClassVar

from engine._errors import quote
from engine._policies.opening import Opening, bound, depth_within, refuse_inline
from engine._policies.placement import FAST
from engine._policies.prediction import ReducerError, adrained, drained, exhaust, failed, finish
from engine._policies.resolve import tag_shown
from engine._policies.stream import AsyncPredictionStream, PredictionStream
from engine._predictors.body import Body
from engine._predictors.normaliser import ITERATOR, PLAIN, look
from engine._records import LOCK_STEP, Call, Prediction, current
from engine._reducers import LAST, RETURNED, reducer_of
from engine.runners.channel import Reduction
from engine.runners.deferred import AsyncDeferredExecution, DeferredExecution
from engine.runners.inline import InlineExecution
from engine.runners.task import TaskExecution, resumed

if TYPE_CHECKING:
    from collections.abc import Mapping
    from contextvars import Context

    from engine._loaded import LoadedPredictor
    from engine._policies.opening import Opener
    from engine._policies.placement import Placement
    from engine._policies.prediction import Errors
    from engine._policies.resolve import Resolver
    from engine._predictors.predictor import Predictor
    from engine._reducers import Reducer
    from engine.runners.base import AsyncExecution, FullRunner, OpenCalls, SyncExecution


class Executor:
    """Runs predictors: `create` and `stream` for sync code, `acreate` and `astream` for asyncio.

    Every method takes a `tag` (`@owner/name`, a `Predictor`, or a plain function, class or object with `predict`, run
    without registering) and `inputs` as one mapping (`None` is the same as `{}`).
    """

    _make_stream: ClassVar[type[PredictionStream]] = PredictionStream

    def __init__(  # noqa: PLR0917 - made in one place, by the engine that owns all of it
        self,
        resolver: Resolver,
        placement: Placement,
        opener: Opener,
        open_calls: OpenCalls,
        grace: float,
        number: int,
    ) -> None:
        """Join what an engine owns.

        Args:
            resolver: finds what a tag stands for.
            placement: chooses where it runs.
            opener: makes the executions.
            open_calls: lists them once they begin; through it this keeps its engine.
            grace: seconds that a close waits for a body's clean-up.
            number: tells the engine from others of the process.
        """
        self._resolver = resolver
        self._placement = placement
        self._opener = opener
        self._open_calls = open_calls
        self._grace = grace
        self._number = number
        # Read without a lock: a call that comes while its tag is registered anew may still find what that stood for.
        self._routes = resolver.routes

    def create(
        self,
        tag: Any,
        inputs: Mapping[str, Any] | None = None,
        *,
        runner: str | None = None,
        check: bool | None = None,
        reduce: Any = None,
        errors: Errors = "raise",
    ) -> Prediction:
        """Run a predictor and give one prediction: its partials reduced.

        Args:
            tag: what to run.
            inputs: its inputs by name.
            runner: where: `"inline"`, `"thread"`, `"process"`, a plugin's runner, or `None` for the author's or
                engine's default.
            check: whether inputs are checked; `None` for the author's choice.
            reduce: a reducer's name or object; `None` for the author's choice, else `"last"`.
            errors: `"raise"`, or `"return"` to get what the body raised as the prediction's `error`.

        Returns:
            The prediction; its `latency` is the producer's time in ms.

        Raises:
            PredictorNotFoundError: nothing is registered under the tag.
            InvalidInputError: the inputs do not fit, all problems named.
            NoPartialsError: there was no partial and the reducer needs one.
            BaseException: what the predictor raised, as its own type.
        """
        loaded = self._routes.get(tag) if type(tag) is str else None
        if loaded is None:
            loaded = self._resolver.resolve(tag, runner)
        profile = loaded.profile
        args, kwargs = (profile.bind if check is None else profile.binder(check))(inputs)
        reducer = profile.reducer if reduce is None else reducer_of(reduce)
        if errors != "raise":
            _check_errors(errors)
        try:
            place = loaded.places[runner]
        except (KeyError, TypeError):  # not decided yet; or not hashable, which is refused as no runner's name
            place = self._placement.place(loaded, runner)
        if place is not FAST:
            opening = Opening(loaded, args, kwargs, runner, check, None)
            reduction = Reduction(reducer, profile.tag)
            opener = self._opener
            execution = opener.inline(opening) if place is None else opener.owned(opening, place, reduction)
            return drained(execution, reduction, perf_counter(), errors)
        # The fast path: a plain function in the caller's thread. One context, one clock pair, one record; no iterator
        # is made for a plain value.
        parent = current.get()
        depth = 0 if parent is None else depth_within(parent)
        call = Call(profile.tag, LOCK_STEP, parent, self._number, depth)
        context = copy_context()
        context.run(current.set, call)
        started = perf_counter()
        try:
            if args:  # noqa: SIM108 - almost always there are none, and no tuple is made
                value = context.run(loaded.function, *args, **kwargs)
            else:
                value = context.run(loaded.function, **kwargs)
        except BaseException as error:
            return failed(error, call, None, started, errors)
        kind = type(value)
        if type(kind) is type and kind in PLAIN and (reducer is LAST or reducer is RETURNED):  # as `look` tells
            call.parent = None  # a prediction refers to its call, and is not to keep that one's callers alive
            return Prediction(call, value, 0, (perf_counter() - started) * 1000.0)
        return self._drain(loaded, call, context, value, reducer, started, runner, errors)

    def stream(
        self,
        tag: Any,
        inputs: Mapping[str, Any] | None = None,
        *,
        runner: str | None = None,
        check: bool | None = None,
        prefetch: int | None = None,
    ) -> PredictionStream:
        """Run a predictor and give its partials as they are produced; the body starts at the first pull.

        Args:
            tag: what to run.
            inputs: its inputs by name.
            runner: where, as for `create`.
            check: whether inputs are checked; `None` for the author's choice.
            prefetch: partials the producer may be ahead of the consumer, where it runs elsewhere; `None` adapts.

        Returns:
            An iterator of predictions and a context manager.

        Raises:
            PredictorNotFoundError: nothing is registered under the tag.
            InvalidInputError: the inputs do not fit, all problems named.
        """
        _check_prefetch(prefetch)
        loaded = self._routes.get(tag) if type(tag) is str else None
        if loaded is None:
            record = self._resolver.undescribed(tag, runner)
            if record is not None:
                return self._stream_late(tag, record, inputs, runner, check, prefetch)
            loaded = self._resolver.resolve(tag, runner)
        return self._make_stream(*self._opened(loaded, inputs, runner, check, prefetch))

    async def acreate(
        self,
        tag: Any,
        inputs: Mapping[str, Any] | None = None,
        *,
        runner: str | None = None,
        check: bool | None = None,
        reduce: Any = None,
        errors: Errors = "raise",
    ) -> Prediction:
        """Run a predictor from asyncio and give one prediction, its partials reduced; the event loop is never blocked.

        Args:
            tag: what to run.
            inputs: its inputs by name.
            runner: as for `create`; `"inline"` runs a sync body on the event loop itself, which it blocks.
            check: whether inputs are checked; `None` for the author's choice.
            reduce: a reducer's name or object; `None` for the author's choice, else `"last"`.
            errors: `"raise"`, or `"return"` to get what the body raised as the prediction's `error`.

        Returns:
            The prediction; its `latency` is the producer's time in ms.

        Raises:
            PredictorNotFoundError: nothing is registered under the tag.
            InvalidInputError: the inputs do not fit, all problems named.
            NoPartialsError: there was no partial and the reducer needs one.
            BaseException: what the predictor raised, as its own type.
        """
        loaded = self._routes.get(tag) if type(tag) is str else None
        if loaded is None:
            loaded = await self._resolver.aresolve(tag, runner)
        profile = loaded.profile
        args, kwargs = (profile.bind if check is None else profile.binder(check))(inputs)
        reducer = profile.reducer if reduce is None else reducer_of(reduce)
        if errors != "raise":
            _check_errors(errors)
        is_plain = loaded.is_plain
        if runner is None and (self._placement.is_plain(loaded) if is_plain is None else is_plain):
            # The fast path: a coroutine is stepped once, in the call's context; one that ends there needs no execution.
            parent = current.get()
            call = Call(profile.tag, LOCK_STEP, parent, self._number, 0 if parent is None else depth_within(parent))
            context = copy_context()
            context.run(current.set, call)
            is_begun = False
            started = perf_counter()
            try:
                produced = context.run(loaded.function, *args, **kwargs)
                if type(produced) is CoroutineType:
                    try:
                        answer = context.run(produced.send, None)
                    except StopIteration as stop:
                        produced = stop.value
                        kind = type(produced)
                        if type(kind) is type and kind in PLAIN and (reducer is LAST or reducer is RETURNED):
                            call.parent = None
                            return Prediction(call, produced, 0, (perf_counter() - started) * 1000.0)
                    else:
                        produced, is_begun = resumed(produced, answer), True
            except BaseException as error:
                return failed(error, call, None, started, errors)
            body = Body(call, lambda: produced, (), {}, profile.follows, context)
            body.is_started = is_begun
            here = TaskExecution(body, self._opener.hand_over, self._grace, self._open_calls, is_closed_at_exit=False)
            return await adrained(here, Reduction(reducer), started, errors)
        opening = Opening(loaded, args, kwargs, runner, check, None)
        placement, opener = self._placement, self._opener
        chosen = placement.ready_runner(loaded, runner) or await placement.prepared_runner(loaded, runner)
        place = chosen.place(loaded, runner, is_task=True)
        reduction = Reduction(reducer, profile.tag)
        execution: Any = (
            opener.task(opening, chosen, is_closed_at_exit=False)
            if place is None
            else opener.owned(opening, place, reduction)
        )
        return await adrained(execution, reduction, perf_counter(), errors)

    def astream(
        self,
        tag: Any,
        inputs: Mapping[str, Any] | None = None,
        *,
        runner: str | None = None,
        check: bool | None = None,
        prefetch: int | None = None,
    ) -> AsyncPredictionStream:
        """Run a predictor from asyncio and give its partials as they come; the event loop is never blocked.

        Args:
            tag: what to run.
            inputs: its inputs by name.
            runner: as for `acreate`.
            check: whether inputs are checked; `None` for the author's choice.
            prefetch: partials the producer may be ahead of the consumer, where it runs elsewhere; `None` adapts.

        Returns:
            An async iterator of predictions and an async context manager; awaiting it resolves it and gives itself.

        Raises:
            PredictorNotFoundError: nothing is registered under the tag.
            InvalidInputError: the inputs do not fit; where the predictor was never imported, raised by the first await.

        Where installed plugins were not looked for yet, or must be looked for again, what is wrong with the tag, the
        runner or the inputs is raised by the first await too, for that is not done on an event loop.
        """
        _check_prefetch(prefetch)
        loaded = self._routes.get(tag) if type(tag) is str else None
        chosen = None if loaded is None else self._placement.ready_runner(loaded, runner)
        if loaded is None or chosen is None:
            return self._astream(tag, loaded, inputs, runner, check, prefetch)
        opening = bound(loaded, inputs, runner, check, prefetch)
        return AsyncPredictionStream(self._aopened(opening, chosen), loaded.profile.reducer)

    # Off the fast paths.

    def _opened(
        self,
        loaded: LoadedPredictor,
        inputs: Mapping[str, Any] | None,
        runner: str | None,
        check: bool | None,  # noqa: FBT001
        prefetch: int | None,
    ) -> tuple[SyncExecution, Reducer]:
        """The execution of a sync stream, and its reducer."""
        opening = bound(loaded, inputs, runner, check, prefetch)
        try:
            place = loaded.places[runner]
        except (KeyError, TypeError):
            place = self._placement.place(loaded, runner)
        is_here = place is None or place is FAST
        execution = self._opener.inline(opening) if is_here else self._opener.owned(opening, place)
        return execution, loaded.profile.reducer

    def _stream_late(  # noqa: PLR0917 - as `stream`
        self,
        tag: Any,
        record: Predictor,
        inputs: Mapping[str, Any] | None,
        runner: str | None,
        check: bool | None,  # noqa: FBT001
        prefetch: int | None,
    ) -> PredictionStream:
        """`stream` of a predictor that a runner is to describe at the first pull."""
        context = copy_context()
        self._placement.check(runner)
        kept = _as_of_now(inputs)

        def open_now() -> tuple[SyncExecution, Reducer]:
            loaded = self._resolver.ready(tag, record, runner)
            return self._opened(loaded, kept, runner, check, prefetch)

        return self._make_stream(DeferredExecution(partial(context.run, open_now), record.tag), None)

    def _astream(  # noqa: PLR0917 - as `astream`
        self,
        tag: Any,
        loaded: LoadedPredictor | None,
        inputs: Mapping[str, Any] | None,
        runner: str | None,
        check: bool | None,  # noqa: FBT001
        prefetch: int | None,
    ) -> AsyncPredictionStream:
        """`astream` where the tag has no route, or its runner may still have to be looked for or imported."""
        placement, record = self._placement, None
        if loaded is None:
            loaded, record = self._resolver.resolve_now(tag, runner)
        elif placement.must_look(loaded, runner):
            loaded = None
        if loaded is None:
            return self._astream_late(tag, record, inputs, runner, check, prefetch)
        opening = bound(loaded, inputs, runner, check, prefetch)
        chosen = placement.ready_runner(loaded, runner) or placement.runner_for(loaded, runner)
        if chosen.is_ready:
            return AsyncPredictionStream(self._aopened(opening, chosen), loaded.profile.reducer)
        open_soon = partial(self._open_soon, opening, copy_context())
        return AsyncPredictionStream(AsyncDeferredExecution(open_soon, loaded.profile.tag), None)

    def _astream_late(  # noqa: PLR0917 - as `astream`
        self,
        tag: Any,
        record: Predictor | None,
        inputs: Mapping[str, Any] | None,
        runner: str | None,
        check: bool | None,  # noqa: FBT001
        prefetch: int | None,
    ) -> AsyncPredictionStream:
        """`astream` of what is to be resolved, and its inputs checked, at the first await."""
        context = copy_context()
        kept = _as_of_now(inputs)

        async def resolve() -> tuple[AsyncExecution, Reducer]:
            loaded = await self._resolver.aresolve(tag, runner, record)
            return await self._open_soon(bound(loaded, kept, runner, check, prefetch), context)

        title = record.tag if record is not None else tag_shown(tag)
        return AsyncPredictionStream(AsyncDeferredExecution(resolve, title), None)

    async def _open_soon(self, opening: Opening, context: Context) -> tuple[AsyncExecution, Reducer]:
        """The execution of an async stream, and its reducer, once what its runner needs is imported."""
        loaded = opening.loaded
        chosen = await self._placement.prepared_runner(loaded, opening.runner)
        return context.run(self._aopened, opening, chosen), loaded.profile.reducer

    def _aopened(self, opening: Opening, chosen: FullRunner) -> AsyncExecution:
        """The execution of an async stream whose runner is ready."""
        place = chosen.place(opening.loaded, opening.runner, is_task=True)
        execution: AsyncExecution = (
            self._opener.task(opening, chosen) if place is None else self._opener.owned(opening, place)
        )
        return execution

    def _drain(  # noqa: PLR0917
        self,
        loaded: LoadedPredictor,
        call: Call,
        context: Any,
        produced: Any,
        reducer: Reducer,
        started: float,
        runner: str | None,
        errors: Errors,
    ) -> Prediction:
        """Reduce what a function in the caller's thread produced: its iterator, stepped in the call's context."""
        kind = look(produced, loaded.profile.follows)
        reduction = Reduction(reducer)
        if kind is not ITERATOR:
            body = Body(call, lambda: produced, (), {}, loaded.profile.follows, context)
            is_kept = runner is not None and self._placement.stays_with_caller(runner)
            hand_over = refuse_inline if is_kept else self._opener.hand_over
            execution = InlineExecution(body, hand_over, self._grace, self._open_calls)
            return drained(execution, reduction, started, errors)
        failure: BaseException | None = None
        try:
            context.run(exhaust, produced, reduction)
        except ReducerError as carrier:
            failure = carrier.error
        except BaseException as error:
            return failed(error, call, reduction, started, errors)
        if failure is not None:
            try:
                raise failure  # outside of the handler: what carried it would be its context, and both a cycle
            finally:
                del failure  # or this frame and the exception keep each other alive
        call.parent = None
        elapsed = (perf_counter() - started) * 1000.0
        return Prediction(call, finish(reduction, call), max(0, reduction.count - 1), elapsed)

    def __reduce__(self) -> Any:
        """Refuse to travel."""
        raise TypeError("an engine's predictions cannot be pickled: make an engine where it is needed")


def _as_of_now(inputs: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    """Inputs to be bound later: a caller that changes their mapping meanwhile changes nothing."""
    return dict(inputs) if isinstance(inputs, dict) else inputs


def _check_errors(errors: object) -> None:
    if errors not in {"raise", "return"}:
        raise ValueError(f"errors must be 'raise' or 'return', not {quote(errors)}")


def _check_prefetch(prefetch: object) -> None:
    if prefetch is not None and (not isinstance(prefetch, int) or isinstance(prefetch, bool) or prefetch < 0):
        raise ValueError(f"prefetch must be a whole number of partials from 0, or None, not {quote(prefetch)}")
