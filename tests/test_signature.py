"""Reading a callable's parameters and binding inputs to them: by name, checked, never changed.

The properties compare the generated binder with Python's own rules over random signatures, with names chosen to clash
with anything a binder might use; the tables say which values each annotation takes.
"""

# Every spelling of a type is tested, also those a linter would rewrite.
# ruff: noqa: PYI030, PYI051, PYI061, RUF013, UP006, UP007, UP045

from __future__ import annotations

import collections
import collections.abc
import copy
import enum
import functools
import inspect
import math
import operator
import os
import pathlib
import pickle
import subprocess
import sys
import types
import typing
from collections.abc import AsyncIterator, Callable, Generator, Iterator, Mapping, Sequence
from decimal import Decimal
from fractions import Fraction
from typing import TYPE_CHECKING, Annotated, Any, Literal, NewType, Optional, Protocol, TypedDict, TypeVar, Union

import annotated_types
import attrs
import numpy as np
import numpy.typing as npt
import pydantic
import pytest
import typing_extensions
from hypothesis import given
from hypothesis import strategies as st

from engine._errors import InvalidInputError
from engine._predictors.annotations import MISSING
from engine._predictors.parameter import Parameter
from engine._predictors.signature import Signature

if TYPE_CHECKING:
    import collections.abc as hidden

    Hidden = int

TAG = "@test/case"


def refuse(function: Any, inputs: Any, **options: Any) -> InvalidInputError:
    """The error `inputs` are refused with."""
    with pytest.raises(InvalidInputError) as caught:
        Signature.of(function).binder(TAG, **options)(inputs)
    str(caught.value).encode("utf-8")  # can be shown
    return caught.value


def call(function: Any, inputs: Any, **options: Any) -> Any:
    args, kwargs = Signature.of(function).binder(TAG, **options)(inputs)
    return function(*args, **kwargs)


def takes(annotation: Any) -> Callable[..., Any]:
    def function(value: Any) -> Any:
        return value

    function.__annotations__["value"] = annotation
    return function


def accepts(annotation: Any, value: Any) -> bool:
    """Whether an input of this annotation takes `value`, as the same object or with a problem that can be shown."""
    try:
        args, kwargs = Signature.of(takes(annotation)).binder(TAG)({"value": value})
    except InvalidInputError as error:
        problems, text = error.problems, str(error)
    else:
        return args == () and list(kwargs) == ["value"] and kwargs["value"] is value
    text.encode("ascii")
    assert problems
    assert all(problem.startswith("'value' must ") for problem in problems)
    return False


# --- properties over random signatures ---------------------------------------------------------------------------

NAMES = [
    *(
        "self",
        "cls",
        "tag",
        "inputs",
        "runner",
        "timeout",
        "kwargs",
        "args",
        "more",
        "absent",
        "refused",
        "fill",
        "bind",
    ),
    *(
        "_x",
        "__x",
        "__slots__",
        "__class__",
        "v0",
        "v1",
        "k0",
        "name",
        "nothing",
        "größe",
        "名前",
        "print",
        "len",
        "dict",
    ),
]
POSITIONAL_ONLY, NAMED, VAR_POSITIONAL, KEYWORD_ONLY, VAR_KEYWORD = list(inspect._ParameterKind)


@st.composite
def functions(draw: st.DrawFn) -> tuple[Any, inspect.Signature]:
    """A function that returns what each of its parameters received, written as a person would write it."""
    names = draw(st.lists(st.sampled_from(NAMES), unique=True, max_size=8))
    kinds = sorted(
        draw(
            st.lists(st.sampled_from([POSITIONAL_ONLY, NAMED, KEYWORD_ONLY]), min_size=len(names), max_size=len(names))
        )
    )
    spare = [name for name in NAMES if name not in names]
    defaults = [draw(st.booleans()) for _ in names]
    positional = [index for index, kind in enumerate(kinds) if kind is not KEYWORD_ONLY]
    first = next((index for index in positional if defaults[index]), len(names))
    parameters = []
    for index, (name, kind) in enumerate(zip(names, kinds, strict=True)):
        has_default = defaults[index] or (index in positional and index > first)
        default = [f"default of {name}"] if has_default else inspect.Parameter.empty
        parameters.append(inspect.Parameter(name, kind, default=default))
    if draw(st.booleans()):
        parameters.insert(len(positional), inspect.Parameter(spare[0], VAR_POSITIONAL))
    if draw(st.booleans()):
        parameters.append(inspect.Parameter(spare[1], VAR_KEYWORD))
    signature = inspect.Signature(parameters)
    space: dict[str, Any] = {"__seen__": lambda: dict(sys._getframe(1).f_locals)}
    text = signature.replace(
        parameters=[
            p if p.default is p.empty else p.replace(default=Text(f"__defaults__[{p.name!r}]")) for p in parameters
        ]
    )
    space["__defaults__"] = {p.name: p.default for p in parameters}
    exec(f"def function{text}: return __seen__()", space)
    return space["function"], signature


