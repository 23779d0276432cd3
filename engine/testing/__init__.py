"""For authors of plugins: predictors of every kind, what is expected of each, and the suite every runner passes.

A `Script` says what a body does step by step, `KINDS` holds a predictor of every kind that performs any script, and
`expected` tells what a consumer must see of it, wherever it runs. `RunnerConformance` holds one runner against that.
pytest is not imported here: the suite has the shape that pytest collects, and its failures are plain AssertionErrors.
"""

from engine.testing.conformance import RunnerConformance, Transcript, arrival, described, expected
from engine.testing.kinds import KINDS, Kind, returns, returns_later, yields, yields_later
from engine.testing.script import MARK, Fail, Give, Journal, Pause, Return, Script, SetMark, Step

__all__ = [
    "KINDS",
    "MARK",
    "Fail",
    "Give",
    "Journal",
    "Kind",
    "Pause",
    "Return",
    "RunnerConformance",
    "Script",
    "SetMark",
    "Step",
    "Transcript",
    "arrival",
    "described",
    "expected",
    "returns",
    "returns_later",
    "yields",
    "yields_later",
]
