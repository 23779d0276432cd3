"""The workers of one engine: which there are, what each has loaded, and who gets the next one that is free.

A worker serves one call at a time. Calls that find none free stand in line; a class that may be set up in so many
workers goes to one of these. Each worker is started in a thread of the pool's own, so that no event loop is kept; a
call that no longer waits for it leaves it to others. Nothing is read from or written to a pipe here, and no code of the
user's runs under the lock, which is reentrant because a collector may run anywhere.
"""

from __future__ import annotations

import math
import threading
from collections import Counter, deque
from contextlib import suppress
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING, Any, Final

import attrs

from engine._channel import wait_until, wait_until_task, wake_all
from engine._errors import EngineClosedError, EngineError
from engine._slots import Holder, Line, Ticket, awaiting, current_task, refuse_stopped
from engine.runners.base import DaemonThread

if TYPE_CHECKING:
    import asyncio
    import weakref
    from collections.abc import Callable, Iterator

    from engine._channel import Wake
    from engine._partials import Body
    from engine._records import Call
    from engine.runners.workers import Worker

    Replaced = Callable[[Worker | None, BaseException | None], None]

LONGEST_START: Final = 60.0  # seconds a call waits for its worker to be started


@attrs.frozen(eq=False)
class Need:
    """What a call wants of a worker.

    Attributes:
        key: the number its predictor is known by; 0 for none.
        limit: workers that may have it set up; `math.inf` where nothing is set up.
        only: the one worker that will do.
    """

    key: int = 0
    limit: float = math.inf
    only: Worker | None = None


class _Tenant(Holder):
    """A call that holds a worker, or a place to start one in.

    Attributes:
        need: what it wants.
        has_it: whether it knows that it has it; what was granted to one that waits still can be taken back.
    """

    __slots__ = ("has_it", "need")

    has_it: bool
    need: Need


class _Nobody(Holder):
    """Holds a worker whose start was left by the call it was for: it will be free, whatever anyone waits for."""

    __slots__ = ()

    def __init__(self) -> None:
        """Hold it for no call."""
        self.call: Any = None

    def sign_of(self, _ticket: Ticket) -> None:
        """Nothing keeps it from going on."""

    @property
    def reader(self) -> tuple[Any, None]:
        """Nobody."""
        return None, None


_NOBODY: Final = _Nobody()


class _Start:
    """The start of one worker, in a thread of its own, for the call that has the place.

    Attributes:
        holder: that call.
        then: called in that thread at the end, with the worker or what went wrong; with neither where it was left.
        thread: the thread, once there is one.
        parked: wake-ups of those who wait for it.
        worker: the holder's, once it is started.
        error: why it could not be.
        is_over: whether it is started, or could not be.
        is_left: whether its call waits no more, so that the worker is for others.
    """

    __slots__ = ("error", "holder", "is_left", "is_over", "parked", "then", "thread", "worker")

    def __init__(self, holder: _Tenant, then: Replaced | None = None) -> None:
        self.holder = holder
        self.then = then
        self.thread: threading.Thread | None = None
        self.parked: deque[Wake] = deque()
        self.worker: Worker | None = None
        self.error: BaseException | None = None
        self.is_over = False
        self.is_left = False

    def has_news(self) -> bool:
        """Whether there is a reason to look again."""
        return self.is_over or self.holder.call.stopping

    def wake(self) -> None:
        """Have the call that waits for it look again."""
        wake_all(self.parked)


class _Wish(Ticket):
    """One wait for a worker."""

    __slots__ = ("holder", "need", "start", "worker")

    def __init__(self, call: Call, need: Need, grace: float, task: weakref.ref[asyncio.Task[Any]] | None) -> None:
        super().__init__(call, grace, task)
        self.need = need
        self.worker: Worker | None = None
        self.start: Any = None  # a `_Start`: granted without a worker, it is a place to start a new one in
        self.holder = _Tenant(call, is_awaited=task is not None)
        self.holder.need = need
        self.holder.has_it = False

    def outer_calls(self) -> Iterator[Call]:
        """The calls this one was made in."""
        call = self.call.parent
        while call is not None:
            yield call
            call = call.parent


