"""What a tag stands for, decided at the call and by its record, whatever changes while the first call still imports.

Modules that are imported wait at a gate, so that every change happens in the middle of an import.
"""

from __future__ import annotations

import asyncio
import gc
import sys
import threading
import weakref
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
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
from engine.runners import Runner, own
from tests.faults.conftest import aeventually, eventually

PATIENCE: Final = 20.0  # seconds until a gate that does not open fails its test
WAYS: Final = ("create", "stream", "acreate", "astream")
CHANGES: Final = ("replaced", "unregistered", "closed")

EARLY: Final = """
    from early_gate import pass_through

    pass_through()

    def say():
        yield "early"

    class Model:
        def setup(self):
            raise AssertionError("a closed engine sets nothing up")

        def predict(self):
            return "early"
"""


def late() -> Iterator[str]:
    yield "late"


class Counter:
    def predict(self) -> int:
        return 1


@pytest.fixture
def gate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SimpleNamespace]:
    """Two events: `reached` by the import of the module `early_home`, which then waits for `go`."""
    gate = SimpleNamespace(reached=threading.Event(), go=threading.Event())

    def pass_through() -> None:
        gate.reached.set()
        assert gate.go.wait(PATIENCE)

    (tmp_path / "early_home.py").write_text("\n".join(line[4:] for line in EARLY.splitlines()), encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(sys.modules, "early_gate", SimpleNamespace(pass_through=pass_through))
    yield gate
    gate.go.set()
    sys.modules.pop("early_home", None)


@pytest.fixture
def muna() -> Iterator[Engine]:
    """An engine that does not wait long for an import that outlives it."""
    with Engine(discover=False, grace=0.1) as muna:
        yield muna


def value_of(muna: Engine, way: str, tag: Any, **options: Any) -> Any:
    """What one call gives, whichever way it is consumed."""
    predictions = muna.predictions

    async def ahead() -> Any:
        if way == "acreate":
            return (await predictions.acreate(tag, **options)).value
        return [each async for each in predictions.astream(tag, **options).values()][-1]

    if way == "create":
        return predictions.create(tag, **options).value
    if way == "stream":
        return list(predictions.stream(tag, **options).values())[-1]
    return asyncio.run(ahead())


def make(change: str, muna: Engine) -> None:
    if change == "replaced":
        muna.predictors.register("@home/say", late, replace=True)
    elif change == "unregistered":
        muna.predictors.unregister("@home/say")
    else:
        muna.close()


def check_that_it_counts(change: str, muna: Engine, **options: Any) -> None:
    """Whichever way it is called, with its `@` and without, the tag is what the change made it."""
    refusal = PredictorNotFoundError if change == "unregistered" else EngineClosedError
    for way in WAYS:
        for tag in ("@home/say", "home/say"):
            if change == "replaced":
                assert value_of(muna, way, tag, **options) == "late"
            else:
                with pytest.raises(refusal):
                    value_of(muna, way, tag, **options)


@pytest.mark.fault(119)
@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("way", WAYS)
def test_a_change_of_a_tag_counts_although_its_first_call_still_imports(
    muna: Engine, gate: SimpleNamespace, way: str, change: str
) -> None:
    muna.predictors.register("@home/say", "early_home:say")

    with ThreadPoolExecutor(1) as threads:
        first = threads.submit(value_of, muna, way, "@home/say")
        assert gate.reached.wait(PATIENCE)
        make(change, muna)
        gate.go.set()
        if change == "closed":
            with pytest.raises(EngineClosedError):
                first.result(PATIENCE)
        else:
            assert first.result(PATIENCE) == "early"  # what was registered at the call

    check_that_it_counts(change, muna)
    if change != "closed":
        assert list(muna.loaded) == (["@home/say"] if change == "replaced" else [])


IN_A_WORKER: Final = """
import pathlib, time
pathlib.Path({reached!r}).touch()
deadline = time.monotonic() + 20
while not pathlib.Path({go!r}).exists() and time.monotonic() < deadline:
    time.sleep(0.001)

def say():
    yield "early"
"""


@pytest.mark.fault(119)
@pytest.mark.parametrize(
    ("way", "change"), [("create", "replaced"), ("acreate", "unregistered"), ("astream", "closed")]
)
def test_a_change_of_a_tag_counts_although_a_worker_still_describes_it(tmp_path: Path, way: str, change: str) -> None:
    go, reached = tmp_path / "go", tmp_path / "reached"
    (tmp_path / "far_home.py").write_text(IN_A_WORKER.format(go=str(go), reached=str(reached)), encoding="utf-8")
    (tmp_path / "late_home.py").write_text("def late():\n    yield 'late'\n", encoding="utf-8")
    sys.path.insert(0, str(tmp_path))
    try:
        with Engine([Predictor("@home/say", "far_home:say")], discover=False, runner="process", workers=1) as muna:
            with ThreadPoolExecutor(1) as threads:
                first = threads.submit(value_of, muna, way, "@home/say")
                eventually(reached.exists, "a worker imports")
                if change == "replaced":
                    muna.predictors.register("@home/say", "late_home:late", replace=True)
                else:
                    make(change, muna)
                go.touch()
                if change == "closed":
                    with pytest.raises(EngineClosedError):
                        first.result(PATIENCE)
                else:
                    assert first.result(PATIENCE) == "early"
            check_that_it_counts(change, muna)
            if change != "closed":
                assert list(muna.loaded) == (["@home/say"] if change == "replaced" else [])
    finally:
        sys.path.remove(str(tmp_path))
    assert not {"far_home", "late_home"} & set(sys.modules)


@pytest.mark.fault(119)
def test_a_class_that_was_imported_for_an_engine_closed_meanwhile_is_not_set_up(
    muna: Engine, gate: SimpleNamespace
) -> None:
    muna.predictors.register("@home/say", "early_home:Model")

    with ThreadPoolExecutor(2) as threads:
        calls = [threads.submit(value_of, muna, way, "@home/say") for way in ("create", "acreate")]
        assert gate.reached.wait(PATIENCE)
        muna.close()
        gate.go.set()
        for call in calls:
            with pytest.raises(EngineClosedError):
                call.result(PATIENCE)


def test_a_record_keeps_its_own_options_whatever_another_of_its_tag_and_function_has(muna: Engine) -> None:
    def partials() -> Iterator[str]:
        yield from "ab"

    records = [Predictor("@me/partials", partials, reduce=reduce) for reduce in ("concat", "collect", "last")]
    muna.predictors.register(records[2])

    for _ in range(2):
        assert [muna.predictions.create(record).value for record in records] == ["ab", ["a", "b"], "b"]
    assert muna.predictions.create("@me/partials").value == "b"


def test_a_record_and_the_tag_that_stands_for_it_share_one_instance(muna: Engine) -> None:
    set_up: list[int] = []

    class Model:
        def setup(self) -> None:
            set_up.append(1)

        def predict(self) -> int:
            return len(set_up)

    record = muna.predictors.register("@me/model", Model)

    assert [muna.predictions.create(tag).value for tag in (record, "@me/model", "me/model", record)] == [1, 1, 1, 1]
    other = muna.predictors.register("@me/model", Model, replace=True)
    assert [muna.predictions.create(tag).value for tag in (record, other, "@me/model")] == [1, 2, 2]


def test_a_record_that_stands_for_nothing_any_more_is_not_kept(muna: Engine) -> None:
    record = muna.predictors.register("@me/late", late)
    assert muna.predictions.create("@me/late").value == "late"
    gone = weakref.ref(record)
    del record
    muna.predictors.unregister("@me/late")
    gc.collect()

    assert gone() is None


@pytest.mark.parametrize("target", ["early_home:Model", Counter], ids=["by-name", "by-value"])
def test_workers_are_told_the_limit_of_the_record_that_is_registered_now(muna: Engine, target: Any) -> None:
    workers = muna._workers()
    limits = [workers.encoded("@home/say", target, limit).need.limit for limit in (1, 2, 1)]

    assert limits == [1, 2, 1]


# Plugins that are looked for while an event loop goes on


class Slow:
    """A plugin whose import, so to speak, waits at a gate; what it offers is there afterwards."""

    def __init__(self) -> None:
        self.reached, self.go = threading.Event(), threading.Event()
        self.times = 0

    @hookimpl
    def engine_predictors(self) -> list[Predictor]:
        self.times += 1
        self.reached.set()
        assert self.go.wait(PATIENCE / 4)
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


async def streamed(muna: Engine, tag: Any, **options: Any) -> Any:
    async with muna.predictions.astream(tag, **options) as stream:
        return [each async for each in stream.values()][-1]


async def created(muna: Engine, tag: Any, **options: Any) -> Any:
    return (await muna.predictions.acreate(tag, **options)).value


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
            await aeventually(
                slow.reached.is_set, "a plugin is imported"
            )  # only a loop that turns gets to the next line
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
            await aeventually(slow.reached.is_set, "a plugin is imported")
            slow.go.set()
            assert await asyncio.gather(*tasks) == ["late", "late"]

    asyncio.run(main())
    assert slow.times == 1


@pytest.mark.fault(117)
def test_many_first_calls_of_asyncio_wait_for_one_look_in_one_thread(slow: Slow) -> None:
    async def main() -> None:
        async with Engine([Predictor("@me/late", late)], discover=False, plugins=[slow]) as muna:
            calls = [asyncio.create_task(created(muna, "@me/late")) for _ in range(50)]
            await aeventually(slow.reached.is_set, "a plugin is imported")
            assert len(muna._threads.owners) == 1
            calls[0].cancel()  # it is the one that looks: another goes on for all
            slow.go.set()
            assert (await asyncio.gather(*calls, return_exceptions=True))[1:] == ["late"] * 49

    asyncio.run(main())
    assert slow.times == 1


def test_many_first_calls_of_asyncio_wait_for_one_import_in_one_thread(muna: Engine, gate: SimpleNamespace) -> None:
    muna.predictors.register("@home/say", "early_home:say")

    async def main() -> None:
        calls = [asyncio.create_task(call(muna, "@home/say")) for call in (created, streamed) for _ in range(20)]
        await aeventually(gate.reached.is_set, "it is imported")
        await asyncio.sleep(0)
        assert len(muna._threads.owners) == 1
        calls[0].cancel()  # it is the one that imports: another goes on for all
        gate.go.set()
        assert (await asyncio.gather(*calls, return_exceptions=True))[1:] == ["early"] * 39

    asyncio.run(main())


def test_tasks_that_wait_for_one_import_all_hear_why_it_failed_and_the_next_call_tries_again(
    muna: Engine, gate: SimpleNamespace
) -> None:
    muna.predictors.register("@home/say", "early_home:absent")

    async def main() -> None:
        calls = [asyncio.create_task(call(muna, "@home/say")) for call in (created, streamed) for _ in range(5)]
        await aeventually(gate.reached.is_set, "it is imported")
        gate.go.set()
        failures = await asyncio.gather(*calls, return_exceptions=True)
        assert len({id(failure) for failure in failures if isinstance(failure, PluginError)}) == 1
        sys.modules["early_home"].__dict__["absent"] = late
        assert await created(muna, "@home/say") == "late"

    asyncio.run(main())


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
    monkeypatch.setattr("engine._registry.plugins.monotonic", lambda: now)

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
            await aeventually(failing.reached.is_set, "the plugin is tried again")
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
    monkeypatch.setattr("engine._registry.plugins.monotonic", lambda: now)

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
        await aeventually(slow.reached.is_set, "a plugin is imported")
        await muna.aclose()
        slow.go.set()
        for task in tasks:
            with pytest.raises(EngineClosedError):
                await task

    asyncio.run(main())
