"""Sentinels, which are compared by identity: how one stays the same object when it travels.

A sentinel such as `dataclasses.MISSING` does not define how it is pickled, so that a copy of it would arrive, which is
identical to nothing. One that a module has under a name arrives as what that module has there on the other side; one of
a script, whose module no other process can import, as the same object each time.

What counts as one: an instance that is pickled by its attributes, bound to a name of a module, and without attributes,
or with few and plain ones. Where the other side's object differs in those, a copy arrives after all.
"""

from __future__ import annotations

import copyreg
import importlib
import os
import sys
import types
import weakref
from typing import TYPE_CHECKING, Any, Final

from engine._wire.by_reference import importable, is_importable_module
from engine._wire.frames import PROTOCOL

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    _Home = tuple[object, types.ModuleType, str]

_NEW: Final = vars(copyreg)["__newobj__"]  # what makes an instance again that is pickled by its attributes
_MOST_ATTRIBUTES: Final = 8  # of a sentinel
_PLAIN: Final = frozenset({str, bool, type(None)})
AS_ANY_OBJECT: Final = (object.__reduce_ex__, object.__reduce__, object.__getstate__)  # pickled by its attributes

# The modules and names of each, by its address, which is no other's as long as the object is kept here.
_homes: Final[dict[int, tuple[type, dict[int, list[_Home]]]]] = {}  # by the address of their class, which is kept too
# How many modules there were when they were searched for instances of `object`, and the last of them.
_scanned: Final[list[object]] = []

# Those of scripts, and their copies, with their identities, which they keep wherever they travel; by address, and by
# identity. References are weak where they can be: once nothing else refers to one, none can tell it from a new one.
_tracked: Final[dict[int, tuple[Callable[[], Any], str]]] = {}
_tracked_kinds: Final[set[int]] = set()  # addresses of their classes
_arrived: Final[dict[str, Callable[[], Any]]] = {}


sentinel_classes: Final[set[int]] = set()  # addresses of classes found importable, of which there may be sentinels


def note_importable(named: Any) -> None:
    """Note that the other side can import a class or function."""
    if isinstance(named, type) and has_sentinels(named):
        sentinel_classes.add(id(named))
    importable[id(named)] = named


def has_sentinels(kind: type) -> bool:
    """Whether a module of its package holds instances of an importable class that may be sentinels."""
    if kind is object:
        return True
    if id(kind) not in _homes:
        found = _instances(kind, _package_of(kind)) if _is_pickled_by_attributes(kind) else {}
        _homes[id(kind)] = kind, found
    return bool(_homes[id(kind)][1])


def has_own_sentinels(kind: type) -> bool:
    """Whether a class that is not importable has instances that may be sentinels."""
    return id(kind) in _tracked_kinds or bool(_instances(kind, [sys.modules.get(kind.__module__)]))


def reduced_sentinel(obj: Any, *, is_by_value: bool = False) -> Any:
    """Reduce a sentinel; `None` for any other object.

    Args:
        obj: any object.
        is_by_value: its class is not importable.
    """
    kind = type(obj)
    home = _home_in(obj, sys.modules.get(kind.__module__)) if is_by_value else _home(obj, kind)
    if home is None and _identity_in(obj) is None:
        return None
    try:
        made, args, state, *items = obj.__reduce_ex__(PROTOCOL)
    except Exception:  # it cannot be pickled, as the pickler will report
        return None
    if made is not _NEW or args != (kind,) or any(each is not None for each in items):
        return None
    if home is not None and not is_by_value and is_importable_module(home[0]):
        return (find_sentinel, (home[0].__name__, home[1], kind, state)) if _is_small(kind, state) else None
    return (_object_of_script, (identity_of(obj), kind)) if state is None else None


def _is_pickled_by_attributes(kind: Any) -> bool:
    own = (kind.__reduce_ex__, kind.__reduce__, kind.__getstate__)
    return own == AS_ANY_OBJECT and not any(each is kind for each in tuple(copyreg.dispatch_table))


def _is_small(kind: Any, state: Any) -> bool:
    """Whether attributes are so few and plain that another sentinel with equal ones can stand for this."""
    if state is None:
        return True
    parts = [each for each in (state if isinstance(state, tuple) else (state,)) if each is not None]
    values = [value for part in parts for value in part.values()]
    return (
        kind.__eq__ is object.__eq__
        and len(values) <= _MOST_ATTRIBUTES
        and all(type(value) in _PLAIN for value in values)
    )


