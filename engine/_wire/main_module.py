"""The program's `__main__`, as far as a worker has it.

What a script defines travels by value, and its module does not. So that `pickle`, `typing.get_type_hints`,
`multiprocessing` and `import __main__` find there what they would find in the program, each predictor of a script has a
`__main__` of its own in a worker, which is in `sys.modules` while it is rebuilt and while its calls run. It binds the
predictor's globals, and the classes and functions of the script that came with it or with its inputs; no other names.
"""

from __future__ import annotations

import sys
import types
from contextlib import contextmanager
from importlib.machinery import ModuleSpec
from typing import TYPE_CHECKING, Any, Final
from weakref import WeakKeyDictionary

from engine._records import is_worker

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_receiving: Final[list[types.ModuleType]] = []  # the module of the predictor that is being rebuilt
_used: Final[list[types.ModuleType]] = []  # that module, once something of the script was put into it


class MainModules:
    """The `__main__` modules of a worker's predictors, of which `sys.modules` has that of the one it serves."""

    def __init__(self) -> None:
        """Hide the module that started the worker."""
        self._empty = types.ModuleType("__main__")  # for predictors that are of no script
        self._started_by = sys.modules["__main__"]  # kept, for its code is running
        self._modules: dict[int, types.ModuleType] = {}  # by the keys of predictors

    def enter(self, key: int) -> None:
        """Put the module of the predictor with this key into `sys.modules`."""
        sys.modules["__main__"] = self._modules.get(key, self._empty)

    @contextmanager
    def receiving(self, key: int) -> Iterator[None]:
        """Give the predictor that is rebuilt meanwhile a module of its own, if it is of a script."""
        _receiving[:], _used[:] = [types.ModuleType("__main__")], []
        try:
            yield
            self._modules.update((key, each) for each in _used)
        finally:
            _receiving[:], _used[:] = [], []
            self.enter(key)

    def release(self, key: int) -> None:
        """Drop the module of a predictor that was unloaded."""
        self._modules.pop(key, None)


class MainScope:
    """Stands in a pickle for the variables of a program's `__main__`, which its functions share as globals."""

    def __init__(self, scope: Mapping[str, Any]) -> None:
        """Take what describes the module itself; its functions bring the variables that they use."""
        self._facts = {name: scope[name] for name in ("__name__", "__package__", "__file__") if name in scope}
        spec = scope.get("__spec__")
        self._spec = None if spec is None else (spec.name, spec.origin)

    def __reduce__(self) -> Any:
        """Be rebuilt as the variables of the other side's `__main__`."""
        return _scope, (self._facts, self._spec)


def _scope(facts: dict[str, Any], spec: tuple[str, str | None] | None) -> dict[str, Any]:
    if not _receiving:  # in the program, or in a worker with an input
        return dict(facts)
    module = _receiving[0]
    vars(module).update(facts)
    if spec is not None:  # it was started with `-m`, as `multiprocessing` wants to know
        module.__spec__ = ModuleSpec(spec[0], None, origin=spec[1])
    _used[:] = _receiving
    sys.modules["__main__"] = module
    return vars(module)


def publish_class(own: Mapping[str, Any], used: Mapping[str, Any]) -> None:
    """In a worker, bind a class of the script, and what its annotations name, in `__main__`."""
    if is_worker():
        scope = vars(sys.modules["__main__"])
        for name, value in used.items():
            scope.setdefault(name, value)
        scope.update(own)


def publish_function(name: str, function: types.FunctionType) -> None:
    """In a worker, bind a function that came with an input in `__main__`, unless that has the name already."""
    if is_worker() and not _receiving:
        module = sys.modules["__main__"]
        published = _published.setdefault(module, set())
        if name in published or name not in vars(module):
            published.add(name)
            setattr(module, name, function)


_published: Final[WeakKeyDictionary[types.ModuleType, set[str]]] = WeakKeyDictionary()  # names bound so, by module


def variables_of_main() -> dict[str, Any]:
    """Give the variables of this process's `__main__`."""
    return vars(sys.modules["__main__"]) if "__main__" in sys.modules else {}
