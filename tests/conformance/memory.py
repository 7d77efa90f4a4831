"""A user's transport: three methods over an in-memory switchboard."""

from __future__ import annotations

import asyncio
from typing import Any

from atasks import NotConnected
from atasks.transport.contract import RequestCallback, Transport

__all__ = ["MemoryTransport", "Switchboard"]


class Switchboard:
    """Takes requests to whoever registered, and answers back; requests wait while nobody has."""

    def __init__(self) -> None:
        self.requests: asyncio.Queue[tuple[str, bytes, asyncio.Future[bytes]]] = asyncio.Queue()


class MemoryTransport(Transport):
    """Only what the minimal contract asks for."""

    def __init__(self, board: Switchboard, namespace: str = "default") -> None:
        super().__init__(namespace)
        self._board = board
        self._server: asyncio.Task[None] | None = None
        self._serving: set[asyncio.Task[None]] = set()
        self._connected = False

    async def connect(self) -> None:
        self._connected = True

    async def disconnect(self) -> None:
        self._connected = False
        await self.unregister_callback()
        if self._serving:
            await asyncio.wait(self._serving)

    async def send_request(self, name: str, content: bytes) -> bytes:
        if not self._connected:
            raise NotConnected("connect() first")
        answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._board.requests.put_nowait((name, content, answer))
        return await answer

    async def register_callback(self, callback: RequestCallback) -> None:
        await super().register_callback(callback)
        self._server = asyncio.create_task(self._take(callback))

    async def unregister_callback(self) -> None:
        await super().unregister_callback()
        if self._server is not None:
            self._server.cancel()
            await asyncio.wait([self._server])
            self._server = None

    async def _take(self, callback: RequestCallback) -> None:
        while True:
            request = await self._board.requests.get()
            task = asyncio.create_task(self._answer(callback, *request))
            self._serving.add(task)
            task.add_done_callback(self._serving.discard)

    async def _answer(self, callback: RequestCallback, name: str, content: bytes, answer: Any) -> None:
        reply = await callback(name, content)
        if not answer.done():
            answer.set_result(reply)
