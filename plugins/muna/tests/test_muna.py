"""The four predictors: called by hand, announced by the metadata, and run by the engine."""

import asyncio
from importlib.metadata import distribution

import engine_muna
import pytest

from engine import Engine

GREETING = "hello from Muna"
GROWING = ["hello", "hello from", "hello from Muna"]
PARTIALS = {
    "@muna/eager": [GREETING],
    "@muna/generator": GROWING,
    "@muna/async-eager": [GREETING],
    "@muna/async-generator": GROWING,
}


async def collected() -> list[str]:
    return [text async for text in engine_muna.async_generator()]


def test_eager_returns_the_greeting() -> None:
    assert engine_muna.eager() == GREETING


def test_generator_yields_the_text_so_far() -> None:
    assert list(engine_muna.generator()) == GROWING


def test_async_eager_returns_the_greeting() -> None:
    assert asyncio.run(engine_muna.async_eager()) == GREETING


def test_async_generator_yields_the_text_so_far() -> None:
    assert asyncio.run(collected()) == GROWING


def test_the_metadata_offers_each_function_under_its_tag() -> None:
    offered = distribution("predictor-engine-muna").entry_points.select(group="predictor_engine.predictors")

    assert {entry.name: entry.load() for entry in offered} == {
        "@muna/eager": engine_muna.eager,
        "@muna/generator": engine_muna.generator,
        "@muna/async-eager": engine_muna.async_eager,
        "@muna/async-generator": engine_muna.async_generator,
    }


def test_the_distribution_depends_on_nothing() -> None:
    assert not distribution("predictor-engine-muna").requires


@pytest.mark.parametrize("tag", PARTIALS)
def test_create_gives_the_last_partial(tag: str) -> None:
    with Engine() as muna:
        assert muna.predictions.create(tag).value == GREETING


@pytest.mark.parametrize(("tag", "partials"), PARTIALS.items())
def test_stream_gives_every_partial_in_order(tag: str, partials: list[str]) -> None:
    with Engine() as muna:
        assert list(muna.predictions.stream(tag).values()) == partials
