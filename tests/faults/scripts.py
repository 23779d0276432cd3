"""Scripts that are run as their users would run them."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import textwrap
from typing import Final

# On a busy machine asyncio's debug mode says of any step that it took long.
UNHURRIED: Final = """
import logging
logging.getLogger("asyncio").addFilter(lambda record: not record.getMessage().startswith("Executing "))
"""


def run_script(source: str) -> subprocess.CompletedProcess[str]:
    """Run a script as its user would; ended by force, and so a failure, if it takes longer than it may."""
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(source)], capture_output=True, text=True, timeout=50, check=False
    )


def run_script_in_debug_mode(source: str, *options: str) -> subprocess.CompletedProcess[str]:
    """Run a script with every warning shown, and with all that asyncio has to say but of steps that took long."""
    return subprocess.run(
        [sys.executable, "-X", "dev", "-W", "always", *options, "-c", UNHURRIED + textwrap.dedent(source)],
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )


# An engine with live streams of every sort.
LIVE: Final = """
import asyncio, os, sys, threading
from engine import Engine, EngineClosedError

reached = threading.Event()

def stuck():
    yield 1
    reached.set()
    threading.Event().wait()

async def astuck():
    yield 1
    reached.set()
    await asyncio.sleep(3600)

def resting():
    yield 1
    yield 2

def read(stream):
    try:
        list(stream)
    except EngineClosedError:
        pass

class Model:
    def predict(self):
        return 1
    async def setup(self):
        self.lock = asyncio.Lock()

muna = Engine(discover=False, grace=0.1)
live = [
    muna.predictions.stream(stuck, runner="thread"),
    muna.predictions.stream(astuck),
    muna.predictions.stream(resting),
    muna.predictions.stream(resting, runner="thread"),
]
for stream in live:
    next(stream)
muna.predictions.create(Model)
assert reached.wait(10)
print("ready", flush=True)
"""


def signalled(source: str, number: signal.Signals) -> tuple[int, str, str]:
    """Run a script in a session of its own, send its whole group a signal once it says "ready"."""
    script = (
        "import asyncio, signal, sys, threading, time\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a shell's background processes ignore it
        "from engine import Engine, current_call\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script + textwrap.dedent(source)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            os.killpg(process.pid, number)
            out, errors = process.communicate(timeout=30)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    return process.returncode, out, errors
