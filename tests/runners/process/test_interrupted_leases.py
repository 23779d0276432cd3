"""Ctrl-C at any line of taking a worker, waiting for its start, or giving it back leaves the pool whole."""

from __future__ import annotations

import contextlib
import linecache
import math
import sys
import threading
from typing import TYPE_CHECKING, Any, Final

import pytest

from engine.runners.process.pool import Pool
from engine.runners.process.queue import Need
from tests._kit.waits import TIMEOUT, begun, until
from tests.runners.process.pool_of_fakes import Scene, call_of, interrupting_starts, taking

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.usefixtures("looks_only_when_woken")


def test_a_call_that_was_interrupted_while_it_took_a_worker_has_none_afterwards() -> None:
    scene, call = Scene.of(2), call_of()
    worker = scene.take(Need(1), call)
    other = scene.take(Need(1))
    waiting = begun(scene.take)
    scene.await_waiting(1)
    scene.pool.give_up(call)
    assert waiting.join() is worker
    scene.pool.give_up(call)
    assert worker.lease is not None  # by the call that waited
    other.inlet = object()
    scene.pool.give_up(other.lease.call)
    assert other.lease is not None  # its call is about to be sent


def test_a_call_that_was_interrupted_while_its_worker_started_leaves_its_place() -> None:
    scene, call = Scene.of(1), call_of()
    scene.fakes.trouble.append(KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        scene.take(call=call)
    scene.pool.give_up(call)
    assert scene.take().name == "worker 0"


@contextlib.contextmanager
def interrupted_at(codes: set[Any], step: int) -> Iterator[list[int]]:
    """Have Ctrl-C come just before the line that these functions run as their `step`-th; give the lines they got to."""
    lines: list[int] = []

    def trace(frame: Any, what: str, _argument: object) -> Any:
        if frame.f_code not in codes:
            return None
        text = linecache.getline(frame.f_code.co_filename, frame.f_lineno)
        if what == "line" and not text.lstrip().startswith("with "):  # as a lock is released, no signal is heard
            lines.append(frame.f_lineno)
            if len(lines) == step:
                raise KeyboardInterrupt
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        yield lines
    finally:
        sys.settrace(before)


def codes_of(*names: str) -> set[Any]:
    return {getattr(Pool, name).__code__ for name in names}


GRANTING: Final = ("_serve", "_grant_free", "_needs_start", "_expecting", "_eligible", "_begin_start")
TAKING: Final = (
    "take",
    "_is_granted_at_once",
    "_begin_wait",
    "_enqueue",
    "_blocker",
    "_acceptable",
    "_refuse_late",
    "_claim",
)


@pytest.mark.parametrize("need", [Need(), Need(key=7, limit=1)], ids=["function", "class"])
@pytest.mark.parametrize("way", ["take", "replace"])
def test_wherever_ctrl_c_interrupts_the_caller_that_has_a_worker_started_it_is_the_pools_and_free(
    way: str, need: Need
) -> None:
    interrupted = 0
    codes = codes_of(*TAKING, *GRANTING, "wait") if way == "take" else codes_of("replace")
    while True:
        scene, call = Scene.of(1), call_of()
        gone = scene.take(need, call) if way == "replace" else None
        try:
            with interrupted_at(codes, interrupted + 1):
                scene.replace(gone) if gone is not None else scene.take(need, call)
            break
        except KeyboardInterrupt:
            interrupted += 1
        scene.pool.give_up(call)
        until(lambda scene=scene: not scene.pool.is_starting)  # type: ignore[misc]
        assert scene.pool.leases == ()
        assert scene.waiting() == 0
        assert all(each in scene.fakes.made for each in scene.workers)
        assert not any(each.is_new or (each.set_up and each is not gone) for each in scene.workers)
        assert scene.take(Need(key=8, limit=1)) in scene.workers
        assert len(scene.workers) == 1
    assert interrupted > (3 if way == "take" else 2)


@pytest.mark.parametrize("way", ["release", "evict"])
def test_wherever_ctrl_c_interrupts_the_caller_that_releases_a_worker_those_that_wait_are_served(way: str) -> None:
    interrupted = 0
    while True:
        scene = Scene.of(1)
        worker = scene.take()
        first, second = (taking(scene, "sync") for _ in range(2))
        lease = worker.lease
        try:
            with interrupted_at(codes_of(way, "_release", "_remove", *GRANTING), interrupted + 1):
                getattr(scene, way)(worker)
            is_over = True
        except KeyboardInterrupt:
            interrupted += 1
            is_over = False
            if worker.lease is lease:  # as a wire does that was interrupted there
                getattr(scene, way)(worker)
            scene.retire(-math.inf)  # as the supervisor does, now and then
        got = first.join()
        assert (got is worker) is (way == "release")
        scene.release(got)
        assert second.join() is got
        assert scene.workers == [got]
        if is_over:
            break
    assert interrupted > 3


def test_a_start_that_ctrl_c_comes_too_late_for_goes_on_and_its_worker_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt() -> None:
        until(lambda: scene.fakes.held == 1)
        raise KeyboardInterrupt

    scene = Scene.of(1)
    scene.fakes.gate = threading.Event()
    interrupting_starts(monkeypatch, interrupt, when="after")
    with pytest.raises(KeyboardInterrupt):
        scene.take()
    assert (scene.waiting(), scene.pool.is_starting) == (0, True)
    scene.fakes.gate.set()
    scene.pool.join(TIMEOUT)
    assert scene.take() is scene.fakes.made[0]
