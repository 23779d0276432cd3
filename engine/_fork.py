"""What becomes of the engine's objects in a forked child: one hook has each of them start afresh, in place.

A child has a copy of everything and of the parent's threads only the one that forked. So threads, loops and workers are
started anew there when they are needed, locks that a vanished thread may hold are made anew, and what belongs to the
parent (a running body, an instance set up in one of its threads) is never touched.
"""

from __future__ import annotations

import os
from typing import Any, Final, Protocol
from weakref import WeakSet


class Renewed(Protocol):
    """An object that starts afresh in a forked child."""

    def after_fork(self) -> None:
        """Start afresh; called in the child's only thread, before the fork returns.

        The order among objects is open, so this touches only what no other renewed object renews.
        """


_renewed: Final[WeakSet[Renewed]] = WeakSet()
_parents_own: Final[list[Any]] = []


def renew_after_fork(renewed: Renewed) -> None:
    """Have an object's `after_fork` called in every forked child for as long as the object lives."""
    _renewed.add(renewed)


def keep_for_parent(*objects: Any) -> None:
    """Keep what belongs to the parent, in a forked child, so that no finaliser of it ever runs there."""
    _parents_own.extend(objects)


def _after_fork() -> None:
    for each in tuple(_renewed):
        each.after_fork()


os.register_at_fork(after_in_child=_after_fork)
