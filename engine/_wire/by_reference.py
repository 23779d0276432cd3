"""Whether a worker finds the same under a name: a module, or a class or function in it, which then go by reference.

A worker is a fresh interpreter with the program's `sys.path`. It has no finder that the program itself put into
`sys.meta_path`, and of a module that was imported again here it may have the version before; what such modules define
goes by value.
"""

from __future__ import annotations

import builtins
import functools
import sys
import types
import typing
from importlib.machinery import BuiltinImporter, FrozenImporter, PathFinder, all_suffixes
from time import monotonic
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

_known: Final[dict[str, tuple[Any, bool]]] = {}  # by a module's name: its spec when that was tested, and the answer
_changed: Final[
    dict[str, tuple[Any, float]]
] = {}  # by name: the spec of a module that was imported again, and when that was noticed
_workers: Final[dict[object, float]] = {}  # running workers of this process, and when each was started
HEAP_TYPE: Final = 1 << 9  # in a class's `__flags__`: it was made at run time, as by a `class` statement
CACHED: Final = type(functools.lru_cache(len))
# Classes of objects that pickle saves by their own name, as far as this Python has them.
_FORMS: Final = ("NewType", "ParamSpec", "TypeAliasType", "TypeVar", "TypeVarTuple")
SELF_NAMED: Final[dict[str, Any]] = {name: vars(typing)[name] for name in _FORMS if name in vars(typing)}
if "sentinel" in vars(builtins):  # from Python 3.15 on
    SELF_NAMED["sentinel"] = vars(builtins)["sentinel"]
FUNCTIONS: Final = frozenset({types.FunctionType, types.BuiltinFunctionType, CACHED})
NAMED: Final = FUNCTIONS.union(SELF_NAMED.values())  # what pickle saves by name

# Classes and functions found to be importable, by their address: they stay, with their modules.
importable: Final[dict[int, Any]] = {}

_STANDARD: Final = (BuiltinImporter, FrozenImporter, PathFinder)


def is_importable(obj: Any) -> bool:
    """Whether the other side finds this very class, function or the like under its name."""
    module = sys.modules.get(getattr(obj, "__module__", None) or "")
    if module is None:
        return False
    found: Any = module
    for name in getattr(obj, "__qualname__", obj.__name__).split("."):
        found = getattr(found, name, None)
    return found is obj and is_importable_module(module)


def is_importable_module(module: types.ModuleType) -> bool:
    """Whether a process with the same `sys.path` finds this module by its name, as it is here."""
    spec = getattr(module, "__spec__", None)
    if spec is None:
        return getattr(module, "__name__", "") in sys.builtin_module_names
    name = getattr(spec, "name", "")
    known = _known.get(name)
    if known is not None and known[0] is spec:
        return known[1]
    if known is not None and known[1] and _may_be_older(name, spec):
        return False
    found = _finds_module(module, spec, name)
    _known[name] = spec, found
    return found


def _may_be_older(name: str, spec: Any) -> bool:
    """Whether a running worker may have a module as it was before it was imported again here."""
    if not _workers:
        return False
    noticed = _changed.get(name)
    if noticed is None or noticed[0] is not spec:
        noticed = _changed[name] = spec, monotonic()
    return min(_workers.values(), default=monotonic()) <= noticed[1]


def is_reimported(name: str) -> bool:
    """Whether a module was imported again, and goes by value until every worker with its version before is gone."""
    module = sys.modules.get(name)
    return name in _changed and module is not None and not is_importable_module(module)


def add_worker(worker: object) -> None:
    """Note a worker that was started: it imports modules as they are from now on."""
    _workers[worker] = monotonic()


def remove_worker(worker: object) -> None:
    """Note that a worker ended."""
    _workers.pop(worker, None)


def _finds_module(module: types.ModuleType, spec: Any, name: str) -> bool:
    if name in {"__main__", "__mp_main__"} or sys.modules.get(name) is not module:
        return name in sys.builtin_module_names
    if spec.loader is BuiltinImporter or spec.loader is FrozenImporter:
        return True
    path = None
    owner, _, _ = name.rpartition(".")
    if owner:
        package = sys.modules.get(owner)
        if package is None or not is_importable_module(package):
            return False
        path = getattr(package, "__path__", None)
    return any(_finds_spec(finder, name, path, spec.origin) for finder in _finders_for(name))


def _finds_spec(finder: Any, name: str, path: Any, origin: str | None) -> bool:
    try:
        found = finder.find_spec(name, path)
    except Exception:
        return False
    if found is None or found.origin != origin:
        return False
    return finder is not PathFinder or _is_ordinary(found) or _is_at_start(found.loader, name)


def _is_ordinary(spec: Any) -> bool:
    """Whether the interpreter's own loaders could load what was found, even if a hook of the program's did."""
    loader = spec.loader
    kind = loader if isinstance(loader, type) else type(loader)
    own = kind.__module__ in {"_frozen_importlib", "_frozen_importlib_external", "zipimport", "builtins"}
    return own or str(spec.origin).endswith(tuple(all_suffixes()))


def _finders_for(name: str) -> Iterator[Any]:
    """The finders that a worker has when it imports a module."""
    for finder in tuple(sys.meta_path):
        if any(finder is each for each in _STANDARD) or _is_at_start(finder, name):
            yield finder


def _is_at_start(made: Any, name: str) -> bool:
    """Whether a finder or loader is in every interpreter from its start, or comes with the package of a module."""
    kind = made if isinstance(made, type) else type(made)
    home = kind.__module__
    if home.partition(".")[0] == name.partition(".")[0]:
        return True
    starters = [sys.modules[each] for each in _imported_at_start() if each in sys.modules]
    return any(
        each.__name__ == home or any(value is kind or value is made for value in tuple(vars(each).values()))
        for each in starters
    )


def _imported_at_start() -> set[str]:
    """The modules that `site` imports in every interpreter, as editable installations have it do."""
    global _at_start  # noqa: PLW0603 - read once, for files are read
    if _at_start is None:
        import re
        import site
        from pathlib import Path

        lines: list[str] = []
        folders = [*getattr(site, "getsitepackages", list)(), getattr(site, "getusersitepackages", str)()]
        for folder in filter(None, folders):
            for file in Path(folder).glob("*.pth"):
                try:
                    lines += file.read_text(encoding="utf-8", errors="replace").splitlines()
                except OSError:  # not readable: `site` cannot read it either
                    continue
        code = " ".join(line for line in lines if line.startswith(("import ", "import\t")))
        _at_start = {"sitecustomize", "usercustomize", *re.findall(r"\w+", code)}
    return _at_start


_at_start: set[str] | None = None
