"""Where predictors and plugins come from: entry points of installed distributions, read without importing them."""

from __future__ import annotations

import importlib
import math
import os
import re
import sys
from time import monotonic
from typing import TYPE_CHECKING, Any, Final

import attrs

from engine._errors import quote, say
from engine._predictors.predictor import Predictor

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from importlib.metadata import Distribution


PREDICTORS: Final = "predictor_engine.predictors"
PLUGINS: Final = "predictor_engine.plugins"
_OURS: Final = "predictor_engine."  # what an entry_points.txt must mention to be read any further
_LIMIT: Final = 300  # characters of a reason: one line of a log
_COARSEST: Final = 2.0  # seconds that a file system's clock may take from one reading to the next (FAT's does)
_VALUE = re.compile(r"(?P<module>[\w.]+)\s*(:\s*(?P<path>[\w.]+)\s*)?(\[.*\]\s*)?")


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
    def claimant(self) -> object:
        """What two origins share that do not compete with each other."""
        return self.name if self.distribution is None else key_of(self.distribution)

    def __str__(self) -> str:
        """Such as `predictor-engine-muna 0.1 (entry point)`."""
        if self.distribution is None:
            return one_line(f"{self.name} ({self.kind})")
        what = self.kind if self.kind == "entry point" else f"{self.kind} {self.name}"
        return one_line(f"{title_of(self.distribution)} {version_of(self.distribution)} ({what})")

    def problem(self, error: BaseException | str, claims: Iterable[str] = ()) -> Problem:
        """Make the problem of a failure here, of an exception or of a sentence."""
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
    except Exception:  # as in `title_of`
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


class SearchPath:
    """What `sys.path` and its folders looked like when they were searched, to tell whether that was changed since.

    Something installed moves its folder's time of change. Such a time is coarse: a folder that has just changed may
    change again without showing it. So what was seen for the first time counts as changed once more, a little later.

    Args:
        before: what the search before this one saw.

    Attributes:
        folders: what this one saw; see `folders_now`.
        is_news: whether that is something else.
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


def installed(problems: list[Problem]) -> dict[str, tuple[Distribution, str]]:
    """The distributions with entry points of ours and the text of these, by normalised name.

    Of two copies of one distribution the first on `sys.path` counts. Of some hundred distributions few concern the
    engine: their files are searched as text, and only those that name a group of
    ours are parsed.
    """
    from importlib.metadata import distributions  # 25 ms, and only discovery needs it

    first: dict[str, tuple[Distribution, str]] = {}
    found = iter(distributions())
    while True:
        try:
            distribution = next(found, None)
        except Exception as error:  # raised by a finder of another package's
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
