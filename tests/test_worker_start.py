"""Where and with what workers start, what of the caller's context travels to them, and what of theirs comes back."""

from __future__ import annotations

import contextvars
import errno
import importlib
import logging
import os
import select
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import pytest

import engine.runners.process.runner
import engine.runners.slots
from engine import Engine, EngineError, PayloadError, WorkerLostError, current_call
from engine.runners import carry

LIMIT: Final = 30  # seconds a script may take


def script(tmp_path: Path, source: str, *flags: str, **environment: str) -> str:
    """Run a script, without any guard, in a process of its own; give what it printed."""
    path = tmp_path / "script.py"
    path.write_text(textwrap.dedent(source), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, *flags, str(path), "an argument"],
        check=False,
        capture_output=True,
        text=True,
        timeout=LIMIT,
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


VARIABLE: contextvars.ContextVar[Any] = contextvars.ContextVar("VARIABLE", default="unset")


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A module that workers can import, with a context variable and predictors that read it."""
    source = """
        from contextvars import ContextVar

        VARIABLE = ContextVar("VARIABLE", default="unset")
        OTHER = ContextVar("OTHER", default="unset")
        NUMBER = 3
        LATER = None

        def read():
            before = VARIABLE.get(), OTHER.get()
            VARIABLE.set("changed in the worker")
            return before
        """
    (tmp_path / "variables_home.py").write_text(textwrap.dedent(source), encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(engine.runners.process.runner, "_names", {})
    yield importlib.import_module("variables_home")
    sys.modules.pop("variables_home", None)


def test_context_variables_travel_if_they_were_named_and_never_come_back(home: Any) -> None:
    with Engine(discover=False, workers=1) as muna:

        def call() -> tuple[Any, Any]:
            home.VARIABLE.set({"id": 7})
            home.OTHER.set("stays here")
            stream = muna.predictions.stream(home.read, runner="process")
            home.VARIABLE.set("after the call")
            [seen] = stream.values()
            return seen, home.VARIABLE.get()

        assert contextvars.copy_context().run(call) == (("unset", "unset"), "after the call")
        carry("variables_home:VARIABLE")
        assert contextvars.copy_context().run(call) == (({"id": 7}, "unset"), "after the call")
        assert muna.predictions.create(home.read, runner="process").value == ("unset", "unset")

        def call_with_a_lock() -> None:
            home.VARIABLE.set(threading.Lock())
            with pytest.raises(PayloadError, match="the context variable variables_home:VARIABLE of type lock"):
                muna.predictions.create(home.read, runner="process")

        contextvars.copy_context().run(call_with_a_lock)
        assert muna.predictions.create(home.read, runner="process").value == ("unset", "unset")


def test_only_a_context_variable_that_there_is_can_be_named(home: Any) -> None:
    with pytest.raises(ImportError):
        carry("variables_home:NOWHERE")
    with pytest.raises(TypeError, match="variables_home:NUMBER is no ContextVar but 3 of type int: name one as"):
        carry("variables_home:NUMBER")
    with pytest.raises(TypeError, match="is no ContextVar but None of type NoneType: nothing is there yet"):
        carry("variables_home:LATER")


def test_a_context_variable_that_an_object_keeps_is_named_in_the_error_and_travels_by_that_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with the runtime context of OpenTelemetry."""
    source = """
        from contextvars import ContextVar

        class Keeper:
            def __init__(self):
                self.word = "kept"
                self._current = ContextVar("current", default="unset")

        KEEPER = Keeper()

        def read_kept():
            return KEEPER._current.get()
        """
    (tmp_path / "keepers_home.py").write_text(textwrap.dedent(source), encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(engine.runners.process.runner, "_names", {})
    home: Any = importlib.import_module("keepers_home")
    with pytest.raises(TypeError) as raised:
        carry("keepers_home:KEEPER")
    name = "keepers_home:KEEPER._current"
    assert f"of type Keeper: name what it keeps, '{name}'" in str(raised.value)
    carry(name)
    with Engine(discover=False, workers=1) as muna:

        def call() -> Any:
            home.KEEPER._current.set("a span")
            return muna.predictions.create(home.read_kept, runner="process").value

        assert contextvars.copy_context().run(call) == "a span"
    sys.modules.pop("keepers_home", None)


def test_a_worker_knows_which_call_it_serves() -> None:
    def look() -> Any:
        call = current_call()
        return None if call is None else (call.id, call.tag, call.runner, call.created, call.stopping)

    with Engine(discover=False, workers=1) as muna:
        stream = muna.predictions.stream(look, runner="process")
        prediction = next(stream)
        wanted = (prediction.id, prediction.tag, "process", prediction.created, False)
        assert prediction.value == wanted


def test_what_the_engine_in_a_worker_warns_of_is_in_the_log_of_the_engine_here(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def leave_a_stream_with_a_fault() -> int:
        def spoilt() -> Iterator[int]:
            try:
                yield 1
            finally:
                raise OSError("in clean-up")

        with Engine(discover=False) as inner:
            stream = inner.predictions.stream(spoilt)
            next(stream)
            stream.cancel()
        return os.getpid()

    with caplog.at_level(logging.WARNING, logger="engine"), Engine(discover=False, workers=1) as muna:
        pid = muna.predictions.create(leave_a_stream_with_a_fault, runner="process").value
    [told] = [record.getMessage() for record in caplog.records]
    assert told.startswith(f"worker {pid}: error while a stream was being cancelled: OSError: in clean-up")


def test_a_call_that_waits_long_for_a_worker_says_who_has_it(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine.runners.slots, "_PATIENCE", 0.05)
    told = threading.Event()

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            told.set()

    listener = Listener()
    logging.getLogger("engine").addHandler(listener)
    try:
        with caplog.at_level(logging.WARNING, logger="engine"), Engine(discover=False, workers=1) as muna:
            with muna.predictions.stream(forever, runner="process") as stream:
                next(stream)
                waiting = threading.Thread(target=muna.predictions.create, args=(one,), kwargs={"runner": "process"})
                waiting.start()
                assert told.wait(LIMIT)
            waiting.join(LIMIT)
    finally:
        logging.getLogger("engine").removeHandler(listener)
    [message] = {record.getMessage() for record in caplog.records}
    assert message == (
        f"the only worker has been waited for during 0 s; held by the open prediction {stream.tag} {stream.id}; if "
        "that is too long, let the engine have more of them: Engine(workers=...)"
    )


def forever() -> Iterator[int]:
    while True:
        yield 1


def one() -> int:
    return 1


# Where no worker can be started.


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
    done = subprocess.run([str(program)], check=False, capture_output=True, text=True, timeout=LIMIT)
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


# How a worker ended, where the system does not tell this process.


def is_killed() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def ignore(monkeypatch: pytest.MonkeyPatch) -> Callable[[], object]:
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    return lambda: signal.signal(signal.SIGCHLD, before)


def reap_first(monkeypatch: pytest.MonkeyPatch) -> Callable[[], object]:
    waitid = os.waitid

    def reap(kind: int, number: int, options: int) -> Any:
        found = waitid(kind, number, options)
        if found is not None:
            os.waitpid(number, 0)
            return waitid(kind, number, options)
        return None

    monkeypatch.setattr(os, "waitid", reap)
    return monkeypatch.undo


@pytest.mark.parametrize("elsewhere", [ignore, reap_first])
def test_where_another_reaps_a_killed_worker_its_loss_does_not_claim_an_exit_code(
    elsewhere: Callable[[pytest.MonkeyPatch], Callable[[], object]], monkeypatch: pytest.MonkeyPatch
) -> None:
    with Engine(discover=False, workers=1) as muna:
        undo = elsewhere(monkeypatch)
        try:
            with pytest.raises(WorkerLostError) as raised:
                muna.predictions.create(is_killed, runner="process")
        finally:
            undo()
        assert raised.value.reason.startswith("how it ended is not known, for this program ignores SIGCHLD")
