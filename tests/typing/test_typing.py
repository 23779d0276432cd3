"""What users write is typed as they expect, and what owners are given fits: mypy in its strict mode reads such code."""

from __future__ import annotations

from pathlib import Path

import pytest
from mypy import api

FOLDER = Path(__file__).parent
ROOT = FOLDER.parent.parent


@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", ["calls.py", "ends.py", "mistakes.py"])
def test_mypy_agrees_with_what_users_and_owners_are_told(name: str, tmp_path: Path) -> None:
    """An assertion that does not hold is an error, and so is a mistake that mypy no longer sees."""
    options = ["--strict", "--no-error-summary", "--config-file", "", "--cache-dir", str(tmp_path)]
    said, trouble, code = api.run([*options, str(FOLDER / name)])
    ours = [line for line in said.splitlines() if Path(line.split(":")[0]).name == name]
    assert (ours, trouble) == ([], "")
    assert code in {0, 1}, said


def test_the_types_are_shipped() -> None:
    assert (ROOT / "engine" / "py.typed").exists()
