"""Predictions and predictors that fail: what is printed where, and the exit code."""

import errno
import io
import re
import sys
from pathlib import Path

import pytest

from engine.cli import main
from tests.cli.conftest import Command, Ran, Site

FAILING = """
import sys

def fail():
    yield 1
    raise ValueError("bad \\x1b[31m thing")

async def afail():
    yield 1
    raise ValueError("bad thing")

def chained():
    try:
        {}["key"]
    except KeyError as error:
        raise RuntimeError("outer") from error

def nothing():
    if False: yield

def leaving():
    sys.exit(3)

def mixed():
    yield "a"
    yield 1

mixed.__predictor__ = {"reduce": "concat"}

class Closing:
    def predict(self): return 1
    def teardown(self): raise OSError("stuck")

class Opening:
    def setup(self): raise OSError("no weights")
    def predict(self): return 1

def strange():
    class Odd(Exception):
        def __str__(self): raise RuntimeError
    raise Odd

def broken_pipe():
    raise BrokenPipeError("the predictor's own")

def refusing():
    from engine import InvalidInputError
    raise InvalidInputError("@other/one", ["nested"])
"""


@pytest.mark.parametrize("command", ["create", "stream"])
@pytest.mark.parametrize(
    ("name", "last"),
    [
        ("fail", r"ValueError: bad \x1b[31m thing"),
        ("afail", "ValueError: bad thing"),
        ("chained", "RuntimeError: outer"),
        ("leaving", "PredictorError: the predictor raised SystemExit: 3"),
        ("Opening", "OSError: no weights"),
        ("strange", "Odd: <exception str() failed>"),
        ("broken_pipe", "BrokenPipeError: the predictor's own"),
        ("refusing", "@other/one: nested"),
    ],
)
def test_a_failed_prediction_shows_the_predictors_own_frames(
    command: str, name: str, last: str, site: Site, engine: Command
) -> None:
    site.install({"@cli/it": f"{site.write(FAILING)}:{name}"})

    ran = engine(command, "@cli/it")

    assert ran.status == 1
    assert last in ran.err
    frames = re.findall(r'^  File "([^"]+)"', ran.err, re.MULTILINE)
    assert frames
    assert {Path(frame).parent for frame in frames} == {site.folder}
    assert "\x1b" not in ran.err


@pytest.mark.parametrize("name", ["fail", "afail"])
def test_partials_before_a_failure_are_printed_and_json_ends_with_error(name: str, site: Site, engine: Command) -> None:
    site.install({"@cli/it": f"{site.write(FAILING)}:{name}"})

    plain, ran = engine("stream", "@cli/it"), engine("stream", "@cli/it", "--json")

    assert (plain.status, plain.out) == (1, "1\n")
    partial, last = ran.documents
    assert (ran.status, partial["event"], partial["results"]) == (1, "partial", [1])
    assert (last["event"], last["type"], last["count"]) == ("error", "ValueError", 1)
    assert "ValueError: bad" in last["error"]
    assert "ValueError: bad" in ran.err


def test_a_failed_create_in_json_is_one_line_with_what_was_reduced(site: Site, engine: Command) -> None:
    site.predictors(FAILING, "fail")

    ran = engine("create", "@cli/fail", "--json")

    (only,) = ran.documents
    assert (ran.status, only["event"], only["type"], only["results"]) == (1, "error", "ValueError", [1])


def test_no_partials_are_a_failure_told_in_a_sentence(site: Site, engine: Command) -> None:
    site.predictors(FAILING, "nothing")

    ran, streamed = engine("create", "@cli/nothing"), engine("stream", "@cli/nothing")

    assert (ran.status, ran.out) == (1, "")
    assert ran.err.startswith("@cli/nothing ended without a partial")
    assert streamed == Ran(0, "", "")


def test_a_reducer_that_refuses_is_a_failure(site: Site, engine: Command) -> None:
    site.predictors(FAILING, "mixed")

    ran = engine("create", "@cli/mixed")

    assert (ran.status, ran.out) == (1, "")
    assert "the reducer 'concat' joins partials" in ran.err


def test_a_teardown_that_fails_is_told_after_the_result(site: Site, engine: Command) -> None:
    site.install({"@cli/it": f"{site.write(FAILING)}:Closing"})

    ran = engine("create", "@cli/it")

    assert (ran.status, ran.out) == (1, "1\n")
    assert "OSError: stuck" in ran.err


@pytest.mark.parametrize(
    ("source", "last"),
    [
        ("import no_such_module_anywhere", "ModuleNotFoundError: No module named 'no_such_module_anywhere'"),
        ("def it(:", "SyntaxError: invalid syntax"),
        ("raise SystemExit(0)", "SystemExit: 0"),
        ("other = 1", "has no 'it'"),
    ],
)
@pytest.mark.parametrize("words", [["show", "@cli/it"], ["create", "@cli/it"], ["stream", "@cli/it", "--help"]])
def test_a_predictor_that_cannot_be_imported_is_a_failure(
    words: list[str], source: str, last: str, site: Site, engine: Command
) -> None:
    site.predictors(source, "it")

    ran = engine(*words)

    assert (ran.status, ran.out) == (1, "")
    assert ran.err.startswith("engine: @cli/it cannot be imported\n")
    assert last in ran.err
    assert "importlib" not in ran.err


def test_a_tag_that_two_distributions_claim_is_a_failure_told_in_a_sentence(site: Site, engine: Command) -> None:
    site.install({"@cli/twice": "nowhere:one"})
    site.install({"@cli/twice": "nowhere:two"})

    ran = engine("create", "@cli/twice")

    assert (ran.status, ran.out) == (1, "")
    assert "PREDICTOR_ENGINE_BLOCK" in ran.err.splitlines()[-1]


def test_a_full_disk_is_told_in_a_sentence(engine: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    class Full(io.StringIO):
        def write(self, text: str) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(sys, "stdout", Full())

    ran = engine("create", "@muna/eager")

    assert (ran.status, ran.err) == (1, "engine: the output cannot be written: No space left on device\n")


def test_a_process_without_output_still_runs(engine: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(sys, "stderr", None)

    assert main(["create", "@muna/eager"]) == 0
    assert main(["create", "@muna/egaer"]) == 2
