"""A thread kept for one instance of a class: its set-up, its calls one after another, and its teardown happen there.

What `setup` makes may belong to the thread that made it: a connection to a database, a device, a mode that a framework
keeps for each thread. The thread starts when it is first needed, and ends once nothing waits for it and nothing that
was set up there is left. Like any owner thread it is a daemon, and what it does is never interrupted.
"""

from __future__ import annotations

from _thread import allocate_lock, get_ident
from collections import deque
from functools import partial
from typing import TYPE_CHECKING, Any

from engine._errors import NestingError
from engine._fork import renew_after_fork
from engine._records import refuse_parents_call
from engine.runners.base import DaemonThread, open_here
from engine.runners.ending import Ending, Report
from engine.runners.parking import POLL_INTERVAL
from engine.runners.thread import OwnerThread, step_through

if TYPE_CHECKING:
    from collections.abc import Callable

    from engine._predictors.body import Body
    from engine._records import Call
    from engine.runners.thread import ThreadRunner


class PinnedThread(OwnerThread):
    """One owner thread that does everything of one class in the order in which it was asked for.

    It is a runner: `start` has it run a body. It is one of the owners of a `ThreadRunner`, whose limits hold here too.
    """

    name = "thread"
    is_here = True
    is_elsewhere = False
    open = staticmethod(open_here)

    __slots__ = ("__weakref__", "_bell", "_current", "_ident", "_is_kept", "_is_parked", "_lock", "_runner", "_waiting")

    def __init__(self, runner: ThreadRunner, is_kept: Callable[[bool], bool]) -> None:
        """Make it without a thread.

        Args:
            runner: whose limits hold, and whose closing ends the thread.
            is_kept: tells, without a lock or a call of user code, whether something lives in the thread; it is told
                whether the runner is closed.
        """
        super().__init__()
        self._runner = runner
        self._is_kept = is_kept
        self.after_fork()
        renew_after_fork(self)

    def after_fork(self) -> None:
        """Have no thread yet, as when it was made, and nothing to do."""
        self.thread = self.channel = None
        self._ident: int | None = None
        self._lock = allocate_lock()  # held to give work, and while the thread starts or ends
        self._bell = allocate_lock()  # released to have a parked thread look again
        self._bell.acquire()
        self._is_parked = False
        self._waiting: deque[Work] = deque()
        self._current: Work | None = None

    # What others ask of it.

    def start(self, body: Body, channel: Ending) -> None:
        """Run `body` once everything that was asked for before is done.

        Raises:
            EngineClosedError: the engine is closed, or the call is of a process that this one was forked from.
            EngineBusyError: too many threads are abandoned or running already.
            NestingError: this is part of a set-up or teardown that runs in the thread just now.
        """
        refuse_parents_call(body.call)
        self._runner.refuse(channel)
        current = self._current
        is_aside = current is not None and current.is_aside and body.call.is_within(current.call)
        if is_aside or self._ident == get_ident():
            raise _would_wait_for_itself(body.call.tag)
        function = partial(body.context.run, step_through, body, channel, self._runner.hand_over_async)
        self._give(Work(channel, function, body.call, False))  # noqa: FBT003

    def post(self, function: Callable[[], object], call: Call) -> Work:
        """Have it call a function of ours, a set-up or a teardown on behalf of `call`; see `Work.result`.

        Raises:
            NestingError: `call` is part of what the thread does just now, so that to wait for it would never end.
        """
        current = self._current
        if current is not None and call.is_within(current.call):
            raise _would_wait_for_itself(call.tag)
        channel = Ending(call.tag)
        work = Work(channel, partial(_answer, function, channel), call, True)  # noqa: FBT003
        self._give(work)
        return work

    def withdraw(self, work: Work) -> bool:
        """Take back what the thread has not begun with; tell whether that was so."""
        try:
            self._waiting.remove(work)
        except ValueError:
            return False
        return True

    def is_current_thread(self) -> bool:
        """Whether the calling thread is this one."""
        return self._ident == get_ident()

    @property
    def is_busy(self) -> bool:
        """Whether it does something just now, or is about to."""
        return self._current is not None or self.is_waited_for

    @property
    def is_waited_for(self) -> bool:
        """Whether something waits for what it does just now."""
        return bool(self._waiting)

    def look_again(self) -> None:
        """Have an idle thread end if it is no longer needed."""
        if self._is_parked:
            self._ring()

    # The thread.

    def _give(self, work: Work) -> None:
        with self._lock:
            self._waiting.append(work)
            if self.thread is None:
                self._begin(work)
        if self._is_parked:  # looked at after that: the thread notes it first, and looks what waits second
            self._ring()

    def _ring(self) -> None:
        try:
            self._bell.release()
        except RuntimeError:  # another has, and the thread has not heard it yet
            return

    def _begin(self, work: Work) -> None:
        self.thread = thread = DaemonThread(self._main, "engine-pinned")
        self._runner.owners.add(self)
        try:
            thread.start()
        except BaseException:
            if thread.withdraw():  # else it runs: Ctrl-C came while that was waited for
                self._end()
                self._waiting.remove(work)
            raise

    def _end(self) -> None:
        self.thread = self._ident = None
        self._runner.owners.discard(self)

    def _main(self) -> None:
        self._ident = get_ident()
        while self._does():
            pass

    def _does(self) -> bool:
        """Do what there is to do next, and refer to nothing of it any more; tell whether there was anything."""
        waiting, work = self._waiting, self._next()
        if work is None:
            return False
        channel = work.channel
        self._current, self.channel = work, channel
        try:
            work.function()
        except BaseException as error:  # as in any owner: its consumer must hear of it
            if channel.end is None:
                channel.finish(Report(error))
        if self._waiting is not waiting:  # in a child that the work forked, where this thread is no longer the one kept
            return False
        self._current = self.channel = None
        return True

    def _next(self) -> Work | None:
        """What there is to do next, waited for; `None` once the thread is no longer needed."""
        waiting = self._waiting
        while True:
            if waiting:
                try:
                    return waiting.popleft()
                except IndexError:  # it was withdrawn
                    continue
            self._is_parked = True
            if not waiting:
                if self._is_kept(self._runner.is_closed):
                    self._bell.acquire()
                elif self._has_ended():
                    return None
            self._is_parked = False

    def _has_ended(self) -> bool:
        with self._lock:
            if self._waiting:
                return False
            self._is_parked = False
            self._end()
            return True


