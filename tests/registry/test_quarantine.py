"""Plugins that fail are out, reported once, and leave nothing behind; what else there is works."""

import importlib
import importlib.metadata
import logging
import sys
from collections.abc import Iterator
from importlib.abc import MetaPathFinder
from pathlib import Path
from types import SimpleNamespace

import pytest

from engine._errors import PluginError, PredictorNotFoundError
from engine._registry.registry import Registry
from engine._registry.sources import PLUGINS, PREDICTORS
from tests.registry.conftest import GOOD, HALF_WAY, Clock, Site, problems_of


@pytest.mark.fault(111)
@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("import nowhere_to_be_found", "ModuleNotFoundError: No module named 'nowhere_to_be_found'"),
        ("def broken(:", "SyntaxError: invalid syntax (fake_bad.py, line 1)"),
        ("raise SystemExit(3)", "SystemExit: 3"),
        ("raise RuntimeError('first\\nsecond \\x1b[31m \\ud800')", "RuntimeError: first second \\x1b[31m \\ud800"),
        ("class E(Exception):\n  def __str__(self): raise ValueError\nraise E", "E: unrepresentable"),
        ("1 / 0", "ZeroDivisionError: division by zero"),
    ],
    ids=["import-error", "syntax-error", "system-exit", "hostile-text", "hostile-str", "any-other"],
)
def test_a_plugin_that_fails_at_import_is_reported_once_and_the_others_load(
    site: Site, caplog: pytest.LogCaptureFixture, source: str, reason: str
) -> None:
    site.plugin("bad", source)
    site.plugin("good", GOOD)
    registry = Registry()

    with caplog.at_level(logging.WARNING, logger="engine"):
        assert "@good/one" in registry
        assert "@bad/one" not in registry
        with pytest.raises(PredictorNotFoundError):
            registry["@bad/one"]

    (problem,) = problems_of(registry, "fake-bad")
    assert (problem.entry_point, problem.value, problem.group) == ("bad", "fake_bad", PLUGINS)
    assert problem.reason == reason
    assert problem.traceback.startswith("Traceback (most recent call last):")
    assert problem.traceback.isascii()
    (line,) = [record.getMessage() for record in caplog.records if "fake-bad" in record.getMessage()]
    assert line == f"'bad' of fake-bad could not be used: {reason}"


@pytest.mark.fault(111)
def test_a_missing_tag_points_at_the_plugins_that_failed(site: Site) -> None:
    site.plugin("bad", "1 / 0")

    with pytest.raises(PredictorNotFoundError) as caught:
        Registry()["@bad/one"]

    assert "It may belong to a plugin that failed: 'bad' of fake-bad" in "".join(caught.value.__notes__)
    assert isinstance(caught.value.__cause__, PluginError)
    assert "1 / 0" in caught.value.__cause__.traceback


@pytest.mark.fault(111)
def test_an_interrupt_during_an_import_goes_through_and_the_next_use_finds_everything(site: Site) -> None:
    site.plugin("bad", "raise KeyboardInterrupt")
    site.plugin("good", GOOD)
    registry = Registry()

    with pytest.raises(KeyboardInterrupt):
        len(registry)
    site.write("fake_bad", GOOD.replace("@good/one", "@bad/recovered"))

    assert {"@good/one", "@bad/recovered"} <= set(registry)


@pytest.mark.fault(112)
@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("fake_missing", "No module named 'fake_missing'"),
        ("fake_present:absent", "module 'fake_present' has no attribute 'absent'"),
        ("fake_present:a.b", "has no attribute 'a'"),
        ("not a module", "written 'module' or 'module:name'"),
        ("fake_present:", "written 'module' or 'module:name'"),
        ("../fake_present", "written 'module' or 'module:name'"),
    ],
)
def test_a_plugin_whose_entry_point_names_nothing_is_reported(site: Site, value: str, reason: str) -> None:
    site.write("fake_present", "")
    site.install("fake-bad", plugins={"bad": value})
    site.plugin("good", GOOD)
    registry = Registry()

    assert "@good/one" in registry
    (problem,) = problems_of(registry, "fake-bad")
    assert reason in problem.reason
    assert problem.value == value


@pytest.mark.fault(112)
@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("@fake/bad", "only_a_module", "'module:name'"),
        ("@fake/bad", "a:b:c", "'module:name'"),
        ("@fake/bad", "a b:c", "'module:name'"),
        ("@fake/bad", "a:1", "'module:name'"),
        ("@Fake/Bad", "a:b", "is not a tag"),
        ("fake", "a:b", "is not a tag"),
        ("@fake/b\x1bd", "a:b", "is not a tag"),
    ],
)
def test_an_entry_point_that_is_no_predictor_is_reported_and_its_neighbours_work(
    site: Site, name: str, value: str, reason: str
) -> None:
    site.install("fake-bad", predictors={name: value, "@fake/good": "a:b"})
    registry = Registry()

    assert "@fake/good" in registry
    (problem,) = problems_of(registry, "fake-bad")
    assert reason in problem.reason
    assert str(problem).isascii()
    assert str(problem).isprintable()


@pytest.mark.fault(112)
def test_the_tag_of_an_entry_point_without_a_target_raises_when_asked_for(site: Site) -> None:
    site.install("fake-bad", predictors={"@fake/bad": "only_a_module"})

    with pytest.raises(PluginError, match=r"'@fake/bad' of fake-bad could not be used: .*'module:name'"):
        Registry()["@fake/bad"]


