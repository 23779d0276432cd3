"""What a predictor was made of when it was sent to workers, and what of that is another object now.

A function that travels by value uses variables of its module, of the functions around it and of the functions that it
names; what is assigned to one of them anew is meant for its next call. So what was there is noted when it is sent, and
compared by identity with every call: a tuple of addresses, made in C. Only where addresses differ are numbers and texts
compared by their value. An object that was changed in place is the same object, and is not noticed.

What is noted is kept alive only where nothing tells of its end, as with lists and dicts. Everything else is referred to
weakly, and once one is gone, what has its address now is another.
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

MOST_NAMES: Final = 64  # that are looked at with every call
_MOST_VISITED: Final = 1_000  # objects that are looked into when a predictor is sent
_FEW: Final = 64  # parts of a container that are
_PLAIN: Final = frozenset({int, float, complex, bool, str, bytes, type(None)})
_READS_GLOBALS: Final = frozenset(
    {"LOAD_GLOBAL", "STORE_GLOBAL", "DELETE_GLOBAL", "LOAD_NAME", "LOAD_FROM_DICT_OR_GLOBALS"}
)
_EMPTY: Final = object()  # stands for a variable that has no value yet
_PARTS: Final[dict[type, Callable[[Any], Iterable[Any]]]] = {
    types.MethodType: attrgetter("__func__", "__self__"),
    functools.partial: lambda made: (made.func, *made.args, *made.keywords.values()),
    CACHED: lambda made: (made.__wrapped__,),
    staticmethod: lambda made: (made.__func__,),
    classmethod: lambda made: (made.__func__,),
    property: attrgetter("fget", "fset", "fdel"),
    functools.cached_property: lambda made: (made.func,),
    dict: lambda made: tuple(made.values())[:_FEW],
    **dict.fromkeys((list, tuple, set, frozenset), lambda made: tuple(made)[:_FEW]),
}


class Snapshot:
    """What a predictor was made of.

    Args:
        target: the function, class or object.
        whole: names of modules of which everything travels by value.

    Attributes:
        holds: whether it keeps anything alive but numbers, texts and code.
    """

    __slots__ = ("_by_value_modules", "_functions", "_home", "_lost", "_meanwhile", "_variables", "holds")

    def __init__(self, target: Any, by_value_modules: Collection[str] = ()) -> None:
        """Note what there is."""
        self._by_value_modules = by_value_modules
        self._meanwhile: set[str] = set()  # modules that it takes by value, which may go by name once more
        self._lost: list[object] = []  # references to what is gone
        self._functions: list[tuple[str, weakref.ref[types.FunctionType], types.CodeType, Any, Any]] = []
        named = _named(target)
        self._home = None if self._is_by_value(named) else NameBinding(named, named.__module__, named.__qualname__)
        self._variables: tuple[_Variables, ...] = tuple(self._found(target))
        defaults = [each for *_, given, named in self._functions for each in (given, named) if each is not None]
        self.holds = bool(defaults) or any(each.holds for each in self._variables)

    def change(self) -> str | None:
        """Tell what is another object than it was, by its name; `None` if nothing is."""
        home = self._home
        if home is not None and not home.is_bound():
            return home.path
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
        if self._meanwhile:
            for name in self._meanwhile:
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
            self._meanwhile.add(module)
        return True

    def _found(self, target: Any) -> Iterator[_Variables]:
        """Go through the functions that are reached from a target, those named by it first, and give what they use."""
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
        """What functions may be reached through."""
        kind = type(value)
        if kind in _PARTS:
            with suppress(RuntimeError):  # a set that another thread changes just now
                return _PARTS[kind](value)
            return ()
        if issubclass(kind, type):
            return (*vars(value).values(), *value.__bases__, kind) if self._is_by_value(value) else ()
        if kind is types.ModuleType or not self._is_by_value(kind):
            return ()
        with suppress(AttributeError, TypeError):
            return (kind, *tuple(object.__getattribute__(value, "__dict__").values())[:_FEW])
        return (kind,)


class NameBinding:
    """Where a function or class was found: by its name.

    Attributes:
        path: its name in its module.
    """

    __slots__ = ("_is_made_anew", "_module", "_named", "_names", "path")

    def __init__(self, named: Any, module: str, path: str) -> None:
        """Note what stands under the name."""
        self._named = named
        self._module = module
        self._names = path.split(".")
        self.path = path
        # A method of a class, and what a module makes when it is asked for, is another object each time.
        self._is_made_anew = self._found() is not self._found()

    def _found(self) -> Any:
        found: Any = sys.modules.get(self._module)
        for name in self._names:
            found = getattr(found, name, None)
        return found

    def is_bound(self) -> bool:
        """Whether it is still what its module has under that name."""
        return self._found() is self._named or self._is_made_anew

    def is_importable(self) -> bool:
        """Whether it is there, in a module that workers can import."""
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
        holds: whether what they held is kept alive, and is more than numbers and texts.
    """

    __slots__ = ("_function", "_ids", "_kept", "_lost", "_names", "holds")

    def __init__(self, function: types.FunctionType, names: Collection[str], lost: list[object]) -> None:
        self._function = weakref.ref(function)
        self._names = tuple(names)
        self._lost = lost
        self._note(self._values(function))

    @abstractmethod
    def _values(self, function: types.FunctionType) -> tuple[Any, ...]:
        """What they hold now."""

    def change(self) -> str | None:
        """Name one that holds another object than it did; `None` if all hold what they held."""
        function = self._function()
        if function is None:
            return "a function"
        values = self._values(function)
        return None if tuple(map(id, values)) == self._ids else self._difference(values)

    def _difference(self, values: tuple[Any, ...]) -> str | None:
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
        # Built-in ones, which a module may get of its own.
        self._absent = tuple(name for name in names if name not in scope)
        if len(present) == 1:
            present *= 2  # one alone would not be given as a tuple
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
        return None if tuple(map(id, values)) == self._ids else self._difference(values)


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
        return _EMPTY


