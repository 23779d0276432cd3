"""A runner of a plugin, with what it leaves out filled in.

It is looked at once, when an engine first meets it: what `Runner` lets it leave out is decided here, and nowhere else
is asked what a runner can do. What it raises outside of an owner is attributed to it here, too.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from engine._errors import EngineError, PluginError, quote, say, warn
from engine._records import traceback_of
from engine.runners.base import Runner, open_here, refuse_in_use

if TYPE_CHECKING:
    from collections.abc import Callable

    from engine.runners.base import BodyRunner, FullRunner, InOwner, Loaded

_DESCRIBED: Final = frozenset({"parameters", "signature", "first_line", "is", "options"})  # `engine.runners.describe`


class AdaptedRunner:
    """A runner of a plugin as policies see it: a `FullRunner` that gives itself as the `BodyRunner`.

    Args:
        runner: what was offered.
        default: sets predictors up in this process, where the runner leaves that to the engine.
        grace: seconds that an `unload` waits for calls.

    Attributes:
        open: makes the consumer's end of a call.
        describe: tells of a predictor that this process has not imported; `None` where it has to be.

    Raises:
        TypeError: something that the runner may have is there and cannot be called.
        Exception: what the runner raises when it is looked at.
    """

    is_here = False
    is_constant = False  # its `place` may give another answer at the next call
    stays_with_caller = False
    is_ready = True

    def __init__(self, runner: Runner, default: FullRunner, grace: float) -> None:
        """Read what it has."""
        self.name = runner.name
        self.start = runner.start
        self.is_elsewhere = bool(getattr(runner, "is_elsewhere", False))
        self._runner = runner
        self._default = default
        self._grace = grace
        self.open: Callable[[Any, int | None], Any] = _offered(runner, "open") or open_here
        self._place = _offered(runner, "place")
        describe = _offered(runner, "describe")
        self.describe = None if describe is None else partial(self._described, describe)
        self._load, self._unload = _offered(runner, "load"), _offered(runner, "unload")
        self._loaded = _offered(runner, "loaded")
        self._close = _offered(runner, "close")

    def prepare(self) -> None:
        """Do nothing: it is imported already."""

    def place(self, loaded: Loaded, runner: str | None, *, is_task: bool) -> BodyRunner | None:
        """Who runs a body: what the runner says, itself if it says nothing.

        Raises:
            TypeError: what it says is no runner.
            EngineError: only another process has imported the predictor, and this one is to run it.
        """
        found = self._runner if self._place is None else self._place(loaded, runner, is_task=is_task)
        if found is self._runner:
            return self
        if found is not None and not isinstance(found, Runner):
            raise TypeError(f"place() of the runner {quote(self.name)} gives a runner or None, not {quote(found)}")
        placed = None if found is None else AdaptedRunner(found, self._default, self._grace)
        if loaded.is_described and (placed is None or not placed.is_elsewhere):
            raise EngineError(
                f"the runner {quote(self.name)} describes {loaded.profile.tag}, so that it is not imported here, and "
                "then has this process run it: let its place() give a runner that is elsewhere"
            )
        return placed

    def _described(self, describe: Callable[[str, str], Any], tag: str, text: str) -> Mapping[str, Any]:
        """What the runner's `describe` gives.

        Raises:
            PluginError: it failed, or gives what is no description.
        """
        try:
            told = describe(tag, text)
        except (EngineError, KeyboardInterrupt):
            raise
        except BaseException as error:
            reason = f"the runner {quote(self.name)} could not describe it: {type(error).__name__}: {say(error)}"
            raise PluginError(tag, "", reason, traceback_of(error)) from error
        if not isinstance(told, Mapping) or not told.keys() >= _DESCRIBED:
            reason = f"describe() of the runner {quote(self.name)} gives what engine.runners.describe gave, not "
            raise PluginError(tag, "", reason + quote(told))
        return told

    def load(self, loaded: Loaded) -> None:
        """Make a predictor ready where the runner does it, or in this process; elsewhere the first call may do it."""
        if self._load is not None:
            self._load(loaded)
        elif not self.is_elsewhere:
            self._default.load(loaded)

    async def aload(self, loaded: Loaded, in_owner: InOwner) -> None:
        """Make a predictor ready, from an asyncio task."""
        if self._load is not None:
            await in_owner(loaded.profile.tag, self._load, loaded)
        elif not self.is_elsewhere:
            await self._default.aload(loaded, in_owner)

    def unload(self, loaded: Loaded) -> None:
        """Tear a class down where the runner does it, or in this process.

        Raises:
            EngineError: a call still uses it after the grace.
        """
        if self._unload is not None:
            slots = loaded.slots_elsewhere[self.name] if self.is_elsewhere else loaded.slots
            refuse_in_use(loaded.profile.tag, slots, self._grace)
            self._unload(loaded)
        elif not self.is_elsewhere:
            self._default.unload(loaded)

    def loaded(self) -> tuple[str, ...]:
        """Tags that the runner has ready; a failure is logged, and leaves those of other runners."""
        try:
            return () if self._loaded is None else tuple(self._loaded())
        except Exception as error:
            warn(f"the runner {quote(self.name)}: error in loaded()", error)
            return ()

    @property
    def is_started(self) -> bool:
        """Whether it is still to be closed."""
        return self._close is not None

    def close_soon(self) -> None:
        """Do nothing: the runner's own `close` may wait."""

    def close(self, grace: float) -> list[BaseException]:  # noqa: ARG002 - the runner decides how long it waits
        """Close the runner, once; give what it raised."""
        close, self._close = self._close, None
        try:
            if close is not None:
                close()
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            return [error]
        return []


def _offered(runner: Runner, name: str) -> Any:
    """What a runner has under a name that it may leave out; `None` where it does."""
    found = getattr(runner, name, None)
    if found is not None and not callable(found):
        raise TypeError(f"{name} of the runner {quote(runner.name)} cannot be called: it is {quote(found)}")
    return found
