"""Which values each annotation takes, what an error says of the others, and bounds in any library's metadata."""

# Every spelling of a type is tested, also those a linter would rewrite.
# ruff: noqa: PYI030, PYI051, PYI061, UP006, UP007, UP045

from __future__ import annotations

import collections
import collections.abc
import enum
import math
import os
import sys
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from decimal import Decimal
from fractions import Fraction
from typing import Annotated, Any, Literal, NewType, Optional, Union

import annotated_types
import attrs
import numpy as np
import numpy.typing as npt
import pydantic
import pytest
import typing_extensions

from engine._predictors.signature import Signature
from tests.predictors.binding import accepts, refuse, takes
from tests.predictors.types_to_accept import (
    ARRAY,
    PEN,
    POINT,
    USER,
    Access,
    Admin,
    Age,
    Alias,
    Bound,
    Bounded,
    Chosen,
    Endless,
    Free,
    Fruit,
    Generic,
    Grade,
    Level,
    Loose,
    Mode,
    Name,
    Nothing,
    Old,
    Options,
    Pair,
    Pair2,
    Point,
    Runs,
    Share,
    Tone,
    TypeAliasType,
    User,
)

# annotation, values that pass, values that do not
TYPES: list[tuple[Any, list[Any], list[Any]]] = [
    (
        int,
        [1, -(10**5000), np.int8(1), np.uint64(1), Level.LOW],
        [True, False, 1.0, "1", None, np.float64(1), np.True_, Decimal(1)],
    ),
    (
        float,
        [1.5, 1, math.nan, -math.inf, np.float32(1), np.int8(1), Fraction(1, 2)],
        [True, "1", None, 1j, np.True_, Decimal(1)],
    ),
    (complex, [1j, 1.5, 1, np.complex64(1)], [True, "1", None]),
    (bool, [True, False, np.True_], [1, 0, None, "True", np.int8(1)]),
    (str, ["", "\ud800", Name("x"), np.str_("x")], [b"", None, 1, PEN]),
    (bytes, [b"", np.bytes_(b"x")], [bytearray(), memoryview(b""), "", None]),
    (None, [None], [0, "", False, ()]),
    (type(None), [None], [0]),
    (Any, [None, 1, POINT], []),
    (object, [None, 1, POINT], []),
    (list, [[], [1]], [(), "", None, ARRAY]),
    (list[int], [[], ["only the outer type"]], [(), None]),
    (dict[str, int], [{}, {1: 2}, collections.OrderedDict()], [[], None]),
    (tuple[int, ...], [(), ("x",), Pair(1)], [[], None]),
    (set[int], [set()], [frozenset(), []]),
    (typing.List[int], [[]], [()]),
    (typing.Dict, [{}], [[]]),
    (Sequence[int], [[], (), "text"], [set(), {}, None]),
    (typing.Iterable[int], [[], iter(()), {}], [1, None]),
    (Mapping[str, int], [{}, types.MappingProxyType({})], [[], None]),
    (Callable[[int], str], [len, int, lambda: 1], [1, None]),
    (Callable, [len], [1]),
    (type[int], [int, str], [1, None]),
    (type, [int], [1]),
    (Optional[int], [1, None, np.int8(1)], ["", 1.0, True]),
    (int | str, [1, "x"], [None, 1.0, True]),
    (Union[int, str, None], [1, "x", None], [b""]),
    (Union[int, Any], [1, POINT], []),
    (list[int] | dict[str, int] | str | float | None | bytes, [[], {}, "", 1.0, 1, None, b""], [set(), True]),
    (Literal["a", "b"], ["a", "b"], ["c", "", None, 1, Name("a"), ["a"]]),
    (Literal[1, "x", b"y", None], [1, "x", b"y", None], [True, 1.0, 2, "", np.int8(1), "y"]),
    (Literal[True], [True], [1, False, "True"]),
    (Literal[Fruit.APPLE], [Fruit.APPLE], [Fruit.PEAR, 1]),
    (Literal["a"] | int, ["a", 1], ["b", True]),
    (Literal["a"] | Literal["b"], ["a", "b"], ["c"]),
    (Literal["a"] | str, ["a", "b"], [1]),
    (Fruit, [Fruit.APPLE, Fruit.PEAR], [1, "pear", "APPLE", None]),
    (Level, [Level.LOW, 1, 3, np.int8(3)], [2, True, 1.0, "1", "LOW", None, [1]]),
    (Tone, [Tone.SOFT, "soft", Name("soft"), np.str_("soft")], ["SOFT", "loud", None, b"soft", ["soft"]]),
    (Grade, [Grade.GOOD, "good"], ["GOOD", "grade good", 1]),
    (Share, [Share.HALF, 0.5, 1, np.float32(0.5), Fraction(1, 2)], [0.25, True, "0.5", math.nan, 10**400]),
    (Access, [Access.READ, 1, 3, 0, np.int8(2), Access.READ | Access.WRITE], [True, 1.0, "READ", None]),
    (Optional[Level], [1, Level.LOW, None], [2, True, "LOW"]),
    (Level | Tone, [3, "soft", Tone.SOFT], [2, "loud"]),
    (Level | str, [1, "anything"], [2, True]),
    (Annotated[Level, annotated_types.Ge(2)], [3, Level.HIGH], [1, Level.LOW, 2]),
    (NewType("Rank", Level), [3, Level.LOW], [2]),
    (Pair2, [Pair2.LEFT], [(1, 2), ARRAY, [1], "LEFT"]),
    (Mode, [Mode.READ, Mode.READ | Mode.WRITE, Mode(0)], [1]),
    (Options, [{}, {"size": "unchecked"}, types.MappingProxyType({})], [[], None]),
    (Loose, [{}], [[], None]),
    (Pair, [Pair(1)], [(1,)]),
    (Point, [POINT], [{"x": 1}, None, Point]),
    (
        User,
        [USER, Admin(name="a"), {"name": "a"}, {"name": "a", "age": "5"}],
        [{}, {"name": 1}, "a", None, [("name", "a")]],
    ),
    (Optional[User], [USER, {"name": "a"}, None], [{}]),
    (Runs, [types.SimpleNamespace(run=1)], [POINT, None]),
    (Age, [1], [True, "1"]),
    (Old, [1], ["1"]),
    (Bound, [1], ["1"]),
    (Chosen, [1, "1"], [1.5]),
    (Free, [1, None], []),
    (Alias, [1, None], ["1"]),
    (Bounded, [0], [-1, "1"]),
    (Generic[int], [[]], [()]),
    (Nothing, [None], [0]),
    (Endless, [1, None], []),
    (TypeAliasType(), [1, None], []),
    (Optional[Annotated[int, "words"]], [1, None], ["1"]),
    (typing.Final[int], [1], ["1"]),
    (typing.Required[int], [1], ["1"]),
    (typing.LiteralString, ["x"], [1]),
    (typing_extensions.Literal["a"], ["a"], ["b"]),
    (typing.Self, [1], []),
    (typing.Never, [1], []),
    (5, [1, "anything"], []),
    ([int], [1, "anything"], []),
    ((int, str), [1, None], []),
    (any, [1, None], []),
    (os.PathLike, [PEN], ["pen", None]),
    (os.PathLike[str], [PEN], ["pen"]),
    (str | os.PathLike[str], [PEN, "pen"], [b"pen"]),
    (typing.IO[str], [sys.__stdin__, types.SimpleNamespace(write=1)], ["path", None]),
    (typing.BinaryIO, [types.SimpleNamespace(read=1)], ["path"]),
    (np.ndarray, [ARRAY], [[[0.0]], None, 1.0]),
    (npt.NDArray[np.float64], [ARRAY, np.zeros(1, dtype=int)], [[0.0], np.float64(1)]),
    (npt.ArrayLike, [ARRAY, [1], 1.5], []),
    (np.float32, [np.float32(1)], [1.0, np.float64(1)]),
    (Decimal, [Decimal(1)], [1, 1.0]),
    (Annotated[int, "words"], [1], ["1"]),
    (Annotated[int, annotated_types.Ge(0)], [0, 1, np.int8(1)], [-1, True, "1", 0.5]),
    (
        Annotated[float, annotated_types.Gt(0), annotated_types.Lt(1)],
        [0.5, np.float32(0.5), Fraction(1, 2)],
        [0, 1, 0.0, 1.0, math.nan],
    ),
    (
        Annotated[float, annotated_types.Interval(ge=0, le=1)],
        [0, 1, 0.5, -0.0],
        [-0.1, 1.1, math.nan, math.inf, 10**5000],
    ),
    (Annotated[str, annotated_types.Len(1, 3)], ["a", "abc", Name("a")], ["", "abcd", 1]),
    (Annotated[list, annotated_types.MinLen(1)], [[1]], [[], ()]),
    (Annotated[Any, annotated_types.MinLen(1)], [[1], "a", ARRAY], [[], "", 5]),
    (Annotated[Any, annotated_types.Ge(0)], [1, None], ["a", POINT, -1, {}]),
    (Annotated[ARRAY.__class__, annotated_types.Ge(0)], [], [ARRAY]),
    (Annotated[int, annotated_types.MultipleOf(5)], [0, 10, -5, np.int8(5), 10**5000], [1, 10**5000 + 1]),
    (Annotated[float, annotated_types.MultipleOf(0.1)], [0.3, 1, 0.0], [0.25, math.nan, math.inf]),
    (Annotated[int, pydantic.Field(ge=0, lt=10)], [0, 9], [-1, 10]),
    (Annotated[str, pydantic.Field(min_length=1, max_length=2)], ["a"], ["", "abc"]),
    (Annotated[int, pydantic.Field(multiple_of=3)], [3], [4]),
    (Annotated[int | None, annotated_types.Ge(0)], [None, 1], [-1, "1"]),
    (Optional[Annotated[int, annotated_types.Ge(0)]], [None, 0, np.int8(1)], [-1, "1", True]),
    (Annotated[int, annotated_types.Ge(5)] | Annotated[int, annotated_types.Le(0)], [5, 0, -1], [1, 4, "x"]),
    (Annotated[int, annotated_types.Ge(0)] | int, [-1], ["x"]),
    (Annotated[Annotated[int, annotated_types.Ge(0)], annotated_types.Le(9)], [0, 9], [-1, 10]),
    (Annotated[Age, annotated_types.Ge(0)], [0], [-1]),
    (Annotated[Literal[1, 2], annotated_types.Ge(2)], [2], [1, 3]),
    (Annotated[Decimal, annotated_types.Ge(0)], [Decimal(0)], [Decimal(-1), 1]),
]
PASSING = [
    pytest.param(a, v, id=f"{i}-{str(a)[:40]}-{j}") for i, (a, good, _) in enumerate(TYPES) for j, v in enumerate(good)
]
FAILING = [
    pytest.param(a, v, id=f"{i}-{str(a)[:40]}-{j}") for i, (a, _, bad) in enumerate(TYPES) for j, v in enumerate(bad)
]


