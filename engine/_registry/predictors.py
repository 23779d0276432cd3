"""What `engine.predictors` is: the registry as users see it, a mapping with nothing of its inside."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from engine._predictors.predictor import Predictor

if TYPE_CHECKING:
    from collections.abc import ItemsView, Iterator, ValuesView

    from engine._registry.registry import Registry
    from engine._registry.sources import Problem


class Predictors(Mapping[str, Predictor]):
    """The predictors of one engine, by tag: a mapping in the order of tags.

    It holds what was registered and, from its first use on, what installed plugins offer; a tag is accepted with or
    without its `@`. Iteration goes over the tags there were when it began.

    Threads may share it. The first use imports installed plugins (never predictors) while other threads that need the
    registry wait; how long an import takes is not bounded. `register` does not wait for it, and from then on nothing
    but a tag that is not there does. On an event loop's thread that would block the loop: `await` a call, or `aload`,
    first, which look in a thread of the engine's.
    """

    __slots__ = ("__weakref__", "_registry")

    def __init__(self, registry: Registry) -> None:
        """Show a registry."""
        self._registry = registry

    def __getitem__(self, tag: str) -> Predictor:
        """The predictor registered under `tag`; see `retrieve`."""
        return self._registry[tag]

    def retrieve(self, tag: str) -> Predictor:
        """Give the predictor registered under a tag, without importing it.

        For a tag that is not there plugins are looked for again, if `sys.path` or one of its folders changed since, or
        if it is time to try again what failed: 1 s after its first failure, then twice as long each time, at most 60 s.

        Args:
            tag: `@owner/name`, or the same without its `@`.

        Raises:
            InvalidTagError: the text is not of that form.
            PredictorNotFoundError: nothing is registered under it; tags that look like it are named.
            DuplicatePredictorError: two sources claim it.
            PluginError: it belongs to a plugin or an entry point that could not be used.
        """
        return self._registry[tag]

    def __contains__(self, tag: object) -> bool:
        """Whether `retrieve` would give a predictor; never raises."""
        return tag in self._registry

    def __iter__(self) -> Iterator[str]:
        """The tags there are now, in order."""
        return iter(self._registry)

    def __len__(self) -> int:
        """How many predictors there are."""
        return len(self._registry)

    def items(self) -> ItemsView[str, Predictor]:
        """The tags and their predictors as they are now: one that is unregistered meanwhile stays among them."""
        return self._registry.items()

    def values(self) -> ValuesView[Predictor]:
        """The predictors as they are now, in the order of their tags."""
        return self._registry.values()

    def __eq__(self, other: object) -> bool:
        """Whether it shows the same registry: comparing contents would import plugins."""
        return isinstance(other, Predictors) and self._registry is other._registry

    def __hash__(self) -> int:
        """Of the registry."""
        return hash(self._registry)

    def __repr__(self) -> str:
        """How many predictors there are, where that is known without looking for plugins."""
        return repr(self._registry)

    def __reduce__(self) -> Any:
        """Refuse to travel."""
        return self._registry.__reduce__()

    @property
    def problems(self) -> tuple[Problem, ...]:
        """What could not be used: plugins, entry points, and tags that two sources claim."""
        return self._registry.problems

    def source(self, tag: str) -> str:
        """Where a predictor comes from, such as `predictor-engine-muna 0.1 (entry point)`.

        Args:
            tag: `@owner/name`.

        Raises:
            EngineError: as `retrieve` does.
        """
        return self._registry.source(tag)

    def register(self, marked_or_tag: Any, target: Any = None, *, replace: bool = False, **options: Any) -> Predictor:
        """Add a predictor.

        The same module and qualified name under the same tag replaces what was registered before, so that the cells of
        a notebook may be run again; anything else needs `replace=True`, which also stands above plugins found later.

        Args:
            marked_or_tag: a function or class marked with `@predictor`, a `Predictor`, or the tag of `target`.
            target: with a tag: a function, a class, an object with `predict`, or `"module:name"`.
            replace: whether whatever has the tag now is replaced.
            **options: see `Predictor`; they go before those of a mark.

        Returns:
            The record that is now registered.

        Raises:
            DuplicatePredictorError: the tag is taken.
            InvalidTagError: the tag is not of the form `@owner/name`.
            TypeError: the target cannot be called, or there is no such option.
            ValueError: an option has no meaning.
        """
        return self._registry.register(marked_or_tag, target, replace=replace, **options)

    def unregister(self, tag: str) -> Predictor:
        """Take a predictor out of the engine, wherever it came from; calls that run already go on.

        Args:
            tag: `@owner/name`.

        Returns:
            The record that was registered.

        Raises:
            EngineError: as `retrieve` does.
        """
        return self._registry.unregister(tag)
