"""One call whose owner, elsewhere, keeps the reduction: nothing is handed over but the end.

It is what `create` costs in a thread or on the engine's loop, so one object is all of it: what the owner runs (a
`Body`), the running reduction, where the end goes (an `Ending`) and what the engine finds when it closes. A `Bridged`
with a `Body`, a `Channel` and a `Reduction` did the same at half as much again, the two hand-overs included.
"""

from __future__ import annotations

from _thread import allocate_lock, get_ident
from collections import deque
from typing import TYPE_CHECKING, Any, Protocol
from weakref import ref

from engine._channel import BOUND, End, Ending
from engine._errors import EngineBusyError, EngineClosedError, NestingError, PredictionCancelledError, warn
from engine._partials import Body, explain, is_foreign_cancel
from engine._reducers import EMPTY, LAST, RETURNED
from engine.runners.base import tell_of_abandoned

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from contextvars import Context

    from engine._channel import Wake
    from engine._records import Call
    from engine._reducers import Reducer
    from engine.runners.base import Live

    Admit = Callable[[Body], None]
    AsyncAdmit = Callable[[Body], Awaitable[None]]


class Keeper(Protocol):
    """A runner whose owners keep reductions, so that all they need of a channel is its end."""

    def start(self, body: Body, channel: Ending) -> None:
        """Start an owner for `body`."""


class Errand(Body, Ending):
    """A body, its reduction, and its end, for one consumer that waits.

    Attributes:
        reducer: turns partials into the result.
        state: the reducer's state so far.
        count: partials reduced so far.
        elapsed: the producer's time, in s, once the body is over.
        is_bodys: whether what `run` or `arun` raised is the body's own failure.
    """

    count: int = 0
    elapsed: float = 0.0
    is_bodys: bool = False
    _is_given: bool = False  # an owner was started
    _shut: EngineClosedError | None = None  # what its consumer gets, where the engine was closed before the end

    def __init__(  # noqa: PLR0917 - as for a body
        self,
        call: Call,
        function: Callable[..., Any] | None,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        follows: bool,  # noqa: FBT001
        context: Context,
        reducer: Reducer,
        live: Live,
        grace: float,
    ) -> None:
        """Note what is to be run, as what, and what makes a result of it."""
        self.call = call  # as in `Body`
        self.function = function
        self.args = args
        self.kwargs = kwargs
        self.follows = follows
        self.context = context
        self.consumers: deque[Wake] = deque()  # as in `Ending`
        self.closers = self.consumers
        self.end: End | None = None
        self.stop = False
        self.on_stop = None
        self.deserted = None
        self.label = call.tag
        self.reducer = reducer
        self.state = EMPTY if reducer is LAST else reducer.start()
        self._live: Live | None = live
        self._grace = grace

    # What its owner sees.

    @property
    def reduction(self) -> Errand:  # type: ignore[override]
        """Itself: the owner keeps the reduction here."""
        return self

    def add(self, value: Any) -> None:
        """Reduce one more partial."""
        self.count += 1
        self.state = value if self.reducer is LAST else self.reducer.step(self.state, value)

    # What its consumer does.

    def run(self, runner: Keeper, admit: Admit | None) -> None:
        """Have `runner` run it, and wait in this thread for its end.

        Args:
            runner: starts the owner.
            admit: called before: takes a slot.

        Raises:
            EngineClosedError: the engine was closed before the end.
            BaseException: what the body raised, explained; or why it never started.
        """
        self.call.blocked = get_ident()
        lock = allocate_lock()
        lock.acquire()
        self.consumers.append(lock.release)
        try:
            live: Any = self._live
            live[id(self)] = ref(self)
            if live.is_closed:  # looked at after that: whoever closes it either finds this or is seen here
                self._refuse()
            if admit is not None:
                admit(self)
            if self._shut is None:
                runner.start(self, self)  # hardly anything follows: the owner gets the GIL once this thread sleeps
                self._is_given = True
                lock.acquire(timeout=BOUND)
                while self.end is None and self._shut is None:
                    self.wait_for_end()
        except BaseException as error:
            self._interrupted(error)
            if not isinstance(error, PredictionCancelledError):  # else it was shut while it waited for its slot
                raise
        self._conclude(self.end)

    async def arun(self, runner: Keeper, admit: AsyncAdmit | None) -> None:
        """The same for an asyncio task; one that is cancelled does not wait for the body to stop."""
        channel = self.channel
        try:
            live: Any = self._live
            live[id(self)] = ref(self)
            if live.is_closed:  # as in `run`
                self._refuse()
            if admit is not None:
                await admit(self)
            if self._shut is None:
                runner.start(self, channel)
                self._is_given = True
                while channel.end is None and self._shut is None:
                    await channel.wait_task_for_end()
        except BaseException as error:
            if not self._is_given and self.withhold():
                self._never_started(error)
            else:
                self._leave()
            if not isinstance(error, PredictionCancelledError):
                raise
        self._note_closing()
        self._conclude(channel.end)

    def _note_closing(self) -> None:
        """See what `shut` did not: a runner that closes before its engine told this."""

    def _refuse(self) -> None:
        raise EngineClosedError

    @property
    def channel(self) -> Any:
        """Where requests to stop go, and the end comes from."""
        return self

    def _interrupted(self, error: BaseException) -> None:
        if not self._is_given and self.withhold():
            self._never_started(error)
            return
        channel = self.channel  # Ctrl-C
        is_left = channel.deserted is not None  # it was shut: what its body raises goes to the log
        is_final = False
        try:
            self._ask_to_stop()
            is_final = channel.wait_end(self._grace)
        finally:
            channel.desert()
        end = channel.end
        if end is not None and end.is_cleanup and end.error is not None and not is_left:
            failure, end.error = end.error, None
            raise explain(failure, self.call, self.count)  # as from `close` of a stream
        self._log_unseen()
        if not is_final:
            tell_of_abandoned(self.call, self._grace)

    def _delist(self) -> None:
        """Be none of what runs any more; its owner may keep it a moment longer, but not the engine with it."""
        live, self._live = self._live, None
        if live is not None:
            live.pop(id(self), None)

    def _never_started(self, error: BaseException) -> None:
        self._delist()
        self.let_go()
        self._drop()
        self.call.parent = None
        is_ours = isinstance(error, (NestingError, EngineBusyError, EngineClosedError)) or is_foreign_cancel(error)
        if not is_ours:
            explain(error, self.call, 0)

    def _drop(self) -> None:
        self.request_stop()  # an interrupt may have come just after it was started after all

    def _leave(self) -> None:
        """Ask the owner to finalise the body; from here on its errors go to the log."""
        self.channel.desert()
        self._ask_to_stop()
        self._log_unseen()

    def _ask_to_stop(self) -> None:
        self._delist()
        self.call.parent = None
        self.call.stopping = True
        self.channel.request_stop()

    def _log_unseen(self) -> None:
        end = self.channel.end
        if end is not None and end.error is not None:
            error, end.error = end.error, None
            warn(f"{self.call.tag}: error nobody waited for", error)

    def _conclude(self, end: End | None) -> None:
        live, self._live = self._live, None  # as in `_delist`
        if live is not None:
            live.pop(id(self), None)
        call = self.call
        call.parent = None  # nothing waits on this call's behalf any more, so its callers need not live
        failure: Any = self._shut
        if failure is not None:
            self._shut = None  # or the frames of that exception, and what it is raised for, keep each other alive
            if not self._is_given:  # shut just when it had got its slot
                self._drop()
                self.let_go()
        elif end is not None:
            if end.error is None:
                if self.reducer is RETURNED:
                    self.state = end.returned
                return
            failure, end.error = end.error, None
            failure = explain(failure, call, self.count)
            self.is_bodys = self.is_started
        del self, call, end
        try:
            raise failure
        finally:  # or this frame and the exception keep each other alive
            del failure

    # What the engine does when it closes, and in a forked child.

    def shut(self) -> None:
        """End because the engine closes: the consumer hears of it, and the owner finalises the body."""
        if self.channel.end is None and self._shut is None:
            self._shut = self._closed()
            self._leave()
            if self.nudge is not None:  # it waits for a slot: let it look again
                self.nudge()

    def _closed(self) -> EngineClosedError:
        return EngineClosedError(f"{self.call.tag}: the engine was closed while this stream ran")

    def forget(self) -> None:
        """In a forked child: its owner is the parent's, and a consumer that came along would wait for ever."""
        self._shut = EngineClosedError(f"{self.call.tag}: this call belongs to the parent process; make your own")
        if self.nudge is not None:  # it waits for a slot, and looks again by itself; its body never runs here
            self.call.stopping = True


