"""What a worker does with its commands: it makes predictors ready, and runs one call after the other."""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
import warnings
from contextvars import copy_context
from functools import partial
from itertools import takewhile
from typing import TYPE_CHECKING, Any, Final

import attrs

from engine import _errors
from engine._errors import PayloadError, PluginError, name_shown, say
from engine._loaded import LoadedPredictor
from engine._predictors.body import Body
from engine._predictors.failures import trim
from engine._predictors.predictor import import_name, import_target
from engine._predictors.profile import profile_of
from engine._records import TravelledCall, traceback_of
from engine._reducers import BY_NAME
from engine._wire.decode import BufferCache, decode
from engine._wire.frames import COMMAND, LOG, pack, read_command
from engine._wire.main_module import MainModules
from engine._wire.remote_profile import describe
from engine._wire.segments import Ring, Segment
from engine._worker.flusher import Flusher
from engine._worker.loop import MainLoop
from engine._worker.outlet import Outlet, Terminated
from engine._worker.stop_reader import StopReader, ignore_interrupt
from engine.runners.channel import Reduction
from engine.runners.ending import Report
from engine.runners.thread import step_iterator, step_through

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from engine._wire.frames import Command, Frame
    from engine._worker.pipes import Pipes
    from engine._worker.process_state import ProcessState
    from engine.runners.ending import OwnerEnd

_COUNTS_LATE: Final = sys.version_info[:2] == (3, 13)  # that Python counts threads after the hooks of a fork have run


class _Uninterrupted:
    """Where the main thread writes; a class of its own, for it is entered with every frame."""

    __slots__ = ("_host", "_was_busy")

    def __init__(self, host: Host) -> None:
        self._host = host

    def __enter__(self) -> None:
        pipes = self._host.pipes
        self._was_busy, pipes.is_busy = pipes.is_busy, True

    def __exit__(self, *_exception: object) -> None:
        if not self._was_busy:
            self._host.pipes.is_busy = False
            self._host.run_deferred_stop()


