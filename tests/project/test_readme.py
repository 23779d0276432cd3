"""The README and the pages beside it, held to their word: examples are run, commands too, tables compared with what is.

An example says what comes out in one of two ways. A comment `# → …` at the end of an expression is what the expression
gives, as `repr` shows it, or the error it raises (`Type: message`); a ```text block directly below is what the example
prints, ending with the error that ends it, if one does, and the notes on that error. `…` stands for what no two runs
share, such as ids and times. The python blocks under one heading share a namespace, and run on an event loop if one of
them awaits outside any function, as in a notebook. A python block that begins with `# name.py` is that file, and a toml
block is the metadata of an installed distribution, so that what is shown of packages is true of a package.
"""

from __future__ import annotations

import ast
import asyncio
import importlib
import inspect
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import attrs
import pytest

import engine
from engine.runners.channel import MAX_WINDOW
from engine.runners.thread import MOST_ABANDONED, MOST_ABANDONED_OF_ONE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import CodeType, ModuleType, TracebackType

ROOT = Path(__file__).parent.parent.parent
README = ROOT / "README.md"
PAGES = [ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
LANGUAGES = {"python", "sh", "text", "toml"}
ARROW = re.compile(r"# → (.*)$")
PARTS = re.compile(
    r"""^\#+\ (?P<heading>[^\n]+)$
    | (?:^<!--\ ci:\ (?P<marker>\w+)\ -->\n)?
      ^```(?P<language>[^\n]*)\n (?P<source>.*?) ^```$
      (?:\n\n?```text\n (?P<output>.*?) ^```$)?""",
    re.MULTILINE | re.DOTALL | re.VERBOSE,
)


# Reading


@attrs.frozen
class Block:
    """A fenced block of a Markdown file.

    Attributes:
        heading: what it stands under.
        language: the word after its fence.
        source: its lines, each with its end.
        line: the number of its first line in the file.
        output: what the text block directly below it holds; empty where there is none.
        marker: the name in the `<!-- ci: … -->` comment directly above it.
    """

    heading: str
    language: str
    source: str
    line: int
    output: str = ""
    marker: str = ""

    @property
    def module(self) -> str:
        """The name of the module this block is, if it is one."""
        named = re.match(r"# (\w+)\.py\n", self.source)
        return named[1] if named and self.language == "python" else ""


def blocks_of(text: str) -> list[Block]:
    """Find the fenced blocks of a Markdown text, in order; a text block directly below another one is its output."""
    found: list[Block] = []
    heading = ""
    for part in PARTS.finditer(text):
        heading = part["heading"] or heading
        if part["source"] is not None:
            line = text.count("\n", 0, part.start("source")) + 1
            output, marker = part["output"] or "", part["marker"] or ""
            found.append(Block(heading, part["language"], part["source"], line, output, marker))
    return found


def matches(said: str, found: str) -> bool:
    """Whether `found` is what was said, where each `…` stands for some text of one line."""
    pattern = ".+".join(map(re.escape, said.split("…")))
    return re.fullmatch(pattern, found) is not None


# Running examples


class Shown:
    """Takes what the expression on one line gives, or the error it raises, and keeps it beside what was said."""

    def __init__(self, line: int, said: str, differences: list[str]) -> None:
        self.line = line
        self.said = said
        self.differences = differences
        self.found = ""

    def __enter__(self) -> Self:
        return self

    def __call__(self, value: object) -> None:
        self.found = repr(value)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool:
        if error is not None:
            self.found = f"{type(error).__name__}: {error}"
        if not matches(self.said, self.found):
            self.differences.append(f"line {self.line}: said {self.said}, found {self.found}")
        return isinstance(error, Exception)


class ShowOutcomes(ast.NodeTransformer):
    """Hands the value of every expression of a block that ends with `# → …` to `_shown`, and counts them."""

    def __init__(self, block: Block) -> None:
        self.lines = block.source.splitlines()
        self.first = block.line
        self.count = 0

    def visit_Expr(self, node: ast.Expr) -> ast.stmt:
        said = ARROW.search(self.lines[(node.end_lineno or node.lineno) - 1])
        if said is None:
            return node
        self.count += 1
        line = self.first + node.lineno - 1
        [shown] = ast.parse(f"with _shown({line}, {said[1]!r}) as say:\n    say()").body
        for made in ast.walk(shown):
            ast.copy_location(made, node)
            if isinstance(made, ast.Call) and not made.args:
                made.args.append(node.value)
                break
        return shown


def compiled(block: Block) -> CodeType:
    tree = ast.parse(block.source)
    shows = ShowOutcomes(block)
    tree = ast.fix_missing_locations(shows.visit(tree))
    assert shows.count == block.source.count("# →"), f"README.md:{block.line}: `# →` stands only behind an expression"
    ast.increment_lineno(tree, block.line - 1)
    code: CodeType = compile(tree, str(README), "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    return code


def is_awaiting(code: CodeType) -> bool:
    return bool(code.co_flags & inspect.CO_COROUTINE)


class Section:
    """The python blocks under one heading, run in order in one fresh namespace."""

    def __init__(self, blocks: list[Block], printed: Callable[[], str]) -> None:
        self.blocks = blocks
        self.printed = printed
        self.differences: list[str] = []
        self.reached: set[int] = set()
        self.namespace: dict[str, Any] = {"__name__": "__main__", "_shown": self.show}

    def show(self, line: int, said: str) -> Shown:
        self.reached.add(line)
        return Shown(line, said, self.differences)

    def run(self) -> list[str]:
        """Run them; name each line that is not as the README says."""
        codes = [compiled(block) for block in self.blocks]
        try:
            if any(map(is_awaiting, codes)):
                asyncio.run(self.play(codes))
            else:
                step = self.play(codes)
                with pytest.raises(StopIteration):
                    step.send(None)
        finally:
            self.close_engines()
        unreached = sum(block.source.count("# →") for block in self.blocks) - len(self.reached)
        return self.differences + unreached * ["an expression that says what it gives was never reached"]

    async def play(self, codes: list[CodeType]) -> None:
        for block, code in zip(self.blocks, codes, strict=True):
            try:
                result = eval(code, self.namespace)
                if is_awaiting(code):
                    await result
            except Exception as error:
                ending = "\n".join([f"{type(error).__name__}: {error}", *getattr(error, "__notes__", [])])
            else:
                ending = ""
            printed = self.printed() + (ending and f"{ending}\n")
            if not matches(block.output, printed):
                self.differences.append(f"line {block.line}: said it prints\n{block.output}found\n{printed}")

    def close_engines(self) -> None:
        """Close what a block left open, as the interpreter does when it ends."""
        for value in list(self.namespace.values()):
            if isinstance(value, engine.Engine):
                value.close()
        self.namespace.clear()


@pytest.fixture
def play(capsys: pytest.CaptureFixture[str], installed: Path) -> Callable[[list[Block]], list[str]]:
    """Give a function that runs the python blocks of a section, beside the package the README shows."""
    return lambda blocks: Section(blocks, lambda: capsys.readouterr().out).run()


BLOCKS = blocks_of(README.read_text(encoding="utf-8"))
SECTIONS: dict[str, list[Block]] = {}
for each in BLOCKS:
    if each.language == "python" and not each.module:
        SECTIONS.setdefault(each.heading, []).append(each)
for page in PAGES:
    for each in blocks_of(page.read_text(encoding="utf-8")):
        if each.language == "python":
            SECTIONS.setdefault(f"{page.name}: {each.heading}", []).append(each)


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Install the package that the README shows, for this process and for those it starts."""
    modules = [block for block in BLOCKS if block.module]
    for block in modules:
        (tmp_path / f"{block.module}.py").write_text(block.source, encoding="utf-8")
    for block in BLOCKS:
        if block.language == "toml":
            write_metadata(tmp_path, tomllib.loads(block.source)["project"])
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    yield tmp_path
    for block in modules:
        sys.modules.pop(block.module, None)


def write_metadata(folder: Path, project: dict[str, Any]) -> None:
    info = folder / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n")
    groups = (
        f"[{group}]\n" + "".join(f"{name} = {value}\n" for name, value in entries.items())
        for group, entries in project["entry-points"].items()
    )
    (info / "entry_points.txt").write_text("\n".join(groups), encoding="utf-8")


@pytest.mark.parametrize("heading", SECTIONS)
def test_every_example_does_what_it_says(heading: str, play: Callable[[list[Block]], list[str]]) -> None:
    assert play(SECTIONS[heading]) == []


def test_the_first_example_says_the_same_when_its_predictor_is_async(play: Callable[[list[Block]], list[str]]) -> None:
    first, *_ = BLOCKS
    source = first.source.replace("def greet(", "async def greet(")

    assert source.count("async def greet(") == 1
    assert play([attrs.evolve(first, source=source)]) == []


@pytest.mark.parametrize(
    ("source", "output"),
    [
        ("1 + 1  # → 3\n", ""),
        ("1 / 0  # → 1\n", ""),
        ("1 / 1  # → ZeroDivisionError: division by zero\n", ""),
        ("def f():\n    1 + 1  # → 2\n", ""),
        ("def f():\n    1 + 1  # → 3\nf()\n", ""),
        ("print('a')\n", "b\n"),
        ("print('a')\n", ""),
        ("", "a\n"),
        ("1 / 0\n", "ZeroDivisionError: division by one\n"),
        ("import asyncio\nawait asyncio.sleep(0, 1)  # → 2\n", ""),
    ],
)
def test_an_example_that_says_something_else_is_seen(
    source: str, output: str, play: Callable[[list[Block]], list[str]]
) -> None:
    assert len(play([Block("", "python", source, 1, output)])) == 1


@pytest.mark.parametrize(
    ("source", "output"),
    [
        ("1 + 1  # → 2\n", ""),
        ("1 / 0  # → ZeroDivisionError: division by zero\n", ""),
        ("print('a 1 b')\n", "a … b\n"),
        ("1 / 0\n", "ZeroDivisionError: division by zero\n"),
        ("import asyncio\nawait asyncio.sleep(0, 1)  # → 1\n", ""),
    ],
)
def test_an_example_that_says_what_comes_out_passes(
    source: str, output: str, play: Callable[[list[Block]], list[str]]
) -> None:
    assert play([Block("", "python", source, 1, output)]) == []


def test_no_example_hides_the_package_behind_a_variable_of_its_name() -> None:
    trees = [ast.parse(block.source) for block in BLOCKS if block.language == "python"]
    nodes = [node for tree in trees for node in ast.walk(tree)]
    bound = {node.id for node in nodes if isinstance(node, ast.Name)}
    bound |= {node.arg for node in nodes if isinstance(node, ast.arg)}
    bound |= {node.asname or node.name for node in nodes if isinstance(node, ast.alias)}

    assert "engine" not in bound


# Running commands

COMMANDS = [block for block in BLOCKS if block.language == "sh" and not block.marker]


@pytest.mark.parametrize("block", COMMANDS, ids=lambda block: block.source.split("\n")[0])
def test_every_command_prints_what_is_shown(block: Block, installed: Path) -> None:
    printed = ""
    for line in block.source.splitlines():
        program, *words = shlex.split(line, comments=True)
        assert program == "engine"
        told = subprocess.run(
            [Path(sys.executable).with_name(program), *words],
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=50,
            check=False,
        )
        printed += told.stdout + told.stderr
        exits = ARROW.search(line)
        assert f"exit {told.returncode}" == (exits[1] if exits else "exit 0"), told.stderr

    assert matches(block.output, printed), printed


@pytest.mark.parametrize("name", ["run", "test"])
def test_each_set_up_command_is_one_line_directly_under_its_marker(name: str) -> None:
    marked = [block for block in BLOCKS if block.marker == name]

    assert [block.language for block in marked] == ["sh"]
    assert marked[0].source.count("\n") == 1


def test_the_first_command_ends_with_the_greeting() -> None:
    [command] = [block for block in BLOCKS if block.marker == "run"]

    assert command.output.endswith("\nhello from Muna\n")


# What stands around the examples


def test_every_block_is_of_a_language_that_is_checked() -> None:
    assert [(block.line, block.language) for block in BLOCKS if block.language not in LANGUAGES - {"text"}] == []


@pytest.mark.parametrize("page", [README, *PAGES], ids=lambda page: page.name)
def test_every_link_leads_somewhere(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    targets = [target for target in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in target]
    anchors = {anchor_of(line) for line in text.splitlines() if re.match(r"#+ ", line)}

    assert targets
    assert [t for t in targets if not (t[1:] in anchors if t.startswith("#") else (page.parent / t).exists())] == []


def test_the_glossary_has_every_word_of_the_contract() -> None:
    contract = (ROOT / "tests/contract/README.md").read_text(encoding="utf-8")
    words = re.search(r"^## 2\. Words\n(.*?)^## ", contract, re.MULTILINE | re.DOTALL)
    assert words is not None
    glossary = (ROOT / "docs/glossary.md").read_text(encoding="utf-8")

    assert [word for word in re.findall(r"\*([a-z]+)\*", words[1]) if f"\n| {word} |" not in glossary] == []


def test_the_architecture_names_every_room() -> None:
    """A page that explains the rooms is no use once they are others."""
    text = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    rooms = [path for path in (ROOT / "engine").rglob("*.py") if not path.name.startswith("__")]
    told = [path for path in rooms if path.parent.name != "cli"]

    assert [str(path.relative_to(ROOT)) for path in told if not re.search(rf"\b{path.stem}\b", text)] == []


def anchor_of(heading: str) -> str:
    """The anchor that Markdown viewers give a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lstrip("#").strip().lower()).replace(" ", "-")


def names_in_tables(heading: str) -> list[str]:
    """The names, in backquotes, that the first cells of the rows under a heading begin with."""
    text = README.read_text(encoding="utf-8")
    section = re.search(rf"^#+ {re.escape(heading)}\n(.*?)(?=^#|\Z)", text, re.MULTILINE | re.DOTALL)
    assert section is not None, f"no heading {heading!r}"
    cells = re.findall(r"^\| (`[^|]*) \|", section[1], re.MULTILINE)
    return [name for cell in cells for name in re.findall(r"`(\w+)", cell)]


def public_names(module: ModuleType) -> list[str]:
    """What a module says is public, else the names without underscore that it defines itself."""
    if hasattr(module, "__all__"):
        return list(module.__all__)
    statements = ast.parse(inspect.getsource(module)).body
    assigned = [
        node.targets[0] if isinstance(node, ast.Assign) else node.target
        for node in statements
        if isinstance(node, ast.Assign | ast.AnnAssign)
    ]
    names = [node.id for node in assigned if isinstance(node, ast.Name)]
    names += [n.name for n in statements if isinstance(n, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)]
    return [name for name in names if not name.startswith("_")]


@pytest.mark.parametrize("module", ["engine", "engine.runners", "engine.hookspecs", "engine.testing"])
def test_the_reference_names_every_public_name_and_no_other(module: str) -> None:
    assert sorted(names_in_tables(module)) == sorted(public_names(importlib.import_module(module)))


def test_the_table_of_errors_is_the_tree_of_errors() -> None:
    said = set(names_in_tables("Errors"))
    tree = {
        name
        for name in engine.__all__
        if isinstance(getattr(engine, name), type) and issubclass(getattr(engine, name), engine.EngineError)
    }

    assert said == tree - {"EngineError"}


@pytest.mark.parametrize("name", ["Engine", "Predictor", "fold"])
def test_the_reference_gives_the_parameters_there_are(name: str) -> None:
    said = re.search(rf"^\| `{name}\(([^)]*)\)`", README.read_text(encoding="utf-8"), re.MULTILINE)

    assert said is not None
    assert re.findall(r"\w+", said[1]) == list(inspect.signature(getattr(engine, name)).parameters)


@pytest.mark.parametrize(
    ("said", "number"),
    [
        (r"`Engine\(grace=([\d.]+)\)` seconds", inspect.signature(engine.Engine).parameters["grace"].default),
        (r"with\s+(\d+) such threads", MOST_ABANDONED),
        (r"with (\d+) of one predictor", MOST_ABANDONED_OF_ONE),
        (r"at most (\d+) partials ahead", MAX_WINDOW),
    ],
)
def test_the_limits_said_are_the_limits_kept(said: str, number: float) -> None:
    assert [float(found) for found in re.findall(said, README.read_text(encoding="utf-8"))] == [number]
