"""atasks without a broker, and with a blocking function that runs in a thread of the caller's own process."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import atasks
from benchmarks.atasks_blocking import echo_in_thread
from benchmarks.child import main
from benchmarks.load import Client


@asynccontextmanager
async def client(queue: str) -> AsyncIterator[Client]:
    """Needs no queue: the caller is the worker."""
    async with atasks.serve("loopback:", threads=1):
        yield Client(echo_in_thread)


if __name__ == "__main__":
    main(client)
