"""The normaliser: any function, called once, seen as one iterator of partials.

This is the one room that knows the kinds of functions. What a call produces is decided by the object it returned, not
by inspecting the function: generators, async generators and awaitables are followed, other iterators only where the
author said so, everything else is one value. Runners decide where the iterator is pulled, policies how much is kept.
"""

from __future__ import annotations

import math
import sys
import types
from abc import ABCMeta
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Generator, Iterator
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from engine._errors import PredictionCancelledError, PredictorError, name_shown, say

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextvars import Context

    from engine._channel import Reduction
    from engine._records import Call

ONE: Final = "one value"
ITERATOR: Final = "iterator"
ASYNC: Final = "async iterator"
AWAITABLE: Final = "awaitable"

# The classes most functions return, none of which is ever followed: one set look-up instead of three ABC checks.
PLAIN: Final = frozenset({str, bytes, int, float, bool, type(None), dict, list, tuple, set, complex, bytearray, range})

_ITERABLE_COROUTINE: Final = 0x100  # code flag of generators made awaitable by types.coroutine
_ASYNC_CODE: Final = 0x80 | 0x100 | 0x200  # coroutine, iterable coroutine, async generator
_NOTE: Final = "predictor "  # how our one note on a predictor's exception begins


class Body:
    """A predictor's function ready to be started once: what a runner is given.

    It is made on the hot path: what few calls have is a default of the class.

    Attributes:
        call: the identity of the call, for messages.
        function: what to call, complete (an instance's bound method, never a class); `None` while that instance is
            still to be made by `prepare`.
        args: positional inputs.
        kwargs: inputs by name.
        follows: whether an iterator that is no generator is a stream of partials.
        context: the caller's `contextvars` at the moment of the call; every step of the body runs inside it.
        slots: the `Slots` that bound the predictor's calls where it runs, if any do.
        limit: workers that may have it set up.
        release: gives back the body's concurrency slot, where it holds one; see `let_go`.
        reduction: where set, the owner keeps the reduction there instead of handing partials over one by one.
        nudge: wakes whoever waits for a slot on this body's behalf.
        prepare: gives the function of a class predictor, set up first where nobody has.
        aprepare: the same on the engine's loop.
        is_started: whether the predictor's code has been reached: what fails before is not its failure.
        target: the function, class or object itself, or `"module:name"` where other processes find it by that: what a
            runner that runs bodies in other processes sends there, with `args` and `kwargs`, instead of starting it.
        by_value: whether its author wishes it to be sent by value though it could be imported there.
        bind: with such a name, whether the inputs, all in `kwargs`, are still to be checked where the body runs;
            `None` where they are bound already.
    """

    release: Callable[[], None] | None = None
    slots: Any = None
    limit: float = math.inf
    reduction: Reduction | None = None
    nudge: Callable[[], None] | None = None
    prepare: Callable[[], Callable[..., Any]] | None = None
    aprepare: Callable[[], Awaitable[Callable[..., Any]]] | None = None
    is_started: bool = False
    target: Any = None
    by_value: bool = False
    bind: bool | None = None

    def __init__(  # noqa: PLR0917 - as attrs would make it
        self,
        call: Call,
        function: Callable[..., Any] | None,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        follows: bool,  # noqa: FBT001
        context: Context,
    ) -> None:
        """Note what is to be run, and as what."""
        self.call = call
        self.function = function
        self.args = args
        self.kwargs = kwargs
        self.follows = follows
        self.context = context

    def start(self) -> Any:
        """Call the function, once; its inputs are let go, so that they live no longer than the body wants them.

        Raises:
            PredictionCancelledError: the call was stopped while its class was set up, which nothing interrupts.
        """
        self.is_started = True
        function, args, kwargs = self.function, self.args, self.kwargs
        self.function, self.args, self.kwargs = None, (), {}
        if function is None:
            if self.prepare is None:
                raise AssertionError("a body is started once")
            function = self.prepare()
            if self.call.stopping:
                raise PredictionCancelledError(self.call.tag, self.call.id)
        try:
            return function(*args, **kwargs)
        except (StopIteration, StopAsyncIteration) as error:  # as in `invoke`
            raise stopped(error) from error

    def withhold(self) -> bool:
        """Have no owner begin with it any more; tell whether none has: Ctrl-C may come just as one is started."""
        if self.is_started:
            return False
        self.function = _never_run  # no call stands between the test and this, so no owner begins in between either
        return True

    async def astart(self) -> Any:
        """Call the function, once, on the engine's loop, where a class that lives there is set up first."""
        if self.function is None and self.aprepare is not None:
            self.is_started = True
            self.function = await self.aprepare()
        return self.start()

    def let_go(self) -> None:
        """Give the slot back; every owner calls this once the body is finalised, further calls do nothing."""
        release, self.release = self.release, None
        if release is not None:
            release()


