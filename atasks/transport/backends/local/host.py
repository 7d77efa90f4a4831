"""A hub that listens on a socket."""

from __future__ import annotations

import asyncio
import logging
from typing import Final

from atasks.transport.backends.local.hub import Hub
from atasks.transport.backends.local.link import InnerLink, SocketLink
from atasks.transport.backends.local.socket_file import SocketFile, peer_pid, trusts
from atasks.transport.record_store import DEFAULT_KEEP_BYTES

__all__ = ["Host"]

logger = logging.getLogger("atasks.local")

BACKLOG: Final = 4096
"""Processes that may be waiting to be accepted."""


class Host:
    """The hub of this process, and the socket where others find it."""

    def __init__(self, file: SocketFile, keep_bytes: int) -> None:
        self.hub = Hub(keep_bytes)
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
        return _Accepted(self.hub)


class _Accepted(SocketLink):
    """A connection that another process opened."""

    def __init__(self, hub: Hub) -> None:
        super().__init__()
        self._hub = hub

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        assert self.transport is not None
        socket = transport.get_extra_info("socket")
        if trusts(socket) and not self._hub.closed:
            self._hub.attach(self, peer_pid(socket))
        else:
            logger.warning("a connection of another user's process was refused")
            self.closed = True
            self.transport.abort()
