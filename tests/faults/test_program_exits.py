"""The interpreter exits under live streams, or an engine is dropped that was never closed."""

from __future__ import annotations

import gc
import threading
import time
import warnings
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from engine import Engine, PredictionStream
from tests._kit.waits import TIMEOUT, until
from tests.faults.scripts import LIVE, run_script
from tests.faults.waiting_predictors import GatedPredictors, coloured, plain

# 104 and 105: the interpreter exits.


@pytest.mark.fault(104)
@pytest.mark.parametrize(
    ("last_line", "code", "error"),
    [
        ("", 0, ""),
        ("sys.exit(3)", 3, ""),
        ("os._exit(4)", 4, ""),
        ("raise LookupError('mine')", 1, "LookupError: mine"),
        ("del muna, live", 0, ""),
        ("threading.Thread(target=read, args=(live[0],), daemon=True).start()", 0, ""),
        ("threading.Thread(target=read, args=(live[1],), daemon=True).start()", 0, ""),
    ],
    ids=["the-end", "exit-3", "os-exit", "error", "dropped", "read-in-a-thread", "read-from-the-loop-in-a-thread"],
)
def test_an_exit_with_live_streams_keeps_its_code_and_says_nothing_of_the_engines(
    last_line: str, code: int, error: str
) -> None:
    started = time.monotonic()
    done = run_script(LIVE + last_line)
    assert done.stdout == "ready\n"
    assert done.returncode == code
    if error:
        assert done.stderr.count("Traceback") == 1
        assert done.stderr.endswith(error + "\n")
    else:
        assert engine_lines(done.stderr) == []
    assert time.monotonic() - started < 15


def engine_lines(text: str) -> list[str]:
    """What a script said, but for the one line that names a thread body that could not be stopped."""
    return [line for line in text.splitlines() if "did not stop within" not in line]


@pytest.mark.fault(104)
@pytest.mark.parametrize("last_line", ["", "sys.exit(3)", "os._exit(0)"])
def test_an_exit_while_asyncio_consumers_read_says_nothing(last_line: str) -> None:
    done = run_script(
        f"""
        import asyncio, os, sys
        from engine import Engine

        def numbers():
            yield from range(10**9)

        async def anumbers():
            for number in range(10**9):
                yield number

        async def main():
            streams = [muna.predictions.astream(each) for each in (numbers, anumbers)]
            streams.append(muna.predictions.astream(anumbers, runner="thread"))
            for stream in streams:
                await anext(stream)
                await stream.aclose()
            {last_line or "pass"}

        muna = Engine(discover=False)
        asyncio.run(main())
        """
    )
    assert done.returncode == (3 if "3" in last_line else 0)
    assert done.stderr == ""


@pytest.mark.fault(104)
def test_an_engine_that_is_never_closed_lets_the_process_end_and_tears_its_classes_down() -> None:
    done = run_script(
        """
        from engine import Engine

        class Model:
            def predict(self):
                return 1
            def teardown(self):
                print("torn down")

        class AsyncModel:
            async def predict(self):
                return 1
            async def teardown(self):
                print("torn down too")

        muna = Engine(discover=False)
        muna.predictions.create(Model)
        muna.predictions.create(AsyncModel)
        """
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert sorted(done.stdout.splitlines()) == ["torn down", "torn down too"]


@pytest.mark.fault(105)
def test_an_engine_used_after_the_interpreter_closed_it_says_that_it_is_closed() -> None:
    done = run_script(
        """
        import atexit

        def late():
            for runner in (None, "thread"):
                try:
                    muna.predictions.create(lambda: 1, runner=runner)
                except RuntimeError as error:
                    print(type(error).__name__)

        atexit.register(late)  # before the engine is imported, so called after the engine's own
        from engine import Engine
        muna = Engine(discover=False)
        muna.predictions.create(lambda: 1, runner="thread")
        """
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "EngineClosedError\n" * 2, "")


@pytest.mark.fault(105)
def test_an_engine_made_in_an_exit_hook_works_or_is_refused_with_a_runtime_error_and_ends() -> None:
    done = run_script(
        """
        import atexit

        def late():
            from engine import Engine
            muna = Engine(discover=False)
            print(muna.predictions.create(lambda: "inline").value)
            async def coloured():
                return "works"
            for predictor in (lambda: "works", coloured):
                try:
                    print(muna.predictions.create(predictor, runner="thread").value)
                except RuntimeError as error:
                    print("refused")
            muna.close()

        atexit.register(late)
        """
    )
    assert done.returncode == 0
    first, *others = done.stdout.splitlines()
    assert first == "inline"
    assert len(others) == 2
    assert set(others) <= {"works", "refused"}
    assert done.stderr == ""


@pytest.mark.fault(105)
def test_an_exit_hook_registered_later_still_finds_the_engine_open() -> None:
    done = run_script(
        """
        import atexit
        from engine import Engine
        muna = Engine(discover=False)
        stream = muna.predictions.stream(lambda: iter("ab"), runner="thread")
        muna.predictions.create(lambda: 0, runner="thread")  # 3.12 starts no thread in exit hooks
        atexit.register(lambda: print(muna.predictions.create(lambda: "open", runner="thread").value))
        """
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "open\n", "")


# 106: an engine that is never closed.


@pytest.mark.fault(106)
@pytest.mark.parametrize("predictor", [plain, coloured])
def test_an_engine_that_is_dropped_lets_its_threads_go_with_one_warning(predictor: Callable[[], Any]) -> None:
    before = set(threading.enumerate())

    def use() -> weakref.ref[Engine]:
        muna = Engine(discover=False)
        muna.predictions.create(predictor, runner="thread")
        return weakref.ref(muna)

    with pytest.warns(ResourceWarning, match="left unclosed") as caught:  # noqa: PT031 - it comes with the collector
        reference = use()
        gc.collect()
    assert len(caught) == 1
    assert reference() is None
    until(lambda: set(threading.enumerate()) <= before, "the end of the engine's threads")


@pytest.mark.fault(106)
@pytest.mark.parametrize(("kind", "runner"), [("resting", None), ("resting", "thread"), ("coloured", None)])
def test_a_dropped_engines_live_streams_are_finalised(kind: str, runner: str | None) -> None:
    gate = GatedPredictors()

    def use() -> None:
        muna = Engine(discover=False)
        stream = muna.predictions.stream(getattr(gate, kind), runner=runner, prefetch=0)
        next(stream)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        use()
        gc.collect()
    assert gate.finished.wait(TIMEOUT)


@pytest.mark.fault(106)
def test_a_stream_keeps_the_engine_it_needs(muna: Engine) -> None:
    def counts() -> Iterator[int]:
        yield from range(3)

    def make() -> PredictionStream:
        own = Engine(discover=False)
        return own.predictions.stream(counts, runner="thread", prefetch=0)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        stream = make()
        gc.collect()
        assert [item.value for item in stream] == [0, 1, 2]
        del stream
        gc.collect()
