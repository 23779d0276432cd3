"""Faults of exceptions that come from workers: as themselves, with the remote traceback, or as what can be told."""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, Final

import attrs
import pytest

from engine import Engine, PredictorError
from tests.faults.workers import number_of_worker


class NeedsMore(Exception):
    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


@attrs.define(kw_only=True)
class KeywordsOnly(Exception):
    code: int


@attrs.frozen
class Frozen(Exception):
    code: int


class Slotted(Exception):
    __slots__ = ()

    def add_note(self, note: str) -> None:
        raise AttributeError("no notes")


class NoReduce(Exception):
    def __reduce__(self) -> Any:
        raise LookupError("it cannot be taken apart")


class NoText(Exception):
    def __str__(self) -> str:
        raise LookupError("it cannot be shown")

    __repr__ = __str__


class OfItsOwn(BaseException):
    """No Exception."""


def holding_a_lock() -> Exception:
    return ValueError("it holds a lock", threading.Lock())


def of_a_class_nobody_has() -> Exception:
    made: Exception = type("Unknown", (Exception,), {"__module__": "a_module_that_is_not_there"})("from nowhere")
    return made


ITSELF: Final[dict[str, Callable[[], BaseException]]] = {
    "an ordinary one": lambda: KeyError("missing"),
    "two arguments": lambda: OSError(2, "no such thing", "name"),
    "frozen": lambda: Frozen(3),
    "no notes": lambda: Slotted("refuses notes"),
    "no text": lambda: NoText(1),
    "of the author's own": lambda: OfItsOwn("not an Exception"),
    "a group": lambda: ExceptionGroup("several", [KeyError(1), ExceptionGroup("inner", [OSError("x")])]),
    "a limit": lambda: RecursionError("too deep"),
    "a timeout": lambda: TimeoutError("late"),
}
TOLD: Final[dict[str, tuple[Callable[[], BaseException], str, str]]] = {
    "needs more": (lambda: NeedsMore("text", 5), "NeedsMore", "text"),
    "keywords only": (lambda: KeywordsOnly(code=5), "KeywordsOnly", "5"),
    "no reduce": (lambda: NoReduce("text"), "NoReduce", "text"),
    "a lock": (holding_a_lock, "ValueError", "it holds a lock"),
    "huge": (lambda: ValueError("head" + "x" * 3_000_000 + "tail"), "ValueError", "head"),
    "huge and wide": (lambda: ValueError(list(range(10**6))), "ValueError", "[0, 1, 2"),
}
PLACES: Final = ("before", "middle", "after")


def raising(kind: str, make: Callable[[], BaseException], place: str) -> Callable[[], Any]:
    def returns() -> Any:
        raise make()

    def yields() -> Iterator[Any]:
        yield from PLACES[: PLACES.index(place)]
        raise make()

    async def areturns() -> Any:
        raise make()

    async def ayields() -> AsyncIterator[Any]:
        for each in PLACES[: PLACES.index(place)]:
            yield each
        raise make()

    return {"def": returns, "gen": yields, "async": areturns, "agen": ayields}[kind]


@pytest.fixture(scope="module")
def lasting() -> Iterator[Engine]:
    """An engine whose one worker outlives every test here."""
    with Engine(discover=False, workers=1) as muna:
        muna.predictions.create(number_of_worker, runner="process")
        yield muna


def failure_of(muna: Engine, predictor: Any, consumer: str) -> tuple[list[Any], BaseException]:
    """The partials, and then the one failure, after which there is nothing."""
    seen: list[Any] = []
    failures: list[BaseException] = []
    if consumer == "sync":
        try:
            seen.extend(muna.predictions.stream(predictor, runner="process").values())
        except BaseException as error:
            failures.append(error)
    else:

        async def read() -> None:
            try:
                async for each in muna.predictions.astream(predictor, runner="process").values():
                    seen.append(each)  # noqa: PERF401
            except BaseException as error:  # kept from `asyncio.run`, which would picture it
                failures.append(error)

        asyncio.run(read())
    [failure] = failures
    return seen, failure


