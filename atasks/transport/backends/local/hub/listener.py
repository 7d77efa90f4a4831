"""A hub that listens on a socket."""

from __future__ import annotations

import asyncio
import logging
from typing import Final

from atasks.transport.backends.local.conversation import InnerLink
from atasks.transport.backends.local.hub.hub import Hub
from atasks.transport.backends.local.hub.socket_file import SocketFile, peer_pid, trusts
from atasks.transport.backends.local.lane import Lane
from atasks.transport.backends.local.link import KEPT_READ_BYTES, MAX_FRAME, SocketLink
from atasks.transport.records.store import DEFAULT_KEEP_BYTES

__all__ = ["Host"]

logger = logging.getLogger("atasks.local")

MAX_HALF_SENT: Final = 2 * 2**30
"""Bytes of room that half-sent frames of all processes may take together, beyond what each link has anyway."""
MAX_UNREAD: Final = 64 * 2**20
"""Bytes that wait for a process to read them: from one that leaves more the hub takes nothing, until it reads."""
MAX_HELD_BACK: Final = 1000
"""Answers that are held back for a process that is slow to read: past it, the hub takes nothing from it either."""
MAX_HELLO: Final = KEPT_READ_BYTES
"""Bytes of the first frame that a process sends: nobody knows yet who it is."""
BACKLOG: Final = 4096
"""Processes that may be waiting to be accepted."""


class Host:
    """The hub of this process, and the socket where others find it."""

    def __init__(self, file: SocketFile, keep_bytes: int) -> None:
        self.hub = Hub(keep_bytes)
        self.half_sent = 0
        """Bytes of room that frames take which have not arrived whole."""
        self._file = file
        self._server: asyncio.Server | None = None

    @classmethod
    async def open(cls, path: str, keep_bytes: int = DEFAULT_KEEP_BYTES) -> Host:
        """Listen at the path, and keep so many bytes of runs. Raises ListenFailed."""
        host = cls(SocketFile(path), keep_bytes)
        loop = asyncio.get_running_loop()
        try:
            host._server = await loop.create_unix_server(host._accept, sock=host._file.socket, backlog=BACKLOG)
        except BaseException:
            host._file.close()
            raise
        return host

    def inner_link(self) -> InnerLink:
        """A connection for a transport of this process."""
        here, there = InnerLink.pair()
        self.hub.attach(there)
        return here

    async def close(self) -> None:
        """Listen no more, and close the hub."""
        if self._server is not None:
            self._server.close()
        self._file.close()
        await self.hub.close()

    def _accept(self) -> _Accepted:
        return _Accepted(self)


class _Accepted(SocketLink):
    """A connection that another process opened."""

    def __init__(self, host: Host) -> None:
        super().__init__()
        self._host = host
        self._hub = host.hub
        self._extra = 0
        """Bytes of room that it takes of what all share."""
        self.max_frame = MAX_HELLO
        self._fresh = True
        """True until something is read."""
        self._deaf = False
        """True while nothing is read, because too much is unread at the other side."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        assert self.transport is not None
        socket = transport.get_extra_info("socket")
        if trusts(socket) and not self._hub.closed:
            self._hub.attach(self, peer_pid(socket))
        else:
            self._hub.refusals.add("connections of other users")
            self.closed = True
            self.transport.abort()

    def get_buffer(self, sizehint: int) -> memoryview:
        if self._fresh:  # there is something to read: what came with it would be lost
            self._fresh = False
            self.lane = Lane.accept(self._descriptor)
        return self._room[self._filled :]

    def connection_lost(self, exc: Exception | None) -> None:
        self._may_have(0)
        super().connection_lost(exc)

    def buffer_updated(self, nbytes: int) -> None:
        super().buffer_updated(nbytes)
        if self._reads_too_little() and self.transport is not None and not self.transport.is_closing():
            self._deaf = True
            self.transport.pause_reading()

    def resume_writing(self) -> None:
        super().resume_writing()
        if not self._reads_too_little():
            self._listen()

    def _reads_too_little(self) -> bool:
        return self._waiting > MAX_UNREAD or len(self.held_back) > MAX_HELD_BACK

    def hang_up(self) -> None:
        self._listen()
        super().hang_up()

    async def aclose(self, seconds: float) -> None:
        self._listen()
        await super().aclose(seconds)

    def _listen(self) -> None:
        """Read again: what the other side sends, and that it has left."""
        if self._deaf and self.transport is not None and not self.transport.is_closing():
            self._deaf = False
            self.transport.resume_reading()

    def _frame(self, body: memoryview) -> None:
        self.max_frame = MAX_FRAME
        super()._frame(body)

    def _refuse(self, reason: str) -> None:
        self._refused = True
        self._hub.refusals.add("connections", latest=f"one sent {reason}")
        assert self.transport is not None
        self.transport.abort()

    def _may_have(self, size: int) -> bool:
        extra = max(size - KEPT_READ_BYTES, 0)
        others = self._host.half_sent - self._extra
        if others and others + extra > MAX_HALF_SENT:
            extra = 0
            size = -1
        self._host.half_sent, self._extra = others + extra, extra
        return size >= 0
