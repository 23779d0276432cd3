"""The registry as a mapping of tags."""

import difflib
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from engine._errors import PredictorNotFoundError
from engine._predictors.predictor import Predictor
from tests._kit.waits import TIMEOUT
from tests.registry.registries import Count, Offering, one, registry_of, shout, two


def test_a_registry_is_a_mapping_in_the_order_of_tags() -> None:
    registry = registry_of(Predictor("@b/x", one), Predictor("@a/y", two), shout)

    assert list(registry) == list(registry.keys()) == ["@a/y", "@b/x", "@me/shout"]
    assert [item.tag for item in registry.values()] == [tag for tag, _ in registry.items()] == list(registry)
    assert len(registry) == 3
    assert dict(registry)["@b/x"].target is one


@pytest.mark.parametrize("tag", ["@me/shout", "me/shout"])
def test_a_tag_is_accepted_with_and_without_its_at_sign(tag: str) -> None:
    registry = registry_of(shout)

    assert registry[tag].target is registry.retrieve(tag).target is shout
    assert tag in registry
    assert registry.source(tag).endswith(":shout (registered)")
    assert registry.unregister(tag).tag == "@me/shout"


@pytest.mark.parametrize("thing", [None, 7, [], {}, object(), "no tag", "@me/absent", b"@me/shout"])
def test_containment_never_raises(thing: object) -> None:
    assert thing not in registry_of(shout)


def test_get_gives_its_default_for_a_tag_that_is_not_there() -> None:
    assert registry_of(shout).get("@me/absent", "default") == "default"


def test_two_registries_are_equal_only_if_they_are_one() -> None:
    registry = registry_of(shout)

    assert registry == registry  # noqa: PLR0124  # equality with itself is what is tested
    assert registry != registry_of(shout)
    assert len({registry, registry}) == 1


def test_the_repr_is_short_and_looks_for_nothing() -> None:
    registry = registry_of(shout)

    assert repr(registry) == "<Registry, not read yet>"
    assert len(registry) == 1
    assert repr(registry) == "<Registry of 1 predictors>"


def test_a_missing_tag_names_those_that_look_like_it() -> None:
    with pytest.raises(PredictorNotFoundError, match="did you mean @me/shout") as caught:
        registry_of(shout, Count)["@me/shuot"]
    assert caught.value.matches[0] == "@me/shout"
    assert isinstance(caught.value, KeyError)


def test_a_misspelt_tag_is_compared_with_few_of_many_and_still_names_the_one_that_was_meant(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    compared: list[int] = []

    def matches(tag: str, tags: list[str], *more: Any) -> list[str]:
        compared.append(len(tags))
        return close_matches(tag, tags, *more)

    close_matches = difflib.get_close_matches
    monkeypatch.setattr(difflib, "get_close_matches", matches)
    registry = registry_of(shout, *(Predictor(f"@many/number-{number}", one) for number in range(2000)))

    for misspelt in ("@me/shuot", "@we/shout", "@me/shouts", "me/shut"):
        with pytest.raises(PredictorNotFoundError) as caught:
            registry[misspelt]
        assert caught.value.matches[0] == "@me/shout"
    registry.unregister("@me/shout")
    with pytest.raises(PredictorNotFoundError) as caught:
        registry["@me/shuot"]
    assert "@me/shout" not in caught.value.matches
    assert max(compared) <= 256


def test_a_change_of_one_tag_looks_at_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    offered = [Predictor(f"@offered/number-{number}", one) for number in range(100)]
    registry = registry_of(plugins=[Offering(*offered)])
    assert len(registry) == 100
    looked_at: list[str] = []
    claims = registry._claims

    def counted(tag: str, *more: Any) -> Any:
        looked_at.append(tag)
        return claims(tag, *more)

    monkeypatch.setattr(registry, "_claims", counted)
    registry.register(shout)
    registry.register("@offered/number-5", two, replace=True)
    registry.unregister("@offered/number-7")
    registry.unregister("@me/shout")

    assert set(looked_at) == {"@me/shout", "@offered/number-5", "@offered/number-7"}
    assert len(registry) == 99


@pytest.mark.fault(119)
def test_iteration_goes_over_what_there_was_when_it_began() -> None:
    registry = registry_of(Predictor("@a/x", one), Predictor("@b/x", two))
    tags, items = iter(registry), iter(registry.items())

    assert next(tags) == "@a/x"
    assert next(items)[0] == "@a/x"
    registry.unregister("@b/x")
    registry.register("@c/x", one)

    assert list(tags) == ["@b/x"]
    assert [(tag, record.target) for tag, record in items] == [("@b/x", two)]
    assert list(registry) == ["@a/x", "@c/x"]


@pytest.mark.fault(119)
def test_a_predictor_that_is_unregistered_or_replaced_while_it_runs_runs_on() -> None:
    reached, go = threading.Event(), threading.Event()

    def partials() -> Iterator[int]:
        yield 1
        reached.set()
        assert go.wait(TIMEOUT)
        yield 2

    registry = registry_of(Predictor("@me/partials", partials))
    kept = registry["@me/partials"]
    collected: list[int] = []
    thread = threading.Thread(target=lambda: collected.extend(kept.load()()))
    thread.start()
    try:
        assert reached.wait(TIMEOUT)
        registry.register("@me/partials", one, replace=True)
        registry.unregister("@me/partials")
    finally:
        go.set()
        thread.join(TIMEOUT)

    assert collected == [1, 2]
    assert "@me/partials" not in registry
