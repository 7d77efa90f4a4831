"""Reads the frames that arrive: those of messages and confirms itself, and keeps from the client library what that
cannot read, for it would give up the connection, at each worker in turn."""

from __future__ import annotations

import asyncio
import re
import time
from contextlib import suppress
from struct import Struct
from typing import Any, Final, cast

from aiormq.channel import Channel
from pamqp.header import ContentHeader

from atasks.event_loop import Ready, ready_in, run_only
from atasks.transport.backends.amqp.broker.content import BODY_FRAME, HEADER_FRAME, MAX_PROPERTIES, METHOD_FRAME
from atasks.transport.backends.amqp.broker.direct import DELIVER, DirectChannel, routable

__all__ = ["FrameReader"]

ROOM: Final = 256 * 2**10
"""Bytes that are read at once."""
LOOKED_AT: Final = (METHOD_FRAME, HEADER_FRAME)
HEAD: Final = 7
AROUND: Final = HEAD + 1
"""Bytes of a frame before its content: type, channel and size (AMQP 0-9-1, section 2.3.5); and with the one behind
it."""
HEADING: Final = Struct(">BHI")
FRAME: Final = HEADING.unpack_from
DELIVERS: Final = DELIVER.to_bytes(4)
HEARTBEAT: Final = b"\x08\0\0\0\0\0\0\xce"
ALIVE_SECONDS: Final = 1.0
CLOSES: Final = (20 << 16 | 40).to_bytes(4)
TEXT: Final = 6
"""The offset of the reason in a method that closes a channel: after two numbers, of the method and the reason."""
METHOD: Final = Struct(">HH").unpack_from
REFUSED: Final = re.compile(rb"ACCESS_REFUSED - (access to (queue|exchange) .*)")
"""A missing permission, in the words of RabbitMQ 3."""
NEEDED: Final = {
    (b"queue", 50, 10): b"configure or read",  # a queue that has a dead-letter exchange is read by that
    (b"exchange", 50, 10): b"write",
    (b"queue", 50, 20): b"write",
    (b"exchange", 50, 20): b"read",
    (b"queue", 50, 30): b"read",
    (b"queue", 50, 40): b"configure",
    (b"queue", 50, 50): b"write",
    (b"exchange", 50, 50): b"read",
    (b"exchange", 40, 10): b"configure, read or write",  # one with an alternate exchange is read, and that written
    (b"queue", 60, 20): b"read",
    (b"exchange", 60, 40): b"write",
    (b"queue", 60, 70): b"read",
}
"""The thing that was refused, class and method of what was asked (AMQP 0-9-1, section 1.8) -> the permission."""
FLAGS: Final = 12
"""The offset of the flags of properties in a content header, after class, weight and the size of the body."""
HEADERS_FLAG, OTHER_FLAGS = 0x20, 0x41
"""In the first byte: there are headers. In the second one: there is a timestamp, or more flags follow."""


