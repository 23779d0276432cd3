"""Owner threads: each runs one sync body at a time, from its call to its finalisation, in the caller's context.

Threads are daemons, started when first needed, kept for the next call, and ended when none comes for a while. A body
cannot be stopped inside a `def`: its consumer leaves, the thread is abandoned, and keeps its slot until it ends; where
too many do not end within the grace, new calls are refused. No exception is ever injected into a thread.
"""

from __future__ import annotations

import gc
import threading
from _thread import allocate_lock
from collections import deque
from contextvars import copy_context
from functools import partial
from time import perf_counter
from typing import TYPE_CHECKING, Any, Final

from engine._errors import EngineBusyError, EngineClosedError, PredictionCancelledError
from engine._fork import renew_after_fork
from engine._predictors.normaliser import ITERATOR, ONE, close_iterator, close_unstarted, look
from engine._records import current, refuse_parents_call
from engine.runners.base import open_here
from engine.runners.ending import Report

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from engine._predictors.body import Body
    from engine.runners.base import HandOver
    from engine.runners.channel import Reduction
    from engine.runners.ending import Ending, OwnerEnd, ProducerEnd


MOST_ABANDONED: Final = 64  # threads of an engine that outlast their consumers by the grace; beyond, it is busy
MOST_ABANDONED_OF_ONE: Final = 32  # threads of one predictor; beyond, that predictor is
MOST_THREADS: Final = 4096  # owner threads of one engine at one time
_KEEP_ALIVE: Final = 10.0  # seconds a thread waits for its next body
_COLLECTION: Final = 10.0  # seconds from one garbage collection, made before calls are refused, to the next
_STUCK: Final = (
    "still run predictors that were cancelled or closed and did not stop within the grace: let them look at "
    "current_call().stopping or yield more often, or run them with runner='process', where they can be ended"
)


