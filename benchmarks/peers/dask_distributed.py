"""Dask distributed as its own documentation begins: a local cluster, here of one worker process with one thread.

The scheduler runs in the client's process.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from distributed import Client as Dask
from distributed import LocalCluster, get_client, rejoin, secede

from benchmarks.child import main
from benchmarks.load import Client


def identity(payload: bytes) -> bytes:
    return payload


def count(depth: int) -> int:
    """See `benchmarks.load.Client.tree`. It gives its thread back while it waits."""
    if not depth:
        return 1
    dask = get_client()
    below = [dask.submit(count, depth - 1, pure=False) for _ in range(2)]
    secede()
    calls = 1 + sum(dask.gather(below))
    rejoin()
    return calls


@asynccontextmanager
async def client(queue: str) -> AsyncIterator[Client]:
    """Needs no queue: the worker is a child of the client."""
    async with (
        LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address=None, asynchronous=True) as cluster,
        Dask(cluster, asynchronous=True) as dask,
    ):

        async def echo(payload: bytes) -> bytes:
            return await dask.submit(identity, payload, pure=False)

        async def tree(depth: int) -> int:
            return await dask.submit(count, depth, pure=False)

        yield Client(echo, tree)


if __name__ == "__main__":
    main(client)
