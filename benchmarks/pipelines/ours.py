"""atasks.pipeline: three stages of coroutine functions."""

from __future__ import annotations

from atasks.pipeline import map
from benchmarks.pipelines.measuring import add_one, main


async def run(items: int) -> int:
    total = 0
    async for item in range(items) | map(add_one) | map(add_one) | map(add_one):
        total += item
    return total


if __name__ == "__main__":
    main(run)