class Text:
    def __init__(self, text: str) -> None:
        self.text = text

    def __repr__(self) -> str:
        return self.text


@st.composite
def calls(draw: st.DrawFn) -> tuple[Any, inspect.Signature, dict[str, Any]]:
    """A function and inputs it takes."""
    function, signature = draw(functions())
    inputs: dict[str, Any] = {}
    for each in signature.parameters.values():
        if each.kind is VAR_KEYWORD:
            extra = draw(st.sets(st.sampled_from([*NAMES, "not an identifier"]), max_size=3)) - set(
                signature.parameters
            )
            inputs |= {name: [f"extra {name}"] for name in extra} | (
                {each.name: ["itself"]} if draw(st.booleans()) else {}
            )
        elif each.kind is VAR_POSITIONAL:
            if draw(st.booleans()):
                inputs[each.name] = draw(st.sampled_from([[], (), [["one"]], (["one"], ["two"])]))
        elif each.default is each.empty or draw(st.booleans()):
            inputs[each.name] = [f"value of {each.name}"]
    order = draw(st.permutations(list(inputs)))
    return function, signature, {name: inputs[name] for name in order}


def received(signature: inspect.Signature, inputs: dict[str, Any]) -> dict[str, Any]:
    """What each parameter should receive when every input reaches the parameter of its name."""
    expected: dict[str, Any] = {}
    for each in signature.parameters.values():
        if each.kind is VAR_POSITIONAL:
            expected[each.name] = tuple(inputs.get(each.name, ()))
        elif each.kind is VAR_KEYWORD:
            own = set(signature.parameters) - {each.name}
            expected[each.name] = {name: value for name, value in inputs.items() if name not in own}
        else:
            expected[each.name] = inputs.get(each.name, each.default)
    return expected


def same(left: Any, right: Any) -> bool:
    """Equal, and made of the very same leaves."""
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(same(left[key], right[key]) for key in left)
    if isinstance(left, tuple):
        return len(left) == len(right) and all(map(same, left, right))
    return left is right


@given(calls(), st.booleans())
def test_a_call_with_the_binders_arguments_is_the_call_by_names(case: Any, check: bool) -> None:
    function, signature, inputs = case
    before = dict(inputs)
    args, kwargs = Signature.of(function).binder(TAG, check=check)(inputs)
    assert same(function(*args, **kwargs), received(signature, inputs))
    assert same(before, inputs)
    bound = signature.bind(*args, **kwargs)  # Python's own reading of the same arguments
    bound.apply_defaults()
    assert same(dict(bound.arguments), received(signature, inputs))


@given(calls())
def test_a_foreign_mapping_binds_as_a_dict_does(case: Any) -> None:
    function, signature, inputs = case
    binder = Signature.of(function).binder(TAG)
    for mapping in (types.MappingProxyType(inputs), collections.OrderedDict(inputs), collections.ChainMap(inputs)):
        args, kwargs = binder(mapping)
        assert same(function(*args, **kwargs), received(signature, inputs))


@given(calls(), st.data())
def test_every_missing_and_every_unknown_name_is_in_one_error(case: Any, choice: st.DataObject) -> None:
    function, signature, inputs = case
    takes_any = any(each.kind is VAR_KEYWORD for each in signature.parameters.values())
    required = [
        each.name
        for each in signature.parameters.values()
        if each.default is each.empty and each.kind not in {VAR_POSITIONAL, VAR_KEYWORD}
    ]
    missing = choice.draw(st.sets(st.sampled_from(required))) if required else set()
    unknown = (
        set() if takes_any else choice.draw(st.sets(st.sampled_from(["", "a b", "x" * 300, "\ud800", "ünknown", "0"])))
    )
    inputs = {name: value for name, value in inputs.items() if name not in missing} | dict.fromkeys(unknown, 1)
    if not missing and not unknown:
        call(function, inputs)
        return
    error = refuse(function, inputs)
    assert len([each for each in error.problems if "is missing" in each]) == len(missing)
    assert len([each for each in error.problems if "is not an input" in each]) == len(unknown)
    assert len(error.problems) == len(missing) + len(unknown)


