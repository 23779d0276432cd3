"""Snapshots of what a predictor was made of when it was sent to workers, to notice what is another object now.

A function that travels by value uses variables of its module, of the functions around it and of the functions that it
names; what is assigned to one of them anew is meant for its next call. So their values are noted when it is sent, and
compared by identity with every call: a tuple of addresses, made in C. Only where addresses differ are numbers and texts
compared by their value. An object that was changed in place is the same object, and is not noticed.

A value is kept alive only where it takes no weak references, as lists and dicts. Any other is referred to weakly, and
once it is gone, that counts as a change: another object may have its address by now.
"""

from __future__ import annotations

import functools
import sys
import types
import weakref
from abc import ABC, abstractmethod
from collections import deque
from contextlib import suppress
from operator import attrgetter, itemgetter
from typing import TYPE_CHECKING, Any, Final

from engine._wire.by_reference import CACHED, FUNCTIONS, is_importable, is_importable_module, is_reimported

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Mapping

MOST_NAMES: Final = 64  # variables that are compared with every call
_MOST_VISITED: Final = 1_000  # objects that are searched when a predictor is sent
_MOST_PARTS: Final = 64  # parts of one object that are searched, and functions wrapped in each other
_PLAIN: Final = frozenset({int, float, complex, bool, str, bytes, type(None)})
_READS_GLOBALS: Final = frozenset(
    {"LOAD_GLOBAL", "STORE_GLOBAL", "DELETE_GLOBAL", "LOAD_NAME", "LOAD_FROM_DICT_OR_GLOBALS"}
)
_UNBOUND: Final = object()  # stands for a variable that has no value yet
_PARTS: Final[dict[type, Callable[[Any], Iterable[Any]]]] = {
    types.MethodType: attrgetter("__func__", "__self__"),
    functools.partial: lambda made: (made.func, *made.args, *made.keywords.values()),
    CACHED: lambda made: (made.__wrapped__,),
    staticmethod: lambda made: (made.__func__,),
    classmethod: lambda made: (made.__func__,),
    property: attrgetter("fget", "fset", "fdel"),
    functools.cached_property: lambda made: (made.func,),
    dict: lambda made: tuple(made.values())[:_MOST_PARTS],
    **dict.fromkeys((list, tuple, set, frozenset), lambda made: tuple(made)[:_MOST_PARTS]),
}