@pytest.mark.fault(126)
@pytest.mark.parametrize(("annotation", "value"), PASSING)
def test_a_value_of_the_annotation_arrives_as_the_same_object(annotation: Any, value: Any) -> None:
    assert accepts(annotation, value)


@pytest.mark.parametrize(("annotation", "value"), FAILING)
def test_a_value_that_does_not_fit_the_annotation_is_refused(annotation: Any, value: Any) -> None:
    assert not accepts(annotation, value)


EXPECTATIONS: list[tuple[Any, str]] = [
    (int, "int"),
    (Any, "anything"),
    (str | None, "str or None"),
    (Optional[float], "float or None"),
    (Literal["a", "b"], "one of 'a', 'b'"),
    (Literal["a"], "'a'"),
    (Fruit, "one of Fruit.APPLE, Fruit.PEAR"),
    (list[int], "list[int]"),
    (list[Sequence[int]], "list"),
    (npt.NDArray[np.float64], "ndarray"),
    (Options, "a mapping (Options)"),
    (Point, "Point"),
    (Age, "int"),
    (Annotated[float, annotated_types.Ge(0)], "float >= 0"),
    (Annotated[float, annotated_types.Interval(ge=0, lt=1)], "float >= 0 and < 1"),
    (Annotated[str, annotated_types.Len(0, 3)], "str of length >= 0 and <= 3"),
    (Annotated[int, annotated_types.MultipleOf(5)], "int, a multiple of 5"),
    (Annotated[int, annotated_types.Ge(0), annotated_types.MultipleOf(5)], "int >= 0, a multiple of 5"),
    (Annotated[Any, annotated_types.Ge(0)], "a value >= 0"),
    (Optional[Annotated[int, annotated_types.Ge(0)]], "int >= 0 or None"),
]


