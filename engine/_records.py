"""What goes down and what comes back: `Call`, `Prediction` and `Outcome`.

They are made on the hot path, so they are slotted, mutable and built from positional arguments; what is seldom read
(an id's text, a date, an error's text) is made when read. No record keeps the inputs of its call alive.
"""

from __future__ import annotations

import os
from contextvars import ContextVar
from itertools import count
from time import time_ns  # the one use of the wall clock: `created` is a date; every duration is monotonic
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple

import attrs

from engine._errors import EngineClosedError, PredictorError, counted, name_shown, quote, say
from engine._fork import renew_after_fork

if TYPE_CHECKING:
    import weakref
    from datetime import datetime
    from types import TracebackType

State = Literal["pending", "running", "done", "failed", "cancelled", "closed"]
Rung = Literal["asked", "terminated", "killed"]

LOCK_STEP: Final = "inline"  # what `Call.runner` says where the caller itself steps the body
_LONGEST: Final = 65_536  # characters of a failure's text
numbers: Final = count(1)  # one number a call; `next` on it is atomic


class _Origin:
    """What tells the calls of this process from those of its parent and of any other.

    Attributes:
        text: the part of every id that is this process's; a forked child counts on from the same number.
        first: less than the number of any call made here.
    """

    __slots__ = ("__weakref__", "first", "text")

    def __init__(self) -> None:
        self.text = os.urandom(8).hex()
        self.first = 0
        renew_after_fork(self)

    def after_fork(self) -> None:
        self.text = os.urandom(8).hex()
        self.first = next(numbers)


_origin: Final = _Origin()


class Start(NamedTuple):
    """Where and with what an engine was made; its workers start there, whenever they do.

    Attributes:
        folder: the working directory; `None` where there was none any more.
        environment: the environment variables.
    """

    folder: str | None
    environment: dict[str, str]

    @classmethod
    def here(cls) -> Start:
        """The folder and the environment of this process as they are now."""
        try:
            folder: str | None = os.getcwd()  # noqa: PTH109 - a path object would serve nothing here
        except OSError:  # it was deleted
            folder = None
        return cls(folder, dict(os.environ))


_workers: list[bool] = []  # filled in a process that is a worker of some engine


def become_worker() -> None:
    """Note that this process is a worker: what would go to one runs here from now on."""
    _workers.append(True)


def is_worker() -> bool:
    """Whether this process is a worker, or was forked from one."""
    return bool(_workers)


current: Final[ContextVar[Call | None]] = ContextVar("engine.current_call", default=None)


@attrs.define(eq=False, repr=False, slots=True, weakref_slot=False)
class Call:
    """One call of a predictor, as its body sees it through `current_call()`.

    Attributes:
        tag: the predictor's tag, or `module:qualname` for a plain callable.
        runner: where the body runs: `"inline"`, `"thread"`, `"loop"`, `"process"`, or the name of a plugin's runner.
        parent: the call whose body made this one, if any.
        engine: a number that tells this call's engine from others of the process.
        depth: how many calls this one is nested in.
        created_ns: the time of the call, in ns since the epoch.
        stopping: whether the consumer has asked this call to stop. A body without a yield for a long time may look
            at it and return early.
        blocked: the ident of the thread that waits for this call's owner, if a thread does.
        execution: refers weakly to what its consumer pulls, once that has begun.
    """

    tag: str
    runner: str
    parent: Call | None
    engine: int = 0
    depth: int = 0
    _number: int = attrs.field(factory=numbers.__next__)
    created_ns: int = attrs.field(factory=time_ns)
    stopping: bool = False
    blocked: int | None = None
    execution: weakref.ref[Any] | None = None

    @property
    def id(self) -> str:
        """This call's id, unique across processes."""
        return f"{_origin.text}-{self._number}"

    @property
    def created(self) -> datetime:
        """The time of the call, an aware UTC datetime."""
        from datetime import UTC, datetime, timedelta

        return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=self.created_ns // 1000)

    def __repr__(self) -> str:
        """Tag, id and place."""
        return f"<Call {self.tag} {self.id} {self.runner}>"

    def is_within(self, other: Call) -> bool:
        """Whether this call is `other`, or was made by its body, however deep."""
        call: Call | None = self
        while call is not None and call is not other:
            call = call.parent
        return call is not None

    def __getstate__(self) -> tuple[Any, ...]:
        """What travels: the identity, not the chain of callers."""
        return (self.tag, self.runner, self.id, self.created_ns)

    def __reduce__(self) -> tuple[Any, ...]:
        """Rebuild as a call that keeps its id in any process."""
        return (TravelledCall, self.__getstate__())


