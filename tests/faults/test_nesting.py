"""Predictors that call the engine that runs them: for what they hold themselves, or for ever."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest

from engine import Engine, NestingError, Predictor, current_call
from engine._policies.opening import DEEPEST
from tests._kit.waits import in_other_thread, within

# 97: a predictor that asks for what it holds.


@pytest.mark.fault(97)
@pytest.mark.parametrize("runner", [None, "thread"])
@pytest.mark.parametrize("how", ["create", "stream"])
def test_a_sync_predictor_that_waits_for_its_own_slot_gets_a_nesting_error(
    muna: Engine, runner: str | None, how: str
) -> None:
    def again() -> Any:
        if how == "create":
            return muna.predictions.create("@tests/again", runner=runner).value
        return list(muna.predictions.stream("@tests/again", runner=runner).values())

    muna.predictors.register(Predictor("@tests/again", again, concurrency=1))
    with pytest.raises(NestingError, match="@tests/again") as caught:
        in_other_thread(lambda: muna.predictions.create("@tests/again", runner=runner))
    assert "@tests/again" in caught.value.holder


@pytest.mark.fault(97)
@pytest.mark.parametrize("runner", [None, "thread"])
@pytest.mark.parametrize("how", ["acreate", "astream"])
def test_an_async_predictor_that_waits_for_its_own_slot_gets_a_nesting_error(
    muna: Engine, runner: str | None, how: str
) -> None:
    async def again() -> Any:
        if how == "acreate":
            return (await muna.predictions.acreate("@tests/again", runner=runner)).value
        return [value async for value in muna.predictions.astream("@tests/again", runner=runner).values()]

    muna.predictors.register(Predictor("@tests/again", again, concurrency=1))

    async def main() -> None:
        with pytest.raises(NestingError, match="@tests/again"):
            await within(muna.predictions.acreate("@tests/again", runner=runner))

    asyncio.run(main())
    with pytest.raises(NestingError, match="@tests/again"):
        in_other_thread(lambda: muna.predictions.create("@tests/again"))


@pytest.mark.fault(97)
@pytest.mark.parametrize("runner", [None, "thread"])
@pytest.mark.parametrize("depth", [1, 2, 3])
def test_a_ring_of_predictors_with_one_slot_each_gets_a_nesting_error(
    muna: Engine, runner: str | None, depth: int
) -> None:
    starts: list[int] = []

    def link(number: int) -> Callable[[], Any]:
        def call_next() -> Any:
            starts.append(number)
            return muna.predictions.create(f"@tests/link{(number + 1) % depth}", runner=runner).value

        return call_next

    for number in range(depth):
        muna.predictors.register(Predictor(f"@tests/link{number}", link(number), concurrency=1))
    with pytest.raises(NestingError, match="@tests/link0"):
        in_other_thread(lambda: muna.predictions.create("@tests/link0", runner=runner))
    assert starts == list(range(depth))
    with pytest.raises(NestingError, match="@tests/link0"):  # and every slot was given back
        in_other_thread(lambda: muna.predictions.create("@tests/link0", runner=runner))


@pytest.mark.fault(97)
@pytest.mark.parametrize("outer", [None, "thread"])
@pytest.mark.parametrize("inner", [None, "thread"])
@pytest.mark.parametrize("depth", [1, 2, 3])
def test_predictors_with_one_slot_each_may_call_each_other_in_a_row(
    muna: Engine, outer: str | None, inner: str | None, depth: int
) -> None:
    def link(number: int) -> Callable[[], Any]:
        def call_next() -> Any:
            if number == depth:
                return "the end"
            return muna.predictions.create(f"@tests/link{number + 1}", runner=inner).value

        return call_next

    for number in range(depth + 1):
        muna.predictors.register(Predictor(f"@tests/link{number}", link(number), concurrency=1))
    assert in_other_thread(lambda: muna.predictions.create("@tests/link0", runner=outer)).value == "the end"


@pytest.mark.fault(97)
@pytest.mark.parametrize("runner", [None, "thread"])
def test_a_slot_held_by_an_open_stream_of_the_same_thread_is_refused_naming_that_stream(
    muna: Engine, runner: str | None
) -> None:
    def counts() -> Iterator[int]:
        yield from range(10)

    muna.predictors.register(Predictor("@tests/counts", counts, concurrency=1))

    def one_in_another() -> None:
        with muna.predictions.stream("@tests/counts", runner=runner) as stream:
            next(stream)
            with pytest.raises(NestingError, match="close it first") as caught:
                muna.predictions.create("@tests/counts", runner=runner)
            assert stream.id in str(caught.value)
            assert stream.id in caught.value.holder
        assert muna.predictions.create("@tests/counts", runner=runner).value == 9

    in_other_thread(one_in_another)


@pytest.mark.fault(97)
@pytest.mark.parametrize("runner", [None, "inline", "thread"])
@pytest.mark.parametrize("kind", ["sync", "async"])
def test_a_slot_held_by_an_open_stream_of_the_same_task_is_refused_and_of_another_task_is_waited_for(
    muna: Engine, runner: str | None, kind: str
) -> None:
    def counts() -> Iterator[int]:
        yield from range(10)

    async def acounts() -> AsyncIterator[int]:
        for number in range(10):
            yield number

    muna.predictors.register(Predictor("@tests/counts", counts if kind == "sync" else acounts, concurrency=1))

    async def main() -> None:
        async with muna.predictions.astream("@tests/counts", runner=runner) as stream:
            await anext(stream)
            with pytest.raises(NestingError, match=stream.id):
                await within(muna.predictions.acreate("@tests/counts", runner=runner))
            other = asyncio.create_task(muna.predictions.acreate("@tests/counts", runner=runner))
            for _ in range(20):
                await asyncio.sleep(0)
            assert not other.done()
        assert (await within(other)).value == 9

    asyncio.run(main())


class CountsInClass:
    def predict(self) -> Iterator[int]:
        yield from range(10)


async def acounts_ten() -> AsyncIterator[int]:
    for number in range(10):
        yield number


@pytest.mark.fault(97)
@pytest.mark.filterwarnings("ignore:a stream of:ResourceWarning")
@pytest.mark.parametrize("left", ["dropped", "cancelled"])
@pytest.mark.parametrize("kind", ["class", "async"])
def test_a_stream_that_its_task_left_is_waited_for_by_the_next_call_of_that_task_unless_that_keeps_the_loop(
    muna: Engine, kind: str, left: str
) -> None:
    muna.predictors.register(
        Predictor("@tests/counts", CountsInClass if kind == "class" else acounts_ten, concurrency=1)
    )
    runner = "inline" if kind == "class" else None

    async def leave_one() -> None:
        stream = muna.predictions.astream("@tests/counts", runner=runner)
        await anext(stream)
        if left == "cancelled":
            stream.cancel()

    async def main() -> None:
        await leave_one()
        assert (await muna.predictions.acreate("@tests/counts", runner=runner)).value == 9
        await leave_one()
        with pytest.raises(NestingError, match="cannot go on meanwhile"):
            muna.predictions.create("@tests/counts")
        assert (await muna.predictions.acreate("@tests/counts", runner=runner)).value == 9

    in_other_thread(lambda: asyncio.run(main()))


@pytest.mark.fault(97)
def test_a_sync_call_of_an_async_predictor_on_the_engines_own_loop_is_refused(muna: Engine) -> None:
    async def inner() -> str:
        return "inner"

    async def outer() -> Any:
        return muna.predictions.create(inner).value

    with pytest.raises(NestingError, match="await acreate"):
        in_other_thread(lambda: muna.predictions.create(outer))


@pytest.mark.fault(97)
def test_a_sync_call_of_an_async_predictor_from_a_sync_one_the_engines_loop_waits_for_is_refused(muna: Engine) -> None:
    async def innermost() -> str:
        return "innermost"

    def middle() -> Any:
        return muna.predictions.create(innermost).value

    async def outer() -> Any:
        return muna.predictions.create(middle, runner="thread").value  # blocks the engine's loop until it is done

    with pytest.raises(NestingError, match="await acreate"):
        in_other_thread(lambda: muna.predictions.create(outer))


@pytest.mark.fault(97)
def test_a_sync_predictor_awaited_by_an_async_one_may_call_async_ones(muna: Engine) -> None:
    async def innermost() -> str:
        return "innermost"

    def middle() -> Any:
        return muna.predictions.create(innermost).value

    async def outer() -> Any:
        return (await muna.predictions.acreate(middle)).value

    assert in_other_thread(lambda: muna.predictions.create(outer)).value == "innermost"


@pytest.mark.fault(97)
def test_a_class_whose_setup_calls_itself_gets_a_nesting_error(muna: Engine) -> None:
    class Selfish:
        def setup(self) -> None:
            muna.predictions.create(Selfish)

        def predict(self) -> str:
            return "never"

    with pytest.raises(NestingError, match="Selfish"):
        in_other_thread(lambda: muna.predictions.create(Selfish))
    with pytest.raises(NestingError, match="Selfish"):
        in_other_thread(lambda: muna.load(Selfish))


@pytest.mark.fault(97)
def test_a_class_whose_async_setup_calls_itself_gets_a_nesting_error(muna: Engine) -> None:
    class Selfish:
        async def setup(self) -> None:
            await muna.predictions.acreate(Selfish)

        async def predict(self) -> str:
            return "never"

    with pytest.raises(NestingError, match="Selfish"):
        in_other_thread(lambda: muna.predictions.create(Selfish))
    with pytest.raises(NestingError, match="Selfish"):
        in_other_thread(lambda: muna.load(Selfish))

    async def main() -> None:
        with pytest.raises(NestingError, match="Selfish"):
            await within(muna.predictions.acreate(Selfish))
        with pytest.raises(NestingError, match="Selfish"):
            await within(muna.aload(Selfish))

    asyncio.run(main())


@pytest.mark.fault(97)
def test_two_classes_whose_setups_call_each_other_get_a_nesting_error(muna: Engine) -> None:
    class One:
        def setup(self) -> None:
            muna.predictions.create(Other)

        def predict(self) -> str:
            return "never"

    class Other:
        def setup(self) -> None:
            muna.predictions.create(One)

        def predict(self) -> str:
            return "never"

    with pytest.raises(NestingError, match="One"):
        in_other_thread(lambda: muna.predictions.create(One))


@pytest.mark.fault(97)
@pytest.mark.parametrize("runner", [None, "thread"])
def test_a_class_may_call_other_predictors_in_setup_and_predict(muna: Engine, runner: str | None) -> None:
    class Inner:
        def setup(self) -> None:
            self.word = "inner"

        def predict(self) -> str:
            return self.word

    class Outer:
        def setup(self) -> None:
            self.word = muna.predictions.create(Inner, runner=runner).value

        def predict(self) -> Iterator[str]:
            yield self.word
            yield muna.predictions.create(Inner, runner=runner).value

    values = in_other_thread(lambda: list(muna.predictions.stream(Outer, runner=runner).values()))
    assert values == ["inner", "inner"]


# 98: recursion without a bound.


@pytest.mark.fault(98)
@pytest.mark.parametrize("runner", [None, "thread"])
@pytest.mark.parametrize("how", ["create", "stream"])
def test_a_sync_predictor_that_calls_itself_for_ever_is_refused_at_a_stated_depth_naming_the_chain(
    muna: Engine, runner: str | None, how: str
) -> None:
    depths: list[int] = []

    def for_ever() -> Any:
        depths.append(depth_here())
        if how == "create":
            return muna.predictions.create("@tests/for-ever", runner=runner).value
        return list(muna.predictions.stream("@tests/for-ever", runner=runner))

    muna.predictors.register("@tests/for-ever", for_ever)
    with pytest.raises(NestingError, match=f"{DEEPEST + 1} deep .*@tests/for-ever in @tests/for-ever"):
        in_other_thread(lambda: muna.predictions.create("@tests/for-ever", runner=runner))
    assert depths == list(range(DEEPEST + 1))
    assert muna.predictions.create(lambda: "fine", runner=runner).value == "fine"


@pytest.mark.fault(98)
@pytest.mark.parametrize("runner", [None, "thread"])
@pytest.mark.parametrize("how", ["acreate", "astream"])
def test_an_async_predictor_that_calls_itself_for_ever_is_refused_at_a_stated_depth_naming_the_chain(
    muna: Engine, runner: str | None, how: str
) -> None:
    depths: list[int] = []

    async def for_ever() -> Any:
        depths.append(depth_here())
        if how == "acreate":
            return (await muna.predictions.acreate("@tests/for-ever", runner=runner)).value
        return [value async for value in muna.predictions.astream("@tests/for-ever", runner=runner).values()]

    async def main() -> None:
        with pytest.raises(NestingError, match=f"{DEEPEST + 1} deep .*@tests/for-ever in @tests/for-ever"):
            await within(muna.predictions.acreate("@tests/for-ever", runner=runner))

    muna.predictors.register("@tests/for-ever", for_ever)
    asyncio.run(main())
    assert depths == list(range(DEEPEST + 1))
    depths.clear()
    with pytest.raises(NestingError, match="deep"):
        in_other_thread(lambda: muna.predictions.create("@tests/for-ever"))
    assert depths == list(range(DEEPEST + 1))


@pytest.mark.fault(98)
@pytest.mark.parametrize("runner", [None, "thread"])
def test_predictors_that_stay_within_the_stated_depth_work(muna: Engine, runner: str | None) -> None:
    def counts_down(number: int) -> Any:
        return muna.predictions.create(counts_down, {"number": number - 1}, runner=runner).value if number else "down"

    created = in_other_thread(lambda: muna.predictions.create(counts_down, {"number": DEEPEST}, runner=runner))
    assert created.value == "down"


def depth_here() -> int:
    call = current_call()
    assert call is not None
    return call.depth
