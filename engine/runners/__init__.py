"""Runners decide where a predictor's body runs. What a plugin's runner needs is public here.

A runner is an object with a `name` and a `start(body, channel)`; see `Runner`. One that only chooses the thread has it
call `own(body, channel)`, which does the rest.
"""

from __future__ import annotations

from engine._channel import Channel, End
from engine._partials import Body
from engine.runners.base import Runner
from engine.runners.thread import own

__all__ = ["Body", "Channel", "End", "Runner", "own"]
