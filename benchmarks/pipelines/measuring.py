"""Work of every child: run the pipeline over so many items, check what came out, and say how long it took.

Standard library alone.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Awaitable, Callable

__all__ = ["add_one", "main"]


async def add_one(x: int) -> int:
    """The function of each of the three stages."""
    return x + 1


def main(run: Callable[[int], Awaitable[int]]) -> None:
    """`run(n)` sends the numbers below n through three stages of `add_one` and returns the sum of the results."""
    items = int(sys.argv[1])

    async def measure() -> dict[str, float]:
        await run(1000)  # what is imported and compiled on the way is not measured
        begun, cpu = time.perf_counter(), time.process_time()
        total = await run(items)
        elapsed, cpu = time.perf_counter() - begun, time.process_time() - cpu
        if total != sum(range(3, items + 3)):
            raise SystemExit(f"the sum of {items} results is {total}")
        return {"items": items, "seconds": elapsed, "cpu": cpu}

    print(json.dumps(asyncio.run(measure())))
