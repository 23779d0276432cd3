"""The command line: what it understands, what it prints where, and how it ends.

Most tests call `main` in this process; pipes, terminals and Ctrl-C need a process of their own. Predictors are modules
in a folder on the path, beside the few files an installer would write; what is really installed may be there too.
"""

import enum
import errno
import fcntl
import io
import itertools
import json
import math
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from textwrap import dedent
from typing import Annotated, Any, Literal

import attrs
import pytest

from engine._reducers import COLLECT, CONCAT, LAST
from engine._signature import Signature
from engine.cli import main
from engine.cli._show import Display, Output
from engine.cli._values import UnreadableError, value_of, value_of_json

PATIENCE = 30.0  # seconds until a child that does not answer fails its test
# As `engine` itself, with Ctrl-C at work even where the tests run in the background.
START = (
    "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler);"
    "from engine.cli import main; sys.exit(main())"
)

numbers = itertools.count(1)


@attrs.frozen
class Site:
    """A folder that stands for `site-packages`."""

    folder: Path

    def install(self, entries: Mapping[str, str], group: str = "predictor_engine.predictors") -> None:
        """Write the metadata of one more distribution, with these entry points."""
        number = next(numbers)
        info = self.folder / f"fake_{number}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: fake-{number}\nVersion: 1.0\n")
        lines = "".join(f"{name} = {value}\n" for name, value in entries.items())
        (info / "entry_points.txt").write_text(f"[{group}]\n{lines}")

    def write(self, source: str) -> str:
        """Write a module and give its name, which no other test uses."""
        name = f"fake_module_{next(numbers)}"
        (self.folder / f"{name}.py").write_text(dedent(source), encoding="utf-8")
        return name

    def predictors(self, source: str, *names: str) -> None:
        """Install functions of a module as `@cli/<name>`."""
        module = self.write(source)
        self.install({f"@cli/{name.replace('_', '-')}": f"{module}:{name}" for name in names})

    def environment(self, **more: str) -> dict[str, str]:
        """The environment of a child that sees this folder."""
        return {**os.environ, "PYTHONPATH": str(self.folder), "PYTHONIOENCODING": "utf-8", "COLUMNS": "100", **more}

    def run(self, *words: str, stdin: bytes = b"", **more: str) -> subprocess.CompletedProcess[bytes]:
        """Run the command in a process of its own."""
        return subprocess.run(
            [sys.executable, "-m", "engine", *words],
            input=stdin,
            capture_output=True,
            env=self.environment(**more),
            cwd=self.folder,
            timeout=PATIENCE,
            check=False,
        )


@attrs.frozen
class Ran:
    """What one command left."""

    status: int
    out: str
    err: str

    @property
    def documents(self) -> list[dict[str, Any]]:
        return [json.loads(line, parse_constant=pytest.fail) for line in self.out.splitlines()]


@attrs.frozen
class Command:
    """Runs `main` in this process."""

    capsys: pytest.CaptureFixture[str]

    def __call__(self, *words: str) -> Ran:
        status = main(words)
        out, err = self.capsys.readouterr()
        return Ran(status, out, err)


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    before = set(sys.modules)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("COLUMNS", "100")
    yield Site(tmp_path)
    for name in set(sys.modules) - before:
        if name.startswith("fake_module_"):
            del sys.modules[name]


@pytest.fixture
def engine(capsys: pytest.CaptureFixture[str]) -> Command:
    return Command(capsys)


def command_line(words: object) -> str:
    """A readable id for a case that is a list of words."""
    return ascii(" ".join(words))[1:-1] if isinstance(words, list) else ""


TELL = """
def tell(**inputs):
    return {name: repr(value) for name, value in inputs.items()}
"""


# --- text becomes values -----------------------------------------------------------------------------------------


class Colour(enum.Enum):
    RED = "red"
    BLUE = 2
    red_one = "RED"


class Mode(enum.IntFlag):
    READ = 1
    WRITE = 2


class Point(typing.TypedDict):
    x: int


Name = typing.NewType("Name", str)


def converted(annotation: Any, text: str) -> Any:
    def predict(it: Any) -> None: ...

    predict.__annotations__ = {} if annotation is None else {"it": annotation}
    (parameter,) = Signature.of(predict).parameters
    return value_of(parameter, text)


