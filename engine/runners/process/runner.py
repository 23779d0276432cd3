"""Worker processes as a place to run: what is sent to one, and when.

A call goes down once, as a command with its inputs, and comes back as frames that its consumer reads itself.
Predictors of installed packages travel by name, others by value, once a worker. What cannot travel is refused before
any worker is touched. This room starts nothing by itself: the first call, or `load`, starts the first worker.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import sys
import threading
import types
import weakref
from collections import deque
from contextvars import copy_context
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING, Any, Final, Protocol

from engine._errors import EngineClosedError, PredictionCancelledError, WorkerLostError, quote, warn
from engine._fork import renew_after_fork
from engine._predictors.body import Body
from engine._records import Call
from engine._wire.decode import read_only_bits
from engine._wire.encode import Payload, are_plain, encode_at_once, encode_inputs, encode_whole, encode_whole_at_once
from engine._wire.frames import Command, pack_command
from engine._wire.incremental import COPY_STEP, TimeSlice, fits_event_loop
from engine._wire.picklers import payload_error
from engine._wire.segments import SHARED_FROM
from engine._wire.target_snapshots import Snapshot, defining_modules, is_function
from engine._wire.targets import encode_target
from engine.runners.base import Once, refuse_in_use
from engine.runners.ending import Ending, Report
from engine.runners.parking import park_task, wake_all
from engine.runners.process.inlet import Inlet
from engine.runners.process.pool import Need, Pool
from engine.runners.process.spawn import start_worker
from engine.runners.process.supervisor import Supervisor
from engine.runners.process.worker import EncodedPredictor, Worker
from engine.runners.slots import refuse_stopped

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from engine._records import Start
    from engine._wire.frames import Chunk
    from engine.runners.base import Loaded
    from engine.runners.process.inlet import Offload
    from engine.runners.slots import Slots

_keys: Final = itertools.count(1)  # numbers that predictors are known by in workers
_MOST_HOLDING: Final = 512  # predictors that may keep objects of the program alive, to know them again


class Threads(Protocol):
    """Owner threads, as `ThreadRunner` has them."""

    def run(self, channel: Ending, work: Callable[[], None]) -> None:
        """Have one of them do something that ends by finishing `channel`."""

    def close(self, grace: float) -> None:
        """Let them go."""


class ProcessRunner:
    """Runs bodies of every kind in worker processes.

    Args:
        most: workers at one time; `None` for as many as there are processors to use.
        grace: seconds from one rung of stopping to the next.
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
        self._supervisor = Supervisor(self._pool, grace, self._send_leave)
        self._shipments: dict[Any, tuple[weakref.ref[Any] | None, EncodedPredictor]] = {}
        self._holding: deque[tuple[Any, int]] = deque()  # those of them that keep objects of the program alive
        self._encodings: dict[Any, Ending] = {}  # predictors that are being encoded
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
        except BaseException:
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
                inlet.is_large = _is_large(inlet)
        except BaseException:
            self._give_up(body.call)
            raise

    def _prepare(self, inlet: Inlet, body: Body) -> Need:
        if self._is_closing:
            raise EngineClosedError
        encoded = self.encoded(body.call.tag, body.target, body.limit, by_value=body.by_value)
        if are_plain(body.args, body.kwargs):
            inlet.inputs = body.args, body.kwargs
        else:
            inlet.payload = encode_inputs(body.args, body.kwargs, encoded.whole)
        return self._prepared(inlet, body, encoded)

    async def _aprepare(self, inlet: Inlet, body: Body) -> Need:
        """The twin of `_prepare` for an asyncio task: what is large is encoded in an owner thread."""
        if self._is_closing:
            raise EngineClosedError
        encoded = self._known(body.call.tag, body.target, body.limit, by_value=body.by_value)
        if encoded is None:
            encoded = await self._aencoded_predictor(body)
        args, kwargs = body.args, body.kwargs
        if are_plain(args, kwargs):
            inlet.inputs = args, kwargs
        else:
            inlet.payload = encode_at_once(args, kwargs, encoded.whole) or await self._offloaded(
                body, lambda is_abandoned: encode_inputs(args, kwargs, encoded.whole, is_abandoned)
            )
        if _names:
            inlet.variables = _carried_at_once(body)
            if inlet.variables is None:
                inlet.variables = await self._offloaded(body, lambda is_abandoned: _carried(body, is_abandoned))
        return self._prepared(inlet, body, encoded)

    @staticmethod
    def _prepared(inlet: Inlet, body: Body, encoded: EncodedPredictor) -> Need:
        inlet.body = body
        inlet.encoded = encoded
        body.function, body.target, body.args, body.kwargs = None, None, (), {}
        need: Need = encoded.need
        return need

    async def _offloaded(self, body: Body, work: Callable[[Callable[[], bool]], Any]) -> Any:
        """Have an owner thread do something for a call, and wait for it in an asyncio task.

        Args:
            body: what the call is to run.
            work: is told how to find out, now and then, whether the call no longer waits for it.

        Raises:
            PredictionCancelledError: the call was stopped meanwhile.
            BaseException: what it raised.
        """
        refuse_stopped(body.call)
        ending = Ending(body.call.tag)
        body.recheck = ending.request_stop
        try:
            self.offload(ending, partial(copy_context().run, _run_offloaded, ending, work))
            while ending.end is None and not ending.stop:
                await ending.wait_task()
        except BaseException:
            ending.request_stop()
            raise
        finally:
            body.recheck = None
        end = ending.end
        if end is None or ending.stop:  # it may have seen that first, and have ended for it
            raise PredictionCancelledError(body.call.tag, body.call.id)
        _raise_error(end)
        return end.returned

    @staticmethod
    def _assign(inlet: Inlet, worker: Worker) -> None:
        inlet.worker = worker
        worker.inlet = inlet

    def encoded(self, tag: str, target: Any, limit: float, *, by_value: bool = False) -> EncodedPredictor:
        """A predictor ready to be sent.

        Raises:
            PayloadError: it cannot travel.
        """
        known = self._known(tag, target, limit, by_value=by_value)
        if known is not None:
            return known
        return self._encoded(tag, target, limit, defining_modules(target) if by_value else frozenset())

    async def _aencoded_predictor(self, body: Body) -> EncodedPredictor:
        """The twin of `encoded` for an asyncio task: an owner thread encodes it, once for all who wait for it.

        Raises:
            PayloadError: it cannot travel.
            PredictionCancelledError: the call was stopped meanwhile.
        """
        call, target, limit = body.call, body.target, body.limit
        name, *_ = _name_of(call.tag, target, limit, defining_modules(target) if body.by_value else frozenset())
        made: EncodedPredictor | None = None
        while made is None:
            mine = Ending(call.tag)
            encoding = self._encodings.setdefault(name, mine)
            if encoding is mine:
                self._encode_aside(encoding, name, call.tag, target, limit, by_value=body.by_value)
            end = await _await_end(encoding, body)
            if encoding is mine:
                _raise_error(end)
                made = end.returned
            else:  # what was wrong, or has changed before this call, it finds out for itself
                made = self._known(call.tag, target, limit, by_value=body.by_value)
        return made

    def _encode_aside(
        self, encoding: Ending, name: Any, tag: str, target: Any, limit: float, *, by_value: bool
    ) -> None:
        def encode(_is_unwanted: Callable[[], bool]) -> EncodedPredictor:
            try:
                return self.encoded(tag, target, limit, by_value=by_value)
            finally:
                self._encodings.pop(name, None)  # before its end is told: who finds none looks again

        try:
            self.offload(encoding, partial(copy_context().run, _run_offloaded, encoding, encode))
        except BaseException as error:
            self._encodings.pop(name, None)
            encoding.finish(Report(error))  # for those who wait for it by now
            raise

    def _known(self, tag: str, target: Any, limit: float, *, by_value: bool) -> EncodedPredictor | None:
        """A predictor that is ready to be sent; `None` for one that is to be encoded, for the first time or anew."""
        if isinstance(target, str):
            name: Any = (tag, target, limit)
            found = self._shipments.get(name)
            if found is None:
                found = self._shipments.setdefault(name, (None, _encoded_predictor(tag, target, limit)))
            return found[1]
        name, owner, _ = _name_of(tag, target, limit, defining_modules(target) if by_value else frozenset())
        encoded = self._kept(name, owner)
        if encoded is None:
            return None
        change = None if encoded.snapshot is None else encoded.snapshot.change()
        if change is None:
            return encoded
        if is_function(target):
            self._evict(encoded.key)
            return None
        encoded.snapshot = None
        warn(
            f"{tag}: {quote(change)} has changed since it was sent to workers, where a class or an object stays as it "
            "was: unload it there, with unload(..., runner='process'), and the next call sends it as it is now"
        )
        return encoded

    def _kept(self, name: Any, owner: Any) -> EncodedPredictor | None:
        """What was sent of a function, class or object."""
        found = self._shipments.get(name)
        return None if found is None or found[0] is None or found[0]() is not owner else found[1]

    def _encoded(self, tag: str, target: Any, limit: float, whole: frozenset[str]) -> EncodedPredictor:
        """Encode a function, class or object as it is now."""
        snapshot = Snapshot(target, whole)  # before it is: what changes meanwhile is noticed by the next call
        data = encode_target(tag, target, whole)
        name, owner, function = _name_of(tag, target, limit, whole)
        made = _encoded_predictor(tag, None, limit, data, function)
        made.snapshot, made.whole = snapshot, whole
        try:
            reference = weakref.ref(owner, lambda _gone: self._forget(name, made.key))
        except TypeError:  # it cannot be referred to weakly: sent again with every call
            made.is_kept = False
            return made
        self._shipments[name] = reference, made
        if snapshot.holds and is_function(target):  # what it is made of may in turn keep it alive
            self._holding.append((name, made.key))
            if len(self._holding) > _MOST_HOLDING:
                self._forget(*self._holding.popleft())
        return made

    def _forget(self, name: Any, key: int) -> None:
        found = self._shipments.get(name)
        if found is not None and found[1].key == key:
            del self._shipments[name]
        self._evict(key)

    def _evict(self, key: int) -> None:
        """Have every worker forget a predictor before its next call."""
        for worker in self._pool.workers:
            if key in worker.known:
                worker.to_evict.append(key)

    # Sending

    def start(self, body: Body, channel: Any) -> None:
        """Send the call; its worker was taken when it was admitted.

        Raises:
            RuntimeError: the worker was gone, and no thread is to be had that starts another.
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
            (_carried(body) if inlet.variables is None else inlet.variables) if _names else (),
            inlet.inputs,
        )
        if inlet.is_large:
            inlet.sending = sending = Once()
            self.offload(inlet, partial(self._send_once, inlet, sending))
        else:
            self._send(inlet)

    def _send_once(self, inlet: Inlet, sending: Once) -> None:
        """In an owner thread: send a call, unless Ctrl-C has ended it while this thread was started."""
        if sending.is_first():
            self._send_offloaded(inlet)
            inlet.sending = None

    def _send_offloaded(self, inlet: Inlet) -> None:
        """In a thread of the engine's: send a call, unless it was stopped before, and have its consumers hear it."""
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
        """Send what a wire has to its worker, or to another if that is gone and has not read it."""
        worker, command = inlet.worker, inlet.command
        if worker is None or command is None:
            raise AssertionError("a worker is taken before a call is sent")
        worker.calls += 1
        encoded = inlet.encoded
        frame = _frame(worker, command, encoded, inlet.payload)
        inlet.number = worker.calls  # from here on the worker may have it, whatever interrupts us
        if encoded is not None and (command.evict or encoded.key not in worker.known):
            # Neither before all that may fail, nor after an answer may come that says otherwise.
            worker.note_known(encoded.key, encoded.tag, command.evict)
        if command.path is not None:
            worker.path = list(command.path)
        is_gone = False
        try:
            worker.send(frame)
        except BrokenPipeError:
            # One that ends as soon as it is started is no reason to start more, nor is a call that was stopped.
            is_gone = not worker.is_untried and not inlet.stop
        if is_gone:
            self._replace_worker(inlet, worker)
            return
        inlet.is_sent = True
        if inlet.stop or self._is_closing:  # just before the worker could be asked
            inlet.request_stop()

    def replace(self, inlet: Inlet, worker: Worker) -> None:
        """Send a call elsewhere whose worker is gone and has not read it, so that no body has started."""
        try:
            self._replace_worker(inlet, worker)
        except BaseException as error:
            inlet.finish(Report(error))

    def _replace_worker(self, inlet: Inlet, worker: Worker) -> None:
        """Have a call whose worker is gone get another; a thread of the pool's sends it on."""
        try:
            body = inlet.body
            inlet.unassign(worker)
            if body is None:
                raise AssertionError("a call that is over is sent nowhere")  # noqa: TRY301 - undone below
            self._pool.replace(worker, body, partial(self._on_replaced, inlet))
        except BaseException:
            self._pool.evict(worker)  # it and nothing else: that thread may have begun, and what it got is not ours
            if self._is_closing:
                self._supervisor.close()
            raise

    def _on_replaced(self, inlet: Inlet, worker: Worker | None, error: BaseException | None) -> None:
        """In a thread of the pool's: a call has another worker, or gets none."""
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
                raise EngineClosedError  # noqa: TRY301 - as the supervisor does a moment later
            self._supervisor.watch(worker)
        except BaseException:  # Ctrl-C, or the supervisor is gone: nobody else knows of it
            worker.is_new = False
            worker.kill()
            raise
        return worker

    def _give_up(self, call: Call) -> None:
        """A call gave up: the worker that may have been granted to it is free, or has to end if the engine closes."""
        self._pool.give_up(call)
        if self._is_closing:
            self._supervisor.close()

    def escalate(self, inlet: Inlet) -> None:
        """A call was stopped, or its worker lost; called from anywhere, takes no lock."""
        self._supervisor.escalate(inlet)

    def release(self, inlet: Inlet, worker: Worker, keep: bool) -> None:  # noqa: FBT001
        """A worker has nothing more to say of a call; it serves others if `keep`."""
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
        """Have a worker import `"module:name"` and tell what it is; see `engine._worker.host`.

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
        encoded = self.encoded(profile.tag, loaded.target, profile.set_up_limit, by_value=profile.by_value)
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
        name, owner, _ = _name_of(tag, target, limit, defining_modules(target) if by_value else frozenset())
        encoded = self._kept(name, owner) or self.encoded(tag, target, limit, by_value=by_value)
        refuse_in_use(tag, loaded.slots_elsewhere[self.name], self._grace)
        for worker in self._pool.workers:
            if encoded.key in worker.set_up:
                self._unload(worker, encoded)
        if encoded.data is not None and not is_function(target):
            self._forget(name, encoded.key)  # the next call sends it as it is then

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
        """Tags of predictors that a worker has; plain callables have none."""
        return {tag for worker in self._pool.workers for tag in tuple(worker.known.values()) if tag.startswith("@")}

    def _request(
        self,
        command: Command,
        encoded: EncodedPredictor | None,
        need: Need,
        slots: Slots | None = None,
        timeout: float | None = None,
    ) -> Any:
        """Have a worker do something, and wait for it in this thread.

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

    def _send_leave(self, worker: Worker) -> Inlet:
        """Have an idle worker tear down what it set up, and end; what that raises is kept for `close`."""
        inlet = Inlet(None, f"worker {worker.pid}", _Leaving(self.offload))
        self._assign(inlet, worker)
        if self._is_closing:
            self._retiring.append(inlet)
        else:
            inlet.detach()  # nobody waits for it: what its teardown raises goes to the log
        worker.calls += 1
        inlet.number = worker.calls
        inlet.is_sent = True
        worker.send(pack_command(inlet.number, Command("exit")))
        return inlet

    @property
    def is_started(self) -> bool:
        """Whether there are workers to let go."""
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
        self._supervisor.close()  # what was started last has to end, too
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
    """Have a wait on behalf of `body` end as cancelled after so many seconds."""
    if seconds is None:
        yield
        return

    def give_up() -> None:
        body.call.stopping = True
        if body.recheck is not None:
            body.recheck()

    timer = threading.Timer(seconds, give_up)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        timer.join()


