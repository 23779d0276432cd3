"""README's figures: a table and a picture, made of a run's document and of nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from benchmarks._report import bars, name_of
from benchmarks._results import Row, best_of, engine_of, limit_of, spread, views
from engine.cli._charts import bars_as_svg
from engine.cli._numbers import with_unit

BEGIN: Final = "<!-- benchmarks: begin -->\n"
END: Final = "<!-- benchmarks: end -->\n"
PICTURE: Final = "docs/benchmarks.svg"

HEADLINES: Final = (  # the case, its size, and what is said of it
    ("create_eager", 1, "`create`, a function that returns"),
    ("create_generator", 1_000, "`create`, a generator, per partial"),
    ("stream", 1_000, "`stream`, per partial"),
    ("acreate", 1, "`acreate`, an `async def`"),
    ("astream", 1_000, "`astream`, an async generator, per partial"),
    ("async_of_sync", 1_000, "`astream`, a *sync* generator, per partial"),
    ("delay", 1, "the same, from `yield` to receipt, producer busy"),
    ("sync_of_async", 1_000, "`stream`, an *async* generator, per partial"),
    ("thread_eager", 1, '`create(runner="thread")`'),
    ("process_eager", 1, '`create(runner="process")`'),
    ("process_stream", 1_000, '`stream(runner="process")`, per partial'),
    ("process_array_in", 16, "16 MiB into a worker"),
    ("process_array_out", 16, "16 MiB out of a worker, per partial"),
    ("memory", 1_000, "memory of an open stream"),
    ("startup", 1, "start-up, to the first call"),
)
PICTURED: Final = ("async_of_sync", 1_000)
_NEAREST: Final = 3  # peers a row


def rewrite(document: dict[str, Any], root: Path) -> None:
    """Put the figures into README.md, and the picture beside it."""
    before, _, after = parts(root)
    (root / "README.md").write_text(f"{before}{BEGIN}{table(document)}{END}{after}", encoding="utf-8")
    (root / PICTURE).write_text(picture(document), encoding="utf-8")


def parts(root: Path) -> tuple[str, str, str]:
    """README.md before the figures, the figures, and what comes after.

    Raises:
        ValueError: it has no place for them.
    """
    before, _, rest = (root / "README.md").read_text(encoding="utf-8").partition(BEGIN)
    figures, found, after = rest.partition(END)
    if not found:
        raise ValueError(f"README.md needs the lines {BEGIN.strip()} and {END.strip()}")
    return before, figures, after


def table(document: dict[str, Any]) -> str:
    """What stands in README.md."""
    return "\n".join(lines(document)) + "\n"


def rows_of(document: dict[str, Any], name: str, size: int) -> tuple[dict[str, Any], list[Row]] | None:
    """A case, and its rows of one size where everything may run on every processor."""
    case = next((each for each in document["cases"] if each["name"] == name), None)
    if case is None:
        return None
    return case, next((rows for found, pinned, rows in views(case) if found == size and not pinned), [])


def lines(document: dict[str, Any]) -> Iterator[str]:
    """The table, and what it stands on."""
    machine = document["machine"]
    yield ""
    yield "| | limit | by hand | **engine** | peers, nearest first |"
    yield "|---|---|---|---|---|"
    for name, size, words in HEADLINES:
        found = rows_of(document, name, size)
        if found is not None and found[1]:
            yield _line(found[0], found[1], words)
    yield ""
    yield (
        f"{document['python']} on {machine['processor']} with {machine['processors']} processors, "
        f"{document['made'][:10]}; medians of rounds in which all take turns. In brackets: how many times the engine's "
        "figure, within a round."
    )
    yield ""
    yield "What is behind the words, and what each of them does less or more than the engine in that row:"
    yield ""
    for name, size, words in HEADLINES:
        found = rows_of(document, name, size)
        if found is not None and found[1]:
            yield f"- {words}: {'; '.join(_notes(found[1]))}"
    yield ""


def _notes(rows: list[Row]) -> Iterator[str]:
    """Of whom the table shows figures, what they do less or more."""
    shown = [limit_of(rows), best_of(rows), *_nearest(rows)[:_NEAREST]]
    titles = {"limit": "limit: ", "best": "by hand: "}
    for row in filter(None, shown):
        name = titles.get(row["role"], "") + row["contender"]
        yield f"{name} ({row['note']})" if row["note"] else name


def _nearest(rows: list[Row]) -> list[Row]:
    """The peers, from the quickest."""
    peers = [row for row in rows if row["role"] == "peer" and row["rounds"] and "to_engine" in row]
    return sorted(peers, key=lambda row: row["to_engine"]["median"])


def _line(case: dict[str, Any], rows: list[Row], words: str) -> str:
    engine, peers = engine_of(rows), _nearest(rows)
    if engine is None:
        return ""
    shown = [f"{row['contender']} ({with_unit(row['to_engine']['median'], 'x')})" for row in peers[:_NEAREST]]
    more = len(peers) - len(shown)
    named = ", ".join(shown) + (f" and {more} more" if more > 0 else "")
    cells = [_figure(limit_of(rows), case), _figure(best_of(rows), case), f"**{_figure(engine, case)}**", named or "—"]
    return f"| {words} | {' | '.join(cells)} |"


def _figure(row: Row | None, case: dict[str, Any]) -> str:
    found = None if row is None else spread(row)
    return "—" if found is None else with_unit(found.median, case["unit"])


def picture(document: dict[str, Any]) -> str:
    """The one chart that README shows."""
    name, size = PICTURED
    found = rows_of(document, name, size)
    if found is None:
        raise SystemExit(f"the picture needs the case {name}")
    case, rows = found
    return bars_as_svg(bars(rows, case["unit"]), title=name_of(case, size, pinned=False), standalone=True)
