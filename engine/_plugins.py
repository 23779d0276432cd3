"""Finds plugins by entry point, lets them in one by one, and keeps the broken ones out.

Each registry owns one `Plugins`, with a pluggy manager of its own. A plugin is admitted whole or not at all: whatever
it raises on the way becomes a `Problem`, its hooks are withdrawn, and the others go on. No predictor is imported here,
and nothing is decided about two plugins that claim one tag: that is the registry's part.
"""

from __future__ import annotations

import importlib
import math
import os
import re
import sys
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING, Any, Final

import attrs

from engine._errors import quote, say
from engine._predictor import Predictor

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator
    from importlib.metadata import Distribution

    from pluggy import HookRelay, PluginManager

PREDICTORS: Final = "predictor_engine.predictors"
PLUGINS: Final = "predictor_engine.plugins"
BLOCK: Final = "PREDICTOR_ENGINE_BLOCK"

_MARK: Final = "predictor_engine_impl"  # what `hookimpl` sets
_OURS: Final = "predictor_engine."  # what an entry_points.txt must mention to be read any further
_LIMIT: Final = 300  # characters of a reason: one line of a log
_SOONEST: Final = 1.0  # seconds after which what failed is tried again at the earliest, doubled each time it fails
_LATEST: Final = 60.0
_COARSEST: Final = 2.0  # seconds that a file system's clock may take from one reading to the next (FAT's does)
_VALUE = re.compile(r"(?P<module>[\w.]+)\s*(:\s*(?P<path>[\w.]+)\s*)?(\[.*\]\s*)?")
_NO_PLUGIN = (type(None), str, bytes, int, float, list, tuple, dict, set, frozenset, Predictor)


def printable(text: str) -> str:
    """`text` in printable ASCII and line ends, everything else escaped: safe on any terminal."""
    return re.sub(r"[^\n\x20-\x7e]", lambda found: found[0].encode("unicode_escape").decode("ascii"), text)


def one_line(text: str) -> str:
    """`text` on one printable line, at most 300 characters."""
    line = printable(" ".join(text.split()))
    return line if len(line) <= _LIMIT else f"{line[: _LIMIT - 3]}..."


def normalised(name: str) -> str:
    """A distribution's name as names are compared (PEP 503): `My_Package` and `my-package` are one."""
    return re.sub(r"[-_.]+", "-", name).lower()


def names_in(text: str) -> list[str]:
    """The names in a list separated by commas or spaces."""
    return text.replace(",", " ").split()


@attrs.frozen
class Problem:
    """A plugin, an entry point or a tag that could not be used, and why.

    Attributes:
        distribution: the name of the installed distribution, empty for a plugin given as an object.
        entry_point: the name of the entry point or plugin; the tag, where two sources claim it.
        value: what the entry point refers to, `"module:name"`.
        group: the entry-point group, empty for a plugin given as an object.
        reason: one line.
        traceback: the text of the traceback, empty where nothing was raised.
        claims: the tags and names of runners that are known to be missing because of it.
    """

    distribution: str
    entry_point: str
    value: str
    group: str
    reason: str
    traceback: str = attrs.field(default="", repr=False)
    claims: tuple[str, ...] = ()

    def __str__(self) -> str:
        """One line: what, of which distribution, and why."""
        source = f" of {one_line(self.distribution)}" if self.distribution else ""
        return f"{quote(self.entry_point)}{source} could not be used: {self.reason}"


@attrs.frozen
class Entry:
    """One entry point of ours, as it is written: `importlib.metadata` refuses a whole file for one bad line in it.

    Attributes:
        group: `PREDICTORS` or `PLUGINS`.
        name: the tag, or the plugin's name.
        value: what it refers to; `None` where there is no `=`.
        distribution: what was installed.
    """

    group: str
    name: str
    value: str | None
    distribution: Distribution = attrs.field(eq=False)


def entries_in(text: str, distribution: Distribution) -> Iterator[Entry]:
    """The entry points of ours in an `entry_points.txt`, good ones and bad ones, once each and in order of name."""
    found: set[Entry] = set()
    group = ""
    for line in map(str.strip, text.splitlines()):
        if line.startswith("[") and line.endswith("]"):
            group = line[1:-1].strip()
        elif line and not line.startswith("#") and group in {PREDICTORS, PLUGINS}:
            name, is_pair, value = line.partition("=")
            found.add(Entry(group, name.strip(), value.strip() if is_pair else None, distribution))
    yield from sorted(found, key=lambda entry: (entry.name, entry.value or ""))


