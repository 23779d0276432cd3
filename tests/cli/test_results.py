"""What `create` and `stream` print: results of every kind and value, as text, lines and JSON."""

import json
import os
import re
import select
import subprocess
import sys

import pytest

from tests.cli.conftest import CHILD_TIMEOUT, VALUES, Command, Ran, Site


@pytest.mark.parametrize("kind", ["eager", "generator", "async-eager", "async-generator"])
@pytest.mark.parametrize("runner", [[], ["--runner", "thread"]], ids=["default", "thread"])
def test_create_prints_the_result_of_every_kind(kind: str, runner: list[str], engine: Command) -> None:
    assert engine("create", f"@muna/{kind}", *runner) == Ran(0, "hello from Muna\n", "")


@pytest.mark.parametrize(
    ("kind", "lines"),
    [
        ("eager", ["hello from Muna"]),
        ("generator", ["hello", "hello from", "hello from Muna"]),
        ("async-generator", ["hello", "hello from", "hello from Muna"]),
    ],
)
def test_stream_prints_every_partial_on_a_line(kind: str, lines: list[str], engine: Command) -> None:
    assert engine("stream", f"@muna/{kind}") == Ran(0, "".join(f"{line}\n" for line in lines), "")


def test_a_stream_in_json_ends_with_done(engine: Command) -> None:
    *partials, last = engine("stream", "@muna/generator", "--json").documents

    assert [each["event"] for each in partials] == ["partial"] * 3
    assert [each["index"] for each in partials] == [0, 1, 2]
    assert [each["results"] for each in partials] == [["hello"], ["hello from"], ["hello from Muna"]]
    assert {"id", "tag", "latency", "error", "logs", "created"} < set(partials[0])
    assert {name: last[name] for name in ("event", "id", "tag", "count", "error")} == {
        "event": "done",
        "id": partials[0]["id"],
        "tag": "@muna/generator",
        "count": 3,
        "error": None,
    }
    assert last["duration"] >= last["first"] >= 0


def test_a_result_in_json_is_one_line(engine: Command) -> None:
    (only,) = engine("create", "@muna/generator", "--json").documents

    assert (only["event"], only["results"], only["index"]) == ("done", ["hello from Muna"], 2)


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("text", "grün\x1b[31m"),
        ("none", "null"),
        ("yes", "true"),
        ("number", "1.5"),
        ("nan", "nan"),
        ("pair", '[1, "a"]'),
        ("mapping", '{"a": [1, null], "2": [3], "null": "AA==", "(1, 2)": 3}'),
        ("enum", '"red"'),
        ("path", '"a/b"'),
        ("date", '"2020-01-02"'),
        ("point", '{"x": 1}'),
        ("array", "[[1]]"),
        ("stranger", "<class 'object'>"),
        ("list", "[[], null]"),
    ],
)
def test_a_result_is_shown_as_text_json_or_a_safe_repr(name: str, shown: str, site: Site, engine: Command) -> None:
    site.predictors(VALUES, "value")

    assert engine("create", "@cli/value", "--name", name) == Ran(0, f"{shown}\n", "")


def test_a_number_of_more_digits_than_python_shows_is_told_by_its_type(site: Site, engine: Command) -> None:
    site.predictors(VALUES, "value")

    ran = engine("create", "@cli/value", "--name", "many")
    assert (ran.status, ran.err) == (0, "")
    assert re.fullmatch(r"<int (object|instance) [^<>\n]*>\n", ran.out)  # the standard library has words for it by now


def test_a_result_that_cannot_be_shown_is_told_by_its_type(site: Site, engine: Command) -> None:
    site.predictors(VALUES, "value")

    ran = engine("create", "@cli/value", "--name", "hostile")

    assert (ran.status, ran.err) == (0, "")
    assert re.fullmatch(r"<Hostile (instance at|object that) .*>\n", ran.out)


def test_a_value_that_holds_itself_is_shown_to_a_depth(site: Site, engine: Command) -> None:
    site.predictors(VALUES, "value")

    ran = engine("create", "@cli/value", "--name", "around")

    assert (ran.status, ran.out.count("\n")) == (0, 1)
    assert len(ran.out) < 500


def test_every_value_becomes_strict_json(site: Site, engine: Command) -> None:
    site.predictors(VALUES, "values")

    *partials, last = engine("stream", "@cli/values", "--json").documents

    results = [each["results"] for each in partials]
    assert last["event"] == "done"
    assert last["count"] == len(partials) == 19
    assert results[:7] == [["grün\x1b[31m"], [None], [True], [1.5], [None], [1, "a"], results[6]]
    assert results[7] == ["AP8="]


