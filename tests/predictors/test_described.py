"""Predictors that this process never imports: workers describe them, check what it cannot, and run them."""

from __future__ import annotations

import asyncio
import importlib
import os
import pickle
import sys
import textwrap
import traceback
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

import pytest

from engine import (
    Engine,
    EngineClosedError,
    InvalidInputError,
    NestingError,
    NoPartialsError,
    PluginError,
    PredictionCancelledError,
    Predictor,
    WorkerLostError,
)
from tests._kit.internals import worker_of, workers_of
from tests._kit.waits import auntil

HOME: Final = """
    from collections.abc import Iterator
    from typing import Annotated, Literal

    import operator

    import annotated_types

    from engine import fold
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

    def counts(start: int = None, step: float = 1):
        for number in range(3):
            yield (start or 0) + number * step

    counts.__predictor__ = {"tag": "@home/counts", "reduce": fold(operator.add, 0), "concurrency": 1}

    class Client:
        async def setup(self):
            import asyncio
            self.lock = asyncio.Lock()
            self.calls = 0

        async def predict(self, name: str):
            async with self.lock:
                self.calls += 1
                yield name
                yield self.calls

    def fails(text: str):
        yield text
        raise RuntimeError("of the home")
"""
TYPES: Final = """
    class Image: ...
    class Palette: ...
    PALETTE = Palette()
"""
TAGS: Final = ("draw", "paint", "image", "fetch", "Model", "pieces", "lines", "counts", "Client", "fails")


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


def copied(error: BaseException) -> BaseException:
    """What travels elsewhere."""
    made: BaseException = pickle.loads(pickle.dumps(error))
    return made


WAYS: Final = ("create", "stream", "acreate", "astream")


def values_of(muna: Engine, way: str, tag: Any, inputs: Any = None, **options: Any) -> list[Any]:
    """What one call gives, whichever way it is consumed."""
    predictions = muna.predictions

    async def acreated() -> list[Any]:
        return [(await predictions.acreate(tag, inputs, **options)).value]

    async def astreamed() -> list[Any]:
        return [each async for each in predictions.astream(tag, inputs, **options).values()]

    if way == "create":
        return [predictions.create(tag, inputs, **options).value]
    if way == "stream":
        return list(predictions.stream(tag, inputs, **options).values())
    return asyncio.run(acreated() if way == "acreate" else astreamed())


@pytest.mark.parametrize("way", WAYS)
def test_the_first_call_may_be_any_and_what_it_finds_is_kept(home: Engine, way: str) -> None:
    is_stream = way.endswith("stream")
    with pytest.raises(InvalidInputError, match="'text' is missing") as first:
        values_of(home, way, "@home/draw", {"size": "small"})
    with pytest.raises(InvalidInputError) as second:
        values_of(home, way, "home/draw", {"size": "small"})
    assert str(first.value) == str(second.value)
    assert first.value.valid == ("text", "size", "copies")
    worker = worker_of(home)
    assert worker.calls == 1  # it was asked once what there is, and ran nothing
    drawn = values_of(home, way, "@home/draw", {"text": "cat", "copies": 2})
    assert drawn == ["cat (small)"] * (2 if is_stream else 1)
    assert values_of(home, way, "@home/counts", {"start": None}) == ([0, 1, 2] if is_stream else [3])
    assert values_of(home, way, "@home/client", {"name": "Ada"}) == (["Ada", 1] if is_stream else [1])
    assert values_of(home, way, "@home/client", {"name": "Ada"})[-1] == 2  # it was set up once
    with pytest.raises(InvalidInputError, match=r"'name' must be str, not 5 \(int\)"):
        values_of(home, way, "@home/client", {"name": 5})
    with pytest.raises(RuntimeError, match="of the home") as failed:
        values_of(home, way, "@home/fails", {"text": "cat"})
    assert 'raise RuntimeError("of the home")' in failed.value.__notes__[0]
    assert workers_of(home) == (worker,)


def test_a_first_stream_can_be_read_by_its_snapshots_before_anything_is_known(home: Engine) -> None:
    stream = home.predictions.stream("@home/pieces", runner="process")
    assert list(stream.snapshots()) == ["a", "ab"]
    assert stream.outcome.count == 2
    counts = home.predictions.stream("@home/counts", {"start": 1})
    assert list(counts.snapshots()) == [1, 3, 6]


