"""What a predictor was made of when it was sent, and which changes of it are noticed; no worker is started here."""

from __future__ import annotations

import functools
import gc
import sys
import textwrap
import weakref
from typing import TYPE_CHECKING, Any, Final

import pytest

from engine._wire.target_snapshots import MOST_NAMES, Snapshot, is_function

if TYPE_CHECKING:
    import types
    from collections.abc import Callable

SOURCE: Final = """
    import functools

    NUMBER, TEXT, ZERO, ITEMS, LEFT_OUT = 1000, "a text", 0.0, [1], 5
    MARK = type("Mark", (), {})()

    def deepest():
        return TEXT

    def helper(scale=2, *, offset=3):
        return deepest()

    def by_hand():
        return ITEMS

    @functools.lru_cache
    def cached():
        return ZERO

    HANDLERS = {"by hand": [by_hand]}

    class Point:
        def moved(self):
            return MARK

        @staticmethod
        def fixed():
            return SINCE  # there is none yet

        @property
        def shown(self):
            class Inner:
                text = NAMED_IN_A_CLASS
            return Inner

    NAMED_IN_A_CLASS = [2]
    POINT = Point()

    def around():
        count, held = 1000, [1]
        def predict(x=1):
            return helper(), len(HANDLERS), cached(), POINT, count, held, NUMBER
        def count_to(number):
            nonlocal count
            count = number
        def hold(value):
            nonlocal held
            held = value
        return predict, count_to, hold

    predict, count_to, hold = around()
"""


@pytest.fixture
def scope() -> dict[str, Any]:
    """Give the variables of a module as `exec` makes one: no process can import it."""
    made: dict[str, Any] = {"__name__": "made_for_snapshots"}
    exec(textwrap.dedent(SOURCE), made)
    return made


