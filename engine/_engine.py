"""The engine: owns the registry, the loaded predictors, the runners and the calls, and closes what it started.

It starts nothing by itself: threads and the loop come with the first call that needs them, so an engine that only ran
functions in their callers' threads needs no closing.
"""

from __future__ import annotations

import atexit
import sys
import threading
import warnings
import weakref
from itertools import count
from time import perf_counter
from typing import TYPE_CHECKING, Any, Final, Self

from engine._errors import EngineClosedError, NestingError, quote, warn
from engine._fork import renew_after_fork
from engine._loaded import LoadedPredictors
from engine._policies.executor import Executor
from engine._policies.opening import Opener
from engine._policies.owner_work import OwnerWork
from engine._policies.placement import Placement
from engine._policies.resolve import Resolver
from engine._predictors.predictor import is_name
from engine._records import Start, current_call, is_worker
from engine._registry.predictors import Predictors
from engine._registry.registry import Registry
from engine._registry.runners import Runners
from engine.runners.base import DaemonThread, Once, OpenCalls, has_gil
from engine.runners.ending import Ending, Report
from engine.runners.here import DefaultRunner, InlineRunner, OwnerRunner
from engine.runners.loop import LoopRunner
from engine.runners.loop_exit import finalised
from engine.runners.slots import is_on_a_loop
from engine.runners.thread import ThreadRunner

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from types import TracebackType

    from engine._loaded import LoadedPredictor
    from engine.runners.base import BodyRunner, FullRunner, InOwner, Loaded
    from engine.runners.process.runner import ProcessRunner

_LONGEST_GRACE: Final = 3600.0  # seconds; a longer wait for a clean-up is a mistake
_OFFLOAD_KEEP_ALIVE: Final = 0.1  # seconds; to start a thread costs little beside the large values it encodes
_TEARDOWN_WAIT: Final = 0.1  # seconds in which a thread whose calls are over begins with a teardown
_numbers: Final = count(1)  # tells the engines of a process from each other
_engines: Final[weakref.WeakSet[Engine]] = weakref.WeakSet()


