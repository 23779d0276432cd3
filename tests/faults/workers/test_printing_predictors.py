"""What predictors print in workers, and what they do to the standard descriptors."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from engine import Engine
from tests.faults.scripts import run_script

GRACE = 0.5  # seconds; no test here needs more than the first rung


# 88, 89: what predictors print.


@pytest.mark.fault(88)
def test_a_flood_on_stdout_and_stderr_arrives_whole_beside_the_partials() -> None:
    done = run_script(
        """
        import ctypes, os, sys
        from engine import Engine

        def floods():
            for number in range(64):
                print("p" * (1 << 14), end="")
                print("e" * (1 << 14), end="", file=sys.stderr)
                yield bytes(1 << 16)
            ctypes.CDLL(None).puts(b"c" * 100)

        def again():
            os.write(1, b"o" * 100)
            return "fine"

        with Engine(discover=False, workers=1) as muna:
            assert len(list(muna.predictions.stream(floods, runner="process"))) == 64
            assert muna.predictions.create(again, runner="process").value == "fine"
        """
    )
    assert done.returncode == 0
    assert {letter: done.stdout.count(letter) for letter in "pco"} == {"p": 1 << 20, "c": 100, "o": 100}
    assert done.stderr == "e" * (1 << 20)


@pytest.mark.fault(88)
def test_a_predictor_that_closes_the_standard_descriptors_is_served_on_and_so_are_those_after_it() -> None:
    def closes() -> Iterator[Any]:
        yield os.getpid()
        for descriptor in (0, 1, 2):
            os.close(descriptor)
        with contextlib.suppress(OSError):  # where the stream has no buffer
            print("unheard")  # noqa: T201
        yield bytes(1 << 20)

    def prints() -> Any:
        with contextlib.suppress(OSError):
            print("unheard", flush=False)  # noqa: T201
        return os.getpid(), open(os.devnull).fileno()  # noqa: PTH123  # would take the number of one that is closed

    with Engine(discover=False, workers=1, grace=GRACE) as muna:
        pid, data = muna.predictions.stream(closes, runner="process").values()
        assert len(data) == 1 << 20
        for _ in range(3):
            served, descriptor = muna.predictions.create(prints, runner="process").value
            assert served == pid
            assert descriptor > 2


@pytest.mark.fault(88)
@pytest.mark.parametrize("closed", ["0 1 2", "1", "2"])
def test_a_program_without_standard_descriptors_can_use_workers(closed: str, tmp_path: Path) -> None:
    done = run_script(
        f"""
        import os, sys
        from engine import Engine

        log = os.open({str(tmp_path / "log")!r}, os.O_WRONLY | os.O_CREAT)
        for each in "{closed}".split():
            os.close(int(each))

        def prints():
            print("printed")
            yield bytes(1 << 20)
            yield os.write(1, b"") + os.write(2, b"")

        with Engine(discover=False, workers=2) as muna:
            assert len(list(muna.predictions.stream(prints, runner="process"))) == 2
            assert muna.predictions.create(prints, runner="process").value == 0
        os.write(log, b"ok")
        os._exit(0)  # the interpreter itself complains about the streams it has lost
        """
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "log").read_text() == "ok"


@pytest.mark.fault(89)
def test_what_a_predictor_printed_is_out_before_its_end_is_seen() -> None:
    done = run_script(
        """
        import os, sys
        from engine import Engine

        def returns():
            print("returns")
            return 1

        def yields():
            print("yields")
            yield 1

        async def areturns():
            print("areturns")
            return 1

        async def ayields():
            print("ayields")
            yield 1

        def fails():
            print("fails")
            raise ValueError

        def closed():
            try:
                yield 1
            finally:
                print("closed")

        def end(name):
            os.write(1, f"end of {name}\\n".encode())

        with Engine(discover=False, workers=1, runner="process") as muna:
            for each in (returns, yields, areturns, ayields):
                muna.predictions.create(each)
                end(each.__name__)
                list(muna.predictions.stream(each))
                end(each.__name__)
            muna.predictions.create(fails, errors="return")
            end("fails")
            with muna.predictions.stream(closed, prefetch=0) as stream:
                next(stream)
            end("closed")
        """
    )
    assert (done.returncode, done.stderr) == (0, "")
    said = [line for name in ("returns", "yields", "areturns", "ayields") for line in (name, f"end of {name}") * 2]
    said += ["fails", "end of fails", "closed", "end of closed"]
    assert done.stdout.splitlines() == said
