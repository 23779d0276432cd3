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
from collections.abc import Generator, Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import attrs

from benchmarks import _readme, _report, _results
from benchmarks._case import load, names
from benchmarks._measure import Row

_BOUND = 1800.0  # seconds one case may take before it is given up
_ROOT = Path(__file__).parent.parent


def main(argv: Sequence[str] | None = None) -> int:
    """Run what is asked for; give the exit status: 1 if a contender failed, 130 after Ctrl-C."""
    asked = _parsed(argv)
    if asked.list:
        for name in names():
            print(f"{name:<18}  {load(name).about}")
        return 0
    if asked.source is not None:
        _show(asked.source, asked)
        return 0
    rows: list[dict[str, Any]] = []
    status = 0
    try:
        _measure(asked.cases or names(), rows, asked.pace)
    except KeyboardInterrupt:
        status = 130
    _tell("")
    for row in rows:
        if row["role"] == "failed":
            print(f"failed: {row['case']}: {row['contender']}: {row['note']}", file=sys.stderr)
            status = status or 1
    _show(_results.document(rows, quick=asked.pace != "full"), asked)
    return status


def _parsed(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=_report.LEAD)
    add = parser.add_argument
    add("cases", nargs="*", metavar="case", help="what to measure; see --list; everything if left out")
    add("--list", action="store_true", help="tell which cases there are")
    pace = parser.add_mutually_exclusive_group()
    pace.add_argument(
        "--quick", dest="pace", action="store_const", const="quick", default="full", help="small sizes and few rounds"
    )
    pace.add_argument(
        "--brief", dest="pace", action="store_const", const="brief", help="each once: proves that all works, no more"
    )
    add("--from", dest="source", metavar="FILE", help="show an earlier run's JSON instead of measuring")
    add("--json", metavar="FILE", help="write every round of every contender there")
    add("--html", metavar="FILE", help="write a page with bars and curves there")
    add("--compare", metavar="FILE", help="tell what changed since an earlier run's JSON")
    add("--readme", action="store_true", help="put the headline figures into README.md, and its picture")
    asked = parser.parse_args(argv)
    try:
        _check(asked)
    except ValueError as error:
        parser.error(str(error))
    return asked


def _check(asked: argparse.Namespace) -> None:
    """Refuse before anything is measured what cannot be done after it; read the files that are named.

    Raises:
        ValueError: something cannot be done; the message says what.
    """
    unknown = [each for each in asked.cases if each not in names()]
    if unknown:
        raise ValueError(f"there is no case {unknown[0]!r}; the cases are: {', '.join(names())}")
    for file in filter(None, (asked.json, asked.html)):
        if Path(file).is_dir() or not Path(file).absolute().parent.is_dir():
            raise ValueError(f"{file} cannot be written: its folder does not exist, or it is one")
    asked.source = asked.source and _results.read(asked.source)
    asked.compare = asked.compare and _results.read(asked.compare)
    if asked.readme:
        if asked.cases or asked.pace != "full" or (asked.source and asked.source["quick"]):
            raise ValueError("--readme shows all cases of a full run")
        _readme.parts(_ROOT)


def _show(document: dict[str, Any], asked: argparse.Namespace) -> None:
    encoding = (sys.stdout.encoding or "ascii").lower()
    width = shutil.get_terminal_size((100, 24)).columns
    for line in _report.as_text(document, width, ascii_only="utf" not in encoding):
        print(line)
    if asked.compare:
        print(f"== the engine since {asked.compare['made']}, as ratios to the limit in the same run")
        for line in _report.compared(document, asked.compare):
            print(line)
    if asked.json:
        Path(asked.json).write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    if asked.html:
        Path(asked.html).write_text(_report.as_page(document), encoding="utf-8")
    if asked.readme:
        _readme.rewrite(document, _ROOT)


# --- measuring ---------------------------------------------------------------------------------------------------


def _measure(cases: Sequence[str], rows: list[dict[str, Any]], pace: str) -> None:
    for number, name in enumerate(cases, 1):
        with closing(_run(name, pace)) as told:
            for kind, found in told:
                if kind == "row":
                    rows.append(found)
                else:
                    _tell(f"[{number}/{len(cases)}] {found}")


def _run(name: str, pace: str) -> Generator[tuple[str, Any]]:
    """What a process of its own says of a case; it is ended, with all it started, when nobody listens any more."""
    command = [sys.executable, "-m", "benchmarks._run", name, pace]
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
            yield "row", _nothing(name, f"it ended with {status}, see above")


def _understood(line: str) -> tuple[str, Any] | None:
    """A line of ours; whatever a peer prints is none."""
    try:
        found = json.loads(line)
    except ValueError:
        return None
    return next(iter(found.items())) if isinstance(found, dict) and len(found) == 1 else None


def _nothing(name: str, note: str) -> dict[str, Any]:
    return attrs.asdict(Row(name, "(its process)", "failed", 1, False, (), note=note))


def _end(process: subprocess.Popen[str]) -> None:
    """Kill a process and whatever it started in its session."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _tell(words: str) -> None:
    """Show where we are: in one line of a terminal, else a line for each size of each case."""
    if sys.stderr.isatty():
        width = shutil.get_terminal_size().columns - 1
        print(f"\r{words[:width]:<{width}}", end="" if words else "\r", file=sys.stderr, flush=True)
    elif words.endswith(": round 1"):
        print(words.partition(":")[0], file=sys.stderr, flush=True)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # whoever ends this ends what it started, too
    try:
        status = main()
        sys.stdout.flush()
    except BrokenPipeError:  # whoever read this, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python fails once more as it ends
        status = 141  # 128 + SIGPIPE, as shells have it
    sys.exit(status)
