"""The command line with predictors of its own: called in this process, or run as a command.

Most tests call `main` in this process; pipes, terminals and Ctrl-C need a process of their own. Predictors are modules
in a folder on the path, beside the few files an installer would write; what is really installed may be there too.
"""

import fcntl
import itertools
import json
import os
import pty
import select
import struct
import subprocess
import sys
import termios
from collections.abc import Iterator, Mapping
from pathlib import Path
from textwrap import dedent
from typing import Any

import attrs
import pytest

from engine.cli import main

CHILD_TIMEOUT = 30.0  # seconds until a child that does not answer fails its test
# As `engine` itself, with Ctrl-C at work even where the tests run in the background.
START = (
    "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler);"
    "from engine.cli import main; sys.exit(main())"
)

numbers = itertools.count(1)


@attrs.frozen
class Site:
    """A folder that stands for `site-packages`."""

    folder: Path

    def install(self, entries: Mapping[str, str], group: str = "predictor_engine.predictors") -> None:
        """Write the metadata of one more distribution, with these entry points."""
        number = next(numbers)
        info = self.folder / f"fake_{number}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: fake-{number}\nVersion: 1.0\n")
        lines = "".join(f"{name} = {value}\n" for name, value in entries.items())
        (info / "entry_points.txt").write_text(f"[{group}]\n{lines}")

    def write(self, source: str) -> str:
        """Write a module and give its name, which no other test uses."""
        name = f"fake_module_{next(numbers)}"
        (self.folder / f"{name}.py").write_text(dedent(source), encoding="utf-8")
        return name

    def predictors(self, source: str, *names: str) -> None:
        """Install functions of a module as `@cli/<name>`."""
        module = self.write(source)
        self.install({f"@cli/{name.replace('_', '-')}": f"{module}:{name}" for name in names})

    def environment(self, **more: str) -> dict[str, str]:
        """The environment of a child that sees this folder."""
        return {**os.environ, "PYTHONPATH": str(self.folder), "PYTHONIOENCODING": "utf-8", "COLUMNS": "100", **more}

    def run(self, *words: str, stdin: bytes = b"", **more: str) -> subprocess.CompletedProcess[bytes]:
        """Run the command in a process of its own."""
        return subprocess.run(
            [sys.executable, "-m", "engine", *words],
            input=stdin,
            capture_output=True,
            env=self.environment(**more),
            cwd=self.folder,
            timeout=CHILD_TIMEOUT,
            check=False,
        )


@attrs.frozen
class Ran:
    """What one command left."""

    status: int
    out: str
    err: str

    @property
    def documents(self) -> list[dict[str, Any]]:
        return [json.loads(line, parse_constant=pytest.fail) for line in self.out.splitlines()]


@attrs.frozen
class Command:
    """Runs `main` in this process."""

    capsys: pytest.CaptureFixture[str]

    def __call__(self, *words: str) -> Ran:
        status = main(words)
        out, err = self.capsys.readouterr()
        return Ran(status, out, err)


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    before = set(sys.modules)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("COLUMNS", "100")
    yield Site(tmp_path)
    for name in set(sys.modules) - before:
        if name.startswith("fake_module_"):
            del sys.modules[name]


@pytest.fixture
def engine(capsys: pytest.CaptureFixture[str]) -> Command:
    return Command(capsys)


def command_line(words: object) -> str:
    """A readable id for a case that is a list of words."""
    return ascii(" ".join(words))[1:-1] if isinstance(words, list) else ""


def imported_by(site: Site, *words: str) -> set[str]:
    """The modules a process has imported when it has run one command."""
    code = "import sys; from engine.cli import main; main(sys.argv[1:]); print(*sys.modules, file=sys.stderr)"
    done = subprocess.run(
        [sys.executable, "-c", code, *words],
        capture_output=True,
        env=site.environment(),
        text=True,
        timeout=CHILD_TIMEOUT,
        check=True,
    )
    return set(done.stderr.split())


VALUES = """
import dataclasses, datetime, enum, math, pathlib

class Colour(enum.Enum):
    RED = "red"

@dataclasses.dataclass
class Point:
    x: int

class Hostile:
    def __repr__(self): raise RuntimeError
    __str__ = __repr__

class Array:
    def tolist(self): return [[1]]

around = []
around.append(around)

VALUES = {
    "text": "grün\\x1b[31m", "none": None, "yes": True, "number": 1.5, "nan": math.nan, "pair": (1, "a"),
    "mapping": {"a": [1, None], 2: {3}, None: b"\\x00", (1, 2): 3}, "bytes": b"\\x00\\xff", "enum": Colour.RED,
    "path": pathlib.PurePosixPath("a/b"), "date": datetime.date(2020, 1, 2), "point": Point(1), "hostile": Hostile(),
    "array": Array(), "stranger": object, "many": 10 ** 5000, "around": around, "list": [[], math.inf],
    "lone": "\\ud800",
}

def value(name: str):
    return VALUES[name]

def values():
    yield from VALUES.values()
"""


def on_a_terminal(site: Site, *words: str, columns: int = 20, **more: str) -> tuple[int, str]:
    """The status, and what a terminal of so many columns was sent on stdout."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    with subprocess.Popen(
        [sys.executable, "-m", "engine", *words],
        stdin=subprocess.DEVNULL,
        stdout=slave,
        stderr=subprocess.DEVNULL,
        env=site.environment(**{"TERM": "xterm", **more}),
    ) as process:
        os.close(slave)
        sent = b"".join(read_all(master))
        os.close(master)
        return process.wait(CHILD_TIMEOUT), sent.decode().replace("\r\n", "\n")


def read_all(descriptor: int) -> Iterator[bytes]:
    while select.select([descriptor], [], [], CHILD_TIMEOUT)[0]:
        try:
            held = os.read(descriptor, 65536)
        except OSError:  # Linux says so that no process has the terminal open any more
            return
        if not held:
            return
        yield held
    pytest.fail("nothing was written for a long time")
