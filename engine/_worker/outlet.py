"""The owner's end of a channel whose consumer is an engine in another process: partials leave as frames.

A partial that cannot change may be batched with others that follow at once, so that a frame carries many; any other is
encoded before its predictor runs on. The consumer grants how many may be on their way, and says how many it has taken,
for their bytes are bounded, too.
"""

from __future__ import annotations

import contextlib
import pickle
from collections import deque
from typing import TYPE_CHECKING, Any, Final, Protocol

from engine._predictors.failures import trim
from engine._wire.decode import read_only_bits
from engine._wire.encode import SMALL, Payload, encode, is_plain
from engine._wire.failures import pack_failure, sanitized
from engine._wire.frames import CREDIT, DONE, FAILED, ITEM, ITEMS, Command, PayloadLocation, pack, read_credit
from engine._wire.picklers import payload_error
from engine._wire.segments import SHARED_FROM, Ring, Segment
from engine._worker.flusher import Flusher, flush_streams
from engine.runners.channel import MAX_WINDOW
from engine.runners.parking import park_task, wake_all

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Sequence
    from contextlib import AbstractContextManager

    from engine._errors import PayloadError
    from engine._predictors.body import Body
    from engine._wire.frames import Chunk
    from engine._worker.pipes import Pipes
    from engine.runners.ending import Report
    from engine.runners.parking import Wake

_SLOW_STEP: Final = 0.05  # ms of a producer's step from which its partial is not batched: a frame costs about as much
_BATCH_TIME: Final = 0.0005  # seconds since the last frame after which the next partial sends the batch
_BATCHED_ITEMS: Final = 16  # items of a tuple up to which it may be batched
_BYTE_WINDOW: Final = 1 << 20  # bytes on their way from which a producer with an adaptive window waits


class Terminated(BaseException):
    """Raised by the handler of SIGTERM in a body that did not stop when it was asked to."""


class Host(Protocol):
    """What an outlet needs of the worker it is part of."""

    pipes: Pipes
    ring: Ring
    outbound: Segment
    loop: Any
    flusher: Flusher
    is_terminated: bool
    is_stop_deferred: bool

    def uninterrupted(self) -> AbstractContextManager[None]:
        """Make a context in which SIGTERM does not raise in the main thread, but is deferred to its end."""
        ...

    def run_deferred_stop(self) -> None:
        """Stop the call if SIGTERM came while the main thread wrote."""
        ...