class Snapshot:
    """What a predictor was made of when it was sent.

    Args:
        target: the function, class or object.
        by_value_modules: names of modules of which everything travels by value.

    Attributes:
        holds: whether it keeps anything alive but numbers, texts and code.
    """

    __slots__ = ("_binding", "_by_value_modules", "_functions", "_lost", "_reimported", "_variables", "holds")

    def __init__(self, target: Any, by_value_modules: Collection[str] = ()) -> None:
        """Note what the target is made of now."""
        self._by_value_modules = by_value_modules
        self._reimported: set[str] = set()  # modules that go by value for now; see `is_reimported`
        self._lost: list[object] = []  # weak references whose objects are gone
        self._functions: list[tuple[str, weakref.ref[types.FunctionType], types.CodeType, Any, Any]] = []
        named = _named(target)
        self._binding = None if self._is_by_value(named) else NameBinding(named, named.__module__, named.__qualname__)
        self._variables: tuple[_Variables, ...] = tuple(self._found(target))
        defaults = [each for *_, given, named in self._functions for each in (given, named) if each is not None]
        self.holds = bool(defaults) or any(each.holds for each in self._variables)

    def change(self) -> str | None:
        """Give the name of something that is another object than it was; `None` if nothing is."""
        binding = self._binding
        if binding is not None and not binding.is_bound():
            return binding.path
        for name, reference, code, defaults, named in self._functions:
            function = reference()
            if function is None or function.__code__ is not code:
                return name
            if function.__defaults__ is not defaults or function.__kwdefaults__ is not named:
                return name
        for variables in self._variables:
            changed = variables.change()
            if changed is not None:
                return changed
        if self._reimported:
            for name in self._reimported:
                if not is_reimported(name):
                    return name
        return "a variable" if self._lost else None

    def _is_by_value(self, named: Any) -> bool:
        module = getattr(named, "__module__", None)
        if module in self._by_value_modules or not hasattr(named, "__qualname__"):
            return True
        if is_importable(named):
            return False
        if isinstance(module, str) and is_reimported(module):
            self._reimported.add(module)
        return True

    def _found(self, target: Any) -> Iterator[_Variables]:
        """Search the functions that are reached from a target, breadth first, and give the variables that they use."""
        names: dict[int, tuple[types.FunctionType, dict[str, None]]] = {}  # those of each module, in order
        left = MOST_NAMES
        queue, seen = deque([target]), {id(target): target}
        while queue and len(seen) < _MOST_VISITED:
            value = queue.popleft()
            if type(value) is types.FunctionType:
                if len(self._functions) == MOST_NAMES or not self._is_by_value(value):
                    continue
                self._functions.append(self._facts(value))
                free = value.__code__.co_freevars
                left = max(0, left - len(free))
                if free:
                    yield _Free(value, free, self._lost)
                _, known = names.setdefault(id(value.__globals__), (value, {}))
                news = [name for name in global_names(value.__code__) if name not in known][:left]
                left -= len(news)
                known.update(dict.fromkeys(news))
                parts: Iterable[Any] = _parts_of_function(value, news)
            else:
                parts = self._parts(value)
            for part in parts:
                if type(part) not in _PLAIN and id(part) not in seen:
                    seen[id(part)] = part
                    queue.append(part)
        for function, used in names.values():
            if used:
                yield _Global(function, used, self._lost)

    @staticmethod
    def _facts(function: types.FunctionType) -> tuple[str, weakref.ref[types.FunctionType], types.CodeType, Any, Any]:
        reference = weakref.ref(function)
        return function.__qualname__, reference, function.__code__, function.__defaults__, function.__kwdefaults__

    def _parts(self, value: Any) -> Iterable[Any]:
        """Give the parts of an object through which functions may be reached."""
        kind = type(value)
        if kind in _PARTS:
            with suppress(RuntimeError):  # a set that another thread changes meanwhile
                return _PARTS[kind](value)
            return ()
        if issubclass(kind, type):
            return (*vars(value).values(), *value.__bases__, kind) if self._is_by_value(value) else ()
        if kind is types.ModuleType or not self._is_by_value(kind):
            return ()
        with suppress(AttributeError, TypeError):
            return (kind, *tuple(object.__getattribute__(value, "__dict__").values())[:_MOST_PARTS])
        return (kind,)


class NameBinding:
    """The name that a module binds to a function or class.

    Attributes:
        path: its name in its module.
    """

    __slots__ = ("_is_made_anew", "_module", "_named", "_names", "path")

    def __init__(self, named: Any, module: str, path: str) -> None:
        """Note the object, and its module and name there."""
        self._named = named
        self._module = module
        self._names = path.split(".")
        self.path = path
        # A bound method, and what a module's `__getattr__` makes, is another object each time it is read.
        self._is_made_anew = self._found() is not self._found()

    def _found(self) -> Any:
        found: Any = sys.modules.get(self._module)
        for name in self._names:
            found = getattr(found, name, None)
        return found

    def is_bound(self) -> bool:
        """Whether the module still binds the name to it."""
        return self._found() is self._named or self._is_made_anew

    def is_importable(self) -> bool:
        """Whether it is bound, in a module that workers can import."""
        module = sys.modules.get(self._module)
        return module is not None and is_importable_module(module) and self.is_bound()

    def always_bound(self) -> NameBinding:
        """Make a binding of the same name that counts as unchanged, whatever the name is bound to."""
        made = NameBinding(self._named, self._module, self.path)
        made._is_made_anew = True
        return made


class _Variables(ABC):
    """Variables that a function uses, and what they held.

    Attributes:
        holds: whether it keeps anything alive but numbers and texts.
    """

    __slots__ = ("_function", "_ids", "_kept", "_lost", "_names", "holds")

    def __init__(self, function: types.FunctionType, names: Collection[str], lost: list[object]) -> None:
        self._function = weakref.ref(function)
        self._names = tuple(names)
        self._lost = lost
        self._note(self._values(function))

    @abstractmethod
    def _values(self, function: types.FunctionType) -> tuple[Any, ...]:
        """Read their values now."""

    def change(self) -> str | None:
        """Name one that holds another object than it did; `None` if all hold what they held."""
        function = self._function()
        if function is None:
            return "a function"
        values = self._values(function)
        return None if tuple(map(id, values)) == self._ids else self._changed(values)

    def _changed(self, values: tuple[Any, ...]) -> str | None:
        for name, keep, value in zip(self._names, self._kept, values, strict=False):
            then = keep()
            if (then is None and type(keep) is weakref.ref) or not _is_same(then, value):
                return name
        self._note(values)
        return None

    def _note(self, values: tuple[Any, ...]) -> None:
        self._kept = [_keep(value, self._lost) for value in values]
        self._ids = tuple(map(id, values))
        self.holds = any(
            type(keep) is not weakref.ref and type(value) not in _PLAIN
            for keep, value in zip(self._kept, values, strict=True)
        )


