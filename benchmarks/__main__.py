"""`python -m benchmarks`: measures the engine beside its peers, and shows what was found."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks import _readme, _report, _results
from benchmarks._case import load, names

_BOUND = 1800.0  # seconds one case may take before it is given up
_ROOT = Path(__file__).parent.parent


def main(argv: Sequence[str] | None = None) -> int:
    """Run what is asked for; give the exit status: 1 if a contender failed, 130 after Ctrl-C."""
    asked = _parsed(argv)
    if asked.list:
        for name in names():
            print(f"{name:<18}  {load(name).about}")
        return 0
    status = 0
    if asked.source:
        document = json.loads(Path(asked.source).read_text(encoding="utf-8"))
    else:
        rows: list[dict[str, Any]] = []
        try:
            _measure(asked.cases or names(), rows, quick=asked.quick)
        except KeyboardInterrupt:
            status = 130
        document = _results.document(rows, quick=asked.quick)
        failed = [row for row in rows if row["role"] == "failed"]
        for row in failed:
            print(f"failed: {row['case']}: {row['contender']}: {row['note']}", file=sys.stderr)
        status = status or bool(failed)
    _show(document, asked)
    return status


def _parsed(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=_report.LEAD)
    parser.add_argument("cases", nargs="*", metavar="case", help="what to measure; see --list; everything if left out")
    parser.add_argument("--list", action="store_true", help="tell which cases there are")
    parser.add_argument("--quick", action="store_true", help="small sizes and few rounds: rough figures in a minute or two")
    parser.add_argument("--from", dest="source", metavar="FILE", help="show an earlier run's JSON instead of measuring")
    parser.add_argument("--json", metavar="FILE", help="write every round of every contender there")
    parser.add_argument("--html", metavar="FILE", help="write a page with bars and curves there")
    parser.add_argument("--compare", metavar="FILE", help="tell what changed since an earlier run's JSON")
    parser.add_argument("--readme", action="store_true", help="put the headline figures into README.md, and its picture")
    asked = parser.parse_args(argv)
    unknown = [each for each in asked.cases if each not in names()]
    if unknown:
        parser.error(f"there is no case {unknown[0]!r}; the cases are: {', '.join(names())}")
    for name in filter(None, (asked.source, asked.compare)):
        if not Path(name).is_file():
            parser.error(f"there is no file {name}")
    return asked


def _show(document: dict[str, Any], asked: argparse.Namespace) -> None:
    encoding = (sys.stdout.encoding or "ascii").lower()
    width = shutil.get_terminal_size((100, 24)).columns
    for line in _report.as_text(document, width, ascii_only="utf" not in encoding):
        print(line)
    if asked.compare:
        old = json.loads(Path(asked.compare).read_text(encoding="utf-8"))
        print(f"== the engine since {old['made']}, as ratios to the limit in the same run")
        for line in _report.compared(document, old):
            print(line)
    if asked.json:
        Path(asked.json).write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    if asked.html:
        Path(asked.html).write_text(_report.as_page(document), encoding="utf-8")
    if asked.readme:
        _readme.rewrite(document, _ROOT)


# --- measuring ---------------------------------------------------------------------------------------------------


def _measure(cases: Sequence[str], rows: list[dict[str, Any]], *, quick: bool) -> None:
    for number, name in enumerate(cases, 1):
        for kind, found in _run(name, quick=quick):
            if kind == "row":
                rows.append(found)
            else:
                _tell(f"[{number}/{len(cases)}] {found}")
    _tell("")


def _run(name: str, *, quick: bool) -> Iterator[tuple[str, Any]]:
    """What a process of its own says of a case; it is ended, with all it started, when nobody listens any more."""
    command = [sys.executable, "-m", "benchmarks._run", name, *(["--quick"] if quick else [])]
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as said:
        process = subprocess.Popen(
            command, cwd=_ROOT, stdout=subprocess.PIPE, stderr=said, text=True, start_new_session=True
        )
        bound = threading.Timer(_BOUND, _end, [process])
        bound.start()
        try:
            for line in process.stdout or ():
                with_what = _understood(line)
                if with_what is not None:
                    yield with_what
            status = process.wait()
        finally:
            bound.cancel()
            bound.join()
            _end(process)
            if process.stdout is not None:
                process.stdout.close()
        if status:
            said.seek(0)
            print(said.read()[-4000:], file=sys.stderr)
            note = f"its process ended with {status}"
            yield "row", _nothing(name, note)


def _understood(line: str) -> tuple[str, Any] | None:
    """A line of ours; whatever a peer prints is none."""
    try:
        found = json.loads(line)
    except ValueError:
        return None
    return next(iter(found.items())) if isinstance(found, dict) and len(found) == 1 else None


def _nothing(name: str, note: str) -> dict[str, Any]:
    facts = {"case": name, "contender": "(all)", "role": "failed", "size": 1, "pinned": False, "rounds": ()}
    return {**facts, "repetitions": 0, "package": "", "version": "", "note": note}


def _end(process: subprocess.Popen[str]) -> None:
    """Kill a process and whatever it started in its session."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    process.wait()


def _tell(words: str) -> None:
    """Show where we are: in one line of a terminal, else a line for each size of each case."""
    if sys.stderr.isatty():
        width = shutil.get_terminal_size().columns - 1
        print(f"\r{words[:width]:<{width}}", end="" if words else "\r", file=sys.stderr, flush=True)
    elif words.endswith("round 1"):
        print(words.partition(":")[0], file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
