"""A Python without a GIL: the first call is refused, and where it is asked for, no generator is stepped by two threads.

No such interpreter is needed here: one that says it has no GIL shows which code runs, and the engine's own lock is
looked at, since with a GIL the interpreter's check would come second.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from typing import Any

import pytest

from engine import Engine, EngineError, Predictor
from engine._free_threading import VARIABLE, one_at_a_time
from tests._kit.gates import Gate
from tests._kit.waits import OtherThread


def count() -> Iterator[int]:
    yield from range(3)


async def acount() -> AsyncIterator[int]:
    for each in range(3):
        yield each


def one() -> int:
    return 1


class Model:
    def predict(self) -> Iterator[int]:
        yield from range(3)


@pytest.fixture
def without_gil(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    monkeypatch.setattr(sys, "_is_gil_enabled", lambda: False, raising=False)
    monkeypatch.delenv(VARIABLE, raising=False)
    return monkeypatch


async def read(stream: Any) -> list[Any]:
    return [value async for value in stream.values()]


FIRST_CALLS: list[Callable[[Engine, Any], Any]] = [
    lambda muna, tag: muna.predictions.create(tag),
    lambda muna, tag: muna.predictions.create(tag, runner="process"),
    lambda muna, tag: muna.predictions.stream(tag),
    lambda muna, tag: asyncio.run(muna.predictions.acreate(tag)),
    lambda muna, tag: asyncio.run(read(muna.predictions.astream(tag))),
    lambda muna, tag: muna.load(tag),
    lambda muna, tag: asyncio.run(muna.aload(tag)),
]


@pytest.mark.parametrize("target", [count, one, acount, Model], ids=["gen", "def", "agen", "class"])
def test_the_first_call_is_refused_in_one_sentence_that_says_what_to_do(target: Any, without_gil: Any) -> None:
    with Engine([Predictor("@tests/target", target)], discover=False) as muna:
        for call in FIRST_CALLS:
            for tag in ("@tests/target", target, Predictor("@tests/other", target)):
                with pytest.raises(EngineError, match=rf"^this Python .* PYTHON_GIL=1, .* {VARIABLE}=1$"):
                    call(muna, tag)
        assert list(muna.predictors) == ["@tests/target"]
        assert not muna.loaded


@pytest.mark.parametrize("word", ["0", "", "yes"])
def test_only_a_plain_1_asks_for_it(word: str, without_gil: pytest.MonkeyPatch) -> None:
    without_gil.setenv(VARIABLE, word)
    with Engine(discover=False) as muna, pytest.raises(EngineError, match="without its GIL"):
        muna.predictions.create(one)


def test_an_import_that_brings_the_gil_back_before_the_first_call_lets_it_through(
    without_gil: pytest.MonkeyPatch,
) -> None:
    with Engine(discover=False) as muna:
        without_gil.setattr(sys, "_is_gil_enabled", lambda: True)
        assert muna.predictions.create(one).value == 1


def test_where_there_is_a_gil_none_of_this_is_loaded() -> None:
    source = "import sys, engine; engine.Engine().predictions.create(len, {'obj': 'a'}, check=False)"
    script = f"{source}; print('engine._free_threading' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert (done.stdout, done.stderr) == ("False\n", "")


@pytest.fixture
def muna(without_gil: pytest.MonkeyPatch) -> Iterator[Engine]:
    without_gil.setenv(VARIABLE, "1")
    with Engine(discover=False) as muna:
        yield muna


@pytest.mark.parametrize("runner", [None, "thread"])
@pytest.mark.parametrize("target", [count, acount, Model], ids=["gen", "agen", "class"])
def test_where_it_is_asked_for_every_cell_gives_what_it_gives_with_a_gil(
    target: Any, runner: str | None, muna: Engine
) -> None:
    for _ in range(2):  # the first call of a tag takes other ways than those after it
        assert muna.predictions.create(target, runner=runner).value == 2
        assert muna.predictions.create(target, runner=runner, reduce="collect").value == [0, 1, 2]
        assert list(muna.predictions.stream(target, runner=runner).values()) == [0, 1, 2]
        assert [each.value for each in muna.predictions.stream(target, runner=runner)] == [0, 1, 2]
        assert list(muna.predictions.stream(target, runner=runner).snapshots()) == [0, 1, 2]
        assert asyncio.run(muna.predictions.acreate(target, runner=runner)).value == 2
        assert asyncio.run(read(muna.predictions.astream(target, runner=runner))) == [0, 1, 2]
    assert muna.predictions.create(one, runner=runner).value == 1


class Waiting:
    """A generator's body that says when it is inside, and waits there."""

    def __init__(self) -> None:
        self.inside, self.go = Gate(), Gate()

    def __call__(self) -> Iterator[str]:
        try:
            self.inside.open()
            self.go.wait()
            yield "first"
            yield "second"
        finally:
            self.closed = True


def test_two_threads_with_one_iterator_of_a_stream_in_lock_step_are_told_apart_by_the_engine(muna: Engine) -> None:
    body = Waiting()
    values = muna.predictions.stream(body).values()
    taken: list[str] = []
    with OtherThread(lambda: taken.append(next(values))):
        body.inside.wait()
        try:
            with pytest.raises(ValueError, match="is being read already"):
                next(values)
        finally:
            body.go.open()
    assert (taken, list(values)) == (["first"], ["second"])


def test_two_threads_with_one_iterator_of_a_stream_from_elsewhere_get_a_partial_each(muna: Engine) -> None:
    body = Waiting()
    values = muna.predictions.stream(body, runner="thread").values()
    taken: list[str] = []
    with OtherThread(lambda: taken.append(next(values))):
        body.inside.wait()
        with OtherThread(lambda: taken.append(next(values))):
            body.go.open()
    assert sorted(taken) == ["first", "second"]
    assert list(values) == []


@pytest.mark.parametrize("first", [None, "thread"])
@pytest.mark.parametrize("second", [None, "thread"])
def test_two_calls_that_were_given_one_generator_are_told_apart_by_the_engine(
    first: str | None, second: str | None, muna: Engine
) -> None:
    body = Waiting()
    shared = body()
    given: list[str] = []
    with OtherThread(lambda: given.append(muna.predictions.create(lambda: shared, runner=first).value)):
        body.inside.wait()
        try:
            for call in (muna.predictions.create, lambda *a, **o: next(muna.predictions.stream(*a, **o))):
                with pytest.raises(ValueError, match="give each call one of its own"):
                    call(lambda: shared, runner=second)
        finally:
            body.go.open()
    assert given == ["second"]
    assert body.closed


def test_what_guards_a_generator_passes_all_of_its_protocol_on() -> None:
    def talks() -> Generator[Any, Any, str]:
        try:
            heard = yield "ready"
            yield heard
        except LookupError:
            yield "caught"
        return "over"

    first, second = one_at_a_time(talks()), one_at_a_time(talks())
    assert (next(first), first.send("word")) == ("ready", "word")
    assert (next(second), second.throw(LookupError())) == ("ready", "caught")
    with pytest.raises(StopIteration, match="over"):
        next(second)
    assert first.gi_frame is not None
    first.close()
    assert first.gi_frame is None
    assert one_at_a_time([1]) == [1]
