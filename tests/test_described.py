"""Predictors that this process never imports: workers describe them, check what it cannot, and run them."""

from __future__ import annotations

import asyncio
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from engine import Engine, InvalidInputError, NoPartialsError, PluginError, PredictionCancelledError, Predictor

HOME: Final = """
    from collections.abc import Iterator
    from typing import Annotated, Literal

    import annotated_types

    from heavy_home_types import Image, PALETTE

    Size = Literal["small", "large"]

    def draw(text: str, size: Size = "small", copies: Annotated[int, annotated_types.Ge(1)] = 1):
        '''Draws it.'''
        for copy in range(copies):
            yield f"{text} ({size})"
        return "drawn"

    def paint(image: Image, colour=PALETTE, /, *more: int, width: int = 2, **rest: float):
        return type(image).__name__, type(colour).__name__, more, width, rest

    def image(): return Image()

    async def fetch(page: int):
        return f"page {page}"

    class Model:
        '''Answers.'''

        def setup(self):
            self.answers = {"a": "b"}

        def predict(self, question: str):
            return self.answers[question]

    def pieces():
        yield from ("a", "b")

    pieces.__predictor__ = {"tag": "@home/pieces", "reduce": "concat", "description": "In pieces.", "runner": "thread"}

    def lines() -> "Iterator[int]":
        return iter([1, 2])
"""
TYPES: Final = """
    class Image: ...
    class Palette: ...
    PALETTE = Palette()
"""
TAGS: Final = ("draw", "paint", "image", "fetch", "Model", "pieces", "lines")


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Engine]:
    """An engine with predictors of a package that it knows by name alone."""
    (tmp_path / "heavy_home.py").write_text(textwrap.dedent(HOME), encoding="utf-8")
    (tmp_path / "heavy_home_types.py").write_text(textwrap.dedent(TYPES), encoding="utf-8")
    (tmp_path / "broken_home.py").write_text("raise OSError('no accelerator')\n", encoding="utf-8")
    (tmp_path / "exiting_home.py").write_text("import sys; sys.exit(3)\n", encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    records = [Predictor(f"@home/{name.lower()}", f"heavy_home:{name}") for name in TAGS]
    with Engine(records, discover=False, runner="process", workers=1) as muna:
        yield muna
        assert not {"heavy_home", "heavy_home_types"} & set(sys.modules)


def test_create_and_stream_run_what_this_process_never_imports(home: Engine) -> None:
    predictions = home.predictions
    assert predictions.create("@home/draw", {"text": "cat"}).value == "cat (small)"
    stream = predictions.stream("@home/draw", {"text": "cat", "copies": 2})
    assert list(stream.values()) == ["cat (small)"] * 2
    assert (stream.outcome.state, stream.outcome.returned) == ("done", "drawn")
    assert predictions.create("@home/fetch", {"page": 3}).value == "page 3"
    assert predictions.create("@home/model", {"question": "a"}).value == "b"
    assert list(predictions.stream("@home/lines").values()) == [1, 2]
    assert predictions.create("@home/pieces", runner="process").value == "ab"
    assert list(predictions.stream("@home/pieces", runner="process").snapshots()) == ["a", "ab"]


def test_asyncio_runs_it_too_and_awaiting_the_stream_is_enough_to_have_it_checked(home: Engine) -> None:
    async def main() -> None:
        predictions = home.predictions
        with pytest.raises(InvalidInputError, match="'copies' must be >= 1"):
            await predictions.astream("@home/draw", {"text": "cat", "copies": 0})
        assert (await predictions.acreate("@home/fetch", {"page": 1})).value == "page 1"
        stream = await predictions.astream("@home/draw", {"text": "dog"})
        assert [each async for each in stream.values()] == ["dog (small)"]
        with pytest.raises(InvalidInputError):
            predictions.astream("@home/draw", {})  # described by now, so checked at the call

    asyncio.run(main())


def test_inputs_are_checked_at_the_first_pull_and_from_then_on_at_the_call(home: Engine) -> None:
    first = home.predictions.stream("@home/draw", {"txt": "cat", "size": "huge"})
    assert (first.id, first.tag, first.outcome.state) == ("", "@home/draw", "pending")
    problems = r"'text' is missing \(str\); 'size' must be one of 'small', 'large', not 'huge' \(str\); 'txt' is not"
    with pytest.raises(InvalidInputError, match=problems):
        next(first)
    assert first.outcome.state == "failed"
    assert list(first) == []
    with pytest.raises(InvalidInputError, match=problems):
        home.predictions.stream("@home/draw", {"txt": "cat", "size": "huge"})
    with pytest.raises(InvalidInputError, match="inputs must be one mapping"):
        home.predictions.stream("@home/draw", [1])  # type: ignore[arg-type]


def test_a_stream_that_is_left_before_it_is_described_starts_nothing(home: Engine) -> None:
    closed, cancelled, left = (home.predictions.stream("@home/draw", {"text": "cat"}) for _ in range(3))
    closed.close()
    cancelled.cancel()
    del left
    assert list(closed) == []
    with pytest.raises(PredictionCancelledError):
        next(cancelled)
    assert (closed.outcome.state, cancelled.outcome.state) == ("closed", "cancelled")
    assert home._workers()._pool.workers == ()


def test_what_means_nothing_here_is_checked_in_the_worker(home: Engine) -> None:
    predictions = home.predictions
    with pytest.raises(InvalidInputError, match=r"@home/paint: 'image' must be Image, not 3 \(int\)"):
        predictions.create("@home/paint", {"image": 3})
    with pytest.raises(InvalidInputError, match="'image' must be Image") as caught:
        predictions.create("@home/paint", {"image": 3}, errors="return")
    assert caught.value.valid == ("image", "colour", "more", "width", "**rest")
    made = predictions.create("@home/paint", {"image": 3, "more": [1], "tall": 1.5}, check=False).value
    assert made == ("int", "Palette", (1,), 2, {"tall": 1.5})
    with pytest.raises(InvalidInputError, match="'width' must be int"):
        predictions.create("@home/paint", {"image": 3, "width": "wide"})  # this is known here


def test_an_import_that_fails_in_the_worker_is_its_plugins_failure_and_is_tried_again(
    home: Engine, tmp_path: Path
) -> None:
    home.predictors.register("@home/broken", "broken_home:go")
    home.predictors.register("@home/exiting", "exiting_home:go")
    home.predictors.register("@home/missing", "heavy_home:nowhere")
    for tag, reason in (
        ("@home/broken", "OSError: no accelerator"),
        ("@home/exiting", "SystemExit: 3"),
        ("@home/missing", "ImportError: module 'heavy_home' has no 'nowhere'"),
    ):
        with pytest.raises(PluginError) as caught:
            home.predictions.create(tag)
        assert caught.value.reason == reason
        assert "Traceback (most recent call last)" in caught.value.traceback
        with pytest.raises(PluginError):
            next(home.predictions.stream(tag))
    (tmp_path / "broken_home.py").write_text("def go(): return 'mended'\n", encoding="utf-8")
    assert home.predictions.create("@home/broken").value == "mended"
    assert "broken_home" not in sys.modules


def test_the_authors_runner_counts_once_it_is_known(home: Engine) -> None:
    try:
        assert home.predictions.create("@home/pieces").value == "ab"  # the engine decides: nothing else is known
        assert "heavy_home" not in sys.modules
        assert home.predictions.create("@home/pieces").value == "ab"  # by its author's wish in a thread, so here
        assert "heavy_home" in sys.modules
    finally:
        for name in ("heavy_home", "heavy_home_types"):
            sys.modules.pop(name, None)


def test_it_is_loaded_and_unloaded_in_workers(home: Engine) -> None:
    home.load("@home/model")
    assert list(home.loaded) == ["@home/model"]
    assert home.predictions.create("@home/model", {"question": "a"}).value == "b"
    home.unload("@home/model")
    assert list(home.loaded) == []


def test_a_value_of_a_class_that_is_not_known_here_brings_its_module(home: Engine) -> None:
    try:
        value: Any = home.predictions.create("@home/image").value
        assert type(value).__module__ == "heavy_home_types"  # it could not be had without
    finally:
        sys.modules.pop("heavy_home_types", None)


def test_a_replaced_registration_is_described_anew(home: Engine) -> None:
    assert home.predictions.create("@home/draw", {"text": "cat"}).value == "cat (small)"
    home.predictors.register("@home/draw", "heavy_home:fetch", replace=True)
    assert home.predictions.create("@home/draw", {"page": 2}).value == "page 2"
    home.predictors.register("@home/none", "heavy_home:lines", yields=False, reduce="concat")
    with pytest.raises((NoPartialsError, TypeError)):
        home.predictions.create("@home/none")
