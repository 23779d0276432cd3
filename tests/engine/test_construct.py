"""What an engine is made with and given, and how it shows itself."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from engine import Engine, InvalidTagError, Predictor, hookimpl, predictor
from tests.engine.conftest import plain


def test_a_runner_that_no_plugin_can_offer_is_refused_when_the_engine_is_made() -> None:
    with pytest.raises(ValueError, match=r"there is no runner 'proces'; did you mean 'process'\?"):
        Engine(discover=False, runner="proces")


def test_a_runner_that_a_plugin_may_offer_is_looked_up_at_the_first_call() -> None:
    asked: list[str] = []

    class Plugin:
        @hookimpl
        def engine_runners(self) -> list[object]:
            asked.append("runners")
            return []

    muna = Engine(discover=False, plugins=iter([Plugin()]), runner="thraed")
    assert asked == []
    with pytest.raises(ValueError, match=r"did you mean 'thread'\? The runner is one of 'inline', 'thread'"):
        muna.predictions.create(print)
    assert asked == ["runners"]


def test_what_cannot_be_a_predictor_is_refused_with_what_can(muna: Engine) -> None:
    with pytest.raises(InvalidTagError, match=r"42 is no predictor: give a tag such as '@owner/name', a function"):
        muna.predictions.create(42)


# Arguments, and how an engine shows itself.


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"runner": ""}, "runner must be"),
        ({"runner": 5}, "runner must be"),
        ({"grace": -1}, "grace must be"),
        ({"grace": float("nan")}, "grace must be"),
        ({"grace": float("inf")}, "grace must be"),
        ({"grace": "1"}, "grace must be"),
        ({"grace": True}, "grace must be"),
    ],
)
def test_an_option_without_meaning_is_refused_at_once(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Engine(discover=False, **options)


def test_the_engines_default_runner_counts_where_neither_author_nor_caller_chose() -> None:
    def where_am_i() -> int:
        return threading.get_ident()

    here = threading.get_ident()
    with Engine(discover=False, runner="thread") as muna:
        muna.predictors.register(Predictor("@tests/inline", where_am_i, runner="inline"))
        assert muna.predictions.create(where_am_i).value != here
        assert muna.predictions.create(where_am_i, runner="inline").value == here
        assert muna.predictions.create("@tests/inline").value == here
        assert muna.predictions.create("@tests/inline", runner="thread").value != here


def test_predictors_given_to_the_engine_are_registered() -> None:
    @predictor("@tests/marked")
    def marked() -> str:
        return "marked"

    with Engine([marked, Predictor("@tests/record", plain)], discover=False) as muna:
        assert list(muna.predictors) == ["@tests/marked", "@tests/record"]
        assert muna.predictions.create("@tests/marked").value == "marked"
        assert muna.predictions.create("@tests/record").value == "plain"


def test_an_engine_shows_whether_it_is_open_and_how_much_is_loaded() -> None:
    muna = Engine([Predictor("@tests/plain", plain)], discover=False)
    assert repr(muna) == "<Engine open, 0 loaded>"
    muna.load("@tests/plain")
    assert repr(muna) == "<Engine open, 1 loaded>"
    muna.close()
    assert repr(muna).startswith("<Engine closed")