@given(
    st.lists(st.tuples(st.sampled_from([int, str, float, bool, list, dict]), st.booleans()), min_size=1, max_size=12)
)
def test_every_wrong_type_is_in_one_error(rows: list[tuple[Any, bool]]) -> None:
    good = {int: 1, str: "x", float: 0.5, bool: True, list: [], dict: {}}
    text = ", ".join(f"p{index}: {kind.__name__}" for index, (kind, _) in enumerate(rows))
    space: dict[str, Any] = {}
    exec(f"def function({text}): ...", space)
    inputs = {f"p{index}": good[kind] if right else object() for index, (kind, right) in enumerate(rows)}
    wrong = [index for index, (_, right) in enumerate(rows) if not right]
    if not wrong:
        assert call(space["function"], inputs) is None
        return
    problems = refuse(space["function"], inputs).problems
    assert [problem.split(" must be ")[0] for problem in problems] == [f"'p{index}'" for index in wrong]


@given(st.one_of(st.floats(), st.integers(), st.text(st.characters()), st.binary(), st.none(), st.booleans()))
def test_the_error_and_the_acceptance_of_any_value_agree_with_its_type(value: Any) -> None:
    assert accepts(int, value) == (type(value) is int)
    assert accepts(float, value) == (type(value) in {int, float})
    assert accepts(str | None, value) == (type(value) is str or value is None)
    assert accepts(Annotated[float, annotated_types.Ge(0)], value) == (type(value) in {int, float} and value >= 0)


# --- names and structure -----------------------------------------------------------------------------------------


@pytest.mark.fault(121)
def test_missing_extra_and_wrong_inputs_are_named_together_before_any_work() -> None:
    def function(name: str, /, count: int, *, size: Annotated[int, annotated_types.Ge(0)], flag: bool = False) -> None:
        raise AssertionError

    error = refuse(function, {"nmae": 1, "count": "abc", "size": -1, "flag": 2})
    assert error.problems == (
        "'name' is missing (str)",
        "'count' must be int, not 'abc' (str)",
        "'size' must be >= 0, not -1",
        "'flag' must be bool, not 2 (int)",
        "'nmae' is not an input; did you mean 'name'?",
    )
    assert error.valid == ("name", "count", "size", "flag")
    assert error.tag == TAG


@pytest.mark.fault(121)
def test_a_name_like_no_other_gets_no_suggestion() -> None:
    assert refuse(lambda prompt: prompt, {"prompt": 1, "zzz": 2}).problems == ("'zzz' is not an input",)


@pytest.mark.fault(121)
def test_a_required_input_without_a_type_is_missing_without_a_type() -> None:
    assert refuse(lambda prompt: prompt, {}).problems == ("'prompt' is missing",)
    assert refuse(lambda prompt: prompt, None).problems == ("'prompt' is missing",)


def test_no_inputs_and_none_are_the_same_and_cost_no_new_objects() -> None:
    for function in (lambda: 1, lambda a=1, *b, c=2, **d: 1):
        bind = Signature.of(function).binder(TAG)
        assert bind(None) == bind({}) == bind(types.MappingProxyType({})) == ((), {})
        assert bind(None) is bind({})


def test_a_callee_that_changes_its_kwargs_does_not_change_the_next_call() -> None:
    def function(**kwargs: Any) -> dict[str, Any]:
        kwargs["more"] = 1
        return kwargs

    for target in (function, functools.partial(function), types.MethodType(lambda _, **kwargs: function(**kwargs), 1)):
        bind = Signature.of(target).binder(TAG)
        args, kwargs = bind(None)
        target(*args, **kwargs)
        assert bind(None) == ((), {})


@pytest.mark.parametrize(
    "inputs", [[], (), "", 0, False, [("name", 1)], {"name"}, "name", 5, object()], ids=lambda inputs: repr(inputs)[:15]
)
def test_what_is_no_mapping_is_refused_with_what_to_write(inputs: Any) -> None:
    (problem,) = refuse(lambda name=1: name, inputs).problems
    assert problem.startswith("inputs must be one mapping such as {'name': ...}, not ")
    (problem,) = refuse(lambda: 1, inputs).problems
    assert problem.startswith("inputs must be one mapping such as {}, not ")
    (problem,) = refuse(lambda **names: names, inputs, check=False).problems
    assert problem.startswith("inputs must be one mapping such as {'name': ...}, not ")


