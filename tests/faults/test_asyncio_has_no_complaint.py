"""asyncio's debug mode has nothing to say of the engine, and an asyncio that is imported only half harms no call."""

from __future__ import annotations

import sys
import types

import pytest

from engine import Engine
from tests.faults.scripts import run_script_in_debug_mode

# 82: nothing for asyncio to complain about.


QUIET = """
import asyncio, logging, threading
from engine import Engine

logging.basicConfig(level=logging.WARNING)
# How long a callback took is the machine's affair; everything else asyncio says counts.
logging.getLogger("asyncio").addFilter(lambda record: not record.getMessage().startswith("Executing "))

async def fails():
    yield 1
    await asyncio.sleep(0)
    raise ValueError("expected")

async def waits(reached):
    try:
        yield 1
        reached.set()
        await asyncio.sleep(3600)
    finally:
        await asyncio.sleep(0)

def sync_fails():
    yield 1
    raise ValueError("expected")

def numbers():
    yield from range(1000)

async def anumbers():
    for number in range(1000):
        yield number

async def coroutine():
    return 1

def makes_coroutine():
    return coroutine()

async def expect_failure(muna, predictor, runner):
    try:
        async for _ in muna.predictions.astream(predictor, runner=runner):
            pass
    except ValueError:
        pass
    else:
        raise AssertionError("no failure")
    prediction = await muna.predictions.acreate(predictor, runner=runner, errors="return")
    assert prediction.exception is not None

async def cancelled(muna, runner):
    reached = threading.Event()
    async def read():
        async with muna.predictions.astream(waits, {"reached": reached}, runner=runner) as stream:
            async for _ in stream:
                pass
    task = asyncio.create_task(read())
    while not reached.is_set():
        await asyncio.sleep(0.001)
    task.cancel()
    try:
        await task
    except asyncio.CancelledError:
        return
    raise AssertionError("not cancelled")

async def left_early(muna, predictor, runner):
    async with muna.predictions.astream(predictor, runner=runner) as stream:
        async for _ in stream:
            break
    never_started = muna.predictions.astream(predictor, runner=runner)

async def main(muna):
    assert asyncio.get_running_loop().get_debug()
    for runner in (None, "inline", "thread"):
        await expect_failure(muna, fails, runner)
        await expect_failure(muna, sync_fails, runner)
        await cancelled(muna, runner)
        await left_early(muna, anumbers, runner)
        await left_early(muna, numbers, runner)
        assert (await muna.predictions.acreate(makes_coroutine, runner=runner)).value == 1
    task = asyncio.create_task(muna.predictions.acreate(waits, {"reached": threading.Event()}))
    await asyncio.sleep(0)
    muna.predictions.stream(anumbers)
    with muna.predictions.stream(anumbers) as stream:
        next(stream)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)

with Engine(discover=False) as muna:
    asyncio.run(main(muna), debug=True)
print("ok")
"""


@pytest.mark.fault(82)
def test_asyncio_in_debug_mode_has_nothing_to_say() -> None:
    done = run_script_in_debug_mode(QUIET)
    assert (done.returncode, done.stdout, done.stderr) == (0, "ok\n", "")


@pytest.mark.fault(82)
def test_a_stream_left_open_when_the_loop_ends_gives_one_warning_and_nothing_else() -> None:
    done = run_script_in_debug_mode(
        """
        import asyncio
        from engine import Engine

        async def numbers():
            try:
                for number in range(1000):
                    yield number
            finally:
                await asyncio.sleep(0)
                print("finished")

        async def main(muna):
            kept.append(muna.predictions.astream(numbers))
            await anext(kept[0])

        kept = []
        with Engine(discover=False) as muna:
            asyncio.run(main(muna), debug=True)
        """
    )
    assert (done.returncode, done.stdout) == (0, "finished\n")
    assert done.stderr.count("ResourceWarning") == 1
    assert "Traceback" not in done.stderr
    assert "destroyed" not in done.stderr


# asyncio, as another thread imports it just now.


HALF_IMPORTED = """
    import sys, threading
    from importlib.machinery import PathFinder
    from engine import Engine, EngineClosedError

    reached, go = threading.Event(), threading.Event()

    class Gate:
        def find_spec(self, name, path=None, target=None):
            if name != "asyncio.constants":
                return None
            spec = PathFinder.find_spec(name, path)
            execute = spec.loader.exec_module

            def execute_late(module):
                reached.set()
                go.wait(20)
                execute(module)

            spec.loader.exec_module = execute_late
            return spec

    class Model:
        def predict(self):
            return "given"

    def gives():
        return "given"

    sys.meta_path.insert(0, Gate())
    importing = threading.Thread(target=__import__, args=("asyncio",))
    importing.start()
    assert reached.wait(20) and not hasattr(sys.modules["asyncio"], "current_task")
    found = []
    with Engine(discover=False, workers=1) as muna:
        for runner in (None, "thread", "process"):
            for predictor in (Model, Model, gives):
                found.append(muna.predictions.create(predictor, runner=runner).value)
                found += muna.predictions.stream(predictor, runner=runner).values()
    try:
        muna.predictions.create(gives)
    except EngineClosedError:
        found.append("closed")
    go.set()
    importing.join()
    print(found == ["given"] * 18 + ["closed"])
"""


def test_where_another_thread_has_imported_asyncio_only_half_calls_work_and_the_engine_closes() -> None:
    done = run_script_in_debug_mode(HALF_IMPORTED)
    assert (done.stdout, done.stderr, done.returncode) == ("True\n", "", 0)


def test_what_a_predictor_raises_is_explained_while_asyncios_own_errors_are_not_there_yet(
    muna: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails() -> None:
        raise LookupError("in the body")

    monkeypatch.setitem(sys.modules, "asyncio.exceptions", types.ModuleType("asyncio.exceptions"))
    with pytest.raises(LookupError, match="in the body"):
        muna.predictions.create(fails)
    with pytest.raises(LookupError, match="in the body"):
        muna.predictions.create(fails, runner="thread")
