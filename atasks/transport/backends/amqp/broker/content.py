"""The properties of messages as bytes, those that atasks gives them: the client library reads and writes any, and
takes ten times as long. The layout is that of AMQP 0-9-1, section 4.2.6."""

from __future__ import annotations

import functools
from collections.abc import Callable
from copy import copy
from datetime import datetime
from struct import Struct
from typing import Any, Final

from pamqp import decode, encode, frame
from pamqp.commands import Basic
from pamqp.common import FieldTable
from pamqp.header import ContentHeader

__all__ = [
    "BODY_FRAME",
    "HEADER_FRAME",
    "MAX_PROPERTIES",
    "METHOD_FRAME",
    "Properties",
    "header_frame",
    "read_header",
]

MAX_PROPERTIES: Final = 8 * 2**10
"""Bytes of the properties of a message, headers included: the time to read more grows with its square."""

METHOD_FRAME, HEADER_FRAME, BODY_FRAME = 1, 2, 3
BASIC: Final = 60
HEAD: Final = Struct(">BHIHHQH").pack
"""Type, channel and size of the frame; class, weight, size of the body, flags of the properties."""
CONTENT: Final = Struct(">HHQH").unpack_from
BEFORE: Final = 14
"""Bytes of a header before the first property."""

TEXT, NUMBER, TABLE = "text", "number", "table"
REPEATED: Final = frozenset({"content_type", "reply_to"})
"""Properties that many messages have alike: while many are kept, of each text one is."""
FIELDS: Final = (
    (1 << 15, "content_type", TEXT),
    (1 << 14, "content_encoding", TEXT),
    (1 << 13, "headers", TABLE),
    (1 << 12, "delivery_mode", NUMBER),
    (1 << 11, "priority", NUMBER),
    (1 << 10, "correlation_id", TEXT),
    (1 << 9, "reply_to", TEXT),
    (1 << 8, "expiration", TEXT),
    (1 << 7, "message_id", TEXT),
)
"""Flag, name and kind of each property that is read and written here, in the order of the bytes."""
WITH_ID: Final = 1 << 7
OTHERS: Final = frozenset({"timestamp", "message_type", "user_id", "app_id", "cluster_id"})
KNOWN: Final = sum(flag for flag, _, _ in FIELDS)


class Properties(Basic.Properties):
    """Those of a message of atasks. The client library's own class sets and checks fourteen of them for each
    message, which takes as long as to write them."""

    content_type: str | None = None
    content_encoding: str | None = None
    headers: FieldTable | None = None
    delivery_mode: int | None = None
    priority: int | None = None
    correlation_id: str | None = None
    reply_to: str | None = None
    expiration: str | None = None
    message_id: str | None = None
    timestamp: datetime | None = None
    message_type: str | None = None
    user_id: str | None = None
    app_id: str | None = None
    cluster_id: str = ""
    _written: tuple[int, bytes] | None = None
    """Flags and bytes of all but the id; None: they are to be written."""

    def __init__(self, **properties: Any) -> None:
        self.__dict__.update(properties)

    def __setattr__(self, name: str, value: Any) -> None:
        self.__dict__[name] = value
        self.__dict__.pop("_written", None)

    @classmethod
    def of(
        cls,
        message_id: str,
        content_type: str,
        delivery_mode: int,
        reply_to: str | None = None,
        priority: int | None = None,
        expiration: str | None = None,
    ) -> Properties:
        """Those of a message that differs from many others in nothing but its id: the rest is written once. Raises
        what the client library raises for a property that cannot be written."""
        made = cls.__new__(cls)
        made.__dict__.update(
            _in_common(content_type, delivery_mode, reply_to, priority, expiration), message_id=message_id
        )
        return made


