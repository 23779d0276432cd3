"""Drawings of measured figures: bars as text, bars and growth curves as SVG, and a page that holds them.

Everything here is a pure function from records to text. Positions across a drawing are percentages and heights are
pixels, so that a drawing fills what room it gets while its words keep their size. Nothing is shown by colour alone:
bars and curves carry their names. All words are escaped here, callers need not do so before.
"""

from __future__ import annotations

import html
import itertools
import math
import re
from typing import TYPE_CHECKING, Final

import attrs

from engine._errors import printable
from engine.cli._numbers import Spread, with_unit
from engine.cli._show import width_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

_LOGARITHMIC: Final = 30  # times the smallest: beyond, the small bars of a linear scale could not be told apart
_GAP: Final = 2  # columns between the parts of a line
_NARROWEST, _WIDEST = 8, 60  # columns of a bar that is worth drawing, and of one that is long enough
_EIGHTHS: Final = " ▏▎▍▌▋▊▉"
_MOST_TICKS, _FEW_TICKS = 6, 4
_LEAST, _MOST = 1e-15, 1e18  # what a clock or a count can give: beyond, a value has no place on a logarithmic scale
_ROLES: Final = ("limit", "best", "engine", "peer", "missing")


@attrs.frozen
class Bar:
    """One contender of a bar chart.

    Attributes:
        label: its name.
        spread: what was measured; `None` where nothing was.
        unit: that of `with_unit`.
        role: "limit" (the bare loop), "best" (the best code written by hand), "engine", "peer" or "missing".
        note: why it is missing, or what else has to be known.
        text: words behind the figure, such as "12.3× bare".
    """

    label: str
    spread: Spread | None
    unit: str
    role: str = attrs.field(default="peer", validator=attrs.validators.in_(_ROLES))
    note: str = ""
    text: str = ""

    @property
    def figure(self) -> str:
        """Its median in words."""
        return "—" if self.spread is None else with_unit(self.spread.median, self.unit)


@attrs.frozen
class Curve:
    """How one contender's figure grows with something.

    Attributes:
        label: its name.
        points: a value of what it grows with, and what was measured there.
        role: as of a `Bar`.
    """

    label: str
    points: tuple[tuple[float, Spread], ...]
    role: str = attrs.field(default="peer", validator=attrs.validators.in_(_ROLES))


@attrs.frozen
class Section:
    """A part of a page.

    Attributes:
        title: its heading.
        about: what was measured and how it is read; an empty line begins a new paragraph.
        drawings: SVG, of this module alone: they are the one thing that is not escaped.
        table: rows of cells, the first of which are the heads.
        notes: what else has to be known, a sentence each.
    """

    title: str
    about: str
    drawings: tuple[str, ...]
    table: tuple[tuple[str, ...], ...] = ()
    notes: tuple[str, ...] = ()


# Scales


@attrs.frozen
class _Scale:
    """From values to shares of the room they are drawn in, 0 to 1."""

    low: float
    high: float
    is_logarithmic: bool
    base: float = 10.0

    def __call__(self, value: float) -> float:
        if self.is_logarithmic:
            if value <= 0:
                return 0.0
            share = (math.log(value) - math.log(self.low)) / (math.log(self.high) - math.log(self.low))
        else:
            share = (value - self.low) / (self.high - self.low)
        return min(1.0, max(0.0, share))

    def ticks(self) -> list[float]:
        """A few round values to draw lines at."""
        return self._decades() if self.is_logarithmic else self._steps()

    def _decades(self) -> list[float]:
        first = math.ceil(math.log(self.low, self.base) - 1e-9)
        last = math.floor(math.log(self.high, self.base) + 1e-9)
        every = max(1, math.ceil((last - first + 1) / _MOST_TICKS))
        found = [self.base**power for power in range(first, last + 1, every)]
        if len(found) > 2 or self.base != 10:  # noqa: PLR2004 - a scale within one or two decades wants lines between
            return found
        finer = [times * 10.0**power for power in range(first - 1, last + 1) for times in (1, 2, 5)]
        return [each for each in finer if self.low <= each * (1 + 1e-9) and each <= self.high * (1 + 1e-9)]

    def _steps(self) -> list[float]:
        counted = 1024.0 ** math.floor(math.log(self.high, 1024)) if self.base != 10 else 1.0  # noqa: PLR2004
        rough = self.high / counted / 4
        size = 10.0 ** math.floor(math.log10(rough))
        step = counted * next(times * size for times in (1, 2, 5, 10) if times * size >= rough * (1 - 1e-9))
        return [count * step for count in range(math.floor(self.high / step + 1e-9) + 1)]


