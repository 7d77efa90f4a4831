"""pypeln.task: three stages of coroutine functions, bounded as those of atasks are by default."""

from __future__ import annotations

import pypeln as pl

from benchmarks.pipelines.measuring import add_one, main


async def run(items: int) -> int:
    total = 0
    stage = range(items)
    for _ in range(3):
        stage = pl.task.map(add_one, stage, maxsize=64)
    async for item in stage:
        total += item
    return total


if __name__ == "__main__":
    main(run)
