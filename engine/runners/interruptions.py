"""How a task steps a body that waits, and cleans it up, whatever interrupts that: it tells interruptions apart."""

from __future__ import annotations

import types
from functools import cache
from typing import TYPE_CHECKING, Any, Final, Protocol

from engine._errors import warn
from engine._predictors.failures import explain, is_foreign_cancel

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Generator

    from engine._records import Call
    from engine.runners.ending import Ending

ITEM: Final = object()  # what a machine yields when its execution has a partial; anything else is asyncio's


class SteppedExecution(Protocol):
    """What is stepped here: a `TaskExecution`."""

    call: Call
    ending: Ending
    grace: float

    def step(self) -> Any:
        """Run the body on, to its next partial, which gives `ITEM`, or to what it waits for."""
        ...

    def throw(self, error: BaseException) -> Any:
        """Raise `error` where the body stands, and run it on to its next partial, or to what it waits for."""
        ...

    def interrupt(self) -> None:
        """Carry a stop that was posted to the body, where it waits."""


class BodyEnded(BaseException):
    """The body ended by itself: a StopIteration that may pass through generators."""

    def __init__(self, value: Any) -> None:
        super().__init__(value)
        self.value = value


class Interruptions:
    """What reaches a task while it waits inside a body: its own cancellation, a stop, the end of the grace.

    asyncio has one way to interrupt a waiting task, to cancel it, so the three are told apart here. A cancellation
    counts as the consumer's own only while `Task.cancelling()` says so: a timeout scope inside the body takes its own
    back. One that is asked for here, on behalf of a stop, is taken back where the wait is over; until then the body,
    and what it awaits of the engine's, sees a task that is being cancelled, as indeed its part of it is.

    Attributes:
        cancellation: the consumer's own, if there was one. Of several one with a message is kept: cancel scopes know
            theirs by it.
        is_closed: whether the coroutine that waits was closed.
    """

    __slots__ = (
        "_baseline",
        "_expiries",
        "_grace",
        "_is_closing",
        "_is_shielded",
        "_own_cancellations",
        "_stand_in",
        "_task",
        "_timer",
        "cancellation",
        "is_closed",
    )

    def __init__(self, grace: float) -> None:
        import asyncio

        self._grace = grace
        self._task = asyncio.current_task()
        # A cancellation asked for while the task runs counts at once, and arrives only where it waits next: here.
        self._baseline = (
            0 if self._task is None else self._task.cancelling() - bool(getattr(self._task, "_must_cancel", False))
        )
        self._timer: asyncio.TimerHandle | None = None
        self._stand_in: asyncio.Future[None] | None = None
        self._own_cancellations = 0  # asked for here and not taken back yet
        self._expiries = 0  # how often the grace has run out
        self._is_closing = False  # the body was closed at a yield, and has one grace from then on
        self._is_shielded = False  # for good: though a scope takes its cancellation back, the body has to end
        self.cancellation: BaseException | None = None
        self.is_closed = False

    def close(self, *, is_shielded: bool) -> None:
        """Note that the body was asked to clean up; it is shielded if its task is being cancelled already."""
        self._is_closing = True
        self._is_shielded = is_shielded or (self._task is not None and self._task.cancelling() > 0)
        self._arm()

    def end(self) -> None:
        """Note that nothing is waited for any more, and take back what cancellations were asked for here."""
        if self._timer is not None:
            self._timer.cancel()
        if self.cancellation is not None and self._pending_cancellations() <= 0:
            self.cancellation = None  # the body took it back: it was a scope of its own
        # After the test above, which does not count them; and without a task nothing is interrupted any more.
        task, self._task = self._task, None
        while self._own_cancellations and task is not None:
            self._own_cancellations -= 1
            task.uncancel()

    def is_cancelled(self) -> bool:
        """Whether the consumer's own task was cancelled, for good, during this wait."""
        return self.cancellation is not None

    def has_expired(self) -> bool:
        """Whether the grace ran out, so that the body was cancelled from here."""
        return self._expiries > 0

    def is_given_up(self) -> bool:
        """Whether the body went on for one more grace, and is not waited for any longer."""
        return self._expiries > 1

    def is_shielding(self) -> bool:
        """Whether the body was cancelled, so that it is left alone while it cleans up."""
        return self._is_shielded or self._pending_cancellations() > 0

    def _pending_cancellations(self) -> int:
        """The cancellations of the task, since this wait began, that were not taken back."""
        return 0 if self._task is None else self._task.cancelling() - self._own_cancellations - self._baseline

    def interrupt(self) -> bool:
        """Cancel the wait on behalf of a stop; tell whether that was done, for a body that cleans up is left alone."""
        if self._task is None or self.is_shielding():
            return False
        self._interrupt()
        return True

    def _interrupt(self) -> None:
        if self._task is not None:
            self._own_cancellations += 1  # first: at no time may it count as the task's own
            self._task.cancel()

    def note(self, error: BaseException) -> None:
        """Note what asyncio threw in where the task waited for what the body waits for."""
        if not is_foreign_cancel(error):
            self.is_closed = self.is_closed or isinstance(error, GeneratorExit)
            return
        # A stop's cancellation shields for good, though it is taken back in the end: the body has to end.
        self._is_shielded = self._is_shielded or self._own_cancellations > 0
        if not self.is_shielding():  # a future that the body waits for was cancelled, which is between those two
            return
        is_first = self.cancellation is None
        self._keep(error)
        if not self._is_closing:
            self._expiries = 0  # of a scope of the body's own that expired before, if any
            self._arm()
        elif is_first:  # scopes in a clean-up that expire one after another gain it no time
            self._arm()

    def _keep(self, error: BaseException) -> None:
        if self._pending_cancellations() > 0 and (self.cancellation is None or error.args):
            self.cancellation = error

    def _arm(self) -> None:
        """Give the body one grace from now on."""
        if self._timer is not None:
            self._timer.cancel()
        if self._task is not None:
            self._timer = self._task.get_loop().call_later(self._grace, self._expire)

    def _expire(self) -> None:
        self._timer = None
        if self._task is None or not (self._is_closing or self.is_shielding()):  # a scope of the body's had expired
            return
        self._expiries += 1
        self._arm()
        if not self.is_shielding():
            self._interrupt()
        elif self._stand_in is not None:
            _resolve(self._stand_in)

    def wait(self, answer: Any) -> Generator[Any, None, None]:
        """Wait for what a body waits for, by a stand-in: a future that refuses to be cancelled.

        Raises:
            CancelledError: the grace has run out, and what is waited for could not be cancelled.
        """
        import asyncio

        expiries = self._expiries
        if not self._can_stand_in_for(answer):  # a bare yield, or what the task itself is to refuse: passed on as it is
            try:
                yield answer
            except asyncio.CancelledError as error:
                if answer is not None:
                    raise
                self._keep(error)  # the body asked for one turn of the loop, which is over, and need not know
            if self._expiries > expiries:
                raise asyncio.CancelledError(*self._message())
            return
        answer._asyncio_future_blocking = False  # noqa: SLF001 - as a task does that waits for it
        answer.add_done_callback(self._wake_up)
        try:
            while not answer.done():  # the stand-in also wakes where a grace has run out
                yield from self._sleep()
                if self._expiries > expiries:
                    expiries = self._expiries
                    # Cancelled once, after the first grace; what refuses, or outlasts the second, is left to itself.
                    if self.is_given_up() or not answer.cancel(*self._message()):
                        raise asyncio.CancelledError(*self._message())
        finally:
            answer.remove_done_callback(self._wake_up)

    def _message(self) -> tuple[Any, ...]:
        """What a cancellation of ours says, as the one it stands for did: cancel scopes know theirs by that."""
        return () if self.cancellation is None else self.cancellation.args

    def _can_stand_in_for(self, answer: Any) -> bool:
        """Whether a task would wait for `answer`; anything else it refuses, and says why."""
        task = self._task
        if task is None or answer is task or getattr(answer, "_asyncio_future_blocking", False) is not True:
            return False
        get_loop = getattr(answer, "get_loop", None)
        return get_loop is not None and get_loop() is task.get_loop()

    def _sleep(self) -> Generator[Any, None, None]:
        import asyncio

        self._stand_in = _stand_ins()(loop=asyncio.get_running_loop())
        try:
            yield from self._stand_in
        except asyncio.CancelledError as error:  # the loop keeps a cancellation that was refused until it is over
            self._keep(error)
        finally:
            self._stand_in = None

    def _wake_up(self, _answer: object) -> None:
        if self._stand_in is not None:
            _resolve(self._stand_in)


