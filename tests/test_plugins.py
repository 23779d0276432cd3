"""Plugins that are found, plugins that fail, and what is left of the registry then.

Distributions are made of a folder with the few files an installer would write, so nothing is installed; predictors
that really are installed may be there too, and no test here minds them.
"""

import importlib
import importlib.metadata
import logging
import math
import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from importlib.abc import MetaPathFinder
from pathlib import Path
from textwrap import dedent
from types import ModuleType, SimpleNamespace

import attrs
import pytest

from engine._errors import DuplicatePredictorError, PluginError, PredictorNotFoundError
from engine._predictors.predictor import Predictor
from engine._registry.registry import Registry
from engine._registry.sources import PLUGINS, PREDICTORS, Problem
from engine.hookspecs import hookimpl

ROOT = Path(__file__).parent.parent
PATIENCE = 20.0  # seconds until a gate that does not open fails its test

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
    monkeypatch.setattr("engine._registry.plugins.monotonic", lambda: clock.now)
    monkeypatch.setattr("engine._registry.sources.folders_now", lambda: [("folder", (clock.changed,))])
    return clock


def problems_of(registry: Registry, distribution: str) -> list[Problem]:
    return [problem for problem in registry.problems if problem.distribution == distribution]


# Discovery


@pytest.mark.fault(120)
def test_listing_two_hundred_predictors_imports_none_of_their_packages(site: Site) -> None:
    for number in range(200):
        site.write(f"package_{number}", "def predict(): return 1")
        site.install(f"fake-{number}", predictors={f"@fake/p{number}": f"package_{number}:predict"})
    registry = Registry()

    listed = [predictor for tag, predictor in registry.items() if tag.startswith("@fake/")]

    assert len(listed) == 200
    assert {name for name in sys.modules if name.startswith("package_")} == set()
    assert registry["@fake/p7"].load()() == 1
    assert {name for name in sys.modules if name.startswith("package_")} == {"package_7"}


@pytest.mark.fault(120)
def test_importing_the_registry_reads_no_metadata_and_making_one_neither() -> None:
    source = """
        import sys
        from engine._registry.registry import Registry
        registry = Registry([], block=["x"])
        registry.register("@me/x", print)
        loaded = {"importlib.metadata", "difflib", "logging"} & set(sys.modules)
        assert not loaded, loaded
        assert "@me/x" in registry
        assert "importlib.metadata" in sys.modules
    """
    subprocess.run([sys.executable, "-c", dedent(source)], cwd=ROOT, check=True, timeout=PATIENCE)


def test_plugins_are_imported_at_the_first_use_and_not_before(site: Site) -> None:
    site.plugin("good", GOOD)
    registry = Registry()

    assert "fake_good" not in sys.modules
    assert repr(registry) == "<Registry, not read yet>"
    assert "@good/one" in registry
    assert "fake_good" in sys.modules
    assert "Registry of" in repr(registry)


def test_a_registry_told_not_to_discover_finds_no_installed_plugin(site: Site) -> None:
    site.plugin("good", GOOD)
    site.install("fake-eager", predictors={"@fake/eager": "nowhere:eager"})

    assert list(Registry(discover=False)) == []
    assert "fake_good" not in sys.modules


def test_two_registries_share_no_plugin_manager(site: Site) -> None:
    site.plugin("good", GOOD)
    one, other = Registry(), Registry()

    assert one.hook is not other.hook
    assert one["@good/one"] is not other["@good/one"]


@pytest.mark.parametrize("tag", ["@fake/eager", "fake/eager"])
def test_an_entry_point_may_leave_out_the_at_sign(site: Site, tag: str) -> None:
    site.install("fake-eager", predictors={tag: "nowhere:eager"})

    assert Registry()["@fake/eager"].target == "nowhere:eager"


@pytest.mark.parametrize("value", ["a.b:c.d", "a.b : c.d", "a.b:c.d [extra]", "a.b:c.d[one,two]"])
def test_an_entry_point_is_read_as_importlib_reads_it(site: Site, value: str) -> None:
    site.install("fake-eager", predictors={"@fake/eager": value})

    assert Registry()["@fake/eager"].target == "a.b:c.d"


def test_the_source_of_a_predictor_names_distribution_and_version(site: Site) -> None:
    site.install("Fake-Eager", predictors={"@fake/eager": "nowhere:eager"}, version="2.1")
    site.plugin("good", GOOD)
    registry = Registry(plugins=[offering("@given/one")])

    assert registry.source("@fake/eager") == "Fake-Eager 2.1 (entry point)"
    assert registry.source("good/one") == "fake-good 1.0 (plugin good)"
    assert registry.source("@given/one") == "Offering (plugin)"


