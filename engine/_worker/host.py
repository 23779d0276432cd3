"""The main thread of a worker: it takes commands, makes predictors ready and runs one call after the other."""

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

_COUNTS_THREADS_LATE: Final = sys.version_info[:2] == (
    3,
    13,
)  # that Python counts threads after the hooks of a fork have run


class _Uninterrupted:
    """Marks that the main thread writes a frame; a class, since that is entered and left faster than a generator."""

    __slots__ = ("_host", "_was_busy")

    def __init__(self, host: Host) -> None:
        self._host = host

    def __enter__(self) -> None:
        pipes = self._host.pipes
        self._was_busy, pipes.is_busy = pipes.is_busy, True

    def __exit__(self, *_exception: object) -> None:
        if not self._was_busy:
            self._host.pipes.is_busy = False  # first, so that a SIGTERM from here on is not deferred once more
            self._host.run_deferred_stop()


@attrs.define(eq=False)
class Host:
    """What one worker has and does; only its main thread calls it, but for `receive_stop` and `log`."""

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
    last_stopped: int = 0  # number of the last call that the engine asked to stop
    is_terminated: bool = False
    _mask: set[Any] = attrs.field(factory=set)
    is_stop_deferred: bool = False
    _handed_over: Callable[[], None] | None = None
    flusher: Flusher = attrs.field(init=False)
    _had_flusher: bool = False
    _ignored_warning: Any = None  # the filter that `_ignore_fork_warning` added

    def __attrs_post_init__(self) -> None:
        self.ring = Ring(self.outbound)
        self.loop = MainLoop(self.hand_over_sync)
        self.stop_reader.on_stop = self.receive_stop
        self.flusher = Flusher(self.pipes, lambda: self.outlet)

    # Signals and forks

    def install_handlers(self) -> None:
        """Install the handlers of SIGINT and SIGTERM."""
        signal.signal(signal.SIGINT, ignore_interrupt)
        signal.signal(signal.SIGTERM, self._on_sigterm)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT, signal.SIGTERM})  # the program may block it

    def before_fork(self) -> None:
        """Block SIGTERM until the child has its own handlers back, or one that comes to it before would be lost.

        The threads of the engine end, and are started again after the fork: a predictor without threads then forks a
        process of one thread, as inline, and the interpreter does not warn of others.
        """
        self._mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        if not self.pipes.is_child and threading.current_thread() is threading.main_thread():
            self.stop_reader.stop()
            self._had_flusher = self.flusher.stop()
            if _COUNTS_THREADS_LATE and threading.active_count() == 1:
                self._ignore_fork_warning()

    def _ignore_fork_warning(self) -> None:
        """Until the call is over, ignore the warning of several threads: they are the engine's own."""
        filters: Any = warnings.filters
        if self._ignored_warning is None or self._ignored_warning not in filters:
            warnings.filterwarnings("ignore", ".*multi-threaded, use of .*fork", DeprecationWarning)
            self._ignored_warning = filters[0]

    def _restore_warnings(self) -> None:
        filters: Any = warnings.filters
        with contextlib.suppress(ValueError):
            filters.remove(self._ignored_warning)
        self._ignored_warning = None

    def after_fork(self) -> None:
        """Start the threads again that `before_fork` ended, if the worker forked; a child of it has none."""
        signal.pthread_sigmask(signal.SIG_SETMASK, self._mask)  # a SIGTERM that came meanwhile is handled here
        if self.pipes.is_child:
            return
        self.stop_reader.start()
        if self._had_flusher:
            self._had_flusher = False
            self.flusher.arm()

    def after_fork_in_child(self) -> None:
        """In a forked child, which belongs to the predictor, close the pipes and restore the default handlers."""
        self.pipes.after_fork()
        for number, ours, default in (
            (signal.SIGINT, ignore_interrupt, signal.default_int_handler),
            (signal.SIGTERM, self._on_sigterm, signal.SIG_DFL),
        ):
            if signal.getsignal(number) == ours:  # else a handler of the predictor's, which stays, as it does inline
                signal.signal(number, default)
        signal.pthread_sigmask(signal.SIG_SETMASK, self._mask)

    def _on_sigterm(self, _number: int, frame: Any) -> None:
        if self.is_terminated:  # raised already: the clean-up that runs now must not be interrupted
            return
        # call-free store: a second SIGTERM cannot run this handler between test and store, so it raises once.
        self.is_terminated = True
        if self.outlet is None:  # no call runs: `main` ends the process
            raise Terminated
        if self.pipes.is_busy:  # raising would cut a frame in two; `_Uninterrupted` stops the call when it is written
            self.is_stop_deferred = True
        elif self._is_engine_code(frame):
            self._request_stop()
        else:
            raise Terminated

    def _is_engine_code(self, frame: Any) -> bool:
        """Whether a signal interrupted the engine's own code, where raising would break it, and not a predictor's.

        From the interrupted frame outward, the first that is neither of the engine nor of the loop it runs is a
        predictor's, which may have called an engine itself; this module is reached first if none is.
        """
        while frame is not None:
            module = frame.f_globals.get("__name__", "")
            if module == __name__:
                return True
            root = module.partition(".")[0]
            if root != "engine" and not (root in {"asyncio", "selectors"} and self.loop.is_running):
                return False
            frame = frame.f_back
        return True

    def _request_stop(self) -> None:
        outlet = self.outlet
        if outlet is not None:
            outlet.request_stop()
            if self.loop.is_running:
                # Like another thread: the handler may have interrupted the loop while it changed its own state.
                self.loop.loop().call_soon_threadsafe(self.loop.cancel_owners)

    def uninterrupted(self) -> _Uninterrupted:
        """Make a context in which SIGTERM does not raise in the main thread, but is deferred to its end."""
        return _Uninterrupted(self)

    def run_deferred_stop(self) -> None:
        """Stop the call if SIGTERM came while the main thread wrote."""
        if self.is_stop_deferred:
            self.is_stop_deferred = False
            self._request_stop()

    # Commands

    def serve(self, state: ProcessState) -> None:
        """Serve commands until the engine sends no more, and restore the `state` of the process after each."""
        while (frame := self._next()) is not None:
            self.stop_reader.start()  # unless it runs; the system may have given no thread before
            command = read_command(frame)
            outlet = Outlet(self, command, frame.number)
            self.outlet = outlet  # stored before `last_stopped` is read; see `receive_stop`
            if self.last_stopped == frame.number:  # the request overtook its command, on a pipe of its own
                outlet.receive_stop()
            try:
                self._execute(command, frame, outlet)
            finally:
                self.outlet = None
            del outlet, frame  # or inputs and results would live on while the worker waits
            if self.buffers.kept is not None:
                self.buffers.tidy()
            if self.is_terminated or command.what == "exit":
                self._flush_pipes()  # or the end of the process would cut what the pipe did not take
                return
            try:
                state.restore()
            except Exception:  # raised by a signal handler that a predictor left, just before it was replaced
                state.restore()
            if self._ignored_warning is not None:
                self._restore_warnings()
            if self.pipes.unsent:
                self._flush_pipes()

    def _next(self) -> Frame | None:
        """Wait for the next command, while the loop runs if there is one; `None` once the engine has closed its end."""
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
                    self.loop.run_until_stopped()
                finally:
                    loop.remove_reader(self.pipes.calls)
            if not self.pipes.read():
                return None

    def _flush_pipes(self) -> None:
        """Wait until the pipe has taken everything, or the engine has closed its end."""
        while self.pipes.unsent and not self.pipes.is_over:
            if self.pipes.wait():
                self.pipes.read()  # a late credit, which `_next` skips

    def _execute(self, command: Command, frame: Frame, outlet: Outlet) -> None:
        try:
            if command.path is not None:
                _update_path(command.path)
            for key in command.evict:
                self._evict(key)
            # After that, for unloading enters the module of what it unloads.
            self.main_modules.enter(command.key)
            if command.what != "run":
                outlet.finish(Report(returned=self._manage(command, frame)))
                return
            body, is_async = self._make_body(command, frame, outlet)
            if is_async:
                self._run_loop(partial(self.loop.start, body, outlet), outlet)
            else:
                body.context.run(step_through, body, outlet, self._hand_over_async)
        except BaseException as error:  # `Terminated`, too, which is no failure: `finish` tells them apart
            if outlet.end is not None:  # a defect in sending the end: the engine reports this worker as lost
                raise
            outlet.finish(Report(error))

    def _manage(self, command: Command, frame: Frame) -> Any:
        """Execute a command that runs no body; give what is returned to the engine."""
        if command.what == "describe":
            return describe(_imported(command))
        if command.what == "exit":
            self._unload_all()
        elif command.what == "unload":
            self._unload(command.key)
        else:
            target, _ = self._decode_payload(command, frame)
            self._set_up(self._load(command, target))
        return None

    def _make_body(self, command: Command, frame: Frame, outlet: Outlet) -> tuple[Body, bool]:
        """Make the body of a call, and tell whether it is async; what raises here is not the body's failure."""
        target = None
        args, kwargs = command.inputs or ((), {})
        if command.location is not None:
            target, (args, kwargs) = self._decode_payload(command, frame)
        loaded = self.loaded_predictors.get(command.key) or self._load(command, target)
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

    def _decode_payload(self, command: Command, frame: Frame) -> tuple[Any, tuple[tuple[Any, ...], dict[str, Any]]]:
        """Rebuild the predictor and the inputs that came with a command; `None` for a predictor that came before."""
        if command.location is None:
            return None, command.inputs or ((), {})
        sizes, bits, start = command.location
        try:
            rest = memoryview(frame.rest) if start is None else self.inbound.read(start, command.size + sum(sizes))
        except OSError as error:  # the worker may be limited to less memory than the engine
            raise _mapping_error(command.tag, sum(sizes), error) from None
        target = None
        with rest:
            # The views are released before anything else is done with the segment, which could not be unmapped else.
            with rest[: command.size] as part:
                if command.size and command.key not in self.loaded_predictors:
                    with self.main_modules.receiving(command.key):
                        target = _decode_predictor(command.tag, part)
            with rest[command.size :] as part:
                inputs = (
                    _decode_inputs(command.tag, part, sizes, bits, self.buffers)
                    if sizes
                    else command.inputs or ((), {})
                )
        return target, inputs

    def _load(self, command: Command, target: Any) -> LoadedPredictor:
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

    def _unload(self, key: int) -> None:
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

    def _evict(self, key: int) -> None:
        """Unload a predictor before a call of another, which must not fail of what its teardown raises."""
        tag = self.loaded_predictors[key].profile.tag if key in self.loaded_predictors else ""
        try:
            self._unload(key)
        except Terminated:
            raise
        except BaseException as error:
            _errors.warn(f"{tag}: error in teardown", error)

    def _unload_all(self) -> None:
        errors: list[BaseException] = []
        for key in tuple(self.loaded_predictors):
            try:
                self._unload(key)
            except BaseException as error:
                errors.append(error)
        if errors:
            raise errors[0] if len(errors) == 1 else BaseExceptionGroup("predictors' teardown failed", errors)

    # Running

    def _hand_over_async(self, body: Body, outlet: Outlet, produced: Any, elapsed: float) -> None:
        """Have a body go on, on the loop, with something async that it, being sync, produced after so many seconds."""
        self._run_loop(partial(self.loop.hand_over, body, outlet, produced, elapsed), outlet)

    def _run_loop(self, start: Callable[[], None], outlet: Outlet) -> None:
        """Run the loop until the call is over; a sync iterator that its body gave is stepped here, outside the loop."""
        start()
        while outlet.end is None and self._handed_over is None:  # a predictor may stop the loop, too
            self.loop.run_until_stopped()
        handed, self._handed_over = self._handed_over, None
        if handed is not None:
            handed()

    def hand_over_sync(self, body: Body, channel: OwnerEnd, iterator: Any, elapsed: float) -> None:
        """Have a body go on, once the loop has stopped, with a sync iterator that it, being async, produced."""
        body.context = copy_context()  # its own is entered where this is called, and cannot be entered twice
        self._handed_over = partial(body.context.run, step_iterator, body, channel, iterator, elapsed)
        self.loop.stop_running()

    # Called by other threads

    def receive_stop(self, number: int) -> None:
        """Note a request to stop a call, which may be over, or whose command may still be in the pipe."""
        # Stored before `outlet` is read, while `serve` stores `outlet` before it reads this: one sees the other.
        self.last_stopped = number
        outlet = self.outlet
        if outlet is not None and outlet.number == number:
            outlet.receive_stop()

    def log(self, text: str) -> None:
        """Send a line to the engine's log."""
        self.pipes.write(pack(LOG, 0, text.encode(errors="replace")))
        # Unless a call sends more, nothing else writes what the pipe did not take.
        if self.pipes.unsent and not self.flusher.is_armed:
            self.flusher.arm()


