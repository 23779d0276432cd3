"""A pool of workers that are no processes, and threads and tasks that take them.

A pool neither reads nor writes, so a fake with the few facts it looks at stands for a worker.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import threading
import time
from contextvars import copy_context
from typing import TYPE_CHECKING, Any, Final, cast

import attrs
import pytest

from engine._predictors.body import Body
from engine._records import Call
from engine.runners.process.pool import Pool
from engine.runners.process.queue import Need
from engine.runners.process.worker import Worker
from tests._kit.internals import waiters_of
from tests._kit.waits import TIMEOUT, OtherThread, begun, until

if TYPE_CHECKING:
    from collections.abc import Callable


@attrs.define(eq=False)
class Fake:
    """What a pool looks at, and what the worker itself would know."""

    name: str
    lease: Any = None
    idle_since: float = attrs.field(factory=time.monotonic)
    known: dict[int, str] = attrs.field(factory=dict)
    set_up: set[int] = attrs.field(factory=set)
    is_new: bool = True
    is_retired: bool = False
    inlet: object = None
    calls: int = 0
    has: set[int] = attrs.field(factory=set)  # classes that really are set up there


@attrs.define(eq=False)
class Fakes:
    """Starts fake workers; `trouble` is raised instead, once each.

    Attributes:
        gate: where there is one, starts wait until it is open.
        turns: where there is one, a start ends each time it is released.
        begun: starts that were begun.
        held: those of them that wait.
    """

    made: list[Fake] = attrs.field(factory=list)
    trouble: list[BaseException] = attrs.field(factory=list)
    gate: threading.Event | None = None
    turns: threading.Semaphore | None = None
    begun: int = 0
    held: int = 0

    def __call__(self) -> Worker:
        self.begun += 1
        self.held += 1
        if self.gate is not None:
            assert self.gate.wait(TIMEOUT)
        if self.turns is not None:
            assert self.turns.acquire(timeout=TIMEOUT)
        self.held -= 1
        if self.trouble:
            raise self.trouble.pop(0)
        self.made.append(Fake(f"worker {len(self.made)}"))
        return cast("Worker", self.made[-1])


@attrs.frozen(eq=False)
class Scene:
    """A pool of fakes."""

    pool: Pool
    fakes: Fakes

    @classmethod
    def of(cls, most: int) -> Scene:
        fakes = Fakes()
        return cls(Pool(most, fakes), fakes)

    def take(self, need: Need = Need(), call: Call | None = None) -> Fake:  # noqa: B008 - immutable
        """Take a worker, and use it as a runner would."""
        return used(self.pool.take(body_of(call or call_of()), need), need)

    async def atake(self, need: Need = Need(), call: Call | None = None) -> Fake:  # noqa: B008
        return used(await self.pool.atake(body_of(call or call_of()), need), need)

    def release(self, worker: Fake) -> None:
        self.pool.release(cast("Worker", worker))

    def evict(self, worker: Fake) -> None:
        self.pool.evict(cast("Worker", worker))

    def reap(self, worker: Fake) -> None:
        self.pool.reap(cast("Worker", worker))

    def replacing(self, worker: Fake, body: Body | None = None) -> list[Any]:
        """Have a worker replaced; give where the pool's thread puts what it says, a worker and an error."""
        told: list[Any] = []
        holder_body = body or body_of(worker.lease.call)
        self.pool.replace(cast("Worker", worker), holder_body, lambda *news: told.extend(news))
        return told

    def replace(self, worker: Fake) -> Fake:
        """Have a worker replaced, and wait for what the pool's thread says."""
        told = self.replacing(worker)
        until(lambda: len(told) == 2)
        if told[1] is not None:
            raise told[1]
        return cast("Fake", told[0])

    def retire(self, since: float) -> list[Fake]:
        return cast("list[Fake]", self.pool.retire(since))

    @property
    def workers(self) -> list[Fake]:
        return cast("list[Fake]", list(self.pool.workers))

    def waiting(self) -> int:
        return self.pool.waiting

    def await_waiting(self, count: int) -> None:
        until(lambda: self.waiting() == count)


def used(worker: Worker, need: Need) -> Fake:
    fake = cast("Fake", worker)
    if need.key:
        fake.known[need.key] = f"@me/{need.key}"
    if need.limit != math.inf:
        fake.has.add(need.key)
    return fake


def call_of(tag: str = "@me/it", parent: Call | None = None) -> Call:
    return Call(tag, "process", parent)


def body_of(call: Call) -> Body:
    return Body(call, None, (), {}, follows=False, context=copy_context())


each_way = pytest.mark.parametrize("way", ["sync", "asyncio"])


def taking(scene: Scene, way: str, need: Need = Need(), body: Body | None = None) -> OtherThread:  # noqa: B008 - immutable
    """A thread, or a task of a loop of its own, that takes a worker and keeps it; it waits by now, or has one."""
    its_body = body or body_of(call_of())

    def take() -> Fake:
        return used(scene.pool.take(its_body, need), need)

    async def atake() -> Fake:
        return used(await scene.pool.atake(its_body, need), need)

    consumer = begun(take if way == "sync" else lambda: asyncio.run(atake()))

    def waits() -> bool:
        return any(each.call is its_body.call and each.parked for each in waiters_of(scene.pool))

    until(lambda: waits() or consumer.is_over)
    return consumer


CLASS: Final = Need(7, 1)
OTHER_CLASS: Final = Need(8, 1)


def leave(task: asyncio.Task[Any]) -> None:
    """Drop a task whose loop was closed, which would be told as pending."""
    with contextlib.suppress(RuntimeError, asyncio.CancelledError):
        task.get_coro().throw(asyncio.CancelledError())
    task._log_destroy_pending = False  # type: ignore[attr-defined]


def interrupting_starts(monkeypatch: pytest.MonkeyPatch, action: Callable[[], None], *, when: str) -> None:
    """Do something before or after the thread of a start begins, in the thread that begins it."""

    def begin(thread: threading.Thread) -> None:
        if thread.name == "engine-starter" and when == "before":
            action()
        start(thread)
        if thread.name == "engine-starter" and when == "after":
            action()

    start = threading.Thread.start
    monkeypatch.setattr(threading.Thread, "start", begin)
