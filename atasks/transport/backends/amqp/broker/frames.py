"""Writes frames to a connection of the client library, in order and without waiting."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Final
from weakref import WeakKeyDictionary, ref

from aiormq.abc import AbstractConnection, ChannelFrame
from aiormq.channel import Channel

__all__ = ["SOCKETS", "FrameWriter", "takes_frames"]

SOCKETS: Final[WeakKeyDictionary[AbstractConnection, ref[asyncio.StreamWriter]]] = WeakKeyDictionary()
"""The sockets to which frames may be written at once, as long as nothing waits in the client library's queue. A
socket knows its connection by what is read from it, so this table must not keep it."""

WRITE_BYTES: Final = 256 * 2**10
"""Frames are put together for one write, up to so many bytes."""
SPARE: Final = 2
"""Places in the client library's queue that are left to the library: where it is full, it does not confirm that
the broker closed a channel, and the broker then ignores the next channel of that number."""


def takes_frames(channel: Channel) -> bool:
    """Return False once the broker has closed this channel: one more frame, and it would close the connection. The
    client library calls the channel closed some turns of the event loop later."""
    return channel.connection.channels.get(channel.number) is channel


class FrameWriter:
    """The frames that one side writes over one channel. They go to the socket at once, unless that is slow or the
    client library is about to write: then to its writer, by a short queue. Frames that do not fit there wait here,
    so whoever writes must bound their number."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        known = SOCKETS.get(channel.connection)
        self._socket = known() if known is not None else None
        self._most = channel.write_queue.maxsize - SPARE
        self._waiting: deque[bytes] = deque()
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
            and socket.transport.get_write_buffer_size() < WRITE_BYTES
        ):
            if takes_frames(self._channel) and not socket.is_closing():
                socket.write(frames[0] if len(frames) == 1 else b"".join(frames))
            return
        self._waiting.extend(frames)
        if self._feeder is None and not self._fill():
            self._feeder = asyncio.get_running_loop().create_task(self._feed(), name="atasks writer")

    def _fill(self) -> bool:
        """Hand over what there is room for; whether that is everything."""
        channel = self._channel
        if not takes_frames(channel):
            self._waiting.clear()
        queue = channel.write_queue
        while self._waiting and queue.qsize() < self._most:
            queue.put_nowait(self._next())
        return not self._waiting

    async def _feed(self) -> None:
        channel = self._channel
        while not self._fill():
            if channel.closing.done():  # nothing takes from its queue any more
                self._waiting.clear()
            else:
                taken = asyncio.ensure_future(channel.write_queue.join())
                await asyncio.wait((taken, channel.closing), return_when=asyncio.FIRST_COMPLETED)
                taken.cancel()
        self._feeder = None

    def _next(self) -> ChannelFrame:
        first = self._waiting.popleft()
        if not self._waiting:
            return ChannelFrame(first, should_close=False)
        frames, size = [first], len(first)
        while self._waiting and size + len(self._waiting[0]) <= WRITE_BYTES:
            size += len(self._waiting[0])
            frames.append(self._waiting.popleft())
        return ChannelFrame(b"".join(frames), should_close=False)

    async def flushed(self) -> None:
        """Return when the client library has taken everything."""
        if self._feeder is not None:
            await asyncio.wait([self._feeder])

    def close(self) -> None:
        """The connection is gone: let go of what waits."""
        self._closed = True
        self._waiting.clear()
        if self._feeder is not None:
            self._feeder.cancel()