def check_worker_lives(muna: Engine, pid: int) -> None:
    assert muna.predictions.create(number_of_worker, runner="process").value == pid


def pid_of(muna: Engine) -> int:
    pid: int = muna.predictions.create(number_of_worker, runner="process").value
    return pid


each_kind = pytest.mark.parametrize("kind", ["def", "gen", "async", "agen"])
each_consumer = pytest.mark.parametrize("consumer", ["sync", "asyncio"])


@pytest.mark.fault(31, 36, 41, 44)
@each_kind
@each_consumer
def test_an_exception_from_a_worker_is_itself_after_its_partials_with_the_remote_traceback(
    consumer: str, kind: str, lasting: Engine
) -> None:
    pid = pid_of(lasting)
    for name, make in ITSELF.items():
        for place in PLACES if kind in {"gen", "agen"} else PLACES[:1]:
            seen, error = failure_of(lasting, raising(kind, make, place), consumer)
            assert seen == list(PLACES[: PLACES.index(place)]), name
            assert type(error) is type(make()), name
            assert error.args == make().args or isinstance(error, BaseExceptionGroup), name
            notes = getattr(error, "__notes__", [])
            if not isinstance(error, Slotted | Frozen):
                remote, ours = notes
                assert remote.startswith(f"in worker {pid}:\n")
                assert "Traceback (most recent call last)" in remote
                assert "raise make()" in remote  # the source line
                assert ours.endswith(f"runner process, after {len(seen)} partials")
            if isinstance(error, BaseExceptionGroup):
                keys, others = error.split(KeyError)
                assert keys is not None
                assert others is not None
                assert repr(others.exceptions[0].exceptions) == "(OSError('x'),)"
    check_worker_lives(lasting, pid)


@pytest.mark.fault(32, 33, 34, 35, 37)
@each_kind
@each_consumer
def test_an_exception_that_cannot_be_rebuilt_arrives_as_its_type_text_and_traceback(
    consumer: str, kind: str, lasting: Engine
) -> None:
    pid = pid_of(lasting)
    place = "middle" if kind in {"gen", "agen"} else "before"
    for make, name, text in TOLD.values():
        seen, error = failure_of(lasting, raising(kind, make, place), consumer)
        assert seen == list(PLACES[: PLACES.index(place)])
        assert type(error) is PredictorError
        assert error.type_name == name
        assert text in str(error)
        assert len(str(error)) < 100_000
        assert "raise make()" in error.traceback
        assert len(error.traceback) < 100_000
    check_worker_lives(lasting, pid)


@pytest.mark.fault(38)
def test_a_class_that_nobody_has_arrives_by_value_or_by_name(lasting: Engine) -> None:
    _, error = failure_of(lasting, raising("def", of_a_class_nobody_has, "before"), "sync")
    assert type(error).__name__ == "Unknown" or (isinstance(error, PredictorError) and error.type_name == "Unknown")
    assert "from nowhere" in str(error)


@pytest.mark.fault(41)
def test_of_a_group_only_the_leaf_that_cannot_travel_is_told(lasting: Engine) -> None:
    def fails() -> Any:
        raise ExceptionGroup("several", [KeyError(1), ValueError(threading.Lock()), OSError("x")])

    _, error = failure_of(lasting, fails, "sync")
    assert isinstance(error, ExceptionGroup)
    assert [type(each) for each in error.exceptions] == [KeyError, PredictorError, OSError]
    assert isinstance(error.exceptions[1], PredictorError)
    assert error.exceptions[1].type_name == "ValueError"


