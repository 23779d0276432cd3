"""What travels in the tests of this folder: values that are encoded and decoded at once."""

from __future__ import annotations

import enum
import sys
import textwrap
import types
from typing import TYPE_CHECKING, Any

from engine._wire.decode import decode, read_only_bits
from engine._wire.encode import Payload, encode

if TYPE_CHECKING:
    from collections.abc import Callable


def unpacked(payload: Payload) -> Any:
    """What comes out on the other side; the memory it came through is used again at once."""
    memory = bytearray(b"".join(map(bytes, payload.chunks)))
    with memoryview(memory) as view:
        value = decode(view, payload.sizes, read_only_bits(payload.buffers))
    memory[:] = b"\xff" * len(memory)
    return value


def travelled(value: Any) -> Any:
    return unpacked(encode(value))


def made_by_hand(name: str, source: str = "") -> types.ModuleType:
    module = types.ModuleType(name)
    sys.modules[name] = module
    exec(textwrap.dedent(source), module.__dict__)
    return module


class Shade(enum.IntEnum):
    DARK = 1


class Raising:
    """Calls something where it is packed (`pack`) or unpacked."""

    def __init__(self, act: Callable[[], Any], *, pack: bool = False) -> None:
        self.act, self.pack = act, pack

    def __reduce__(self) -> Any:
        if self.pack:
            self.act()
        return self.act, ()


def raising_lookup() -> Any:
    raise LookupError("it will not")


def raising_exit() -> Any:
    raise SystemExit(3)


def raising_interrupt() -> Any:
    raise KeyboardInterrupt


def deep(levels: int = 100_000, inmost: Any = ()) -> list[Any]:
    found: list[Any] = [inmost]
    for _ in range(levels):
        found = [found]
    return found
