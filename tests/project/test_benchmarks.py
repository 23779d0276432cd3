"""The benchmarks themselves: every case runs, who gives something else is told from who is slow, and figures are those
of the rounds."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
from html.parser import HTMLParser
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import pytest

from benchmarks import __main__ as command
from benchmarks import _readme, _report, _results
from benchmarks._case import AsyncCalls, Calls, Case, Samples, cannot, load, names
from benchmarks._measure import PACES, Pace, Row, measure

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

ROOT = Path(__file__).parent.parent.parent
FULL = ROOT / "benchmarks" / "results" / "full.json"
BRIEF = PACES["brief"]
FEW = ("create_eager", "stream", "sync_of_async", "memory")  # a case of each kind: no axis, partials, threads, bytes


def a_case(drive: Any = None) -> Case:
    return Case("a", "a title", "about it", drive or Calls())


def measured(case: Case, pace: Pace = BRIEF) -> dict[str, Row]:
    return {row.contender: row for row in measure(case, pace, lambda _: None)}


# --- every case ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", names())
def test_every_case_runs_and_all_contenders_give_the_same(name: str) -> None:
    run = [sys.executable, "-m", "benchmarks._run", name, "brief"]
    done = subprocess.run(run, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    told = [json.loads(line) for line in done.stdout.splitlines()]
    rows = [each["row"] for each in told if "row" in each]
    assert [(row["contender"], row["note"]) for row in rows if row["role"] == "failed"] == []
    case = load(name)
    assert [row["contender"] for row in rows] == [each.name for each in case.contenders]
    for row in rows:
        if row["role"] == "missing":
            assert row["note"] == f"not installed: pip install {row['package']}"
        elif row["role"] != "cannot":
            assert row["rounds"]


@pytest.mark.parametrize("name", names())
def test_every_case_has_one_limit_and_the_engine_beside_its_peers(name: str) -> None:
    contenders = load(name).contenders
    roles = [each.role for each in contenders]
    assert roles.count("limit") == 1
    assert contenders[0].role == "limit", "all others are proved against the first"
    assert {"best", "engine", "peer"} <= set(roles)
    assert len({each.name for each in contenders}) == len(contenders)


def test_every_peer_that_can_be_installed_is_in_the_requirements() -> None:
    listed = set((ROOT / "benchmarks" / "requirements.txt").read_text(encoding="utf-8").split())
    needed = {each.package for name in names() for each in load(name).contenders if each.package}
    assert needed - listed <= {"predictor-engine", "pluggy"}


# --- who is out ------------------------------------------------------------------------------------------------------


def test_a_contender_that_gives_something_else_fails_and_no_other_does() -> None:
    case = a_case()
    cleaned: list[str] = []

    def contender(name: str, value: str, role: Any = "peer") -> None:
        @case.contender(name, role=role)
        def make(_size: int) -> Iterator[Any]:
            yield (lambda: value,)
            cleaned.append(name)

    contender("first", "right", "limit")
    contender("wrong", "wrong")
    contender("last", "right")
    rows = measured(case)
    assert rows["wrong"].role == "failed"
    assert rows["wrong"].note == "AssertionError: it gave ['wrong', 'wrong'] where the first gave ['right', 'right']"
    assert rows["wrong"].rounds == ()
    assert rows["first"].role == "limit"
    assert len(rows["first"].rounds) == len(rows["last"].rounds) == 1
    assert sorted(cleaned) == ["first", "last", "wrong"]


def test_an_async_contender_cleans_up_on_its_own_loop_also_when_another_fails() -> None:
    case = a_case(AsyncCalls())
    cleaned: list[str] = []

    @case.contender("first", role="limit")
    async def first(_size: int) -> AsyncIterator[Any]:
        async def call() -> str:
            return "right"

        yield (call,)
        cleaned.append("first")

    @case.contender("broken")
    async def broken(_size: int) -> AsyncIterator[Any]:
        yield int("it cannot start")

    rows = measured(case)
    assert rows["broken"].note == "ValueError: invalid literal for int() with base 10: 'it cannot start'"
    assert rows["first"].role == "limit"
    assert cleaned == ["first"]


def test_who_breaks_in_a_round_or_after_it_fails_alone() -> None:
    case = a_case()

    @case.contender("first", role="limit")
    def first(_size: int) -> Iterator[Any]:
        yield (lambda: "right",)

    @case.contender("later")
    def later(_size: int) -> Iterator[Any]:
        calls = count(1)

        def call() -> str:
            if next(calls) > 3:
                raise ValueError("it had enough")
            return "right"

        yield (call,)

    @case.contender("leaves")
    def leaves(_size: int) -> Iterator[Any]:
        yield (lambda: "right",)
        raise ValueError("it cannot clean up")

    rows = measured(case, attrs.evolve(BRIEF, rounds=3))
    assert (rows["later"].role, rows["later"].note) == ("failed", "ValueError: it had enough")
    assert (rows["leaves"].role, rows["leaves"].note) == ("failed", "ValueError: it cannot clean up")
    assert len(rows["first"].rounds) == 3


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="this system has no timer that interrupts")
def test_who_hangs_fails_alone() -> None:
    case = a_case()

    @case.contender("first", role="limit")
    def first(_size: int) -> Iterator[Any]:
        yield (lambda: True,)

    @case.contender("hangs")
    def hangs(_size: int) -> Iterator[Any]:
        yield (threading.Event().wait,)

    rows = measured(case, attrs.evolve(BRIEF, patience=0.2))
    assert (rows["hangs"].role, rows["hangs"].note) == ("failed", "TimeoutError: it took more than 0.2 s")
    assert rows["first"].role == "limit"


def test_what_is_not_installed_is_missing_and_what_is_and_cannot_be_imported_has_failed() -> None:
    case = a_case()

    @case.contender("first", role="limit")
    def first(_size: int) -> Iterator[Any]:
        yield (lambda: True,)

    def importing(_size: int) -> Iterator[Any]:
        import no_such_module  # type: ignore[import-not-found]

        yield (no_such_module.call,)

    case.contender("absent", package="no-such-distribution")(importing)
    case.contender("damaged", package="pytest")(importing)

    @case.contender("unfit", package="pytest")
    def unfit(_size: int) -> Iterator[Any]:
        yield cannot("it is a test runner")

    rows = measured(case)
    assert (rows["absent"].role, rows["absent"].note) == ("missing", "not installed: pip install no-such-distribution")
    assert (rows["damaged"].role, rows["damaged"].note[:19]) == ("failed", "ModuleNotFoundError")
    assert (rows["unfit"].role, rows["unfit"].note) == ("cannot", "it is a test runner")


# --- figures ---------------------------------------------------------------------------------------------------------


def sampled(figures: Iterator[float]) -> Any:
    """A contender that gives these figures, one a call, and always the same items."""

    def make(_size: int) -> Iterator[Any]:
        yield (lambda: (next(figures), ["item"]),)

    return make


def test_ratios_are_those_of_the_rounds_and_of_its_own_for_who_is_apart() -> None:
    case = attrs.evolve(a_case(Samples()), is_once=True)
    # The first figure is that of the proof.
    case.contender("limit", role="limit")(sampled(iter([0.0, 1.0, 2.0, 4.0, 10.0, 20.0, 40.0])))
    case.contender("engine", role="engine")(sampled(iter([0.0, 2.0, 4.0, 8.0, 10.0, 10.0, 10.0])))
    case.contender("peer")(sampled(iter([0.0, 3.0, 6.0, 40.0])))
    case.contender("apart", is_apart=True)(sampled(iter([0.0, 10.0, 20.0, 80.0])))
    rows = [attrs.asdict(row) for row in measured(case, attrs.evolve(BRIEF, rounds=3)).values()]
    limit, engine, peer, apart = (_results._row(row, rows) for row in rows)
    assert limit["rounds"] == (1.0, 2.0, 4.0)
    assert limit["to_limit"]["median"] == 1.0
    assert engine["to_limit"] == {"median": 2.0, "low": 2.0, "high": 2.0}
    assert peer["to_limit"]["median"] == 3.0
    assert peer["to_engine"] == {"median": 1.5, "low": 1.5, "high": 3.25}
    assert "to_best" not in peer
    assert apart["beside"] == {"limit": (10.0, 20.0, 40.0), "engine": (10.0, 10.0, 10.0)}
    assert apart["to_limit"]["median"] == 1.0
    assert apart["to_engine"]["median"] == 2.0


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Measure a few cases once: the files that were written."""
    folder = tmp_path_factory.mktemp("run")
    files = {kind: folder / f"run.{kind}" for kind in ("json", "html")}
    assert command.main(["--brief", *FEW, "--json", str(files["json"]), "--html", str(files["html"])]) == 0
    return files


