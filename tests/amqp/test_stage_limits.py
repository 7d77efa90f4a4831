"""Stages with a limit: over several pipelines, here and on the workers. In memory and around a hub too."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from atasks import Limit, NotConnected, atask
from atasks.pipeline import collect, flat_map, from_iterable, group, map, stage
from atasks.testing import soon
from atasks.transport.limits.contract import Token
from tests.amqp.conftest import Connect

LATE = 0.05
"""Seconds by which a busy machine notes late that a token has come, which the broker gave in time."""

starts: list[float] = []
inside = most = 0


@pytest.fixture(autouse=True)
def forget() -> None:
    global inside, most
    starts.clear()
    inside = most = 0


@atask
async def upto(n: int) -> list[int]:
    return list(range(n))


@atask
async def noted(x: int) -> int:
    global inside, most
    starts.append(time.monotonic())
    inside += 1
    most = max(most, inside)
    await asyncio.sleep(0.005)
    inside -= 1
    return x


@atask
async def counting(n: int) -> Any:
    global inside, most
    inside += 1
    most = max(most, inside)
    for number in range(3):
        yield number
        await asyncio.sleep(0.001)
    inside -= 1


@atask
async def ping() -> float:
    return time.monotonic()


async def test_a_rate_over_pipelines_here_and_on_the_workers_at_once(
    connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A call begins a while after its stage has the token: tokens are counted, where they are had."""
    take, taken = Limit.take, list[float]()

    async def noting(limit: Limit, *args: Any, **kwargs: Any) -> Token:
        token = await take(limit, *args, **kwargs)
        taken.append(time.monotonic())
        return token

    monkeypatch.setattr(Limit, "take", noting)
    rate = Limit("mail", per_second=40, period=0.25)
    async with connect():
        limited = flat_map(upto) | map(noted, limit=rate) | collect()
        handles = [await soon(limited.submit(8)) for _ in range(2)]
        here = range(8) | map(noted, limit=rate)
        results = await soon(asyncio.gather(here, *handles))
        assert [sorted(result) for result in results] == [list(range(8))] * 3
        assert len(starts) == len(taken) == 24
        gaps = [later - earlier for earlier, later in zip(taken, taken[10:], strict=False)]
        assert min(gaps) > 0.25 - LATE


async def test_at_once_for_calls_streams_groups_and_local_functions(connect: Connect) -> None:
    two = Limit("two", at_once=2)
    async with connect():
        assert await soon(range(12) | map(noted, limit=two)) == list(range(12))
        assert await soon(await soon((flat_map(upto) | map(noted, limit=two)).submit(6))) == list(range(6))
        assert await soon(range(4) | flat_map(counting, workers=4, limit=two)) == [0, 1, 2] * 4
        assert await soon(range(4) | group(noted, noted, workers=4, limit=Limit("one", at_once=1))) == [
            (n, n) for n in range(4)
        ]
        assert most == 2
        assert await soon(range(6) | group(stage(noted, limit=two), str, workers=6)) == [
            (n, str(n)) for n in range(6)
        ]
        assert await soon(stage(noted, limit=two)(3)) == 3
        assert await soon(from_iterable(range(6)) | map(noted.local, workers=6, limit=two)) == list(range(6))
        assert most == 2


async def test_a_key_is_made_of_the_item(connect: Connect) -> None:
    by_parity = Limit("parity", at_once=1, key=lambda n: n % 2)
    both = asyncio.Event()
    running: list[int] = []

    async def meets(x: int) -> int:
        assert x % 2 not in running
        running.append(x % 2)
        if len(running) == 2:
            both.set()
        await both.wait()  # one of each kind runs at a time, or this hangs
        running.remove(x % 2)
        return x

    async with connect():
        assert await soon(range(8) | map(meets, workers=8, limit=by_parity)) == list(range(8))


async def test_who_waits_for_a_token_holds_no_slot(connect: Connect) -> None:
    slow = Limit("slow", per_second=4, period=0.25)
    async with connect(concurrency=1):
        handle = await soon((flat_map(upto) | map(noted, limit=slow) | collect()).submit(4))
        meanwhile = 0
        while not await soon(handle.done()):
            begun = len(starts)
            await soon(ping())
            meanwhile += 1 <= begun == len(starts) < 4
            await asyncio.sleep(0.02)
        assert len(starts) == 4
        assert starts[-1] - starts[0] >= 0.7
        assert meanwhile > 1, "a call runs between two that wait for their tokens"


async def test_a_timeout_does_not_count_the_wait_for_a_token(connect: Connect) -> None:
    async with connect():
        run = range(4) | map(noted, workers=4, timeout=2.0, limit=Limit("few", per_second=1, period=1.0))
        assert await soon(run) == list(range(4))


async def test_without_a_connection() -> None:
    with pytest.raises(NotConnected):
        await (range(3) | map(str, limit=Limit("two", at_once=2)))
