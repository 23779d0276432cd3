"""Sentinels of modules come back as themselves, and nothing else does."""

from __future__ import annotations

import dataclasses
import gc
import importlib
import pathlib
import textwrap
import weakref
from typing import Any, Final

import pytest

from engine._wire.decode import decode, decode_known
from engine._wire.encode import encode_whole
from tests.wire.travelling import made_by_hand, travelled

SENTINELS: Final = """
    class Unset: pass
    class Slotted: __slots__ = ()
    class Named:
        def __init__(self, name): self.name = name
    class Kept:
        __slots__ = ("name",)
        def __init__(self, name): self.name = name
    BARE, UNSET, SLOTTED, NAMED, KEPT = object(), Unset(), Slotted(), Named("NAMED"), Kept("KEPT")
"""


@pytest.fixture
def sentinels(forgotten: None, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A module that can be imported, with sentinels of every make."""
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "with_sentinels.py").write_text(textwrap.dedent(SENTINELS))
    return importlib.import_module("with_sentinels")


@pytest.mark.parametrize("name", ["BARE", "UNSET", "SLOTTED", "NAMED", "KEPT"])
def test_a_sentinel_of_a_module_comes_back_as_itself(sentinels: Any, name: str) -> None:
    sentinel = getattr(sentinels, name)
    for value in (sentinel, [sentinel, lambda: None]):  # by plain pickle, and beside what goes by value
        back = travelled(value)
        assert (back[0] if isinstance(back, list) else back) is sentinel
    assert decode_known(encode_whole(sentinel), None) is sentinel


def test_the_sentinels_of_dataclasses_come_back_as_themselves() -> None:
    for each in (dataclasses.MISSING, dataclasses.KW_ONLY):
        assert travelled([each])[0] is each
    (back,) = dataclasses.fields(travelled(dataclasses.make_dataclass("Local", ["x"])))
    assert back.default is dataclasses.MISSING


def test_an_object_that_is_no_sentinel_of_its_module_any_more_comes_back_as_a_copy(sentinels: Any) -> None:
    for value in (object(), sentinels.Unset(), sentinels.Named("other"), sentinels.Kept("other")):
        back = travelled(value)
        assert back is not value
        assert type(back) is type(value)
        assert getattr(back, "name", "other") == "other"
    data = encode_whole((sentinels.UNSET, sentinels.NAMED))
    sentinels.UNSET.mark = sentinels.NAMED.name = 1  # what the other side has differs from what was sent
    unset, named = decode(data)
    assert (vars(unset), vars(named)) == ({}, {"name": "NAMED"})
    assert vars(travelled(sentinels.UNSET)) == {"mark": 1}


def test_a_sentinel_of_a_module_that_no_other_process_can_import_is_one_object_however_often_it_comes(
    forgotten: None,
) -> None:
    module: Any = made_by_hand("with_sentinels_by_hand", SENTINELS)
    for sentinel in (module.BARE, module.UNSET, module.SLOTTED):
        assert travelled(sentinel) is sentinel


def test_objects_that_a_script_has_under_one_name_after_the_other_are_not_kept_for_having_travelled(
    forgotten: None,
) -> None:
    module: Any = made_by_hand("with_sentinels_by_hand", SENTINELS)
    data = []
    for _ in range(3):
        module.UNSET = module.Unset()
        gone = weakref.ref(module.UNSET)
        data.append(encode_whole(module.UNSET))
        assert decode(data[-1]) is module.UNSET
        del module.UNSET
        gc.collect()
        assert gone() is None
    made = [decode(each) for each in (*data, *data)]
    assert made[:3] == made[3:]
    assert len(set(map(id, made))) == 3
