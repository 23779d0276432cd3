"""Thousands of calls to workers, of every sort and from every side, while workers are killed at random.

Nothing may be lost but calls whose worker was killed, and nothing may pile up. A short run is part of the suite; the
hypothesis profile `nightly` makes it ten times as long.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

import attrs
import numpy as np
import pytest
from hypothesis import settings

from engine import Engine, PredictionCancelledError, WorkerLostError
from tests._kit.internals import workers_of

CALLS: Final = 10_000 if settings().max_examples > 1_000 else 1_000
SEED: Final = 4711
EACH_KILL: Final = 125  # calls, on average
SIDES: Final = 4  # threads that call at the same time, one of them with an event loop


def double(x: int) -> int:
    return x * 2


def count(n: int) -> Iterator[int]:
    try:
        yield from range(n)
    finally:
        count.ended = True  # type: ignore[attr-defined]  # somewhere in the worker; that it runs is tested elsewhere


async def acount(n: int) -> Any:
    for each in range(n):
        if not each % 3:
            await asyncio.sleep(0)
        yield str(each)


def grow(array: Any) -> Any:
    yield array + 1
    yield array + 2


def fail(n: int) -> Iterator[int]:
    yield from range(n)
    raise LookupError(n)


class Adder:
    """Set up once in each worker it comes to."""

    def setup(self) -> None:
        self.base = 100

    def predict(self, x: int) -> int:
        return self.base + x


@attrs.define
class Tally:
    """What became of the calls."""

    outcomes: Counter[str] = attrs.field(factory=Counter)
    killed: set[int] = attrs.field(factory=set)
    wrong: list[str] = attrs.field(factory=list)
    lock: threading.Lock = attrs.field(factory=threading.Lock)

    def note(self, what: str) -> None:
        with self.lock:
            self.outcomes[what] += 1

    @property
    def calls(self) -> int:
        return sum(self.outcomes.values())


def create_double(muna: Engine, dice: random.Random) -> None:
    x = dice.randrange(10**6)
    assert muna.predictions.create(double, {"x": x}, runner="process").value == 2 * x


def create_of_a_class(muna: Engine, dice: random.Random) -> None:
    x = dice.randrange(10**6)
    assert muna.predictions.create("@soak/adder", {"x": x}).value == 100 + x


def read_whole(muna: Engine, dice: random.Random) -> None:
    n = dice.randrange(600)
    assert list(muna.predictions.stream(count, {"n": n}, runner="process").values()) == list(range(n))


def read_async_body(muna: Engine, dice: random.Random) -> None:
    n = dice.randrange(100)
    assert list(muna.predictions.stream(acount, {"n": n}, runner="process").values()) == list(map(str, range(n)))


def leave_early(muna: Engine, dice: random.Random) -> None:
    with muna.predictions.stream(count, {"n": 10**9}, runner="process") as stream:
        taken = [value for value, _ in zip(stream.values(), range(dice.randrange(1, 300)), strict=False)]
    assert taken == list(range(len(taken)))


def cancel_early(muna: Engine, dice: random.Random) -> None:
    stream = muna.predictions.stream(count, {"n": 10**9}, runner="process")
    assert next(stream).value == 0
    stream.cancel()
    with pytest.raises(PredictionCancelledError):
        for _ in stream.values():
            pass


def pass_arrays(muna: Engine, dice: random.Random) -> None:
    array = np.full(dice.choice((10, 10_000, 100_000)), float(dice.randrange(1000)))
    partials = list(muna.predictions.stream(grow, {"array": array}, runner="process").values())
    assert [float(each[-1]) for each in partials] == [float(array[0]) + 1, float(array[0]) + 2]


def fail_midway(muna: Engine, dice: random.Random) -> None:
    n = dice.randrange(20)
    stream = muna.predictions.stream(fail, {"n": n}, runner="process")
    seen: list[int] = []
    with pytest.raises(LookupError) as caught:
        seen.extend(stream.values())
    assert caught.value.args == (n,)
    assert stream.outcome.count == n


SORTS: Final[list[Callable[[Engine, random.Random], None]]] = [
    *(create_double, create_double, create_double, create_of_a_class, read_whole, read_async_body),
    *(leave_early, cancel_early, pass_arrays, fail_midway),
]


async def acall(muna: Engine, dice: random.Random) -> None:
    n = dice.randrange(200)
    sort = dice.randrange(3)
    if sort == 0:
        assert (await muna.predictions.acreate(double, {"x": n}, runner="process")).value == 2 * n
    elif sort == 1:
        stream = muna.predictions.astream(acount, {"n": n}, runner="process")
        assert [value async for value in stream.values()] == list(map(str, range(n)))
    else:
        async with muna.predictions.astream(count, {"n": 10**9}, runner="process") as endless:
            async for value in endless.values():
                if value >= n:
                    break


def one_call(tally: Tally, call: Callable[[], None], name: str) -> None:
    try:
        call()
    except WorkerLostError as error:
        if error.pid not in tally.killed:
            tally.wrong.append(f"{name}: lost a worker that was not killed: {error}")
        tally.note("lost")
    except BaseException as error:
        tally.wrong.append(f"{name}: {type(error).__name__}: {error}")
        tally.note("wrong")
    else:
        tally.note("right")


def call_from_a_thread(muna: Engine, tally: Tally, calls: int, seed: int) -> None:
    dice = random.Random(seed)
    for _ in range(calls):
        sort = dice.choice(SORTS)
        one_call(tally, lambda sort=sort: sort(muna, dice), sort.__name__)  # type: ignore[misc]


def call_from_a_loop(muna: Engine, tally: Tally, calls: int, seed: int) -> None:
    dice = random.Random(seed)

    async def some(number: int) -> None:
        for _ in range(number):
            try:
                await acall(muna, dice)
            except WorkerLostError as error:
                if error.pid not in tally.killed:
                    tally.wrong.append(f"asyncio: lost a worker that was not killed: {error}")
                tally.note("lost")
            except BaseException as error:
                tally.wrong.append(f"asyncio: {type(error).__name__}: {error}")
                tally.note("wrong")
            else:
                tally.note("right")

    async def main() -> None:
        await asyncio.gather(*(some(calls // 3) for _ in range(3)))

    asyncio.run(main())


def kill_at_random(muna: Engine, tally: Tally, until: Callable[[], bool], seed: int) -> None:
    """Kill a worker every so many calls; which, and when exactly, is left to chance."""
    dice = random.Random(seed)
    due = EACH_KILL
    while not until():
        if tally.calls >= due:
            due += EACH_KILL
            workers = workers_of(muna)
            if workers:
                victim = dice.choice(workers)
                tally.killed.add(victim.pid)
                time.sleep(dice.random() * 0.003)
                victim.signal(signal.SIGKILL)
        time.sleep(0.002)


def run(muna: Engine, calls: int, seed: int) -> Tally:
    tally = Tally()
    is_over = threading.Event()
    killer = threading.Thread(target=kill_at_random, args=(muna, tally, is_over.is_set, seed), daemon=True)
    killer.start()
    with ThreadPoolExecutor(SIDES) as threads:
        sides = [threads.submit(call_from_a_thread, muna, tally, calls // SIDES, seed + n) for n in range(SIDES - 1)]
        sides.append(threads.submit(call_from_a_loop, muna, tally, calls // SIDES, seed + SIDES))
        for side in sides:
            side.result()
    is_over.set()
    killer.join()
    return tally


@attrs.frozen
class Holdings:
    """What could pile up in this process."""

    descriptors: int
    threads: int
    segments: int
    loaded: int  # bytes

    @classmethod
    def take(cls) -> Holdings:
        maps = Path("/proc/self/maps").read_text(encoding="utf-8")
        pages = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[1])
        return cls(
            len(list(Path("/proc/self/fd").iterdir())),
            threading.active_count(),
            maps.count("/memfd:engine"),
            pages * os.sysconf("SC_PAGE_SIZE"),
        )


@pytest.mark.fault(94)
@pytest.mark.timeout(900)
def test_nothing_is_lost_but_killed_calls_and_nothing_piles_up() -> None:
    with Engine(discover=False, workers=2, grace=0.5) as muna:
        muna.predictors.register("@soak/adder", Adder, runner="process")
        run(muna, 200, SEED)  # threads, segments and caches reach their size
        before = Holdings.take()
        tally = run(muna, CALLS, SEED + 100)
        after = Holdings.take()
    assert tally.wrong == []
    assert tally.killed, "no worker was killed"
    assert tally.outcomes["lost"] <= len(tally.killed)
    assert tally.outcomes["right"] >= 0.95 * CALLS
    assert after.descriptors <= before.descriptors + 16  # one worker more or less, with its pipes
    assert after.threads <= before.threads + 1
    assert after.segments <= before.segments + 2
    assert after.loaded <= before.loaded + (32 << 20)
