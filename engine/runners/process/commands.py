"""The frame of one command, made for the worker that gets it: what that worker has is not sent again."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from engine._wire.decode import read_only_bits
from engine._wire.encode import encode_inputs
from engine._wire.frames import pack_command
from engine._wire.incremental import COPY_STEP, TimeSlice, fits_event_loop
from engine._wire.picklers import payload_error
from engine._wire.segments import SHARED_FROM

if TYPE_CHECKING:
    from collections.abc import Sequence

    from engine._wire.encode import Payload
    from engine._wire.frames import Chunk, Command
    from engine.runners.process.encoding import EncodedPredictor
    from engine.runners.process.inlet import Inlet
    from engine.runners.process.worker import Worker


def is_large(inlet: Inlet) -> bool:
    """Whether what an inlet is to send to its worker would keep an event loop for long."""
    payload, encoded, worker = inlet.payload, inlet.encoded, inlet.worker
    if payload is not None and not fits_event_loop(payload.sizes):
        return True
    data = None if encoded is None else encoded.data
    if data is None or len(data) <= COPY_STEP:
        return False
    return worker is None or encoded.key not in worker.known  # type: ignore[union-attr]  # it has data


def command_frame(
    worker: Worker, command: Command, encoded: EncodedPredictor | None, payload: Payload | None
) -> list[Chunk]:
    """The bytes that tell `worker` what to do; what is large lies in shared memory then, if there is room."""
    chunks: list[Chunk] = []
    command.path = None if worker.path == sys.path else tuple(map(str, sys.path))
    if encoded is not None and encoded.key in worker.known and not worker.to_evict:  # the fast path
        worker.known.move_to_end(encoded.key)
        command.evict, command.size = (), 0
    elif encoded is not None:
        is_new, command.evict = worker.lacks(encoded.key)
        command.size = 0
        if is_new and encoded.data is not None:
            chunks.append(encoded.data)
            command.size = len(encoded.data)
    if payload is not None:
        chunks += payload.chunks
    size = sum(map(len, chunks)) if chunks else 0
    if worker.inbound.is_oversized:
        worker.inbound.trim(size)  # this call may take long, and need not keep what a giant one before it needed
    if chunks:
        start: int | None = None
        if size >= SHARED_FROM and worker.inbound.grow(size):
            worker.inbound.write(0, chunks, TimeSlice() if size > COPY_STEP else None)
            chunks, start = [], 0
        sizes, bits = ((), 0) if payload is None else (payload.sizes, read_only_bits(payload.buffers))
        command.location = sizes, bits, start
    return _packed(worker.calls, command, chunks)


def _packed(number: int, command: Command, chunks: Sequence[Chunk]) -> list[Chunk]:
    try:
        return pack_command(number, command, chunks)
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        if command.inputs is None:
            raise
        encode_inputs(*command.inputs)  # raises, and names the one that cannot travel
        raise payload_error("the inputs", command.inputs[1], error) from error