def test_the_document_holds_every_round_and_what_follows_from_them(run: dict[str, Path]) -> None:
    document = _results.read(str(run["json"]))
    assert tuple(case["name"] for case in document["cases"]) == FEW
    assert document["packages"]["predictor-engine"]
    for case in document["cases"]:
        for _, _, rows in _results.views(case):
            limit = _results.limit_of(rows)
            assert limit is not None
            for row in rows:
                if row["rounds"]:
                    ratios = [mine / least for mine, least in zip(row["rounds"], limit["rounds"], strict=True)]
                    assert row["to_limit"]["low"] <= ratios[0] <= row["to_limit"]["high"]
                    assert row["spread"]["low"] <= row["rounds"][0] <= row["spread"]["high"]


class Page(HTMLParser):
    """What a page needs from elsewhere, and its tags that are open."""

    VOID = frozenset({"meta", "link", "br", "hr", "img", "input"})

    def __init__(self) -> None:
        super().__init__()
        self.needs: list[str] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in self.VOID:
            self.open.append(tag)
        if tag in {"link", "script", "iframe", "img"}:
            self.needs.append(tag)
        self.needs += [str(value) for name, value in attrs if name in {"src", "href", "xlink:href"} and value]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_parses_and_needs_nothing_from_elsewhere(run: dict[str, Path]) -> None:
    text, page = run["html"].read_text(encoding="utf-8"), Page()
    page.feed(text)
    page.close()
    assert page.open == []
    assert [each for each in page.needs if not each.startswith("#")] == []
    assert re.findall(r"@import|url\((?!#)", text) == []
    for name in FEW:
        assert load(name).title.partition(",")[0].lower() in text.lower()


