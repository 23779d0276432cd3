"""The engine's side of worker processes as a state machine: streams are opened, read, stopped and dropped while workers
answer, fall silent, talk nonsense and die, in whatever order hypothesis thinks of.

No process is started: the far ends of a worker's pipes are held by `Far`, which speaks frames as a worker does and
has them served by the test itself. Runner, pool, supervisor and inlets are the real ones. A model of what each stream
must show is kept beside, and after every step the two are held against each other, by the promises P1 to P5.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import faulthandler
import gc
import itertools
import os
import pickle
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Final

import pytest
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from engine import Engine, EngineClosedError, PayloadError, PredictionCancelledError, WorkerLostError
from engine._wire.frames import ITEM, LOG, pack
from engine._wire.segments import Segment
from engine.runners.process import pool, queue, supervisor
from engine.runners.process import runner as process
from engine.runners.process import worker as workers
from tests._kit.internals import descriptors_of, process_runner_of, supervisor_of
from tests.runners.process.far_worker import (
    NONSENSE,
    REACTIONS,
    Clock,
    Far,
    Poison,
    Served,
    done,
    failed,
    items,
    value_of,
)
from tests.runners.process.modelled_streams import Plan, Reader, apull, predict, predict_too, pull

GRACE: Final = 30.0  # seconds from rung to rung, of a clock that is put on where they are to pass
LIMIT: Final = 5.0  # seconds of the real one that anything may take
WORKERS: Final = 2
STREAMS: Final = 4  # open at a time: more than there are workers, so that some wait


# The machine


PICKS: Final = st.integers(0, 5)
FORMS: Final = st.sampled_from(["words", "lists", "large"])
PLANS: Final = st.builds(
    Plan,
    st.booleans(),
    st.sampled_from([None, None, 0, 1, 3]),
    st.sampled_from([predict, predict_too]),
    st.sampled_from([1, 1, 2, 0]),
)
reactions: Final = st.sampled_from(REACTIONS)


class Machine(RuleBasedStateMachine):
    """Streams of one engine with two workers."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self.readers: list[Reader] = []
        self.fars: list[Far] = []
        self.reaction = "finalises"
        self.supervisor: supervisor.Supervisor | None = None
        self.is_closed = False
        self.is_broken = False  # the test has failed
        self.spawns_to_fail = 0
        self.failed_spawns = 0
        self.threads = ThreadPoolExecutor(4)
        self.patch = pytest.MonkeyPatch()
        for module in (pool, supervisor, workers):
            self.patch.setattr(module, "monotonic", self.clock)
        self.patch.setattr(supervisor, "IDLE", 1e9)
        self.patch.setattr(supervisor, "_EXIT_GRACE", 0.0)
        self.patch.setattr(process, "start_worker", self.start_worker)
        self.patch.setattr(process, "Supervisor", self.make_supervisor)
        self.muna = Engine(discover=False, workers=WORKERS, grace=GRACE)
        self.loop = asyncio.new_event_loop()
        self.turning = threading.Thread(target=self.loop.run_forever, name="consumer", daemon=True)
        self.turning.start()

    def make_supervisor(self, *arguments: Any) -> supervisor.Supervisor:
        self.supervisor = supervisor.Supervisor(*arguments)
        return self.supervisor

    def start_worker(self, *_: Any) -> workers.Worker:
        if self.spawns_to_fail:
            self.spawns_to_fail -= 1
            self.failed_spawns += 1
            raise BlockingIOError(errno.EAGAIN, "no process is to be had")
        far = Far(lambda: self.reaction)
        self.fars.append(far)
        return far.near

    # What there is to choose from

    def open_ones(self) -> list[Reader]:
        return [each for each in self.readers if each.is_open]

    @staticmethod
    def one_of(found: list[Any], pick: int) -> Any:
        """One of these, or `None`. Preconditions cannot serve here: threads make what is there a little uncertain."""
        return found[pick % len(found)] if found else None

    def pullable(self) -> list[Reader]:
        return [each for each in self.open_ones() if len(each.pulls) < 2]

    def waiting(self) -> list[Reader]:
        return [each for each in self.open_ones() if each.plan.is_async and len(each.pulls) == 1]

    def droppable(self) -> list[Reader]:
        return [each for each in self.open_ones() if not each.pulls]

    def speaking(self) -> list[Reader]:
        """Those whose worker has not told the end of them."""
        return [each for each in self.readers if each.served is not None and not each.served.is_over]

    def giving(self) -> list[Reader]:
        return [each for each in self.speaking() if each.served and each.served.made < each.served.limit]

    def alive(self) -> list[Far]:
        return [each for each in self.fars if each.is_alive]

    def idle(self) -> list[Far]:
        return [each for each in self.alive() if each.call is not None and each.call.is_over and not each.is_deaf]

    # Driving both sides

    def turn(self) -> None:
        for far in tuple(self.fars):
            far.turn()
        if any(far.is_silent for far in self.fars):
            self.pass_time(GRACE + 1.0)
        for reader in self.readers:
            self.find_worker_of(reader)

    def pass_time(self, seconds: float) -> None:
        """Seconds go by at once."""
        self.clock.put_on(seconds)
        if self.supervisor is not None:
            self.supervisor.post(lambda _: None, None)

    def find_worker_of(self, reader: Reader) -> None:
        if reader.served is None and reader.is_begun:
            served = [(far, call) for far in self.fars for call in far.served if call.identity == reader.identity]
            assert len(served) <= 1, "a body was started twice"
            if served:
                reader.far, reader.served = served[0]
                assert reader.served.limit <= reader.most_ahead, "the first limit is beyond the window"

    def until(self, is_so: Callable[[], bool], what: Callable[[], str]) -> None:
        deadline = time.monotonic() + LIMIT
        self.is_broken = is_early = True
        while is_early:
            is_early = time.monotonic() < deadline
            self.turn()
            if is_so():
                self.is_broken = False
                return
            time.sleep(0.0002)
        faulthandler.dump_traceback(file=2)
        raise AssertionError(f"it never came true: {what()}; workers: {self.fars}")

    def result(self, future: Future[Any]) -> BaseException | None:
        """Wait for a call of the consumer's while workers go on; give what it raised."""
        self.until(future.done, lambda: "a call of the consumer's returned")
        return future.exception()

    def settle(self) -> None:
        """Let everything that must happen now happen."""
        self.until(lambda: not self.unsettled(), self.unsettled)

    def unsettled(self) -> str:
        for reader in self.readers:
            self.collect(reader)
        found = (self.unsettled_in(reader) for reader in self.readers)
        return next((each for each in found if each), "")

    def collect(self, reader: Reader) -> None:
        for future in [each for each in reader.pulls if each.done()]:
            reader.pulls.remove(future)
            kind, found = future.result()
            if kind == "raised" and isinstance(found, BlockingIOError) and self.failed_spawns:
                self.failed_spawns -= 1
                reader.must_end(BlockingIOError)
            reader.take_in(kind, found)

    def unsettled_in(self, reader: Reader) -> str:
        served = reader.served
        if served is not None and not served.is_over and (reader.stop or reader.is_told):
            return f"a worker is asked to stop, and ended if it does not: {reader}"
        if reader.is_concluded and reader.outcome.state != reader.final_state:
            return f"it is {reader.final_state}: {reader}"
        return self.unsettled_for_those_who_wait(reader) if reader.pulls else ""

    def unsettled_for_those_who_wait(self, reader: Reader) -> str:
        served = reader.served
        if reader.outcome.state == "pending":
            return f"a consumer begins: {reader}"
        if reader.stop or reader.is_ended or reader.sent:
            return f"a consumer that waits is answered: {reader}"
        if served is None:
            busy = [each for each in self.fars if self.is_busy(each)]
            return f"a call gets a worker: {reader}" if len(busy) < WORKERS else ""
        if served.limit <= served.made:
            return f"the producer hears that its consumer waits: {reader}, {served}"
        return ""

    def is_busy(self, far: Far) -> bool:
        """Whether no other call can have this worker, as far as can be known here."""
        if not far.is_alive:
            return False
        if far.call is None or not far.call.is_over:
            return far.call is not None
        return not next(each for each in self.readers if each.served is far.call).is_concluded

    # What consumers do

    @rule(plan=PLANS)
    def open(self, plan: Plan) -> None:
        self.open_one(plan)

    @initialize(plans=st.lists(PLANS, min_size=3, max_size=6))
    def begin(self, plans: list[Plan]) -> None:
        self.plans = itertools.cycle(plans)
        self.open_another()

    def open_one(self, plan: Plan) -> None:
        if self.is_closed or len(self.open_ones()) == STREAMS:
            return
        predictions = self.muna.predictions
        stream: Any
        if plan.is_async:

            async def call() -> Any:
                return predictions.astream(plan.body, runner="process", prefetch=plan.window)

            stream = asyncio.run_coroutine_threadsafe(call(), self.loop).result(LIMIT)
        else:
            stream = predictions.stream(plan.body, runner="process", prefetch=plan.window)
        reader = Reader(stream, plan, stream.outcome, stream.id, ThreadPoolExecutor(2))
        self.readers.append(reader)
        assert reader.outcome.state == "pending"
        for _ in range(plan.pulls):
            self.pull_one(reader)

    def open_another(self) -> None:
        self.open_one(next(self.plans))

    @rule(pick=PICKS)
    def pull(self, pick: int) -> None:
        reader = self.one_of(self.pullable(), pick)
        if reader is None:
            self.open_another()
            return
        self.pull_one(reader)

    @rule(pick=PICKS, rounds=st.integers(1, 5), batch=st.integers(1, 4), form=FORMS)
    def read_on(self, pick: int, rounds: int, batch: int, form: str) -> None:
        """A consumer and a producer take turns."""
        reader = self.one_of([each for each in self.giving() if each.is_open], pick)
        if reader is None:
            self.open_another()
            return
        far, served = self.there(reader)
        for _ in range(rounds):
            self.read_out(reader)
            if served.is_over or reader.is_ended or served.made >= served.limit:
                return
            self.have_sent(reader, far.give(min(batch, served.limit - served.made), form))
        self.read_out(reader)

    @rule(pick=PICKS)
    def read_what_is_there(self, pick: int) -> None:
        reader = self.one_of([each for each in self.open_ones() if each.sent], pick)
        if reader is None:
            self.open_another()
            return
        self.read_out(reader)

    def read_out(self, reader: Reader) -> None:
        """Take every partial that was sent, and wait for another, or know the end."""
        while not reader.is_concluded and not reader.pulls:
            self.pull_one(reader)

    def pull_one(self, reader: Reader) -> None:
        if self.is_closed and not reader.is_begun:
            reader.must_stop("closed", EngineClosedError)
        reader.is_begun = True
        if reader.plan.is_async:
            reader.pulls.append(asyncio.run_coroutine_threadsafe(apull(reader.stream.values()), self.loop))
            asyncio.run_coroutine_threadsafe(asyncio.sleep(0), self.loop).result(LIMIT)  # that task has begun by then
        else:
            reader.pulls.append(reader.threads.submit(pull, reader.stream.values()))
        self.settle()

    @rule(pick=PICKS, reaction=reactions)
    def close(self, pick: int, reaction: str) -> None:
        reader = self.one_of(self.open_ones(), pick)
        if reader is None:
            self.open_another()
            return
        self.reaction = reaction
        served = reader.served
        # A body that was stopped before, for a partial that cannot be rebuilt, has cleaned up ahead of its consumer.
        is_first = not reader.is_concluded and (served is None or not served.is_asked)
        reader.must_stop("closed")
        if reader.plan.is_async:
            raised = self.result(asyncio.run_coroutine_threadsafe(reader.stream.aclose(), self.loop))
        else:
            raised = self.result(self.threads.submit(reader.stream.close))
        served = reader.served
        if is_first and served is not None and not served.is_mad and served.answer == "fails in its clean-up":
            assert isinstance(raised, OSError), raised
        else:
            assert raised is None, raised
        self.settle()

    @rule(pick=PICKS, reaction=reactions, times=st.integers(1, 3))
    def cancel(self, pick: int, reaction: str, times: int) -> None:
        reader = self.one_of(self.open_ones(), pick)
        if reader is None:
            self.open_another()
            return
        self.reaction = reaction
        reader.must_stop("cancelled", PredictionCancelledError)
        for _ in range(times):
            reader.stream.cancel()
        self.settle()

    @rule(pick=PICKS, reaction=reactions)
    def cancel_the_waiting_task(self, pick: int, reaction: str) -> None:
        reader = self.one_of(self.waiting(), pick)
        if reader is None:
            self.open_another()
            return
        self.reaction = reaction
        reader.must_stop("cancelled")
        future = reader.pulls.pop()
        future.cancel()
        self.settle()

    @rule(pick=PICKS, reaction=reactions, in_cycle=st.booleans())
    def drop(self, pick: int, reaction: str, in_cycle: bool) -> None:
        reader = self.one_of(self.droppable(), pick)
        if reader is None:
            self.open_another()
            return
        self.reaction = reaction
        is_abandoned = reader.is_begun and not reader.is_concluded
        if reader.is_begun:
            reader.must_stop("closed")
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            cycle = [reader.stream]
            if in_cycle:
                cycle.append(cycle)
            reader.stream = None
            del cycle
            if in_cycle:
                gc.collect()
        assert [each.category for each in caught] == [ResourceWarning] * is_abandoned
        if reader.is_begun:
            assert reader.outcome.state == reader.final_state
        self.settle()

    # What workers do

    @rule(pick=PICKS, count=st.integers(1, 6), form=FORMS)
    def give(self, pick: int, count: int, form: str) -> None:
        reader = self.one_of(self.giving(), pick)
        if reader is None:
            self.open_another()
            return
        far, served = self.there(reader)
        self.have_sent(reader, far.give(min(count, served.limit - served.made), form))

    @rule(pick=PICKS, form=FORMS, share=st.floats(0.01, 0.99))
    def give_in_two_pieces(self, pick: int, form: str, share: float) -> None:
        reader = self.one_of(self.giving(), pick)
        if reader is None:
            self.open_another()
            return
        far, served = self.there(reader)
        value = value_of(form, served.made)
        frame = items(served.number, [value]) if form == "words" else far.item(served, value)
        half = max(1, int(len(frame) * share))
        far.write(frame[:half])
        self.settle()
        far.write(frame[half:])
        served.made += 1
        self.have_sent(reader, [value])

    def have_sent(self, reader: Reader, values: list[Any]) -> None:
        if not reader.is_concluded and not reader.is_ended:
            reader.sent.extend(values)
        self.settle()

    def there(self, reader: Reader) -> tuple[Far, Served]:
        assert reader.far is not None
        assert reader.served is not None
        return reader.far, reader.served

    @rule(pick=PICKS, how=st.sampled_from(["done", "done with its only value", "failed", "failed before it began"]))
    def end(self, pick: int, how: str) -> None:
        reader = self.one_of(self.speaking(), pick)
        if reader is None:
            self.open_another()
            return
        far, served = self.there(reader)
        failure: type[BaseException] | None = None
        if how == "done":
            far.end(done(served.number))
        elif how == "done with its only value":
            far.end(done(served.number, only=("the only value",)))
            served.made += 1
            if not reader.is_concluded and not reader.is_ended:
                reader.sent.append("the only value")
        else:
            failure = LookupError
            far.end(failed(served.number, LookupError(how), is_bodys=how == "failed"))
        reader.must_end(failure)
        self.settle()

    @rule(pick=PICKS, reaction=reactions)
    def give_what_cannot_be_rebuilt(self, pick: int, reaction: str) -> None:
        reader = self.one_of(self.giving(), pick)
        if reader is None:
            self.open_another()
            return
        far, served = self.there(reader)
        self.reaction = reaction
        data = pickle.dumps(Poison())
        far.write(b"".join(pack(ITEM, served.number, pickle.dumps((0.0, ((len(data),), 0, None)), 5), [data])))
        served.made += 1
        reader.must_end(PayloadError)
        self.settle()

    @rule(pick=PICKS, nonsense=st.sampled_from(NONSENSE))
    def talk_nonsense(self, pick: int, nonsense: bytes) -> None:
        reader = self.one_of(self.speaking(), pick)
        if reader is None:
            self.open_another()
            return
        far, served = self.there(reader)
        served.is_mad = True
        far.write(nonsense)
        reader.must_end(WorkerLostError)
        self.settle()

    @rule(pick=PICKS, code=st.sampled_from([0, 3, -signal.SIGKILL, -signal.SIGSEGV]), share=st.floats(0.0, 1.0))
    def die(self, pick: int, code: int, share: float) -> None:
        """A share of a frame may be on its way."""
        far = self.one_of(self.alive(), pick)
        if far is None:
            return
        call = far.call
        if call is not None and not call.is_over:
            frame = items(call.number, ["never whole"])
            far.write(frame[: int((len(frame) - 1) * share)])
            for reader in self.readers:
                if reader.served is call:
                    reader.must_end(WorkerLostError)
        far.die(code)
        self.settle()

    @rule(pick=PICKS, what=st.sampled_from(["a line for the log", "a deaf worker", "a long rest", "no processes"]))
    def befall(self, pick: int, what: str) -> None:
        far = self.one_of(self.alive(), pick)
        idle = self.one_of(self.idle(), pick)
        if far is not None and what == "a line for the log":
            far.write(b"".join(pack(LOG, 0, b"half a character: \xe2\x82")))
        elif idle is not None and what == "a deaf worker":  # it dies of the next order
            idle.is_deaf = True
        elif what == "a long rest":  # idle workers are retired
            self.reaction = "finalises"
            self.pass_time(2e9)
        elif what == "no processes":
            self.spawns_to_fail = 1
        self.settle()

    @rule(reaction=reactions, is_meant=st.sampled_from([False, False, True]))
    def close_the_engine(self, reaction: str, is_meant: bool) -> None:
        if is_meant and len(self.fars) > 1 and not self.is_closed:
            self.shut(reaction)

    def shut(self, reaction: str) -> None:
        self.reaction = reaction
        self.is_closed = True
        for far in self.fars:
            far.is_deaf = False  # or a caller that waits may lose a worker just before its turn to be closed comes
        for reader in self.readers:
            if reader.is_begun:
                reader.must_stop("closed", EngineClosedError)
        raised = self.result(self.threads.submit(self.muna.close))
        assert raised is None, raised
        assert self.alive() == []
        assert all(far.near.is_closed for far in self.fars)
        self.settle()
        with pytest.raises(EngineClosedError):
            self.muna.predictions.stream(predict, runner="process")

    # What is always so

    @invariant()
    def every_promise_holds(self) -> None:
        for reader in self.readers:
            if reader.is_concluded:
                assert reader.outcome.state == reader.final_state, f"another end: {reader}"
            else:
                assert reader.outcome.state == ("running" if reader.is_begun else "pending"), f"an early end: {reader}"
            assert reader.outcome.count == reader.count, f"miscounted: {reader}"
            served = reader.served
            if served is not None and not reader.is_concluded:
                assert served.limit <= reader.count + reader.most_ahead, f"a window was left: {reader}"
            if served is not None and served.is_asked:
                assert reader.stop or reader.failure is PayloadError, f"asked to stop for nothing: {reader}"
        serving = [far for far in self.alive() if not far.near.is_retired]  # besides those that are on their way out
        assert len(serving) <= WORKERS, serving

    def teardown(self) -> None:
        try:
            if not self.is_closed and not self.is_broken:
                self.shut("finalises")
        finally:
            readers = tuple(self.readers)
            if self.is_broken:
                self.readers.clear()
                self.reaction = "dies"
                with contextlib.suppress(Exception):
                    self.result(self.threads.submit(self.muna.close))
            for far in self.fars:
                far.die(-signal.SIGKILL)
            for threads in (self.threads, *(reader.threads for reader in readers)):
                threads.shutdown(wait=not self.is_broken)
            self.loop.call_soon_threadsafe(self.loop.stop)
            self.turning.join(LIMIT)
            self.loop.close()
            self.patch.undo()