def test_a_mapping_that_cannot_be_read_is_refused_with_its_error_as_cause() -> None:
    class Broken(Mapping[str, int]):
        def __getitem__(self, name: str) -> int:
            raise OSError

        def __iter__(self) -> Iterator[str]:
            return iter(["name"])

        def __len__(self) -> int:
            return 1

    error = refuse(lambda name: name, Broken())
    assert error.problems == ("inputs could not be read as a mapping (OSError)",)
    assert isinstance(error.__cause__, OSError)


def test_a_defaultdict_does_not_invent_inputs() -> None:
    inputs: Any = collections.defaultdict(int)
    assert refuse(lambda name: name, inputs).problems == ("'name' is missing",)
    assert not inputs


@pytest.mark.parametrize("key", [1, None, b"name", ("name",), 10**5000], ids=["int", "None", "bytes", "tuple", "huge"])
def test_a_key_that_is_no_text_is_refused(key: Any) -> None:
    for function in (lambda name: name, lambda name, **rest: rest, max):
        (problem,) = refuse(function, {"name": 1, key: 2}).problems
        assert problem.endswith("is not a name: the keys of inputs are text")


def test_the_inputs_are_copied_when_bound() -> None:
    inputs = {"a": 1}
    for function in (lambda a: a, lambda a=0: a, lambda **rest: rest):
        _, kwargs = Signature.of(function).binder(TAG)(inputs)
        assert kwargs == inputs
        assert kwargs is not inputs


def test_a_long_list_of_unknown_names_is_cut_short() -> None:
    problems = refuse(lambda: 1, {f"name{index}": 1 for index in range(100_000)}).problems
    assert len(problems) == 101
    assert problems[-1] == "99900 more names were not looked at"


def test_a_hundred_unknown_names_are_all_named() -> None:
    assert len(refuse(lambda: 1, {f"name{index}": 1 for index in range(100)}).problems) == 100


@pytest.mark.fault(122)
def test_inputs_may_have_the_names_of_the_engines_own_parameters() -> None:
    def function(tag: int, timeout: int, self: int, inputs: int, *, runner: int, check: int, **kwargs: int) -> Any:
        return tag, timeout, self, inputs, runner, check, kwargs

    names = ["tag", "timeout", "self", "inputs", "runner", "check", "kwargs"]
    result = call(function, {name: index for index, name in enumerate(names)})
    assert result == (0, 1, 2, 3, 4, 5, {"kwargs": 6})


@pytest.mark.fault(122)
def test_a_method_takes_no_self_and_says_so() -> None:
    class Model:
        def predict(self, x: int, **rest: int) -> Any:
            return self, x, rest

        def __call__(self, x: int) -> Any:
            return self, x

        def free(self, /, **rest: int) -> Any:
            return self, rest

    model = Model()
    assert Signature.of(model.predict).names() == ("x",)
    assert call(model.predict, {"x": 1, "y": 2}) == (model, 1, {"y": 2})
    assert call(model, {"x": 1}) == (model, 1)
    assert refuse(model.predict, {"x": 1, "self": 2}).problems == (
        "'self' has its value already and cannot be an input",
    )
    assert call(model.free, {"self": 2}) == (model, {"self": 2})
    assert refuse(model, {"x": 1, "self": 2}).problems == ("'self' is not an input",)


def test_a_positional_only_name_wins_over_kwargs() -> None:
    def function(a: int, /, **rest: int) -> Any:
        return a, rest

    assert call(function, {"a": 1, "b": 2}) == (1, {"b": 2})


def test_positional_only_gaps_are_filled_with_their_defaults() -> None:
    def function(a: int, b: str = "b", c: str = "c", d: str = "d", /, e: str = "e") -> Any:
        return a, b, c, d, e

    bind = Signature.of(function).binder(TAG)
    assert bind({"a": 1}) == ((1,), {})
    assert bind({"a": 1, "c": "C"}) == ((1, "b", "C"), {})
    assert bind({"a": 1, "d": "D", "e": "E"}) == ((1, "b", "c", "D"), {"e": "E"})


def test_absent_inputs_are_left_to_their_defaults() -> None:
    bind = Signature.of(lambda a, b=2, *rest, c=3: (a, b, c)).binder(TAG)
    assert bind({"a": 1}) == ((), {"a": 1})
    assert bind({"a": 1, "rest": []}) == ((), {"a": 1})
    assert bind({"a": 1, "rest": [5], "c": 4}) == ((1, 2, 5), {"c": 4})


