"""Types of every kind that a parameter may be annotated with."""

from __future__ import annotations

import enum
import pathlib
import typing
from typing import Annotated, Any, NewType, Protocol, TypedDict, TypeVar, Union

import annotated_types
import attrs
import numpy as np
import pydantic
import typing_extensions


class Fruit(enum.Enum):
    APPLE = 1
    PEAR = "pear"


class Level(enum.IntEnum):
    LOW = 1
    HIGH = 3


class Tone(enum.StrEnum):
    SOFT = "soft"
    QUIET = "soft"  # another name for it


class Grade(str, enum.Enum):  # noqa: UP042 - as written before there was StrEnum
    GOOD = "good"

    def __str__(self) -> str:
        return f"grade {self.value}"


class Share(float, enum.Enum):
    HALF = 0.5
    ALL = 1


class Access(enum.IntFlag):
    READ = 1
    WRITE = 2


class Pair2(enum.Enum):
    LEFT = (1, 2)
    ARRAY = [np.zeros(2)]  # noqa: RUF012 - a value that cannot be compared


class Mode(enum.Flag):
    READ = 1
    WRITE = 2


class Options(TypedDict):
    size: int


class Loose(typing_extensions.TypedDict):
    size: int


class Pair(typing.NamedTuple):
    left: int


@attrs.define
class Point:
    x: int


class User(pydantic.BaseModel):
    name: str
    age: int = 0


class Admin(User): ...


@typing.runtime_checkable
class Runs(Protocol):
    def run(self) -> None: ...


class TypeAliasType:
    """An alias that stands for itself."""

    @property
    def __value__(self) -> Any:
        return self


class Name(str):
    __slots__ = ()


Age = NewType("Age", int)
Old = NewType("Old", Age)
Bound = TypeVar("Bound", bound=int)
Chosen = TypeVar("Chosen", int, str)
Free = TypeVar("Free")
Alias = typing_extensions.TypeAliasType("Alias", Union[int, None])  # noqa: UP007 - as it is tested, too
Bounded = typing_extensions.TypeAliasType("Bounded", Annotated[int, annotated_types.Ge(0)])
Generic = typing_extensions.TypeAliasType("Generic", list[Free], type_params=(Free,))
Nothing = typing_extensions.TypeAliasType("Nothing", None)
Endless = typing_extensions.TypeAliasType("Endless", "Endless")  # type: ignore[misc]

POINT, PEN, USER = Point(1), pathlib.Path("pen"), User(name="a")
ARRAY = np.zeros((2, 2))
