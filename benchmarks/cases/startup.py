"""Start-up: a fresh interpreter that imports and is ready to call."""

import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

from benchmarks._case import Calls, Case, Subject

case = Case(
    name="startup",
    title="start-up",
    about="A fresh interpreter imports what is named and prints a line: the whole process, from start to exit.",
    drive=Calls(),
    per="process",
)


def importing(package: str, line: str) -> Iterator[Subject]:
    """A process that imports."""
    __import__(package)  # a missing one is named
    # The first one compiles what is not compiled yet.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}

    def call() -> Any:
        command = [sys.executable, "-c", f"{line}\nprint('ready')"]
        return subprocess.run(command, env=environment, capture_output=True, check=True, text=True).stdout

    yield (call,)


@case.contender("nothing", role="limit", note="the interpreter alone")
def bare(_size: int) -> Iterator[Subject]:
    yield from importing("sys", "import sys")


@case.contender("attrs, cloudpickle, pluggy", role="best", note="what the engine is built on, all of it imported")
def built_on(_size: int) -> Iterator[Subject]:
    yield from importing("attrs", "import attrs, cloudpickle, pluggy")


@case.contender("predictor-engine", role="engine", package="predictor-engine", note="and an engine that has run a call")
def engine(_size: int) -> Iterator[Subject]:
    line = "from engine import Engine\nEngine().predictions.create(len, {'obj': 'text'})"
    yield from importing("engine", line)


@case.contender("LangChain core", package="langchain-core", note="and a runnable that has run a call")
def langchain(_size: int) -> Iterator[Subject]:
    line = "from langchain_core.runnables import RunnableLambda\nRunnableLambda(len).invoke('text')"
    yield from importing("langchain_core", line)


@case.contender("llm", package="llm", note="imported only")
def simon(_size: int) -> Iterator[Subject]:
    yield from importing("llm", "import llm")


@case.contender("starlette", package="starlette", note="its concurrency module only")
def starlette(_size: int) -> Iterator[Subject]:
    yield from importing("starlette", "import starlette.concurrency")


@case.contender("Ray", package="ray", note="imported only; nothing started")
def ray(_size: int) -> Iterator[Subject]:
    yield from importing("ray", "import ray")
