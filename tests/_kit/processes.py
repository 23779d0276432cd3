"""What the system tells of processes: the children and open descriptors of this one, and what others do."""

from __future__ import annotations

import contextlib
import os
import subprocess
from pathlib import Path
from typing import Final

SCRIPT_TIMEOUT: Final = 30.0  # seconds that a script may take
TASKS = Path("/proc/self/task")
DESCRIPTORS = "/proc/self/fd" if TASKS.exists() else "/dev/fd"


def child_processes() -> frozenset[int]:
    """The numbers of this process's children, zombies included."""
    if not TASKS.exists():
        return child_processes_told_by_ps()
    children: set[int] = set()
    for task in TASKS.iterdir():
        # A thread may end between the listing and the reading.
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            children.update(map(int, (task / "children").read_text().split()))
    return frozenset(children)


def child_processes_told_by_ps() -> frozenset[int]:
    """Ask `ps`, for systems without /proc; `ps` itself is not counted."""
    with subprocess.Popen(["ps", "-A", "-o", "pid=,ppid="], stdout=subprocess.PIPE, text=True) as ps:
        pairs = [line.split() for line in ps.communicate()[0].splitlines()]
    return frozenset(int(pid) for pid, parent in pairs if int(parent) == os.getpid()) - {ps.pid}


def is_child(pid: int) -> bool:
    """Whether a process of ours runs, or has ended and was not reaped."""
    return pid in child_processes()


def open_descriptors() -> frozenset[tuple[int, int, int]]:
    """Number, device and inode of each open descriptor, so that a number used again is seen."""
    found: set[tuple[int, int, int]] = set()
    for number in map(int, os.listdir(DESCRIPTORS)):  # noqa: PTH208  # numbers are wanted, not paths
        # The descriptor that the listing itself used is closed by now.
        with contextlib.suppress(OSError):
            status = os.fstat(number)
            found.add((number, status.st_dev, status.st_ino))
    return frozenset(found)


def state_of(pid: int) -> str | None:
    """The letter the system has for what a process does; `None` for one that is over, reaped or not."""
    if TASKS.exists():
        letter = ""
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it may end while it is read
            letter = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].strip()[:1]
    else:
        ps = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True, check=False)
        letter = ps.stdout.strip()[:1]
    return None if letter in {"", "Z", "X"} else letter


def command_of(pid: int) -> str:
    """The command line of a process, for who reads a report."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return "(command unknown)"
    if state_of(pid) is None:
        return "(ended, not reaped)"
    return " ".join(word.decode(errors="replace") for word in words).strip() or "(about to start)"


def target_of(descriptor: int) -> str:
    """What a descriptor of this process leads to, for who reads a report."""
    try:
        return str(Path(f"{DESCRIPTORS}/{descriptor}").readlink())
    except OSError:
        return "(target unknown)"
