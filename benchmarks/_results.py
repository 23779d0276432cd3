"""The document that a run gives: every round of every contender, with what it is compared to."""

from __future__ import annotations

import json
import platform
import sys
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks._case import load
from engine.cli._measure import machine
from engine.cli._numbers import Spread, spread_of

FORMAT = 1  # another one where a name in the document goes or means something else
ENGINE = "predictor-engine"

Row = dict[str, Any]


def document(rows: Sequence[Row], *, quick: bool) -> dict[str, Any]:
    """Put the rows of a run together.

    Args:
        rows: as `_measure.Row` has them, in the order of cases.
        quick: whether the figures are rough.
    """
    packages = {row["package"]: row["version"] for row in rows if row["version"]}
    return {
        "format": FORMAT,
        "made": datetime.now(UTC).isoformat(timespec="seconds"),
        "quick": quick,
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "system": f"{platform.system()} {platform.release()}",
        "machine": machine(),
        "switch_interval": sys.getswitchinterval(),
        "packages": dict(sorted(packages.items())),
        "cases": [_case(name, rows) for name in dict.fromkeys(row["case"] for row in rows)],
    }


def read(file: str) -> dict[str, Any]:
    """The document of an earlier run.

    Raises:
        ValueError: the file cannot be read, or is something else.
    """
    try:
        found = json.loads(Path(file).read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{file} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise ValueError(f"{file} is not JSON: {error}") from error
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise ValueError(f"{file} is not a run of these benchmarks in format {FORMAT}")
    return found


def _case(name: str, rows: Sequence[Row]) -> dict[str, Any]:
    case = load(name)
    mine = [row for row in rows if row["case"] == name]
    return {
        "name": name,
        "title": case.title,
        "about": case.about,
        "per": case.per,
        "unit": case.unit,
        "axis": case.axis,
        "rows": [_row(row, mine) for row in mine],
    }


def _row(row: Row, rows: Sequence[Row]) -> Row:
    beside = [each for each in rows if (each["size"], each["pinned"]) == (row["size"], row["pinned"])]
    found = {name: value for name, value in row.items() if name != "case"}
    if row["rounds"]:
        found["spread"] = _facts(spread_of(row["rounds"]))
        others = {"to_limit": limit_of(beside), "to_best": best_of(beside), "to_engine": engine_of(beside)}
        for name, other in others.items():
            compared = None if other is None else ratio(row, other)
            if compared is not None:
                found[name] = _facts(compared)
    return found


def _facts(spread: Spread) -> dict[str, float]:
    return {"median": spread.median, "low": spread.low, "high": spread.high}


def ratio(row: Row, other: Row) -> Spread | None:
    """How many times the other's figure this one is, round by round, in the rounds that both took part in."""
    rounds = row["beside"].get(other["contender"], other["rounds"])
    ratios = [mine / theirs for mine, theirs in zip(row["rounds"], rounds, strict=True) if theirs]
    return spread_of(ratios) if ratios else None


def limit_of(rows: Sequence[Row]) -> Row | None:
    """The bare loop among rows of one size."""
    return next((row for row in rows if row["role"] == "limit" and row["rounds"]), None)


def best_of(rows: Sequence[Row]) -> Row | None:
    """The hand-written best beside `engine_of`: of bare values too where there is one, or the last."""
    found = [row for row in rows if row["role"] == "best" and row["rounds"]]
    return next((row for row in found if row["contender"].endswith("values")), found[-1] if found else None)


def engine_of(rows: Sequence[Row]) -> Row | None:
    """The engine's row that peers are compared with: bare values, as they give them, or its first."""
    found = [row for row in rows if row["role"] == "engine" and row["rounds"]]
    return next((row for row in found if row["contender"].endswith("values")), found[0] if found else None)


def views(case: dict[str, Any]) -> Iterator[tuple[int, bool, list[Row]]]:
    """The rows of a case by size, then by whether they are pinned."""
    for pinned in (False, True):
        for size in sorted({row["size"] for row in case["rows"] if row["pinned"] == pinned}):
            yield size, pinned, [row for row in case["rows"] if (row["size"], row["pinned"]) == (size, pinned)]


def spread(row: Row, name: str = "spread") -> Spread | None:
    """A spread out of a row of the document."""
    found = row.get(name)
    return None if found is None else Spread(found["median"], found["low"], found["high"], len(row["rounds"]))
