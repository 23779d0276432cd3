"""What hooks may give, and mistakes in them."""

from collections.abc import Iterator

import pytest

from engine._predictors.predictor import Predictor
from engine._registry.registry import Registry
from engine.hookspecs import hookimpl
from tests.registry.conftest import GOOD, Offering, Site, offering


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
