"""Pickling by value, through cloudpickle, of what the other side cannot import.

Imported only when first needed, since cloudpickle is slow to import. Pickles refer to the functions below by name.
"""

from __future__ import annotations

import functools
import importlib
import io
import sys
import types
from collections import ChainMap
from contextlib import suppress
from inspect import CO_OPTIMIZED
from typing import TYPE_CHECKING, Any, ClassVar, Final
from weakref import WeakValueDictionary

import cloudpickle

from engine._wire.by_reference import CACHED, HEAP_TYPE, importable, is_importable, is_importable_module
from engine._wire.main_module import MainScope, publish_class, publish_function, variables_of_main
from engine._wire.sentinels import has_own_sentinels, has_sentinels, reduced_sentinel
from engine._wire.target_snapshots import global_names
from engine._wire.typing_objects import TypingReducer, is_self_named

if TYPE_CHECKING:
    import pickle
    from collections.abc import Callable, Collection, Iterable, Iterator, Mapping

_WITH_SETTER: Final = 6  # parts of a reduction that has a function to set the state, as that of a class by value has
_registered: Final[set[str]] = set()  # modules registered with cloudpickle, so that everything in them goes by value
_sent: Final[WeakValueDictionary[int, type]] = (
    WeakValueDictionary()
)  # classes made here that travelled by value, by address
_received: Final[WeakValueDictionary[int, type]] = WeakValueDictionary()  # classes that arrived by value, by address
_plain_code: Final = cloudpickle.Pickler.dispatch_table[types.CodeType]


def _reduced_code(code: types.CodeType) -> Any:
    return _code_of_file, (code.co_filename, *_plain_code(code))


