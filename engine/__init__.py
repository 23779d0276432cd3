"""An in-process predictor execution engine: every kind of function, consumed every way, in every place.

from engine import Engine

with Engine() as muna:
muna.predictions.create("@muna/generator").value
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from engine._engine import Engine
from engine._errors import (
    DuplicatePredictorError,
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
from engine._predictor import Predictor, predictor
from engine._records import Call, Outcome, Prediction, current_call
from engine._reducers import Reducer, fold
from engine._stream import AsyncPredictionStream, PredictionStream

if TYPE_CHECKING:
    from engine.hookspecs import hookimpl

__all__ = [
    "AsyncPredictionStream",
    "Call",
    "DuplicatePredictorError",
    "Engine",
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


for _public in __all__:  # people meet these names in tracebacks, and should find them where they import them from
    if _public in globals() and globals()[_public].__module__.startswith("engine."):
        globals()[_public].__module__ = "engine"
del _public


def __getattr__(name: str) -> Any:
    if name == "hookimpl":  # pluggy is imported by plugins, and by the first use of a registry
        from engine.hookspecs import hookimpl

        return hookimpl
    raise AttributeError(f"module 'engine' has no attribute {name!r}")