class Engine:
    """Runs predictors of every kind, for every consumer, in every place, with the same observable behaviour.

    Example:
        >>> from engine import Engine
        >>> def greet(name):
        ...     yield "hello"
        ...     yield f"hello {name}"
        >>> with Engine() as muna:
        ...     muna.predictions.create(greet, {"name": "Ada"}).value
        'hello Ada'

    Args:
        predictors: `Predictor` records, or functions and classes marked with `@predictor`, to register.
        discover: whether installed plugins are looked for, at the registry's first use.
        plugins: plugin objects or modules to use besides installed ones; a runner may be among them as it is. Engines
            may share them.
        block: names of plugins, entry points or distributions to leave alone.
        runner: where predictors run whose author has no preference: `"inline"`, `"thread"`, `"process"`, a plugin's
            runner, or `None`: the caller itself where its colour fits, else an owner thread or the engine's own loop.
            A name that only a plugin could have is looked up at the first call, for plugins are not looked for before.
        workers: worker processes at one time; `None` for as many as there are processors to use. They are started one
            by one, when calls need them, with the working directory and environment there are now.
        grace: seconds that closing waits for a body's clean-up; in a worker, seconds from one rung to the next: it is
            asked, then gets SIGTERM, then SIGKILL.

    Raises:
        ValueError: `runner`, `workers` or `grace` has no meaning, or the name of a runner given is taken.
        EngineError: a predictor given cannot be registered.
    """

    def __init__(
        self,
        predictors: Iterable[Any] = (),
        *,
        discover: bool = True,
        plugins: Iterable[object] = (),
        block: Iterable[str] = (),
        runner: str | None = None,
        workers: int | None = None,
        grace: float = 1.0,
    ) -> None:
        """Make an engine; nothing is imported, discovered or started yet."""
        plugins = tuple(plugins)
        if runner is not None and not is_name(runner):
            raise ValueError(f"runner must be a runner's name such as 'thread', or None, not {quote(runner)}")
        self._is_closed = False
        self._grace = _seconds(grace)
        self._closing = Once()
        self._closed = Ending()
        self._open_calls = OpenCalls(self)
        self._threads = ThreadRunner(self._grace)
        self._loop = LoopRunner(self._threads.hand_over)
        self._threads.hand_over_async = self._loop.hand_over
        self._workers = _LazyProcessRunner(_count(workers), self._grace, Start.here())
        own = self._own_runners()
        names = tuple(filter(None, own))
        self._registry = Registry(predictors, discover=discover, plugins=plugins, block=block, reserved=names)
        self._predictors = Predictors(self._registry)
        self._runners = Runners(own, self._registry, self._grace)
        if not (discover or plugins):  # no plugin can offer it
            self._runners[runner]
        self._number = next(_numbers)
        self._loaded_predictors = LoadedPredictors(self._loop, self._threads, self._number, self._grace)
        self._join(runner)
        _engines.add(self)

    def _join(self, default: str | None) -> None:
        """Make what resolves, places, opens and runs calls; `default` names the engine's own choice of a runner."""
        resolver, opener, executor = _policies()
        open_calls, grace, number = self._open_calls, self._grace, self._number
        self._work = OwnerWork(self._threads, self._registry.look, grace)
        self._placement = Placement(self._runners, default, self._loop, self._work, self._loaded_predictors, open_calls)
        self._resolver = resolver(
            self._registry, self._loaded_predictors, self._runners, self._placement, self._work, open_calls
        )
        self._opener = opener(self._placement, self._threads, self._loop, grace, open_calls, number)
        self._executor = executor(self._resolver, self._placement, self._opener, open_calls, grace, number)
        self._registry.on_change = self._resolver.evict

    def _own_runners(self) -> Mapping[str | None, FullRunner]:
        """The engine's runners by name; the one under `None` serves calls that choose none."""
        owners = self._threads, self._loop, self._grace
        default = DefaultRunner(*owners)
        workers: FullRunner = default if is_worker() else self._workers  # a worker starts no workers
        own: list[FullRunner] = [InlineRunner(*owners), OwnerRunner(*owners)]
        return {None: default, **{each.name: each for each in own}, self._workers.name: workers}

    @property
    def predictions(self) -> Executor:
        """The executor: `create`, `stream`, `acreate`, `astream`."""
        return self._executor

    @property
    def predictors(self) -> Predictors:
        """The registry: a mapping from tags to `Predictor` records, with `register` and `unregister`."""
        return self._predictors

    @property
    def loaded(self) -> tuple[str, ...]:
        """Tags of predictors that are ready here or in other processes: imported, and set up if they are classes."""
        there = {tag for tag in self._runners.loaded() if self._registry.standing(tag) is not None}
        return tuple(sorted({*self._loaded_predictors.loaded(self._registry.stands_for), *there}))

    def load(self, tag: Any, runner: str | None = None) -> None:
        """Make a predictor ready before its first call: import it, set its class up.

        A class without async methods is set up in a thread kept for it, where calls from asyncio and with
        `runner="thread"` find what `setup` made in its own thread. Where sync code is to call it in threads of its
        own, say `runner="inline"`: it is then set up in this one.

        Args:
            tag: what `create` would be given.
            runner: where it will run: `"process"` makes it ready in one worker; the other built-in runners share one
                instance in this process.

        Raises:
            EngineError: there is no such predictor.
            BaseException: what its import, constructor or `setup` raised; the next use tries again.
        """
        self._placement.check(runner)
        loaded = self._resolver.resolve(tag, runner)
        self._placement.runner_for(loaded, runner).load(loaded)

    async def aload(self, tag: Any, runner: str | None = None) -> None:
        """Make a predictor ready before its first call, as `load` does, without blocking the event loop.

        Args:
            tag: what `create` would be given.
            runner: where it will run; a class without async methods that is to run `"inline"` is set up on the event
                loop itself, as its calls run there.

        Raises:
            EngineError: there is no such predictor.
            BaseException: what its import, constructor or `setup` raised.
        """
        loaded = await self._resolver.aresolve(tag, runner)
        await self._placement.runner_for(loaded, runner).aload(loaded, self._work.run)

    def unload(self, tag: Any, runner: str | None = None) -> None:
        """Tear a class predictor down; the next call sets it up again. Nothing happens where none is set up.

        Args:
            tag: what `create` would be given.
            runner: where it runs.

        Raises:
            EngineError: there is no such predictor, or a call still uses it after the grace.
            BaseException: what its `teardown` raised.
        """
        self._placement.check(runner)
        self._unload(self._resolver.resolve(tag, runner), runner)

    def _unload(self, loaded: LoadedPredictor, runner: str | None) -> None:
        chosen = self._placement.runner_for(loaded, runner)
        chosen.unload(loaded)
        if chosen.is_elsewhere:
            loaded.reset_reference()

    async def aunload(self, tag: Any, runner: str | None = None) -> None:
        """Tear a class predictor down from asyncio, as `unload` does, without blocking the event loop.

        Args:
            tag: what `create` would be given.
            runner: where it runs.

        Raises:
            EngineError: there is no such predictor, or a call still uses it after the grace.
            BaseException: what its `teardown` raised.
        """
        loaded = await self._resolver.aresolve(tag, runner)
        await self._work.run(loaded.profile.tag, self._unload, loaded, runner)

    # Closing.

    def close(self) -> None:
        """End every open stream, tear class predictors down, end threads and the loop; within the grace.

        A stream that was open gets one `EngineClosedError`. Closing twice does nothing; of two threads one waits for
        the other. On an event loop's own thread that loop's streams are cancelled without waiting for them.

        Raises:
            NestingError: a predictor of this engine calls it.
            BaseException: what a `teardown` raised, after everything else is closed.
        """
        self._refuse_to_close_itself()
        self._close(self._grace)

    async def aclose(self) -> None:
        """Close the engine without blocking the event loop, and wait, within the grace, for that loop's streams.

        Raises:
            NestingError: a predictor of this engine calls it.
            BaseException: what a `teardown` raised, after everything else is closed.
        """
        self._refuse_to_close_itself()
        await close_off_loop(self._close, self._grace)

    def _refuse_to_close_itself(self) -> None:
        """Refuse to wait, on behalf of a call of this engine, for the end of that call."""
        call = current_call()
        while call is not None and call.engine != self._number:
            call = call.parent
        if call is not None:
            raise NestingError(f"{call.tag} tried to close the engine that runs it: close it from outside", str(call))

    def _close(self, grace: float) -> None:
        """End everything, once; of several threads that close an engine one does, and the others wait for it."""
        if not self._closing.is_first():
            self._closed.wait_end(2 * grace + 1.0)  # another thread closes it, and takes no longer than that
            return
        self._is_closed = True
        try:
            self._close_calls()
            self._runners.close_soon()  # first: workers stop while classes are torn down here
            failures = self._tear_down(0.0 if is_on_a_loop() else grace)
            failures += self._runners.close(grace)
            self._loop.close(grace)
            self._threads.close(grace)
        except BaseException:  # Ctrl-C, while something was waited for: what is left is closed without waiting
            self._loop.close(grace, wait=False)
            self._threads.close(0.0)
            self._runners.close_offered()
            raise
        finally:
            self._closed.finish(Report())
        if failures:
            raise failures[0] if len(failures) == 1 else BaseExceptionGroup("predictors' teardown failed", failures)

    def _close_calls(self) -> None:
        """Refuse new calls, and stop every open one."""
        self._open_calls.is_closed = True  # first: a call that begins after the copy below finds it
        self._resolver.close()
        for each in self._open_calls.executions():
            each.stop("closed", each.closed_error())

    def _tear_down(self, grace: float) -> list[BaseException]:
        """Tear every class predictor down within the grace; give what their teardowns raised."""
        deadline = perf_counter() + grace
        failures: list[BaseException] = []
        for loaded in self._loaded_predictors:
            instances, slots = loaded.close(), loaded.slots
            if not instances:
                continue
            left = () if slots is None else slots.wait_for(slots.leases, max(0.0, deadline - perf_counter()))
            if left and not loaded.is_thread_busy:
                warn(f"{loaded.profile.tag} is torn down while {', '.join(map(str, left))} still uses it")
            for instance in instances:
                try:
                    wait = None if is_on_a_loop() else max(_TEARDOWN_WAIT, deadline - perf_counter())
                    loaded.teardown(instance, grace or _LONGEST_GRACE, wait)
                except BaseException as error:
                    failures.append(error)
        return failures

    def __enter__(self) -> Self:
        """The engine itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close."""
        self.close()

    async def __aenter__(self) -> Self:
        """The engine itself."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close."""
        await self.aclose()

    def __repr__(self) -> str:
        """Whether it is open, and what is loaded."""
        return f"<Engine {'closed' if self._is_closed else 'open'}, {len(self.loaded)} loaded>"

    def __reduce__(self) -> Any:
        """Refuse to travel."""
        raise TypeError("an engine owns threads and streams and cannot be pickled: make one where it is needed")

    @property
    def _has_started(self) -> bool:
        started = self._threads.is_started or self._loop.is_started
        started = started or self._runners.is_started
        return started or any(loaded.is_set_up for loaded in self._loaded_predictors)

    def __del__(self) -> None:
        """Release everything, without waiting, where the engine was not closed."""
        if getattr(self, "_is_closed", True) or sys.is_finalizing() or not hasattr(self, "_executor"):
            return
        if not self._has_started:
            return
        self._is_closed = True
        self._close_calls()
        self._closed.finish(Report())
        self._loop.close(self._grace, wait=False)
        self._threads.close(0.0)
        self._runners.close_soon()
        warnings.warn("an engine was left unclosed; close it, or use `with Engine()`", ResourceWarning, stacklevel=2)

    def _close_at_exit(self) -> None:
        """Close an engine that the program did not close."""
        self._close(self._grace)


