"""Keeps from the client library what it cannot read: it would give up the connection, at each worker in turn."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, Final

from pamqp.header import ContentHeader

__all__ = ["MAX_PROPERTIES", "Reader"]

MAX_PROPERTIES: Final = 8 * 2**10
"""Bytes of the properties of a message, headers included: the time to read more grows with its square."""

METHOD_FRAME, HEADER_FRAME = 1, 2
DELIVER: Final = b"\x00\x3c\x00\x3c"
"""Class 60, method 60."""
FLAGS: Final = 12
"""Where a content header says which properties it has, after class, weight and the size of the body."""
HEADERS_FLAG, OTHER_FLAGS = 0x20, 0x41
"""In the first byte: there are headers. In the second one: there is a timestamp, or more flags follow."""
TO_ASCII: Final = bytes(byte if byte < 128 else 0x3F for byte in range(256))


class Reader:
    """What the client library has of a connection's stream: the three reads of each frame.

    Properties that it cannot read (a time out of range, a text that is no UTF-8, headers that are nested too deep)
    are handed on as if the message had none; anything that is not ASCII in the keys by which a message was routed,
    as question marks. See https://github.com/mosquito/aiormq/issues/186.
    """

    def __init__(self, reader: asyncio.StreamReader) -> None:
        self._reader = reader
        self._frame = 0
        self._next = 0
        self.at_eof = reader.at_eof
        self.read = reader.read

    def readexactly(self, size: int) -> Coroutine[Any, Any, bytes]:
        """Bytes of a frame: its type, the rest of its head, its content with the byte behind it."""
        part, self._next = self._next, (self._next + 1) % 3
        if part == 0:
            return self._type()
        if part == 2 and self._frame in (METHOD_FRAME, HEADER_FRAME):
            return self._content(size)
        return self._reader.readexactly(size)

    async def _type(self) -> bytes:
        data = await self._reader.readexactly(1)
        self._frame = data[0]
        return data

    async def _content(self, size: int) -> bytes:
        data = await self._reader.readexactly(size)
        if self._frame == HEADER_FRAME:
            return data if _is_readable(data) else data[:FLAGS] + bytes(2) + data[FLAGS + 2 :]
        return _with_plain_keys(data) if data.startswith(DELIVER) else data


def _is_readable(header: bytes) -> bool:
    if len(header) > MAX_PROPERTIES:
        return False
    flags = header[FLAGS : FLAGS + 2]
    if not (flags[0] & HEADERS_FLAG or flags[1] & OTHER_FLAGS) and header[FLAGS + 2 : -1].isascii():
        return True  # as all are that atasks sends
    try:
        ContentHeader().unmarshal(header[:-1])
    except Exception:
        return False
    return True


def _with_plain_keys(deliver: bytes) -> bytes:
    """Consumer tag, delivery tag and a bit are before the exchange and the routing key."""
    start = len(DELIVER) + 1 + deliver[len(DELIVER)] + 9
    if deliver[start:-1].isascii():
        return deliver
    exchange = deliver[start + 1 : start + 1 + deliver[start]]
    key = deliver[start + 1 + len(exchange) :]
    return deliver[: start + 1] + exchange.translate(TO_ASCII) + key[:1] + key[1:-1].translate(TO_ASCII) + key[-1:]
