"""`engine bench`: what calls of a predictor cost in each place it can run, measured as its consumer sees it.

After its first call, which is reported apart, every runner is measured in rounds that take turns, so that a busy
spell of the machine meets all alike. Clocks are read by the consumer, between one partial and the next, and nothing
is computed while they run. What was measured before Ctrl-C is shown all the same.
"""

from __future__ import annotations

import gc
import itertools
import os
import threading
from contextlib import suppress
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import TYPE_CHECKING, Any, Final

import attrs

from engine import PayloadError
from engine._errors import quote
from engine.cli._arguments import UsageError
from engine.cli._charts import Bar, Section, bars_as_svg, bars_as_text, page
from engine.cli._numbers import Spread, spread_of, with_unit
from engine.cli._show import Output, Progress, complain, document, failure_text

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from engine import Engine, PredictionStream
    from engine._predictors.profile import Profile

FORMAT: Final = 1  # of the JSON document; another one where a name in it goes or means something else
ROUNDS: Final = 9  # quartiles of fewer say little
_ENOUGH: Final = 2.0  # seconds of calls for each runner, where the user does not say how many
_MOST: Final = 20_000  # calls in that time: more change no figure, and each of them is kept
_TRIED: Final = 0.05  # seconds of calls that tell how long one takes
_POLL_INTERVAL: Final = 0.1  # seconds between two tests whether a round was interrupted
_JOIN_TIMEOUT: Final = 1.0  # seconds that the threads of an interrupted round have to end


# What is asked for


@attrs.frozen
class Place:
    """Where calls run: a runner's name, and what the engine is given for it, `None` for the predictor's default."""

    name: str
    runner: str | None
    is_asked: bool = True


@attrs.frozen
class Plan:
    """What is to be measured, and where it goes.

    Attributes:
        tag: the predictor.
        inputs: those of every call.
        places: where it runs, in the order of the table.
        calls: for each runner, or `None` for as many as there is time for.
        concurrency: calls at one time.
        most: calls the predictor serves at one time itself.
        json, html: names of files, `-` for stdout, or `None`.
        imported: seconds that its import took here.
    """

    tag: str
    inputs: Mapping[str, Any]
    places: tuple[Place, ...]
    calls: int | None
    concurrency: int
    most: float
    json: str | None
    html: str | None
    imported: float


def plan_of(options: argparse.Namespace, profile: Profile, inputs: Mapping[str, Any], imported: float) -> Plan:
    """Read the options of the command.

    Raises:
        UsageError: one of them makes no sense, or names a file that cannot be written.
    """
    given = vars(options)
    names = {name: given.get(name) for name in ("json", "html")}
    for name, file in names.items():
        if file is not None and file != "-":
            _check_file(name, file)
    if None not in names.values() and len(set(names.values())) == 1:
        raise UsageError("--json and --html cannot both be written to the same place")
    asked = given.get("runner")
    places = tuple(Place(each, each) for each in dict.fromkeys(asked)) if asked else _usual_places(profile)
    calls = None if "n" not in given else _count("--n", given["n"], "calls")
    concurrency = _count("--concurrency", given.get("concurrency", "1"), "calls at one time")
    return Plan(profile.tag, inputs, places, calls, concurrency, profile.limit, names["json"], names["html"], imported)


def _usual_places(profile: Profile) -> tuple[Place, ...]:
    """The default place, thread and process; for an async predictor the first two may be the same loop."""
    default = profile.runner or ("loop" if profile.is_async else "inline")
    others = [each for each in ("thread", "process") if each != default]
    if default == "loop":
        others.remove("thread")
    return (Place(default, None, is_asked=False), *(Place(each, each, is_asked=False) for each in others))


def _count(option: str, text: str, what: str) -> int:
    with suppress(ValueError):
        if (number := int(text)) >= 1:
            return number
    raise UsageError(f"{option} must be a whole number of {what}, at least 1, not {quote(text)}")


def _check_file(option: str, name: str) -> None:
    path = Path(name)
    try:
        is_folder, has_place = path.is_dir(), path.parent.is_dir()
        is_writable = os.access(path if path.exists() else path.parent, os.W_OK)
    except (OSError, ValueError):
        is_folder, has_place, is_writable = False, False, False
    if is_folder and name:
        raise UsageError(f"--{option} must be the name of a file, or -, and {quote(name)} is a folder")
    if not (name and has_place and is_writable):
        raise UsageError(f"--{option} must be the name of a file, or -, and {quote(name)} cannot be written")


# Measuring


