"""concurrent.futures.ProcessPoolExecutor with one process: a call to another process without a broker."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import asynccontextmanager
from multiprocessing import get_context

from benchmarks.child import main
from benchmarks.load import Client


def identity(payload: bytes) -> bytes:
    return payload


@asynccontextmanager
async def client(queue: str) -> AsyncIterator[Client]:
    """Needs no queue: the worker is a child of the client."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:

        async def echo(payload: bytes) -> bytes:
            return await asyncio.wrap_future(pool.submit(identity, payload))

        yield Client(echo)


if __name__ == "__main__":
    main(client)