@pytest.mark.fault(112)
@pytest.mark.parametrize("value", ["fake_missing:f", "fake_present:absent"])
def test_a_predictor_whose_target_does_not_exist_fails_when_it_is_loaded(site: Site, value: str) -> None:
    site.write("fake_present", "")
    site.install("fake-bad", predictors={"@fake/bad": value, "@fake/good": "a:b"})
    registry = Registry()

    assert {"@fake/bad", "@fake/good"} <= set(registry)
    with pytest.raises(ImportError, match=r"fake_missing|absent"):
        registry["@fake/bad"].load()


@pytest.mark.fault(113)
def test_a_plugin_that_fails_half_way_leaves_no_trace(site: Site, switch: SimpleNamespace) -> None:
    site.plugin("half", HALF_WAY)
    site.plugin("good", GOOD)
    registry = Registry()

    assert [tag for tag in registry if tag.startswith("@half/")] == []
    assert "half-way" not in registry.runners()
    assert sys.modules["fake_half"] not in [impl.plugin for impl in registry.hook.engine_runners.get_hookimpls()]
    (problem,) = problems_of(registry, "fake-half")
    assert problem.claims == ("@half/one", "@half/two")
    with pytest.raises(PluginError, match="the third is missing") as caught:
        registry["@half/one"]
    assert "raise LookupError" in caught.value.traceback
    assert "@good/one" in registry


@pytest.mark.parametrize(
    "text",
    [
        "{here}\n@fake/bad\n@fake/good = a:b\n",
        "{here}\n@fake/good = a:b\n@fake/bad = \n",
        "{here}\n= a:b\n@fake/good = a:b\n",
        "{here}\n@fake/bad = a:b\xff\n@fake/good = a:b\n",
        "{here}\n@fake/bad\xff = a:b\n\n#\xff\n@fake/good = a:b\n[other]\n\xff\n",
    ],
    ids=["no-value", "empty-value", "no-name", "not-utf-8", "name-not-utf-8"],
)
@pytest.mark.fault(118)
def test_one_bad_entry_point_is_a_problem_and_its_neighbours_work(site: Site, clock: Clock, text: str) -> None:
    site.install("fake-bad", text=text.format(here=f"[{PREDICTORS}]").encode("latin-1"))
    site.install("fake-good", predictors={"@fake/other": "a:b"})
    registry = Registry()

    assert {"@fake/good", "@fake/other"} <= set(registry)
    (problem,) = problems_of(registry, "fake-bad")
    assert str(problem).isascii()

    entry_points = f"[{PREDICTORS}]\n@fake/bad = a:b\n@fake/good = a:b"
    (site.folder / "fake_bad-1.0.dist-info" / "entry_points.txt").write_text(entry_points)
    clock.pass_by(1)
    assert registry["@fake/bad"].target == "a:b"
    assert problems_of(registry, "fake-bad") == []


def test_one_bad_plugin_entry_is_a_problem_and_its_neighbours_work(site: Site) -> None:
    site.write("fake_good", GOOD)
    site.install("fake-good", text=f"[{PLUGINS}]\nbad\ngood = fake_good\n")
    registry = Registry()

    assert registry["@good/one"].target == "nowhere:one"
    (problem,) = problems_of(registry, "fake-good")
    assert (problem.entry_point, problem.group) == ("bad", PLUGINS)
    assert "is written 'name = value', not 'bad'" in problem.reason


@pytest.mark.fault(118)
@pytest.mark.parametrize("text", [b"[console_scripts]\nno value\n", b"\xff\xfe"])
def test_broken_metadata_that_does_not_concern_the_engine_is_no_problem_of_its(site: Site, text: bytes) -> None:
    site.install("fake-bad", text=text)

    assert problems_of(Registry(), "fake-bad") == []


@pytest.mark.fault(118)
def test_a_finder_that_fails_is_reported_and_what_was_found_before_it_works(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Finder(MetaPathFinder):
        def find_spec(self, *arguments: object) -> None:
            return None

        def find_distributions(self, context: object = None) -> Iterator[object]:
            raise OSError("no disk today")

    site.install("fake-good", predictors={"@fake/good": "a:b"})
    monkeypatch.setattr(sys, "meta_path", [*sys.meta_path, Finder()])
    registry = Registry()

    assert "@fake/good" in registry
    assert [problem.reason for problem in registry.problems if problem.entry_point == "sys.meta_path"] == [
        "OSError: no disk today"
    ]


@pytest.mark.fault(118)
def test_a_distribution_that_cannot_even_be_named_is_reported_and_the_others_work(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Nameless(importlib.metadata.Distribution):
        def read_text(self, filename: str) -> str:
            raise OSError("no disk today")

        def locate_file(self, path: object) -> Path:
            raise NotImplementedError  # abstract in the base class, and nothing here asks for a file

    class Finder(MetaPathFinder):
        def find_spec(self, *arguments: object) -> None:
            return None

        def find_distributions(self, context: object = None) -> Iterator[importlib.metadata.Distribution]:
            yield Nameless()

    site.install("fake-good", predictors={"@fake/good": "a:b"})
    monkeypatch.setattr(sys, "meta_path", [Finder(), *sys.meta_path])
    registry = Registry()

    assert "@fake/good" in registry
    assert [problem.reason for problem in registry.problems if problem.entry_point == "sys.path"] == [
        "OSError: no disk today"
    ]