@pytest.mark.parametrize(
    ("annotation", "text", "value"),
    [
        (int, "3", 3),
        (int, "-3", -3),
        (float, "3", 3.0),
        (float, "-1e5", -1e5),
        (float, "inf", math.inf),
        (complex, "1+2j", 1 + 2j),
        (bool, "true", True),
        (bool, "No", False),
        (bool, "1", True),
        (bool, "0", False),
        (bool | None, "yes", True),
        (bool | None, "null", None),
        (str, "3", "3"),
        (str, '"quoted"', '"quoted"'),
        (str, "", ""),
        (str, "@@home", "@home"),
        (str, "@@@home", "@@home"),
        (Name, "3", "3"),
        (bytes, "grün", "grün".encode()),
        (bytes, "\udcff", b"\xff"),
        (bytearray, "a", bytearray(b"a")),
        (Path, "a/b", Path("a/b")),
        (PurePosixPath, "a/b", PurePosixPath("a/b")),
        (os.PathLike, "a/b", Path("a/b")),
        (Path | None, "5", Path("5")),
        (Path | None, "null", None),
        (Colour, "red", Colour.RED),
        (Colour, "RED", Colour.red_one),
        (Colour, "BLUE", Colour.BLUE),
        (Colour, "2", Colour.BLUE),
        (Mode, "3", Mode.READ | Mode.WRITE),
        (Colour | None, "red", Colour.RED),
        (Colour | str, "green", "green"),
        (Colour | str, "BLUE", Colour.BLUE),
        (Literal["a", 1, True, b"b", Colour.BLUE], "a", "a"),
        (Literal["a", 1], "1", 1),
        (Literal["1", 1], "1", "1"),
        (Literal[True, "a"], "true", True),
        (Literal[None, "a"], "null", None),  # noqa: PYI061 - None among the values is the case
        (Literal[b"b", "a"], "b", b"b"),
        (Literal[Colour.BLUE], "BLUE", Colour.BLUE),
        (list[int], "[1, 2]", [1, 2]),
        (list[Path], '["a"]', [Path("a")]),
        (dict[str, float], '{"a": 1.5}', {"a": 1.5}),
        (dict[int, Colour], '{"1": "red"}', {1: Colour.RED}),
        (tuple[int, str], '[1, "a"]', (1, "a")),
        (tuple[Path, ...], '["a", "b"]', (Path("a"), Path("b"))),
        (set[int], "[1, 1]", {1}),
        (frozenset[str], '["a"]', frozenset({"a"})),
        (Sequence[int], "[1]", [1]),
        (Point, '{"x": 1}', {"x": 1}),
        (list[int] | None, "null", None),
        (int | None, "3", 3),
        (int | None, "null", None),
        (int | str, "3", 3),
        (int | str, '"3"', "3"),
        (int | str, "three", "three"),
        (float | None, "nan", pytest.approx(math.nan, nan_ok=True)),
        (str | None, "5", "5"),
        (str | None, "null", None),
        (str | list[str], '["a"]', ["a"]),
        (bytes | str, "a.wav", "a.wav"),
        (bytes | str, '"a.wav"', "a.wav"),
        (bool | str, "yes", "yes"),
        (bool | str, "true", True),
        (float | str, "NaN", "NaN"),
        (Annotated[int, "of things"], "3", 3),
        (Annotated[int, "x"] | None, "3", 3),
        (None, "3", 3),
        (None, "[1]", [1]),
        (None, "null", None),
        (None, "plain text", "plain text"),
        (None, "Infinity", "Infinity"),
        (None, "@@x", "@x"),
        (Any, "3", 3),
        ("Missing", "3", 3),
    ],
)
def test_text_becomes_what_the_annotation_says(annotation: Any, text: str, value: Any) -> None:
    found = converted(annotation, text)

    assert found == value
    assert type(found) is type(value) or type(value).__name__ == "ApproxScalar"


@pytest.mark.parametrize(
    ("annotation", "text", "reason"),
    [
        (int, "x", "'it' must be int, not 'x'"),
        (int, "1.5", "'it' must be int, not '1.5'"),
        (int, "9" * 5000, "'it' must be int"),
        (bool, "maybe", "write true or false"),
        (Colour, "green", "one of Colour.RED"),
        (Literal["a", "b"], "c", "one of 'a', 'b'"),
        (list[int], "1 2", "not JSON: Extra data at line 1, column 3"),
        (list[int], "[" * 100_000, "not readable as JSON"),
        (int | None, "x", "'it' must be int or None, not 'x'"),
        (int, "@", "followed by the name of a file"),
        (str, "@no such file", "cannot read the file 'no such file' (No such file or directory)"),
        (bytes, "@\0", "cannot read the file"),
    ],
)
def test_text_that_does_not_convert_is_refused_with_what_is_expected(annotation: Any, text: str, reason: str) -> None:
    with pytest.raises(UnreadableError) as caught:
        converted(annotation, text)

    assert reason in str(caught.value)


