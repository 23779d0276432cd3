"""Faces and records: the sync and the async side are twins, records are plain and safe, errors survive and advise."""

from __future__ import annotations

import asyncio
import inspect
import json
import pickle
import re
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import UTC, datetime
from typing import Any, Final

import pytest

import engine
from engine import (
    AsyncPredictionStream,
    DuplicatePredictorError,
    Engine,
    EngineBusyError,
    EngineClosedError,
    EngineError,
    InvalidInputError,
    InvalidTagError,
    NestingError,
    NoPartialsError,
    Outcome,
    PayloadError,
    PluginError,
    Prediction,
    PredictionCancelledError,
    PredictionStream,
    PredictionTimeoutError,
    Predictor,
    PredictorError,
    PredictorNotFoundError,
    WorkerLostError,
)

# Faces


def parameters_of(function: Callable[..., Any]) -> list[tuple[str, Any, Any, Any]]:
    found = inspect.signature(function).parameters.values()
    return [(each.name, each.kind, each.default, each.annotation) for each in found]


PREDICTIONS: Final = type(Engine(discover=False).predictions)
TWINS: Final = [
    (PREDICTIONS.create, PREDICTIONS.acreate),
    (PREDICTIONS.stream, PREDICTIONS.astream),
    (Engine.load, Engine.aload),
    (Engine.unload, Engine.aunload),
    (Engine.close, Engine.aclose),
]


@pytest.mark.parametrize(("one", "twin"), TWINS, ids=lambda each: each.__name__)
def test_async_twins_take_the_same_parameters(one: Callable[..., Any], twin: Callable[..., Any]) -> None:
    assert twin.__name__ == f"a{one.__name__}"
    assert parameters_of(one) == parameters_of(twin)


def test_create_and_stream_differ_in_what_only_one_of_them_can_use() -> None:
    create, stream = (set(inspect.signature(each).parameters) for each in (PREDICTIONS.create, PREDICTIONS.stream))
    assert create - stream == {"reduce", "errors"}
    assert stream - create == {"prefetch"}


@pytest.mark.parametrize("function", [PREDICTIONS.create, PREDICTIONS.stream], ids=lambda each: each.__name__)
def test_everything_but_tag_and_inputs_is_keyword_only(function: Callable[..., Any]) -> None:
    kinds = {each.name: each.kind for each in inspect.signature(function).parameters.values()}
    positional = [name for name, kind in kinds.items() if kind is inspect.Parameter.POSITIONAL_OR_KEYWORD]
    assert positional == ["self", "tag", "inputs"]
    assert {kinds[name] for name in kinds if name not in positional} == {inspect.Parameter.KEYWORD_ONLY}


def test_acreate_is_a_coroutine_function_and_astream_is_not() -> None:
    assert inspect.iscoroutinefunction(PREDICTIONS.acreate)
    assert not inspect.iscoroutinefunction(PREDICTIONS.astream)


DUNDERS: Final = ("iter", "next", "enter", "exit")
ASYNC_NAMES: Final = {f"__{name}__": f"__a{name}__" for name in DUNDERS}


def names_of(face: type) -> set[str]:
    own = {"__iter__", "__next__", "__enter__", "__exit__", "__repr__", "__reduce__"} | set(ASYNC_NAMES.values())
    return {name for name in dir(face) if not name.startswith("_")} | (own & set(vars(face)))


def test_both_streams_have_the_same_names() -> None:
    expected = {ASYNC_NAMES.get(name, "aclose" if name == "close" else name) for name in names_of(PredictionStream)}
    assert names_of(AsyncPredictionStream) == expected


@pytest.mark.parametrize("name", sorted(names_of(PredictionStream)))
def test_both_streams_describe_what_they_share(name: str) -> None:
    twin = ASYNC_NAMES.get(name, "aclose" if name == "close" else name)
    for face, own in ((PredictionStream, name), (AsyncPredictionStream, twin)):
        assert inspect.getdoc(getattr(face, own)), f"{face.__name__}.{own} has no docstring"


def test_every_public_name_is_described_and_found() -> None:
    for name in engine.__all__:
        assert inspect.getdoc(getattr(engine, name)), name


# Streams


def yields() -> Iterator[str]:
    yield "a"
    yield "b"
    return "the end"  # type: ignore[return-value]


async def yields_later() -> AsyncIterator[str]:
    yield "a"
    yield "b"


def test_a_stream_shows_what_it_is_and_how_far_it_got(muna: Engine) -> None:
    stream = muna.predictions.stream(yields)
    assert repr(stream) == f"<PredictionStream {stream.tag} pending after 0 partials>"
    next(stream)
    assert repr(stream) == f"<PredictionStream {stream.tag} running after 1 partial>"
    list(stream)
    assert repr(stream) == f"<PredictionStream {stream.tag} done after 2 partials>"


