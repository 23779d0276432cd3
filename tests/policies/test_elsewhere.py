"""A runner from a plugin whose bodies run in another process: what workers can be, it can be as well."""

from __future__ import annotations

import asyncio
import gc
import os
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar, Final

import pytest

from engine import Engine, EngineError, InvalidInputError, NestingError, PluginError, Prediction, Predictor
from engine.runners import Body, Channel, own
from engine.testing import KINDS, RunnerConformance
from tests._kit.internals import check_runner
from tests._kit.streams import FOUR, Letters, consumed
from tests.policies.elsewhere import FarRunner, LastingRunner

FAR: Final = """
import os
from collections.abc import AsyncIterator, Iterator
from engine import predictor

def letters(text: str = "ab") -> Iterator[str]:
    yield from text

async def later(text: str = "ab") -> AsyncIterator[str]:
    for letter in text:
        yield letter

class Model:
    def setup(self):
        self.process = os.getpid()

    def predict(self, text: str = "ab") -> Iterator[str]:
        yield from text

def process() -> int:
    return os.getpid()

def refuses(text: str = "ab"):
    yield text
    raise KeyError(text)

@predictor("@far/local", runner="thread")
def local() -> int:
    return os.getpid()
"""
NAMES: Final = ("letters", "later", "Model", "process", "refuses", "local")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Where the other process finds a module."""
    folder = tmp_path_factory.mktemp("far")
    (folder / "far_module.py").write_text(FAR, encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")]))
        yield str(folder)


@pytest.fixture(scope="module")
def far(folder: str) -> Iterator[FarRunner]:
    """A runner whose process has begun, and that no engine closes."""
    far = LastingRunner()
    with Engine(discover=False, plugins=[far]) as muna:
        muna.predictions.create(os.getpid, runner="far")
    yield far
    far.end()


@pytest.fixture
def module(folder: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The name of a module that both processes can import, and this one has not."""
    monkeypatch.syspath_prepend(folder)
    yield "far_module"
    sys.modules.pop("far_module", None)


@pytest.fixture
def muna(far: FarRunner, module: str) -> Iterator[Engine]:
    records = [Predictor(f"@far/{name.lower()}", f"{module}:{name}") for name in NAMES]
    with Engine(records, discover=False, plugins=[far], grace=5.0) as muna:
        yield muna


@pytest.fixture(autouse=True)
def leaves_nothing_behind(far: FarRunner, leaves_nothing_behind: None) -> None:
    """Count from where the other process is there."""


# Calls.


@pytest.mark.parametrize("tag", ["@far/letters", "@far/later", "@far/model"])
def test_every_consumer_works_and_nothing_is_imported_here(muna: Engine, module: str, tag: str) -> None:
    assert consumed(muna, tag, runner="far") == FOUR
    assert consumed(muna, tag, runner="far", inputs={"text": "ab"}) == FOUR
    assert module not in sys.modules


@pytest.mark.parametrize("first", ["create", "stream", "acreate", "astream"])
def test_the_first_call_has_a_predictor_described_whichever_it_is(
    muna: Engine, far: FarRunner, module: str, first: str
) -> None:
    async def acall() -> Any:
        if first == "acreate":
            return (await muna.predictions.acreate("@far/process", runner="far")).value
        async with muna.predictions.astream("@far/process", runner="far") as stream:
            return (await anext(stream)).value

    def call() -> Any:
        if first == "create":
            return muna.predictions.create("@far/process", runner="far").value
        with muna.predictions.stream("@far/process", runner="far") as stream:
            return next(stream).value

    assert (asyncio.run(acall()) if first.startswith("a") else call()) == far.pid
    assert module not in sys.modules


def test_bodies_run_in_the_other_process_and_calls_say_so(muna: Engine, far: FarRunner) -> None:
    prediction = muna.predictions.create("@far/process", runner="far")
    assert prediction.value == far.pid != os.getpid()
    with pytest.raises(KeyError, match="ab") as caught:
        muna.predictions.create("@far/refuses", runner="far")
    assert any("runner far, after 1 partials" in note for note in caught.value.__notes__)


