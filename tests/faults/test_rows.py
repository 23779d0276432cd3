"""README.md beside this file and the markers on the tests, held against each other in both directions.

A row is proved when it names a test of this project's that carries `@pytest.mark.fault` with the row's number.
Markers are read from the source, so nothing has to be collected or imported.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import TYPE_CHECKING

import attrs
import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

HERE = Path(__file__).parent
TESTS = HERE.parent
README = HERE / "README.md"

ROW = re.compile(r"^\| (?P<number>\d+) \| (?P<fault>[^|]+) \| (?P<promise>[^|]+) \| (?P<proof>[^|]+) \|$")
NAMED_TEST = re.compile(r"`(test_\w+)`")
NAMED_FILE = re.compile(r"`(test_\w+\.py)`")


@attrs.frozen
class Row:
    number: int
    proof: str

    @property
    def tests(self) -> list[str]:
        return NAMED_TEST.findall(self.proof)


def rows_of(text: str) -> list[Row]:
    found = (ROW.match(line) for line in text.splitlines())
    return [Row(int(row["number"]), row["proof"]) for row in found if row is not None]


def fault_numbers(decorator: ast.expr) -> Iterator[int]:
    """The rows a decorator or a `pytestmark` names: the arguments of a call of something that ends in `mark.fault`."""
    if isinstance(decorator, ast.Call) and ast.unparse(decorator.func).endswith("mark.fault"):
        for argument in decorator.args:
            yield ast.literal_eval(argument)


def marks_in(source: str) -> Iterator[tuple[str, int]]:
    """Each test of a source and each row it is marked with; a class hands its marks to its tests."""

    def inside(body: list[ast.stmt], inherited: frozenset[int]) -> Iterator[tuple[str, int]]:
        for node in body:
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
                own = inherited | {row for decorator in node.decorator_list for row in fault_numbers(decorator)}
                if isinstance(node, ast.ClassDef):
                    yield from inside(node.body, own)
                elif node.name.startswith("test_"):
                    yield from ((node.name, row) for row in own)

    tree = ast.parse(source)
    everywhere = [
        row
        for node in tree.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "pytestmark"
        for each in (node.value.elts if isinstance(node.value, ast.List) else [node.value])
        for row in fault_numbers(each)
    ]
    yield from inside(tree.body, frozenset(everywhere))


@pytest.fixture(scope="module")
def rows() -> list[Row]:
    return rows_of(README.read_text())


@pytest.fixture(scope="module")
def proofs() -> dict[int, set[str]]:
    """For each row the names of the tests that are marked with it."""
    found: dict[int, set[str]] = {}
    for path in sorted(TESTS.rglob("test_*.py")):
        for name, row in marks_in(path.read_text()):
            found.setdefault(row, set()).add(name)
    return found


def test_every_row_stands_in_the_list_once(rows: list[Row]) -> None:
    numbers = [row.number for row in rows]
    assert len(numbers) == len(set(numbers))
    assert numbers


def test_every_line_of_a_table_is_a_row_that_can_be_read() -> None:
    lines = [line for line in README.read_text().splitlines() if re.match(r"^\| *\d", line)]
    assert [line for line in lines if ROW.match(line) is None] == []


def test_every_row_names_a_test(rows: list[Row]) -> None:
    assert [row.number for row in rows if not row.tests] == []


def test_every_test_a_row_names_is_marked_with_that_row(rows: list[Row], proofs: dict[int, set[str]]) -> None:
    missing = {row.number: sorted(set(row.tests) - proofs.get(row.number, set())) for row in rows}
    assert {number: names for number, names in missing.items() if names} == {}


def test_every_marked_test_proves_a_row_of_the_list_that_names_one(
    rows: list[Row], proofs: dict[int, set[str]]
) -> None:
    named = {row.number for row in rows if row.tests}
    assert {row: sorted(names) for row, names in proofs.items() if row not in named} == {}


def test_every_file_a_row_names_is_there(rows: list[Row]) -> None:
    files = {name for row in rows for name in NAMED_FILE.findall(row.proof)}
    assert [name for name in sorted(files) if not list(TESTS.rglob(name))] == []


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("@pytest.mark.fault(3)\ndef test_it(): ...", [("test_it", 3)]),
        ("@pytest.mark.fault(3, 4)\nasync def test_it(): ...", [("test_it", 3), ("test_it", 4)]),
        (
            "@pytest.mark.fault(3)\nclass TestAll:\n  @mark.fault(4)\n  def test_it(self): ...",
            [("test_it", 3), ("test_it", 4)],
        ),
        ("pytestmark = [pytest.mark.fault(5)]\ndef test_it(): ...", [("test_it", 5)]),
        ("pytestmark = pytest.mark.fault(5)\ndef test_it(): ...", [("test_it", 5)]),
        ("@pytest.mark.usefixtures('fault')\ndef test_it(): ...", []),
        ("@pytest.mark.fault(3)\ndef no_test(): ...", []),
    ],
    ids=["one", "two", "class", "module-list", "module", "another-marker", "no-test"],
)
def test_a_marker_is_seen_however_it_is_written(source: str, expected: list[tuple[str, int]]) -> None:
    assert sorted(marks_in(source)) == expected


def test_a_row_is_read_with_the_tests_it_names() -> None:
    (row,) = rows_of("| 7 | it falls | it stands | `test_falls.py`: `test_it_stands`, `test_it_waits` |")
    assert (row.number, row.tests) == (7, ["test_it_stands", "test_it_waits"])
