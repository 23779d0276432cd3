"""Ctrl-C while a body runs, cleans up, or is just being started."""

from __future__ import annotations

import asyncio
import signal
import textwrap
import threading
from collections.abc import Callable
from typing import Any

import pytest

from engine import Engine, Predictor, current_call
from engine._predictors.body import Body
from engine.runners.ending import Ending
from tests._kit.internals import loop_of, slots_of, threads_of
from tests._kit.waits import TIMEOUT, until
from tests.faults.scripts import run_script, signalled
from tests.faults.waiting_predictors import Waiting, created

# 108: Ctrl-C.


# The bodies wait in short sleeps: a signal that comes right before a long one is only seen at its end.
WAITING = {
    "inline": """
        def body():
            yield 1
            try:
                print("ready", flush=True)
                while True:
                    time.sleep(0.01)
            finally:
                print("finally", flush=True)

        with Engine(discover=False, grace=0.5) as muna:
            for _ in muna.predictions.stream(body):
                pass
        """,
    "create": """
        def body():
            try:
                print("ready", flush=True)
                while True:
                    time.sleep(0.01)
            finally:
                print("finally", flush=True)

        with Engine(discover=False, grace=0.5) as muna:
            muna.predictions.create(body)
        """,
    "thread": """
        def body():
            yield 1
            try:
                print("ready", flush=True)
                while not current_call().stopping:
                    time.sleep(0.001)
            finally:
                print("finally", flush=True)

        with Engine(discover=False, grace=5) as muna:
            for _ in muna.predictions.stream(body, runner="thread"):
                pass
        """,
    "loop": """
        async def body():
            yield 1
            try:
                print("ready", flush=True)
                while True:
                    await asyncio.sleep(0.01)
            finally:
                print("finally", flush=True)

        with Engine(discover=False, grace=5) as muna:
            for _ in muna.predictions.stream(body):
                pass
        """,
    "asyncio": """
        async def body():
            yield 1
            try:
                print("ready", flush=True)
                while True:
                    await asyncio.sleep(0.01)
            finally:
                print("finally", flush=True)

        async def main():
            async with Engine(discover=False, grace=5) as muna:
                async for _ in muna.predictions.astream(body):
                    pass

        asyncio.run(main())
        """,
    "asyncio-thread": """
        def body():
            yield 1
            try:
                print("ready", flush=True)
                while not current_call().stopping:
                    time.sleep(0.001)
            finally:
                print("finally", flush=True)

        async def main():
            async with Engine(discover=False, grace=5) as muna:
                async for _ in muna.predictions.astream(body):
                    pass

        asyncio.run(main())
        """,
    "asyncio-loop": """
        async def body():
            yield 1
            try:
                print("ready", flush=True)
                while True:
                    await asyncio.sleep(0.01)
            finally:
                print("finally", flush=True)

        async def main():
            async with Engine(discover=False, grace=5) as muna:
                async for _ in muna.predictions.astream(body, runner="thread"):
                    pass

        asyncio.run(main())
        """,
}


@pytest.mark.fault(108)
@pytest.mark.parametrize("place", WAITING)
def test_ctrl_c_ends_a_script_with_exactly_one_traceback_and_the_predictors_finally(place: str) -> None:
    code, out, errors = signalled(WAITING[place], signal.SIGINT)
    assert code == -signal.SIGINT
    assert out == "finally\n"
    assert errors.splitlines().count("KeyboardInterrupt") == 1, errors
    # asyncio itself shows the cancellation that carried the interrupt as the context of the interrupt.
    assert errors.count("Traceback (most recent call last)") == (2 if place.startswith("asyncio") else 1), errors
    assert "predictor raised" not in errors


@pytest.mark.fault(108)
def test_ctrl_c_while_an_engine_is_closed_at_exit_says_so_in_one_line() -> None:
    done = run_script(
        """
        from engine import Engine

        class Interrupted:
            def predict(self):
                return 1

            def teardown(self):
                raise KeyboardInterrupt  # as Ctrl-C would while the interpreter ends

        muna = Engine(discover=False)
        muna.load(Interrupted)
        """
    )
    assert done.returncode == 0
    assert done.stderr == "the end of an engine was interrupted: what still ran was not waited for\n"


