"""aio-pika's own remote procedure calls, `aio_pika.patterns.RPC`, as its documentation uses them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aio_pika
from aio_pika.patterns import RPC

from benchmarks.child import amqp_url, main
from benchmarks.load import Client


@asynccontextmanager
async def connected() -> AsyncIterator[RPC]:
    async with await aio_pika.connect_robust(amqp_url()) as connection:
        rpc = await RPC.create(await connection.channel())
        yield rpc
        await rpc.close()  # deletes the reply queue


@asynccontextmanager
async def client(queue: str) -> AsyncIterator[Client]:
    """Calls the methods that are named as the queue; the work queues delete themselves."""
    async with connected() as rpc:

        async def echo(payload: bytes) -> bytes:
            answer: bytes = await rpc.call(queue, {"payload": payload})
            return answer

        async def tree(depth: int) -> int:
            calls: int = await rpc.call(f"{queue}-tree", {"depth": depth})
            return calls

        yield Client(echo, tree)


@asynccontextmanager
async def worker(queue: str) -> AsyncIterator[None]:
    """Registers the methods that are named as the queue."""
    async with connected() as rpc:

        async def echo(*, payload: bytes) -> bytes:
            return payload

        async def tree(*, depth: int) -> int:
            if not depth:
                return 1
            below = {"depth": depth - 1}
            return 1 + sum(await asyncio.gather(*(rpc.call(f"{queue}-tree", below) for _ in range(2))))

        await rpc.register(queue, echo, auto_delete=True)
        await rpc.register(f"{queue}-tree", tree, auto_delete=True)
        yield
        await rpc.unregister(tree)
        await rpc.unregister(echo)


if __name__ == "__main__":
    main(client, worker)
