"""aio-pika's own remote procedure calls, `aio_pika.patterns.RPC`, as its documentation uses them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aio_pika
from aio_pika.patterns import RPC

from benchmarks.harness import Echo, System, work

__all__ = ["SYSTEM"]


@asynccontextmanager
async def client(url: str, queue: str) -> AsyncIterator[Echo]:
    """Calls the method that is named as the queue."""
    connection = await aio_pika.connect_robust(url)
    async with connection:
        channel = await connection.channel()
        rpc = await RPC.create(channel)

        async def echo(payload: bytes) -> bytes:
            answer: bytes = await rpc.call(queue, {"payload": payload})
            return answer

        yield echo
        await rpc.close()  # deletes the reply queue; the work queue deletes itself


@asynccontextmanager
async def worker(url: str, queue: str) -> AsyncIterator[None]:
    """Registers the method that is named as the queue."""

    async def echo(*, payload: bytes) -> bytes:
        return payload

    connection = await aio_pika.connect_robust(url)
    async with connection:
        channel = await connection.channel()
        rpc = await RPC.create(channel)
        await rpc.register(queue, echo, auto_delete=True)
        yield
        await rpc.unregister(echo)
        await rpc.close()


SYSTEM = System("aiopika", "aio-pika patterns.RPC", client, worker_module="benchmarks.aiopika_rpc")

if __name__ == "__main__":
    work(worker)
