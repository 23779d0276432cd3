"""Set-up of class predictors that fails, hangs, or is slow while others wait for it."""

from __future__ import annotations

import asyncio
import sys
import threading
from typing import Any

import pytest

from engine import Engine, EngineClosedError, PluginError
from tests._kit.waits import TIMEOUT, auntil, in_other_thread
from tests.faults.waiting_predictors import plain

# 107: set-up that fails, hangs or is slow.


class Fickle:
    """Fails in its constructor or its `setup` until told otherwise."""

    failures: int = 0
    made: int = 0

    def __init__(self) -> None:
        type(self).made += 1
        if type(self).failures > 0:
            type(self).failures -= 1
            raise OSError("no model file")

    def predict(self) -> str:
        return "fine"


class FickleSetup:
    """Fails in its sync `setup` until told otherwise."""

    failures: int = 0
    made: int = 0

    def setup(self) -> None:
        type(self).made += 1
        if type(self).failures > 0:
            type(self).failures -= 1
            raise OSError("no model file")

    def predict(self) -> str:
        return "fine"


class AsyncFickleSetup:
    """Fails in its async `setup`, on the engine's loop, until told otherwise."""

    failures: int = 0
    made: int = 0

    async def setup(self) -> None:
        type(self).made += 1
        await asyncio.sleep(0)
        if type(self).failures > 0:
            type(self).failures -= 1
            raise OSError("no model file")

    async def predict(self) -> str:
        return "fine"


FICKLE = [Fickle, FickleSetup, AsyncFickleSetup]


@pytest.mark.fault(107)
@pytest.mark.parametrize("model", FICKLE)
@pytest.mark.parametrize("runner", [None, "thread"])
def test_a_setup_that_fails_is_reported_to_its_caller_and_tried_again_by_the_next(
    muna: Engine, model: Any, runner: str | None
) -> None:
    model.failures, model.made = 2, 0
    for _ in range(2):
        with pytest.raises(OSError, match="no model file"):
            muna.predictions.create(model, runner=runner)
    assert muna.predictions.create(model, runner=runner).value == "fine"
    assert muna.predictions.create(model, runner=runner).value == "fine"
    assert model.made == 3


@pytest.mark.fault(107)
@pytest.mark.parametrize("model", FICKLE)
@pytest.mark.parametrize("runner", [None, "thread"])
def test_an_asyncio_callers_failed_setup_is_tried_again_too(muna: Engine, model: Any, runner: str | None) -> None:
    model.failures, model.made = 2, 0

    async def main() -> None:
        with pytest.raises(OSError, match="no model file"):
            await muna.predictions.acreate(model, runner=runner)
        with pytest.raises(OSError, match="no model file"):
            await muna.aload(model, runner=runner)
        await muna.aload(model, runner=runner)
        assert (await muna.predictions.acreate(model, runner=runner)).value == "fine"

    asyncio.run(main())
    assert model.made == 3


@pytest.mark.fault(107)
def test_an_import_that_fails_is_tried_again(muna: Engine, tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    muna.predictors.register("@tests/late", "module_written_late:predict")
    with pytest.raises(PluginError, match="module_written_late"):
        muna.predictions.create("@tests/late")

    async def main() -> None:
        with pytest.raises(PluginError, match="module_written_late"):
            await muna.predictions.acreate("@tests/late")

    asyncio.run(main())
    (tmp_path / "module_written_late.py").write_text("def predict():\n    return 'here now'\n")
    import importlib

    importlib.invalidate_caches()
    try:
        assert muna.predictions.create("@tests/late").value == "here now"
    finally:
        sys.modules.pop("module_written_late", None)


@pytest.mark.fault(107)
@pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])
def test_first_calls_from_many_threads_wait_for_one_setup(muna: Engine, is_async: bool) -> None:
    reached, go = threading.Event(), threading.Event()
    setups: list[int] = []

    class Slow:
        def setup(self) -> None:
            setups.append(1)
            reached.set()
            assert go.wait(TIMEOUT)

        def predict(self) -> str:
            return "fine"

    class AsyncSlow:
        async def setup(self) -> None:
            setups.append(1)
            reached.set()
            await auntil(go.is_set, "the gate")

        async def predict(self) -> str:
            return "fine"

    got: list[Any] = []
    model = AsyncSlow if is_async else Slow
    threads = [
        threading.Thread(target=lambda: got.append(muna.predictions.create(model).value), daemon=True) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    assert reached.wait(TIMEOUT)
    go.set()
    for thread in threads:
        thread.join(TIMEOUT)
        assert not thread.is_alive()
    assert got == ["fine"] * 8
    assert setups == [1]


@pytest.mark.fault(107)
def test_a_setup_that_hangs_blocks_no_other_predictor_and_is_left_by_a_cancelled_caller() -> None:
    reached, go = threading.Event(), threading.Event()

    class Hangs:
        def setup(self) -> None:
            reached.set()
            go.wait(TIMEOUT)

        def predict(self) -> str:
            return "fine"

    async def main(muna: Engine) -> None:
        caller = asyncio.create_task(muna.predictions.acreate(Hangs))
        await auntil(reached.is_set, "the setup")
        assert muna.predictions.create(plain).value == "plain"
        assert (await muna.predictions.acreate(plain)).value == "plain"
        caller.cancel()
        with pytest.raises(asyncio.CancelledError):
            async with asyncio.timeout(TIMEOUT):
                await caller
        go.set()
        async with asyncio.timeout(TIMEOUT):
            assert (await muna.predictions.acreate(Hangs)).value == "fine"

    with Engine(discover=False, grace=0.1) as muna:
        asyncio.run(main(muna))


@pytest.mark.fault(107)
def test_an_engine_closes_in_spite_of_a_setup_that_hangs() -> None:
    reached, go, torn_down = threading.Event(), threading.Event(), threading.Event()

    class Hangs:
        def setup(self) -> None:
            reached.set()
            go.wait(TIMEOUT)

        def predict(self) -> str:
            return "fine"

        def teardown(self) -> None:
            torn_down.set()

    muna = Engine(discover=False, grace=0.05)
    ends: list[str] = []

    def call() -> None:
        try:
            ends.append(muna.predictions.create(Hangs, runner="thread").value)
        except EngineClosedError:
            ends.append("closed")

    caller = threading.Thread(target=call, daemon=True)
    caller.start()
    assert reached.wait(TIMEOUT)
    in_other_thread(muna.close)
    caller.join(TIMEOUT)
    assert ends == ["closed"]
    go.set()
    # What was set up in spite of the closed engine is torn down as well.
    assert torn_down.wait(TIMEOUT)
