"""The workers of one engine: which there are, what each has loaded, and which call gets the next one that is free.

A worker serves one call at a time. Calls that find none free wait in one queue, and each worker that is released or was
just started goes to the first of them that it suits. Workers are started by the pool, in threads of its own, so that
no event loop is blocked, and for the whole queue: none belongs to a call before it is granted to it. A class that may
be set up in so many workers only goes to one of these. Nothing is read from or written to a pipe here, and no user code
runs under the lock, which is reentrant because a collector may run anywhere.
"""

from __future__ import annotations

import math
import threading
from collections import Counter
from contextlib import suppress
from functools import partial
from time import monotonic, perf_counter
from typing import TYPE_CHECKING, Any, Final

from engine._errors import EngineClosedError, EngineError, PredictionCancelledError
from engine.runners.base import DaemonThread
from engine.runners.process.deadlock import able_to_go_on
from engine.runners.process.queue import Need, WorkerLease, WorkerQueue, WorkerRequest
from engine.runners.slots import Lease, Waiter, WaitQueue, awaiting, current_task, refuse_stopped

if TYPE_CHECKING:
    import asyncio
    import weakref
    from collections.abc import Callable

    from engine._predictors.body import Body
    from engine._records import Call
    from engine.runners.process.worker import Worker

    Replaced = Callable[[Worker | None, BaseException | None], None]

LONGEST_START: Final = 60.0  # seconds a call waits for a worker that is being started