@pytest.mark.fault(31, 62)
def test_causes_and_contexts_travel_with_what_they_led_to(lasting: Engine) -> None:
    def fails() -> Any:
        try:
            raise KeyError("first")
        except KeyError as error:
            raise OSError("second") from error

    _, error = failure_of(lasting, fails, "sync")
    assert (type(error), type(error.__cause__)) == (OSError, KeyError)
    [told] = [note for note in getattr(error, "__notes__", []) if note.startswith("in worker")]
    assert "KeyError: 'first'" in told
    assert "direct cause" in told


@pytest.mark.fault(39, 40)
@each_kind
@each_consumer
def test_nothing_a_body_raises_ends_its_worker(consumer: str, kind: str, lasting: Engine) -> None:
    pid = pid_of(lasting)
    for make in (
        lambda: SystemExit(3),
        KeyboardInterrupt,
        GeneratorExit,
        lambda: asyncio.CancelledError("nobody asked"),
    ):
        seen, error = failure_of(lasting, raising(kind, make, "before"), consumer)
        assert seen == []
        assert type(error) is PredictorError
        assert type(error.__cause__) is type(make())
    check_worker_lives(lasting, pid)


@pytest.mark.fault(31, 39)
@each_kind
def test_a_failure_in_a_worker_can_be_returned_with_what_was_reduced_before_it(kind: str, lasting: Engine) -> None:
    place = "after" if kind in {"gen", "agen"} else "before"
    for reduce, value in (("last", "middle"), ("collect", ["before", "middle"]), ("concat", "beforemiddle")):
        made = lasting.predictions.create(
            raising(kind, lambda: LookupError("no"), place), runner="process", reduce=reduce, errors="return"
        )
        assert type(made.exception) is LookupError
        assert made.error is not None
        assert "raise make()" in made.error
        assert made.value == (value if place == "after" else None)
    made = lasting.predictions.create(
        raising(kind, lambda: NeedsMore("a", 1), place), runner="process", errors="return"
    )
    assert isinstance(made.exception, PredictorError)


@pytest.mark.fault(42)
def test_one_exception_raised_by_many_calls_is_another_object_each_time(lasting: Engine) -> None:
    same = KeyError("always the same")

    def fails() -> Any:
        raise same

    errors = [failure_of(lasting, fails, "sync")[1] for _ in range(3)]
    assert len({id(error) for error in errors}) == 3
    assert len({len(getattr(error, "__notes__", [])) for error in errors}) == 1


@pytest.mark.fault(45)
@pytest.mark.parametrize("kind", ["gen", "agen"])
def test_what_a_finally_raises_in_a_worker_comes_out_of_close_or_goes_to_the_log(
    kind: str, lasting: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    def yields() -> Iterator[int]:
        try:
            yield from range(10**9)
        finally:
            raise OSError("in clean-up")

    async def ayields() -> AsyncIterator[int]:
        try:
            for each in range(10**9):
                yield each
        finally:
            raise OSError("in clean-up")

    predictor: Any = yields if kind == "gen" else ayields
    pid = pid_of(lasting)
    stream = lasting.predictions.stream(predictor, runner="process")
    next(stream)
    with pytest.raises(OSError, match="in clean-up") as caught:
        stream.close()
    assert any(note.startswith(f"in worker {pid}") for note in caught.value.__notes__)
    assert stream.outcome.state == "closed"
    with caplog.at_level(logging.WARNING, logger="engine"):
        stream = lasting.predictions.stream(predictor, runner="process")
        next(stream)
        stream.cancel()
        check_worker_lives(lasting, pid)  # once it is free, what its clean-up raised is in the log
    assert "error after its stream was left: OSError: in clean-up" in caplog.text


@pytest.mark.fault(7)
def test_a_loss_says_what_happened_and_what_to_do(lasting: Engine) -> None:
    def ends() -> Iterator[int]:
        yield 1
        os._exit(9)

    seen, error = failure_of(lasting, ends, "sync")
    assert seen == [1]
    assert str(error).endswith("was lost (exit code 9) after 1 partials; call again.")
