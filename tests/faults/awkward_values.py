"""Values that travel badly: what cannot be packed or unpacked, in one place or another, and what must arrive unharmed.

Workers import this module, so it imports little, and nothing of pytest's.
"""

from __future__ import annotations

import dataclasses
import enum
import os
import threading
import typing
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, Final

import attrs

from engine._records import is_worker

HERE: Final = "here"  # the process that calls
THERE: Final = "there"  # a worker


def _is_at(place: str) -> bool:
    return is_worker() == (place == THERE)


class Earthquake(BaseException):
    """Neither an Exception nor one of Python's own."""


# What cannot be packed, or unpacked.


@attrs.frozen
class HardToPack:
    """Does something else in one place when it is pickled; in the other it travels like anything."""

    place: str
    instead: Callable[[], object]

    def __reduce__(self) -> Any:
        if _is_at(self.place):
            self.instead()
        return HardToPack, (self.place, self.instead)


@attrs.frozen
class HardToUnpack:
    """Does something else in one place when it is unpickled; in the other it arrives like anything."""

    place: str
    instead: Callable[[], object]

    def __reduce__(self) -> Any:
        return _unpack, (self.place, self.instead)


def _unpack(place: str, instead: Callable[[], object]) -> HardToUnpack:
    if _is_at(place):
        instead()
    return HardToUnpack(place, instead)


@attrs.frozen
class Raising:
    """Raises an exception made where it is called; what travels is only how it is made."""

    make: Callable[[], BaseException]

    def __call__(self) -> Any:
        raise self.make()  # the line that struck


def raising(kind: type[BaseException], *args: Any) -> Callable[[], Any]:
    return Raising(Made(kind, args))


@attrs.frozen
class Made:
    """Makes an exception."""

    kind: type[BaseException]
    args: tuple[Any, ...]

    def __call__(self) -> BaseException:
        return self.kind(*self.args)


# What cannot travel at all, made where it is wanted.


def lock() -> object:
    return threading.Lock()


def generator() -> object:
    return [(number for number in range(3))]  # a generator that is returned is no result, but followed


def frame() -> object:
    import sys  # the others need none

    return sys._getframe()


def written_file() -> object:
    import tempfile  # the others need none

    return tempfile.TemporaryFile("w+")


def deep(depth: int = 100_000) -> list[Any]:
    """A list in a list in a list; what pickles it recurses as deep."""
    found: list[Any] = []
    for _ in range(depth):
        found = [found]
    return found


UNPACKABLE: Final = (lock, generator, frame, deep)


# What has a type of its own.


class Word(str):
    """Text with a type of its own."""

    __slots__ = ()


class Shade(enum.IntEnum):
    """A number with a type of its own."""

    DARK = 1


class Flags(enum.Flag):
    """Members that are made when they are first asked for."""

    RED = 1
    BLUE = 2


class Named(typing.NamedTuple):
    """A tuple with a type of its own."""

    x: int
    y: str = "y"


@dataclasses.dataclass
class Point:
    """A dataclass."""

    x: int


@dataclasses.dataclass(frozen=True, slots=True)
class Fixed:
    """One that has neither a dict nor writable attributes."""

    x: int


@attrs.define
class Declared:
    """An attrs class."""

    x: Any


class Many(dict[str, int]):
    """A dict with an attribute."""

    label = "none"


class Only:
    """The one object of its class."""

    def __reduce__(self) -> str:
        return "ONLY"


ONLY: Final = Only()


# What says something else of itself than it is, or has a class that does.


class Unhashed(type):  # noqa: PLW1641 - that is what it is for
    """Classes that are compared in their own way, and so cannot be hashed."""

    def __eq__(cls, other: object) -> bool:
        return cls is other


class HardToHash(type):
    """Classes that will not be hashed."""

    def __hash__(cls) -> int:
        raise RuntimeError("this is not to be hashed")


class OfUnhashed(metaclass=Unhashed):
    """An object of a class that cannot be hashed."""


class OfHardToHash(metaclass=HardToHash):
    """An object of a class that will not be hashed."""


class Masked:
    """An object that says it is a text."""

    @property  # type: ignore[misc]  # elsewhere it may be set
    def __class__(self) -> Any:
        return str

    def __len__(self) -> int:
        return 1

    def __reduce__(self) -> Any:
        return Masked, ()


class Veiled:
    """An object that does not say what it is, as a proxy that is not bound to anything."""

    @property  # type: ignore[misc]  # elsewhere it may be set
    def __class__(self) -> Any:
        raise RuntimeError("this is not bound to anything")

    def __reduce__(self) -> Any:
        return Veiled, ()


class Wrapped:
    """A stand-in for a generator, as those that trace one are: it says that it is one, and can be stepped."""

    def __init__(self, generator: Iterator[Any]) -> None:
        self._generator = generator

    @property  # type: ignore[misc]  # elsewhere it may be set
    def __class__(self) -> Any:
        return type(self._generator)

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        return next(self._generator)


class AsyncWrapped:
    """A stand-in for an async generator."""

    def __init__(self, generator: AsyncIterator[Any]) -> None:
        self._generator = generator

    @property  # type: ignore[misc]  # elsewhere it may be set
    def __class__(self) -> Any:
        return type(self._generator)

    def __aiter__(self) -> AsyncIterator[Any]:
        return self

    async def __anext__(self) -> Any:
        return await anext(self._generator)


DISGUISED: Final = (OfUnhashed, OfHardToHash, Masked, Veiled)


# Predictors.


def gives_back(value: Any) -> Any:
    return value


def yields_back(value: Any) -> Iterator[Any]:
    yield value


class Keeper:
    """Keeps what it is given; tells, when it is asked, what became of it."""

    def __init__(self) -> None:
        self.kept: list[Any] = []

    def predict(self, value: Any = None) -> Any:
        if value is not None:
            self.kept.append(value)
            return os.getpid()
        return self.kept
