"""Modules that are reloaded, changed, made up, or no longer where their name says."""

from __future__ import annotations

import asyncio
import gc
import importlib
import importlib.abc
import importlib.machinery
import os
import pathlib
import signal
import sys
import textwrap
import threading
import types
from collections.abc import Callable, Iterator
from typing import Any, Final

import pytest

from engine import Engine, PayloadError, Predictor
from engine._wire import by_reference as _by_reference
from engine._wire import targets as _targets
from engine._wire.by_reference import is_importable_module
from engine.runners.process import encoding as encoding_module
from tests._kit.internals import encodings_of, modules_in_workers
from tests._kit.waits import TIMEOUT, auntil, until
from tests.faults.awkward_values import gives_back
from tests.faults.payloads.round_trips import each_way, values_of

# 22, 24: modules that are not where their name says.


CELL: Final = """
import enum
LEVEL = 1
class Voice:
    def __init__(self, name):
        self.name = name
    def __eq__(self, other):
        return vars(self) == vars(other)
class Tone(enum.Enum):
    LOW = 1
def speaks(name):
    return Voice(name), Tone.LOW, LEVEL
"""


def notebook(name: str, *, is_known: bool) -> types.ModuleType:
    """A module as notebooks and `exec` make them: there is no file to find it by."""
    module = types.ModuleType(name)
    if is_known:
        sys.modules[name] = module
    exec(textwrap.dedent(CELL), vars(module))
    return module


@pytest.fixture
def forgotten_modules() -> Iterator[None]:
    """Take the modules that a test made out of `sys.modules` again."""
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if name.startswith("made_up"):
            del sys.modules[name]
    importlib.invalidate_caches()


@pytest.mark.fault(22, 24)
@pytest.mark.parametrize("is_known", [True, False], ids=["in-sys.modules", "nowhere"])
@each_way
@pytest.mark.usefixtures("forgotten_modules")
def test_what_a_module_without_a_file_defines_travels_and_comes_back_as_itself(
    muna: Engine, worker: int, way: str, is_known: bool
) -> None:
    module: Any = notebook(f"made_up_{way}", is_known=is_known)
    ((voice, tone, level),) = values_of(muna, way, module.speaks, {"name": "Ada"})
    assert type(voice) is module.Voice
    assert (voice.name, tone, level) == ("Ada", module.Tone.LOW, 1)
    assert values_of(muna, way, gives_back, {"value": [voice, tone]}) == [[voice, tone]]


@pytest.mark.fault(22, 24)
@pytest.mark.usefixtures("forgotten_modules")
def test_a_function_that_is_defined_again_is_sent_again(muna: Engine, worker: int) -> None:
    module: Any = notebook("made_up_cells", is_known=True)
    muna.predictors.register("@tests/cell", module.speaks)
    assert muna.predictions.create("@tests/cell", {"name": "Ada"}, runner="process").value[2] == 1
    exec(textwrap.dedent(CELL).replace("LEVEL = 1", "LEVEL = 2"), vars(module))
    muna.predictors.register("@tests/cell", module.speaks)
    assert muna.predictions.create(module.speaks, {"name": "Ada"}, runner="process").value[2] == 2
    (voice, tone, level) = muna.predictions.create("@tests/cell", {"name": "Ada"}, runner="process").value
    assert (type(voice), tone, level) == (module.Voice, module.Tone.LOW, 2)
    muna.predictors.unregister("@tests/cell")


SETTINGS: Final = """
LEVEL = 1
def helper():
    return "before"
def tells():
    class Inner:
        level = LEVEL
    return Inner.level, helper()
class Model:
    def setup(self):
        self.level = LEVEL
    def predict(self):
        return self.level, LEVEL
"""


@pytest.fixture
def settings(forgotten_modules: None) -> Any:
    """A module as a script or a notebook has it: no other process can import it, and its variables change."""
    module = types.ModuleType("made_up_settings")
    sys.modules[module.__name__] = module
    exec(SETTINGS, vars(module))
    return module


@pytest.mark.fault(22)
@each_way
def test_what_is_assigned_anew_counts_for_the_next_call(muna: Engine, worker: int, settings: Any, way: str) -> None:
    assert values_of(muna, way, settings.tells) == [(1, "before")]
    settings.LEVEL = 2
    assert values_of(muna, way, settings.tells) == [(2, "before")]
    exec("def helper(): return 'after'", vars(settings))
    assert values_of(muna, way, settings.tells) == [(2, "after")]
    assert values_of(muna, way, settings.tells) == [(2, "after")]


