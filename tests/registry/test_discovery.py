"""Plugins and entry points that are found, when, and of which distribution."""

import subprocess
import sys
from pathlib import Path
from textwrap import dedent

import pytest

from engine._registry.registry import Registry
from tests._kit.waits import TIMEOUT
from tests.registry.conftest import GOOD, Site, offering

ROOT = Path(__file__).parent.parent.parent


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
    subprocess.run([sys.executable, "-c", dedent(source)], cwd=ROOT, check=True, timeout=TIMEOUT)


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
