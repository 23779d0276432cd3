"""Worker processes as a place to run: what is sent to one, and when.

A call goes down once, as a command with its inputs, and comes back as frames that its consumer reads itself. Each
worker gets a predictor once. What cannot travel is refused before any worker is leased. Nothing is started before the
first call, or `load`, which starts the first worker.
"""

from __future__ import annotations

import contextlib
import os
import threading
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING, Any, Protocol

from engine._errors import EngineClosedError, PredictionCancelledError, WorkerLostError
from engine._fork import renew_after_fork
from engine._predictors.body import Body
from engine._records import Call
from engine._wire.encode import are_plain, encode_at_once, encode_inputs
from engine._wire.frames import Command, pack_command
from engine._wire.incremental import COPY_STEP
from engine._wire.target_snapshots import is_function
from engine.runners.base import Once, refuse_in_use
from engine.runners.ending import Ending, Report
from engine.runners.parking import wake_all
from engine.runners.process import variables
from engine.runners.process.commands import command_frame, is_large
from engine.runners.process.encoding import EncodedPredictors
from engine.runners.process.inlet import Inlet
from engine.runners.process.offload import offloaded
from engine.runners.process.pool import Pool
from engine.runners.process.queue import Need
from engine.runners.process.spawn import start_worker
from engine.runners.process.supervisor import Supervisor
from engine.runners.process.variables import encode_variables, encode_variables_at_once

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from engine._records import Start
    from engine.runners.base import Loaded
    from engine.runners.process.encoding import EncodedPredictor
    from engine.runners.process.offload import Offload
    from engine.runners.process.worker import Worker
    from engine.runners.slots import Slots


class Threads(Protocol):
    """Owner threads, as `ThreadRunner` has them."""

    def run(self, channel: Ending, work: Callable[[], None]) -> None:
        """Have an owner thread do something that ends by finishing `channel`."""

    def close(self, grace: float) -> None:
        """Have them end, and wait at most `grace` seconds for it."""