class FrameReader(asyncio.BufferedProtocol):
    """Stands before the stream of a connection, in room of its own, and looks at the frames that arrive: asyncio
    would have the system map a new place of 256 KiB for each read, and unmap it.

    Those of direct channels go to these. The client library gets the others, and properties that it cannot read (a
    time out of range, a text that is no UTF-8, headers that are nested too deep) as if the message had none;
    anything that is not ASCII in the keys by which a message was routed, as question marks. See
    https://github.com/mosquito/aiormq/issues/186. And where RabbitMQ 3 closes a channel over a permission that is
    missing, its reason names the permission, as in RabbitMQ 4.
    """

    def __init__(self, reader: asyncio.StreamReader) -> None:
        self._feed = reader.feed_data
        self._stream: Any = asyncio.Protocol()
        """Hears what else becomes of the connection."""
        self._room = memoryview(bytearray(ROOM))
        self._begun = b""
        """A frame that has not arrived as a whole, and must be looked at."""
        self._skip = 0
        """Bytes still to come of a frame that is not looked at, or is one of `_large`."""
        self._large: DirectChannel | None = None
        """The channel of a large body of which a frame has begun to arrive."""
        self._direct: dict[int, DirectChannel] = {}
        """By number."""
        self._alive = 0.0
        """When the client library was told last that the broker is there."""
        self._ready: Ready | None = None
        """The callbacks that are to run in the event loop; None: they cannot be seen."""

    def attach(self, transport: asyncio.WriteTransport) -> None:
        """Take what arrives by a stream's transport from now on, in the place of the protocol that it has."""
        both = cast("asyncio.Transport", transport)
        self._stream = both.get_protocol()
        both.pause_reading()  # uvloop asks a protocol when it begins to read whether that has room of its own
        both.set_protocol(self)
        both.resume_reading()
        self._ready = ready_in(asyncio.get_running_loop())

    # -- what the transport calls

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._room

    def buffer_updated(self, nbytes: int) -> None:
        """Take what has arrived, and run at once what that has begun, if it is one thing, and nothing else is to
        run in this turn of the event loop: the step of a task that serves a call, or awaits one."""
        ready = self._ready
        ends_turn = ready is not None and not ready
        self.feed(self._room[:nbytes])
        if ready is not None and ends_turn and len(ready) == 1:
            run_only(ready)

    def eof_received(self) -> bool:
        return bool(self._stream.eof_received())

    def connection_lost(self, exc: Exception | None) -> None:
        self._room = memoryview(b"")  # what refers to the reader may be kept until it is collected
        self._stream.connection_lost(exc)

    def pause_writing(self) -> None:
        self._stream.pause_writing()

    def resume_writing(self) -> None:
        self._stream.resume_writing()

    # -- frames

    def read(self, channel: Channel) -> None:
        """Read the messages and confirms of this channel, until it closes."""
        self._direct[channel.number] = DirectChannel(channel)

    def feed(self, data: bytes | memoryview) -> None:
        """Take what has arrived, and keep back a frame that is looked at and not whole yet, but no large body.
        Nothing refers to the data afterwards."""
        if self._begun:
            data = self._begun + data
            self._begun = b""
        kept: list[bytes | memoryview] = []  # for the client library
        size, start, done = len(data), self._skip, 0
        last, self._large = self._large, None
        if last is not None:
            last.go_on(memoryview(data)[: start - 1])
            done = min(start, size)
        while start + HEAD <= size:
            kind, number, length = FRAME(data, start)
            end = start + length + AROUND
            direct = self._direct.get(number)
            if direct is not None and (kind == METHOD_FRAME or direct.reads_content):
                if end > size and not (kind == BODY_FRAME and direct.is_large):
                    break
                if after := direct.take(kind, data, start, end):
                    if done < start:
                        kept.append(data[done:start])
                    start = done = after
                    last = direct
                    continue
            elif kind not in LOOKED_AT:
                start = end
                continue
            elif end > size:
                break
            content = bytes(data[start + HEAD : end - 1])
            good = _good(kind, content)
            if good is not content:
                head = HEADING.pack(kind, number, len(good))
                kept += (data[done:start], head, good, data[end - 1 : end])  # a heartbeat may follow
                done = end
            if direct is not None and not direct.is_open:
                self._direct.pop(number, None)
            start = end
        if last is not None and time.monotonic() - self._alive > ALIVE_SECONDS:
            self._show_life(kept)
        if start == done == size and not kept:  # as most times
            self._skip = 0
            return
        self._keep(data, start, done, kept, last)

    def _keep(
        self,
        data: bytes | memoryview,
        start: int,
        done: int,
        kept: list[bytes | memoryview],
        last: DirectChannel | None,
    ) -> None:
        """Give the client library what is its own, up to `start`, and keep what is behind that. `last` is the
        channel that has taken a frame last."""
        size = len(data)
        if done >= size < start:
            self._large = last
        stop = min(start, size)
        if stop < size:
            self._begun = bytes(data[stop:])
        self._skip = start - stop
        if done < stop:
            kept.append(data[done:stop])
        if kept:
            self._feed(b"".join(kept))

    def _show_life(self, kept: list[bytes | memoryview]) -> None:
        """Let the client library see a heartbeat now and then, between two frames: it gives up a connection by
        which nothing comes, and the broker sends none where it sends messages."""
        self._alive = time.monotonic()
        kept.append(HEARTBEAT)


def _good(kind: int, content: bytes) -> bytes:
    """The content of a header, or of a method, as the client library can read it."""
    if kind == HEADER_FRAME:
        return _readable(content)
    if content.startswith(CLOSES):
        return _explained(content)
    return routable(content) if content.startswith(DELIVERS) else content


def _explained(close: bytes) -> bytes:
    """The method that closes a channel, with the name of the permission that is missing, if one is."""
    end = TEXT + 1 + close[TEXT]
    text = close[TEXT + 1 : end]
    refused = REFUSED.fullmatch(text)
    permission = None if refused is None else NEEDED.get((refused[2], *METHOD(close, end)))
    if refused is None or permission is None or len(text) + 1 + len(permission) > 255:
        return close
    better = b"ACCESS_REFUSED - %b %b" % (permission, refused[1])
    return b"%b%c%b%b" % (close[:TEXT], len(better), better, close[end:])


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