def test_a_caller_may_reduce_otherwise_than_its_author(home: Engine) -> None:
    predictions = home.predictions
    assert predictions.create("@home/pieces", runner="process", reduce="collect").value == ["a", "b"]
    assert predictions.create("@home/counts", reduce="last").value == 2
    assert predictions.create("@home/draw", {"text": "cat"}, reduce="returned").value == "drawn"
    failed = predictions.create("@home/fails", {"text": "cat"}, reduce="collect", errors="return")
    assert (failed.value, repr(failed.exception)) == (["cat"], "RuntimeError('of the home')")


@pytest.mark.parametrize("way", ["stream", "astream"])
def test_the_inputs_of_a_first_call_are_those_of_the_moment_of_the_call(home: Engine, way: str) -> None:
    inputs: dict[str, Any] = {"text": "cat", "copies": 2}
    if way == "stream":
        stream = home.predictions.stream("@home/draw", inputs)
        inputs["text"] = 5
        assert list(stream.values()) == ["cat (small)"] * 2
        return

    async def main() -> None:
        stream = home.predictions.astream("@home/draw", inputs)
        inputs.clear()
        assert [each async for each in stream.values()] == ["cat (small)"] * 2

    asyncio.run(main())


@pytest.mark.fault(119)
@pytest.mark.parametrize("runner", ["process", "thread", None])
@pytest.mark.parametrize("change", ["replaced", "unregistered", "replaced and used"])
@pytest.mark.parametrize("way", ["stream", "astream"])
def test_a_first_stream_is_of_what_was_registered_at_the_call(
    home: Engine, tmp_path: Path, way: str, change: str, runner: str | None
) -> None:
    for name, word in (("early_home", "early"), ("late_home", "late")):
        (tmp_path / f"{name}.py").write_text(f"def say():\n    yield '{word}'\n", encoding="utf-8")
    home.predictors.register("@home/say", "early_home:say")

    def alter() -> None:
        if change == "unregistered":
            home.predictors.unregister("@home/say")
        else:
            home.predictors.register("@home/say", "late_home:say", replace=True)
        if change == "replaced and used":
            assert home.predictions.create("@home/say", runner=runner).value == "late"

    async def main() -> None:
        stream = home.predictions.astream("@home/say", runner=runner)
        await asyncio.to_thread(alter)
        assert [each async for each in stream.values()] == ["early"]

    try:
        if way == "stream":
            stream = home.predictions.stream("@home/say", runner=runner)
            alter()
            assert list(stream.values()) == ["early"]
        else:
            asyncio.run(main())
        if change != "unregistered":
            assert home.predictions.create("@home/say", runner=runner).value == "late"
        if runner != "thread":
            assert not {"early_home", "late_home"} & set(sys.modules)
    finally:
        for name in ("early_home", "late_home"):
            sys.modules.pop(name, None)


@pytest.mark.fault(119)
def test_a_first_stream_shares_the_slots_of_what_is_still_registered(home: Engine) -> None:
    first = home.predictions.stream("@home/counts", {"start": 1})
    assert next(first).value == 1
    with pytest.raises(NestingError, match="@home/counts"):
        next(home.predictions.stream("@home/counts", {"start": 1}))
    assert [each.value for each in first] == [2, 3]


def test_a_loop_turns_while_a_worker_imports(home: Engine, tmp_path: Path) -> None:
    gate, reached = tmp_path / "gate", tmp_path / "reached"
    (tmp_path / "slow_home.py").write_text(
        f"""
import pathlib, time
pathlib.Path({str(reached)!r}).touch()
deadline = time.monotonic() + 10
while not pathlib.Path({str(gate)!r}).exists() and time.monotonic() < deadline:
    time.sleep(0.001)
def go(): return "gone"
""",
        encoding="utf-8",
    )
    home.predictors.register("@home/slow", "slow_home:go")

    async def main() -> None:
        call = asyncio.create_task(home.predictions.acreate("@home/slow"))
        await auntil(reached.exists, "the import has begun")  # only a loop that turns gets to the next line
        gate.touch()
        assert (await call).value == "gone"

    asyncio.run(main())
    assert "slow_home" not in sys.modules


