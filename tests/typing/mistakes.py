"""Mistakes that mypy must tell a user of; every line with a mistake names the error code it is told by."""

from __future__ import annotations

from engine import Engine, Predictor, fold, predictor


def mistakes(muna: Engine) -> None:
    muna.predictions.create()  # type: ignore[call-arg]
    muna.predictions.create("@me/shout", ["a"])  # type: ignore[arg-type]
    muna.predictions.create("@me/shout", {}, "thread")  # type: ignore[call-arg]
    muna.predictions.create("@me/shout", errors="ignore")  # type: ignore[arg-type]
    muna.predictions.create("@me/shout", prefetch=2)  # type: ignore[call-arg]
    muna.predictions.create("@me/shout").value_of  # type: ignore[attr-defined]  # noqa: B018
    muna.predictions.stream("@me/shout", reduce="last")  # type: ignore[call-arg]
    muna.predictions.stream("@me/shout", prefetch="all")  # type: ignore[arg-type]
    muna.predictors["@me/shout"] = Predictor("@me/shout", print)  # type: ignore[index]
    Engine(runners="thread")  # type: ignore[call-arg]
    Engine(grace="1 s")  # type: ignore[arg-type]
    Predictor("@me/shout", print, "a description")  # type: ignore[call-arg]
    fold("sum", 0)  # type: ignore[arg-type]
    predictor(print)  # type: ignore[arg-type]


async def amistakes(muna: Engine) -> None:
    muna.predictions.acreate("@me/shout")  # type: ignore[unused-coroutine]
    for _ in muna.predictions.astream("@me/shout"):  # type: ignore[attr-defined]
        pass
    with muna.predictions.astream("@me/shout"):  # type: ignore[attr-defined]
        pass
