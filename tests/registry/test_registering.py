"""What may be registered, under which tag and with which options."""

import functools
import re
from typing import Any

import pytest

from engine._predictors.predictor import Predictor
from tests.registry.registries import Count, one, registry_of, shout


def test_a_marked_function_is_registered_with_the_options_of_its_mark() -> None:
    record = registry_of().register(shout)

    assert (record.tag, record.target, record.description, record.concurrency) == ("@me/shout", shout, "Shouts.", 2)


def test_options_given_go_before_those_of_the_mark() -> None:
    record = registry_of().register(shout, concurrency=5)

    assert (record.description, record.concurrency) == ("Shouts.", 5)


def test_a_tag_given_goes_before_that_of_the_mark() -> None:
    registry = registry_of()
    record = registry.register("you/whisper", shout)

    assert (record.tag, record.description) == ("@you/whisper", "Shouts.")
    assert list(registry) == ["@you/whisper"]


def test_a_record_is_registered_as_it_is_unless_options_are_given() -> None:
    record = Predictor("@me/x", one, description="One.")
    registry = registry_of()

    assert registry.register(record) is record
    assert registry.register(record, concurrency=3).description == "One."
    assert registry["@me/x"].concurrency == 3


@pytest.mark.parametrize(
    "target",
    [one, Count, Count(), functools.partial(shout, "x"), print, "package.module:name", [].append, Count().predict],
    ids=["function", "class", "object", "partial", "builtin", "text", "method-of-c", "method"],
)
def test_whatever_can_be_called_can_be_registered(target: object) -> None:
    assert registry_of().register("@me/x", target).target is target


@pytest.mark.fault(115)
@pytest.mark.parametrize("target", [7, [], "no target", object(), {}, b"x"])
def test_what_cannot_be_called_is_refused_when_it_is_registered(target: object) -> None:
    registry = registry_of()

    with pytest.raises((TypeError, ValueError), match=r"'module:name'"):
        registry.register("@me/x", target)
    with pytest.raises((TypeError, ValueError), match=r"has no tag|is not a tag"):
        registry.register(target)
    assert list(registry) == []


@pytest.mark.fault(115)
def test_a_coroutine_object_is_refused_when_it_is_registered() -> None:
    async def wait() -> None: ...

    coroutine = wait()
    with pytest.raises(TypeError, match="coroutine"):
        registry_of().register("@me/x", coroutine)
    coroutine.close()


@pytest.mark.fault(115)
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((None,), "None has no tag"),
        ((None, one), "a target is given together with a tag"),
        (("@me/x",), "a tag needs a target"),
        (("@me/x", None), "a tag needs a target"),
        ((one,), "mark it with @predictor"),
        ((shout, one), "a target is given together with a tag"),
        ((Predictor("@me/x", one), one), "a target is given together with a tag"),
    ],
)
def test_half_a_registration_is_refused_with_the_way_to_write_it(arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(TypeError, match=re.escape(message)):
        registry_of().register(*arguments)


@pytest.mark.fault(115)
@pytest.mark.parametrize("first", [shout, "@me/x", Predictor("@me/x", one)])
def test_an_option_there_is_not_is_refused_with_those_there_are(first: Any) -> None:
    target = one if isinstance(first, str) else None

    with pytest.raises(TypeError, match=r"'concurency' is no option .* description, reduce, runner, concurrency"):
        registry_of().register(first, target, concurency=2)


@pytest.mark.fault(115)
@pytest.mark.parametrize(
    ("option", "value"),
    [("concurrency", 0), ("runner", 3), ("yields", 1), ("check", "no"), ("by_value", 1), ("description", b"")],
)
def test_an_option_without_a_meaning_is_refused(option: str, value: Any) -> None:
    with pytest.raises(ValueError, match=option):
        registry_of().register("@me/x", one, **{option: value})


@pytest.mark.fault(115)
def test_a_mark_that_a_package_wrote_itself_is_checked_like_ours() -> None:
    def plain() -> None: ...

    plain.__predictor__ = {"tag": "@me/plain", "reduces": "last"}  # type: ignore[attr-defined]
    with pytest.raises(TypeError, match="'reduces' is no option"):
        registry_of(plain)

    plain.__predictor__ = {"tag": "@me/plain", "reduce": "collect"}  # type: ignore[attr-defined]
    assert registry_of(plain)["@me/plain"].reduce == "collect"