def test_an_async_stream_shows_what_it_is_and_how_far_it_got(muna: Engine) -> None:
    async def read() -> None:
        stream = muna.predictions.astream(yields_later)
        assert repr(stream) == f"<AsyncPredictionStream {stream.tag} pending after 0 partials>"
        assert [each.value async for each in stream] == ["a", "b"]
        assert repr(stream) == f"<AsyncPredictionStream {stream.tag} done after 2 partials>"

    asyncio.run(read())


@pytest.mark.parametrize("target", [yields, yields_later])
def test_a_stream_cannot_be_pickled_and_says_what_can(target: Callable[..., Any], muna: Engine) -> None:
    for stream in (muna.predictions.stream(target), muna.predictions.astream(target)):
        with pytest.raises(TypeError, match="send its values"):
            pickle.dumps(stream)


def test_the_outcome_tells_the_end_the_return_value_and_the_times(muna: Engine) -> None:
    stream = muna.predictions.stream(yields)
    outcome = stream.outcome
    assert (outcome.state, outcome.count, outcome.ended) == ("pending", 0, False)
    assert (outcome.first, outcome.duration) == (None, None)
    next(stream)
    assert (outcome.state, outcome.count, outcome.ended) == ("running", 1, False)
    assert outcome.first is not None
    assert list(stream.values()) == ["b"]
    assert (outcome.state, outcome.count, outcome.returned, outcome.ended) == ("done", 2, "the end", True)
    assert outcome.duration is not None
    assert outcome.duration >= outcome.first >= 0.0
    assert stream.outcome is outcome


def test_a_stream_keeps_nothing_it_delivered(muna: Engine) -> None:
    import weakref

    class Heavy:
        pass

    def gives() -> Iterator[Heavy]:
        for _ in range(3):
            yield Heavy()

    stream = muna.predictions.stream(gives)
    seen = [weakref.ref(each) for each in stream.values()]
    assert [reference() for reference in seen] == [None, None, None]
    assert stream.outcome.count == 3


def test_awaiting_a_stream_gives_itself_before_anything_ran(muna: Engine) -> None:
    ran: list[int] = []

    async def body() -> AsyncIterator[int]:
        ran.append(1)
        yield 1

    async def read() -> None:
        stream = muna.predictions.astream(body)
        assert await stream is stream
        assert await stream is stream
        assert ran == []
        assert [each async for each in stream.values()] == [1]

    asyncio.run(read())


def test_a_stream_is_its_own_context(muna: Engine) -> None:
    with muna.predictions.stream(yields) as stream:
        assert isinstance(stream, PredictionStream)

    async def read() -> None:
        async with muna.predictions.astream(yields_later) as stream:
            assert isinstance(stream, AsyncPredictionStream)

    asyncio.run(read())
    assert stream.outcome.state == "closed"


# Predictions


def made(value: Any, **options: Any) -> Prediction:
    def returns() -> Any:
        return value

    with Engine(discover=False) as muna:
        return muna.predictions.create(Predictor("@me/returns", returns), **options)


def failed() -> Prediction:
    def fails() -> None:
        raise LookupError("nothing found")

    with Engine(discover=False) as muna:
        return muna.predictions.create(Predictor("@me/fails", fails), errors="return")


@pytest.mark.parametrize(
    ("value", "results"),
    [(("a", 1), ("a", 1)), ((), ()), ("text", ("text",)), ([1, 2], ([1, 2],)), (None, (None,)), ({1: 2}, ({1: 2},))],
    ids=repr,
)
def test_results_are_the_tuple_view_of_the_value(value: Any, results: tuple[Any, ...]) -> None:
    prediction = made(value)
    assert prediction.value is value
    assert prediction.results == results


class Pair(tuple[int, int]):
    __slots__ = ()


def test_a_named_tuple_is_one_result() -> None:
    pair = Pair((1, 2))
    assert made(pair).results == (pair,)


def test_a_predictions_dict_is_the_json_shape() -> None:
    before = datetime.now(UTC)
    prediction = made(("text", 1))
    shape = json.loads(json.dumps(prediction.to_dict()))
    assert list(shape) == ["id", "tag", "results", "latency", "error", "logs", "created"]
    assert (shape["id"], shape["tag"], shape["results"]) == (prediction.id, "@me/returns", ["text", 1])
    assert (shape["error"], shape["logs"], shape["latency"]) == (None, "", prediction.latency)
    created = datetime.fromisoformat(shape["created"])
    assert created.tzinfo is not None
    assert (created - before).total_seconds() == pytest.approx(0.0, abs=60.0)


