"""Calls and streams that may not be handed over yet, because too much waits to be sent."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from atasks import CallTimeout, LoopbackTransport, Worker, atask, get_router
from atasks.transport.pending import Pending


class Narrow(LoopbackTransport):
    """Has no room until it is said to have."""

    def __init__(self, namespace: str) -> None:
        super().__init__(namespace)
        self.full = True
        self.posted = 0
        self.waiting: list[asyncio.Future[None]] = []

    def _room(self) -> asyncio.Future[None] | None:
        if not self.full:
            return None
        self.waiting.append(asyncio.get_running_loop().create_future())
        return self.waiting[-1]

    def _post(self, pending: Pending) -> None:
        self.posted += 1
        super()._post(pending)

    def widen(self) -> None:
        self.full = False
        for room in self.waiting:
            room.set_result(None)


@pytest.fixture
async def narrow(namespace: str) -> AsyncIterator[Narrow]:
    transport = Narrow(namespace)
    await transport.connect()
    worker = Worker(get_router(namespace), transport)
    await worker.start()
    yield transport
    await worker.drain(grace=0)
    await transport.disconnect()


async def test_they_go_on_when_there_is_room(narrow: Narrow, namespace: str) -> None:
    @atask(namespace=namespace)
    async def double(n: int) -> int:
        return 2 * n

    @atask(namespace=namespace)
    async def numbers(n: int) -> AsyncIterator[int]:
        for number in range(n):
            yield number

    async def items() -> list[int]:
        return [number async for number in numbers(3)]

    call, stream = asyncio.create_task(double(2)), asyncio.create_task(items())
    while len(narrow.waiting) < 2:
        await asyncio.sleep(0)
    assert narrow.posted == 0
    narrow.widen()
    assert await call == 4
    assert await stream == [0, 1, 2]


async def test_their_deadlines_hold_meanwhile(narrow: Narrow, namespace: str) -> None:
    @atask(namespace=namespace, timeout=0.05)
    async def double(n: int) -> int:
        return 2 * n

    @atask(namespace=namespace, timeout=0.05)
    async def numbers(n: int) -> AsyncIterator[int]:
        yield n

    async with asyncio.timeout(30):
        with pytest.raises(CallTimeout):
            await double(2)
        with pytest.raises(CallTimeout):
            await anext(numbers(3))
    narrow.widen()
    assert narrow.posted == 0, "what has ended is not sent"