def refuse_parents_call(call: Call) -> None:
    """Refuse a call that was made before this process was forked: its owners would be this process's.

    Raises:
        EngineClosedError: it is a call of the parent's.
    """
    if call._number < _origin.first:  # noqa: SLF001 - how calls are numbered is known here alone
        raise EngineClosedError


class TravelledCall(Call):
    """A call that was pickled: its id is text, since its number means nothing in another process."""

    __slots__ = ("_id",)

    def __init__(self, tag: str, runner: str, identity: str, created_ns: int, depth: int = 0) -> None:
        super().__init__(tag, runner, None, 0, depth, 0, created_ns)
        self._id = identity

    @property
    def id(self) -> str:
        return self._id


def current_call() -> Call | None:
    """The call whose body is running here, or `None` outside any predictor.

    It follows `contextvars`: what a body starts with the context copied (asyncio tasks, `asyncio.to_thread`) sees it.
    """
    return current.get()


@attrs.define(eq=False, repr=False, slots=True)
class Prediction:
    """One produced value with the facts around it.

    Attributes:
        call: the call it belongs to; every prediction of one stream shares it.
        value: the object exactly as the predictor produced it.
        index: its place among the partials, from 0; for `create` the last partial's.
        latency: the producer's time up to this partial, in ms; what the consumer spent between partials is not in it.
        exception: the failure, where `errors="return"` asked for it as a value.
        logs: text captured during the prediction; empty unless it was asked for.
    """

    call: Call
    value: Any
    index: int
    latency: float
    exception: BaseException | None = None
    logs: str = ""
    _error: str | None = None
    _traceback: TracebackType | None = None

    @property
    def id(self) -> str:
        """The call's id, which all its partials share; unique across processes."""
        return self.call.id

    @property
    def tag(self) -> str:
        """The predictor's tag."""
        return self.call.tag

    @property
    def created(self) -> datetime:
        """The time of the call, an aware UTC datetime."""
        return self.call.created

    @property
    def results(self) -> tuple[Any, ...]:
        """The value as a tuple: `return a, b` gives `(a, b)`, anything else one element."""
        value = self.value
        return value if type(value) is tuple else (value,)

    @property
    def error(self) -> str | None:
        """The failure's traceback as text, cut in the middle to 65,536 characters, or `None`."""
        if self._error is None and self.exception is not None:
            self._error = traceback_of(self.exception)
        return self._error

    def raise_for_error(self) -> Prediction:
        """Raise the failure this prediction carries, if any; else give the prediction itself.

        Raises:
            BaseException: the `exception`, with its original traceback.
        """
        if self.exception is None:
            return self
        if self._traceback is None:
            self._traceback = self.exception.__traceback__
        raise self.exception.with_traceback(self._traceback)  # raised again and again, it does not grow

    def to_dict(self) -> dict[str, Any]:
        """The JSON shape: `id`, `tag`, `results` (a list), `latency` (ms), `error`, `logs`, `created` (ISO 8601)."""
        return {
            "id": self.id,
            "tag": self.tag,
            "results": list(self.results),
            "latency": self.latency,
            "error": self.error,
            "logs": self.logs,
            "created": self.created.isoformat(),
        }

    def __repr__(self) -> str:
        """Short and safe, whatever the value."""
        error = self.exception
        outcome = quote(self.value) if error is None else f"failed: {name_shown(type(error).__name__)}"
        return f"<Prediction {self.tag} #{self.index} {outcome} {self.latency:.3f} ms>"

    def __reduce__(self) -> tuple[Any, ...]:
        """Travel whole; an exception that cannot be rebuilt travels as a `PredictorError` with its text."""
        return (
            Prediction,
            (self.call, self.value, self.index, self.latency, _portable(self.exception), self.logs, self.error),
        )


def traceback_of(error: BaseException) -> str:
    """An exception's traceback as text of a bounded size."""
    import traceback

    try:
        return cut("".join(traceback.format_exception(error)))
    except Exception:
        return f"{type(error).__name__}: {say(error)}"


