"""Ctrl-C, and a reader that leaves: both end a command quietly."""

import os
import select
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.conftest import CHILD_TIMEOUT, START, Command, Ran, Site, command_line

WAITING = """
import asyncio, os, threading

def endless(fd: int):
    try:
        while True:
            yield "x" * 1000
    finally:
        os.write(fd, b"closed")

def sync(fd: int):
    try:
        yield 1
        os.write(fd, b"ready ")
        threading.Event().wait(60)
    finally:
        os.write(fd, b"closed")

async def coroutine(fd: int):
    try:
        yield 1
        os.write(fd, b"ready ")
        await asyncio.Event().wait()
    finally:
        os.write(fd, b"closed")

def plain(fd: int):
    try:
        os.write(fd, b"ready ")
        threading.Event().wait(60)
    finally:
        os.write(fd, b"closed")

def importing(fd: int = 0): ...
"""


@pytest.mark.parametrize(
    ("words", "note", "out"),
    [
        (["stream", "@cli/sync"], b"ready closed", b"1\n"),
        (["stream", "@cli/coroutine"], b"ready closed", b"1\n"),
        (["create", "@cli/sync"], b"ready closed", b""),
        (["create", "@cli/coroutine"], b"ready closed", b""),
        (["create", "@cli/plain"], b"ready closed", b""),
        # A thread cannot be interrupted: it is left behind, and ends with the process.
        (["stream", "@cli/sync", "--runner", "thread"], b"ready ", b"1\n"),
    ],
    ids=command_line,
)
def test_ctrl_c_closes_the_prediction_and_says_nothing(words: list[str], note: bytes, out: bytes, site: Site) -> None:
    site.predictors(WAITING, "sync", "coroutine", "plain")
    reading, writing = os.pipe()
    with subprocess.Popen(
        [sys.executable, "-c", START, *words, "--fd", str(writing)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=site.environment(),
        pass_fds=[writing],
        start_new_session=True,
    ) as process:
        os.close(writing)
        try:
            assert select.select([reading], [], [], CHILD_TIMEOUT)[0]
            begun = os.read(reading, 6)
            # In a thread the body may be there before the first partial is printed.
            assert process.stdout is not None
            assert not out or select.select([process.stdout], [], [], CHILD_TIMEOUT)[0]
            shown = os.read(process.stdout.fileno(), 100) if out else b""
            os.killpg(process.pid, signal.SIGINT)
            printed, told = process.communicate(timeout=CHILD_TIMEOUT)
            assert begun + os.read(reading, 100) == note
        finally:
            process.kill()
            os.close(reading)

    assert (process.returncode, shown + printed, told) == (130, out, b"\n")


def test_ctrl_c_while_a_predictor_is_imported_says_nothing(site: Site, engine: Command) -> None:
    site.predictors("raise KeyboardInterrupt", "it")

    assert engine("show", "@cli/it") == Ran(130, "", "\n")


@pytest.mark.parametrize("options", [[], ["--json"], ["--runner", "thread"]], ids=["plain", "json", "thread"])
def test_a_reader_that_leaves_ends_the_stream_quietly(options: list[str], site: Site) -> None:
    site.predictors(WAITING, "endless")
    reading, writing = os.pipe()
    with subprocess.Popen(
        [sys.executable, "-m", "engine", "stream", "@cli/endless", "--fd", str(writing), *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=site.environment(),
        pass_fds=[writing],
    ) as process:
        os.close(writing)
        assert process.stdout is not None
        assert process.stderr is not None
        try:
            assert process.stdout.readline()
            process.stdout.close()
            assert process.wait(CHILD_TIMEOUT) == 141
            assert process.stderr.read() == b""
            assert os.read(reading, 100) == b"closed"
        finally:
            process.kill()
            os.close(reading)


def test_help_into_a_closed_pipe_is_quiet_too(site: Site) -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "engine", "--help"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=site.environment(),
    ) as process:
        assert process.stdout is not None
        process.stdout.close()
        assert process.stderr is not None
        assert process.stderr.read() == b""
        assert process.wait(CHILD_TIMEOUT) == 141


def test_the_installed_command_and_the_module_are_the_same(site: Site) -> None:
    installed = subprocess.run(
        [Path(sys.executable).parent / "engine", "create", "@muna/eager"],
        capture_output=True,
        timeout=CHILD_TIMEOUT,
        check=True,
    )

    assert installed.stdout == site.run("create", "@muna/eager").stdout == b"hello from Muna\n"
