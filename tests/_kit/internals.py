"""The tests' one way to what the engine keeps to itself: what has no public name is read here, and nowhere else."""

from __future__ import annotations

import gc
import sys
import threading
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

import attrs

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, MutableMapping, Sequence

    import pytest

    from engine import AsyncPredictionStream, Engine, PredictionStream
    from engine._loaded import LoadedPredictor
    from engine._registry.registry import Registry
    from engine._wire.segments import Segment
    from engine.runners.base import Execution, OpenCalls
    from engine.runners.loop import LoopRunner
    from engine.runners.process.encoding import EncodedPredictor
    from engine.runners.process.pool import Pool
    from engine.runners.process.runner import ProcessRunner
    from engine.runners.process.supervisor import Supervisor
    from engine.runners.process.worker import Worker
    from engine.runners.slots import Slots
    from engine.runners.thread import ThreadRunner

# An engine and its runners


def open_calls_of(engine: Engine) -> OpenCalls:
    return engine._open_calls


def executions_of(engine: Engine) -> tuple[Execution | Any, ...]:
    """The calls of an engine that have begun and not ended."""
    return engine._open_calls.executions()


def close_calls_of(engine: Engine) -> Any:
    """End the calls of an engine as its own end does, and nothing else of it."""
    return engine._close_calls()


def observe(engine: Engine, observer: Any) -> None:
    """Have an observer told of every call of an engine that begins from now on."""
    engine._placement.observe(observer)


def check_runner(engine: Engine, name: str | None) -> None:
    """See whether an engine has a runner of this name, as its first call does."""
    engine._placement.check(name)


def loaded_of(engine: Engine, predictor: Any) -> LoadedPredictor:
    """What an engine knows of a predictor, which need not be set up yet."""
    return engine._resolver.resolve(predictor)


def slots_of(engine: Engine, predictor: Any) -> Slots:
    """The slots of a predictor in this process."""
    slots = loaded_of(engine, predictor).slots
    assert slots is not None
    return slots


def threads_of(engine: Engine) -> ThreadRunner:
    """What runs an engine's sync bodies in owner threads."""
    return engine._threads


def loop_of(engine: Engine) -> LoopRunner:
    """What runs an engine's async bodies on the loop of its own."""
    return engine._loop


def process_runner_of(engine: Engine) -> ProcessRunner:
    """What runs bodies in an engine's workers; it is made where there is none yet."""
    return engine._workers()


def opened(engine: Engine, *facts: Any) -> Any:
    """Open the execution of a sync stream of a loaded predictor, as an engine does once it has found it."""
    executor: Any = engine.predictions
    return executor._opened(*facts)


def execution_of(stream: PredictionStream | AsyncPredictionStream) -> Execution | Any:
    return stream._execution


def is_parked(thread: threading.Thread) -> bool:
    """Whether a thread waits in the engine just now."""
    from engine.runners.parking import park_thread

    frame = sys._current_frames().get(thread.ident or 0)
    return frame is not None and frame.f_code is park_thread.__code__


def locks_of(engine: Engine) -> list[Any]:
    """Every lock that the engine's own objects hold."""
    kinds = (type(threading.Lock()), type(threading.RLock()))
    found: list[Any] = []
    seen: set[int] = set()
    left: list[Any] = [engine]
    while left:
        each = left.pop()
        if id(each) in seen:
            continue
        seen.add(id(each))
        if isinstance(each, kinds):
            found.append(each)
        elif isinstance(each, (dict, list, tuple, set)) or f"{type(each).__module__}.".startswith("engine."):
            left.extend(gc.get_referents(each))
    return found


# Slots


def waiters_of(owner: Slots | Pool) -> Any:
    """The queue of those that wait for a slot or for a worker."""
    return owner._queue


def blocker_of(owner: Slots | Pool, waiter: Any) -> Any:
    """The call that keeps what a waiter wants for as long as that waits; `None` while another may give it back."""
    return owner._blocker(waiter)


def tokens_of(slots: Slots) -> int:
    """How many slots of a predictor that needs no queue for them are free."""
    return len(slots._tokens or ())


def let_log_again(slots: Slots) -> None:
    """Have the next long wait for a slot be logged, however short ago one was."""
    slots._next_log_at = 0.0


# Workers


