"""Code as users write it, read by mypy and never run: what it says here is what an editor shows."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping
from datetime import datetime
from typing import Any, assert_type

from engine import (
    AsyncPredictionStream,
    Call,
    Engine,
    Outcome,
    Prediction,
    PredictionStream,
    Predictor,
    PredictorNotFoundError,
    Reducer,
    current_call,
    fold,
    hookimpl,
    predictor,
)
from engine.runners import Body, Channel
from engine.testing import KINDS, Give, Journal, Kind, Return, RunnerConformance, Script, expected

# A decorated predictor stays exactly what it was.


@predictor("@me/shout", description="Shouts.", reduce="concat", concurrency=2)
def shout(text: str, times: int = 1) -> Iterator[str]:
    yield text.upper() * times


@predictor("@me/whisper")
async def whisper(text: str) -> AsyncIterator[str]:
    yield text.lower()


@predictor("@me/model", runner="thread", check=False)
class Model:
    def setup(self) -> None:
        self.scale = 2.0

    def predict(self, number: float) -> float:
        return self.scale * number


assert_type(shout("a", times=2), Iterator[str])
assert_type(whisper("a"), AsyncIterator[str])
assert_type(Model(), Model)
assert_type(Model().predict(1.0), float)


# From sync code.


def reads() -> None:
    with Engine([shout, whisper, Model], discover=False, runner="thread", grace=0.5) as muna:
        assert_type(muna, Engine)
        prediction = muna.predictions.create("@me/shout", {"text": "a"}, reduce=fold(max, ""), errors="return")
        assert_type(prediction, Prediction)
        assert_type(prediction.results, tuple[Any, ...])
        assert_type(prediction.latency, float)
        assert_type(prediction.created, datetime)
        assert_type(prediction.error, str | None)
        assert_type(prediction.exception, BaseException | None)
        assert_type(prediction.raise_for_error(), Prediction)
        assert_type(prediction.to_dict(), dict[str, Any])

        with muna.predictions.stream(shout, {"text": "a"}, prefetch=4, check=False) as stream:
            assert_type(stream, PredictionStream)
            for each in stream:
                assert_type(each, Prediction)
            assert_type(stream.values(), Iterator[Any])
            assert_type(stream.snapshots(), Iterator[Any])
            assert_type(stream.outcome, Outcome)
            assert_type(stream.outcome.count, int)
            assert_type(stream.id, str)
            stream.cancel()
            assert_type(next(stream), Prediction)

        registry: Mapping[str, Predictor] = muna.predictors
        assert_type(registry["@me/shout"], Predictor)
        muna.predictors.register(shout, replace=True)
        muna.predictors.register("@me/lower", str.lower, description="Lowers.")
        muna.load("@me/model")
        muna.unload("@me/model")
        assert_type(muna.loaded, tuple[str, ...])


# From asyncio.


async def areads() -> None:
    async with Engine(discover=False) as muna:
        creating = muna.predictions.acreate(whisper, {"text": "A"})
        typed: Coroutine[Any, Any, Prediction] = creating
        assert_type(await typed, Prediction)
        async with muna.predictions.astream(whisper, {"text": "A"}) as stream:
            assert_type(stream, AsyncPredictionStream)
            async for each in stream:
                assert_type(each, Prediction)
            async for value in stream.values():
                assert_type(value, Any)
            async for snapshot in stream.snapshots():
                assert_type(snapshot, Any)
            assert_type(await anext(stream), Prediction)
        assert_type(await muna.predictions.astream(whisper), AsyncPredictionStream)
        await muna.aload(Model)
        await muna.aunload(Model)
        await stream.aclose()


# What else a user writes.


class Longest:
    name = "longest"

    def start(self) -> str:
        return ""

    def step(self, state: str, partial: str, /) -> str:
        return max(state, partial, key=len)

    def finish(self, state: str, /) -> str:
        return state


reducer: Reducer = Longest()
folding: Reducer = fold(lambda state, partial: state + partial, 0)
record = Predictor("@me/shout", "package.module:shout", reduce=reducer, yields=True)


@hookimpl
def engine_predictors() -> Iterator[Predictor]:
    yield record


assert_type(engine_predictors(), Iterator[Predictor])


def body() -> str:
    call = current_call()
    assert_type(call, Call | None)
    return "" if call is None or call.stopping else call.tag


def catches(muna: Engine) -> str:
    try:
        return str(muna.predictions.create(body).value)
    except PredictorNotFoundError as error:
        assert_type(error.matches, tuple[str, ...])
        return error.tag
    except KeyError as error:  # the same error, for code that knows only Python's own
        return str(error)


class Elsewhere:
    name = "elsewhere"

    def start(self, body: Body, channel: Channel) -> None:
        assert_type(body.call, Call)
        assert_type(channel.stop, bool)


class TestElsewhere(RunnerConformance):
    runner = "elsewhere"

    def engine(self) -> Engine:
        return Engine(discover=False, plugins=[Elsewhere()])


script = Script((Give("a"), Return("b")))
assert_type(KINDS["def-yield"], Kind)
assert_type(expected(script, KINDS["def-yield"]).partials, tuple[Any, ...])
assert_type(Journal().lines, tuple[str, ...])
decorate: Callable[[type[Model]], type[Model]] = predictor("@me/again")