@pytest.mark.fault(108)
@pytest.mark.parametrize("runner", ["None", "'thread'"])
def test_after_a_ctrl_c_that_was_caught_the_engine_works_on(runner: str) -> None:
    code, out, errors = signalled(
        f"""
        def body():
            print("ready", flush=True)
            while not current_call().stopping:
                time.sleep(0.001)

        def fine():
            return "fine"

        with Engine(discover=False, grace=0.2) as muna:
            try:
                muna.predictions.create(body, runner={runner})
            except KeyboardInterrupt:
                print("caught")
            print(muna.predictions.create(fine, runner={runner}).value)
        """,
        signal.SIGINT,
    )
    assert (code, out) == (0, "caught\nfine\n")
    assert errors == ""


CLEANING_UP = {
    "generator": """
        def body():
            try:
                while True:
                    yield "going"
                    if not said:
                        say()
            finally:
                raise ValueError("clean-up")
        """,
    "coroutine": """
        async def body():
            try:
                say()
                while True:
                    await asyncio.sleep(0.01)
            finally:
                raise ValueError("clean-up")
        """,
    "async generator": """
        async def body():
            try:
                while True:
                    yield "going"
                    if not said:
                        say()
            finally:
                raise ValueError("clean-up")
        """,
}


@pytest.mark.parametrize("kind", CLEANING_UP)
def test_what_clean_up_raises_after_a_ctrl_c_arrives_with_the_interrupt_as_its_context(kind: str) -> None:
    source = textwrap.dedent(CLEANING_UP[kind])
    code, out, errors = signalled(
        f"""
said = []

def say():
    said.append(True)
    print("ready", flush=True)

{source}

with Engine(discover=False) as muna:
    try:
        muna.predictions.create(body, runner="thread")
    except ValueError as error:
        print(error, type(error.__context__).__name__, muna._open_calls.executions())
""",
        signal.SIGINT,
    )
    assert (code, out, errors) == (0, "clean-up KeyboardInterrupt ()\n", "")


# What a thread or loop was just given when Ctrl-C came: its place is free when it has ended, and no sooner.


