"""The program's `__main__` as far as a worker has it.

What a script defines travels by value, and what it was defined in does not. So that `pickle`, `typing.get_type_hints`,
`multiprocessing` and `import __main__` find there what they would find in the program, each predictor of a script has a
`__main__` of its own in a worker, while it is rebuilt and while its calls run: its globals, and by their names the
classes and functions of the script that came with it or with its inputs. Other names of the script are not there.
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

_arriving: Final[list[types.ModuleType]] = []  # that of the predictor which is rebuilt just now
_taken: Final[list[types.ModuleType]] = []  # the same, once something of the script has come with it


class MainModules:
    """What is `__main__` in a worker while it serves one predictor or another."""

    def __init__(self) -> None:
        """Hide the line that started the worker."""
        self._of_none = types.ModuleType("__main__")
        self._started_by = sys.modules["__main__"]  # kept, for it runs
        self._own: dict[int, types.ModuleType] = {}  # by the numbers of predictors

    def enter(self, key: int) -> None:
        """Have the predictor of this number find its own."""
        sys.modules["__main__"] = self._own.get(key, self._of_none)

    @contextmanager
    def arrival(self, key: int) -> Iterator[None]:
        """Give a predictor that is rebuilt meanwhile one of its own, if it is of a script."""
        _arriving[:], _taken[:] = [types.ModuleType("__main__")], []
        try:
            yield
            self._own.update((key, each) for each in _taken)
        finally:
            _arriving[:], _taken[:] = [], []
            self.enter(key)

    def forget(self, key: int) -> None:
        """The predictor of this number is gone."""
        self._own.pop(key, None)


class MainScope:
    """Stands in a pickle for the variables of a program's `__main__`, which its functions share as globals."""

    def __init__(self, scope: Mapping[str, Any]) -> None:
        """Take what tells of the module itself; its functions bring the variables that they use."""
        self._facts = {name: scope[name] for name in ("__name__", "__package__", "__file__") if name in scope}
        spec = scope.get("__spec__")
        self._spec = None if spec is None else (spec.name, spec.origin)

    def __reduce__(self) -> Any:
        """Be those of the other side's."""
        return _scope, (self._facts, self._spec)


def _scope(facts: dict[str, Any], spec: tuple[str, str | None] | None) -> dict[str, Any]:
    if not _arriving:  # in the program, or with an input
        return dict(facts)
    module = _arriving[0]
    vars(module).update(facts)
    if spec is not None:  # it was started with `-m`, as `multiprocessing` wants to know
        module.__spec__ = ModuleSpec(spec[0], None, origin=spec[1])
    _taken[:] = _arriving
    sys.modules["__main__"] = module
    return vars(module)


def publish_class(own: Mapping[str, Any], used: Mapping[str, Any]) -> None:
    """In a worker, have `__main__` have a class of the script by its name, and what its annotations name."""
    if is_worker():
        scope = vars(sys.modules["__main__"])
        for name, value in used.items():
            scope.setdefault(name, value)
        scope.update(own)


def publish_function(name: str, function: types.FunctionType) -> None:
    """In a worker, have `__main__` have a function that came with an input, where it has none of its own."""
    if is_worker() and not _arriving:
        module = sys.modules["__main__"]
        lent = _lent.setdefault(module, set())
        if name in lent or name not in vars(module):
            lent.add(name)
            setattr(module, name, function)


_lent: Final[WeakKeyDictionary[types.ModuleType, set[str]]] = WeakKeyDictionary()


def variables_of_main() -> dict[str, Any]:
    """The variables of this process's `__main__`."""
    return vars(sys.modules["__main__"]) if "__main__" in sys.modules else {}
