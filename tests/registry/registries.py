"""A registry that looks for nothing installed, and what is registered in it."""

from collections.abc import Iterator
from typing import Any

from engine._predictors.predictor import Predictor, predictor
from engine._registry.registry import Registry
from engine.hookspecs import hookimpl


@predictor("@me/shout", description="Shouts.", concurrency=2)
def shout(text: str) -> str:
    return text.upper()


@predictor("@me/count")
class Count:
    def predict(self) -> int:
        return 1


def one() -> int:
    return 1


def two() -> int:
    return 2


def registry_of(*predictors: Any, **options: Any) -> Registry:
    return Registry(predictors, discover=False, **options)


class Offering:
    """A plugin that offers what it was made with."""

    def __init__(self, *predictors: Predictor) -> None:
        self.predictors = predictors

    @hookimpl
    def engine_predictors(self) -> tuple[Predictor, ...]:
        return self.predictors


class Failing(Offering):
    """A plugin that fails after what it was made with."""

    @hookimpl
    def engine_predictors(self) -> Iterator[Predictor]:  # type: ignore[override]  # hooks give any iterable
        yield from self.predictors
        raise RuntimeError("half-way")