@pytest.mark.fault(22)
def test_what_a_function_stored_in_a_worker_stays_there_until_it_is_sent_again(
    muna: Engine, worker: int, settings: Any
) -> None:
    exec("def counts():\n    global COUNT\n    COUNT += STEP\n    return COUNT\nCOUNT, STEP = 0, 1", vars(settings))
    counts = [muna.predictions.create(settings.counts, runner="process").value for _ in range(3)]
    assert (counts, settings.COUNT) == ([1, 2, 3], 0)
    settings.STEP = 5
    assert muna.predictions.create(settings.counts, runner="process").value == 5


@pytest.mark.fault(22)
def test_a_stream_goes_on_as_what_it_began_as_though_its_function_was_sent_again(settings: Any) -> None:
    exec("def streams():\n    for _ in range(3):\n        yield LEVEL", vars(settings))
    with Engine(discover=False, workers=2) as muna:
        stream = muna.predictions.stream(settings.streams, runner="process", prefetch=0)
        before = next(stream).value
        settings.LEVEL = 2
        after = muna.predictions.create(settings.streams, runner="process").value
        assert [before, after, *stream.values()] == [1, 2, 1, 1]


@pytest.mark.fault(22)
@pytest.mark.parametrize("is_object", [False, True], ids=["class", "object"])
def test_a_class_or_object_stays_as_it_was_until_it_is_unloaded_and_that_is_logged_once(
    muna: Engine, settings: Any, caplog: pytest.LogCaptureFixture, is_object: bool
) -> None:
    target = settings.Model() if is_object else settings.Model
    if is_object:
        target.setup()
    muna.predictors.register("@tests/model", target)
    assert muna.predictions.create("@tests/model", runner="process").value == (1, 1)
    settings.LEVEL = 2
    for _ in range(2):
        assert muna.predictions.create("@tests/model", runner="process").value == (1, 1)
    (record,) = caplog.records
    assert "@tests/model: 'LEVEL' has changed" in record.getMessage()
    assert "unload" in record.getMessage()
    muna.unload("@tests/model", runner="process")
    assert muna.predictions.create("@tests/model", runner="process").value == (1 if is_object else 2, 2)
    muna.unload("@tests/model", runner="process")
    muna.predictors.unregister("@tests/model")
    assert len(caplog.records) == 1


@pytest.mark.fault(22)
def test_a_new_function_is_never_taken_for_one_that_lived_at_its_address(muna: Engine, worker: int) -> None:
    addresses = set()
    for number in range(20):
        scope: dict[str, Any] = {}
        exec(f"def tells(): return {number}", scope)
        addresses.add(id(scope["tells"]))
        assert muna.predictions.create(scope["tells"], runner="process").value == number
        del scope
        gc.collect()
    assert len(addresses) < 20


@pytest.mark.fault(22)
def test_a_worker_that_forgot_a_predictor_learns_it_again(muna: Engine, worker: int) -> None:
    def tells(number: int) -> Callable[[], int]:
        return lambda: number

    predictors = [tells(number) for number in range(300)]
    for _ in range(2):
        for number, predictor in enumerate(predictors):
            assert muna.predictions.create(predictor, runner="process").value == number


@pytest.mark.fault(24)
@pytest.mark.usefixtures("forgotten_modules")
def test_a_module_whose_file_is_gone_travels_whole_or_is_named(
    muna: Engine, worker: int, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    early, late = tmp_path / "made_up_early.py", tmp_path / "made_up_late.py"
    early.write_text(CELL)
    late.write_text(CELL)
    first: Any = importlib.import_module("made_up_early")
    early.unlink()
    importlib.invalidate_caches()
    voice, _, _ = muna.predictions.create(first.speaks, {"name": "Ada"}, runner="process").value
    assert type(voice) is first.Voice
    second: Any = importlib.import_module("made_up_late")
    (data,) = values_of(muna, "create", second.speaks, {"name": "Ada"})
    assert type(data[0]) is second.Voice
    assert is_importable_module(second)
    late.unlink()
    with Engine(discover=False, workers=1) as other, pytest.raises(PayloadError, match="made_up_late"):
        other.predictions.create(second.speaks, {"name": "Ada"}, runner="process")


MODULE: Final = """
import dataclasses
LEVEL = "{level}"
@dataclasses.dataclass
class Voice:
    name: str
    def tells(self):
        return self.name, LEVEL
def speaks(name="Ada"):
    return "{level}", Voice(name).tells()
def answers(voice: Voice):
    yield isinstance(voice, Voice), voice.tells()
    yield voice
class Model:
    def setup(self):
        self.level = LEVEL
    def predict(self):
        return self.level, LEVEL
"""


@pytest.fixture
def write(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, forgotten_modules: None) -> Callable[..., Any]:
    """Write a module that can be imported, and import it; or write it again, and reload it."""
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)  # a file written twice in a second looks like the same

    def write(name: str, level: str) -> Any:
        (tmp_path / f"{name}.py").write_text(MODULE.replace("{level}", level))
        importlib.invalidate_caches()
        known = sys.modules.get(name)
        return importlib.import_module(name) if known is None else importlib.reload(known)

    return write


