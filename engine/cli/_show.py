"""What the command line prints: results on stdout, told apart by whether a terminal reads them, and failures.

A pipe gets a line for each value, flushed, and bytes as they are. A terminal sees text grow in one place, and no
character that it would obey: not of a result, nor of the text of an error.
"""

from __future__ import annotations

import fcntl
import json
import math
import os
import sys
from contextlib import contextmanager, suppress
from enum import Enum
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any, Final

from engine._errors import EngineError, printable, quote, say

if TYPE_CHECKING:
    from collections.abc import Iterator
    from traceback import TracebackException

    from engine._reducers import Reducer

_STDOUT, _STDERR = 1, 2  # what every process calls them
_DEPTH: Final = 100  # levels of a value that are shown; deeper ones as their repr
_ENGINE: Final = f"{Path(__file__).parent.parent}{os.sep}"
_OURS: Final = (f"{_ENGINE}_", f"{_ENGINE}runners{os.sep}", f"{_ENGINE}cli{os.sep}", "<engine binder>")
_IMPORTING: Final = ("<frozen importlib", f"{os.sep}importlib{os.sep}__init__.py", f"{os.sep}asyncio{os.sep}")
_REWRITE: Final = "\r\x1b[K"  # to the start of the line, which is erased


class ReaderGoneError(Exception):
    """Raised when the output has no reader any more."""


class UnwritableError(Exception):
    """Raised when the output cannot be written, as on a full disk; the text says why."""


class Output:
    """Where results go: stdout as it was when the command began."""

    def __init__(self) -> None:
        """Take stdout; there is nowhere to write where the process was started without one."""
        self._file: Any = sys.stdout

    @contextmanager
    def apart(self) -> Iterator[None]:
        """Keep stdout for results: what shares its descriptor, such as a worker, writes to stderr meanwhile."""
        original = self._file
        try:
            is_shared = original.fileno() == _STDOUT
        except (AttributeError, OSError, ValueError):  # there is none, it is closed, or no file
            is_shared = False
        if not is_shared:
            yield
            return
        original.flush()
        kept = fcntl.fcntl(_STDOUT, fcntl.F_DUPFD_CLOEXEC, _STDERR + 1)  # never the number of a stderr that is closed
        with os.fdopen(kept, "w", encoding=original.encoding, errors=original.errors) as results:
            self._file = results
            _point_at_stderr(_STDOUT)
            try:
                yield
            finally:
                os.dup2(kept, _STDOUT)
                self._file = original

    @property
    def is_terminal(self) -> bool:
        """Whether it is a terminal."""
        try:
            return self._file is not None and self._file.isatty()
        except ValueError:  # closed
            return False

    @property
    def columns(self) -> int:
        """The width of the terminal; 0 where lines cannot be rewritten."""
        if os.environ.get("TERM", "dumb") == "dumb":
            return 0
        try:
            return os.get_terminal_size(self._file.fileno()).columns
        except (OSError, ValueError):
            return 0

    def can_show(self, text: str) -> bool:
        """Whether stdout's encoding has all of `text`."""
        try:
            text.encode(getattr(self._file, "encoding", None) or "utf-8")
        except (UnicodeEncodeError, LookupError):
            return False
        return True

    def write(self, text: str) -> None:
        """Write text at once; what stdout's encoding lacks is escaped.

        Raises:
            ReaderGoneError: the pipe is closed at its other end.
            UnwritableError: it cannot be written.
        """
        if self._file is None:
            return
        try:
            try:
                self._file.write(text)
            except UnicodeEncodeError:
                encoding = self._file.encoding or "ascii"
                self._file.write(text.encode(encoding, "backslashreplace").decode(encoding))
            self._file.flush()
        except OSError as error:
            raise self._lost(error) from None

    def write_bytes(self, value: bytes) -> None:
        """Write bytes as they are.

        Raises:
            ReaderGoneError: the pipe is closed at its other end.
            UnwritableError: it cannot be written.
        """
        if self._file is None:
            return
        buffer = getattr(self._file, "buffer", None)
        if buffer is None:  # stdout was replaced by something that takes text only
            self.write(f"{quote(value)}\n")
            return
        try:
            self._file.flush()
            buffer.write(value)
            buffer.flush()
        except OSError as error:
            raise self._lost(error) from None

    def _lost(self, error: OSError) -> Exception:
        """Discard what is still buffered, so that Python does not try again at its end; give the error to raise."""
        with suppress(OSError, ValueError, AttributeError):
            descriptor = self._file.fileno()
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, descriptor)
            os.close(nowhere)
        return (
            ReaderGoneError() if isinstance(error, BrokenPipeError) else UnwritableError(error.strerror or str(error))
        )