PARTS: Final = max(4, settings().max_examples // 25)
"""Tests that the examples are spread over, so that each is short under any profile and several processes share them."""


@pytest.mark.parametrize("part", range(PARTS))
def test_no_order_of_events_breaks_a_promise(part: int) -> None:
    # Shrinking would take minutes, for what was promised and does not come is waited for each time; and threads make
    # it uncertain whether a shorter run fails for the same reason.
    phases = [Phase.explicit, Phase.reuse, Phase.generate]
    unlikely = [HealthCheck.too_slow, HealthCheck.filter_too_much]
    many = settings().max_examples // PARTS

    class Part(Machine):
        """A machine with examples of its own."""

    run_state_machine_as_test(
        seed(part)(Part) if settings().derandomize else Part,  # or every part would get the same few
        settings=settings(
            settings(), max_examples=many, stateful_step_count=40, phases=phases, suppress_health_check=unlikely
        ),
    )


# Stories that took long to find


@pytest.fixture
def machine() -> Iterator[Machine]:
    machine = Machine()
    yield machine
    machine.teardown()


def test_partials_that_came_whole_before_nonsense_are_delivered(machine: Machine) -> None:
    machine.open_one(Plan(is_async=False, window=3, body=predict, pulls=1))
    for _ in range(2):
        machine.give(0, 1, "lists")
    machine.talk_nonsense(0, NONSENSE[0])
    for _ in range(2):
        machine.pull(0)
    [reader] = machine.readers
    assert (reader.count, reader.is_told) == (2, True)


def test_a_partial_that_cannot_be_rebuilt_is_not_covered_by_nonsense_after_it(machine: Machine) -> None:
    machine.open_one(Plan(is_async=False, window=3, body=predict, pulls=1))
    machine.give(0, 1, "lists")
    machine.give_what_cannot_be_rebuilt(0, "finalises")
    machine.talk_nonsense(0, NONSENSE[0])
    machine.pull(0)
    [reader] = machine.readers
    assert (reader.count, reader.failure) == (1, PayloadError)


@pytest.mark.parametrize("is_async", [False, True])
def test_a_stream_first_pulled_after_its_engine_was_closed_is_closed(machine: Machine, is_async: bool) -> None:
    machine.open_one(Plan(is_async, window=None, body=predict, pulls=0))
    machine.open_one(Plan(is_async, window=None, body=predict, pulls=1))
    machine.shut("finalises")
    machine.pull(0)
    machine.every_promise_holds()
    assert machine.readers[0].outcome.state == "closed"


def test_what_an_idle_worker_logs_is_no_answer_to_its_next_call(machine: Machine) -> None:
    machine.open_one(Plan(is_async=False, window=None, body=predict, pulls=1))
    machine.end(0, "done")
    machine.befall(0, "a line for the log")
    machine.befall(0, "a deaf worker")
    machine.open_one(Plan(is_async=False, window=None, body=predict, pulls=1))
    machine.give(0, 1, "words")
    assert [reader.count for reader in machine.readers] == [0, 1]


def test_a_worker_granted_to_a_call_that_gives_up_while_the_engine_closes_ends_at_once(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "_LONGEST_SLEEP", 10 * LIMIT)  # or it would be found after a while
    machine.open_one(Plan(is_async=False, window=None, body=predict, pulls=1))
    machine.end(0, "done")
    [far] = machine.fars
    runner, its_supervisor = process_runner_of(machine.muna), supervisor_of(machine.muna)
    looked = threading.Semaphore(0)
    taken: list[Any] = []

    def gives_up(self: pool.Pool, body: Any, need: queue.Need) -> workers.Worker:
        taken.append(really_take(self, body, need))
        runner.close_soon()
        for _ in range(2):  # it has looked with all there was to see once it does the second
            its_supervisor.post(lambda _: looked.release(), None)
            assert looked.acquire(timeout=LIMIT)
        raise InterruptedError

    really_take = pool.Pool.take
    monkeypatch.setattr(pool.Pool, "take", gives_up)
    stream = machine.muna.predictions.stream(predict, runner="process")
    kind, found = pull(stream.values())
    assert (kind, type(found)) == ("raised", InterruptedError)
    assert taken == [far.near]
    machine.until(lambda: not far.is_alive, lambda: "the worker was retired")


def test_each_descriptor_of_a_worker_is_closed_once_whichever_thread_closes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """An event loop leaves in its own thread, while another one closes what led to a process that is over."""
    far = Far(lambda: "finalises")
    near = far.near
    loop = asyncio.new_event_loop()
    near.registrations[loop] = object()
    near.is_new = False
    far.die(0)
    closed: list[int] = []
    really_close = os.close

    def close(descriptor: int) -> None:
        closed.append(descriptor)
        really_close(descriptor)

    def leave() -> None:
        if near.registrations.pop(loop, None) is not None:
            near.unwatched()

    monkeypatch.setattr(os, "close", close)
    monkeypatch.setattr(Segment, "close", lambda _segment: leave())
    assert near.close()
    monkeypatch.undo()
    loop.close()
    assert len(closed) == len(set(closed))
    assert {near.exit_pipe, near.report} <= set(closed)
    assert descriptors_of(near) == []
