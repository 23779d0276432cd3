"""Runners decide where a predictor's body runs. What a plugin's runner needs is public here.

A runner is an object with a `name` and a `start(body, channel)`; `Runner` says what those do, and what it may have
besides. One that only chooses the thread has it call `own(body, channel)`, which does the rest. One that runs bodies in
other processes has these call `describe` for it. `carry` names the context variables that travel to workers.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from engine._predictors.body import Body
from engine.runners.base import Runner, ServedPredictor
from engine.runners.channel import Channel
from engine.runners.ending import Report
from engine.runners.loop import hand_over_and_wait
from engine.runners.thread import own as _own
from engine.runners.thread import step_iterator

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Body", "Channel", "Report", "Runner", "ServedPredictor", "carry", "describe", "own"]


def own(body: Body, channel: Channel) -> None:
    """Own a body of any kind in the calling thread, from its call to its finalisation.

    What turns out to be async runs on an event loop of its own, which this thread waits for.

    Args:
        body: what to run; it runs in its own context.
        channel: where its partials go, and where requests to stop come from.
    """
    _own(body, channel, partial(hand_over_and_wait, step_iterator))


def carry(*names: str) -> None:
    """Have context variables travel to worker processes with every call that is made where they are set.

    Whatever else `contextvars` hold stays in this process. The values have to be picklable; what a predictor sets
    never comes back.

    Args:
        names: `"module:NAME"` of each `ContextVar`; workers find it under the same name.

    Raises:
        ImportError: there is no such module or name.
        TypeError: what is found there is no `ContextVar`.
    """
    from engine.runners.process.variables import carry_context

    carry_context(names)


def describe(target: Any) -> Mapping[str, Any]:
    """Describe a predictor, in the process that will run it: what the `describe` of a runner gives.

    Args:
        target: a function, class or object with `predict`, or `"module:name"`, which is imported in this process.

    Returns:
        Its signature, kind and options in built-in types, which a process can read that has not imported it.

    Raises:
        TypeError: it is no predictor.
        BaseException: what the import raises.
    """
    from engine._predictors.predictor import import_target
    from engine._wire.remote_profile import describe as tell

    return tell(import_target(target) if isinstance(target, str) else target)
