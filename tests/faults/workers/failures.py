"""Exceptions that a predictor of any kind raises in a worker, at any point, and what either consumer catches."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, Final

import attrs
import pytest

from engine import Engine
from tests.faults.conftest import Cell, Consumer
from tests.faults.worker_bodies import KINDS, PARTIALS, Trouble, number_of_worker, predictor_with


@attrs.define(kw_only=True)
class KeywordsOnly(Exception):
    code: int


class OfItsOwn(BaseException):
    """No Exception."""


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