class ProcessRunner:
    """Runs bodies of every kind in worker processes.

    Args:
        most: workers at one time; `None` for as many as there are processors to use.
        grace: seconds from one step of an escalation to the next.
        start: where and with what they start.
        threads: owner threads for what would keep an event loop for long; they are closed with this.
    """

    name = "process"
    is_here = False
    is_elsewhere = True

    def __init__(self, most: int | None, grace: float, start: Start, threads: Threads) -> None:
        """Note where and with what workers will start; none is started."""
        self._grace = grace
        self._start = start
        self._threads = threads
        self.offload: Offload = threads.run
        self._pool = Pool(most or _default_workers(), self._spawn, grace)
        self._supervisor = Supervisor(self._pool, grace, self._send_exit)
        self._predictors = EncodedPredictors(self._evict, self.offload)
        self._is_closing = False
        self._retiring: list[Inlet] = []
        renew_after_fork(self)

    # Opening

    def open(self, body: Body, prefetch: int | None) -> Inlet:
        """Make the consumer's end of the channel of one call."""
        return Inlet(prefetch, body.call.tag, self)

    def admit(self, inlet: Inlet, body: Body) -> None:
        """Encode a call, and take a slot and a worker for it, before its body starts; waits in a thread."""
        need = self._prepare(inlet, body)
        if body.slots is not None:
            body.slots.take(body)
        try:
            inlet.worker = worker = self._pool.take(body, need)
            worker.inlet = inlet
        except BaseException:  # Ctrl-C before the store above left the worker leased, and known to no inlet
            self._give_up(body.call)
            raise

    async def aadmit(self, inlet: Inlet, body: Body) -> None:
        """Encode a call, and take a slot and a worker for it, before its body starts; waits in an asyncio task."""
        need = await self._aprepare(inlet, body)
        if body.slots is not None:
            await body.slots.atake(body)
        try:
            self._assign(inlet, await self._pool.atake(body, need))
            data = inlet.encoded.data  # type: ignore[union-attr]  # it was prepared
            if inlet.payload is not None or (data is not None and len(data) > COPY_STEP):
                inlet.is_large = is_large(inlet)
        except BaseException:
            self._give_up(body.call)
            raise

    def _prepare(self, inlet: Inlet, body: Body) -> Need:
        if self._is_closing:
            raise EngineClosedError
        encoded = self._predictors.get(body.call.tag, body.target, body.limit, by_value=body.by_value)
        if are_plain(body.args, body.kwargs):
            inlet.inputs = body.args, body.kwargs
        else:
            inlet.payload = encode_inputs(body.args, body.kwargs, encoded.whole)
        return self._prepared(inlet, body, encoded)

    async def _aprepare(self, inlet: Inlet, body: Body) -> Need:
        """Encode a call in an asyncio task; what is large is encoded in an owner thread."""
        if self._is_closing:
            raise EngineClosedError
        encoded = self._predictors.current(body.call.tag, body.target, body.limit, by_value=body.by_value)
        if encoded is None:
            encoded = await self._predictors.aget(body)
        args, kwargs = body.args, body.kwargs
        if are_plain(args, kwargs):
            inlet.inputs = args, kwargs
        else:
            inlet.payload = encode_at_once(args, kwargs, encoded.whole) or await offloaded(
                self.offload, body, lambda is_abandoned: encode_inputs(args, kwargs, encoded.whole, is_abandoned)
            )
        if variables.named:
            inlet.variables = encode_variables_at_once(body)
            if inlet.variables is None:
                inlet.variables = await offloaded(self.offload, body, partial(encode_variables, body))
        return self._prepared(inlet, body, encoded)

    @staticmethod
    def _prepared(inlet: Inlet, body: Body, encoded: EncodedPredictor) -> Need:
        inlet.body = body
        inlet.encoded = encoded
        # They are encoded by now: a stream keeps neither its predictor nor its inputs alive here.
        body.function, body.target, body.args, body.kwargs = None, None, (), {}
        return encoded.need

    @staticmethod
    def _assign(inlet: Inlet, worker: Worker) -> None:
        inlet.worker = worker
        worker.inlet = inlet

    def _evict(self, key: int) -> None:
        """Have every worker evict a predictor before its next call."""
        for worker in self._pool.workers:
            if key in worker.known:
                worker.to_evict.append(key)

    # Sending

    def start(self, body: Body, channel: Any) -> None:
        """Send the call; its worker was taken when it was admitted.

        Raises:
            RuntimeError: the worker was lost, and no thread is to be had that gets another.
        """
        inlet: Any = channel
        call, encoded = body.call, inlet.encoded
        reducer = None if body.reduction is None else body.reduction.reducer
        inlet.command = Command(
            "run",
            encoded.key,
            call.tag,
            encoded.text,
            0,
            (),
            call.id,
            call.created_ns,
            call.depth,
            body.follows,
            body.bind,
            None if reducer is None else reducer.name,
            inlet.first_limit() if reducer is None else 0,  # it is never asked for a partial
            inlet.is_adaptive,
            (encode_variables(body) if inlet.variables is None else inlet.variables) if variables.named else (),
            inlet.inputs,
        )
        if inlet.is_large:
            inlet.sending = sending = Once()
            self.offload(inlet, partial(self._send_once, inlet, sending))
        else:
            self._send(inlet)

    def _send_once(self, inlet: Inlet, sending: Once) -> None:
        """Send a call, in an owner thread, unless Ctrl-C has ended it while this thread was started."""
        if sending.is_first():
            self._send_offloaded(inlet)
            inlet.sending = None

    def _send_offloaded(self, inlet: Inlet) -> None:
        """Send a call, in a thread of the engine's, unless it was stopped before, and wake its consumers."""
        end: Report | None = None
        try:
            if inlet.stop:
                end = Report()
            else:
                self._send(inlet)
        except BaseException as error:
            end = Report(error)
        if end is not None:
            inlet.sending = None
            inlet.finish(end)
        wake_all(inlet.consumers)

    def _send(self, inlet: Inlet) -> None:
        """Send the command of a call to its worker, or to another if that is lost and has not read it."""
        worker, command = inlet.worker, inlet.command
        if worker is None or command is None:
            raise AssertionError("a worker is taken before a call is sent")
        worker.calls += 1  # only the call that holds the worker sends to it, so that no lock is needed
        encoded = inlet.encoded
        frame = command_frame(worker, command, encoded, inlet.payload)
        inlet.number = worker.calls  # stored before the write: whatever interrupts it, the worker may have the call
        if encoded is not None and (command.evict or encoded.key not in worker.known):
            # After all that may fail, else it would not be sent again; before the write, whose answer may evict it.
            worker.note_known(encoded.key, encoded.tag, command.evict)
        if command.path is not None:
            worker.path = list(command.path)
        is_lost = False
        try:
            worker.send(frame)
        except BrokenPipeError:
            # A worker that ends as soon as it is started is not replaced, or starts would follow without end.
            is_lost = not worker.is_untried and not inlet.stop
        if is_lost:
            self._replace_worker(inlet, worker)
            return
        inlet.is_sent = True  # before the test: a stop in between is requested twice rather than never
        if inlet.stop or self._is_closing:
            inlet.request_stop()

    def replace(self, inlet: Inlet, worker: Worker) -> None:
        """Send a call to another worker: its own was lost before it read the call, so that no body has started."""
        try:
            self._replace_worker(inlet, worker)
        except BaseException as error:
            inlet.finish(Report(error))

    def _replace_worker(self, inlet: Inlet, worker: Worker) -> None:
        """Have a call whose worker is lost get another; a thread of the pool's sends it there."""
        try:
            body = inlet.body
            inlet.unassign(worker)
            if body is None:
                raise AssertionError("a call that is over is not sent again")  # noqa: TRY301 - undone below
            self._pool.replace(worker, body, partial(self._on_replaced, inlet))
        except BaseException:
            self._pool.evict(worker)  # only this one: the thread may have begun, and releases what it got itself
            if self._is_closing:
                self._supervisor.close()
            raise

    def _on_replaced(self, inlet: Inlet, worker: Worker | None, error: BaseException | None) -> None:
        """Send a call to the worker that replaces its lost one, or end it if there is none; in the pool's thread."""
        if worker is None or inlet.stop or inlet.end is not None:
            if worker is not None:
                self._pool.release(worker)
            if inlet.end is None:
                inlet.finish(Report(None if inlet.stop else error))
            return
        self._assign(inlet, worker)
        self._send_offloaded(inlet)

    def _spawn(self) -> Worker:
        worker = start_worker(self._start)
        try:
            if self._is_closing:
                raise EngineClosedError  # noqa: TRY301 - the worker is killed below
            self._supervisor.watch(worker)
        except BaseException:  # Ctrl-C, or the supervisor has ended: only this thread knows of the worker
            worker.is_new = False
            worker.kill()
            raise
        return worker

    def _give_up(self, call: Call) -> None:
        """Release the worker that may have been granted to a call that was interrupted."""
        self._pool.give_up(call)
        if self._is_closing:  # a worker that was busy when the supervisor retired idle ones is idle now, and has to end
            self._supervisor.close()

    def escalate(self, inlet: Inlet) -> None:
        """Have the supervisor stop a call, or find out how its worker ended; called from anywhere, takes no lock."""
        if inlet.body is not None:  # a worker that was told to end has its case already, and the grace to end in
            self._supervisor.escalate(inlet)

    def release(self, inlet: Inlet, worker: Worker, keep: bool) -> None:  # noqa: FBT001
        """Take back a worker that has nothing more to send for a call; it serves others if `keep`."""
        encoded = inlet.encoded
        if encoded is not None and not encoded.is_kept:
            worker.to_evict.append(encoded.key)
        body = inlet.body
        if not keep:
            self._pool.evict(worker)
        elif worker.lease is not None and body is not None and worker.lease.call is body.call:
            if worker.inbound.is_oversized:
                worker.inbound.trim()
            self._pool.release(worker)
        if self._is_closing:
            self._supervisor.close()

    # Requests

    def describe(self, tag: str, text: str) -> Any:
        """Have a worker import `"module:name"` and describe it, as `engine._worker.host` does.

        Raises:
            BaseException: what the import raised.
        """
        return self._request(Command("describe", tag=tag, text=text), None, Need())

    def load(self, loaded: Loaded) -> None:
        """Have a worker import a predictor, or get it, and set it up if it is a class.

        Raises:
            BaseException: what its import, constructor or `setup` raised.
        """
        profile = loaded.profile
        encoded = self._predictors.get(profile.tag, loaded.target, profile.set_up_limit, by_value=profile.by_value)
        command = Command("load", encoded.key, profile.tag, encoded.text)
        self._request(command, encoded, encoded.need, loaded.slots_elsewhere[self.name])

    def unload(self, loaded: Loaded) -> None:
        """Have every worker tear a class predictor down that has it set up, once its calls are over.

        Raises:
            EngineError: a call still uses it after the grace.
            BaseException: what `teardown` raised.
        """
        profile, target = loaded.profile, loaded.target
        tag, limit, by_value = profile.tag, profile.set_up_limit, profile.by_value
        encoded = self._predictors.as_sent(tag, target, limit, by_value=by_value)
        refuse_in_use(tag, loaded.slots_elsewhere[self.name], self._grace)
        for worker in self._pool.workers:
            if encoded.key in worker.set_up:
                self._unload(worker, encoded)
        if encoded.data is not None and not is_function(target):
            self._predictors.discard(encoded)  # the next call sends it as it is then

    def _unload(self, worker: Worker, encoded: EncodedPredictor) -> None:
        """Unload from one worker; one that serves another predictor for long does it before its next call."""
        try:
            command = Command("unload", encoded.key, encoded.tag)
            self._request(command, None, Need(only=worker), timeout=self._grace)
        except PredictionCancelledError:
            worker.to_evict.append(encoded.key)
        else:
            worker.evict(encoded.key)

    def loaded(self) -> set[str]:
        """The tags of predictors that a worker has; plain callables have none."""
        return {tag for worker in self._pool.workers for tag in tuple(worker.known.values()) if tag.startswith("@")}

    def _request(
        self,
        command: Command,
        encoded: EncodedPredictor | None,
        need: Need,
        slots: Slots | None = None,
        timeout: float | None = None,
    ) -> Any:
        """Have a worker carry out a command, and wait for it in this thread.

        Raises:
            PredictionCancelledError: no worker was free for `timeout` seconds.
        """
        body = Body(Call(command.tag, self.name, None), None, (), {}, False, None)  # type: ignore[arg-type]  # noqa: FBT003
        inlet = self.open(body, None)
        inlet.body, inlet.encoded, inlet.command = body, encoded, command
        if slots is not None:
            slots.take(body)
        try:
            with _timing_out(body, timeout):
                self._assign(inlet, self._pool.take(body, need))
            self._send(inlet)
            while inlet.end is None:
                inlet.wait()
                if inlet.stop:
                    inlet.wait_end(self._grace)
        except BaseException:
            inlet.finish(Report())
            self._give_up(body.call)
            raise
        if inlet.stop:
            raise EngineClosedError
        if inlet.end.error is not None:
            raise inlet.end.error
        return inlet.end.returned

    # Closing

    def _send_exit(self, worker: Worker) -> Inlet:
        """Have an idle worker tear down what it set up, and end; what that raises is kept for `close`."""
        # No pool leases it any more, so that this inlet alone writes to it.
        inlet = Inlet(None, f"worker {worker.pid}", self)
        self._assign(inlet, worker)
        if self._is_closing:
            self._retiring.append(inlet)
        else:
            inlet.detach()  # no caller waits for it: what its teardown raises goes to the log
        worker.calls += 1
        inlet.number = worker.calls
        inlet.is_sent = True
        worker.send(pack_command(inlet.number, Command("exit")))
        return inlet

    @property
    def is_started(self) -> bool:
        """Whether there may be workers to end."""
        return self._supervisor.is_started

    def close(self, grace: float) -> list[BaseException]:
        """Stop what runs, tear down what is set up, and end every worker; within a few times `grace` seconds.

        Returns:
            What `teardown` raised in workers.
        """
        deadline = monotonic() + 4 * grace + 12.0
        self._pool.close()
        self.close_soon()
        self._pool.join(4 * grace + 12.0)
        self._supervisor.close()  # again: a worker whose start was under way has to end, too
        self._supervisor.join(max(0.0, deadline - monotonic()))
        self._threads.close(grace)
        errors = [inlet.end.error for inlet in self._retiring if inlet.end is not None and inlet.end.error is not None]
        return [each for each in errors if not isinstance(each, WorkerLostError)]

    def close_soon(self) -> None:
        """Have workers and threads end, without waiting; takes no lock, so that a collector may do it."""
        self._is_closing = True
        self._supervisor.post(self._close_pool, None)
        self._supervisor.close()
        self._threads.close(0.0)

    def _close_pool(self, _nothing: None) -> None:
        self._pool.close()

    def after_fork(self) -> None:
        """Refuse everything: the workers are the parent's, and no stream that was opened there gets one in a child."""
        self._is_closing = True
        self._supervisor.after_fork()


@contextlib.contextmanager
def _timing_out(body: Body, seconds: float | None) -> Iterator[None]:
    """Cancel a wait on behalf of `body` after so many seconds."""
    if seconds is None:
        yield
        return

    def expire() -> None:
        body.call.stopping = True
        if body.recheck is not None:
            body.recheck()

    timer = threading.Timer(seconds, expire)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        timer.join()


def _default_workers() -> int:
    """As many workers as this process may use processors."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