def cut(text: str) -> str:
    """Text of at most 65,536 characters: a longer one loses its middle."""
    if len(text) <= _LONGEST:
        return text
    return f"{text[: _LONGEST // 2]}\n... {len(text) - _LONGEST} characters ...\n{text[-_LONGEST // 2 :]}"


def _portable(error: BaseException | None) -> BaseException | None:
    if error is None:
        return None
    import pickle

    try:
        pickle.loads(pickle.dumps(error))  # noqa: S301 - our own bytes, to learn whether they can be read back
    except Exception:
        return PredictorError(f"{type(error).__name__}: {say(error)}", type(error).__qualname__, traceback_of(error))
    return error


class Progress:
    """How far a call has come: what an `Outcome` shows.

    Attributes:
        state: see `Outcome`, as the others.
        count: of a call that is reduced: the partials reduced.
        returned: see `Outcome`.
        first: see `Outcome`.
        duration: see `Outcome`.
        rung: see `Outcome`.
    """

    __slots__ = ("count", "duration", "first", "returned", "rung", "state")

    state: State
    count: int
    returned: Any
    first: float | None
    duration: float | None
    rung: Rung | None


class Outcome:
    """How a stream went so far, and how it ended.

    It shows what its call keeps, and is always up to date. The exception alone is its own: what the call keeps is
    referred to by frames that the exception refers to.

    Attributes:
        exception: what the body raised, what its clean-up raised, or what the stream ended with, if anything.
    """

    __slots__ = ("_progress", "exception")

    def __init__(  # noqa: PLR0917 - a record of independent facts
        self,
        state: State = "pending",
        count: int = 0,
        returned: Any = None,
        exception: BaseException | None = None,
        first: float | None = None,
        duration: float | None = None,
        rung: Rung | None = None,
    ) -> None:
        """Show these facts, which do not change."""
        self._progress = progress = Progress()
        progress.state = state
        progress.count = count
        progress.returned = returned
        progress.first = first
        progress.duration = duration
        progress.rung = rung
        self.exception = exception

    @classmethod
    def of(cls, progress: Progress) -> Outcome:
        """Show what a call keeps."""
        outcome = cls.__new__(cls)
        outcome._progress = progress  # noqa: SLF001 - its own class
        outcome.exception = None
        return outcome

    def follow(self, progress: Progress) -> None:
        """Show what another call keeps from now on: the one that was opened in this one's place."""
        self._progress = progress

    @property
    def state(self) -> State:
        """Whether the stream runs, or how it ended.

        It is `"pending"` before the first pull, `"running"`, then exactly one of `"done"`, `"failed"`, `"cancelled"`,
        `"closed"`.
        """
        return self._progress.state

    @property
    def count(self) -> int:
        """Partials delivered."""
        return self._progress.count

    @property
    def returned(self) -> Any:
        """The generator's return value, which is no partial; a plain function's value."""
        return self._progress.returned

    @property
    def first(self) -> float | None:
        """Time from the first pull to the first partial, in ms."""
        return self._progress.first

    @property
    def duration(self) -> float | None:
        """Time from the first pull to the end, in ms; includes what the consumer spent between partials."""
        return self._progress.duration

    @property
    def rung(self) -> Rung | None:
        """How a body in a worker was made to stop.

        It was `"asked"`, `"terminated"` (SIGTERM) or `"killed"` (SIGKILL); `None` where it was not stopped, where
        that is not known yet, or where it ran in this process. After a `cancel()`, which waits for nothing, it comes
        later.
        """
        return self._progress.rung

    @property
    def ended(self) -> bool:
        """Whether the stream has reached its end, whichever."""
        return self.state not in {"pending", "running"}

    def __repr__(self) -> str:
        """Short and safe, whatever was returned."""
        error = "" if self.exception is None else f", {name_shown(type(self.exception).__name__)}"
        return f"<Outcome {self.state} after {counted(self.count)}{error}>"

    def __reduce__(self) -> tuple[Any, ...]:
        """Travel as what it shows now; an exception that cannot be rebuilt travels as a `PredictorError`."""
        facts = (self.state, self.count, self.returned, _portable(self.exception))
        return (Outcome, (*facts, self.first, self.duration, self.rung))
