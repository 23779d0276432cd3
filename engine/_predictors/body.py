"""What is started once: a predictor's function with the inputs of one call."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from engine._errors import PredictionCancelledError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from contextvars import Context

    from engine._records import Call


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
        context: the caller's `contextvars` as they were at the call; every step of the body runs inside it.
        slots: the `Slots` that bound the predictor's calls where it runs, if any do.
        limit: workers that may have it set up.
        release: gives back the body's concurrency slot, where it holds one; see `release_slot`.
        reduction: a `Reduction` where the owner is to keep it there instead of handing partials over one by one.
        recheck: has the thread or task that waits for a slot for this body look again.
        prepare: gives the function of a class predictor, set up first where it is not.
        aprepare: gives the function of a class that lives on the engine's loop, set up there first where it is not.
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
    reduction: Any = None
    recheck: Callable[[], None] | None = None
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
        """Call the function, once; its inputs are released, so that they live no longer than the body wants them.

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

    def cancel_start(self) -> bool:
        """Keep owners from beginning with it; tell whether none has begun: Ctrl-C may come just as one is started."""
        if self.is_started:
            return False
        self.function = _never_run  # call-free store: no owner begins between the test and this
        return True

    async def astart(self) -> Any:
        """Call the function, once, on the engine's loop, where a class that lives there is set up first."""
        if self.function is None and self.aprepare is not None:
            self.is_started = True
            self.function = await self.aprepare()
        return self.start()

    def release_slot(self) -> None:
        """Give the slot back; every owner calls this once the body is finalised, further calls do nothing."""
        release = self.release
        if release is not None:
            release()
            self.release = None  # last: where Ctrl-C comes before, the next call releases it


def _never_run(*_args: Any, **_inputs: Any) -> None:
    """Stand in for the function of a body whose start was cancelled: its consumer has left, and an owner may come."""
    raise PredictionCancelledError("", "")


def invoke(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Call `function`; a StopIteration that it raises ends no iterator, and arrives as RuntimeError (PEP 479)."""
    try:
        return function(*args, **kwargs)
    except (StopIteration, StopAsyncIteration) as error:
        raise stopped(error) from error


def stopped(error: BaseException) -> RuntimeError:
    """What a StopIteration or StopAsyncIteration raised by a predictor arrives as, in every cell."""
    return RuntimeError(f"the predictor raised {type(error).__name__}")
