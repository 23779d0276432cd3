"""`create(runner="process")` on an eager function: one round trip to a warm worker."""

import multiprocessing
import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import Any

from benchmarks._case import Calls, Case, Subject
from benchmarks.best import forked, forked_on_pipes
from benchmarks.predictors import shout

TEXT = "hello from Muna"

case = Case(
    name="process_eager",
    title="create in a process, eager function",
    about="One call of a function in a warm worker process: its input there, its value back.",
    drive=Calls(),
    is_hand_off=True,
)


@case.contender("raw pipes", role="limit", note="os.pipe with a forked child: bytes, no pickle, no failure but EOF")
def raw(_size: int) -> Iterator[Subject]:
    def answer(asked: int, answers: int) -> None:
        while text := os.read(asked, 4096):
            os.write(answers, shout(text.decode()).encode())

    with forked_on_pipes(answer) as (coming, going):

        def call(text: str) -> Any:
            os.write(going, text.encode())
            return os.read(coming, 4096).decode()

        yield call, TEXT


def serve(connection: Any) -> None:
    """Answer every text until there is none."""
    while (text := connection.recv()) is not None:
        connection.send(shout(text))


@case.contender("Connection", role="best", note="multiprocessing.Pipe with pickle; no errors, no stop, no record")
def connection(_size: int) -> Iterator[Subject]:
    with forked(serve) as ours:

        def call(text: str) -> Any:
            ours.send(text)
            return ours.recv()

        yield call, TEXT


@case.contender("predictor-engine", role="engine", package="predictor-engine")
def engine(_size: int) -> Iterator[Subject]:
    from functools import partial

    from engine import Engine

    with Engine(discover=False, workers=1) as muna:
        muna.predictors.register("@bench/shout", shout)
        yield partial(muna.predictions.create, runner="process"), "@bench/shout", {"text": TEXT}


@case.contender("ProcessPoolExecutor", note="one worker's death breaks the whole pool; cannot stream")
def futures(_size: int) -> Iterator[Subject]:
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:

        def call(text: str) -> Any:
            return pool.submit(shout, text).result()

        yield call, TEXT


@case.contender("multiprocessing.Pool", note="cannot stream a generator")
def pool(_size: int) -> Iterator[Subject]:
    with multiprocessing.get_context("spawn").Pool(1) as opened:
        yield opened.apply, shout, (TEXT,)
        opened.close()
        opened.join()


@case.contender("loky", package="loky", note="cloudpickle; cannot stream")
def loky(_size: int) -> Iterator[Subject]:
    from loky import ProcessPoolExecutor as Pool

    with Pool(1) as opened:

        def call(text: str) -> Any:
            return opened.submit(shout, text).result()

        yield call, TEXT


@case.contender("pebble", package="pebble", note="can stop a task; cannot stream")
def pebble(_size: int) -> Iterator[Subject]:
    from pebble import ProcessPool

    with ProcessPool(max_workers=1, context=multiprocessing.get_context("spawn")) as opened:

        def call(text: str) -> Any:
            return opened.schedule(shout, args=(text,)).result()

        yield call, TEXT


@case.contender(
    "Ray actor", package="ray", note="an object store, a scheduler and several processes; other machines", is_apart=True
)
def ray_actor(_size: int) -> Iterator[Subject]:
    from benchmarks.peers import ray_started

    with ray_started() as ray:

        class Shouter:
            def shout(self, text: str) -> str:
                return shout(text)

        actor = ray.remote(Shouter).remote()

        def call(text: str) -> Any:
            return ray.get(actor.shout.remote(text))

        yield call, TEXT
