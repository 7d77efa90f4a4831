"""Reads the frames that arrive: those of messages and confirms itself, and keeps from the client library what that
cannot read, for it would give up the connection, at each worker in turn."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from struct import Struct
from typing import Final

from aiormq.channel import Channel
from pamqp.header import ContentHeader

from atasks.transport.backends.amqp.broker.content import HEADER_FRAME, MAX_PROPERTIES, METHOD_FRAME
from atasks.transport.backends.amqp.broker.direct import DELIVER, DirectChannel

__all__ = ["FrameReader"]

LOOKED_AT: Final = (METHOD_FRAME, HEADER_FRAME)
HEAD: Final = 7
"""Bytes of a frame before its content: type, channel and size (AMQP 0-9-1, section 2.3.5). One is behind it."""
FRAME: Final = Struct(">BHI").unpack_from
DELIVERS: Final = DELIVER.to_bytes(4)
HEARTBEAT: Final = b"\x08\0\0\0\0\0\0\xce"
ALIVE_SECONDS: Final = 1.0
TAG: Final = 4
"""The offset of the consumer's tag in such a frame's content."""
FLAGS: Final = 12
"""The offset of the flags of properties in a content header, after class, weight and the size of the body."""
HEADERS_FLAG, OTHER_FLAGS = 0x20, 0x41
"""In the first byte: there are headers. In the second one: there is a timestamp, or more flags follow."""
TO_ASCII: Final = bytes(byte if byte < 128 else 0x3F for byte in range(256))


class FrameReader:
    """Stands before the `feed_data` of a connection's stream, and looks at the frames that arrive.

    Those of direct channels go to these. The client library gets the others, and properties that it cannot read (a
    time out of range, a text that is no UTF-8, headers that are nested too deep) as if the message had none;
    anything that is not ASCII in the keys by which a message was routed, as question marks. See
    https://github.com/mosquito/aiormq/issues/186.
    """

    def __init__(self, reader: asyncio.StreamReader) -> None:
        self._feed = reader.feed_data
        self._begun = b""
        """A frame that has not arrived as a whole, and must be looked at."""
        self._skip = 0
        """Bytes still to come of a frame that is not looked at."""
        self._direct: dict[int, DirectChannel] = {}
        """By number."""
        self._alive = 0.0
        """When the client library was told last that the broker is there."""
        reader.feed_data = self.feed  # type: ignore[assignment, method-assign]

    def read(self, channel: Channel) -> None:
        """Read the messages and confirms of this channel, until it closes."""
        self._direct[channel.number] = DirectChannel(channel)

    def feed(self, data: bytes) -> None:
        """Take what has arrived, and keep back a frame that is looked at and not whole yet."""
        if self._begun:
            data = self._begun + data
            self._begun = b""
        kept: list[bytes] = []  # for the client library
        size, start, done = len(data), self._skip, 0
        while start + HEAD <= size:
            kind, number, length = FRAME(data, start)
            end = start + HEAD + length + 1
            direct = self._direct.get(number)
            is_direct = direct is not None and direct.reads_content
            if kind in LOOKED_AT or is_direct:
                if end > size:
                    break
                content = good = data[start + HEAD : end - 1]
                if kind == HEADER_FRAME:
                    good = content if is_direct else _readable(content)
                elif content.startswith(DELIVERS):
                    good = _routable(content)
                if direct is not None and direct.take(kind, good):
                    kept.append(data[done:start])
                    done = end
                    self._show_life(kept)
                elif good is not content:
                    kept += (data[done : start + HEAD], good)
                    done = end - 1
                if direct is not None and not direct.is_open:
                    self._direct.pop(number, None)
            start = end
        stop = min(start, size)
        self._begun = data[stop:]
        self._skip = max(start - size, 0)
        kept.append(data[done:stop])
        if rest := b"".join(kept):
            self._feed(rest)

    def _show_life(self, kept: list[bytes]) -> None:
        """Let the client library see a heartbeat now and then: it gives up a connection by which nothing comes,
        and the broker sends none where it sends messages."""
        now = time.monotonic()
        if now - self._alive > ALIVE_SECONDS:
            self._alive = now
            kept.append(HEARTBEAT)


def _readable(header: bytes) -> bytes:
    """The header, or one of the same size that has no properties."""
    if len(header) <= MAX_PROPERTIES:
        flags = header[FLAGS : FLAGS + 2]
        if not (flags[0] & HEADERS_FLAG or flags[1] & OTHER_FLAGS) and header[FLAGS + 2 :].isascii():
            return header  # as all are that atasks sends
        with suppress(Exception):
            ContentHeader().unmarshal(header)
            return header
    return header[:FLAGS] + bytes(2) + header[FLAGS + 2 :]


def _routable(deliver: bytes) -> bytes:
    """The method that delivers a message, with nothing but ASCII in the names by which it was routed."""
    start = TAG + 1 + deliver[TAG] + 9  # where the exchange is: behind the consumer's tag, another tag and a bit
    if deliver[start:].isascii():
        return deliver
    exchange = deliver[start + 1 : start + 1 + deliver[start]]
    key = deliver[start + 1 + len(exchange) :]
    return deliver[: start + 1] + exchange.translate(TO_ASCII) + key[:1] + key[1:].translate(TO_ASCII)
