"""Plugins whose imports wait: who waits with them, and who does not."""

import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from types import ModuleType, SimpleNamespace

import pytest

from engine._errors import DuplicatePredictorError
from engine._predictors.predictor import Predictor
from engine._registry.registry import Registry
from tests._kit.waits import TIMEOUT
from tests.registry.conftest import GATED, GOOD, HALF_WAY, Clock, Site, ask_in_vain


@pytest.mark.fault(117)
def test_an_import_that_waits_holds_up_only_those_who_need_the_registry(site: Site, gate: SimpleNamespace) -> None:
    site.plugin("gated", GATED)
    registry = Registry()

    with ThreadPoolExecutor(2) as threads:
        try:
            first = threads.submit(len, registry)
            assert gate.reached.wait(TIMEOUT)
            registry.register("@me/meanwhile", print)
            assert Registry([Predictor("@me/other", print)], discover=False)["@me/other"].target is print
            second = threads.submit(registry.retrieve, "@me/meanwhile")
            assert not first.done()
            assert not second.done()
        finally:
            gate.go.set()
        assert first.result(TIMEOUT) >= 2
        assert second.result(TIMEOUT).target is print
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
            assert gate.reached.wait(TIMEOUT)
            assert registry["@me/known"].target is print
            assert "@me/unknown" not in registry
            assert registry.register("@me/other", print) is registry["@me/other"]
            assert registry.unregister("@me/other").tag not in list(registry)
            assert not any(each.done() for each in asked)
        finally:
            gate.go.set()
        for each in asked:
            each.result(TIMEOUT)
    assert len(gate.starts) == 2


def test_many_threads_that_use_a_registry_first_import_its_plugins_once(site: Site) -> None:
    site.write("fake_count", "starts = []")
    site.plugin("good", "import fake_count\nfake_count.starts.append(1)\n" + GOOD)
    registry, start = Registry(), threading.Barrier(8)

    def use() -> Predictor:
        start.wait(TIMEOUT)
        return registry["@good/one"]

    with ThreadPoolExecutor(8) as threads:
        found = [future.result(TIMEOUT) for future in [threads.submit(use) for _ in range(8)]]

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
def test_a_plugin_that_recovers_tells_the_engine_that_kept_a_predictor_it_now_disputes(
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
