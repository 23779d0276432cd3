"""Measured numbers: the spread of many, and how one is written.

A figure has three significant digits at most and never an exponent. Nothing here measures or prints.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

import attrs

if TYPE_CHECKING:
    from collections.abc import Sequence

_DIGITS: Final = 3  # significant ones; more than that no benchmark repeats
# What a unit is counted in, from small to large; a figure is written in the last that it reaches.
_UNITS: Final[dict[str, tuple[tuple[float, str], ...]]] = {
    "s": ((1e-9, " ns"), (1e-6, " µs"), (1e-3, " ms"), (1.0, " s")),
    "B": ((1.0, " B"), (1024.0, " KiB"), (1024.0**2, " MiB"), (1024.0**3, " GiB"), (1024.0**4, " TiB")),
    "/s": ((1.0, " /s"),),
    "x": ((1.0, "×"),),
    "": ((1.0, ""),),
}


@attrs.frozen
class Spread:
    """Where the measured values of one thing lie.

    Attributes:
        median: half of them are below.
        low: the lower quartile: a quarter of them are below.
        high: the upper quartile: a quarter of them are above.
        count: how many there are.
    """

    median: float
    low: float
    high: float
    count: int


def spread_of(values: Sequence[float]) -> Spread:
    """Sum values up, of which there is at least one; a single one is its own quartiles.

    Raises:
        ValueError: there is none.
    """
    from statistics import median, quantiles

    if not values:
        raise ValueError("there is no spread of no values")
    if len(values) == 1:
        return Spread(values[0], values[0], values[0], 1)
    low, _, high = quantiles(values, n=4, method="inclusive")
    return Spread(median(values), low, high, len(values))


def with_unit(value: float, unit: str) -> str:
    """Write a value as people read it, such as "1.24 µs" or "12,300 /s"; a round one is written short: "18 ns".

    Args:
        value: how much, in the unit itself: seconds for "s".
        unit: "s", "B" for bytes, "/s", "x" for a ratio, or "" for a plain number; any other is written behind it.
    """
    ladder = _UNITS.get(unit, ((1.0, f" {unit}"),))
    if not math.isfinite(value):
        return f"{value}{ladder[-1][1]}"
    if value == 0:
        return f"0{_UNITS['s'][-1][1] if unit == 's' else ladder[0][1]}"
    fitting = [step for step in ladder if _reaches(abs(value), step[0])]
    size, name = fitting[-1] if fitting else ladder[0]
    return f"{_written(value / size)}{name}"


def _reaches(value: float, size: float) -> bool:
    """Whether a value, once it is rounded, is at least 1 in steps of `size`: 999.9 ms is written as 1 s."""
    return float(f"{value / size:.{_DIGITS - 1}e}") >= 1


def _written(value: float) -> str:
    rounded = float(f"{value:.{_DIGITS - 1}e}")
    places = max(0, _DIGITS - 1 - math.floor(math.log10(abs(rounded))))
    text = f"{rounded:,.{places}f}"
    if places and math.isclose(rounded, value, rel_tol=1e-9):  # nothing was rounded away, so its zeros say nothing
        text = text.rstrip("0").rstrip(".")
    return text
