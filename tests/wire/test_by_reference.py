"""Which modules are importable elsewhere, so that what they define goes by name."""

from __future__ import annotations

import importlib
import pathlib
import sys
import textwrap
import types
import zipfile
from typing import Final

import pytest

from engine._wire import by_reference as _by_reference
from engine._wire.by_reference import is_importable_module
from engine._wire.decode import decode_known
from engine._wire.encode import encode_whole
from tests.wire.travelling import Shade, made_by_hand, travelled


@pytest.mark.parametrize(
    "name",
    ["sys", "builtins", "_io", "_collections_abc", "os", "json", "json.decoder", "numpy", "numpy.linalg", "math"],
)
def test_modules_of_python_and_of_packages_are_importable(name: str) -> None:
    assert is_importable_module(importlib.import_module(name))


@pytest.mark.usefixtures("forgotten")
def test_what_was_made_by_hand_or_is_gone_is_not_importable(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "there.py").write_text("")
    (tmp_path / "gone.py").write_text("")
    (tmp_path / "shadowed.py").write_text("")
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "__init__.py").write_text("")
    (tmp_path / "package" / "inside.py").write_text("")
    (tmp_path / "space").mkdir()
    (tmp_path / "space" / "inside.py").write_text("")
    with zipfile.ZipFile(tmp_path / "archive.zip", "w") as archive:
        archive.writestr("zipped.py", "")
    monkeypatch.syspath_prepend(str(tmp_path / "archive.zip"))
    good = ["there", "package", "package.inside", "space", "space.inside", "zipped"]
    for name in good:
        assert is_importable_module(importlib.import_module(name)), name

    gone, shadowed = importlib.import_module("gone"), importlib.import_module("shadowed")
    (tmp_path / "gone.py").unlink()
    assert not is_importable_module(gone)
    sys.modules["shadowed"] = types.ModuleType("shadowed")
    assert not is_importable_module(shadowed)
    assert not is_importable_module(sys.modules["shadowed"])
    assert not is_importable_module(made_by_hand("by_hand"))
    assert not is_importable_module(made_by_hand("package.by_hand"))
    assert not is_importable_module(made_by_hand("json"))  # another of that name could be found
    assert not is_importable_module(importlib.import_module("__main__"))
    for name in ("elsewhere", "shadowed"):  # a file that is found under another name, and one in the place of another
        spec = importlib.util.spec_from_file_location(name, tmp_path / "there.py")
        assert spec is not None
        elsewhere = sys.modules[name] = importlib.util.module_from_spec(spec)
        assert not is_importable_module(elsewhere)


@pytest.mark.usefixtures("forgotten")
def test_a_package_made_by_hand_hides_even_a_module_with_a_file(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "inside.py").write_text("")
    package = made_by_hand("owner")
    package.__path__ = [str(tmp_path)]
    assert not is_importable_module(importlib.import_module("owner.inside"))


@pytest.mark.usefixtures("forgotten")
def test_an_object_that_stands_for_a_module_and_a_finder_that_raises_are_survived(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Standing:
        __hash__ = None  # type: ignore[assignment]
        __slots__ = ()

    class Finder:
        @staticmethod
        def find_spec(*_facts: object) -> None:
            raise LookupError("broken")

    encode_whole(lambda: None)  # what that needs is imported
    monkeypatch.setattr(sys, "meta_path", [Finder, *sys.meta_path])
    sys.modules["standing"] = Standing()  # type: ignore[assignment]
    Local = type("Local", (), {"__module__": "standing"})
    assert not is_importable_module(sys.modules["standing"])
    assert type(travelled(Local())).__name__ == "Local"
    assert is_importable_module(importlib.import_module("json.scanner"))


FINDER: Final = """
    import importlib.abc, importlib.machinery, sys

    class Finder(importlib.abc.Loader):
        def find_spec(self, name, path=None, target=None):
            wanted = name.rpartition(".")[2].startswith("virtual")
            return importlib.machinery.ModuleSpec(name, self, origin="nowhere") if wanted else None
        def exec_module(self, module):
            pass

    def install():
        sys.meta_path.append(Finder())
"""


@pytest.mark.usefixtures("forgotten")
def test_what_a_finder_imports_is_importable_only_where_workers_have_that_finder(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "with_own_finder").mkdir()
    (tmp_path / "with_own_finder" / "__init__.py").write_text(textwrap.dedent(FINDER) + "install()\n")
    monkeypatch.setattr("site.getsitepackages", lambda: [str(tmp_path)])
    monkeypatch.setattr(_by_reference, "_at_start", None)
    assert is_importable_module(importlib.import_module("with_own_finder.virtual"))  # its package brings the finder
    assert not is_importable_module(importlib.import_module("virtual_of_the_program"))
    made_by_hand("of_an_editable_install", FINDER).install()
    sys.meta_path.append(sys.meta_path.pop(-2))  # it comes first of the two
    assert not is_importable_module(importlib.import_module("virtual_of_another"))
    (tmp_path / "editable.pth").write_text(
        "/some/folder\nimport of_an_editable_install; of_an_editable_install.install()\n"
    )
    monkeypatch.setattr(_by_reference, "_at_start", None)
    assert is_importable_module(importlib.import_module("virtual_of_an_editable_install"))


def test_a_pickle_is_rebuilt_out_of_modules_that_are_there_or_not_at_all() -> None:
    assert decode_known(encode_whole([1, Shade.DARK]), "otherwise") == [1, Shade.DARK]
    name = "wave" if "wave" not in sys.modules else "sndhdr"
    data = f"c{name}\nopen\n.".encode()
    assert decode_known(data, "otherwise") == "otherwise"
    assert name not in sys.modules
    assert decode_known(b"garbage", "otherwise") == "otherwise"
