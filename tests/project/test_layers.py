"""The layout, read off the source without running it: what rooms import, who sees private ones, which clocks are read.

The order of the layers themselves is import-linter's, in pyproject.toml; here stands what it cannot say.
"""

import ast
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from engine import Call, Prediction
from engine._worker.outlet import Outlet
from engine.runners.channel import Channel, Reduction
from engine.runners.ending import Ending
from engine.runners.inline import InlineExecution
from engine.runners.owned import OwnedExecution
from engine.runners.process.inlet import Inlet
from engine.runners.task import Handle, TaskExecution

ROOT = Path(__file__).parent.parent.parent
PUBLIC_MODULES = {"cli", "hookspecs", "runners", "testing"}
CORE_DEPENDENCIES = {"attr", "attrs", "cloudpickle", "pluggy"}
# `testing` is for plugin authors, who have pytest; the engine itself never imports it.
OWN_DEPENDENCIES = {"testing": {"pytest"}}
# The one room that may ask for the time of day: `created` is a date. Every duration and deadline is monotonic.
ROOM_WITH_A_CALENDAR = "_records.py"


def sources(folder: str) -> list[Path]:
    found = sorted((ROOT / folder).rglob("*.py"))
    assert found, f"no Python file under {folder}/"
    return found


def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def places(path: Path, nodes: Iterable[ast.expr | ast.stmt]) -> list[str]:
    return [f"{path.relative_to(ROOT)}:{node.lineno}: {ast.unparse(node)}" for node in nodes]


# Imports


def imported(node: ast.AST) -> Iterator[str]:
    """Give the dotted names that an import statement may bind, absolute ones only."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom) and node.level == 0:
        yield from (f"{node.module}.{alias.name}" for alias in node.names)


def run_at_import(node: ast.AST) -> Iterator[ast.AST]:
    """Walk what runs when a module is imported: no bodies of functions, nothing that only type checkers read."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            continue
        yield child
        yield from run_at_import(child)


def is_private(name: str) -> bool:
    return re.match(r"engine\.(\w+\.)*_(?!_)", name) is not None


def private_imports(tree: ast.Module) -> list[ast.stmt]:
    return [node for node in ast.walk(tree) if isinstance(node, ast.stmt) and any(map(is_private, imported(node)))]


@pytest.mark.parametrize(
    "source",
    [
        "import engine._records",
        "from engine._records import Call",
        "from engine import _records",
        "from engine.runners._base import Runner",
        "def late():\n    import engine._errors as errors",
    ],
)
def test_a_private_import_is_seen_however_it_is_written(source: str) -> None:
    assert len(private_imports(ast.parse(source))) == 1


@pytest.mark.parametrize(
    "source", ["from engine import Engine", "from engine import __version__", "from engine.runners import base"]
)
def test_a_public_import_is_not_taken_for_a_private_one(source: str) -> None:
    assert private_imports(ast.parse(source)) == []


def test_plugins_import_public_names_only() -> None:
    assert [place for path in sources("plugins") for place in places(path, private_imports(parsed(path)))] == []


def test_readmes_show_public_names_only() -> None:
    readmes = [ROOT / "README.md", *sorted((ROOT / "plugins").glob("*/README.md"))]
    private = re.compile(r"\bengine\._(?!_)\w+|\bfrom engine import .*\b_(?!_)\w+")

    assert [found for readme in readmes for found in private.findall(readme.read_text(encoding="utf-8"))] == []


def front_door_imports(tree: ast.Module) -> list[ast.stmt]:
    through_the_door = re.compile(r"engine(\.(?!_|hookspecs\b|runners\b)\w+)?$")
    return [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.stmt) and any(map(through_the_door.match, imported(node)))
    ]


@pytest.mark.parametrize(
    ("source", "count"),
    [
        ("import engine", 1),
        ("from engine import Engine", 1),
        ("from engine import _records", 0),
        ("from engine import hookspecs", 0),
        ("from engine._records import Call", 0),
        ("from engine.runners.base import Runner", 0),
    ],
)
def test_an_import_through_the_front_door_is_told_from_one_of_a_room(source: str, count: int) -> None:
    assert len(front_door_imports(ast.parse(source))) == count


def test_no_room_imports_the_front_door() -> None:
    """The layers say nothing of `engine` itself, so a room that imported from it would reach every other one."""
    outside = {ROOT / "engine/__init__.py", *sources("engine/cli"), *sources("engine/testing")}

    assert [
        place
        for path in sources("engine")
        if path not in outside
        for place in places(path, front_door_imports(parsed(path)))
    ] == []


