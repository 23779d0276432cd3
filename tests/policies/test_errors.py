"""Every error of the engine: what it is, says and keeps, also in a pickle."""

from __future__ import annotations

import inspect
import pickle
import re
from typing import Any, Final

import pytest

import engine
from engine import (
    DuplicatePredictorError,
    EngineBusyError,
    EngineClosedError,
    EngineError,
    InvalidInputError,
    InvalidTagError,
    NestingError,
    NoPartialsError,
    PayloadError,
    PluginError,
    PredictionCancelledError,
    PredictionTimeoutError,
    PredictorError,
    PredictorNotFoundError,
    WorkerLostError,
)

ERRORS: Final[list[tuple[type[EngineError], tuple[Any, ...], str]]] = [
    (EngineError, ("what is wrong",), "what is wrong"),
    (PredictorNotFoundError, ("@me/shoot", ("@me/shout",)), r"did you mean @me/shout\?.*register"),
    (InvalidTagError, ("Me Shout!",), "write '@owner/name'"),
    (DuplicatePredictorError, ("@me/shout", ("one", "other")), r"by one and by other: .*block=\["),
    (InvalidInputError, ("@me/shout", ("text is missing",), ("text", "n")), "text is missing.*inputs are: text, n"),
    (NoPartialsError, ("@me/shout", "last"), r"use stream\(\), or create\(\.\.\., reduce='collect'\)"),
    (PredictorError, ("the predictor raised SystemExit", "SystemExit", "Traceback"), "raised SystemExit"),
    (PluginError, ("ray", "engine-ray", "no ray", "Traceback"), "engine-ray could not be used.*block it by name"),
    (PayloadError, ("a lock cannot be carried: keep it in setup()", "lock", "Traceback"), r"keep it in setup\(\)"),
    (
        WorkerLostError,
        ("@me/shout", 47, "signal 9", 3, "its report"),
        "signal 9.*after 3 partials; call again, which.*its re",
    ),
    (PredictionTimeoutError, ("@me/shout", 2.5), "within 2.5 s: give it longer"),
    (EngineBusyError, ("@me/shout: 32 threads still run: let them look at stopping", 32), "32 threads .* look at"),
    (PredictionCancelledError, ("@me/shout", "1-2"), "1-2 was cancelled; call again"),
    (EngineClosedError, ("this engine is closed; make a new Engine()",), "make a new Engine"),
    (NestingError, ("it would wait for itself: close that stream", "@me/shout 1-2"), "close that stream"),
]
every_error = pytest.mark.parametrize(
    ("error", "arguments", "message"), ERRORS, ids=lambda each: getattr(each, "__name__", "")
)

BASES: Final = {
    PredictorNotFoundError: KeyError,
    InvalidTagError: ValueError,
    InvalidInputError: ValueError,
    PredictionTimeoutError: TimeoutError,
    EngineClosedError: RuntimeError,
    NestingError: RuntimeError,
}


def test_the_table_of_errors_is_whole() -> None:
    def tree(error: type[EngineError]) -> set[type[EngineError]]:
        return {error}.union(*map(tree, error.__subclasses__()))

    ours = {error for error in tree(EngineError) if error.__module__.partition(".")[0] == "engine"}
    assert ours == {error for error, _, _ in ERRORS}
    assert {error.__name__ for error in ours} <= set(engine.__all__)


@every_error
def test_an_error_is_what_it_says_it_is(error: type[EngineError], arguments: Any, message: str) -> None:
    assert issubclass(error, EngineError)
    assert issubclass(error, BASES.get(error, Exception))
    direct = {base for base in error.__mro__ if base in set(BASES.values())}
    assert direct >= ({BASES[error]} if error in BASES else set())


@every_error
def test_an_error_is_described_in_one_sentence(error: type[EngineError], arguments: Any, message: str) -> None:
    text = inspect.getdoc(error) or ""
    assert re.fullmatch(r"Raised (when|instead of) [^.]+\.", text.replace("\n", " ")), text


@every_error
def test_an_error_tells_what_to_do_next(error: type[EngineError], arguments: Any, message: str) -> None:
    assert re.search(message, str(error(*arguments)), re.DOTALL)


@every_error
def test_an_error_survives_a_pickle_with_everything_it_knows(
    error: type[EngineError], arguments: Any, message: str
) -> None:
    raised = error(*arguments)
    raised.add_note("a note")
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        copied = pickle.loads(pickle.dumps(raised, protocol))
        assert type(copied) is error
        assert copied.args == raised.args
        assert vars(copied) == vars(raised)
        assert str(copied) == str(raised)


@every_error
def test_an_error_keeps_every_argument_as_an_attribute(error: type[EngineError], arguments: Any, message: str) -> None:
    raised = error(*arguments)
    assert raised.args == arguments
    if error is EngineError:
        return  # the root knows nothing but its message
    for name, argument in zip(inspect.signature(error).parameters, arguments, strict=True):
        assert getattr(raised, name) == argument, name


@every_error
def test_an_errors_message_is_bounded_and_printable_whatever_it_is_about(
    error: type[EngineError], arguments: Any, message: str
) -> None:
    if error not in {InvalidTagError, PredictorNotFoundError}:
        return  # the others speak of what the engine itself made
    text = str(error("\x1b[2J" + "x" * 10_000))
    assert len(text) < 1_000
    assert "\x1b" not in text


def test_the_text_of_a_missing_predictor_is_a_sentence_and_no_repr() -> None:
    assert not str(PredictorNotFoundError("@me/shoot")).startswith(("'", '"'))


def test_an_engine_closed_error_needs_no_message() -> None:
    assert "make a new Engine()" in str(EngineClosedError())
    assert pickle.loads(pickle.dumps(EngineClosedError())).message == EngineClosedError().message