class ThreadRunner:
    """Runs sync bodies in owner threads.

    Attributes:
        hand_over_async: where a body goes on, on the loop, that turns out to have produced something async.
        idle: owners that wait for their next body.
        owners: all owners whose threads run.
        is_closed: whether it takes no more bodies.
        keep_alive: seconds a thread waits for its next body.
    """

    name = "thread"
    is_here = True
    is_elsewhere = False
    open = staticmethod(open_here)

    def __init__(self, grace: float = 0.0, keep_alive: float = _KEEP_ALIVE) -> None:
        """Make a runner without threads.

        Args:
            grace: seconds that a body may take to end after its consumer has left, before it counts as abandoned.
            keep_alive: seconds a thread waits for its next body.
        """
        self.hand_over_async: HandOver = _not_connected
        self.idle: deque[_Owner] = deque()
        self.owners: set[OwnerThread] = set()
        self.is_closed = False
        self.keep_alive = keep_alive
        self._grace = grace
        self._next_check = 0.0  # until then, by `perf_counter`, too few can be abandoned for anything to be refused
        self._collected = -_COLLECTION
        renew_after_fork(self)

    def after_fork(self) -> None:
        """Have no thread yet, as when it was made."""
        self.idle = deque()
        self.owners = set()

    @property
    def abandoned(self) -> int:
        """Owner threads still running a body whose consumer has left, however short a time ago."""
        return sum(channel.detached_at is not None for channel in self._served())

    def _served(self) -> list[Ending]:
        """The channels that owners serve just now; none that has ended, for its consumer may call again at once."""
        channels = (owner.channel for owner in tuple(self.owners))
        return [channel for channel in channels if channel is not None and channel.end is None]

    def start(self, body: Body, channel: Ending) -> None:
        """Run `body` on an owner thread.

        Raises:
            EngineClosedError: the engine is closed, or the call is of a process that this one was forked from.
            EngineBusyError: too many threads are abandoned or running already.
        """
        refuse_parents_call(body.call)
        self.run(channel, partial(body.context.run, step_through, body, channel, self.hand_over_async))

    def hand_over(self, body: Body, channel: Ending, iterator: Iterator[Any], elapsed: float) -> None:
        """Have a body go on, on an owner thread, with a sync iterator that it, being async, produced.

        Args:
            body: what produced it, on the loop or in the caller's task.
            channel: what it was started with.
            iterator: what it produced.
            elapsed: the seconds that took.

        Raises:
            EngineClosedError: the engine is closed; the channel is not ended.
            EngineBusyError: too many threads are abandoned or running already; the channel is not ended.
        """
        body.context = copy_context()  # the body's own one is entered, and stays so, where this is called
        self.run(channel, lambda: body.context.run(step_iterator, body, channel, iterator, elapsed))

    def run(self, channel: Ending, work: Callable[[], None]) -> None:
        """Run `work`, which ends by finishing `channel`, on an idle thread or a new one."""
        self.refuse(channel)
        try:
            owner = self.idle.pop()
        except IndexError:
            owner = None
        if owner is None:  # outside of the handler, or what is raised here would have that error as its context
            self._begin(_Owner(self), channel, work)
        else:
            owner.channel, owner.work = channel, work
            owner.lock.release()

    def _begin(self, owner: _Owner, channel: Ending, work: Callable[[], None]) -> None:
        owner.channel, owner.work = channel, work
        self.owners.add(owner)
        try:
            owner.thread.start()
        except BaseException:
            if owner.thread.ident is None:  # else it runs, and Ctrl-C came into the wait for its start
                self.owners.discard(owner)
            raise

    def refuse(self, channel: Ending) -> None:
        """Refuse to run one more body, where the engine is closed or has too many already.

        Raises:
            EngineClosedError: the engine is closed.
            EngineBusyError: too many threads are abandoned or running already.
        """
        running = len(self.owners) - len(self.idle)  # or a few more, which just ended
        if self.is_closed:
            raise EngineClosedError
        if running >= MOST_THREADS:
            self._refuse_running()
        if running >= MOST_ABANDONED_OF_ONE and perf_counter() >= self._next_check:
            self._refuse_abandoned(channel.label)

    def _refuse_running(self) -> None:
        running = self._consumed()
        if running >= MOST_THREADS and perf_counter() - self._collected >= _COLLECTION:
            gc.collect()  # streams that are garbage in reference cycles are abandoned then, and their threads end
            self._collected = perf_counter()
            running = self._consumed()
        if running >= MOST_THREADS:
            raise EngineBusyError(
                f"{running} predictor bodies run in threads, the most one engine allows: read or close some first",
                MOST_THREADS,
            )

    def _consumed(self) -> int:
        """Owner threads whose bodies still have a consumer; the others end, or are abandoned."""
        return sum(channel.detached_at is None for channel in self._served())

    def _refuse_abandoned(self, tag: str) -> None:
        """Refuse where too many bodies have outlasted their consumers by the grace; else note until when none can.

        A body whose consumer leaves from now on counts a grace later at the earliest, so one check per grace is enough.
        """
        now = perf_counter()
        left = sorted(
            (channel.detached_at, channel.label) for channel in self._served() if channel.detached_at is not None
        )
        fewest = MOST_ABANDONED_OF_ONE
        self._next_check = (now if len(left) < fewest else left[fewest - 1][0]) + self._grace
        stuck = [label for since, label in left if now - since >= self._grace]
        if len(stuck) >= MOST_ABANDONED:
            raise EngineBusyError(f"{len(stuck)} threads {_STUCK}", MOST_ABANDONED)
        if stuck.count(tag) >= MOST_ABANDONED_OF_ONE:
            raise EngineBusyError(f"{tag}: {stuck.count(tag)} threads {_STUCK}", MOST_ABANDONED_OF_ONE)

    @property
    def is_started(self) -> bool:
        """Whether there are threads to end."""
        return bool(self.owners)

    def close(self, grace: float) -> None:
        """Refuse new bodies, end idle threads, and wait at most `grace` seconds for those that are about to end."""
        self.is_closed = True
        while self.idle:
            try:
                self.idle.pop().lock.release()  # without work, which has it end
            except IndexError:
                break
        deadline = perf_counter() + grace
        for owner in tuple(self.owners):
            thread = owner.thread
            owner.recheck()
            # A thread that has not started, or never will, cannot be joined; it tests itself whether this is closed.
            if thread is not None and thread.is_alive() and thread is not threading.current_thread():
                thread.join(max(0.0, min(deadline, owner.deadline(grace)) - perf_counter()))

    def retire(self, owner: _Owner) -> bool:
        """Take an `owner` that is to end out of `idle`; tell whether it was there, or has just been given a body."""
        try:
            self.idle.remove(owner)  # atomic, as `run`'s pop is: of the two, one gets it
        except ValueError:
            return False
        return True