def test_extra_positionals_are_a_list_or_tuple_each_checked() -> None:
    def function(*numbers: int, word: str = "") -> Any:
        return numbers, word

    assert call(function, {"numbers": (1, 2), "word": "x"}) == ((1, 2), "x")
    assert refuse(function, {"numbers": [1, "x", 2.5]}).problems == (
        "'numbers' must be int, not 'x' (str)",
        "'numbers' must be int, not 2.5 (float)",
    )
    for check in (True, False):
        (problem,) = refuse(function, {"numbers": "12"}, check=check).problems
        assert problem.startswith("'numbers' must be list or tuple of int, not '12'")
    assert call(function, {"numbers": ["x"]}, check=False) == (("x",), "")


def test_annotated_kwargs_are_checked_and_others_are_not() -> None:
    def function(**rest: Annotated[int, annotated_types.Le(5)]) -> Any:
        return rest

    assert call(function, {"a": 1, "rest": 2}) == {"a": 1, "rest": 2}
    assert refuse(function, {"a": "x", "b": 9, "c": 1}).problems == (
        "'a' must be int, not 'x' (str)",
        "'b' must be <= 5, not 9",
    )
    assert refuse(function, {"a": "x"}).valid == ("**rest",)
    assert call(lambda **rest: rest, {"a": object}) == {"a": object}


def test_check_false_leaves_types_and_bounds_alone_but_not_names() -> None:
    def function(a: int, b: Annotated[int, annotated_types.Ge(0)] = 0, **rest: int) -> Any:
        return a, b, rest

    assert call(function, {"a": "x", "b": -1, "c": "y"}, check=False) == ("x", -1, {"c": "y"})
    assert refuse(function, {"b": -1}, check=False).problems == ("'a' is missing (int)",)
    assert refuse(lambda a: a, {"a": 1, "b": 2}, check=False).problems == ("'b' is not an input",)


def test_a_value_identical_to_the_default_always_passes() -> None:
    odd = object()

    def function(a: int = None, b: Annotated[int, annotated_types.Ge(9)] = 1, c: str = odd) -> Any:  # type: ignore[assignment]
        return a, b, c

    assert call(function, {"a": None, "b": 1, "c": odd}) == (None, 1, odd)
    assert len(refuse(function, {"a": "", "b": 2, "c": None}).problems) == 3


def test_a_text_or_a_number_equal_to_the_default_passes_whichever_object_it_is() -> None:
    def function(mode: int = "auto", size: str = 10**30, share: str = 0.5) -> Any:  # type: ignore[assignment]
        return mode, size, share

    inputs = {"mode": str(b"auto", "ascii"), "size": int("1" + 30 * "0"), "share": float("0.5")}
    assert call(function, inputs) == ("auto", 10**30, 0.5)
    assert len(refuse(function, {"mode": "automatic", "size": 1e30, "share": Fraction(1, 2)}).problems) == 3


def test_the_sentinel_for_no_default_is_an_ordinary_value() -> None:
    assert call(lambda a, b=1: (a, b), {"a": MISSING, "b": MISSING}) == (MISSING, MISSING)
    assert refuse(takes(int), {"value": MISSING}).problems == ("'value' must be int, not MISSING (_Missing)",)


def test_the_sentinel_stays_one_object() -> None:
    assert repr(MISSING) == "MISSING"
    assert pickle.loads(pickle.dumps(MISSING)) is MISSING
    assert copy.deepcopy(MISSING) is MISSING


def test_a_default_that_cannot_be_compared_does_no_harm() -> None:
    array = np.zeros(3)

    def function(a: np.ndarray = array, b: Any = array, /, *more: Any, c: Any = array) -> Any:
        return a, b, more, c

    result = call(function, {"b": 2, "more": [array]})
    assert result[0] is array
    assert result[1:3] == (2, (array,))
    repr(Signature.of(function))


# --- values ------------------------------------------------------------------------------------------------------


class Unmade: ...


class Grumpy:
    def __repr__(self) -> str:
        raise RuntimeError


ODD_VALUES = {
    "nan": math.nan,
    "inf": math.inf,
    "-0.0": -0.0,
    "huge": 10**5000,
    "negative-huge": -(10**5000),
    "surrogate": "\ud800",
    "nul": "\0",
    "control": "\x1b[31m",
    "bytes": b"\xff\0",
    "huge-key": {"k" * 100_000: 1},
    "unshowable": Grumpy(),
    "nested-unshowable": [Grumpy()],
    "endless": (endless := [1]),
}
endless.append(endless)  # type: ignore[arg-type]


