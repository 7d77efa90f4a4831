"""Atasks that the studies of benchmarks/scale.py call, and the worker's process that serves them."""

from __future__ import annotations

import asyncio
import gc
import linecache
import os
import tracemalloc
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import atasks
from atasks import atask
from benchmarks.child import amqp_url, main

__all__ = [
    "CONCURRENCY",
    "ZSTD",
    "asleep",
    "echo",
    "fib",
    "long_nap",
    "nap",
    "numbers",
    "parent",
    "quick_nap",
    "resuming_parent",
    "resuming_sleeper",
    "same",
    "settled",
    "sleeper",
    "traced",
]

CONCURRENCY = "ATASKS_BENCH_CONCURRENCY"
"""Environment variable with the number of slots of the worker's process."""
ZSTD = "ATASKS_BENCH_ZSTD"
"""Set where both sides compress."""

if ZSTD in os.environ:
    atasks.ZstdCodec()


@atask
async def echo(payload: bytes) -> bytes:
    return payload


@atask
async def same(rows: list[tuple[int, str]]) -> list[tuple[int, str]]:
    return rows


@atask
async def nap(seconds: float) -> None:
    """Waits, without using the processor."""
    await asyncio.sleep(seconds)


@atask
async def quick_nap() -> None:
    await asyncio.sleep(0.001)


@atask
async def long_nap() -> None:
    await asyncio.sleep(1.0)


@atask
async def sleeper(seconds: float) -> None:
    """Sleep without a slot."""
    await atasks.sleep(seconds)


@atask(resume=True)
async def resuming_sleeper(seconds: float) -> None:
    """Sleep in a call that resumes, whose journal has the end of the pause."""
    await atasks.sleep(seconds)


@atask
async def asleep() -> int:
    """Return the number of timers of this worker's event loop that are due in an hour or later."""
    loop: Any = asyncio.get_running_loop()
    return sum(timer.when() > loop.time() + 3600 for timer in loop._scheduled)


@atask
async def traced() -> int:
    """Return the bytes that this worker has allocated since this was asked for the first time, and holds."""
    if not tracemalloc.is_tracing():
        tracemalloc.start()
    linecache.clearcache()  # the watchdog looks there what has blocked the event loop
    gc.collect()
    return tracemalloc.get_traced_memory()[0]


async def settled(sleepers: int) -> int:
    """Return the bytes that the worker holds when so many of its calls sleep, once that changes no more."""
    before = 0
    while True:
        await asyncio.sleep(5.0)
        held = await traced()
        if await asleep() == sleepers and abs(held - before) < 10_000:
            return held
        before = held


@atask
async def fib(n: int) -> int:
    """Awaits two of its own kind, one after the other."""
    return n if n < 2 else await fib(n - 1) + await fib(n - 2)


async def _calls(kind: str, count: int) -> None:
    """Make so many calls of that kind."""
    if kind == "fan":
        await asyncio.gather(*(echo(b"") for _ in range(count)))
    else:
        for _ in range(count):
            await echo(b"")


@atask
async def parent(kind: str, count: int) -> None:
    """Makes calls, in a row or as a fan."""
    await _calls(kind, count)


@atask(resume=True)
async def resuming_parent(kind: str, count: int) -> None:
    """Make the calls of `parent` in a call that resumes."""
    await _calls(kind, count)


@atask
async def numbers(count: int) -> AsyncIterator[int]:
    """A stream."""
    for number in range(count):
        yield number


@asynccontextmanager
async def worker(prefix: str) -> AsyncIterator[None]:
    async with atasks.serve(amqp_url(), prefix=prefix, concurrency=int(os.environ.get(CONCURRENCY, "100"))):
        yield


if __name__ == "__main__":
    main(worker, worker)