class _Global(_Variables):
    """Variables of a function's module."""

    __slots__ = ("_absent", "_read")

    def __init__(self, function: types.FunctionType, names: Collection[str], lost: list[object]) -> None:
        scope = function.__globals__
        present = [name for name in names if name in scope]
        # Those are built-ins now; the module may define its own later, which hides them.
        self._absent = tuple(name for name in names if name not in scope)
        if len(present) == 1:
            present *= 2  # for one name, `itemgetter` would give no tuple
        self._read: Any = itemgetter(*present) if present else _nothing
        super().__init__(function, present, lost)

    def _values(self, function: types.FunctionType) -> tuple[Any, ...]:
        values: tuple[Any, ...] = self._read(function.__globals__)
        return values

    def change(self) -> str | None:
        """Name one that holds another object than it did, was deleted, or is there only now."""
        function = self._function()
        if function is None:
            return "a function"
        scope = function.__globals__
        for name in self._absent:
            if name in scope:
                return name
        try:
            values = self._read(scope)
        except KeyError as error:
            return str(error.args[0])
        return None if tuple(map(id, values)) == self._ids else self._changed(values)


class _Free(_Variables):
    """Variables of the functions around a function."""

    __slots__ = ()

    def _values(self, function: types.FunctionType) -> tuple[Any, ...]:
        cells: Any = function.__closure__
        try:
            return tuple(map(_held_by, cells))
        except ValueError:
            return tuple(map(_content, cells))


_held_by: Final = attrgetter("cell_contents")


def _content(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:
        return _UNBOUND


def _nothing(_scope: Mapping[str, Any]) -> tuple[Any, ...]:
    return ()


def _keep(value: Any, lost: list[object]) -> Callable[[], Any]:
    """Refer to a value: weakly, so that its end is noted in `lost`, or strongly where it has no weak references."""
    with suppress(TypeError):
        return weakref.ref(value, lost.append)
    return lambda: value


def _is_same(then: Any, now: Any) -> bool:
    """Whether a variable holds the same object as then, or an equal number or text."""
    if then is now:
        return True
    if type(then) is not type(now) or type(now) not in _PLAIN or then != now:
        return False
    return bool(now) or repr(then) == repr(now)  # 0.0 equals -0.0, which is another value


def _named(target: Any) -> Any:
    """Give the function or class by whose name a target is imported."""
    while type(target) is functools.partial:
        target = target.func
    if type(target) is types.MethodType:
        target = target.__self__
    return target if type(target) in FUNCTIONS or isinstance(target, type) else type(target)


def defining_modules(target: Any) -> frozenset[str]:
    """Give the names of the modules that a predictor is defined in: that of its function, and of those it wraps."""
    found: set[str] = set()
    named = _named(target)
    while named is not None and len(found) < _MOST_PARTS:
        module = getattr(named, "__module__", None)
        if isinstance(module, str) and getattr(sys.modules.get(module), "__spec__", None) is not None:
            found.add(module)
        named = vars(named).get("__wrapped__") if type(named) in {types.FunctionType, CACHED} else None
    return frozenset(found)


def is_function(target: Any) -> bool:
    """Whether a target is a function or a method, so that it has no set-up."""
    while type(target) is functools.partial:
        target = target.func
    return type(target) in FUNCTIONS or type(target) is types.MethodType


def _parts_of_function(function: types.FunctionType, names: Iterable[str]) -> Iterator[Any]:
    """Give what a function refers to, through which other functions may be reached."""
    scope = function.__globals__
    yield from (scope[name] for name in names if name in scope)
    yield from map(_content, function.__closure__ or ())
    yield from function.__defaults__ or ()
    yield from tuple((function.__kwdefaults__ or {}).values())
    yield from tuple(vars(function).values())


def global_names(code: types.CodeType) -> Iterator[str]:
    """Give the names of globals that code uses, including code of the classes and functions inside it."""
    import dis

    for instruction in dis.get_instructions(code):
        if instruction.opname in _READS_GLOBALS:
            yield instruction.argval
    for each in code.co_consts:
        if isinstance(each, types.CodeType):
            yield from global_names(each)
