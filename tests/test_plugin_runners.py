"""Runners that somebody else wrote: what they need not have, what they may have, and what is said of a wrong one."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Any, Final

import pytest

from engine import Engine, Predictor, hookimpl
from engine.runners import Body, Channel, End, own

PATIENCE: Final = 10.0  # seconds; only a test that fails otherwise than it should waits as long


class Plugin:
    """Offers runners by the hook."""

    def __init__(self, *runners: object) -> None:
        self._runners = runners

    @hookimpl
    def engine_runners(self) -> tuple[object, ...]:
        return self._runners


class Threads:
    """What a runner has needed from the first day on: each body runs in a thread of its own."""

    def __init__(self, name: str = "threads") -> None:
        self.name = name

    def start(self, body: Body, channel: Channel) -> None:
        threading.Thread(target=own, args=(body, channel), name=self.name).start()


def letters() -> Iterator[str]:
    yield from "ab"


async def letters_later() -> AsyncIterator[str]:
    for letter in "ab":
        yield letter


class Letters:
    def predict(self) -> Iterator[str]:
        yield from "ab"


KINDS = pytest.mark.parametrize("predictor", [letters, letters_later, Letters])


def consumed(muna: Engine, predictor: Any, **options: Any) -> list[Any]:
    """What each of the four consumers gets, in the order create, stream, acreate, astream."""

    async def consume() -> list[Any]:
        created = await muna.predictions.acreate(predictor, **options, reduce="concat")
        async with muna.predictions.astream(predictor, **options) as stream:
            return [created.value, [value async for value in stream.values()]]

    created = muna.predictions.create(predictor, **options, reduce="concat").value
    return [created, list(muna.predictions.stream(predictor, **options).values()), *asyncio.run(consume())]


FOUR: Final[list[Any]] = ["ab", ["a", "b"]] * 2


# A runner needs no more than a name and a start.


@KINDS
def test_every_consumer_works_with_a_runner_that_has_a_name_and_a_start(predictor: Any) -> None:
    with Engine(discover=False, plugins=[Plugin(Threads())]) as muna:
        assert consumed(muna, predictor, runner="threads") == FOUR


class ByTheBook:
    """Does itself, for a sync body, what `Runner` says; it knows nothing of reductions."""

    name = "by-the-book"

    def start(self, body: Body, channel: Channel) -> None:
        threading.Thread(target=self._run, args=(body, channel)).start()

    def _run(self, body: Body, channel: Channel) -> None:
        end = End()
        iterator = body.context.run(body.start)
        try:
            for partial in iterator:
                if channel.offer(partial, 0.0, 0.0) and channel.pause():
                    break
        except BaseException as error:
            end.error = error
        iterator.close()
        body.let_go()
        channel.finish(end)


@pytest.mark.parametrize(("reduce", "value"), [("last", "b"), ("concat", "ab"), ("collect", ["a", "b"])])
@pytest.mark.parametrize("is_async", [False, True], ids=["create", "acreate"])
def test_create_gives_what_the_partials_of_any_runner_reduce_to(is_async: bool, reduce: str, value: Any) -> None:
    with Engine(discover=False, plugins=[Plugin(ByTheBook())]) as muna:
        assert list(muna.predictions.stream(letters, runner="by-the-book").values()) == ["a", "b"]
        if is_async:
            made = asyncio.run(muna.predictions.acreate(letters, runner="by-the-book", reduce=reduce))
        else:
            made = muna.predictions.create(letters, runner="by-the-book", reduce=reduce)
        assert made.value == value


def test_a_class_is_loaded_and_unloaded_in_this_process_for_a_runner_that_does_not_do_it() -> None:
    lines: list[str] = []

    class Model(Letters):
        def setup(self) -> None:
            lines.append("setup")

        def teardown(self) -> None:
            lines.append("teardown")

    with Engine([Predictor("@me/model", Model)], discover=False, plugins=[Plugin(Threads())]) as muna:
        muna.load("@me/model", "threads")
        assert (lines, muna.loaded) == (["setup"], ("@me/model",))
        assert consumed(muna, "@me/model", runner="threads") == FOUR
        asyncio.run(muna.aload("@me/model", "threads"))
        muna.unload("@me/model", "threads")
        assert lines == ["setup", "teardown"]
        asyncio.run(muna.aload("@me/model", "threads"))
        asyncio.run(muna.aunload("@me/model", "threads"))
    assert lines == ["setup", "teardown"] * 2


# Names.


@pytest.mark.parametrize("name", ["inline", "thread", "process"])
def test_a_plugins_runner_that_is_called_as_one_of_the_engines_own_is_left_out_and_reported(name: str) -> None:
    with Engine(discover=False, plugins=[Plugin(Threads(name), Threads())]) as muna:
        (problem,) = muna.predictors.problems
        assert problem.claims == (name,)
        assert str(problem).endswith("and the engine has a runner of that name: give it another")
        assert consumed(muna, letters, runner="threads") == FOUR  # the rest of the plugin is used
        place = muna.predictions.create(lambda: threading.current_thread().name, runner="thread").value
        assert place == "engine-owner"


WAYS: Final = ["create", "stream", "acreate", "astream", "load", "unload", "aload", "aunload"]


def ask(muna: Engine, way: str, predictor: Any, runner: Any) -> None:
    """Name a runner in one of the ways there are."""
    of: Any = muna if way.endswith("load") else muna.predictions

    async def main() -> None:
        await getattr(of, way)(predictor, runner=runner)

    if way.startswith("a"):
        asyncio.run(main())
    else:
        getattr(of, way)(predictor, runner=runner)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("name", "meant"), [("thredas", "threads"), ("thraed", "thread")])
def test_a_misspelt_name_is_refused_with_the_one_that_was_meant(way: str, name: str, meant: str) -> None:
    plugins = [Plugin(Threads())]
    with (
        Engine(discover=False, plugins=plugins) as muna,
        pytest.raises(ValueError, match=f"no runner '{name}'; did you mean '{meant}'"),
    ):
        ask(muna, way, letters, name)


@pytest.mark.parametrize("name", ["", 3, [], b"thread"], ids=repr)
@pytest.mark.parametrize("way", WAYS)
def test_what_is_no_name_is_no_runner(name: Any, way: str) -> None:
    with Engine(discover=False) as muna, pytest.raises(ValueError, match="there is no runner"):
        ask(muna, way, letters, name)
