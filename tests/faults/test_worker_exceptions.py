"""Faults of exceptions that come from workers: as themselves, with the remote traceback, or as what can be told."""

from __future__ import annotations

import asyncio
import logging
import os
import pathlib
import sys
import threading
import traceback
import weakref
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, Final, Self

import attrs
import pytest

from engine import Engine, PayloadError, Prediction, PredictorError, WorkerLostError
from tests.faults.conftest import Cell, Consumer, eventually
from tests.faults.worker_bodies import KINDS, PARTIALS, Journal, Trouble, number_of_worker, predictor_with


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
        story = "error after its stream was left: OSError: in clean-up"
        eventually(lambda: story in caplog.text, "the log tells of the clean-up")


# Bodies with a `finally`, at every place and for every consumer.


POINTS: Final = [
    pytest.param(Cell(kind, consumer, "process"), place, id=f"{kind}-{consumer}-{place}")
    for kind in KINDS
    for consumer in ("sync", "asyncio")
    for place in (PLACES if kind in {"gen", "agen"} else PLACES[:1])
]
each_point = pytest.mark.parametrize(("cell", "place"), POINTS)


def partials_before(cell: Cell, place: str) -> list[Any]:
    return list(PARTIALS[: PLACES.index(place)]) if cell.is_yielding else []


async def caught(consumer: Consumer, trouble: Trouble) -> tuple[BaseException, BaseException]:
    """Stream and create a predictor that gets into trouble; check how both end, and give what arrives."""
    before = partials_before(consumer.cell, trouble.place)
    predictor = predictor_with(consumer.cell.kind, trouble)
    reader = consumer.open(predictor)
    assert [await reader.pull() for _ in before] == before
    arrived: list[BaseException] = []
    for pull in (reader.pull, lambda: consumer.create(predictor)):
        try:
            await pull()
        except BaseException as error:
            arrived.append(error)
    assert await reader.has_ended("failed")
    assert trouble.journal.words == ["start", "finally"] * 2
    streamed, created = arrived
    assert reader.outcome.exception is streamed
    return streamed, created


def notes_of(error: BaseException) -> tuple[list[str], list[str]]:
    """The remote traceback and our own note."""
    notes = getattr(error, "__notes__", [])
    return [each for each in notes if each.startswith("in worker ")], [
        each for each in notes if each.startswith("predictor ")
    ]


@pytest.mark.fault(31)
@each_point
def test_what_goes_along_with_an_exception_comes_along(
    cell: Cell, place: str, lasting: Engine, tmp_path: pathlib.Path
) -> None:
    def strikes() -> None:
        try:
            raise KeyError("voice")
        except KeyError:
            error = LookupError("no such voice", 7)
            error.add_note("a note of the predictor's own")
            error.hint = "ask for another"  # type: ignore[attr-defined]
            raise error  # the line that struck  # noqa: B904 - its context is what this is about

    async def scenario(consumer: Consumer) -> None:
        for error in await caught(consumer, Trouble(Journal(tmp_path / "journal"), strikes, place)):
            assert (type(error), error.args) == (LookupError, ("no such voice", 7))
            assert vars(error)["hint"] == "ask for another"
            assert error.__cause__ is None
            assert repr(error.__context__) == "KeyError('voice')"
            assert error.__notes__[0] == "a note of the predictor's own"
            (remote,), (ours,) = notes_of(error)
            assert "the line that struck" in remote
            assert "During handling of the above exception" in remote
            assert f"after {len(partials_before(cell, place))} partials" in ours
            assert "".join(traceback.format_exception(error)).count("the line that struck") == 1

    pid = pid_of(lasting)
    cell.run_on(lasting, scenario)
    check_worker_lives(lasting, pid)


@pytest.mark.fault(39, 40, 62)
@pytest.mark.parametrize(
    "kind", [SystemExit, KeyboardInterrupt, GeneratorExit, asyncio.CancelledError, StopIteration, StopAsyncIteration]
)
@each_point
def test_what_would_end_more_than_the_call_arrives_as_the_cause_of_its_failure(
    cell: Cell, place: str, kind: type[BaseException], lasting: Engine, tmp_path: pathlib.Path
) -> None:
    def strikes() -> None:
        raise kind("of the body")

    async def scenario(consumer: Consumer) -> None:
        expected = RuntimeError if kind in {StopIteration, StopAsyncIteration} else PredictorError
        for error in await caught(consumer, Trouble(Journal(tmp_path / "journal"), strikes, place)):
            assert type(error) is expected
            assert (type(error.__cause__), str(error.__cause__)) == (kind, "of the body")
            assert kind.__name__ in str(error)
            assert 'raise kind("of the body")' in "".join(traceback.format_exception(error))
            assert len(notes_of(error)[1]) == 1
        returned = await consumer.create(
            predictor_with(cell.kind, Trouble(Journal(tmp_path / "unread"), strikes, place)), errors="return"
        )
        assert type(returned.exception) is expected
        assert returned.error is not None
        assert 'raise kind("of the body")' in returned.error
        assert returned.value == (partials_before(cell, place) or [None])[-1]

    pid = pid_of(lasting)
    cell.run_on(lasting, scenario)
    check_worker_lives(lasting, pid)


