"""The consumer's end of a channel whose owner is a worker: the window, what frames bring, and the end of the call.

A call that was stopped, or whose worker was lost, is left to the supervisor, which reads what the worker still sends
and brings the call to its end. What the producer may make is sent as a number: partials taken, plus the window, plus
one while the consumer waits.
"""

from __future__ import annotations

import pickle
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, Protocol

from engine._errors import PayloadError, WorkerLostError, name_shown, say, warn
from engine._records import traceback_of
from engine._wire.decode import decode, decode_in_steps
from engine._wire.failures import unpack_failure
from engine._wire.frames import CREDIT_SIZE, DONE, FAILED, ITEM, ITEMS, LOG, ProtocolError, pack_credit
from engine._wire.incremental import fits_event_loop
from engine.runners.channel import MAX_WINDOW
from engine.runners.ending import Ending, Report
from engine.runners.parking import POLL_INTERVAL, wait_until, wait_until_task, wake_all, wake_one
from engine.runners.process.reader import LargeFrameError, PipeReader

if TYPE_CHECKING:
    from collections.abc import Callable

    from engine._predictors.body import Body
    from engine._wire.encode import Payload
    from engine._wire.frames import Command, Frame, PayloadLocation
    from engine.runners.base import Once
    from engine.runners.process.encoding import EncodedPredictor
    from engine.runners.process.worker import Worker


_CREDIT_BYTES: Final = 1 << 17  # bytes received after which a consumer that waits tells the producer what it has taken
_REAP_TIMEOUT: Final = 6.0  # seconds after SIGKILL within which the supervisor reaps, or gives up


class Dispatcher(Protocol):
    """Gets a call its worker, and is told what becomes of both: the runner, as an inlet knows it."""

    def admit(self, inlet: Inlet, body: Body) -> None:
        """Encode a call, and take a slot and a worker for it; waits in a thread."""
        ...

    async def aadmit(self, inlet: Inlet, body: Body) -> None:
        """Encode a call, and take a slot and a worker for it; waits in an asyncio task."""
        ...

    def escalate(self, inlet: Inlet) -> None:
        """Have the supervisor stop a call, or find out how its worker ended; called from anywhere, takes no lock."""
        ...

    def release(self, inlet: Inlet, worker: Worker, keep: bool) -> None:  # noqa: FBT001
        """Take back a worker that has nothing more to send for a call; it serves others if `keep`."""
        ...

    def replace(self, inlet: Inlet, worker: Worker) -> None:
        """Send a call to another worker: its own was lost before it read the call."""
        ...

    def offload(self, ending: Ending, work: Callable[[], None]) -> None:
        """Have an owner thread do what would keep an event loop for long."""
        ...


