"""A forked child (contract 5.14): its engine starts afresh, the parent's streams raise there, the parent goes on.

Every test is a script of its own, since a process with threads must not be forked where other tests run.
"""

from __future__ import annotations

import subprocess
import sys
import textwrap
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pathlib import Path

# What every script begins with. `in_child` forks, runs a function in the child, and says how that ended.
PROLOGUE = """
import asyncio, faulthandler, gc, os, signal, sys, threading, time, traceback, warnings
from engine import Engine, EngineClosedError, PredictionCancelledError, Predictor, current_call

faulthandler.register(signal.SIGALRM, chain=True)  # its timer's thread would not survive a fork
signal.alarm(20)
warnings.simplefilter("error", ResourceWarning)
# What the interpreter says of every fork in a process with threads, from 3.12 on, is not the engine's to prevent.
warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)

def in_child(function):
    sys.stdout.flush()
    pid = os.fork()
    if not pid:
        signal.alarm(10)
        code = 1
        try:
            function()
            gc.collect()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 0, os.waitstatus_to_exitcode(status)

def plain(word="plain"):
    return word

def numbers():
    try:
        yield 0
        yield 1
        yield 2
    finally:
        print("finally", os.getpid() == parent)

async def coloured(word="coloured"):
    await asyncio.sleep(0)
    return word

async def anumbers():
    try:
        yield 0
        await asyncio.sleep(0)
        yield 1
        yield 2
    finally:
        print("finally", os.getpid() == parent)

def calls_of_every_kind(muna):
    for runner in (None, "thread"):
        assert muna.predictions.create(plain, runner=runner).value == "plain"
        assert muna.predictions.create(coloured, runner=runner).value == "coloured"
        assert muna.predictions.create(lambda: iter_once(), runner=runner).value == 1
    async def main():
        for runner in (None, "thread"):
            assert (await muna.predictions.acreate(plain, runner=runner)).value == "plain"
            assert (await muna.predictions.acreate(coloured, runner=runner)).value == "coloured"
    asyncio.run(main())

def iter_once():
    yield 1

parent = os.getpid()
"""