class ByValuePickler(cloudpickle.Pickler):  # type: ignore[misc]  # untyped
    """Pickles by value what is defined in a module that the other side cannot import.

    Attributes:
        without_constructor: the `id` of exceptions that will be rebuilt without their constructor.
        allows_files: whether a text file that is open for reading arrives as what is left to read in it.
        by_value_modules: names of modules of which everything goes by value though the other side could import them.
        reduce_failure: how an exception is reduced.
    """

    dispatch_table: ClassVar[Any] = ChainMap({types.CodeType: _reduced_code}, cloudpickle.Pickler.dispatch_table)
    without_constructor: Collection[int] = ()
    allows_files = True
    by_value_modules: Collection[str] = ()
    reduce_failure: Callable[[BaseException, Collection[int]], Any]

    def __init__(self, file: io.BytesIO, protocol: int, callback: Callable[[pickle.PickleBuffer], Any] | None) -> None:
        """Pickle into `file`, and give buffers to `callback`."""
        super().__init__(file, protocol, callback)
        self._typing = TypingReducer()
        self._main: MainScope | None = None
        # Addresses of classes whose instances need nothing of this class; what is being pickled keeps them alive.
        self._ordinary: set[int] = set()
        self._tried: dict[int, bool] | None = {}  # by address: whether an optional value can travel; None in a trial

    def _function_getnewargs(self, func: types.FunctionType) -> Any:
        code, scope, *rest = super()._function_getnewargs(func)
        return code, self._scope_of(func.__globals__) or scope, *rest

    def _scope_of(self, scope: dict[str, Any]) -> MainScope | None:
        """Give what stands for the variables of `__main__`; `None` for those of any other module."""
        if scope is not variables_of_main():
            return None
        if self._main is None:
            self._main = MainScope(scope)
        return self._main

    def _dynamic_function_reduce(self, func: types.FunctionType) -> Any:
        readable = _readable(func)
        reduced = super()._dynamic_function_reduce(readable)
        facts, scope = reduced[2][1], func.__globals__
        sent = facts["__globals__"]
        sent.update((name, scope[name]) for name in _used_in_classes(func.__code__) if name in scope)
        for name, value in self._optional(_named_in(readable.__annotations__, func.__code__), scope).items():
            sent.setdefault(name, value)
        variables = getattr(func, "__type_params__", ())
        if variables:
            facts["__type_params__"] = variables
        if scope.get(func.__name__) is not func or scope is not variables_of_main():
            return reduced
        sent[func.__name__] = func
        return *reduced[:2], (reduced[5], reduced[2], func.__name__), None, None, _fill_function

    def _optional(self, names: Iterable[str], scope: Mapping[str, Any]) -> dict[str, Any]:
        """Give those variables of a module that can travel: only annotations refer to them, and no code needs them."""
        if self._tried is None:
            return {}
        return {name: scope[name] for name in names if name in scope and self._can_travel(scope[name], self._tried)}

    def _can_travel(self, value: Any, tried: dict[int, bool]) -> bool:
        if id(value) not in tried:
            trial = ByValuePickler(io.BytesIO(), self.proto, None)
            trial._tried, trial.reduce_failure = None, self.reduce_failure
            trial.allows_files, trial.by_value_modules = False, self.by_value_modules
            try:
                trial.dump(value)
                tried[id(value)] = True
            except Exception:
                tried[id(value)] = False
        return tried[id(value)]

    def reducer_override(self, obj: Any) -> Any:
        """Reduce an object that plain pickle would not, or not so."""
        kind = type(obj)
        if id(kind) in self._ordinary:  # the fast path: most objects are of a class that was seen before
            return NotImplemented
        if isinstance(obj, (type, types.FunctionType, types.ModuleType)):
            _note_module(obj)
        if isinstance(obj, BaseException):
            return self.reduce_failure(obj, self.without_constructor)
        if not isinstance(obj, (type, types.FunctionType)):
            _refuse_copy(obj, allows_files=self.allows_files)
            reduced = self._typing.reduced(obj) or _reduced_instance(obj)
            if reduced is NotImplemented and _is_ordinary(kind):
                self._ordinary.add(id(kind))
            return reduced
        is_whole = self.by_value_modules and obj.__module__ in self.by_value_modules and _is_made_at_run_time(obj)
        reduced = self._reduced_by_value(obj) if is_whole else super().reducer_override(obj)
        if isinstance(obj, type) and isinstance(reduced, tuple) and len(reduced) == _WITH_SETTER:
            if id(obj) not in _received:
                _sent[id(obj)] = obj
            annotations = _put_annotations(obj, reduced[2][0])
            state = reduced[5], reduced[2], obj.__qualname__, self._bound_in_main(obj, annotations)
            return (*reduced[:2], state, None, None, _fill_class)
        return reduced

    def _bound_in_main(self, cls: type, annotations: dict[str, Any]) -> Any:
        """Give the names that a script binds to its class, and those in its annotations; `None` for any other class."""
        scope = variables_of_main()
        if cls.__module__ != "__main__":
            return None
        own = {cls.__name__: cls} if scope.get(cls.__name__) is cls else {}
        return self._scope_of(scope), own, self._optional(_named_in(annotations), scope)

    def _reduced_by_value(self, obj: Any) -> Any:
        """Reduce a class or function by value, even one that is importable."""
        if isinstance(obj, type):
            return cloudpickle.cloudpickle._dynamic_class_reduce(obj)  # noqa: SLF001 - the public way is per module, not per pickle
        return self._dynamic_function_reduce(obj)


def _readable(function: types.FunctionType) -> types.FunctionType:
    """Give a function whose annotations can be read: itself, or a copy that has them as texts.

    From Python 3.14 on, annotations are evaluated when first read, and may name what only a type checker imports.
    """
    try:
        function.__annotations__  # noqa: B018 - evaluated here
        return function
    except Exception:
        texts = _texts_of_annotations(function)
    made = types.FunctionType(
        function.__code__, function.__globals__, function.__name__, function.__defaults__, function.__closure__
    )
    made.__dict__.update(function.__dict__)
    for name in ("__kwdefaults__", "__qualname__", "__module__", "__doc__"):
        setattr(made, name, getattr(function, name))
    made.__annotations__ = texts
    return made


def _texts_of_annotations(annotated: Any) -> dict[str, Any]:
    annotationlib: Any = importlib.import_module(
        "annotationlib"
    )  # from Python 3.14 on, and only there can annotations fail
    texts: dict[str, Any] = annotationlib.get_annotations(annotated, format=annotationlib.Format.STRING)
    return texts


def _named_in(annotations: dict[str, Any], code: types.CodeType | None = None) -> Iterator[str]:
    """Give the names in annotations that are texts, and those that code may read as attributes of `__main__`."""
    for text in annotations.values():
        if type(text) is str:
            with suppress(SyntaxError, ValueError):
                yield from compile(text, "<annotation>", "eval").co_names
    if code is not None and "__main__" in code.co_names:
        yield from code.co_names


