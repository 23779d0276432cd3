"""Predictors that a script, a command or a notebook defines run in workers, and `__main__` runs once."""

from __future__ import annotations

import pathlib
import re
import subprocess
import sys
from typing import Final

import pytest

from tests._kit.processes import SCRIPT_TIMEOUT

# 22, 23: predictors out of scripts.


SCRIPT: Final = """
import asyncio, dataclasses, enum, functools, math, os, sys, typing
from engine import Engine

print("main runs", os.getpid())
HOME = os.getpid()
OFFSET = 100
settings = {"offset": OFFSET}

class Shade(enum.Enum):
    DARK = "dark"
    LIGHT = "light"

@dataclasses.dataclass
class Point:
    x: int
    shade: Shade = Shade.DARK
    def shifted(self):
        return Point(self.x + OFFSET, Shade.LIGHT)

class Model:
    scale = 2
    def __init__(self, bias=0):
        self.bias = bias
    def setup(self):
        self.is_set_up = os.getpid() != HOME
    def predict(self, x: int):
        assert self.is_set_up
        return x * self.scale + self.bias + OFFSET

class Client:
    def __init__(self, factor):
        self.factor = factor
    def times(self, x):
        return x * self.factor
    def __call__(self, x):
        yield from (x, self.times(x))

class Error(Exception):
    pass

def away():
    assert os.getpid() != HOME

def plain(x: int = 1, *, point: "Point | None" = None):
    away()
    return point.shifted() if point else x + settings["offset"]

def factorial(n):
    away()
    return n * factorial(n - 1) if n else 1

def even(n): return not n or odd(n - 1)
def odd(n): return bool(n) and even(n - 1)

def counts(n):
    away()
    yield from range(n)

async def waits(x):
    away()
    await asyncio.sleep(0)
    return plain(x)

async def streams(n):
    for number in range(n):
        await asyncio.sleep(0)
        yield number, Shade.DARK

def fails():
    raise Error("of the script")

def nested(x):
    def inner(y):
        return x + y + OFFSET
    return inner

def local():
    class Local:
        def predict(self, x):
            return Point(x)
    return Local

def kwonly(*, a, b=2, **more): return a, b, more

UNSET = object()

@dataclasses.dataclass
class Config:
    name: str
    sizes: list = dataclasses.field(default_factory=list)

def required():
    return [each.name for each in dataclasses.fields(Config) if each.default is dataclasses.MISSING]

def derived():
    return dataclasses.make_dataclass("Derived", ["x"], bases=(Config,), kw_only=True)(name="a", x=1).sizes

def is_unset(value=UNSET, other=None):
    return value is UNSET and other in (None, UNSET)

def gives_unset():
    yield UNSET

UserId = typing.NewType("UserId", int)
Item, Rest, Items = typing.TypeVar("Item", bound=UserId), typing.ParamSpec("Rest"), typing.TypeVarTuple("Items")

def typed(user: UserId = UserId(1), call: "typing.Callable[Rest, Item] | None" = None):
    yield UserId(user), UserId.__supertype__, Item.__bound__ is UserId, f"{Item} {Rest} {Items}"
    yield UserId

NEWER = []
if sys.version_info >= (3, 12):
    exec('''
type Text = str
type Json = dict[str, Json] | list[Json] | Text
type Tree[T: (int, Text), *Ts, **P] = T | list[Tree[T, *Ts, P]]
type Lazy = Missing
Late = typing.TypeAliasType("Late", list[Item], type_params=(Item,))
def aliased(x: Json = "a", y: Tree[int, int, [int]] = 1):
    tree = Tree.__value__.__args__[1].__args__[0]
    try:
        Lazy.__value__
    except NameError as error:
        lazy = str(error)
    yield Json.__value__.__args__[1].__args__[0] is Json, tree.__origin__ is Tree, str(Tree.__value__), lazy
    yield Tree.__type_params__[0] is Tree.__value__.__args__[0], Tree.__type_params__[0].__constraints__[1] is Text
    yield str(Late.__value__), Late.__type_params__[0] is Item
    yield Json
def generic[T](x: T = 1) -> T:
    return str(generic.__type_params__)
class Box[T]:
    size: T
    def predict(self, x: T = 1) -> T:
        return str(Box[int]), str(Box.__type_params__)
NEWER += [
    (aliased, {}, list(aliased())), (generic, {}, ["(T,)"]), (Box, {}, [("__main__.Box[int]", "(T,)")])
]
''')
if sys.version_info >= (3, 14):
    exec('''
import annotationlib
def helper(x: Missing) -> Missing: return x
def lazy(x: Missing = 1) -> Missing:
    texts = annotationlib.Format.STRING
    return helper(x), [annotationlib.get_annotations(each, format=texts) for each in (lazy, helper, Unimported)]
class Unimported:
    size: Missing = 2
    also: int = 3
    def predict(self, x: Missing = 1) -> Missing:
        return self.size + x
NEWER += [(lazy, {}, [lazy()]), (Unimported, {}, [3])]
''')
if sys.version_info >= (3, 15):
    exec('''
UNKNOWN = sentinel("UNKNOWN")
def is_unknown(x=UNKNOWN):
    yield x is UNKNOWN
    yield UNKNOWN
NEWER += [(is_unknown, {"x": UNKNOWN}, [True, UNKNOWN])]
''')

CASES = [
    *NEWER,
    (typed, {}, list(typed())),
    (lambda x: x + OFFSET, {"x": 1}, [101]),
    (nested(5), {"y": 1}, [106]),
    (plain, None, [101]),
    (plain, {"point": Point(1)}, [Point(101, Shade.LIGHT)]),
    (functools.partial(plain, 7), {}, [107]),
    (factorial, {"n": 5}, [120]),
    (even, {"n": 7}, [False]),
    (counts, {"n": 3}, [0, 1, 2]),
    (waits, {"x": 3}, [103]),
    (streams, {"n": 2}, [(0, Shade.DARK), (1, Shade.DARK)]),
    (Client(3).times, {"x": 2}, [6]),
    (Client(3), {"x": 2}, [2, 6]),
    (Model, {"x": 2}, [104]),
    (functools.partial(Model, bias=1), {"x": 2}, [105]),
    (local(), {"x": 2}, [Point(2)]),
    (local()(), {"x": 2}, [Point(2)]),
    (kwonly, {"a": 1, "c": 3}, [(1, 2, {"c": 3})]),
    (math.hypot, {}, [0.0]),
    (required, {}, [["name", "sizes"]]),
    (derived, {}, [[]]),
    (is_unset, {"other": UNSET}, [True]),
    (gives_unset, {}, [UNSET]),
]

async def main(muna):
    for target, inputs, expected in CASES:
        stream = muna.predictions.astream(target, inputs, runner="process")
        assert [value async for value in stream.values()] == expected, target
        assert (await muna.predictions.acreate(target, inputs, runner="process")).value == expected[-1], target

muna = Engine(discover=False, workers=2)
for target, inputs, expected in CASES:
    assert list(muna.predictions.stream(target, inputs, runner="process").values()) == expected, target
    assert muna.predictions.create(target, inputs, runner="process").value == expected[-1], target
asyncio.run(main(muna))
point = muna.predictions.create(plain, {"point": Point(1)}, runner="process").value
assert type(point) is Point and point.shade is Shade.LIGHT
try:
    muna.predictions.create(fails, runner="process")
except Error as error:
    assert "in fails" in error.__notes__[0], error.__notes__
else:
    raise AssertionError("nothing was raised")

def plain(x):  # as in a cell that was run again
    return "again"
assert muna.predictions.create(plain, {"x": 1}, runner="process").value == "again"
if os.path.exists("sibling.py"):
    import sibling
    from package import inner
    assert muna.predictions.create(sibling.greet, {"name": "Ada"}, runner="process").value == "hello Ada"
    assert muna.predictions.create(lambda: inner.Voice(sibling.WORD), runner="process").value == inner.Voice("hello")
muna.close()
print("main ends")
"""


