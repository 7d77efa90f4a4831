"""Windows of a worker whose calls wait for tokens of limits: wide where such calls come, and as wide as the slots
where others come."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest

from atasks import Limit, current_call
from atasks.testing import Site, soon, until
from atasks.transport.backends.amqp.worker.consumer import Consumer
from atasks.transport.backends.amqp.worker.prefetch import AHEAD

WAITING = 300


@pytest.fixture
def windows(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The windows with which consumers of work queues have started."""
    found: list[int] = []
    start = Consumer.start

    async def noted(self: Consumer, prefetch: int, waiting: int = 0) -> None:
        if not self.solo:
            found.append(prefetch)
        await start(self, prefetch, waiting)

    monkeypatch.setattr(Consumer, "start", noted)
    return found


@pytest.mark.parametrize("concurrency", [1, 3])
async def test_a_call_behind_very_many_that_wait_for_a_token(
    site: Site, windows: list[int], concurrency: int
) -> None:
    limit = Limit("one", at_once=1, namespace=site.namespace)

    @site.atask(limit=limit)
    async def limited(n: int) -> int:
        return n

    @site.atask
    async def free(n: int) -> int:
        return n

    async with site.open(concurrency=concurrency):
        async with limit:
            calls = [asyncio.create_task(limited(n)) for n in range(WAITING)]
            await until(lambda: site.worker.held > 0)
            assert await soon(free(7)) == 7
            await until(lambda: site.worker.held == WAITING)
            assert max(windows) <= AHEAD
            assert len(windows) <= 30, f"a window costs three round trips to the broker: {windows}"
        assert await soon(asyncio.gather(*calls)) == list(range(WAITING))


async def test_other_calls_behind_those_are_shared(site: Site, windows: list[int]) -> None:
    """A worker with a wide window gets a hundred of calls that need slots, beside a worker without any calls."""
    limit = Limit("one", at_once=1, namespace=site.namespace)
    gate = asyncio.Event()
    inside: Counter[str] = Counter()

    @site.atask(limit=limit)
    async def limited() -> None: ...

    @site.atask
    async def held() -> None:
        inside[current_call().state] += 1
        await gate.wait()

    async with site.open(concurrency=3, state="one"):
        async with limit:
            calls = [asyncio.create_task(limited()) for _ in range(WAITING)]
            await until(lambda: site.worker.held == WAITING)
            assert windows[-1] > 3
            await site.serve(concurrency=3, state="other")
            calls += [asyncio.create_task(held()) for _ in range(100)]
            await until(lambda: inside == {"one": 3, "other": 3}, "both have as many as they have slots for")
            gate.set()
        await soon(asyncio.gather(*calls))
        assert inside.total() == 100