def test_a_function_that_this_process_has_travels_as_the_runner_likes(muna: Engine, far: FarRunner) -> None:
    def local(text: str) -> Iterator[Any]:
        yield text, os.getpid()

    for _ in range(2):
        assert muna.predictions.create(local, {"text": "a"}, runner="far").value == ("a", far.pid)


def test_inputs_are_checked_here_by_what_was_described(muna: Engine, module: str) -> None:
    for _ in range(2):  # by the first call, and by one that finds it described
        with pytest.raises(InvalidInputError, match="txt"):
            muna.predictions.create("@far/letters", {"txt": "ab"}, runner="far")
    assert module not in sys.modules


@pytest.mark.parametrize("who", ["author", "engine"])
def test_it_is_chosen_by_an_author_and_an_engine_as_well(far: FarRunner, module: str, who: str) -> None:
    record = Predictor("@far/process", f"{module}:process", runner="far" if who == "author" else None)
    engines = "far" if who == "engine" else None

    with Engine([record], discover=False, plugins=[far], runner=engines) as chosen:
        made = asyncio.run(chosen.predictions.acreate("@far/process"))
        assert made.value == chosen.predictions.create("@far/process").value == far.pid
        chosen.load("@far/process")
        assert chosen.loaded == ("@far/process",)
        chosen.unload("@far/process")
    assert module not in sys.modules


def test_an_authors_choice_that_comes_to_light_by_the_description_counts_from_then_on(
    far: FarRunner, module: str
) -> None:
    record = Predictor("@far/local", f"{module}:local")
    with Engine([record], discover=False, plugins=[far], runner="far") as muna:
        assert muna.predictions.create("@far/local").value == far.pid
        assert module not in sys.modules
        assert muna.predictions.create("@far/local").value == os.getpid()
        assert module in sys.modules


def test_what_the_body_raised_can_be_had_as_a_prediction(muna: Engine) -> None:
    prediction = muna.predictions.create("@far/refuses", runner="far", errors="return")
    assert (type(prediction.exception), prediction.value) == (KeyError, "ab")


def test_a_stream_that_is_left_is_closed_in_the_other_process(muna: Engine, tmp_path: Path) -> None:
    end = tmp_path / "end"

    def long() -> Iterator[int]:
        try:
            yield from range(1_000_000)
        finally:
            end.write_text("over")

    with muna.predictions.stream(long, runner="far") as stream:
        assert next(stream).value == 0
    assert end.read_text() == "over"
    assert stream.outcome.state == "closed"


class Pretending:
    """Says that it is elsewhere, and is not: each body runs in a new thread."""

    is_elsewhere = True

    def __init__(self, name: str) -> None:
        self.name = name

    def start(self, body: Body, channel: Channel) -> None:
        threading.Thread(target=own, args=(body, channel)).start()


def test_a_class_takes_as_many_calls_in_one_other_place_as_if_there_were_no_second() -> None:
    plugins = [Pretending("one"), Pretending("two")]
    with (
        Engine(discover=False, plugins=plugins, grace=5.0) as muna,
        muna.predictions.stream(Letters, runner="one", prefetch=0) as stream,
    ):
        assert next(stream).value == "a"
        assert consumed(muna, Letters, runner="two") == FOUR
        with pytest.raises(NestingError, match="takes no more calls at a time"):
            muna.predictions.create(Letters, runner="one")


# Loading.


def test_load_unload_and_loaded_reach_it(muna: Engine, module: str) -> None:
    muna.load("@far/model", "far")
    assert "@far/model" in muna.loaded
    assert consumed(muna, "@far/model", runner="far") == FOUR
    muna.unload("@far/model", "far")
    assert "@far/model" not in muna.loaded

    async def main() -> None:
        await muna.aload("@far/model", "far")
        assert "@far/model" in muna.loaded
        await muna.aunload("@far/model", "far")
        assert "@far/model" not in muna.loaded

    asyncio.run(main())
    assert module not in sys.modules


