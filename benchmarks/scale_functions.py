"""Atasks that the studies of benchmarks/scale.py call, and the worker's process that serves them."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import atasks
from atasks import atask
from benchmarks.child import amqp_url, main

__all__ = [
    "CONCURRENCY",
    "ZSTD",
    "echo",
    "fib",
    "long_nap",
    "nap",
    "numbers",
    "parent",
    "quick_nap",
    "resuming_parent",
    "same",
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
