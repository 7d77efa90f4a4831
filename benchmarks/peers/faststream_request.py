"""FastStream's `broker.request()` over RabbitMQ, which waits for what the subscriber returns."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from faststream.rabbit import RabbitBroker, RabbitQueue

from benchmarks.child import amqp_url, main
from benchmarks.load import STUCK, Client
from benchmarks.peers._aiopika import delete


@asynccontextmanager
async def client(queue: str) -> AsyncIterator[Client]:
    async with RabbitBroker(amqp_url(), logger=None) as broker:

        async def echo(payload: bytes) -> bytes:
            return (await broker.request(payload, queue, timeout=STUCK)).body

        yield Client(echo)
    await delete([queue])


@asynccontextmanager
async def worker(queue: str) -> AsyncIterator[None]:
    broker = RabbitBroker(amqp_url(), logger=None)

    @broker.subscriber(RabbitQueue(queue, durable=True))
    async def echo(payload: bytes) -> bytes:
        return payload

    await broker.start()
    try:
        yield
    finally:
        await broker.stop()


if __name__ == "__main__":
    main(client, worker)
