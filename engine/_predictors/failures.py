"""What a predictor raised: explained, trimmed and noted."""

from __future__ import annotations

import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from engine._errors import PredictorError, name_shown, say
from engine._predictors.body import stopped

if TYPE_CHECKING:
    import types

    from engine._records import Call

_NOTE: Final = "predictor "  # how our one note on a predictor's exception begins


def is_foreign_cancel(error: BaseException) -> bool:
    """Whether this is asyncio's CancelledError, told without importing asyncio."""
    # The class is looked for, not the module: another thread may have imported only half of that so far.
    cancelled = getattr(sys.modules.get("asyncio.exceptions"), "CancelledError", None)
    return cancelled is not None and isinstance(error, cancelled)


def explain(error: BaseException, call: Call, delivered: int) -> BaseException:
    """Give the exception that arrives at the consumer for one the body raised.

    Args:
        error: what came out of the body.
        call: named in the note.
        delivered: partials the consumer had before it.

    Returns:
        `error` itself with one note of ours, or what stands for it: `RuntimeError` for a StopIteration,
        `PredictorError` for what would end more than the call (SystemExit, KeyboardInterrupt, a CancelledError no task
        asked for, GeneratorExit). The original is then its `__cause__`.
    """
    if isinstance(error, (StopIteration, StopAsyncIteration)):
        failure: BaseException = stopped(error)
        failure.__cause__ = error
    elif isinstance(error, (SystemExit, KeyboardInterrupt, GeneratorExit)) or is_foreign_cancel(error):
        name, text = type(error).__name__, say(error)
        failure = PredictorError(f"the predictor raised {name_shown(name)}{f': {text}' if text else ''}", name)
        failure.__cause__ = error
    else:
        failure = error
        trim(error)
    _note(failure, call, delivered)
    return failure


def trim(error: BaseException) -> None:
    """Begin the traceback where the predictor's own code begins, if it does anywhere."""
    entry = error.__traceback__
    ours: list[types.FrameType] = []
    while entry is not None and entry.tb_frame.f_globals.get("__name__", "").startswith("engine."):
        ours.append(entry.tb_frame)
        entry = entry.tb_next
    if entry is not None:
        BaseException.with_traceback(error, entry)  # the class's own may be anything
        for frame in ours:  # the predictor's frames still refer to them, and they to streams and inputs
            with suppress(RuntimeError):  # one that is running cannot be cleared: its variables go when it returns
                frame.clear()


def _note(error: BaseException, call: Call, delivered: int) -> None:
    text = f"{_NOTE}{call.tag}, prediction {call.id}, runner {call.runner}, after {delivered} partials"
    try:
        notes = getattr(error, "__notes__", ())
        ours = [note for note in notes if isinstance(note, str) and note.startswith(_NOTE) and ", prediction " in note]
        for note in ours:
            error.__notes__.remove(note)
        error.add_note(text)
    except Exception:  # noqa: S110 - an exception may refuse attributes: then it arrives without a note
        pass