@pytest.mark.fault(24)
def test_after_a_reload_workers_run_what_runs_here(muna: Engine, worker: int, write: Callable[..., Any]) -> None:
    module = write("made_up_reloaded", "before")
    by_text = Predictor("@tests/text", "made_up_reloaded:speaks")
    targets = [module.speaks, by_text]
    assert {values_of(muna, "create", each)[0][0] for each in targets} == {"before"}
    write("made_up_reloaded", "after it")
    for target in (*targets, module.speaks, Predictor("@tests/new", "made_up_reloaded:speaks")):
        here = values_of(muna, "create", target, runner="inline")
        assert values_of(muna, "create", target) == here
        assert here[0][1] == ("Ada", "after it")
    (told, voice) = values_of(muna, "stream", module.answers, {"voice": module.Voice("Bo")})
    assert (told, type(voice)) == ((True, ("Bo", "after it")), module.Voice)


@pytest.mark.fault(24)
def test_a_task_that_waits_for_anothers_encoding_sends_what_was_assigned_before_its_own_call(
    muna: Engine, worker: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    level = "old"

    def tells() -> str:
        return level

    is_encoded, go_on = threading.Event(), threading.Event()
    encode_target = _targets.encode_target  # as `process` knows it

    def encoded(*facts: Any) -> bytes:
        data = encode_target(*facts)
        is_encoded.set()
        assert go_on.wait(TIMEOUT)
        return data

    async def main() -> list[str]:
        nonlocal level
        first = asyncio.create_task(muna.predictions.acreate(tells, runner="process"))
        assert await asyncio.to_thread(is_encoded.wait, TIMEOUT)
        level = "new"
        second = asyncio.create_task(muna.predictions.acreate(tells, runner="process"))
        (encoding,) = encodings_of(muna).values()
        await auntil(lambda: len(encoding.parked()) == 2, "both wait for it")
        go_on.set()
        return [each.value for each in await asyncio.gather(first, second)]

    monkeypatch.setattr(encoding_module, "encode_target", encoded)
    assert asyncio.run(main()) == ["old", "new"]


@pytest.mark.fault(24)
def test_once_no_worker_has_a_reloaded_module_as_it_was_a_predictor_and_its_inputs_agree_on_its_classes(
    write: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_by_reference, "_workers", {})  # those of other engines here have nothing to do with it
    before = write("made_up_twice", "before")

    def is_voice(voice: object) -> tuple[bool, int]:
        return isinstance(voice, Voice), os.getpid()

    def is_one_too(voice: object) -> tuple[bool, int]:
        return isinstance(voice, Voice), os.getpid()

    Voice = before.Voice
    with Engine(discover=False, workers=1) as muna:
        is_known, first = values_of(muna, "create", is_voice, {"voice": Voice("Ada")})[0]
        Voice = write("made_up_twice", "after it").Voice
        assert values_of(muna, "create", is_voice, {"voice": Voice("Ada")}) == [(True, first)]
        os.kill(first, signal.SIGKILL)
        until(lambda: not modules_in_workers(), "the worker is over")
        is_still_known, second = values_of(muna, "create", is_voice, {"voice": Voice("Ada")})[0]
        assert values_of(muna, "create", is_one_too, {"voice": Voice("Ada")}) == [(True, second)]
        assert (is_known, is_still_known, second == first) == (True, True, False)


@pytest.mark.fault(24)
def test_what_stands_under_a_predictors_name_meanwhile_is_not_run_for_it(
    muna: Engine, worker: int, write: Callable[..., Any]
) -> None:
    module = write("made_up_replaced", "one")
    by_text = Predictor("@tests/text", "made_up_replaced:speaks")
    assert values_of(muna, "create", by_text) == [("one", ("Ada", "one"))]
    speaks, module.speaks = module.speaks, lambda: "another"
    for target in (by_text, speaks):
        assert values_of(muna, "create", target) == [("one", ("Ada", "one"))]


@pytest.mark.fault(24)
def test_a_class_that_was_reloaded_stays_as_it_was_until_it_is_unloaded(
    write: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    write("made_up_class", "before")
    with Engine([Predictor("@tests/model", "made_up_class:Model")], discover=False, workers=1) as muna:
        assert values_of(muna, "create", "@tests/model") == [("before", "before")]
        write("made_up_class", "after it")
        for _ in range(2):
            assert values_of(muna, "create", "@tests/model") == [("before", "before")]
        (record,) = caplog.records
        assert "@tests/model: made_up_class:Model is another" in record.getMessage()
        muna.unload("@tests/model", runner="process")
        assert values_of(muna, "create", "@tests/model") == [("after it", "after it")]


@pytest.mark.fault(24)
def test_a_path_that_grew_is_told_to_workers_that_run_and_what_a_predictor_added_there_stays(
    muna: Engine, worker: int, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, forgotten_modules: None
) -> None:
    def adds() -> None:
        sys.path.insert(0, "/ahead/of/all")
        sys.path.append("/behind/all")

    values_of(muna, "create", adds)
    (tmp_path / "made_up_grown.py").write_text(MODULE.replace("{level}", "grown"))
    monkeypatch.syspath_prepend(str(tmp_path))
    assert values_of(muna, "create", Predictor("@tests/grown", "made_up_grown:speaks")) == [("grown", ("Ada", "grown"))]
    path = values_of(muna, "create", lambda: list(sys.path))[0]
    assert (path[0], path[1], path[-1]) == ("/ahead/of/all", str(tmp_path), "/behind/all")
    monkeypatch.undo()

    def removes() -> list[str]:
        sys.path[:] = [each for each in sys.path if not each.endswith("/all")]
        return list(sys.path)

    assert values_of(muna, "create", removes)[0][: len(sys.path)] == sys.path


class Finder(importlib.abc.Loader):
    """Imports modules out of nothing, as a program may have it."""

    @classmethod
    def find_spec(cls, name: str, _path: Any = None, _target: Any = None) -> Any:
        return importlib.machinery.ModuleSpec(name, cls(), origin="nothing") if name == "made_up_found" else None

    def exec_module(self, module: Any) -> None:
        exec(MODULE.replace("{level}", "found"), vars(module))


@pytest.mark.fault(24)
@each_way
def test_what_a_finder_of_the_programs_own_imported_travels_whole(
    muna: Engine, worker: int, way: str, monkeypatch: pytest.MonkeyPatch, forgotten_modules: None
) -> None:
    monkeypatch.setattr(sys, "meta_path", [*sys.meta_path, Finder])
    module: Any = importlib.import_module("made_up_found")
    assert values_of(muna, way, module.speaks) == [("found", ("Ada", "found"))]
    voice = values_of(muna, way, module.answers, {"voice": module.Voice("Bo")})[-1]
    assert type(voice) is module.Voice


@pytest.mark.fault(24)
def test_by_value_a_predictor_has_what_the_program_set_in_its_module(
    muna: Engine, worker: int, write: Callable[..., Any]
) -> None:
    module = write("made_up_by_value", "in the file")
    module.LEVEL = "set"
    for target, expected in (
        (Predictor("@tests/by-name", "made_up_by_value:speaks"), "in the file"),
        (Predictor("@tests/by-text", "made_up_by_value:speaks", by_value=True), "set"),
        (Predictor("@tests/by-value", module.speaks, by_value=True), "set"),
    ):
        assert values_of(muna, "create", target) == [("in the file", ("Ada", expected))]
    target = Predictor("@tests/answers", module.answers, by_value=True)
    module.LEVEL = "set again"
    told, voice = values_of(muna, "stream", target, {"voice": module.Voice("Bo")})
    assert (told, type(voice)) == ((True, ("Bo", "set again")), module.Voice)
    assert values_of(muna, "create", Predictor("@tests/model", module.Model, by_value=True)) == [("set again",) * 2]
    muna.unload(Predictor("@tests/model", module.Model, by_value=True), runner="process")


@pytest.mark.fault(24)
def test_by_value_on_a_mark_counts_though_only_a_worker_has_imported_it(
    muna: Engine, worker: int, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, forgotten_modules: None
) -> None:
    source = "LEVEL = 'in the file'\ndef tells(): return LEVEL\ntells.__predictor__ = {'by_value': True}\n"
    (tmp_path / "made_up_marked.py").write_text(source)
    monkeypatch.syspath_prepend(str(tmp_path))
    target = Predictor("@tests/marked", "made_up_marked:tells")
    assert values_of(muna, "create", target) == ["in the file"]
    sys.modules["made_up_marked"].LEVEL = "set"  # type: ignore[attr-defined]
    assert values_of(muna, "create", target) == ["set"]
