"""A call that is checked becomes an execution: stepped by its caller, or consumed from an owner elsewhere."""

from __future__ import annotations

from contextvars import copy_context
from typing import TYPE_CHECKING, Any, ClassVar, Final

from engine._errors import EngineClosedError, NestingError
from engine._fork import renew_after_fork
from engine._predictors.body import Body
from engine._predictors.normaliser import ITERATOR, close_unstarted
from engine._records import LOCK_STEP, Call, current
from engine._reducers import BY_NAME
from engine.runners.base import OpenCalls
from engine.runners.channel import Channel
from engine.runners.inline import InlineExecution
from engine.runners.owned import OwnedExecution
from engine.runners.task import Handle, TaskExecution

if TYPE_CHECKING:
    from collections.abc import Mapping

    from engine._loaded import LoadedPredictor
    from engine._policies.placement import Placement
    from engine.runners.base import BodyRunner, FullRunner
    from engine.runners.channel import Reduction
    from engine.runners.loop import LoopRunner
    from engine.runners.thread import ThreadRunner

DEEPEST: Final = 50  # calls of predictors by predictors, one in another
_KEPT_BY_OWNERS: Final = tuple(BY_NAME.values())  # no code of the user's: reduced where the body runs


class Opening:
    """A call that is resolved and checked, and not opened yet.

    Attributes:
        loaded: what is called.
        args: its positional inputs, bound.
        kwargs: its inputs by name, bound.
        runner: the runner that its caller names.
        check: whether its caller wishes the inputs to be checked.
        prefetch: partials that the body may be ahead of a stream's consumer, where it runs elsewhere.
    """

    __slots__ = ("args", "check", "kwargs", "loaded", "prefetch", "runner")

    def __init__(  # noqa: PLR0917 - made at every call that takes no fast path
        self,
        loaded: LoadedPredictor,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        runner: str | None,
        check: bool | None,  # noqa: FBT001
        prefetch: int | None,
    ) -> None:
        self.loaded = loaded
        self.args = args
        self.kwargs = kwargs
        self.runner = runner
        self.check = check
        self.prefetch = prefetch


def bound(
    loaded: LoadedPredictor,
    inputs: Mapping[str, Any] | None,
    runner: str | None,
    check: bool | None,  # noqa: FBT001
    prefetch: int | None,
) -> Opening:
    """A call of a loaded predictor whose inputs are checked here.

    Raises:
        InvalidInputError: they do not fit.
    """
    profile = loaded.profile
    args, kwargs = (profile.bind if check is None else profile.binder(check))(inputs)
    return Opening(loaded, args, kwargs, runner, check, prefetch)


