"""What a script or a module without a file defines goes by value, to a process that has never seen it."""

from __future__ import annotations

import importlib
import pathlib
import subprocess
import sys
import textwrap
from typing import Any, Final

import pytest

from engine._wire import by_reference as _by_reference
from engine._wire.by_reference import is_importable_module
from engine._wire.decode import decode
from engine._wire.encode import encode_whole
from engine._wire.targets import encode_target
from tests.wire.travelling import made_by_hand

DEFINITIONS: Final = """
    import asyncio, dataclasses, enum, functools, sys, types
    import attrs

    LEVEL = 3

    def doubled(x):
        return 2 * x

    @functools.lru_cache(maxsize=3)
    def halved(x):
        return x // 2

    def factorial(n):
        return 1 if n < 2 else n * factorial(n - 1)

    def outer():
        def inner(n):
            return [] if not n else [n, *inner(n - 1)]
        return inner

    class Shade(enum.Enum):
        DARK = "dark"

    @dataclasses.dataclass
    class Point:
        x: int
        def moved(self):
            return Point(self.x + LEVEL)

    @attrs.define
    class Vector:
        x: int
        kind: Shade = Shade.DARK

    class Base:
        def __init__(self, x):
            self.x = x
        def tell(self):
            return self.x

    class Derived(Base):
        def tell(self):
            return super().tell() + [type(self).__name__]
        @classmethod
        def make(cls, x):
            return cls(x)
        @staticmethod
        def double(x):
            return doubled(x)
        @property
        def shown(self):
            return f"<{self.x}>"
        def __call__(self, y):
            return self.x, y

    def local_class():
        class Local(Base):
            pass
        return Local(7)

    def generating(n):
        for each in range(n):
            yield doubled(each)

    async def waiting(x):
        await asyncio.sleep(0)
        return doubled(x)

    def made_by_hand(name, source):
        module = types.ModuleType(name)
        sys.modules[name] = module
        exec(source, module.__dict__)
        return module

    others = made_by_hand("others_by_hand", "BASE = 200\\ndef add(x): return BASE + x")
    tools = made_by_hand("tools_by_hand", "BASE = 100\\ndef add(x): return BASE + x")
    more = made_by_hand("more_by_hand", "import tools_by_hand\\ndef add(x): return tools_by_hand.add(x) + 1")

    def using_others(x):
        return others.add(x)

    VALUES = {
        "lambda": lambda x: x + LEVEL,
        "function": doubled,
        "recursive": factorial,
        "recursive closure": outer(),
        "enum": Shade.DARK,
        "dataclass": Point(4),
        "attrs": Vector(5),
        "object": Derived([1]),
        "bound method": Derived([1]).tell,
        "class method": Derived.make,
        "static method": Derived.double,
        "class": Derived,
        "local class": local_class(),
        "partial": functools.partial(doubled, 21),
        "partial of a partial": functools.partial(functools.partial(max, 1), 2),
        "generator function": generating,
        "async function": waiting,
        "of a module by hand": tools.add,
        "that refers to a module by hand": using_others,
        "of a module by hand that refers to another": more.add,
        "cached": halved,
        "pair of one class": (Point(1), Point(2)),
    }
"""

PACKS: Final = """
    import pickle, sys
    from engine._wire.decode import read_only_bits
    from engine._wire.encode import encode
    packed = {}
    for name, value in VALUES.items():
        payload = encode(value)
        packed[name] = b"".join(map(bytes, payload.chunks)), payload.sizes, read_only_bits(payload.buffers)
    with open(sys.argv[1], "wb") as file:
        pickle.dump(packed, file)
"""

