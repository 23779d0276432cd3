"""The hooks a plugin may implement, each with an example, and the marker `hookimpl` that says it does.

A plugin is a module or an object named by the entry-point group `predictor_engine.plugins`, or given to
`Engine(plugins=[...])`. It is imported, and its hooks are called, in whatever thread first needs the registry: one of
the engine's own where that is an asyncio task. One that fails is tried again, after a while. An object without hooks
that has a `name` and a `start` is a runner, and counts as a plugin that offers it. Names that start with `engine_` are
kept for hooks: a function of such a name that is no hook, or lacks its mark, is reported as a mistake instead of being
passed over. Nothing here finds or calls a plugin.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from pluggy import HookimplMarker, HookspecMarker

if TYPE_CHECKING:
    from collections.abc import Iterable

    from engine._predictors.predictor import Predictor

__all__ = ["engine_predictors", "engine_runners", "hookimpl"]

PROJECT: Final = "predictor_engine"

hookspec = HookspecMarker(PROJECT)
hookimpl = HookimplMarker(PROJECT)


@hookspec
def engine_predictors() -> Iterable[Predictor]:  # type: ignore[empty-body]  # a specification has no body
    """Offer predictors.

    Called once, when a registry is first used. Give targets as text, so that listing predictors imports none of them.
    A hook that raises, even after its first record, offers nothing at all.

    Example:
        >>> from engine import Predictor, hookimpl
        >>> @hookimpl
        ... def engine_predictors():
        ...     yield Predictor("@me/shout", "my_package:shout", concurrency=1)
        ...     yield Predictor("@me/count", "my_package.numbers:Counter.predict", description="Counts to n.")

    Returns:
        Any iterable of `Predictor` records; a generator function will do.
    """


@hookspec
def engine_runners() -> Iterable[Any]:  # type: ignore[empty-body]  # a specification has no body
    """Offer runners: places where predictors run.

    Called once, when a registry is first used, and whether or not a runner is ever chosen: import what a runner needs
    in its `start`, not here.

    Example:
        >>> import threading
        >>> from engine import hookimpl
        >>> from engine.runners import own
        >>> class Elsewhere:
        ...     name = "elsewhere"
        ...
        ...     def start(self, body, channel):
        ...         threading.Thread(target=own, args=(body, channel), daemon=True).start()
        >>> @hookimpl
        ... def engine_runners():
        ...     yield Elsewhere()

    Returns:
        Any iterable of objects with a `name` (what callers give as `runner=`; none that the engine or another plugin
        has) and a `start`, as `engine.runners.Runner` describes them, with what they may have besides.
    """