@pytest.mark.parametrize(("annotation", "text"), EXPECTATIONS, ids=[text for _, text in EXPECTATIONS])
def test_a_parameter_says_in_words_what_it_expects(annotation: Any, text: str) -> None:
    (parameter,) = Signature.of(takes(annotation)).parameters
    assert parameter.expects == text


def test_an_enumeration_of_many_members_is_cut_short() -> None:
    many = enum.Enum("Many", [f"M{index}" for index in range(30)])  # type: ignore[misc]  # not written out
    (parameter,) = Signature.of(takes(many)).parameters
    assert parameter.expects.startswith("one of Many.M0, Many.M1, ")
    assert parameter.expects.endswith("Many.M19 ... (30 in all)")


PROBLEMS: list[tuple[Any, Any, str]] = [
    (int, None, "'value' must be int, not None"),
    (int, True, "'value' must be int, not True (bool)"),
    (Fruit, "pear", "'value' must be one of Fruit.APPLE, Fruit.PEAR, not 'pear' (str): give Fruit.PEAR"),
    (Fruit, 1, "'value' must be one of Fruit.APPLE, Fruit.PEAR, not 1 (int): give Fruit.APPLE"),
    (Fruit, "APPLE", "'value' must be one of Fruit.APPLE, Fruit.PEAR, not 'APPLE' (str): give Fruit.APPLE"),
    (Mode | None, "READ", "'value' must be one of Mode.READ, Mode.WRITE or None, not 'READ' (str): give Mode.READ"),
    (Fruit, "plum", "'value' must be one of Fruit.APPLE, Fruit.PEAR, not 'plum' (str)"),
    (Fruit, True, "'value' must be one of Fruit.APPLE, Fruit.PEAR, not True (bool)"),
    (Level, 2, "'value' must be one of Level.LOW, Level.HIGH, not 2 (int)"),
    (Annotated[str, annotated_types.MinLen(2)], "a", "'value' must have a length >= 2, not 1"),
    (Annotated[Any, annotated_types.MinLen(2)], 5, "'value' must have a length >= 2, and 5 (int) has none"),
    (Annotated[Any, annotated_types.Ge(0)], "a", "'value' must be >= 0, not 'a'"),
    (Annotated[int, annotated_types.MultipleOf(2)], 3, "'value' must be a multiple of 2, not 3"),
    (User, {}, "'value' must be User, not {} (dict): name: Field required"),
    (User, 5, "'value' must be User, not 5 (int)"),
]


