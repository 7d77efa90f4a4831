"""Writes frames to a connection of the client library, in order and without waiting."""

from __future__ import annotations

import asyncio
import os
from collections import deque
from collections.abc import Iterable, Sequence
from contextlib import suppress
from itertools import chain, islice
from typing import Any, Final
from weakref import WeakKeyDictionary, ref

from aiormq.abc import AbstractChannel, AbstractConnection, ChannelFrame
from aiormq.channel import Channel

from atasks.outlast import apart

__all__ = ["SOCKETS", "Frame", "FrameWriter", "first_of", "limit_buffer", "takes_frames"]

Frame = Sequence[bytes | memoryview]
"""The pieces of a whole frame, or of a few. They do not change."""

SOCKETS: Final[WeakKeyDictionary[AbstractConnection, ref[asyncio.StreamWriter]]] = WeakKeyDictionary()
"""The sockets to which frames may be written at once, as long as nothing waits in the client library's queue. A
socket knows its connection by what is read from it, so this table must not keep it."""

WRITE_BYTES: Final = 256 * 2**10
"""Frames are put together for one write, up to so many bytes."""
PIECES: Final = 512
"""Pieces that are written by one call of the system, at most: Linux takes twice as many."""
SPARE: Final = 2
"""Places in the client library's queue that are left to the library: where it is full, it does not confirm that
the broker closed a channel, and the broker then ignores the next channel of that number."""


def limit_buffer(socket: asyncio.WriteTransport) -> None:
    """Have asyncio say that a socket is full as soon as it is: what asyncio keeps, it copies."""
    if socket.get_extra_info("sslcontext") is None:
        socket.set_write_buffer_limits(0)
    else:  # which would be full with 0 bytes
        socket.set_write_buffer_limits(WRITE_BYTES)


def takes_frames(channel: Channel) -> bool:
    """Return False once the broker has closed this channel: one more frame, and it would close the connection. The
    client library calls the channel closed some turns of the event loop later."""
    return channel.connection.channels.get(channel.number) is channel


async def first_of(waiting: asyncio.Future[Any], channel: AbstractChannel, seconds: float | None = None) -> None:
    """Return when this future is done, or the channel is closed, or after so many seconds (None: no limit). The
    future is cancelled then."""
    closing = channel.closing  # a new future, which stays with the channel until it is done
    try:
        await asyncio.wait((waiting, closing), timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
    finally:
        waiting.cancel()
        closing.cancel()


class FrameWriter:
    """The frames that one side writes over one channel. They go to the socket at once, unless that is full or the
    client library is about to write: then to its writer, by a short queue, so that nothing which the library is
    asked for later overtakes them. Frames that do not fit there wait here, and so do those of a large body, so
    whoever writes must bound their number. Frames of other channels, and heartbeats, may come between any two."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        known = SOCKETS.get(channel.connection)
        self._writer = known() if known is not None else None
        self._socket = None if self._writer is None else self._writer.transport
        """None: the client library writes all frames."""
        self._descriptor = -1
        """That of the socket, if it takes the bytes as they are."""
        if self._socket is not None and self._socket.get_extra_info("sslcontext") is None:
            self._descriptor = self._socket.get_extra_info("socket").fileno()
        self._most = channel.write_queue.maxsize - SPARE
        self._waiting: deque[Frame] = deque()
        self._feeder: asyncio.Task[None] | None = None
        self._closed = False

    def write(self, frames: list[bytes]) -> None:
        """Write these, behind what was written before; whole frames each. If the connection or the channel is
        gone, or goes, they are lost without a word: so are those that the socket took."""
        if self._closed:
            return
        socket = self._socket
        if (
            socket is not None
            and not self._waiting
            and self._channel.write_queue.empty()
            and socket.get_write_buffer_size() < WRITE_BYTES
        ):
            if takes_frames(self._channel) and not socket.is_closing():
                socket.write(frames[0] if len(frames) == 1 else b"".join(frames))
            return
        queue = self._channel.write_queue
        if not self._waiting and queue.qsize() < self._most and sum(map(len, frames)) <= WRITE_BYTES:
            if takes_frames(self._channel):
                queue.put_nowait(ChannelFrame(b"".join(frames), should_close=False))
            return
        self.write_pieces([(frame,) for frame in frames])

    def write_pieces(self, frames: Iterable[Frame]) -> None:
        """Write these as `write` does. Nothing is copied that the socket takes without encryption."""
        if self._closed:
            return
        self._waiting.extend(frames)
        if self._feeder is None and not self._fill():
            self._feeder = apart(self._feed(), "atasks writer")

    def _fill(self) -> bool:
        """Hand over what there is room for; whether that is everything."""
        channel, socket = self._channel, self._socket
        if not takes_frames(channel) or (socket is not None and socket.is_closing()):
            self._waiting.clear()
        queue = channel.write_queue
        if socket is None:
            while self._waiting and queue.qsize() < self._most:
                queue.put_nowait(ChannelFrame(self._next(), should_close=False))
        elif queue.empty() and self._descriptor < 0:
            while self._waiting and socket.get_write_buffer_size() < WRITE_BYTES and not socket.is_closing():
                socket.write(self._next())
        elif queue.empty():
            while self._waiting and not socket.get_write_buffer_size():
                self._write_to(socket)
                if socket.is_closing():  # nobody takes the rest, of which each piece would be a warning
                    self._waiting.clear()
        return not self._waiting

    def _write_to(self, socket: asyncio.WriteTransport) -> None:
        """Write as much as the socket takes. asyncio writes the rest of a frame of which a part has left: whoever
        is next to write does that between two frames."""
        waiting = self._waiting
        written = 0
        with suppress(OSError):  # asyncio meets it too
            written = os.writev(self._descriptor, list(islice(chain.from_iterable(waiting), PIECES)))
        while waiting:
            frame = waiting.popleft()
            size = sum(map(len, frame))
            if written < size:
                break
            written -= size
        else:
            return
        for piece in frame:
            if written < len(piece):
                socket.write(memoryview(piece)[written:])
            written = max(0, written - len(piece))

    async def _feed(self) -> None:
        channel = self._channel
        while not self._fill():
            if channel.is_closed:  # nothing takes from its queue any more
                self._waiting.clear()
            elif self._writer is None or not channel.write_queue.empty():
                taken = asyncio.ensure_future(channel.write_queue.join())
                await first_of(taken, channel)
            else:
                await asyncio.sleep(0)
                with suppress(OSError):  # it is closing
                    await self._writer.drain()
        self._feeder = None

    def _next(self) -> bytes:
        """Take frames for one write."""
        pieces = [*self._waiting.popleft()]
        size = sum(map(len, pieces))
        while self._waiting and (size := size + sum(map(len, self._waiting[0]))) <= WRITE_BYTES:
            pieces += self._waiting.popleft()
        return b"".join(pieces) if len(pieces) > 1 else bytes(pieces[0])

    async def flushed(self) -> None:
        """Return when the socket has everything, or the client library."""
        if self._feeder is not None:
            await asyncio.wait([self._feeder])

    def close(self) -> None:
        """The connection is gone: let go of what waits."""
        self._closed = True
        self._waiting.clear()
        if self._feeder is not None:
            self._feeder.cancel()
