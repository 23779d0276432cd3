"""Faults that a predictor raises: ordinary, hostile, huge, fatal, repeated, and out of its own clean-up.

Each one strikes at every place of every kind of body, for every consumer and runner. What is asked is always the same:
the right exception arrives once, after the partials before it, the body is finalised once, and the next call works.
"""

from __future__ import annotations

import contextlib
import gc
import pickle
import sys
import traceback
import weakref
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import pytest

from engine import PredictorError
from tests._kit.gates import Gate
from tests._kit.waits import auntil
from tests.faults.conftest import Fault, predictor_with
from tests.faults.producers import raising

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.faults.conftest import Cell, Consumer, Point


async def caught(consumer: Consumer, point: Point, error: BaseException) -> BaseException:
    """Stream a predictor that raises `error`; check how the stream ends, and give what arrived."""
    fault = Fault(raising(error), point.place)
    reader = consumer.open(predictor_with(point.cell.kind, fault))
    arrived: BaseException | None = None
    delivered: list[Any] = []
    try:
        while len(delivered) < 5:
            delivered.append(await reader.pull())
    except BaseException as raised:
        arrived = raised
    assert delivered == point.delivered
    assert arrived is not None
    assert arrived is reader.outcome.exception
    assert len(point.delivered) == reader.outcome.count
    assert await reader.has_ended("failed")
    await reader.close()
    assert await reader.has_ended("failed")
    assert (fault.started, fault.finalised) == (1, 1)
    return arrived


async def caught_by_create(consumer: Consumer, point: Point, error: BaseException, **options: Any) -> BaseException:
    """What `create` raises of a fault, after what must be so of its body is checked."""
    fault = Fault(raising(error), point.place)
    try:
        await consumer.create(predictor_with(point.cell.kind, fault), **options)
    except BaseException as raised:
        assert (fault.started, fault.finalised) == (1, 1)
        return raised
    pytest.fail("nothing was raised")


def our_notes(error: BaseException) -> list[str]:
    return [note for note in getattr(error, "__notes__", ()) if note.startswith("predictor ")]


# 31: ordinary exceptions.


@pytest.mark.fault(31)
def test_an_exception_arrives_as_itself_after_the_partials_before_it(point: Point) -> None:
    async def scenario(consumer: Consumer) -> None:
        error = LookupError("no such voice", 7)
        error.__cause__ = KeyError("voice")
        error.add_note("a note of the predictor's own")
        assert await caught(consumer, point, error) is error
        assert error.args == ("no such voice", 7)
        assert isinstance(error.__cause__, KeyError)
        assert "the line that struck" in "".join(traceback.format_exception(error))
        assert error.__notes__[0] == "a note of the predictor's own"
        (note,) = our_notes(error)
        assert "predictor_with" in note
        assert f"after {len(point.delivered)} partials" in note
        assert await consumer.still_works()

    point.cell.run(scenario)


@pytest.mark.fault(31)
def test_create_raises_what_the_predictor_raised_with_one_note(point: Point) -> None:
    async def scenario(consumer: Consumer) -> None:
        error = LookupError("no such voice")
        assert await caught_by_create(consumer, point, error) is error
        assert "the line that struck" in "".join(traceback.format_exception(error))
        assert len(our_notes(error)) == 1
        assert await consumer.still_works()

    point.cell.run(scenario)


@pytest.mark.fault(31)
def test_create_returns_the_failure_where_that_was_asked_for(point: Point) -> None:
    async def scenario(consumer: Consumer) -> None:
        error = LookupError("no such voice")
        predictor = predictor_with(point.cell.kind, Fault(raising(error), point.place))
        prediction = await consumer.create(predictor, errors="return", reduce="collect")
        assert prediction.exception is error
        assert prediction.error is not None
        assert "the line that struck" in prediction.error
        assert "LookupError: no such voice" in prediction.error
        assert (prediction.value or []) == point.delivered
        with pytest.raises(LookupError) as raised:
            prediction.raise_for_error()
        assert raised.value is error
        assert await consumer.still_works()

    point.cell.run(scenario)


