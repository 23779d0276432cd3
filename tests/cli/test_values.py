"""Text, files and JSON become the values that annotations ask for."""

import enum
import math
import os
import typing
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal

import pytest

from engine._predictors.signature import Signature
from engine.cli._values import UnreadableError, value_of, value_of_json


class Colour(enum.Enum):
    RED = "red"
    BLUE = 2
    red_one = "RED"


class Mode(enum.IntFlag):
    READ = 1
    WRITE = 2


class Point(typing.TypedDict):
    x: int


Name = typing.NewType("Name", str)


def converted(annotation: Any, text: str) -> Any:
    def predict(it: Any) -> None: ...

    predict.__annotations__ = {} if annotation is None else {"it": annotation}
    (parameter,) = Signature.of(predict).parameters
    return value_of(parameter, text)


@pytest.mark.parametrize(
    ("annotation", "text", "value"),
    [
        (int, "3", 3),
        (int, "-3", -3),
        (float, "3", 3.0),
        (float, "-1e5", -1e5),
        (float, "inf", math.inf),
        (complex, "1+2j", 1 + 2j),
        (bool, "true", True),
        (bool, "No", False),
        (bool, "1", True),
        (bool, "0", False),
        (bool | None, "yes", True),
        (bool | None, "null", None),
        (str, "3", "3"),
        (str, '"quoted"', '"quoted"'),
        (str, "", ""),
        (str, "@@home", "@home"),
        (str, "@@@home", "@@home"),
        (Name, "3", "3"),
        (bytes, "grün", "grün".encode()),
        (bytes, "\udcff", b"\xff"),
        (bytearray, "a", bytearray(b"a")),
        (Path, "a/b", Path("a/b")),
        (PurePosixPath, "a/b", PurePosixPath("a/b")),
        (os.PathLike, "a/b", Path("a/b")),
        (Path | None, "5", Path("5")),
        (Path | None, "null", None),
        (Colour, "red", Colour.RED),
        (Colour, "RED", Colour.red_one),
        (Colour, "BLUE", Colour.BLUE),
        (Colour, "2", Colour.BLUE),
        (Mode, "3", Mode.READ | Mode.WRITE),
        (Colour | None, "red", Colour.RED),
        (Colour | str, "green", "green"),
        (Colour | str, "BLUE", Colour.BLUE),
        (Literal["a", 1, True, b"b", Colour.BLUE], "a", "a"),
        (Literal["a", 1], "1", 1),
        (Literal["1", 1], "1", "1"),
        (Literal[True, "a"], "true", True),
        (Literal[None, "a"], "null", None),  # noqa: PYI061 - None among the values is the case
        (Literal[b"b", "a"], "b", b"b"),
        (Literal[Colour.BLUE], "BLUE", Colour.BLUE),
        (list[int], "[1, 2]", [1, 2]),
        (list[Path], '["a"]', [Path("a")]),
        (dict[str, float], '{"a": 1.5}', {"a": 1.5}),
        (dict[int, Colour], '{"1": "red"}', {1: Colour.RED}),
        (tuple[int, str], '[1, "a"]', (1, "a")),
        (tuple[Path, ...], '["a", "b"]', (Path("a"), Path("b"))),
        (set[int], "[1, 1]", {1}),
        (frozenset[str], '["a"]', frozenset({"a"})),
        (Sequence[int], "[1]", [1]),
        (Point, '{"x": 1}', {"x": 1}),
        (list[int] | None, "null", None),
        (int | None, "3", 3),
        (int | None, "null", None),
        (int | str, "3", 3),
        (int | str, '"3"', "3"),
        (int | str, "three", "three"),
        (float | None, "nan", pytest.approx(math.nan, nan_ok=True)),
        (str | None, "5", "5"),
        (str | None, "null", None),
        (str | list[str], '["a"]', ["a"]),
        (bytes | str, "a.wav", "a.wav"),
        (bytes | str, '"a.wav"', "a.wav"),
        (bool | str, "yes", "yes"),
        (bool | str, "true", True),
        (float | str, "NaN", "NaN"),
        (Annotated[int, "of things"], "3", 3),
        (Annotated[int, "x"] | None, "3", 3),
        (None, "3", 3),
        (None, "[1]", [1]),
        (None, "null", None),
        (None, "plain text", "plain text"),
        (None, "Infinity", "Infinity"),
        (None, "@@x", "@x"),
        (Any, "3", 3),
        ("Missing", "3", 3),
    ],
)
def test_text_becomes_what_the_annotation_says(annotation: Any, text: str, value: Any) -> None:
    found = converted(annotation, text)

    assert found == value
    assert type(found) is type(value) or type(value).__name__ == "ApproxScalar"