def _point_at_stderr(descriptor: int) -> None:
    try:
        os.dup2(_STDERR, descriptor)
    except OSError:  # the process has none
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, descriptor)
        os.close(nowhere)


class Display:
    """Shows the values of one prediction, for people or for a pipe."""

    def __init__(self, output: Output, reducer: Reducer | None = None) -> None:
        """Show on `output`; `reducer` says what a stream's partials are, and there is none for a single result."""
        self._output = output
        self._is_terminal = output.is_terminal
        self._columns = output.columns if self._is_terminal else 0
        kind = reducer.name if reducer is not None else ""
        self._is_growing = self._is_terminal and kind == "concat"
        self._is_replaced = self._columns > 0 and kind == "last"
        self._is_open = False  # whether the cursor stands behind text on a line

    def show(self, value: Any) -> None:
        """Show one value."""
        if isinstance(value, str):
            self._show_text(value)
        elif isinstance(value, (bytes, bytearray, memoryview)) and not self._is_terminal:
            self._output.write_bytes(bytes(value))
        else:
            self._line(text_of(value))

    def _show_text(self, text: str) -> None:
        if self._is_growing:
            self._output.write(printable(text))
            self._is_open = not text.endswith("\n") if text else self._is_open
        elif self._is_replaced and text.isprintable() and width_of(text) < self._columns:
            self._output.write(f"{_REWRITE if self._is_open else ''}{text}")
            self._is_open = True
        else:
            self._line(text)

    def _line(self, text: str) -> None:
        self.end()
        self._output.write(f"{printable(text) if self._is_terminal else text}\n")

    def end(self) -> None:
        """End the line that is open, if one is."""
        if self._is_open:
            self._is_open = False
            self._output.write("\n")


def width_of(text: str) -> int:
    """The columns a terminal needs for `text`: two for the wide characters of East Asia, none for marks on others."""
    if text.isascii():
        return len(text)
    from unicodedata import combining, east_asian_width

    return sum(0 if combining(each) else 2 if east_asian_width(each) in "WF" else 1 for each in text)


# Values


class _Shown(str):
    """A short repr that stands for what JSON has no form for."""

    __slots__ = ()


def text_of(value: Any) -> str:
    """A value as JSON, or as a short repr where JSON has no form for it."""
    if isinstance(value, (bytes, bytearray, memoryview)) or (isinstance(value, float) and not math.isfinite(value)):
        return quote(value)
    try:
        plain = _plain(value, _DEPTH)
        return str(plain) if isinstance(plain, _Shown) else json.dumps(plain, ensure_ascii=False)
    except Exception:  # what a foreign object raises while it is looked at
        return quote(value)


def document(fields: dict[str, Any]) -> str:
    """One line of strict JSON, in ASCII; what JSON has no form for is text."""
    return json.dumps({name: _plain_or_text(value) for name, value in fields.items()})


def _plain_or_text(value: Any) -> Any:
    try:
        plain = _plain(value, _DEPTH)
        json.dumps(plain)  # an integer may have too many digits
    except Exception:
        return quote(value)
    return plain