@pytest.mark.fault(123)
@pytest.mark.parametrize("value", ODD_VALUES.values(), ids=ODD_VALUES)
def test_odd_values_arrive_as_they_are_and_their_errors_can_be_shown(value: Any) -> None:
    assert call(lambda value: value, {"value": value}) is value

    def function(
        a: Unmade,
        b: Annotated[Any, annotated_types.Ge(POINT)],
        c: Annotated[Any, annotated_types.MaxLen(-1)],
        d: Literal["\ud801"],
        e: Annotated[Any, annotated_types.MultipleOf(3)],
    ) -> None: ...

    error = refuse(
        function, dict.fromkeys("abcdef", value) | ({value: 1} if isinstance(value, (str, bytes, int)) else {})
    )
    assert len(error.problems) >= 5
    str(error).encode("ascii")
    assert len(str(error)) < 4000


def hostile_types() -> list[Any]:
    class Meta(type):
        def __instancecheck__(cls, instance: object) -> bool:
            raise RuntimeError

    class Hostile(metaclass=Meta): ...

    class Static(Protocol):
        def run(self) -> None: ...

    class MetaModel(type):
        @property
        def model_validate(cls) -> Any:
            raise RuntimeError

    class HostileModel(metaclass=MetaModel): ...

    return [Hostile, Static, Optional[Static], HostileModel]


@pytest.mark.parametrize("annotation", hostile_types(), ids=str)
def test_a_type_that_cannot_tell_accepts_anything(annotation: Any) -> None:
    assert accepts(annotation, 5)
    assert accepts(annotation, None)


class Fruit(enum.Enum):
    APPLE = 1
    PEAR = "pear"


class Level(enum.IntEnum):
    LOW = 1
    HIGH = 3


class Tone(enum.StrEnum):
    SOFT = "soft"
    QUIET = "soft"  # another name for it


class Grade(str, enum.Enum):  # noqa: UP042 - as written before there was StrEnum
    GOOD = "good"

    def __str__(self) -> str:
        return f"grade {self.value}"


class Share(float, enum.Enum):
    HALF = 0.5
    ALL = 1


class Access(enum.IntFlag):
    READ = 1
    WRITE = 2


class Pair2(enum.Enum):
    LEFT = (1, 2)
    ARRAY = [np.zeros(2)]  # noqa: RUF012 - a value that cannot be compared


class Mode(enum.Flag):
    READ = 1
    WRITE = 2


class Options(TypedDict):
    size: int


class Loose(typing_extensions.TypedDict):
    size: int


class Pair(typing.NamedTuple):
    left: int


@attrs.define
class Point:
    x: int


class User(pydantic.BaseModel):
    name: str
    age: int = 0


class Admin(User): ...


@typing.runtime_checkable
class Runs(Protocol):
    def run(self) -> None: ...


class TypeAliasType:
    """An alias that stands for itself."""

    @property
    def __value__(self) -> Any:
        return self


class Name(str):
    __slots__ = ()


Age = NewType("Age", int)
Old = NewType("Old", Age)
Bound = TypeVar("Bound", bound=int)
Chosen = TypeVar("Chosen", int, str)
Free = TypeVar("Free")
Alias = typing_extensions.TypeAliasType("Alias", Union[int, None])
Bounded = typing_extensions.TypeAliasType("Bounded", Annotated[int, annotated_types.Ge(0)])
Generic = typing_extensions.TypeAliasType("Generic", list[Free], type_params=(Free,))
Nothing = typing_extensions.TypeAliasType("Nothing", None)
Endless = typing_extensions.TypeAliasType("Endless", "Endless")  # type: ignore[misc]

POINT, PEN, USER = Point(1), pathlib.Path("pen"), User(name="a")
ARRAY = np.zeros((2, 2))

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


# --- what is read from a callable --------------------------------------------------------------------------------


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


def test_parameters_are_read_in_order_with_kind_and_default() -> None:
    def function(a: int, /, b: str = "b", *args: int, c: Annotated[float, "words"], **kwargs: Any) -> None: ...

    assert Signature.of(function) == Signature(
        (
            Parameter("a", "positional-only", int),
            Parameter("b", "positional-or-keyword", str, "b"),
            Parameter("args", "var-positional", int),
            Parameter("c", "keyword-only", float, description="words"),
            Parameter("kwargs", "var-keyword", Any),
        )
    )
    assert [each.required for each in Signature.of(function).parameters] == [True, False, False, True, False]
    assert Signature.of(function).names() == ("a", "b", "args", "c")
    assert Signature.of(function).parameters[2].expects == "list or tuple of int"
    assert Signature.of(lambda x: x).parameters[0].annotation is MISSING


