"""Reducers: what each makes of partials, that none keeps anything, and how a choice is told from a mistake."""

from __future__ import annotations

import asyncio
import pickle
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine import Engine, NoPartialsError, Reducer, fold, predictor
from engine._reducers import COLLECT, CONCAT, LAST, RETURNED, reducer_of

BUILT_IN = (LAST, CONCAT, COLLECT, RETURNED)


def reduced(reducer: Reducer, partials: list[Any]) -> Any:
    state = reducer.start()
    for each in partials:
        state = reducer.step(state, each)
    return reducer.finish(state)


def running(reducer: Reducer, partials: list[Any]) -> list[Any]:
    state, seen = reducer.start(), []
    for each in partials:
        state = reducer.step(state, each)
        seen.append(reducer.finish(state))
    return seen


# What each makes of partials


@pytest.mark.parametrize(
    "value", [None, 0, "", [], NotImplemented, ValueError("a value"), object()], ids=lambda value: type(value).__name__
)
def test_last_gives_the_very_object_that_came_last(value: object) -> None:
    assert reduced(LAST, ["before", value]) is value


@pytest.mark.parametrize(
    ("partials", "wanted"),
    [
        (["he", "", "llo"], "hello"),
        ([b"he", b"", b"llo"], b"hello"),
        ([[1], [], [2, 3]], [1, 2, 3]),
        ([""], ""),
        ([[]], []),
    ],
)
def test_concat_joins_text_bytes_and_lists(partials: list[Any], wanted: object) -> None:
    assert reduced(CONCAT, partials) == wanted


class Text(str):
    __slots__ = ()


def test_concat_takes_subclasses_and_gives_the_plain_type() -> None:
    joined = reduced(CONCAT, [Text("a"), Text("b")])
    assert (type(joined), joined) == (str, "ab")


@pytest.mark.parametrize(
    ("partials", "shown"),
    [([1], "1"), ([None], "None"), (["a", b"b"], "b'b'"), (["a", 1], "1"), ([[1], (2,)], r"\(2,\)")],
)
def test_concat_names_what_it_cannot_join_and_the_way_out(partials: list[Any], shown: str) -> None:
    with pytest.raises(TypeError, match=rf"not {shown}: declare another reducer, or override it with create\(\.\.\.,"):
        reduced(CONCAT, partials)


def test_concat_never_hands_out_a_list_it_goes_on_with() -> None:
    first = [1]
    state = CONCAT.step(CONCAT.start(), first)
    snapshot = CONCAT.finish(state)
    snapshot.append("mine")
    state = CONCAT.step(state, [2])
    assert CONCAT.finish(state) == [1, 2]
    assert first == [1]


def test_concat_takes_linear_time_in_its_partials() -> None:
    """Joining calls for each piece a bounded number of times, however many there are."""
    looked_at = 0

    class Piece(list[int]):
        def __iter__(self) -> Iterator[int]:
            nonlocal looked_at
            looked_at += 1
            return super().__iter__()

    assert len(reduced(CONCAT, [Piece([n]) for n in range(1_000)])) == 1_000
    assert looked_at == 1_000


def test_collect_gives_every_partial_in_a_fresh_list() -> None:
    snapshots = running(COLLECT, ["a", None, "a"])
    assert snapshots == [["a"], ["a", None], ["a", None, "a"]]
    assert len({id(each) for each in snapshots}) == 3
    assert reduced(COLLECT, []) == []


@pytest.mark.parametrize("reducer", [LAST, CONCAT], ids=lambda reducer: reducer.name)
def test_a_reducer_that_needs_a_partial_says_so(reducer: Reducer) -> None:
    with pytest.raises(NoPartialsError) as caught:
        reducer.finish(reducer.start())
    assert caught.value.reducer == reducer.name