# 34: exceptions that cannot be shown.


class StrRaises(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


class StrIsNoText(Exception):
    def __str__(self) -> str:
        return 7  # type: ignore[return-value]  # noqa: PLE0307 - the fault


class ReprRaises(Exception):
    def __repr__(self) -> str:
        raise RuntimeError("no picture")


class ReprIsNoText(Exception):
    def __repr__(self) -> str:
        return None  # type: ignore[return-value]


class NothingWorks(StrRaises, ReprRaises):
    def __reduce__(self) -> Any:
        raise RuntimeError("no travelling")


class FatalStrRaises(SystemExit):
    def __str__(self) -> str:
        raise RuntimeError("no text")


HOSTILE: Final = (StrRaises, StrIsNoText, ReprRaises, ReprIsNoText, NothingWorks)
hostile_kinds = pytest.mark.parametrize("kind", HOSTILE, ids=lambda kind: kind.__name__)


@pytest.mark.fault(34)
@hostile_kinds
def test_an_exception_that_cannot_be_shown_arrives_as_itself(point: Point, kind: type[Exception]) -> None:
    async def scenario(consumer: Consumer) -> None:
        error = kind("args")
        assert await caught(consumer, point, error) is error
        again = kind("args")
        assert await caught_by_create(consumer, point, again) is again
        assert await consumer.still_works()

    point.cell.run(scenario)


@pytest.mark.fault(34)
@hostile_kinds
def test_a_prediction_of_a_failure_that_cannot_be_shown_shows_its_type(cell: Cell, kind: type[Exception]) -> None:
    async def scenario(consumer: Consumer) -> None:
        failing = predictor_with(cell.kind, Fault(raising(kind("args"))))
        prediction = await consumer.create(failing, errors="return")
        assert prediction.error is not None
        assert kind.__name__ in prediction.error
        assert kind.__name__ in repr(prediction)
        assert prediction.to_dict()["error"] == prediction.error
        assert kind.__name__ in pickle.loads(pickle.dumps(prediction)).error

    cell.run(scenario)


@pytest.mark.fault(34)
def test_a_fatal_exception_that_cannot_be_shown_arrives_as_a_predictor_error_with_its_type(point: Point) -> None:
    async def scenario(consumer: Consumer) -> None:
        error = FatalStrRaises()
        arrived = await caught(consumer, point, error)
        assert isinstance(arrived, PredictorError)
        assert arrived.__cause__ is error
        assert "FatalStrRaises" in str(arrived)
        assert "unrepresentable" in str(arrived)

    point.cell.run(scenario)


@pytest.mark.fault(34, 45)
@hostile_kinds
def test_an_exception_that_cannot_be_shown_is_logged_without_a_second_failure(
    yielding: Cell, kind: type[Exception], caplog: pytest.LogCaptureFixture
) -> None:
    fault = Fault(cleanup=raising(kind("args")))

    async def scenario(consumer: Consumer) -> None:
        reader = consumer.open(predictor_with(yielding.kind, fault), prefetch=0)
        await reader.pull()
        reader.stream.cancel()
        await auntil(lambda: kind.__name__ in caplog.text, "the log names the exception")

    yielding.run(scenario)
    assert fault.finalised == 1


# 35: huge exceptions.


class NeverShown:
    """Its picture would be too large to make."""

    def __repr__(self) -> str:
        raise AssertionError("a picture of this was made")


@pytest.mark.fault(35)
def test_the_arguments_of_an_exception_are_never_pictured_on_its_way(point: Point) -> None:
    async def scenario(consumer: Consumer) -> None:
        error = ValueError(NeverShown(), list(range(100_000)))
        assert await caught(consumer, point, error) is error
        again = ValueError(NeverShown())
        assert await caught_by_create(consumer, point, again) is again

    point.cell.run(scenario)


@pytest.mark.fault(35)
def test_the_text_of_a_fatal_exception_is_cut_with_head_and_tail_kept(cell: Cell) -> None:
    async def scenario(consumer: Consumer) -> None:
        text = "head" + "x" * 3_000_000 + "tail"
        predictor = predictor_with(cell.kind, Fault(raising(SystemExit(text))))
        with pytest.raises(PredictorError) as arrived:
            await consumer.create(predictor)
        message = str(arrived.value)
        assert len(message) < 10_000
        assert "head" in message
        assert "tail" in message

    cell.run(scenario)


@pytest.mark.fault(35)
def test_an_exception_over_three_megabytes_is_handed_on_whole_and_pictured_short(cell: Cell) -> None:
    async def scenario(consumer: Consumer) -> None:
        error = UnicodeDecodeError("utf-8", b"\xff" * 3_000_000, 0, 1, "bad voice")
        prediction = await consumer.create(predictor_with(cell.kind, Fault(raising(error))), errors="return")
        assert prediction.exception is error
        assert len(error.object) == 3_000_000
        assert len(repr(prediction)) < 1_000
        assert prediction.error is not None
        assert len(prediction.error) < 100_000

    cell.run(scenario)


@pytest.mark.fault(35)
def test_a_failures_text_is_cut_with_head_and_tail_kept(cell: Cell) -> None:
    async def scenario(consumer: Consumer) -> None:
        error = ValueError("head" + "x" * 3_000_000 + "tail")
        prediction = await consumer.create(predictor_with(cell.kind, Fault(raising(error))), errors="return")
        assert prediction.exception is error
        assert len(error.args[0]) == 3_000_008
        assert prediction.error is not None
        assert len(prediction.error) < 100_000
        assert "head" in prediction.error
        assert "tail" in prediction.error

    cell.run(scenario)


# 36: exceptions that refuse attributes.


@dataclass(frozen=True)
class Frozen(Exception):
    code: int


class NoNotes(Exception):
    def add_note(self, note: str, /) -> None:
        raise RuntimeError("not here")

    @property
    def __notes__(self) -> list[str]:  # type: ignore[override]
        raise RuntimeError("nor here")


@pytest.mark.fault(36)
@pytest.mark.parametrize("make", [lambda: Frozen(3), lambda: NoNotes("three")], ids=["frozen", "no-notes"])
def test_an_exception_that_refuses_attributes_arrives_without_a_note(
    point: Point, make: Callable[[], Exception]
) -> None:
    async def scenario(consumer: Consumer) -> None:
        error = make()
        assert await caught(consumer, point, error) is error
        again = make()
        assert await caught_by_create(consumer, point, again) is again
        predictor = predictor_with(point.cell.kind, Fault(raising(make()), point.place))
        prediction = await consumer.create(predictor, errors="return")
        assert type(prediction.exception) is type(error)
        assert prediction.error is not None
        assert await consumer.still_works()

    point.cell.run(scenario)


# 39, 40, 41: what would end more than the call.


@pytest.mark.fault(39)
def test_system_exit_in_a_predictor_fails_that_call_alone(point: Point) -> None:
    async def scenario(consumer: Consumer) -> None:
        error = SystemExit(3)
        arrived = await caught(consumer, point, error)
        assert isinstance(arrived, PredictorError)
        assert arrived.__cause__ is error
        assert "SystemExit: 3" in str(arrived)
        again = SystemExit(4)
        created = await caught_by_create(consumer, point, again)
        assert isinstance(created, PredictorError)
        assert created.__cause__ is again
        assert await consumer.still_works()

    point.cell.run(scenario)


@pytest.mark.fault(39)
def test_system_exit_is_the_bodys_failure_where_failures_are_returned(point: Point) -> None:
    async def scenario(consumer: Consumer) -> None:
        error = SystemExit(3)
        predictor = predictor_with(point.cell.kind, Fault(raising(error), point.place))
        prediction = await consumer.create(predictor, errors="return")
        assert isinstance(prediction.exception, PredictorError)
        assert prediction.exception.__cause__ is error

    point.cell.run(scenario)


@pytest.mark.fault(40)
def test_ctrl_c_reaches_the_caller_from_its_own_thread_and_is_a_failure_elsewhere(point: Point) -> None:
    async def check(consumer: Consumer, arrived: BaseException, error: BaseException) -> None:
        if point.cell.is_in_lockstep:  # pytest runs tests on the main thread
            assert arrived is error
        else:
            assert isinstance(arrived, PredictorError)
            assert arrived.__cause__ is error
        assert await consumer.still_works()

    async def scenario(consumer: Consumer) -> None:
        error, again = KeyboardInterrupt(), KeyboardInterrupt()
        await check(consumer, await caught(consumer, point, error), error)
        await check(consumer, await caught_by_create(consumer, point, again), again)

    point.cell.run(scenario)


@pytest.mark.fault(40)
def test_ctrl_c_is_never_returned_as_a_failure_where_it_belongs_to_the_caller(point: Point) -> None:
    async def scenario(consumer: Consumer) -> None:
        predictor = predictor_with(point.cell.kind, Fault(raising(KeyboardInterrupt()), point.place))
        if point.cell.is_in_lockstep:
            with pytest.raises(KeyboardInterrupt):
                await consumer.create(predictor, errors="return")
        else:
            assert isinstance((await consumer.create(predictor, errors="return")).exception, PredictorError)
        assert await consumer.still_works()

    point.cell.run(scenario)


class Earthquake(BaseException):
    """Neither an Exception nor one of Python's own."""


@pytest.mark.fault(41)
def test_a_base_exception_of_the_predictors_own_arrives_as_itself(point: Point) -> None:
    async def scenario(consumer: Consumer) -> None:
        error, again = Earthquake("now"), Earthquake("again")
        assert await caught(consumer, point, error) is error
        assert await caught_by_create(consumer, point, again) is again
        assert await consumer.still_works()

    point.cell.run(scenario)


@pytest.mark.fault(41)
@pytest.mark.parametrize("fatal", [SystemExit(1), KeyboardInterrupt()], ids=["SystemExit", "KeyboardInterrupt"])
def test_a_group_arrives_intact_and_can_be_split(point: Point, fatal: BaseException) -> None:
    def group() -> BaseExceptionGroup[BaseException]:
        inner = ExceptionGroup("inner", [ValueError("a"), TypeError("b")])
        return BaseExceptionGroup("outer", [inner, fatal, Earthquake()])

    async def scenario(consumer: Consumer) -> None:
        error, again = group(), group()
        assert await caught(consumer, point, error) is error
        assert await caught_by_create(consumer, point, again) is again
        ordinary, rest = error.split(Exception)
        assert ordinary is not None
        assert rest is not None
        (inner,) = ordinary.exceptions
        assert isinstance(inner, ExceptionGroup)
        assert [type(leaf) for leaf in inner.exceptions] == [ValueError, TypeError]
        assert rest.exceptions[0] is fatal
        assert await consumer.still_works()

    point.cell.run(scenario)


# 42: the same exception again.


def frames(error: BaseException) -> int:
    return len(traceback.extract_tb(error.__traceback__))


@pytest.mark.fault(42)
def test_raising_a_returned_failure_again_does_not_grow_its_traceback(cell: Cell) -> None:
    async def scenario(consumer: Consumer) -> None:
        predictor = predictor_with(cell.kind, Fault(raising(ValueError("again and again"))))
        prediction = await consumer.create(predictor, errors="return")
        lengths = []
        for _ in range(3):
            with pytest.raises(ValueError, match="again and again") as raised:
                prediction.raise_for_error()
            lengths.append(frames(raised.value))
        assert lengths[0] == lengths[1] == lengths[2]

    cell.run(scenario)


@pytest.mark.fault(42)
def test_one_exception_raised_by_many_calls_keeps_one_note_of_ours(point: Point) -> None:
    async def scenario(consumer: Consumer) -> None:
        error = ValueError("made once, raised often")
        for _ in range(3):
            assert await caught(consumer, point, error) is error
            assert await caught_by_create(consumer, point, error) is error
        assert len(our_notes(error)) == 1

    point.cell.run(scenario)


# 43: what an exception keeps alive.


class Weighty:
    """An input one would not like to keep."""


def failing_with_its_input(kind: str) -> Callable[[Weighty], Any]:
    def fails(weighty: Weighty) -> None:
        raise ValueError("it holds this frame")

    def fails_mid_stream(weighty: Weighty) -> Any:
        yield 1
        fails(weighty)

    async def afails(weighty: Weighty) -> None:
        fails(weighty)

    async def afails_mid_stream(weighty: Weighty) -> Any:
        yield 1
        fails(weighty)

    return {"def": fails, "gen": fails_mid_stream, "async": afails, "agen": afails_mid_stream}[kind]


@pytest.mark.fault(43)
@pytest.mark.parametrize("policy", ["stream", "create", "create-and-return"])
def test_an_input_is_freed_with_the_exception_that_held_it_and_needs_no_collector(cell: Cell, policy: str) -> None:
    predictor = failing_with_its_input(cell.kind)

    async def fail_with(consumer: Consumer, weighty: Weighty) -> None:
        inputs = {"weighty": weighty}
        predictions = consumer.engine.predictions
        if policy == "create-and-return":
            assert (await consumer.create(predictor, inputs=inputs, errors="return")).exception is not None
            return
        with contextlib.suppress(ValueError):
            if policy == "create":
                await consumer.create(predictor, inputs=inputs)
            elif cell.is_asyncio:  # nothing here may name the stream: its outcome keeps the exception, which keeps this
                async for _ in predictions.astream(predictor, inputs, runner=cell.runner).values():
                    pass
            else:
                list(predictions.stream(predictor, inputs, runner=cell.runner).values())
            pytest.fail("nothing was raised")

    async def scenario(consumer: Consumer) -> None:
        weighty = Weighty()
        reference = weakref.ref(weighty)
        await fail_with(consumer, weighty)
        del weighty
        # An owner thread ends the call a little after its consumer; nothing else has to happen.
        await auntil(lambda: reference() is None, "the input was freed")

    gc.collect()
    gc.disable()
    try:
        cell.run(scenario)
    finally:
        gc.enable()


# 44: limits of the interpreter.


def dive(depth: int = 0) -> int:
    return dive(depth + 1) + 1


def take_all_memory() -> None:
    bytearray(sys.maxsize)


@pytest.mark.fault(44)
@pytest.mark.parametrize(("strike", "kind"), [(dive, RecursionError), (take_all_memory, MemoryError)])
def test_a_limit_of_the_interpreter_is_an_ordinary_failure(
    point: Point, strike: Callable[[], Any], kind: type[Exception]
) -> None:
    async def scenario(consumer: Consumer) -> None:
        fault = Fault(lambda: bool(strike()), point.place)
        reader = consumer.open(predictor_with(point.cell.kind, fault))
        delivered = [await reader.pull() for _ in point.delivered]
        with pytest.raises(kind) as arrived:
            await reader.pull()
        assert delivered == point.delivered
        assert strike.__name__ in "".join(traceback.format_exception(arrived.value))
        assert await reader.has_ended("failed")
        assert (fault.started, fault.finalised) == (1, 1)
        with pytest.raises(kind):
            await consumer.create(predictor_with(point.cell.kind, Fault(fault.strikes, point.place)))
        assert await consumer.still_works()

    point.cell.run(scenario)


# 45: errors of the clean-up.


@pytest.mark.fault(45)
def test_what_a_finally_raises_at_the_end_of_a_body_is_its_failure(point: Point) -> None:
    async def scenario(consumer: Consumer) -> None:
        first, second = ValueError("the body"), OSError("its clean-up")
        fault = Fault(raising(first), point.place, raising(second))
        reader = consumer.open(predictor_with(point.cell.kind, fault))
        delivered = [await reader.pull() for _ in point.delivered]
        with pytest.raises(OSError, match="its clean-up") as arrived:
            await reader.pull()
        assert delivered == point.delivered
        assert arrived.value is second
        assert second.__context__ is first
        assert await reader.has_ended("failed")
        assert fault.finalised == 1

    point.cell.run(scenario)


@pytest.mark.fault(45)
@pytest.mark.parametrize("read", [1, 2], ids=["mid-stream", "after-the-last"])
def test_what_a_finally_raises_comes_out_of_close(yielding: Cell, read: int) -> None:
    async def scenario(consumer: Consumer) -> None:
        error = OSError("clean-up")
        fault = Fault(cleanup=raising(error))
        reader = consumer.open(predictor_with(yielding.kind, fault), prefetch=0)
        for _ in range(read):
            await reader.pull()
        with pytest.raises(OSError, match="clean-up") as arrived:
            await reader.close()
        assert arrived.value is error
        assert fault.finalised == 1
        await reader.close()
        assert await reader.has_ended("closed")
        assert await consumer.still_works()

    yielding.run(scenario)


@pytest.mark.fault(45)
def test_what_a_finally_raises_has_the_error_in_flight_as_its_context(yielding: Cell) -> None:
    async def scenario(consumer: Consumer) -> None:
        mine, clean_up = KeyError("the consumer's"), OSError("clean-up")
        fault = Fault(cleanup=raising(clean_up))
        reader = consumer.open(predictor_with(yielding.kind, fault), prefetch=0)

        async def fails() -> None:
            async with reader.opened():
                await reader.pull()
                raise mine

        with pytest.raises(OSError, match="clean-up") as arrived:
            await fails()
        assert arrived.value is clean_up
        context = clean_up.__context__
        while context is not mine and context is not None:
            context = context.__context__
        assert context is mine
        assert fault.finalised == 1

    yielding.run(scenario)


@pytest.mark.fault(45)
def test_what_a_finally_raises_after_a_cancel_goes_to_the_log(yielding: Cell, caplog: pytest.LogCaptureFixture) -> None:
    fault = Fault(cleanup=raising(OSError("clean-up of a cancelled body")))

    async def scenario(consumer: Consumer) -> None:
        reader = consumer.open(predictor_with(yielding.kind, fault), prefetch=0)
        await reader.pull()
        reader.stream.cancel()
        await auntil(lambda: "clean-up of a cancelled body" in caplog.text, "the log tells of the clean-up")
        assert await consumer.still_works()

    yielding.run(scenario)
    assert fault.finalised == 1


@pytest.mark.fault(45)
@pytest.mark.filterwarnings("ignore:a stream of .* was abandoned:ResourceWarning")
def test_what_a_finally_raises_in_an_abandoned_stream_goes_to_the_log(
    yielding: Cell, caplog: pytest.LogCaptureFixture
) -> None:
    fault = Fault(cleanup=raising(OSError("clean-up of an abandoned body")))

    async def scenario(consumer: Consumer) -> None:
        reader = consumer.open(predictor_with(yielding.kind, fault), prefetch=0)
        await reader.pull()
        reader.drop()
        await auntil(lambda: "clean-up of an abandoned body" in caplog.text, "the log tells of the clean-up")
        assert await consumer.still_works()

    yielding.run(scenario)
    assert fault.finalised == 1


@pytest.mark.fault(45)
def test_what_a_waiting_body_raises_when_it_is_cancelled_goes_to_the_log(
    owned: Cell, caplog: pytest.LogCaptureFixture
) -> None:
    """The body is inside a wait when its stream is cancelled, and its clean-up fails."""
    reached, go = Gate(), Gate()
    fault = Fault(cleanup=raising(OSError("clean-up of a waiting body")))

    def arrive() -> Any:
        reached.open()
        return owned.waits_at(go)()

    fault.strikes = arrive

    async def scenario(consumer: Consumer) -> None:
        from engine import PredictionCancelledError
        from tests._kit.waits import OtherThread

        reader = consumer.open(predictor_with(owned.kind, fault))

        def cancel() -> None:
            reached.wait()
            reader.stream.cancel()

        with OtherThread(cancel), pytest.raises(PredictionCancelledError):
            await reader.pull()
        go.open()
        await auntil(lambda: "clean-up of a waiting body" in caplog.text, "the log tells of the clean-up")
        assert await reader.has_ended("cancelled")

    owned.run(scenario)
    assert fault.finalised == 1
