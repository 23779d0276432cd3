"""The sync and the async side are twins, and what they have in public is described."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, Final

import pytest

import engine
from engine import AsyncPredictionStream, Engine, PredictionStream


def parameters_of(function: Callable[..., Any]) -> list[tuple[str, Any, Any, Any]]:
    found = inspect.signature(function).parameters.values()
    return [(each.name, each.kind, each.default, each.annotation) for each in found]


PREDICTIONS: Final = type(Engine(discover=False).predictions)
TWINS: Final = [
    (PREDICTIONS.create, PREDICTIONS.acreate),
    (PREDICTIONS.stream, PREDICTIONS.astream),
    (Engine.load, Engine.aload),
    (Engine.unload, Engine.aunload),
    (Engine.close, Engine.aclose),
]


@pytest.mark.parametrize(("one", "twin"), TWINS, ids=lambda each: each.__name__)
def test_async_twins_take_the_same_parameters(one: Callable[..., Any], twin: Callable[..., Any]) -> None:
    assert twin.__name__ == f"a{one.__name__}"
    assert parameters_of(one) == parameters_of(twin)


def test_create_and_stream_differ_in_what_only_one_of_them_can_use() -> None:
    create, stream = (set(inspect.signature(each).parameters) for each in (PREDICTIONS.create, PREDICTIONS.stream))
    assert create - stream == {"reduce", "errors"}
    assert stream - create == {"prefetch"}


@pytest.mark.parametrize("function", [PREDICTIONS.create, PREDICTIONS.stream], ids=lambda each: each.__name__)
def test_everything_but_tag_and_inputs_is_keyword_only(function: Callable[..., Any]) -> None:
    kinds = {each.name: each.kind for each in inspect.signature(function).parameters.values()}
    positional = [name for name, kind in kinds.items() if kind is inspect.Parameter.POSITIONAL_OR_KEYWORD]
    assert positional == ["self", "tag", "inputs"]
    assert {kinds[name] for name in kinds if name not in positional} == {inspect.Parameter.KEYWORD_ONLY}


def test_acreate_is_a_coroutine_function_and_astream_is_not() -> None:
    assert inspect.iscoroutinefunction(PREDICTIONS.acreate)
    assert not inspect.iscoroutinefunction(PREDICTIONS.astream)


DUNDERS: Final = ("iter", "next", "enter", "exit")
ASYNC_NAMES: Final = {f"__{name}__": f"__a{name}__" for name in DUNDERS}


def names_of(face: type) -> set[str]:
    own = {"__iter__", "__next__", "__enter__", "__exit__", "__repr__", "__reduce__"} | set(ASYNC_NAMES.values())
    return {name for name in dir(face) if not name.startswith("_")} | (own & set(vars(face)))


def test_both_streams_have_the_same_names() -> None:
    expected = {ASYNC_NAMES.get(name, "aclose" if name == "close" else name) for name in names_of(PredictionStream)}
    assert names_of(AsyncPredictionStream) == expected


@pytest.mark.parametrize("name", sorted(names_of(PredictionStream)))
def test_both_streams_describe_what_they_share(name: str) -> None:
    twin = ASYNC_NAMES.get(name, "aclose" if name == "close" else name)
    for face, own in ((PredictionStream, name), (AsyncPredictionStream, twin)):
        assert inspect.getdoc(getattr(face, own)), f"{face.__name__}.{own} has no docstring"


def one() -> int:
    return 1


PUBLIC_NAMES: Final[list[tuple[Callable[[Engine], object], set[str]]]] = [
    (
        lambda muna: muna,
        {"predictions", "predictors", "loaded", "load", "aload", "unload", "aunload", "close", "aclose"},
    ),
    (lambda muna: muna.predictions, {"create", "stream", "acreate", "astream"}),
    (
        lambda muna: muna.predictors,
        {"get", "items", "keys", "values", "retrieve", "register", "unregister", "problems", "source"},
    ),
    (
        lambda muna: muna.predictions.stream(one),
        {"id", "tag", "outcome", "values", "snapshots", "cancel", "close"},
    ),
    (
        lambda muna: muna.predictions.astream(one),
        {"id", "tag", "outcome", "values", "snapshots", "cancel", "aclose"},
    ),
]


@pytest.mark.parametrize(
    ("shown_by", "names"), PUBLIC_NAMES, ids=["engine", "predictions", "predictors", "stream", "astream"]
)
def test_completion_offers_what_is_meant_to_be_used_and_nothing_else(
    shown_by: Callable[[Engine], object], names: set[str]
) -> None:
    with Engine(discover=False) as muna:
        shown = shown_by(muna)
        assert {name for name in dir(shown) if not name.startswith("_")} == names
        assert all(inspect.getdoc(getattr(type(shown), name)) for name in names)


def test_every_public_name_is_described_and_found() -> None:
    for name in engine.__all__:
        assert inspect.getdoc(getattr(engine, name)), name