@pytest.mark.parametrize(
    ("annotation", "text", "reason"),
    [
        (int, "x", "'it' must be int, not 'x'"),
        (int, "1.5", "'it' must be int, not '1.5'"),
        (int, "9" * 5000, "'it' must be int"),
        (bool, "maybe", "write true or false"),
        (Colour, "green", "one of Colour.RED"),
        (Literal["a", "b"], "c", "one of 'a', 'b'"),
        (list[int], "1 2", "not JSON: Extra data at line 1, column 3"),
        (list[int], "[" * 100_000, "not readable as JSON"),
        (int | None, "x", "'it' must be int or None, not 'x'"),
        (int, "@", "followed by the name of a file"),
        (str, "@no such file", "cannot read the file 'no such file' (No such file or directory)"),
        (bytes, "@\0", "cannot read the file"),
    ],
)
def test_text_that_does_not_convert_is_refused_with_what_is_expected(annotation: Any, text: str, reason: str) -> None:
    with pytest.raises(UnreadableError) as caught:
        converted(annotation, text)

    assert reason in str(caught.value)


@pytest.mark.parametrize(
    ("annotation", "held", "value"),
    [
        (bytes, b"\xff\n", b"\xff\n"),
        (bytes | str, b"text", b"text"),
        (str | None, "grün\n".encode(), "grün\n"),
        (int, b"5\n", 5),
        (list[int], b"[1]", [1]),
        (Path, b'"a/b"', Path("a/b")),
        (None, b"[1]", [1]),
        (None, b"text", "text"),
        (None, b"\xff", b"\xff"),
    ],
)
def test_a_file_is_read_as_the_annotation_says(annotation: Any, held: bytes, value: Any, tmp_path: Path) -> None:
    file = tmp_path / "input"
    file.write_bytes(held)

    assert converted(annotation, f"@{file}") == value


def test_a_file_that_is_not_text_is_refused_for_a_text(tmp_path: Path) -> None:
    (tmp_path / "input").write_bytes(b"ab\xff")

    with pytest.raises(UnreadableError, match=r"is not UTF-8 text \(byte 2\)"):
        converted(str, f"@{tmp_path / 'input'}")


@pytest.mark.parametrize(
    ("annotation", "value", "fitted"),
    [
        (Path, "a", Path("a")),
        (Colour, "red", Colour.RED),
        (Colour, 2, Colour.BLUE),
        (bytes, "a", b"a"),
        (bytes | str, "a.wav", "a.wav"),
        (list[Path | str], ["a"], ["a"]),
        (list[Path | int], ["a", 1], [Path("a"), 1]),
        (int, "3", "3"),
        (tuple[int, int], [1, 2], (1, 2)),
        (set[int], [[1]], [[1]]),
        (int, {"a": 1}, {"a": 1}),
    ],
)
def test_values_of_json_are_fitted_only_where_json_has_no_form_for_them(
    annotation: Any, value: Any, fitted: Any
) -> None:
    def predict(it: Any) -> None: ...

    predict.__annotations__ = {"it": annotation}

    assert value_of_json(Signature.of(predict).parameters[0], value) == fitted
