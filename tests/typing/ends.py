"""What an owner is given fits what it asks for; read by mypy and never run."""

from __future__ import annotations

from engine._channel import Channel, Ending, OwnerEnd, ProducerEnd
from engine._outlet import Outlet


def ends(ending: Ending) -> tuple[OwnerEnd, ...]:
    return (ending,)


def producer_ends(channel: Channel, outlet: Outlet) -> tuple[ProducerEnd, ...]:
    return channel, outlet
