"""What a tag stands for, decided at the call and by its record, whatever changes while the first call still imports.

Modules that are imported wait at a gate, so that every change happens in the middle of an import.
"""

from __future__ import annotations

import asyncio
import gc
import sys
import threading
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

import pytest

from engine import Engine, EngineClosedError, PluginError, Predictor, PredictorNotFoundError
from tests._kit.internals import encoded_for_workers, threads_of
from tests._kit.waits import TIMEOUT, auntil, until
from tests.registry.lookups import WAYS, Counter, created, late, streamed, value_of

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


@pytest.fixture
def gate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SimpleNamespace]:
    """Two events: `reached` by the import of the module `early_home`, which then waits for `go`."""
    gate = SimpleNamespace(reached=threading.Event(), go=threading.Event())

    def pass_through() -> None:
        gate.reached.set()
        assert gate.go.wait(TIMEOUT)

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
        assert gate.reached.wait(TIMEOUT)
        make(change, muna)
        gate.go.set()
        if change == "closed":
            with pytest.raises(EngineClosedError):
                first.result(TIMEOUT)
        else:
            assert first.result(TIMEOUT) == "early"  # what was registered at the call

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
                until(reached.exists, "a worker imports")
                if change == "replaced":
                    muna.predictors.register("@home/say", "late_home:late", replace=True)
                else:
                    make(change, muna)
                go.touch()
                if change == "closed":
                    with pytest.raises(EngineClosedError):
                        first.result(TIMEOUT)
                else:
                    assert first.result(TIMEOUT) == "early"
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
        assert gate.reached.wait(TIMEOUT)
        muna.close()
        gate.go.set()
        for call in calls:
            with pytest.raises(EngineClosedError):
                call.result(TIMEOUT)


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
    limits = [encoded_for_workers(muna, "@home/say", target, limit).need.limit for limit in (1, 2, 1)]

    assert limits == [1, 2, 1]


def test_many_first_calls_of_asyncio_wait_for_one_import_in_one_thread(muna: Engine, gate: SimpleNamespace) -> None:
    muna.predictors.register("@home/say", "early_home:say")

    async def main() -> None:
        calls = [asyncio.create_task(call(muna, "@home/say")) for call in (created, streamed) for _ in range(20)]
        await auntil(gate.reached.is_set, "it is imported")
        await asyncio.sleep(0)
        assert len(threads_of(muna).owners) == 1
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
        await auntil(gate.reached.is_set, "it is imported")
        gate.go.set()
        failures = await asyncio.gather(*calls, return_exceptions=True)
        assert len({id(failure) for failure in failures if isinstance(failure, PluginError)}) == 1
        sys.modules["early_home"].__dict__["absent"] = late
        assert await created(muna, "@home/say") == "late"

    asyncio.run(main())