class Inlet(PipeReader):
    """The consumer's end of a channel whose owner is a worker.

    Args:
        prefetch: see `Channel`; since a worker copies every partial before its predictor runs on, none holds it up.
        label: names the call in the log.
        dispatcher: gets it a worker.

    Attributes:
        body: what is to be run; until the end.
        encoded: its predictor.
        command: the call as it is sent; kept until its first frame comes.
        payload: its inputs as they are sent, where they are not plain; kept as long.
        inputs: its inputs, where they are plain.
        number: the number of the call in its worker; 0 until the worker may have it.
        is_large: whether what is sent would keep an event loop for long, and is that of a task.
        sending: taken by an owner thread that sends it, or by its end, whichever comes first.
        variables: context variables that travel, if encoded by now.
        is_adaptive: whether the window widens for a slow consumer.
    """

    __slots__ = (
        "_credits_sent",
        "_dispatcher",
        "_limit",
        "_received",
        "_unreported",
        "_until_credit",
        "_window",
        "body",
        "command",
        "encoded",
        "inputs",
        "is_adaptive",
        "is_large",
        "number",
        "payload",
        "sending",
        "variables",
    )

    def __init__(self, prefetch: int | None, label: str, dispatcher: Dispatcher) -> None:
        """Make an empty channel that no worker serves yet."""
        super().__init__(label)
        self.is_adaptive = prefetch is None
        self._window = 1 if prefetch is None else prefetch
        self._dispatcher = dispatcher
        self._received = 0
        self._limit = 0
        self._unreported = 0  # bytes received since credit was sent with nothing left to take
        self._credits_sent = 0
        self._until_credit = 0  # partials to take before credit may be due
        self.body: Body | None = None
        self.encoded: EncodedPredictor | None = None
        self.command: Command | None = None
        self.payload: Payload | None = None
        self.inputs: tuple[tuple[Any, ...], dict[str, Any]] | None = None
        self.number = 0
        self.is_large = False
        self.sending: Once | None = None
        self.variables: tuple[tuple[str, bytes], ...] | None = None

    # Admission

    def admit(self, body: Body) -> None:
        """Encode the call, and take a slot and a worker for it; waits in a thread."""
        self._dispatcher.admit(self, body)

    async def aadmit(self, body: Body) -> None:
        """Encode the call, and take a slot and a worker for it; waits in an asyncio task."""
        await self._dispatcher.aadmit(self, body)

    # The window

    def first_limit(self) -> int:
        """Grant the producer its first partials: the window, and one for the consumer, which waits for it."""
        self._limit = self._window + 1
        return self._limit

    def _send_credit(self, *, asked: int) -> None:
        """Send the producer what was taken and what it may make, if it runs low; `asked`: 1 while a consumer waits."""
        worker = self.worker
        if worker is None or not self.is_sent or self.end is not None:
            return
        taken = self._received - len(self.items)
        wanted = taken + self._window + asked
        # Low: half a window to grant at once, or a consumer waits and what was granted and not received runs out.
        low = max(1, self._window // 2)
        is_low = wanted - self._limit >= low or (asked and wanted > self._limit and self._limit - self._received <= low)
        if not is_low and not (asked and self._unreported >= _CREDIT_BYTES):
            return
        self._limit = max(self._limit, wanted)
        if not self.items:
            self._unreported = 0
        self._credits_sent += 1
        with suppress(OSError):  # the worker is lost, as the reader of its pipe will notice
            worker.send([pack_credit(self.number, taken, self._limit)])

    def take(self) -> tuple[Any, float]:
        """Take the oldest partial.

        Raises:
            IndexError: none is waiting.
        """
        item = self.items.popleft()
        if self._until_credit:  # the fast path: no credit is due yet
            self._until_credit -= 1
        else:
            self._update_window()
        if self.consumers and self.items:
            wake_one(self.consumers)  # of several consumers one was woken, and there is a partial for the next one
        return item

    def _update_window(self) -> None:
        """Widen the window for a consumer that finds more than one waiting, and send credit, if it is due."""
        if self.is_adaptive and self.items and self._window < MAX_WINDOW:
            self._window *= 2
        self._send_credit(asked=0)
        # Consumers that take at the same time may count a partial twice or not at all, so that credit is sent a little
        # earlier or later; a consumer that waits sends it in any case.
        self._until_credit = self._window // 4 if self._window == MAX_WINDOW or not self.is_adaptive else 0

    # Waiting for the pipe

    def wait(self, start: Callable[[], None] | None = None) -> None:
        """Sleep, in a thread, until a partial or the end may be there; `start` sends the call."""
        if start is not None:
            start()
        elif self.body is None or self.body.reduction is None:  # what is reduced in the worker has no credit
            self._send_credit(asked=1)
        if self.stop and not self.is_over:  # its runner closes: the supervisor reads what its worker still sends
            wait_until(self._is_settled, self.parked(), POLL_INTERVAL)
        elif not self._has_news():
            self._sleep()

    async def wait_task(self, start: Callable[[], None] | None = None) -> None:
        """Sleep, in an asyncio task, until a partial or the end may be there; `start` sends the call."""
        if start is not None:
            start()
        elif self.body is None or self.body.reduction is None:  # what is reduced in the worker has no credit
            self._send_credit(asked=1)
        if self.stop and not self.is_over:  # its runner closes: the supervisor reads what its worker still sends
            await wait_until_task(self._is_settled, self.parked(), POLL_INTERVAL)
        else:
            await self._sleep_task()

    def _is_settled(self) -> bool:
        return self.end is not None or self.is_over

    # What it does with what is read

    def _escalate(self) -> None:
        self._dispatcher.escalate(self)

    def _offload(self, work: Callable[[], None]) -> None:
        self._dispatcher.offload(self, work)

    def _receive(self, frame: Frame, worker: Worker) -> None:
        kind = frame.kind
        if kind == LOG:  # of any call, or none: it may have been sent while the worker was free
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
            LargeFrameError: a loop reads, and this is large.
        """
        if self._reader is not None and not fits_event_loop(location[0]):
            raise LargeFrameError(frame)

    def _refuse_payload(self, error: BaseException, what: str, worker: Worker, *, is_over: bool = False) -> None:
        """Fail the call, and stop its body, for something that cannot be unpickled here."""
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
        if isinstance(error, KeyboardInterrupt):  # Ctrl-C goes to the caller, but the value that it interrupted is lost
            raise error

    # The end

    def _settle(self, end: Report, worker: Worker, *, keep: bool) -> None:
        """Release the worker, which has nothing more to send for this call, and publish the end."""
        if self.worker is None:
            return
        try:
            self._settle_once(end, worker, keep=keep)
        except BaseException:  # Ctrl-C meanwhile: the steps left are done, and each may be done twice
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
        if body is not None:  # what `_release_slot` does, without its call
            if body.release is not None:
                body.release_slot()
            self.body = None
        if self.end is None:  # else its consumer was told another end already
            self._publish(end)

    def _publish(self, end: Report) -> None:
        self.end = end
        if self.consumers:
            wake_all(self.consumers)
        if self.end_waiters or self.detached_at is not None:
            super().finish(end)

    def settle_lost(self, worker: Worker) -> None:
        """End a call whose worker was lost, or have it sent to another; for the supervisor, once it has read all."""
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

        A worker that was started for this very call counts as having read it: the call's environment may have ended it,
        and would end the next one, too.
        """
        if self.stop or self.command is None or worker.is_untried:
            return False
        return worker.unread() > self._credits_sent * CREDIT_SIZE  # more than credit is unread: so is the command

    def unassign(self, worker: Worker) -> None:
        """Take the call from this worker: another will serve it."""
        self.worker = worker.inlet = None
        self.number = 0
        self.is_sent = self.is_disconnected = False
        if worker.registrations:
            self._unwatch_all(worker)

    def _release_slot(self) -> None:
        body = self.body
        if body is not None:
            if body.release is not None:
                body.release_slot()
            self.body = None  # which may refer to this inlet

    def finish(self, end: Report) -> None:
        """End the call before an answer came: it was not sent, or its sending was interrupted."""
        worker, sending = self.worker, self.sending
        if sending is not None and not sending.is_first():  # an owner thread sends it, and stops it as soon as it has
            self.request_stop()
        elif worker is not None and self.number:  # the worker may have it, and is free once it has stopped
            self.is_sent = True
            self.request_stop()
        elif worker is not None:
            self.worker = worker.inlet = None
            if self.encoded is not None and self.encoded.key not in worker.known:
                worker.evict(self.encoded.key)  # the pool noted the class as set up there, and it was never sent
            self._dispatcher.release(self, worker, True)  # noqa: FBT003
            self._release_slot()
        else:
            self._release_slot()
        self._publish(end)

    def request_stop(self) -> None:
        """Ask the worker to finalise the body, and have the supervisor escalate if it does not.

        No lock is taken and nothing is waited for, so any thread, finaliser or signal handler may call it.
        """
        self.stop = True  # first: a sender that stores `is_sent` after this finds it, and requests the stop again
        body = self.body
        if body is not None:
            body.call.stopping = True
        worker = self.worker
        if worker is not None and self.number:
            worker.ask_to_stop(self.number)
            self._dispatcher.escalate(self)
            worker.wake()  # a consumer that reads leaves the pipe to the supervisor
        wake_all(self.consumers)
        if self.end_waiters:  # consumers are among them where a stop was requested before, as `wait` has it
            wake_all(self.end_waiters)

    def detach(self) -> None:
        """Note that the consumer has left, and drop the partials it did not take: a kept outcome keeps this inlet."""
        super().detach()
        self.items.clear()

    def wait_end(self, seconds: float) -> bool:
        """Wait, in a thread, until the body is finalised or its worker reaped: twice `seconds`, and 6 s."""
        return wait_until(self._has_ended, self.parked(), 2 * seconds + _REAP_TIMEOUT)

    async def wait_end_task(self, seconds: float) -> bool:
        """Wait, in an asyncio task, until the body is finalised or its worker reaped: twice `seconds`, and 6 s."""
        return await wait_until_task(self._has_ended, self.parked(), 2 * seconds + _REAP_TIMEOUT)


def _value_of(location: PayloadLocation, frame: Frame, worker: Worker) -> Any:
    """Rebuild the value of a frame: out of its rest, or out of shared memory."""
    sizes, read_only, start = location
    rebuild = decode if fits_event_loop(sizes) else decode_in_steps
    if start is None:
        return rebuild(frame.rest, sizes, read_only)
    with worker.outbound.read(start, sum(sizes)) as view:
        return rebuild(view, sizes, read_only)


def _log(worker: Worker, text: bytes) -> None:
    warn(f"worker {worker.pid}: {text.decode(errors='replace')}")
