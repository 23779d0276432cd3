"""Faults between predictors and asyncio: blocked loops, lost generators, cancellations, loops that end, contexts."""

from __future__ import annotations

import asyncio
import contextlib
import decimal
import subprocess
import sys
import textwrap
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextvars import ContextVar
from typing import Any

import pytest

from engine import Engine, PredictionCancelledError, Predictor, PredictorError

PATIENCE = 10.0  # seconds; only a test that fails waits as long

colour: ContextVar[str] = ContextVar("colour", default="none")


async def reaches(gate: threading.Event) -> None:
    """Wait for a gate that another thread opens, without blocking this loop."""
    assert await asyncio.wait_for(asyncio.to_thread(gate.wait, PATIENCE), PATIENCE + 1), "the gate was never reached"


async def within[T](awaitable: Any) -> Any:
    return await asyncio.wait_for(awaitable, PATIENCE)
