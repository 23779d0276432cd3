"""Faults of an engine's life where it has workers: ends of every sort, forks, signals, classes set up in workers."""

from __future__ import annotations

import asyncio
import contextlib
import faulthandler
import gc
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, Final

import pytest

from engine import Engine, EngineClosedError, EngineError, Predictor
from engine.runners.process.supervisor import Supervisor
from engine.runners.process.worker import Worker
from tests._kit.gates import FileGate, Journal
from tests._kit.internals import executions_of, leases_of, pool_of, shorten_grace_of_workers, worker_of
from tests._kit.processes import SCRIPT_TIMEOUT, child_processes
from tests._kit.waits import TIMEOUT, auntil, until
from tests.faults.worker_bodies import AsyncModel, Model, number_of_worker, numbers_after_worker

GRACE: Final = 0.5

OPENING: Final = """
    import os, signal, sys, time, warnings
    from engine import Engine

    # What the interpreter says of every fork in a process with threads, from 3.12 on, is not the engine's to prevent.
    warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)

    def endless(path):
        with open(path + "-", "w") as file:
            file.write(str(os.getpid()))
        os.rename(path + "-", path)
        try:
            while True:
                yield "a partial"
        finally:
            open(path + ".finally", "w").close()

    def slow(path):
        for each in endless(path):
            yield each
            time.sleep(60)

    muna = Engine(discover=False, workers=1, grace=2.0)
"""