USES: Final = """
    import asyncio, pickle, sys
    from engine._wire.decode import decode
    with open(sys.argv[1], "rb") as file:
        packed = pickle.load(file)
    made = {name: decode(*each) for name, each in packed.items()}
    tells = made["object"]
    print([
        made["lambda"](1), made["function"](2), made["recursive"](5), made["recursive closure"](3),
        made["enum"].value, made["enum"] is type(made["enum"])("dark"),
        made["dataclass"].moved().x, made["dataclass"] == type(made["dataclass"])(4),
        made["attrs"].x, made["attrs"].kind.name,
        tells.tell(), tells.shown, tells(2), made["bound method"](), made["class method"]([2]).tell(),
        made["static method"](4), made["class"]([3]).tell(), made["local class"].tell(), made["partial"](),
        made["partial of a partial"](3), list(made["generator function"](3)), asyncio.run(made["async function"](6)),
        made["of a module by hand"](1), made["that refers to a module by hand"](2),
        made["of a module by hand that refers to another"](3), made["cached"](8),
        made["cached"].cache_parameters()["maxsize"],
        type(made["pair of one class"][0]) is type(made["pair of one class"][1]),
    ])
"""

EXPECTED: Final = [
    4,
    4,
    120,
    [3, 2, 1],
    "dark",
    True,
    7,
    True,
    5,
    "DARK",
    [1, "Derived"],
    "<[1]>",
    ([1], 2),
    [1, "Derived"],
    [2, "Derived"],
    8,
    [3, "Derived"],
    7,
    42,
    3,
    [0, 2, 4],
    12,
    101,
    202,
    104,
    4,
    3,
    True,
]


def run(script: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), *arguments],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


@pytest.mark.fault(22, 24)
def test_what_a_script_defines_works_in_a_process_that_has_never_seen_it(tmp_path: pathlib.Path) -> None:
    place = str(tmp_path / "packed")
    run(textwrap.dedent(DEFINITIONS) + textwrap.dedent(PACKS), place)
    assert run(USES, place).strip() == repr(EXPECTED)


@pytest.mark.fault(24)
@pytest.mark.usefixtures("forgotten")
def test_what_a_module_without_a_file_defines_is_packed_by_value() -> None:
    module = made_by_hand(
        "by_hand_here",
        """
        LEVEL = 2
        class Voice:
            def __init__(self, name): self.name = name
            def tell(self): return self.name * LEVEL
        def speak(name): return Voice(name).tell()
        """,
    )
    data = [encode_target("@me/it", module.speak), encode_whole(module.Voice("b"))]
    del sys.modules["by_hand_here"]
    assert decode(data[0])("a") == "aa"
    assert decode(data[1]).tell() == "bb"


@pytest.fixture
def anew(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Give a module whose class and function have travelled by name."""
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "anew.py").write_text("class Voice: pass\ndef speak(): return 1\n")
    module: Any = importlib.import_module("anew")
    before = module.Voice, module.speak
    assert decode(encode_whole(before)) == before
    return module


@pytest.mark.fault(24)
@pytest.mark.usefixtures("forgotten")
def test_a_module_that_is_imported_again_goes_by_value_while_a_worker_may_have_it_as_it_was(anew: Any) -> None:
    before = anew.Voice(), anew.speak
    older, newer = object(), object()
    _by_reference.add_worker(older)
    try:
        importlib.reload(anew)
        data = encode_whole((anew.Voice, anew.speak))
        del sys.modules["anew"]
        voice, speak = decode(data)
        sys.modules["anew"] = anew
        assert (voice, speak()) == (anew.Voice, 1)
        for value in before:
            assert decode(encode_whole(value)) is not None  # by value, for by name another is found
        _by_reference.add_worker(newer)
        assert not is_importable_module(anew)
        _by_reference.remove_worker(older)
        assert is_importable_module(anew)
    finally:
        _by_reference.remove_worker(older)
        _by_reference.remove_worker(newer)


@pytest.mark.fault(24)
@pytest.mark.usefixtures("forgotten")
def test_a_module_that_is_imported_again_goes_by_reference_where_no_worker_runs(anew: Any) -> None:
    importlib.reload(anew)
    assert is_importable_module(anew)
    assert decode(encode_whole((anew.Voice, anew.speak))) == (anew.Voice, anew.speak)
