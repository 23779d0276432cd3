"""Finds plugins by entry point, admits them one by one, and quarantines those that fail.

Each registry owns one `Plugins`, with a pluggy manager of its own. A plugin is admitted whole or not at all: whatever
it raises on the way becomes a `Problem`, its hooks are withdrawn, and the others go on. No predictor is imported here,
and nothing is decided about two plugins that claim one tag: that is the registry's part.
"""

from __future__ import annotations

import importlib
import math
import os
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING, Any, Final

import attrs

from engine._errors import quote
from engine._predictors.predictor import Predictor
from engine._registry.sources import (
    PLUGINS,
    PREDICTORS,
    Entry,
    EntryPointPredictors,
    Offer,
    Origin,
    Problem,
    SearchPath,
    entries_in,
    installed,
    key_of,
    names_in,
    normalised,
    object_of,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator

    from pluggy import HookRelay, PluginManager

BLOCK: Final = "PREDICTOR_ENGINE_BLOCK"

_MARK: Final = "predictor_engine_impl"  # what `hookimpl` sets
_SOONEST: Final = 1.0  # seconds after which what failed is tried again at the earliest, doubled each time it fails
_LATEST: Final = 60.0  # seconds of the longest pause
_NO_PLUGIN = (type(None), str, bytes, int, float, list, tuple, dict, set, frozenset, Predictor)


@attrs.frozen(eq=False)
class Admitted:
    """A plugin that was admitted, with everything its hooks gave; its runners by the names they had then."""

    plugin: object
    origin: Origin
    offers: tuple[Offer, ...]
    runners: tuple[tuple[str, Any], ...]


class BackOff:
    """When what failed is due again: 1 s after its first failure, then twice as long after each, at most 60 s."""

    def __init__(self) -> None:
        self._pause = _SOONEST
        self._due = math.inf

    @property
    def is_due(self) -> bool:
        """Whether something failed, long enough ago."""
        return monotonic() >= self._due

    def note(self, *, has_failed: bool, is_news: bool) -> None:
        """Keep how an attempt went; after `is_news` the next pause is the shortest again."""
        pause = _SOONEST if is_news else self._pause
        self._due = monotonic() + pause if has_failed else math.inf
        self._pause = min(2 * pause, _LATEST) if has_failed else _SOONEST


class Plugins:
    """The plugins of one registry.

    Not safe to `load` from two threads at once: the registry holds a lock.

    Args:
        given: plugin objects or modules, and runners; they are admitted at the first `load`, like installed plugins.
        block: names of plugins, entry points or distributions to leave alone; those in the environment variable
            `PREDICTOR_ENGINE_BLOCK` are added, as it reads when this object is made.
        discover: whether installed plugins are looked for.
        reserved: names that no runner may have that is given.

    Attributes:
        problems: what the last `load` could not use.

    Raises:
        TypeError: something given cannot be a plugin.
        ValueError: a runner that is given has a name that is reserved, or that another one has.
    """

    def __init__(
        self,
        given: Iterable[object] = (),
        *,
        block: Iterable[str] = (),
        discover: bool = True,
        reserved: Collection[str] = (),
    ) -> None:
        self.problems: tuple[Problem, ...] = ()
        self._given = tuple(map(_named, given))
        self._discover = discover
        # A single text is taken apart like the variable: its letters are never what was meant.
        self._blocked = {*(names_in(block) if isinstance(block, str) else block), *names_in(os.environ.get(BLOCK, ""))}
        self._blocked_distributions = frozenset(map(normalised, self._blocked))
        self._refuse_clashes(reserved)
        self._admitted: dict[str, Admitted] = {}
        self._built_in = EntryPointPredictors()
        self._manager: PluginManager | None = None
        self._searched: SearchPath | None = None
        self._failures = BackOff()
        self._reported: dict[tuple[str, str, str], object] = {}

    def _refuse_clashes(self, reserved: Collection[str]) -> None:
        """Refuse two runners of one name among what was given."""
        runners: dict[str, object] = {}
        for _, plugin in self._wanted():
            name = _name_if_runner(plugin)
            if name is not None and name in reserved:
                raise ValueError(f"a runner in plugins is called {quote(name)}, as one of the engine's own: rename it")
            if name is not None and runners.setdefault(name, plugin) is not plugin:
                raise ValueError(f"two runners in plugins are called {quote(name)}: rename one of them")

    def _wanted(self) -> Iterator[tuple[str, object]]:
        """What was given and is not blocked, by the name that pluggy knows it by."""
        for name, plugin in self._given:
            if self._blocked.isdisjoint((name, _label(plugin), _name_if_runner(plugin) or name)):
                yield name, plugin

    @property
    def offers(self) -> list[Offer]:
        """What the plugins admitted so far offer."""
        return [offer for admitted in tuple(self._admitted.values()) for offer in admitted.offers]

    @property
    def runners(self) -> list[tuple[str, Any, Origin]]:
        """The runners of the plugins admitted so far, by name, and where each comes from."""
        every = tuple(self._admitted.values())
        return [(name, runner, admitted.origin) for admitted in every for name, runner in admitted.runners]

    @property
    def hook(self) -> HookRelay:
        """Pluggy's relay: the hooks of every plugin admitted so far."""
        return self._started().hook

    @property
    def are_sought(self) -> bool:
        """Whether there may be any: none are installed for a registry told not to discover, and none were given."""
        return self._discover or bool(self._given)

    @property
    def is_due(self) -> bool:
        """Whether another `load` may give something else: `sys.path` changed, or it is time to try what failed."""
        return self._failures.is_due or (self._searched is not None and self._searched.has_changed)

    def load(self) -> None:
        """Find and admit plugins that are not admitted yet, those that failed before among them."""
        if not self.are_sought:
            return
        if self._manager is not None:
            importlib.invalidate_caches()  # what was missing may have been installed meanwhile
        # First, so that what changes meanwhile shows later.
        searched = SearchPath(self._searched) if self._discover else None
        problems: list[Problem] = []
        entries = list(self._entries(problems)) if self._discover else []
        self._built_in.read(entry for entry in entries if entry.group == PREDICTORS)
        self._admit(PREDICTORS, self._built_in, Origin(PREDICTORS), [])
        problems += self._built_in.problems
        for name, plugin in self._wanted():
            self._let_in(name, Origin(_label(plugin)), partial(_itself, plugin), problems)
        for entry in entries:
            if entry.group == PLUGINS:
                name = f"{entry.name} of {key_of(entry.distribution)}"
                self._let_in(name, Origin.of(entry), partial(object_of, entry), problems)
        self.problems = tuple(problems)
        self._failures.note(has_failed=bool(problems), is_news=searched is not None and searched.is_news)
        self._searched = searched

    def report(self, problem: Problem) -> None:
        """Log a problem on one line, once however often it is met."""
        mine = object()
        key = (problem.group, problem.distribution, problem.entry_point)
        if self._reported.setdefault(key, mine) is mine:
            import logging  # only a failure needs it

            logging.getLogger("engine").warning("%s", problem)

    def _started(self) -> PluginManager:
        if self._manager is None:
            import pluggy  # here and not above: `import engine` must stay quick

            from engine import hookspecs

            manager = pluggy.PluginManager(hookspecs.PROJECT)
            manager.add_hookspecs(hookspecs)
            hookspecs.hookimpl(EntryPointPredictors.engine_predictors)
            self._manager = manager
        return self._manager

    def _entries(self, problems: list[Problem]) -> Iterator[Entry]:
        """The entry points of both groups that are not blocked, in the order of their distributions' names."""
        for key, (distribution, text) in sorted(installed(problems).items(), key=lambda pair: pair[0]):
            if key not in self._blocked_distributions:
                yield from (each for each in entries_in(text, distribution) if each.name not in self._blocked)

    def _let_in(self, name: str, origin: Origin, get: Callable[[], object], problems: list[Problem]) -> None:
        """Admit one plugin whole, or record why not and leave no trace of it."""
        if name in self._admitted:
            return
        claims: list[str] = []
        try:
            plugin = get()
            # Given and installed as well, or installed under two names: once is enough.
            if not any(admitted.plugin is plugin for admitted in self._admitted.values()):
                self._admit(name, plugin, origin, claims)
        except (Exception, SystemExit) as error:
            problems.append(origin.problem(error, claims))

    def _admit(self, name: str, plugin: object, origin: Origin, claims: list[str]) -> None:
        runner = _name_if_runner(plugin)
        if runner is not None:
            self._admitted[name] = Admitted(plugin, origin, (), ((runner, plugin),))
            return
        manager = self._started()
        try:
            if name not in self._admitted:  # the built-in one is asked again at each load
                manager.register(plugin, name)
            self._refuse_mistakes(plugin)
            offers = tuple(self._offers(plugin, origin, claims))
            runners = tuple(self._runners(plugin, claims))
        except BaseException:
            if manager.get_plugin(name) is plugin:
                manager.unregister(name=name)
            raise
        self._admitted[name] = Admitted(plugin, origin, offers, runners)

    def _refuse_mistakes(self, plugin: object) -> None:
        """Refuse a plugin with a hook that would never be called.

        Raises:
            TypeError: a function is marked as a hook there is not, or named like one and not marked.
        """
        manager = self._started()
        callers = manager.get_hookcallers(plugin) or []
        hooks = ", ".join(sorted(name for name in vars(manager.hook) if getattr(manager.hook, name).has_spec()))
        for caller in callers:
            if not caller.has_spec() and not all(impl.optionalhook for impl in _own(caller, plugin)):
                raise TypeError(f"{quote(caller.name)} is no hook; the hooks are {hooks}")
        for name in _functions_named_like_hooks(plugin):
            if manager.parse_hookimpl_opts(plugin, name) is None:
                raise TypeError(f"{quote(name)} is not marked with @hookimpl; the hooks are {hooks}")
        if not callers:
            raise TypeError(f"it implements no hook, and is no object with a name and a start(); the hooks are {hooks}")

    def _offers(self, plugin: object, origin: Origin, claims: list[str]) -> Iterator[Offer]:
        for predictor in self._call(plugin, "engine_predictors"):
            if not isinstance(predictor, Predictor):
                raise TypeError(f"engine_predictors must give Predictor records, not {quote(predictor)}")
            claims.append(predictor.tag)
            yield Offer(predictor, self._built_in.origin_of(predictor) if plugin is self._built_in else origin)

    def _runners(self, plugin: object, claims: list[str]) -> Iterator[tuple[str, Any]]:
        for runner in self._call(plugin, "engine_runners"):
            name = _name_of_runner(runner)
            if name is None:
                raise TypeError(f"engine_runners must give objects with a name and a start(), not {quote(runner)}")
            claims.append(name)
            yield name, runner

    def _call(self, plugin: object, hook: str) -> Iterator[object]:
        """What one plugin's implementation of `hook` gives.

        One plugin at a time, not all in one call of pluggy's, so that a failure is that plugin's own.
        """
        for impl in _own(getattr(self.hook, hook), plugin):
            if impl.wrapper or impl.hookwrapper:
                raise TypeError(f"{hook} cannot be wrapped: each plugin is asked on its own")
            given: Any = impl.function()
            if not hasattr(given, "__iter__"):
                raise TypeError(f"{hook} must give an iterable, not {quote(given)}")
            yield from given


def _own(caller: Any, plugin: object) -> list[Any]:
    return [impl for impl in caller.get_hookimpls() if impl.plugin is plugin]


def _itself(plugin: object) -> object:
    """Give a plugin that was given as an object, which needs no import."""
    return plugin


def _name_of_runner(given: object) -> str | None:
    """What callers give as `runner=` for an object that has a name and a start; `None` for any other."""
    name = getattr(given, "name", None)
    return name if isinstance(name, str) and name and callable(getattr(given, "start", None)) else None


def _name_if_runner(plugin: object) -> str | None:
    """The name of a runner that stands for a plugin as it is; `None` for what has hooks, or is no runner."""
    if isinstance(plugin, type):  # of which there is no instance yet
        return None
    try:
        name = _name_of_runner(plugin)
    except Exception:  # then it is no runner, and what is wrong with it is reported where its hooks are called
        return None
    return None if name is None or _has_hooks(plugin) else name


def _has_hooks(plugin: object) -> bool:
    """Whether anything of it is marked as a hook, or named like one; nothing of it is called."""
    import inspect

    members = (inspect.getattr_static(plugin, name, None) for name in dir(plugin))
    is_marked = any(hasattr(getattr(member, "__func__", member), _MARK) for member in members)
    return is_marked or bool(_functions_named_like_hooks(plugin))


def _label(plugin: object) -> str:
    """A plugin object's name for people."""
    return str(getattr(plugin, "__name__", None) or type(plugin).__qualname__)


def _named(plugin: object) -> tuple[str, object]:
    """A plugin object and the name pluggy would give it."""
    if isinstance(plugin, _NO_PLUGIN):
        raise TypeError(f"a plugin is a module or an object with hooks marked @hookimpl, not {quote(plugin)}")
    return str(getattr(plugin, "__name__", None) or id(plugin)), plugin


def _functions_named_like_hooks(plugin: object) -> list[str]:
    """Names of the plugin's own functions that start as hooks do; what a module imported is not its own."""
    import inspect
    from types import FunctionType, ModuleType

    names = [name for name in dir(plugin) if name.startswith("engine_")]
    functions = {name: inspect.getattr_static(plugin, name, None) for name in names}
    return [
        name
        for name, function in functions.items()
        if isinstance(function, FunctionType | staticmethod | classmethod)
        and (not isinstance(plugin, ModuleType) or getattr(function, "__module__", None) == plugin.__name__)
    ]