def _not_connected(_body: Body, _channel: Ending, produced: Any, _elapsed: float) -> None:
    close_unstarted(produced)
    raise AssertionError("a thread runner is given a loop's `hand_over` before it is used")


class OwnerThread:
    """What every thread that owns bodies has.

    Attributes:
        channel: where what it runs now ends.
        thread: itself, where there is one.
    """

    __slots__ = ("channel", "thread")

    def __init__(self) -> None:
        """Own nothing yet."""
        self.channel: Ending | None = None
        self.thread: threading.Thread | None = None

    def deadline(self, grace: float) -> float:
        """Until when a close waits for this owner, by `perf_counter`: a grace after its consumer left, if it has."""
        channel = self.channel
        return perf_counter() + grace if channel is None or channel.detached_at is None else channel.detached_at + grace

    def recheck(self) -> None:
        """Have it test, if it is idle, whether it is still needed, and end if not."""


class _Owner(OwnerThread):
    """One thread that owns one body at a time.

    Attributes:
        lock: released once there is work, or none any more.
        work: what it is to run next.
    """

    __slots__ = ("_runner", "lock", "work")

    def __init__(self, runner: ThreadRunner) -> None:
        super().__init__()
        self._runner = runner
        self.lock = allocate_lock()
        self.lock.acquire()
        self.work: Callable[[], None] | None = None
        self.thread: threading.Thread = threading.Thread(target=self._main, name="engine-owner", daemon=True)

    def _main(self) -> None:
        runner = self._runner
        runner.owners.add(self)  # again, for Ctrl-C in the thread that started this may have had it discarded
        idle = runner.idle
        try:
            # It is another in a child that the body forked, where this thread only goes on to the body's end.
            while self._run_work() and idle is runner.idle:
                # Append first, look second: a close that came before this saw no idle owner, and is seen here.
                idle.append(self)
                if runner.is_closed and runner.retire(self):
                    break
                while not self.lock.acquire(timeout=runner.keep_alive):
                    if runner.retire(self):  # else work has been given to it, and the lock is about to be released
                        return
        finally:
            runner.owners.discard(self)

    def _run_work(self) -> bool:
        """Run its work, and refer to nothing of that any more; tell whether there was any."""
        work, channel = self.work, self.channel
        if work is None or channel is None:
            return False
        self.work = None
        try:
            work()
        except BaseException as error:  # a defect of a runner: without this its consumer would wait for ever
            if channel.end is None:
                channel.finish(Report(error))
        self.channel = None
        return True


def own(body: Body, channel: OwnerEnd, hand_over_async: HandOver) -> None:
    """Be the owner of a sync body, in the calling thread, from its call to its finalisation.

    Args:
        body: what to run; it runs in its own context.
        channel: where its partials go, and where requests to stop come from.
        hand_over_async: has it go on elsewhere, where it produces something async.
    """
    body.context.run(step_through, body, channel, hand_over_async)