def _nothing(_scope: Mapping[str, Any]) -> tuple[Any, ...]:
    return ()


def _keep(value: Any, lost: list[object]) -> Callable[[], Any]:
    """Keep what a variable holds: weakly, with a note of its end, or if that cannot be, alive."""
    with suppress(TypeError):
        return weakref.ref(value, lost.append)
    return lambda: value


def _is_same(then: Any, now: Any) -> bool:
    """Whether what a variable holds means what it did: the same object, or an equal number or text."""
    if then is now:
        return True
    if type(then) is not type(now) or type(now) not in _PLAIN or then != now:
        return False
    return bool(now) or repr(then) == repr(now)  # or zero, which has a sign


def _named(target: Any) -> Any:
    """The function or class by whose name a target is found."""
    while type(target) is functools.partial:
        target = target.func
    if type(target) is types.MethodType:
        target = target.__self__
    return target if type(target) in FUNCTIONS or isinstance(target, type) else type(target)


def defining_modules(target: Any) -> frozenset[str]:
    """The names of the modules that a predictor is defined in: that of its function, and of what that wraps."""
    found: set[str] = set()
    named = _named(target)
    while named is not None and len(found) < _FEW:
        module = getattr(named, "__module__", None)
        if isinstance(module, str) and getattr(sys.modules.get(module), "__spec__", None) is not None:
            found.add(module)
        named = vars(named).get("__wrapped__") if type(named) in {types.FunctionType, CACHED} else None
    return frozenset(found)


def is_function(target: Any) -> bool:
    """Whether a target is a function or a method, so that nothing was set up for it."""
    while type(target) is functools.partial:
        target = target.func
    return type(target) in FUNCTIONS or type(target) is types.MethodType


def _parts_of_function(function: types.FunctionType, names: Iterable[str]) -> Iterator[Any]:
    """What a function uses, and what functions may so be reached through."""
    scope = function.__globals__
    yield from (scope[name] for name in names if name in scope)
    yield from map(_content, function.__closure__ or ())
    yield from function.__defaults__ or ()
    yield from tuple((function.__kwdefaults__ or {}).values())
    yield from tuple(vars(function).values())


def global_names(code: types.CodeType) -> Iterator[str]:
    """The names of a module's variables that code uses, that of classes and functions made in it included."""
    import dis

    for instruction in dis.get_instructions(code):
        if instruction.opname in _READS_GLOBALS:
            yield instruction.argval
    for each in code.co_consts:
        if isinstance(each, types.CodeType):
            yield from global_names(each)