def test_bytes_go_to_a_pipe_as_they_are(site: Site) -> None:
    site.predictors("def two():\n    yield b'\\x00\\xff'\n    yield b'\\n'", "two")

    assert site.run("stream", "@cli/two").stdout == b"\x00\xff\n"


def test_text_that_stdout_cannot_encode_is_escaped(site: Site) -> None:
    site.predictors(VALUES, "value")

    ran = site.run("create", "@cli/value", "--name", "text", PYTHONIOENCODING="ascii")
    lone = site.run("create", "@cli/value", "--name", "lone")

    assert (ran.returncode, ran.stdout) == (0, b"gr\\xfcn\x1b[31m\n")
    assert (lone.returncode, lone.stdout) == (0, b"\\ud800\n")


def test_what_a_predictor_prints_is_not_among_its_results(site: Site, engine: Command) -> None:
    site.predictors(
        """
        print("imported")
        def chatty():
            print("working")
            return 1
        """,
        "chatty",
    )

    assert engine("create", "@cli/chatty") == Ran(0, "1\n", "imported\nworking\n")


def test_what_a_predictor_prints_in_a_worker_is_not_among_its_results(site: Site) -> None:
    site.predictors(
        """
        import os
        from engine import Engine
        def speak(text):
            os.write(1, f"{text}\\n".encode())
        print("imported")
        class Chatty:
            def setup(self): print("set up")
            def predict(self):
                yield 1
                os.write(1, b"working\\n")
                yield 2
            def teardown(self): print("torn down")
        chatty = Chatty
        def through_an_engine_of_its_own():
            with Engine(workers=1) as inner:
                inner.predictions.create(speak, {"text": "from afar"}, runner="process")
            return 3
        """,
        "chatty",
        "through_an_engine_of_its_own",
    )

    created = site.run("create", "@cli/chatty", "--json", "--runner", "process")
    streamed = site.run("stream", "@cli/chatty", "--runner", "process")
    nested = site.run("create", "@cli/through-an-engine-of-its-own")

    [line] = created.stdout.splitlines()
    assert json.loads(line)["results"] == [2]
    assert streamed.stdout == b"1\n2\n"
    for each in (created, streamed):
        assert set(each.stderr.split(b"\n")) == {b"imported", b"set up", b"working", b"torn down", b""}
    assert nested.stdout == b"3\n"
    assert b"from afar" in nested.stderr


def test_what_a_predictor_prints_is_not_among_its_results_wherever_it_prints_it(site: Site) -> None:
    site.predictors(
        """
        import os
        def chatty():
            print("printed", flush=True)
            os.write(1, b"written\\n")
            return 1
        """,
        "chatty",
    )

    for runner in ("inline", "thread", "process"):
        ran = site.run("create", "@cli/chatty", "--runner", runner)
        assert (ran.returncode, ran.stdout, ran.stderr) == (0, b"1\n", b"printed\nwritten\n")


@pytest.mark.parametrize("closed", ["1>&-", "2>&-", "1>&- 2>&-"])
def test_a_predictor_that_prints_in_a_worker_needs_no_reader(site: Site, closed: str) -> None:
    site.predictors(
        """
        def chatty():
            print("printed", flush=True)
            return 1
        """,
        "chatty",
    )

    command = f'"$0" -m engine create @cli/chatty --runner process {closed}'
    ran = subprocess.run(
        ["/bin/sh", "-c", command, sys.executable],
        capture_output=True,
        env=site.environment(),
        cwd=site.folder,
        timeout=CHILD_TIMEOUT,
        check=False,
    )

    assert ran.returncode == 0
    assert ran.stdout == (b"" if "1>" in closed else b"1\n")


def test_each_line_reaches_a_pipe_before_the_next_partial_is_asked_for(site: Site) -> None:
    site.predictors(
        """
        import os
        def steps(fd: int):
            for number in range(2):
                yield number
                assert os.read(fd, 1)
        """,
        "steps",
    )
    reading, writing = os.pipe()
    with subprocess.Popen(
        [sys.executable, "-m", "engine", "stream", "@cli/steps", "--fd", str(reading)],
        stdout=subprocess.PIPE,
        env=site.environment(),
        pass_fds=[reading],
    ) as process:
        os.close(reading)
        assert process.stdout is not None
        try:
            for number in range(2):
                assert select.select([process.stdout], [], [], CHILD_TIMEOUT)[0]
                assert os.read(process.stdout.fileno(), 100) == f"{number}\n".encode()
                os.write(writing, b"x")
            assert process.wait(CHILD_TIMEOUT) == 0
        finally:
            process.kill()
            os.close(writing)
