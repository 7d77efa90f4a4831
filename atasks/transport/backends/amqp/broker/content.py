"""The properties of messages as bytes, those that atasks gives them: the client library reads and writes any, and
takes ten times as long. The layout is that of AMQP 0-9-1, section 4.2.6."""

from __future__ import annotations

import functools
from collections.abc import Callable
from struct import Struct
from typing import Final

from pamqp import frame
from pamqp.commands import Basic
from pamqp.header import ContentHeader

__all__ = ["BODY_FRAME", "HEADER_FRAME", "MAX_PROPERTIES", "METHOD_FRAME", "header_frame", "read_header"]

MAX_PROPERTIES: Final = 8 * 2**10
"""Bytes of the properties of a message, headers included: the time to read more grows with its square."""

METHOD_FRAME, HEADER_FRAME, BODY_FRAME = 1, 2, 3
BASIC: Final = 60
HEAD: Final = Struct(">BHIHHQH").pack
"""Type, channel and size of the frame; class, weight, size of the body, flags of the properties."""
CONTENT: Final = Struct(">HHQH").unpack_from
BEFORE: Final = 14
"""Bytes of a header before the first property."""

TEXT, NUMBER = True, False
REPEATED: Final = frozenset({"content_type", "reply_to"})
"""Properties that many messages have alike: while many are kept, of each text one is."""
FIELDS: Final = (
    (1 << 15, "content_type", TEXT),
    (1 << 14, "content_encoding", TEXT),
    (1 << 12, "delivery_mode", NUMBER),
    (1 << 11, "priority", NUMBER),
    (1 << 10, "correlation_id", TEXT),
    (1 << 9, "reply_to", TEXT),
    (1 << 8, "expiration", TEXT),
    (1 << 7, "message_id", TEXT),
)
"""Flag, name and kind of each property that is read and written here, in the order of the bytes."""
OTHERS: Final = ("headers", "timestamp", "message_type", "user_id", "app_id", "cluster_id")
KNOWN: Final = sum(flag for flag, _, _ in FIELDS)


def header_frame(channel: int, properties: Basic.Properties, size: int) -> bytes:
    """The header frame of a message of so many bytes. Raises what the client library raises for a property that
    cannot be written."""
    for name in OTHERS:
        if getattr(properties, name):
            return frame.marshal(ContentHeader(properties=properties, body_size=size), channel)
    flags, parts = 0, []
    for flag, name, kind in FIELDS:
        value = getattr(properties, name)
        if value is None or value == "":
            continue
        flags |= flag
        if kind is TEXT:
            value = value.encode()
            if len(value) > 255:
                return frame.marshal(ContentHeader(properties=properties, body_size=size), channel)
            parts.append(b"%c%b" % (len(value), value))
        else:
            parts.append(b"%c" % value)
    values = b"".join(parts)
    return b"%b%b\xce" % (HEAD(HEADER_FRAME, channel, BEFORE + len(values), BASIC, 0, size, flags), values)


def read_header(content: bytes) -> ContentHeader:
    """The header of a message, without properties where these cannot be read, or are too many."""
    _, _, size, flags = CONTENT(content)
    header = ContentHeader(body_size=size)
    if len(content) > MAX_PROPERTIES:
        return header
    try:
        if flags & ~KNOWN:
            header.unmarshal(content)
        else:
            _read(header.properties, flags, content)
    except Exception:  # anybody may have written them, and the client library has many words for it
        return ContentHeader(body_size=size)
    return header


def _read(properties: Basic.Properties, flags: int, content: bytes) -> None:
    at = BEFORE
    for name, text in _fields(flags):
        if text is not None:
            start = at + 1
            at = start + content[at]
            setattr(properties, name, text(content[start:at]))
        else:
            setattr(properties, name, content[at])
            at += 1


@functools.lru_cache(maxsize=256)
def _fields(flags: int) -> tuple[tuple[str, Callable[[bytes], str] | None], ...]:
    """The names of the properties, and what makes texts of their bytes; None: they are numbers."""
    return tuple(
        (name, None if kind is NUMBER else _repeated if name in REPEATED else bytes.decode)
        for flag, name, kind in FIELDS
        if flags & flag
    )


@functools.lru_cache(maxsize=256)
def _repeated(text: bytes) -> str:
    return text.decode()
