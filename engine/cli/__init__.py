"""The command `engine`: lists and shows the predictors that are installed, runs and measures them.

Options of a predictor come from its signature, and text becomes values here alone. Results go to stdout, everything
else, what a predictor prints included, to stderr. Nothing is discovered or imported before a command needs it, and
`engine list` imports no predictor at all.
"""

from __future__ import annotations

import sys
from contextlib import contextmanager, redirect_stdout
from time import perf_counter
from typing import TYPE_CHECKING, Any, Final

from engine import Engine, EngineError, InvalidInputError, InvalidTagError, PredictorNotFoundError
from engine._engine import resolver_of
from engine._errors import printable
from engine._predictors.annotations import MISSING
from engine.cli import _arguments
from engine.cli._arguments import Finished, UsageError
from engine.cli._show import Display, Output, ReaderGoneError, UnwritableError, complain, document, failure_text

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator, Sequence

    from engine import Prediction, PredictionStream
    from engine._loaded import LoadedPredictor

__all__ = ["main"]

DONE: Final = 0
FAILED: Final = 1
USAGE: Final = 2
INTERRUPTED: Final = 130  # 128 + SIGINT, as shells count
READER_GONE: Final = 141  # 128 + SIGPIPE: what a program that dies of a closed pipe leaves to its shell


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: the words after the program's name; `None` for this process's own.

    Returns:
        The exit status: 0 done, 1 the prediction failed, 2 usage, 130 interrupted, 141 the output lost its reader.
    """
    try:
        return _run(sys.argv[1:] if argv is None else argv, Output())
    except KeyboardInterrupt:
        complain("")
        return INTERRUPTED


def _run(words: Sequence[str], output: Output) -> int:
    try:
        return _command(words, output)
    except UsageError as error:
        complain(f"engine: {error}")
        return USAGE
    except ReaderGoneError:
        return READER_GONE
    except UnwritableError as error:
        complain(f"engine: the output cannot be written: {error}")
        return FAILED


def _command(words: Sequence[str], output: Output) -> int:
    try:
        asked = _arguments.parse(words)
        # What a predictor prints, here or in a worker, must not be mistaken for its results.
        with output.apart(), redirect_stdout(sys.stderr), _told_on_stderr(), Engine() as muna:
            return _COMMANDS[asked.command](muna, asked, output)
    except Finished as finished:
        output.write(str(finished))
        return DONE
    except (UsageError, ReaderGoneError, UnwritableError, KeyboardInterrupt):
        raise
    except BaseException as error:  # a predictor's teardown, or an error of ours: no way out is left but this one
        complain(failure_text(error))
        return FAILED


@contextmanager
def _told_on_stderr() -> Iterator[None]:
    """Send what the engine logs to stderr, a line for each message; an error that goes with one is named in it."""
    import logging  # here and not above: `engine --help` must stay quick

    class Teller(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if not isinstance(sys.exception(), KeyboardInterrupt):  # what is left behind then ends with the process
                complain(f"engine: {' '.join(record.getMessage().split())}")

    log, handler = logging.getLogger("engine"), Teller(logging.WARNING)
    log.addHandler(handler)
    try:
        yield
    finally:
        log.removeHandler(handler)


# Commands that run nothing


def _list(muna: Engine, asked: argparse.Namespace, output: Output) -> int:
    """Print every tag with what is known without importing it; the registry itself reports what is broken."""
    found = [(tag, each.description or "", muna.predictors.source(tag)) for tag, each in muna.predictors.items()]
    if asked.json:
        for tag, description, source in found:
            output.write(f"{document({'tag': tag, 'description': description, 'source': source})}\n")
    else:
        output.write(_table(found))
    if not found:
        complain("engine: no predictors are installed")
    return DONE


def _show(muna: Engine, asked: argparse.Namespace, output: Output) -> int:
    loaded = _found(muna, asked.tag)
    if loaded is None:
        return FAILED
    facts = _facts(muna, loaded)
    output.write(f"{document(facts)}\n" if asked.json else _described(loaded, facts))
    return DONE


def _facts(muna: Engine, loaded: LoadedPredictor) -> dict[str, Any]:
    import math

    from engine._predictors.profile import is_object

    profile = loaded.profile
    target = muna.predictors[profile.tag].load()
    return {
        "tag": profile.tag,
        "description": profile.description,
        "kind": "class" if profile.is_class else "object" if is_object(target) else "function",
        "is_async": profile.is_async,
        "yields": profile.follows or _is_generator(target, loaded),
        "inputs": [_input(each) for each in profile.signature.parameters],
        "reducer": profile.reducer.name,
        "runner": profile.runner,
        "concurrency": None if profile.limit == math.inf else int(profile.limit),
        "by_value": profile.by_value,
        "source": muna.predictors.source(profile.tag),
    }


def _is_generator(target: Any, loaded: LoadedPredictor) -> bool:
    import inspect

    from engine._predictors.profile import class_of

    function: Any = loaded.function or getattr(class_of(target), "predict", None)
    while hasattr(function, "func"):  # functools.partial
        function = function.func
    function = inspect.unwrap(function) if function is not None else None
    return inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function)


def _input(parameter: Any) -> dict[str, Any]:
    default = {} if parameter.default is MISSING else {"default": parameter.default}
    return {
        "name": parameter.name,
        "kind": parameter.kind,
        "type": parameter.expects,
        "required": parameter.required,
        **default,
        "description": parameter.description,
        "constraints": dict(parameter.constraints),
    }


def _described(loaded: LoadedPredictor, facts: dict[str, Any]) -> str:
    profile = loaded.profile
    colour = "async " if profile.is_async else ""
    rows = [
        ("kind", f"{colour}{facts['kind']}, {'yields partials' if facts['yields'] else 'returns one value'}"),
        ("reducer", facts["reducer"]),
        ("runner", facts["runner"] or "the caller's choice"),
        ("concurrency", "unlimited" if facts["concurrency"] is None else f"{facts['concurrency']} at a time"),
        *([("by value", "to workers, with all of its module that it uses")] if facts["by_value"] else []),
        ("source", facts["source"]),
    ]
    inputs = [_input_row(each) for each in profile.signature.parameters]
    taken = "inputs:" if inputs else "inputs: none" if profile.signature.readable else "inputs: not known"
    head = printable(f"{facts['tag']}\n{facts['description'] and facts['description'] + chr(10)}\n")
    return f"{head}{_table(rows)}\n{taken}\n{_table(inputs, indent='  ')}"


def _input_row(parameter: Any) -> tuple[str, str, str, str]:
    stars = {"var-positional": "*", "var-keyword": "**"}.get(parameter.kind, "")
    default = "required" if parameter.required else ""
    if parameter.default is not MISSING:
        default = f"default {_arguments.default_text(parameter)}"
    return f"{stars}{parameter.name}", parameter.expects, default, parameter.description


def _table(rows: Sequence[Sequence[str]], indent: str = "") -> str:
    """Columns, each as wide as its widest cell; cells are one safe line each."""
    cells = [[printable(" ".join(cell.split())) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells)
    return "".join(f"{indent}{line}\n" for line in lines)


# Commands that run a predictor


def _found(muna: Engine, tag: str) -> LoadedPredictor | None:
    """The predictor of a tag, imported; `None` where it cannot be, once stderr says why.

    Raises:
        UsageError: there is none of that tag.
    """
    try:
        return resolver_of(muna).resolve(tag)
    except (PredictorNotFoundError, InvalidTagError) as error:
        raise UsageError(_with_notes(error)) from None
    except EngineError as error:
        if error.__cause__ is None:
            complain(f"engine: {_with_notes(error)}")
        else:  # what importing the predictor raised, SystemExit included
            complain(f"engine: {tag} cannot be imported\n{failure_text(error.__cause__)}")
    return None


def _with_notes(error: BaseException) -> str:
    return "\n".join([str(error), *getattr(error, "__notes__", ())])


def _prepared(
    muna: Engine, asked: argparse.Namespace
) -> tuple[LoadedPredictor, dict[str, Any], argparse.Namespace] | None:
    """Everything a call needs, checked, so that whatever fails later is the prediction's own failure.

    Raises:
        UsageError: the tag, an input or an option is refused.
    """
    loaded = _found(muna, asked.tag)
    if loaded is None:
        return None
    inputs, options = _arguments.inputs_of(asked, loaded.profile)
    try:
        loaded.profile.bind(inputs)
        runner = getattr(options, "runner", None)
        for each in runner if isinstance(runner, list) else [runner]:
            _check_runner(muna, loaded, each)
    except (InvalidInputError, ValueError, EngineError) as error:
        raise UsageError(str(error)) from None
    return loaded, inputs, options


def _check_runner(muna: Engine, loaded: LoadedPredictor, runner: str | None) -> None:
    resolver_of(muna).placement.check(runner)
    if runner == "inline" and loaded.profile.is_async:
        raise ValueError(f"{loaded.profile.tag} is async and cannot run inline here: leave --runner out")


def _create(muna: Engine, asked: argparse.Namespace, output: Output) -> int:
    prepared = _prepared(muna, asked)
    if prepared is None:
        return FAILED
    loaded, inputs, options = prepared
    is_json = getattr(options, "json", False)
    tag = loaded.profile.tag
    try:
        prediction = muna.predictions.create(tag, inputs, runner=getattr(options, "runner", None), errors="return")
    except Exception as error:  # of the reducer, or because there were no partials
        return _fail(output, error, {"tag": tag}, is_json=is_json)
    if prediction.exception is not None:
        return _fail(output, prediction.exception, _without_error(prediction), is_json=is_json)
    if is_json:
        output.write(f"{document({'event': 'done', 'index': prediction.index, **prediction.to_dict()})}\n")
    else:
        Display(output).show(prediction.value)
    return DONE


def _stream(muna: Engine, asked: argparse.Namespace, output: Output) -> int:
    prepared = _prepared(muna, asked)
    if prepared is None:
        return FAILED
    loaded, inputs, options = prepared
    is_json = getattr(options, "json", False)
    display = Display(output, loaded.profile.reducer)
    with muna.predictions.stream(loaded.profile.tag, inputs, runner=getattr(options, "runner", None)) as stream:
        try:
            for prediction in stream:
                _show_partial(output, display, prediction, is_json=is_json)
        except (ReaderGoneError, UnwritableError):
            raise
        except Exception as error:
            display.end()
            return _fail(output, error, _ending(stream), is_json=is_json)
        display.end()
        if is_json:
            output.write(f"{document({'event': 'done', **_ending(stream), 'error': None})}\n")
    return DONE


def _bench(muna: Engine, asked: argparse.Namespace, output: Output) -> int:
    from engine.cli import _measure  # here and not above: other commands need no statistics

    len(muna.predictors)  # looking for plugins is no part of an import
    started = perf_counter()
    if _found(muna, asked.tag) is None:
        return FAILED
    imported = perf_counter() - started
    prepared = _prepared(muna, asked)
    if prepared is None:
        return FAILED
    loaded, inputs, options = prepared
    plan = _measure.plan_of(options, loaded.profile, inputs, imported)
    status = {"done": DONE, "failed": FAILED, "interrupted": INTERRUPTED}
    return status[_measure.run(muna, plan, output)]


def _show_partial(output: Output, display: Display, prediction: Prediction, *, is_json: bool) -> None:
    if is_json:
        output.write(f"{document({'event': 'partial', 'index': prediction.index, **prediction.to_dict()})}\n")
    else:
        display.show(prediction.value)


def _ending(stream: PredictionStream) -> dict[str, Any]:
    """What the last line of a stream says of it; times are in ms."""
    outcome = stream.outcome
    return {
        "id": stream.id,
        "tag": stream.tag,
        "count": outcome.count,
        "first": outcome.first,
        "duration": outcome.duration,
    }


def _without_error(prediction: Prediction) -> dict[str, Any]:
    return {name: value for name, value in prediction.to_dict().items() if name != "error"}


def _fail(output: Output, error: BaseException, facts: dict[str, Any], *, is_json: bool) -> int:
    """Report a failure on stderr and, where JSON was asked for, in the last line as well; give the exit status."""
    text = failure_text(error)
    complain(text)
    if is_json:
        output.write(f"{document({'event': 'error', **facts, 'error': text, 'type': type(error).__qualname__})}\n")
    return FAILED


_COMMANDS: Final = {"list": _list, "show": _show, "create": _create, "stream": _stream, "bench": _bench}