@pytest.mark.fault(45)
@each_point
def test_what_a_finally_raises_in_a_worker_at_the_end_of_a_body_is_its_failure(
    cell: Cell, place: str, lasting: Engine, tmp_path: pathlib.Path
) -> None:
    def strikes() -> None:
        raise ValueError("the body")

    def cleanup() -> None:
        raise OSError("its clean-up")

    async def scenario(consumer: Consumer) -> None:
        for error in await caught(consumer, Trouble(Journal(tmp_path / "journal"), strikes, place, cleanup)):
            assert repr(error) == "OSError('its clean-up')"
            assert repr(error.__context__) == "ValueError('the body')"

    pid = pid_of(lasting)
    cell.run_on(lasting, scenario)
    check_worker_lives(lasting, pid)


@pytest.mark.fault(45)
@pytest.mark.parametrize("kind", ["gen", "agen"])
@each_consumer
def test_what_a_finally_raises_in_a_worker_has_the_consumers_error_as_its_context(
    kind: str, consumer: str, lasting: Engine, tmp_path: pathlib.Path
) -> None:
    cell = Cell(kind, consumer, "process")
    journal = Journal(tmp_path / "journal")

    def cleanup() -> None:
        raise OSError("its clean-up")

    async def scenario(consumer: Consumer) -> None:
        mine = KeyError("the consumer's")
        reader = consumer.open(predictor_with(kind, Trouble(journal, cleanup=cleanup)), prefetch=0)

        async def fails() -> None:
            async with reader.opened():
                await reader.pull()
                raise mine

        with pytest.raises(OSError, match="its clean-up") as arrived:
            await fails()
        behind = arrived.value.__context__
        while behind is not mine and behind is not None:
            behind = behind.__context__
        assert behind is mine
        assert await reader.has_ended("closed")

    pid = pid_of(lasting)
    cell.run_on(lasting, scenario)
    assert journal.words == ["start", "finally"]
    check_worker_lives(lasting, pid)


# What cannot be shown, or must not be.


@pytest.mark.fault(34)
@pytest.mark.parametrize("raised", [LookupError, SystemExit, KeyboardInterrupt, OfItsOwn])
@pytest.mark.parametrize("where", ["__str__", "__repr__", "__reduce__", "__cause__", "__notes__"])
def test_whatever_an_exceptions_own_methods_raise_its_worker_tells_its_type(
    where: str, raised: type[BaseException], lasting: Engine
) -> None:
    def fails() -> None:
        def hostile(self: Any, *_: Any) -> Any:
            raise raised("hostile")

        is_method = where in {"__str__", "__repr__", "__reduce__"}
        raise type("Hostile", (Exception,), {where: hostile if is_method else property(hostile)})("args")

    pid = pid_of(lasting)
    seen, error = failure_of(lasting, fails, "sync")
    assert seen == []
    named = error.type_name if isinstance(error, PredictorError) else type(error).__name__
    assert named == "Hostile"
    check_worker_lives(lasting, pid)


@pytest.mark.fault(34)
@pytest.mark.parametrize("where", ["__getattribute__", "__class__", "__dict__", "__traceback__"])
@each_point
def test_an_exception_of_which_nothing_can_be_read_is_told_by_its_type_and_where_it_was_raised(
    cell: Cell, place: str, where: str, lasting: Engine, tmp_path: pathlib.Path
) -> None:
    raised = OfItsOwn if place == "middle" else LookupError

    def strikes() -> None:
        def hostile(self: Any, *_: Any) -> Any:
            raise raised("hostile")

        attribute: Any = hostile if where == "__getattribute__" else property(hostile)
        raise type("Hostile", (Exception,), {where: attribute})("the line that struck")

    async def scenario(consumer: Consumer) -> None:
        for error in await caught(consumer, Trouble(Journal(tmp_path / "journal"), strikes, place)):
            assert isinstance(error, PredictorError)
            assert error.type_name == "Hostile"
            assert f"{raised.__name__}: hostile" in str(error)
            assert "the line that struck" in notes_of(error)[0][0]

    pid = pid_of(lasting)
    cell.run_on(lasting, scenario)
    check_worker_lives(lasting, pid)