def _package_of(kind: type) -> Iterable[types.ModuleType]:
    """The modules of the package that a class is from, its own first."""
    root = kind.__module__.partition(".")[0]
    others = [each for name, each in tuple(sys.modules.items()) if name == root or name.startswith(f"{root}.")]
    return [sys.modules[kind.__module__], *others]


def _instances(kind: type, modules: Iterable[object]) -> dict[int, list[_Home]]:
    found: dict[int, list[_Home]] = {}
    for module in modules:
        if isinstance(module, types.ModuleType):
            for name, value in tuple(vars(module).items()):
                if type(value) is kind:
                    found.setdefault(id(value), []).append((value, module, name))
    return found


def _home(obj: object, kind: type) -> tuple[types.ModuleType, str] | None:
    """Find the module and name of an instance of an importable class: where the other side can import it, else here."""
    known = _homes.get(id(kind), (kind, {}))[1]
    modules = [len(sys.modules), next(reversed(sys.modules))]
    if kind is object and id(obj) not in known and _scanned != modules:
        _scanned[:] = modules
        known = _instances(object, tuple(sys.modules.values()))
        _homes[id(object)] = object, known
    homes = [(module, name) for _, module, name in known.get(id(obj), ()) if vars(module).get(name) is obj]
    importable = next((each for each in homes if is_importable_module(each[0])), None)
    if importable is None and not homes:
        return _home_in(obj, sys.modules.get("__main__"))  # it may have got its name since
    return importable or homes[0]


def _home_in(obj: object, module: object) -> tuple[types.ModuleType, str] | None:
    if not isinstance(module, types.ModuleType):
        return None
    name = next((name for name, value in tuple(vars(module).items()) if value is obj), None)
    return None if name is None else (module, name)


def find_sentinel(module_name: str, name: str, kind: type, state: Any, *, imports: bool = True) -> object:
    """Give what a module has under a name, if class and attributes are equal; else a copy."""
    module = sys.modules.get(module_name)
    if module is None and imports:
        try:
            module = importlib.import_module(module_name)
        except Exception:
            module = None
    found = None if module is None else vars(module).get(name)
    return found if type(found) is kind and _state_of(found) == state else _copy(kind, state)


def _state_of(obj: Any) -> Any:
    try:
        return obj.__reduce_ex__(PROTOCOL)[2]
    except Exception:
        return _state_of  # equal to no state that travels


def _copy(kind: type, state: Any) -> object:
    made: object = object.__new__(kind)
    for part in state if isinstance(state, tuple) else (state,):
        for name, value in (part or {}).items():
            object.__setattr__(made, name, value)
    return made


def identity_of(obj: object) -> str:
    """Give the identity that an object keeps wherever it travels; a new one if it has none."""
    identity = _identity_in(obj)
    if identity is None:
        identity = os.urandom(12).hex()
        assign_identity(identity, obj)
    return identity


def _identity_in(obj: object) -> str | None:
    known = _tracked.get(id(obj))
    return known[1] if known is not None and known[0]() is obj else None


def object_of(identity: str) -> Any:
    """Give the object of an identity; `None` if it is not in this process."""
    reference = _arrived.get(identity)
    return None if reference is None else reference()


def assign_identity(identity: str, obj: Any) -> Any:
    """Have an object keep an identity; return the object."""
    address = id(obj)

    def remove(gone: object) -> None:
        _tracked.pop(address, None)
        if _arrived.get(identity) is gone:
            del _arrived[identity]

    reference: Callable[[], Any]
    try:
        reference = weakref.ref(obj, remove)
    except TypeError:
        reference = lambda: obj  # noqa: E731 - a reference that is not weak
    _tracked[address] = reference, identity
    _tracked_kinds.add(id(type(obj)))
    _arrived[identity] = reference
    return obj


def _object_of_script(identity: str, kind: type) -> object:
    """Give the sentinel of a script that has this identity; a new one where there is none, or it has attributes now."""
    found = object_of(identity)
    if found is None or _state_of(found) is not None:
        found = assign_identity(identity, object.__new__(kind))
    return found
