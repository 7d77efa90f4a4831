"""A client process that a test may stop: makes calls whose results are large."""

from __future__ import annotations

import asyncio
import sys

import atasks
from tests.local.jobs import NAMESPACE, make

SENT = "all calls are made"


async def main(url: str, count: int, size: int) -> None:
    """Make as many calls at once, and await them."""
    async with atasks.connect(url, namespace=NAMESPACE):
        calls = [asyncio.create_task(make(size)) for _ in range(count)]
        await calls[0]
        print(SENT, flush=True)
        results = await asyncio.gather(*calls)
        print(sum(map(len, results)), flush=True)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))
