"""The registry as a mapping, and what may be registered under which tag.

No test here looks for installed plugins: the tests of plugins beside them do.
"""

import difflib
import functools
import io
import re
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine._errors import (
    DuplicatePredictorError,
    EngineError,
    InvalidTagError,
    PluginError,
    PredictorNotFoundError,
)
from engine._predictors.predictor import Predictor, predictor
from engine._registry.registry import Registry
from engine.hookspecs import hookimpl

PATIENCE = 20.0  # seconds until a gate that does not open fails its test


@predictor("@me/shout", description="Shouts.", concurrency=2)
def shout(text: str) -> str:
    return text.upper()


@predictor("@me/count")
class Count:
    def predict(self) -> int:
        return 1


def one() -> int:
    return 1


def two() -> int:
    return 2


def registry_of(*predictors: Any, **options: Any) -> Registry:
    return Registry(predictors, discover=False, **options)


class Offering:
    """A plugin that offers what it was made with."""

    def __init__(self, *predictors: Predictor) -> None:
        self.predictors = predictors

    @hookimpl
    def engine_predictors(self) -> tuple[Predictor, ...]:
        return self.predictors


class Failing(Offering):
    """A plugin that fails after what it was made with."""

    @hookimpl
    def engine_predictors(self) -> Iterator[Predictor]:  # type: ignore[override]  # hooks give any iterable
        yield from self.predictors
        raise RuntimeError("half-way")


# The mapping


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
        assert go.wait(PATIENCE)
        yield 2

    registry = registry_of(Predictor("@me/partials", partials))
    kept = registry["@me/partials"]
    collected: list[int] = []
    thread = threading.Thread(target=lambda: collected.extend(kept.load()()))
    thread.start()
    try:
        assert reached.wait(PATIENCE)
        registry.register("@me/partials", one, replace=True)
        registry.unregister("@me/partials")
    finally:
        go.set()
        thread.join(PATIENCE)

    assert collected == [1, 2]
    assert "@me/partials" not in registry


# Registering


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


# Replacing


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
    """Before plugins are looked for, nobody knows; then the tag is refused when it is used."""
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


def test_whoever_is_told_may_use_the_registry_from_another_thread() -> None:
    registry = registry_of()
    seen: list[list[str]] = []

    def look(_tag: str) -> None:
        thread = threading.Thread(target=lambda: seen.append(list(registry)))
        thread.start()
        thread.join(PATIENCE)

    registry.on_change = look
    registry.register(shout)

    assert seen == [["@me/shout"]]


def test_a_registry_can_forget_locks_that_nobody_will_release() -> None:
    registry = registry_of()
    registry._writing.acquire()
    registry._is_discovering = True
    holder = threading.Thread(target=registry._discovery.acquire)
    holder.start()
    holder.join(PATIENCE)

    registry.forget_locks()
    registry.register(shout)

    assert list(registry) == ["@me/shout"]


# Hostile tags

HOSTILE = [
    "",
    "@",
    "@/",
    "@me/",
    "@/x",
    "me",
    "@me/x/y",
    "@me/" + "x" * 65,
    "x" * 1_000_000,
    "@../../etc/passwd",
    "@me/x\0",
    "@me/x\n",
    "\n@me/x",
    "@me/\x1b[31mred",
    "@me/\u202ex",
    "@me/\ud800",
    "@me/\uff58",
    "@m\u0435/x",
    "@me/{0.__class__}",
    "@me/%s%n",
    "__class__",
    "@Me/x",
    "@me/x ",
    "@@me/x",
]


def ways_to_give(tag: str) -> list[Callable[[], object]]:
    registry = registry_of()
    return [
        lambda: registry[tag],
        lambda: registry.retrieve(tag),
        lambda: registry.unregister(tag),
        lambda: registry.source(tag),
        lambda: registry.register(tag, one),
        lambda: Predictor(tag, one),
        lambda: predictor(tag),
    ]


def is_safe(text: str) -> bool:
    """Whether it can be printed anywhere: a strict ASCII stream takes it, and it moves no cursor."""
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii", errors="strict")
    stream.write(text)
    stream.flush()
    return text.isprintable()


@pytest.mark.fault(116)
@pytest.mark.parametrize("tag", HOSTILE, ids=lambda tag: ascii(tag)[:30])
def test_a_hostile_tag_is_refused_everywhere_in_words_that_print_anywhere(tag: str) -> None:
    for give in ways_to_give(tag):
        with pytest.raises(InvalidTagError) as caught:
            give()
        assert is_safe(str(caught.value))
        assert len(str(caught.value)) < 500
    assert tag not in registry_of()


@pytest.mark.fault(116)
@given(
    st.one_of(
        st.text(st.characters(exclude_categories=()), max_size=150),
        st.from_regex(r"@[a-z0-9._-]{1,66}/[a-z0-9._-]{1,66}", fullmatch=True),
        st.tuples(st.text(max_size=8), st.text(max_size=8)).map("/".join),
    )
)
def test_any_text_is_a_tag_by_the_grammar_or_refused_in_words_that_print_anywhere(text: str) -> None:
    registry = registry_of()
    if re.fullmatch(r"@?[a-z0-9._-]{1,64}/[a-z0-9._-]{1,64}", text, re.ASCII):
        record = registry.register(text, one)
        assert registry[text] is registry[record.tag] is record
        assert text in registry
        with pytest.raises(PredictorNotFoundError) as missing:
            registry["@zz/zz" if record.tag != "@zz/zz" else "@yy/yy"]
        assert is_safe(str(missing.value))
    else:
        with pytest.raises(InvalidTagError) as refused:
            registry.register(text, one)
        assert is_safe(str(refused.value))
        assert text not in registry
        assert list(registry) == []


@pytest.mark.fault(116)
@pytest.mark.parametrize("tag", ["@__class__/__init__", "@../..", "@./x", "@-/-", "../x"])
def test_what_the_grammar_allows_is_kept_as_a_text_and_nothing_else(tag: str) -> None:
    """Dots and dashes are letters here: a tag is never a path, an attribute or a format."""
    registry = registry_of(Predictor(tag, one))

    assert list(registry) == [f"@{tag.removeprefix('@')}"]
    assert registry[tag].target is one


@pytest.mark.fault(116)
def test_hostile_names_of_targets_are_escaped_in_messages() -> None:
    def loud() -> None: ...

    loud.__qualname__ = "\x1b[31mloud\u202e\ud800\n"
    registry = registry_of(Predictor("@me/x", loud))

    assert is_safe(registry.source("@me/x"))
    with pytest.raises(DuplicatePredictorError) as caught:
        registry.register("@me/x", one)
    assert is_safe(str(caught.value))