@attrs.frozen
class Timed:
    """One call by its consumer's clock, in seconds; a call of one partial has no gaps, one of none no first."""

    first: float | None
    gap: float | None
    worst: float | None
    total: float
    partials: int

    @classmethod
    def of(cls, marks: Sequence[float]) -> Timed:
        """Read the clock's marks: at the call, at each partial, at the end."""
        partials = marks[1:-1]
        gaps = [after - before for before, after in itertools.pairwise(partials)]
        return cls(
            first=partials[0] - marks[0] if partials else None,
            gap=median(gaps) if gaps else None,
            worst=max(gaps, default=None),
            total=marks[-1] - marks[0],
            partials=len(partials),
        )


@attrs.frozen
class Round:
    """The calls of one runner between two turns of others.

    Attributes:
        seconds: from the beginning of the first call to the end of the last.
        calls: those that succeeded.
        errors: what the others raised.
        is_whole: whether it was not interrupted.
    """

    seconds: float
    calls: tuple[Timed, ...]
    errors: tuple[BaseException, ...]
    is_whole: bool = True


@attrs.define
class Measured:
    """One runner's figures so far; `note` says why there are none."""

    place: Place
    first_call: float | None = None
    rounds: list[Round] = attrs.field(factory=list)
    note: str = ""

    @property
    def calls(self) -> list[Timed]:
        """All calls that succeeded."""
        return [call for each in self.rounds for call in each.calls]

    @property
    def errors(self) -> list[BaseException]:
        """What all others raised."""
        return [error for each in self.rounds for error in each.errors]

    def spread(self, name: str) -> Spread | None:
        """The spread of one thing over all calls that have it."""
        found = [value for call in self.calls if (value := getattr(call, name)) is not None]
        return spread_of(found) if found else None

    @property
    def rate(self) -> Spread | None:
        """Calls a second, over the rounds."""
        found = [len(each.calls) / each.seconds for each in self.rounds if each.is_whole and each.seconds > 0]
        return spread_of(found) if any(found) else None

    @property
    def worst(self) -> float | None:
        """The longest gap of all."""
        return max((call.worst for call in self.calls if call.worst is not None), default=None)