class Opener:
    """Makes the executions of one engine; none of them has begun.

    Args:
        placement: knows the runner that a caller names.
        threads: the owners of sync bodies.
        loop: the owner of async bodies.
        grace: seconds that a close waits for a body's clean-up.
        open_calls: lists them once they begin.
        number: tells the engine from others of the process.
    """

    make_body: ClassVar[type[Body]] = Body

    def __init__(  # noqa: PLR0917 - made in one place, by the engine that owns all of it
        self,
        placement: Placement,
        threads: ThreadRunner,
        loop: LoopRunner,
        grace: float,
        open_calls: OpenCalls,
        number: int,
    ) -> None:
        self._placement = placement
        self._threads = threads
        self._loop = loop
        self._grace = grace
        self._open_calls = open_calls
        self._number = number
        renew_after_fork(self)

    # In the caller's context: what `current` and the context variables are now, the body will see.

    def inline(self, opening: Opening) -> InlineExecution:
        """The execution of a body that its caller's thread steps."""
        runner = opening.runner
        is_kept = runner is not None and self._placement.stays_with_caller(runner)
        hand_over = refuse_inline if is_kept else self.hand_over
        return InlineExecution(self._body(opening, LOCK_STEP), hand_over, self._grace, self._open_calls)

    def task(self, opening: Opening, chosen: FullRunner, *, is_closed_at_exit: bool = True) -> Any:
        """The execution of a body that its caller's asyncio task steps.

        Args:
            opening: the call.
            chosen: its runner.
            is_closed_at_exit: whether it is a stream, which its consumer may abandon.
        """
        hand_over = None if chosen.stays_with_caller else self.hand_over
        body = self._body(opening, LOCK_STEP)
        execution = TaskExecution(body, hand_over, self._grace, self._open_calls, is_closed_at_exit=is_closed_at_exit)
        return Handle(execution) if is_closed_at_exit else execution

    def owned(self, opening: Opening, place: BodyRunner, reduction: Reduction | None = None) -> OwnedExecution:
        """The execution of a body that an owner elsewhere steps.

        Args:
            opening: the call.
            place: who starts that owner.
            reduction: what a `create` reduces its partials to; the owner keeps it if that runs no code of the user's.

        Raises:
            EngineClosedError: the engine was closed.
            NestingError: calls are nested too deep.
        """
        body, loaded = self._body(opening, place.name), opening.loaded
        if reduction is not None and reduction.reducer in _KEPT_BY_OWNERS:
            body.reduction = reduction
        if not place.is_here:
            _address(body, loaded, place)
        if loaded.profile.is_class or loaded.is_described:
            _prepare(body, opening, is_here=place.is_here)
        return OwnedExecution(body, place.open(body, opening.prefetch), place, self._grace, self._open_calls)

    def _body(self, opening: Opening, runner: str) -> Body:
        """The body of a call, complete where its caller steps it: `LOCK_STEP`."""
        if self._open_calls.is_closed:
            raise EngineClosedError
        loaded, parent = opening.loaded, current.get()
        profile = loaded.profile
        call = Call(profile.tag, runner, parent, self._number, 0 if parent is None else depth_within(parent))
        function = None if profile.is_class else loaded.function  # an instance is asked for once a slot is held
        body = self.make_body(call, function, opening.args, opening.kwargs, profile.follows, copy_context())
        body.slots = loaded.slots
        if profile.is_class and runner is LOCK_STEP:
            body.prepare, body.aprepare = loaded.prepare, loaded.aprepare
        return body

    def hand_over(self, body: Body, produced: Any, kind: str) -> OwnedExecution:
        """Go on with what a body produced in the other colour than its own, with an owner of that colour.

        It is a part of the call that is open already, and so is listed in no open calls but its own.

        Args:
            body: what produced it.
            produced: an iterator of the other colour, or an awaitable.
            kind: which of them, as `look` tells.
        """
        channel = Channel(None, body.call.tag)
        execution = OwnedExecution(body, channel, None, self._grace, OpenCalls())
        execution.begin()
        try:
            if kind is ITERATOR:
                self._threads.hand_over(body, channel, produced, 0.0)
            else:
                self._loop.refuse_to_wait(body.call.tag)
                self._loop.hand_over(body, channel, produced, 0.0)
        except BaseException:
            if channel.claim("failed"):
                execution.end()
            close_unstarted(produced)
            raise
        return execution

    def after_fork(self) -> None:
        """End the calls that run in the parent."""
        self._open_calls.after_fork()


def _address(body: Body, loaded: LoadedPredictor, place: BodyRunner) -> None:
    """Give a body what a runner that is none of the engine's owners needs: what to send, and slots of that place."""
    profile = loaded.profile
    body.target = loaded.target
    if profile.by_value:
        body.by_value = True
    if place.is_elsewhere:
        body.slots, body.limit = loaded.slots_elsewhere[place.name], profile.set_up_limit


def _prepare(body: Body, opening: Opening, *, is_here: bool) -> None:
    """Say what is left to do where an owner has the body: set its class up, or bind inputs that are not checked yet."""
    loaded, profile = opening.loaded, opening.loaded.profile
    if loaded.is_described:
        body.bind = profile.is_opaque and (profile.is_checked if opening.check is None else opening.check)
    else:
        body.prepare = loaded.prepare_in_thread if is_here else loaded.prepare
        body.aprepare = loaded.aprepare


def depth_within(parent: Call) -> int:
    """How deep a call is nested that the body of `parent` makes.

    Raises:
        NestingError: deeper than `DEEPEST`.
    """
    depth = parent.depth + 1
    if depth > DEEPEST:
        chain: list[str] = []
        call: Call | None = parent
        while call is not None and len(chain) < 3:  # noqa: PLR2004 - enough to see what repeats
            chain.append(call.tag)
            call = call.parent
        raise NestingError(
            f"predictors call each other {depth} deep ({' in '.join(chain)} in ...), which is more than {DEEPEST}: end "
            "the recursion, or loop inside one predictor",
            parent.tag,
        )
    return depth


def refuse_inline(body: Body, produced: Any, kind: str) -> OwnedExecution:
    """Refuse what a body produced that only an event loop can step, where sync code asked to step it itself.

    Raises:
        ValueError: always.
    """
    close_unstarted(produced)
    raise ValueError(
        f"{body.call.tag} produced an {kind}, which cannot run inline in sync code: leave runner out (it then runs on "
        "the engine's own loop), or call acreate/astream from asyncio"
    )