@pytest.mark.parametrize(("annotation", "value", "problem"), PROBLEMS, ids=[row[2] for row in PROBLEMS])
def test_a_problem_is_a_sentence_with_the_value_and_what_it_must_be(annotation: Any, value: Any, problem: str) -> None:
    assert refuse(takes(annotation), {"value": value}).problems == (problem,)


def test_every_bound_a_value_breaks_is_named() -> None:
    annotation = Annotated[float, annotated_types.Gt(0), annotated_types.Lt(1)]
    assert len(refuse(takes(annotation), {"value": math.nan}).problems) == 2


def test_a_model_that_fails_in_its_own_way_is_quoted() -> None:
    class Model:
        @classmethod
        def model_validate(cls, value: Any) -> None:
            raise OSError("\ud800")

    (problem,) = refuse(takes(Model), {"value": {}}).problems
    assert problem == "'value' must be Model, not {} (dict): OSError: OSError('\\ud800')"


@attrs.define
class Words:
    documentation: str


@attrs.define
class Meta:
    description: str
    ge: int | None = None


class Methods:
    """Metadata with comparisons for methods, as arrays and series have."""

    def ge(self, other: Any) -> bool:
        return False

    @property
    def le(self) -> int:
        raise RuntimeError


class Group:
    def __iter__(self) -> Iterator[Any]:
        return iter([annotated_types.Ge(1), Group.Inner()])

    class Inner:
        def __iter__(self) -> Iterator[Any]:
            return iter([annotated_types.Le(9)])


class BrokenGroup:
    def __iter__(self) -> Iterator[Any]:
        raise RuntimeError


class EndlessGroup:
    def __iter__(self) -> Iterator[Any]:
        while True:
            yield self


METADATA: list[tuple[tuple[Any, ...], str, tuple[tuple[str, Any], ...]]] = [
    (("words",), "words", ()),
    ((Words("words"),), "words", ()),
    ((typing_extensions.Doc("words"),), "words", ()),
    ((Meta("words", 1),), "words", (("ge", 1),)),
    ((pydantic.Field(description="words", gt=1),), "words", (("gt", 1),)),
    ((pydantic.Field(gt=1),), "", (("gt", 1),)),
    ((annotated_types.Interval(gt=1, le=5),), "", (("gt", 1), ("le", 5))),
    ((annotated_types.Len(1, 5),), "", (("min_length", 1), ("max_length", 5))),
    ((annotated_types.Ge(1), "words", "more words"), "words", (("ge", 1),)),
    ((Methods(), annotated_types.Ge, np.ndarray), "", ()),
    ((Group(),), "", (("ge", 1), ("le", 9))),
    ((BrokenGroup(), EndlessGroup.__new__, iter([annotated_types.Ge(1)]), {"ge": 1}, 5, None), "", ()),
]


@pytest.mark.parametrize(("metadata", "description", "constraints"), METADATA)
def test_bounds_and_words_are_read_from_any_librarys_metadata(
    metadata: Any, description: str, constraints: Any
) -> None:
    (parameter,) = Signature.of(takes(Annotated[int, *metadata])).parameters
    assert parameter.annotation is int
    assert parameter.description == description
    assert parameter.constraints == constraints
