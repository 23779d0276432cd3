"""Plugins that are given as objects, and the runners that plugins offer."""

import importlib
import importlib.metadata
from types import SimpleNamespace

import attrs
import pytest

from engine._predictors.predictor import Predictor
from engine._registry.registry import Registry
from engine.hookspecs import hookimpl
from tests.registry.conftest import GOOD, Site, problems_of


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
