"""Figures in words, and the drawings and the page made of them: what they promise for whatever words they are given."""

import itertools
import math
import re
import xml.etree.ElementTree as ET
from collections.abc import Callable
from html.parser import HTMLParser

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from engine.cli._charts import Bar, Curve, Section, bars_as_svg, bars_as_text, curves_as_svg, page, spaced
from engine.cli._numbers import Spread, spread_of, with_unit
from engine.cli._show import width_of

SIZES = {
    "ns": 1e-9,
    "µs": 1e-6,
    "ms": 1e-3,
    "s": 1.0,
    "B": 1.0,
    "KiB": 1024.0,
    "MiB": 1024.0**2,
    "GiB": 1024.0**3,
    "TiB": 1024.0**4,
    "/s": 1.0,
    "×": 1.0,
    "": 1.0,
}
UNITS = ["s", "B", "/s", "x", ""]
SVG = "{http://www.w3.org/2000/svg}"

positive = st.floats(1e-9, 1e12)
units = st.sampled_from(UNITS)
words = st.text(max_size=60)


def steady(value: float) -> Spread:
    return Spread(value, value * 0.9, value * 1.2, 9)


@st.composite
def spreads(draw: st.DrawFn) -> Spread:
    low, median, high = sorted(draw(st.tuples(*[st.floats(0, 1e12)] * 3)))
    return Spread(median, low, high, draw(st.integers(1, 100)))


roles = st.sampled_from(["limit", "best", "engine", "peer"])
some_bars = st.lists(
    st.builds(Bar, words, spreads(), st.just("s"), roles, words, words)
    | st.builds(Bar, words, st.none(), st.just("s"), st.just("missing"), words),
    max_size=8,
)
some_curves = st.lists(
    st.builds(Curve, words, st.lists(st.tuples(st.floats(0, 1e9), spreads()), max_size=5).map(tuple), roles),
    max_size=6,
)


def measured(text: str) -> float:
    """The value that words stand for."""
    found = re.fullmatch(r"(-?[\d,.]+)\s?(\D*)", text)
    assert found is not None, text
    return float(found[1].replace(",", "")) * SIZES[found[2]]


# Figures


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (18e-9, "s", "18 ns"),
        (1.2404e-6, "s", "1.24 µs"),
        (0.0034, "s", "3.4 ms"),
        (2.1012, "s", "2.10 s"),
        (0.9999, "s", "1.00 s"),
        (1234.5, "s", "1,230 s"),
        (0, "s", "0 s"),
        (-2e-6, "s", "-2 µs"),
        (1945.6, "B", "1.9 KiB"),
        (1023.9, "B", "1.00 KiB"),
        (12345, "/s", "12,300 /s"),
        (12.3, "x", "12.3×"),
        (256, "", "256"),
        (0, "", "0"),
        (5, "W", "5 W"),
        (math.inf, "x", "inf×"),
    ],
)
def test_a_figure_is_written_as_people_read_it(value: float, unit: str, text: str) -> None:
    assert with_unit(value, unit) == text


@given(positive, units)
@example(1e-9, "B")
@example(0.99999, "s")
@example(1023.999, "B")
def test_a_figure_reads_back_within_a_hundredth_and_is_never_scientific(value: float, unit: str) -> None:
    text = with_unit(value, unit)

    assert "e" not in text
    assert len(re.sub(r"\D", "", text).strip("0")) <= 3
    assert measured(text) == pytest.approx(value, rel=0.01)


def test_a_spread_has_the_median_and_the_quartiles() -> None:
    assert spread_of([5, 1, 3, 2, 4]) == Spread(median=3, low=2, high=4, count=5)
    assert spread_of([7]) == Spread(median=7, low=7, high=7, count=1)
    with pytest.raises(ValueError, match="no spread of no values"):
        spread_of([])


@given(st.lists(st.floats(-1e9, 1e9), min_size=1, max_size=30))
def test_a_median_lies_between_its_quartiles(values: list[float]) -> None:
    found = spread_of(values)

    assert min(values) <= found.low <= found.median <= found.high <= max(values)


# Bars as text


def test_bars_have_a_line_each_with_figures_that_end_in_one_column() -> None:
    bars = [
        Bar("bare loop", steady(2e-6), "s", "limit"),
        Bar("engine", steady(4e-6), "s", "engine", text="2× bare"),
        Bar("other", None, "s", "missing", note="it cannot stream"),
    ]

    assert bars_as_text(bars, 40) == [
        "bare loop  2 µs  ███████",
        "engine     4 µs  ██████████████  2× bare",
        "other         —  it cannot stream",
    ]


