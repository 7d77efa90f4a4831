"""atasks 0.0.3: the original, whose interface this package keeps."""

from __future__ import annotations

import sys

# `python -m` puts the current folder first, whose package `atasks` is not the one to be measured.
sys.path.append(sys.path.pop(0))

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from atasks.codecs import PickleCodec
from atasks.router import get_router
from atasks.tasks import atask
from atasks.transport.backends.amqp import AMQPTransport
from benchmarks.child import amqp_url, main
from benchmarks.load import Client
from benchmarks.peers._aiopika import delete


@atask
async def echo(payload: bytes) -> bytes:
    return payload


@atask
async def tree(depth: int) -> int:
    return 1 + sum(await asyncio.gather(tree(depth - 1), tree(depth - 1))) if depth else 1


@asynccontextmanager
async def connected(queue: str) -> AsyncIterator[AMQPTransport]:
    """A transport whose queue and exchanges are this run's."""
    PickleCodec()
    exchanges = dict.fromkeys(
        ("request_exchange", "response_exchange", "event_exchange", "broadcast_exchange"), queue
    )
    transport = AMQPTransport(url=amqp_url(), prefix=queue, queue=queue, **exchanges)
    await transport.connect()
    try:
        yield transport
    finally:
        await transport.disconnect()


@asynccontextmanager
async def client(queue: str) -> AsyncIterator[Client]:
    async with connected(queue):
        yield Client(echo, tree)
    await delete([queue], [queue])


@asynccontextmanager
async def worker(queue: str) -> AsyncIterator[None]:
    async with connected(queue) as transport:
        await get_router().activate(transport)
        yield
        await get_router().deactivate()


if __name__ == "__main__":
    main(client, worker)
