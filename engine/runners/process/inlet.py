"""The consumer's end of a channel whose owner is a worker: partials come as frames over the worker's pipe.

No thread stands in between. Sync code that waits for a partial waits on the pipe itself, an asyncio task is woken by
its loop's own reader, and whoever reads a frame puts what it holds where a channel's consumers look. A call that was
stopped, or whose worker was lost, is handed to the supervisor, which reads what is left and brings it to its end.

What the producer may make is told as a number: partials taken, plus the window, plus one while the consumer waits.
"""

from __future__ import annotations

import os
import pickle
import select
from collections import deque
from contextlib import suppress
from functools import partial
from time import sleep
from typing import TYPE_CHECKING, Any, Final, Protocol

from engine._errors import PayloadError, WorkerLostError, name_shown, say, warn
from engine._records import traceback_of
from engine._wire.decode import decode, decode_in_steps
from engine._wire.failures import unpack_failure
from engine._wire.frames import CREDIT_SIZE, DONE, FAILED, ITEM, ITEMS, LOG, ProtocolError, pack_credit
from engine._wire.incremental import fits_event_loop
from engine._wire.nonblocking import READ_SIZE
from engine.runners.channel import MAX_WINDOW
from engine.runners.ending import Ending, Report
from engine.runners.parking import POLL_INTERVAL, park_thread, wait_until, wait_until_task, wake_all, wake_one

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop, Future
    from collections.abc import Callable

    from engine._predictors.body import Body
    from engine._wire.encode import Payload
    from engine._wire.frames import Command, Frame, PayloadLocation
    from engine.runners.base import Once
    from engine.runners.parking import Wake
    from engine.runners.process.worker import EncodedPredictor, Worker

    Offload = Callable[[Ending, Callable[[], None]], None]  # has an owner thread do something

_CREDIT_BYTES: Final = 1 << 17  # bytes received after which a consumer that waits tells the producer what it has taken
_READER_PAUSE: Final = 0.01  # seconds a reader that was woken has to leave
_REAP_TIMEOUT: Final = 6.0  # seconds after the last rung that a killed process has to be gone


class Dispatcher(Protocol):
    """What gets a call its worker, and is told what becomes of both."""

    def admit(self, inlet: Inlet, body: Body) -> None:
        """Encode a call, and take a slot and a worker for it; waits in a thread."""
        ...

    async def aadmit(self, inlet: Inlet, body: Body) -> None:
        """Encode a call, and take a slot and a worker for it; waits in an asyncio task."""
        ...

    def escalate(self, inlet: Inlet) -> None:
        """A call was stopped, or its worker lost; called from anywhere, takes no lock."""
        ...

    def release(self, inlet: Inlet, worker: Worker, keep: bool) -> None:  # noqa: FBT001
        """The worker has nothing more to say of this call; it serves others if `keep`."""
        ...

    def replace(self, inlet: Inlet, worker: Worker) -> None:
        """The worker is gone and has not read the call: another is to have it."""
        ...

    def offload(self, ending: Ending, work: Callable[[], None]) -> None:
        """Have an owner thread do what would keep an event loop for long."""
        ...