def test_what_is_in_use_is_not_unloaded(far: FarRunner, module: str) -> None:
    record = Predictor("@far/model", f"{module}:Model")
    with Engine([record], discover=False, plugins=[far], grace=0.01) as muna:
        with muna.predictions.stream("@far/model", runner="far", prefetch=0) as stream:
            assert next(stream).value == "a"
            with pytest.raises(EngineError, match="@far/model is in use by the open prediction"):
                muna.unload("@far/model", "far")
        muna.unload("@far/model", "far")


# Closing.


def test_an_engine_closes_it_once_when_it_closes_itself() -> None:
    far = FarRunner()
    muna = Engine(discover=False, plugins=[far])
    assert muna.predictions.create(os.getpid, runner="far").value == far.pid
    assert far.closed == 0
    muna.close()
    muna.close()
    assert far.closed == 1


def test_an_engine_that_never_used_it_does_not_close_it() -> None:
    far = FarRunner()
    with Engine(discover=False, plugins=[far]) as muna:
        assert muna.predictions.create(lambda: 1).value == 1
    assert far.closed == 0


def test_each_of_several_engines_that_used_it_closes_it() -> None:
    far = FarRunner()
    first, second, third = (Engine(discover=False, plugins=[far]) for _ in range(3))
    assert {muna.predictions.create(os.getpid, runner="far").value for muna in (first, second)} == {far.pid}
    for muna in (first, second, third):
        asyncio.run(muna.aclose())
    assert far.closed == 2


class Quiet(FarRunner):
    """Starts nothing; each of its members that a test names does something else."""

    def __init__(self, **others: Any) -> None:
        super().__init__()
        self.__dict__.update(others)


def test_an_engine_that_used_it_and_is_not_closed_says_so() -> None:
    quiet = Quiet()

    def leave() -> None:
        muna = Engine(discover=False, plugins=[quiet])
        check_runner(muna, "far")
        del muna
        gc.collect()

    with pytest.warns(ResourceWarning, match="an engine was left unclosed"):
        leave()
    assert quiet.closed == 0


def test_what_its_close_raises_comes_out_of_the_engines_once_all_else_is_closed() -> None:
    def close() -> None:
        raise OSError("the line is down")

    other = FarRunner()
    other.name = "other"
    muna = Engine(discover=False, plugins=[Quiet(close=close), other])
    for name in ("far", "other", "thread"):
        check_runner(muna, name)
    with pytest.raises(OSError, match="the line is down"):
        muna.close()
    assert other.closed == 1
    muna.close()


def test_ctrl_c_while_one_is_closed_leaves_none_of_the_others_open() -> None:
    def close() -> None:
        raise KeyboardInterrupt

    other = FarRunner()
    other.name = "other"
    muna = Engine(discover=False, plugins=[Quiet(close=close), other])
    for name in ("far", "other"):
        check_runner(muna, name)
    with pytest.raises(KeyboardInterrupt):
        muna.close()
    assert other.closed == 1


def test_a_forked_child_leaves_it_to_its_parent() -> None:
    quiet = Quiet()
    with Engine(discover=False, plugins=[quiet]) as muna:
        check_runner(muna, "far")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # from Python 3.12 on, of threads that others left
            child = os.fork()
        if not child:
            muna.close()
            os._exit(quiet.closed)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert quiet.closed == 1


# What it leaves out.


class Bare:
    """Is elsewhere, and that is all it says: what it is given it keeps, and it never starts a body."""

    name = "bare"
    is_elsewhere = True
    load: Any = None  # as if it were left out

    def __init__(self) -> None:
        self.given: list[Body] = []

    def start(self, body: Body, channel: Channel) -> None:
        self.given.append(body)
        raise LookupError("no owner")


def test_what_it_cannot_describe_is_imported_here_and_what_it_cannot_load_is_left_to_its_first_call(
    module: str,
) -> None:
    bare = Bare()
    record = Predictor("@far/model", f"{module}:Model")
    with Engine([record], discover=False, plugins=[bare]) as muna:
        muna.load("@far/model", "bare")
        asyncio.run(muna.aload("@far/model", "bare"))
        muna.unload("@far/model", "bare")
        assert (muna.loaded, module in sys.modules) == ((), True)
        with pytest.raises(LookupError, match="no owner"):
            muna.predictions.create("@far/model", {"text": "a"}, runner="bare")
        (body,) = bare.given
        assert (body.target, body.kwargs, body.bind) == (f"{module}:Model", {"text": "a"}, None)