def step_through(body: Body, channel: OwnerEnd, hand_over_async: HandOver) -> None:
    """Be the owner of a sync body, as `own`, in the body's own context.

    Every owner of one runs this: a thread of the engine's, pinned or not, a plugin's thread, a worker's main thread.
    """
    current.set(body.call)
    if channel.stop:  # it was asked to before it began
        _finish(body, channel, Report())
        return
    clock = perf_counter
    started = clock()
    try:
        produced = body.start()
        kind = look(produced, body.follows)
    except BaseException as error:
        is_stopped = body.call.stopping and isinstance(error, PredictionCancelledError)  # as `Body.start` tells
        _finish(body, channel, Report(None if is_stopped else error))
        return
    now = clock()
    if kind is ITERATOR:
        step_iterator(body, channel, produced, now - started)
        return
    if kind is not ONE:
        hand_over_async(body, channel, produced, now - started)
        return
    end = Report(None, produced)  # nothing is left to run: the value goes with the end, which alone wakes its consumer
    reduction = body.reduction
    try:
        if reduction is None:
            producer: Any = channel  # as in `step_iterator`
            producer.offer_only(produced, (now - started) * 1000.0, now)
        else:
            reduction.elapsed = now - started
            reduction.add(produced)
    except BaseException as error:
        end = Report(error)
    if body.release is not None:  # `_finish`, without its calls: `create` of a plain function ends here
        body.release_slot()
    channel.finish(end)


def step_iterator(body: Body, channel: OwnerEnd, iterator: Iterator[Any], elapsed: float) -> None:
    """Be the owner, in the calling thread, of what is left of a body: the sync iterator that it produced.

    Args:
        body: what produced it.
        channel: where its partials go.
        iterator: what it produced.
        elapsed: the seconds that took.
    """
    end = Report()
    try:
        try:
            if body.reduction is None:
                producer: Any = channel  # it has that end wherever the owner does not keep the reduction
                is_over = pump(iterator, producer, elapsed, end)
            else:
                is_over = reduce(iterator, channel, elapsed, end, body.reduction)
        except BaseException:
            close_iterator(iterator)  # it is open where its partial could not be handed over or reduced
            raise
        if not is_over:
            end.is_cleanup = True
            close_iterator(iterator)
    except BaseException as error:
        end.error = error
    del iterator
    _finish(body, channel, end)


def _finish(body: Body, channel: OwnerEnd, end: Report) -> None:
    body.release_slot()  # before the report: a consumer that reads it may call again at once
    channel.finish(end)


def pump(iterator: Iterator[Any], channel: ProducerEnd, elapsed: float, end: Report) -> bool:
    """Put each partial into the channel; tell whether the iterator ended by itself.

    The hot loop of every sync body whose partials go elsewhere: one step, one look at the clock, one offer. Where there
    is no pause, the offer itself counts as the producer's time: a clock is a third of its price.
    """
    clock, step, offer = perf_counter, iterator.__next__, channel.offer
    started = clock()
    while not channel.stop:
        try:
            value = step()
        except StopIteration as stop:
            end.returned = stop.value
            return True
        now = clock()
        elapsed += now - started
        started = now
        if offer(value, elapsed * 1000.0, now):
            if channel.pause():
                break
            started = clock()
        # `value` stays bound while the body runs on, as in any for loop
    return False


def reduce(iterator: Iterator[Any], channel: OwnerEnd, elapsed: float, end: Report, reduction: Reduction) -> bool:
    """Reduce each partial in the owner, and hand over nothing; tell whether the iterator ended by itself."""
    started = perf_counter()
    step, add = iterator.__next__, reduction.add
    is_over = False
    while not channel.stop:
        try:
            value = step()
        except StopIteration as stop:
            end.returned = stop.value
            is_over = True
            break
        add(value)
    reduction.elapsed = elapsed + perf_counter() - started
    return is_over