@pytest.mark.parametrize(
    ("annotation", "held", "value"),
    [
        (bytes, b"\xff\n", b"\xff\n"),
        (bytes | str, b"text", b"text"),
        (str | None, "grün\n".encode(), "grün\n"),
        (int, b"5\n", 5),
        (list[int], b"[1]", [1]),
        (Path, b'"a/b"', Path("a/b")),
        (None, b"[1]", [1]),
        (None, b"text", "text"),
        (None, b"\xff", b"\xff"),
    ],
)
def test_a_file_is_read_as_the_annotation_says(annotation: Any, held: bytes, value: Any, tmp_path: Path) -> None:
    file = tmp_path / "input"
    file.write_bytes(held)

    assert converted(annotation, f"@{file}") == value


def test_a_file_that_is_not_text_is_refused_for_a_text(tmp_path: Path) -> None:
    (tmp_path / "input").write_bytes(b"ab\xff")

    with pytest.raises(UnreadableError, match=r"is not UTF-8 text \(byte 2\)"):
        converted(str, f"@{tmp_path / 'input'}")


@pytest.mark.parametrize(
    ("annotation", "value", "fitted"),
    [
        (Path, "a", Path("a")),
        (Colour, "red", Colour.RED),
        (Colour, 2, Colour.BLUE),
        (bytes, "a", b"a"),
        (bytes | str, "a.wav", "a.wav"),
        (list[Path | str], ["a"], ["a"]),
        (list[Path | int], ["a", 1], [Path("a"), 1]),
        (int, "3", "3"),
        (tuple[int, int], [1, 2], (1, 2)),
        (set[int], [[1]], [[1]]),
        (int, {"a": 1}, {"a": 1}),
    ],
)
def test_values_of_json_are_fitted_only_where_json_has_no_form_for_them(
    annotation: Any, value: Any, fitted: Any
) -> None:
    def predict(it: Any) -> None: ...

    predict.__annotations__ = {"it": annotation}

    assert value_of_json(Signature.of(predict).parameters[0], value) == fitted


# --- options -----------------------------------------------------------------------------------------------------

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


# --- help --------------------------------------------------------------------------------------------------------


def test_help_of_a_predictor_lists_its_inputs_with_types_and_defaults(site: Site, engine: Command) -> None:
    site.predictors(
        """
        import enum
        from typing import Annotated, Literal

        class Colour(enum.Enum):
            RED = "red"

        def paint(name: Annotated[str, "100% of %(prog)s\\x1b[31m"], flag: bool = True, json: int = 3,
                  colour: Colour = Colour.RED, many: object = "x" * 500, **rest: int):
            "Paints %(prog)s 100%."
        """,
        "paint",
    )

    ran = engine("create", "@cli/paint", "--help")

    assert (ran.status, ran.err) == (0, "")
    shown = " ".join(ran.out.split())
    assert shown.startswith("usage: engine create @cli/paint [options] Paints %(prog)s 100%.")
    assert r"--name VALUE 100% of %(prog)s\x1b[31m [str, required]" in shown
    assert re.search(r"--flag( \[BOOL\])?, --no-flag \[BOOL\] \[bool, default true\]", shown)
    assert '[Colour.RED, default "red"]' in shown
    assert "-i json=VALUE an input whose name is that of an option [int, default 3]" in shown
    assert "-i NAME=VALUE any other input" in shown
    assert "x" * 300 not in shown
    assert "\x1b" not in ran.out


@pytest.mark.parametrize("words", [["--help"], ["create", "--help"], ["stream", "-h"]], ids=command_line)
def test_help_names_the_options_that_an_input_cannot_have(words: list[str], engine: Command) -> None:
    ran = engine(*words)

    assert (ran.status, ran.err) == (0, "")
    assert "inputs called help, inputs, json or runner:" in ran.out
    assert "-i NAME=VALUE" in ran.out
    assert "130 interrupted" in ran.out