def pool_of(engine: Engine) -> Pool:
    return process_runner_of(engine)._pool


def workers_of(engine: Engine) -> Sequence[Worker]:
    """The workers that an engine has."""
    return pool_of(engine).workers


def worker_of(engine: Engine) -> Worker:
    """The only worker that an engine has."""
    (worker,) = workers_of(engine)
    return worker


def leases_of(engine: Engine) -> Sequence[Any]:
    """Who has a worker just now."""
    return pool_of(engine).leases


def starts_of(pool: Pool) -> Sequence[threading.Thread]:
    """The threads in which workers of a pool are being started."""
    return pool._starting


def lock_of(pool: Pool) -> Any:
    return pool._lock


def supervisor_of(engine: Engine) -> Supervisor:
    return process_runner_of(engine)._supervisor


def supervised_by(supervisor: Supervisor) -> Collection[Worker]:
    """The workers whose end a supervisor waits for."""
    return supervisor._workers


def thread_of(supervisor: Supervisor) -> threading.Thread | None:
    return supervisor._thread


def encodings_of(engine: Engine) -> MutableMapping[Any, Any]:
    """The predictors that are just being encoded for workers, and what those wait at that want them, too."""
    return process_runner_of(engine)._predictors._under_way


def encoded_for_workers(engine: Engine, tag: str, target: Any, limit: int) -> EncodedPredictor:
    """A predictor as an engine's workers are sent it, encoded now where it was not."""
    return process_runner_of(engine)._predictors.get(tag, target, limit)


def shorten_grace_of_workers(engine: Engine, seconds: float) -> None:
    """Give an engine's workers less time than the engine itself."""
    process_runner_of(engine)._grace = seconds


def memory_of(segment: Segment) -> int:
    """The descriptor of the memory that a segment shares."""
    return segment._descriptor


def descriptors_of(worker: Worker) -> Collection[int]:
    """What a worker still has to close."""
    return worker._descriptors


def modules_in_workers() -> MutableMapping[Any, Any]:
    """Which workers have which version of a module that may be reloaded."""
    from engine._wire import by_reference

    return by_reference._workers


def known_modules() -> MutableMapping[str, Any]:
    """What is noted about modules that have been encoded by reference."""
    from engine._wire import by_reference

    return by_reference._known


# A registry


def leave_as_a_fork_may(registry: Registry) -> threading.Thread:
    """Hold the locks of a registry as other threads may when their process forks; give the thread that holds one."""
    from tests._kit.waits import started

    registry._writing.acquire()
    registry._is_discovering = True
    return started(registry._discovery.acquire)


# Functions that tests put others in the place of


@attrs.frozen
class Seam:
    """A function of the engine's own that a test may have do more than it does.

    Attributes:
        path: `module:name`, or `module:Class.name`.
    """

    path: str

    @property
    def home(self) -> Any:
        """The module or the class that has it."""
        module, _, names = self.path.partition(":")
        *outer, _name = names.split(".")
        found: Any = import_module(module)
        for each in outer:
            found = getattr(found, each)
        return found

    @property
    def name(self) -> str:
        return self.path.replace(":", ".").rpartition(".")[2]

    @property
    def now(self) -> Any:
        """What it is just now."""
        return getattr(self.home, self.name)

    def replace(self, patch: pytest.MonkeyPatch, function: Callable[..., Any]) -> None:
        patch.setattr(self.home, self.name, function)


WAIT_OF_A_THREAD: Final = Seam("engine.runners.owned:OwnedExecution._start_and_wait")
WAIT_OF_A_TASK: Final = Seam("engine.runners.owned:OwnedExecution._wait_task")
COUNT_OF_THREADS: Final = Seam("engine.runners.thread:ThreadRunner._served")
WATCH_OF_A_LOOP: Final = Seam("engine.runners.process.inlet:Inlet._watch")
REFUSAL_BY_A_POOL: Final = Seam("engine.runners.process.pool:Pool._refuse")
GOING_IN_A_POOL: Final = Seam("engine.runners.process.pool:able_to_go_on")
FRAME_OF_A_CALL: Final = Seam("engine.runners.process.runner:command_frame")
WORD_OF_AN_ENCODING: Final = Seam("engine.runners.process.offload:run_offloaded")
