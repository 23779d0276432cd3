"""The runners of one engine, by name: its own, and what plugins offer.

Policies ask here, and name none themselves. Plugins are looked for once a name is asked for that is none of the
engine's own. Nothing here decides where a body runs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from engine._errors import PluginError, quote, say, warn
from engine._fork import renew_after_fork
from engine._records import traceback_of
from engine.runners.adapted import AdaptedRunner
from engine.runners.base import Runner

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from engine._registry.registry import Registry
    from engine.runners.base import FullRunner


class Runners:
    """Which runners there are.

    Args:
        own: the engine's own, by name; the one under `None` serves calls that choose none.
        registry: where plugins offer theirs.
        grace: seconds that an `unload` waits for calls.

    Attributes:
        own: the engine's own, which policies read first.
    """

    def __init__(self, own: Mapping[str | None, FullRunner], registry: Registry, grace: float) -> None:
        """Know the engine's own; plugins are not looked for yet."""
        self.own = own
        self._registry = registry
        self._grace = grace
        # Those of plugins that were asked for, by `id`: each is looked at once, and closed by this engine.
        self._adapted: dict[int, tuple[object, AdaptedRunner]] = {}
        renew_after_fork(self)

    def __getitem__(self, name: str | None) -> FullRunner:
        """The runner of that name, or what serves calls that choose none.

        Raises:
            ValueError: no plugin offers it.
            PluginError: what offers it could not be used.
        """
        try:
            return self.own[name]
        except (KeyError, TypeError):
            return self._offered(name)

    def _offered(self, name: Any) -> AdaptedRunner:
        """The runner of that name that a plugin offers."""
        if isinstance(name, str):
            if self._registry.must_look_for_runner(name):  # for a sync caller; a task had them looked for before
                self._registry.look()
            found = self._registry.runners().get(name)
            if isinstance(found, Runner):
                known = self._adapted.get(id(found))
                return self._adapt(name, found) if known is None else known[1]
            problem = next((each for each in self._registry.problems if name in each.claims), None)
            if problem is not None:
                raise PluginError(name, problem.distribution, problem.reason, problem.traceback)
        raise no_runner(name, [*filter(None, self.own), *self._registry.runners()])

    def _adapt(self, name: str, runner: Runner) -> AdaptedRunner:
        """What a plugin offers as policies see it, made at its first use; of two threads one's is kept."""
        try:
            adapted = AdaptedRunner(runner, self.own[None], self._grace)
        except Exception as error:
            reason = f"{type(error).__name__}: {say(error)}"
            raise PluginError(name, self._registry.source_of_runner(name), reason, traceback_of(error)) from error
        return self._adapted.setdefault(id(runner), (runner, adapted))[1]

    def must_look(self, name: str | None) -> bool:
        """Whether plugins have to be looked for, or again, because of a name; looks for none itself."""
        return isinstance(name, str) and name not in self.own and self._registry.must_look_for_runner(name)

    @property
    def is_started(self) -> bool:
        """Whether there is something to close."""
        return any(each.is_started for each in self)

    def __iter__(self) -> Iterator[FullRunner]:
        """The engine's own, and those of plugins that were asked for."""
        yield from self.own.values()
        yield from self._met()

    def _met(self) -> tuple[AdaptedRunner, ...]:
        """The plugins' runners that were asked for."""
        return tuple(adapted for _, adapted in tuple(self._adapted.values()))

    def loaded(self) -> set[str]:
        """Tags of predictors that are ready elsewhere than in this engine's process."""
        return {tag for each in self for tag in each.loaded()}

    def close_soon(self) -> None:
        """Refuse what is new and stop what runs elsewhere, without a wait."""
        for each in self:
            each.close_soon()

    def close(self, grace: float) -> list[BaseException]:
        """End what runs elsewhere, and close what plugins offered; give what went wrong."""
        return [error for each in self for error in each.close(grace)]

    def close_offered(self) -> None:
        """Close what plugins offered, where it is not closed yet; what goes wrong is logged."""
        for each in self._met():
            for error in each.close(0.0):
                warn(f"the runner {quote(each.name)}: error in close()", error)

    def after_fork(self) -> None:
        """In a forked child, drop the plugins' runners that the parent has used: the parent closes them."""
        self._adapted = {}


def no_runner(name: object, offered: Sequence[str]) -> ValueError:
    """The error for a name that is no runner's, with the one that may have been meant."""
    from difflib import get_close_matches  # only a misspelt name needs it

    near = get_close_matches(name, offered, 1) if isinstance(name, str) else ()
    meant = f"; did you mean {near[0]!r}? The runner" if near else ": it"
    names = ", ".join(map(repr, offered))
    return ValueError(f"there is no runner {quote(name)}{meant} is one of {names}; leave it out for the default")