class _Row:
    """Those who wait, in the order they came; it can tell at once of most holders that nobody in it keeps them."""

    __slots__ = ("_calls", "_tasks", "_threads", "wishes")

    def __init__(self) -> None:
        self.wishes: dict[_Wish, None] = {}
        self._calls: Counter[int] = Counter()
        self._tasks: Counter[weakref.ref[Any]] = Counter()
        self._threads: Counter[tuple[threading.Thread, bool]] = Counter()  # and whether a task waits there

    def __len__(self) -> int:
        return len(self.wishes)

    def __iter__(self) -> Iterator[_Wish]:
        return iter(tuple(self.wishes))

    def append(self, wish: _Wish) -> None:
        self.wishes[wish] = None
        self._count(wish, 1)

    def discard(self, wish: _Wish) -> None:
        if wish in self.wishes:
            del self.wishes[wish]
            self._count(wish, -1)

    def _count(self, wish: _Wish, step: int) -> None:
        keys: list[tuple[Counter[Any], Any]] = [(self._calls, id(call)) for call in wish.outer_calls()]
        keys.append((self._threads, (wish.thread, wish.task is not None)))
        if wish.task is not None:
            keys.append((self._tasks, wish.task))
        for counter, key in keys:
            counter[key] += step
            if not counter[key]:
                del counter[key]

    def may_keep(self, holder: Holder) -> bool:
        """Whether somebody in it may keep this holder from going on; `Ticket.keeps` tells whether that is so."""
        thread, task = holder.reader
        if id(holder.call) in self._calls or (thread, False) in self._threads:
            return True
        return (thread, True) in self._threads if task is None or task() is None else task in self._tasks


