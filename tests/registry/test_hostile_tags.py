"""Any text as a tag: one by the grammar, or refused in words that print anywhere."""

import io
import re
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine._errors import DuplicatePredictorError, InvalidTagError, PredictorNotFoundError
from engine._predictors.predictor import Predictor, predictor
from tests.registry.registries import one, registry_of

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
