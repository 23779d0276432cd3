"""Tags that are taken, replaced or unregistered, and who is told."""

import threading
from collections.abc import Callable
from typing import Any

import pytest

from engine._errors import DuplicatePredictorError, EngineError, InvalidTagError, PluginError, PredictorNotFoundError
from engine._predictors.predictor import Predictor
from tests._kit.internals import leave_as_a_fork_may
from tests._kit.waits import TIMEOUT, joined
from tests.registry.registries import Failing, Offering, one, registry_of, shout, two


def test_a_tag_that_is_taken_is_refused_naming_both_sources() -> None:
    registry = registry_of(Predictor("@me/x", one))

    with pytest.raises(DuplicatePredictorError, match=r":one \(registered\) and by .*:two \(registered\)"):
        registry.register("@me/x", two)
    assert registry["@me/x"].target is one


def test_a_tag_given_twice_to_the_constructor_is_refused() -> None:
    with pytest.raises(DuplicatePredictorError):
        registry_of(Predictor("@me/x", one), Predictor("@me/x", two))


def test_replace_takes_the_tag() -> None:
    registry = registry_of(Predictor("@me/x", one))
    registry.register("@me/x", two, replace=True)

    assert registry["@me/x"].target is two
    assert len(registry) == 1


def cell(result: int) -> Callable[[], int]:
    """Run a notebook cell again: a new function of the same module and name."""

    def predict() -> int:
        return result

    return predict


def test_the_same_module_and_name_replaces_what_it_was() -> None:
    registry = registry_of()
    for result in (1, 2, 3):
        registry.register("@me/x", cell(result))

    assert registry["@me/x"].target() == 3


def test_a_replacement_run_again_keeps_its_standing() -> None:
    registry = registry_of(plugins=[Offering(Predictor("@me/x", one))])
    registry.register("@me/x", cell(1), replace=True)
    registry.register("@me/x", cell(2))

    assert registry["@me/x"].target() == 2


@pytest.mark.parametrize("moment", ["before", "after"])
def test_what_a_plugin_offers_is_not_taken_in_silence(moment: str) -> None:
    """Before plugins are looked for, that is not known; then the tag is refused when it is used."""
    registry = registry_of(plugins=[Offering(Predictor("@me/x", one))])
    if moment == "after":
        assert len(registry) == 1
        with pytest.raises(DuplicatePredictorError, match=r"Offering \(plugin\) and by .*:two"):
            registry.register("@me/x", two)
        assert registry["@me/x"].target is one
    else:
        registry.register("@me/x", two)
        with pytest.raises(DuplicatePredictorError, match=r"Offering \(plugin\) and by .*:two"):
            registry["@me/x"]
        assert [problem.claims for problem in registry.problems] == [("@me/x",)]


@pytest.mark.parametrize("is_read", [False, True], ids=["before-discovery", "after-discovery"])
@pytest.mark.parametrize(
    "plugins",
    [
        [Offering(Predictor("@me/x", one))],
        [Offering(Predictor("@me/x", one)), Offering(Predictor("@me/x", max))],
        [Failing(Predictor("@me/x", one))],
    ],
    ids=["one", "disputed", "broken"],
)
def test_a_replacement_stands_above_plugins(plugins: list[object], is_read: bool) -> None:
    registry = registry_of(plugins=plugins)
    if is_read:
        assert len(list(registry)) <= 1
    registry.register("@me/x", two, replace=True)

    assert registry["@me/x"].target is two
    assert list(registry) == ["@me/x"]
    assert registry.source("@me/x").endswith(":two (registered)")


@pytest.mark.parametrize("is_read", [False, True], ids=["before-discovery", "after-discovery"])
def test_registering_what_a_plugin_offers_anyway_is_no_duplicate(is_read: bool) -> None:
    registry = registry_of(plugins=[Offering(Predictor("@me/x", f"{one.__module__}:one"))])
    if is_read:
        assert len(registry) == 1
    registry.register("@me/x", one)

    assert registry["@me/x"].target is one


def test_the_tag_of_a_plugin_that_failed_is_free() -> None:
    registry = registry_of(plugins=[Failing(Predictor("@me/x", one))])
    with pytest.raises(PluginError, match="half-way"):
        registry["@me/x"]

    registry.register("@me/x", two)
    assert registry["@me/x"].target is two


# Unregistering


def test_what_is_unregistered_is_given_back_and_gone() -> None:
    registry = registry_of(shout)

    assert registry.unregister("@me/shout").target is shout
    assert list(registry) == []
    with pytest.raises(PredictorNotFoundError):
        registry.unregister("@me/shout")


def test_what_a_plugin_offers_can_be_unregistered_and_stays_away() -> None:
    registry = registry_of(plugins=[Offering(Predictor("@me/x", one)), Failing()])
    registry.unregister("@me/x")

    with pytest.raises(PredictorNotFoundError):
        registry["@me/x"]
    registry.register("@me/x", two)
    assert registry.unregister("@me/x").target is two
    assert "@me/x" not in registry


@pytest.mark.parametrize("method", ["retrieve", "source", "unregister", "__getitem__"])
@pytest.mark.parametrize(
    ("tag", "error"),
    [
        ("@me/absent", PredictorNotFoundError),
        ("no tag", InvalidTagError),
        (None, InvalidTagError),
        ([], InvalidTagError),
        ("@me/both", DuplicatePredictorError),
        ("@me/broken", PluginError),
    ],
)
def test_every_way_to_ask_for_a_tag_refuses_it_alike(method: str, tag: Any, error: type[EngineError]) -> None:
    both = [Offering(Predictor("@me/both", target)) for target in (one, two)]
    registry = registry_of(plugins=[*both, Failing(Predictor("@me/broken", one))])

    with pytest.raises(error):
        getattr(registry, method)(tag)


def test_two_plugins_of_one_kind_are_told_apart_by_their_targets() -> None:
    registry = registry_of(plugins=[Offering(Predictor("@me/both", target)) for target in (two, one)])

    with pytest.raises(DuplicatePredictorError, match=r"Offering \(plugin\) as .*:one and by .*:two"):
        registry["@me/both"]


# Telling


def test_every_change_of_a_tag_is_told_when_it_has_happened() -> None:
    registry = registry_of(plugins=[Offering(Predictor("@me/offered", one))])
    told: list[tuple[str, bool]] = []
    registry.on_change = lambda tag: told.append((tag, tag in registry))

    registry.register(shout)
    registry.register("@me/shout", one, replace=True)
    registry.unregister("@me/shout")
    registry.unregister("me/offered")

    assert told == [("@me/shout", True), ("@me/shout", True), ("@me/shout", False), ("@me/offered", False)]


def test_a_listener_to_changes_may_use_the_registry_from_another_thread() -> None:
    registry = registry_of()
    seen: list[list[str]] = []

    def look(_tag: str) -> None:
        thread = threading.Thread(target=lambda: seen.append(list(registry)))
        thread.start()
        thread.join(TIMEOUT)

    registry.on_change = look
    registry.register(shout)

    assert seen == [["@me/shout"]]


def test_a_registry_makes_anew_after_a_fork_the_locks_that_no_thread_will_release() -> None:
    registry = registry_of()
    joined(leave_as_a_fork_may(registry))

    registry.after_fork()
    registry.register(shout)

    assert list(registry) == ["@me/shout"]
