"""Blocking functions under random deadlines, cancellations and deaths: every await ends, and nothing is lost."""

# Private attributes: `ProcessPool._count`, `_alive` and `_idle`: an idle process is seen nowhere else.

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections import Counter

import pytest

from atasks import CallTimeout, WorkerLost, atask
from atasks.definitions import ATask
from atasks.testing import soon, until
from tests.unit.serving import idle, serve
from tests.unit.worker import blocking

CALLS = 200


async def ending(chance: random.Random, tree: ATask[[int, float], int]) -> str:
    """Make one random call, and tell how it ended."""
    timeout = chance.choice([None, chance.random() * 0.2])
    if chance.random() < 0.6:
        call = tree.options(timeout=timeout)(chance.randrange(4), chance.random() * 0.01)
    else:
        call = blocking.nap.options(timeout=timeout)(chance.random() * 0.01, chance.random() < 0.05)
    task = asyncio.create_task(call)
    if chance.random() < 0.4:
        await asyncio.sleep(chance.random() * 0.1)
        task.cancel()
    try:
        assert await soon(task) == 1
    except (asyncio.CancelledError, CallTimeout, WorkerLost) as error:
        return type(error).__name__
    return "value"


@pytest.mark.parametrize(("concurrency", "threads"), [(1, 1), (3, 8), (20, 2)])
async def test_everything_ends_and_everything_is_given_back(
    concurrency: int, threads: int, caplog: pytest.LogCaptureFixture
) -> None:
    @atask(namespace=blocking.NAMESPACE, executor="thread")
    def tree(depth: int, seconds: float) -> int:
        time.sleep(seconds)
        return 1 if depth == 0 else tree.sync(depth - 1, seconds) * leaf.sync(seconds)

    @atask(namespace=blocking.NAMESPACE)
    async def leaf(seconds: float) -> int:
        await asyncio.sleep(seconds)
        return 1

    caplog.set_level(logging.CRITICAL)
    chance = random.Random(concurrency)
    async with serve(blocking.NAMESPACE, concurrency=concurrency, threads=threads, processes=2) as worker:
        endings = Counter(await asyncio.gather(*(ending(chance, tree) for _ in range(CALLS))))
        await until(lambda: idle(worker))
        processes = worker.pools.processes
        await until(lambda: processes._count == len(processes._alive) == len(processes._idle))
    assert endings.total() == CALLS
    assert {"CancelledError", "value"} <= set(endings)
