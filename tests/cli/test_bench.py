"""`engine bench`: what it measures of a predictor, what it prints and writes, and how it ends. No time is asserted."""

import io
import json
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from textwrap import dedent
from typing import Any

import attrs
import pytest

from engine.cli import main
from engine.cli._measure import Timed
from engine.cli._show import width_of

PREDICTORS = """
    import asyncio
    import itertools
    import os
    import signal
    import threading

    calls = []

    def greets(name: str = "you", n: int = 1):
        calls.append(threading.current_thread())
        return f"hello {name}" * n

    def counts(to: int = 3):
        print("counting")
        yield from range(to)

    async def greets_later():
        await asyncio.sleep(0)
        return "hello"

    async def counts_later():
        for number in range(3):
            yield number

    class Model:
        def setup(self):
            self.numbers = range(2)
        def predict(self):
            yield from self.numbers

    class ModelLater:
        async def setup(self):
            self.numbers = range(2)
        async def predict(self):
            for number in self.numbers:
                yield number

    def fails():
        yield 1
        raise ValueError("no more")

    def fails_at_the_third():
        calls.append(None)
        yield 1
        if len(calls) == 3:
            raise ValueError("third")

    def keeps_a_lock():
        yield threading.Lock()

    def stays_silent():
        yield from ()

    def interrupted_at_the_fifth():
        calls.append(None)
        yield 1
        if len(calls) == 5:
            raise KeyboardInterrupt
        yield 2

    def interrupted_at_once():
        raise KeyboardInterrupt

    numbers = itertools.count(1)

    def interrupted_together():
        number = next(numbers)
        yield 1
        if number == 6:
            os.kill(os.getpid(), signal.SIGINT)
        while number >= 6:  # until it is cancelled
            yield 2

    def takes_the_place_of_its_file():
        os.makedirs("found.json", exist_ok=True)
        yield 1

    def ends_nowhere():
        calls.append(None)
        yield "a"
"""


@attrs.frozen
class Ran:
    """What one command left, and the module of its predictors."""

    status: int
    out: str
    err: str

    @property
    def document(self) -> Any:
        return json.loads(self.out, parse_constant=pytest.fail)


Bench = Callable[..., Ran]


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Bench]:
    """Runs `engine bench` on the predictors above, which are installed as `@bench/<name>`."""
    source = dedent(PREDICTORS)
    (tmp_path / "bench_predictors.py").write_text(source, encoding="utf-8")
    info = tmp_path / "bench_predictors-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: bench-predictors\nVersion: 1.0\n")
    names = re.findall(r"^(?:async )?(?:def|class) (\w+)", source, re.MULTILINE)
    entries = "".join(f"@bench/{name.lower().replace('_', '-')} = bench_predictors:{name}\n" for name in names)
    (info / "entry_points.txt").write_text(f"[predictor_engine.predictors]\n{entries}")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.chdir(tmp_path)

    def run(name: str, *words: str) -> Ran:
        sys.modules.pop("bench_predictors", None)
        status = main(["bench", f"@bench/{name}", *words])
        return Ran(status, *capsys.readouterr())

    yield run
    sys.modules.pop("bench_predictors", None)