class Started:
    """The start of the runner of a kind, which Ctrl-C interrupts before or after what it starts has begun."""

    def __init__(self, muna: Engine, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
        runner: Any = threads_of(muna) if kind == "body" else loop_of(muna)
        self._start = runner.start
        self._then: Callable[[Any], None] = lambda _body: None
        monkeypatch.setattr(type(runner), "start", lambda _runner, *given: self._interrupted(*given))

    def interrupt(self, then: Callable[[Any], None]) -> None:
        self._then = then

    def _interrupted(self, body: Any, channel: Any) -> None:
        self._start(body, channel)
        self._then(body)


def interrupt() -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("consumer", ["sync", "asyncio"])
@pytest.mark.parametrize("kind", ["body", "coloured"])
def test_a_body_that_had_begun_when_ctrl_c_interrupted_its_start_keeps_its_slot_until_it_ends(
    kind: str, consumer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    waiting = Waiting()
    with Engine(discover=False, grace=0.05) as muna:
        predictor = Predictor("@tests/waits", waiting.stubborn if kind == "coloured" else waiting.body, concurrency=1)
        slots = slots_of(muna, predictor)
        assert slots is not None
        started = Started(muna, kind, monkeypatch)

        def when_begun(_body: Any) -> None:
            assert waiting.reached.wait(TIMEOUT)
            interrupt()

        started.interrupt(when_begun)
        with pytest.raises(KeyboardInterrupt):
            created(muna, predictor, consumer)
        assert len(slots.leases) == 1
        waiting.go.set()
        until(lambda: slots.leases == (), "the end of the body")
        started.interrupt(lambda _body: None)
        assert created(muna, predictor, consumer) == "given"
        assert waiting.calls == ["body", "body"]


def test_ctrl_c_while_an_owners_thread_starts_arrives_alone_and_leaves_that_thread_to_its_engine(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    waiting, start = Waiting(), threading.Thread.start
    waiting.go.set()

    def start_and_interrupt(thread: threading.Thread) -> None:
        start(thread)
        if thread.name == "engine-owner":
            interrupt()

    with Engine(discover=False) as muna:
        monkeypatch.setattr(threading.Thread, "start", start_and_interrupt)
        with pytest.raises(KeyboardInterrupt) as caught:
            muna.predictions.create(waiting.body, runner="thread")
        monkeypatch.undo()
        assert caught.value.__context__ is None
        until(lambda: len(threads_of(muna).idle) == 1, "the owner's rest")
        (owner,) = threads_of(muna).owners
        assert created(muna, waiting.body, "sync") == "given"
        assert threads_of(muna).owners == {owner}


@pytest.mark.parametrize("consumer", ["sync", "asyncio"])
@pytest.mark.parametrize("kind", ["body", "coloured"])
def test_a_stream_whose_body_had_begun_when_ctrl_c_interrupted_its_start_is_closed_as_any_other(
    kind: str, consumer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    reached, heard = threading.Event(), []

    def body() -> str:
        call = current_call()
        reached.set()
        until(lambda: call is not None and call.stopping, "the request to stop")
        heard.append("to stop")
        return "given"

    async def coloured() -> str:
        reached.set()
        try:
            await asyncio.sleep(TIMEOUT)
        finally:
            heard.append("to stop")
        return "given"

    with Engine(discover=False) as muna:
        predictor = Predictor("@tests/waits", body if kind == "body" else coloured, concurrency=1)
        slots = slots_of(muna, predictor)
        assert slots is not None
        started = Started(muna, kind, monkeypatch)

        def when_begun(_body: Any) -> None:
            assert reached.wait(TIMEOUT)
            interrupt()

        async def read() -> None:
            async with muna.predictions.astream(predictor, runner="thread") as stream:
                await anext(stream)

        def read_here() -> None:
            with muna.predictions.stream(predictor, runner="thread") as stream:
                next(stream)

        started.interrupt(when_begun)
        with pytest.raises(KeyboardInterrupt):
            (read_here if consumer == "sync" else lambda: asyncio.run(read()))()
        until(lambda: slots.leases == (), "the end of the body")
        assert heard == ["to stop"]


@pytest.mark.parametrize("consumer", ["sync", "asyncio"])
@pytest.mark.parametrize("kind", ["body", "coloured"])
def test_a_body_that_had_not_begun_when_ctrl_c_interrupted_its_start_never_runs(
    kind: str, consumer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    waiting = Waiting()
    waiting.go.set()
    with Engine(discover=False, grace=0.05) as muna:
        predictor = Predictor("@tests/waits", getattr(waiting, kind), concurrency=1)
        slots = slots_of(muna, predictor)
        assert slots is not None
        started = Started(muna, kind, monkeypatch)
        begin, ended = threading.Event(), threading.Event()
        start, finish = Body.start, Ending.finish

        def start_late(body: Body) -> Any:
            begin.wait(TIMEOUT)
            return start(body)

        def finish_and_tell(ending: Ending, end: Any) -> None:
            finish(ending, end)
            ended.set()

        monkeypatch.setattr(Body, "start", start_late)
        monkeypatch.setattr(Ending, "finish", finish_and_tell)
        started.interrupt(lambda _body: interrupt())
        with pytest.raises(KeyboardInterrupt):
            created(muna, predictor, consumer)
        assert slots.leases == ()
        begin.set()
        assert ended.wait(TIMEOUT)
        started.interrupt(lambda _body: None)
        assert waiting.calls == []
        assert created(muna, predictor, consumer) == "given"
        assert (waiting.calls, slots.leases) == (["body"], ())
