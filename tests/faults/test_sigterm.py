"""SIGTERM, and predictors that set signal handlers."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Iterator

import pytest

from engine import Engine
from tests.faults.scripts import LIVE, signalled

# 109: SIGTERM.


@pytest.mark.fault(109)
def test_without_a_handler_sigterm_ends_the_process_in_silence() -> None:
    code, out, errors = signalled(LIVE + "threading.Event().wait()", signal.SIGTERM)
    assert (code, out, errors) == (-signal.SIGTERM, "", "")


EXITS_ON_SIGTERM = """
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))

        def body():
            try:
                yield 1
                print("ready", flush=True)
                while not current_call().stopping:
                    time.sleep(0.001)
                yield 2
            finally:
                print("finally", flush=True)

        with Engine(discover=False, grace=5) as muna:
            with muna.predictions.stream(body, runner={runner}) as stream:
                for _ in stream:
                    pass
        """


@pytest.mark.fault(109)
def test_a_sigterm_handler_that_exits_runs_the_predictors_finally() -> None:
    code, out, errors = signalled(EXITS_ON_SIGTERM.format(runner="'thread'"), signal.SIGTERM)
    assert (code, out, errors) == (7, "finally\n", "")


@pytest.mark.fault(109)
def test_a_handler_that_exits_inside_an_inline_body_cannot_be_told_from_that_body_exiting() -> None:
    code, out, errors = signalled(EXITS_ON_SIGTERM.format(runner="None"), signal.SIGTERM)
    assert (code, out) == (1, "finally\n")
    assert "SystemExit: 7" in errors
    assert "PredictorError: the predictor raised SystemExit: 7" in errors


@pytest.mark.fault(109)
@pytest.mark.parametrize("runner", ["None", "'thread'"])
def test_a_sigterm_handler_may_cancel_the_stream_that_runs(runner: str) -> None:
    code, out, errors = signalled(
        f"""
        def body():
            try:
                yield 1
                print("ready", flush=True)
                while not current_call().stopping:
                    time.sleep(0.001)
                yield 2
            finally:
                print("finally", flush=True)

        with Engine(discover=False, grace=5) as muna:
            stream = muna.predictions.stream(body, runner={runner})
            signal.signal(signal.SIGTERM, lambda *_: stream.cancel())
            try:
                for _ in stream:
                    pass
            except Exception as error:
                kind = type(error).__name__
            muna.close()
            print(kind, stream.outcome.state)
        """,
        signal.SIGTERM,
    )
    assert (code, out, errors) == (0, "finally\nPredictionCancelledError cancelled\n", "")


# 110: predictors that set signal handlers.


def sets_a_handler() -> str:
    signal.signal(signal.SIGUSR1, lambda *_: None)
    return "set"


@pytest.fixture
def the_handler_as_it_was() -> Iterator[None]:
    before = signal.getsignal(signal.SIGUSR1)
    yield
    signal.signal(signal.SIGUSR1, before)


@pytest.mark.fault(110)
@pytest.mark.usefixtures("the_handler_as_it_was")
def test_inline_on_the_main_thread_a_predictor_may_set_a_signal_handler(muna: Engine) -> None:
    assert muna.predictions.create(sets_a_handler).value == "set"
    assert callable(signal.getsignal(signal.SIGUSR1))


@pytest.mark.fault(110)
@pytest.mark.usefixtures("the_handler_as_it_was")
def test_in_a_thread_python_refuses_the_handler_and_the_caller_is_told_so(muna: Engine) -> None:
    async def asets_a_handler() -> str:
        return sets_a_handler()

    async def main() -> None:
        with pytest.raises(ValueError, match="main thread"):
            await muna.predictions.acreate(sets_a_handler)
        assert (await muna.predictions.acreate(asets_a_handler)).value == "set"  # in the caller's own task

    for predictor in (sets_a_handler, asets_a_handler):
        with pytest.raises(ValueError, match="main thread"):
            muna.predictions.create(predictor, runner="thread")
    asyncio.run(main())
