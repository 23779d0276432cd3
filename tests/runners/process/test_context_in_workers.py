"""What of the caller's context travels to workers: context variables that were named, and the call."""

from __future__ import annotations

import contextvars
import importlib
import sys
import textwrap
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import engine.runners.process.variables
from engine import Engine, PayloadError, current_call
from engine.runners import carry

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
    monkeypatch.setattr(engine.runners.process.variables, "named", {})
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
    monkeypatch.setattr(engine.runners.process.variables, "named", {})
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
