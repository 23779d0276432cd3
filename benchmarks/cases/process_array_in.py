"""A large array as the input of a call in a worker process."""

import multiprocessing
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from typing import Any

from benchmarks._case import Calls, Case, Subject
from benchmarks.best import forked

MIB = 1 << 17  # numbers of eight bytes

case = Case(
    name="process_array_in",
    title="a large array into a process",
    about="One call in a warm worker process whose input is an array of so many MiB; a number comes back.",
    drive=Calls(),
    axis="MiB",
    sizes=(1, 16, 64),
    quick=(1,),
)


def last(array: Any) -> float:
    """The last number of an array."""
    return float(array[-1])


def made(size: int) -> Any:
    """An array of so many MiB."""
    import numpy as np

    return np.arange(size * MIB, dtype=np.float64)


@case.contender("one copy", role="limit", note="memcpy into memory that is there already, in this process")
def copy(size: int) -> Iterator[Subject]:
    import numpy as np

    array = made(size)
    there = np.empty_like(array)
    np.copyto(there, array)

    def call() -> float:
        np.copyto(there, array)
        return last(there)

    yield (call,)


@contextmanager
def segments(count: int, size: int) -> Iterator[tuple[list[Any], list[str]]]:
    """So many shared segments of so many MiB: an array in each, and their names."""
    from multiprocessing.shared_memory import SharedMemory

    import numpy as np

    opened = [SharedMemory(create=True, size=size << 20) for _ in range(count)]
    places: list[Any] = [np.ndarray((size * MIB,), np.float64, each.buf) for each in opened]
    try:
        yield places, [each.name for each in opened]
    finally:
        places.clear()
        for each in opened:
            each.unlink()
            each.close()


def serve_segment(name: str, size: int, connection: Any) -> None:
    """Look into a shared segment whenever told to."""
    from multiprocessing.shared_memory import SharedMemory

    import numpy as np

    segment = SharedMemory(name)
    array: Any = np.ndarray((size * MIB,), np.float64, segment.buf)
    while connection.recv() is not None:
        connection.send(last(array))
    del array
    segment.close()


@case.contender("one shared segment, reused", role="best", note="for one array of one size; no lease, no other type")
def segment(size: int) -> Iterator[Subject]:
    import numpy as np

    array = made(size)
    with segments(1, size) as (places, names), forked(serve_segment, names[0], size) as ours:

        def call() -> Any:
            np.copyto(places[0], array)
            ours.send(0)
            return ours.recv()

        yield (call,)


@case.contender("predictor-engine", role="engine", package="predictor-engine")
def engine(size: int) -> Iterator[Subject]:
    from functools import partial

    from engine import Engine

    with Engine(discover=False, workers=1) as muna:
        muna.predictors.register("@bench/last", last)
        yield partial(muna.predictions.create, runner="process"), "@bench/last", {"array": made(size)}


@case.contender("ProcessPoolExecutor", note="pickled through a pipe")
def futures(size: int) -> Iterator[Subject]:
    array = made(size)
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:

        def call() -> Any:
            return pool.submit(last, array).result()

        yield (call,)


@case.contender("loky", package="loky", note="pickled through a pipe")
def loky(size: int) -> Iterator[Subject]:
    from loky import ProcessPoolExecutor as Pool

    array = made(size)
    with Pool(1) as opened:

        def call() -> Any:
            return opened.submit(last, array).result()

        yield (call,)


@case.contender("pebble", package="pebble", note="pickled through a pipe")
def pebble(size: int) -> Iterator[Subject]:
    from pebble import ProcessPool

    array = made(size)
    with ProcessPool(max_workers=1, context=multiprocessing.get_context("spawn")) as opened:

        def call() -> Any:
            return opened.schedule(last, args=(array,)).result()

        yield (call,)


@case.contender("Ray actor", package="ray", note="copied into its object store; other machines too", is_apart=True)
def ray_actor(size: int) -> Iterator[Subject]:
    from benchmarks.peers import ray_started

    with ray_started() as ray:

        class Taker:
            def last(self, array: Any) -> float:
                return last(array)

        actor, array = ray.remote(Taker).remote(), made(size)

        def call() -> Any:
            return ray.get(actor.last.remote(array))

        yield (call,)
