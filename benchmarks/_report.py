"""What a run's document looks like: tables in a terminal, a page, and the comparison with an older run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from benchmarks._results import Row, engine_of, spread, views
from engine.cli._charts import Bar, Curve, Section, bars_as_svg, bars_as_text, curves_as_svg, page
from engine.cli._numbers import Spread, with_unit

_UNLIKE = 3  # sizes that make a curve


def bar(row: Row, unit: str, engine: Row | None) -> Bar:
    """A contender's bar."""
    found = spread(row)
    if found is None:
        return Bar(row["contender"], None, unit, "missing", row["note"])
    words = []
    limit, beside = spread(row, "to_limit"), spread(row, "to_engine")
    if limit is not None and row["role"] != "limit":
        words.append(f"{with_unit(limit.median, 'x')} limit")
    if beside is not None and row["role"] == "peer" and engine is not None:
        words.append(f"{with_unit(beside.median, 'x')} engine")
    return Bar(row["contender"], found, unit, row["role"], row["note"], ", ".join(words))


def bars(rows: Sequence[Row], unit: str) -> list[Bar]:
    """The bars of one size."""
    engine = engine_of(rows)
    return [bar(row, unit, engine) for row in rows]


def name_of(case: dict[str, Any], size: int, *, pinned: bool) -> str:
    """What one chart shows."""
    words = [case["title"]]
    if case["axis"]:
        words.append(f"{size:,} {case['axis']}")
    if pinned:
        words.append("all on one processor")
    return ", ".join(words)


def as_text(document: dict[str, Any], width: int, *, ascii_only: bool) -> Iterator[str]:
    """Lines for a terminal: for each case its largest size with bars, and how it grows."""
    for case in document["cases"]:
        yield f"== {case['title']} ({case['name']}; of one {case['per']})"
        found = list(views(case))
        for pinned in (False, True):
            mine = [(size, rows) for size, is_pinned, rows in found if is_pinned == pinned]
            if mine:
                size, rows = mine[-1]
                if case["axis"] or pinned:
                    yield f"-- {name_of(case, size, pinned=pinned)}"
                yield from bars_as_text(bars(rows, case["unit"]), width, ascii=ascii_only)
                if len(mine) > 1:
                    yield ""
                    yield from _aligned(growth(case, mine))
        yield ""


def growth(case: dict[str, Any], mine: Sequence[tuple[int, list[Row]]]) -> list[tuple[str, ...]]:
    """A row for each contender, a column for each size."""
    names = list(dict.fromkeys(row["contender"] for _, rows in mine for row in rows))
    table = [(case["axis"], *(f"{size:,}" for size, _ in mine))]
    for name in names:
        cells = []
        for _, rows in mine:
            found = next((spread(row) for row in rows if row["contender"] == name), None)
            cells.append("—" if found is None else with_unit(found.median, case["unit"]))
        table.append((name, *cells))
    return table


def _aligned(table: Sequence[Sequence[str]]) -> Iterator[str]:
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for name, *cells in table:
        yield "  ".join([name.ljust(widths[0]), *(c.rjust(w) for c, w in zip(cells, widths[1:], strict=True))])


def facts(document: dict[str, Any]) -> dict[str, str]:
    """What the figures depend on."""
    machine = document["machine"]
    packages = ", ".join(f"{name} {version}" for name, version in document["packages"].items())
    return {
        "Processor": f"{machine['processor']}, {machine['processors']} to use",
        "System": document["system"],
        "Python": document["python"],
        "Measured": document["made"] + (" (quick: rough figures)" if document["quick"] else ""),
        "Packages": packages,
    }


LEAD = (
    "The engine beside a bare loop, the best code a hand writes for the one case, and every peer that does the job. "
    "Bars are medians over rounds in which all contenders take turns, whiskers are quartiles, and a ratio is taken "
    "within a round. Read the ratios: seconds belong to the machine."
)


def as_page(document: dict[str, Any]) -> str:
    """The whole run as one HTML document."""
    return page("predictor-engine, measured", LEAD, [_section(case) for case in document["cases"]], facts(document))


def _section(case: dict[str, Any]) -> Section:
    drawings: list[str] = []
    table: list[tuple[str, ...]] = []
    found = list(views(case))
    for pinned in (False, True):
        mine = [(size, rows) for size, is_pinned, rows in found if is_pinned == pinned]
        if not mine:
            continue
        size, rows = mine[-1]
        drawings.append(bars_as_svg(bars(rows, case["unit"]), title=name_of(case, size, pinned=pinned)))
        if len(mine) >= _UNLIKE and not pinned:
            title = f"{case['title']}, by {case['axis']}"
            drawings.append(curves_as_svg(_curves(mine), title=title, x=case["axis"], unit=case["unit"]))
        if len(mine) > 1 and not pinned:
            table = growth(case, mine)
    notes = {row["contender"]: row["note"] for row in case["rows"] if row["note"]}
    about = f"{case['about']} The figures are of one {case['per']}; shorter is better."
    return Section(
        case["title"],
        about,
        tuple(drawings),
        tuple(table),
        tuple(f"{name}: {note}" for name, note in notes.items()),
    )


def _curves(mine: Sequence[tuple[int, list[Row]]]) -> list[Curve]:
    names = {row["contender"]: row["role"] for _, rows in mine for row in rows if row["rounds"]}
    curves = []
    for name, role in names.items():
        points = [
            (float(size), found)
            for size, rows in mine
            for row in rows
            if row["contender"] == name and (found := spread(row)) is not None
        ]
        curves.append(Curve(name, tuple(points), role))
    return curves


# --- comparing ---------------------------------------------------------------------------------------------------


def compared(new: dict[str, Any], old: dict[str, Any]) -> Iterator[str]:
    """Lines that tell what changed of the engine's rows since an older run, as ratios to the limit in the same run.

    A change is one where the quartiles of both do not meet.
    """
    before = {(case["name"], *_key(row)): row for case in old["cases"] for row in case["rows"]}
    for case in new["cases"]:
        for row in case["rows"]:
            earlier = before.get((case["name"], *_key(row)))
            now, then = spread(row, "to_limit"), spread(earlier, "to_limit") if earlier else None
            if row["role"] == "engine" and now is not None and then is not None:
                name = f"{name_of(case, row['size'], pinned=row['pinned'])}: {row['contender']}"
                change = f"{with_unit(then.median, 'x'):>8} → {with_unit(now.median, 'x'):>8}"
                yield f"{_verdict(now, then):>8}  {change}  {name}"


def _key(row: Row) -> tuple[Any, ...]:
    return row["contender"], row["size"], row["pinned"]


def _verdict(now: Spread, then: Spread) -> str:
    if now.low <= then.high and then.low <= now.high:
        return "the same"
    return f"{(now.median / then.median - 1) * 100:+.0f} %"
