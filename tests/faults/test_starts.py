"""Threads that cannot be started, wherever the engine starts one: the call fails, and nothing else is any different.

Each scenario is tried with its first start refused, then its second, and so on until all of them succeed, so that a
thread that is added to the engine one day is tried, too.
"""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from typing import Any, Final

import pytest

from engine import Engine, EngineClosedError
from tests._kit.waits import TIMEOUT, OtherThread
from tests.faults.worker_bodies import number_of_worker

REFUSAL: Final = "can't start new thread"


def gives() -> str:
    return "given"


def yields() -> Iterator[str]:
    yield "given"


async def agives() -> str:
    return "given"


async def ayields() -> AsyncIterator[str]:
    yield "given"


async def gives_a_generator() -> Iterator[str]:
    return yields()


class Plain:
    """A class that belongs to the thread that sets it up."""

    def setup(self) -> None:
        self.word = "given"

    def predict(self) -> str:
        return self.word


class Lasting:
    """A class that lives on the engine's loop."""

    async def setup(self) -> None:
        self.word = "given"

    async def predict(self) -> str:
        return self.word


def create(predictor: Any, runner: str | None = None) -> Callable[[Engine], Any]:
    return lambda muna: muna.predictions.create(predictor, runner=runner)


def stream(predictor: Any, runner: str | None = None) -> Callable[[Engine], Any]:
    return lambda muna: list(muna.predictions.stream(predictor, runner=runner))


def in_asyncio(scenario: Callable[[Engine], Coroutine[Any, Any, Any]]) -> Callable[[Engine], Any]:
    return lambda muna: asyncio.run(asyncio.wait_for(scenario(muna), TIMEOUT))


def acreate(predictor: Any, runner: str | None = None) -> Callable[[Engine], Any]:
    return in_asyncio(lambda muna: muna.predictions.acreate(predictor, runner=runner))


def astream(predictor: Any, runner: str | None = None) -> Callable[[Engine], Any]:
    async def scenario(muna: Engine) -> Any:
        return [value async for value in muna.predictions.astream(predictor, runner=runner)]

    return in_asyncio(scenario)


SCENARIOS: Final = {
    "create-in-a-thread": create(gives, "thread"),
    "stream-from-a-thread": stream(yields, "thread"),
    "create-on-the-loop": create(agives),
    "stream-from-the-loop": stream(ayields),
    "create-on-the-loop-and-in-a-thread": create(gives_a_generator),
    "create-of-a-class-in-a-thread": create(Plain, "thread"),
    "acreate-of-a-class-in-a-thread": acreate(Plain),
    "aload-in-a-thread": in_asyncio(lambda muna: muna.aload(Plain)),
    "create-of-a-class-on-the-loop": create(Lasting),
    "load-on-the-loop": lambda muna: muna.load(Lasting),
    "create-in-a-worker": create(number_of_worker, "process"),
    "acreate-in-a-thread": acreate(gives),
    "astream-from-a-thread": astream(yields),
    "acreate-on-the-loop": acreate(agives, "thread"),
    "astream-from-the-loop": astream(ayields, "thread"),
    "aload-on-the-loop": in_asyncio(lambda muna: muna.aload(Lasting)),
    "aload-in-a-worker": in_asyncio(lambda muna: muna.aload(number_of_worker, "process")),
}

each_scenario = pytest.mark.parametrize("name", SCENARIOS)


class Starts:
    """Starts of the engine's threads; of these one goes wrong.

    Args:
        monkeypatch: puts this in the place of `Thread.start`.
        number: which one it is, from 0.
        trouble: does what goes wrong.
    """

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, number: int, trouble: Callable[[threading.Thread], None]
    ) -> None:
        self.is_reached = False
        self._left = number
        self._trouble = trouble
        self._start = start = threading.Thread.start
        monkeypatch.setattr(threading.Thread, "start", lambda thread: self._begin(thread, start))

    def _begin(self, thread: threading.Thread, start: Callable[[threading.Thread], None]) -> None:
        self._left -= thread.name.startswith("engine-")
        if self._left >= 0 or self.is_reached or not thread.name.startswith("engine-"):
            start(thread)
        else:
            self.is_reached = True
            self._trouble(thread)


def refuse(_thread: threading.Thread) -> None:
    """As where a user may have no more processes, or the interpreter is going away."""
    raise RuntimeError(REFUSAL)


@each_scenario
def test_where_a_thread_cannot_be_started_the_call_fails_the_next_works_and_the_engine_closes(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    scenario = SCENARIOS[name]
    for number in itertools.count():
        with Engine(discover=False, workers=1) as muna:
            starts = Starts(monkeypatch, number, refuse)

            def fails(muna: Engine = muna, starts: Starts = starts) -> None:
                try:
                    scenario(muna)
                except RuntimeError as error:
                    assert str(error) == REFUSAL  # noqa: PT017 - the last round raises nothing
                else:
                    assert not starts.is_reached

            with OtherThread(fails):
                pass
            monkeypatch.undo()
            with OtherThread(lambda muna=muna: scenario(muna)):  # type: ignore[misc]
                pass
        if not starts.is_reached:
            assert number  # at least one was
            return


@pytest.mark.parametrize("has_begun", [False, True], ids=["before-it-runs", "once-it-runs"])
@pytest.mark.parametrize("name", ["create-in-a-thread", "create-on-the-loop", "create-in-a-worker"])
def test_where_ctrl_c_interrupts_the_start_of_a_thread_the_next_call_works_and_the_engine_closes(
    name: str, has_begun: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    scenario, start = SCENARIOS[name], threading.Thread.start
    for number in itertools.count():
        interrupted: list[threading.Thread] = []

        def interrupt(thread: threading.Thread, interrupted: list[threading.Thread] = interrupted) -> None:
            interrupted.append(thread)
            if has_begun:
                start(thread)
            raise KeyboardInterrupt

        with Engine(discover=False, workers=1) as muna:
            starts = Starts(monkeypatch, number, interrupt)
            try:
                scenario(muna)
            except KeyboardInterrupt:
                assert starts.is_reached
            else:
                assert not starts.is_reached
            monkeypatch.undo()
            if not has_begun:  # the system has it run a moment later
                for thread in interrupted:
                    start(thread)
            with OtherThread(lambda muna=muna: scenario(muna)):  # type: ignore[misc]
                pass
        if not starts.is_reached:
            assert number
            return


def test_an_engine_closes_from_asyncio_where_no_thread_is_to_be_had_for_that(monkeypatch: pytest.MonkeyPatch) -> None:
    finalised: list[str] = []

    def lasting() -> Iterator[int]:
        try:
            yield from itertools.count()
        finally:
            finalised.append("in a thread")

    async def scenario() -> None:
        muna = Engine(discover=False)
        stream = muna.predictions.astream(lasting)
        await anext(stream)
        await muna.predictions.acreate(agives, runner="thread")
        starts = Starts(monkeypatch, 0, refuse)
        await muna.aclose()
        assert starts.is_reached
        with pytest.raises(EngineClosedError):
            await anext(stream)
        with pytest.raises(EngineClosedError):
            await muna.predictions.acreate(gives)

    asyncio.run(scenario())
    assert finalised == ["in a thread"]
