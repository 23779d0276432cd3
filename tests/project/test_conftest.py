"""The guards of tests/conftest.py and pyproject.toml, tried on small test files that each break one rule."""

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture
def guarded(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], pytest.RunResult]:
    """Run a test file in a process of its own, under this project's conftest and settings."""

    monkeypatch.setenv("PYTHONPATH", str(ROOT))  # the conftest imports the kit

    def run(source: str) -> pytest.RunResult:
        pytester.makepyprojecttoml((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
        pytester.makeconftest((ROOT / "tests/conftest.py").read_text(encoding="utf-8"))
        pytester.makepyfile(test_inner=source)
        return pytester.runpytest_subprocess("test_inner.py")

    return run


LEAKS = """
import os, subprocess, sys, threading
from pathlib import Path
import pytest

kept = []

@pytest.fixture(scope="session")
def settling_time():
    return 0.05

def test_thread():
    thread = threading.Thread(target=threading.Event().wait, name="left-over", daemon=True)
    thread.start()

def test_descriptor():
    kept.append(os.open("opened", os.O_CREAT))

def test_descriptor_with_a_number_used_before():
    os.close(kept[0])
    assert os.open("reopened", os.O_CREAT) == kept[0]

def test_child():
    pipe = subprocess.PIPE
    child = subprocess.Popen([sys.executable, "-c", "print(flush=True); input()"], stdin=pipe, stdout=pipe)
    child.stdout.readline()  # A child that is still being started has no command line that could be shown.
    kept.append(child)

def test_zombie():
    child = subprocess.Popen([sys.executable, "-c", ""])
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    kept.append(child)

def test_clean():
    pass
"""


def test_each_kind_of_left_over_fails_its_own_test_by_name(guarded: Callable[[str], pytest.RunResult]) -> None:
    result = guarded(LEAKS)

    result.assert_outcomes(passed=6, errors=5)
    result.stdout.fnmatch_lines(
        [
            "*ERROR at teardown of test_thread *",
            "*thread 'left-over'",
            "*ERROR at teardown of test_descriptor *",
            "*descriptor *: */opened",
            "*ERROR at teardown of test_descriptor_with_a_number_used_before *",
            "*descriptor *: */reopened",
            "*ERROR at teardown of test_child *",
            "*child process *: *input()",
            "*descriptor *: pipe:*",
            "*ERROR at teardown of test_zombie *",
            "*child process *: (ended, not reaped)",
        ]
    )


SETTLING = """
import os, threading

class Knot:
    def __init__(self):
        self.itself = self
        self.descriptor = os.open(os.devnull, os.O_RDONLY)
    def __del__(self):
        os.close(self.descriptor)

def test_thread_about_to_end():
    threading.Timer(0.05, lambda: None).start()

def test_what_only_the_collector_frees():
    Knot()
"""


def test_what_goes_soon_after_a_test_is_no_left_over(guarded: Callable[[str], pytest.RunResult]) -> None:
    guarded(SETTLING).assert_outcomes(passed=2)


UNHEARD = """
import threading
import warnings

class Spiteful:
    def __del__(self):
        raise ValueError("from a finaliser")

def test_finaliser():
    Spiteful()

def fail():
    raise ValueError("from a thread")

def test_thread():
    thread = threading.Thread(target=fail)
    thread.start()
    thread.join()

def test_warning():
    warnings.warn("mind the gap", ResourceWarning)
"""


def test_an_error_that_no_caller_would_hear_of_fails_the_test(guarded: Callable[[str], pytest.RunResult]) -> None:
    result = guarded(UNHEARD)

    result.assert_outcomes(failed=3)
    result.stdout.fnmatch_lines(
        ["*ValueError: from a finaliser*", "*ValueError: from a thread*", "*ResourceWarning: mind the gap*"]
    )


def test_other_tasks_are_named_without_the_one_that_asks(other_tasks: Callable[[], list[str]]) -> None:
    async def with_one_pending() -> tuple[list[str], list[str]]:
        pending = asyncio.create_task(asyncio.Event().wait(), name="pending")
        before = other_tasks()
        pending.cancel()
        await asyncio.wait([pending])
        return before, other_tasks()

    assert asyncio.run(with_one_pending()) == (["pending"], [])
