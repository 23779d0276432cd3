"""What starting costs: importing the engine, and the first calls, import nothing that they do not need."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap

import pytest

# Slow to import, or of no use to a call in the caller's own thread.
HEAVY = {
    "asyncio",
    "cloudpickle",
    "concurrent.futures",
    "ctypes",
    "datetime",
    "importlib.metadata",
    "logging",
    "multiprocessing",
    "numpy",
    "pickle",
    "pluggy",
    "pydantic",
    "rich",
    "socket",
    "ssl",
    "subprocess",
    "tempfile",
    "traceback",
    "unittest",
}


def modules_after(source: str) -> set[str]:
    """The modules a fresh interpreter has imported at the end of a script, without those it starts with."""
    script = "\n".join(
        (
            "import sys; before = set(sys.modules)",
            textwrap.dedent(source),
            "names = sorted(set(sys.modules) - before); import json; print(json.dumps(names))",
        )
    )
    # Isolated and without `site`'s extras, so that what the environment imports at start is not counted.
    done = subprocess.run([sys.executable, "-I", "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert done.stderr == ""
    return set(json.loads(done.stdout))


def test_importing_the_engine_imports_nothing_heavy_and_no_machinery_before_it_is_used() -> None:
    found = modules_after("import engine")
    assert not found & HEAVY
    assert not found & {"engine._engine", "engine._policies.executor", "engine._registry.registry"}
    assert "engine._engine" in modules_after("import engine; engine.Engine")


def test_what_a_worker_runs_needs_no_engine() -> None:
    found = modules_after("import engine._worker.main")
    assert not found & {
        "engine._engine",
        "engine._policies.executor",
        "engine._registry.registry",
        "engine._registry.plugins",
        "pluggy",
    }
    assert not found & {"asyncio", "cloudpickle", "logging", "subprocess", "multiprocessing"}


def test_importing_the_public_names_imports_nothing_heavy() -> None:
    found = modules_after("from engine import Engine, Predictor, Prediction, predictor, current_call, fold")
    assert "engine" in found
    assert not found & HEAVY


def test_only_asking_for_the_hook_marker_imports_pluggy() -> None:
    assert "pluggy" in modules_after("from engine import hookimpl")


def test_marking_a_predictor_imports_nothing_heavy() -> None:
    found = modules_after(
        """
        from engine import predictor

        @predictor("@tests/shout")
        def shout(text: str) -> str:
            return text.upper()
        """
    )
    assert not found & HEAVY


@pytest.mark.parametrize(
    "call",
    [
        "assert muna.predictions.create(returns, {'name': 'Ada'}).value == 'Ada'",
        "assert muna.predictions.create(yields, {'name': 'Ada'}).value == 'Ada'",
        "assert [p.value for p in muna.predictions.stream(yields, {'name': 'Ada'})] == ['hello', 'Ada']",
        "assert muna.predictions.create(Model, {'name': 'Ada'}).value == 'Ada'",
        "assert muna.predictions.create(returns, {'name': 'Ada'}, runner='thread').value == 'Ada'",
        "assert list(muna.predictions.stream(yields, {'name': 'Ada'}, runner='thread').values()) == ['hello', 'Ada']",
    ],
    ids=["create", "create-yield", "stream", "class", "create-thread", "stream-thread"],
)
def test_a_sync_call_of_a_sync_predictor_imports_no_asyncio_and_no_plugin_machinery(call: str) -> None:
    found = modules_after(
        f"""
        from engine import Engine

        def returns(name):
            return name

        def yields(name):
            yield "hello"
            yield name

        class Model:
            def setup(self):
                self.ready = True
            def predict(self, name):
                return name

        with Engine() as muna:
            {call}
        """
    )
    unwanted = {"asyncio", "cloudpickle", "importlib.metadata", "numpy", "pydantic", "multiprocessing", "subprocess"}
    assert not found & unwanted


def test_a_registered_predictor_is_called_without_asyncio() -> None:
    found = modules_after(
        """
        from engine import Engine

        with Engine(discover=False) as muna:
            muna.predictors.register("@tests/shout", lambda text: text.upper())
            assert muna.predictions.create("@tests/shout", {"text": "hi"}).value == "HI"
        """
    )
    assert not found & {"asyncio", "cloudpickle", "numpy", "pydantic", "multiprocessing", "subprocess"}


def test_discovery_imports_no_predictor_of_a_plugin() -> None:
    found = modules_after(
        """
        from engine import Engine

        with Engine() as muna:
            list(muna.predictors)
        """
    )
    assert "importlib.metadata" in found  # only now are installed plugins looked for
    assert not found & {"asyncio", "cloudpickle", "engine_muna", "numpy"}


def test_an_async_predictor_is_what_brings_asyncio() -> None:
    found = modules_after(
        """
        from engine import Engine

        async def shout(text):
            return text.upper()

        with Engine(discover=False) as muna:
            assert muna.predictions.create(shout, {"text": "hi"}).value == "HI"
        """
    )
    assert "asyncio" in found
    assert "cloudpickle" not in found


def test_the_command_line_has_nothing_to_measure_or_draw_with_before_it_is_asked_to() -> None:
    found = modules_after(
        """
        import contextlib, io

        from engine.cli import main

        with contextlib.redirect_stdout(io.StringIO()):
            assert main(["--help"]) == 0
            assert main(["bench", "--help"]) == 0
        """
    )
    assert "engine.cli._arguments" in found
    assert not found & {"statistics", "html", "importlib.metadata", "traceback"}
    assert not found & {"engine.cli._charts", "engine.cli._numbers", "engine.cli._measure"}
