"""What an owner is given fits what it asks for; read by mypy and never run."""

from __future__ import annotations

from engine._worker.outlet import Outlet
from engine.runners.channel import Channel
from engine.runners.ending import Ending, OwnerEnd, ProducerEnd


def ends(ending: Ending) -> tuple[OwnerEnd, ...]:
    return (ending,)


def producer_ends(channel: Channel, outlet: Outlet) -> tuple[ProducerEnd, ...]:
    return channel, outlet