class Pool(WaitQueue):
    """At most so many workers, started when first needed, kept for the next call.

    What is true whenever the lock is free, except between a change and the `_serve` that follows it:

    - No two calls hold one worker, and workers and starts under way are together at most `most`.
    - Of the calls in the queue that a new worker could serve, the first ones, as many as there is room for, *expect*
      one: at least as many starts are under way. What is started or released first is theirs; a start whose worker no
      call expects any more goes on, and that worker is free.
    - No worker that suits a call in the queue is free, except one that keeps a class set up that the call is not
      about: it is left to that class while every call that a new worker could serve expects one.
    - A start that fails is not begun again. Where the starts left are fewer than the calls that expect a worker, the
      first of these is told why, and leaves the queue. So each failure costs one call or none, and failures end.

    Args:
        most: workers at one time.
        spawn: starts one.
        grace: seconds a suspicion has to last before a wait is refused for it.
    """

    advice = "; if that is too long, let the engine have more of them: Engine(workers=...)"

    def __init__(self, most: int, spawn: Callable[[], Worker], grace: float = 0.0) -> None:
        """Make a pool without workers."""
        super().__init__(grace)
        self.most = most
        self._spawn = spawn
        self._lock = threading.RLock()
        self._workers: list[Worker] = []
        self._starting: list[threading.Thread] = []
        self._queue = WorkerQueue()
        self._last: Worker | None = None  # that was given back last, while it may be taken
        self._is_closed = False

    @property
    def tag(self) -> str:
        """Name what is waited for, for the log."""
        return f"one of {self.most} workers" if self.most > 1 else "the only worker"

    @property
    def waiting(self) -> int:
        """Count the calls that wait for a worker."""
        return len(self._queue)

    @property
    def workers(self) -> tuple[Worker, ...]:
        """The workers that may serve another call."""
        return tuple(self._workers)

    @property
    def leases(self) -> tuple[Lease, ...]:
        """The leases of the calls that are served just now."""
        return tuple(lease for worker in self.workers if (lease := worker.lease) is not None)

    @property
    def is_starting(self) -> bool:
        """Whether a worker is being started."""
        return bool(self._starting)

    def may_log(self) -> bool:
        """Whether a long wait is logged now: not where it is for a start alone, which has a bound of its own."""
        return bool(self.leases) and super().may_log()

    def take(self, body: Body, need: Need) -> Worker:
        """Lease a worker for `body`, waiting in a thread behind the calls that wait already.

        Raises:
            NestingError: the wait would never end, for the calls it waits for wait themselves.
            PredictionCancelledError: the call was stopped meanwhile.
            EngineClosedError: the engine is closed.
            EngineError, OSError: no worker can be started.
        """
        worker = self._take_last(body.call, need)
        if worker is not None:
            return worker
        request = self._request(body.call, need, awaiting.get())
        if not self._is_granted_at_once(request):
            self.wait(request, body)
        return self._claim(request)

    async def atake(self, body: Body, need: Need) -> Worker:
        """Lease a worker for `body`, waiting in an asyncio task behind the calls that wait already.

        Raises:
            NestingError: the wait would never end, for the calls it waits for wait themselves.
            PredictionCancelledError: the call was stopped meanwhile.
            EngineClosedError: the engine is closed.
            EngineError, OSError: no worker can be started.
        """
        worker = self._take_last(body.call, need, is_task=True)
        if worker is not None:
            return worker
        request = self._request(body.call, need, current_task())
        if not self._is_granted_at_once(request):
            await self.wait_task(request, body)
        return self._claim(request)

    def _request(self, call: Call, need: Need, task: weakref.ref[asyncio.Task[Any]] | None) -> WorkerRequest:
        lease = WorkerLease(call, is_task=task is not None)
        lease.need = need
        lease.is_taken = False
        return WorkerRequest(lease, self.grace, task)

    def _take_last(self, call: Call, need: Need, *, is_task: bool = False) -> Worker | None:
        """The fast path: the worker that was released last, where it has the predictor already and no call waits."""
        worker = self._last
        if worker is None or need.key not in worker.known:
            return None
        if need.key not in worker.set_up and (worker.set_up or need.limit != math.inf):
            return None
        lease = WorkerLease(call)
        lease.need = need
        lease.is_taken = True
        if is_task:
            lease.is_task = True
        with self._lock:
            # Everything is tested again: what was read without the lock may be another call's by now.
            if self._queue.requests or worker.lease is not None or worker is not self._last or call.stopping:
                return None
            worker.lease = lease
        return worker

    def release(self, worker: Worker) -> None:
        """Have a worker serve the next call, or be free."""
        with self._lock:
            self._release(worker)
        # A request that is added after this test is served by `_enqueue` itself, which finds this worker free.
        if self._queue.requests:
            self._serve()

    def _release(self, worker: Worker) -> None:
        worker.idle_since = monotonic()
        if worker.is_retired:  # it ended meanwhile
            self._remove(worker)
        elif not self._is_closed:
            self._last = worker
        worker.lease = None  # last: a caller that Ctrl-C interrupts before it finds the lease, and does all again

    def give_up(self, call: Call) -> None:
        """Release the worker that may have been granted to a call that was interrupted while it took one."""
        with self._lock:
            for worker in self.workers:
                # A worker with an inlet is released by that: its call may have been sent.
                if worker.lease is not None and worker.lease.call is call and worker.inlet is None:
                    self._revoke(worker)
        self._serve()

    def evict(self, worker: Worker) -> None:
        """Have a worker serve no more calls; another may be started in its place."""
        with self._lock:
            self._remove(worker)
            worker.lease = None  # last: a caller that Ctrl-C interrupts before this line does all again
        self._serve()

    def reap(self, worker: Worker) -> None:
        """Retire a worker whose process is over; its leaseholder, if any, finds out, and has it replaced or evicted."""
        with self._lock:
            worker.is_retired = True
            if worker.lease is None:  # a leased one keeps its place, which the call gets another worker in
                self._remove(worker)

    def replace(self, worker: Worker, body: Body, then: Replaced) -> None:
        """Have a call whose worker is lost get another, before all calls that wait; this waits for nothing.

        Until a thread of the pool's begins with that, the call holds the lost worker, and with it a place.

        Args:
            worker: the lost one.
            body: what its call is to run.
            then: called in that thread with another worker, or with why there is none.

        Raises:
            RuntimeError: no thread is to be had.
        """
        lease: Any = worker.lease  # a `WorkerLease`: only this pool leases workers
        if lease is None:
            raise AssertionError("only the call that holds a worker has it replaced")
        DaemonThread(partial(self._resume, worker, lease, body, then), "engine-replacer").start()

    def _resume(self, lost: Worker, lease: WorkerLease, body: Body, then: Replaced) -> None:
        """Wait, in a thread of its own, on behalf of a call whose worker is lost."""
        if lease.need.only is lost:  # a request to that very worker: any other answers it, having nothing to do
            lease.need = Need()
        try:
            request = WorkerRequest(lease, self.grace, lost=lost)
            self.wait(request, body)
            worker = self._claim(request)
        except BaseException as error:
            then(None, error)
        else:
            then(worker, None)

    def retire(self, since: float) -> list[Worker]:
        """Take out the workers that were free since before the monotonic time `since`; called by the supervisor.

        It also serves the queue, for Ctrl-C may have kept a caller of `release` or `evict` from that.
        """
        with self._lock:
            idle = [each for each in self._workers if each.lease is None and each.idle_since <= since]
            for each in idle:
                self._remove(each)
        if self._queue.requests:
            self._serve()
        return idle

    def close(self) -> None:
        """Refuse the calls that come or wait, and take back what was granted to calls that have not claimed it.

        The event loop of a task that waits may have stopped turning: its worker would never be given back.
        """
        with self._lock:
            self._is_closed = True
            self._last = None
            for worker in self.workers:
                lease: Any = worker.lease  # a `WorkerLease`
                if lease is not None and not lease.is_taken:
                    self._revoke(worker)
            for request in self._queue:
                request.wake()

    def join(self, seconds: float) -> None:
        """Wait at most `seconds` until no worker is being started."""
        deadline = monotonic() + seconds
        for thread in tuple(self._starting):  # one that has not begun starts no worker in a closed pool
            if thread.is_alive() and thread is not threading.current_thread():
                thread.join(max(0.0, deadline - monotonic()))

    # Granting

    def _remove(self, worker: Worker) -> None:
        if self._last is worker:
            self._last = None
        with suppress(ValueError):
            self._workers.remove(worker)

    def _is_granted_at_once(self, request: WorkerRequest) -> bool:
        refuse_stopped(request.call)
        with self._lock:
            if not self._queue.requests:
                worker = self._choose(request.need, is_any=len(self._workers) >= self.most)
                if worker is not None:
                    self._grant(worker, request)
        return request.is_granted

    def _claim(self, request: WorkerRequest) -> Worker:
        """Let a call have the worker it was granted.

        Raises:
            EngineClosedError: the pool was closed since, and has taken it back.
        """
        worker: Any = request.worker  # there is one: it was granted
        with self._lock:  # `close` takes back what is not claimed under it, too: one of the two comes first
            if worker.lease is not request.lease:
                raise EngineClosedError
            request.lease.is_taken = True
            self._queue.discard(request)  # for Ctrl-C may have interrupted `_grant` before it did
        return worker  # type: ignore[no-any-return]

    def _serve(self) -> None:
        """Restore what `Pool` promises of the queue; never under the lock, for threads may be started."""
        with self._lock:
            self._grant_free()
        while self._needs_start():
            self._begin_start()

    def _grant_free(self) -> None:
        """Grant free workers to calls in the queue, in the order they came."""
        free = sum(each.lease is None for each in self._workers)
        if not free:
            return
        room = self.most - len(self._workers)
        eligible = self._eligible(room + free)
        excess = len(eligible) - room  # calls for which there will be no new worker
        for request in self._queue:
            # A class loses the worker that it is set up in only to a call for which there is room for no other worker.
            worker = self._choose(request.need, is_any=excess > 0)
            if worker is not None:
                self._grant(worker, request)
                excess -= request in eligible
            if all(each.lease is not None for each in self._workers):
                return

    def _grant(self, worker: Worker, request: WorkerRequest) -> None:
        """Let a call have a free worker, if it still waits and the worker still is free."""
        # A collector may run in the calls before this test and release, grant or stop, the lock being reentrant.
        # call-free store: from the last test on, whether this worker is this call's.
        if not request.has_news() and not request.is_withdrawn and worker.lease is None:
            worker.lease = request.lease
            request.worker = worker
            request.is_granted = True
            if request.need.limit != math.inf:  # a class is about to be set up there
                worker.set_up.add(request.need.key)
            self._queue.discard(request)
            # Under the lock: waking a task whose loop is closed takes the grant back, which the next call has to see.
            request.wake()

    def _revoke(self, worker: Worker) -> None:
        """Free a worker whose call will not use it."""
        lease: Any = worker.lease  # a `WorkerLease`
        if lease.need.key not in worker.known:  # `_grant` noted a class as set up that was never sent
            worker.set_up.discard(lease.need.key)
        self._release(worker)

    def _choose(self, need: Need, *, is_any: bool) -> Worker | None:
        """Choose the free worker that suits best; `is_any` allows one that keeps a class set up for other calls."""
        if self._is_closed:
            return None
        free = [each for each in self._workers if each.lease is None and not each.is_retired]
        if need.only is not None:
            return need.only if need.only in free else None
        # A class that is set up in all the workers it may be waits for one of these, whatever else is free.
        ready = [each for each in self._set_up(need) if each.lease is None]
        if ready or self._is_pinned(need):
            return ready[0] if ready else None
        unbound = [each for each in free if not each.set_up]
        warm = [each for each in unbound if need.key in each.known]
        if warm or unbound:  # the one used last: its caches are warm, and the others become idle, and are retired
            return max(warm or unbound, key=lambda each: each.idle_since)
        # The one that was free longest: its class is the one least in use.
        return min(free, key=lambda each: each.idle_since) if free and is_any else None

    def _set_up(self, need: Need) -> list[Worker]:
        return [] if need.limit == math.inf else [each for each in self._workers if need.key in each.set_up]

    def _is_pinned(self, need: Need, coming: int = 0) -> bool:
        """Whether a class may be set up in no more workers than it is, and the `coming` ones where it will be."""
        return need.limit != math.inf and len(self._set_up(need)) + coming >= need.limit

    # Starting

    def _eligible(self, most: int) -> list[WorkerRequest]:
        """The first calls in the queue that a new worker could serve, at most so many, without those about to leave."""
        found: list[WorkerRequest] = []
        coming: Counter[int] = Counter()
        for request in self._queue if most > 0 else ():
            need = request.need
            # A call that has news leaves the queue as soon as it runs: a start for it would be one too many.
            if need.only is None and not request.has_news() and not self._is_pinned(need, coming[need.key]):
                found.append(request)
                coming[need.key] += 1
                if len(found) == most:
                    break
        return found

    def _expecting(self) -> list[WorkerRequest]:
        """The calls in the queue that get the workers that are being started, or are about to be."""
        return self._eligible(self.most - len(self._workers))

    def _needs_start(self) -> bool:
        """Whether a call expects a worker and none is being started for it."""
        with self._lock:
            # In this order: a collector that runs while they are counted may begin one, but makes no room.
            return not self._is_closed and len(self._expecting()) > len(self._starting)

    def _begin_start(self) -> None:
        """Begin a start in a thread of its own; never under the lock."""
        thread = DaemonThread(self._start, "engine-starter")
        try:
            with self._lock:
                if not self._needs_start():  # another thread began it meanwhile
                    return
                self._starting.append(thread)  # before it starts: no other thread begins one for the same call
            thread.start()
        except BaseException as error:
            is_ours = isinstance(error, Exception)  # Ctrl-C is no failure of the start, and goes to the caller
            if thread.withdraw():  # else it runs: Ctrl-C came while this thread waited for it to begin
                self._end_start(thread, error if is_ours else None)
            if not is_ours:
                raise

    def _start(self) -> None:
        """Start a worker, in a thread of its own, and grant it to the first call in the queue that expects one."""
        thread = threading.current_thread()
        try:
            self._refuse_closed()
            worker = self._spawn()
        except BaseException as error:
            self._end_start(thread, error)
        else:
            with self._lock:  # one step: between the two there would seem to be room for one more start
                self._starting.remove(thread)
                self._add(worker)
        self._serve()

    def _add(self, worker: Worker) -> None:
        expecting = [] if self._is_closed else self._expecting()
        self._workers.append(worker)
        if expecting:  # even a worker that is over by now: its call finds out; else starts would follow without end
            self._grant(worker, expecting[0])
        worker.is_new = False
        if worker.lease is None:
            self._release(worker)

    def _end_start(self, thread: threading.Thread, failure: BaseException | None) -> None:
        """Note that a start gave no worker, and tell one call of the failure if too few starts are left."""
        with self._lock:
            with suppress(ValueError):  # Ctrl-C came before it was noted
                self._starting.remove(thread)
            if failure is None or self._is_closed:
                return
            while len(expecting := self._expecting()) > len(self._starting):
                request = expecting[0]
                request.failure = failure
                self._queue.discard(request)
                request.wake()
                if not request.is_withdrawn:  # else its task's loop is closed: the failure would reach no caller
                    return

    def _refuse_closed(self) -> None:
        if self._is_closed:
            raise EngineClosedError

    # Waiting

    def _enqueue(self, waiter: Waiter) -> None:
        request: Any = waiter  # a pool's waiters are requests
        with self._lock:  # one step: else another call could take the place of the lost worker
            if request.lost is not None:
                self._release_lost(request)
            self._queue.add(request)
        self._serve()

    def _release_lost(self, request: WorkerRequest) -> None:
        """Give up the lost worker of a call, which waits for another from now on."""
        lost: Any = request.lost
        if lost.lease is not request.lease:  # the call was interrupted meanwhile, and has released it
            raise PredictionCancelledError(request.call.tag, request.call.id)
        lost.lease = None
        self._remove(lost)

    def _abandon(self, waiter: Waiter) -> None:
        self._withdraw(waiter)
        self._serve()

    def _withdraw(self, waiter: Waiter) -> None:
        request: Any = waiter
        with self._lock:
            if request.is_withdrawn:
                return
            request.is_withdrawn = True  # call-free store: what was granted is given back once
            self._queue.discard(request)
            worker = request.worker
            if worker is not None and worker.lease is request.lease:
                self._revoke(worker)  # `_abandon`, or the loop over `_grant` whose wake led here, serves the next

    def _blocker(self, waiter: Waiter) -> Lease | None:
        request: Any = waiter
        with self._lock:
            if request.is_granted:
                return None
            request.raise_failure()
            self._refuse_closed()
            leases = self._acceptable(request)
            if not leases:
                self._refuse_late(request)
                return None
            if not all(map(self._queue.may_block, leases)):  # the fast path: a queue may be long
                return None
            if request in able_to_go_on({each: self._acceptable(each) for each in self._queue}):
                return None
            return next((each for each in leases if request.blocks(each)), leases[0])

    def _refusal(self, waiter: Waiter, blocker: Lease) -> str:
        return (
            f"{waiter.call.tag} would wait for ever: every worker that could serve it is held by a call that cannot go "
            f"on before this one is over, such as {blocker}: read that stream to its end or close it before this "
            "call, or let the engine have more workers: Engine(workers=...)"
        )

    def _refuse_late(self, request: WorkerRequest) -> None:
        """Bound the wait for a worker that is being started: from the first test that finds one expected.

        Raises:
            EngineError: it took too long.
        """
        if request.due == math.inf:
            request.due = perf_counter() + LONGEST_START
        elif perf_counter() >= request.due:
            raise EngineError(
                f"no worker could be started within {LONGEST_START:.0f} s: look at what holds up the start of "
                "processes on this machine"
            )

    # Waits that could never end

    def _acceptable(self, request: WorkerRequest) -> list[Lease]:
        """The leases, present and coming, that the call could take over; none where it will get a free worker."""
        need = request.need
        if need.only is not None:
            return [need.only.lease] if need.only.lease is not None else []
        busy = [each.lease for each in self._set_up(need) if each.lease is not None]
        if self._is_pinned(need):
            return busy
        expecting = self._expecting()
        if request in expecting:
            return []
        alike = [each.lease for each in expecting if each.need.key == need.key]
        if self._is_pinned(need, len(alike)):
            return [*busy, *alike]
        return [*self.leases, *(each.lease for each in expecting)]
