"""What is read from a callable: its parameters, their annotations and defaults, and what it says it returns."""

# Every spelling of a type is tested, also those a linter would rewrite.
# ruff: noqa: UP045

from __future__ import annotations

import collections
import collections.abc
import enum
import functools
import math
import operator
import pathlib
import pickle
import subprocess
import sys
import typing
from collections.abc import AsyncIterator, Generator, Iterator, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Optional

import numpy as np
import pytest
import typing_extensions

from engine._predictors.annotations import MISSING
from engine._predictors.parameter import Parameter
from engine._predictors.signature import Signature
from tests.predictors.binding import TAG, accepts, call, refuse
from tests.predictors.types_to_accept import POINT, Endless, Free, Point

if TYPE_CHECKING:
    import collections.abc as hidden

    Hidden = int


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
    root = pathlib.Path(__file__).resolve().parents[2]
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.strip() == ""
