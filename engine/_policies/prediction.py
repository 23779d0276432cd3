"""Where a run that is reduced ends: it becomes one `Prediction`, or what ended it is raised, once.

`drained` and `adrained` do so for an execution, whatever its kind and owner; `exhaust`, `finish` and `failed` for what
a caller's own thread steps without one. No frame here outlives its call in a traceback that it refers to: each deletes
the exception that it raises, or both would keep the call's inputs alive until a collector runs.
"""

from __future__ import annotations

from time import perf_counter
from typing import TYPE_CHECKING, Any, Literal

from engine._errors import NoPartialsError
from engine._predictors.failures import explain, trim
from engine._records import Prediction
from engine._reducers import EMPTY, LAST, RETURNED
from engine.runners.lock_step import is_main_thread

if TYPE_CHECKING:
    from engine._records import Call
    from engine.runners.base import Execution, SyncExecution
    from engine.runners.channel import Reduction

    Errors = Literal["raise", "return"]


def drained(execution: SyncExecution, reduction: Reduction, started: float, errors: Errors) -> Prediction:
    """Reduce an execution to its end, for sync code.

    Args:
        execution: what is consumed; nothing has pulled it yet.
        reduction: what its partials are reduced to.
        started: when the call began, by `perf_counter`.
        errors: as for `create`.
    """
    try:
        execution.drain(reduction)
    except BaseException as error:
        return _ended(error, execution, reduction, started, errors)
    return _reduced(execution, reduction, started)


async def adrained(execution: Any, reduction: Reduction, started: float, errors: Errors) -> Prediction:
    """Reduce an execution to its end in an asyncio task; its arguments are those of `drained`."""
    try:
        await execution.adrain(reduction)
    except BaseException as error:
        return _ended(error, execution, reduction, started, errors)
    return _reduced(execution, reduction, started)


def _reduced(execution: Execution, reduction: Reduction, started: float) -> Prediction:
    """The prediction of an execution that came to its end."""
    reducer, value, count = reduction.reducer, reduction.value, reduction.count
    if reducer is RETURNED:
        reduction.value = execution.ending.returned
    if reducer is not LAST or value is EMPTY:
        value = finish(reduction, execution.call)
    seconds = reduction.elapsed or perf_counter() - started  # no owner reads a clock for a body without partials
    return Prediction(execution.call, value, count and count - 1, seconds * 1000.0)


def _ended(
    error: BaseException, execution: Execution, reduction: Reduction, started: float, errors: Errors
) -> Prediction:
    """Raise what ended an execution, or give it as a prediction where the body raised it and the caller asked so."""
    is_bodys = execution.ending.state == "failed" and execution.is_started
    is_bodys = is_bodys and not isinstance(error, KeyboardInterrupt)
    try:
        if errors == "raise" or not is_bodys:
            raise error
        return _carrying(error, execution.call, reduction, started)
    finally:
        del error, execution


def failed(error: BaseException, call: Call, reduction: Reduction | None, started: float, errors: Errors) -> Prediction:
    """Raise what a body raised that ran in its caller's thread without an execution, or give it as a prediction.

    Args:
        error: what came out of the body.
        call: the identity of the call, which is over.
        reduction: what its partials are reduced to; `None` where it produced none.
        started: when the call began, by `perf_counter`.
        errors: as for `create`.
    """
    call.parent = None
    is_interrupt = isinstance(error, KeyboardInterrupt) and is_main_thread()
    failure = error if is_interrupt else explain(error, call, reduction.count if reduction else 0)
    try:
        if errors == "raise" or is_interrupt:
            raise failure
        return _carrying(failure, call, reduction, started)
    finally:
        del error, failure


def _carrying(error: BaseException, call: Call, reduction: Reduction | None, started: float) -> Prediction:
    """The prediction that has the body's failure as its `error`, and what was reduced before it as its value."""
    value, index = None, 0
    trim(error)  # its traceback has passed through the engine's frames since, which say nothing to its reader
    if reduction is not None and reduction.count:
        index = reduction.count - 1
        try:
            value = reduction.reducer.finish(reduction.value)
        except Exception:
            value = None
    return Prediction(call, value, index, (perf_counter() - started) * 1000.0, error)


def finish(reduction: Reduction, call: Call) -> Any:
    """The result of a reduction; an error that it has no partials names the predictor."""
    try:
        return reduction.reducer.finish(reduction.value)
    except NoPartialsError as error:
        if error.tag:
            raise
        raise NoPartialsError(call.tag, error.reducer) from None


# A sync iterator, stepped by its caller.


class ReducerError(BaseException):
    """Carries what a reducer raised past the handlers of what the body raised."""

    def __init__(self, error: BaseException) -> None:
        """Carry `error`."""
        super().__init__(error)
        self.error = error


def exhaust(iterator: Any, reduction: Reduction) -> None:
    """Reduce a sync iterator to its end; the hot loop of `create` over a generator.

    Raises:
        ReducerError: the reducer failed.
        BaseException: what the iterator raised.
    """
    if reduction.reducer is LAST:
        seen, value = 0, reduction.value
        try:
            for value in iterator:  # noqa: B007 - the last one is the result
                seen += 1
        finally:
            reduction.value, reduction.count = value, seen
            _close_open(iterator)
        return
    if reduction.reducer is RETURNED:
        reduction.value = _returned_of(iterator, reduction)
        return
    try:
        for value in iterator:
            try:
                reduction.add(value)
            except BaseException as error:
                raise ReducerError(error) from None
    finally:
        _close_open(iterator)


def _returned_of(iterator: Any, reduction: Reduction) -> Any:
    """What a generator returns; its partials are counted only."""
    step = iterator.__next__
    try:
        while True:
            step()
            reduction.count += 1
    except StopIteration as stop:
        return stop.value
    finally:
        _close_open(iterator)


def _close_open(iterator: Any) -> None:
    """Finalise a generator that an interrupt or a reducer's error left open; one that ended is not touched."""
    if getattr(iterator, "gi_frame", None) is not None:
        iterator.close()