@pytest.fixture
def ctrl_c() -> Iterator[None]:
    """Ctrl-C at work, even where the tests run in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def rows(table: str) -> dict[str, list[str]]:
    """The cells of a table by the names of their rows; the runners are the row without a name."""
    head = next(line for line in table.splitlines() if line.startswith("   "))
    found = {"": head.split()}
    for line in table.partition("\n\n")[2].partition("\n\n")[0].splitlines()[1:]:
        name, *cells = re.split(r"\s{2,}", line)
        found[name] = cells
    return found


# What is measured


@pytest.mark.parametrize(
    ("name", "runners", "partials"),
    [
        ("greets", ["inline", "thread", "process"], 1),
        ("counts", ["inline", "thread", "process"], 3),
        ("greets-later", ["loop", "process"], 1),
        ("counts-later", ["loop", "process"], 3),
        ("model", ["inline", "thread", "process"], 2),
        ("modellater", ["loop", "process"], 2),
        ("stays-silent", ["inline", "thread", "process"], 0),
    ],
)
def test_a_predictor_of_any_kind_is_measured_by_default_wherever_it_can_run(
    bench: Bench, name: str, runners: list[str], partials: int
) -> None:
    ran = bench(name, "--n", "9", "--json", "-")

    assert ran.status == 0
    assert [each["runner"] for each in ran.document["runners"]] == runners
    for each in ran.document["runners"]:
        assert (each["calls"], each["failures"], len(each["rounds"])) == (9, 0, 9)
        assert each["partials"] == {"median": partials, "low": partials, "high": partials, "count": 9}
        assert each["first_call"] > 0
        assert (each["gap"] is None) == (partials < 2)


def test_only_the_runners_that_are_named_are_measured_each_once_in_their_order(bench: Bench) -> None:
    words = ["--runner", "thread", "--n", "2", "--json", "-", "--runner", "inline", "--runner", "thread"]

    assert [each["runner"] for each in bench("greets", *words).document["runners"]] == ["thread", "inline"]


def test_options_may_stand_before_the_tag_and_inputs_are_those_of_create(
    bench: Bench, capsys: pytest.CaptureFixture[str]
) -> None:
    bench("greets", "--n", "1", "--runner", "inline")
    words = ["--n", "2", "--runner", "inline", "@bench/counts", "--to", "5", "--json", "-"]
    assert main(["bench", *words]) == 0
    (found,) = json.loads(capsys.readouterr().out)["runners"]

    assert (found["calls"], found["partials"]["median"]) == (2, 5)


def test_an_input_that_is_called_like_an_option_is_given_by_i(bench: Bench) -> None:
    ran = bench("greets", "-i", "n=oops", "--n", "1", "--runner", "inline")

    assert (ran.status, ran.out) == (2, "")
    assert "'n' must be int" in ran.err


def test_a_body_runs_once_for_the_first_call_and_then_as_often_as_was_asked(bench: Bench) -> None:
    assert bench("greets", "--n", "5", "--runner", "inline").status == 0

    assert sys.modules["bench_predictors"].calls == [threading.main_thread()] * 6


def test_calls_at_one_time_are_read_by_threads_of_their_own(bench: Bench) -> None:
    ran = bench("greets", "--n", "7", "--concurrency", "2", "--runner", "inline", "--json", "-")

    calls = sys.modules["bench_predictors"].calls
    assert len(calls) == 1 + 2 + 7  # the first, one for each reader to warm up, and those that count
    assert calls.count(threading.main_thread()) == 1
    assert [len(each["total"]) for each in ran.document["runners"][0]["rounds"]] == [3, 2, 2]


def test_without_a_number_there_are_nine_rounds_at_least(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine.cli._measure._ENOUGH", 0.0)  # no time at all

    (found,) = bench("greets", "--runner", "inline", "--json", "-").document["runners"]

    assert [len(each["total"]) for each in found["rounds"]] == [1] * 9


def test_marks_of_a_clock_become_times() -> None:
    assert Timed.of([1, 3, 4, 8, 10, 11]) == Timed(first=2, gap=2, worst=4, total=10, partials=4)
    assert Timed.of([1, 3, 4]) == Timed(first=2, gap=None, worst=None, total=3, partials=1)
    assert Timed.of([1, 2]) == Timed(first=None, gap=None, worst=None, total=1, partials=0)


# What is printed and written


def test_the_table_has_a_column_for_each_runner_and_bars_below(bench: Bench) -> None:
    ran = bench("counts", "--n", "9", "--concurrency", "1")

    table = rows(ran.out)
    assert table[""] == ["inline", "thread", "process"]
    assert (table["calls"], table["failures"], table["partials"]) == (["9"] * 3, ["0"] * 3, ["3"] * 3)
    measured = ("first call", "first partial", "gap, median", "gap, worst", "whole call")
    assert all(re.fullmatch(r"[\d,.]+ (ns|µs|ms|s)", cell) for name in measured for cell in table[name])
    for title in ("time to the first partial", "gap between partials", "whole call", "calls per second"):
        assert re.search(rf"\n\n{title}\ninline +\S+ \S+  [█▏▎▍▌▋▊▉]+\nthread ", ran.out)
    assert all(width_of(line) <= 100 for line in ran.out.splitlines())


def test_what_a_predictor_prints_and_how_far_it_is_goes_to_stderr(bench: Bench) -> None:
    ran = bench("counts", "--n", "2")

    assert "counting" not in ran.out
    assert "counting" in ran.err
    for runner in ("inline", "thread", "process"):
        assert re.search(rf"^{runner}: first call .+, then 2 calls in 2 rounds$", ran.err, re.MULTILINE)


def test_a_terminal_sees_one_line_that_is_rewritten_and_goes(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")

    assert bench("greets", "--n", "2", "--runner", "inline").status == 0
    said = [f"inline: {what}" for what in ("first call", "round 1 of 2", "round 2 of 2")]
    assert terminal.getvalue().split("\r\x1b[K") == ["", *said, ""]


def test_bars_are_ascii_where_stdout_has_no_more(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    stdout = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", stdout)

    assert bench("greets", "--n", "2").status == 0
    written = stdout.buffer.getvalue().decode("ascii")
    assert "#" in written
    assert "\\" not in written


def test_the_document_says_what_was_measured_and_on_what(bench: Bench, tmp_path: Path) -> None:
    ran = bench("counts", "--n", "9", "--runner", "inline", "--json", "found.json")

    assert ran.status == 0
    assert rows(ran.out)[""] == ["inline"]
    found = json.loads((tmp_path / "found.json").read_text(), parse_constant=pytest.fail)
    assert list(found) == [
        *("format", "tag", "engine", "python", "implementation", "system", "processor", "processors"),
        *("concurrency", "n", "imported", "interrupted", "runners"),
    ]
    assert (found["format"], found["tag"], found["n"]) == (1, "@bench/counts", 9)
    assert (found["concurrency"], found["interrupted"]) == (1, False)
    assert found["python"].startswith(f"{sys.version_info.major}.{sys.version_info.minor}")
    (runner,) = found["runners"]
    spread = {"median", "low", "high", "count"}
    assert set(runner) == {
        *("runner", "first_call", "calls", "failures", "first", "gap", "worst_gap", "total", "rate", "partials"),
        *("note", "rounds"),
    }
    assert all(set(runner[name]) == spread for name in ("first", "gap", "total", "rate", "partials"))
    for each in runner["rounds"]:
        numbers = ("first", "gap", "worst_gap", "total", "partials")
        assert set(each) == {"seconds", "whole", "failures", *numbers}
        assert all(len(each[name]) == 1 for name in numbers)
        assert each["first"][0] <= each["total"][0] <= each["seconds"]


class Fetches(HTMLParser):
    """Collects what a page would load from elsewhere, or run."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [tag] if tag in {"script", "link", "img", "iframe", "object"} else []
        self.found += [f"{name}={value}" for name, value in attrs if "http" in str(value) or name.startswith("on")]