def test_bars_far_apart_are_logarithmic_and_say_so() -> None:
    near = [Bar("a", steady(1), "s"), Bar("b", steady(30), "s")]
    far = [Bar("a", steady(1), "s"), Bar("b", steady(31), "s")]

    assert len(bars_as_text(near, 60)) == 2
    assert bars_as_text(far, 60)[2:] == ["bars are logarithmic and begin at 100 ms"]


def test_words_behind_bars_go_where_there_is_no_room_and_then_the_bars() -> None:
    bars = [Bar("a", steady(1e-3), "s", text="17× what is not needed"), Bar("b", steady(2e-3), "s")]

    assert bars_as_text(bars, 50)[0].endswith("what is not needed")
    assert bars_as_text(bars, 20) == ["a  1 ms  █████▌", "b  2 ms  ███████████"]
    assert bars_as_text(bars, 8) == ["a  1 ms", "b  2 ms"]


@given(some_bars, st.integers(0, 120), st.booleans())
def test_bars_fit_the_width_they_are_given(bars: list[Bar], width: int, is_ascii: bool) -> None:
    lines = bars_as_text(bars, width, ascii=is_ascii)

    assert len(lines) - len(bars) in {0, 1}
    assert all(width_of(line) <= width for line in lines)
    assert all(line.isprintable() for line in lines)
    assert not is_ascii or all(line.isascii() for line in lines)


@given(st.lists(positive, min_size=2, max_size=6))
def test_the_longer_bar_is_that_of_the_larger_figure(values: list[float]) -> None:
    lines = bars_as_text([Bar("a", steady(value), "") for value in values], 100, ascii=True)
    lengths = [line.count("#") for line in lines]

    order = sorted(range(len(values)), key=values.__getitem__)
    assert sorted(lengths[: len(values)]) == [lengths[each] for each in order]
    assert min(lengths[: len(values)]) >= 1


def test_a_role_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ValueError, match="role"):
        Bar("a", steady(1), "s", "winner")


# SVG


def drawn(svg: str) -> ET.Element:
    """The root of a drawing, which is one for those who cannot see it too."""
    root = ET.fromstring(svg)
    names = [each.tag.removeprefix(SVG) for each in root[:2]]
    assert (root.get("role"), names) == ("img", ["title", "desc"])
    return root


def all_text(root: ET.Element) -> str:
    return " ".join("".join(each.itertext()) for each in root.iter())


@given(some_bars, words, st.booleans())
def test_bars_are_xml_whatever_they_are_called(bars: list[Bar], title: str, standalone: bool) -> None:
    drawn(bars_as_svg(bars, title=title, standalone=standalone))


@given(some_curves, words, words, units, st.booleans())
def test_curves_are_xml_whatever_they_are_called(
    curves: list[Curve], title: str, x: str, unit: str, standalone: bool
) -> None:
    drawn(curves_as_svg(curves, title=title, x=x, unit=unit, standalone=standalone))


@given(some_bars, some_curves)
def test_everything_drawn_stands_within_the_drawing(bars: list[Bar], curves: list[Curve]) -> None:
    for svg in (bars_as_svg(bars, title=""), curves_as_svg(curves, title="", x="n", unit="s")):
        root = drawn(svg)
        height = float(root.get("height", "nan"))
        for each in root.iter():
            across = [each.get(name, "0") for name in ("x", "x1", "x2", "width")]
            down = [each.get(name, "0") for name in ("y", "y1", "y2")]
            assert all(0 <= float(share[:-1]) <= 100 for share in across if share.endswith("%"))
            assert all(-10 <= float(pixels) <= height for pixels in down)


def test_a_drawing_of_bars_has_labels_figures_ratios_whiskers_notes_and_named_ticks() -> None:
    bars = [
        Bar("bare", steady(1e-6), "s", "limit"),
        Bar("engine", steady(1e-3), "s", "engine", note="once", text="1,000× bare"),
        Bar("absent", None, "s", "missing", note="not installed"),
    ]

    root = drawn(bars_as_svg(bars, title="Time <&> money"))
    text = all_text(root)

    assert root[0].text == "Time <&> money"
    for words in ("bare", "engine", "1 µs", "1 ms", "1,000× bare", "once", "not installed", "10 µs", "logarithmic"):
        assert words in text
    assert len([each for each in root.iter("line") if each.get("class") == "whisker"]) == 6
    assert [each.get("class") for each in root.iter("rect")] == ["track", "limit", "track", "engine", "missing"]


def test_bars_of_which_none_was_measured_have_no_scale() -> None:
    root = drawn(bars_as_svg([Bar("absent", None, "s", "missing", note="not installed")], title="t"))

    assert list(root.iter("line")) == []
    assert "not installed" in all_text(root)


