"""What the soak of everything runs: a room of its own, so that a worker imports this and nothing of the tests."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Generator, Iterator

LARGE: Final = 40_000  # bytes, enough to go through shared memory


class Lives:
    """How many bodies began and ended in this process; a worker has one of its own, which no test looks at."""

    def __init__(self) -> None:
        self.began: deque[None] = deque()
        self.ended: deque[None] = deque()

    def __reduce__(self) -> Any:
        return Lives, ()

    def __enter__(self) -> None:
        self.began.append(None)

    def __exit__(self, *_: object) -> None:
        self.ended.append(None)

    @property
    def going_on(self) -> int:
        return len(self.began) - len(self.ended)


LIVES: Final = Lives()


def partial_of(sort: str, index: int) -> Any:
    if sort == "number":
        return index
    return f"{index} " * 10 if sort == "text" else bytes((index % 256,)) * LARGE


def plain(sort: str, count: int, fails: bool) -> Any:
    with LIVES:
        if fails:
            raise LookupError(count)
        return partial_of(sort, count)


async def aplain(sort: str, count: int, fails: bool) -> Any:
    with LIVES:
        if count % 2:
            await asyncio.sleep(0)
        if fails:
            raise LookupError(count)
        return partial_of(sort, count)


def counting(sort: str, count: int, fails: bool) -> Generator[Any, None, Any]:
    with LIVES:
        for index in range(count):
            yield partial_of(sort, index)
        if fails:
            raise LookupError(count)
        return partial_of(sort, count)


async def acounting(sort: str, count: int, fails: bool) -> AsyncIterator[Any]:
    with LIVES:
        for index in range(count):
            if not index % 3:
                await asyncio.sleep(0)
            yield partial_of(sort, index)
        if fails:
            raise LookupError(count)


def gives_acounting(sort: str, count: int, fails: bool) -> AsyncIterator[Any]:
    return acounting(sort, count, fails)


async def agives_counting(sort: str, count: int, fails: bool) -> Iterator[Any]:
    return counting(sort, count, fails)


class Model:
    """Set up once in each place."""

    def setup(self) -> None:
        self.is_set_up = True

    def predict(self, sort: str, count: int, fails: bool) -> Iterator[Any]:
        assert self.is_set_up
        return counting(sort, count, fails)

    def teardown(self) -> None:
        self.is_set_up = False


class AsyncModel:
    """Lives on the engine's own loop."""

    async def setup(self) -> None:
        self.loop = asyncio.get_running_loop()

    async def predict(self, sort: str, count: int, fails: bool) -> AsyncIterator[Any]:
        assert asyncio.get_running_loop() is self.loop
        async for each in acounting(sort, count, fails):
            yield each


SYNC: Final[dict[str, Any]] = {"plain": plain, "counting": counting, "Model": Model}
ASYNC: Final[dict[str, Any]] = {"aplain": aplain, "acounting": acounting, "AsyncModel": AsyncModel}
MIXED: Final[dict[str, Any]] = {"gives_acounting": gives_acounting, "agives_counting": agives_counting}