def test_one_annotation_that_cannot_be_resolved_leaves_the_others_checked() -> None:
    def function(a: Hidden, b: int, c: Optional[Hidden] = None, d: Annotated[Hidden, 1] = 0) -> None: ...

    hints = [each.annotation for each in Signature.of(function).parameters]
    assert hints == [MISSING, int, MISSING, MISSING]
    assert refuse(function, {"a": 1, "b": "x", "c": 1, "d": 2}).problems == ("'b' must be int, not 'x' (str)",)


def test_text_inside_an_annotation_is_resolved() -> None:
    assert not accepts(Optional["Point"], 5)
    assert accepts(Optional["Point"], POINT)
    assert accepts("does not even(parse", 5)
    assert accepts("1 / 0", 5)


def test_an_annotation_may_name_a_type_of_the_surrounding_function_or_class() -> None:
    class Local: ...

    class Model:
        class Size(enum.Enum):
            S = 1

        def predict(self, a: Local, size: Size, names: list) -> Any:  # type: ignore[type-arg]
            return Local

        def list(self) -> None: ...

    (a, size, names) = Signature.of(Model().predict).parameters
    assert (a.annotation, size.annotation, names.annotation) == (Local, Model.Size, list)


def test_a_variable_of_the_surrounding_function_without_a_value_yet_does_no_harm() -> None:
    def function(a: int) -> Any:
        return later

    assert refuse(function, {"a": "x"}).problems == ("'a' must be int, not 'x' (str)",)
    later = 1
    assert function(1) == later


def decorated(function: Any) -> Any:
    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    return wrapper


def add(a: int, b: int = 2, *, c: int = 3) -> tuple[int, int, int]:
    return a, b, c


class Gatherer:
    def __call__(self, a: int, **rest: int) -> Any:
        return a, rest


class Adder:
    def __init__(self, a: int = 0) -> None:
        self.a = a

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Adder) and other.a == self.a

    def __hash__(self) -> int:
        return self.a

    def __call__(self, a: int) -> int:
        return a

    @classmethod
    def of(cls, a: int) -> Any:
        return a

    @staticmethod
    def plain(a: int) -> int:
        return a


CALLABLES: list[tuple[Any, dict[str, Any], Any]] = [
    (add, {"a": 1}, (1, 2, 3)),
    (functools.partial(add, 1), {"b": 5}, (1, 5, 3)),
    (functools.partial(add, b=9), {"a": 1}, (1, 9, 3)),
    (functools.partial(add, b=9), {"a": 1, "b": 4}, (1, 4, 3)),
    (functools.partial(functools.partial(add, 1), c=8), {"b": 5}, (1, 5, 8)),
    (decorated(add), {"a": 1, "c": 5}, (1, 2, 5)),
    (decorated(decorated(functools.partial(add, 1))), {"b": 5}, (1, 5, 3)),
    (functools.lru_cache(add), {"a": 1}, (1, 2, 3)),
    (Adder(), {"a": 1}, 1),
    (Adder.of, {"a": 1}, 1),
    (Adder().of, {"a": 1}, 1),
    (Adder.plain, {"a": 1}, 1),
    (Adder, {"a": 1}, Adder(1)),
    (functools.partial(Adder(), 1), {}, 1),
    (functools.partial(Gatherer(), 1), {"b": 2}, (1, {"b": 2})),
    (operator.add, {"a": 1, "b": 2}, 3),
    (math.sqrt, {"x": 4}, 2.0),
    (lambda *a: a, {"a": [1, 2]}, (1, 2)),
    (lambda *a: a, {}, ()),
    (lambda **a: a, {"b": 1}, {"b": 1}),
    (dict, {"b": 1}, {"b": 1}),
    (dict, {}, {}),
    (int, {}, 0),
]


@pytest.mark.fault(127)
@pytest.mark.parametrize(
    ("target", "inputs", "result"), CALLABLES, ids=[f"{i}-{type(row[0]).__name__}" for i, row in enumerate(CALLABLES)]
)
def test_any_callable_is_called_by_names(target: Any, inputs: dict[str, Any], result: Any) -> None:
    assert call(target, inputs) == result
    assert call(target, inputs, check=False) == result


