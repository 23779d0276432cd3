"""What the engine does on a Python that runs without its GIL; loaded there and nowhere else.

Turns, buffers and slots rest on the call-free store: between a test and the store that depends on it no other thread
runs, as long as no call stands between them. The GIL keeps that rule, and it is not proved that the engine is right
without it. So an engine refuses its first call there, unless the environment asks for it. Where that does, this module
prevents the one thing that would end the interpreter: two threads that step one generator of the engine's, or one that
it follows.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Generator, Iterator
from functools import partial
from inspect import CO_ITERABLE_COROUTINE
from types import GeneratorType
from typing import TYPE_CHECKING, Any, Final
from weakref import WeakKeyDictionary

from engine._errors import EngineError
from engine._policies.executor import Executor
from engine._policies.opening import Opener
from engine._policies.resolve import Resolver
from engine._policies.stream import PredictionStream
from engine._predictors.body import Body
from engine.runners.base import has_gil
from engine.runners.inline import InlineExecution
from engine.runners.lock_step import reading_twice

if TYPE_CHECKING:
    from engine._predictors.predictor import Predictor
    from engine._records import Prediction
    from engine._reducers import Reducer
    from engine.runners.base import SyncExecution
    from engine.runners.deferred import DeferredExecution

VARIABLE: Final = "PREDICTOR_ENGINE_FREE_THREADING"
_TOLD: Final = (
    "this Python runs without its GIL, and the engine is not proved there: start it with PYTHON_GIL=1, or, to try what "
    f"may give wrong values, with {VARIABLE}=1"
)

_stepping: Final[WeakKeyDictionary[Generator[Any, Any, Any], threading.Lock]] = WeakKeyDictionary()
_noting: Final = threading.Lock()  # held to change that dictionary, which is not safe without a GIL either


class OneAtATime(Generator[Any, Any, Any]):
    """A generator that one thread at a time may step: a lock keeps the others out before the interpreter has to.

    Args:
        generator: what is stepped.
        stepping: held by the thread that steps it.
        refused: makes the error for a thread that comes meanwhile; `None` to have it wait.
    """

    __slots__ = ("_generator", "_refused", "_stepping")

    def __init__(
        self,
        generator: Generator[Any, Any, Any],
        stepping: threading.Lock,
        refused: Callable[[], ValueError] | None,
    ) -> None:
        """Step nothing yet."""
        self._generator = generator
        self._stepping = stepping
        self._refused = refused

    def _step(self, step: Callable[..., Any], *args: Any) -> Any:
        refused = self._refused
        if not self._stepping.acquire(blocking=refused is None) and refused is not None:
            raise refused()
        try:
            return step(*args)
        finally:
            self._stepping.release()

    def __next__(self) -> Any:
        """The next item."""
        return self._step(self._generator.__next__)

    def send(self, value: Any) -> Any:
        """The next item, with a value for the generator."""
        return self._step(self._generator.send, value)

    def throw(self, *error: Any) -> Any:
        """The next item, with an exception for the generator."""
        return self._step(self._generator.throw, *error)

    def close(self) -> None:
        """Finalise the generator."""
        self._step(self._generator.close)

    @property
    def gi_frame(self) -> Any:
        """The generator's; `None` once it is over."""
        return getattr(self._generator, "gi_frame", None)


def _stepped_already() -> ValueError:
    return ValueError("the predictor's generator is stepped already, by another call: give each call one of its own")


def one_at_a_time(produced: Any) -> Any:
    """What a predictor produced, guarded if it is a generator: two calls may have got the same one."""
    if type(produced) is not GeneratorType or produced.gi_code.co_flags & CO_ITERABLE_COROUTINE:
        return produced
    with _noting:
        stepping = _stepping.setdefault(produced, threading.Lock())
    return OneAtATime(produced, stepping, _stepped_already)


class GuardedBody(Body):
    """A body whose generator one thread at a time may step."""

    def start(self) -> Any:
        """Call the function, once."""
        return one_at_a_time(super().start())


class FreeThreadedStream(PredictionStream):
    """A stream whose iterators several threads may read.

    In lock-step a second reader is refused; with an owner elsewhere it waits until the first has got its partial.
    """

    __slots__ = ("_reading",)

    def __init__(self, execution: SyncExecution | DeferredExecution, reducer: Reducer | None) -> None:
        """Show an execution that no thread reads yet."""
        super().__init__(execution, reducer)
        self._reading = threading.Lock()

    def _guarded(self, iterator: Iterator[Any], reading: threading.Lock | None = None) -> Iterator[Any]:
        execution: Any = self._execution
        refused = partial(reading_twice, execution.call) if isinstance(execution, InlineExecution) else None
        generator: Any = iterator
        return OneAtATime(generator, reading or self._reading, refused)

    def __iter__(self) -> Iterator[Prediction]:
        """A `Prediction` for each partial from the shared position on."""
        return self._guarded(super().__iter__())

    def values(self) -> Iterator[Any]:
        """The raw partials from the shared position on."""
        return self._guarded(super().values())

    def snapshots(self) -> Iterator[Any]:
        """The running reduction after each partial from here on."""
        return self._guarded(super().snapshots(), threading.Lock())  # which itself reads `values`


class FreeThreadedResolver(Resolver):
    """The resolver of an engine that was made while there was no GIL."""

    def __init__(self, *parts: Any) -> None:
        """Decide whether calls are refused."""
        super().__init__(*parts)
        self._is_asked_for = os.environ.get(VARIABLE) == "1"

    def _record(self, tag: Any, *, may_look: bool = True) -> Predictor | None:
        if not (self._is_asked_for or has_gil()):  # an import may have brought it back meanwhile
            raise EngineError(_TOLD)
        return super()._record(tag, may_look=may_look)


class FreeThreadedOpener(Opener):
    """The opener of an engine that was made while there was no GIL."""

    make_body = GuardedBody


class FreeThreadedExecutor(Executor):
    """The executor of an engine that was made while there was no GIL."""

    _make_stream = FreeThreadedStream

    def _drain(self, loaded: Any, call: Any, context: Any, produced: Any, *more: Any) -> Prediction:
        return super()._drain(loaded, call, context, one_at_a_time(produced), *more)