def header_frame(channel: int, properties: Basic.Properties, size: int, content_type: str | None = None) -> bytes:
    """The header frame of a message of so many bytes, with another content type than that of the properties, if
    one is given. Raises what the client library raises for a property that cannot be written."""
    if type(properties) is Properties and properties._written is not None:
        written = properties._written
        flags, values = written if content_type is None else _retyped(written, content_type)
    else:
        if content_type is not None:
            properties = copy(properties)
            properties.content_type = content_type
        for name in () if type(properties) is Properties and OTHERS.isdisjoint(properties.__dict__) else OTHERS:
            if getattr(properties, name):
                return frame.marshal(ContentHeader(properties=properties, body_size=size), channel)
        headers = properties.headers or None
        write: Any = _values if headers is None else _values.__wrapped__  # a table is no key
        flags, values = write(
            properties.content_type,
            properties.content_encoding,
            headers,
            properties.delivery_mode,
            properties.priority,
            properties.correlation_id,
            properties.reply_to,
            properties.expiration,
        )
    number = (properties.message_id or "").encode()
    length = len(number)
    if not flags or length > 255:
        return frame.marshal(ContentHeader(properties=properties, body_size=size), channel)
    if length:
        content = BEFORE + 1 + len(values) + length
        head = HEAD(HEADER_FRAME, channel, content, BASIC, 0, size, flags | WITH_ID)
        return b"%b%b%c%b\xce" % (head, values, length, number)
    return b"%b%b\xce" % (HEAD(HEADER_FRAME, channel, BEFORE + len(values), BASIC, 0, size, flags), values)


@functools.lru_cache(maxsize=256)
def _in_common(
    content_type: str, delivery_mode: int, reply_to: str | None, priority: int | None, expiration: str | None
) -> dict[str, Any]:
    """The fields of `Properties` but for the id."""
    written = _values(content_type, None, None, delivery_mode, priority, None, reply_to, expiration)
    return {
        "content_type": content_type,
        "delivery_mode": delivery_mode,
        "reply_to": reply_to,
        "priority": priority,
        "expiration": expiration,
        "_written": written,
    }


@functools.lru_cache(maxsize=256)
def _retyped(written: tuple[int, bytes], content_type: str) -> tuple[int, bytes]:
    """Return what was written with another content type: that is the first of the properties. No flags: the
    client library is to say why they cannot be written."""
    flags, values = written
    if not flags:
        return written
    text = content_type.encode()
    return flags, b"%c%b%b" % (len(text), text, values[1 + values[0] :])


@functools.lru_cache(maxsize=256)  # most messages to one address differ in nothing but their ids
def _values(*values: Any) -> tuple[int, bytes]:
    """The flags and the bytes of all properties but the id of the message; no flags: there are none, or the client
    library is to say what is wrong with them."""
    flags, parts = 0, []
    for (flag, _, kind), value in zip(FIELDS, values, strict=False):
        if value is None or value == "":
            continue
        flags |= flag
        if kind is TEXT:
            text = value.encode()
            if len(text) > 255:
                return 0, b""
            parts.append(b"%c%b" % (len(text), text))
        elif kind is NUMBER:
            parts.append(b"%c" % value)
        else:
            parts.append(encode.field_table(value))
    return flags, b"".join(parts)


def read_header(content: bytes) -> ContentHeader:
    """The header of a message, without properties where these cannot be read, or are too many."""
    _, _, size, flags = CONTENT(content)
    header = ContentHeader.__new__(ContentHeader)  # whose own `__init__` makes properties, to be made here
    header.class_id, header.weight, header.body_size = None, 0, size
    header.properties = properties = Properties()
    if len(content) > MAX_PROPERTIES:
        return header
    try:
        if flags & ~KNOWN:
            header.unmarshal(content)
        else:
            _read(properties.__dict__, flags, content)
    except Exception:  # anybody may have written them, and the client library has many words for it
        header.body_size, header.properties = size, Properties()
    return header


def _read(properties: dict[str, Any], flags: int, content: bytes) -> None:
    at = BEFORE
    for name, text in _fields(flags):
        if text is not None:
            start = at + 1
            at = start + content[at]
            properties[name] = text(content[start:at])
        elif name == "headers":
            size, properties[name] = decode.field_table(content[at:])
            at += size
        else:
            properties[name] = content[at]
            at += 1


@functools.lru_cache(maxsize=256)
def _fields(flags: int) -> tuple[tuple[str, Callable[[bytes], str] | None], ...]:
    """The names of the properties, and what makes texts of their bytes; None: they are no texts."""
    return tuple(
        (name, None if kind is not TEXT else _repeated if name in REPEATED else bytes.decode)
        for flag, name, kind in FIELDS
        if flags & flag
    )


@functools.lru_cache(maxsize=256)
def _repeated(text: bytes) -> str:
    return text.decode()
