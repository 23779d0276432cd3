"""The executor, `engine.predictions`: resolves a call, decides where it runs, and consumes its uniform iterator.

`create` drains the iterator through a reducer, `stream` hands each partial over; neither knows the kinds of functions.
Look-up, input checks and the context snapshot happen at the call, before anything starts. The one fast path, `create`
on a plain function in the caller's own thread, stands first in `create` and says so.
"""

from __future__ import annotations

import sys
import threading
from collections import deque
from contextvars import copy_context
from functools import partial
from time import perf_counter
from types import CoroutineType
from typing import TYPE_CHECKING, Any, Final, Literal

from engine._errors import (
    EngineClosedError,
    EngineError,
    InvalidTagError,
    NestingError,
    NoPartialsError,
    PluginError,
    quote,
    say,
)
from engine._fork import renew_after_fork
from engine._policies.stream import AsyncPredictionStream, PredictionStream
from engine._predictors.body import Body
from engine._predictors.failures import explain, trim
from engine._predictors.normaliser import ITERATOR, PLAIN, dispose, look
from engine._predictors.predictor import Predictor, name_of, tag_of
from engine._records import LOCK_STEP, Call, Prediction, current, traceback_of
from engine._reducers import COLLECT, CONCAT, EMPTY, LAST, RETURNED, reducer_of
from engine.runners.base import OpenCalls
from engine.runners.channel import Channel, Reduction
from engine.runners.deferred import AsyncDeferredExecution, DeferredExecution
from engine.runners.inline import InlineExecution, is_main_thread
from engine.runners.owned import OwnedExecution
from engine.runners.parking import park_task, wake_all
from engine.runners.slots import awaiting, current_task
from engine.runners.task import Handle, TaskExecution, resumed

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from types import TracebackType

    from engine._loaded import LoadedPredictor, LoadedPredictors
    from engine._reducers import Reducer
    from engine._registry.registry import Registry
    from engine._registry.runners import Runners
    from engine.runners.base import AsyncExecution, BodyRunner, Execution, FullRunner, Observer, SyncExecution
    from engine.runners.loop import LoopRunner
    from engine.runners.parking import Wake
    from engine.runners.thread import ThreadRunner

    Errors = Literal["raise", "return"]

FAST: Final = "the caller's own thread, with nothing to begin or to end"
DEEPEST: Final = 50  # calls of predictors by predictors, one in another
_KEPT_BY_OWNERS: Final = (LAST, CONCAT, COLLECT, RETURNED)  # no code of the user's: reduced where the body runs


