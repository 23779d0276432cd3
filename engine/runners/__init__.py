"""Runners decide where a predictor's body runs. What a plugin's runner needs is public here.

A runner is an object with a `name` and a `start(body, channel)`; see `Runner`. One that only chooses the thread has it
call `own(body, channel)`, which does the rest. `carry` names the context variables that travel to workers.
"""

from __future__ import annotations

from functools import partial

from engine._channel import Channel, End
from engine._partials import Body
from engine.runners.base import Runner
from engine.runners.loop import adopt_here
from engine.runners.thread import go_on
from engine.runners.thread import own as _own

__all__ = ["Body", "Channel", "End", "Runner", "carry", "own"]


def own(body: Body, channel: Channel) -> None:
    """Be the owner of a body of any kind, in the calling thread, from its call to its finalisation.

    What turns out to be async runs on an event loop of its own, which this thread waits for.

    Args:
        body: what to run; it runs in its own context.
        channel: where its partials go, and where requests to stop come from.
    """
    _own(body, channel, partial(adopt_here, go_on))


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
    from engine.runners.process import carry_context

    carry_context(names)
