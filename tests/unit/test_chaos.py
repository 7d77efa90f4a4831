"""Everything at once over the loopback: whatever happens, every await ends, and nothing is left behind."""

# Private attributes: `Router._activation`, `_pending` and `_waiting`: that nothing is left behind is seen nowhere
# else.

from __future__ import annotations

import asyncio
import random
from collections.abc import Coroutine
from typing import Any

import pytest

import atasks
from atasks.tasks import atask
from atasks.tracking.counters import BUSY
from atasks.transport.loopback import LoopbackTransport
from atasks.worker.worker import Worker


class OwnError(Exception):
    pass


ENDINGS = (int, OwnError, atasks.CallTimeout, asyncio.CancelledError, atasks.TooManyParked, atasks.WorkerLost)


class Forest:
    """Trees of calls that do at random what calls can do."""

    def __init__(self, namespace: str, chance: random.Random) -> None:
        self.chance = chance

        @atask(namespace=namespace)
        async def tree(depth: int) -> int:
            for _ in range(chance.randint(0, 2)):
                await asyncio.sleep(0)
            if depth:
                how = chance.choice([self.in_turn, self.together, self.in_time, self.cancelling, self.together])
                return await how(depth - 1, chance.randint(1, 3))
            if chance.random() < 0.02:
                raise OwnError(depth)
            return 1

        self.tree = tree

    def call(self, depth: int) -> Coroutine[None, object, int]:
        options: Any = {}
        if self.chance.random() < 0.2:
            options["timeout"] = self.chance.choice([0.0005, 0.005, 0.05])
        if self.chance.random() < 0.2:
            options["delivery"] = "at_most_once"
        return self.tree.options(**options)(depth)

    async def in_turn(self, depth: int, width: int) -> int:
        return sum([await self.call(depth) for _ in range(width)])

    async def together(self, depth: int, width: int) -> int:
        return sum(await asyncio.gather(*(self.call(depth) for _ in range(width))))

    async def in_time(self, depth: int, width: int) -> int:
        try:
            async with asyncio.timeout(self.chance.choice([0, 0.001, 0.01])):
                return await self.together(depth, width)
        except TimeoutError:
            return 0

    async def cancelling(self, depth: int, width: int) -> int:
        tasks = [asyncio.create_task(self.call(depth)) for _ in range(width)]
        for _ in range(self.chance.randint(0, 4)):
            await asyncio.sleep(0)
        tasks[0].cancel()
        await asyncio.wait(tasks)
        return sum(isinstance(task.exception(), OwnError) for task in tasks if not task.cancelled())


@pytest.mark.parametrize("seed", range(25))
async def test_every_await_ends(namespace: str, seed: int) -> None:
    """Trees of calls with timeouts, own errors and cancellations, while workers drain and others take over."""
    chance = random.Random(seed)
    forest = Forest(namespace, chance)
    concurrency = chance.randint(1, 4)
    transport = LoopbackTransport(namespace)
    await transport.connect()
    router = atasks.get_router(namespace)
    workers: list[Worker] = []

    async def activate() -> None:
        await router.activate(transport, concurrency=concurrency)
        assert router._activation.worker is not None
        workers.append(router._activation.worker)

    await activate()
    roots = [asyncio.create_task(forest.call(5)) for _ in range(15)]
    for _ in range(1500):
        await asyncio.sleep(0)
        if chance.random() < 0.01:
            chance.choice(roots).cancel()
        if chance.random() < 0.01:
            await router.deactivate(grace=chance.choice([0, 0.001, 0.01]))
            await activate()
    for result in await asyncio.wait_for(asyncio.gather(*roots, return_exceptions=True), 30):
        assert isinstance(result, ENDINGS), repr(result)
    await router.deactivate(grace=20)
    for worker in workers:
        assert (worker.slots.free, worker.parked, worker.held, worker.unstarted) == (concurrency, 0, 0, 0)
        assert worker.cells[BUSY] == 0
    assert not transport._pending
    assert not transport._waiting
    await transport.disconnect()
