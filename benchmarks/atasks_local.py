"""atasks without a broker, and with another process: one worker process around the caller's hub."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import atasks
from benchmarks.atasks_functions import echo, tree
from benchmarks.child import main
from benchmarks.load import Client


@asynccontextmanager
async def client(queue: str) -> AsyncIterator[Client]:
    """Needs no queue: the worker is a child of the client."""
    async with atasks.local(workers=1):
        yield Client(echo, tree)


if __name__ == "__main__":
    main(client)
