"""`PageServer`: the HTTP server of `atasks web`."""

from __future__ import annotations

import time
from typing import Any, Final

import uvicorn

from atasks_cli.messages import say

__all__ = ["PageServer"]

HEAD_SECONDS: Final = 10.0
"""Seconds that a client has to send the head of a request: uvicorn waits without an end for one that goes on
sending bytes, and each connection takes a descriptor from the others and from the connection to the broker."""
TICKS: Final = 10
"""Ticks of uvicorn, of 0.1 s, between two looks at the connections."""


class PageServer(uvicorn.Server):
    """Says where the page is, and parts with connections over which no request comes."""

    def __init__(self, config: uvicorn.Config, suffix: str) -> None:
        """`suffix`: what is to be said behind the address."""
        super().__init__(config)
        self._suffix = suffix
        self._idle: dict[Any, tuple[Any, float]] = {}
        """Connection without a request -> the request before, and since when."""

    async def startup(self, sockets: Any = None) -> None:
        await super().startup(sockets)
        if self.started:
            host, listening = self.config.host, self.servers[0].sockets[0].getsockname()
            where = f"http://{'[' + host + ']' if ':' in host else host}:{listening[1]}/"
            say(f"page at {where}{self._suffix}; Ctrl-C to end")

    async def on_tick(self, counter: int) -> bool:
        if counter % TICKS == 0:
            self._part()
        return await super().on_tick(counter)

    def _part(self) -> None:
        now, idle = time.monotonic(), dict[Any, tuple[Any, float]]()
        for connection in self.server_state.connections:
            last = getattr(connection, "cycle", None)
            if last is not None and not last.response_complete:
                continue
            before, since = self._idle.get(connection, (last, now))
            if before is not last:
                since = now
            idle[connection] = last, since
            if now - since > 2 * HEAD_SECONDS:  # it does not take the rest of its answer either
                connection.transport.abort()
            elif now - since > HEAD_SECONDS:
                connection.transport.close()
        self._idle = idle