def run_script(source: str) -> tuple[int, str, str]:
    done = subprocess.run(
        [sys.executable, "-c", PROLOGUE + textwrap.dedent(source)],
        capture_output=True,
        text=True,
        timeout=40,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


@pytest.mark.fault(86)
def test_a_child_makes_new_calls_of_every_kind_with_its_copy_of_a_used_engine() -> None:
    assert run_script(
        """
        muna = Engine(discover=False)
        calls_of_every_kind(muna)
        in_child(lambda: calls_of_every_kind(muna))
        calls_of_every_kind(muna)
        muna.close()
        print("ok")
        """
    ) == (0, "ok\n", "")


def test_a_child_may_close_its_copy_and_the_parent_goes_on() -> None:
    assert run_script(
        """
        class Model:
            def predict(self):
                return "model"
            def teardown(self):
                print("teardown", os.getpid() == parent)

        muna = Engine(discover=False)
        calls_of_every_kind(muna)
        muna.predictions.create(Model)

        def child():
            calls_of_every_kind(muna)
            muna.close()
            try:
                muna.predictions.create(plain)
            except EngineClosedError:
                print("closed in the child")

        in_child(child)
        calls_of_every_kind(muna)
        assert muna.predictions.create(Model).value == "model"
        muna.close()
        """
    ) == (0, "teardown False\nclosed in the child\nteardown True\n", "")


@pytest.mark.parametrize(
    ("predictor", "runner"),
    [("numbers", "None"), ("numbers", "'thread'"), ("anumbers", "None"), ("anumbers", "'thread'")],
)
def test_an_open_stream_raises_in_the_child_once_and_goes_on_in_the_parent(predictor: str, runner: str) -> None:
    assert run_script(
        f"""
        muna = Engine(discover=False)
        stream = muna.predictions.stream({predictor}, runner={runner})
        values = stream.values()
        assert next(values) == 0

        def child():
            for _ in range(2):
                try:
                    value = next(stream)
                except EngineClosedError as error:
                    print("raised:", "parent" in str(error))
                except StopIteration:
                    print("over")
                else:
                    print("value", value)
            stream.cancel()
            stream.close()
            calls_of_every_kind(muna)

        in_child(child)
        assert list(values) == [1, 2]
        assert stream.outcome.state == "done"
        muna.close()
        """
    ) == (0, "raised: True\nover\nfinally True\n", "")


@pytest.mark.parametrize(
    ("predictor", "runner"),
    [("numbers", "None"), ("numbers", "'thread'"), ("anumbers", "None"), ("anumbers", "'thread'")],
)
def test_a_child_that_drops_or_closes_a_parents_stream_runs_no_clean_up_of_the_parents(
    predictor: str, runner: str
) -> None:
    assert run_script(
        f"""
        muna = Engine(discover=False)
        streams = [muna.predictions.stream({predictor}, runner={runner}) for _ in range(3)]
        for stream in streams:
            next(stream)
        del stream

        def child():
            streams[0].close()
            streams.clear()
            gc.collect()
            muna.close()

        in_child(child)
        print("parent")
        for stream in streams:
            stream.close()
        muna.close()
        """
    ) == (0, "parent\n" + "finally True\n" * 3, "")


def test_a_stream_that_never_started_belongs_to_the_process_that_pulls_it() -> None:
    code, out, errors = run_script(
        """
        muna = Engine(discover=False)
        streams = [muna.predictions.stream(each) for each in (iter_once, anumbers)]

        def child():
            for stream in streams:
                try:
                    print(len(list(stream)))
                except EngineClosedError:
                    print("refused")

        in_child(child)
        assert [len(list(stream)) for stream in streams] == [1, 3]
        muna.close()
        """
    )
    assert (code, errors) == (0, "")
    assert "finally True" in out


@pytest.mark.parametrize("runner", ["thread", "process"])
def test_a_stream_that_never_started_is_refused_in_the_child_where_the_parents_owner_would_run_it(runner: str) -> None:
    assert run_script(
        f"""
        runner = {runner!r}
        muna = Engine(discover=False, workers=1)
        assert muna.predictions.create(plain, runner=runner).value == "plain"
        stream = muna.predictions.stream(plain, runner=runner)

        def child():
            try:
                list(stream)
            except EngineClosedError:
                print("refused")
            assert list(stream) == []

        in_child(child)
        assert [prediction.value for prediction in stream] == ["plain"]
        muna.close()
        """
    ) == (0, "refused\n", "")


def test_a_stream_of_a_running_event_loop_raises_in_the_child_and_goes_on_in_the_parent() -> None:
    assert run_script(
        """
        muna = Engine(discover=False)

        async def main():
            streams = [muna.predictions.astream(each) for each in (numbers, anumbers)]
            for stream in streams:
                assert (await anext(stream)).value == 0

            def child():
                calls_of_every_kind_sync()
                for stream in streams:
                    try:
                        stream.__anext__().send(None)
                    except EngineClosedError:
                        print("raised")

            in_child(child)
            for stream in streams:
                assert [prediction.value async for prediction in stream] == [1, 2]

        def calls_of_every_kind_sync():
            for runner in (None, "thread"):
                assert muna.predictions.create(plain, runner=runner).value == "plain"
                assert muna.predictions.create(coloured, runner=runner).value == "coloured"

        asyncio.run(main())
        muna.close()
        """
    ) == (0, "raised\nraised\nfinally True\nfinally True\n", "")


@pytest.mark.fault(86)
def test_a_fork_while_other_threads_are_busy_inside_the_engine_leaves_the_child_usable() -> None:
    assert run_script(
        """
        muna = Engine(discover=False)
        muna.predictors.register("@tests/plain", plain)
        calls_of_every_kind(muna)  # a module that another thread imports just now stays locked in a child for ever
        muna.predictions.create("@tests/plain")
        stop = threading.Event()

        def busy(runner, predictor):
            while not stop.is_set():
                muna.predictions.create(predictor, runner=runner)
                list(muna.predictions.stream(numbers_quietly, runner=runner))
                muna.predictors.register("@tests/other", plain, replace=True)

        def numbers_quietly():
            yield from range(5)

        threads = [
            threading.Thread(target=busy, args=arguments)
            for arguments in ((None, plain), ("thread", plain), (None, coloured), ("thread", "@tests/plain"))
        ]
        for thread in threads:
            thread.start()

        def child():
            calls_of_every_kind(muna)
            assert muna.predictions.create("@tests/plain").value == "plain"
            muna.predictors.register("@tests/new", plain)
            assert muna.predictions.create("@tests/new").value == "plain"
            muna.close()

        for _ in range(20):
            in_child(child)
        stop.set()
        for thread in threads:
            thread.join()
        muna.close()
        print("ok")
        """
    ) == (0, "ok\n", "")


def test_slots_held_by_the_parents_threads_are_free_in_the_child() -> None:
    assert run_script(
        """
        reached, go = threading.Event(), threading.Event()

        def one_at_a_time(wait=False):
            if wait:
                reached.set()
                assert go.wait(10)
            return "mine"

        muna = Engine(discover=False)
        muna.predictors.register(Predictor("@tests/one", one_at_a_time, concurrency=1))
        holder = threading.Thread(target=lambda: muna.predictions.create("@tests/one", {"wait": True}))
        holder.start()
        assert reached.wait(10)

        def child():
            for runner in (None, "thread"):
                assert muna.predictions.create("@tests/one", runner=runner).value == "mine"

        in_child(child)
        go.set()
        holder.join()
        assert muna.predictions.create("@tests/one").value == "mine"
        muna.close()
        print("ok")
        """
    ) == (0, "ok\n", "")


def test_a_setup_that_runs_in_the_parent_is_begun_anew_in_the_child() -> None:
    assert run_script(
        """
        reached, go = threading.Event(), threading.Event()

        class Model:
            def setup(self):
                if os.getpid() == parent:
                    reached.set()
                    assert go.wait(10)
            def predict(self):
                return "model"

        muna = Engine(discover=False)
        first = threading.Thread(target=lambda: muna.predictions.create(Model))
        first.start()
        assert reached.wait(10)

        def child():
            assert muna.predictions.create(Model).value == "model"

        in_child(child)
        go.set()
        first.join()
        assert muna.predictions.create(Model).value == "model"
        muna.close()
        print("ok")
        """
    ) == (0, "ok\n", "")


def test_a_class_that_lives_on_the_parents_loop_is_set_up_anew_in_the_child_and_torn_down_by_each_for_itself() -> None:
    code, out, errors = run_script(
        """
        class Model:
            async def setup(self):
                self.lock = asyncio.Lock()
                print("setup", os.getpid() == parent)
            async def predict(self):
                async with self.lock:
                    return "model"
            async def teardown(self):
                print("teardown", os.getpid() == parent)

        muna = Engine(discover=False)
        muna.predictions.create(Model)

        def child():
            assert muna.predictions.create(Model).value == "model"
            muna.close()

        in_child(child)
        assert muna.predictions.create(Model).value == "model"
        muna.close()
        """
    )
    assert (code, errors) == (0, "")
    assert out.splitlines() == ["setup True", "setup False", "teardown False", "teardown True"]


@pytest.mark.fault(86)
def test_an_engine_made_in_the_child_is_as_good_as_any() -> None:
    assert run_script(
        """
        muna = Engine(discover=False)
        calls_of_every_kind(muna)
        stream = muna.predictions.stream(numbers, runner="thread")
        next(stream)

        def child():
            with Engine(discover=False) as own:
                calls_of_every_kind(own)

        in_child(child)
        stream.close()
        muna.close()
        """
    ) == (0, "finally True\n", "")


def test_a_child_of_a_child_works_too() -> None:
    assert run_script(
        """
        muna = Engine(discover=False)
        calls_of_every_kind(muna)

        def child():
            calls_of_every_kind(muna)
            in_child(lambda: calls_of_every_kind(muna))
            calls_of_every_kind(muna)

        in_child(child)
        calls_of_every_kind(muna)
        muna.close()
        print("ok")
        """
    ) == (0, "ok\n", "")


def test_ids_are_unique_across_a_fork() -> None:
    code, out, errors = run_script(
        """
        muna = Engine(discover=False)
        print(muna.predictions.create(plain).id)
        in_child(lambda: print(muna.predictions.create(plain).id))
        print(muna.predictions.create(plain).id)
        """
    )
    assert (code, errors) == (0, "")
    assert len(set(out.split())) == 3


@pytest.mark.fault(87)
def test_a_predictor_that_forks_in_an_owner_thread_leaves_the_parent_its_stream() -> None:
    assert run_script(
        """
        def forks():
            pid = os.fork()
            if not pid:
                os._exit(0)
            os.waitpid(pid, 0)
            yield "one"
            yield "two"

        muna = Engine(discover=False)
        for runner in (None, "thread"):
            assert list(muna.predictions.stream(forks, runner=runner).values()) == ["one", "two"]
        muna.close()
        print("ok")
        """
    ) == (0, "ok\n", "")


@pytest.mark.parametrize("predictor", ["forks", "Forks"])
def test_a_child_that_a_predictor_forks_in_an_owner_thread_ends_with_the_body(predictor: str) -> None:
    assert run_script(
        f"""
        def forks():
            pid = os.fork()
            if not pid:
                signal.alarm(5)  # which is less than the thread would wait for its next body
                return "child"
            _, status = os.waitpid(pid, 0)
            return os.waitstatus_to_exitcode(status)

        class Forks:
            def predict(self):
                return forks()

        muna = Engine(discover=False)
        print(muna.predictions.create({predictor}, runner="thread").value)
        print(muna.predictions.create(plain, runner="thread").value)
        muna.close()
        """
    ) == (0, "0\nplain\n", "")


def test_a_child_that_exits_in_the_ordinary_way_ends_in_silence() -> None:
    code, out, errors = run_script(
        """
        muna = Engine(discover=False, grace=0.1)
        calls_of_every_kind(muna)
        stream = muna.predictions.stream(numbers, runner="thread")
        next(stream)
        other = muna.predictions.stream(anumbers)
        next(other)
        sys.stdout.flush()
        pid = os.fork()
        if not pid:
            calls_of_every_kind(muna)
            sys.exit(5)
        _, status = os.waitpid(pid, 0)
        print("child", os.waitstatus_to_exitcode(status))
        stream.close()
        other.close()
        muna.close()
        """
    )
    assert (code, errors) == (0, "")
    assert out.splitlines() == ["child 5", "finally True", "finally True"]


def test_a_process_pool_that_forks_may_use_the_engine_in_its_workers() -> None:
    assert run_script(
        """
        import multiprocessing

        muna = Engine(discover=False)
        calls_of_every_kind(muna)

        def work(number):
            calls_of_every_kind(muna)
            return muna.predictions.create(plain, {"word": str(number)}, runner="thread").value

        context = multiprocessing.get_context("fork")
        with context.Pool(2) as pool:
            assert pool.map(work, range(6)) == [str(number) for number in range(6)]
        muna.close()
        print("ok")
        """
    ) == (0, "ok\n", "")


# A signal handler forks while the main thread waits: the child comes along into that wait, which nothing will end.
FORKING = """
import logging
import engine.runners.channel, engine.runners.slots

engine.runners.slots._LONG_WAIT = engine.runners.parking.POLL_INTERVAL = 0.1  # how soon what waits looks again
logging.disable()  # of how long the wait for a slot takes

held, go, children = threading.Event(), threading.Event(), []

def fork(*_):
    pid = os.fork()
    if pid:
        children.append(pid)
    else:
        signal.alarm(10)

def fork_when(is_so):
    def interrupt():
        while not is_so():
            time.sleep(0.001)
        os.kill(parent, signal.SIGUSR1)
        while not children:
            time.sleep(0.001)
        os.waitid(os.P_PID, children[0], os.WEXITED | os.WNOWAIT)  # or the two would write at the same time
        go.set()
    threading.Thread(target=interrupt, daemon=True).start()

def waits():
    held.set()
    go.wait()
    return "done"

async def awaits():
    held.set()
    while not go.is_set():
        await asyncio.sleep(0.001)
    return "done"

def create_and_tell(muna, predictor, inputs=None, runner="thread"):
    try:
        print(muna.predictions.create(predictor, inputs, runner=runner).value)
    except EngineClosedError as error:
        print("raised:", "parent" in str(error), muna._open_calls.executions())
    if os.getpid() != parent:
        print("after:", muna.predictions.create(plain, runner="thread").value)
        sys.stdout.flush()
        os._exit(0)
    _, status = os.waitpid(children[0], 0)
    print("child", os.waitstatus_to_exitcode(status))

signal.signal(signal.SIGUSR1, fork)
muna = Engine(discover=False)
"""


@pytest.mark.parametrize("predictor", ["waits", "awaits"])
def test_a_create_that_waits_for_its_owner_raises_in_the_child_and_goes_on_in_the_parent(predictor: str) -> None:
    code, out, errors = run_script(
        f"""{FORKING}
fork_when(held.is_set)
create_and_tell(muna, {predictor})
muna.close()
"""
    )
    assert (code, errors) == (0, "")
    assert sorted(out.splitlines()) == ["after: plain", "child 0", "done", "raised: True ()"]


def test_a_create_that_waits_for_its_slot_raises_in_the_child_and_goes_on_in_the_parent() -> None:
    code, out, errors = run_script(
        f"""{FORKING}
predictor = Predictor("@tests/waits", waits, concurrency=1)
slots = muna._resolver.resolve(predictor).slots
holder = threading.Thread(target=muna.predictions.create, args=(predictor,), kwargs={{"runner": "thread"}}, daemon=True)
holder.start()
held.wait()
fork_when(lambda: slots.waiting)
create_and_tell(muna, predictor)
holder.join()
muna.close()
"""
    )
    assert (code, errors) == (0, "")
    assert sorted(out.splitlines()) == ["after: plain", "child 0", "done", "raised: True ()"]


def test_a_create_that_waits_for_a_worker_raises_in_the_child_and_goes_on_in_the_parent(tmp_path: Path) -> None:
    code, out, errors = run_script(
        f"""{FORKING}
from pathlib import Path

folder = Path({str(tmp_path)!r})

def waits_there(folder):
    import os, time
    open(os.path.join(folder, "held"), "w").close()
    while not os.path.exists(os.path.join(folder, "go")):
        time.sleep(0.001)
    return "done"

fork_when((folder / "held").exists)
threading.Thread(target=lambda: (go.wait(), (folder / "go").touch()), daemon=True).start()
create_and_tell(muna, waits_there, {{"folder": str(folder)}}, "process")
muna.close()
"""
    )
    assert (code, errors) == (0, "")
    assert sorted(out.splitlines()) == ["after: plain", "child 0", "done", "raised: True ()"]
