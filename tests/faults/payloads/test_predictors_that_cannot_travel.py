"""Predictors that hold what cannot travel, which is named."""

from __future__ import annotations

import functools
import pathlib
import sys
from collections.abc import Callable
from typing import Any

import pytest

from engine import Engine, PayloadError
from tests.faults import awkward_values
from tests.faults.awkward_values import Keeper, gives_back
from tests.faults.payloads.round_trips import each_way, values_of

# 25: predictors that cannot travel.


@pytest.mark.fault(25)
@pytest.mark.parametrize("make", [awkward_values.lock, awkward_values.generator, awkward_values.frame])
@each_way
def test_a_closure_over_something_that_cannot_travel_names_the_variable(
    muna: Engine, worker: int, way: str, make: Callable[[], Any]
) -> None:
    guard, harmless = make(), [1]

    def uses() -> Any:
        return harmless, guard

    scope: dict[str, Any] = {"harmless": [1], "precious": guard}
    exec("def uses(): return harmless, precious", scope)
    for target, name in ((uses, "guard"), (scope["uses"], "precious")):
        with pytest.raises(PayloadError, match=f"^'{name}', which the predictor .*uses uses, of type") as caught:
            values_of(muna, way, target)
        assert caught.value.type_name == f"{type(guard).__module__}.{type(guard).__qualname__}"


@pytest.mark.fault(25)
def test_a_file_opened_for_writing_is_named(muna: Engine, worker: int, tmp_path: pathlib.Path) -> None:
    with (tmp_path / "log").open("w") as log:

        def writes() -> None:
            log.write("a line")

        with pytest.raises(PayloadError, match=r"^'log', which the predictor .*writes uses, of type TextIOWrapper"):
            muna.predictions.create(writes, runner="process")


@pytest.mark.fault(25)
@pytest.mark.parametrize("mode", ["r", "w+", "rb", "r+b"])
def test_an_open_file_of_a_predictor_is_never_silently_a_copy(
    muna: Engine, worker: int, tmp_path: pathlib.Path, mode: str
) -> None:
    path = tmp_path / "log"
    path.write_text("a line")
    with path.open(mode) as log:
        scope: dict[str, Any] = {"log": log}
        exec("def reads(): return log.read()\nclass Reads:\n  def predict(self): return log.read()", scope)

        def reads(source: Any = log) -> Any:
            return source.read()

        for target, name in ((scope["reads"], "log"), (scope["Reads"], "log"), (reads, "source")):
            with pytest.raises(PayloadError, match=rf"^'{name}', which the predictor .* uses, of type") as caught:
                muna.predictions.create(target, runner="process")
            assert ("open it inside the predictor" in str(caught.value)) == ("b" not in mode)
        if mode == "w+":
            with pytest.raises(PayloadError, match=r"input 'value' of type TextIOWrapper.*pass its path"):
                muna.predictions.create(gives_back, {"value": log}, runner="process")


@pytest.mark.fault(25, 88)
def test_what_a_predictor_keeps_of_its_output_is_the_workers_own_there(
    muna: Engine, worker: int, capsys: pytest.CaptureFixture[str]
) -> None:
    with capsys.disabled():
        scope: dict[str, Any] = {"out": sys.stdout}
        exec("import sys\ndef is_its_own(): return out is sys.stdout", scope)
        assert muna.predictions.create(scope["is_its_own"], runner="process").value


@pytest.mark.fault(25)
def test_an_object_that_cannot_travel_is_named_by_its_tag(muna: Engine, worker: int) -> None:
    keeper = Keeper()
    keeper.kept.append(awkward_values.lock())
    for target in (keeper, keeper.predict, functools.partial(gives_back, awkward_values.lock())):
        with pytest.raises(PayloadError, match=r"the predictor .* of type (Keeper|method|partial) cannot be carried"):
            muna.predictions.create(target, runner="process")
