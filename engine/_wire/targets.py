"""Predictors to bytes: by reference where a worker can import them, by value otherwise."""

from __future__ import annotations

import contextlib
import types
from typing import TYPE_CHECKING, Any

from engine._errors import quote
from engine._wire.incremental import PickleWriter
from engine._wire.picklers import dump, payload_error

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator


def encode_target(tag: str, target: Any, by_value_modules: Collection[str] = ()) -> bytes:
    """Encode a function, class or object to run: by reference where the other side can import it.

    Args:
        tag: its tag.
        target: the function, class or object.
        by_value_modules: names of modules of which everything goes by value, importable or not.

    Raises:
        PayloadError: it cannot travel; the variable that cannot is named.
    """
    try:
        return _pickled_target(target, by_value_modules)
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        failure = error
    name, value = _culprit(target, by_value_modules)
    what = f"the predictor {tag}" if name is None else f"{quote(name)}, which the predictor {tag} uses,"
    raise payload_error(what, target if name is None else value, failure) from failure


def _pickled_target(target: Any, by_value_modules: Collection[str]) -> bytes:
    file = PickleWriter()
    dump(target, file, None, allows_files=False, by_value_modules=by_value_modules)
    return file.joined()


def _culprit(target: Any, by_value_modules: Collection[str]) -> tuple[str | None, object]:
    """Find the variable of a function, or of a class's methods, that cannot travel."""
    own = (
        [each for name, each in vars(target).items() if name != "__annotate_func__"] if isinstance(target, type) else ()
    )
    for each in own or (target,):
        function = getattr(each, "__func__", each)
        if not isinstance(function, types.FunctionType):
            continue
        for name, value in _used_by(function).items():
            try:
                _pickled_target(value, by_value_modules)
            except KeyboardInterrupt:
                raise
            except BaseException:
                return name, value
    return None, None


def _used_by(function: types.FunctionType) -> dict[str, object]:
    """Give what a function refers to by name and value: globals, free variables, defaults of its parameters."""
    code, scope = function.__code__, function.__globals__
    used = {name: scope[name] for name in _names_in(code) if name in scope}
    for name, cell in zip(code.co_freevars, function.__closure__ or (), strict=False):
        with contextlib.suppress(ValueError):  # a variable that has no value yet
            used[name] = cell.cell_contents
    given = function.__defaults__ or ()
    used.update(zip(code.co_varnames[code.co_argcount - len(given) : code.co_argcount], given, strict=False))
    used.update(function.__kwdefaults__ or {})
    return used


def _names_in(code: types.CodeType) -> Iterator[str]:
    yield from code.co_names
    for each in code.co_consts:
        if isinstance(each, types.CodeType):
            yield from _names_in(each)
