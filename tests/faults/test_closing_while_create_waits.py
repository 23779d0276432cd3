"""Closing an engine while `create` waits, for each of what it may wait for."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import threading
import weakref
from typing import Any

import pytest

from engine import Engine, EngineClosedError, Predictor
from engine.runners.slots import Slots
from tests._kit.internals import executions_of, slots_of
from tests._kit.waits import TIMEOUT, in_other_thread, until
from tests.faults.waiting_predictors import Waiting, created

# 102: closing while `create` waits, for each of what it may wait for.


@pytest.mark.parametrize("errors", ["raise", "return"])
@pytest.mark.parametrize("consumer", ["sync", "asyncio"])
@pytest.mark.parametrize("place", ["body", "coloured", "setup"])
def test_a_create_that_waits_for_its_owner_is_woken_with_an_engine_closed_error(
    place: str, consumer: str, errors: Any
) -> None:
    waiting = Waiting()
    muna = Engine(discover=False, grace=0.05)
    predictor = Predictor(
        "@tests/waits", waiting.model() if place == "setup" else getattr(waiting, place), concurrency=1
    )
    slots = slots_of(muna, predictor)
    assert slots is not None

    async def acreate() -> Any:
        return await muna.predictions.acreate(predictor, runner="thread", errors=errors)

    def create() -> Any:
        if consumer == "asyncio":
            return asyncio.run(acreate())
        return muna.predictions.create(predictor, runner="thread", errors=errors)

    def close() -> None:
        assert waiting.reached.wait(TIMEOUT)
        muna.close()

    closer = threading.Thread(target=close)
    closer.start()
    with pytest.raises(EngineClosedError):
        in_other_thread(create)
    closer.join(TIMEOUT)
    assert not closer.is_alive()
    assert executions_of(muna) == ()
    waiting.go.set()
    until(lambda: slots.leases == (), "the end of the body, which gives its slot back")
    assert waiting.calls == ["body"]


@pytest.mark.parametrize("consumer", ["sync", "asyncio"])
def test_a_create_that_waits_for_its_slot_is_woken_with_an_engine_closed_error_and_never_runs(consumer: str) -> None:
    waiting = Waiting()
    muna = Engine(discover=False, grace=0.05)
    predictor = Predictor("@tests/waits", waiting.body, concurrency=1)
    slots = slots_of(muna, predictor)
    assert slots is not None

    def hold() -> None:
        with contextlib.suppress(EngineClosedError):
            created(muna, predictor, "sync")

    def close() -> None:
        until(lambda: slots.waiting == 1, "the wait for the slot")
        muna.close()

    holder, closer = threading.Thread(target=hold), threading.Thread(target=close)
    holder.start()
    assert waiting.reached.wait(TIMEOUT)
    closer.start()
    with pytest.raises(EngineClosedError):
        in_other_thread(lambda: created(muna, predictor, consumer))
    closer.join(TIMEOUT)
    holder.join(TIMEOUT)
    assert (executions_of(muna), slots.waiting, len(slots.leases)) == ((), 0, 1)
    waiting.go.set()
    until(lambda: slots.leases == (), "the end of the body that held the slot")
    assert waiting.calls == ["body"]


@pytest.mark.parametrize("consumer", ["sync", "asyncio"])
def test_a_create_whose_engine_closes_in_the_moment_it_gets_its_slot_gives_that_back(
    consumer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    waiting = Waiting()
    muna = Engine(discover=False, grace=0.05)
    predictor = Predictor("@tests/waits", waiting.body, concurrency=1)
    slots = slots_of(muna, predictor)
    assert slots is not None
    take, atake = Slots.take, Slots.atake

    def take_and_close(self: Slots, body: Any) -> None:
        take(self, body)
        in_other_thread(muna.close)

    async def atake_and_close(self: Slots, body: Any) -> None:
        await atake(self, body)
        in_other_thread(muna.close)

    monkeypatch.setattr(Slots, "take", take_and_close)
    monkeypatch.setattr(Slots, "atake", atake_and_close)
    with pytest.raises(EngineClosedError):
        created(muna, predictor, consumer)
    assert (slots.leases, waiting.calls, executions_of(muna)) == ((), [], ())


def test_an_engine_closed_error_of_create_is_gone_once_nothing_refers_to_it() -> None:
    waiting = Waiting()
    muna = Engine(discover=False, grace=0.05)

    def close() -> None:
        assert waiting.reached.wait(TIMEOUT)
        muna.close()
        waiting.go.set()

    closer = threading.Thread(target=close)
    gc.collect()
    gc.disable()
    try:
        closer.start()
        try:
            created(muna, waiting.body, "sync")
        except EngineClosedError as error:
            reference = weakref.ref(error)
        closer.join(TIMEOUT)
        until(lambda: reference() is None, "the end of the error, without a collector")
    finally:
        gc.enable()
