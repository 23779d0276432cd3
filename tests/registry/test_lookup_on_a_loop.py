"""An event loop goes on while the plugins are looked for that its calls need."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine, Iterator
from typing import Any, Final

import pytest

from engine import (
    Engine,
    EngineClosedError,
    InvalidInputError,
    InvalidTagError,
    PluginError,
    Predictor,
    PredictorNotFoundError,
    hookimpl,
    predictor,
)
from engine._registry import plugins, sources
from engine.runners import Runner, own
from tests._kit.internals import threads_of
from tests._kit.waits import TIMEOUT, auntil
from tests.registry.lookups import WAYS, Counter, created, late, streamed, value_of


class Slow:
    """A plugin whose import, so to speak, waits at a gate; what it offers is there afterwards."""

    def __init__(self) -> None:
        self.reached, self.go = threading.Event(), threading.Event()
        self.times = 0

    @hookimpl
    def engine_predictors(self) -> list[Predictor]:
        self.times += 1
        self.reached.set()
        assert self.go.wait(TIMEOUT / 4)
        return [Predictor("@slow/late", late), Predictor("@slow/model", Counter)]

    @hookimpl
    def engine_runners(self) -> list[Runner]:
        return [Elsewhere()]


class Elsewhere(Runner):
    name = "elsewhere"

    def start(self, body: Any, channel: Any) -> None:
        threading.Thread(target=own, args=(body, channel), daemon=True).start()


@pytest.fixture
def slow() -> Iterator[Slow]:
    slow = Slow()
    yield slow
    slow.go.set()


@predictor("@me/elsewhere", runner="elsewhere")
def elsewhere() -> str:
    return "late"


async def loaded(muna: Engine, tag: Any) -> Any:
    await muna.aload(tag)
    return "late" if tag in muna.loaded else None


async def unloaded(muna: Engine, tag: Any) -> Any:
    await muna.aunload(tag)
    return "late"


CALLS: Final[dict[str, Callable[[Engine], Coroutine[Any, Any, Any]]]] = {
    "acreate": lambda muna: created(muna, "@me/late"),
    "acreate-of-plugin": lambda muna: created(muna, "slow/late"),
    "astream": lambda muna: streamed(muna, "@me/late"),
    "astream-of-plugin": lambda muna: streamed(muna, "slow/late"),
    "aload": lambda muna: loaded(muna, "@slow/model"),
    "aunload": lambda muna: unloaded(muna, "@slow/model"),
    "runner-of-acreate": lambda muna: created(muna, late, runner="elsewhere"),
    "runner-of-astream": lambda muna: streamed(muna, late, runner="elsewhere"),
    "runner-of-its-author": lambda muna: created(muna, elsewhere),
    "runner-of-its-author-streamed": lambda muna: streamed(muna, elsewhere),
}


@pytest.mark.fault(117)
@pytest.mark.parametrize("call", CALLS)
def test_a_loop_turns_while_the_plugins_that_a_call_needs_are_still_imported(slow: Slow, call: str) -> None:
    async def main() -> None:
        async with Engine([Predictor("@me/late", late)], discover=False, plugins=[slow]) as muna:
            task = asyncio.create_task(CALLS[call](muna))
            await auntil(slow.reached.is_set, "a plugin is imported")  # only a loop that turns gets to the next line
            assert not task.done()
            slow.go.set()
            assert await task == "late"

    asyncio.run(main())
    assert slow.times == 1


@pytest.mark.fault(117)
def test_a_loop_turns_while_the_engines_own_runner_is_looked_for(slow: Slow) -> None:
    async def main() -> None:
        async with Engine(discover=False, plugins=[slow], runner="elsewhere") as muna:
            tasks = [asyncio.create_task(call(muna, late)) for call in (created, streamed)]
            await auntil(slow.reached.is_set, "a plugin is imported")
            slow.go.set()
            assert await asyncio.gather(*tasks) == ["late", "late"]

    asyncio.run(main())
    assert slow.times == 1


@pytest.mark.fault(117)
def test_many_first_calls_of_asyncio_wait_for_one_look_in_one_thread(slow: Slow) -> None:
    async def main() -> None:
        async with Engine([Predictor("@me/late", late)], discover=False, plugins=[slow]) as muna:
            calls = [asyncio.create_task(created(muna, "@me/late")) for _ in range(50)]
            await auntil(slow.reached.is_set, "a plugin is imported")
            assert len(threads_of(muna).owners) == 1
            calls[0].cancel()  # it is the one that looks: another goes on for all
            slow.go.set()
            assert (await asyncio.gather(*calls, return_exceptions=True))[1:] == ["late"] * 49

    asyncio.run(main())
    assert slow.times == 1


def test_a_plugin_may_call_from_an_event_loop_of_its_own_while_it_is_imported() -> None:
    seen: list[Any] = []

    class Curious:
        @hookimpl
        def engine_predictors(self) -> list[Predictor]:
            seen.append(asyncio.run(created(asked, "@me/late")))
            seen.append(asyncio.run(streamed(asked, "@me/late")))
            return []

    with Engine([Predictor("@me/late", late)], discover=False, plugins=[Curious()]) as asked:
        assert asked.predictions.create("@me/late").value == "late"
        assert asyncio.run(created(asked, "@me/late")) == "late"
    assert seen == ["late", "late"]


@pytest.mark.fault(117)
def test_a_loop_turns_while_a_failed_plugin_is_tried_again_for_a_tag_that_is_not_there(
    slow: Slow, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    for module in (plugins, sources):
        monkeypatch.setattr(module, "monotonic", lambda: now)

    class Failing(Slow):
        @hookimpl
        def engine_runners(self) -> list[Runner]:
            raise RuntimeError("not today")

    failing = Failing()
    failing.go.set()

    async def main() -> None:
        nonlocal now
        async with Engine([Predictor("@me/late", late)], discover=False, plugins=[failing]) as muna:
            for _ in range(3):
                with pytest.raises(PredictorNotFoundError):
                    await muna.predictions.acreate("@not/there")
                with pytest.raises(PredictorNotFoundError):
                    muna.predictions.astream("@not/there")  # nothing is to be looked for, so it is refused at the call
            assert failing.times == 1
            failing.reached.clear()
            failing.go.clear()
            now += 1
            stream = muna.predictions.astream("@not/there")
            tasks = [asyncio.ensure_future(stream), asyncio.create_task(created(muna, "@not/there"))]
            await auntil(failing.reached.is_set, "the plugin is tried again")
            assert await created(muna, "@me/late") == "late"  # a known tag waits for nothing
            failing.go.set()
            assert all(
                isinstance(each, PredictorNotFoundError)
                for each in await asyncio.gather(*tasks, return_exceptions=True)
            )
            assert (stream.tag, stream.outcome.state) == ("@not/there", "failed")

    asyncio.run(main())
    assert failing.times == 2


@pytest.mark.fault(118)
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("wish", ["call", "author", "engine"])
def test_the_runner_of_a_plugin_that_failed_is_tried_again_too_once_it_is_due(
    monkeypatch: pytest.MonkeyPatch, way: str, wish: str
) -> None:
    now = 1000.0
    for module in (plugins, sources):
        monkeypatch.setattr(module, "monotonic", lambda: now)

    class Recovering:
        is_broken = True
        threads: Final[list[threading.Thread]] = []

        @hookimpl
        def engine_runners(self) -> Iterator[Runner]:
            self.threads.append(threading.current_thread())
            yield Elsewhere()
            if self.is_broken:
                raise RuntimeError("not today")

    record = Predictor("@me/late", late, runner="elsewhere" if wish == "author" else None)
    options = {"runner": "elsewhere"} if wish == "call" else {}
    recovering, engines = Recovering(), "elsewhere" if wish == "engine" else None
    with Engine([record], discover=False, plugins=[recovering], runner=engines) as muna:
        for _ in range(2):
            with pytest.raises(PluginError, match="not today"):
                value_of(muna, way, "@me/late", **options)
        assert len(recovering.threads) == 1
        recovering.is_broken = False
        now += 1
        assert value_of(muna, way, "@me/late", **options) == "late"
        assert len(recovering.threads) == 2
        is_here = [thread is threading.current_thread() for thread in recovering.threads]
        assert is_here == [way in {"create", "stream"}] * 2  # an event loop's own thread imports nothing


def test_what_is_wrong_with_a_call_is_told_by_the_first_await_before_plugins_were_looked_for(slow: Slow) -> None:
    slow.go.set()

    async def main() -> None:
        async with Engine(discover=False, plugins=[slow]) as muna:
            with pytest.raises(InvalidTagError):
                muna.predictions.astream("no tag")
            wrong: list[tuple[Any, dict[str, Any], type[Exception]]] = [
                ("@not/there", {}, PredictorNotFoundError),
                ("@slow/late", {"inputs": {"text": "cat"}}, InvalidInputError),
                ("@slow/late", {"runner": "nowhere"}, ValueError),
            ]
            streams = [muna.predictions.astream(tag, **options) for tag, options, _ in wrong]
            assert slow.times == 0
            for stream, (tag, options, error) in zip(streams, wrong, strict=True):
                with pytest.raises(error):
                    await stream
                with pytest.raises(error):
                    muna.predictions.astream(tag, **options)  # by now at the call

    asyncio.run(main())


def test_an_engine_closed_while_its_plugins_are_looked_for_refuses_who_waits(slow: Slow) -> None:
    async def main() -> None:
        muna = Engine([Predictor("@me/late", late)], discover=False, plugins=[slow], grace=0.1)
        tasks = [asyncio.create_task(call(muna, "@me/late")) for call in (created, streamed)]
        await auntil(slow.reached.is_set, "a plugin is imported")
        await muna.aclose()
        slow.go.set()
        for task in tasks:
            with pytest.raises(EngineClosedError):
                await task

    asyncio.run(main())
