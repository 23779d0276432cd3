"""Binding inputs to a callable's parameters: by name, checked, never changed.

The properties compare the generated binder with Python's own rules over random signatures, with names chosen to clash
with anything a binder might use.
"""

# Every spelling of a type is tested, also those a linter would rewrite.
# ruff: noqa: RUF013

from __future__ import annotations

import collections
import collections.abc
import copy
import functools
import inspect
import pickle
import sys
import types
from collections.abc import Iterator, Mapping
from fractions import Fraction
from typing import Annotated, Any

import annotated_types
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine._predictors.annotations import MISSING
from engine._predictors.signature import Signature
from tests.predictors.binding import TAG, accepts, call, refuse, takes

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
