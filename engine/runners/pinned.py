"""A thread kept for one instance of a class: its set-up, its calls one after another, and its teardown happen there.

What `setup` makes may belong to the thread that made it: a connection to a database, a device, a mode that a framework
keeps for each thread. The thread starts when it is first needed, and ends once its queue is empty and no instance that
was set up there is left. Like any owner thread it is a daemon, and what it runs is never interrupted.
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
    """One owner thread with a queue of work items, all of one class, which it runs in their order.

    It is a runner: `start` queues a body. It is one of the owners of a `ThreadRunner`, whose limits hold here too.
    """

    name = "thread"
    is_here = True
    is_elsewhere = False
    open = staticmethod(open_here)

    __slots__ = (
        "__weakref__",
        "_current",
        "_ident",
        "_is_kept",
        "_is_parked",
        "_lock",
        "_runner",
        "_waiting",
        "_wake_up",
    )

    def __init__(self, runner: ThreadRunner, is_kept: Callable[[bool], bool]) -> None:
        """Make it without a thread.

        Args:
            runner: whose limits hold, and whose closing ends the thread.
            is_kept: tells whether an instance lives in the thread, given whether the runner is closed; it takes no
                lock and calls no user code.
        """
        super().__init__()
        self._runner = runner
        self._is_kept = is_kept
        self.after_fork()
        renew_after_fork(self)

    def after_fork(self) -> None:
        """Have no thread yet, as when it was made, and an empty queue."""
        self.thread = self.channel = None
        self._ident: int | None = None
        self._lock = allocate_lock()  # held to append to the queue, and while the thread starts or ends
        self._wake_up = allocate_lock()  # released to have a parked thread test its queue again
        self._wake_up.acquire()
        self._is_parked = False
        self._waiting: deque[WorkItem] = deque()
        self._current: WorkItem | None = None

    # In other threads

    def start(self, body: Body, channel: Ending) -> None:
        """Run `body` once everything that was queued before is done.

        Raises:
            EngineClosedError: the engine is closed, or the call is of a process that this one was forked from.
            EngineBusyError: too many threads are abandoned or running already.
            NestingError: this is part of a set-up or teardown that runs in the thread just now.
        """
        refuse_parents_call(body.call)
        self._runner.refuse(channel)
        current = self._current
        is_lifecycle = current is not None and current.is_lifecycle and body.call.is_within(current.call)
        if is_lifecycle or self._ident == get_ident():
            raise _waits_for_itself(body.call.tag)
        function = partial(body.context.run, step_through, body, channel, self._runner.hand_over_async)
        self._enqueue(WorkItem(channel, function, body.call, False))  # noqa: FBT003

    def post(self, function: Callable[[], object], call: Call) -> WorkItem:
        """Queue a function of ours, a set-up or a teardown on behalf of `call`; see `WorkItem.result`.

        Raises:
            NestingError: `call` is part of what the thread runs just now, so that to wait for it would never end.
        """
        current = self._current
        if current is not None and call.is_within(current.call):
            raise _waits_for_itself(call.tag)
        channel = Ending(call.tag)
        work = WorkItem(channel, partial(_call_and_finish, function, channel), call, True)  # noqa: FBT003
        self._enqueue(work)
        return work

    def withdraw(self, work: WorkItem) -> bool:
        """Take a work item out of the queue; tell whether it was there, or has begun."""
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
        """Whether it runs something just now, or is about to."""
        return self._current is not None or self.is_waited_for

    @property
    def is_waited_for(self) -> bool:
        """Whether something is queued behind what it runs just now."""
        return bool(self._waiting)

    def recheck(self) -> None:
        """Have an idle thread test whether it is still needed, and end if not."""
        if self._is_parked:
            self._wake()

    # Queue and thread

    def _enqueue(self, work: WorkItem) -> None:
        with self._lock:
            self._waiting.append(work)
            if self.thread is None:
                self._begin(work)
        # Append first, look second: the thread notes first that it is parked, and looks at the queue second.
        if self._is_parked:
            self._wake()

    def _wake(self) -> None:
        try:
            self._wake_up.release()
        except RuntimeError:  # another thread has released it, and this one has not woken yet
            return

    def _begin(self, work: WorkItem) -> None:
        self.thread = thread = DaemonThread(self._main, "engine-pinned")
        self._runner.owners.add(self)
        try:
            thread.start()
        except BaseException:
            if thread.withdraw():  # else it runs, and Ctrl-C came into the wait for its start
                self._end()
                self._waiting.remove(work)
            raise

    def _end(self) -> None:
        self.thread = self._ident = None
        self._runner.owners.discard(self)

    def _main(self) -> None:
        self._ident = get_ident()
        while self._run_next():
            pass

    def _run_next(self) -> bool:
        """Run the next work item, and refer to nothing of it any more; tell whether the thread is to go on."""
        waiting, work = self._waiting, self._take()
        if work is None:
            return False
        channel = work.channel
        self._current, self.channel = work, channel
        try:
            work.function()
        except BaseException as error:  # a defect of ours: without this its consumer would wait for ever
            if channel.end is None:
                channel.finish(Report(error))
        if self._waiting is not waiting:  # in a child that the work forked, where this thread is no longer the one kept
            return False
        self._current = self.channel = None
        return True

    def _take(self) -> WorkItem | None:
        """The next work item, waited for; `None` once the thread is no longer needed."""
        waiting = self._waiting
        while True:
            if waiting:
                try:
                    return waiting.popleft()
                except IndexError:  # it was withdrawn between the test and this
                    continue
            self._is_parked = True
            if not waiting:
                # An unload or a close that changes this answer is followed by a `recheck`, and that wakes this thread,
                # which has noted before that it is parked.
                if self._is_kept(self._runner.is_closed):
                    self._wake_up.acquire()
                elif self._has_ended():
                    return None
            self._is_parked = False

    def _has_ended(self) -> bool:
        with self._lock:  # as `_enqueue` has it: work is appended before this, and seen, or after, and starts a thread
            if self._waiting:
                return False
            self._is_parked = False
            self._end()
            return True


class WorkItem:
    """One entry of a pinned thread's queue.

    Attributes:
        channel: where it ends.
        function: runs it, and finishes the channel.
        call: on whose behalf.
        is_lifecycle: whether it is a set-up or a teardown, and no prediction.
    """

    __slots__ = ("call", "channel", "function", "is_lifecycle")

    def __init__(self, channel: Ending, function: Callable[[], None], call: Call, is_lifecycle: bool) -> None:  # noqa: FBT001
        """Make an entry."""
        self.channel = channel
        self.function = function
        self.call = call
        self.is_lifecycle = is_lifecycle

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


def _call_and_finish(function: Callable[[], object], channel: Ending) -> None:
    channel.finish(Report(None, function()))


def _waits_for_itself(tag: str) -> NestingError:
    return NestingError(
        f"{tag} runs in a thread of its own, and would wait there for the very call that waits for it: let its setup "
        "and teardown call other predictors only",
        tag,
    )