@pytest.mark.parametrize("way", ["create", "acreate"])
def test_what_it_described_it_cannot_leave_to_its_caller(far: FarRunner, module: str, way: str) -> None:
    quiet = Quiet(describe=far.describe, place=lambda _predictor, _runner, is_task: None)
    record = Predictor("@far/letters", f"{module}:letters")

    def create(tag: Any) -> Prediction:
        if way == "create":
            return engine.predictions.create(tag, runner="far")
        return asyncio.run(engine.predictions.acreate(tag, runner="far"))

    with Engine([record], discover=False, plugins=[quiet], grace=5.0) as engine:
        with pytest.raises(
            EngineError, match="the runner 'far' describes @far/letters, so that it is not imported here"
        ):
            create("@far/letters")
        assert module not in sys.modules
        assert create(os.getpid).value == os.getpid()


# Where it fails.


def fails(*_args: Any, **_options: Any) -> Any:
    raise LookupError("not reachable")


@pytest.mark.parametrize("way", ["create", "acreate"])
@pytest.mark.parametrize(
    ("describe", "reason"),
    [
        (fails, r"the runner 'far' could not describe it: LookupError: not reachable"),
        (
            lambda _tag, _text: {"parameters": []},
            r"describe\(\) of the runner 'far' gives what engine.runners.describe",
        ),
        (
            lambda _tag, _text: None,
            r"describe\(\) of the runner 'far' gives what engine.runners.describe gave, not None",
        ),
    ],
    ids=["raises", "half", "none"],
)
def test_a_description_that_fails_is_a_failure_of_its_plugin(
    module: str, way: str, describe: Callable[..., Any], reason: str
) -> None:
    record = Predictor("@far/letters", f"{module}:letters")
    with Engine([record], discover=False, plugins=[Quiet(describe=describe)]) as muna:
        call: Any = getattr(muna.predictions, way)

        async def main() -> None:
            await call("@far/letters", runner="far")

        with pytest.raises(PluginError, match=reason):
            asyncio.run(main()) if way == "acreate" else call("@far/letters", runner="far")


def test_what_load_place_and_open_raise_is_raised_where_they_were_needed() -> None:
    for name in ("load", "unload", "place", "open", "start"):
        with Engine(discover=False, plugins=[Quiet(**{name: fails})]) as muna:
            step: Any = getattr(muna, name) if name.endswith("load") else muna.predictions.create
            with pytest.raises(LookupError, match="not reachable"):
                step(os.getpid, runner="far")


def test_one_that_cannot_tell_what_is_loaded_is_logged_and_the_others_are_told(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with Engine([Predictor("@me/pid", os.getpid)], discover=False, plugins=[Quiet(loaded=fails)]) as muna:
        check_runner(muna, "far")
        muna.load("@me/pid")
        assert muna.loaded == ("@me/pid",)
    assert "the runner 'far': error in loaded()" in caplog.text


def test_what_it_may_have_must_be_what_can_be_called() -> None:
    with (
        Engine(discover=False, plugins=[Quiet(load=True)]) as muna,
        pytest.raises(PluginError, match="load of the runner 'far' cannot be called: it is True"),
    ):
        muna.predictions.create(os.getpid, runner="far")


# The public suite


class TestFar(RunnerConformance):
    """Bodies elsewhere keep their journals in files."""

    runner = "far"
    kinds: ClassVar = {
        name: KINDS[name]
        for name in ("def-return", "def-yield", "async-yield", "class-async-yield", "object", "declared-iterator")
    }

    @pytest.fixture(autouse=True)
    def use(self, far: FarRunner, tmp_path: Path) -> None:
        self.far = far
        self.folder = tmp_path

    def engine(self) -> Engine:
        return Engine(discover=False, plugins=[self.far])