def test_the_page_has_everything_and_needs_nothing_from_elsewhere(bench: Bench, tmp_path: Path) -> None:
    assert bench("counts", "--n", "9", "--html", "found.html").status == 0

    page = (tmp_path / "found.html").read_text(encoding="utf-8")
    parser = Fetches()
    parser.feed(page)
    assert parser.found == []
    assert page.count("<svg") == 4
    for words in ("<h1>@bench/counts</h1>", "Time to the first partial", "Calls per second", "processor", ">process<"):
        assert words in page


def test_a_dash_gives_the_page_and_no_table(bench: Bench) -> None:
    ran = bench("greets", "--n", "1", "--html", "-")

    assert ran.out.startswith("<!DOCTYPE html>\n")
    assert ran.out.endswith("</html>\n")


# How it ends


def test_a_predictor_that_fails_ends_the_command_with_its_error(bench: Bench) -> None:
    ran = bench("fails", "--n", "9")

    assert (ran.status, ran.out) == (1, "")
    assert ran.err.startswith("Traceback")
    assert "ValueError: no more" in ran.err
    assert "predictor @bench/fails, prediction" in ran.err


def test_a_call_that_fails_later_is_counted_and_told(bench: Bench) -> None:
    ran = bench("fails-at-the-third", "--n", "9", "--runner", "inline")

    assert ran.status == 1
    assert "ValueError: third" in ran.err
    assert (rows(ran.out)["calls"], rows(ran.out)["failures"]) == (["8"], ["1"])


