"""Measures one case in a process of its own, so that no case is slowed by what another imported or left running.

Prints a line of JSON for each step and each row; see `__main__`.
"""

from __future__ import annotations

import json
import os
import sys

import attrs

from benchmarks._case import load
from benchmarks._measure import PACES, as_on_a_terminal, measure


def main(name: str, pace: str) -> None:
    """Measure a case, and print what is found; what peers print goes where errors go."""
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as out:
        os.dup2(2, 1)

        def tell(step: str) -> None:
            print(json.dumps({"step": step}), file=out, flush=True)

        as_on_a_terminal()
        has_failed = False
        for row in measure(load(name), PACES[pace], tell):
            print(json.dumps({"row": attrs.asdict(row)}), file=out, flush=True)
            has_failed = has_failed or row.role == "failed"
    if has_failed:
        os._exit(0)  # it may have left a thread or a process that would be waited for


if __name__ == "__main__":
    main(*sys.argv[1:])