@pytest.mark.fault(31, 34)
def test_an_exception_keeps_its_type_whatever_it_was_raised_from(lasting: Engine) -> None:
    def fails() -> None:
        def hostile(self: Any, *_: Any) -> Any:
            raise LookupError("hostile")

        raise ValueError("itself") from type("Hostile", (Exception,), {"__getattribute__": hostile})()

    pid = pid_of(lasting)
    _, error = failure_of(lasting, fails, "sync")
    assert repr(error) == "ValueError('itself')"
    assert isinstance(error.__cause__, PredictorError)
    assert error.__cause__.type_name == "Hostile"
    check_worker_lives(lasting, pid)


@pytest.mark.fault(34)
def test_a_note_that_cannot_be_shown_costs_nothing_else(lasting: Engine) -> None:
    def fails() -> None:
        error = ValueError("a note is no text")
        error.__notes__ = [7, None]  # type: ignore[list-item]
        raise error

    _, error = failure_of(lasting, fails, "sync")
    assert (type(error), str(error)) == (ValueError, "a note is no text")


@pytest.mark.fault(35)
def test_of_huge_arguments_only_a_few_are_pictured(lasting: Engine, tmp_path: pathlib.Path) -> None:
    journal = Journal(tmp_path / "journal")

    class Shown:
        def __repr__(self) -> str:
            journal.note("shown")
            return "shown"

    def fails() -> None:
        raise ValueError([Shown()] * 1_000_000)

    _, error = failure_of(lasting, fails, "sync")
    assert type(error) is PredictorError
    assert "shown" in str(error)
    assert len(journal.words) < 100


# 38: a class that only the worker can have.


@pytest.mark.fault(38)
@pytest.mark.parametrize("is_found", [True, False], ids=["found-there", "found-nowhere"])
def test_a_class_that_only_the_worker_has_is_told_by_its_name_or_travels_whole(
    is_found: bool, lasting: Engine, tmp_path: pathlib.Path
) -> None:
    name, folder = f"only_there_{is_found}".lower(), str(tmp_path)
    (tmp_path / f"{name}.py").write_text("class Outer:\n    class Error(Exception): pass\n")

    def fails() -> None:
        import importlib

        sys.path.insert(0, folder)
        module = importlib.import_module(name)
        if not is_found:
            sys.path.remove(folder)
        raise module.Outer.Error("from there")

    pid = pid_of(lasting)
    _, error = failure_of(lasting, fails, "sync")
    assert name not in sys.modules
    if is_found:
        assert isinstance(error, PredictorError)
        assert error.type_name == "Outer.Error"
        assert "in fails" in error.traceback
    else:
        assert type(error).__qualname__ == "Outer.Error"
    assert "from there" in str(error)
    assert "in fails" in notes_of(error)[0][0]
    check_worker_lives(lasting, pid)


# 42, 43, 44.


@pytest.mark.fault(42)
def test_an_exception_that_a_worker_raises_again_and_again_is_told_at_the_same_length(lasting: Engine) -> None:
    class Fails:
        def __init__(self) -> None:
            self.error = KeyError("made once")

        def predict(self) -> None:
            raise self.error

    lengths = []
    for _ in range(4):
        _, error = failure_of(lasting, Fails, "sync")
        (remote,), (_ours,) = notes_of(error)
        lengths.append(len(remote))
        assert len(traceback.extract_tb(error.__traceback__)) < 30
    assert lengths[0] == lengths[-1]


@pytest.mark.fault(43)
@each_kind
def test_an_input_is_freed_in_its_worker_with_the_failure_that_held_it(kind: str, lasting: Engine) -> None:
    def fails(weighty: Any) -> None:
        import builtins
        import gc

        gc.disable()  # until somebody looks
        builtins.seen = weakref.ref(weighty)  # type: ignore[attr-defined]
        raise ValueError("it holds this frame")

    def yields(weighty: Any) -> Iterator[int]:
        yield 1
        fails(weighty)

    async def areturns(weighty: Any) -> None:
        fails(weighty)

    async def ayields(weighty: Any) -> AsyncIterator[int]:
        yield 1
        fails(weighty)

    def is_freed() -> bool:
        import builtins
        import gc

        gc.enable()
        return builtins.seen() is None  # type: ignore[attr-defined]

    predictors: dict[str, Callable[..., Any]] = {"def": fails, "gen": yields, "async": areturns, "agen": ayields}
    pid = pid_of(lasting)
    for _ in range(2):
        with pytest.raises(ValueError, match="it holds this frame"):
            lasting.predictions.create(predictors[kind], {"weighty": KeywordsOnly}, runner="process")
        with pytest.raises(ValueError, match="it holds this frame"):
            lasting.predictions.create(predictors[kind], {"weighty": Weighty()}, runner="process")
        assert lasting.predictions.create(is_freed, runner="process").value
    check_worker_lives(lasting, pid)