def begin(tmp_path: Path, ending: str) -> subprocess.Popen[str]:
    """Start a script in a session of its own, as a terminal would have it."""
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(OPENING) + textwrap.dedent(ending), encoding="utf-8")
    return subprocess.Popen(
        [sys.executable, str(script), str(tmp_path / "worker")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def end(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    try:
        out, err = process.communicate(timeout=SCRIPT_TIMEOUT)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        raise
    return process.returncode, out, err


def is_gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def opener_of(tmp_path: Path) -> int:
    gate = FileGate(tmp_path / "worker")
    until(lambda: gate.is_open, "the predictor has begun")
    return gate.opener


# 102, 103: closing.


@pytest.mark.fault(102)
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_worker_whose_start_ctrl_c_interrupts_is_gone_and_keeps_no_engine_from_closing(
    when: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    watch = Supervisor.watch

    def interrupted(supervisor: Supervisor, worker: Worker) -> None:
        if when == "after":
            watch(supervisor, worker)
        monkeypatch.setattr(Supervisor, "watch", watch)
        raise KeyboardInterrupt

    before = child_processes()
    with Engine(discover=False, workers=1, grace=GRACE) as muna:
        monkeypatch.setattr(Supervisor, "watch", interrupted)
        with pytest.raises(KeyboardInterrupt):
            muna.predictions.create(number_of_worker, runner="process")
        assert child_processes() == before
        assert muna.predictions.create(number_of_worker, runner="process").value in child_processes() - before
        started = time.monotonic()
    assert time.monotonic() - started < 10 * GRACE
    assert child_processes() == before


@pytest.mark.fault(102)
@pytest.mark.parametrize("way", ["freed-while-the-loop-is-busy", "freed-after-it-stopped", "started-while-it-is-busy"])
def test_an_engine_closes_though_the_loop_of_a_task_that_was_granted_a_worker_does_not_turn(way: str) -> None:
    before = child_processes()
    loop, is_still, go_on = asyncio.new_event_loop(), threading.Event(), threading.Event()
    results: list[Any] = []

    def stand_still() -> None:
        is_still.set()
        go_on.wait(TIMEOUT)

    def turn(task: asyncio.Task[Any]) -> None:
        try:
            results.append(loop.run_until_complete(task))
        except BaseException as error:
            results.append(error)

    muna = Engine(discover=False, workers=1, grace=GRACE)
    pool = pool_of(muna)
    stream = muna.predictions.stream(numbers_after_worker, runner="process")
    if way.startswith("freed"):
        with ThreadPoolExecutor(1) as executor:  # another thread's stream may be waited for
            executor.submit(next, stream).result(TIMEOUT)
    task = loop.create_task(muna.predictions.acreate(number_of_worker, runner="process"))
    if is_over := way == "freed-after-it-stopped":
        loop.run_until_complete(auntil(lambda: pool.waiting == 1, "the task waits"))
        is_still.set()
    turning = threading.Thread(target=turn, args=(task,))
    if not is_over:
        loop.call_soon(stand_still)  # the task has taken one step by then
        turning.start()
    assert is_still.wait(TIMEOUT)
    assert pool.waiting == 1 or way.startswith("started")  # then it may have been granted one by now
    stream.close()
    until(lambda: pool.workers and pool.waiting == 0, "a worker is granted to the task")
    muna.close()
    assert child_processes() == before
    go_on.set()
    if is_over:
        turning.start()
    turning.join(TIMEOUT)
    loop.close()
    [result] = results
    assert isinstance(result, EngineClosedError)


@pytest.mark.fault(102)
def test_each_stream_from_a_worker_gets_one_engine_closed_error_and_is_finalised(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal")

    def numbers() -> Iterator[int]:
        try:
            yield from range(10**9)
        finally:
            journal.note("finally")

    before = child_processes()
    muna = Engine(discover=False, workers=3, grace=GRACE)
    streams = [muna.predictions.stream(numbers, runner="process") for _ in range(3)]
    assert [next(stream).value for stream in streams] == [0, 0, 0]
    started = time.monotonic()
    muna.close()
    assert time.monotonic() - started < 10 * GRACE
    for stream in streams:
        with pytest.raises(EngineClosedError):
            next(stream)
        assert list(stream) == []
        assert (stream.outcome.state, stream.outcome.rung) == ("closed", "asked")
    assert journal.words == ["finally"] * 3
    assert child_processes() == before


@pytest.mark.fault(103)
def test_a_closed_engine_starts_no_worker_and_closing_again_does_nothing() -> None:
    muna = Engine(discover=False, workers=1)
    waiting = muna.predictions.stream(number_of_worker, runner="process")
    assert muna.predictions.create(number_of_worker, runner="process").value > 0
    with ThreadPoolExecutor(2) as threads:
        list(threads.map(lambda _: muna.close(), range(2)))
    muna.close()
    for refused in (
        lambda: muna.predictions.create(number_of_worker, runner="process"),
        lambda: next(waiting),
        lambda: muna.load(number_of_worker, runner="process"),
    ):
        with pytest.raises(EngineClosedError):
            refused()


@pytest.mark.fault(103)
def test_a_stream_opened_before_its_engine_closed_and_pulled_after_says_so_and_starts_nothing() -> None:
    import asyncio

    async def main() -> None:
        muna = Engine(discover=False, workers=1)
        late = muna.predictions.astream(number_of_worker, runner="process")
        muna.close()  # on the loop's own thread, where it waits for nothing
        with pytest.raises(EngineClosedError):
            await anext(late)
        assert [each async for each in late] == []

    before = child_processes()
    asyncio.run(main())
    assert child_processes() == before


# 104, 105, 106: ends without an announcement.

ENDINGS: Final = {
    "it falls off the end": ("", 0, ""),
    "sys.exit": ("sys.exit(3)", 3, ""),
    "an error": ("raise LookupError('nothing handles this')", 1, "LookupError: nothing handles this\n"),
    "os._exit": ("os._exit(4)", 4, ""),
}


@pytest.mark.fault(104)
@pytest.mark.parametrize("body", ["endless", "slow"])
@pytest.mark.parametrize("name", ENDINGS)
def test_a_program_that_ends_with_a_live_stream_keeps_its_code_says_nothing_and_leaves_no_worker(
    name: str, body: str, tmp_path: Path
) -> None:
    ending, code, told = ENDINGS[name]
    stream = f'stream = muna.predictions.stream({body}, {{"path": sys.argv[1]}}, runner="process")\n'
    found, out, err = end(begin(tmp_path, f"{stream}print(next(stream).value, flush=True)\n{ending}\n"))
    assert (found, out) == (code, "a partial\n")
    assert err.endswith(told)
    assert err.count("\n") == (0 if not told else 4)  # Python's own traceback of the script, and no more
    until(lambda: is_gone(opener_of(tmp_path)), "the worker is gone")
    assert (tmp_path / "worker.finally").exists() == (name != "os._exit")


@pytest.mark.fault(105)
def test_a_call_in_an_exit_hook_works_or_is_refused_with_a_runtime_error(tmp_path: Path) -> None:
    found, out, err = end(
        begin(
            tmp_path,
            """
            import atexit

            def late():
                try:
                    print(muna.predictions.create(len, {"obj": "abc"}, check=False, runner="process").value)
                except RuntimeError as error:
                    print(type(error).__name__)

            first = Engine(discover=False)  # its hook is registered before
            atexit.register(late)
            """,
        )
    )
    assert (found, err) == (0, "")
    assert out in {"3\n", "EngineClosedError\n", "RuntimeError\n"}  # the last is 3.12's, which starts no thread then


@pytest.mark.fault(106)
def test_an_engine_that_is_dropped_lets_its_workers_go_with_one_warning() -> None:
    before = child_processes()

    def drop() -> int:
        muna = Engine(discover=False, workers=2, grace=GRACE)
        pid: int = muna.predictions.create(number_of_worker, runner="process").value
        return pid

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        pid = drop()
        gc.collect()
        until(lambda: child_processes() == before, "no worker is left")
    assert is_gone(pid)
    assert [each.category for each in caught] == [ResourceWarning]


# 86: forks.


@pytest.mark.fault(86)
def test_a_forked_program_starts_workers_of_its_own_and_leaves_the_parents_alone(tmp_path: Path) -> None:
    found, out, err = end(
        begin(
            tmp_path,
            """
            stream = muna.predictions.stream(endless, {"path": sys.argv[1]}, runner="process")
            values = stream.values()
            print(next(values), flush=True)
            mine = muna._workers()._pool.workers[0].pid
            child = os.fork()
            if not child:
                try:
                    next(values)
                except RuntimeError as error:
                    print(type(error).__name__, flush=True)
                theirs = muna.predictions.create(os.getpid, runner="process").value
                print(theirs not in (mine, os.getpid()), flush=True)
                muna.close()
                sys.exit(5)
            print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
            print(next(values), flush=True)
            stream.close()
            print(stream.outcome.rung, muna.predictions.create(os.getpid, runner="process").value == mine)
            muna.close()
            """,
        )
    )
    assert err == ""
    assert found == 0
    assert out.splitlines() == ["a partial", "EngineClosedError", "True", "5", "a partial", "asked True"]


# 108, 109, 110: signals.


@pytest.mark.fault(108)
@pytest.mark.parametrize("body", ["endless", "slow"])
def test_ctrl_c_at_a_terminal_is_the_programs_alone_and_the_predictor_cleans_up(body: str, tmp_path: Path) -> None:
    process = begin(
        tmp_path,
        f"""
        with muna, muna.predictions.stream({body}, {{"path": sys.argv[1]}}, runner="process") as stream:
            for _ in stream:
                pass
        """,
    )
    pid = opener_of(tmp_path)
    os.killpg(process.pid, signal.SIGINT)
    found, _, err = end(process)
    assert found == -signal.SIGINT
    assert err.count("Traceback (most recent call last)") == 1
    assert err.endswith("KeyboardInterrupt\n")
    assert (tmp_path / "worker.finally").exists()
    assert is_gone(pid)


@pytest.mark.fault(109)
@pytest.mark.parametrize("handler", ["", "signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))"])
def test_a_program_that_is_told_to_end_takes_its_workers_with_it(handler: str, tmp_path: Path) -> None:
    process = begin(
        tmp_path,
        f"""
        {handler}
        with muna, muna.predictions.stream(endless, {{"path": sys.argv[1]}}, runner="process") as stream:
            for _ in stream:
                pass
        """,
    )
    pid = opener_of(tmp_path)
    process.terminate()
    found, _, err = end(process)
    assert (found, err) == ((7 if handler else -signal.SIGTERM), "")
    until(lambda: is_gone(pid), "the worker is gone")
    assert (tmp_path / "worker.finally").exists() == bool(handler)


@pytest.mark.fault(110)
def test_a_predictor_may_set_signal_handlers_and_the_next_call_finds_those_there_were() -> None:
    def sets() -> Any:
        heard: list[int] = []
        before = signal.getsignal(signal.SIGUSR1), signal.getsignal(signal.SIGTERM)
        signal.signal(signal.SIGUSR1, lambda number, _frame: heard.append(number))
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        os.kill(os.getpid(), signal.SIGUSR1)
        return os.getpid(), heard, before[0] == signal.SIG_DFL, before[1] == signal.SIG_IGN

    with Engine(discover=False, workers=1) as muna:
        first, second = (muna.predictions.create(sets, runner="process").value for _ in range(2))
    assert first == second
    assert first[1:] == ([signal.SIGUSR1], True, False)


@pytest.mark.fault(110)
def test_no_timer_that_a_predictor_left_running_strikes_the_next_call(tmp_path: Path) -> None:
    dumps = tmp_path / "dumps"

    def leaves(which: int) -> int:
        if which == signal.ITIMER_REAL:
            signal.alarm(60)
        else:
            signal.setitimer(which, 60.0, 60.0)
        return os.getpid()

    def dumps_often() -> int:
        faulthandler.dump_traceback_later(0.01, repeat=True, file=dumps.open("w"))
        return os.getpid()

    def looks() -> Any:
        os.truncate(dumps, 0)
        time.sleep(0.05)
        timers = signal.ITIMER_REAL, signal.ITIMER_VIRTUAL, signal.ITIMER_PROF
        return os.getpid(), set(map(signal.getitimer, timers)), dumps.read_text()

    with Engine(discover=False, workers=1, runner="process") as muna:
        pids = {muna.predictions.create(leaves, {"which": which}).value for which in range(3)}
        pids.add(muna.predictions.create(dumps_often).value)
        pid, timers, dumped = muna.predictions.create(looks).value
    assert pids == {pid}
    assert timers == {(0.0, 0.0)}
    assert dumped == ""


@pytest.mark.fault(110)
def test_signals_that_a_predictor_holds_back_are_heard_again_by_the_next_call_and_do_not_strike_it() -> None:
    def blocks() -> Any:
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGUSR1})
        os.kill(os.getpid(), signal.SIGUSR1)
        _, writer = os.pipe()
        os.set_blocking(writer, False)
        return os.getpid(), before, signal.set_wakeup_fd(writer), signal.SIGUSR1 in signal.sigpending()

    def disables() -> bool:
        was_enabled = faulthandler.is_enabled()
        faulthandler.disable()
        return was_enabled

    with Engine(discover=False, workers=1, runner="process") as muna:
        first, second = (muna.predictions.create(blocks).value for _ in range(2))
        assert [muna.predictions.create(disables).value for _ in range(2)] == [True, True]
    assert first == second
    assert signal.SIGTERM not in first[1]
    assert first[2:] == (-1, True)


@pytest.mark.fault(110)
def test_a_program_that_blocks_sigterm_still_has_the_finally_of_a_stuck_body_run(tmp_path: Path) -> None:
    gate, done = FileGate(tmp_path / "gate"), FileGate(tmp_path / "done")

    def sleeps() -> Iterator[int]:
        try:
            yield 1
            gate.open()
            time.sleep(60)
        finally:
            done.open()

    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    try:
        with Engine(discover=False, workers=1, grace=0.1) as muna:
            with muna.predictions.stream(sleeps, runner="process", prefetch=1) as stream:
                next(stream)
                gate.wait()
            until(lambda: stream.outcome.rung is not None, "its worker has ended the call")
            assert stream.outcome.rung == "terminated"
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    assert done.is_open


SPOILERS: Final = {
    "closes": "sys.stdout.close(); sys.stderr.close(); sys.stdin.close()",
    "replaces": "sys.stdout = sys.stderr = sys.stdin = io.StringIO()",
    "deletes": "del sys.stdout, sys.stderr, sys.stdin",
    "takes the buffer": "sys.stdout = io.TextIOWrapper(sys.stdout.detach())",
    "shares the buffer": "sys.stdout = io.TextIOWrapper(sys.stdout.buffer)",
    "puts nothing there": "sys.stdout = sys.stderr = None",
    "closes the descriptors": "os.closerange(0, 3)",
    "closes one by name": "open(1, 'w').close()",
}


@pytest.mark.fault(88, 110)
def test_what_a_predictor_does_to_the_standard_streams_does_not_outlive_its_call() -> None:
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            textwrap.dedent(
                f"""
                import io, os, sys
                from engine import Engine

                def spoils(how):
                    exec("import io, os, sys; " + how)
                    return os.getpid()

                def prints(name):
                    print(name)
                    print(name, file=sys.stderr)
                    sys.__stdout__.flush()
                    assert sys.stdin.read() == ""
                    return os.getpid(), sys.stdout.encoding, sys.stderr.errors, sys.stderr.line_buffering

                with Engine(discover=False, workers=1, runner="process") as muna:
                    before = muna.predictions.create(prints, {{"name": "before"}}).value
                    for name, how in {SPOILERS!r}.items():
                        assert muna.predictions.create(spoils, {{"how": how}}).value == before[0]
                        after = muna.predictions.create(prints, {{"name": name}}).value
                        assert after == before, (name, before, after)
                """
            ),
        ],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.stderr.splitlines() == ["before", *SPOILERS]
    assert done.stdout.splitlines() == ["before", *SPOILERS]
    assert done.returncode == 0


@pytest.mark.fault(107)
def test_what_setup_sets_for_its_process_on_purpose_stays_as_it_does_inline(tmp_path: Path) -> None:
    class Model:
        def setup(self) -> None:
            os.chdir(tmp_path)
            os.environ["MODEL"] = "large"
            gc.disable()

        def predict(self) -> Any:
            return str(Path.cwd()), os.environ["MODEL"], gc.isenabled()

    with Engine(discover=False, workers=1, runner="process") as muna:
        for _ in range(2):
            assert muna.predictions.create(Model).value == (str(tmp_path), "large", False)


# 107: classes set up in workers.


each_model = pytest.mark.parametrize("model", [Model, AsyncModel], ids=["sync", "async"])


@pytest.mark.fault(107)
@each_model
def test_a_class_is_set_up_once_in_at_most_as_many_workers_as_its_concurrency(
    model: type[Model], tmp_path: Path
) -> None:
    for limit in (1, 2):
        journal = Journal(tmp_path / f"journal-{limit}")
        with Engine(discover=False, workers=3) as muna:
            muna.predictors.register("@me/model", partial(model, journal), concurrency=limit, runner="process")
            muna.load("@me/model")
            assert muna.loaded == ("@me/model",)
            with ThreadPoolExecutor(4) as threads:
                calls = [threads.submit(muna.predictions.create, "@me/model", {"wait": 0.02}) for _ in range(8)]
                calls += [threads.submit(muna.predictions.create, number_of_worker, runner="process") for _ in range(8)]
                pids = {call.result().value for call in calls[:8]}
            assert 1 <= len(pids) <= limit
            assert sorted(journal.words) == sorted(f"setup:{pid}" for pid in pids)
        assert sorted(journal.words) == sorted(f"{what}:{pid}" for pid in pids for what in ("setup", "teardown"))


@pytest.mark.fault(107)
@each_model
def test_a_class_is_torn_down_in_its_worker_by_unload_and_set_up_again_by_the_next_call(
    model: type[Model], tmp_path: Path
) -> None:
    journal = Journal(tmp_path / "journal")
    with Engine(discover=False, workers=1, grace=GRACE) as muna:
        muna.predictors.register("@me/model", partial(model, journal), runner="process")
        pid = muna.predictions.create("@me/model").value
        muna.unload("@me/model")
        assert journal.words == [f"setup:{pid}", f"teardown:{pid}"]
        assert muna.predictions.create("@me/model").value == pid
        with ThreadPoolExecutor(1) as threads:
            busy = threads.submit(muna.predictions.create, "@me/model", {"wait": 2 * GRACE})
            until(lambda: bool(leases_of(muna)), "the call has begun")
            with pytest.raises(EngineError, match=r"@me/model is in use by the open prediction"):
                muna.unload("@me/model")
            busy.result()


@pytest.mark.fault(107)
@each_model
def test_load_and_unload_follow_the_default_runner_of_the_engine(model: type[Model], tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal")
    with Engine(discover=False, workers=1, runner="process") as muna:
        muna.predictors.register("@me/model", partial(model, journal))
        muna.load("@me/model")
        assert muna.loaded == ("@me/model",)
        worker = worker_of(muna)
        assert muna.predictions.create("@me/model").value == worker.pid
        muna.unload("@me/model")
        assert list(muna.loaded) == []
        assert journal.words == [f"setup:{worker.pid}", f"teardown:{worker.pid}"]


@pytest.mark.fault(107)
@each_model
def test_a_setup_that_fails_in_a_worker_is_reported_and_tried_again_there(model: type[Model], tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal")
    with Engine(discover=False, workers=1) as muna:
        muna.predictors.register("@me/model", partial(model, journal, "setup"), runner="process")
        with pytest.raises(LookupError, match="no model yet"):
            muna.load("@me/model")
        assert muna.predictions.create("@me/model").value > 0
        assert [word.partition(":")[0] for word in journal.words] == ["setup", "setup"]


@pytest.mark.fault(107)
@each_model
def test_what_a_teardown_raises_in_a_worker_comes_out_of_close(model: type[Model], tmp_path: Path) -> None:
    muna = Engine(discover=False, workers=1)
    muna.predictors.register("@me/model", partial(model, Journal(tmp_path / "journal"), "teardown"), runner="process")
    muna.predictions.create("@me/model")
    with pytest.raises(LookupError, match="it cannot be torn down"):
        muna.close()
    assert executions_of(muna) == ()


def test_loading_warms_a_worker_for_functions_and_from_asyncio_too() -> None:
    import asyncio

    async def main() -> None:
        async with Engine(discover=False, workers=1) as muna:
            muna.predictors.register("@me/number", number_of_worker)
            await muna.aload("@me/number", runner="process")
            assert muna.loaded == ("@me/number",)
            worker = worker_of(muna)
            assert (await muna.predictions.acreate("@me/number", runner="process")).value == worker.pid
            await muna.aunload("@me/number", runner="process")

    asyncio.run(main())


def test_a_setup_that_hangs_in_a_worker_ends_with_its_engine(tmp_path: Path) -> None:
    gate = FileGate(tmp_path / "reached")

    class Hangs:
        def setup(self) -> None:
            gate.open()
            time.sleep(60)

        def predict(self) -> None: ...

    muna = Engine(discover=False, workers=1, grace=0.2)
    caught: list[BaseException] = []

    def load() -> None:
        try:
            muna.load(Hangs, runner="process")
        except BaseException as error:
            caught.append(error)

    thread = threading.Thread(target=load)
    thread.start()
    until(lambda: gate.is_open, "the setup has begun")
    muna.close()
    thread.join(10)
    assert [type(error) for error in caught] == [EngineClosedError]
    with contextlib.suppress(ProcessLookupError):
        assert is_gone(gate.opener)


@pytest.mark.fault(107)
def test_what_a_worker_that_was_busy_tears_down_before_its_next_call_fails_neither_that_nor_another_teardown(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    journal = Journal(tmp_path / "journal")

    class Model:
        def __init__(self, name: str) -> None:
            self.name = name

        def predict(self) -> str:
            return self.name

        def teardown(self) -> None:
            journal.note(self.name)
            raise LookupError(self.name)

    tags = ["@me/one", "@me/two"]
    with Engine(
        [Predictor(tag, partial(Model, tag)) for tag in tags], discover=False, workers=1, grace=TIMEOUT
    ) as muna:
        shorten_grace_of_workers(muna, 0.01)  # for which an unload waits for the worker
        assert [muna.predictions.create(tag, runner="process").value for tag in tags] == tags
        stream = muna.predictions.stream(numbers_after_worker, runner="process")
        with ThreadPoolExecutor(1) as executor:  # another thread's stream may be waited for
            executor.submit(next, stream).result(TIMEOUT)
        for tag in tags:
            muna.unload(tag, runner="process")
        stream.close()
        assert muna.predictions.create(number_of_worker, runner="process").value > 0
        assert journal.words == tags
    assert [tag in text for tag, text in zip(tags, caplog.messages, strict=True)] == [True, True]