@cache
def _stand_ins() -> type[asyncio.Future[None]]:
    import asyncio

    class StandIn(asyncio.Future[None]):
        """What a task waits for in place of what its body waits for."""

        def cancel(self, msg: Any = None) -> bool:  # noqa: ARG002 - asyncio's own signature
            """Refuse, so that one cancellation is kept for this wait, however often it comes."""
            return False

    return StandIn


def _resolve(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


def drive(execution: SteppedExecution, answer: Any, interruptions: Interruptions) -> Generator[Any, Any, None]:
    """Pass what a body waits for to the loop, and what the loop answers to the body, until it yields a partial."""
    while answer is not ITEM:
        try:
            yield answer
        except BaseException as error:
            interruptions.note(error)
            answer = _throw(execution, interruptions, error)
            if interruptions.is_shielding():
                answer = yield from shield(execution, answer, interruptions)
                execution.interrupt()  # a stop that came meanwhile found the body shielded
        else:
            answer = execution.step()


def shield(execution: SteppedExecution, answer: Any, interruptions: Interruptions) -> Generator[Any, Any, Any]:
    """Go on with a body that was cancelled, while nothing cancels what it waits for until the grace is over.

    It runs in the task it ran in before: another one, behind `asyncio.shield`, could not leave the cancel scopes
    that the body holds open.

    Returns:
        What the body waits for, or `ITEM`, once it has taken the cancellation back (a scope of its own had expired)
        or has yielded a partial.
    """
    while answer is not ITEM and interruptions.is_shielding():
        try:
            yield from interruptions.wait(answer)
        except BaseException as error:
            answer = _throw(execution, interruptions, error)
        else:
            answer = execution.step()
    return answer


def _throw(execution: SteppedExecution, interruptions: Interruptions, error: BaseException) -> Any:
    """Raise `error` where the body stands, or right here where the body is given up."""
    try:
        if interruptions.is_given_up():
            warn(f"{execution.call.tag}: the body went on after being cancelled; it is abandoned")
            raise error
        return execution.throw(error)
    finally:
        del error  # as in `SteppedExecution.throw`


@types.coroutine
def finalise(execution: SteppedExecution, *, is_shielded: bool = False) -> Generator[Any, Any, None]:
    """Run the clean-up of a body that rests at a yield, in its context, as part of the calling task.

    It is given one grace, then cancelled, then given up after one more.

    Args:
        execution: whose body it is.
        is_shielded: whether nothing of the task's own reaches the clean-up, as for a task that is being cancelled.

    Raises:
        CancelledError: the calling task's own, and nothing else.
        GeneratorExit: the coroutine that calls this is closed, and nothing else.
        BaseException: what the clean-up raised, explained.
    """
    interruptions: Interruptions | None = None
    try:
        answer = execution.throw(GeneratorExit())  # most clean-ups wait for nothing: they end here, with `BodyEnded`
        interruptions = Interruptions(execution.grace)
        interruptions.close(is_shielded=is_shielded)
        if interruptions.is_shielding():
            answer = yield from shield(execution, answer, interruptions)
        yield from drive(execution, answer, interruptions)
    except BaseException as error:
        failure = _failure_of_clean_up(execution, interruptions, error)
    else:
        interruptions.end()
        ignored = RuntimeError("the predictor ignored GeneratorExit and yielded again")
        failure = explain(ignored, execution.call, execution.ending.count)
    if failure is not None:
        try:
            raise failure
        finally:
            del failure, execution  # or this frame and the exception keep each other alive


def _failure_of_clean_up(
    execution: SteppedExecution, interruptions: Interruptions | None, error: BaseException
) -> BaseException | None:
    """What `finalise` raises where `error` came out of the body; `interruptions` is of its waits, if it had any."""
    is_over = isinstance(error, (GeneratorExit, BodyEnded))
    if interruptions is not None:
        interruptions.end()
        if interruptions.is_closed and isinstance(error, GeneratorExit):
            return error
        if is_over or is_foreign_cancel(error):
            cancellation = interruptions.cancellation
            interruptions.cancellation = None  # its frames refer to `interruptions`: they would keep each other alive
            if cancellation is not None:
                return cancellation
            is_over = is_over or interruptions.has_expired()
    return None if is_over else explain(error, execution.call, execution.ending.count)
