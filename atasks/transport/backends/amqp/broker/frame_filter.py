"""Keeps from the client library what it cannot read: it would give up the connection, at each worker in turn."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from struct import Struct
from typing import Any, Final

from pamqp.header import ContentHeader

__all__ = ["MAX_PROPERTIES", "FrameFilter"]

MAX_PROPERTIES: Final = 8 * 2**10
"""Bytes of the properties of a message, headers included: the time to read more grows with its square."""

METHOD_FRAME, HEADER_FRAME = 1, 2
LOOKED_AT: Final = (METHOD_FRAME, HEADER_FRAME)
HEAD: Final = 7
"""Bytes of a frame before its content: type, channel and size (AMQP 0-9-1, section 2.3.5). One is behind it."""
TYPE_AND_SIZE: Final = Struct(">BxxI").unpack_from
DELIVER: Final = b"\x00\x3c\x00\x3c"
"""Class 60, method 60: a message is delivered."""
TAG: Final = 4
"""The offset of the consumer's tag in such a frame's content."""
FLAGS: Final = 12
"""The offset of the flags of properties in a content header, after class, weight and the size of the body."""
HEADERS_FLAG, OTHER_FLAGS = 0x20, 0x41
"""In the first byte: there are headers. In the second one: there is a timestamp, or more flags follow."""
TO_ASCII: Final = bytes(byte if byte < 128 else 0x3F for byte in range(256))


class FrameFilter:
    """Stands before the `feed_data` of a connection's stream, and looks at the frames that arrive.

    Properties that the client library cannot read (a time out of range, a text that is no UTF-8, headers that are
    nested too deep) are handed on as if the message had none; anything that is not ASCII in the keys by which a
    message was routed, as question marks. See https://github.com/mosquito/aiormq/issues/186.

    Here, and not where frames are read: several arrive together, and to read one takes the client library three
    coroutines already.
    """

    def __init__(self, reader: asyncio.StreamReader) -> None:
        self._feed = reader.feed_data
        self._begun = b""
        """A frame that has not arrived as a whole, and must be looked at."""
        self._skip = 0
        """Bytes still to come of a frame that is not looked at."""
        reader.feed_data = self.feed  # type: ignore[assignment, method-assign]

    def feed(self, data: bytes) -> None:
        """Hand on what has arrived, but for a method or a header that is not whole yet."""
        if self._begun:
            data = self._begun + data
            self._begun = b""
        mended: Any = data  # or a copy with the same bytes, except those that are mended
        size, start = len(data), self._skip
        while start + HEAD <= size:
            kind, length = TYPE_AND_SIZE(data, start)
            end = start + HEAD + length + 1
            if kind in LOOKED_AT:
                if end > size:
                    break
                if kind == HEADER_FRAME or data.startswith(DELIVER, start + HEAD):
                    content = data[start + HEAD : end]
                    good = _readable(content) if kind == HEADER_FRAME else _routable(content)
                    if good is not content:
                        if mended is data:
                            mended = bytearray(data)
                        mended[start + HEAD : end] = good
            start = end
        if start < size:
            self._begun = data[start:]
            mended = mended[:start]
        self._skip = max(start - size, 0)
        if mended:
            self._feed(mended)


def _readable(header: bytes) -> bytes:
    """The header, or one of the same size that has no properties."""
    if len(header) <= MAX_PROPERTIES:
        flags = header[FLAGS : FLAGS + 2]
        if not (flags[0] & HEADERS_FLAG or flags[1] & OTHER_FLAGS) and header[FLAGS + 2 : -1].isascii():
            return header  # as all are that atasks sends
        with suppress(Exception):
            ContentHeader().unmarshal(header[:-1])
            return header
    return header[:FLAGS] + bytes(2) + header[FLAGS + 2 :]


def _routable(deliver: bytes) -> bytes:
    """The method that delivers a message, with nothing but ASCII in the names by which it was routed."""
    start = (
        TAG + 1 + deliver[TAG] + 9
    )  # where the exchange is: behind the tag of the consumer, another one and a bit
    if deliver[start:-1].isascii():
        return deliver
    exchange = deliver[start + 1 : start + 1 + deliver[start]]
    key = deliver[start + 1 + len(exchange) :]
    return deliver[: start + 1] + exchange.translate(TO_ASCII) + key[:1] + key[1:-1].translate(TO_ASCII) + key[-1:]