def _is_placeable(value: float) -> bool:
    return _LEAST < value < _MOST


def _scale_of(spreads: Sequence[Spread], unit: str, *, reaches_whiskers: bool = True) -> _Scale:
    """The scale of bars: from zero, or logarithmic where the largest is far from the smallest."""
    medians = [each.median for each in spreads if _is_placeable(each.median)]
    tops = [each.high for each in spreads if _is_placeable(each.high)] if reaches_whiskers else []
    base = 32.0 if unit == "B" else 10.0
    if not medians:
        return _Scale(0.0, 1.0, is_logarithmic=False, base=base)
    high = max(medians + tops)
    if max(medians) <= _LOGARITHMIC * min(medians):
        return _Scale(0.0, high, is_logarithmic=False, base=base)
    low = base ** math.floor(math.log(min(medians), base))
    if _Scale(low, high, is_logarithmic=True)(min(medians)) < 0.05:  # noqa: PLR2004 - a bar that could not be seen
        low /= base
    return _Scale(low, high, is_logarithmic=True, base=base)


# Bars as text


def bars_as_text(bars: Sequence[Bar], width: int, *, ascii: bool = False) -> list[str]:  # noqa: A002 - what it is
    """Draw bars for a terminal, a line each; where they are logarithmic, a last line says so.

    Args:
        bars: what is drawn, from top to bottom.
        width: the columns there are; no line is longer.
        ascii: draw with `#`, for where nothing else can be shown.
    """
    scale = _scale_of([bar.spread for bar in bars if bar.spread is not None], _unit(bars), reaches_whiskers=False)
    rows = [(_line(bar.label), bar.figure, _extra(bar)) for bar in bars]
    if ascii:
        rows = [(_in_ascii(label), _in_ascii(figure), _in_ascii(extra)) for label, figure, extra in rows]
    widths = [tuple(map(width_of, row)) for row in rows]
    extras = max((each[2] for each, bar in zip(widths, bars, strict=True) if bar.spread is not None), default=0)
    columns = _columns([each[:2] for each in widths], extras, width)
    lines = [
        _text_line(row, columns, None if bar.spread is None else scale(bar.spread.median), is_ascii=ascii)
        for row, bar in zip(rows, bars, strict=True)
    ]
    if scale.is_logarithmic:
        start = with_unit(scale.low, _unit(bars))
        lines.append(f"bars are logarithmic and begin at {_in_ascii(start) if ascii else start}")
    return [_cut(line, width, "." if ascii else "…").rstrip() for line in lines]


def _unit(bars: Sequence[Bar]) -> str:
    return next((bar.unit for bar in bars if bar.spread is not None), "")


def _extra(bar: Bar) -> str:
    """What stands behind a bar: its words; where there is no bar, the reason."""
    return _line(bar.text if bar.spread is not None else bar.note or bar.text)


def _line(text: str) -> str:
    """`text` as one safe line."""
    return printable(" ".join(text.split()))


def _in_ascii(text: str) -> str:
    for sign, plain in (("µ", "u"), ("×", "x"), ("—", "-"), ("…", ".")):
        text = text.replace(sign, plain)
    return text.encode("ascii", "backslashreplace").decode("ascii")


@attrs.frozen
class _Columns:
    """How wide the parts of a line are, and whether there is room for words behind the bars."""

    label: int
    figure: int
    bar: int = 0
    has_extras: bool = False