def test_what_cannot_be_carried_to_a_worker_is_left_out_unless_it_was_asked_for(bench: Bench) -> None:
    ran = bench("keeps-a-lock", "--n", "2")
    assert ran.status == 0
    assert rows(ran.out)["calls"] == ["2", "2", "0"]
    assert "\nprocess is left out: " in ran.out

    asked = bench("keeps-a-lock", "--n", "2", "--runner", "process")
    assert (asked.status, asked.out) == (1, "")
    assert "lock" in asked.err


def test_a_file_that_cannot_be_written_in_the_end_costs_no_table(bench: Bench) -> None:
    ran = bench("takes-the-place-of-its-file", "--n", "2", "--runner", "inline", "--json", "found.json")

    assert ran.status == 1
    assert rows(ran.out)["calls"] == ["2"]
    assert "engine: 'found.json' cannot be written: Is a directory" in ran.err


@pytest.mark.usefixtures("ctrl_c")
def test_ctrl_c_leaves_what_was_measured(bench: Bench, tmp_path: Path) -> None:
    ran = bench("interrupted-at-the-fifth", "--n", "9", "--runner", "inline", "--json", "found.json")

    assert ran.status == 130
    assert rows(ran.out)["calls"] == ["3"]  # and the first, which is reported apart
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["interrupted"] is True
    assert [each["whole"] for each in found["runners"][0]["rounds"]] == [True, True, True, False]


@pytest.mark.usefixtures("ctrl_c")
def test_ctrl_c_stops_the_readers_of_other_threads_too(bench: Bench) -> None:
    before = threading.active_count()

    ran = bench("interrupted-together", "--n", "9", "--concurrency", "2", "--runner", "inline", "--json", "-")

    assert ran.status == 130
    assert (ran.document["interrupted"], ran.document["runners"][0]["failures"]) == (True, 0)
    assert threading.active_count() == before


@pytest.mark.usefixtures("ctrl_c")
def test_ctrl_c_before_anything_was_measured_prints_nothing(bench: Bench) -> None:
    ran = bench("interrupted-at-once", "--n", "9", "--runner", "inline")

    assert (ran.status, ran.out) == (130, "")


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["--n", "0"], "--n must be a whole number of calls, at least 1, not '0'"),
        (["--n", "many"], "--n must be a whole number of calls, at least 1, not 'many'"),
        (["--n", "-3"], "--n must be a whole number of calls, at least 1, not '-3'"),
        (["--concurrency", "0"], "--concurrency must be a whole number of calls at one time, at least 1, not '0'"),
        (["--runner", "moon"], "there is no runner 'moon'"),
        (["--json", "."], "--json must be the name of a file, or -, and '.' is a folder"),
        (["--html", ""], "--html must be the name of a file, or -, and '' cannot be written"),
        (["--html", "none/such.html"], "--html must be the name of a file, or -, and 'none/such.html' cannot be"),
        (["--json", "a", "--html", "a"], "--json and --html cannot both be written to the same place"),
        (["--json", "-", "--html", "-"], "--json and --html cannot both be written to the same place"),
        (["--json"], "argument --json: expected one argument"),
        (["--m", "3"], "there is no option '--m'"),
        (["--tone", "3"], "there is no option '--tone'"),
    ],
)
def test_a_mistake_is_named_before_anything_is_run(bench: Bench, words: list[str], problem: str) -> None:
    ran = bench("ends-nowhere", *words)

    assert (ran.status, ran.out) == (2, "")
    assert ran.err.startswith(f"engine: {problem}")
    assert sys.modules["bench_predictors"].calls == []


def test_an_async_predictor_cannot_be_measured_inline(bench: Bench) -> None:
    ran = bench("greets-later", "--runner", "inline")

    assert ran.status == 2
    assert "cannot run inline" in ran.err


def test_help_tells_the_options_the_runners_and_the_files(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--help"]) == 0
    out = capsys.readouterr().out
    for words in ("--n N", "--concurrency C", "--json FILE", "--html FILE", "runners:", "files:", "what is measured:"):
        assert words in out
    assert "inputs called concurrency, help, html, inputs, json, n or runner:" in out

    shown = bench("greets", "--help").out
    assert "--name VALUE" in shown
    assert "-i n=VALUE" in shown