def test_the_version_is_that_of_the_distribution(engine: Command) -> None:
    from importlib.metadata import version

    assert engine("--version") == Ran(0, f"engine {version('predictor-engine')}\n", "")


def imported_by(site: Site, *words: str) -> set[str]:
    """The modules a process has imported when it has run one command."""
    code = "import sys; from engine.cli import main; main(sys.argv[1:]); print(*sys.modules, file=sys.stderr)"
    done = subprocess.run(
        [sys.executable, "-c", code, *words],
        capture_output=True,
        env=site.environment(),
        text=True,
        timeout=PATIENCE,
        check=True,
    )
    return set(done.stderr.split())


def test_help_imports_nothing_heavy_and_discovers_nothing(site: Site) -> None:
    imported = imported_by(site, "--help")

    assert "engine.cli" in imported
    assert imported.isdisjoint({"asyncio", "pluggy", "importlib.metadata", "concurrent.futures", "cloudpickle"})


# --- list and show -----------------------------------------------------------------------------------------------


def test_listing_two_hundred_predictors_imports_none_of_them(site: Site) -> None:
    for number in range(200):
        module = site.write(f"raise AssertionError('imported {number}')")
        site.install({f"@many/p{number:03}": f"{module}:run"})

    listed = site.run("list")
    imported = imported_by(site, "list")

    assert (listed.returncode, listed.stderr) == (0, b"")
    assert sum(line.startswith(b"@many/") for line in listed.stdout.splitlines()) == 200
    assert [name for name in imported if name.startswith("fake_module_")] == []


def test_the_list_is_in_order_with_the_source_of_each(site: Site, engine: Command) -> None:
    site.install({"@zoo/zebra": "nowhere:zebra", "@ape/ape": "nowhere:ape"})

    plain, documents = engine("list"), engine("list", "--json").documents

    tags = [line.split()[0] for line in plain.out.splitlines()]
    assert tags == sorted(tags)
    assert {"@zoo/zebra", "@ape/ape", "@muna/eager"} <= set(tags)
    assert [each["tag"] for each in documents] == tags
    (zebra,) = (each for each in documents if each["tag"] == "@zoo/zebra")
    assert re.fullmatch(r"fake-\d+ 1\.0 \(entry point\)", zebra["source"])
    assert zebra["description"] == ""


def test_what_is_broken_is_told_on_stderr_a_line_each(site: Site, engine: Command) -> None:
    site.install({"broken": site.write("raise RuntimeError('two\\nlines \\x1b[31m')")}, "predictor_engine.plugins")
    site.install({"not/a/tag": "nowhere:none"})
    site.install({"@cli/twice": "nowhere:one"})
    site.install({"@cli/twice": "nowhere:two"})

    ran = engine("list")

    assert ran.status == 0
    assert "@muna/eager" in ran.out
    assert "@cli/twice" not in ran.out
    lines = ran.err.splitlines()
    assert len(lines) == 3
    assert all(line.startswith("engine: ") for line in lines)
    assert {name for name in ("broken", "not/a/tag", "@cli/twice") for line in lines if f"'{name}'" in line} == {
        "broken",
        "not/a/tag",
        "@cli/twice",
    }
    assert "\x1b" not in ran.err


