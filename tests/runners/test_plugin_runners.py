"""Runners of plugins: what they need not have, what they may have, and what is said of a wrong one."""

from __future__ import annotations

import asyncio
import doctest
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, ClassVar, Final

import pytest

from engine import Engine, PluginError, Predictor, current_call, hookimpl
from engine.runners import Body, Channel, Report, Runner, ServedPredictor, own
from tests._kit.streams import FOUR, Letters, consumed


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


KINDS = pytest.mark.parametrize("predictor", [letters, letters_later, Letters])


# A runner needs no more than a name and a start.


@KINDS
def test_every_consumer_works_with_a_runner_that_has_a_name_and_a_start(predictor: Any) -> None:
    with Engine(discover=False, plugins=[Plugin(Threads())]) as muna:
        assert consumed(muna, predictor, runner="threads") == FOUR


@KINDS
def test_the_example_that_the_protocol_shows_is_a_runner(predictor: Any) -> None:
    (example,) = doctest.DocTestFinder(recurse=False).find(Runner, "Runner", globs={})
    assert doctest.DocTestRunner().run(example, clear_globs=False).failed == 0
    with Engine(discover=False, plugins=[example.globs["Elsewhere"]()]) as muna:
        assert consumed(muna, predictor, runner="elsewhere") == FOUR


class ByTheBook:
    """Does itself, for a sync body, what `Runner` says; it knows nothing of reductions."""

    name = "by-the-book"

    def start(self, body: Body, channel: Channel) -> None:
        threading.Thread(target=self._run, args=(body, channel)).start()

    def _run(self, body: Body, channel: Channel) -> None:
        end = Report()
        iterator = body.context.run(body.start)
        try:
            for partial in iterator:
                if channel.offer(partial, 0.0, 0.0) and channel.pause():
                    break
        except BaseException as error:
            end.error = error
        iterator.close()
        body.release_slot()
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


# A runner may be given as it is.


def test_a_runner_is_found_by_its_name_where_it_is_given_as_it_is() -> None:
    with Engine(discover=False, plugins=[Threads(), Plugin(Threads("others"))]) as muna:
        assert muna.predictors.problems == ()
        for name in ("threads", "others"):
            assert consumed(muna, letters, runner=name) == FOUR
        seen = muna.predictions.create(lambda: threading.current_thread().name, runner="threads").value
        assert seen == "threads"


def test_one_runner_serves_several_engines() -> None:
    runner = Threads()
    with Engine(discover=False, plugins=[runner]) as one, Engine(discover=False, plugins=[runner, runner]) as other:
        assert consumed(one, letters, runner="threads") == consumed(other, letters, runner="threads") == FOUR


@pytest.mark.parametrize("name", ["inline", "thread", "process"])
def test_a_runner_that_is_given_and_called_as_one_of_the_engines_own_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"a runner in plugins is called '{name}', as one of the engine's own: rename"):
        Engine(discover=False, plugins=[Threads(name)])


def test_two_runners_of_one_name_that_are_given_are_refused() -> None:
    with pytest.raises(ValueError, match="two runners in plugins are called 'threads': rename one of them"):
        Engine(discover=False, plugins=[Threads(), Threads()])
    with Engine(discover=False, plugins=[Threads(), Threads()], block=["threads"]) as muna:
        assert muna.predictions.create(letters).value == "b"


def test_a_runner_of_a_name_that_a_plugin_offers_too_is_refused_when_it_is_asked_for() -> None:
    with Engine(discover=False, plugins=[Threads(), Plugin(Threads())]) as muna:
        with pytest.raises(PluginError, match=r"it is offered by Plugin \(plugin\) and by Threads \(plugin\)"):
            muna.predictions.create(letters, runner="threads")
        assert muna.predictions.create(letters).value == "b"


class Both(Threads):
    """Has hooks, which count; its own name and start do not."""

    @hookimpl
    def engine_runners(self) -> list[object]:
        return [Threads("offered")]


class Unmarked(Threads):
    def engine_runners(self) -> list[object]:
        return []


class Unnamed(Threads):
    @property
    def name(self) -> str:
        raise LookupError("no name")

    @name.setter
    def name(self, name: str) -> None:
        pass


