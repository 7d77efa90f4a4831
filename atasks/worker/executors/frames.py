"""Messages between a worker and its processes: MessagePack, each message after its length in bytes.

These are not the frames of the local transport, although both are a length and MessagePack: one call may be larger
than a frame there, and goes alone, where a frame there has all messages of a turn.
"""

# Without `from __future__ import annotations`: msgspec, or typing, would compile each annotation at the import.

import struct
from typing import Final

import msgspec
from msgspec import Struct

from atasks.wire import Call, Reply, Report
from atasks.worker.executors.references import Reference

__all__ = ["HEADER", "READY", "ProcessRequest", "decode_answer", "decode_request", "frame"]

HEADER: Final = struct.Struct("!Q")
READY: Final = b""
"""The first message of a process, sent when it can take calls."""


class ProcessRequest(Struct, array_like=True):
    """A call for a process."""

    call: Call
    reference: Reference
    worker: str
    """The worker's id."""
    deadline: float | None
    """When the call times out, by the clock of `time.monotonic`."""
    limit: int
    """Bytes of payload that a reply may have."""
    queue: str = ""
    """The work queue over which the call came."""


_encoder = msgspec.msgpack.Encoder(enc_hook=bytes)  # payloads in pieces are joined
decode_request = msgspec.msgpack.Decoder(ProcessRequest).decode
_answers: msgspec.msgpack.Decoder[Reply | Report] = msgspec.msgpack.Decoder(Reply | Report)
decode_answer = _answers.decode


def frame(message: ProcessRequest | Reply | Report | None) -> bytes:
    """A message with its length; None stands for `READY`."""
    body = READY if message is None else _encoder.encode(message)
    return HEADER.pack(len(body)) + body
