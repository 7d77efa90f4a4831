"""pyper: a producer and three stages of coroutine functions, bounded as those of atasks are by default."""

from __future__ import annotations

from pyper import task

from benchmarks.pipelines.measuring import add_one, main


def numbers(items: int) -> range:
    return range(items)


async def run(items: int) -> int:
    pipeline = task(numbers, branch=True, throttle=64)
    for _ in range(3):
        pipeline = pipeline | task(add_one, throttle=64)
    total = 0
    async for item in pipeline(items):
        total += item
    return total


if __name__ == "__main__":
    main(run)
