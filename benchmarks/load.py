"""Load, and how long it took: what a client's process does when it is told to. Standard library alone."""

from __future__ import annotations

import asyncio
import gc
import time
import traceback
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from math import ceil
from typing import Any

__all__ = [
    "BenchmarkFailed",
    "Client",
    "Load",
    "WindowClient",
    "measure",
    "percentile",
]

STUCK = 120.0
"""Seconds past its end after which a measurement counts as stuck."""


class BenchmarkFailed(Exception):
    """A system did not work: there is no figure to report."""


@dataclass(frozen=True)
class Client:
    """The calling side of a system that can be awaited."""

    echo: Callable[[bytes], Awaitable[bytes]]
    """Sends bytes to the worker and returns what came back."""
    tree: Callable[[int], Awaitable[int]] | None = None
    """Calls a function that, of depth 0, returns 1, and else awaits two of its own kind, one less deep, at once,
    and returns their sum and 1: how many calls there were. None: nothing can be awaited inside a call."""


@dataclass(frozen=True)
class WindowClient:
    """The calling side of a system that hands out handles and blocks for their results."""

    submit: Callable[[bytes], Any]
    result: Callable[[Any], bytes]


@dataclass(frozen=True)
class Load:
    """Work of a client in one measurement."""

    inflight: int = 1
    """Calls that are waited for at a time."""
    seconds: float = 0.0
    """Seconds in which new calls are made; 0 makes exactly one per call in flight."""
    size: int = 100
    """Bytes in a payload; at least 8."""
    depth: int = 0
    """If not 0, each call is a tree of this depth: 2 ** (depth + 1) - 1 calls, all but one made by a worker."""

    @property
    def weight(self) -> int:
        """Calls per await of the client."""
        return 2 ** (self.depth + 1) - 1

    def payload(self, number: int) -> bytes:
        """The payload of a caller of that number: no other has it. ASCII, for systems that send text alone."""
        return b"%08d" % number + b"." * (self.size - 8)


async def measure(client: Client | WindowClient, load: Load) -> dict[str, float]:
    """Put that load on the system, wait for the last answer, and return the figures.

    Each caller has a payload of its own and checks what came back: answers that were swapped are a BenchmarkFailed
    and not a good figure. So are calls without an answer two minutes after the end.
    """
    gc.collect()  # the garbage of the previous measurement is not this one's to clear
    latencies: list[float] = []
    cpu = time.process_time()
    start = time.perf_counter()
    if isinstance(client, WindowClient):
        _window(client, load, start + load.seconds, latencies)
    else:
        await _callers(client, load, start + load.seconds, latencies)
    elapsed = time.perf_counter() - start
    cpu = time.process_time() - cpu
    latencies.sort()
    return {
        "calls": len(latencies) * load.weight,
        "seconds": elapsed,
        "p50_ms": 1000 * percentile(latencies, 50),
        "p99_ms": 1000 * percentile(latencies, 99),
        "client_cpu": cpu,
    }


async def _callers(client: Client, load: Load, end: float, latencies: list[float]) -> None:
    """Run one task for each call in flight; each awaits one call after the other."""
    clock = time.perf_counter
    function: Callable[[Any], Awaitable[Any]] | None = client.tree if load.depth else client.echo
    if function is None:
        raise BenchmarkFailed("nothing can be awaited inside a call")

    async def caller(number: int) -> None:
        payload = load.payload(number)
        argument, expected = (load.depth, load.weight) if load.depth else (payload, payload)
        while True:
            begun = clock()
            if await function(argument) != expected:
                raise BenchmarkFailed("a call came back with another call's answer")
            now = clock()
            latencies.append(now - begun)
            if now >= end:
                return

    try:
        async with asyncio.timeout(max(0, end - clock()) + STUCK), asyncio.TaskGroup() as group:
            for number in range(load.inflight):
                group.create_task(caller(number))
    except TimeoutError:
        raise BenchmarkFailed(f"some of {load.inflight} calls were not answered in {STUCK:.0f} s") from None
    except ExceptionGroup as errors:
        traceback.print_exception(errors.exceptions[0])  # the table has room for a line only
        raise BenchmarkFailed(repr(errors.exceptions[0])) from errors


def _window(client: WindowClient, load: Load, end: float, latencies: list[float]) -> None:
    """Keep a handle for each call in flight: wait for the oldest one, and make another call in its place.

    An answer that overtakes the oldest is seen when its turn comes: latencies are upper bounds.
    """
    clock = time.perf_counter
    pending: deque[tuple[bytes, float, Any]] = deque()

    def submit(payload: bytes) -> None:
        begun = clock()
        pending.append((payload, begun, client.submit(payload)))

    if load.depth:
        raise BenchmarkFailed("nothing can be awaited inside a call")
    try:
        for number in range(load.inflight):
            submit(load.payload(number))
        while pending:
            payload, begun, handle = pending.popleft()
            if client.result(handle) != payload:
                raise BenchmarkFailed("a call came back with another call's answer")
            now = clock()
            latencies.append(now - begun)
            if now < end:
                submit(payload)
            elif now > end + STUCK:
                raise BenchmarkFailed(f"some of {load.inflight} calls were not answered in {STUCK:.0f} s")
    except BenchmarkFailed:
        raise
    except Exception as error:
        traceback.print_exception(error)
        raise BenchmarkFailed(repr(error)) from error


def percentile(ascending: Sequence[float], percent: float) -> float:
    """The smallest value that so many percent of the values do not exceed (nearest rank)."""
    return ascending[max(0, ceil(len(ascending) * percent / 100) - 1)]
