"""Exceptions that travel, or cannot, and what becomes of them."""

from __future__ import annotations

import dataclasses
import pickle
import threading
from typing import Any, Final

from engine import PredictorError
from engine._wire.decode import decode
from engine._wire.failures import LARGEST_FAILURE, pack_failure, unpack_failure


class NeedsMore(Exception):
    def __init__(self, message: str, code: Any) -> None:
        super().__init__(message)
        self.code = code


@dataclasses.dataclass(frozen=True)
class Frozen(Exception):
    code: int


class OfItsOwn(BaseException):
    """No Exception."""


class Mute(Exception):
    def __str__(self) -> str:
        raise LookupError("it cannot be shown")

    __repr__ = __str__


class Numeric(Exception):
    def __str__(self) -> str:
        return 7  # type: ignore[return-value]  # noqa: PLE0307 - the point


class Holding(Exception):
    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.guard = threading.Lock()


def struck(error: BaseException) -> BaseException:
    """Raise an exception, and give it with its traceback."""
    try:
        raise error  # the line that struck
    except BaseException as caught:
        return caught


def arrived(error: BaseException, place: str = "in worker 7") -> BaseException:
    """Send an exception as built-in types, and give what arrives."""
    packed = decode(pickle.dumps(pack_failure(error), 5))
    return unpack_failure(packed, place)


def described(error: BaseException) -> PredictorError:
    found = arrived(error)
    assert isinstance(found, PredictorError)
    assert type(found) is PredictorError
    return found


def notes_of(error: BaseException) -> list[str]:
    return list(getattr(error, "__notes__", ()))


MOST: Final = LARGEST_FAILURE + 4 * 65_536 + 10_000  # bytes of one packed exception: itself, its texts, and the rest


class Loud:
    """Counts how often its `repr` is made."""

    rendered = 0

    def __repr__(self) -> str:
        Loud.rendered += 1
        return "Loud()"


def huge() -> list[Any]:
    return [Loud()] * 1_000_000


def chain(length: int) -> BaseException:
    error: BaseException = ValueError(0)
    for number in range(1, length):
        later = ValueError(number)
        later.__cause__ = error
        error = later
    return error


def causes_of(error: BaseException | None) -> list[BaseException]:
    found = []
    while error is not None:
        found.append(error)
        error = error.__cause__
    return found