Engine.__module__ = "engine"  # where users import it from


def resolver_of(engine: Engine) -> Resolver:
    """What resolves an engine's calls, for the command line."""
    return engine._resolver  # noqa: SLF001 - its own module


def _policies() -> tuple[type[Resolver], type[Opener], type[Executor]]:
    """The classes for this interpreter: with a GIL, no call pays for what one without needs."""
    if has_gil():
        return Resolver, Opener, Executor
    from engine._free_threading import FreeThreadedExecutor, FreeThreadedOpener, FreeThreadedResolver

    return FreeThreadedResolver, FreeThreadedOpener, FreeThreadedExecutor


def _seconds(grace: object) -> float:
    if isinstance(grace, (int, float)) and not isinstance(grace, bool) and 0 <= grace <= _LONGEST_GRACE:
        return float(grace)
    raise ValueError(f"grace must be a number of seconds from 0 to {_LONGEST_GRACE}, not {quote(grace)}")


class _LazyProcessRunner:
    """Stands in for the process runner, which costs time to import, until a call needs it."""

    name = "process"
    is_elsewhere = True
    is_constant = True
    stays_with_caller = False

    def __init__(self, most: int | None, grace: float, start: Start) -> None:
        self._facts = most, grace, start
        self._is_closed = False
        self.after_fork()
        renew_after_fork(self)

    def after_fork(self) -> None:
        self._lock = threading.Lock()
        self._runner: ProcessRunner | None = None

    def __call__(self) -> ProcessRunner:
        """The process runner.

        Raises:
            EngineClosedError: the engine is closed.
        """
        with self._lock:
            if self._is_closed:
                raise EngineClosedError
            if self._runner is None:
                from engine.runners.process.runner import ProcessRunner

                # Its threads do what would block an event loop.
                self._runner = ProcessRunner(*self._facts, ThreadRunner(keep_alive=_OFFLOAD_KEEP_ALIVE))
            return self._runner

    @property
    def is_ready(self) -> bool:
        if self._runner is not None:
            return True
        spec = getattr(sys.modules.get("engine.runners.process.runner"), "__spec__", None)
        # As the import machinery tests it: a thread that imports it just now would have to be waited for.
        return spec is not None and not getattr(spec, "_initializing", False)

    def prepare(self) -> None:
        self()

    def place(self, loaded: Loaded, runner: str | None, *, is_task: bool) -> BodyRunner:  # noqa: ARG002
        workers = self._runner
        return self() if workers is None or self._is_closed else workers

    def describe(self, tag: str, text: str) -> Mapping[str, Any]:
        told: Mapping[str, Any] = self().describe(tag, text)
        return told

    def load(self, loaded: Loaded) -> None:
        self().load(loaded)

    async def aload(self, loaded: Loaded, in_owner: InOwner) -> None:
        await in_owner(loaded.profile.tag, self.load, loaded)

    def unload(self, loaded: Loaded) -> None:
        self().unload(loaded)

    def loaded(self) -> set[str]:
        return set() if self._runner is None else self._runner.loaded()

    @property
    def is_started(self) -> bool:
        return self._runner is not None and self._runner.is_started

    def close_soon(self) -> None:
        self._is_closed = True
        if self._runner is not None:
            self._runner.close_soon()

    def close(self, grace: float) -> list[BaseException]:
        if self._runner is None or is_on_a_loop():  # which has to run before its streams are finalised
            return []
        return self._runner.close(grace)


