"""Common ground of the tests: a census of what each test leaves behind, hypothesis profiles, and a bare engine.

Every test under this folder must end with the child processes, threads and open descriptors it began with; the fixture
`leaves_nothing_behind` counts them around each test and fails it by name. The limit on a test's time is not set here:
it is pytest-timeout's.
"""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import sys
import threading
import time
from typing import TYPE_CHECKING, Any, Final

import attrs
import pytest
from hypothesis import settings

from tests._kit.processes import child_processes, command_of, open_descriptors, target_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from engine import Engine

# Always the same examples, so that a run says the same twice; `nightly` is the one that goes looking for new ones.
settings.register_profile("default", deadline=None, derandomize=True, print_blob=True, max_examples=50)
settings.register_profile("ci", settings.get_profile("default"), max_examples=200)
settings.register_profile("nightly", settings.get_profile("ci"), derandomize=False, max_examples=5_000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))

# A shell that starts the tests in its background has them ignore Ctrl-C, and so every program that they start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True, scope="module")
def keep_collections_short() -> None:
    """Leave what pytest and others hold by now, of thousands of tests, out of every later garbage collection.

    Many tests collect on purpose, and each time that would be looked through; what a test makes is not affected.
    """
    gc.collect()
    gc.freeze()


# What workers run is measured in the processes that these files and folders start; in those of all it would take
# minutes. One that is killed tells nothing. Of some the scripts are measured, too, with the workers that these start.
MEASURED: Final = frozenset(
    {
        "payloads",
        "test_exceptions_that_travel.py",
        "test_failures_at_every_point.py",
        "test_forking_predictors.py",
        "test_hostile_exceptions.py",
        "test_printing_predictors.py",
        "test_scarce_resources.py",
        "test_worker_lifetime.py",
        "test_worker_windows.py",
        "test_workers_that_come_and_go.py",
    }
)
SCRIPTS_MEASURED: Final = frozenset(
    {
        "payloads",
        "test_arguments.py",
        "test_context_in_workers.py",
        "test_fork.py",
        "test_help.py",
        "test_interrupts.py",
        "test_by_value.py",
        "test_results.py",
        "test_show.py",
        "test_spawn.py",
        "test_terminal.py",
        "test_what_is_told_of_workers.py",
    }
)


@pytest.fixture(autouse=True, scope="module")
def measure_workers(request: pytest.FixtureRequest) -> Iterator[None]:
    """Where coverage is measured, have it measured in worker processes, too."""
    coverage: Any = sys.modules.get("coverage")
    names = {request.path.name, request.path.parent.name}
    measurement = None if coverage is None else coverage.Coverage.current()
    if measurement is None or not names & (MEASURED | SCRIPTS_MEASURED):
        yield
        return
    from engine._records import Start

    begin, told = Start.here, {"COVERAGE_PROCESS_CONFIG": measurement.config.serialize()}
    with pytest.MonkeyPatch.context() as patch:
        if names & SCRIPTS_MEASURED:
            patch.setenv(*told.popitem())
        else:  # of engines made here alone
            patch.setattr(Start, "here", lambda: Start(begin().folder, begin().environment | told))
        yield


@attrs.frozen
class Census:
    """What this process holds at one moment that outlives a function call.

    Attributes:
        children: process ids, zombies included.
        threads: every thread that `threading` knows.
        descriptors: number, device and inode of each open descriptor, so that a number used again is seen.
    """

    children: frozenset[int]
    threads: frozenset[threading.Thread]
    descriptors: frozenset[tuple[int, int, int]]

    @classmethod
    def take(cls) -> Census:
        return cls(child_processes(), frozenset(threading.enumerate()), open_descriptors())

    def gained_since(self, before: Census) -> list[str]:
        """Name what is here and was not `before`; the empty list when nothing is."""
        return [
            *(f"child process {child}: {command_of(child)}" for child in sorted(self.children - before.children)),
            *(f"thread {thread.name!r}" for thread in self.threads - before.threads),
            *(
                f"descriptor {number}: {target_of(number)}"
                for number, *_ in sorted(self.descriptors - before.descriptors)
            ),
        ]


def left_behind(before: Census, seconds: float) -> list[str]:
    """Name what was gained since `before` and does not end within that many seconds.

    The collector runs only when something was gained, which keeps a clean test cheap.
    """
    deadline = time.monotonic() + seconds
    while left := Census.take().gained_since(before):
        gc.collect()
        if time.monotonic() > deadline:
            break
        time.sleep(0.01)
    return left


@pytest.fixture(scope="session")
def settling_time() -> float:
    """Seconds that what a test started has to be gone after it; only what stays takes them all."""
    return 15.0


@pytest.fixture(autouse=True)
def leaves_nothing_behind(settling_time: float) -> Iterator[None]:
    """Fail a test that leaves a child process, a thread or an open descriptor."""
    before = Census.take()
    yield
    if left := left_behind(before, settling_time):
        pytest.fail("the test left behind:\n  " + "\n  ".join(left), pytrace=False)


def names_of_other_tasks() -> list[str]:
    return sorted(task.get_name() for task in asyncio.all_tasks() - {asyncio.current_task()})


@pytest.fixture
def other_tasks() -> Callable[[], list[str]]:
    """Give a function that names the pending asyncio tasks of the running loop, without the one that asks."""
    return names_of_other_tasks


@pytest.fixture
def muna() -> Iterator[Engine]:
    """Give an engine that knows no installed plugin, and close it."""
    from engine import Engine

    with Engine(discover=False) as muna:
        yield muna