def _name_of(tag: str, target: Any, limit: float, whole: frozenset[str]) -> tuple[Any, Any, Any]:
    """What a predictor is kept by; the object that is referred to for it, and the function of a method of that."""
    is_method = isinstance(target, types.MethodType)
    owner, function = (target.__self__, target.__func__) if is_method else (target, None)
    return (tag, id(owner), id(function), limit, whole), owner, function


def _encoded_predictor(
    tag: str, text: str | None, limit: float, data: bytes | None = None, function: Any = None
) -> EncodedPredictor:
    key = next(_keys)
    return EncodedPredictor(key, tag, text, limit, Need(key, limit), data=data, function=function)


class _Leaving:
    """The dispatcher of a request after which its worker ends: nothing is left to be done with that."""

    __slots__ = ("offload",)

    def __init__(self, offload: Offload) -> None:
        self.offload = offload

    def admit(self, inlet: Inlet, _body: Body) -> None:
        raise AssertionError(f"{inlet.label} has its worker")

    async def aadmit(self, inlet: Inlet, body: Body) -> None:
        self.admit(inlet, body)

    def escalate(self, inlet: Inlet) -> None:
        """The supervisor sees to its end in any case."""

    def release(self, inlet: Inlet, worker: Worker, keep: bool) -> None:  # noqa: FBT001 - as of a dispatcher
        """It ends by itself."""

    def replace(self, inlet: Inlet, worker: Worker) -> None:
        """It is gone, as it was to be."""