class Weighty:
    """An input one would not like to keep."""


@pytest.mark.fault(44)
@each_kind
@each_consumer
def test_a_limit_of_the_interpreter_that_a_body_meets_in_a_worker_is_an_ordinary_failure(
    consumer: str, kind: str, lasting: Engine
) -> None:
    def dive(depth: int = 0) -> Any:
        return dive(depth + 1)

    def take_all_memory() -> Any:
        return bytearray(sys.maxsize)

    pid = pid_of(lasting)
    place = "middle" if kind in {"gen", "agen"} else "before"
    for strike, expected in ((dive, RecursionError), (take_all_memory, MemoryError)):
        seen, error = failure_of(lasting, raising(kind, strike, place), consumer)
        assert seen == list(PLACES[: PLACES.index(place)])
        assert type(error) is expected
        (remote,), _ = notes_of(error)
        assert strike.__name__ in remote
        assert len(remote) < 100_000
    check_worker_lives(lasting, pid)


@pytest.mark.fault(41)
def test_a_group_keeps_its_notes_its_fatal_leaves_and_what_is_inside_a_leaf_that_cannot_travel(
    lasting: Engine,
) -> None:
    def fails() -> None:
        inner = ExceptionGroup("inner", [ValueError("locked", threading.Lock()), TypeError("b")])
        group = BaseExceptionGroup("outer", [inner, SystemExit(1), OfItsOwn("now")])
        group.add_note("of the group")
        raise group

    pid = pid_of(lasting)
    _, error = failure_of(lasting, fails, "sync")
    assert isinstance(error, BaseExceptionGroup)
    assert error.__notes__[0] == "of the group"
    ordinary, rest = error.split(Exception)
    assert ordinary is not None
    assert rest is not None
    (inner,) = ordinary.exceptions
    assert isinstance(inner, ExceptionGroup)
    assert [type(leaf) for leaf in inner.exceptions] == [PredictorError, TypeError]
    assert "locked" in str(inner.exceptions[0])
    assert [type(leaf) for leaf in rest.exceptions] == [SystemExit, OfItsOwn]
    check_worker_lives(lasting, pid)


@pytest.mark.fault(7)
def test_a_loss_says_what_happened_and_what_to_do(lasting: Engine) -> None:
    def ends() -> Iterator[int]:
        yield 1
        os._exit(9)

    seen, error = failure_of(lasting, ends, "sync")
    assert seen == [1]
    assert str(error).endswith("was lost (exit code 9) after 1 partial; call again, which starts a new worker.")


class Unready:
    def setup(self) -> None:
        raise LookupError("no model")

    def predict(self) -> None: ...


def exits() -> Iterator[int]:
    yield 1
    raise SystemExit(3)


def dies() -> None:
    os._exit(3)


def gives_what_cannot_travel() -> Iterator[object]:
    yield 1
    yield threading.Lock()


@pytest.mark.parametrize("consumer", ["create", "acreate"])
def test_errors_return_gives_back_what_a_predictor_raised_and_never_what_became_of_its_worker_or_its_payloads(
    consumer: str,
) -> None:
    def made(target: Any, inputs: dict[str, Any]) -> Prediction:
        if consumer == "create":
            return muna.predictions.create(target, inputs, runner="process", check=False, errors="return")
        asked = muna.predictions.acreate(target, inputs, runner="process", check=False, errors="return")
        return asyncio.run(asked)

    with Engine(discover=False, workers=1) as muna:
        for target, kind in ((Unready, LookupError), (exits, PredictorError), (input, EOFError)):
            assert type(made(target, {}).exception) is kind
        for other, inputs, error in (
            (dies, {}, WorkerLostError),
            (gives_what_cannot_travel, {}, PayloadError),
            (len, {"obj": threading.Lock()}, PayloadError),
        ):
            with pytest.raises(error):
                made(other, inputs)
