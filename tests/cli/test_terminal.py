"""A terminal: partials that are rewritten in place, and what it must not obey."""

import io
import json
import sys
from typing import Any

import pytest

from engine._reducers import COLLECT, CONCAT, LAST
from engine.cli import main
from engine.cli._show import Display, Output
from tests.cli.conftest import VALUES, Site, on_a_terminal


def test_snapshots_are_rewritten_in_place_on_a_terminal(site: Site) -> None:
    status, sent = on_a_terminal(site, "stream", "@muna/generator")

    assert (status, sent) == (0, "hello\r\x1b[Khello from\r\x1b[Khello from Muna\n")


@pytest.mark.parametrize(
    ("columns", "more"), [(10, {}), (80, {"TERM": "dumb"})], ids=["too narrow", "a terminal that cannot"]
)
def test_snapshots_that_cannot_be_rewritten_get_a_line_each(site: Site, columns: int, more: dict[str, str]) -> None:
    status, sent = on_a_terminal(site, "stream", "@muna/generator", columns=columns, **more)

    assert (status, sent.replace("\r\x1b[K", "|")) == (0, "hello\nhello from\nhello from Muna\n")


TYPING = """
def mixed():
    yield "one"
    yield "two\\nlines"
    yield "日本語日本語日本語"
    yield "日本"
    yield 3
    yield b"\\x00"
    yield "four"
    raise ValueError

def deltas():
    yield "a"
    yield ""
    yield "b\\nc"
    yield "d"

deltas.__predictor__ = {"reduce": "concat"}

def text():
    return "\\x1b[1mbold\\r"

def colours():
    yield "\\x1b[31mred"
    yield "\\n\\u202e"

colours.__predictor__ = {"reduce": "concat"}

def interrupted():
    yield "half"
    raise KeyboardInterrupt
"""


def test_what_is_no_short_line_of_text_ends_the_line_that_is_rewritten(site: Site) -> None:
    site.predictors(TYPING, "mixed")

    status, sent = on_a_terminal(site, "stream", "@cli/mixed", columns=18)

    assert status == 1
    assert sent == "one\ntwo\nlines\n日本語日本語日本語\n日本\n3\nb'\\x00'\nfour\n"


def test_deltas_are_written_on_a_terminal_as_they_come(site: Site) -> None:
    site.predictors(TYPING, "deltas")

    assert on_a_terminal(site, "stream", "@cli/deltas") == (0, "ab\ncd\n")
    assert site.run("stream", "@cli/deltas").stdout == b"a\n\nb\nc\nd\n"
    assert on_a_terminal(site, "create", "@cli/deltas") == (0, "ab\ncd\n")


def test_a_result_has_nothing_that_a_terminal_would_obey_and_is_raw_in_a_pipe(site: Site) -> None:
    site.predictors(TYPING, "text", "colours")

    for how in ("create", "stream"):
        assert on_a_terminal(site, how, "@cli/text") == (0, "\\x1b[1mbold\\r\n")
        assert on_a_terminal(site, how, "@cli/colours") == (0, "\\x1b[31mred\n\\u202e\n")
        assert site.run(how, "@cli/text").stdout == b"\x1b[1mbold\r\n"
    assert site.run("create", "@cli/colours").stdout == "\x1b[31mred\n\u202e\n".encode()


def test_ctrl_c_on_a_terminal_leaves_what_stands_on_the_line(site: Site) -> None:
    site.predictors(TYPING, "interrupted")

    assert on_a_terminal(site, "stream", "@cli/interrupted") == (130, "half")


class Screen(io.StringIO):
    """A stdout that claims to be a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("reducer", "values", "sent"),
    [
        (CONCAT, ["a", "", "b"], "ab\n"),
        (CONCAT, ["a\n"], "a\n"),
        (CONCAT, ["a", 1, "b"], "a\n1\nb\n"),
        (LAST, ["a", "ab"], "a\nab\n"),
        (COLLECT, ["a", b"b"], "a\nb'b'\n"),
        (None, ["a"], "a\n"),
    ],
    ids=["deltas", "a whole line", "deltas and others", "snapshots without a width", "parts", "a result"],
)
def test_a_terminal_whose_width_is_not_known_gets_lines(
    reducer: Any, values: list[Any], sent: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    screen = Screen()
    monkeypatch.setattr(sys, "stdout", screen)
    monkeypatch.setenv("TERM", "xterm")
    display = Display(Output(), reducer)

    for value in values:
        display.show(value)
    display.end()

    assert screen.getvalue() == sent


def test_snapshots_are_rewritten_where_they_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Screen()
    monkeypatch.setattr(sys, "stdout", screen)
    monkeypatch.setattr(Output, "columns", 8)
    display = Display(Output(), LAST)

    for text in ("abc", "abcdefg", "abcdefgh", "日本語", "日本語日本語", "e\u0301" * 7, "x"):
        display.show(text)
    display.end()

    assert (
        screen.getvalue().replace("\r\x1b[K", "|")
        == "abc|abcdefg\nabcdefgh\n日本語\n日本語日本語\n" + "e\u0301" * 7 + "|x\n"
    )


def test_bytes_are_shown_as_a_repr_where_stdout_takes_only_text(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    site.predictors(VALUES, "value")
    text = io.StringIO()
    monkeypatch.setattr(sys, "stdout", text)

    assert main(["create", "@cli/value", "--name", "bytes"]) == 0
    assert text.getvalue() == "b'\\x00\\xff'\n"


def test_json_on_a_terminal_is_the_same_as_in_a_pipe(site: Site) -> None:
    status, sent = on_a_terminal(site, "stream", "@muna/generator", "--json", columns=200)

    assert status == 0
    assert [json.loads(line)["event"] for line in sent.splitlines()] == ["partial", "partial", "partial", "done"]