def _count(workers: object) -> int | None:
    if workers is None:
        return None
    if isinstance(workers, int) and not isinstance(workers, bool) and workers >= 1:
        return workers
    raise ValueError(f"workers must be a whole number from 1, or None, not {quote(workers)}")


async def close_off_loop(close: Callable[[float], None], grace: float) -> None:
    """Close in a thread, while this event loop goes on with its streams' clean-up."""
    import asyncio

    loop = asyncio.get_running_loop()
    done: asyncio.Future[None] = loop.create_future()

    def run() -> None:
        error: BaseException | None = None
        try:
            close(grace)
        except BaseException as caught:
            error = caught
        try:
            loop.call_soon_threadsafe(settle, error)
        except RuntimeError:  # the loop ended without waiting for this
            if error is not None:
                warn("error while an engine was closed", error)

    def settle(error: BaseException | None) -> None:
        if done.done():
            return
        if error is None:
            done.set_result(None)
        else:
            done.set_exception(error)

    thread = DaemonThread(run, "engine-closer")
    try:
        thread.start()
    except RuntimeError:  # no thread can be started: it is closed here, without waiting for this loop
        run()
    try:
        await asyncio.shield(done)
    finally:
        if thread.is_alive():
            thread.join(0.0 if not done.done() else grace)
    await finalised(grace)


def _close_all() -> None:
    for engine in tuple(_engines):
        try:
            engine._close_at_exit()  # noqa: SLF001 - its own module
        except KeyboardInterrupt:  # the user does not want to wait, and knows where it came from
            warn("the end of an engine was interrupted: what still ran was not waited for")
        except BaseException as error:
            warn("error while an engine was closed at exit", error)


atexit.register(_close_all)
