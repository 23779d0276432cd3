"""Options and inputs of a command, where inputs are read from, and mistakes told in a sentence."""

import json
import sys
from typing import Any

import pytest

from tests.cli.conftest import Command, Ran, Site, command_line

TELL = """
def tell(**inputs):
    return {name: repr(value) for name, value in inputs.items()}
"""

OPTIONS = """
from typing import Annotated

def options(a: int = 0, text: str = "", flag: bool = False, max_tokens: int = 0, class_: str = "", json: str = "",
            runner: str = "", inputs: str = "", help: str = "", _under: int = 0, no_flag: int = 0, given: int = 0,
            *more: int, only: bool | None = None, **rest: float):
    return {name: value for name, value in locals().items() if value not in (0, "", (), {}, None, False)}

def positional(a: int, /, b: int = 2, *c: int):
    return [a, b, *c]
"""


@pytest.mark.parametrize(
    ("words", "inputs"),
    [
        (["--a", "3"], {"a": 3}),
        (["--a=3"], {"a": 3}),
        (["--a", "-3"], {"a": -3}),
        (["--text", "-x"], {"text": "-x"}),
        (["--text=-x"], {"text": "-x"}),
        (["--text=--json"], {"text": "--json"}),
        (["--text", ""], {}),
        (["--text", "a b"], {"text": "a b"}),
        (["--text", "-"], {"text": "-"}),
        (["--a", "1", "--a", "2"], {"a": 2}),
        (["--a", "1", "-i", "a=2"], {"a": 2}),
        (["--inputs", '{"a": 1, "text": "t"}', "--a", "2"], {"a": 2, "text": "t"}),
        (["--a", "2", "--inputs", '{"a": 1}'], {"a": 2}),
        (["--flag"], {"flag": True}),
        (["--flag", "no"], {}),
        (["--flag=yes"], {"flag": True}),
        (["--only"], {"only": True}),
        (["--no-only", "--flag"], {"flag": True}),
        (["--max-tokens", "3"], {"max_tokens": 3}),
        (["--max_tokens", "3"], {"max_tokens": 3}),
        (["--class", "x"], {"class_": "x"}),
        (["--_under", "1"], {"_under": 1}),
        (["--no-flag", "7"], {"no_flag": 7}),
        (["--given", "7"], {"given": 7}),
        (
            ["-i", "json=x", "-i", "runner=y", "-i", "inputs=z", "-i", "help=w"],
            dict(zip(["json", "runner", "inputs", "help"], "xyzw", strict=True)),
        ),
        (["-itext=a=b"], {"text": "a=b"}),
        (["-i", "more=[1, 2]"], {"more": [1, 2]}),
        (["--more", "[1]"], {"more": [1]}),
        (["-i", "other=1"], {"rest": {"other": 1.0}}),
        (["-i", "rest=1"], {"rest": {"rest": 1.0}}),
        (["--runner", "thread", "--a", "1"], {"a": 1}),
    ],
    ids=command_line,
)
def test_options_reach_the_parameters(words: list[str], inputs: dict[str, Any], site: Site, engine: Command) -> None:
    site.predictors(OPTIONS, "options")

    ran = engine("create", "@cli/options", *words)

    assert (ran.status, ran.err) == (0, "")
    assert json.loads(ran.out) == inputs


def test_positional_parameters_are_given_by_name(site: Site, engine: Command) -> None:
    site.predictors(OPTIONS, "positional")

    assert engine("create", "@cli/positional", "--a", "1", "--c", "[3, 4]").out == "[1, 2, 3, 4]\n"


def test_options_of_the_command_may_stand_before_the_tag(site: Site, engine: Command) -> None:
    site.predictors(OPTIONS, "options")

    ran = engine("create", "--json", "-i", "a=1", "--inputs", '{"text": "t"}', "@cli/options", "-i", "flag=yes")

    assert ran.documents[0]["results"] == [{"a": 1, "text": "t", "flag": True}]


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--txet", "x"], "there is no option '--txet'; did you mean --text?"),
        (["--runnr=thread"], "did you mean --runner?"),
        (["--max-tok", "3"], "there is no option '--max-tok'; did you mean --max-tokens?"),
        (["word"], "'word' is one word too many"),
        (["--a"], "argument --a: expected one argument"),
        (["--a", "--flag"], "argument --a: expected one argument"),
        (["-i", "a"], "-i takes NAME=VALUE, not 'a'"),
        (["-i", "=3"], "-i takes NAME=VALUE, not '=3'"),
        (["--no-only=1"], "--no-only takes no value, and '1' follows it"),
        (["--a", "x", "--only", "maybe"], "'a' must be int, not 'x'; 'only' must be bool or None, not 'maybe'"),
        (["--inputs", '{"a": x}'], "--inputs: not JSON: Expecting value at line 1, column 7"),
        (["--inputs", "[1]"], "--inputs must be one JSON object"),
        (["--inputs", "@nowhere.json"], "--inputs: cannot read the file 'nowhere.json'"),
        (["--inputs", '{"a": "3"}'], "'a' must be int, not '3' (str)"),
        (["-i", "rest=x"], "'rest' must be float"),
        (["--runner", "moon"], "there is no runner 'moon': it is one of"),
        (["--runner", "proces"], "there is no runner 'proces'; did you mean 'process'?"),
        (["--text", "x", "--\x1b[31m"], r"there is no option '--\x1b[31m'"),
    ],
    ids=command_line,
)
def test_a_mistake_is_told_in_a_sentence_and_nothing_runs(
    words: list[str], reason: str, site: Site, engine: Command
) -> None:
    site.predictors(OPTIONS, "options")

    ran = engine("create", "@cli/options", *words)

    assert (ran.status, ran.out) == (2, "")
    assert reason in ran.err
    assert ran.err.startswith("engine: ")
    assert ran.err.count("\n") == 1
    assert "\x1b" not in ran.err