def test_many_first_calls_at_once_all_find_it(home: Engine) -> None:
    async def main() -> None:
        calls = [home.predictions.acreate("@home/draw", {"text": f"{number}"}) for number in range(8)]
        assert [each.value for each in await asyncio.gather(*calls)] == [f"{number} (small)" for number in range(8)]

    asyncio.run(main())
    with ThreadPoolExecutor(8) as threads:
        found = threads.map(lambda page: home.predictions.create("@home/fetch", {"page": page}).value, range(8))
        assert list(found) == [f"page {number}" for number in range(8)]


@pytest.mark.parametrize("how", ["call", "record", "given"])
def test_any_wish_for_a_worker_leaves_it_unimported_and_another_place_imports_it(
    how: str, home: Engine, tmp_path: Path
) -> None:
    name = f"other_home_{how}"
    (tmp_path / name).mkdir()
    (tmp_path / name / "__init__.py").touch()
    (tmp_path / name / "inner.py").write_text("import os\ndef where(): return os.getpid()\n", encoding="utf-8")
    record = Predictor("@home/where", f"{name}.inner:where", runner="process" if how == "record" else None)
    wish = {} if how == "record" else {"runner": "process"}
    tag: Any = record if how == "given" else "@home/where"
    importlib.import_module(name)  # the package itself is here, what it holds is not
    try:
        with Engine([record], discover=False, workers=1) as muna:
            for way in WAYS:
                assert values_of(muna, way, tag, **wish) != [os.getpid()]
            assert f"{name}.inner" not in sys.modules
            assert values_of(muna, "create", tag, runner="thread") == [os.getpid()]
            assert f"{name}.inner" in sys.modules
            assert values_of(muna, "create", tag, runner="process") != [os.getpid()]
    finally:
        for each in (name, f"{name}.inner"):
            sys.modules.pop(each, None)


def test_what_distributions_offer_is_described_too_and_a_failure_names_them(home: Engine, tmp_path: Path) -> None:
    info = tmp_path / "heavy_home-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: heavy-home\nVersion: 1.0\n", encoding="utf-8")
    (info / "entry_points.txt").write_text(
        "[predictor_engine.predictors]\n@heavy/draw = heavy_home:draw\n@heavy/broken = broken_home:go\n",
        encoding="utf-8",
    )
    importlib.invalidate_caches()
    with Engine(runner="process", workers=1) as muna:
        for way in WAYS:
            assert values_of(muna, way, "@heavy/draw", {"text": "cat"}) == ["cat (small)"]
            with pytest.raises(PluginError, match="OSError: no accelerator") as caught:
                values_of(muna, way, "@heavy/broken")
            assert "heavy-home" in caught.value.distribution
            assert "raise OSError" in caught.value.traceback
            assert "Traceback" not in str(caught.value)
            assert "".join(traceback.format_exception(caught.value)).count("raise OSError") == 1
            assert "".join(traceback.format_exception(copied(caught.value))).count("raise OSError") == 1
        assert [each.calls for each in workers_of(muna)] == [1 + 4 + 4]  # described, run, not imported
    assert "broken_home" not in sys.modules


@pytest.mark.parametrize("way", WAYS)
def test_an_import_that_ends_its_worker_costs_that_call_alone(home: Engine, tmp_path: Path, way: str) -> None:
    (tmp_path / "ending_home.py").write_text("import os; os._exit(5)\n", encoding="utf-8")
    home.predictors.register("@home/ending", "ending_home:go")
    with pytest.raises(WorkerLostError, match="exit code 5"):
        values_of(home, way, "@home/ending")
    assert values_of(home, way, "@home/draw", {"text": "cat"}) == ["cat (small)"]


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
    assert workers_of(home) == ()


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


def test_a_stream_that_was_not_pulled_before_its_engine_was_closed_ends_as_closed(home: Engine) -> None:
    stream = home.predictions.stream("@home/draw", {"text": "cat"})

    async def main() -> None:
        astream = home.predictions.astream("@home/draw", {"text": "cat"})
        await home.aclose()
        with pytest.raises(EngineClosedError):
            await anext(astream)
        assert astream.outcome.state == "closed"

    asyncio.run(main())
    with pytest.raises(EngineClosedError):
        next(stream)
    assert list(stream) == []
    assert stream.outcome.state == "closed"