def _never_run(*_args: Any, **_inputs: Any) -> None:
    """What an owner calls that comes to a body whose consumer has left already; nobody hears of this."""
    raise PredictionCancelledError("", "")


def invoke(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Call `function`; a StopIteration it raises is no end of anything (PEP 479)."""
    try:
        return function(*args, **kwargs)
    except (StopIteration, StopAsyncIteration) as error:
        raise stopped(error) from error


def stopped(error: BaseException) -> RuntimeError:
    """What a StopIteration or StopAsyncIteration raised by a predictor arrives as, in every cell."""
    return RuntimeError(f"the predictor raised {type(error).__name__}")


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
    """Tell what a value is by its class; a stand-in for a generator must have the methods of an iterator itself."""
    is_a: Callable[[type, Any], bool] = issubclass if type(kind) is type or type(kind) is ABCMeta else _has_methods_of
    if is_a(kind, Generator):
        return ITERATOR
    if is_a(kind, AsyncGenerator):
        return ASYNC
    if is_a(kind, Awaitable):
        return AWAITABLE
    said = _said_class(value)
    if (follows or said is types.AsyncGeneratorType) and is_a(kind, AsyncIterator):
        return ASYNC
    return ITERATOR if (follows or said is types.GeneratorType) and is_a(kind, Iterator) else ONE


def _said_class(value: object) -> Any:
    """What an object says that it is, which those pass on that stand for another."""
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
    """Tell what `issubclass` does, of a class that may refuse to be hashed, as that does."""
    order = [_members_of(each) for each in _order_of(kind)]
    found = (next((members[name] for members in order if name in members), None) for name in _METHODS[protocol])
    return all(each is not None for each in found)


def one(value: Any) -> Generator[Any, None, Any]:
    """A stream of one: the uniform iterator over a value that was returned, which is its return value too."""
    yield value
    return value


async def settle(produced: Any, follows: bool) -> tuple[str, Any]:  # noqa: FBT001
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


def dispose(produced: Any) -> None:
    """Let go of something async that will never be run, without a warning that nobody awaited it."""
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


def is_foreign_cancel(error: BaseException) -> bool:
    """Whether this is asyncio's CancelledError, told without importing asyncio."""
    # The class is looked for, not the module: another thread may have imported only half of that so far.
    cancelled = getattr(sys.modules.get("asyncio.exceptions"), "CancelledError", None)
    return cancelled is not None and isinstance(error, cancelled)


def explain(error: BaseException, call: Call, delivered: int) -> BaseException:
    """Give the exception that arrives at the consumer for one the body raised.

    Args:
        error: what came out of the body.
        call: named in the note.
        delivered: partials the consumer had before it.

    Returns:
        `error` itself with one note of ours, or what stands for it: `RuntimeError` for a StopIteration,
        `PredictorError` for what would end more than the call (SystemExit, KeyboardInterrupt, a CancelledError nobody
        asked for, GeneratorExit). The original is then its `__cause__`.
    """
    if isinstance(error, (StopIteration, StopAsyncIteration)):
        failure: BaseException = stopped(error)
        failure.__cause__ = error
    elif isinstance(error, (SystemExit, KeyboardInterrupt, GeneratorExit)) or is_foreign_cancel(error):
        name, text = type(error).__name__, say(error)
        failure = PredictorError(f"the predictor raised {name_shown(name)}{f': {text}' if text else ''}", name)
        failure.__cause__ = error
    else:
        failure = error
        trim(error)
    _note(failure, call, delivered)
    return failure


def trim(error: BaseException) -> None:
    """Begin the traceback where the predictor's own code begins, if it does anywhere."""
    entry = error.__traceback__
    ours: list[types.FrameType] = []
    while entry is not None and entry.tb_frame.f_globals.get("__name__", "").startswith("engine."):
        ours.append(entry.tb_frame)
        entry = entry.tb_next
    if entry is not None:
        BaseException.with_traceback(error, entry)  # the class's own may be anything
        for frame in ours:  # the predictor's frames still refer to them, and they to streams and inputs
            with suppress(RuntimeError):  # those that run just now take care of themselves
                frame.clear()


def _note(error: BaseException, call: Call, delivered: int) -> None:
    text = f"{_NOTE}{call.tag}, prediction {call.id}, runner {call.runner}, after {delivered} partials"
    try:
        notes = getattr(error, "__notes__", ())
        ours = [note for note in notes if isinstance(note, str) and note.startswith(_NOTE) and ", prediction " in note]
        for note in ours:
            error.__notes__.remove(note)
        error.add_note(text)
    except Exception:  # noqa: S110 - an exception may refuse attributes: then it arrives without a note
        pass