def test_missing_inputs_are_all_named_in_one_sentence(site: Site, engine: Command) -> None:
    site.predictors("def greet(name: str, age: int, mood='good'): ...", "greet")

    ran = engine("stream", "@cli/greet")

    assert (ran.status, ran.out) == (2, "")
    assert ran.err == (
        "engine: @cli/greet: 'name' is missing (str); 'age' is missing (int) (its inputs are: name, age, mood).\n"
    )


def test_an_unknown_input_is_refused_with_the_one_it_may_have_meant(engine: Command, site: Site) -> None:
    site.predictors("def greet(name: str = ''): ...", "greet")

    ran = engine("create", "@cli/greet", "-i", "nmae=x")

    assert ran.status == 2
    assert "'nmae' is not an input; did you mean 'name'?" in ran.err


def test_an_async_predictor_is_refused_inline_with_advice(engine: Command) -> None:
    ran = engine("create", "@muna/async-eager", "--runner", "inline")

    assert ran.status == 2
    assert "leave --runner out" in ran.err


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ([], "the following arguments are required: COMMAND"),
        (["lst"], "invalid choice: 'lst'"),
        (["create"], "the following arguments are required: TAG"),
        (["create", "--text", "x", "@muna/eager"], "there is no option '--text'"),
        (["--jsn", "list"], "there is no option '--jsn'; did you mean --json?"),
        (["create", "no tag"], "'no tag' is not a tag: write '@owner/name'"),
        (["create", "\x1b[31m"], r"'\x1b[31m' is not a tag"),
        (["show", "@muna/egaer"], "did you mean @muna/eager"),
        (["stream", "@muna/egaer"], "did you mean @muna/eager"),
    ],
    ids=command_line,
)
def test_a_command_or_tag_that_does_not_exist_is_a_mistake(words: list[str], reason: str, engine: Command) -> None:
    ran = engine(*words)

    assert (ran.status, ran.out) == (2, "")
    assert reason in ran.err
    assert ran.err.count("\n") == 1
    assert "\x1b" not in ran.err


def test_a_tag_may_be_written_without_its_at_sign(engine: Command) -> None:
    assert engine("create", "muna/eager") == Ran(0, "hello from Muna\n", "")


def test_inputs_are_read_from_stdin(site: Site) -> None:
    site.predictors(TELL, "tell")

    done = site.run("create", "@cli/tell", "--inputs", "-", stdin='{"a": "grün"}'.encode())
    broken = site.run("create", "@cli/tell", "--inputs", "-", stdin=b'{"a": \n x}')
    binary = site.run("create", "@cli/tell", "--inputs", "-", stdin=b"\xff")

    assert (done.returncode, done.stdout.decode()) == (0, '{"a": "\'grün\'"}\n')
    assert (broken.returncode, broken.stdout) == (2, b"")
    assert b"not JSON: Expecting value at line 2, column 2" in broken.stderr
    assert binary.returncode == 2
    assert binary.stderr.startswith(b"engine: --inputs: ")


def test_inputs_are_read_from_a_file(site: Site, engine: Command) -> None:
    site.predictors(TELL, "tell")
    (site.folder / "inputs.json").write_text('{"a": 1}')

    assert json.loads(engine("create", "@cli/tell", "--inputs", f"@{site.folder / 'inputs.json'}").out) == {"a": "1"}


def test_a_command_without_a_stdin_says_so(site: Site, engine: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    site.predictors(TELL, "tell")
    monkeypatch.setattr(sys, "stdin", None)

    assert "there is no stdin to read" in engine("create", "@cli/tell", "--inputs", "-").err