@attrs.define(eq=False)
class Host:
    """What one worker has and does."""

    pipes: Pipes
    inbound: Segment
    outbound: Segment
    stop_reader: StopReader
    ring: Ring = attrs.field(init=False)
    loop: MainLoop = attrs.field(init=False)
    loaded_predictors: dict[int, LoadedPredictor] = attrs.field(factory=dict)
    main_modules: MainModules = attrs.field(factory=MainModules)
    binders: dict[tuple[int, bool], Any] = attrs.field(factory=dict)
    buffers: BufferCache = attrs.field(factory=BufferCache)
    outlet: Outlet | None = None
    stopped: int = 0  # number of the last call that was asked to stop
    is_terminated: bool = False
    _mask: set[Any] = attrs.field(factory=set)
    is_deferred: bool = False
    _handed: Callable[[], None] | None = None
    flusher: Flusher = attrs.field(init=False)
    _had_flusher: bool = False
    _hushed: Any = None  # a filter of warnings

    def __attrs_post_init__(self) -> None:
        self.ring = Ring(self.outbound)
        self.loop = MainLoop(self.hand_over_sync)
        self.stop_reader.on_stop = self.receive_stop
        self.flusher = Flusher(self.pipes, lambda: self.outlet)

    # Signals

    def guard(self) -> None:
        """Take SIGINT and SIGTERM."""
        signal.signal(signal.SIGINT, ignore_interrupt)
        signal.signal(signal.SIGTERM, self._terminate)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT, signal.SIGTERM})  # the program may block it

    def before_fork(self) -> None:
        """Hold SIGTERM back, which must not be lost if it comes to a child before that has its own handlers back.

        Threads of the engine's own end until the fork is over: what a predictor that has none forks is a process with
        one thread, as inline, and the interpreter does not warn of others.
        """
        self._mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        if not self.pipes.is_child and threading.current_thread() is threading.main_thread():
            self.stop_reader.stop()
            self._had_flusher = self.flusher.stop()
            if _COUNTS_LATE and threading.active_count() == 1:
                self._hush()

    def _hush(self) -> None:
        """Until the call is over, have nothing said of threads that come back before they are counted."""
        filters: Any = warnings.filters
        if self._hushed is None or self._hushed not in filters:
            warnings.filterwarnings("ignore", ".*multi-threaded, use of .*fork", DeprecationWarning)
            self._hushed = filters[0]

    def _speak(self) -> None:
        filters: Any = warnings.filters
        with contextlib.suppress(ValueError):
            filters.remove(self._hushed)
        self._hushed = None

    def after_fork(self) -> None:
        """After a fork, in the process that forked: the worker, or a child of it, which has no thread of ours."""
        signal.pthread_sigmask(signal.SIG_SETMASK, self._mask)
        if self.pipes.is_child:
            return
        self.stop_reader.start()
        if self._had_flusher:
            self._had_flusher = False
            self.flusher.arm()

    def after_fork_in_child(self) -> None:
        """In a forked child, which is the predictor's: neither the pipes nor the signals are its to see to."""
        self.pipes.forget()
        for number, ours, default in (
            (signal.SIGINT, ignore_interrupt, signal.default_int_handler),
            (signal.SIGTERM, self._terminate, signal.SIG_DFL),
        ):
            if signal.getsignal(number) == ours:
                signal.signal(number, default)
        signal.pthread_sigmask(signal.SIG_SETMASK, self._mask)

    def _terminate(self, _number: int, frame: Any) -> None:
        if self.is_terminated:  # once is enough: the clean-up that runs now must not be interrupted
            return
        self.is_terminated = True
        if self.outlet is None:
            raise Terminated
        if self.pipes.is_busy:
            self.is_deferred = True
        elif self._is_ours(frame):
            self._terminate_softly()
        else:
            raise Terminated

    def _is_ours(self, frame: Any) -> bool:
        """Whether the engine's own code was interrupted, and no predictor's, which may itself have called an engine."""
        while frame is not None:
            module = frame.f_globals.get("__name__", "")
            if module == __name__:
                return True
            root = module.partition(".")[0]
            if root != "engine" and not (root in {"asyncio", "selectors"} and self.loop.is_turning):
                return False
            frame = frame.f_back
        return True

    def _terminate_softly(self) -> None:
        outlet = self.outlet
        if outlet is not None:
            outlet.request_stop()
            if self.loop.is_turning:
                self.loop.loop().call_soon_threadsafe(self._cancel_all)

    def _cancel_all(self) -> None:
        for owner in tuple(self.loop._owners):  # noqa: SLF001 - one loop in two halves
            owner.cancel()

    def uninterrupted(self) -> _Uninterrupted:
        """Let no signal cut what the main thread does here in two."""
        return _Uninterrupted(self)

    def run_deferred_stop(self) -> None:
        """Do what a signal wanted meanwhile."""
        if self.is_deferred:
            self.is_deferred = False
            self._terminate_softly()

    # Orders

    def serve(self, state: ProcessState) -> None:
        """Take orders until the engine has none, and have each find its process in the same `state`."""
        while (frame := self._next()) is not None:
            self.stop_reader.start()  # where there was no thread for it before
            command = read_command(frame)
            outlet = Outlet(self, command, frame.number)
            self.outlet = outlet
            if self.stopped == frame.number:
                outlet.receive_stop()
            try:
                self._do(command, frame, outlet)
            finally:
                self.outlet = None
            del outlet, frame
            if self.buffers.kept is not None:
                self.buffers.tidy()
            if self.is_terminated or command.what == "exit":
                self._flush_pipes()
                return
            try:
                state.restore()
            except Exception:  # raised by a handler that a predictor left, just before it was taken away
                state.restore()
            if self._hushed is not None:
                self._speak()
            if self.pipes.unsent:
                self._flush_pipes()

    def _next(self) -> Frame | None:
        frames = self.pipes.decoder.frames
        while True:
            while frames:
                frame = frames.popleft()
                if frame.kind == COMMAND:
                    return frame
            if self.loop.is_made:
                loop = self.loop.loop()
                loop.add_reader(self.pipes.calls, loop.stop)
                try:
                    self.loop.turn()
                finally:
                    loop.remove_reader(self.pipes.calls)
            if not self.pipes.read():
                return None

    def _flush_pipes(self) -> None:
        while self.pipes.unsent and not self.pipes.is_over:
            if self.pipes.wait():
                self.pipes.read()  # a late credit, which `_next` passes over

    def _do(self, command: Command, frame: Frame, outlet: Outlet) -> None:
        try:
            if command.path is not None:
                _take_path(command.path)
            for key in command.evict:
                self._make_room(key)
            self.main_modules.enter(command.key)
            if command.what != "run":
                outlet.finish(Report(returned=self._seen_to(command, frame)))
                return
            body, is_async = self._ready(command, frame, outlet)
            if is_async:
                self._turn(partial(self.loop.start, body, outlet), outlet)
            else:
                body.context.run(step_through, body, outlet, self._hand_over_async)
        except BaseException as error:
            if outlet.end is not None:  # a defect while it was sent: its consumer hears of it once this worker is lost
                raise
            outlet.finish(Report(error))

    def _seen_to(self, command: Command, frame: Frame) -> Any:
        """Do what is no call; give what its answer says."""
        if command.what == "describe":
            return describe(_imported(command))
        if command.what == "exit":
            self._tear_all_down()
        elif command.what == "unload":
            self._forget(command.key)
        else:
            target, _ = self._brought(command, frame)
            self._set_up(self._loaded(command, target))
        return None

    def _ready(self, command: Command, frame: Frame, outlet: Outlet) -> tuple[Body, bool]:
        """Everything that precedes the body; what goes wrong here is not the body's failure."""
        target = None
        args, kwargs = command.inputs or ((), {})
        if command.location is not None:
            target, (args, kwargs) = self._brought(command, frame)
        loaded = self.loaded_predictors.get(command.key) or self._loaded(command, target)
        if command.bind is not None:
            args, kwargs = self._binder(command, loaded)(kwargs)
        context = copy_context()
        for name, data in command.variables:
            context.run(import_name(name).set, decode(data))
        call = TravelledCall(command.tag, "process", command.identity, command.created_ns, command.depth)
        reduction = None
        if command.reducer is not None:
            reducer = BY_NAME[command.reducer]
            reduction = Reduction(reducer)
        function = None if loaded.profile.is_class else loaded.function
        body = Body(call, function, args, kwargs, command.follows, context)
        body.reduction = reduction
        if loaded.profile.is_class:
            body.prepare, body.aprepare = loaded.prepare, loaded.aprepare
        outlet.body = body
        call.stopping = outlet.stop
        return body, loaded.profile.is_async

    def _brought(self, command: Command, frame: Frame) -> tuple[Any, tuple[tuple[Any, ...], dict[str, Any]]]:
        """Rebuild the predictor and the inputs that came with an order; `None` for one that is here already."""
        if command.location is None:
            return None, command.inputs or ((), {})
        sizes, bits, start = command.location
        try:
            rest = memoryview(frame.rest) if start is None else self.inbound.read(start, command.size + sum(sizes))
        except OSError as error:  # it may not have as much memory
            raise _unmapped(command.tag, sum(sizes), error) from None
        target = None
        with rest:
            with rest[: command.size] as part:
                if command.size and command.key not in self.loaded_predictors:
                    with self.main_modules.receiving(command.key):
                        target = _rebuilt(command.tag, part)
            with rest[command.size :] as part:
                inputs = _inputs(command.tag, part, sizes, bits, self.buffers) if sizes else command.inputs or ((), {})
        return target, inputs

    def _loaded(self, command: Command, target: Any) -> LoadedPredictor:
        loaded = self.loaded_predictors.get(command.key)
        if loaded is None:
            if target is None:
                target = _imported(command)
            loaded = LoadedPredictor(profile_of(command.tag, target, {}), target, self.loop, 0)
            self.loaded_predictors[command.key] = loaded
        return loaded

    def _binder(self, command: Command, loaded: LoadedPredictor) -> Any:
        key = command.key, bool(command.bind)
        if key not in self.binders:
            self.binders[key] = loaded.profile.signature.binder(command.tag, check=bool(command.bind))
        return self.binders[key]

    def _set_up(self, loaded: LoadedPredictor) -> None:
        if loaded.profile.is_async and not loaded.is_ready:
            self.loop.run(loaded.aprepare(), copy_context(), f"setup() of {loaded.profile.tag}")
        else:
            loaded.prepare()

    def _forget(self, key: int) -> None:
        self.main_modules.enter(key)
        loaded = self.loaded_predictors.pop(key, None)
        for checked in (True, False):
            self.binders.pop((key, checked), None)
        try:
            if loaded is not None:
                for instance in loaded.close():
                    loaded.teardown(instance, None)
        finally:
            self.main_modules.release(key)

    def _make_room(self, key: int) -> None:
        """Forget a predictor before a call of another, which its clean-up must not cost anything."""
        tag = self.loaded_predictors[key].profile.tag if key in self.loaded_predictors else ""
        try:
            self._forget(key)
        except Terminated:
            raise
        except BaseException as error:
            _errors.warn(f"{tag}: error in teardown", error)

    def _tear_all_down(self) -> None:
        errors: list[BaseException] = []
        for key in tuple(self.loaded_predictors):
            try:
                self._forget(key)
            except BaseException as error:
                errors.append(error)
        if errors:
            raise errors[0] if len(errors) == 1 else BaseExceptionGroup("predictors' teardown failed", errors)

    # Running

    def _hand_over_async(self, body: Body, outlet: Outlet, produced: Any, elapsed: float) -> None:
        """Have a body go on, on the loop, with something async that it, being sync, produced after so many seconds."""
        self._turn(partial(self.loop.hand_over, body, outlet, produced, elapsed), outlet)

    def _turn(self, start: Callable[[], None], outlet: Outlet) -> None:
        """Turn the loop until the call is over; a sync iterator that it gave is stepped here, outside the loop."""
        start()
        while outlet.end is None and self._handed is None:
            self.loop.turn()
        handed, self._handed = self._handed, None
        if handed is not None:
            handed()

    def hand_over_sync(self, body: Body, channel: OwnerEnd, iterator: Any, elapsed: float) -> None:
        """Have a body go on, once the loop has stopped, with a sync iterator that it, being async, produced."""
        body.context = copy_context()  # its own one is entered, and stays so, where this is called
        self._handed = partial(body.context.run, step_iterator, body, channel, iterator, elapsed)
        self.loop.stop_turning()

    def stop_turning(self) -> None:
        """The call is over, or nothing of it is left to the loop."""
        if self.loop.is_turning:
            self.loop.stop_turning()

    # What other threads do

    def receive_stop(self, number: int) -> None:
        """Take note of a request to stop a call, which may be over, or have come no further than the pipe."""
        self.stopped = number
        outlet = self.outlet
        if outlet is not None and outlet.number == number:
            outlet.receive_stop()

    def log(self, text: str) -> None:
        """Send a line to the engine's log."""
        self.pipes.write(pack(LOG, 0, text.encode(errors="replace")))
        if self.pipes.unsent and not self.flusher.is_armed:
            self.flusher.arm()


