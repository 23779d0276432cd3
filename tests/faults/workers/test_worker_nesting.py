"""Faults of nesting where bodies run in workers: predictors that call the engine there, handles that cannot travel."""

from __future__ import annotations

import asyncio
import importlib
import os
import sys
import textwrap
import threading
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from engine import Engine, NestingError, PayloadError, Predictor, current_call
from tests._kit.internals import is_parked, workers_of

MODULE = """
    import os
    from engine import Engine, current_call

    muna = Engine(discover=False)

    def leaf(depth=0):
        call = current_call()
        yield os.getpid(), call.runner
        yield os.getpid(), call.depth

    async def aleaf():
        return os.getpid(), current_call().depth

    def node(levels: int):
        if not levels:
            return [os.getpid()]
        return [os.getpid(), *muna.predictions.create(node, {"levels": levels - 1}, runner="process").value]

    async def anode(levels: int):
        if not levels:
            return [os.getpid()]
        inner = await muna.predictions.acreate(anode, {"levels": levels - 1}, runner="process")
        return [os.getpid(), *inner.value]

    def endless():
        return muna.predictions.create(endless, runner="process").value
"""


@pytest.fixture
def nested(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A module that workers can import, with an engine of its own and predictors that use it."""
    (tmp_path / "nested_home.py").write_text(textwrap.dedent(MODULE), encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    module = importlib.import_module("nested_home")
    yield module
    module.muna.close()
    sys.modules.pop("nested_home", None)


@pytest.mark.fault(97)
@pytest.mark.parametrize("workers", [1, 2])
def test_a_predictor_that_calls_the_engine_in_a_worker_runs_there_and_never_waits_for_another(
    workers: int, nested: Any
) -> None:
    with Engine(discover=False, workers=workers) as muna:
        for levels in (1, 2, 3):
            for node in (nested.node, nested.anode):
                pids = muna.predictions.create(node, {"levels": levels}, runner="process").value
                assert len(pids) == levels + 1
                assert len(set(pids)) == 1
                assert pids[0] != os.getpid()


@pytest.mark.fault(97)
def test_an_engine_made_in_a_worker_streams_there_whatever_the_runner_says() -> None:
    def streams(runner: str | None) -> Any:
        def numbers() -> Iterator[Any]:
            call = current_call()
            assert call is not None
            yield os.getpid(), call.depth
            yield os.getpid(), call.depth

        async def anumbers() -> AsyncIterator[Any]:
            call = current_call()
            assert call is not None
            yield os.getpid(), call.depth

        with Engine(discover=False, runner=runner) as inner:
            found = list(inner.predictions.stream(numbers).values())
            found += list(inner.predictions.stream(anumbers).values())

            async def read() -> list[Any]:
                return [each async for each in inner.predictions.astream(numbers).values()]

            return os.getpid(), found + asyncio.run(read())

    with Engine(discover=False, workers=1) as muna:
        for runner in (None, "thread", "process"):
            pid, found = muna.predictions.create(streams, {"runner": runner}, runner="process").value
            assert found == [(pid, 1)] * 5


@pytest.mark.fault(98)
def test_predictors_that_call_each_other_for_ever_are_refused_at_the_stated_depth_in_a_worker_too(
    nested: Any,
) -> None:
    with Engine(discover=False, workers=1) as muna:
        with pytest.raises(NestingError, match=r"51 deep .*which is more than 50: end the recursion"):
            muna.predictions.create(nested.endless, runner="process")

        def outer() -> Any:
            return muna.predictions.create(nested.node, {"levels": 50}, runner="process").value

        with pytest.raises(NestingError, match="51 deep"):
            muna.predictions.create(outer)  # one call here, and fifty-one there
        assert len(muna.predictions.create(nested.node, {"levels": 50}, runner="process").value) == 51


@pytest.mark.fault(97)
def test_a_call_that_would_wait_for_a_worker_of_its_own_thread_is_refused_naming_the_open_stream(nested: Any) -> None:
    with Engine(discover=False, workers=1) as muna, muna.predictions.stream(nested.leaf, runner="process") as stream:
        next(stream)
        with pytest.raises(NestingError, match=rf"the open prediction {stream.tag} {stream.id}: read that stream"):
            muna.predictions.create(nested.node, {"levels": 0}, runner="process")
        assert len(list(stream)) == 1
        assert muna.predictions.create(nested.node, {"levels": 0}, runner="process").value


@pytest.mark.fault(97)
@pytest.mark.parametrize("how", ["reads to its end", "closes"])
@pytest.mark.parametrize("wanted", ["worker", "slot"])
def test_a_call_waits_for_a_worker_whose_stream_this_thread_began_and_another_one_goes_on_with(
    wanted: str, how: str, nested: Any
) -> None:
    caller, is_over = threading.current_thread(), threading.Event()
    leaf = Predictor("@tests/leaf", nested.leaf, concurrency=None if wanted == "worker" else 1)

    def go_on(stream: Any) -> None:
        while not (is_over.is_set() or is_parked(caller)):
            time.sleep(0.001)
        if how == "closes":
            stream.close()
        else:
            assert len(list(stream)) == 1

    with Engine(discover=False, workers=1 if wanted == "worker" else 2, grace=30.0) as muna:
        stream = muna.predictions.stream(leaf, runner="process", prefetch=0)
        next(stream)
        other = threading.Thread(target=go_on, args=(stream,))
        other.start()
        try:
            assert muna.predictions.create(leaf, runner="process").value[1] == 0
        finally:
            is_over.set()
            other.join()


@pytest.mark.fault(97)
def test_a_call_made_for_a_stream_that_holds_the_only_worker_is_refused_in_any_thread(nested: Any) -> None:
    async def main() -> None:
        async with Engine(discover=False, workers=1) as muna:
            stream = muna.predictions.astream(nested.leaf, runner="process")
            await anext(stream)
            with pytest.raises(NestingError):
                await muna.predictions.acreate(nested.aleaf, runner="process")
            # Another task may wait: this one goes on meanwhile, and ends its stream.
            waiting = asyncio.create_task(muna.predictions.acreate(nested.aleaf, runner="process"))
            await asyncio.sleep(0)
            assert len([each async for each in stream]) == 1
            assert (await waiting).value[1] == 0

    asyncio.run(main())


@pytest.mark.fault(99)
def test_an_engine_or_a_stream_in_a_closure_is_refused_naming_the_variable() -> None:
    with Engine(discover=False, workers=1) as muna:
        stream = muna.predictions.stream(os.getpid)

        def with_engine() -> Any:
            return muna.predictions

        def with_stream() -> Any:
            return next(stream)

        with pytest.raises(PayloadError, match=r"'muna', which the predictor .* make one where it is needed"):
            muna.predictions.create(with_engine, runner="process")
        with pytest.raises(PayloadError, match=r"'stream', which the predictor .* send its values"):
            muna.predictions.create(with_stream, runner="process")
        assert workers_of(muna) == ()  # no worker was started for that


@pytest.mark.fault(100)
def test_a_consumer_may_call_and_close_inside_its_loop(nested: Any) -> None:
    with Engine(discover=False, workers=2) as muna:
        for pid, _ in muna.predictions.stream(nested.leaf, runner="process").values():
            other = muna.predictions.create(nested.node, {"levels": 0}, runner="process").value
            assert other != [pid]  # the first worker still serves the stream
        stream = muna.predictions.stream(nested.leaf, runner="process")
        for _ in stream:
            stream.close()
        assert stream.outcome.state == "closed"