def _put_annotations(cls: type, state: dict[str, Any]) -> dict[str, Any]:
    """Put the annotations of a class into its `state`, and return them.

    cloudpickle leaves out those that are evaluated when first read, as from Python 3.14 on.
    """
    if "__annotate_func__" in vars(cls) and "__annotations__" not in state:
        try:
            annotations = cls.__annotations__
        except Exception:
            annotations = _texts_of_annotations(cls)
        state.pop("__annotations_cache__", None)
        state["__annotations__"] = annotations
    found: dict[str, Any] = state.get("__annotations__") or {}
    return found


def _is_made_at_run_time(obj: Any) -> bool:
    return not isinstance(obj, type) or bool(obj.__flags__ & HEAP_TYPE)


def _used_in_classes(code: types.CodeType) -> Iterator[str]:
    """Give the globals that class bodies inside a function use; cloudpickle leaves them out."""
    for each in code.co_consts:
        if isinstance(each, types.CodeType):
            yield from _used_in_classes(each) if each.co_flags & CO_OPTIMIZED else global_names(each)


def _note_module(obj: Any) -> None:
    """Register a module with cloudpickle for as long as what it defines cannot travel by reference."""
    name = getattr(obj, "__name__" if isinstance(obj, types.ModuleType) else "__module__", None)
    module = sys.modules.get(name or "")
    if not isinstance(module, types.ModuleType) or not module.__name__ == name != "__main__":
        return
    if not is_importable_module(module):
        _registered.add(module.__name__)
        cloudpickle.register_pickle_by_value(module)
    elif module.__name__ in _registered:  # imported again, and by now every running worker has it as it is
        _registered.discard(module.__name__)
        with suppress(ValueError):
            cloudpickle.unregister_pickle_by_value(module)


def _is_ordinary(kind: type) -> bool:
    """Whether cloudpickle reduces every instance of a class as it should, so that none needs to be looked at here."""
    if issubclass(kind, (io.TextIOWrapper, types.ModuleType, CACHED)) or is_self_named(kind):
        return False
    return not (has_sentinels(kind) if id(kind) in importable or is_importable(kind) else has_own_sentinels(kind))


def _reduced_instance(obj: Any) -> Any:
    """Reduce what is no class and no function, where cloudpickle would lose something."""
    if isinstance(obj, CACHED) and not is_importable(obj):
        return _cached, (obj.__wrapped__, obj.cache_parameters())
    kind = type(obj)
    is_by_value = id(kind) not in importable and not is_importable(kind)
    if is_by_value or has_sentinels(kind):
        return reduced_sentinel(obj, is_by_value=is_by_value) or NotImplemented
    return NotImplemented


def _refuse_copy(obj: object, *, allows_files: bool) -> None:
    """Refuse an open file, unless it is an input and only readable, so that a copy of its rest may stand for it."""
    if not isinstance(obj, io.TextIOWrapper) or obj is sys.stdout or obj is sys.stderr:
        return
    if not allows_files or "+" in getattr(obj, "mode", ""):
        raise TypeError(
            "an open file would be a copy of it there: open it inside the predictor, or pass its path as an input"
        )


def _fill_class(cls: type, filling: tuple[Callable[[type, Any], None], Any, str, Any]) -> None:
    """Set the state of a class that arrived by value; one that was made here is not changed when it comes back."""
    if id(cls) not in _sent:
        _received[id(cls)] = cls
        set_state, state, cls.__qualname__, in_main = filling  # cloudpickle does not restore the qualified name
        set_state(cls, state)
        if in_main is not None:
            publish_class(*in_main[1:])


def _fill_function(
    function: types.FunctionType, filling: tuple[Callable[[types.FunctionType, Any], None], Any, str]
) -> None:
    """Set the state of a function of a script, and bind its name."""
    set_state, state, name = filling
    set_state(function, state)
    publish_function(name, function)


def _cached(function: Callable[..., Any], parameters: dict[str, Any]) -> Any:
    """Give a function that arrived by value an empty cache of its own."""
    return functools.lru_cache(**parameters)(function)


def _code_of_file(name: str, make: Callable[..., types.CodeType], args: tuple[Any, ...]) -> types.CodeType:
    """Rebuild a function's code with the name of its file, which cloudpickle leaves out, and tracebacks show."""
    return make(*args).replace(co_filename=name)