@pytest.mark.parametrize(
    "draw",
    [
        lambda standalone: bars_as_svg([Bar("a", steady(1), "s")], title="t", standalone=standalone),
        lambda standalone: curves_as_svg(
            [Curve("a", ((1, steady(1)),))], title="t", x="n", unit="s", standalone=standalone
        ),
    ],
    ids=["bars", "curves"],
)
def test_only_a_drawing_that_stands_alone_brings_its_style_in_both_colour_schemes(draw: Callable[..., str]) -> None:
    alone, inline = draw(standalone=True), draw(standalone=False)

    assert drawn(alone).tag == f"{SVG}svg"
    assert "prefers-color-scheme: dark" in alone
    assert "<style>" not in inline


def test_curves_have_markers_that_differ_and_their_names_at_their_ends() -> None:
    points = tuple((10.0**n, steady(10.0**n)) for n in range(4))
    curves = [Curve(name, points, role) for name, role in (("bare", "limit"), ("engine", "engine"), ("peer", "peer"))]

    root = drawn(curves_as_svg(curves, title="Growth", x="partials", unit="s"))

    assert len({each.get("d") for each in root.iter("path")}) == 3
    named = [each for each in root.iter("text") if (each.get("class") or "").startswith("label")]
    assert [each.text for each in named] == ["bare", "engine", "peer"]
    heights = sorted(float(each.get("y", "nan")) for each in named)
    assert min(after - before for before, after in itertools.pairwise(heights)) > 17.99
    assert "partials" in all_text(root)


def test_curves_of_nothing_say_so() -> None:
    curves = [Curve("zero", ((0, steady(1)), (1, Spread(0, 0, 0, 1))))]

    assert "nothing was measured" in all_text(drawn(curves_as_svg(curves, title="", x="", unit="s")))


@given(st.lists(st.floats(0, 300), max_size=12))
def test_labels_are_moved_apart_in_their_order_and_within_bounds(wanted: list[float]) -> None:
    places = spaced(wanted, 20, (0, 300))

    order = sorted(range(len(wanted)), key=lambda each: (wanted[each], places[each]))
    found = [places[each] for each in order]
    assert all(after - before > 19.99 for before, after in itertools.pairwise(found))
    assert all(-0.01 <= each <= 300.01 for each in places)


def test_labels_that_are_far_apart_stay_where_they_are() -> None:
    assert spaced([100, 10, 50], 20, (0, 300)) == [100, 10, 50]


# Pages


class Reader(HTMLParser):
    """Reads a page: what it is made of, and what it would fetch."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.fetched: list[str] = []
        self.ids: set[str] = set()
        self.links: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        if tag != "meta":
            self.open.append(tag)
        for name, value in attrs:
            assert not name.startswith("on")
            if name == "id":
                assert value not in self.ids
                self.ids.add(str(value))
            if name in {"src", "srcset", "data", "action"} or (name == "href" and not str(value).startswith("#")):
                self.fetched.append(str(value))
            elif name == "href":
                self.links.append(str(value)[1:])

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def read(document: str) -> Reader:
    """Read a page, of which everything must be in it."""
    reader = Reader()
    reader.feed(document)
    reader.close()
    assert reader.open == []
    assert reader.fetched == []
    assert not reader.tags & {"script", "link", "iframe", "img", "object", "embed"}
    assert "url(" not in document
    assert "@import" not in document
    assert set(reader.links) <= reader.ids
    return reader


def test_a_page_has_its_contents_facts_drawings_tables_and_notes_and_needs_nothing_else() -> None:
    bars = bars_as_svg([Bar("engine", steady(1e-6), "s", "engine")], title="Per partial")
    parts = [
        Section("Cost", "First paragraph.\n\nSecond paragraph.", (bars, bars)),
        Section("Growth", "More.", (bars,), (("who", "time"), ("engine", "1 µs"), ("peer", "—")), ("A note.",)),
    ]

    document = page("What it costs", "In one place.", parts, {"processor": "Fast & cheap"})
    reader = read(document)

    assert reader.links == ["part-1", "part-2"]
    for words in ("What it costs", "In one place.", "Second paragraph.", "Fast & cheap", "Figure 3.", "A note."):
        assert words in reader.text
    assert '<td class="number">1 µs</td>' in document
    assert "prefers-color-scheme: dark" in document
    assert "@media print" in document
    assert 'name="viewport"' in document


@given(st.builds(Section, words, words, st.just(()), st.just((("a",), ("<b>",))), st.tuples(words)), words, words)
@example(Section("<script>", "<img src=x>", (), (("<script>",),), ("</style>",)), "</title>", '"><script>')
def test_a_page_escapes_whatever_it_is_given(section: Section, title: str, fact: str) -> None:
    read(page(title, title, [section, section], {fact: fact}))
