"""A class is called in the worker where it is set up, and set up in no more of them than it allows."""

from __future__ import annotations

import threading

import pytest

from engine import PredictionCancelledError
from engine.runners.process.queue import Need
from tests._kit.internals import starts_of
from tests._kit.waits import TIMEOUT, begun
from tests.runners.process.pool_of_fakes import CLASS, OTHER_CLASS, Scene, body_of, call_of, each_way, taking

pytestmark = pytest.mark.usefixtures("looks_only_when_woken")


def test_a_class_goes_where_it_is_set_up_and_waits_for_that_worker_rather_than_be_set_up_in_another() -> None:
    scene = Scene.of(3)
    home = scene.take(CLASS)
    for _ in range(2):
        waiting = begun(lambda: scene.take(CLASS))
        scene.await_waiting(1)
        scene.release(home)
        assert waiting.join() is home
    scene.release(home)
    function = scene.take(Need(1))
    assert scene.take(CLASS) is home
    assert function is not home


def test_a_class_that_was_unloaded_may_be_set_up_anywhere_and_then_stays_there() -> None:
    scene = Scene.of(2)
    home = scene.take(CLASS)
    scene.release(home)
    home.set_up.discard(CLASS.key)  # as `unload` does
    assert scene.take(CLASS) is home
    scene.release(home)
    function = scene.take(Need(1))
    assert function is not home
    assert scene.take(CLASS) is home
    assert home.set_up == {CLASS.key}


def test_functions_leave_workers_with_a_class_alone_while_there_is_another_way() -> None:
    scene = Scene.of(2)
    home = scene.take(CLASS)
    scene.release(home)
    plain = scene.take(Need(1))
    assert plain is not home
    scene.release(home)
    scene.release(plain)
    assert scene.take(Need(2)) is plain
    assert scene.take(Need(2)) is home  # no other way


def test_calls_of_a_class_that_come_while_its_worker_starts_wait_for_that_one() -> None:
    scene = Scene.of(3)
    scene.fakes.gate = threading.Event()
    first = begun(lambda: scene.take(CLASS))
    scene.await_waiting(1)
    second = begun(lambda: scene.take(CLASS))
    scene.await_waiting(2)
    scene.fakes.gate.set()
    home = first.join()
    assert scene.waiting() == 1
    scene.release(home)
    assert second.join() is home
    assert len(scene.fakes.made) == 1


def test_a_class_whose_worker_ended_is_set_up_anew() -> None:
    scene = Scene.of(2)
    home = scene.take(CLASS)
    scene.evict(home)
    assert scene.take(CLASS) is not home


@each_way
def test_a_class_that_may_be_set_up_once_has_one_worker_started_and_where_its_first_call_goes_there_go_all(
    way: str,
) -> None:
    scene = Scene.of(3)
    home = scene.take()
    scene.fakes.gate = threading.Event()
    first, second = taking(scene, way, CLASS), taking(scene, way, CLASS)
    assert (scene.waiting(), len(starts_of(scene.pool))) == (2, 1)
    scene.release(home)
    assert first.join() is home
    scene.fakes.gate.set()
    scene.pool.join(TIMEOUT)
    started = scene.fakes.made[1]
    assert (started.lease, started.set_up, scene.waiting()) == (None, set(), 1)
    scene.release(home)
    assert second.join() is home
    assert scene.fakes.begun == 2


@each_way
def test_a_class_whose_first_call_leaves_while_its_worker_starts_is_set_up_there_by_the_next(way: str) -> None:
    scene, body = Scene.of(3), body_of(call_of())
    scene.fakes.gate = threading.Event()
    first, second = taking(scene, way, CLASS, body), taking(scene, way, CLASS)
    body.call.stopping = True
    assert body.recheck is not None
    body.recheck()
    with pytest.raises(PredictionCancelledError):
        first.join()
    scene.fakes.gate.set()
    home = second.join()
    assert (scene.fakes.made, home.set_up) == ([home], {CLASS.key})


@each_way
def test_workers_that_keep_classes_go_to_the_first_in_line_as_far_as_those_that_start_are_not_enough(way: str) -> None:
    scene = Scene.of(3)
    home, other_home = scene.take(CLASS), scene.take(OTHER_CLASS)
    scene.release(home)
    scene.release(other_home)
    scene.fakes.gate = threading.Event()
    first = taking(scene, way, Need(1))
    assert home.lease is None  # one is being started for it
    second = taking(scene, way, Need(1))
    assert first.join() is home
    assert not second.is_over
    assert other_home.lease is None
    scene.fakes.gate.set()
    assert second.join() is scene.fakes.made[2]
