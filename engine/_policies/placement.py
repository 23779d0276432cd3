"""Which runner serves a call, and who runs its body there.

A caller's choice goes before its author's, and that before the engine's. What depends on nothing but the predictor is
decided once and kept with it, in `LoadedPredictor.places` and `is_plain`, until an observer comes.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from engine._loaded import LoadedPredictor, LoadedPredictors
    from engine._policies.owner_work import OwnerWork
    from engine._predictors.predictor import Predictor
    from engine._registry.runners import Runners
    from engine.runners.base import FullRunner, Observer, OpenCalls
    from engine.runners.loop import LoopRunner

FAST: Final = "the caller's own thread, with nothing to begin or to end"


class Placement:
    """Chooses runners for the calls of one engine.

    Args:
        runners: those there are.
        default: the name of the engine's own choice; `None` for the caller, or an owner of the body's colour.
        loop: the engine's loop, a wait for which may have to be refused.
        work: does what would block an event loop.
        loaded_predictors: what is known of predictors here.
        open_calls: tells whether calls are observed.

    Attributes:
        default: as given.
    """

    def __init__(  # noqa: PLR0917 - made in one place, by the engine that owns all of it
        self,
        runners: Runners,
        default: str | None,
        loop: LoopRunner,
        work: OwnerWork,
        loaded_predictors: LoadedPredictors,
        open_calls: OpenCalls,
    ) -> None:
        self._runners = runners
        self.default = default
        self._loop = loop
        self._work = work
        self._loaded_predictors = loaded_predictors
        self._open_calls = open_calls

    # Which runner.

    def name_for(self, loaded: LoadedPredictor, runner: str | None) -> str | None:
        """The name of a call's runner: the caller's choice, else the author's, else the engine's."""
        return (loaded.profile.runner or self.default) if runner is None else runner

    def name_foreseen(self, record: Predictor, runner: str | None) -> str | None:
        """The name of a call's runner, as far as it is known before the predictor is imported here."""
        if runner is not None:
            return runner
        described = self._loaded_predictors.described(record)
        return record.runner or (described and described.profile.runner) or self.default

    def runner_for(self, loaded: LoadedPredictor, runner: str | None) -> FullRunner:
        """The runner of a call.

        Raises:
            ValueError: there is no runner of that name.
            PluginError: the plugin that offers it could not be used.
        """
        chosen = self._runners[self.name_for(loaded, runner)]
        if loaded.is_described and not chosen.is_elsewhere:  # its author's choice came to light by that description
            return self._runners[loaded.described_by]
        return chosen

    def runner_foreseen(self, record: Predictor, runner: str | None) -> FullRunner:
        """The runner of a call, as far as it is known before the predictor is imported here.

        Raises:
            ValueError: there is no runner of that name.
            PluginError: the plugin that offers it could not be used.
        """
        return self._runners[self.name_foreseen(record, runner)]

    def check(self, runner: str | None) -> None:
        """Refuse the name of a runner that there is not.

        Raises:
            ValueError: there is no runner of that name.
            PluginError: the plugin that offers it could not be used.
        """
        if runner is not None:
            self._runners[runner]

    def stays_with_caller(self, runner: str) -> bool:
        """Whether the runner that a caller names has it step a body itself, whatever that turns out to be."""
        return self._runners[runner].stays_with_caller

    # On an event loop.

    def ready_runner(self, loaded: LoadedPredictor, runner: str | None) -> FullRunner | None:
        """The runner of an asyncio call where it is the engine's own and needs no import; else `None`."""
        try:
            chosen = self._runners.own[(loaded.profile.runner or self.default) if runner is None else runner]
        except (KeyError, TypeError):
            return None
        return chosen if chosen.is_ready and (chosen.is_elsewhere or not loaded.is_described) else None

    async def prepared_runner(self, loaded: LoadedPredictor, runner: str | None) -> FullRunner:
        """The runner of an asyncio call, once plugins were looked for and modules imported that it needs."""
        name = self.name_for(loaded, runner)
        if self._runners.must_look(name):
            await self._work.look(loaded.profile.tag, partial(self._runners.must_look, name))
        chosen = self.runner_for(loaded, runner)
        if not chosen.is_ready:
            await self._work.run_once(chosen, loaded.profile.tag, chosen.prepare)
        return chosen

    def must_look(self, loaded: LoadedPredictor, runner: str | None) -> bool:
        """Whether plugins have to be looked for because of a call's runner; that would block an event loop."""
        return self._runners.must_look(self.name_for(loaded, runner))

    # Who runs the body.

    def place(self, loaded: LoadedPredictor, runner: str | None) -> Any:
        """Who runs a body for a sync caller; `None` is the caller itself, in lock-step.

        It is `FAST` where that has nothing to begin or to end either. A wait for the engine's loop may have to be
        refused, so that one is decided at each call.
        """
        chosen = self.runner_for(loaded, runner)
        place: Any = chosen.place(loaded, runner, is_task=False)
        if not chosen.is_constant or place is self._loop or loaded.is_described:
            return place
        # call-free store: decides that no observer has come. One that comes after the test clears what is stored here.
        if place is None and loaded.slots is None and not self._open_calls.observers:
            loaded.places[runner] = place = FAST
        else:
            loaded.places[runner] = place
        return place

    def is_plain(self, loaded: LoadedPredictor) -> bool:
        """Whether a caller's own task steps a body with nothing to begin or to end."""
        profile = loaded.profile
        has_choice = profile.runner is not None or self.default is not None or loaded.is_described
        is_plain = profile.is_async and not has_choice and loaded.slots is None and not profile.lives_on_loop
        # call-free store: decides that no observer has come, as in `place`.
        if is_plain and not self._open_calls.observers:
            loaded.is_plain = True
            return True
        loaded.is_plain = False
        return False

    def observe(self, observer: Observer) -> None:
        """Have an observer told of every call that begins from now on, which then takes no fast path."""
        self._open_calls.observers += (observer,)  # before the places are cleared: what decides one then sees it
        self._loaded_predictors.clear_places()
