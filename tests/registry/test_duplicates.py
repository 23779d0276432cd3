"""Tags that several distributions claim, and plugins that are blocked."""

import sys
from pathlib import Path

import pytest

from engine._errors import DuplicatePredictorError
from engine._registry.registry import Registry
from engine._registry.sources import PREDICTORS
from tests.registry.conftest import GOOD, Site, offering, problems_of


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
