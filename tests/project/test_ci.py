"""The scripts that prove a checkout: what they name exists, and what the package says of itself is what they prove."""

from __future__ import annotations

import re
import subprocess
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
SCRIPTS = ("run", "pythons", "common")
PYTHONS = (ROOT / ".ci" / "pythons").read_text(encoding="utf-8")


def listed(name: str) -> list[str]:
    """The words of a bash array of `.ci/pythons`."""
    found = re.search(rf"^{name}=\((.*?)\)", PYTHONS, re.DOTALL | re.MULTILINE)
    assert found is not None, name
    return found[1].split()


@pytest.mark.parametrize("script", SCRIPTS)
def test_bash_can_read_every_script(script: str) -> None:
    subprocess.run(["bash", "-n", ROOT / ".ci" / script], check=True, timeout=60)


def test_the_classifiers_name_the_versions_that_are_tried() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    prefix = "Programming Language :: Python :: "
    named = [each.removeprefix(prefix) for each in project["classifiers"] if each.startswith(prefix)]
    assert named == ["3", *listed("versions")]
    assert project["requires-python"] == f">={listed('versions')[0]}"


def test_every_file_of_the_selection_is_there() -> None:
    assert [each for each in listed("selection") if not (ROOT / each).exists()] == []


def test_no_script_names_an_address() -> None:
    for script in SCRIPTS:
        assert "://" not in (ROOT / ".ci" / script).read_text(encoding="utf-8")