class Parcel(Errand):
    """An errand that a worker runs: between it and its owner is a wire.

    Attributes:
        wire: a `Wire`, where requests to stop go, and the end comes from.
    """

    wire: Any = None

    @property
    def channel(self) -> Any:
        """The wire."""
        return self.wire

    def _drop(self) -> None:
        self.wire.finish(End())

    def forget(self) -> None:
        """In a forked child: the worker is the parent's, and nobody here may read what it says."""
        super().forget()
        self.wire.stop = True

    def run(self, runner: Keeper, admit: Admit | None) -> None:
        """As for an errand; this thread reads what the worker says."""
        wire = self.wire
        self.call.blocked = get_ident()
        try:
            live: Any = self._live
            live[id(self)] = ref(self)
            if live.is_closed:  # looked at after that: whoever closes it either finds this or is seen here
                self._refuse()
            if admit is not None:
                admit(self)
            if self._shut is None:
                runner.start(self, wire)
                self._is_given = True
                while wire.end is None and self._shut is None:
                    wire.wait_for_end()
        except BaseException as error:
            self._interrupted(error)
            if not isinstance(error, PredictionCancelledError):
                raise
        self._note_closing()
        self._conclude(wire.end)

    def _note_closing(self) -> None:
        wire = self.wire
        if wire.stop and self._shut is None and (wire.end is None or wire.end.error is None):
            self._shut = self._closed()  # its runner closes, and the engine with it
