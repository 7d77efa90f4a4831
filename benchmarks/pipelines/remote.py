"""Pipelines over workers: how many calls are in flight, and what a wide fan-out costs in memory.

Both processes are connected to the broker that `$ATASKS_BENCH_AMQP_URL` names.
"""

from __future__ import annotations

import asyncio
import json
import os
import resource
import sys
import time
from typing import Any

import atasks
from atasks import atask
from atasks.pipeline import map
from benchmarks.atasks_amqp import delete

WORKERS = 16


@atask
async def first(x: int) -> int:
    await asyncio.sleep(0.002)
    return x + 1


@atask
async def second(x: int) -> int:
    await asyncio.sleep(0.002)
    return x + 1


@atask
async def third(x: int) -> int:
    await asyncio.sleep(0.002)
    return x + 1


@atask
async def quick(x: int) -> int:
    return x + 1


class Flight:
    """Calls of an atask that are in flight, and their mean over time."""

    def __init__(self, function: Any) -> None:
        self._function = function
        self._now, self._area, self._at = 0, 0.0, time.perf_counter()

    def _change(self, by: int) -> None:
        now = time.perf_counter()
        self._area += self._now * (now - self._at)
        self._now, self._at = self._now + by, now

    async def __call__(self, x: int) -> int:
        self._change(1)
        try:
            result: int = await self._function(x)
            return result
        finally:
            self._change(-1)

    def mean(self, seconds: float) -> float:
        """Return the mean number of calls in flight."""
        return self._area / seconds


async def in_flight(items: int) -> dict[str, Any]:
    """Three remote stages, each with WORKERS calls in flight: the mean of each, and items per second."""
    flights = [Flight(function) for function in (first, second, third)]
    begun = time.perf_counter()
    count = 0
    async for _ in (
        range(items)
        | map(flights[0], workers=WORKERS)
        | map(flights[1], workers=WORKERS)
        | map(flights[2], workers=WORKERS)
    ):
        count += 1
    seconds = time.perf_counter() - begun
    return {"items": count, "seconds": seconds, "mean in flight": [flight.mean(seconds) for flight in flights]}


async def fan_out(items: int) -> dict[str, Any]:
    """Many items through one remote stage of 500 calls in flight: items per second, and growth in memory."""
    await _consume(items // 10)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    begun = time.perf_counter()
    count = await _consume(items)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    return {"items": count, "seconds": time.perf_counter() - begun, "grown KiB": grown}


async def _consume(items: int) -> int:
    count = 0
    async for _ in range(items) | map(quick, workers=500):
        count += 1
    return count


async def main() -> None:
    """Serve until the standard input ends (`worker`), delete what a worker left at the broker (`delete`), or
    measure and print the figures."""
    role, prefix, *rest = sys.argv[1:]
    url = os.environ["ATASKS_BENCH_AMQP_URL"]
    if role == "worker":
        async with atasks.serve(url, prefix=prefix, concurrency=1000):
            await asyncio.to_thread(sys.stdin.read)
        return
    if role == "delete":
        await delete(prefix)
        return
    async with atasks.connect(url, prefix=prefix):
        await first(0)
        print(json.dumps({"three stages": await in_flight(int(rest[0])), "fan-out": await fan_out(int(rest[1]))}))


if __name__ == "__main__":
    asyncio.run(main())
