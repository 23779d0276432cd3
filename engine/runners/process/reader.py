"""Reading a worker's pipe: each consumer of a call does it itself while it waits, and no thread stands in between.

Sync code that waits for a partial waits on the pipe, an asyncio task is woken by its loop's own reader, and the reader
of a frame puts what it holds where all consumers find it. One at a time reads, of the consumers and the supervisor:
the one that has set `_is_reading`. The others are parked meanwhile, and a consumer's thread that has read wakes one of
them as it leaves.
"""

from __future__ import annotations

import os
import select
from abc import abstractmethod
from collections import deque
from contextlib import suppress
from time import sleep
from typing import TYPE_CHECKING, Any, Final

from engine._errors import warn
from engine._wire.frames import ProtocolError
from engine._wire.nonblocking import READ_SIZE
from engine.runners.ending import Ending
from engine.runners.parking import POLL_INTERVAL, park_thread, wake_all, wake_one

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop, Future
    from collections.abc import Callable

    from engine._wire.frames import Frame
    from engine.runners.parking import Wake
    from engine.runners.process.worker import Worker

_READER_PAUSE: Final = 0.01  # seconds a reader that was woken has to leave


class PipeReader(Ending):
    """An ending whose consumers read the pipe of the worker that owns the body.

    Attributes:
        items: partials that have come, with their latencies in ms.
        consumers: wake-ups of the consumers that wait for news.
        worker: the worker that serves the call.
        is_sent: whether the call was sent to it; until then its sender notices that the worker is lost, and no
            consumer reads what it sends.
        is_disconnected: whether nothing more can come from the worker; the supervisor finds out why.
        reason: why the worker was lost, where that is not how its process ended.
    """

    __slots__ = (
        "_broken",
        "_futures",
        "_is_offloaded",
        "_is_reading",
        "_reader",
        "consumers",
        "is_disconnected",
        "is_sent",
        "items",
        "reason",
        "worker",
    )

    def __init__(self, label: str) -> None:
        """Make it for a call that no worker serves yet."""
        super().__init__(label)
        self.consumers: deque[Wake] = deque()
        self.items: deque[tuple[Any, float]] = deque()
        self.worker: Worker | None = None
        self.is_sent = False
        self.is_disconnected = False
        self.reason = ""
        self._futures: deque[Future[None]] = deque()
        self._is_reading = False  # a consumer, or the supervisor, reads the pipe; see `_sleep`
        self._is_offloaded = False  # an owner thread does, on behalf of an event loop
        self._broken: Exception | None = None  # what kept the last bytes from being frames
        self._reader: AbstractEventLoop | None = None  # the loop that reads just now, in its own thread

    # What a call does with what is read

    @abstractmethod
    def _receive(self, frame: Frame, worker: Worker) -> None:
        """Take in one frame.

        Raises:
            LargeFrameError: it is too large for the event loop that reads, and was not taken in.
            Exception: it means nothing.
        """

    @abstractmethod
    def _escalate(self) -> None:
        """Have the supervisor find out how the worker ended."""

    @abstractmethod
    def _offload(self, work: Callable[[], None]) -> None:
        """Have an owner thread do what would keep an event loop for long."""

    # Waiting

    def _has_news(self) -> bool:
        return bool(self.items) or self.end is not None or self.stop

    def _sleep(self) -> None:
        # What `_is_readable` tells, without its call.
        if self.is_disconnected or not self.is_sent or self.worker is None or self._is_reading:
            park_thread(self.consumers, self._may_read, POLL_INTERVAL)
            return
        # call-free store: `_is_reading` decides which consumer reads. It is stored inside the `try`, so that whatever a
        # signal handler raises from then on finds the `finally` that takes it back.
        try:
            self._is_reading = True
            self._read_until_news()
        finally:
            self._is_reading = False
            if self.consumers:
                wake_one(self.consumers)  # another consumer reads on

    def _is_readable(self) -> bool:
        """Whether there is a worker that has the call, and no other reader of its pipe."""
        return not self.is_disconnected and self.is_sent and self.worker is not None and not self._is_reading

    def _may_read(self) -> bool:
        return self._has_news() or self._is_readable()  # the call may have got another worker just now

    def _read_until_news(self) -> None:
        worker = self.worker
        if worker is None:
            return
        # Once its pipe is closed, the call may be another worker's before this thread tests that.
        while self.end is None and not self.items and not self.stop and self._is_served_by(worker):
            if worker.unsent:
                ready = self._wait_to_send(worker)
            else:
                try:
                    ready = worker.poll.poll(POLL_INTERVAL * 1000)
                except RuntimeError:  # a poll object serves one thread, and an earlier call's reader still polls it
                    ready = _poll(worker, 0).poll(POLL_INTERVAL * 1000)
            for descriptor, _ in ready:
                if descriptor == worker.answers:
                    self._read(worker)
                elif descriptor == worker.wake_reader:
                    worker.clear_wake()
            if not ready:
                return

    def _wait_to_send(self, worker: Worker) -> list[tuple[int, int]]:
        """Wait for room in a pipe that was too full for all of the call, or for anything to read."""
        ready = _poll(worker, worker.calls_pipe).poll(POLL_INTERVAL * 1000)
        if any(descriptor == worker.calls_pipe for descriptor, _ in ready):
            self._send_rest(worker)
        return ready

    def _send_rest(self, worker: Worker) -> None:
        try:
            worker.send(())
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
            except RuntimeError:  # that loop is closed: no task will ever take what comes
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
        """Whether the call has a worker whose pipe this loop does not watch, as after it was sent to another."""
        worker = self.worker
        if worker is None or self.is_disconnected or self._is_offloaded or not self.is_sent:
            return False
        return worker.registrations.get(loop) is not self

    def _watch(self, loop: AbstractEventLoop) -> None:
        """Have this loop read the pipe, until the end."""
        worker = self.worker
        if worker is None or not self._needs_watch(loop):
            return
        # Registered first: a worker that is over keeps its pipes open for a loop that may watch them.
        worker.registrations[loop] = self
        is_watched = False
        try:
            if self.worker is worker:  # else they may have been closed before this loop was registered
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
                self._is_reading = True  # call-free store: `_is_reading` decides which consumer reads
                self._reader = loop
                is_large = self._read(worker)
            finally:
                self._is_reading = self._is_offloaded = is_large
                self._reader = None
            if is_large:
                self._offload_rest(loop, worker)
            elif not self._is_served_by(worker):
                self._unwatch(loop, worker)
        if self._has_news() or self.is_disconnected:
            for future in tuple(self._futures):
                _resolve_from(loop, future)

    def _offload_rest(self, loop: AbstractEventLoop, worker: Worker) -> None:
        """Have an owner thread take in what is large, and what came behind it; this loop does not watch meanwhile.

        `_is_reading` stays set until that thread is done, so that no other consumer overtakes it.
        """
        self._unwatch(loop, worker)
        try:
            self._offload(lambda: self._receive_offloaded(worker))
        except Exception:  # the engine is closed, or no thread is to be had: a blocked loop is better than a lost call
            self._receive_offloaded(worker)

    def _receive_offloaded(self, worker: Worker) -> None:
        try:
            self._receive_all(worker)
        finally:
            self._is_reading = self._is_offloaded = False
            wake_all(self.consumers)  # they take what came, or watch again

    def _is_served_by(self, worker: Worker) -> bool:
        """Whether more may come from this worker."""
        return self.worker is worker and not self.is_disconnected

    def _on_writable(self, loop: AbstractEventLoop, worker: Worker) -> None:
        self._send_rest(worker)
        if not worker.unsent or self.is_disconnected:
            loop.remove_writer(worker.calls_pipe)

    def _unwatch(self, loop: AbstractEventLoop, worker: Worker) -> None:
        """In the loop's own thread: watch no more, unless a later call does."""
        if worker.registrations.get(loop) is self:
            if worker.answers >= 0:  # else they were closed before this loop could watch them
                loop.remove_reader(worker.answers)
                loop.remove_writer(worker.calls_pipe)
            # Last: from here on the pipes may be closed, and their numbers given to other files.
            del worker.registrations[loop]
            worker.unwatched()

    def _unwatch_all(self, worker: Worker) -> None:
        for loop, mine in tuple(worker.registrations.items()):
            if mine is self and loop is not self._reader:  # the loop that reads just now unwatches as it leaves
                with suppress(RuntimeError):  # a closed loop watches nothing
                    loop.call_soon_threadsafe(self._unwatch, loop, worker)

    # Reading

    def _read(self, worker: Worker) -> bool:
        """Take in what the pipe holds, as the reader that has set `_is_reading`.

        Returns:
            Whether an event loop met something large, which an owner thread has to take in.
        """
        try:
            data = os.read(worker.answers, READ_SIZE)
        except BlockingIOError:
            return False
        except OSError:  # it was closed, with a worker that is over
            data = b""
        if not data:
            self._disconnect(worker)
            return False
        try:
            worker.decoder.feed(data)
        except ProtocolError as error:  # raised below, once the frames before the broken bytes are taken in
            self._broken = error
        except BaseException:
            self._interrupt(worker)
            raise
        return self._receive_all(worker)

    def _receive_all(self, worker: Worker) -> bool:
        """Take in the frames that have come; tell whether a large one is left for an owner thread."""
        frames = worker.decoder.frames
        try:
            while frames and self.worker is worker:
                self._receive(frames.popleft(), worker)
            if self._broken is not None:
                raise self._broken  # noqa: TRY301 - handled as any frame that means nothing
        except LargeFrameError as large:
            frames.appendleft(large.frame)
            return True
        except Exception as error:  # not a predictor's, whose values fail as `PayloadError`: the frame means nothing
            warn(f"{self.label}: worker {worker.pid} does not speak the engine's protocol", error)
            self.reason = "it did not speak the engine's protocol, and was killed"
            self._disconnect(worker)
        except BaseException:
            self._interrupt(worker)
            raise
        return False

    def _interrupt(self, worker: Worker) -> None:
        """Give up a worker whose frame Ctrl-C has interrupted: where the next one begins is not known any more."""
        if self._is_served_by(worker) and not self.stop:
            self.reason = "reading its answer was interrupted, and it was killed"
            self._disconnect(worker)

    def read_rest(self, worker: Worker) -> bool:
        """Take in all there is, for the supervisor; tell whether that could be done, or another reader has to leave."""
        if self._is_reading:
            self._wake_reader(worker)
            return False
        try:
            self._is_reading = True  # call-free store: `_is_reading` decides between a consumer and the supervisor
            while self.worker is worker and not self.is_disconnected and _has_data(worker):
                self._read(worker)
        finally:
            self._is_reading = False
        return True

    def retire(self, worker: Worker) -> bool:
        """Let the worker serve no further call, unless this one is over; tell whether it is so, or a reader must leave.

        The supervisor calls this before it signals.
        """
        if self._is_reading:
            self._wake_reader(worker)
            return False
        # call-free store: no consumer reads, so that a call that this worker still serves is not over before it.
        worker.is_retired = worker.is_retired or self.worker is worker
        return worker.is_retired

    @staticmethod
    def _wake_reader(worker: Worker) -> None:
        """Have the consumer that reads leave the pipe, and give it a hundredth of a second for that."""
        worker.wake()
        sleep(_READER_PAUSE)

    def _disconnect(self, worker: Worker) -> None:
        """Read no more from this worker, and have the supervisor find out why, unless the call was moved already."""
        if self._is_served_by(worker):
            self.is_disconnected = True
            self._escalate()


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
    """Make a poll object for answers, wake-ups, and room in the pipe `sending`, if that is not 0."""
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


class LargeFrameError(Exception):
    """A frame brings more than an event loop takes in."""

    def __init__(self, frame: Frame) -> None:
        super().__init__(frame)
        self.frame = frame
