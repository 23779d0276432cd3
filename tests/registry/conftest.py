"""Distributions that are not installed, a clock that a test moves, and plugins that say when they may be imported.

Distributions are made of a folder with the few files an installer would write, so nothing is installed; predictors
that really are installed may be there too, and no test here minds them.
"""

import importlib
import importlib.metadata
import sys
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from textwrap import dedent
from types import SimpleNamespace

import attrs
import pytest

from engine._errors import PredictorNotFoundError
from engine._predictors.predictor import Predictor
from engine._registry import plugins, sources
from engine._registry.registry import Registry
from engine._registry.sources import PLUGINS, PREDICTORS, Problem
from engine.hookspecs import hookimpl

GOOD = """
from engine._predictors.predictor import Predictor
from engine.hookspecs import hookimpl

@hookimpl
def engine_predictors():
    yield Predictor("@good/one", "nowhere:one")
"""


@attrs.frozen
class Site:
    """A folder on `sys.path` that stands for `site-packages`."""

    folder: Path

    def install(
        self,
        name: str,
        predictors: Mapping[str, str] | None = None,
        plugins: Mapping[str, str] | None = None,
        *,
        version: str = "1.0",
        text: str | bytes | None = None,
        metadata: bool = True,
    ) -> None:
        """Write the metadata of a distribution with these entry points, or with `text` as they stand."""
        info = self.folder / f"{name.replace('-', '_')}-{version}.dist-info"
        info.mkdir(parents=True)
        if metadata:
            (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        if text is None:
            text = "".join(
                f"[{group}]\n" + "".join(f"{key} = {value}\n" for key, value in (entries or {}).items())
                for group, entries in ((PREDICTORS, predictors), (PLUGINS, plugins))
            )
        (info / "entry_points.txt").write_bytes(text.encode() if isinstance(text, str) else text)
        importlib.invalidate_caches()

    def write(self, module: str, source: str) -> None:
        """Write a module."""
        self.folder.mkdir(exist_ok=True)
        (self.folder / f"{module}.py").write_text(dedent(source))
        importlib.invalidate_caches()

    def plugin(self, name: str, source: str) -> None:
        """Install the distribution `fake-<name>`, whose plugin `<name>` is the module `fake_<name>`."""
        self.write(f"fake_{name}", source)
        self.install(f"fake-{name}", plugins={name: f"fake_{name}"})


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    monkeypatch.syspath_prepend(tmp_path / "site")
    before = set(sys.modules)
    yield Site(tmp_path / "site")
    for name in set(sys.modules) - before:
        if name.startswith(("fake_", "package_")):
            del sys.modules[name]


@attrs.define
class Clock:
    """What the engine takes for the time, and for the moment the folders of `sys.path` were last changed."""

    now: float = 1000.0
    changed: int = 1000

    def pass_by(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    for module in (plugins, sources):
        monkeypatch.setattr(module, "monotonic", lambda: clock.now)
    monkeypatch.setattr("engine._registry.sources.folders_now", lambda: [("folder", (clock.changed,))])
    return clock


def problems_of(registry: Registry, distribution: str) -> list[Problem]:
    return [problem for problem in registry.problems if problem.distribution == distribution]


HALF_WAY = """
import fake_switch
from engine._predictors.predictor import Predictor
from engine.hookspecs import hookimpl

class Runner:
    name = "half-way"
    def start(self, body, channel): ...

@hookimpl
def engine_runners():
    return [Runner()]

@hookimpl
def engine_predictors():
    yield Predictor("@half/one", "nowhere:one")
    yield Predictor("@half/two", "nowhere:two")
    if fake_switch.is_broken:
        raise LookupError("the third is missing")
    yield Predictor("@half/three", "nowhere:three")
"""


@pytest.fixture
def switch(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """What the plugin made of `HALF_WAY` asks whether it is broken."""
    switch = SimpleNamespace(is_broken=True)
    monkeypatch.setitem(sys.modules, "fake_switch", switch)
    return switch


def ask_in_vain(registry: Registry, times: int = 3) -> None:
    for number in range(times):
        with pytest.raises(PredictorNotFoundError):
            registry[f"@bad/number-{number}"]


class Offering:
    """A plugin object that offers what it was made with."""

    def __init__(self, predictors: object) -> None:
        self.predictors = predictors

    @hookimpl
    def engine_predictors(self) -> object:
        return self.predictors


def offering(*tags: str) -> Offering:
    return Offering([Predictor(tag, print) for tag in tags])


GATED = (
    """
import fake_gate
fake_gate.reached.set()
assert fake_gate.go.wait(20)
"""
    + GOOD
)


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[SimpleNamespace]:
    """Two events: `reached` by the plugin made of `GATED`, which then waits for `go`."""
    gate = SimpleNamespace(reached=threading.Event(), go=threading.Event())
    monkeypatch.setitem(sys.modules, "fake_gate", gate)
    yield gate
    gate.go.set()
