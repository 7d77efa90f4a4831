"""The bodies of messages whose payload is large: it is copied neither into the body nor out of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, cast

import msgspec

from atasks import wire
from atasks.arrays import elements
from atasks.codecs.pieces import PIECE_BYTES, Pieces
from atasks.wire import Call, End, Envelope, Reply, Status

__all__ = ["Body", "body_of", "envelopes_of"]

Body = bytes | Pieces
"""The body of a message; pieces are never written to."""

BINARY: Final = b"\xc6"
"""The first byte of binary data in MessagePack whose length has four bytes."""
NO_BYTES: Final = b"\xc4\0"
"""The empty binary data."""

BINARY_HEAD: Final = 5
"""Bytes of that byte and the length."""
ONE: Final = 0x91
"""The first byte of an array of one element."""
PAYLOAD: Final = 4
"""The place of the payload among the fields of an envelope, of which the first one is the tag."""

_encode: Final = msgspec.msgpack.Encoder().encode


def body_of(envelopes: Sequence[Call] | Sequence[Reply | End]) -> Body:
    """Encode a message as `wire.encode` does, but in pieces if the only payload is."""
    first = envelopes[0]
    payload: Any = first.payload
    if len(envelopes) > 1 or isinstance(first, End) or not isinstance(payload, Pieces):
        return wire.encode(envelopes)
    first.payload = b""
    try:
        body = wire.encode(envelopes)
    finally:
        first.payload = cast("bytes", payload)
    third: str | int = first.task if isinstance(first, Call) else first.status
    fields = len(_encode([first.__struct_config__.tag, first.v, first.id, third]))
    start = fields + (1 if body[1] <= wire.FEW else 3)  # there are two arrays, and the inner one may be long
    assert body[start : start + 2] == NO_BYTES, "the fourth field is the payload"
    head = body[:start] + BINARY + len(payload).to_bytes(4, "big")
    return Pieces([head, *payload.buffers(), body[start + len(NO_BYTES) :]])


def envelopes_of(body: bytes | memoryview, limit: int) -> list[Envelope]:
    """Decode a message as `wire.decode` does. A large payload, if it is the only one, is a view of the body; its
    codec takes that, or is given bytes (`taken`)."""
    if not PIECE_BYTES <= len(body) <= limit or body[0] != ONE:
        return wire.decode(body, limit)
    whole = memoryview(body)
    fields = elements(whole[1:])
    start = 1 + (1 if body[1] <= wire.FEW else 3) + sum(len(memoryview(field)) for field in fields[:PAYLOAD])
    size = len(memoryview(fields[PAYLOAD])) if len(fields) > PAYLOAD else 0
    if size < PIECE_BYTES or body[start] != BINARY[0]:
        return wire.decode(body, limit)
    envelopes = wire.decode(b"".join((whole[:start], NO_BYTES, whole[start + size :])), limit)
    (only,) = envelopes
    if isinstance(only, Call) or (isinstance(only, Reply) and only.status == Status.VALUE):
        only.payload = cast("bytes", whole[start + BINARY_HEAD : start + size])
        return envelopes
    return wire.decode(body, limit)