def test_a_distribution_without_metadata_still_offers_its_predictors(site: Site) -> None:
    site.install("fake-bare", predictors={"@fake/bare": "nowhere:bare"}, metadata=False)
    registry = Registry()

    assert registry["@fake/bare"].target == "nowhere:bare"
    assert registry.source("@fake/bare") == "fake-bare of unknown version (entry point)"


def test_a_distribution_whose_metadata_cannot_be_read_still_offers_its_predictors(site: Site) -> None:
    site.install("fake-bare", predictors={"@fake/bare": "nowhere:bare"})
    (site.folder / "fake_bare-1.0.dist-info" / "METADATA").write_bytes(b"Name: \xff")

    assert Registry().source("@fake/bare") == "fake-bare of unknown version (entry point)"


# Duplicates


@pytest.mark.fault(118)
def test_a_shadowed_copy_of_a_distribution_is_not_counted(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shadowed = Site(tmp_path / "shadowed")
    site.install("Fake-Twice", predictors={"@fake/twice": "new:target"}, version="2.0")
    shadowed.install("fake.twice", predictors={"@fake/twice": "old:target", "@fake/gone": "old:gone"})
    for folder in (shadowed.folder, site.folder, site.folder):  # the same folder twice is no second copy either
        monkeypatch.syspath_prepend(folder)
    registry = Registry()

    assert registry["@fake/twice"].target == "new:target"
    assert "@fake/gone" not in registry
    assert registry.source("@fake/twice") == "Fake-Twice 2.0 (entry point)"


@pytest.mark.fault(118)
def test_a_first_copy_without_entry_points_hides_the_second_all_the_same(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = Site(tmp_path / "first")
    first.install("fake-twice", text="[console_scripts]\nrun = a:b\n", version="2.0")
    site.install("fake-twice", predictors={"@fake/twice": "old:target"})
    monkeypatch.syspath_prepend(first.folder)

    assert "@fake/twice" not in Registry()


def claim_by_entry_point(site: Site, name: str) -> None:
    site.install(f"fake-{name}", predictors={"@fake/both": f"package_{name}:f", f"@fake/{name}": f"package_{name}:f"})


def claim_by_plugin(site: Site, name: str) -> None:
    offers = ", ".join(f'Predictor("@fake/{tag}", "package_{name}:f")' for tag in ("both", name))
    site.plugin(name, GOOD.replace('yield Predictor("@good/one", "nowhere:one")', f"return [{offers}]"))


@pytest.mark.fault(114)
@pytest.mark.parametrize("first", [claim_by_entry_point, claim_by_plugin])
@pytest.mark.parametrize("second", [claim_by_entry_point, claim_by_plugin])
@pytest.mark.parametrize("names", ["ab", "ba", "abc", "cab", "bca"])
def test_a_tag_that_several_distributions_claim_belongs_to_none_whatever_the_order(
    site: Site, monkeypatch: pytest.MonkeyPatch, names: str, first: object, second: object
) -> None:
    for name, claim in zip(names, [first, second, second], strict=False):
        folder = Site(site.folder.with_name(f"site-{name}"))
        assert callable(claim)
        claim(folder, name)
        monkeypatch.syspath_prepend(folder.folder)
    registry = Registry()

    with pytest.raises(DuplicatePredictorError, match=r"block one by name") as caught:
        registry["fake/both"]
    assert [source.split()[0] for source in caught.value.sources] == [f"fake-{name}" for name in sorted(names)]
    assert "@fake/both" not in registry
    assert "@fake/both" not in list(registry)
    assert {f"@fake/{name}" for name in names} <= {tag for tag, _ in registry.items()}
    (problem,) = [problem for problem in registry.problems if problem.entry_point == "@fake/both"]
    assert problem.distribution == ", ".join(f"fake-{name}" for name in sorted(names))


def test_one_target_under_one_tag_twice_in_one_distribution_is_one_predictor(site: Site) -> None:
    site.write("fake_both", GOOD.replace("@good/one", "@fake/one"))
    site.install("fake-both", predictors={"@fake/one": "nowhere:one"}, plugins={"both": "fake_both"})

    assert Registry()["@fake/one"].target == "nowhere:one"


def test_two_targets_under_one_tag_in_one_distribution_are_told_apart_by_name(site: Site) -> None:
    site.install("fake-two", text=f"[{PREDICTORS}]\n@fake/two = a:f\n@fake/two = b:f\n@fake/two = b:f\n")

    with pytest.raises(DuplicatePredictorError) as caught:
        Registry()["@fake/two"]
    assert caught.value.sources == ("fake-two 1.0 (entry point) as a:f", "fake-two 1.0 (entry point) as b:f")


def test_a_duplicate_goes_when_one_distribution_is_blocked(site: Site) -> None:
    claim_by_entry_point(site, "a")
    claim_by_entry_point(site, "b")

    assert Registry(block=["fake-a"])["@fake/both"].target == "package_b:f"


# Blocking


@pytest.mark.parametrize(
    "block", ["good", "fake-good", "Fake_Good", ["good"], ["x", "FAKE.good"], "x, good", ("fake--good",)]
)
@pytest.mark.parametrize("where", ["argument", "environment"])
def test_a_plugin_is_blocked_by_its_name_or_its_distributions(
    site: Site, monkeypatch: pytest.MonkeyPatch, block: str | list[str], where: str
) -> None:
    site.plugin("good", GOOD)
    if where == "environment":
        monkeypatch.setenv("PREDICTOR_ENGINE_BLOCK", block if isinstance(block, str) else ",".join(block))
    registry = Registry(block=block if where == "argument" else ())

    assert "@good/one" not in registry
    assert problems_of(registry, "fake-good") == []
    assert "fake_good" not in sys.modules


def test_one_entry_point_can_be_blocked_and_the_others_stay(site: Site) -> None:
    site.install("fake-two", predictors={"@fake/a.b": "m:a", "@fake/a-b": "m:b"})

    assert [tag for tag in Registry(block=["@fake/a.b"]) if tag.startswith("@fake/")] == ["@fake/a-b"]


def test_a_given_plugin_can_be_blocked_too() -> None:
    assert list(Registry(discover=False, plugins=[offering("@given/one")], block=["Offering"])) == []


# Quarantine


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


@pytest.mark.fault(113)
@pytest.mark.parametrize("tag", ["@half/two", "@half/three"])
def test_a_failure_is_tried_again_when_a_tag_is_missing(
    site: Site, switch: SimpleNamespace, clock: Clock, tag: str
) -> None:
    site.plugin("half", HALF_WAY)
    registry = Registry()
    assert tag not in registry
    switch.is_broken = False
    clock.pass_by(1)

    assert registry[tag].tag == tag
    assert "half-way" in registry.runners()
    assert problems_of(registry, "fake-half") == []


COUNTED = "import fake_count\nfake_count.starts.append(1)\n1 / 0"


def ask_in_vain(registry: Registry, times: int = 3) -> None:
    for number in range(times):
        with pytest.raises(PredictorNotFoundError):
            registry[f"@bad/number-{number}"]


@pytest.mark.fault(118)
def test_a_failure_is_tried_again_after_pauses_that_double_up_to_a_minute(
    site: Site, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.write("fake_count", "starts = []")
    site.plugin("bad", COUNTED)
    registry = Registry([Predictor("@me/known", print)])
    monkeypatch.setattr("engine._registry.sources._COARSEST", math.inf)  # nothing but the failure makes it look again
    assert registry["@me/known"].target is print
    starts = sys.modules["fake_count"].starts

    for times, pause in enumerate([1, 2, 4, 8, 16, 32, 60, 60], start=1):
        clock.pass_by(pause - 0.01)
        ask_in_vain(registry)
        assert len(starts) == times
        clock.pass_by(0.01)
        assert registry["@me/known"].target is print
        assert "@bad/number-0" not in registry
        assert len(starts) == times  # only who asks for a tag that is not there has it tried
        ask_in_vain(registry)
        assert len(starts) == times + 1


@pytest.mark.fault(118)
def test_what_failed_is_tried_at_once_and_soon_again_when_a_folder_has_changed(site: Site, clock: Clock) -> None:
    site.write("fake_count", "starts = []")
    site.plugin("bad", COUNTED)
    registry = Registry()
    len(registry)
    starts = sys.modules["fake_count"].starts
    for times in (2, 3, 4):
        clock.pass_by(60)
        ask_in_vain(registry)
        assert len(starts) == times

    clock.changed += 1
    ask_in_vain(registry)
    assert len(starts) == 5
    clock.pass_by(1)
    ask_in_vain(registry)
    assert len(starts) == 6


@pytest.mark.fault(118)
def test_a_tag_that_is_not_there_is_not_looked_for_where_nothing_changed(
    site: Site, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[float] = []

    def installed(_problems: object) -> dict[str, object]:
        looks.append(clock.now)
        return {}

    monkeypatch.setattr("engine._registry.sources.installed", installed)
    registry = Registry()

    for changed in (1000, 1001):
        looks.clear()
        clock.changed = changed
        began = clock.now
        ask_in_vain(registry)
        clock.pass_by(1.99)
        ask_in_vain(registry)
        assert looks == [began]
        clock.pass_by(0.01)  # once more, for it may have changed again at the same moment by a coarse clock
        ask_in_vain(registry)
        clock.pass_by(3600)
        ask_in_vain(registry)
        assert looks == [began, began + 2]


@pytest.mark.parametrize("how", ["in a folder", "in a new folder"])
def test_what_is_installed_later_is_found_although_nothing_had_failed(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    site.install("fake-first", predictors={"@fake/first": "a:b"})
    os.utime(site.folder, (1e9, 1e9))
    registry = Registry()
    with pytest.raises(PredictorNotFoundError):
        registry["@fake/second"]

    if how == "in a folder":
        site.install("fake-second", predictors={"@fake/second": "a:b"})
        os.utime(site.folder, (2e9, 2e9))  # later, also where a clock is coarse
    else:
        Site(tmp_path / "new").install("fake-second", predictors={"@fake/second": "a:b"})
        monkeypatch.syspath_prepend(tmp_path / "new")

    assert registry["@fake/second"].target == "a:b"
    assert registry["@fake/first"].target == "a:b"


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


# Hooks


class Offering:
    """A plugin object that offers what it was made with."""

    def __init__(self, predictors: object) -> None:
        self.predictors = predictors

    @hookimpl
    def engine_predictors(self) -> object:
        return self.predictors


def offering(*tags: str) -> Offering:
    return Offering([Predictor(tag, print) for tag in tags])


@pytest.mark.parametrize(
    "offered", [None, 7, "@a/b", print, [None], [print], ["@a/b"], [Predictor("@a/b", print), ("@a/c", print)]]
)
@pytest.mark.fault(115)
def test_a_hook_that_gives_anything_but_predictors_offers_nothing(offered: object) -> None:
    registry = Registry(discover=False, plugins=[Offering(offered), offering("@good/one")])

    assert list(registry) == ["@good/one"]
    (problem,) = registry.problems
    assert problem.entry_point == "Offering"
    assert "engine_predictors must give" in problem.reason


def test_hooks_may_give_any_iterable_of_predictors() -> None:
    predictors = [Predictor("@a/x", print), Predictor("@a/y", print)]
    registry = Registry(discover=False, plugins=[Offering(predictor for predictor in predictors)])

    assert list(registry.values()) == predictors
    assert list(Registry(discover=False, plugins=[Offering({predictors[0]: 1})])) == ["@a/x"]


class Misspelt:
    @hookimpl
    def engine_predictor(self) -> list[Predictor]:
        return []


class Unmarked:
    def engine_predictors(self) -> list[Predictor]:
        return []


class UnmarkedAndMisspelt:
    @hookimpl
    def engine_runners(self) -> list[object]:
        return []

    @staticmethod
    def engine_predictorz() -> list[Predictor]:
        return []


class WithArguments:
    @hookimpl
    def engine_predictors(self, registry: object) -> list[Predictor]:
        return []


class Wrapping:
    @hookimpl(wrapper=True)
    def engine_predictors(self) -> Iterator[None]:
        return (yield)


class NoHook:
    pass


@pytest.mark.fault(115)
@pytest.mark.parametrize(
    ("plugin", "reason"),
    [
        (Misspelt(), "'engine_predictor' is no hook; the hooks are engine_predictors,"),
        (Unmarked(), "'engine_predictors' is not marked with @hookimpl"),
        (UnmarkedAndMisspelt(), "'engine_predictorz' is not marked with @hookimpl"),
        (WithArguments(), "Argument(s) {'registry'} are declared in the hookimpl"),
        (Wrapping(), "engine_predictors cannot be wrapped"),
        (NoHook(), "it implements no hook"),
        (Offering, "missing 1 required positional argument: 'self'"),
    ],
    ids=["misspelt", "unmarked", "both", "signature", "wrapper", "none", "class"],
)
def test_a_mistaken_hook_is_a_problem_and_the_plugin_is_out(plugin: object, reason: str) -> None:
    registry = Registry(discover=False, plugins=[plugin, offering("@good/one")])

    assert list(registry) == ["@good/one"]
    (problem,) = registry.problems
    assert reason in problem.reason
    assert "\n" not in problem.reason
    assert all(impl.plugin is not plugin for impl in registry.hook.engine_predictors.get_hookimpls())


def test_a_module_may_import_functions_that_are_named_like_hooks(site: Site) -> None:
    site.write("fake_other", "def engine_of_mine(): ...")
    site.plugin("good", GOOD + "\nfrom fake_other import engine_of_mine\nimport fake_other as engine_something")

    assert "@good/one" in Registry()


def test_a_hook_marked_optional_may_be_unknown() -> None:
    class FromTheFuture(Offering):
        @hookimpl(optionalhook=True)
        def engine_of_tomorrow(self) -> None: ...

    registry = Registry(discover=False, plugins=[FromTheFuture([Predictor("@a/b", print)])])

    assert list(registry) == ["@a/b"]
    assert registry.problems == ()


def test_a_hook_may_have_another_name_in_the_plugin() -> None:
    class Renamed:
        @hookimpl(specname="engine_predictors")
        def engine_all_of_mine(self) -> list[Predictor]:
            return [Predictor("@a/b", print)]

    assert list(Registry(discover=False, plugins=[Renamed()])) == ["@a/b"]


def test_every_hook_shows_an_example_that_names_it() -> None:
    from engine import hookspecs

    hooks = [getattr(hookspecs, name) for name in hookspecs.__all__ if name.startswith("engine_")]

    assert len(hooks) >= 2
    for hook in hooks:
        assert f"def {hook.__name__}(" in hook.__doc__
        assert ">>> @hookimpl" in hook.__doc__


# Plugins given as objects


@pytest.mark.parametrize("plugin", [None, "engine_ray", b"", 7, [], {}, Predictor("@a/b", print)])
def test_what_cannot_be_a_plugin_is_refused_at_once(plugin: object) -> None:
    with pytest.raises(TypeError, match="a plugin is a module or an object with hooks"):
        Registry(plugins=[plugin])


def test_a_module_can_be_given_as_a_plugin(site: Site) -> None:
    site.write("fake_given", GOOD)
    registry = Registry(discover=False, plugins=[importlib.import_module("fake_given")])

    assert registry.source("@good/one") == "fake_given (plugin)"


def test_a_plugin_both_given_and_installed_counts_once(site: Site) -> None:
    site.plugin("good", GOOD)
    module = importlib.import_module("fake_good")
    registry = Registry(plugins=[module, module])

    assert "@good/one" in registry
    assert problems_of(registry, "fake-good") == problems_of(registry, "") == []


def test_a_plugin_object_need_not_be_hashable() -> None:
    @attrs.define
    class Unhashable:
        tag: str

        @hookimpl
        def engine_predictors(self) -> list[Predictor]:
            return [Predictor(self.tag, print)]

    assert list(Registry(discover=False, plugins=[Unhashable("@a/x"), Unhashable("@a/y")])) == ["@a/x", "@a/y"]


# Runners


def runner_plugin(name: object) -> object:
    class Runners:
        @hookimpl
        def engine_runners(self) -> list[object]:
            return [SimpleNamespace(name=name, start=print)]

    return Runners()


def test_runners_are_found_by_name() -> None:
    registry = Registry(discover=False, plugins=[runner_plugin("b"), runner_plugin("a")])

    assert list(registry.runners()) == ["a", "b"]


def test_a_runner_that_two_plugins_offer_is_left_out_and_reported() -> None:
    registry = Registry(discover=False, plugins=[runner_plugin("a"), runner_plugin("a"), runner_plugin("b")])

    assert list(registry.runners()) == ["b"]
    (problem,) = registry.problems
    assert problem.claims == ("a",)
    assert "is offered by" in problem.reason


def test_a_runner_of_a_name_that_is_kept_for_the_engines_own_is_left_out_and_reported() -> None:
    registry = Registry(discover=False, plugins=[runner_plugin("a"), runner_plugin("b")], reserved=["a"])

    assert list(registry.runners()) == ["b"]
    (problem,) = registry.problems
    assert problem.claims == ("a",)
    assert problem.reason.endswith("and the engine has a runner of that name: give it another")


@pytest.mark.parametrize("name", ["", None, 3])
def test_a_runner_without_a_name_is_a_problem(name: object) -> None:
    registry = Registry(discover=False, plugins=[runner_plugin(name)])

    assert registry.runners() == {}
    assert "objects with a name and a start()" in registry.problems[0].reason


# Imports that wait, and threads


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


@pytest.mark.fault(117)
def test_an_import_that_waits_holds_up_only_those_who_need_the_registry(site: Site, gate: SimpleNamespace) -> None:
    site.plugin("gated", GATED)
    registry = Registry()

    with ThreadPoolExecutor(2) as threads:
        try:
            first = threads.submit(len, registry)
            assert gate.reached.wait(PATIENCE)
            registry.register("@me/meanwhile", print)
            assert Registry([Predictor("@me/other", print)], discover=False)["@me/other"].target is print
            second = threads.submit(registry.retrieve, "@me/meanwhile")
            assert not first.done()
            assert not second.done()
        finally:
            gate.go.set()
        assert first.result(PATIENCE) >= 2
        assert second.result(PATIENCE).target is print
    assert "@good/one" in registry


@pytest.mark.fault(117)
def test_while_a_failed_plugin_is_tried_again_every_known_tag_is_had_and_who_misses_one_waits_for_that_try(
    site: Site, gate: SimpleNamespace, clock: Clock
) -> None:
    gate.starts, gate.is_ready = [], False
    site.plugin(
        "gated",
        """
        import fake_gate
        fake_gate.starts.append(1)
        if fake_gate.is_ready:
            fake_gate.reached.set()
            assert fake_gate.go.wait(20)
        1 / 0
        """,
    )
    registry = Registry([Predictor("@me/known", print)])
    assert registry["@me/known"].target is print
    gate.is_ready = True
    clock.pass_by(1)

    with ThreadPoolExecutor(8) as threads:
        try:
            asked = [threads.submit(ask_in_vain, registry) for _ in range(8)]
            assert gate.reached.wait(PATIENCE)
            assert registry["@me/known"].target is print
            assert "@me/unknown" not in registry
            assert registry.register("@me/other", print) is registry["@me/other"]
            assert registry.unregister("@me/other").tag not in list(registry)
            assert not any(each.done() for each in asked)
        finally:
            gate.go.set()
        for each in asked:
            each.result(PATIENCE)
    assert len(gate.starts) == 2


def test_many_threads_that_use_a_registry_first_import_its_plugins_once(site: Site) -> None:
    site.write("fake_count", "starts = []")
    site.plugin("good", "import fake_count\nfake_count.starts.append(1)\n" + GOOD)
    registry, start = Registry(), threading.Barrier(8)

    def use() -> Predictor:
        start.wait(PATIENCE)
        return registry["@good/one"]

    with ThreadPoolExecutor(8) as threads:
        found = [future.result(PATIENCE) for future in [threads.submit(use) for _ in range(8)]]

    assert len(set(found)) == 1
    assert len(sys.modules["fake_count"].starts) == 1


def test_a_plugin_may_use_the_registry_while_it_is_imported(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    registry = Registry([Predictor("@me/first", print)])
    shared = ModuleType("fake_shared")
    shared.registry = registry  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "fake_shared", shared)
    site.plugin(
        "curious",
        """
        from fake_shared import registry
        seen = list(registry), "@me/first" in registry, registry["@me/first"].tag, len(registry.problems)
        registry.register("@me/second", print)
        """
        + GOOD.replace("\n", "\n        "),
    )

    assert {"@me/first", "@me/second", "@good/one"} <= set(registry)
    tags, is_there, tag, _ = sys.modules["fake_curious"].seen
    assert "@me/first" in tags
    assert "@good/one" not in tags
    assert is_there
    assert tag == "@me/first"


@pytest.mark.fault(118)
def test_a_plugin_that_recovers_tells_whoever_kept_a_predictor_it_now_disputes(
    site: Site, switch: SimpleNamespace, clock: Clock
) -> None:
    site.plugin("half", HALF_WAY)
    registry = Registry([Predictor("@half/one", print), Predictor("@me/kept", print)])
    told: list[str] = []
    registry.on_change = told.append
    assert registry["@half/one"].target is print
    switch.is_broken = False
    clock.pass_by(1)

    assert registry["@half/three"].tag == "@half/three"

    assert told == ["@half/one"]
    with pytest.raises(DuplicatePredictorError, match="fake-half"):
        registry["@half/one"]