class Work:
    """One thing that a pinned thread is to do.

    Attributes:
        channel: where it ends.
        function: does it, and finishes the channel.
        call: on whose behalf.
        is_aside: whether it is no prediction, but a set-up or a teardown.
    """

    __slots__ = ("call", "channel", "function", "is_aside")

    def __init__(self, channel: Ending, function: Callable[[], None], call: Call, is_aside: bool) -> None:  # noqa: FBT001
        """Note what is to be done."""
        self.channel = channel
        self.function = function
        self.call = call
        self.is_aside = is_aside

    def wait(self, seconds: float) -> bool:
        """Wait, in another thread, at most `seconds` until it is done; tell whether it is."""
        return self.channel.wait_end(seconds)

    def result(self) -> Any:
        """What its function gave, waited for in another thread.

        Raises:
            BaseException: what its function raised.
        """
        while not self.wait(POLL_INTERVAL):
            pass
        end = self.channel.end
        if end is not None and end.error is not None:
            error, end.error = end.error, None
            try:
                raise error
            finally:
                del error, end
        return None if end is None else end.returned


def _answer(function: Callable[[], object], channel: Ending) -> None:
    channel.finish(Report(None, function()))


def _would_wait_for_itself(tag: str) -> NestingError:
    return NestingError(
        f"{tag} runs in a thread of its own, and would wait there for the very call that waits for it: let its setup "
        "and teardown call other predictors only",
        tag,
    )