def _take_path(path: Sequence[str]) -> None:
    """Look for modules where the program does now; what a predictor put before or behind that stays there."""
    import importlib

    ahead = list(takewhile(lambda each: each not in program_path, sys.path))
    rest = [each for each in sys.path[len(ahead) :] if each not in path]
    sys.path[:] = [*(each for each in ahead if each not in path), *path, *rest]
    program_path.update(path)
    importlib.invalidate_caches()


program_path: Final[set[str]] = set()  # where the program looked or looks for modules


def _imported(command: Command) -> Any:
    try:
        return import_target(command.text or "")
    except BaseException as error:
        if isinstance(error, Terminated):
            raise
        trim(error)
        raise PluginError(command.tag, "", f"{type(error).__name__}: {say(error)}", traceback_of(error)) from None


def _rebuilt(tag: str, data: memoryview) -> Any:
    try:
        return decode(data)
    except BaseException as error:
        if isinstance(error, Terminated):
            raise
        raise _unreadable(f"the predictor {tag}", error) from None


def _inputs(
    tag: str, view: memoryview, sizes: Sequence[int], bits: int, buffers: BufferCache
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    try:
        args, kwargs = decode(view, sizes, bits, buffers)
    except BaseException as error:
        if isinstance(error, Terminated):
            raise
        raise _unreadable(f"an input of {tag}", error) from None
    return args, kwargs


def _unmapped(tag: str, size: int, error: OSError) -> PayloadError:
    return PayloadError(
        f"the inputs of {tag}, {size} bytes, cannot be mapped in a worker: {type(error).__name__}: {say(error)}. "
        "Pass less at once, give the worker more memory, or run the predictor with runner='thread'.",
        "",
        traceback_of(error),
    )


def _unreadable(what: str, error: BaseException) -> PayloadError:
    return PayloadError(
        f"{what} cannot be rebuilt in a worker: {name_shown(type(error).__name__)}: {say(error)}. "
        "It must be importable there, or be pickled by value.",
        type(error).__qualname__,
        traceback_of(error),
    )
