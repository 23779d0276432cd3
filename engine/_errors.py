"""The tree of errors, and the bounded `quote` every message shows foreign values with.

Each class keeps its facts as attributes, passes every constructor argument to `super().__init__` (so that it
survives a pickle round trip) and ends its message with what to do next. Nothing of the engine is imported here.
"""

from __future__ import annotations

import reprlib
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_LIMIT = 200  # characters of a foreign value that a message may hold

_shortener = reprlib.Repr()
_shortener.maxstring = _shortener.maxother = _LIMIT
_shortener.maxlong = 40


def quote(value: object) -> str:
    """Show any value in a message: never fails, at most about 200 printable ASCII characters.

    Args:
        value: anything; its `repr` may be huge, raise, or hold control characters.

    Returns:
        Text that is safe to print on any terminal.
    """
    try:
        text = _shortener.repr(value)
        text = ascii(text)[1:-1] if not (text.isascii() and text.isprintable()) else text
    except Exception:
        text = f"<{name_shown(type(value).__name__)} object that cannot be shown>"
    return text if len(text) <= _LIMIT else f"{text[: _LIMIT - 30]}...{text[-27:]}"


def printable(text: str) -> str:
    """`text` on its lines, with everything escaped that a terminal would obey and not show."""
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() or each in "\n\t" else ascii(each)[1:-1] for each in text)


def name_shown(name: object) -> str:
    """The name of a class or function in a message, whatever its author made of it: short, on one line, printable."""
    if type(name) is str and len(name) <= _LIMIT and name.isprintable():
        return name
    try:
        text = str(name)[: _LIMIT + 1]
    except Exception:
        return "?"
    text = "".join(each if each.isprintable() else ascii(each)[1:-1] for each in text)
    return text if len(text) <= _LIMIT else f"{text[: _LIMIT - 3]}..."


def say(error: BaseException) -> str:
    """The text of any exception, printable: `str(error)`, or a stand-in where that raises or is not text."""
    try:
        text = str(error)
    except Exception:
        return "unrepresentable"
    return printable(text if len(text) <= 20 * _LIMIT else f"{text[: 19 * _LIMIT]} ... {text[-_LIMIT:]}")


def counted(number: int) -> str:
    """How many partials, in words."""
    return "1 partial" if number == 1 else f"{number} partials"


diverted: Final[list[Callable[[str], None]]] = []  # in a worker: what sends warnings to its engine's log


def warn(text: str, error: BaseException | None = None) -> None:
    """Write one warning to the log `engine`, with the traceback of an `error` that no caller is left to get."""
    described = text if error is None else f"{text}: {name_shown(type(error).__name__)}: {say(error)}"
    for divert in diverted:
        divert(described)
        return
    import logging  # 5 ms to import, needed only once something went wrong

    logging.getLogger("engine").warning("%s", described, exc_info=error)


class EngineError(Exception):
    """Raised when the engine cannot do what it was asked; the root of every error of its own."""


class PredictorNotFoundError(EngineError, KeyError):
    """Raised when no predictor is registered under a tag."""

    def __init__(self, tag: str, matches: Sequence[str] = ()) -> None:
        """Keep the `tag` asked for and the registered tags that look like it."""
        super().__init__(tag, matches)
        self.tag = tag
        self.matches = tuple(matches)

    def __str__(self) -> str:
        """Name the tag, what it may have meant, and how to add it."""
        near = f"; did you mean {' or '.join(self.matches)}?" if self.matches else ""
        return (
            f"no predictor is registered as {quote(self.tag)}{near or '.'} "
            "`engine list` shows the tags there are; add one with `predictors.register(tag, function)` "
            "or install the package that offers it."
        )


class InvalidTagError(EngineError, ValueError):
    """Raised when something is not a tag of the form `@owner/name`, and no predictor either."""

    def __init__(self, tag: object) -> None:
        """Keep the refused `tag`."""
        super().__init__(tag)
        self.tag = tag

    def __str__(self) -> str:
        """Show the text, escaped, and the grammar."""
        if not isinstance(self.tag, str):
            return (
                f"{quote(self.tag)} is no predictor: give a tag such as '@owner/name', a function, a class or object "
                "with predict(), or a Predictor."
            )
        return (
            f"{quote(self.tag)} is not a tag: write '@owner/name', each part 1 to 64 of "
            "lower-case letters, digits, '-', '_' and '.'."
        )


class DuplicatePredictorError(EngineError):
    """Raised when two sources offer a predictor under one tag."""

    def __init__(self, tag: str, sources: Sequence[str]) -> None:
        """Keep the `tag` and the `sources` (distribution or plugin names) that claim it."""
        super().__init__(tag, sources)
        self.tag = tag
        self.sources = tuple(sources)

    def __str__(self) -> str:
        """Name the tag, its sources, and the ways out."""
        return (
            f"{self.tag} is offered by {' and by '.join(self.sources)}: uninstall one, or block one by name with "
            f"Engine(block=[...]) or PREDICTOR_ENGINE_BLOCK; a predictor of your own replaces it with "
            f"register(..., replace=True)."
        )


class InvalidInputError(EngineError, ValueError):
    """Raised when the inputs of a call do not fit the predictor's signature."""

    def __init__(self, tag: str, problems: Sequence[str], valid: Sequence[str] = ()) -> None:
        """Keep the `tag`, every one of the `problems` (sentences), and the `valid` input names."""
        super().__init__(tag, problems, valid)
        self.tag = tag
        self.problems = tuple(problems)
        self.valid = tuple(valid)

    def __str__(self) -> str:
        """List every problem, then the names that would be accepted."""
        names = f"its inputs are: {', '.join(self.valid)}" if self.valid else "it takes no inputs"
        return f"{self.tag}: {'; '.join(self.problems)} ({names})."