class Inlet(Ending):
    """The consumer's end of a channel whose owner is a worker.

    Args:
        prefetch: see `Channel`; since a worker copies every partial before its predictor runs on, none holds it up.
        label: names the call in the log.
        dispatcher: gets it a worker.

    Attributes:
        items: partials that have come, with their latencies in ms.
        consumers: wake-ups of those who wait for news.
        body: what is to be run; until the end.
        encoded predictor: its predictor.
        order: the call as it is sent; kept until there is an answer.
        payload: its inputs; as long.
        inputs: its inputs where they are plain; as long.
        worker: what serves it.
        number: of the call in its worker; 0 until that may have it.
        is_large: whether what is sent would keep an event loop for long, and is that of a task.
        sending: taken by an owner thread that sends it, or by its end, whichever comes first.
        variables: context variables that travel, if encoded by now.
        is_sent: whether it was; until then its sender finds out that the worker is gone, and no consumer reads what it
            says.
        reason: why the worker was lost, where that is not how its process ended.
    """

    __slots__ = (
        "_broken",
        "_credits_sent",
        "_dispatcher",
        "_futures",
        "_is_disconnected",
        "_is_offloaded",
        "_is_reading",
        "_limit",
        "_reader",
        "_received",
        "_unreported",
        "_until_credit",
        "_window",
        "body",
        "command",
        "consumers",
        "encoded",
        "inputs",
        "is_adaptive",
        "is_large",
        "is_sent",
        "items",
        "number",
        "payload",
        "reason",
        "sending",
        "variables",
        "worker",
    )

    def __init__(self, prefetch: int | None, label: str, dispatcher: Dispatcher) -> None:
        """Make an empty channel that no worker serves yet."""
        super().__init__(label)
        self.consumers: deque[Wake] = deque()
        self.items: deque[tuple[Any, float]] = deque()
        self.is_adaptive = prefetch is None
        self._window = 1 if prefetch is None else prefetch
        self._dispatcher = dispatcher
        self._futures: deque[Future[None]] = deque()
        self._is_reading = False  # somebody reads the pipe; see `wait`
        self._is_offloaded = False  # that is an owner thread, on behalf of an event loop
        self._broken: Exception | None = None  # what kept the last bytes from being frames
        self._reader: AbstractEventLoop | None = None  # the loop that reads just now, in its own thread
        self._is_disconnected = False
        self._received = 0
        self._limit = 0
        self._unreported = 0
        self._credits_sent = 0  # times the producer was told what it may make
        self._until_credit = 0  # partials to take before the producer may have to be told
        self.body: Body | None = None
        self.encoded: EncodedPredictor | None = None
        self.command: Command | None = None
        self.payload: Payload | None = None
        self.inputs: tuple[tuple[Any, ...], dict[str, Any]] | None = None
        self.worker: Worker | None = None
        self.number = 0
        self.is_large = False
        self.sending: Once | None = None
        self.variables: tuple[tuple[str, bytes], ...] | None = None
        self.is_sent = False
        self.reason = ""

    # What it needs before it may start

    def admit(self, body: Body) -> None:
        """Encode the call, and take a slot and a worker for it; waits in a thread."""
        self._dispatcher.admit(self, body)

    async def aadmit(self, body: Body) -> None:
        """Encode the call, and take a slot and a worker for it; waits in an asyncio task."""
        await self._dispatcher.aadmit(self, body)

    # The window

    def first_limit(self) -> int:
        """How many partials the producer may make before it hears from its consumer, who waits for the first."""
        self._limit = self._window + 1
        return self._limit

    def _send_credit(self, *, asked: int) -> None:
        """Tell the producer what was taken and what it may make, where it could soon need to know."""
        worker = self.worker
        if worker is None or not self.is_sent or self.end is not None:
            return
        taken = self._received - len(self.items)
        wanted = taken + self._window + asked
        low = max(1, self._window // 2)
        is_low = wanted - self._limit >= low or (asked and wanted > self._limit and self._limit - self._received <= low)
        if not is_low and not (asked and self._unreported >= _CREDIT_BYTES):
            return
        self._limit = max(self._limit, wanted)
        if not self.items:
            self._unreported = 0
        self._credits_sent += 1
        with suppress(OSError):  # the worker is lost, as the pipe will tell
            worker.send([pack_credit(self.number, taken, self._limit)])

    def take(self) -> tuple[Any, float]:
        """Take the oldest partial.

        Raises:
            IndexError: none is waiting.
        """
        item = self.items.popleft()
        if self._until_credit:  # the fast path: nothing is to be told yet
            self._until_credit -= 1
        else:
            self._update_window()
        if self.consumers and self.items:
            wake_one(self.consumers)  # another consumer may have slept through its wake-up
        return item

    def _update_window(self) -> None:
        """Widen the window for a consumer that finds more than one waiting, and tell the producer, in good time."""
        if self.is_adaptive and self.items and self._window < MAX_WINDOW:
            self._window *= 2
        self._send_credit(asked=0)
        # Readers that take at the same time may count a step twice or not at all, so that it is told a little earlier
        # or later; whoever waits tells in any case.
        self._until_credit = self._window // 4 if self._window == MAX_WINDOW or not self.is_adaptive else 0

    # Waiting for the pipe

    def wait(self, start: Callable[[], None] | None = None) -> None:
        """Sleep, in a thread, until a partial or the end may be there; `start` sends the call."""
        if start is not None:
            start()
        elif self.body is None or self.body.reduction is None:  # one that is reduced there is not asked for a partial
            self._send_credit(asked=1)
        if self.stop and not self.is_over:  # its runner closes: the supervisor reads what its worker still says
            wait_until(self._is_settled, self.parked(), POLL_INTERVAL)
        elif not self._has_news():
            self._sleep()

    async def wait_task(self, start: Callable[[], None] | None = None) -> None:
        """Sleep, in an asyncio task, until a partial or the end may be there; `start` sends the call."""
        if start is not None:
            start()
        elif self.body is None or self.body.reduction is None:  # one that is reduced there is not asked for a partial
            self._send_credit(asked=1)
        if self.stop and not self.is_over:  # as in `wait`
            await wait_until_task(self._is_settled, self.parked(), POLL_INTERVAL)
        else:
            await self._sleep_task()

    def _is_settled(self) -> bool:
        return self.end is not None or self.is_over

    def _has_news(self) -> bool:
        return bool(self.items) or self.end is not None or self.stop

    def _sleep(self) -> None:
        # What `_is_readable` tells, without its call.
        if self._is_disconnected or not self.is_sent or self.worker is None or self._is_reading:
            park_thread(self.consumers, self._may_read, POLL_INTERVAL)
            return
        # No call stands between the test and the next line but one, so neither another thread nor a signal's handler
        # does; and whatever a handler raises later finds the `try` entered.
        try:
            self._is_reading = True
            self._read_until_news()
        finally:
            self._is_reading = False
            if self.consumers:
                wake_one(self.consumers)  # another reader goes on where this one leaves

    def _is_readable(self) -> bool:
        """Whether there is a worker to hear, which has the call, and no other reader hears it."""
        return not self._is_disconnected and self.is_sent and self.worker is not None and not self._is_reading

    def _may_read(self) -> bool:
        return self._has_news() or self._is_readable()  # the call may have got another worker just now

    def _read_until_news(self) -> None:
        worker = self.worker
        if worker is None:
            return
        # Once its pipe is closed, the call may be another worker's before this thread looks up.
        while self.end is None and not self.items and not self.stop and self._is_served_by(worker):
            if worker.unsent:
                ready = self._wait_to_send(worker)
            else:
                try:
                    ready = worker.poll.poll(POLL_INTERVAL * 1000)
                except RuntimeError:  # the reader of a call before this one has not left yet
                    ready = _poll(worker, 0).poll(POLL_INTERVAL * 1000)
            for descriptor, _ in ready:
                if descriptor == worker.answers:
                    self._read(worker)
                elif descriptor == worker.wake_reader:
                    worker.clear_wake()
            if not ready:
                return

    def _wait_to_send(self, worker: Worker) -> list[tuple[int, int]]:
        """Wait while the pipe is too full for all of the call; give what there is besides room in it."""
        ready = _poll(worker, worker.calls_pipe).poll(POLL_INTERVAL * 1000)
        if any(descriptor == worker.calls_pipe for descriptor, _ in ready):
            self._send_rest(worker)
        return ready

    def _send_rest(self, worker: Worker) -> None:
        try:
            worker.send_rest()
        except BrokenPipeError:
            self._disconnect(worker)

    async def _sleep_task(self) -> None:
        from asyncio import get_running_loop

        loop = get_running_loop()
        self._watch(loop)
        if self._has_news():
            return
        future: Future[None] = loop.create_future()

        def wake() -> None:
            try:
                loop.call_soon_threadsafe(_resolve, future)
            except RuntimeError:  # that loop is closed: nobody will ever take what comes
                self.request_stop()

        self.consumers.append(wake)
        self._futures.append(future)
        try:
            if not self._has_news() and not self._needs_watch(loop):
                await future
        finally:
            with suppress(ValueError):  # taken out already
                self._futures.remove(future)
            with suppress(ValueError):
                self.consumers.remove(wake)

    def _needs_watch(self, loop: AbstractEventLoop) -> bool:
        """Whether there is a worker to hear that this loop does not, for the call was sent to it just now."""
        worker = self.worker
        if worker is None or self._is_disconnected or self._is_offloaded or not self.is_sent:
            return False
        return worker.registrations.get(loop) is not self

    def _watch(self, loop: AbstractEventLoop) -> None:
        """Have this loop read the pipe, until the end."""
        worker = self.worker
        if worker is None or not self._needs_watch(loop):
            return
        worker.registrations[loop] = self  # first, so that a worker that is over keeps its pipes open
        is_watched = False
        try:
            if self.worker is worker:  # else the pipes may have been closed before this was noted
                loop.add_reader(worker.answers, self._on_readable, loop, worker)
                if worker.unsent:
                    loop.add_writer(worker.calls_pipe, self._on_writable, loop, worker)
                is_watched = True
        finally:
            if not is_watched:
                self._unwatch(loop, worker)

    def _on_readable(self, loop: AbstractEventLoop, worker: Worker) -> None:
        if not self._is_served_by(worker):
            self._unwatch(loop, worker)
        elif not self._is_reading:
            is_large = False
            try:
                self._is_reading = True  # as in `wait`
                self._reader = loop
                is_large = self._read(worker)
            finally:
                self._is_reading = self._is_offloaded = is_large
                self._reader = None
            if is_large:
                self._offload_rest(loop, worker)
            elif not self._is_served_by(worker):
                self._unwatch(loop, worker)
        if self._has_news() or self._is_disconnected:
            for future in tuple(self._futures):
                _resolve_from(loop, future)

    def _offload_rest(self, loop: AbstractEventLoop, worker: Worker) -> None:
        """Have an owner thread take in what is large, and what came behind it; this loop does not watch meanwhile."""
        self._unwatch(loop, worker)
        try:
            self._dispatcher.offload(self, partial(self._receive_offloaded, worker))
        except Exception:  # the engine is closed, or no thread is to be had: late is better than never
            self._receive_offloaded(worker)

    def _receive_offloaded(self, worker: Worker) -> None:
        try:
            self._receive_all(worker)
        finally:
            self._is_reading = self._is_offloaded = False
            wake_all(self.consumers)  # they take what came, or watch again

    def _is_served_by(self, worker: Worker) -> bool:
        """Whether more may come from this worker."""
        return self.worker is worker and not self._is_disconnected

    def _on_writable(self, loop: AbstractEventLoop, worker: Worker) -> None:
        self._send_rest(worker)
        if not worker.unsent or self._is_disconnected:
            loop.remove_writer(worker.calls_pipe)

    def _unwatch(self, loop: AbstractEventLoop, worker: Worker) -> None:
        """In the loop's own thread: watch no more, unless a later call does."""
        if worker.registrations.get(loop) is self:
            if worker.answers >= 0:  # else they were closed before this loop could watch them
                loop.remove_reader(worker.answers)
                loop.remove_writer(worker.calls_pipe)
            del worker.registrations[loop]  # last: without it they may be closed, and their numbers used for others
            worker.unwatched()

    def _unwatch_all(self, worker: Worker) -> None:
        for loop, mine in tuple(worker.registrations.items()):
            if mine is self and loop is not self._reader:
                with suppress(RuntimeError):  # a closed loop watches nothing
                    loop.call_soon_threadsafe(self._unwatch, loop, worker)

    # Reading

    def _read(self, worker: Worker) -> bool:
        """Take in what the pipe holds; only the reader that has set `_is_reading` does.

        Returns:
            Whether an event loop met something large, which is still to be taken in, elsewhere.
        """
        try:
            data = os.read(worker.answers, READ_SIZE)
        except BlockingIOError:
            return False
        except OSError:  # it is closed
            data = b""
        if not data:
            self._disconnect(worker)
            return False
        try:
            worker.decoder.feed(data)
        except ProtocolError as error:  # what stands before bytes that are no frame has arrived all the same
            self._broken = error
        except BaseException:
            self._interrupt(worker)
            raise
        return self._receive_all(worker)

    def _receive_all(self, worker: Worker) -> bool:
        """Take in the frames that have come; see `_read`."""
        frames = worker.decoder.frames
        try:
            while frames and self.worker is worker:
                self._receive(frames.popleft(), worker)
            if self._broken is not None:
                self._refuse_broken(self._broken)
        except _LargeError as large:
            frames.appendleft(large.frame)
            return True
        except Exception as error:  # what predictors send is rebuilt elsewhere: this is a frame that means nothing
            warn(f"{self.label}: worker {worker.pid} does not speak the engine's protocol", error)
            self.reason = "it did not speak the engine's protocol, and was killed"
            self._disconnect(worker)
        except BaseException:
            self._interrupt(worker)
            raise
        return False

    @staticmethod
    def _refuse_broken(error: Exception) -> None:
        raise error

    def _interrupt(self, worker: Worker) -> None:
        """Ctrl-C came in the middle of a frame: what follows could not be told apart any more."""
        if self._is_served_by(worker) and not self.stop:
            self.reason = "reading its answer was interrupted, and it was killed"
            self._disconnect(worker)

    def read_rest(self, worker: Worker) -> bool:
        """Take in all there is, for the supervisor; tell whether that could be done, for a reader may be in its way."""
        if self._is_reading:
            worker.wake()
            sleep(_READER_PAUSE)
            return False
        try:
            self._is_reading = True
            while self.worker is worker and not self._is_disconnected and _has_data(worker):
                self._read(worker)
        finally:
            self._is_reading = False
        return True

    def retire(self, worker: Worker) -> bool:
        """Let the worker serve no further call, unless this one is over; the supervisor does before it signals."""
        if self._is_reading:
            worker.wake()
            sleep(_READER_PAUSE)
            return False
        worker.is_retired = (
            worker.is_retired or self.worker is worker
        )  # nobody reads, so that this call is not over yet
        return worker.is_retired

    def _disconnect(self, worker: Worker) -> None:
        """Nothing more can come from this worker: the supervisor finds out why, unless the call was moved already."""
        if self._is_served_by(worker):
            self._is_disconnected = True
            self._dispatcher.escalate(self)

    @property
    def is_disconnected(self) -> bool:
        """Whether nothing more can come from the worker."""
        return self._is_disconnected

    def _receive(self, frame: Frame, worker: Worker) -> None:
        kind = frame.kind
        if kind == LOG:  # which says nothing about this call: it may have come while the worker was free
            _log(worker, frame.meta)
            return
        if self.command is not None:
            self.command = self.payload = None
        if frame.number != self.number:
            raise ProtocolError(f"a frame of call {frame.number}, where call {self.number} is served")
        if kind == DONE:
            self._receive_done(frame, worker)
        elif kind == ITEMS:
            values, latencies = pickle.loads(frame.meta)  # noqa: S301 - from our own worker
            if not self.stop:
                self.items.extend(zip(values, latencies, strict=True))
            self._received += len(values)
            self._unreported += len(frame.meta)
        elif kind == ITEM:
            self._receive_item(frame, worker)
        elif kind == FAILED:
            self._receive_failure(frame, worker)
        else:
            raise ProtocolError(f"a frame of kind {kind} from a worker")

    def _receive_item(self, frame: Frame, worker: Worker) -> None:
        latency, location = pickle.loads(frame.meta)  # noqa: S301
        if self.stop:
            return
        self._offload_large(location, frame)
        try:
            value = _value_of(location, frame, worker)
        except BaseException as error:
            self._refuse_payload(error, f"partial {self._received}", worker)
            return
        self.items.append((value, latency))
        self._received += 1
        self._unreported += sum(location[0])

    def _receive_done(self, frame: Frame, worker: Worker) -> None:
        latency, kept, is_one, location, value, keep = pickle.loads(frame.meta)  # noqa: S301
        if location is not None and not self.stop:
            self._offload_large(location, frame)
            try:
                value = _value_of(location, frame, worker)
            except BaseException as error:
                self._refuse_payload(error, "the result", worker, is_over=True)
                return
        if is_one and not self.stop:
            self.items.append((value, latency))
            self._received += 1
        reduction = None if self.body is None else self.body.reduction
        if kept is not None and reduction is not None:
            reduction.count, reduction.elapsed, is_returned = kept
            if reduction.count and not is_returned:
                reduction.value = value
        self._settle(Report(returned=value), worker, keep=keep)

    def _receive_failure(self, frame: Frame, worker: Worker) -> None:
        packed, is_bodys, is_cleanup, kept, location, keep = pickle.loads(frame.meta)  # noqa: S301
        if location is not None:
            self._offload_large(location, frame)
        error = unpack_failure(packed, f"in worker {worker.pid}" if is_bodys else "")
        body = self.body
        if body is not None:
            body.is_started = is_bodys
            if kept is not None and body.reduction is not None:
                body.reduction.count, body.reduction.elapsed, _ = kept
                if location is not None:
                    with suppress(Exception):  # what was reduced before the failure, where it can be had
                        body.reduction.value = _value_of(location, frame, worker)
        if self.encoded is not None and not is_bodys:
            worker.evict(self.encoded.key)
        self._settle(Report(error, is_cleanup=is_cleanup), worker, keep=keep)

    def _offload_large(self, location: PayloadLocation, frame: Frame) -> None:
        """Leave what is large to an owner thread, where an event loop reads.

        Raises:
            _LargeError: it does, and this is.
        """
        if self._reader is not None and not fits_event_loop(location[0]):
            raise _LargeError(frame)

    def _refuse_payload(self, error: BaseException, what: str, worker: Worker, *, is_over: bool = False) -> None:
        """Something cannot be unpickled here: this call fails, and its body is stopped."""
        failure = PayloadError(
            f"{what} of {self.label} cannot be rebuilt here: {name_shown(type(error).__name__)}: {say(error)}. "
            "Yield what can be pickled and unpickled, or run the predictor with runner='thread'.",
            type(error).__qualname__,
            traceback_of(error),
        )
        if is_over:
            self._settle(Report(failure), worker, keep=True)
        else:
            self.request_stop()
            self._publish(Report(failure))
        if isinstance(error, KeyboardInterrupt):  # Ctrl-C is the caller's, but what it interrupted is lost
            raise error

    # The end

    def _settle(self, end: Report, worker: Worker, *, keep: bool) -> None:
        """The worker has nothing more to say of this call: it goes back, and whoever waits hears of the end."""
        if self.worker is None:
            return
        try:
            self._settle_once(end, worker, keep=keep)
        except BaseException:  # Ctrl-C, just then: whatever is left is done, and each step may be done twice
            self._settle_once(end, worker, keep=keep)
            raise

    def _settle_once(self, end: Report, worker: Worker, *, keep: bool) -> None:
        self.worker = worker.inlet = None
        if worker.registrations:
            self._unwatch_all(worker)
        if self.stop and self.rung is None:
            self.rung = "asked"
        self._dispatcher.release(self, worker, keep and not worker.is_retired)
        body = self.body
        if body is not None:  # as in `_release_slot`
            if body.release is not None:
                body.release_slot()
            self.body = None
        if self.end is None:  # else its consumer heard of another end already
            self._publish(end)

    def _publish(self, end: Report) -> None:
        self.end = end
        if self.consumers:
            wake_all(self.consumers)
        if self.end_waiters or self.detached_at is not None:
            super().finish(end)

    def settle_lost(self, worker: Worker) -> None:
        """The worker is gone in the middle of the call; the supervisor says so, once it has read what was left."""
        if self._is_unread(worker):
            self._dispatcher.replace(self, worker)
            wake_all(self.consumers)
            return
        if self.stop:
            end = Report()
        else:
            reason = self.reason or worker.exit_reason()
            end = Report(WorkerLostError(self.label, worker.pid, reason, self._received, worker.crash_report()))
        self._settle(end, worker, keep=False)

    def _is_unread(self, worker: Worker) -> bool:
        """Whether the worker ended before it read the call, as one does that is killed while it is free.

        One that was started for this very call is not spared: it may be the call's environment that ends it.
        """
        if self.stop or self.command is None or worker.is_untried:
            return False
        return worker.unread() > self._credits_sent * CREDIT_SIZE

    def unassign(self, worker: Worker) -> None:
        """The call is to be served by another worker than this one."""
        self.worker = worker.inlet = None
        self.number = 0
        self.is_sent = self._is_disconnected = False
        if worker.registrations:
            self._unwatch_all(worker)

    def _release_slot(self) -> None:
        body = self.body
        if body is not None:
            if body.release is not None:
                body.release_slot()
            self.body = None  # which may refer to this

    def finish(self, end: Report) -> None:
        """The call ends before there is an answer: it was not sent, or its sending was interrupted."""
        worker, sending = self.worker, self.sending
        if sending is not None and not sending.is_first():  # it is being sent, and stopped as soon as it was
            self.request_stop()
        elif worker is not None and self.number:  # the worker may have it, and is free once it has stopped
            self.is_sent = True
            self.request_stop()
        elif worker is not None:
            self.worker = worker.inlet = None
            if self.encoded is not None and self.encoded.key not in worker.known:
                worker.evict(self.encoded.key)  # it was chosen to have it set up, and never heard of it
            self._dispatcher.release(self, worker, True)  # noqa: FBT003
            self._release_slot()
        else:
            self._release_slot()
        self._publish(end)

    def request_stop(self) -> None:
        """Ask the worker to finalise the body, and have the supervisor see to it.

        No lock is taken and nothing is waited for, so any thread, finaliser or signal handler may call it.
        """
        self.stop = True
        body = self.body
        if body is not None:
            body.call.stopping = True
        worker = self.worker
        if worker is not None and self.number:
            worker.ask_to_stop(self.number)
            self._dispatcher.escalate(self)
            worker.wake()
        wake_all(self.consumers)
        if self.end_waiters:  # readers are among them where it was asked to stop before, see `wait`
            wake_all(self.end_waiters)

    def detach(self) -> None:
        """Note that the consumer has left: drop what waits to be taken, for an outcome that is kept keeps this."""
        super().detach()
        self.items.clear()

    def wait_end(self, seconds: float) -> bool:
        """Wait, in a thread, until the body is finalised or its worker gone: twice `seconds`, and a moment."""
        return wait_until(self._has_ended, self.parked(), 2 * seconds + _REAP_TIMEOUT)

    async def wait_end_task(self, seconds: float) -> bool:
        """Wait, in an asyncio task, until the body is finalised or its worker gone: for as long as `wait_end`."""
        return await wait_until_task(self._has_ended, self.parked(), 2 * seconds + _REAP_TIMEOUT)


def _resolve(future: Future[None]) -> None:
    if not future.done():
        future.set_result(None)


def _resolve_from(loop: AbstractEventLoop, future: Future[None]) -> None:
    """Resolve a future in the thread of `loop`, which is not always the future's own: a stream may have two readers."""
    home = future.get_loop()
    if home is loop:
        _resolve(future)
        return
    with suppress(RuntimeError):  # that loop is closed
        home.call_soon_threadsafe(_resolve, future)


def _poll(worker: Worker, sending: int) -> select.poll:
    """Wait for answers, for being woken, and for room in the pipe `sending`, if it is not 0."""
    poll = select.poll()
    poll.register(worker.answers, select.POLLIN)
    poll.register(worker.wake_reader, select.POLLIN)
    if sending:
        poll.register(sending, select.POLLOUT)
    return poll


def _has_data(worker: Worker) -> bool:
    poll = select.poll()
    poll.register(worker.answers, select.POLLIN)
    return bool(poll.poll(0))


class _LargeError(Exception):
    """A frame brings more than an event loop takes in."""

    def __init__(self, frame: Frame) -> None:
        super().__init__(frame)
        self.frame = frame


def _value_of(location: PayloadLocation, frame: Frame, worker: Worker) -> Any:
    """Rebuild what a frame brings: out of its rest, or out of shared memory."""
    sizes, read_only, start = location
    rebuild = decode if fits_event_loop(sizes) else decode_in_steps
    if start is None:
        return rebuild(frame.rest, sizes, read_only)
    with worker.outbound.read(start, sum(sizes)) as view:
        return rebuild(view, sizes, read_only)


def _log(worker: Worker, text: bytes) -> None:
    warn(f"worker {worker.pid}: {text.decode(errors='replace')}")