@attrs.frozen(eq=False)
class Origin:
    """Where a predictor, a runner or a plugin comes from; its text is what `engine show` prints.

    The name and version of a distribution are read when they are asked for, for that means parsing its metadata.

    Attributes:
        name: of the entry point or plugin, or `module:qualname` of what a user registered.
        kind: `"entry point"`, `"plugin"` or `"registered"`.
        distribution: what was installed, where anything was.
        value: what the entry point refers to.
        group: the entry-point group.
    """

    name: str
    kind: str = "plugin"
    distribution: Distribution | None = None
    value: str = ""
    group: str = ""

    @classmethod
    def of(cls, entry: Entry) -> Origin:
        """The origin of what `entry` refers to."""
        kind = "entry point" if entry.group == PREDICTORS else "plugin"
        return cls(entry.name, kind, entry.distribution, entry.value or "", entry.group)

    @property
    def holder(self) -> object:
        """What two origins share that do not compete with each other."""
        return self.name if self.distribution is None else key_of(self.distribution)

    def __str__(self) -> str:
        """Such as `predictor-engine-muna 0.1 (entry point)`."""
        if self.distribution is None:
            return one_line(f"{self.name} ({self.kind})")
        what = self.kind if self.kind == "entry point" else f"{self.kind} {self.name}"
        return one_line(f"{title_of(self.distribution)} {version_of(self.distribution)} ({what})")

    def problem(self, error: BaseException | str, claims: Iterable[str] = ()) -> Problem:
        """The record of a failure here: an exception, or a sentence."""
        title = title_of(self.distribution) if self.distribution is not None else ""
        known = (title, self.name, self.value, self.group)
        if isinstance(error, str):
            return Problem(*known, one_line(error), claims=tuple(claims))
        import traceback  # only a failure needs it

        text = printable("".join(traceback.format_exception(error)))
        return Problem(*known, one_line(f"{type(error).__name__}: {say(error)}"), text, tuple(claims))


@attrs.frozen(eq=False)
class Offer:
    """A predictor and where it comes from."""

    predictor: Predictor
    origin: Origin


@attrs.frozen(eq=False)
class Admitted:
    """A plugin that was let in, with everything its hooks gave; its runners by the names they had then."""

    plugin: object
    origin: Origin
    offers: tuple[Offer, ...]
    runners: tuple[tuple[str, Any], ...]


def key_of(distribution: Distribution) -> str:
    """A distribution's normalised name, read off its folder where it can be: metadata is slow, and may be broken."""
    key = getattr(distribution, "_normalized_name", None)  # by which importlib.metadata itself drops shadowed copies
    return key.replace("_", "-") if isinstance(key, str) else normalised(distribution.name)


def title_of(distribution: Distribution) -> str:
    """A distribution's name as its author writes it, else as its folder has it."""
    try:
        return str(distribution.metadata["Name"] or key_of(distribution))
    except Exception:  # a missing METADATA is reported in different ways by different versions of Python
        return key_of(distribution)


def version_of(distribution: Distribution) -> str:
    """A distribution's version, or words that say there is none."""
    try:
        return str(distribution.metadata["Version"] or "of unknown version")
    except Exception:  # as above
        return "of unknown version"


class EntryPointPredictors:
    """The built-in plugin: the entry points of `predictor_engine.predictors` as records whose target is text.

    Attributes:
        problems: one for each entry point that is no predictor.
    """

    def __init__(self) -> None:
        self._records: dict[tuple[str, str, str], Offer] = {}
        self._origins: dict[Predictor, Origin] = {}
        self.problems: tuple[Problem, ...] = ()

    def read(self, entries: Iterable[Entry]) -> None:
        """Offer exactly what `entries` name; a record that was there before stays the same object."""
        before, self._records, problems = self._records, {}, []
        for entry in entries:
            key = (key_of(entry.distribution), entry.name, entry.value or "")
            try:
                self._records[key] = before.get(key) or Offer(record_of(entry), Origin.of(entry))
            except Exception as error:
                claimed = entry.name if entry.name.startswith("@") else f"@{entry.name}"
                problems.append(Origin.of(entry).problem(say(error), [claimed]))
        self._origins = {offer.predictor: offer.origin for offer in self._records.values()}
        self.problems = tuple(problems)

    def engine_predictors(self) -> Iterable[Predictor]:
        """Give the records."""
        return self._origins

    def origin_of(self, predictor: Predictor) -> Origin:
        """Which entry point a record was made of."""
        return self._origins[predictor]


def _value_of(entry: Entry) -> str:
    if entry.value is None:
        raise ValueError(f"an entry point is written 'name = value', not {quote(entry.name)}")
    return entry.value


def record_of(entry: Entry) -> Predictor:
    """Turn an entry point of the first group into a record.

    Raises:
        ValueError: its name is no tag, or its value is not `module:name`.
    """
    value = _value_of(entry)
    written = _VALUE.fullmatch(value)
    target = f"{written['module']}:{written['path']}" if written and written["path"] else value
    return Predictor(entry.name, target)


