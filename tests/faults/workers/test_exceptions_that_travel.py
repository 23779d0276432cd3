"""Exceptions that come from workers: as themselves with the remote traceback, or as what can be told of them."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, Final, Self

import attrs
import pytest

from engine import Engine, PredictorError
from tests._kit.waits import until
from tests.faults.workers.failures import (
    PLACES,
    KeywordsOnly,
    OfItsOwn,
    check_worker_lives,
    each_consumer,
    each_kind,
    failure_of,
    pid_of,
    raising,
)


class NeedsMore(Exception):
    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


@attrs.frozen
class Frozen(Exception):
    code: int


class Slotted(Exception):
    __slots__ = ()

    def add_note(self, note: str) -> None:
        raise AttributeError("no notes")


class MadeOf(LookupError):
    """Whose text is made of what its constructor takes."""

    def __init__(self, name: str) -> None:
        super().__init__(f"no such voice: {name}")
        self.name = name


class NotFound(FileNotFoundError):
    """One that the interpreter keeps more of than arguments."""

    __slots__ = ("hint",)

    def __init__(self, *, name: str, hint: str) -> None:
        super().__init__(2, "no such voice", name)
        self.hint = hint


class Refused(ExceptionGroup[Exception]):
    """A group with a constructor of its own."""

    def __new__(cls, name: str, code: int) -> Self:
        made = super().__new__(cls, name, [NeedsMore(name, code), MadeOf(name)])
        made.code = code
        return made

    code: int


class NoReduce(Exception):
    def __reduce__(self) -> Any:
        raise LookupError("it cannot be taken apart")


class NoText(Exception):
    def __str__(self) -> str:
        raise LookupError("it cannot be shown")

    __repr__ = __str__


def holding_a_lock() -> Exception:
    return ValueError("it holds a lock", threading.Lock())


def of_a_class_no_module_has() -> Exception:
    made: Exception = type("Unknown", (Exception,), {"__module__": "a_module_that_is_not_there"})("from nowhere")
    return made


ITSELF: Final[dict[str, Callable[[], BaseException]]] = {
    "an ordinary one": lambda: KeyError("missing"),
    "two arguments": lambda: OSError(2, "no such thing", "name"),
    "frozen": lambda: Frozen(3),
    "needs more": lambda: NeedsMore("text", 5),
    "keywords only": lambda: KeywordsOnly(code=5),
    "no notes": lambda: Slotted("refuses notes"),
    "no text": lambda: NoText(1),
    "of the author's own": lambda: OfItsOwn("not an Exception"),
    "a group": lambda: ExceptionGroup("several", [KeyError(1), ExceptionGroup("inner", [OSError("x")])]),
    "a limit": lambda: RecursionError("too deep"),
    "a timeout": lambda: TimeoutError("late"),
}
TOLD: Final[dict[str, tuple[Callable[[], BaseException], str, str]]] = {
    "no reduce": (lambda: NoReduce("text"), "NoReduce", "text"),
    "a lock": (holding_a_lock, "ValueError", "it holds a lock"),
    "huge": (lambda: ValueError("head" + "x" * 3_000_000 + "tail"), "ValueError", "head"),
    "huge and wide": (lambda: ValueError(list(range(10**6))), "ValueError", "[0, 1, 2"),
}


@pytest.mark.fault(31, 32, 33, 36, 41, 44)
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


@pytest.mark.fault(34, 35, 37)
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


OTHER_CONSTRUCTORS: Final[dict[str, tuple[type[Exception], Callable[..., Exception]]]] = {
    "two arguments": (NeedsMore, lambda kind: kind("text", 5)),
    "keywords": (KeywordsOnly, lambda kind: kind(code=5)),
    "a text made of it": (MadeOf, lambda kind: kind("Ada")),
    "keywords and slots": (NotFound, lambda kind: kind(name="Ada", hint="ask for another")),
    "a group": (Refused, lambda kind: kind("Ada", 5)),
}


@pytest.mark.fault(32, 33)
@pytest.mark.parametrize("home", ["importable", "local"])
@pytest.mark.parametrize("name", OTHER_CONSTRUCTORS)
def test_an_exception_whose_constructor_takes_something_else_arrives_as_it_was(
    name: str, home: str, lasting: Engine
) -> None:
    kind, make = OTHER_CONSTRUCTORS[name]
    if home == "local":

        class Local(kind):  # type: ignore[misc, valid-type]
            pass

        kind = Local

    def fails() -> None:
        raise make(kind)

    def fails_in_a_group() -> None:
        raise ExceptionGroup("outer", [ExceptionGroup("inner", [make(kind), ValueError(threading.Lock())]), KeyError()])

    pid = pid_of(lasting)
    expected = make(kind)
    _, alone = failure_of(lasting, fails, "sync")
    _, group = failure_of(lasting, fails_in_a_group, "sync")
    assert isinstance(group, ExceptionGroup)
    inner = group.exceptions[0]
    assert isinstance(inner, ExceptionGroup)
    assert type(inner.exceptions[1]) is PredictorError
    for error in (alone, inner.exceptions[0]):
        assert type(error) is kind
        assert str(error) == str(expected)
        for attribute in ("code", "name", "hint", "errno", "filename"):
            assert getattr(error, attribute, None) == getattr(expected, attribute, None)
        if isinstance(error, ExceptionGroup):
            assert list(map(repr, error.exceptions)) == ["NeedsMore('Ada')", "MadeOf('no such voice: Ada')"]
    check_worker_lives(lasting, pid)


@pytest.mark.fault(38)
def test_a_class_that_no_module_has_arrives_by_value_or_by_name(lasting: Engine) -> None:
    _, error = failure_of(lasting, raising("def", of_a_class_no_module_has, "before"), "sync")
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
        lambda: asyncio.CancelledError("unasked"),
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
    made = lasting.predictions.create(raising(kind, holding_a_lock, place), runner="process", errors="return")
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
        check_worker_lives(lasting, pid)
        message = "error after its stream was left: OSError: in clean-up"
        until(lambda: message in caplog.text, "the log tells of the clean-up")
