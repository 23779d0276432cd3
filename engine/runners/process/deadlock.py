"""Which of the calls that wait for a worker can still be served: the others wait for one another."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from engine.runners.process.queue import WorkerRequest
    from engine.runners.slots import Lease


def able_to_go_on(waits: Mapping[WorkerRequest, list[Lease]]) -> set[WorkerRequest]:
    """The calls that a worker can still become free for, whatever the others do.

    A call goes on once one of the leases it could take over ends, and a lease ends unless a call that cannot go on
    blocks it. So the calls that could take over a lease blocked by none go on, then those that could take over one
    blocked only by these, and so on until a round finds none: the calls left wait for one another.

    Args:
        waits: the leases that each call in the queue could take over; none where it will get a new worker.
    """
    left = dict(waits)
    keepers = {
        lease: {each for each in left if each.lease is not lease and each.blocks(lease)}
        for lease in {lease for leases in left.values() for lease in leases}
    }
    going: set[WorkerRequest] = set()
    while True:
        free = {lease for lease, waiters in keepers.items() if waiters <= going}
        news = [each for each, leases in left.items() if not leases or not free.isdisjoint(leases)]
        if not news:
            return going
        for each in news:
            del left[each]
        going.update(news)