def object_of(entry: Entry) -> object:
    """Import what an entry point of the second group refers to.

    Raises:
        ValueError: its value is neither `module` nor `module:name`.
        BaseException: whatever the import raises.
    """
    written = _VALUE.fullmatch(_value_of(entry))
    if written is None:
        raise ValueError(f"an entry point's value is written 'module' or 'module:name', not {quote(entry.value)}")
    found: object = importlib.import_module(written["module"])
    for name in (written["path"] or "").split("."):
        found = getattr(found, name) if name else found
    return found


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


class SearchPath:
    """What `sys.path` and its folders looked like when they were searched, to tell whether that was changed since.

    Something installed moves its folder's time of change. Such a time is coarse: a folder that has just changed may
    change again without showing it. So what was seen for the first time counts as changed once more, a little later.

    Args:
        before: what the search before this one saw.

    Attributes:
        is_news: whether this one saw something else.
    """

    def __init__(self, before: SearchPath | None) -> None:
        self.folders = folders_now()
        self.is_news = before is None or before.folders != self.folders
        self._doubted_until = monotonic() + _COARSEST if self.is_news else math.inf

    @property
    def has_changed(self) -> bool:
        """Whether searching again may find something else."""
        return monotonic() >= self._doubted_until or self.folders != folders_now()


def folders_now() -> list[tuple[str, tuple[int, ...] | None]]:
    """Each entry of `sys.path`, once, and what tells that it changed; `None` where there is nothing."""
    entries: list[Any] = sys.path  # some hold paths, which importing passes over
    return [(entry, _state_of(entry)) for entry in dict.fromkeys(each for each in entries if isinstance(each, str))]


def _state_of(entry: str) -> tuple[int, ...] | None:
    try:
        found = os.stat(entry or os.curdir)  # noqa: PTH116 - a third of the time that a Path takes
    except (OSError, ValueError):
        return None
    return found.st_mtime_ns, found.st_size, found.st_nlink, found.st_ino


class Plugins:
    """The plugins of one registry.

    Not safe to `load` from two threads at once: the registry sees to that.

    Args:
        given: plugin objects or modules, and runners; they are let in at the first `load`, like installed plugins.
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
        """All that was let in so far."""
        return [offer for admitted in tuple(self._admitted.values()) for offer in admitted.offers]

    @property
    def runners(self) -> list[tuple[str, Any, Origin]]:
        """The runners that were let in so far, by name, and where each comes from."""
        every = tuple(self._admitted.values())
        return [(name, runner, admitted.origin) for admitted in every for name, runner in admitted.runners]

    @property
    def hook(self) -> HookRelay:
        """Pluggy's relay: the hooks of every plugin let in so far."""
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
        """Find and let in what is not in yet; failures of an earlier time are tried again."""
        if not self.are_sought:
            return
        if self._manager is not None:
            importlib.invalidate_caches()  # what was missing may have been installed a moment ago
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


def installed(problems: list[Problem]) -> dict[str, tuple[Distribution, str]]:
    """The distributions with entry points of ours and the text of these, by normalised name.

    Of two copies of one distribution the first on `sys.path` counts. Of some hundred distributions few concern the
    engine: their files are searched as text, and only that of ours is parsed.
    """
    from importlib.metadata import distributions  # 25 ms, and only discovery needs it

    first: dict[str, tuple[Distribution, str]] = {}
    found = iter(distributions())
    while True:
        try:
            distribution = next(found, None)
        except Exception as error:  # raised by a finder of somebody else's
            problems.append(Origin("sys.meta_path").problem(error))
            break
        if distribution is None:
            break
        try:
            key = key_of(distribution)
            if key not in first:
                first[key] = distribution, _text_of(distribution)
        except Exception as error:  # a distribution that cannot even be named
            problems.append(Origin("sys.path").problem(error))
    return {key: (distribution, text) for key, (distribution, text) in first.items() if _OURS in text}


def _text_of(distribution: Distribution) -> str:
    """What a distribution's `entry_points.txt` says; what is not UTF-8 in it is escaped, so that the rest counts."""
    try:
        return distribution.read_text("entry_points.txt") or ""
    except UnicodeDecodeError as error:
        return error.object.decode("utf-8", "backslashreplace")


def _own(caller: Any, plugin: object) -> list[Any]:
    return [impl for impl in caller.get_hookimpls() if impl.plugin is plugin]


def _itself(plugin: object) -> object:
    """What is given as an object needs no loading."""
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
    except Exception:  # as it is no runner, what is wrong with it is told where it is used
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
