"""The queue of a pool: what a call needs of a worker, what it holds one by, and the calls that wait for one."""

from __future__ import annotations

import math
from collections import Counter
from typing import TYPE_CHECKING, Any

import attrs

from engine.runners.slots import Lease, Waiter

if TYPE_CHECKING:
    import asyncio
    import threading
    import weakref
    from collections.abc import Iterator

    from engine._records import Call
    from engine.runners.process.worker import Worker


@attrs.frozen(eq=False)
class Need:
    """What a call needs of a worker.

    Attributes:
        key: the number its predictor is known by; 0 for none.
        limit: workers that may have it set up; `math.inf` where nothing is set up.
        only: the one worker that will do.
    """

    key: int = 0
    limit: float = math.inf
    only: Worker | None = None


class WorkerLease(Lease):
    """What a call holds a worker by.

    Attributes:
        need: what it needs of a worker.
        is_taken: whether the call has claimed the worker; until then a pool that closes takes it back.
    """

    __slots__ = ("is_taken", "need")

    is_taken: bool
    need: Need


class WorkerRequest(Waiter):
    """One wait for a worker.

    Attributes:
        lease: what the call will hold the worker by.
        need: what it needs of a worker.
        lost: the worker it had, which was lost: such a call stands before those that had none.
        worker: the worker it was granted.
        failure: why no worker could be started for it.
        due: when it has waited too long for a worker that is being started, by `perf_counter`.
    """

    __slots__ = ("due", "failure", "lease", "lost", "need", "worker")

    def __init__(
        self,
        lease: WorkerLease,
        grace: float,
        task: weakref.ref[asyncio.Task[Any]] | None = None,
        lost: Worker | None = None,
    ) -> None:
        """Wait in this thread, or in `task`, on behalf of the call of `lease`; suspicions last `grace` seconds."""
        super().__init__(lease.call, grace, task)
        self.lease = lease
        self.need = lease.need
        self.lost = lost
        self.worker: Worker | None = None
        self.failure: BaseException | None = None
        self.due = math.inf

    def has_news(self) -> bool:
        """Whether the wait is over: it was granted or has failed, or its call stopped."""
        return self.is_granted or self.failure is not None or self.call.stopping

    def raise_failure(self) -> None:
        """Raise why no worker could be started for it, if that is so."""
        failure, self.failure = self.failure, None
        if failure is not None:
            try:
                raise failure
            finally:
                del failure  # or this frame and the exception keep each other alive

    def outer_calls(self) -> Iterator[Call]:
        """The calls that its call was made in, the innermost first."""
        call = self.call.parent
        while call is not None:
            yield call
            call = call.parent


class WorkerQueue:
    """The calls that wait for a worker, in the order they came.

    It counts their tasks, threads and outer calls, so that of most leases it tells without a search that no call in it
    blocks them.
    """

    __slots__ = ("_calls", "_leases", "_tasks", "_threads", "requests")

    def __init__(self) -> None:
        """Make an empty queue."""
        self.requests: dict[WorkerRequest, None] = {}
        self._leases: dict[Lease, WorkerRequest] = {}
        self._calls: Counter[int] = Counter()
        self._tasks: Counter[weakref.ref[Any]] = Counter()
        self._threads: Counter[tuple[threading.Thread, bool]] = Counter()  # and whether a task waits there

    def __len__(self) -> int:
        """Count the calls that wait."""
        return len(self.requests)

    def __iter__(self) -> Iterator[WorkerRequest]:
        """Iterate over a copy, the first call first: granting one takes it out."""
        return iter(tuple(self.requests))

    def add(self, request: WorkerRequest) -> None:
        """Append a request, or put it first where its call had a worker before."""
        # Counted first: `may_block` then says yes too often rather than no, and a search follows.
        self._count(request, 1)
        self._leases[request.lease] = request
        if request.lost is None:
            self.requests[request] = None
        else:
            self.requests = {request: None, **self.requests}

    def discard(self, request: WorkerRequest) -> None:
        """Take a request out, if it is in here."""
        if request in self.requests:
            del self.requests[request]
            self._leases.pop(request.lease, None)
            self._count(request, -1)

    def _count(self, request: WorkerRequest, step: int) -> None:
        keys: list[tuple[Counter[Any], Any]] = [(self._calls, id(call)) for call in request.outer_calls()]
        keys.append((self._threads, (request.thread, request.task is not None)))
        if request.task is not None:
            keys.append((self._tasks, request.task))
        for counter, key in keys:
            counter[key] += step
            if not counter[key]:
                del counter[key]

    def may_block(self, lease: Lease) -> bool:
        """Whether a call in it may keep a leaseholder from going on; `Waiter.blocks` tells whether that is so.

        The leaseholder may be in it itself, where it is about to get a worker: it does not block itself.
        """
        mine = self._leases.get(lease)
        my_place = None if mine is None else (mine.thread, mine.task is not None)
        thread, task = lease.reader
        place = thread, False
        if id(lease.call) in self._calls or self._threads[place] > (my_place == place):
            return True
        if task is None or task() is None:
            place = thread, True
            return self._threads[place] > (my_place == place)
        return self._tasks[task] > (mine is not None and mine.task == task)