def test_an_empty_list_is_said_on_stderr(engine: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.metadata.distributions", lambda: iter(()))

    assert engine("list") == Ran(0, "", "engine: no predictors are installed\n")


SHOWN = """
from collections.abc import Iterator
from typing import Annotated
from functools import partial
import attrs

@attrs.frozen
class Positive:
    gt: int = 0

def grow(text: Annotated[str, "what to grow"], times: Annotated[int, Positive()] = 3, *, loud: bool = False,
         **rest: int):
    "Grows a text.\\n\\nMore."
    yield text

grow.__predictor__ = {"reduce": "concat", "runner": "thread", "concurrency": 2}

class Model:
    "A model."
    def predict(self, x) -> Iterator[int]: return iter([x])

class Thing:
    async def predict(self): return 1

thing = Thing()
configured = partial(grow, times=4)

async def agrow():
    yield 1
"""


def test_show_tells_everything_about_a_predictor(site: Site, engine: Command) -> None:
    site.predictors(SHOWN, "grow")

    ran = engine("show", "@cli/grow")

    assert (ran.status, ran.err) == (0, "")
    source = re.search(r"fake-\d+", ran.out)
    assert source is not None
    assert ran.out.replace(source[0], "fake") == dedent("""\
        @cli/grow
        Grows a text.

        kind         function, yields partials
        reducer      concat
        runner       thread
        concurrency  2 at a time
        source       fake 1.0 (entry point)

        inputs:
          text    str      required       what to grow
          times   int > 0  default 3
          loud    bool     default false
          **rest  int
        """)


def test_show_gives_the_same_as_json(site: Site, engine: Command) -> None:
    site.predictors(SHOWN, "grow")

    (shown,) = engine("show", "--json", "@cli/grow").documents

    assert shown.pop("source").endswith("1.0 (entry point)")
    inputs = {each["name"]: each for each in shown.pop("inputs")}
    assert shown == {
        "tag": "@cli/grow",
        "description": "Grows a text.",
        "kind": "function",
        "is_async": False,
        "by_value": False,
        "yields": True,
        "reducer": "concat",
        "runner": "thread",
        "concurrency": 2,
    }
    assert inputs["times"] == {
        "name": "times",
        "kind": "positional-or-keyword",
        "type": "int > 0",
        "required": False,
        "default": 3,
        "description": "",
        "constraints": {"gt": 0},
    }
    assert inputs["text"]["required"]
    assert "default" not in inputs["text"]


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("Model", "class, yields partials"),
        ("thing", "async object, returns one value"),
        ("configured", "function, yields partials"),
        ("agrow", "async function, yields partials"),
    ],
)
def test_show_tells_the_kind_of_a_predictor(name: str, kind: str, site: Site, engine: Command) -> None:
    site.install({"@cli/it": f"{site.write(SHOWN)}:{name}"})

    assert f"kind         {kind}\n" in engine("show", "@cli/it").out


def test_show_of_a_predictor_without_inputs_says_so(engine: Command) -> None:
    shown = engine("show", "@muna/generator").out

    assert "inputs: none\n" in shown
    assert "concurrency  unlimited\n" in shown
    assert "runner       the caller's choice\n" in shown


# --- results -----------------------------------------------------------------------------------------------------


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


VALUES = """
import dataclasses, datetime, enum, math, pathlib

class Colour(enum.Enum):
    RED = "red"

@dataclasses.dataclass
class Point:
    x: int

class Hostile:
    def __repr__(self): raise RuntimeError
    __str__ = __repr__

class Array:
    def tolist(self): return [[1]]

around = []
around.append(around)

VALUES = {
    "text": "grün\\x1b[31m", "none": None, "yes": True, "number": 1.5, "nan": math.nan, "pair": (1, "a"),
    "mapping": {"a": [1, None], 2: {3}, None: b"\\x00", (1, 2): 3}, "bytes": b"\\x00\\xff", "enum": Colour.RED,
    "path": pathlib.PurePosixPath("a/b"), "date": datetime.date(2020, 1, 2), "point": Point(1), "hostile": Hostile(),
    "array": Array(), "stranger": object, "many": 10 ** 5000, "around": around, "list": [[], math.inf],
    "lone": "\\ud800",
}

def value(name: str):
    return VALUES[name]

def values():
    yield from VALUES.values()
"""


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
def test_a_predictor_that_prints_in_a_worker_needs_nobody_to_listen(site: Site, closed: str) -> None:
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
        timeout=PATIENCE,
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
                assert select.select([process.stdout], [], [], PATIENCE)[0]
                assert os.read(process.stdout.fileno(), 100) == f"{number}\n".encode()
                os.write(writing, b"x")
            assert process.wait(PATIENCE) == 0
        finally:
            process.kill()
            os.close(writing)


# --- failures ----------------------------------------------------------------------------------------------------

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


# --- a terminal, a closed pipe, Ctrl-C ---------------------------------------------------------------------------


def on_a_terminal(site: Site, *words: str, columns: int = 20, **more: str) -> tuple[int, str]:
    """The status, and what a terminal of so many columns was sent on stdout."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    with subprocess.Popen(
        [sys.executable, "-m", "engine", *words],
        stdin=subprocess.DEVNULL,
        stdout=slave,
        stderr=subprocess.DEVNULL,
        env=site.environment(**{"TERM": "xterm", **more}),
    ) as process:
        os.close(slave)
        sent = b"".join(read_all(master))
        os.close(master)
        return process.wait(PATIENCE), sent.decode().replace("\r\n", "\n")


def read_all(descriptor: int) -> Iterator[bytes]:
    while select.select([descriptor], [], [], PATIENCE)[0]:
        try:
            held = os.read(descriptor, 65536)
        except OSError:  # Linux says so that nobody has the terminal open any more
            return
        if not held:
            return
        yield held
    pytest.fail("nothing was written for a long time")


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


WAITING = """
import asyncio, os, threading

