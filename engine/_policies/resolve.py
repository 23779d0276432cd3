"""What a call's tag stands for: the way from a tag, a record or a plain callable to a loaded predictor.

A predictor is imported here at its first use, or described by a runner that is elsewhere, so that it need not be. Sync
code does either in its own thread; for asyncio an owner thread does what would block the event loop.
"""

from __future__ import annotations

import sys
import threading
from functools import partial
from typing import TYPE_CHECKING, Any

from engine._errors import EngineClosedError, EngineError, InvalidTagError, PluginError, say
from engine._fork import renew_after_fork
from engine._predictors.failures import trim
from engine._predictors.predictor import Predictor, name_of, tag_of
from engine._records import traceback_of

if TYPE_CHECKING:
    from engine._loaded import LoadedPredictor, LoadedPredictors
    from engine._policies.owner_work import OwnerWork
    from engine._policies.placement import Placement
    from engine._registry.registry import Registry
    from engine._registry.runners import Runners
    from engine.runners.base import FullRunner, OpenCalls


class Resolver:
    """Finds loaded predictors for the calls of one engine.

    Args:
        registry: what tags stand for.
        loaded_predictors: what is ready in this process.
        runners: those there are.
        placement: knows the runner that a call will choose.
        work: does what would block an event loop.
        open_calls: tells whether the engine is closed.

    Attributes:
        routes: tags that were resolved before, with and without their `@`, straight to their loaded predictors. To be
            read without a lock.
        placement: as given.
    """

    def __init__(  # noqa: PLR0917 - made in one place, by the engine that owns all of it
        self,
        registry: Registry,
        loaded_predictors: LoadedPredictors,
        runners: Runners,
        placement: Placement,
        work: OwnerWork,
        open_calls: OpenCalls,
    ) -> None:
        """Know no route yet."""
        self._registry = registry
        self._loaded_predictors = loaded_predictors
        self._runners = runners
        self.placement = placement
        self._work = work
        self._open_calls = open_calls
        self.routes: dict[str, LoadedPredictor] = {}
        self.after_fork()
        renew_after_fork(self)

    # In the caller's thread, which may wait.

    def resolve(self, tag: Any, runner: str | None = None) -> LoadedPredictor:
        """The loaded predictor of a call, imported or described in this thread if it was not.

        Args:
            tag: what is called: a tag, a record, or a callable.
            runner: the runner that the caller names.

        Raises:
            EngineError: there is no such predictor, or it cannot be used.
        """
        if type(tag) is str:
            known = self.routes.get(tag)
            if known is not None:
                return known
        record = self._record(tag)
        return self._given(tag) if record is None else self.ready(tag, record, runner)

    def undescribed(self, tag: Any, runner: str | None) -> Predictor | None:
        """The record of a predictor that a runner elsewhere is still to describe; `None` where none has to."""
        record = self._record(tag)
        if record is None or not self._is_unimported(record, runner):
            return None
        return None if self._describer(record, runner) is None else record

    def ready(self, tag: Any, record: Predictor, runner: str | None) -> LoadedPredictor:
        """The loaded predictor of the record that was found at the call: imported here, or described by a runner.

        Raises:
            EngineClosedError: the engine was closed meanwhile.
            EngineError: it cannot be used.
        """
        is_tag = isinstance(tag, str)
        describer = self._describer(record, runner)
        if describer is not None:
            loaded = self._loaded_predictors.described(record) or self._described(record, describer, is_tag)
            if loaded.profile.by_value:  # only its mark tells so: what is here is to be sent, and so is imported
                return self.ready(tag, record, runner)
        elif is_tag:
            loaded = self._registered(record)
            self._route(tag, record, loaded)
        else:
            loaded = self._loaded_predictors.of(record)
        if self._open_calls.is_closed:
            raise EngineClosedError
        return loaded

    def _record(self, tag: Any, *, may_look: bool = True) -> Predictor | None:
        """The record of what is called; `None` for a callable."""
        if self._open_calls.is_closed:
            raise EngineClosedError
        if isinstance(tag, str):
            return self._registry[tag_of(tag)] if may_look else self._registry.known(tag)
        return tag if isinstance(tag, Predictor) else None

    def _given(self, tag: Any) -> LoadedPredictor:
        """The loaded predictor of a callable."""
        if not callable(tag) and not callable(getattr(tag, "predict", None)):
            raise InvalidTagError(tag)
        return self._loaded_predictors.of_object(tag)

    def _registered(self, record: Predictor) -> LoadedPredictor:
        """Import what is registered; what that raises, even SystemExit, is the failure of the plugin it is from."""
        try:
            return self._loaded_predictors.of(record)
        except (EngineError, KeyboardInterrupt):
            raise
        except BaseException as error:
            trim(error)
            reason, source = f"{type(error).__name__}: {say(error)}", self._registry.source_of(record)
            raise PluginError(record.tag, source, reason, traceback_of(error)) from error

    def _describer(self, record: Predictor, runner: str | None) -> FullRunner | None:
        """The runner that describes a predictor which this process need not import; `None` where it has to.

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
        chosen = self.placement.runner_foreseen(record, runner)
        return chosen if chosen.is_elsewhere and chosen.describe is not None else None

    def _described(self, record: Predictor, describer: FullRunner, is_registered: bool) -> LoadedPredictor:  # noqa: FBT001
        """Have a runner describe a predictor, and keep what it tells."""
        describe: Any = describer.describe
        try:
            told = describe(record.tag, record.target)
        except PluginError as error:
            source = self._registry.source_of(record) if is_registered else ""
            raise PluginError(record.tag, source, error.reason, error.traceback) from None
        return self._loaded_predictors.describe(record, told, describer.name)

    def _is_unimported(self, record: Predictor, runner: str | None) -> bool:
        """Whether a predictor is still to be imported here, or described by a runner."""
        if not isinstance(record.target, str) or self._loaded_predictors.find(record) is not None:
            return False
        return self._loaded_predictors.described(record) is None or self._describer(record, runner) is None

    # On an event loop, which nothing here blocks.

    def resolve_now(self, tag: Any, runner: str | None) -> tuple[LoadedPredictor | None, Predictor | None]:
        """What is found without blocking an event loop: the loaded predictor, or else the record it will be made from.

        Neither, where plugins have to be looked for first.

        Args:
            tag: what is called; as a tag, none that has a route.
            runner: the runner that the caller names.
        """
        if self._must_look(tag, runner):
            return None, None
        self.placement.check(runner)
        record = self._record(tag, may_look=False)
        if record is not None and (self._must_look_for(record, runner) or self._is_unimported(record, runner)):
            return None, record
        found = self._given(tag) if record is None else self.ready(tag, record, runner)
        # Only now its author's choice of a runner is known.
        must_look = self._runners.must_look(self.placement.name_for(found, runner))
        return (None, record) if must_look else (found, record)

    async def aresolve(self, tag: Any, runner: str | None = None, record: Predictor | None = None) -> LoadedPredictor:
        """The loaded predictor of a call; owner threads look for plugins, import, and have workers describe.

        Args:
            tag: what is called.
            runner: the runner that the caller names.
            record: what the tag stood for at the call, if that is known.

        Raises:
            EngineError: there is no such predictor, or it cannot be used.
        """
        if self._open_calls.is_closed:
            raise EngineClosedError
        if record is None and self._must_look(tag, runner):
            await self._work.look(tag_shown(tag), partial(self._must_look, tag, runner))
        self.placement.check(runner)
        record = record or self._record(tag, may_look=False)
        if record is not None and self._must_look_for(record, runner):
            await self._work.look(record.tag, partial(self._must_look_for, record, runner))
        if record is None:
            found = self._given(tag)
        elif self._is_unimported(record, runner):
            found = await self._aready(tag, record, runner)
        else:
            found = self.ready(tag, record, runner)
        name = self.placement.name_for(found, runner)
        if self._runners.must_look(name):
            await self._work.look(found.profile.tag, partial(self._runners.must_look, name))
        if self._open_calls.is_closed:  # before this task went on
            raise EngineClosedError
        return found

    async def _aready(self, tag: Any, record: Predictor, runner: str | None) -> LoadedPredictor:
        """Have a predictor imported, or described by a runner, in an owner thread.

        An import is a single-flight, for a thread for each task would slow their loop. A description is not: whether a
        wait for a worker is in vain depends on what the task that waits holds.
        """
        if self._describer(record, runner) is not None:
            described: LoadedPredictor = await self._work.run(record.tag, self.ready, tag, record, runner)
            return described
        key = record, isinstance(tag, str)
        imported: LoadedPredictor
        imported, _ = await self._work.run_once(key, record.tag, self.ready, tag, record, runner)
        return imported

    def _must_look(self, tag: Any, runner: str | None) -> bool:
        """Whether plugins have to be looked for because of a tag, of the caller's runner or of the engine's own."""
        if self._open_calls.is_closed:
            raise EngineClosedError
        if isinstance(tag, str) and self._registry.must_look(tag):
            return True
        return self._runners.must_look(runner) or self._runners.must_look(self.placement.default)

    def _must_look_for(self, record: Predictor, runner: str | None) -> bool:
        """Whether plugins have to be looked for because of the runner that a call of a record will choose."""
        return self._runners.must_look(self.placement.name_foreseen(record, runner))

    # Routes.

    def _route(self, tag: str, record: Predictor, loaded: LoadedPredictor) -> None:
        """Have later calls find it at once, unless its tag was given to another, or the engine closed, meanwhile."""
        with self._routing:  # as for `evict` and `close`: a route that is added after either would stay
            if not self._open_calls.is_closed and self._registry.stands_for(record):
                self.routes[tag] = loaded

    def evict(self, tag: str) -> None:
        """Drop the routes of a tag, which stands for something else from now on."""
        with self._routing:
            for text in (tag, tag[1:]):
                self.routes.pop(text, None)

    def close(self) -> None:
        """Drop every route; the engine was closed before, so none is added."""
        with self._routing:
            self.routes.clear()

    def after_fork(self) -> None:
        """Make the lock, for a thread that holds the old one may be gone."""
        # Held to change the routes; reentrant, for a collector may run a finaliser that changes them, too.
        self._routing = threading.RLock()


def tag_shown(tag: Any) -> str:
    """What a call is known by before it is known what it calls."""
    return tag_of(tag) if isinstance(tag, str) else tag.tag if isinstance(tag, Predictor) else name_of(tag)