def _plain(value: Any, depth: int) -> Any:  # noqa: PLR0911 - one table of types, one line each
    """What JSON can say of a value: bytes as Base64, not-a-number and infinity as null, others as their repr."""
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, Enum):
        return _plain(value.value, depth)
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, (bytes, bytearray, memoryview)):
        from base64 import b64encode

        return b64encode(bytes(value)).decode("ascii")
    if depth == 0:
        return _Shown(quote(value))
    if isinstance(value, dict):
        return {_key(key): _plain(each, depth - 1) for key, each in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_plain(each, depth - 1) for each in value]
    return _plain_object(value, depth - 1)


def _key(key: Any) -> str:
    if isinstance(key, str):
        return key
    return json.dumps(key) if key is None or isinstance(key, (bool, int, float)) else quote(key)


def _plain_object(value: Any, depth: int) -> Any:
    """Objects that can give themselves in plain types: arrays, models, dataclasses, paths, dates."""
    if isinstance(value, PurePath):
        return str(value)
    for name in ("tolist", "model_dump", "isoformat"):  # numpy and its kin, pydantic, datetime
        method = getattr(type(value), name, None)
        if callable(method):
            return _plain(method(value), depth)
    if hasattr(type(value), "__dataclass_fields__"):
        return {name: _plain(getattr(value, name), depth) for name in type(value).__dataclass_fields__}
    return _Shown(quote(value))


# Failures


class Progress:
    """How far a command is, on stderr: one line that is rewritten where a terminal shows it, else a few that stay."""

    def __init__(self) -> None:
        """Begin with nothing said."""
        self._is_shown = self._is_open = False
        with suppress(ValueError):  # closed
            is_terminal = sys.stderr is not None and sys.stderr.isatty()
            self._is_shown = is_terminal and os.environ.get("TERM", "dumb") != "dumb"

    def tell(self, text: str) -> None:
        """Write a line that stays, where no line is rewritten."""
        if not self._is_shown:
            complain(text)

    def say(self, text: str) -> None:
        """Show another text in place of the last, on a terminal alone; it should be short."""
        if self._is_shown:
            self._is_open = True
            self._write(f"{_REWRITE}{printable(text)}")

    def end(self) -> None:
        """Remove the line."""
        if self._is_open:
            self._is_open = False
            self._write(_REWRITE)

    def _write(self, text: str) -> None:
        with suppress(OSError, ValueError):
            sys.stderr.write(text)
            sys.stderr.flush()


def complain(text: str) -> None:
    """Say something on stderr, safely; where there is no reader, nothing happens."""
    file = sys.stderr
    if file is None:
        return
    with suppress(OSError, ValueError):
        file.write(f"{printable(text)}\n")
        file.flush()


def failure_text(error: BaseException) -> str:
    """The type and text of an error under a traceback of the predictor's own frames; the engine's, as a sentence."""
    from traceback import TracebackException

    try:
        shown = TracebackException.from_exception(error)
        _trim(shown)
        is_ours = isinstance(error, EngineError) and not shown.stack and error.__cause__ is None
        text = str(error) if is_ours else "".join(shown.format())
    except Exception:  # an exception that cannot even be looked at
        text = f"{type(error).__name__}: {say(error)}"
    remote = getattr(error, "traceback", "")
    return f"{remote.rstrip()}\n{text.rstrip()}" if remote and isinstance(remote, str) else text.rstrip()


def _trim(shown: TracebackException | None) -> None:
    """Leave out the engine's frames, and those that import or drive a predictor, in a whole chain of errors."""
    if shown is None:
        return
    kept = [frame for frame in shown.stack if not frame.filename.startswith(_OURS)]
    while kept and any(part in kept[0].filename for part in _IMPORTING):
        del kept[0]
    shown.stack[:] = kept
    for chained in (shown.__cause__, shown.__context__, *(getattr(shown, "exceptions", None) or ())):
        _trim(chained)
