"""What executions in lock-step share: a body that has no owner is stepped by its consumer, and finalised in its turn.

How such a call ends is decided by `Ending.claim`. Who may touch the body is said by one attribute, `_turn`:

    None        it rests at a yield, or has not begun: the next to store another value may touch it
    BUSY        a puller steps it, or a stopper finalises it
    STOPPED     in a task only: a stop came while it rested; the stopper finalises it, or has the loop do so
    ABANDONED   in a task only: its consumer has dropped the stream; the loop is told to close it
    ENDED       it is over: no step and no finalisation begins any more

Taking the turn, and giving it back once no stop is seen to be posted, is a call-free store; that saves a lock of twice
the price of a whole pull. A stopper claims first and tests the turn second, a puller tests for a claim first and
gives the turn back second, so one of them sees the other and carries the stop out.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any, Final

from engine._errors import warn
from engine.runners.base import CLEAN, Execution
from engine.runners.ending import Report

if TYPE_CHECKING:
    from collections.abc import Callable

    from engine._predictors.body import Body
    from engine.runners.owned import OwnedExecution

    # Has a body go on under an owner of the colour of what it produced, of that kind; gives the execution that goes on.
    HandOverFromCaller = Callable[[Body, Any, str], OwnedExecution]

BUSY: Final = "busy"
STOPPED: Final = "stopped"
ABANDONED: Final = "abandoned"
ENDED: Final = "ended"


def reading_twice(call: object) -> ValueError:
    """The error for a second reader while a pull runs."""
    return ValueError(f"{call} is being read already: a stream without an owner of its own has one reader at a time")


class LockStepExecution(Execution):
    """An execution whose consumer steps the body itself."""

    __slots__ = ()

    _turn: Any  # who may touch the body: see the docstring of this module

    def _is_over(self) -> bool:
        """Tell, once the turn is not free, that nothing is left to pull.

        Raises:
            ValueError: another reader pulls just now.
            BaseException: what the end still owes the consumer.
        """
        if self._turn is BUSY:
            raise reading_twice(self.call)
        self.raise_failure()
        return True

    def _seal(self) -> None:
        self._turn = ENDED

    def _settle(self, error: BaseException | None) -> None:
        """Finish for a body in lock-step, once it is finalised; an error that no stopper waits for goes to the log."""
        self.ending.finish(CLEAN if error is None else Report(error))
        if not self.ending.is_awaited:
            self._log_cleanup_error()

    def _stop_awaiting(self) -> None:
        """Note that the stopper waits no longer: what the clean-up raises goes to the log."""
        self.ending.is_awaited = False
        self._log_cleanup_error()

    def _log_cleanup_error(self) -> None:
        """Log what the clean-up raised, unless the stopper took it out, or another caller of this."""
        ending, end = self.ending, self.ending.end
        if end is not None and end.error is not None:
            error, end.error = end.error, None  # call-free store: it is logged or raised once
            warn(f"error while a stream was being {ending.claimed}", error)

    def _raise_from_cleanup(self) -> None:
        """Raise what the clean-up raised that this stopper waited for, if anything."""
        end = self.ending.end
        if end is not None and end.error is not None:
            failure, end.error = end.error, None  # call-free store: as in `_log_cleanup_error`
            del self, end
            try:
                raise failure
            finally:
                del failure  # or this frame and the exception keep each other alive

    def _end_close(self, *, is_mine: bool, is_final: bool) -> None:
        """End a `close` that has waited: log what it waited for in vain, raise what the clean-up raised.

        Args:
            is_mine: whether the end was claimed by this `close`.
            is_final: whether the body is finalised, or not to be waited for.
        """
        if not is_final:
            if is_mine:
                self._stop_awaiting()
            warn(f"{self.call.tag}: a pull did not end within {self.grace} s of its stream being closed")
        if is_mine:
            self._raise_from_cleanup()


def is_main_thread() -> bool:
    """Whether this is the main thread, where Ctrl-C belongs to the caller and not to the predictor."""
    return threading.current_thread() is threading.main_thread()