@pytest.mark.parametrize(
    ("plugin", "reason"),
    [
        (Threads, "implements no hook, and is no object with a name and a start"),
        (Unnamed(), "implements no hook"),
        (Unmarked(), "'engine_runners' is not marked with @hookimpl"),
        (object(), "implements no hook"),
    ],
    ids=["class", "unnamed", "unmarked", "object"],
)
def test_what_is_neither_a_plugin_nor_a_runner_is_a_problem_and_the_rest_works(plugin: object, reason: str) -> None:
    with Engine(discover=False, plugins=[plugin, Threads("others")]) as muna:
        (problem,) = muna.predictors.problems
        assert reason in problem.reason
        assert consumed(muna, letters, runner="others") == FOUR


def test_a_plugin_with_a_name_and_a_start_of_its_own_is_a_plugin() -> None:
    with Engine(discover=False, plugins=[Both()]) as muna:
        assert consumed(muna, letters, runner="offered") == FOUR
        with pytest.raises(ValueError, match="no runner 'threads'"):
            muna.predictions.create(letters, runner="threads")


# What else it may have.


class Placing(Threads):
    """Says who runs a body; what it was asked is kept."""

    def __init__(self, place: Callable[[Placing], object]) -> None:
        super().__init__()
        self._decide = place
        self.asked: list[tuple[str, str | None, bool]] = []

    def place(self, predictor: ServedPredictor, runner: str | None, *, is_task: bool) -> Any:
        self.asked.append((predictor.profile.tag, runner, is_task))
        return self._decide(self)


def where() -> str:
    call = current_call()
    return "" if call is None else call.runner


@pytest.mark.parametrize(
    ("place", "name"),
    [
        (lambda runner: runner, "threads"),
        (lambda _: Threads("others"), "others"),
        (lambda _: None, "inline"),
    ],
    ids=["itself", "another", "caller"],
)
def test_a_runner_says_who_runs_a_body(place: Callable[[Placing], object], name: str) -> None:
    runner = Placing(place)
    with Engine([Predictor("@me/where", where)], discover=False, plugins=[runner], runner="threads") as muna:
        for options in ({}, {"runner": "threads"}):
            assert consumed(muna, "@me/where", **options) == [name, [name]] * 2
    tasks = [False, False, True, True]
    assert runner.asked == [("@me/where", given, is_task) for given in (None, "threads") for is_task in tasks]


def test_who_runs_a_body_must_be_a_runner() -> None:
    with (
        Engine(discover=False, plugins=[Placing(lambda _: "thread")]) as muna,
        pytest.raises(TypeError, match=r"place\(\) of the runner 'threads' gives a runner or None, not 'thread'"),
    ):
        muna.predictions.create(where, runner="threads")


class Kept(Channel):
    """A channel of a runner's own kind."""

    made: ClassVar[list[Kept]] = []


class Opening(Threads):
    def open(self, body: Body, prefetch: int | None) -> Kept:
        Kept.made.append(Kept(prefetch, body.call.tag))
        return Kept.made[-1]

    def start(self, body: Body, channel: Channel) -> None:
        assert channel is Kept.made[-1]
        super().start(body, channel)


@KINDS
def test_a_runner_makes_its_own_end_of_every_call(predictor: Any) -> None:
    Kept.made.clear()
    with Engine(discover=False, plugins=[Opening()]) as muna:
        assert consumed(muna, predictor, runner="threads") == FOUR
        assert len(Kept.made) == 4


class Loading(Threads):
    """Runs bodies in this process, and keeps account of what is loaded itself."""

    def __init__(self) -> None:
        super().__init__()
        self.ready: dict[str, Any] = {}

    def load(self, predictor: ServedPredictor) -> None:
        self.ready[predictor.profile.tag] = predictor.target

    def unload(self, predictor: ServedPredictor) -> None:
        del self.ready[predictor.profile.tag]

    def loaded(self) -> list[str]:
        return list(self.ready)


def test_a_runner_of_this_process_may_load_predictors_itself() -> None:
    runner = Loading()
    with Engine([Predictor("@me/letters", Letters)], discover=False, plugins=[runner]) as muna:
        muna.load("@me/letters", "threads")
        assert (runner.ready, muna.loaded) == ({"@me/letters": Letters}, ("@me/letters",))
        asyncio.run(muna.aunload("@me/letters", "threads"))
        assert list(muna.loaded) == []
        asyncio.run(muna.aload("@me/letters", "threads"))
        assert list(muna.loaded) == ["@me/letters"]


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