@pytest.mark.fault(22, 23, 28)
@pytest.mark.parametrize("how", ["command", "script", "stdin", "module"])
def test_whatever_a_script_defines_can_run_in_a_worker_and_main_runs_once(how: str, tmp_path: pathlib.Path) -> None:
    path = tmp_path / ("a script" if how == "script" else "script.py")
    path.write_text(SCRIPT)
    (tmp_path / "sibling.py").write_text("WORD = 'hello'\ndef greet(name): return f'{WORD} {name}'\n")
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "__init__.py").touch()
    (tmp_path / "package" / "inner.py").write_text(
        "import dataclasses\n@dataclasses.dataclass\nclass Voice:\n    word: str\n"
    )
    arguments = {
        "command": ["-c", SCRIPT],
        "script": [str(path)],
        "stdin": ["-"],
        "module": ["-m", "script"],
    }[how]
    done = subprocess.run(
        [sys.executable, *arguments],
        check=False,
        capture_output=True,
        text=True,
        timeout=SCRIPT_TIMEOUT,
        cwd=tmp_path,
        input=SCRIPT if how == "stdin" else "",
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert re.fullmatch(r"main runs \d+\nmain ends\n", done.stdout)


OF_MAIN: Final = """
from __future__ import annotations
import dataclasses, multiprocessing, pickle, sys, threading, typing
import __main__ as main
from engine import Engine

LEVEL = 3

class Guarded:
    guard = threading.Lock()  # it cannot travel, and is nothing but named

@dataclasses.dataclass
class Inner:
    number: int

@dataclasses.dataclass
class Point:
    inner: Inner | None = None
    guarded: Guarded | None = None

class OfAnInput:
    def __eq__(self, other):
        return type(other) is OfAnInput

def copied(value):
    return pickle.loads(pickle.dumps(value))

def helper(number):
    return number * LEVEL

def callback():
    return LEVEL

def pickles(value):
    class Local:
        pass
    try:
        pickle.dumps(Local)
    except (AttributeError, pickle.PicklingError):
        refused = True
    return copied(value) == value, copied(Point) is Point, copied(helper) is helper, copied(pickles) is pickles, refused

def pools():
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.map(helper, [1, 2])

def hints(point: Point | None = None, guarded: Guarded | None = None):
    try:
        names = [str(each) for each in typing.get_type_hints(pools_of).values()]
    except NameError as error:
        names = str(error)
    return names, str(typing.get_type_hints(Inner)), str(typing.get_type_hints(Point, localns={"Guarded": int}))

def pools_of(inner: Inner, points: list[Point]):
    pass

def asks():
    import __main__
    return __main__.LEVEL, __main__.asks is asks, main is __main__, __main__.__name__, sys.modules["__main__"] is main

class Model:
    def setup(self):
        self.copy = pickle.loads(pickle.dumps(self))
    def predict(self):
        return type(self.copy) is Model is main.Model
    def teardown(self):
        print("torn down", copied(Model) is Model)

def sets():
    global LEVEL
    LEVEL += 1
    return LEVEL, main.LEVEL

def own():
    return main.LEVEL, LEVEL

if __name__ == "__main__":
    with Engine(discover=False, workers=1) as muna:
        cases = [(pickles, {"value": OfAnInput()}), (pickles, {"value": [Inner(1), callback]}), (pools, {}),
                 (hints, {}), (asks, {}), (Model, {}), (pickles, {"value": OfAnInput()})]
        for target, inputs in cases:
            here, there = (muna.predictions.create(target, inputs, runner=each).value for each in ("inline", "process"))
            assert here == there, (target, here, there)
        for target, expected in ((sets, 4), (sets, 5), (own, 3)):  # each has its own
            assert muna.predictions.create(target, runner="process").value == (expected, expected), target
        muna.unload(Model, runner="inline")
        muna.unload(Model, runner="process")
"""


@pytest.mark.fault(22, 23)
@pytest.mark.parametrize("how", ["script", "module"])
def test_what_asks_for_main_in_a_worker_finds_what_it_finds_in_the_program(how: str, tmp_path: pathlib.Path) -> None:
    (tmp_path / "script.py").write_text(OF_MAIN)
    done = subprocess.run(
        [sys.executable, *(["-m", "script"] if how == "module" else ["script.py"])],
        check=False,
        capture_output=True,
        text=True,
        timeout=SCRIPT_TIMEOUT,
        cwd=tmp_path,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == ["torn down True"] * 2