def _frame(worker: Worker, command: Command, encoded: EncodedPredictor | None, payload: Payload | None) -> list[Chunk]:
    """The bytes that tell `worker` what to do; what is large lies in shared memory then, if there is room."""
    chunks: list[Chunk] = []
    command.path = None if worker.path == sys.path else tuple(map(str, sys.path))
    if encoded is not None and encoded.key in worker.known and not worker.to_evict:  # as almost always
        worker.known.move_to_end(encoded.key)
        command.evict, command.size = (), 0
    elif encoded is not None:
        is_new, command.evict = worker.lacks(encoded.key)
        command.size = 0
        if is_new and encoded.data is not None:
            chunks.append(encoded.data)
            command.size = len(encoded.data)
    if payload is not None:
        chunks += payload.chunks
    size = sum(map(len, chunks)) if chunks else 0
    if worker.inbound.is_oversized:
        worker.inbound.trim(size)  # a call may take long, and need not hold what a giant one before it needed
    if chunks:
        start: int | None = None
        if size >= SHARED_FROM and worker.inbound.grow(size):
            worker.inbound.write(0, chunks, TimeSlice() if size > COPY_STEP else None)
            chunks, start = [], 0
        sizes, bits = ((), 0) if payload is None else (payload.sizes, read_only_bits(payload.buffers))
        command.location = sizes, bits, start
    return _packed(worker.calls, command, chunks)