def endless(fd: int):
    try:
        while True:
            yield "x" * 1000
    finally:
        os.write(fd, b"closed")

def sync(fd: int):
    try:
        yield 1
        os.write(fd, b"ready ")
        threading.Event().wait(60)
    finally:
        os.write(fd, b"closed")

async def coroutine(fd: int):
    try:
        yield 1
        os.write(fd, b"ready ")
        await asyncio.Event().wait()
    finally:
        os.write(fd, b"closed")

def plain(fd: int):
    try:
        os.write(fd, b"ready ")
        threading.Event().wait(60)
    finally:
        os.write(fd, b"closed")

def importing(fd: int = 0): ...
"""


@pytest.mark.parametrize(
    ("words", "note", "out"),
    [
        (["stream", "@cli/sync"], b"ready closed", b"1\n"),
        (["stream", "@cli/coroutine"], b"ready closed", b"1\n"),
        (["create", "@cli/sync"], b"ready closed", b""),
        (["create", "@cli/coroutine"], b"ready closed", b""),
        (["create", "@cli/plain"], b"ready closed", b""),
        # A thread cannot be interrupted: it is left behind, and ends with the process.
        (["stream", "@cli/sync", "--runner", "thread"], b"ready ", b"1\n"),
    ],
    ids=command_line,
)
def test_ctrl_c_closes_the_prediction_and_says_nothing(words: list[str], note: bytes, out: bytes, site: Site) -> None:
    site.predictors(WAITING, "sync", "coroutine", "plain")
    reading, writing = os.pipe()
    with subprocess.Popen(
        [sys.executable, "-c", START, *words, "--fd", str(writing)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=site.environment(),
        pass_fds=[writing],
        start_new_session=True,
    ) as process:
        os.close(writing)
        try:
            assert select.select([reading], [], [], PATIENCE)[0]
            begun = os.read(reading, 6)
            # In a thread the body may be there before the first partial is printed.
            assert process.stdout is not None
            assert not out or select.select([process.stdout], [], [], PATIENCE)[0]
            shown = os.read(process.stdout.fileno(), 100) if out else b""
            os.killpg(process.pid, signal.SIGINT)
            printed, told = process.communicate(timeout=PATIENCE)
            assert begun + os.read(reading, 100) == note
        finally:
            process.kill()
            os.close(reading)

    assert (process.returncode, shown + printed, told) == (130, out, b"\n")


def test_ctrl_c_while_a_predictor_is_imported_says_nothing(site: Site, engine: Command) -> None:
    site.predictors("raise KeyboardInterrupt", "it")

    assert engine("show", "@cli/it") == Ran(130, "", "\n")


@pytest.mark.parametrize("options", [[], ["--json"], ["--runner", "thread"]], ids=["plain", "json", "thread"])
def test_a_reader_that_leaves_ends_the_stream_quietly(options: list[str], site: Site) -> None:
    site.predictors(WAITING, "endless")
    reading, writing = os.pipe()
    with subprocess.Popen(
        [sys.executable, "-m", "engine", "stream", "@cli/endless", "--fd", str(writing), *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=site.environment(),
        pass_fds=[writing],
    ) as process:
        os.close(writing)
        assert process.stdout is not None
        assert process.stderr is not None
        try:
            assert process.stdout.readline()
            process.stdout.close()
            assert process.wait(PATIENCE) == 141
            assert process.stderr.read() == b""
            assert os.read(reading, 100) == b"closed"
        finally:
            process.kill()
            os.close(reading)


def test_help_into_a_closed_pipe_is_quiet_too(site: Site) -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "engine", "--help"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=site.environment(),
    ) as process:
        assert process.stdout is not None
        process.stdout.close()
        assert process.stderr is not None
        assert process.stderr.read() == b""
        assert process.wait(PATIENCE) == 141


def test_the_installed_command_and_the_module_are_the_same(site: Site) -> None:
    installed = subprocess.run(
        [Path(sys.executable).parent / "engine", "create", "@muna/eager"],
        capture_output=True,
        timeout=PATIENCE,
        check=True,
    )

    assert installed.stdout == site.run("create", "@muna/eager").stdout == b"hello from Muna\n"
