"""Reads a message in one step if it is like an earlier one: most messages to one consumer differ in nothing but
their bodies, their ids and their expirations."""

from __future__ import annotations

import struct
from collections.abc import Callable
from copy import copy
from typing import TYPE_CHECKING, Any, Final, Self

from aiormq.abc import DeliveredMessage
from aiormq.channel import Channel
from pamqp.commands import Basic
from pamqp.header import ContentHeader

from atasks.transport.backends.amqp.broker.content import BODY_FRAME, HEADER_FRAME, METHOD_FRAME, Properties

__all__ = ["Arrived", "Made", "Pattern", "names_of"]

MAX_PROPERTIES: Final = 256
"""The properties that one pattern knows: each caller has its own."""
FRAME: Final = struct.Struct(">BHI").pack
"""Type, channel and size of a frame (AMQP 0-9-1, section 2.3.5)."""
END: Final = b"\xce"
ID_AT_END, HEADERS = 0x80, 0x20
"""In the second byte of the flags: there is an id, and no other property behind it. In the first one: headers."""
TAG: Final = 4
"""The offset of the consumer's tag in a method that delivers: the tag of the delivery is behind it."""
SIZE, FLAGS = 4, 12
"""The offsets of the size of the body, and of the flags of the properties, in a content header."""


class Made:
    """An attribute of a message that is made when it is first looked at, without the lock of
    `functools.cached_property`."""

    def __init__(self, make: Callable[[Any], Any]) -> None:
        self._make = make

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, message: DeliveredMessage | None, owner: type) -> Any:
        if message is None:
            return self
        made = message.__dict__[self._name] = self._make(message)
        return made


class Arrived(DeliveredMessage):
    """A message that a pattern has read. Its method and its header are made when they are looked at."""

    if not TYPE_CHECKING:  # they are properties of the class above, which look at the method
        delivery_tag = None
        redelivered = False
        exchange = property(lambda self: self._pattern.method.exchange)
        routing_key = property(lambda self: self._pattern.method.routing_key)
        header = Made(lambda self: self._pattern.header(len(self.body), self._properties, self._texts))
        delivery = Made(lambda self: self._pattern.delivery(self.delivery_tag))

    _pattern: Pattern
    _properties: dict[str, Any]
    _texts: bytes

    def __init__(self, pattern: Pattern, tag: int, body: bytes, properties: dict[str, Any], texts: bytes) -> None:
        fields = self.__dict__  # the class is frozen
        fields["delivery_tag"] = tag
        fields["body"] = body
        fields["channel"] = pattern.channel
        fields["_pattern"] = pattern
        fields["_properties"] = properties
        fields["_texts"] = texts


def names_of(message: DeliveredMessage) -> tuple[str | None, str | None, str | None]:
    """The content type of a message, its `reply_to` and its id. Of most of those that a pattern has read no header
    is made for these."""
    if type(message) is not Arrived or message._pattern.before_id:
        properties = message.header.properties
        return properties.content_type, properties.reply_to, properties.message_id
    known = message._properties.get
    try:
        return known("content_type"), known("reply_to"), message._texts.decode()
    except UnicodeDecodeError:  # the header has none of them either
        return None, None, None


class Pattern:
    """The frames of a message, but for what differs from message to message. Any message whose names and texts are
    as long is read by the same `Struct`, and is like this one if all its other bytes are the same."""

    def __init__(
        self, channel: Channel, method: Basic.Deliver, names: bytes, header: bytes, before_id: int, texts: int
    ) -> None:
        """`names` and `header`: the contents of the frames before the body. The header ends in so many bytes of
        `texts`: the id, or the expiration, a byte and the id, of which `before_id` bytes are before the id."""
        self.channel = channel
        self.consumer_tag = method.consumer_tag or ""
        self.method = method
        """That of the first such message: only the tags of others differ."""
        self.before_id = before_id
        """Bytes before the id in the texts: those of an expiration, and one."""
        tag, number = TAG + 1 + names[TAG], channel.number
        before = FRAME(METHOD_FRAME, number, len(names)) + names[:tag]
        between = names[tag + 8 :] + END + FRAME(HEADER_FRAME, number, len(header)) + header[:SIZE]
        behind = END + FRAME(BODY_FRAME, number, 0)[:3]
        flags = len(header) - FLAGS - texts
        layout = struct.Struct(f">{len(before)}sQ{len(between)}sQ{flags}s{texts}s{len(behind)}sI")
        self._split = layout.unpack_from
        self._size = layout.size
        self._like = before, between, behind
        self._properties: dict[bytes, dict[str, Any]] = {}
        """Flags and properties before the texts, in bytes -> these properties."""

    @classmethod
    def of(
        cls, channel: Channel, method: Basic.Deliver, names: bytes, header: bytes, read: Basic.Properties
    ) -> Self | None:
        """The pattern of a message whose body was one frame, and whose properties were read; None: it has headers,
        or has no id as its last property, or was delivered before, as few are."""
        if header[FLAGS + 1] != ID_AT_END or header[FLAGS] & HEADERS or method.redelivered:
            return None
        known = dict(read.__dict__)
        expiration, message_id = known.pop("expiration", ""), known.pop("message_id", "").encode()
        texts = b"%b%c%b" % (expiration.encode(), len(message_id), message_id) if expiration else message_id
        if not message_id or not header.endswith(texts):  # they could not be read
            return None
        pattern = cls(channel, method, names, header, len(texts) - len(message_id), len(texts))
        pattern._properties[header[FLAGS : len(header) - len(texts)]] = known
        return pattern

    def adopt(self, other: Pattern) -> bool:
        """Take in the properties of another pattern that is like this one; False: it is not."""
        if (self._like, self._size, self.before_id) != (other._like, other._size, other.before_id):
            return False
        if len(self._properties) >= MAX_PROPERTIES:
            self._properties.clear()
        self._properties.update(other._properties)
        return True

    def read(self, data: bytes | memoryview, start: int) -> tuple[Arrived, int] | None:
        """The message that begins there, and where it ends; None: it is not like this one, or not whole."""
        try:
            before, tag, between, size, flags, texts, behind, piece = self._split(data, start)
        except struct.error:
            return None
        properties = self._properties.get(flags)
        at = start + self._size
        end = at + size
        if properties is None or piece != size or end >= len(data) or (before, between, behind) != self._like:
            return None
        return Arrived(self, tag, bytes(data[at:end]), properties, texts), end + 1

    def header(self, size: int, properties: dict[str, Any], texts: bytes) -> ContentHeader:
        """The header of a message that was read, with a body of so many bytes, as `read_header` makes it."""
        header = ContentHeader.__new__(ContentHeader)
        header.class_id, header.weight, header.body_size = None, 0, size
        header.properties = made = Properties()
        at = self.before_id
        try:
            message_id, expiration = texts[at:].decode(), texts[: at - 1].decode() if at else None
        except UnicodeDecodeError:  # anybody may have written them
            return header
        if not at:
            made.__dict__.update(properties, message_id=message_id)
        elif texts[at - 1] == len(texts) - at:
            made.__dict__.update(properties, message_id=message_id, expiration=expiration)
        return header

    def delivery(self, tag: int | None) -> Basic.Deliver:
        """The method of a message that was read."""
        method = copy(self.method)
        method.delivery_tag = tag
        return method
