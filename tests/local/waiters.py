"""A client process that a test may kill: makes calls that wait for a file, and leaves when it is interrupted."""

from __future__ import annotations

import asyncio
import sys

import atasks
from tests.faults.tasks import counting, gated


async def main(url: str, count: int, gate: str) -> None:
    """Make as many calls at once, read as many streams, and await them."""

    async def read(number: int) -> None:
        async for _ in counting(f"stream-{number}", 100, gate):
            pass

    async with atasks.connect(url, hub=False):
        calls = [gated(f"call-{number}", "", gate) for number in range(count)]
        await asyncio.gather(*calls, *map(read, range(count)))


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2]), sys.argv[3]))