def test_a_run_compared_with_itself_is_the_same_everywhere(
    run: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert command.main(["--from", str(run["json"]), "--compare", str(run["json"])]) == 0
    _, _, compared = capsys.readouterr().out.partition("== the engine since")
    lines = compared.splitlines()[1:]
    engines = [each for name in FEW for each in load(name).contenders if each.role == "engine"]
    assert len(lines) == len(engines)
    assert {line[:10].strip() for line in lines} == {"the same"}


def test_a_change_is_one_where_the_quartiles_do_not_meet(run: dict[str, Path]) -> None:
    old = _results.read(str(run["json"]))
    new = json.loads(json.dumps(old))
    row = next(row for row in new["cases"][0]["rows"] if row["role"] == "engine")
    row["to_limit"] = {name: value * 2 for name, value in row["to_limit"].items()}
    first, *others = _report.compared(new, old)
    assert first.startswith("  +100 %")
    assert all(line.startswith("the same") for line in others)


def test_a_table_can_be_shown_where_nothing_but_ascii_can(run: dict[str, Path]) -> None:
    document = _results.read(str(run["json"]))
    assert list(_report.as_text(document, 80, ascii_only=True))


def test_readme_shows_the_recorded_run() -> None:
    document = _results.read(str(FULL))
    assert _readme.parts(ROOT)[1] == _readme.table(document)
    assert (ROOT / _readme.PICTURE).read_text(encoding="utf-8") == _readme.picture(document)


def test_every_headline_is_a_size_of_a_case() -> None:
    for name, size, _ in (*_readme.HEADLINES, (*_readme.PICTURED, "")):
        assert size in load(name).sizes


# --- the command -----------------------------------------------------------------------------------------------------


def refused(argv: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as left:
        command.main(argv)
    assert left.value.code == 2
    return capsys.readouterr().err.splitlines()[-1]


def test_the_list_has_a_line_for_each_case(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["--list"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == names()


def test_a_reader_that_has_seen_enough_of_the_list_ends_it_without_a_word() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks", "--list"],
            stdout=writer,
            stderr=subprocess.PIPE,
            text=True,
            timeout=30,
            check=False,
        )
    finally:
        os.close(writer)
    assert (done.returncode, done.stderr) == (141, "")


def test_what_cannot_be_done_is_refused_in_one_line_before_anything_is_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other, older = tmp_path / "other.json", tmp_path / "older.json"
    other.write_text("no JSON", encoding="utf-8")
    older.write_text('{"format": 0}', encoding="utf-8")
    for option in ("--from", "--compare"):
        assert "cannot be read" in refused([option, str(tmp_path / "none.json")], capsys)
        assert "is not JSON" in refused([option, str(other)], capsys)
        assert "is not a run of these benchmarks in format 1" in refused([option, str(older)], capsys)
    for option in ("--json", "--html"):
        assert "cannot be written" in refused([option, str(tmp_path / "none" / "file")], capsys)
        assert "cannot be written" in refused([option, str(tmp_path)], capsys)
    assert "there is no case 'nothing'; the cases are: create_eager," in refused(["nothing"], capsys)
    assert "--readme shows all cases of a full run" in refused(["--readme", "stream"], capsys)
    assert "--readme shows all cases of a full run" in refused(["--readme", "--quick"], capsys)


def test_a_case_whose_output_is_read_no_more_ends_with_its_process() -> None:
    told = command._run("busy_loop", "brief")
    kind, _ = next(told)
    assert kind == "step"
    told.close()  # what the process left would be seen after this test


def test_a_case_whose_process_fails_is_a_failed_row(capsys: pytest.CaptureFixture[str]) -> None:
    [(kind, row)] = command._run("no_such_case", "brief")
    assert (kind, row["role"], row["contender"]) == ("row", "failed", "(its process)")
    assert row["note"] == "it ended with 1, see above"
    assert "no_such_case" in capsys.readouterr().err


def test_ctrl_c_shows_what_was_measured_until_then(tmp_path: Path) -> None:
    file = tmp_path / "run.json"
    argv = [sys.executable, "-m", "benchmarks", "--brief", "lookup", "busy_loop", "--json", str(file)]
    with subprocess.Popen(argv, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        assert any(line.startswith("[2/2]") for line in process.stderr)  # busy_loop takes a while from here
        process.send_signal(signal.SIGINT)
        out, _ = process.communicate()
    assert process.returncode == 130
    assert load("lookup").title in out
    assert [case["name"] for case in _results.read(str(file))["cases"]] == ["lookup"]