class NoPartialsError(EngineError):
    """Raised when `create` reduces a stream without partials by a reducer that needs one."""

    def __init__(self, tag: str, reducer: str) -> None:
        """Keep the predictor's `tag` and the `reducer`'s name."""
        super().__init__(tag, reducer)
        self.tag = tag
        self.reducer = reducer

    def __str__(self) -> str:
        """Say what was empty and which reducers accept that."""
        return (
            f"{self.tag} ended without a partial, and the reducer '{self.reducer}' needs one: "
            "use stream(), or create(..., reduce='collect')."
        )


class PredictorError(EngineError):
    """Raised when what a predictor raised or returned cannot be handed on as it is."""

    def __init__(self, message: str, type_name: str = "", traceback: str = "") -> None:
        """Keep the `message`, the original's `type_name` and its `traceback` text, where there was one."""
        super().__init__(message, type_name, traceback)
        self.message = message
        self.type_name = type_name
        self.traceback = traceback

    def __str__(self) -> str:
        """The message."""
        return self.message


class PluginError(EngineError):
    """Raised when a predictor or runner is asked for whose plugin could not be used."""

    def __init__(self, name: str, distribution: str = "", reason: str = "", traceback: str = "") -> None:
        """Keep the plugin's or entry point's `name`, its `distribution`, the `reason` and the `traceback` text.

        The latter is shown below the message, as a note.
        """
        super().__init__(name, distribution, reason, traceback)
        self.name = name
        self.distribution = distribution
        self.reason = reason
        self.traceback = traceback
        if traceback:
            self.add_note(traceback.rstrip())

    def __str__(self) -> str:
        """Name the plugin and its distribution, say why it failed, and how to go on without it."""
        source = f" of {self.distribution}" if self.distribution else ""
        return f"{quote(self.name)}{source} could not be used: {self.reason}. Fix or reinstall it, or block it by name."


class PayloadError(EngineError):
    """Raised when an input, a partial or a predictor cannot be carried to or from a worker."""

    def __init__(self, message: str, type_name: str = "", traceback: str = "") -> None:
        """Keep the `message`, the value's `type_name` and the `traceback` text of the failed encoding."""
        super().__init__(message, type_name, traceback)
        self.message = message
        self.type_name = type_name
        self.traceback = traceback

    def __str__(self) -> str:
        """The message."""
        return self.message


class WorkerLostError(EngineError):
    """Raised when the worker that served a call is gone before the call ended."""

    def __init__(self, tag: str, pid: int, reason: str, delivered: int = 0, report: str = "") -> None:
        """Keep the `tag`, the worker's `pid`, the `reason` (exit code or signal), partials `delivered`, `report`."""
        super().__init__(tag, pid, reason, delivered, report)
        self.tag = tag
        self.pid = pid
        self.reason = reason
        self.delivered = delivered
        self.report = report

    def __str__(self) -> str:
        """Say which worker was lost, how, and after how many partials."""
        hint = ", as the system does to processes where memory runs out" if self.reason == "SIGKILL" else ""
        text = (
            f"{self.tag}: worker {self.pid} was lost ({self.reason}{hint}) after {counted(self.delivered)}; "
            "call again, which starts a new worker."
        )
        return f"{text}\n\n{self.report}" if self.report else text


class PredictionTimeoutError(EngineError, TimeoutError):
    """Raised when a prediction takes longer than it was given."""

    def __init__(self, tag: str, seconds: float) -> None:
        """Keep the `tag` and the limit in `seconds`."""
        super().__init__(tag, seconds)
        self.tag = tag
        self.seconds = seconds

    def __str__(self) -> str:
        """Name the predictor and the limit."""
        return f"{self.tag} did not finish within {self.seconds} s: give it longer, or make it yield more often."


class EngineBusyError(EngineError):
    """Raised when a call is refused because its engine or its predictor is at a limit; a server answers it with 503."""

    def __init__(self, message: str, limit: int = 0) -> None:
        """Keep the `message` and the `limit` that was reached."""
        super().__init__(message, limit)
        self.message = message
        self.limit = limit

    def __str__(self) -> str:
        """The message."""
        return self.message


class PredictionCancelledError(EngineError):
    """Raised when a prediction was cancelled, once, by the stream that was consuming it."""

    def __init__(self, tag: str, prediction_id: str) -> None:
        """Keep the `tag` and the `prediction_id`."""
        super().__init__(tag, prediction_id)
        self.tag = tag
        self.prediction_id = prediction_id

    def __str__(self) -> str:
        """Name what was cancelled."""
        return f"{self.tag}: prediction {self.prediction_id} was cancelled; call again to run it anew."


class EngineClosedError(EngineError, RuntimeError):
    """Raised when a closed engine is asked to work, and once by each stream its closing ended."""

    def __init__(self, message: str = "this engine is closed; make a new Engine()") -> None:
        """Keep the `message`."""
        super().__init__(message)
        self.message = message


class NestingError(EngineError, RuntimeError):
    """Raised instead of a deadlock, when a call would wait for itself."""

    def __init__(self, message: str, holder: str = "") -> None:
        """Keep the `message` and the tag and id of the `holder` that would be waited for."""
        super().__init__(message, holder)
        self.message = message
        self.holder = holder

    def __str__(self) -> str:
        """The message."""
        return self.message
