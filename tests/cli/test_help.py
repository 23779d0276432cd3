"""Help, and how little it imports."""

import re

import pytest

from tests.cli.conftest import Command, Ran, Site, command_line, imported_by


def test_help_of_a_predictor_lists_its_inputs_with_types_and_defaults(site: Site, engine: Command) -> None:
    site.predictors(
        """
        import enum
        from typing import Annotated, Literal

        class Colour(enum.Enum):
            RED = "red"

        def paint(name: Annotated[str, "100% of %(prog)s\\x1b[31m"], flag: bool = True, json: int = 3,
                  colour: Colour = Colour.RED, many: object = "x" * 500, **rest: int):
            "Paints %(prog)s 100%."
        """,
        "paint",
    )

    ran = engine("create", "@cli/paint", "--help")

    assert (ran.status, ran.err) == (0, "")
    shown = " ".join(ran.out.split())
    assert shown.startswith("usage: engine create @cli/paint [options] Paints %(prog)s 100%.")
    assert r"--name VALUE 100% of %(prog)s\x1b[31m [str, required]" in shown
    assert re.search(r"--flag( \[BOOL\])?, --no-flag \[BOOL\] \[bool, default true\]", shown)
    assert '[Colour.RED, default "red"]' in shown
    assert "-i json=VALUE an input whose name is that of an option [int, default 3]" in shown
    assert "-i NAME=VALUE any other input" in shown
    assert "x" * 300 not in shown
    assert "\x1b" not in ran.out


@pytest.mark.parametrize("words", [["--help"], ["create", "--help"], ["stream", "-h"]], ids=command_line)
def test_help_names_the_options_that_an_input_cannot_have(words: list[str], engine: Command) -> None:
    ran = engine(*words)

    assert (ran.status, ran.err) == (0, "")
    assert "inputs called help, inputs, json or runner:" in ran.out
    assert "-i NAME=VALUE" in ran.out
    assert "130 interrupted" in ran.out


def test_the_version_is_that_of_the_distribution(engine: Command) -> None:
    from importlib.metadata import version

    assert engine("--version") == Ran(0, f"engine {version('predictor-engine')}\n", "")


def test_help_imports_nothing_heavy_and_discovers_nothing(site: Site) -> None:
    imported = imported_by(site, "--help")

    assert "engine.cli" in imported
    assert imported.isdisjoint({"asyncio", "pluggy", "importlib.metadata", "concurrent.futures", "cloudpickle"})
