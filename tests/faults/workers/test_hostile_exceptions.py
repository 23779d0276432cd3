"""Exceptions from workers that cannot be shown or rebuilt, that are huge, raised again, or grouped."""

from __future__ import annotations

import pathlib
import sys
import threading
import traceback
from typing import Any

import pytest

from engine import Engine, PredictorError
from tests._kit.gates import Journal
from tests.faults.conftest import Cell, Consumer
from tests.faults.worker_bodies import Trouble
from tests.faults.workers.failures import OfItsOwn, caught, check_worker_lives, each_point, failure_of, notes_of, pid_of

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
