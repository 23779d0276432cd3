"""Discovery: finding the predictors of all installed distributions."""

import configparser
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

from benchmarks._case import Calls, Case, Subject

case = Case(
    name="discovery",
    title="discovery of installed predictors",
    about="So many distributions are installed besides what is there, each with one predictor; a new registry finds "
    "all of their tags.",
    drive=Calls(),
    axis="distributions",
    sizes=(10, 100, 1_000),
    quick=(10,),
)


@contextmanager
def installed(size: int, group: str) -> Iterator[Path]:
    """A folder with so many distributions."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for each in range(size):
            info = folder / f"bench_plugin_{each}-1.0.dist-info"
            info.mkdir()
            (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: bench-plugin-{each}\nVersion: 1.0\n")
            (info / "entry_points.txt").write_text(f"[{group}]\n@bench/p{each} = bench_plugin_{each}:predict\n")
            (folder / f"bench_plugin_{each}.py").write_text("def predict(text: str) -> str:\n    return text\n")
        yield folder


@contextmanager
def on_path(folder: Path) -> Iterator[None]:
    """Have a folder on `sys.path`: for the time of a call only, for contenders must not find each other's."""
    sys.path.append(str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))


@case.contender("read the files", role="limit", note="entry_points.txt by hand; shadowed copies would be counted twice")
def read(size: int) -> Iterator[Subject]:
    with installed(size, "predictor_engine.predictors") as folder:

        def call() -> int:
            found: set[str] = set()
            for info in os.scandir(folder):
                if info.name.endswith(".dist-info"):
                    parser = configparser.ConfigParser(delimiters=("=",))
                    parser.read(f"{info.path}/entry_points.txt")
                    found.update(parser["predictor_engine.predictors"])
            return len(found)

        yield (call,)


@case.contender("importlib.metadata", role="best", note="entry_points(group=...): what the standard library does")
def standard(size: int) -> Iterator[Subject]:
    with installed(size, "predictor_engine.predictors") as folder:

        def call() -> int:
            with on_path(folder):
                found = metadata.entry_points(group="predictor_engine.predictors")
            return len({each.name for each in found if each.name.startswith("@bench/")})

        yield (call,)


@case.contender("predictor-engine", role="engine", package="predictor-engine", note="imports none of them")
def engine(size: int) -> Iterator[Subject]:
    from engine import Engine

    with installed(size, "predictor_engine.predictors") as folder:

        def call() -> int:
            with on_path(folder), Engine() as muna:
                return sum(tag.startswith("@bench/") for tag in muna.predictors)

        yield (call,)


@case.contender("pluggy", package="pluggy", note="its loader imports every plugin; one failure ends it")
def pluggy_loader(size: int) -> Iterator[Subject]:
    import pluggy

    with installed(size, "bench.plugins") as folder:

        def call() -> Any:
            for each in range(size):
                sys.modules.pop(f"bench_plugin_{each}", None)
            with on_path(folder):
                return pluggy.PluginManager("bench").load_setuptools_entrypoints("bench.plugins")

        yield (call,)
