"""How a worker is started: its interpreter, the pipes it inherits, and what it is told first."""

from __future__ import annotations

import contextlib
import fcntl
import marshal
import os
import select
import signal
import sys
from typing import TYPE_CHECKING, Final

from engine._errors import EngineError
from engine._wire.segments import make_segment
from engine.runners.process.worker import Worker

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Collection, Iterator, Sequence

    from engine._records import Start

_STDOUT: Final = 1
_STDERR: Final = 2
_MARK: Final = "PREDICTOR_ENGINE_WORKER_OF"  # a variable that tells a program which was started in place of a worker

# The first thing a worker does: it takes the engine's `sys.path`, for the engine itself may only be found there.
_START: Final = f"""\
import marshal, os, sys
os.environ.pop({_MARK!r}, None)
def read(size):
    data = b""
    while len(data) < size:
        more = os.read(int(sys.argv[1]), size - len(data))
        if not more:
            sys.exit(0)
        data += more
    return data
hello = marshal.loads(read(int.from_bytes(read(8), "little")))
sys.path[:] = hello["path"]
from engine._worker.main import main
main([int(each) for each in sys.argv[1:]], hello)
"""


def start_worker(start: Start) -> Worker:
    """Start a worker process.

    Args:
        start: its working directory, if any, and its environment.

    Raises:
        EngineError: it cannot be started, with what to do about it.
        OSError: no descriptor or process is to be had.
    """
    import subprocess

    _refuse_where_none_can_be()
    ours: dict[str, int] = {}
    theirs: list[int] = []
    process: subprocess.Popen[bytes] | None = None
    try:
        with _standard_ones_taken() as missing:
            _open(ours, theirs)
            flags = subprocess._args_from_interpreter_flags()  # type: ignore[attr-defined]  # noqa: SLF001 - what multiprocessing uses
            flags += [] if "-P" in flags else ["-P"]
            inherited = (*theirs, ours["inbound"], ours["outbound"], ours["report"])
            command = [sys.executable, *flags, "-c", _START, *map(str, inherited)]
            process = _start(command, inherited, start, missing)
        ours["exit"] = _exit_pipe(process.pid)
        worker = Worker(process, ours)
    except BaseException:
        if process is not None:  # only this function knows of it: it would be left, or stay a zombie
            process.kill()
            process.wait()
        for each in ours.values():
            if each >= 0:
                os.close(each)
        raise
    finally:
        for each in theirs:
            os.close(each)
    try:
        _greet(worker)
    except BaseException:
        worker.kill()
        raise
    return worker


def _greet(worker: Worker) -> None:
    """Tell a new worker what it needs before it can import the engine."""
    worker.path = list(map(str, sys.path))
    hello = marshal.dumps({"path": worker.path, "argv": list(sys.argv)})
    with contextlib.suppress(BrokenPipeError):  # it has ended already, as its first call will notice
        worker.send([len(hello).to_bytes(8, "little"), hello])


def _refuse_where_none_can_be() -> None:
    """Refuse to start a worker where that could not become one.

    Raises:
        EngineError: why, and what to do.
    """
    if not sys.executable:
        raise EngineError("workers need a Python interpreter, and sys.executable names none: set it, or use threads")
    name = os.path.basename(sys.executable)  # noqa: PTH119 - no use for a path object
    if getattr(sys, "frozen", False) and not name.lower().startswith(("python", "pypy")):
        raise EngineError(
            f"workers need a Python interpreter, and this program is frozen: sys.executable is the program itself "
            f"({name}), which would only start again: use threads (runner='thread'), or set sys.executable to an "
            "interpreter that has this program's packages"
        )
    if starter := os.environ.get(_MARK):
        raise EngineError(
            f"this program was started in place of a worker of process {starter}, so sys.executable is no Python "
            f"interpreter ({name}): set it to one that has this program's packages, or use threads (runner='thread')"
        )
    if not hasattr(select, "poll"):
        raise EngineError(
            "workers need select.poll, which was taken out of this program, as the monkey-patching of gevent and "
            "eventlet does: patch without select, as with monkey.patch_all(select=False), or use threads "
            "(runner='thread')"
        )


@contextlib.contextmanager
def _standard_ones_taken() -> Iterator[frozenset[int]]:
    """Let nothing opened meanwhile be descriptor 0, 1 or 2, which a worker uses; yield those that were closed."""
    taken: list[int] = []
    try:
        while not taken or taken[-1] <= _STDERR:
            taken.append(os.open(os.devnull, os.O_RDWR))
        os.close(taken.pop())
        yield frozenset(taken)
    finally:
        for each in taken:
            os.close(each)


def _open(ours: dict[str, int], theirs: list[int]) -> None:
    """Make the pipes and segments; `theirs` are the ends of the first four that the worker has.

    Each worker has a lifeline of its own: the process that the kernel signals when it closes is kept in the open file
    itself, so that one shared by all would signal only the worker that asked last.
    """
    for name in ("calls", "answers", "stops", "lifeline"):
        reader, writer = os.pipe()
        mine, other = (reader, writer) if name == "answers" else (writer, reader)
        ours[name] = mine
        theirs.append(other)
        os.set_blocking(mine, False)
    ours["wake_reader"], ours["wake_writer"] = os.pipe()
    os.set_blocking(ours["wake_reader"], False)
    os.set_blocking(ours["wake_writer"], False)
    for name in ("inbound", "outbound", "report"):
        ours[name] = make_segment()
    if hasattr(fcntl, "F_SETPIPE_SZ"):
        with contextlib.suppress(OSError):  # a user may have only so many large pipes
            fcntl.fcntl(ours["answers"], fcntl.F_SETPIPE_SZ, 1 << 18)


def _start(
    command: Sequence[str], inherited: Sequence[int], start: Start, missing: Collection[int]
) -> subprocess.Popen[bytes]:
    """Start the process with Ctrl-C held back until it has its own handler for it."""
    import subprocess

    stdout, stderr = (subprocess.DEVNULL if each in missing else None for each in (_STDOUT, _STDERR))
    folder = _folder_of(start)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        return subprocess.Popen(  # noqa: S603 - our own interpreter and program
            command,
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=stderr,
            pass_fds=inherited,
            cwd=folder,
            env={**start.environment, _MARK: str(os.getpid())},
        )
    except OSError as error:
        if folder is None or error.filename != folder:
            if error.filename == command[0]:
                error.add_note(
                    "workers are started with sys.executable: set it to a Python interpreter, or use threads"
                )
            raise
        raise EngineError(
            f"workers start in the folder where their engine was made, and {folder} cannot be entered "
            f"({error.strerror}): make the engine in another"
        ) from error
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _folder_of(start: Start) -> str | None:
    """Where a worker has to go from here; `None` where it starts in the right folder as any process does.

    So it need not be able to enter that folder: it may have been deleted, or belong to another user.
    """
    try:
        here = os.getcwd()  # noqa: PTH109 - no use for a path object
    except OSError:  # it was deleted
        here = ""
    if start.folder in {None, here}:
        return None
    return start.folder if here or os.path.isdir(start.folder) else None  # noqa: PTH112 - no use for a path object


def _exit_pipe(pid: int) -> int:
    if hasattr(os, "pidfd_open"):
        with contextlib.suppress(OSError):  # an older kernel
            return int(os.pidfd_open(pid))
    return -1