def test_fold_calls_its_function_once_for_each_partial_in_order() -> None:
    seen: list[tuple[int, int]] = []

    def add(state: int, partial: int) -> int:
        seen.append((state, partial))
        return state + partial

    assert reduced(fold(add, 10), [1, 2, 3]) == 16
    assert seen == [(10, 1), (11, 2), (13, 3)]


def test_fold_makes_a_mutable_state_anew_for_each_prediction() -> None:
    def keep(state: list[int], partial: int) -> list[int]:
        state.append(partial)
        return state

    reducer = fold(keep, list)
    assert [reduced(reducer, [1, 2]), reduced(reducer, [3]), reduced(reducer, [])] == [[1, 2], [3], []]


def test_fold_without_partials_gives_its_initial_value(muna: Engine) -> None:
    def nothing() -> Iterator[int]:
        yield from ()

    assert muna.predictions.create(nothing, reduce=fold(max, 7)).value == 7


def test_fold_refuses_what_is_no_function() -> None:
    with pytest.raises(TypeError, match=r"takes a function of \(state, partial\), not 'sum'"):
        fold("sum", 0)  # type: ignore[arg-type]


@pytest.mark.parametrize("reducer", [*BUILT_IN, fold(max, 0)], ids=lambda reducer: reducer.name)
def test_every_reducer_keeps_the_protocol(reducer: Reducer) -> None:
    assert isinstance(reducer, Reducer)
    assert reducer_of(reducer) is reducer


@pytest.mark.parametrize("reducer", BUILT_IN, ids=lambda reducer: reducer.name)
def test_a_built_in_reducer_is_found_by_its_name_and_survives_a_pickle(reducer: Reducer) -> None:
    assert reducer_of(reducer.name) is reducer
    copied = pickle.loads(pickle.dumps(reducer))
    assert type(copied) is type(reducer)


def test_no_choice_is_last() -> None:
    assert reducer_of(None) is LAST


@pytest.mark.parametrize(
    "choice", ["lst", "", "LAST", 5, list, object(), Reducer, print], ids=lambda choice: repr(choice)[:16]
)
def test_what_is_no_reducer_is_refused_with_the_choices(choice: object) -> None:
    with pytest.raises(ValueError, match=r"one of 'last', 'concat', 'collect', 'returned', fold\(function, initial\)"):
        reducer_of(choice)


@given(st.lists(st.text(max_size=3), min_size=1), st.lists(st.text(max_size=3), min_size=1))
def test_two_predictions_reduced_in_turns_do_not_mix(one: list[str], other: list[str]) -> None:
    for reducer in (LAST, CONCAT, COLLECT, fold(lambda state, each: state + each, "")):
        states = [reducer.start(), reducer.start()]
        for place, partials in enumerate((one, other)):
            for each in partials:
                states[place] = reducer.step(states[place], each)
        assert [reducer.finish(state) for state in states] == [reduced(reducer, one), reduced(reducer, other)]


@given(st.lists(st.text(max_size=3), min_size=1))
def test_the_last_snapshot_is_the_result(partials: list[str]) -> None:
    for reducer in (LAST, CONCAT, COLLECT, fold(lambda state, each: state + each, "")):
        assert running(reducer, partials)[-1] == reduced(reducer, partials)


# In a predictor, and at the call


@predictor("@me/speller", reduce="concat")
def spells(text: str = "abc") -> Iterator[str]:
    yield from text


@predictor("@me/late-speller", reduce="concat")
async def spells_later(text: str = "abc") -> AsyncIterator[str]:
    for each in text:
        yield each


@pytest.mark.parametrize("target", [spells, spells_later], ids=["yield", "async-yield"])
@pytest.mark.parametrize("runner", [None, "thread"])
def test_the_author_declares_a_reducer_and_the_caller_may_override_it(
    runner: str | None, target: Callable[..., Any], muna: Engine
) -> None:
    create = muna.predictions.create
    assert create(target, runner=runner).value == "abc"
    assert create(target, runner=runner, reduce="last").value == "c"
    assert create(target, runner=runner, reduce="collect").value == ["a", "b", "c"]
    assert create(target, runner=runner, reduce=fold(lambda state, each: each + state, "")).value == "cba"
    assert asyncio.run(muna.predictions.acreate(target, runner=runner)).value == "abc"


