"""An in-process predictor execution engine: every kind of function, consumed every way, in every place.

Example:
    >>> from engine import Engine
    >>> with Engine() as muna:
    ...     muna.predictions.create("@muna/generator").value
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from engine._errors import (
    DuplicatePredictorError,
    EngineBusyError,
    EngineClosedError,
    EngineError,
    InvalidInputError,
    InvalidTagError,
    NestingError,
    NoPartialsError,
    PayloadError,
    PluginError,
    PredictionCancelledError,
    PredictionTimeoutError,
    PredictorError,
    PredictorNotFoundError,
    WorkerLostError,
)
from engine._predictors.predictor import Predictor, predictor
from engine._records import Call, Outcome, Prediction, current_call
from engine._reducers import Reducer, fold

if TYPE_CHECKING:
    from engine._engine import Engine
    from engine._policies.stream import AsyncPredictionStream, PredictionStream
    from engine.hookspecs import hookimpl

__all__ = [
    "AsyncPredictionStream",
    "Call",
    "DuplicatePredictorError",
    "Engine",
    "EngineBusyError",
    "EngineClosedError",
    "EngineError",
    "InvalidInputError",
    "InvalidTagError",
    "NestingError",
    "NoPartialsError",
    "Outcome",
    "PayloadError",
    "PluginError",
    "Prediction",
    "PredictionCancelledError",
    "PredictionStream",
    "PredictionTimeoutError",
    "Predictor",
    "PredictorError",
    "PredictorNotFoundError",
    "Reducer",
    "WorkerLostError",
    "current_call",
    "fold",
    "hookimpl",
    "predictor",
]


# A package that offers predictors, and a worker that runs them, need neither an engine nor pluggy to be imported.
_LATER = {
    "AsyncPredictionStream": "engine._policies.stream",
    "Engine": "engine._engine",
    "PredictionStream": "engine._policies.stream",
    "hookimpl": "engine.hookspecs",
}

for _public in __all__:  # tracebacks then show these names as they are imported
    if _public in globals() and globals()[_public].__module__.startswith("engine."):
        globals()[_public].__module__ = "engine"
del _public


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module 'engine' has no attribute {name!r}")
    import importlib

    found = globals()[name] = getattr(importlib.import_module(_LATER[name]), name)
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
