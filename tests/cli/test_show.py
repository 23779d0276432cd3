"""The list of predictors, and all that is known of one."""

import re
from textwrap import dedent

import pytest

from tests.cli.conftest import Command, Ran, Site, imported_by


def test_listing_two_hundred_predictors_imports_none_of_them(site: Site) -> None:
    for number in range(200):
        module = site.write(f"raise AssertionError('imported {number}')")
        site.install({f"@many/p{number:03}": f"{module}:run"})

    listed = site.run("list")
    imported = imported_by(site, "list")

    assert (listed.returncode, listed.stderr) == (0, b"")
    assert sum(line.startswith(b"@many/") for line in listed.stdout.splitlines()) == 200
    assert [name for name in imported if name.startswith("fake_module_")] == []


def test_the_list_is_in_order_with_the_source_of_each(site: Site, engine: Command) -> None:
    site.install({"@zoo/zebra": "nowhere:zebra", "@ape/ape": "nowhere:ape"})

    plain, documents = engine("list"), engine("list", "--json").documents

    tags = [line.split()[0] for line in plain.out.splitlines()]
    assert tags == sorted(tags)
    assert {"@zoo/zebra", "@ape/ape", "@muna/eager"} <= set(tags)
    assert [each["tag"] for each in documents] == tags
    (zebra,) = (each for each in documents if each["tag"] == "@zoo/zebra")
    assert re.fullmatch(r"fake-\d+ 1\.0 \(entry point\)", zebra["source"])
    assert zebra["description"] == ""


def test_what_is_broken_is_told_on_stderr_a_line_each(site: Site, engine: Command) -> None:
    site.install({"broken": site.write("raise RuntimeError('two\\nlines \\x1b[31m')")}, "predictor_engine.plugins")
    site.install({"not/a/tag": "nowhere:none"})
    site.install({"@cli/twice": "nowhere:one"})
    site.install({"@cli/twice": "nowhere:two"})

    ran = engine("list")

    assert ran.status == 0
    assert "@muna/eager" in ran.out
    assert "@cli/twice" not in ran.out
    lines = ran.err.splitlines()
    assert len(lines) == 3
    assert all(line.startswith("engine: ") for line in lines)
    assert {name for name in ("broken", "not/a/tag", "@cli/twice") for line in lines if f"'{name}'" in line} == {
        "broken",
        "not/a/tag",
        "@cli/twice",
    }
    assert "\x1b" not in ran.err


def test_an_empty_list_is_said_on_stderr(engine: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.metadata.distributions", lambda: iter(()))

    assert engine("list") == Ran(0, "", "engine: no predictors are installed\n")


SHOWN = """
from collections.abc import Iterator
from typing import Annotated
from functools import partial
import attrs

@attrs.frozen
class Positive:
    gt: int = 0

def grow(text: Annotated[str, "what to grow"], times: Annotated[int, Positive()] = 3, *, loud: bool = False,
         **rest: int):
    "Grows a text.\\n\\nMore."
    yield text

grow.__predictor__ = {"reduce": "concat", "runner": "thread", "concurrency": 2}

class Model:
    "A model."
    def predict(self, x) -> Iterator[int]: return iter([x])

class Thing:
    async def predict(self): return 1

thing = Thing()
configured = partial(grow, times=4)

async def agrow():
    yield 1
"""


def test_show_tells_everything_about_a_predictor(site: Site, engine: Command) -> None:
    site.predictors(SHOWN, "grow")

    ran = engine("show", "@cli/grow")

    assert (ran.status, ran.err) == (0, "")
    source = re.search(r"fake-\d+", ran.out)
    assert source is not None
    assert ran.out.replace(source[0], "fake") == dedent("""\
        @cli/grow
        Grows a text.

        kind         function, yields partials
        reducer      concat
        runner       thread
        concurrency  2 at a time
        source       fake 1.0 (entry point)

        inputs:
          text    str      required       what to grow
          times   int > 0  default 3
          loud    bool     default false
          **rest  int
        """)


def test_show_gives_the_same_as_json(site: Site, engine: Command) -> None:
    site.predictors(SHOWN, "grow")

    (shown,) = engine("show", "--json", "@cli/grow").documents

    assert shown.pop("source").endswith("1.0 (entry point)")
    inputs = {each["name"]: each for each in shown.pop("inputs")}
    assert shown == {
        "tag": "@cli/grow",
        "description": "Grows a text.",
        "kind": "function",
        "is_async": False,
        "by_value": False,
        "yields": True,
        "reducer": "concat",
        "runner": "thread",
        "concurrency": 2,
    }
    assert inputs["times"] == {
        "name": "times",
        "kind": "positional-or-keyword",
        "type": "int > 0",
        "required": False,
        "default": 3,
        "description": "",
        "constraints": {"gt": 0},
    }
    assert inputs["text"]["required"]
    assert "default" not in inputs["text"]


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("Model", "class, yields partials"),
        ("thing", "async object, returns one value"),
        ("configured", "function, yields partials"),
        ("agrow", "async function, yields partials"),
    ],
)
def test_show_tells_the_kind_of_a_predictor(name: str, kind: str, site: Site, engine: Command) -> None:
    site.install({"@cli/it": f"{site.write(SHOWN)}:{name}"})

    assert f"kind         {kind}\n" in engine("show", "@cli/it").out


def test_show_of_a_predictor_without_inputs_says_so(engine: Command) -> None:
    shown = engine("show", "@muna/generator").out

    assert "inputs: none\n" in shown
    assert "concurrency  unlimited\n" in shown
    assert "runner       the caller's choice\n" in shown
