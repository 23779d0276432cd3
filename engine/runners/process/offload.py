"""What would keep an event loop for long, done in an owner thread, and how an asyncio task waits for it."""

from __future__ import annotations

from collections.abc import Callable
from contextvars import copy_context
from functools import partial
from typing import TYPE_CHECKING, Any

from engine._errors import PredictionCancelledError
from engine.runners.ending import Ending, Report
from engine.runners.parking import park_task, wake_all
from engine.runners.slots import refuse_stopped

if TYPE_CHECKING:
    from engine._predictors.body import Body

Offload = Callable[[Ending, Callable[[], None]], None]
"""Has an owner thread do something that ends by finishing an `Ending`."""

Work = Callable[[Callable[[], bool]], Any]
"""What is done there: it is given a function that tells, whenever it asks, whether its call was stopped meanwhile."""


async def offloaded(offload: Offload, body: Body, work: Work) -> Any:
    """Have an owner thread do something for a call, and wait for it in an asyncio task.

    Raises:
        PredictionCancelledError: the call was stopped meanwhile.
        BaseException: what the work raised.
    """
    refuse_stopped(body.call)
    ending = Ending(body.call.tag)
    body.recheck = ending.request_stop
    try:
        offload(ending, partial(copy_context().run, run_offloaded, ending, work))
        while ending.end is None and not ending.stop:
            await ending.wait_task()
    except BaseException:
        ending.request_stop()
        raise
    finally:
        body.recheck = None
    report = ending.end
    if report is None or ending.stop:  # the thread may have seen the stop before this task, and have ended for it
        raise PredictionCancelledError(body.call.tag, body.call.id)
    return result_of(report)


def run_offloaded(ending: Ending, work: Work) -> None:
    """Do the work, in an owner thread, and report what came of it."""
    report = Report()
    try:
        report.returned = work(lambda: ending.stop)
    except BaseException as error:
        report.error = error
    ending.finish(report)


async def report_of(ending: Ending, body: Body) -> Report:
    """Wait in an asyncio task, beside others, for the report of an owner thread.

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


def result_of(report: Report) -> Any:
    """What the work returned.

    Raises:
        BaseException: what it raised, once.
    """
    error, report.error = report.error, None
    try:
        if error is not None:
            raise error
    finally:
        del error  # or this frame and the exception keep each other alive
    return report.returned