def _packed(number: int, command: Command, chunks: Sequence[Chunk]) -> list[Chunk]:
    try:
        return pack_command(number, command, chunks)
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        if command.inputs is None:
            raise
        encode_inputs(*command.inputs)  # raises, and names the one that cannot travel
        raise payload_error("the inputs", command.inputs[1], error) from error


# Context variables that travel

_names: Final[dict[str, Any]] = {}


def carry_context(names: Iterable[str]) -> None:
    """See `engine.runners.carry`."""
    from contextvars import ContextVar

    from engine._predictors.predictor import import_name

    for name in names:
        variable = import_name(name)
        if not isinstance(variable, ContextVar):
            raise TypeError(_no_variable(name, variable))
        _names[name] = variable


def _no_variable(name: str, found: Any) -> str:
    """What to say of a name that is no context variable's: an object may keep one, or several, of its own."""
    from contextvars import ContextVar

    kept = [each for each, value in getattr(found, "__dict__", {}).items() if isinstance(value, ContextVar)]
    advice = "name one as 'module:NAME'"
    if kept:
        advice = f"name what it keeps, {' and '.join(repr(f'{name}.{each}') for each in kept)}"
    elif found is None:
        advice = "nothing is there yet; name it once it is, as 'module:NAME'"
    return f"{name} is no ContextVar but {quote(found)} of type {type(found).__qualname__}: {advice}"


