"""Where and with what workers start, what of the caller's context travels to them, and what of theirs comes back."""

from __future__ import annotations

import contextvars
import importlib
import logging
import os
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest

import engine._slots
import engine.runners.process
from engine import Engine, PayloadError, current_call
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

        def read():
            before = VARIABLE.get(), OTHER.get()
            VARIABLE.set("changed in the worker")
            return before
        """
    (tmp_path / "variables_home.py").write_text(textwrap.dedent(source), encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(engine.runners.process, "_names", {})
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
    with pytest.raises(TypeError, match="variables_home:NUMBER is no ContextVar"):
        carry("variables_home:NUMBER")


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
    monkeypatch.setattr(engine._slots, "_PATIENCE", 0.05)
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