@pytest.mark.fault(127)
@pytest.mark.parametrize(
    "target",
    [functools.partial(add, b=1), decorated(add), functools.lru_cache(add), Adder(), Adder.of],
    ids=["partial", "wraps", "cache", "object", "classmethod"],
)
def test_wrapping_a_function_keeps_its_checks(target: Any) -> None:
    assert refuse(target, {"a": "x", "zzz": 1}).problems == ("'a' must be int, not 'x' (str)", "'zzz' is not an input")


@pytest.mark.fault(127)
def test_names_a_partial_has_filled_are_no_inputs() -> None:
    def function(a: int, b: int, **rest: int) -> Any:
        return a, b, rest

    target = functools.partial(functools.partial(function, 1), 2)
    assert Signature.of(target).given == {"a", "b"}
    assert call(target, {"c": 3}) == (1, 2, {"c": 3})
    assert len(refuse(target, {"a": 1, "b": 2, "c": 3}).problems) == 2


class Unreadable:
    __signature__ = "nonsense"

    def __call__(self, **names: Any) -> Any:
        return names


class Denying:
    def __getattribute__(self, name: str) -> Any:
        raise RuntimeError

    def __call__(self, **names: Any) -> Any:
        return names


@pytest.mark.fault(127)
@pytest.mark.parametrize("kind", [Unreadable, Denying])
def test_a_callable_that_cannot_be_read_gets_every_input_by_name(kind: Any) -> None:
    target = kind()
    signature = Signature.of(target)
    assert not signature.readable
    assert signature.parameters == ()
    assert signature.names() == ()
    assert call(target, {"a": 1, "self_": 2}) == {"a": 1, "self_": 2}
    assert call(target, None) == {}
    assert refuse(target, [1]).valid == ("**inputs",)


def streams() -> list[Any]:
    names = ("Iterator", "Iterable", "Generator", "AsyncIterator", "AsyncIterable", "AsyncGenerator")
    found: list[Any] = []
    for module in (typing, collections.abc):
        for name in names:
            kind = getattr(module, name)
            arguments = {"Generator": (int, None, str), "AsyncGenerator": (int, None)}.get(name, (int,))
            found += [kind, kind[arguments], f"{name}[Hidden]", f"some.module.{name}", name]
    return [
        *found,
        Annotated[Iterator[int], "words"],
        Optional[Iterator[int]],
        collections.abc.Coroutine[Any, Any, Iterator[int]],
        typing.Awaitable[Iterator[int]],
        typing_extensions.TypeAliasType("Stream", Iterator[int]),
    ]


@pytest.mark.parametrize("annotation", streams(), ids=str)
def test_a_return_annotation_that_says_iterator_is_seen(annotation: Any) -> None:
    def function() -> Any: ...

    function.__annotations__["return"] = annotation
    assert Signature.of(function).yields
    assert Signature.of(functools.partial(function)).yields


@pytest.mark.parametrize(
    "annotation",
    [list[int], str, None, Any, "Hidden", "list[Iterator]", Sequence[int], tuple, object, 5, [int], np.ndarray, range,
     collections.abc.Awaitable, typing.Awaitable[int], Optional[int], Free, "MyIterator", Endless],
    ids=str,
)  # fmt: skip
def test_a_return_annotation_that_does_not_say_iterator_is_not_followed(annotation: Any) -> None:
    def function() -> Any: ...

    function.__annotations__["return"] = annotation
    signature = Signature.of(function)
    assert not signature.yields
    assert signature.readable


def test_return_annotations_are_read_from_source_as_written() -> None:
    def checked() -> hidden.Iterator[Hidden]: ...  # type: ignore[empty-body]
    def plain() -> Generator[int, None, str]: ...  # type: ignore[empty-body]
    async def later() -> AsyncIterator[int]:
        yield 1

    def nothing():  # type: ignore[no-untyped-def]
        yield 1

    assert [Signature.of(each).yields for each in (checked, plain, later, nothing)] == [True, True, True, False]


def test_a_signature_of_plain_types_survives_a_pickle_round_trip() -> None:
    signature = Signature.of(add)
    again = pickle.loads(pickle.dumps(signature))
    assert again == signature
    assert again.parameters[0].default is MISSING
    assert again.binder(TAG)({"a": 1}) == ((), {"a": 1})


def test_importing_the_module_imports_no_array_library_and_no_event_loop() -> None:
    code = """import sys, engine._predictors.signature
print(*({"asyncio", "numpy", "pydantic", "difflib", "annotated_types"} & set(sys.modules)))"""
    root = pathlib.Path(__file__).resolve().parents[1]
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.strip() == ""