CHANGES: Final = {
    "a number": ("NUMBER = 1001", "NUMBER"),
    "a number of another type": ("NUMBER = 1000.0", "NUMBER"),
    "the sign of zero": ("ZERO = -0.0", "ZERO"),
    "a text that a helper's helper uses": ("TEXT = 'another'", "TEXT"),
    "a list made anew": ("ITEMS = [1]", "ITEMS"),
    "an object made anew": ("MARK = type(MARK)()", "MARK"),
    "a helper defined again": ("def helper(): pass", "helper"),
    "a helper's code": ("def other(): pass\nhelper.__code__ = other.__code__", "helper"),
    "a helper's defaults": ("helper.__defaults__ = (3,)", "helper"),
    "a helper's named defaults": ("helper.__kwdefaults__ = {'offset': 4}", "helper"),
    "its own defaults": ("predict.__defaults__ = (2,)", "around.<locals>.predict"),
    "a class defined again": ("class Point: pass\nPOINT = Point()", "POINT"),
    "what a class body in a method names": ("NAMED_IN_A_CLASS = [2]", "NAMED_IN_A_CLASS"),
    "a free variable": ("count_to(1001)", "count"),
    "what a free variable holds": ("hold([1])", "held"),
    "a name that is gone": ("del ITEMS", "ITEMS"),
    "a name that is new": ("SINCE = 1", "SINCE"),
    "a built-in name that the module has of its own": ("def len(x): pass", "len"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_what_is_assigned_anew_is_noticed_by_its_name(scope: dict[str, Any], name: str) -> None:
    change, expected = CHANGES[name]
    snapshot = Snapshot(scope["predict"])
    assert snapshot.change() is None
    exec(change, scope)
    assert snapshot.change() == expected
    assert Snapshot(scope["predict"]).change() is None


@pytest.mark.parametrize(
    "change",
    [
        "NUMBER = int('1000'); TEXT = str(b'a text', 'ascii')",
        "count_to(int('1000'))",
        "ITEMS.append(2); MARK.mark = 1; HANDLERS['more'] = 1",
        "LEFT_OUT = 6; something_new = 1",
    ],
    ids=["an equal number or text", "an equal free one", "an object in place", "what it does not use"],
)
def test_what_means_the_same_is_no_change(scope: dict[str, Any], change: str) -> None:
    snapshot = Snapshot(scope["predict"])
    for _ in range(2):
        exec(change, scope)
        assert snapshot.change() is None


def test_another_object_at_the_address_of_the_one_before_is_noticed(scope: dict[str, Any]) -> None:
    for name in ("ITEMS", "MARK"):
        for _ in range(20):  # the allocator is likely to give the same memory again, and not bound to
            snapshot = Snapshot(scope["predict"])
            make = type(scope[name])
            del scope[name]
            scope[name] = make()
            assert snapshot.change() is not None


@pytest.mark.parametrize(
    ("make", "is_a_function"),
    [
        (lambda scope: functools.partial(scope["predict"], 1), True),
        (lambda scope: scope["Point"]().moved, True),
        (lambda scope: scope["cached"], True),
        (lambda scope: scope["Point"], False),
        (lambda scope: functools.partial(scope["Point"]), False),
        (lambda scope: scope["POINT"], False),
    ],
    ids=["a partial", "a method", "a cached function", "a class", "a partial of a class", "an object"],
)
def test_every_kind_of_predictor_is_searched(
    scope: dict[str, Any], make: Callable[[dict[str, Any]], Any], is_a_function: bool
) -> None:
    target = make(scope)
    snapshot = Snapshot(target)
    assert snapshot.change() is None
    scope.update(MARK=object(), ZERO=1.0)
    assert snapshot.change() in {"MARK", "ZERO"}
    assert is_function(target) == is_a_function


def test_no_more_names_than_stated_are_compared_those_used_first_before_all() -> None:
    scope: dict[str, Any] = {f"N{number}": [] for number in range(2 * MOST_NAMES)}
    exec(f"def predict(): return {', '.join(scope)}", scope)
    snapshot = Snapshot(scope["predict"])
    for number in reversed(range(2 * MOST_NAMES)):
        scope[f"N{number}"] = []
        assert (snapshot.change() is None) == (number >= MOST_NAMES)


def test_a_predictor_that_is_found_by_its_name_has_changed_once_that_is_bound_to_another(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    target = textwrap.dedent
    snapshot = Snapshot(target)
    assert snapshot.change() is None
    monkeypatch.setattr(textwrap, "made_up", None, raising=False)  # what else its module has is its own affair
    assert snapshot.change() is None
    monkeypatch.setattr(textwrap, "dedent", lambda text: text)
    assert snapshot.change() == "dedent"
    monkeypatch.undo()
    assert snapshot.change() is None
    assert Snapshot(target, {"textwrap"}).change() is None
    monkeypatch.delitem(sys.modules, "textwrap")
    assert snapshot.change() == "dedent"


def test_a_module_taken_by_value_is_compared_though_it_could_be_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    snapshot = Snapshot(textwrap.shorten, {"textwrap"})
    monkeypatch.setattr(textwrap, "TextWrapper", None)
    assert snapshot.change() == "TextWrapper"


def test_no_function_lives_longer_for_its_snapshot_than_it_would(scope: dict[str, Any]) -> None:
    snapshot = Snapshot(scope["predict"])
    gone = [weakref.ref(each) for each in (scope["predict"], scope["helper"], scope["Point"], scope["MARK"])]
    del scope["HANDLERS"]  # a dict is kept, and through it what it holds
    scope.clear()
    gc.collect()
    assert [each() for each in gone] == [None] * 4
    assert snapshot.change() is not None


class Odd:
    """Answers nothing that it is asked."""

    __module__ = property(lambda self: 1 / 0)

    def __eq__(self, other: object) -> bool:
        raise ZeroDivisionError

    def __getattribute__(self, name: str) -> Any:
        raise ZeroDivisionError(name)

    __hash__ = None  # type: ignore[assignment]


def test_objects_that_answer_nothing_are_compared_by_identity_alone(scope: dict[str, Any]) -> None:
    scope["MARK"], scope["TEXT"] = Odd(), [Odd(), {"odd": Odd()}, types_of_odd()]
    snapshot = Snapshot(scope["predict"])
    assert snapshot.change() is None
    scope["MARK"] = Odd()
    assert snapshot.change() == "MARK"


def types_of_odd() -> types.SimpleNamespace:
    from types import SimpleNamespace

    return SimpleNamespace(odd=Odd())