class Executor:
    """Runs predictors: `create` and `stream` for sync code, `acreate` and `astream` for asyncio.

    Every method takes a `tag` (`@owner/name`, a `Predictor`, or a plain function, class or object with `predict`, run
    without registering) and `inputs` as one mapping (`None` is the same as `{}`).
    """

    def __init__(  # noqa: PLR0917 - made in one place, by the engine that owns all of it
        self,
        registry: Registry,
        loaded_predictors: LoadedPredictors,
        threads: ThreadRunner,
        loop: LoopRunner,
        runners: Runners,
        default: str | None,
        grace: float,
        open_calls: OpenCalls,
        number: int,
    ) -> None:
        """Join the parts an engine owns; `default` names its runner, `grace` in s."""
        self._registry = registry
        self._loaded_predictors = loaded_predictors
        self._threads = threads
        self._loop = loop
        self._runners = runners
        self._default = default
        self._grace = grace
        self._open_calls = open_calls
        self.number = number
        self._routes: dict[str, LoadedPredictor] = {}  # tags seen before, straight to their loaded predictors
        # Held to change them, never to read; reentrant, for a collector may call from within.
        self._routing = threading.RLock()
        self._attempts: dict[Any, _Attempt] = {}
        renew_after_fork(self)

    # The four consumers.

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
            loaded = self.resolve(tag, runner)
        profile = loaded.profile
        args, kwargs = (profile.bind if check is None else profile.binder(check))(inputs)
        reducer = profile.reducer if reduce is None else reducer_of(reduce)
        if errors != "raise":
            _check_errors(errors)
        try:
            place = loaded.places[runner]
        except (KeyError, TypeError):
            place = self._place(loaded, runner)
        if place is not FAST:
            return self._create(loaded, args, kwargs, place, runner, check, reducer, errors)
        # The fast path: a plain function in the caller's thread. One context, one clock pair, one record; no iterator
        # is made for a plain value.
        parent = current.get()
        depth = 0 if parent is None else _depth_within(parent)
        call = Call(profile.tag, LOCK_STEP, parent, self.number, depth)
        context = copy_context()
        context.run(current.set, call)
        started = perf_counter()
        try:
            if args:  # noqa: SIM108 - almost always there are none, and no tuple is made
                value = context.run(loaded.function, *args, **kwargs)
            else:
                value = context.run(loaded.function, **kwargs)
        except BaseException as error:
            return _failed(error, call, None, started, errors)
        kind = type(value)
        if type(kind) is type and kind in PLAIN and (reducer is LAST or reducer is RETURNED):  # as `look` tells
            call.parent = None
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
        record = self._undescribed(tag, runner)
        if record is None:
            return PredictionStream(*self._opened(self.resolve(tag, runner), inputs, runner, check, prefetch))
        context = copy_context()
        self.check_runner(runner)
        kept = _as_of_now(inputs)

        def open_now() -> tuple[SyncExecution, Reducer]:
            loaded = self._ready(tag, record, runner)
            return self._opened(loaded, kept, runner, check, prefetch)

        return PredictionStream(DeferredExecution(partial(context.run, open_now), record.tag), None)

    def _opened(
        self,
        loaded: LoadedPredictor,
        inputs: Mapping[str, Any] | None,
        runner: str | None,
        check: bool | None,  # noqa: FBT001
        prefetch: int | None,
    ) -> tuple[SyncExecution, Reducer]:
        args, kwargs = self._bind(loaded, inputs, check)
        try:
            place = loaded.places[runner]
        except (KeyError, TypeError):
            place = self._place(loaded, runner)
        if place is FAST:
            place = None
        return self._open(loaded, args, kwargs, place, runner, check, prefetch), loaded.profile.reducer

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
            loaded = await self.aresolve(tag, runner)
        profile = loaded.profile
        args, kwargs = (profile.bind if check is None else profile.binder(check))(inputs)
        reducer = profile.reducer if reduce is None else reducer_of(reduce)
        if errors != "raise":
            _check_errors(errors)
        is_plain = loaded.is_plain
        if runner is None and (self._is_plain(loaded) if is_plain is None else is_plain):
            # The fast path: a coroutine is stepped once, in the call's context; one that ends there needs no execution.
            parent = current.get()
            call = Call(profile.tag, LOCK_STEP, parent, self.number, 0 if parent is None else _depth_within(parent))
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
                return _failed(error, call, None, started, errors)
            body = Body(call, lambda: produced, (), {}, profile.follows, context)
            body.is_started = is_begun
            return await self._acreate_here(body, reducer, started, errors)
        return await self._acreate(loaded, args, kwargs, runner, check, reducer, errors)

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
        found, record = self._at_hand(tag, runner)
        if found is not None:
            args, kwargs = self._bind(found, inputs, check)
            chosen = self._at_once(found, runner) or self.runner_for(found, runner)
            if not chosen.is_at_hand:
                return self._astream_late(found, args, kwargs, runner, check, prefetch)
            place = chosen.place(found, runner, is_task=True)
            execution = self._aopen(found, args, kwargs, place, runner, check, prefetch)
            return AsyncPredictionStream(execution, found.profile.reducer)
        context = copy_context()
        kept = _as_of_now(inputs)

        async def resolve() -> tuple[AsyncExecution, Reducer]:
            found = await self.aresolve(tag, runner, record)
            bound = self._bind(found, kept, check)
            place = (await self._at_hand_for(found, runner)).place(found, runner, is_task=True)
            return context.run(self._aopen, found, *bound, place, runner, check, prefetch), found.profile.reducer

        title = record.tag if record is not None else _title_of(tag)
        return AsyncPredictionStream(AsyncDeferredExecution(resolve, title), None)

    def _astream_late(  # noqa: PLR0917 - as `_aopen`
        self,
        loaded: LoadedPredictor,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        runner: str | None,
        check: bool | None,  # noqa: FBT001
        prefetch: int | None,
    ) -> AsyncPredictionStream:
        """`astream` of a call that is checked by now, while what its runner needs is still to be imported."""
        context = copy_context()

        async def open_it() -> tuple[AsyncExecution, Reducer]:
            place = (await self._at_hand_for(loaded, runner)).place(loaded, runner, is_task=True)
            execution = context.run(self._aopen, loaded, args, kwargs, place, runner, check, prefetch)
            return execution, loaded.profile.reducer

        return AsyncPredictionStream(AsyncDeferredExecution(open_it, loaded.profile.tag), None)

    # Looking up.

    def _record(self, tag: Any, *, may_look: bool = True) -> Predictor | None:
        if self._open_calls.is_closed:
            raise EngineClosedError
        if isinstance(tag, str):
            return self._registry[tag_of(tag)] if may_look else self._registry.known(tag)
        return tag if isinstance(tag, Predictor) else None

    def resolve(self, tag: Any, runner: str | None = None) -> LoadedPredictor:
        if type(tag) is str:
            known = self._routes.get(tag)
            if known is not None:
                return known
        record = self._record(tag)
        return self._given(tag) if record is None else self._ready(tag, record, runner)

    def _given(self, tag: Any) -> LoadedPredictor:
        if not callable(tag) and not callable(getattr(tag, "predict", None)):
            raise InvalidTagError(tag)
        return self._loaded_predictors.of_object(tag)

    def _ready(self, tag: Any, record: Predictor, runner: str | None) -> LoadedPredictor:
        """What the `record` that was found at the call is here or in workers: imported, or described by one of them.

        Raises:
            EngineClosedError: the engine was closed meanwhile.
        """
        is_tag = isinstance(tag, str)
        describer = self._describer(record, runner)
        if describer is not None:
            loaded = self._loaded_predictors.described(record) or self._described(record, describer, is_tag)
            if loaded.profile.by_value:  # as only its mark tells
                return self._ready(tag, record, runner)
        elif is_tag:
            loaded = self._registered(record)
            self._route(tag, record, loaded)
        else:
            loaded = self._loaded_predictors.of(record)
        if self._open_calls.is_closed:
            raise EngineClosedError
        return loaded

    def _route(self, tag: str, record: Predictor, loaded: LoadedPredictor) -> None:
        """Have later calls find it at once, unless its tag was given to another, or all ended, meanwhile."""
        with self._routing:
            if not self._open_calls.is_closed and self._registry.stands_for(record):
                self._routes[tag] = loaded

    def _foreseen(self, record: Predictor, runner: str | None) -> str | None:
        """The name of the runner that a call chooses, as far as it is known before the predictor is imported here."""
        if runner is not None:
            return runner
        described = self._loaded_predictors.described(record)
        return record.runner or (described and described.profile.runner) or self._default

    def _describer(self, record: Predictor, runner: str | None) -> FullRunner | None:
        """The runner that tells of a predictor that this process has not imported, so that it need not be.

        Raises:
            ValueError: there is no runner of that name.
            PluginError: the plugin that offers it could not be used.
        """
        target = record.target
        if not isinstance(target, str) or self._loaded_predictors.find(record) is not None:
            return None
        described = self._loaded_predictors.described(record)
        if record.by_value or (described is not None and described.profile.by_value):  # what is here is to be sent
            return None
        if target.partition(":")[0] in sys.modules:  # it is here already
            return None
        chosen = self._runners[self._foreseen(record, runner)]
        return chosen if chosen.is_elsewhere and chosen.describe is not None else None

    def _is_unimported(self, record: Predictor, runner: str | None) -> bool:
        """Whether a predictor is still to be imported here, or described by a runner."""
        if not isinstance(record.target, str) or self._loaded_predictors.find(record) is not None:
            return False
        return self._loaded_predictors.described(record) is None or self._describer(record, runner) is None

    def _undescribed(self, tag: Any, runner: str | None) -> Predictor | None:
        """The record of a predictor that a runner is still to describe."""
        if type(tag) is str and tag in self._routes:
            return None
        record = self._record(tag)
        if record is None or not self._is_unimported(record, runner):
            return None
        return None if self._describer(record, runner) is None else record

    def _described(self, record: Predictor, describer: FullRunner, is_registered: bool) -> LoadedPredictor:  # noqa: FBT001
        describe: Any = describer.describe
        try:
            told = describe(record.tag, record.target)
        except PluginError as error:
            source = self._registry.source_of(record) if is_registered else ""
            raise PluginError(record.tag, source, error.reason, error.traceback) from None
        return self._loaded_predictors.describe(record, told, describer.name)

    def _registered(self, record: Predictor) -> LoadedPredictor:
        """Load what is registered; what its import raises, even SystemExit, is its plugin's failure."""
        try:
            return self._loaded_predictors.of(record)
        except (EngineError, KeyboardInterrupt):
            raise
        except BaseException as error:
            trim(error)
            reason, source = f"{type(error).__name__}: {say(error)}", self._registry.source_of(record)
            raise PluginError(record.tag, source, reason, traceback_of(error)) from error

    def _at_hand(self, tag: Any, runner: str | None) -> tuple[LoadedPredictor | None, Predictor | None]:
        """What can be had on an event loop without keeping it: what is loaded, or else the record of what is to be.

        Neither, where plugins have to be looked for first.
        """
        if type(tag) is str and (known := self._routes.get(tag)) is not None:
            is_at_hand = self._at_once(known, runner) or not self._runners.must_look(self._wish(known, runner))
            return (known, None) if is_at_hand else (None, None)
        if self._must_look(tag, runner):
            return None, None
        self.check_runner(runner)
        record = self._record(tag, may_look=False)
        if record is not None and (self._must_look_for(record, runner) or self._is_unimported(record, runner)):
            return None, record
        found = self._given(tag) if record is None else self._ready(tag, record, runner)
        # Only now it is known what its author wishes.
        return (None, record) if self._runners.must_look(self._wish(found, runner)) else (found, record)

    def _must_look(self, tag: Any, runner: str | None) -> bool:
        """Whether plugins have to be looked for before a call can be made; that keeps no event loop."""
        if self._open_calls.is_closed:
            raise EngineClosedError
        if isinstance(tag, str) and self._registry.must_look(tag):
            return True
        return self._runners.must_look(runner) or self._runners.must_look(self._default)

    def _must_look_for(self, record: Predictor, runner: str | None) -> bool:
        """Whether plugins have to be looked for because of the runner that a call of a predictor chooses."""
        return self._runners.must_look(self._foreseen(record, runner))

    async def aresolve(self, tag: Any, runner: str | None = None, record: Predictor | None = None) -> LoadedPredictor:
        """Resolve without blocking the loop: owner threads look for plugins, import, and have workers describe.

        Args:
            tag: what was called.
            runner: where it is to run.
            record: what the tag stood for at the call, if that is known.
        """
        if self._open_calls.is_closed:
            raise EngineClosedError
        if record is None and self._must_look(tag, runner):
            await self._look(_title_of(tag), lambda: self._must_look(tag, runner))
        self.check_runner(runner)
        record = record or self._record(tag, may_look=False)
        if record is not None and self._must_look_for(record, runner):
            await self._look(record.tag, partial(self._must_look_for, record, runner))
        if record is None:
            found = self._given(tag)
        elif self._is_unimported(record, runner):
            found = await self._imported(tag, record, runner)
        else:
            found = self._ready(tag, record, runner)
        wish = self._wish(found, runner)
        if self._runners.must_look(wish):
            await self._look(found.profile.tag, partial(self._runners.must_look, wish))
        if self._open_calls.is_closed:  # before this task went on
            raise EngineClosedError
        return found

    async def _imported(self, tag: Any, record: Predictor, runner: str | None) -> LoadedPredictor:
        """Have a predictor imported, or described by a runner, in an owner thread.

        Tasks that come while one has it imported wait for that one, for a thread each would keep their loop. Each has
        it described for itself: of a worker, only the task that waits knows what it holds.
        """
        wish = record.tag, self._ready, tag, record, runner
        if self._describer(record, runner) is not None:
            found: LoadedPredictor = await self.in_owner(*wish)
        else:
            found, _ = await self._shared((record, isinstance(tag, str)), *wish)
        return found

    async def _look(self, name: str, is_wanted: Callable[[], bool]) -> None:
        """Have plugins looked for in an owner thread if need be, once for all tasks that come meanwhile."""
        is_mine = False
        while not is_mine and is_wanted():
            _, is_mine = await self._shared("plugins", name, self._registry.look)

    async def _shared(self, key: Any, name: str, function: Callable[..., Any], *args: Any) -> tuple[Any, bool]:
        """Call a function in an owner thread on behalf of every task that wants the same of it meanwhile.

        Returns:
            What it gave, and whether this task had it called.

        Raises:
            BaseException: what it raised.
        """
        mine = _Attempt()
        while (attempt := self._attempts.setdefault(key, mine)) is not mine:
            await attempt.wait()
            if attempt.is_decided:  # else its task was cancelled, and another takes it up
                return attempt.outcome(), False
        try:
            found = await self.in_owner(name, function, *args)
            mine.land(found)
        except Exception as error:
            mine.crash(error)
            raise
        finally:
            self._attempts.pop(key, None)
            mine.end()
            del mine, attempt  # which refer to the error, and its traceback to this frame
        return found, True

    async def in_owner(self, name: str, function: Callable[..., Any], *args: Any) -> Any:
        """Call a function of the engine's own in an owner thread, and wait for it in an asyncio task."""
        context = copy_context()
        context.run(awaiting.set, current_task())
        body = Body(Call(name, self._threads.name, None), function, args, {}, False, context)  # noqa: FBT003
        execution = OwnedExecution(body, Channel(None, name), self._threads, self._grace, OpenCalls())
        try:
            found = await execution.pull()
        except BaseException as error:
            _forget_note(error)
            raise
        await _exhaust(execution)
        return found

    def _bind(
        self,
        loaded: LoadedPredictor,
        inputs: Mapping[str, Any] | None,
        check: bool | None,  # noqa: FBT001
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        profile = loaded.profile
        return (profile.bind if check is None else profile.binder(check))(inputs)

    def forget(self, tag: str) -> None:
        """A tag means something else from now on."""
        with self._routing:
            for text in (tag, tag[1:]):
                self._routes.pop(text, None)

    # Deciding where.

    def _wish(self, loaded: LoadedPredictor, runner: str | None) -> str | None:
        """The name of the runner that a call chooses, else its author, else its engine."""
        return (loaded.profile.runner or self._default) if runner is None else runner

    def runner_for(self, loaded: LoadedPredictor, runner: str | None) -> FullRunner:
        """The runner of a call.

        Raises:
            ValueError: there is no runner of that name.
            PluginError: the plugin that offers it could not be used.
        """
        chosen = self._runners[self._wish(loaded, runner)]
        if loaded.is_described and not chosen.is_elsewhere:  # its author's choice came to light by that description
            return self._runners[loaded.described_by]
        return chosen

    def _at_once(self, loaded: LoadedPredictor, runner: str | None) -> FullRunner | None:
        """The runner of an asyncio call where it is the engine's own and at hand, as almost always; else `None`."""
        try:
            chosen = self._runners.own[(loaded.profile.runner or self._default) if runner is None else runner]
        except (KeyError, TypeError):
            return None
        return chosen if chosen.is_at_hand and (chosen.is_elsewhere or not loaded.is_described) else None

    async def _at_hand_for(self, loaded: LoadedPredictor, runner: str | None) -> FullRunner:
        """The runner of an asyncio call, once plugins were looked for and modules imported that it needs."""
        wish = self._wish(loaded, runner)
        if self._runners.must_look(wish):
            await self._look(loaded.profile.tag, partial(self._runners.must_look, wish))
        chosen = self.runner_for(loaded, runner)
        if not chosen.is_at_hand:
            await self._shared(chosen, loaded.profile.tag, chosen.prepare)
        return chosen

    def check_runner(self, runner: str | None) -> None:
        """Refuse the name of a runner that there is not.

        Raises:
            ValueError: there is no runner of that name.
            PluginError: the plugin that offers it could not be used.
        """
        if runner is not None:
            self._runners[runner]

    def _place(self, loaded: LoadedPredictor, runner: str | None) -> Any:
        """Who runs the body for a sync caller; `None` is the caller itself, in lock-step.

        It is `FAST` where that has nothing to begin or to end either. What depends on nothing but the predictor, and on
        whether calls are observed, is kept in the predictor's `places`. A wait for the engine's loop may have to be
        refused, so that one is asked for anew.
        """
        chosen = self.runner_for(loaded, runner)
        place: Any = chosen.place(loaded, runner, is_task=False)
        if not chosen.is_constant or place is self._loop or loaded.is_described:
            return place
        if place is None and loaded.slots is None and not self._open_calls.observers:  # as in `Ending.claim`
            loaded.places[runner] = place = FAST
        else:
            loaded.places[runner] = place
        return place

    def _is_plain(self, loaded: LoadedPredictor) -> bool:
        """Whether the caller's own task steps a body with nothing to begin or to end; kept by its loaded predictor."""
        profile = loaded.profile
        has_choice = profile.runner is not None or self._default is not None or loaded.is_described
        is_plain = profile.is_async and not has_choice and loaded.slots is None and not profile.lives_on_loop
        if is_plain and not self._open_calls.observers:  # as in `Ending.claim`
            loaded.is_plain = True
            return True
        loaded.is_plain = False
        return False

    def observe(self, observer: Observer) -> None:
        """Have an observer told of every call that begins from now on; no call takes a shorter way from here on."""
        self._open_calls.observers += (observer,)  # first: what looks for a way from here on sees it
        self._loaded_predictors.clear_routes()

    # Opening.

    def _body(  # noqa: PLR0917 - as `_open`
        self,
        loaded: LoadedPredictor,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        place: BodyRunner | None,
        check: bool | None,  # noqa: FBT001
        reduction: Reduction | None = None,
    ) -> Body:
        if self._open_calls.is_closed:
            raise EngineClosedError
        profile, parent = loaded.profile, current.get()
        depth = 0 if parent is None else _depth_within(parent)
        call = Call(profile.tag, LOCK_STEP if place is None else place.name, parent, self.number, depth)
        function = None if profile.is_class else loaded.function  # an instance is asked for once a slot is held
        body = Body(call, function, args, kwargs, profile.follows, copy_context())
        body.reduction = reduction
        if place is None:
            body.slots = loaded.slots
            if profile.is_class:
                body.prepare, body.aprepare = loaded.prepare, loaded.aprepare
            return body
        is_owned = place.is_here
        if not is_owned:
            body.target = loaded.target
            if profile.by_value:
                body.by_value = True
        if place.is_elsewhere:
            body.slots, body.limit = loaded.slots_elsewhere[place.name], profile.set_up_limit
        else:
            body.slots = loaded.slots
        if loaded.is_described:
            body.bind = profile.is_opaque and (profile.is_checked if check is None else check)
        elif profile.is_class:
            body.prepare = loaded.prepare_in_thread if is_owned else loaded.prepare
            body.aprepare = loaded.aprepare
        return body

    def _open(  # noqa: PLR0917
        self,
        loaded: LoadedPredictor,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        place: BodyRunner | None,
        runner: str | None,
        check: bool | None,  # noqa: FBT001
        prefetch: int | None,
        reduction: Reduction | None = None,
    ) -> SyncExecution:
        body = self._body(loaded, args, kwargs, place, check, reduction)
        if place is None:
            hand_over = _refuse_inline if self._is_kept_by_caller(runner) else self._hand_over
            return InlineExecution(body, hand_over, self._grace, self._open_calls)
        return OwnedExecution(body, place.open(body, prefetch), place, self._grace, self._open_calls)

    def _aopen(  # noqa: PLR0917
        self,
        loaded: LoadedPredictor,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        place: BodyRunner | None,
        runner: str | None,
        check: bool | None,  # noqa: FBT001
        prefetch: int | None,
        reduction: Reduction | None = None,
        *,
        is_closed_at_exit: bool = True,
    ) -> Any:
        body = self._body(loaded, args, kwargs, place, check, reduction)
        if place is None:
            hand_over = None if self.runner_for(loaded, runner).stays_with_caller else self._hand_over
            execution = TaskExecution(
                body, hand_over, self._grace, self._open_calls, is_closed_at_exit=is_closed_at_exit
            )
            return Handle(execution) if is_closed_at_exit else execution
        return OwnedExecution(body, place.open(body, prefetch), place, self._grace, self._open_calls)

    def _is_kept_by_caller(self, runner: str | None) -> bool:
        """Whether the caller asked by name to step a body itself, whatever it turns out to be."""
        return runner is not None and self._runners[runner].stays_with_caller

    def _hand_over(self, body: Body, produced: Any, kind: str) -> OwnedExecution:
        """Go on with what a body produced in the other colour than its own, with an owner of that colour.

        It is a part of the call that is open already, and so is listed nowhere.
        """
        channel = Channel(None, body.call.tag)
        handed_over = OwnedExecution(body, channel, None, self._grace, OpenCalls())
        handed_over.begin()
        try:
            if kind is ITERATOR:
                self._threads.hand_over(body, channel, produced, 0.0)
            else:
                self._loop.refuse_to_wait(body.call.tag)
                self._loop.hand_over(body, channel, produced, 0.0)
        except BaseException:
            if channel.claim("failed"):
                handed_over.end()
            dispose(produced)
            raise
        return handed_over

    # Creating.

    async def _acreate_here(self, body: Body, reducer: Reducer, started: float, errors: Errors) -> Prediction:
        """`acreate` in its caller's task, of what an async function produced there."""
        execution = TaskExecution(body, self._hand_over, self._grace, self._open_calls, is_closed_at_exit=False)
        reduction = Reduction(reducer)
        try:
            await execution.adrain(reduction)
        except BaseException as error:
            return _reported(error, execution, reduction, started, errors)
        return _reduced(execution, reduction, started)

    def _create(  # noqa: PLR0917
        self,
        loaded: LoadedPredictor,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        place: Any,
        runner: str | None,
        check: bool | None,  # noqa: FBT001
        reducer: Reducer,
        errors: Errors,
    ) -> Prediction:
        """`create` wherever the fast path does not apply: with slots, set-up, or an owner elsewhere."""
        reduction = Reduction(reducer, loaded.profile.tag)
        kept = reduction if place is not None and reducer in _KEPT_BY_OWNERS else None
        execution = self._open(loaded, args, kwargs, place, runner, check, None, kept)
        started = perf_counter()
        try:
            execution.drain(reduction)
        except BaseException as error:
            return _reported(error, execution, reduction, started, errors)
        return _reduced(execution, reduction, started)

    async def _acreate(  # noqa: PLR0917
        self,
        loaded: LoadedPredictor,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        runner: str | None,
        check: bool | None,  # noqa: FBT001
        reducer: Reducer,
        errors: Errors,
    ) -> Prediction:
        """`acreate` wherever the fast path does not apply."""
        chosen = self._at_once(loaded, runner) or await self._at_hand_for(loaded, runner)
        place = chosen.place(loaded, runner, is_task=True)
        reduction = Reduction(reducer, loaded.profile.tag)
        kept = reduction if place is not None and reducer in _KEPT_BY_OWNERS else None
        execution = self._aopen(loaded, args, kwargs, place, runner, check, None, kept, is_closed_at_exit=False)
        started = perf_counter()
        try:
            await execution.adrain(reduction)
        except BaseException as error:
            return _reported(error, execution, reduction, started, errors)
        return _reduced(execution, reduction, started)

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
            hand_over = _refuse_inline if self._is_kept_by_caller(runner) else self._hand_over
            execution = InlineExecution(body, hand_over, self._grace, self._open_calls)
            try:
                execution.drain(reduction)
            except BaseException as error:
                return _reported(error, execution, reduction, started, errors)
            return _reduced(execution, reduction, started)
        failure: BaseException | None = None
        try:
            context.run(_exhaust_into, produced, reduction)
        except _ReducerFailure as carrier:
            failure = carrier.error
        except BaseException as error:
            return _failed(error, call, reduction, started, errors)
        if failure is not None:
            try:
                raise failure  # outside of the handler: what carried it would be its context, and both a cycle
            finally:
                del failure  # or this frame and the exception keep each other alive
        call.parent = None
        elapsed = (perf_counter() - started) * 1000.0
        return Prediction(call, _finish(reduction, call), max(0, reduction.count - 1), elapsed)

    # Life.

    def __reduce__(self) -> Any:
        """Refuse to travel."""
        raise TypeError("an engine's predictions cannot be pickled: make an engine where it is needed")

    @property
    def open_calls(self) -> tuple[Execution, ...]:
        """The calls that have begun and not ended."""
        return self._open_calls.executions()

    def close(self) -> None:
        """Refuse new calls and end every open one."""
        self._open_calls.is_closed = True
        with self._routing:
            self._routes.clear()
        for each in self.open_calls:
            each.stop("closed", each.closed_error())

    def after_fork(self) -> None:
        """End the parent's streams, and wait for no thread of the parent's."""
        self._open_calls.after_fork()
        self._routing = threading.RLock()
        self._attempts = {}


class _Attempt:
    """What one asyncio task has done in an owner thread, and what others wait for.

    Attributes:
        is_decided: whether it came to an end of its own, and was not left by its task.
    """

    __slots__ = ("_error", "_found", "_is_over", "_parked", "_traceback", "is_decided")

    def __init__(self) -> None:
        self._parked: deque[Wake] = deque()
        self._is_over = self.is_decided = False
        self._found: Any = None
        self._error: Exception | None = None
        self._traceback: TracebackType | None = None

    async def wait(self) -> None:
        while not self._is_over:
            await park_task(self._parked, lambda: self._is_over)

    def land(self, found: Any) -> None:
        self._found, self.is_decided = found, True

    def crash(self, error: Exception) -> None:
        self._error, self._traceback, self.is_decided = error, error.__traceback__, True

    def end(self) -> None:
        self._is_over = True
        wake_all(self._parked)

    def outcome(self) -> Any:
        error = self._error
        if error is None:
            return self._found
        try:
            raise error.with_traceback(self._traceback)  # it does not grow with every task that waited
        finally:
            del error, self


def _title_of(tag: Any) -> str:
    """What a call is known by before it is known what it calls."""
    return tag_of(tag) if isinstance(tag, str) else tag.tag if isinstance(tag, Predictor) else name_of(tag)


def _depth_within(parent: Call) -> int:
    depth = parent.depth + 1
    if depth > DEEPEST:
        chain: list[str] = []
        call: Call | None = parent
        while call is not None and len(chain) < 3:  # noqa: PLR2004 - enough to see what repeats
            chain.append(call.tag)
            call = call.parent
        raise NestingError(
            f"predictors call each other {depth} deep ({' in '.join(chain)} in ...), which is more than {DEEPEST}: end "
            "the recursion, or loop inside one predictor",
            parent.tag,
        )
    return depth


def _as_of_now(inputs: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    """Inputs to be bound later: whoever changes their mapping meanwhile changes nothing."""
    return dict(inputs) if isinstance(inputs, dict) else inputs


def _check_errors(errors: object) -> None:
    if errors not in {"raise", "return"}:
        raise ValueError(f"errors must be 'raise' or 'return', not {quote(errors)}")


def _check_prefetch(prefetch: object) -> None:
    if prefetch is not None and (not isinstance(prefetch, int) or isinstance(prefetch, bool) or prefetch < 0):
        raise ValueError(f"prefetch must be a whole number of partials from 0, or None, not {quote(prefetch)}")


def _refuse_inline(body: Body, produced: Any, kind: str) -> OwnedExecution:
    dispose(produced)
    raise ValueError(
        f"{body.call.tag} produced an {kind}, which cannot run inline in sync code: leave runner out (it then runs on "
        "the engine's own loop), or call acreate/astream from asyncio"
    )


class _ReducerFailure(BaseException):
    """Carries what a reducer raised past the handling of what the body raised."""

    def __init__(self, error: BaseException) -> None:
        super().__init__(error)
        self.error = error


def _exhaust_into(iterator: Any, reduction: Reduction) -> None:
    """Reduce a sync iterator to its end; the hot loop of `create` over a generator."""
    if reduction.reducer is LAST:
        seen, value = 0, reduction.value
        try:
            for value in iterator:  # noqa: B007 - the last one is the result
                seen += 1
        finally:
            reduction.value, reduction.count = value, seen
            _close_open(iterator)
        return
    if reduction.reducer is RETURNED:
        reduction.value = _returned_of(iterator, reduction)
        return
    try:
        for value in iterator:
            try:
                reduction.add(value)
            except BaseException as error:
                raise _ReducerFailure(error) from None
    finally:
        _close_open(iterator)


def _close_open(iterator: Any) -> None:
    """Finalise a generator an interrupt or a reducer's error left open; one that ended is not touched."""
    if getattr(iterator, "gi_frame", None) is not None:
        iterator.close()


def _returned_of(iterator: Any, reduction: Reduction) -> Any:
    step = iterator.__next__
    try:
        while True:
            step()
            reduction.count += 1
    except StopIteration as stop:
        return stop.value
    finally:
        _close_open(iterator)


async def _exhaust(execution: AsyncExecution) -> None:
    try:
        await execution.pull()
    except StopAsyncIteration:
        return


def _finish(reduction: Reduction, call: Call) -> Any:
    try:
        return reduction.reducer.finish(reduction.value)
    except NoPartialsError as error:
        if error.tag:
            raise
        raise NoPartialsError(call.tag, error.reducer) from None


def _reduced(execution: Execution, reduction: Reduction, started: float) -> Prediction:
    reducer, value, count = reduction.reducer, reduction.value, reduction.count
    if reducer is RETURNED:
        reduction.value = execution.ending.returned
    if reducer is not LAST or value is EMPTY:
        value = _finish(reduction, execution.call)
    seconds = reduction.elapsed or perf_counter() - started  # on the loop nobody looks at the clock without a partial
    return Prediction(execution.call, value, count and count - 1, seconds * 1000.0)


def _reported(
    error: BaseException, execution: Execution, reduction: Reduction, started: float, errors: Errors
) -> Prediction:
    """Raise what ended an execution, or give it as a prediction where it came from the body and that was asked for."""
    is_bodys = execution.ending.state == "failed" and execution.is_started
    is_bodys = is_bodys and not isinstance(error, KeyboardInterrupt)
    try:
        if errors == "raise" or not is_bodys:
            raise error
        return _carrying(error, execution.call, reduction, started)
    finally:
        del error, execution


def _failed(
    error: BaseException, call: Call, reduction: Reduction | None, started: float, errors: Errors
) -> Prediction:
    """Raise what a body raised that ran in its caller's thread without an execution, or give it as a prediction."""
    call.parent = None
    is_interrupt = isinstance(error, KeyboardInterrupt) and is_main_thread()
    failure = error if is_interrupt else explain(error, call, reduction.count if reduction else 0)
    try:
        if errors == "raise" or is_interrupt:
            raise failure
        return _carrying(failure, call, reduction, started)
    finally:
        del error, failure


def _carrying(error: BaseException, call: Call, reduction: Reduction | None, started: float) -> Prediction:
    value, index = None, 0
    trim(error)  # it passed through frames of ours on its way here, which say nothing to whoever reads its text
    if reduction is not None and reduction.count:
        index = reduction.count - 1
        try:
            value = reduction.reducer.finish(reduction.value)
        except Exception:
            value = None
    return Prediction(call, value, index, (perf_counter() - started) * 1000.0, error)


def _forget_note(error: BaseException) -> None:
    """A failed import is no prediction: our note on it would mislead."""
    notes = getattr(error, "__notes__", None)
    if isinstance(notes, list) and notes:
        notes.pop()
