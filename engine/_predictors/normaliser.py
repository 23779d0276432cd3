"""The normaliser: any function, called once, seen as one iterator of partials.

This is the one room that knows the kinds of functions. What a call produces is decided by the object it returned, not
by inspecting the function: generators, async generators and awaitables are followed, other iterators only where the
author said so, everything else is one value. Runners decide where the iterator is pulled, policies how much is kept.
"""

from __future__ import annotations

import sys
import types
from abc import ABCMeta
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Generator, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from engine._errors import PredictorError, name_shown
from engine._predictors.body import stopped

if TYPE_CHECKING:
    from collections.abc import Callable


ONE: Final = "one value"
ITERATOR: Final = "iterator"
ASYNC: Final = "async iterator"
AWAITABLE: Final = "awaitable"

# The classes most functions return, none of which is ever followed: one set look-up instead of three ABC checks.
PLAIN: Final = frozenset({str, bytes, int, float, bool, type(None), dict, list, tuple, set, complex, bytearray, range})

_ITERABLE_COROUTINE: Final = 0x100  # code flag of generators made awaitable by types.coroutine
_ASYNC_CODE: Final = 0x80 | 0x100 | 0x200  # coroutine, iterable coroutine, async generator


def look(value: object, follows: bool) -> str:  # noqa: FBT001 - the second fact about every function
    """Tell what a predictor produced: `ONE`, `ITERATOR`, `ASYNC` or `AWAITABLE`.

    Args:
        value: what the function returned, or what awaiting it gave.
        follows: whether the author declared that a returned iterator is a stream of partials.
    """
    kind = type(value)
    if type(kind) is type and kind in PLAIN:  # a class of another kind may refuse to be hashed
        return ONE
    if kind is types.GeneratorType:
        is_coroutine = value.gi_code.co_flags & _ITERABLE_COROUTINE  # type: ignore[attr-defined]
        return AWAITABLE if is_coroutine else ITERATOR
    if kind is types.AsyncGeneratorType:
        return ASYNC
    if kind is types.CoroutineType:
        return AWAITABLE
    return _look_closer(value, kind, follows)


def _look_closer(value: object, kind: type, follows: bool) -> str:  # noqa: FBT001
    """Tell what a value is by its class; a proxy of a generator must have the methods of an iterator itself."""
    is_a: Callable[[type, Any], bool] = issubclass if type(kind) is type or type(kind) is ABCMeta else _has_methods_of
    if is_a(kind, Generator):
        return ITERATOR
    if is_a(kind, AsyncGenerator):
        return ASYNC
    if is_a(kind, Awaitable):
        return AWAITABLE
    said = _claimed_class(value)
    if (follows or said is types.AsyncGeneratorType) and is_a(kind, AsyncIterator):
        return ASYNC
    return ITERATOR if (follows or said is types.GeneratorType) and is_a(kind, Iterator) else ONE


def _claimed_class(value: object) -> Any:
    """The class that an object claims; a proxy claims that of the object it stands for."""
    try:
        return value.__class__
    except Exception:
        return None


# What makes a class one of each, and what a class has, whatever its metaclass has under these names.
_METHODS: Final[dict[type, tuple[str, ...]]] = {
    Generator: ("__iter__", "__next__", "send", "throw", "close"),
    AsyncGenerator: ("__aiter__", "__anext__", "asend", "athrow", "aclose"),
    Awaitable: ("__await__",),
    AsyncIterator: ("__aiter__", "__anext__"),
    Iterator: ("__iter__", "__next__"),
}
_order_of, _members_of = (vars(type)[name].__get__ for name in ("__mro__", "__dict__"))


def _has_methods_of(kind: type, protocol: type) -> bool:
    """Whether a class has the methods of a protocol; `issubclass` would hash the class, which may refuse that."""
    order = [_members_of(each) for each in _order_of(kind)]
    found = (next((members[name] for members in order if name in members), None) for name in _METHODS[protocol])
    return all(each is not None for each in found)


def one(value: Any) -> Generator[Any, None, Any]:
    """A stream of one: the uniform iterator over a value that was returned, which is its return value too."""
    yield value
    return value


async def awaited(produced: Any, follows: bool) -> tuple[str, Any]:  # noqa: FBT001
    """Await what was produced until it is no awaitable; give its kind and itself.

    Raises:
        PredictorError: it is a Future that belongs to another event loop.
    """
    kind = look(produced, follows)
    while kind is AWAITABLE:
        _refuse_foreign(produced)
        try:
            produced = await produced
        except (StopIteration, StopAsyncIteration) as error:
            raise stopped(error) from error
        kind = look(produced, follows)
    return kind, produced


def _refuse_foreign(awaitable: Any) -> None:
    import asyncio

    if asyncio.isfuture(awaitable) and awaitable.get_loop() is not asyncio.get_running_loop():
        raise PredictorError(
            f"the predictor returned a {name_shown(type(awaitable).__name__)} that belongs to another event loop: "
            "await it inside an `async def` predictor, or return its result",
            type(awaitable).__qualname__,
        )


def first_step(iterator: AsyncIterator[Any]) -> Awaitable[Any]:
    """The first `__anext__` of a predictor's async iterator, unseen by the event loop's finaliser.

    The loop would close an abandoned generator in a context of its own; the engine's owner closes it in its own.
    """
    hooks = sys.get_asyncgen_hooks()
    sys.set_asyncgen_hooks(None, None)
    try:
        return iterator.__anext__()
    finally:
        sys.set_asyncgen_hooks(*hooks)


def close_iterator(iterator: Any) -> None:
    """Finalise a sync iterator that was left before its end."""
    close = getattr(iterator, "close", None)
    if close is not None:
        close()


async def aclose_iterator(iterator: Any) -> None:
    """Finalise an async iterator that was left before its end."""
    close = getattr(iterator, "aclose", None)
    if close is not None:
        await close()


def close_unstarted(produced: Any) -> None:
    """Close something async that will never be run, so that Python does not warn that it was never awaited."""
    close = getattr(produced, "close", None) or getattr(produced, "cancel", None)
    if close is not None:
        close()


def is_async(target: object) -> bool:
    """The colour of a callable, read from the function inside its wrappers; it decides where the body starts."""
    seen: set[int] = set()
    while id(target) not in seen:
        seen.add(id(target))
        if isinstance(target, partial):
            target = target.func
        elif isinstance(target, (staticmethod, classmethod, types.MethodType)):
            target = target.__func__
        elif hasattr(target, "__wrapped__"):
            target = target.__wrapped__
        elif not hasattr(target, "__code__") and not isinstance(target, type) and hasattr(type(target), "__call__"):  # noqa: B004 - the type's own method is wanted
            target = type(target).__call__
    code = getattr(target, "__code__", None)
    return bool(getattr(code, "co_flags", 0) & _ASYNC_CODE)