class _Bench:
    """One run of the command: the runners that are measured, and the calls that are made on them."""

    def __init__(self, muna: Engine, plan: Plan) -> None:
        self._muna = muna
        self._plan = plan
        self._progress = Progress()
        self.measured: list[Measured] = []

    def begin(self) -> None:
        """Make every runner's first call.

        Raises:
            BaseException: what it raised.
        """
        for place in self._plan.places:
            found = Measured(place)
            self.measured.append(found)
            self._progress.say(f"{place.name}: first call")
            started = perf_counter()
            try:
                self._muna.load(self._plan.tag, place.runner)
                self._call(place, lambda _: None)
            except PayloadError as error:
                if place.is_asked:
                    raise
                found.note = str(error)
            else:
                found.first_call = perf_counter() - started

    def measure(self) -> None:
        """Measure the runners in turns, another one first in every round."""
        ready = [each for each in self.measured if each.first_call is not None]
        turns = [self._turns(each) for each in ready]
        for number in range(max(map(len, turns), default=0)):
            for offset in range(len(ready)):
                which = (number + offset) % len(ready)
                if number < len(turns[which]):
                    self._progress.say(f"{ready[which].place.name}: round {number + 1} of {len(turns[which])}")
                    self._round(ready[which], turns[which][number])

    def end(self) -> None:
        """Remove the line that shows the progress."""
        self._progress.end()

    def _turns(self, measured: Measured) -> list[int]:
        """The numbers of calls in each round; the calls that estimate how many there is time for warm up as well."""
        calls = self._plan.calls
        if calls is None:
            calls = self._affordable(measured.place)
        elif self._plan.concurrency > 1:
            self._warm(measured.place, min(calls, self._plan.concurrency))
        rounds = max(1, min(ROUNDS, calls // self._plan.concurrency))  # a round has a call for every reader
        each, more = divmod(calls, rounds)
        first = with_unit(measured.first_call or 0.0, "s")
        turns = "1 round" if rounds == 1 else f"{rounds} rounds"
        self._progress.tell(f"{measured.place.name}: first call {first}, then {calls:,} calls in {turns}")
        return [each + (number < more) for number in range(rounds)]

    def _affordable(self, place: Place) -> int:
        """How many calls take long enough, in full rounds."""
        calls = self._plan.concurrency
        while True:
            tried = self._warm(place, calls)
            if tried.seconds >= _TRIED or calls >= _MOST // ROUNDS:
                break
            calls *= 4
        affordable = int(calls * _ENOUGH / tried.seconds) if tried.seconds > 0 else _MOST
        return max(ROUNDS * self._plan.concurrency, min(affordable, _MOST))

    def _warm(self, place: Place, calls: int) -> Round:
        """Make calls that are not counted.

        Raises:
            BaseException: what one of them raised.
        """
        found = self._attempt(place, calls)
        if not found.is_whole:
            raise KeyboardInterrupt
        for error in found.errors:
            raise error
        return found

    def _round(self, measured: Measured, calls: int) -> None:
        gc.collect()
        found = self._attempt(measured.place, calls)
        measured.rounds.append(found)
        if not found.is_whole:
            raise KeyboardInterrupt

    def _attempt(self, place: Place, calls: int) -> Round:
        readers = _Readers(lambda opened: self._call(place, opened), calls)
        return readers.run(min(self._plan.concurrency, calls))

    def _call(self, place: Place, opened: Callable[[PredictionStream], None]) -> list[float]:
        """Make one call, and read the clock at its beginning, at each partial and at its end."""
        marks = [perf_counter()]
        mark = marks.append
        with self._muna.predictions.stream(self._plan.tag, self._plan.inputs, runner=place.runner) as stream:
            opened(stream)
            for _ in stream.values():
                mark(perf_counter())
        mark(perf_counter())
        return marks


class _Readers:
    """Threads that make calls together until there were enough; a single one is the caller's own."""

    def __init__(self, call: Callable[[Callable[[PredictionStream], None]], list[float]], calls: int) -> None:
        self._call = call
        self._numbers = iter(range(calls))  # `next` of it is one step for all threads
        self._marks: list[list[float]] = []
        self._errors: list[BaseException] = []
        self._ends: list[float] = []
        self._open: dict[int, PredictionStream] = {}
        self._is_interrupted = False

    def run(self, readers: int) -> Round:
        """Make the calls; one that is interrupted is not among them."""
        started = perf_counter()
        try:
            if readers == 1:
                self._read()
            else:
                started = self._read_together(readers)
        except KeyboardInterrupt:
            self._is_interrupted = True
        seconds = max(self._ends, default=perf_counter()) - started
        calls = tuple(map(Timed.of, list(self._marks)))
        return Round(seconds, calls, tuple(self._errors), is_whole=not self._is_interrupted)

    def _read_together(self, readers: int) -> float:
        """Read in threads; the time they began together."""
        gate, ended = threading.Event(), threading.Event()

        def read() -> None:
            gate.wait()
            try:
                self._read()
            finally:
                self._ends.append(perf_counter())
                if len(self._ends) == readers:
                    ended.set()

        # Daemons: one that cannot be stopped must not keep the process.
        threads = [threading.Thread(target=read, name="bench", daemon=True) for _ in range(readers)]
        started = perf_counter()
        try:
            for thread in threads:
                thread.start()
            started = perf_counter()
            gate.set()
            while not ended.wait(_POLL_INTERVAL):  # a signal that comes just before a wait does not end it
                pass
        except KeyboardInterrupt:
            self._is_interrupted = True
            gate.set()
            for stream in list(self._open.values()):
                stream.cancel()
            raise
        finally:
            for thread in threads:
                if thread.ident is not None:  # it was started
                    thread.join(_JOIN_TIMEOUT)
        return started

    def _read(self) -> None:
        me = threading.get_ident()

        def opened(stream: PredictionStream) -> None:
            self._open[me] = stream
            if self._is_interrupted:  # meanwhile
                stream.cancel()

        for _ in self._numbers:
            if self._is_interrupted:
                break
            try:
                self._marks.append(self._call(opened))
            except Exception as error:
                if not self._is_interrupted:  # else it was cancelled
                    self._errors.append(error)


# Telling


def run(muna: Engine, plan: Plan, output: Output) -> str:
    """Measure, and report what was found: a table on stdout, and what files were asked for.

    Returns:
        How it went: "done", "failed" or "interrupted".

    Raises:
        ReaderGoneError: the output has no reader any more.
        UnwritableError: it cannot be written.
    """
    bench = _Bench(muna, plan)
    ending = "done"
    try:
        bench.begin()
        bench.measure()
    except KeyboardInterrupt:
        ending = "interrupted"
    except Exception as error:
        bench.end()
        complain(failure_text(error))
        return "failed"
    bench.end()
    failed = next((error for each in bench.measured for error in each.errors), None)
    if failed is not None and ending == "done":
        complain(failure_text(failed))
        ending = "failed"
    if any(each.first_call is not None for each in bench.measured):
        written = _write(plan, bench.measured, output, is_interrupted=ending == "interrupted")
        ending = ending if written else "failed"
    return ending


def _write(plan: Plan, measured: Sequence[Measured], output: Output, *, is_interrupted: bool) -> bool:
    """Write everything that was asked for, the table first; whether all could be written."""
    if "-" not in {plan.json, plan.html}:
        output.write("".join(f"{line}\n" for line in _table(plan, measured, output)))
    makers: list[tuple[str | None, Callable[[], str]]] = [
        (plan.json, lambda: f"{document(facts_of(plan, measured, is_interrupted=is_interrupted))}\n"),
        (plan.html, lambda: _page(plan, measured, is_interrupted=is_interrupted)),
    ]
    is_written = True
    for name, make in makers:
        if name == "-":
            output.write(make())
        elif name is not None:
            try:
                Path(name).write_text(make(), encoding="utf-8")
            except OSError as error:
                complain(f"engine: {quote(name)} cannot be written: {error.strerror or error}")
                is_written = False
    return is_written


def _table(plan: Plan, measured: Sequence[Measured], output: Output) -> Iterator[str]:
    """A column for each runner, then bars for what can be compared."""
    from shutil import get_terminal_size

    is_ascii = not output.can_show("µ×█▏…—")
    width = output.columns or get_terminal_size().columns
    yield f"{plan.tag}, {_conditions(plan)}"
    yield ""
    rows = [("", *(each.place.name for each in measured)), *_rows(measured)]
    if is_ascii:
        rows = [tuple(cell.replace("µ", "u").replace("—", "-") for cell in row) for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = (cell.rjust(size) for cell, size in zip(row[1:], widths[1:], strict=True))
        yield "  ".join((row[0].ljust(widths[0]), *cells)).rstrip()
    for title, bars in _comparisons(measured):
        yield from ("", title, *bars_as_text(bars, width, ascii=is_ascii))
    for each in measured:
        if each.note:
            yield from ("", f"{each.place.name} is left out: {each.note}")


def _conditions(plan: Plan) -> str:
    calls = "one call at a time" if plan.concurrency == 1 else f"{plan.concurrency} calls at a time"
    served = ""
    if plan.most < plan.concurrency:
        served = f" (the predictor serves {int(plan.most)})"
    return f"{calls}{served}; imported in {with_unit(plan.imported, 's')}"


def _rows(measured: Sequence[Measured]) -> list[tuple[str, ...]]:
    """What was measured, a name and a cell for each runner."""

    def row(name: str, cell: Callable[[Measured], str]) -> tuple[str, ...]:
        return (name, *map(cell, measured))

    return [
        row("first call", lambda each: _words(each.first_call, "s")),
        row("first partial", lambda each: _median(each.spread("first"), "s")),
        row("gap, median", lambda each: _median(each.spread("gap"), "s")),
        row("gap, worst", lambda each: _words(each.worst, "s")),
        row("whole call", lambda each: _median(each.spread("total"), "s")),
        row("calls per second", lambda each: _median(each.rate, "/s").removesuffix(" /s")),
        row("partials", lambda each: _median(each.spread("partials"), "")),
        row("calls", lambda each: f"{len(each.calls):,}"),
        row("failures", lambda each: f"{len(each.errors):,}"),
    ]


def _words(value: float | None, unit: str) -> str:
    return "—" if value is None else with_unit(value, unit)


def _median(spread: Spread | None, unit: str) -> str:
    return _words(None if spread is None else spread.median, unit)


def _comparisons(measured: Sequence[Measured]) -> Iterator[tuple[str, list[Bar]]]:
    """Bars for each thing that was measured at all."""
    wanted: list[tuple[str, str, Callable[[Measured], Spread | None]]] = [
        ("time to the first partial", "s", lambda each: each.spread("first")),
        ("gap between partials", "s", lambda each: each.spread("gap")),
        ("whole call", "s", lambda each: each.spread("total")),
        ("calls per second", "/s", lambda each: each.rate),
    ]
    for title, unit, find in wanted:
        found = [(each, find(each)) for each in measured]
        if any(spread is not None for _, spread in found):
            yield title, [_bar(each, spread, unit, found[0]) for each, spread in found]


def _bar(each: Measured, spread: Spread | None, unit: str, base: tuple[Measured, Spread | None]) -> Bar:
    if spread is None:
        return Bar(each.place.name, None, unit, "missing", "left out" if each.note else "not measured")
    beside, first = base
    text = ""
    if first is not None and beside is not each and first.median > 0:
        ratio = spread.median / first.median
        text = f"{with_unit(ratio, 'x')} {beside.place.name}"
        if unit == "/s" and 0 < ratio < 1:  # a small share is harder to read than how many times it is fewer
            text = f"{with_unit(1 / ratio, 'x')} fewer than {beside.place.name}"
    return Bar(each.place.name, spread, unit, "engine", text=text)


# The document


def facts_of(plan: Plan, measured: Sequence[Measured], *, is_interrupted: bool) -> dict[str, Any]:
    """The JSON document: what was measured, on what, and every number; times are in seconds."""
    return {
        "format": FORMAT,
        "tag": plan.tag,
        **machine(),
        "concurrency": plan.concurrency,
        "n": plan.calls,
        "imported": _rounded(plan.imported),
        "interrupted": is_interrupted,
        "runners": [_facts(each) for each in measured],
    }


def machine() -> dict[str, Any]:
    """What figures depend on: versions, the system, the processor."""
    import platform

    return {
        "engine": _version(),
        "python": platform.python_version(),
        "implementation": platform.python_implementation(),
        "system": f"{platform.system()} {platform.release()}",
        "processor": _processor(),
        "processors": os.cpu_count(),
    }


def _version() -> str | None:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("predictor-engine")
    except PackageNotFoundError:  # the package was copied, not installed
        return None


def _processor() -> str:
    """The processor's name, where the system gives it."""
    import platform

    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()


def _facts(each: Measured) -> dict[str, Any]:
    return {
        "runner": each.place.name,
        "first_call": _rounded(each.first_call),
        "calls": len(each.calls),
        "failures": len(each.errors),
        "first": _spread(each.spread("first")),
        "gap": _spread(each.spread("gap")),
        "worst_gap": _rounded(each.worst),
        "total": _spread(each.spread("total")),
        "rate": _spread(each.rate),
        "partials": _spread(each.spread("partials")),
        "note": each.note or None,
        "rounds": [_round(one) for one in each.rounds],
    }


def _round(each: Round) -> dict[str, Any]:
    return {
        "seconds": _rounded(each.seconds),
        "whole": each.is_whole,
        "failures": len(each.errors),
        "first": [_rounded(call.first) for call in each.calls],
        "gap": [_rounded(call.gap) for call in each.calls],
        "worst_gap": [_rounded(call.worst) for call in each.calls],
        "total": [_rounded(call.total) for call in each.calls],
        "partials": [call.partials for call in each.calls],
    }


def _rounded(seconds: float | None) -> float | None:
    """Seconds to the nanosecond: the clock has no finer step."""
    return None if seconds is None else round(seconds, 9)


def _spread(spread: Spread | None) -> dict[str, Any] | None:
    if spread is None:
        return None
    return {name: round(value, 9) for name, value in attrs.asdict(spread).items()}


# The page

_ABOUT: Final = {
    "time to the first partial": "From the call until its consumer holds the first partial: what a consumer waits "
    "before it has anything to show. Shorter is better.",
    "gap between partials": "From one partial to the next, as its consumer sees it: the median of each call. "
    "Shorter is better.",
    "whole call": "From the call until its stream has ended. Shorter is better.",
    "calls per second": "Calls that ended in each round, by its seconds. Longer is better.",
}


def _page(plan: Plan, measured: Sequence[Measured], *, is_interrupted: bool) -> str:
    found = machine()
    rounds = max(len(each.rounds) for each in measured)
    sections = [
        Section(title.capitalize(), _ABOUT[title], (bars_as_svg(bars, title=f"{plan.tag}: {title}"),))
        for title, bars in _comparisons(measured)
    ]
    notes = [f"{each.place.name} is left out: {each.note}" for each in measured if each.note]
    if is_interrupted:
        notes.append("The measurement was interrupted: what had been measured until then is shown.")
    rows = (("", *(each.place.name for each in measured)), *_rows(measured))
    about = "Medians, but for the first call, which is a single one and includes set-up, and for the worst gap."
    sections.append(Section("All figures", about, (), rows, tuple(notes)))
    lead = (
        f"What a call costs in each place it can run, as its consumer sees it: {_conditions(plan)}. Runners took turns "
        f"in {rounds} rounds."
    )
    facts = {
        "processor": found["processor"],
        "processors": str(found["processors"]),
        "system": found["system"],
        "Python": f"{found['implementation']} {found['python']}",
        "engine": found["engine"] or "not installed",
    }
    return page(plan.tag, lead, sections, facts)