def _update_path(path: Sequence[str]) -> None:
    """Give `sys.path` the program's entries; those that a predictor put before or after them stay there."""
    import importlib

    ahead = list(takewhile(lambda each: each not in program_path, sys.path))
    rest = [each for each in sys.path[len(ahead) :] if each not in path]
    sys.path[:] = [*(each for each in ahead if each not in path), *path, *rest]
    program_path.update(path)
    importlib.invalidate_caches()


program_path: Final[set[str]] = set()  # entries that the program's `sys.path` has or had


def _imported(command: Command) -> Any:
    try:
        return import_target(command.text or "")
    except BaseException as error:
        if isinstance(error, Terminated):
            raise
        trim(error)
        raise PluginError(command.tag, "", f"{type(error).__name__}: {say(error)}", traceback_of(error)) from None


def _decode_predictor(tag: str, data: memoryview) -> Any:
    try:
        return decode(data)
    except BaseException as error:
        if isinstance(error, Terminated):
            raise
        raise _decoding_error(f"the predictor {tag}", error) from None


def _decode_inputs(
    tag: str, view: memoryview, sizes: Sequence[int], bits: int, buffers: BufferCache
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    try:
        args, kwargs = decode(view, sizes, bits, buffers)
    except BaseException as error:
        if isinstance(error, Terminated):
            raise
        raise _decoding_error(f"an input of {tag}", error) from None
    return args, kwargs


def _mapping_error(tag: str, size: int, error: OSError) -> PayloadError:
    return PayloadError(
        f"the inputs of {tag}, {size} bytes, cannot be mapped in a worker: {type(error).__name__}: {say(error)}. "
        "Pass less at once, give the worker more memory, or run the predictor with runner='thread'.",
        "",
        traceback_of(error),
    )


def _decoding_error(what: str, error: BaseException) -> PayloadError:
    return PayloadError(
        f"{what} cannot be rebuilt in a worker: {name_shown(type(error).__name__)}: {say(error)}. "
        "It must be importable there, or be pickled by value.",
        type(error).__qualname__,
        traceback_of(error),
    )