def test_a_failure_in_a_predictions_dict_is_its_traceback() -> None:
    shape = json.loads(json.dumps(failed().to_dict()))
    assert shape["error"].startswith("Traceback (most recent call last):")
    assert "LookupError: nothing found" in shape["error"]
    assert shape["results"] == [None]


class Hostile:
    def __repr__(self) -> str:
        raise RuntimeError("no repr for you")


@pytest.mark.parametrize(
    "value",
    ["x" * 100_000, "\x1b[2J\x00", Hostile(), [Hostile()], 10**10_000, "\ud800", b"\xff" * 9_999, {"a": "b" * 999}],
    ids=type,
)
def test_the_repr_of_a_prediction_is_short_and_safe_whatever_the_value(value: Any) -> None:
    text = repr(made(value))
    assert text.startswith("<Prediction @me/returns #0 ")
    assert len(text) < 400
    assert text.isascii()
    assert text.isprintable()


def test_the_repr_of_a_failed_prediction_names_the_error() -> None:
    assert re.fullmatch(r"<Prediction @me/fails #0 failed: LookupError \d+\.\d{3} ms>", repr(failed()))


def test_a_prediction_survives_a_pickle_with_its_call() -> None:
    prediction = made(("text", 1))
    copied = pickle.loads(pickle.dumps(prediction))
    assert copied.to_dict() == prediction.to_dict()
    assert (copied.index, copied.value, copied.exception) == (0, ("text", 1), None)
    assert copied.created == prediction.created


def test_a_failed_prediction_survives_a_pickle_with_its_error() -> None:
    prediction = failed()
    copied = pickle.loads(pickle.dumps(prediction))
    assert copied.error == prediction.error
    assert (type(copied.exception), copied.exception.args) == (LookupError, ("nothing found",))
    with pytest.raises(LookupError, match="nothing found"):
        copied.raise_for_error()


def test_an_exception_that_cannot_be_rebuilt_travels_as_a_predictor_error() -> None:
    class Local(Exception):
        pass

    def fails() -> None:
        raise Local("of no module")

    with Engine(discover=False) as muna:
        prediction = muna.predictions.create(fails, errors="return")
    copied = pickle.loads(pickle.dumps(prediction))
    assert isinstance(copied.exception, PredictorError)
    assert copied.exception.type_name.endswith("Local")
    assert "of no module" in str(copied.exception)
    assert "of no module" in copied.exception.traceback
    assert copied.error == prediction.error


def test_raise_for_error_gives_the_prediction_itself_where_all_went_well() -> None:
    prediction = made("text")
    assert prediction.raise_for_error() is prediction


def test_a_prediction_has_no_room_for_anything_else() -> None:
    with pytest.raises(AttributeError):
        made("text").mood = "good"  # type: ignore[attr-defined]


def test_an_outcome_survives_a_pickle() -> None:
    copied = pickle.loads(pickle.dumps(Outcome("done", 3, "returned")))
    assert (copied.state, copied.count, copied.returned, copied.ended) == ("done", 3, "returned", True)


@pytest.mark.parametrize("state", ["pending", "running"])
def test_an_outcome_that_may_go_on_has_not_ended(state: Any) -> None:
    assert not Outcome(state).ended


# Failures asked for as values


def fails_late() -> Iterator[str]:
    yield "first"
    yield "second"
    raise LookupError("third")


async def fails_later() -> AsyncIterator[str]:
    yield "first"
    yield "second"
    raise LookupError("third")


def created(muna: Engine, face: str, *arguments: Any, **options: Any) -> Prediction:
    if face == "create":
        return muna.predictions.create(*arguments, **options)
    return asyncio.run(muna.predictions.acreate(*arguments, **options))


both_faces = pytest.mark.parametrize("face", ["create", "acreate"])
both_colours = pytest.mark.parametrize("target", [fails_late, fails_later], ids=["yield", "async-yield"])
both_places = pytest.mark.parametrize("runner", [None, "thread"])


@both_faces
@both_colours
@both_places
@pytest.mark.parametrize(
    ("reduce", "value"),
    [("last", "second"), ("concat", "firstsecond"), ("collect", ["first", "second"]), ("returned", None)],
)
def test_a_failure_asked_for_as_a_value_carries_what_was_reduced_before(  # noqa: PLR0917
    face: str, target: Any, runner: str | None, reduce: str, value: Any, muna: Engine
) -> None:
    prediction = created(muna, face, target, runner=runner, reduce=reduce, errors="return")
    assert prediction.value == value
    assert isinstance(prediction.exception, LookupError)
    assert prediction.error is not None
    assert "LookupError: third" in prediction.error
    assert "raise LookupError(" in prediction.error
    assert prediction.index == 1
    with pytest.raises(LookupError, match="third") as caught:
        prediction.raise_for_error()
    assert caught.value is prediction.exception


