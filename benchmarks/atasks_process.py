"""atasks without a broker, and with a blocking function that runs in a process of its own."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import atasks
from benchmarks.atasks_blocking import echo_in_process
from benchmarks.child import main
from benchmarks.load import Client


@asynccontextmanager
async def client(queue: str) -> AsyncIterator[Client]:
    """Needs no queue: the caller is the worker."""
    async with atasks.serve("loopback:", processes=1):
        yield Client(echo_in_process)


if __name__ == "__main__":
    main(client)