class Outlet:
    """The producer's end of one call's channel: what the owner in the worker offers goes to the engine.

    Args:
        host: the worker.
        command: the command that has the call run.
        number: the number its frames carry.

    Attributes:
        stop: whether the owner was asked to finalise the body.
        on_stop: interrupts an owner that is a task and does not test `stop` now.
        end: the report of how the body ended, stored before it is sent; `None` until then.
        body: what the call runs, once it is made.
    """

    __slots__ = (
        "_batch",
        "_batch_until",
        "_bytes_in_flight",
        "_flusher",
        "_host",
        "_in_flight",
        "_is_bounded",
        "_is_stop_requested",
        "_latency",
        "_limit",
        "_made",
        "_parked",
        "_pipes",
        "_refusal",
        "_returned_value",
        "_ring",
        "body",
        "end",
        "number",
        "on_stop",
        "stop",
    )

    def __init__(self, host: Host, command: Command, number: int) -> None:
        self.stop = False
        self.on_stop: Callable[[], None] | None = None
        self.end: Report | None = None
        self.body: Body | None = None
        self.number = number
        self._is_stop_requested = False  # by the engine, and not by SIGTERM alone
        self._refusal: PayloadError | None = (
            None  # the error of a partial that cannot travel, for which the body is stopped
        )
        self._host = host
        self._pipes = host.pipes
        self._ring = ring = host.ring
        if ring.held or host.outbound.is_oversized:
            ring.clear()
        self._limit = command.limit
        self._is_bounded = command.is_adaptive
        self._made = 0
        self._returned_value: tuple[Any, float] | None = None  # the value that the body returned, with its latency
        self._batch: list[tuple[Any, float]] = []
        self._batch_until = 0.0  # the time up to which partials may be batched
        self._latency = 0.0  # of the partial before
        self._flusher = host.flusher
        self._bytes_in_flight = 0  # bytes of partials that the consumer has not taken yet
        self._in_flight: deque[tuple[int, int]] = deque()  # the count of partials with a frame, and its bytes
        self._parked: deque[Wake] = deque()  # the owner, where that is a task that waits

    # The producer's end

    def offer(self, value: Any, latency: float, now: float) -> bool:
        """Send one partial, or batch it where others follow faster than frames are worth while.

        The hot path of every stream from a worker: a partial that is batched costs an append.
        """
        made = self._made = self._made + 1
        kind = type(value)
        if (kind is str and len(value) <= SMALL) or is_batchable(value):
            batch = self._batch
            batch.append((value, latency))
            step, self._latency = latency - self._latency, latency
            may_wait = step < _SLOW_STEP and now < self._batch_until and made < self._limit and len(batch) < MAX_WINDOW
            if may_wait and (self._flusher.is_armed or self._flusher.arm()):
                return self.stop
            self._batch_until = now + _BATCH_TIME
            self.flush()
        else:
            self.flush()
            self._offer_alone(value, latency)
        return (
            self.stop
            or made >= self._limit
            or bool(self._pipes.unsent)
            or (self._is_bounded and self._bytes_in_flight >= _BYTE_WINDOW)
        )

    def offer_only(self, value: Any, latency: float, _now: float) -> None:
        """Keep the one value that a body returned; it goes with the end."""
        self._returned_value = value, latency

    def _offer_alone(self, value: Any, latency: float) -> None:
        index = self._made - 1
        try:
            payload = encode(value)
        except Terminated:
            raise
        except BaseException as error:  # a KeyboardInterrupt, too: it comes from the value, for SIGINT is ignored here
            self.refuse(payload_error(f"partial {index}", value, error))
            return
        with self._host.uninterrupted(), self._pipes.lock:
            location, rest = self._place(index, payload)
            self._note_in_flight(sum(location[0]))
            self._pipes.write_locked(pack(ITEM, self.number, pickle.dumps((latency, location), 5), rest))

    def refuse(self, error: PayloadError) -> None:
        """Note a partial that cannot travel: the body is stopped, and its call fails with this error."""
        self._refusal = self._refusal or error
        self.stop = True

    def _place(self, index: int, payload: Payload) -> tuple[PayloadLocation, Sequence[Chunk]]:
        chunks, sizes = payload.chunks, payload.sizes
        bits = read_only_bits(payload.buffers)
        size = sum(sizes)
        start = self._ring.find(index, size) if size >= SHARED_FROM else None
        if start is None:
            return (sizes, bits, None), chunks
        self._host.outbound.write(start, chunks)
        return (sizes, bits, start), ()

    def _note_in_flight(self, size: int) -> None:
        """Count the bytes of a frame; the caller holds the lock of the pipes."""
        self._bytes_in_flight += size
        self._in_flight.append((self._made, size))

    def flush(self) -> None:
        """Send the batch; for the main thread."""
        with self._host.uninterrupted():
            self.flush_from_anywhere()

    def flush_from_anywhere(self) -> bool:
        """Send the batch, in any thread; tell whether there was anything in it."""
        with self._pipes.lock:
            batch = self._batch
            # The main thread appends without this lock: only what is counted now is sent and then deleted.
            count = len(batch)
            if not count:
                return False
            values, latencies = zip(*batch[:count], strict=True)
            del batch[:count]
            meta = pickle.dumps((values, latencies), 5)
            self._note_in_flight(len(meta))
            self._pipes.write_locked(pack(ITEMS, self.number, meta))
        return True

    def pause(self) -> bool:
        """Block the main thread until the producer may go on; tell whether it must stop instead."""
        self.flush()
        while not self._may_go():
            # `wait` returns at once if `wake` was called since it last did, so no request to stop is missed here.
            if self._pipes.wait() and self._pipes.read():
                self._take_credit()
            elif self._pipes.is_over:  # the engine is gone
                self.stop = True
        return self.stop

    async def apause(self) -> bool:
        """Wait, in a task of the worker's loop, until the producer may go on; tell whether it must stop instead."""
        self.flush()
        if self._may_go():
            return self.stop
        from asyncio import get_running_loop

        loop, pipes = get_running_loop(), self._pipes
        loop.add_reader(pipes.calls, self._on_readable)
        try:
            while not self._may_go():
                if pipes.unsent:
                    loop.add_writer(pipes.answers, self._on_writable, loop)
                await park_task(self._parked, self._may_go)
        finally:
            loop.remove_reader(pipes.calls)
            loop.remove_writer(pipes.answers)
        return self.stop

    def _on_readable(self) -> None:
        if self._pipes.read():
            self._take_credit()
        else:
            self.request_stop()
        wake_all(self._parked)

    def _on_writable(self, loop: asyncio.AbstractEventLoop) -> None:
        self._pipes.flush()
        if not self._pipes.unsent:
            loop.remove_writer(self._pipes.answers)
        wake_all(self._parked)

    def _may_go(self) -> bool:
        if self.stop:
            return True
        has_bytes = not self._is_bounded or self._bytes_in_flight < _BYTE_WINDOW
        return self._made < self._limit and has_bytes and not self._pipes.unsent

    def _take_credit(self) -> None:
        """Read credit: what the consumer took, whose room is free again, and how many partials it allows."""
        frames = self._pipes.decoder.frames
        while frames and frames[0].kind == CREDIT:  # a command behind it is left to the host
            frame = frames.popleft()
            if frame.number == self.number:
                taken, limit = read_credit(frame)
                self._limit = max(self._limit, limit)
                self._ring.free(taken)
                with self._pipes.lock:  # the flusher's thread counts frames, too
                    while self._in_flight and self._in_flight[0][0] <= taken:
                        self._bytes_in_flight -= self._in_flight.popleft()[1]

    # Stopping

    def receive_stop(self) -> None:
        """Stop the call because the engine asks for it; in the thread that reads such requests."""
        self._is_stop_requested = True
        self.request_stop()

    def request_stop(self) -> None:
        """Ask the owner, the main thread or a task of its loop, to finalise the body; any thread may call this."""
        self.stop = True  # stored before the owner is woken, which then tests it
        if self.body is not None:
            self.body.call.stopping = True
        self._pipes.wake()
        wake_all(self._parked)
        if self.on_stop is not None:
            self.on_stop()

    # The end

    def finish(self, end: Report) -> None:
        """Send how the body ended, after everything that it gave; the last thing its owner does, and only once."""
        if self.end is not None:
            return
        self.end = end
        host = self._host
        if host.is_terminated and not self._is_stop_requested:
            host.loop.stop_running()  # SIGTERM came from outside: the process ends of it, and the engine reports how
            return
        error = None if end.error is None and self._refusal is None else self._failure_of(end)
        flush_streams()
        pipes = self._pipes
        # As `host.uninterrupted()`, without its calls: every call ends here.
        was_busy, pipes.is_busy = pipes.is_busy, True
        try:
            if self._batch:
                self.flush_from_anywhere()
            if error is None:
                self._send_done(end)
            if self._refusal is not None and error is None:  # `_send_done` found that the result cannot travel
                error = self._refusal
            if error is not None:
                self._send_failed(error, is_cleanup=(end.is_cleanup or host.is_terminated) and self._refusal is None)
        finally:
            if not was_busy:
                pipes.is_busy = False
                if host.is_stop_deferred:
                    host.run_deferred_stop()
        if host.loop.is_running:
            host.loop.stop_running()

    def _failure_of(self, end: Report) -> BaseException | None:
        error = None if end.error is None else sanitized(end.error)
        if isinstance(error, Terminated):  # the engine's own, and no failure of the body
            error = None
        return error if self._refusal is None else _joined(self._refusal, error)

    def _send_done(self, end: Report) -> None:
        reduction = None if self.body is None else self.body.reduction
        latency, kept, value, is_one = 0.0, None, end.returned, False
        if reduction is not None:
            is_returned = reduction.reducer.name == "returned"
            kept = (reduction.count, reduction.elapsed, is_returned)
            value = value if is_returned else reduction.value if reduction.count else None
        elif self._returned_value is not None:
            is_one, (value, latency) = True, self._returned_value
            self._made += 1
        location: PayloadLocation | None = None
        rest: Sequence[Chunk] = ()
        if not is_plain(value):
            try:
                payload = encode(value)
            except BaseException as error:
                self.refuse(payload_error(self._what_is_sent(end, is_one=is_one), value, error))
                if reduction is not None and reduction.reducer.name == "last":
                    reduction.count -= 1  # it is not delivered
                return
            location, rest = self._place(self._made, payload)
            value = None
        meta = pickle.dumps((latency, kept, is_one, location, value, not self._host.is_terminated), 5)
        self._pipes.write(pack(DONE, self.number, meta, rest))

    def _what_is_sent(self, end: Report, *, is_one: bool) -> str:
        """Name a value that goes with the end as its consumer knows it."""
        reduction = None if self.body is None else self.body.reduction
        if reduction is None:
            return "the result" if is_one else "the return value"
        name = reduction.reducer.name
        if name == "last" and (reduction.count > 1 or reduction.value is not end.returned):
            return f"partial {reduction.count - 1}"
        return "the return value" if name == "returned" else "the result"

    def _send_failed(self, error: BaseException, *, is_cleanup: bool) -> None:
        reduction = None if self.body is None else self.body.reduction
        kept, location = None, None
        rest: Sequence[Chunk] = ()
        if reduction is not None:
            kept = (reduction.count, reduction.elapsed, False)
            if reduction.count and reduction.reducer.name != "returned":
                with contextlib.suppress(
                    Exception
                ):  # without it, where what was reduced before the failure cannot travel
                    location, rest = self._place(self._made, encode(reduction.value))
        trim(error)
        is_bodys = self.body is not None and self.body.is_started and self._refusal is None
        meta = (pack_failure(error), is_bodys, is_cleanup, kept, location, not self._host.is_terminated)
        self._pipes.write(pack(FAILED, self.number, pickle.dumps(meta, 5), rest))
        BaseException.with_traceback(error, None)  # its frames refer to inputs, and in a cycle to itself


def is_batchable(value: object) -> bool:
    """Whether a partial cannot change, and is small enough to be batched."""
    if type(value) is tuple:
        return len(value) <= _BATCHED_ITEMS and all(map(is_plain, value))
    return is_plain(value)


def _joined(refusal: PayloadError, error: BaseException | None) -> PayloadError:
    """Give the error of a refused partial, with what the body's clean-up then raised as its context."""
    if error is not None and error is not refusal:
        refusal.__context__ = error
    return refusal