def _carried(body: Body, is_abandoned: Callable[[], bool] | None = None) -> tuple[tuple[str, bytes], ...]:
    """The named variables that are set where the call was made."""
    found = []
    for name, value in _carried_values(body):
        try:
            found.append((name, encode_whole(value, is_abandoned)))
        except Exception as error:
            raise payload_error(f"the context variable {name}", value, error) from error
    return tuple(found)


def _carried_at_once(body: Body) -> tuple[tuple[str, bytes], ...] | None:
    """What `_carried` gives, on an event loop; `None` where they are too large for that, or cannot travel."""
    found = [(name, encode_whole_at_once(value)) for name, value in _carried_values(body)]
    small = tuple((name, data) for name, data in found if data is not None)
    return small if len(small) == len(found) else None


def _carried_values(body: Body) -> list[tuple[str, Any]]:
    context = body.context
    return [(name, context[variable]) for name, variable in tuple(_names.items()) if variable in context]


async def _await_end(ending: Ending, body: Body) -> Report:
    """Wait in an asyncio task, among others, for what an owner thread does.

    Raises:
        PredictionCancelledError: the call was stopped meanwhile.
    """
    call = body.call
    parked = ending.parked()
    body.recheck = partial(wake_all, parked)
    try:
        while ending.end is None:
            refuse_stopped(call)
            await park_task(parked, lambda: ending.end is not None or call.stopping)
    finally:
        body.recheck = None
    return ending.end


def _raise_error(end: Report) -> None:
    """Raise what an owner thread met, once."""
    error, end.error = end.error, None
    try:
        if error is not None:
            raise error
    finally:
        del error  # or this frame and the exception keep each other alive


def _is_large(inlet: Inlet) -> bool:
    """Whether what is to be sent to a wire's worker would keep an event loop for long."""
    payload, encoded, worker = inlet.payload, inlet.encoded, inlet.worker
    if payload is not None and not fits_event_loop(payload.sizes):
        return True
    data = None if encoded is None else encoded.data
    if data is None or len(data) <= COPY_STEP:
        return False
    return worker is None or encoded.key not in worker.known  # type: ignore[union-attr]  # it has data


def _run_offloaded(ending: Ending, work: Callable[[Callable[[], bool]], Any]) -> None:
    """In an owner thread: do something, and tell what came of it."""
    end = Report()
    try:
        end.returned = work(lambda: ending.stop)
    except BaseException as error:
        end.error = error
    ending.finish(end)


def _default_workers() -> int:
    """As many workers as this process may use processors."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
