"""Where and with what workers start, and what is said where none can be started."""

from __future__ import annotations

import errno
import os
import select
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any, Final

import pytest

from engine import Engine, EngineError
from tests._kit.processes import SCRIPT_TIMEOUT


def script(tmp_path: Path, source: str, *flags: str, **environment: str) -> str:
    """Run a script, without any guard, in a process of its own; give what it printed."""
    path = tmp_path / "script.py"
    path.write_text(textwrap.dedent(source), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, *flags, str(path), "an argument"],
        check=False,
        capture_output=True,
        text=True,
        timeout=SCRIPT_TIMEOUT,
        env={**os.environ, **environment},
        cwd=tmp_path,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_a_worker_has_the_interpreters_flags_the_path_the_folder_and_the_environment_of_its_engine(
    tmp_path: Path,
) -> None:
    (tmp_path / "beside.py").write_text("WORD = 'a sibling'\n", encoding="utf-8")
    (tmp_path / "extra").mkdir()
    (tmp_path / "extra" / "added.py").write_text("WORD = 'a folder added'\n", encoding="utf-8")
    (tmp_path / "elsewhere").mkdir()
    found = script(
        tmp_path,
        """
        import os, sys
        from engine import Engine

        def look():
            import beside, added
            return (sys.flags.optimize, sys.flags.dev_mode, sys.flags.safe_path, sys.argv[1:], beside.WORD, added.WORD,
                    os.getcwd(), os.environ.get("COLOUR"), os.environ.get("LATER"), os.read(0, 1), __name__)

        with Engine(discover=False, workers=1) as muna:
            os.chdir("elsewhere")
            os.environ["LATER"] = "too late"
            sys.path.append(os.path.abspath("../extra"))
            print(muna.predictions.create(look, runner="process").value)
        """,
        "-O",
        "-X",
        "dev",
        COLOUR="green",
    )
    folder = os.path.realpath(tmp_path)
    assert found == (
        f"(1, True, True, ['an argument'], 'a sibling', 'a folder added', {folder!r}, 'green', None, b'', '__main__')\n"
    )


def test_workers_are_bounded_by_a_number_that_makes_sense() -> None:
    for senseless in (0, -1, True, 1.5, "two"):
        with pytest.raises(ValueError, match="workers must be a whole number from 1, or None"):
            Engine(discover=False, workers=senseless)  # type: ignore[arg-type]


def test_an_engine_that_sent_nothing_to_a_worker_has_started_none() -> None:
    muna = Engine(discover=False, runner="process")
    assert repr(muna) == "<Engine open, 0 loaded>"
    assert muna.loaded == ()
    del muna  # and needs no closing, or this would warn


def one() -> int:
    return 1


PROGRAM: Final = """
import os, sys
with open({starts!r}, "a+") as file:
    file.write("started\\n")
    file.seek(0)
    if len(file.readlines()) > 3:
        sys.exit("again and again")
{frozen}
sys.executable = {program!r}
from engine import Engine

def number():
    return os.getpid()

with Engine(discover=False, workers=1) as muna:
    try:
        print(muna.predictions.create(number, runner="process").value)
    except Exception as error:
        print(type(error).__name__, error)
        sys.exit(3)
"""


@pytest.mark.parametrize(
    ("frozen", "starts", "told"),
    [
        ("sys.frozen = True", 1, "EngineError workers need a Python interpreter, and this program is frozen: sys.exec"),
        ("", 2, "WorkerLostError "),  # which embeds Python without saying so
    ],
    ids=["frozen", "embedding"],
)
def test_a_program_that_is_its_own_interpreter_is_never_started_again_and_again(
    frozen: str, starts: int, told: str, tmp_path: Path
) -> None:
    journal, source, program = tmp_path / "starts", tmp_path / "source.py", tmp_path / "program"
    source.write_text(PROGRAM.format(starts=str(journal), frozen=frozen, program=str(program)), encoding="utf-8")
    program.write_text(f"#!/bin/sh\nexec '{sys.executable}' '{source}' \"$@\"\n", encoding="utf-8")
    program.chmod(0o755)
    done = subprocess.run([str(program)], check=False, capture_output=True, text=True, timeout=SCRIPT_TIMEOUT)
    assert journal.read_text(encoding="utf-8").count("started") == starts
    lines = done.stdout.splitlines()
    assert (done.returncode, len(lines), done.stderr) == (3, starts, "")
    assert lines[-1].startswith(told)
    if starts > 1:
        assert lines[0].startswith("EngineError this program was started in place of a worker of process ")


def mark_of_a_worker() -> str | None:
    return os.environ.get("PREDICTOR_ENGINE_WORKER_OF")


def test_a_frozen_program_that_names_an_interpreter_has_workers_whose_own_children_are_not_taken_for_any(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    with Engine(discover=False, workers=1) as muna:
        assert muna.predictions.create(mark_of_a_worker, runner="process").value is None


def test_a_program_without_poll_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    with Engine(discover=False, workers=1) as muna:
        monkeypatch.delattr(select, "poll")
        with pytest.raises(EngineError, match=r"workers need select\.poll, which was taken out of this program"):
            muna.predictions.create(one, runner="process")


def folder_of_worker() -> str | None:
    try:
        return str(Path.cwd())
    except FileNotFoundError:
        return None


@pytest.fixture
def no_folder_may_be_entered(monkeypatch: pytest.MonkeyPatch) -> None:
    """As for a user who was given another's folder to work in."""
    popen = subprocess.Popen

    def refuse(*args: Any, **options: Any) -> Any:
        if options["cwd"] is not None:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), options["cwd"])
        return popen(*args, **options)

    monkeypatch.setattr(subprocess, "Popen", refuse)


@pytest.mark.usefixtures("no_folder_may_be_entered")
def test_workers_start_in_a_folder_that_may_not_be_entered_and_elsewhere_one_error_says_why_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = str(Path.cwd())
    with Engine(discover=False, workers=1) as muna:
        monkeypatch.chdir(tmp_path)
        with pytest.raises(EngineError, match="cannot be entered") as raised:
            muna.predictions.create(folder_of_worker, runner="process")
        assert here in str(raised.value)
        monkeypatch.chdir(here)
        assert muna.predictions.create(folder_of_worker, runner="process").value == here


def test_workers_start_in_a_folder_that_was_deleted_since_and_elsewhere_one_error_says_why_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = tmp_path / "gone"
    for is_made_before in (False, True):
        gone.mkdir()
        monkeypatch.chdir(gone)
        if not is_made_before:
            gone.rmdir()
        with Engine(discover=False, workers=1) as muna:
            if is_made_before:
                gone.rmdir()
            assert muna.predictions.create(folder_of_worker, runner="process").value is None
    gone.mkdir()
    monkeypatch.chdir(gone)
    with Engine(discover=False, workers=1) as muna:
        monkeypatch.chdir(tmp_path)
        gone.rmdir()
        with pytest.raises(EngineError, match=r"gone cannot be entered \(No such file"):
            muna.predictions.create(folder_of_worker, runner="process")
