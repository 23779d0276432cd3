"""Large arrays as the partials of a stream from a worker process."""

import multiprocessing
from collections.abc import Iterator
from typing import Any

from benchmarks._case import Case, Partials, Subject
from benchmarks.best import forked
from benchmarks.cases.process_array_in import MIB, segments

PARTIALS = 8

case = Case(
    name="process_array_out",
    title="large arrays out of a process, per partial",
    about=f"Sync code reads {PARTIALS} partials of a warm worker process, each a new array of so many MiB.",
    drive=Partials(PARTIALS),
    per="partial",
    axis="MiB",
    sizes=(1, 16),
    quick=(1,),
)


def arrays(size: int) -> Iterator[Any]:
    """Yield arrays of so many MiB; each is what its reader may keep."""
    import numpy as np

    array = np.zeros(size * MIB)
    for each in range(PARTIALS):
        array[0] = array[-1] = each
        yield array


@case.contender("one copy each", role="limit", note="in this process, into memory of its own")
def copy(size: int) -> Iterator[Subject]:
    def values(size: int) -> Iterator[Any]:
        for array in arrays(size):
            yield array.copy()

    yield values, size


def fill_segments(names: list[str], size: int, connection: Any) -> None:
    """Write each array into the next segment, as often as asked."""
    from multiprocessing.shared_memory import SharedMemory

    import numpy as np

    opened = [SharedMemory(name) for name in names]
    places: list[Any] = [np.ndarray((size * MIB,), np.float64, each.buf) for each in opened]
    while connection.recv() is not None:
        for each, array in enumerate(arrays(size)):
            np.copyto(places[each % len(places)], array)
            connection.send(each % len(places))
            connection.recv()
    places.clear()
    for segment in opened:
        segment.close()


@case.contender("two shared segments, reused", role="best", note="for arrays of one size; copied out; no other type")
def two_segments(size: int) -> Iterator[Subject]:
    with segments(2, size) as (places, names), forked(fill_segments, names, size) as ours:

        def values() -> Iterator[Any]:
            ours.send(0)
            for _ in range(PARTIALS):
                place = ours.recv()
                ours.send(0)
                yield places[place].copy()

        yield (values,)


@case.contender("predictor-engine values", role="engine", package="predictor-engine", note="stream(...).values()")
def engine(size: int) -> Iterator[Subject]:
    from engine import Engine

    with Engine(discover=False, workers=1) as muna:
        muna.predictors.register("@bench/arrays", arrays)
        inputs = {"size": size}

        def values() -> Iterator[Any]:
            return muna.predictions.stream("@bench/arrays", inputs, runner="process").values()

        yield (values,)


def send(connection: Any) -> None:
    """Send each array, as often as asked."""
    while (size := connection.recv()) is not None:
        for array in arrays(size):
            connection.send(array)


@case.contender("Connection", note="multiprocessing.Pipe: pickled through a socket")
def pipe(size: int) -> Iterator[Subject]:
    with forked(send) as ours:

        def values() -> Iterator[Any]:
            ours.send(size)
            for _ in range(PARTIALS):
                yield ours.recv()

        yield (values,)


def put(orders: Any, answers: Any) -> None:
    """Put copies of each array, as often as asked."""
    while size := orders.get():
        for array in arrays(size):
            answers.put(array.copy())


@case.contender("multiprocessing.Queue", note="a feeder thread pickles, so that the predictor must copy first")
def queue(size: int) -> Iterator[Subject]:
    context = multiprocessing.get_context("fork")
    orders, answers = context.Queue(), context.Queue(4)
    process = context.Process(target=put, args=(orders, answers))
    process.start()

    def values() -> Iterator[Any]:
        orders.put(size)
        for _ in range(PARTIALS):
            yield answers.get()

    yield (values,)
    orders.put(0)
    process.join()
    for each in (orders, answers):
        each.close()
        each.join_thread()


@case.contender("Ray generator", package="ray", note="into its object store, read there without a copy", is_apart=True)
def ray_generator(size: int) -> Iterator[Subject]:
    from benchmarks.peers import ray_started

    with ray_started() as ray:

        class Maker:
            def arrays(self, size: int) -> Any:
                yield from arrays(size)

        actor = ray.remote(Maker).remote()

        def values() -> Iterator[Any]:
            for reference in actor.arrays.options(num_returns="streaming").remote(size):
                yield ray.get(reference)

        yield (values,)