@pytest.mark.parametrize("target", [spells, spells_later], ids=["yield", "async-yield"])
def test_snapshots_are_the_text_so_far(target: Callable[..., Any], muna: Engine) -> None:
    async def read() -> list[Any]:
        return [each async for each in muna.predictions.astream(target).snapshots()]

    assert list(muna.predictions.stream(target).snapshots()) == ["a", "ab", "abc"]
    assert asyncio.run(read()) == ["a", "ab", "abc"]


def test_snapshots_run_from_the_position_they_were_asked_for_at(muna: Engine) -> None:
    stream = muna.predictions.stream(spells, {"text": "abcd"})
    assert next(stream).value == "a"
    assert list(stream.snapshots()) == ["b", "bc", "bcd"]


def test_snapshots_of_a_returned_value_are_refused_with_the_way_out(muna: Engine) -> None:
    @predictor("@me/counter", reduce="returned")
    def counts() -> Iterator[int]:
        yield 1
        return 2  # type: ignore[return-value]

    stream = muna.predictions.stream(counts)
    with pytest.raises(ValueError, match=r"no running value: use values\(\), and outcome\.returned at the end"):
        list(stream.snapshots())
    assert list(stream.values()) == [1]
    assert stream.outcome.returned == 2

    async def read() -> None:
        async for _ in muna.predictions.astream(counts).snapshots():
            raise AssertionError("it gave a snapshot")

    with pytest.raises(ValueError, match="no running value"):
        asyncio.run(read())


def test_returned_is_a_plain_functions_value_and_a_generators_return_value(muna: Engine) -> None:
    def returns() -> str:
        return "value"

    def yields() -> Iterator[str]:
        yield "partial"
        return "returned"  # type: ignore[return-value]

    async def yields_later() -> AsyncIterator[str]:
        yield "partial"

    values = [muna.predictions.create(each, reduce="returned").value for each in (returns, yields, yields_later)]
    assert values == ["value", "returned", None]


def test_a_reducer_of_ones_own_needs_four_names_only(muna: Engine) -> None:
    class Longest:
        name = "longest"

        def start(self) -> str:
            return ""

        def step(self, state: str, partial: str) -> str:
            return max(state, partial, key=len)

        def finish(self, state: str) -> str:
            return state

    def words() -> Iterator[str]:
        yield from ("a", "longer", "word")

    assert muna.predictions.create(words, reduce=Longest()).value == "longer"


def test_a_reducer_may_raise_no_partials_of_its_own(muna: Engine) -> None:
    class Needy:
        name = "needy"

        def start(self) -> list[Any]:
            return []

        def step(self, state: list[Any], partial: Any) -> list[Any]:
            return [*state, partial]

        def finish(self, state: list[Any]) -> Any:
            raise NoPartialsError("", self.name)

    def yields() -> Iterator[int]:
        yield 1

    with pytest.raises(NoPartialsError, match="'needy' needs one") as caught:
        muna.predictions.create(yields, reduce=Needy())
    assert caught.value.tag.endswith("yields")


@pytest.mark.parametrize("runner", [None, "thread"])
def test_a_reducer_that_fails_closes_the_stream_it_was_reducing(runner: str | None, muna: Engine) -> None:
    left: list[str] = []

    def fails(state: int, partial: int) -> int:
        raise ArithmeticError("not this one")

    def yields() -> Iterator[list[int]]:
        try:
            yield [1]
            yield [2]
        finally:
            left.append("finally")

    with pytest.raises(ArithmeticError, match="not this one"):
        muna.predictions.create(yields, runner=runner, reduce=fold(fails, 0), errors="return")
    assert left == ["finally"]