class Pool(Line):
    """At most so many workers, started when first needed, kept for the next call.

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
        self._starting: list[_Start] = []
        self._line = _Row()
        self._last: Worker | None = None  # that was given back last, while it may be taken
        self._is_closed = False

    @property
    def tag(self) -> str:
        """What is waited for, for the log."""
        return f"one of {self.most} workers" if self.most > 1 else "the only worker"

    @property
    def waiting(self) -> int:
        """How many calls wait for one."""
        return len(self._line)

    @property
    def workers(self) -> tuple[Worker, ...]:
        """Those that may serve another call."""
        return tuple(self._workers)

    @property
    def holders(self) -> tuple[Holder, ...]:
        """The calls that are served just now."""
        served = (holder for worker in self.workers if (holder := worker.holder) is not None)
        return (*served, *(each.holder for each in tuple(self._starting) if not each.is_left))

    @property
    def is_starting(self) -> bool:
        """Whether a worker is being started."""
        return bool(self._starting)

    def take(self, body: Body, need: Need) -> Worker:
        """Give a worker for `body`, waiting in a thread behind those who wait already.

        Raises:
            NestingError: the wait would never end, for the calls it waits for wait themselves.
            PredictionCancelledError: the call was stopped meanwhile.
            EngineClosedError: the engine is closed.
            EngineError, OSError: no worker can be started.
        """
        worker = self._take_last(body.call, need)
        if worker is not None:
            return worker
        wish = _Wish(body.call, need, self.grace, awaiting.get())
        if not self._is_granted_at_once(wish):
            self.wait(wish, body)
        return self._claim(wish, wish.worker or self._started(wish.start, body))

    async def atake(self, body: Body, need: Need) -> Worker:
        """The same for an asyncio task."""
        worker = self._take_last(body.call, need)
        if worker is not None:
            return worker
        wish = _Wish(body.call, need, self.grace, current_task())
        if not self._is_granted_at_once(wish):
            await self.await_(wish, body)
        return self._claim(wish, wish.worker or await self._astarted(wish.start, body))

    def _take_last(self, call: Call, need: Need) -> Worker | None:
        """The fast path: the worker that was free last, where it has the predictor already and nobody waits."""
        worker = self._last
        if worker is None or need.key not in worker.known:
            return None
        if need.key not in worker.set_up and (worker.set_up or need.limit != math.inf):
            return None
        holder = _Tenant(call)
        holder.need = need
        holder.has_it = True
        with self._lock:
            if self._line.wishes or worker.holder is not None or worker is not self._last or call.stopping:
                return None
            worker.holder = holder
        return worker

    def give(self, worker: Worker) -> None:
        """A worker is free again."""
        with self._lock:
            self._free(worker)
            if self._line.wishes:
                self._serve()

    def _free(self, worker: Worker) -> None:
        worker.holder = None
        worker.idle_since = monotonic()
        if worker.is_doomed:  # it ended meanwhile
            self._remove(worker)
        else:
            self._last = None if self._is_closed else worker

    def forsake(self, call: Call) -> None:
        """A call was interrupted while it took a worker: if one was granted to it, that is free again."""
        with self._lock:
            for start in tuple(self._starting):
                if start.holder.call is call:
                    self._leave_start(start)
            for worker in self.workers:
                if worker.holder is not None and worker.holder.call is call and worker.wire is None:
                    self.give(worker)
            self._serve()

    def drop(self, worker: Worker) -> None:
        """A worker is free again, and serves no more calls; another may be started in its place."""
        with self._lock:
            worker.holder = None
            self._remove(worker)
            self._serve()

    def bury(self, worker: Worker) -> None:
        """A worker is over; whoever holds it keeps its place, finds out, and has it replaced or gives it back."""
        with self._lock:
            worker.is_doomed = True
            if worker.holder is None:
                self.drop(worker)

    def replace(self, worker: Worker, then: Replaced) -> None:
        """Have a new worker started for the holder of one that turned out to be gone, and waits for nothing.

        Args:
            worker: the one that is gone.
            then: called in a thread of the pool's with the new one, or with why it could not be started; with neither
                where its call was given up meanwhile.

        Raises:
            RuntimeError: no thread is to be had.
        """
        holder: Any = worker.holder  # a tenant: holders of workers are made here alone
        if holder is None:
            raise AssertionError("only the holder of a worker has it replaced")
        start = _Start(holder, then)
        try:
            self._exchange(worker, start)
            self._launch(start)
        except BaseException:
            self._leave_start(start)
            raise

    def _exchange(self, worker: Worker, start: _Start) -> None:
        """Let a call hold a place to start a worker in, in place of a worker that is gone."""
        with self._lock:
            self._starting.append(start)
            worker.holder = None
            self._remove(worker)

    def retire(self, since: float) -> list[Worker]:
        """Take the workers out that were free since before the monotonic time `since`."""
        with self._lock:
            idle = [each for each in self._workers if each.holder is None and each.idle_since <= since]
            for each in idle:
                self._remove(each)
        return idle

    def close(self) -> None:
        """Refuse the calls that come or wait, and take back what was granted to those who have not heard of it.

        The event loop of a task that waits may have stopped turning: its worker would never be given back.
        """
        with self._lock:
            self._is_closed = True
            self._last = None
            for worker in self.workers:
                holder: Any = worker.holder  # as in `replace`
                if holder is not None and not holder.has_it:
                    self._free(worker)
            for start in tuple(self._starting):
                if start.thread is None:
                    self._leave_start(start)
            for wish in self._line:
                wish.wake()

    def join(self, seconds: float) -> None:
        """Wait at most `seconds` until no worker is being started."""
        deadline = monotonic() + seconds
        for start in tuple(self._starting):
            thread = start.thread  # one that has not begun cannot be waited for, and starts no worker in a closed pool
            if thread is not None and thread.is_alive() and thread is not threading.current_thread():
                thread.join(max(0.0, deadline - monotonic()))

    # Inside

    def _remove(self, worker: Worker) -> None:
        if self._last is worker:
            self._last = None
        with suppress(ValueError):
            self._workers.remove(worker)

    def _is_granted_at_once(self, wish: _Wish) -> bool:
        refuse_stopped(wish.call)
        with self._lock:
            if not self._line:
                self._grant(wish)
        return wish.is_granted

    def _claim(self, wish: _Wish, worker: Worker) -> Worker:
        """Let a call have the worker it was granted, unless the pool was closed since and has taken it back."""
        with self._lock:
            if worker.holder is not wish.holder:
                raise EngineClosedError
            wish.holder.has_it = True
        return worker

    # Starting

    def _started(self, start: _Start, body: Body) -> Worker:
        """Have a worker started in the place a call has, and wait for it in a thread."""
        try:
            body.nudge = start.wake
            self._launch(start)
            wait_until(start.has_news, start.parked, LONGEST_START)
            body.nudge = None
            return _worker_of(start)
        except BaseException:
            body.nudge = None
            self._leave_start(start)
            raise

    async def _astarted(self, start: _Start, body: Body) -> Worker:
        """The twin of `_started` for an asyncio task."""
        try:
            body.nudge = start.wake
            self._launch(start)
            lost = partial(self._leave_start, start)
            await wait_until_task(start.has_news, start.parked, LONGEST_START, lost)
            body.nudge = None
            return _worker_of(start)
        except BaseException:
            body.nudge = None
            self._leave_start(start)
            raise

    def _launch(self, start: _Start) -> None:
        """Begin a start; never under the lock."""
        start.thread = thread = DaemonThread(partial(self._run, start), "engine-starter")
        try:
            thread.start()
        except BaseException:
            if thread.withdraw():  # else it runs: Ctrl-C came while that was waited for
                start.thread = None
            raise

    def _run(self, start: _Start) -> None:
        """In the thread of a start: bring it to its end."""
        worker: Worker | None = None
        try:
            self._refuse_closed()
            worker = self._spawn()
        except BaseException as error:
            start.error = error
        with self._lock:
            with suppress(ValueError):  # the pool was closed before this thread was there
                self._starting.remove(start)
            if worker is not None:
                self._receive(worker, start)
            start.is_over = True
            start.wake()  # in here, or who comes next could wait for a task whose loop is closed
            self._serve()
        if start.then is not None:
            start.then(start.worker, start.error)

    def _receive(self, worker: Worker, start: _Start) -> None:
        """A worker was started: it is its call's, or anybody's if that waits no more."""
        self._workers.append(worker)
        if not start.is_left and not self._is_closed:
            worker.holder = start.holder
            self._bind(worker, start.holder.need)
            start.worker = worker
        worker.is_new = False
        if start.worker is None:
            self._free(worker)
        if self._is_closed:
            start.error = EngineClosedError()

    def _leave_start(self, start: _Start) -> None:
        """The call of a start waits no more: what is started is for others, and what was not begun never is."""
        with self._lock:
            if start.is_left:
                return
            start.is_left = True
            if start.thread is None and start in self._starting:
                self._starting.remove(start)
            worker, start.worker = start.worker, None
            if worker is not None and worker.holder is start.holder and worker.wire is None:
                worker.set_up.clear()  # which was to be done by this call
                self._free(worker)
            self._serve()

    def _refuse_closed(self) -> None:
        if self._is_closed:
            raise EngineClosedError

    def _enter(self, ticket: Ticket) -> None:
        with self._lock:
            self._line.append(ticket)  # type: ignore[arg-type]  # a pool's tickets are wishes
            self._serve()

    def _leave(self, ticket: Ticket) -> None:
        wish: Any = ticket
        with self._lock:
            self._lose(wish)
            self._serve()

    def _lose(self, ticket: Ticket) -> None:
        wish: Any = ticket
        with self._lock:
            if wish.is_left:
                return
            wish.is_left = True
            self._line.discard(wish)
            if wish.is_granted and wish.worker is None:
                self._leave_start(wish.start)
            elif wish.is_granted and wish.worker.holder is wish.holder:
                self._free(wish.worker)  # `_serve`, which woke whoever is gone, goes on with the next

    def _serve(self) -> None:
        for wish in self._line:
            if not self._has_place() and all(each.holder is not None for each in self._workers):
                return
            self._grant(wish)
            if wish.is_granted:
                self._line.discard(wish)
                wish.wake()

    def _grant(self, wish: _Wish) -> None:
        while not wish.is_granted and not self._is_closed:
            worker = self._choose(wish.need)
            if worker is not None:
                if worker.holder is None:  # no call stands between this test and the next line
                    worker.holder = wish.holder
                    wish.worker = worker
                    wish.is_granted = True
                    self._bind(worker, wish.need)
            elif wish.need.only is None and self._has_place() and not self._is_pinned(wish.need):
                wish.start = _Start(wish.holder)
                self._starting.append(wish.start)
                wish.is_granted = True
            else:
                return

    @staticmethod
    def _bind(worker: Worker, need: Need) -> None:
        """A class is about to be set up in a worker."""
        if need.limit != math.inf:
            worker.set_up.add(need.key)

    def _has_place(self) -> bool:
        return len(self._workers) + len(self._starting) < self.most

    def _set_up(self, need: Need) -> list[Worker]:
        return [] if need.limit == math.inf else [each for each in self._workers if need.key in each.set_up]

    def _setting_up(self, need: Need) -> list[_Tenant]:
        """Calls that wait for the start of a worker, which will then have the class too."""
        if need.limit == math.inf:
            return []
        holders = [each.holder for each in self._starting if not each.is_left]
        return [each for each in holders if each.need.key == need.key]

    def _is_pinned(self, need: Need) -> bool:
        return len(self._set_up(need)) + len(self._setting_up(need)) >= need.limit

    def _choose(self, need: Need) -> Worker | None:
        """The free worker that suits best; `None` to start another, or to wait."""
        free = [each for each in self._workers if each.holder is None and not each.is_doomed]
        if need.only is not None:
            return need.only if need.only in free else None
        ready = [each for each in self._set_up(need) if each.holder is None]
        if ready or self._is_pinned(need):
            return ready[0] if ready else None
        # One that keeps a class set up is left to that class while there is another way.
        unbound = [each for each in free if not each.set_up]
        warm = [each for each in unbound if need.key in each.known]
        if warm or unbound:
            return max(warm or unbound, key=lambda each: each.idle_since)
        if free and not self._has_place():
            return min(free, key=lambda each: each.idle_since)
        return None

    def _blocker(self, ticket: Ticket) -> Holder | None:
        wish: Any = ticket
        with self._lock:
            if wish.is_granted:
                return None
            self._refuse_closed()
            if self._can_be_served(wish):
                return None
            stuck = [each for each in self._acceptable(wish) if wish.keeps(each)] or self.holders
        return stuck[0]

    def _refusal(self, ticket: Ticket, blocker: Holder) -> str:
        return (
            f"{ticket.call.tag} would wait for ever: every worker that could serve it is held by a call that cannot go "
            f"on before this one is over, such as {blocker}: read that stream to its end or close it before this "
            "call, or let the engine have more workers: Engine(workers=...)"
        )

    def _acceptable(self, wish: _Wish) -> list[Holder]:
        need = wish.need
        if need.only is not None:
            return [need.only.holder] if need.only.holder is not None else []
        if not self._is_pinned(need):
            return [*self.holders, *(_NOBODY for each in self._starting if each.is_left)]
        busy = [each.holder for each in self._set_up(need) if each.holder is not None]
        return [*busy, *self._setting_up(need)]

    def _can_be_served(self, wish: _Wish) -> bool:
        holders = self._acceptable(wish)
        if not holders or not all(map(self._line.may_keep, holders)):  # the fast path, for a line may be long
            return True
        return wish in self._going()

    def _going(self) -> set[_Wish]:
        """Those in line who can still be served: somebody they wait for waits for nobody, or for one of them."""
        left = {wish: self._acceptable(wish) for wish in self._line}
        keepers = {
            holder: {wish for wish in left if wish.keeps(holder)}
            for holder in {holder for holders in left.values() for holder in holders}
        }
        going: set[_Wish] = set()
        while True:
            free = {holder for holder, wishes in keepers.items() if wishes <= going}
            news = [wish for wish, holders in left.items() if not holders or not free.isdisjoint(holders)]
            if not news:
                return going
            for wish in news:
                del left[wish]
            going.update(news)


def _worker_of(start: _Start) -> Worker:
    """The worker of a start that was waited for.

    Raises:
        PredictionCancelledError: its call was stopped meanwhile.
        EngineError: it takes too long.
        BaseException: why it could not be started.
    """
    refuse_stopped(start.holder.call)
    error, start.error = start.error, None
    if error is None and start.worker is None:
        error = EngineError(
            f"no worker could be started within {LONGEST_START:.0f} s: look at what holds up the start of processes on "
            "this machine"
        )
    try:
        if error is not None:
            raise error
        return start.worker  # type: ignore[return-value]  # there is one where nothing went wrong
    finally:
        del error  # or this frame and the exception keep each other alive
