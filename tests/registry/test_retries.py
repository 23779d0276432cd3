"""What failed, or was not there, is looked for again: when, and when not."""

import math
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from engine._errors import PredictorNotFoundError
from engine._predictors.predictor import Predictor
from engine._registry import plugins
from engine._registry.registry import Registry
from tests.registry.conftest import HALF_WAY, Clock, Site, ask_in_vain, problems_of


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

    monkeypatch.setattr(plugins, "installed", installed)
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