def _columns(widths: Sequence[tuple[int, ...]], extras: int, width: int) -> _Columns:
    """Share a line out: labels are cut first, then the words behind the bars go, then the bars."""
    labels, figures = (max(column) for column in zip(*widths, strict=True)) if widths else (0, 0)
    for behind in (extras + _GAP if extras else 0, 0):
        room = width - figures - behind - 2 * _GAP
        shown = min(labels, max(room - _NARROWEST, min(labels, width // 3)))
        if room - shown >= _NARROWEST:
            return _Columns(shown, figures, min(_WIDEST, room - shown), has_extras=behind > 0)
    return _Columns(max(1, min(labels, width - figures - _GAP)), figures)


def _text_line(row: tuple[str, str, str], columns: _Columns, share: float | None, *, is_ascii: bool) -> str:
    label, figure, extra = row
    name = _cut(label, columns.label, "." if is_ascii else "…")
    parts = [name + " " * (columns.label - width_of(name)), " " * (columns.figure - width_of(figure)) + figure]
    if share is None:
        parts.append(extra)
    elif columns.bar:
        bar = _blocks(share * columns.bar, is_ascii=is_ascii)
        parts += [bar.ljust(columns.bar), extra] if extra and columns.has_extras else [bar]
    return (" " * _GAP).join(parts)


def _blocks(length: float, *, is_ascii: bool) -> str:
    """A bar of so many columns, to the eighth of one; whatever is not zero is seen."""
    if is_ascii:
        return "#" * (max(1, round(length)) if length > 0 else 0)
    eighths = max(1, round(length * 8)) if length > 0 else 0
    return ("█" * (eighths // 8) + _EIGHTHS[eighths % 8]).rstrip()


def _cut(text: str, width: int, sign: str) -> str:
    if width_of(text) <= width:
        return text
    while text and width_of(text) > width - 1:
        text = text[:-1]
    return f"{text}{sign}" if width > 0 else ""


# SVG

_COLOURS: Final = """\
:root { color-scheme: light dark; --paper: #fdfdfb; --ink: #1d2126; --soft: #5d6570; --rule: #e3e3dd;
  --engine: #d4491a; --best: #73777d; --limit: #b9bbbd; --peer: #7f9dbb; --tint: #f4f3ee }
@media (prefers-color-scheme: dark) {
  :root { --paper: #14171b; --ink: #e9e7e2; --soft: #a0a6af; --rule: #2c3138;
    --engine: #ff8450; --best: #a3a7ad; --limit: #5f646b; --peer: #56789b; --tint: #1c2026 }
}
"""
_DRAWN: Final = """\
.chart { font: 14px/1.2 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", "DejaVu Sans", sans-serif;
  font-variant-numeric: tabular-nums }
.chart text { fill: var(--ink); stroke: var(--paper); stroke-width: 5; stroke-linejoin: round; paint-order: stroke }
.chart .paper { fill: var(--paper); stroke: var(--rule) }
.chart .title { font-size: 16px; font-weight: 650 }
.chart .soft { fill: var(--soft) }
.chart .small { font-size: 12px; fill: var(--soft) }
.chart .figure { font-weight: 600 }
.chart .end { text-anchor: end }
.chart .middle { text-anchor: middle }
.chart .grid { stroke: var(--rule) }
.chart .track { fill: var(--tint) }
.chart .missing { fill: none; stroke: var(--rule); stroke-dasharray: 3 3 }
.chart .whisker { stroke: var(--ink); stroke-width: 1.5; opacity: .65 }
.chart .lead { stroke: var(--soft); opacity: .6 }
.chart .engine { fill: var(--engine) } .chart .best { fill: var(--best) }
.chart .limit { fill: var(--limit) } .chart .peer { fill: var(--peer) }
.chart text.engine { font-weight: 650; fill: var(--ink) }
.chart .curve { stroke-width: 2; stroke-linecap: round; stroke: var(--peer) }
.chart .curve.engine { stroke: var(--engine); stroke-width: 3 }
.chart .curve.best { stroke: var(--best); stroke-dasharray: 7 5 }
.chart .curve.limit { stroke: var(--limit); stroke-dasharray: 1 5 }
.chart .point { stroke: var(--paper); stroke-width: 1.5 }
"""
_ROW, _NOTE, _THICK = 48, 18, 14  # pixels of a bar with its words, of a note below it, and of the bar alone
_ALONE: Final = 720  # pixels a drawing is wide where it stands alone
_MARGIN: Final = 24  # pixels around a drawing that stands alone


def bars_as_svg(bars: Sequence[Bar], *, title: str, standalone: bool = False) -> str:
    """Draw bars for a page: its words above each bar, a whisker from quartile to quartile on it.

    Args:
        bars: what is drawn, from top to bottom.
        title: what is measured.
        standalone: make it a file of its own, with its style; else it takes that of a `page`.
    """
    unit = _unit(bars)
    scale = _scale_of([bar.spread for bar in bars if bar.spread is not None], unit)
    tops = [0]
    for bar in bars:
        tops.append(tops[-1] + _ROW + (_NOTE if bar.note else 0))
    bottom = tops[-1]
    is_measured = any(bar.spread is not None for bar in bars)
    drawn = [_tick(scale, tick, unit, bottom) for tick in scale.ticks()] if is_measured else []
    for top, bar in zip(tops, bars, strict=False):
        drawn += _drawn_bar(bar, top, scale)
    legend = "medians and quartiles" + (", on a logarithmic scale" if scale.is_logarithmic else "")
    drawn.append(_element("text", _safe(legend), x="0", y=_px(bottom + 40), class_="small"))
    about = "; ".join(f"{bar.label}: {bar.figure} {_extra(bar)}".strip() for bar in bars)
    return _svg(drawn, bottom + 46, title, f"{about}. {legend}.", is_alone=standalone)


def _tick(scale: _Scale, tick: float, unit: str, bottom: float) -> str:
    x = _percent(scale(tick))
    anchor = "" if scale(tick) < 0.06 else " end" if scale(tick) > 0.94 else " middle"  # noqa: PLR2004 - the edges
    line = _element("line", x1=x, x2=x, y1="0", y2=_px(bottom + 4), class_="grid")
    return line + _element("text", _safe(with_unit(tick, unit)), x=x, y=_px(bottom + 19), class_=f"small{anchor}")


def _drawn_bar(bar: Bar, top: float, scale: _Scale) -> list[str]:
    y, middle = _px(top + 24), top + 24 + _THICK / 2
    is_engine = " engine" if bar.role == "engine" else ""
    extra = _element("tspan", _safe(_line(bar.text)), class_="soft") if bar.text else ""
    figure = _element("tspan", _safe(bar.figure), dx="12" if extra else "0", class_="figure")
    track = "track" if bar.spread is not None else "missing"
    drawn = [
        _element("text", _safe(_cut(_line(bar.label), 44, "…")), x="0", y=_px(top + 17), class_=f"label{is_engine}"),
        _element("text", extra + figure, x="100%", y=_px(top + 17), class_="end"),
        _element("rect", x="0", y=y, width="100%", height=_px(_THICK), rx="2", class_=track),
    ]
    if bar.spread is not None:
        width = _percent(scale(bar.spread.median))
        drawn.append(_element("rect", x="0", y=y, width=width, height=_px(_THICK), rx="2", class_=bar.role))
        drawn += _whisker_across(scale(bar.spread.low), scale(bar.spread.high), middle)
    if bar.note:
        drawn.append(_element("text", _safe(_line(bar.note)), x="0", y=_px(top + 54), class_="small"))
    return drawn


def _whisker_across(low: float, high: float, y: float) -> list[str]:
    ends = [
        _element("line", x1=_percent(x), x2=_percent(x), y1=_px(y - 4), y2=_px(y + 4), class_="whisker")
        for x in (low, high)
    ]
    return [_element("line", x1=_percent(low), x2=_percent(high), y1=_px(y), y2=_px(y), class_="whisker"), *ends]


_PLOT: Final = (28, 328)  # pixels from the top: where a plot begins and ends
_LEFT: Final = 0.11  # share of the width that the words at the lines of the grid take
_APART: Final = 18  # pixels between two labels
_MARKS: Final = ("circle", "square", "diamond", "triangle")


def curves_as_svg(curves: Sequence[Curve], *, title: str, x: str, unit: str, standalone: bool = False) -> str:
    """Draw how figures grow, on logarithmic scales both ways: a marker and a whisker a point, a name at each end.

    Args:
        curves: what is drawn; points that are not above zero have no place on such a scale.
        title: what is measured.
        x: what it grows with.
        unit: that of `with_unit`.
        standalone: make it a file of its own, with its style; else it takes that of a `page`.
    """
    kept = [attrs.evolve(curve, points=_placed(curve.points)) for curve in curves]
    kept = [curve for curve in kept if curve.points]
    top, bottom = _PLOT
    if not kept:
        empty = _element("text", "nothing was measured", x="50%", y="60", class_="soft middle")
        return _svg([empty], bottom + 50, title, "Nothing was measured.", is_alone=standalone)
    across = _span([point for curve in kept for point, _ in curve.points])
    upward = _span(
        [
            value
            for curve in kept
            for _, each in curve.points
            for value in (each.low, each.median, each.high)
            if _is_placeable(value)
        ]
    )
    names = min(0.4, 0.03 + max(width_of(_line(curve.label)) for curve in kept) * 8 / (_ALONE if standalone else 400))

    def at_x(value: float) -> float:
        return _LEFT + across(value) * (1 - _LEFT - names)

    def at_y(value: float) -> float:
        return bottom - upward(value) * (bottom - top)

    drawn = [_element("text", _safe(f"{title_of(unit)} ↑".strip()), x="0", y="13", class_="small")]
    drawn += [_grid_across(at_y(tick), with_unit(tick, unit), names) for tick in upward.ticks()]
    ticks = across.ticks()
    named = ticks[:: 1 if len(ticks) <= _FEW_TICKS else 2]  # on a narrow screen, the labels of more would touch
    drawn += [_grid_upward(at_x(tick), with_unit(tick, "") if tick in named else "") for tick in ticks]
    drawn.append(_element("text", _safe(f"{x} →"), x=_percent(1 - names), y=_px(bottom + 40), class_="small end"))
    for number, curve in enumerate(kept):
        drawn += _drawn_curve(curve, at_x, at_y, _MARKS[number % len(_MARKS)])
    drawn += _labels(kept, at_x, at_y)
    about = "; ".join(f"{curve.label}: {_ends(curve, unit)}" for curve in kept)
    return _svg(drawn, bottom + 48, title, f"{about}. Both scales are logarithmic.", is_alone=standalone)


def title_of(unit: str) -> str:
    """What an axis of this unit shows."""
    return {"s": "time", "B": "memory", "/s": "per second", "x": "ratio"}.get(unit, unit)


def _placed(points: Iterable[tuple[float, Spread]]) -> tuple[tuple[float, Spread], ...]:
    return tuple(
        sorted(
            (each for each in points if _is_placeable(each[0]) and _is_placeable(each[1].median)),
            key=lambda each: each[0],
        )
    )


def _span(values: Sequence[float]) -> _Scale:
    """A logarithmic scale that begins and ends a little beyond the values."""
    low, high = min(values), max(values)
    room = max((high / low) ** 0.04, 1.1)
    return _Scale(low / room, high * room, is_logarithmic=True)


def _ends(curve: Curve, unit: str) -> str:
    ends = curve.points[0], curve.points[-1]
    return ", ".join(f"{with_unit(spread.median, unit)} at {with_unit(place, '')}" for place, spread in ends)


def _grid_across(y: float, words: str, names: float) -> str:
    line = _element("line", x1=_percent(_LEFT), x2=_percent(1 - names), y1=_px(y), y2=_px(y), class_="grid")
    return line + _element("text", _safe(words), x=_percent(_LEFT - 0.015), y=_px(y + 4), class_="small end")


def _grid_upward(x: float, words: str) -> str:
    top, bottom = _PLOT
    line = _element("line", x1=_percent(x), x2=_percent(x), y1=_px(top - 6), y2=_px(bottom + 4), class_="grid")
    return line + _element("text", _safe(words), x=_percent(x), y=_px(bottom + 19), class_="small middle")


def _drawn_curve(curve: Curve, at_x: Callable[[float], float], at_y: Callable[[float], float], mark: str) -> list[str]:
    drawn: list[str] = []
    places = [(_percent(at_x(point)), at_y(spread.median)) for point, spread in curve.points]
    for (x1, y1), (x2, y2) in itertools.pairwise(places):
        drawn.append(_element("line", x1=x1, y1=_px(y1), x2=x2, y2=_px(y2), class_=f"curve {curve.role}"))
    for (x, y), (_, spread) in zip(places, curve.points, strict=True):
        if spread.low > 0:
            drawn.append(
                _element("line", x1=x, x2=x, y1=_px(at_y(spread.low)), y2=_px(at_y(spread.high)), class_="whisker")
            )
        shape = _element("path", d=_SHAPES[mark], class_=f"point {curve.role}")
        drawn.append(_element("svg", shape, x=x, y=_px(y), overflow="visible"))
    return drawn


_SHAPES: Final = {
    "circle": "M-4.5,0 a4.5,4.5 0 1,0 9,0 a4.5,4.5 0 1,0 -9,0 Z",
    "square": "M-4.2,-4.2 H4.2 V4.2 H-4.2 Z",
    "diamond": "M0,-5.6 L5.6,0 L0,5.6 L-5.6,0 Z",
    "triangle": "M0,-5.4 L5.2,4.2 L-5.2,4.2 Z",
}


def _labels(curves: Sequence[Curve], at_x: Callable[[float], float], at_y: Callable[[float], float]) -> list[str]:
    """The names at the ends of the lines, moved apart where they would cover each other, a leader to each end."""
    ends = [(at_x(curve.points[-1][0]), at_y(curve.points[-1][1].median)) for curve in curves]
    column = max(x for x, _ in ends) + 0.03
    drawn = []
    for curve, (x, y), shown in zip(curves, ends, spaced([y for _, y in ends], _APART, _PLOT), strict=True):
        drawn.append(
            _element(
                "line", x1=_percent(x + 0.009), y1=_px(y), x2=_percent(column - 0.006), y2=_px(shown), class_="lead"
            )
        )
        name = _safe(_cut(_line(curve.label), 30, "…"))
        emphasis = " engine" if curve.role == "engine" else ""
        drawn.append(_element("text", name, x=_percent(column), y=_px(shown + 5), class_=f"label{emphasis}"))
    return drawn


def spaced(wanted: Sequence[float], apart: float, within: tuple[float, float]) -> list[float]:
    """Positions as near as can be to those that are wanted, in the same order, each at least `apart` from the next.

    They stay within two bounds as long as there is room for all.
    """
    low, high = within

    def start_of(members: Sequence[int]) -> float:
        start = sum(wanted[one] - apart * place for place, one in enumerate(members)) / len(members)
        return max(low, min(start, high - apart * (len(members) - 1)))

    groups: list[tuple[float, list[int]]] = []  # the place of a group's first, and its members
    for each in sorted(range(len(wanted)), key=lambda each: wanted[each]):
        members = [each]
        while groups and groups[-1][0] + apart * len(groups[-1][1]) > start_of(members):
            members = groups.pop()[1] + members
        groups.append((start_of(members), members))
    places = [0.0] * len(wanted)
    for start, members in groups:
        for place, one in enumerate(members):
            places[one] = start + apart * place
    return places


def _svg(drawn: Iterable[str], height: float, title: str, about: str, *, is_alone: bool) -> str:
    inside = "".join(drawn)
    head = _element("title", _safe(_line(title))) + _element("desc", _safe(_line(about)))
    if not is_alone:
        return _element("svg", head + inside, class_="chart", role="img", width="100%", height=_px(height))
    style = _element("style", f"\n{_COLOURS}{_DRAWN}")
    full = height + 2 * _MARGIN + 30
    paper = _element("rect", x=".5", y=".5", width=_px(_ALONE - 1), height=_px(full - 1), rx="8", class_="paper")
    name = _element("text", _safe(_line(title)), x=_px(_MARGIN), y=_px(_MARGIN + 14), class_="title")
    plot = _element(
        "svg", inside, x=_px(_MARGIN), y=_px(_MARGIN + 30), width=_px(_ALONE - 2 * _MARGIN), height=_px(height)
    )
    return _element(
        "svg",
        head + style + paper + name + plot,
        xmlns="http://www.w3.org/2000/svg",
        class_="chart",
        role="img",
        width=_px(_ALONE),
        height=_px(full),
        viewBox=f"0 0 {_ALONE} {_px(full)}",
    )


def _element(name: str, inside: str = "", **attributes: str) -> str:
    """An element; `class_` is written `class`. What is inside, and every value, is ours or escaped already."""
    written = "".join(f' {key.rstrip("_")}="{value}"' for key, value in attributes.items())
    return f"<{name}{written}>{inside}</{name}>" if inside else f"<{name}{written}/>"


def _percent(share: float) -> str:
    return f"{share * 100:.2f}%"


def _px(length: float) -> str:
    return f"{length:.1f}".removesuffix(".0")


def _safe(text: str) -> str:
    """Text as HTML and XML take it; what neither may hold is written out."""
    return html.escape(printable(text))


# Pages

_PAGE: Final = """\
* { box-sizing: border-box }
body { margin: 0; background: var(--paper); color: var(--ink); font: 1.0625rem/1.6 "Iowan Old Style",
  "Palatino Linotype", Palatino, "Source Serif 4", Charter, Georgia, serif; text-rendering: optimizeLegibility;
  -webkit-text-size-adjust: 100% }
main { max-width: 46rem; margin: 0 auto; padding: clamp(2rem, 7vw, 5rem) 1.25rem 5rem }
h1 { font-size: clamp(1.9rem, 6vw, 2.75rem); line-height: 1.12; letter-spacing: -.015em; font-weight: 600;
  margin: 0 0 1rem; text-wrap: balance; overflow-wrap: anywhere }
h2 { font-size: 1.55rem; line-height: 1.25; font-weight: 600; margin: 0 0 .75rem; text-wrap: balance }
p { margin: 0 0 1rem; max-width: 40rem; text-wrap: pretty; overflow-wrap: anywhere }
.lead { font-size: 1.2rem; line-height: 1.55; color: var(--soft) }
nav, dl, figcaption, table, .notes { font-family: system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans",
  "DejaVu Sans", sans-serif }
nav { margin: 2rem 0; font-size: .95rem }
nav ol { list-style: none; margin: 0; padding: 0; display: grid; column-gap: 1.5rem;
  grid-template-columns: repeat(auto-fill, minmax(13rem, 1fr)) }
nav li { border-bottom: 1px solid var(--rule) }
nav a { display: block; padding: .45rem 0; color: inherit; text-decoration: none }
nav a:hover, nav a:focus-visible { color: var(--engine) }
dl { display: grid; grid-template-columns: repeat(auto-fill, minmax(9.5rem, 1fr)); gap: 1rem 1.5rem; margin: 2rem 0 0;
  padding: 1.25rem 0; border-top: 1px solid var(--rule); border-bottom: 1px solid var(--rule) }
dt { font-size: .78rem; color: var(--soft) }
dd { margin: .1rem 0 0; font-size: .92rem; line-height: 1.4; overflow-wrap: anywhere }
section { margin-top: 4.5rem }
figure { margin: 1.75rem 0 2.25rem; break-inside: avoid }
figcaption { font-size: .92rem; line-height: 1.4; margin: 0 0 .9rem; padding-top: .6rem;
  border-top: 2px solid var(--ink) }
figcaption b { font-weight: 650; margin-right: .5em }
.chart { display: block; overflow: visible }
.scroll { overflow-x: auto; margin: 0 0 1.5rem }
table { border-collapse: collapse; width: 100%; font-size: .88rem; line-height: 1.4;
  font-variant-numeric: tabular-nums }
th, td { padding: .42rem .9rem .42rem 0; text-align: left; vertical-align: top; border-bottom: 1px solid var(--rule) }
th { font-weight: 600; color: var(--soft); border-bottom-color: var(--soft); white-space: nowrap }
.number { text-align: right; white-space: nowrap }
td:first-child { min-width: 9.5rem }
th:last-child, td:last-child { padding-right: 0 }
.notes { font-size: .88rem; line-height: 1.5; color: var(--soft); margin: 0; padding-left: 1.1rem }
.notes li { margin: .25rem 0 }
@media print {
  :root { color-scheme: light; --paper: #fff; --ink: #000; --soft: #444; --rule: #ccc; --engine: #d4491a;
    --best: #73777d; --limit: #b9bbbd; --peer: #7f9dbb; --tint: #f4f4f4 }
  * { print-color-adjust: exact; -webkit-print-color-adjust: exact }
  body { font-size: 10.5pt }
  main { max-width: none; padding: 0 }
  section { margin-top: 2rem }
  h2 { break-after: avoid }
  tr { break-inside: avoid }
}
"""


def page(title: str, lead: str, sections: Sequence[Section], facts: Mapping[str, str]) -> str:
    """Make one HTML document that needs nothing but itself: style and drawings are in it, and there is no script.

    Args:
        title: its heading.
        lead: what it says, in a sentence or two.
        sections: its parts, which a list of contents names.
        facts: what the figures depend on, such as processor and versions, by name.
    """
    contents = "".join(
        f'<li><a href="#part-{number}">{_safe(_line(each.title))}</a></li>' for number, each in enumerate(sections, 1)
    )
    figures = iter(range(1, 1 + sum(len(each.drawings) for each in sections)))
    parts = "\n".join(_section(number, each, figures) for number, each in enumerate(sections, 1))
    known = "".join(
        f"<div><dt>{_safe(_line(name))}</dt><dd>{_safe(_line(fact))}</dd></div>" for name, fact in facts.items()
    )
    return f"""\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{_safe(_line(title))}</title>
<style>
{_COLOURS}{_DRAWN}{_PAGE}</style>
</head>
<body>
<main>
<header>
<h1>{_safe(_line(title))}</h1>
<p class="lead">{_safe(_line(lead))}</p>
{f"<dl>{known}</dl>" if known else ""}
{f'<nav aria-label="Contents"><ol>{contents}</ol></nav>' if len(sections) > 1 else ""}
</header>
{parts}
</main>
</body>
</html>
"""


def _section(number: int, section: Section, figures: Iterable[int]) -> str:
    about = "".join(f"<p>{_safe(_line(each))}</p>" for each in section.about.split("\n\n") if each.strip())
    drawings = "".join(_figure(each, figure) for each, figure in zip(section.drawings, figures, strict=False))
    items = "".join(f"<li>{_safe(_line(each))}</li>" for each in section.notes)
    notes = _element("ul", items, class_="notes") if items else ""
    return (
        f'<section id="part-{number}">\n<h2>{_safe(_line(section.title))}</h2>\n{about}{drawings}'
        f"{_table(section.table)}{notes}\n</section>"
    )


def _figure(drawing: str, number: int) -> str:
    """A drawing below its own title."""
    named = re.search(r"<title>(.*?)</title>", drawing, re.DOTALL)
    name = named[1] if named else ""
    return f"<figure>\n<figcaption><b>Figure {number}.</b>{name}</figcaption>\n{drawing}\n</figure>\n"


def _table(rows: Sequence[Sequence[str]]) -> str:
    """A table whose first row are the heads; columns of figures stand on the right."""
    if not rows:
        return ""
    head, *body = rows
    right = [bool(column[1:]) and all(map(_is_figure, column[1:])) for column in zip(*rows, strict=True)]

    def row(cells: Sequence[str], name: str) -> str:
        looks = [{"class": "number"} if is_right else {} for is_right in right]
        return _element("tr", "".join(_cell(name, cell, look) for cell, look in zip(cells, looks, strict=True)))

    lines = "\n".join(row(each, "td") for each in body)
    return f'<div class="scroll"><table>\n<thead>{row(head, "th")}</thead>\n<tbody>{lines}</tbody>\n</table></div>\n'


def _cell(name: str, cell: str, look: dict[str, str]) -> str:
    return _element(name, _safe(_line(cell)) or "&#160;", **look)


def _is_figure(cell: str) -> bool:
    return re.match(r"[-~<]?\d|—?$", cell) is not None
