"""atasks without a broker: the caller is the worker, but codec, slots and deadlines are the real ones."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import atasks
from benchmarks.atasks_functions import echo, tree
from benchmarks.child import main
from benchmarks.load import Client


@asynccontextmanager
async def client(queue: str) -> AsyncIterator[Client]:
    """Needs no queue."""
    async with atasks.connect("loopback:"):
        yield Client(echo, tree)


if __name__ == "__main__":
    main(client)