def test_the_core_imports_only_the_standard_library_and_its_three_dependencies() -> None:
    allowed = {"engine", *CORE_DEPENDENCIES, *sys.stdlib_module_names}
    foreign = [
        f"{path.relative_to(ROOT)}: {name}"
        for path in sources("engine")
        for node in run_at_import(parsed(path))
        for name in imported(node)
        if name.partition(".")[0] not in allowed | OWN_DEPENDENCIES.get(path.parent.name, set())
    ]

    assert foreign == []


# Files


def test_only_the_public_modules_have_public_names() -> None:
    rooms = {path.stem for path in (ROOT / "engine").glob("*.py")}
    rooms |= {path.parent.name for path in (ROOT / "engine").glob("*/__init__.py")}

    assert {room for room in rooms if not room.startswith("_")} <= PUBLIC_MODULES


def test_every_plugin_is_a_distribution_of_its_own() -> None:
    plugins = [folder for folder in (ROOT / "plugins").iterdir() if (folder / "pyproject.toml").exists()]
    expected = ["README.md", "src/engine_{}/__init__.py", "src/engine_{}/py.typed", "tests"]
    wanted = [folder / part.format(folder.name) for folder in plugins for part in expected]

    assert plugins
    assert [str(path.relative_to(ROOT)) for path in wanted if not path.exists()] == []


def test_the_set_up_for_development_installs_every_plugin() -> None:
    lines = (ROOT / "requirements-dev.txt").read_text(encoding="utf-8").splitlines()
    plugins = {f"-e plugins/{path.parent.name}" for path in (ROOT / "plugins").glob("*/pyproject.toml")}

    assert set(lines) == {"-e .[dev]", *plugins}


# Names of runners

NAMES_OF_RUNNERS = {"inline", "thread", "loop", "process"}


def names_of_runners(tree: ast.AST) -> list[ast.expr | ast.stmt]:
    """Find every text that is a runner's name."""
    if isinstance(tree, ast.Constant) and tree.value in NAMES_OF_RUNNERS:
        return [tree]
    return [found for child in ast.iter_child_nodes(tree) for found in names_of_runners(child)]


def test_policies_choose_by_no_runners_name() -> None:
    paths = [ROOT / "engine/_free_threading.py", *sources("engine/_policies"), *sources("engine/_registry")]

    assert len(names_of_runners(ast.parse("place.name == 'process'"))) == 1
    assert [place for path in paths for place in places(path, names_of_runners(parsed(path)))] == []


# Clocks

TIMES_OF_DAY = {"time.time", "datetime.now", "datetime.utcnow", "datetime.today", "date.today"}


def times_of_day(tree: ast.Module, *, may_date: bool = False) -> list[ast.expr | ast.stmt]:
    """Find every mention of a clock that can be set back; `time.time_ns` is let through where a date is allowed."""
    banned = TIMES_OF_DAY if may_date else TIMES_OF_DAY | {"time.time_ns"}
    return [
        node
        for node in ast.walk(tree)
        if (isinstance(node, ast.Attribute) and ".".join(ast.unparse(node).split(".")[-2:]) in banned)
        or (isinstance(node, ast.ImportFrom) and any(name in banned for name in imported(node)))
    ]


@pytest.mark.fault(60)
@pytest.mark.parametrize(
    "source",
    [
        "time.time()",
        "deadline = time.time() + 5",
        "clock = time.time",
        "from time import time",
        "time.time_ns()",
        "datetime.now()",
        "datetime.datetime.now(UTC)",
        "datetime.datetime.utcnow()",
        "datetime.date.today()",
    ],
)
def test_a_wall_clock_is_seen_however_it_is_written(source: str) -> None:
    assert len(times_of_day(ast.parse(source))) == 1


@pytest.mark.fault(60)
def test_a_monotonic_clock_is_not_taken_for_a_wall_clock() -> None:
    source = "time.monotonic() + time.perf_counter_ns(); self.time.times; datetime.fromtimestamp(0)"

    assert times_of_day(ast.parse(source)) == []


@pytest.mark.fault(60)
def test_the_engine_reads_a_wall_clock_only_to_date_a_call() -> None:
    assert [
        place
        for path in sources("engine")
        for place in places(path, times_of_day(parsed(path), may_date=path.name == ROOM_WITH_A_CALENDAR))
    ] == []


@pytest.mark.parametrize(
    "hot",
    [
        Ending,
        Channel,
        Reduction,
        Inlet,
        Outlet,
        InlineExecution,
        TaskExecution,
        Handle,
        OwnedExecution,
        Prediction,
        Call,
    ],
)
def test_what_every_partial_passes_through_has_slots_alone(hot: type) -> None:
    """One attribute outside them doubles what a partial costs on some Pythons, and does not show on others."""
    assert not [kind for kind in hot.__mro__ if "__dict__" in vars(kind)]
