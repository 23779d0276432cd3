"""Measures one case in a process of its own, so that no case is slowed by what another imported or left running.

Prints a line of JSON for each step and each row; see `__main__`.
"""

from __future__ import annotations

import json
import sys

import attrs

from benchmarks._case import load
from benchmarks._measure import as_on_a_terminal, measure


def main(name: str, *, quick: bool) -> None:
    """Measure a case, and print what is found."""

    def tell(step: str) -> None:
        print(json.dumps({"step": step}), flush=True)

    as_on_a_terminal()
    for row in measure(load(name), quick=quick, tell=tell):
        print(json.dumps({"row": attrs.asdict(row)}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], quick="--quick" in sys.argv)