@both_faces
@both_places
def test_errors_return_never_covers_what_is_not_the_bodys(face: str, runner: str | None, muna: Engine) -> None:
    def empty() -> Iterator[str]:
        yield from ()

    def typed(number: int) -> int:
        return number

    for error, target, inputs in (
        (PredictorNotFoundError, "@me/nobody", None),
        (InvalidTagError, "Nobody!", None),
        (InvalidInputError, typed, {"number": "one"}),
        (NoPartialsError, empty, None),
    ):
        with pytest.raises(error):
            created(muna, face, target, inputs, runner=runner, errors="return")


def test_errors_return_never_covers_the_cancellation_of_the_caller(muna: Engine) -> None:
    async def waits() -> None:
        await asyncio.Event().wait()

    async def read() -> None:
        for runner in (None, "thread"):
            creating = asyncio.create_task(muna.predictions.acreate(waits, runner=runner, errors="return"))
            await asyncio.sleep(0)
            creating.cancel()
            with pytest.raises(asyncio.CancelledError):
                await creating

    asyncio.run(read())


# The note


def note_of(error: BaseException) -> str:
    [note] = error.__notes__
    return str(note)


@both_faces
@both_colours
@both_places
def test_a_failure_carries_one_note_with_its_call(face: str, target: Any, runner: str | None, muna: Engine) -> None:
    record = Predictor("@me/fails", target)
    prediction = created(muna, face, record, runner=runner, errors="return")
    assert isinstance(prediction.exception, LookupError)
    assert re.fullmatch(
        rf"predictor @me/fails, prediction {prediction.id}, runner (inline|thread|loop), after 2 partials",
        note_of(prediction.exception),
    )
    assert note_of(prediction.exception) in (prediction.error or "")


def test_a_note_replaces_an_earlier_one_of_ours_and_leaves_others(muna: Engine) -> None:
    shared = LookupError("the same object each time")
    shared.add_note("the author's own")

    def fails() -> None:
        raise shared

    prediction = [muna.predictions.create(fails, errors="return") for _ in range(3)][-1]
    assert len(shared.__notes__) == 2
    assert shared.__notes__[0] == "the author's own"
    assert prediction.id in shared.__notes__[1]


def test_a_call_within_a_call_leaves_the_note_of_the_outer_one(muna: Engine) -> None:
    def inner() -> None:
        raise LookupError("deep down")

    def outer() -> None:
        muna.predictions.create(Predictor("@me/inner", inner))

    with pytest.raises(LookupError) as caught:
        muna.predictions.create(Predictor("@me/outer", outer))
    assert "@me/outer" in note_of(caught.value)


class Closed(Exception):
    """Refuses notes."""

    def add_note(self, _note: str) -> None:
        raise TypeError("no notes, please")


def test_a_failure_that_refuses_notes_arrives_without_one(muna: Engine) -> None:
    def fails() -> None:
        raise Closed("as it is")

    with pytest.raises(Closed, match="as it is") as caught:
        muna.predictions.create(fails)
    assert not hasattr(caught.value, "__notes__")


def test_what_is_refused_before_the_body_runs_has_no_note(muna: Engine) -> None:
    for target, inputs in (("@me/nobody", {}), (yields, {"unknown": 1})):
        with pytest.raises(EngineError) as caught:
            muna.predictions.create(target, inputs)
        assert not hasattr(caught.value, "__notes__")


# Unchecked inputs


def typed(number: int, times: int = 1) -> Any:
    return number * times


@pytest.mark.parametrize("face", ["create", "acreate", "stream", "astream"])
def test_inputs_are_checked_unless_somebody_says_otherwise(face: str, muna: Engine) -> None:
    async def read(tag: Any, inputs: dict[str, Any], **options: Any) -> list[Any]:
        return [each async for each in muna.predictions.astream(tag, inputs, **options).values()]

    def call(tag: Any, inputs: dict[str, Any], **options: Any) -> Any:
        if face == "stream":
            return next(muna.predictions.stream(tag, inputs, **options).values())
        if face == "astream":
            return asyncio.run(read(tag, inputs, **options))[0]
        return created(muna, face, tag, inputs, **options).value

    lax = Predictor("@me/lax", typed, check=False)
    text = {"number": "ab", "times": 2}
    with pytest.raises(InvalidInputError):
        call(typed, text)
    with pytest.raises(InvalidInputError):
        call(lax, text, check=True)
    assert call(typed, text, check=False) == "abab"
    assert call(lax, text) == "abab"


def test_unchecked_inputs_still_need_their_names(muna: Engine) -> None:
    with pytest.raises(InvalidInputError, match=r"number"):
        muna.predictions.create(typed, {}, check=False)
    with pytest.raises(InvalidInputError, match=r"its inputs are: number, times"):
        muna.predictions.create(typed, {"numbr": 1}, check=False)


# Errors

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
