"""atasks over RabbitMQ with its defaults: at-least-once calls, durable queues, persistent messages."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiormq

import atasks
from benchmarks.atasks_functions import echo, tree
from benchmarks.child import amqp_url, main
from benchmarks.load import Client


@asynccontextmanager
async def client(queue: str) -> AsyncIterator[Client]:
    """Calls by default queue; the queue's name is the prefix of all that both sides declare, to be deleted."""
    async with atasks.connect(amqp_url(), prefix=queue):
        try:
            yield Client(echo, tree)
        finally:
            await delete(queue)  # its worker has ended


@asynccontextmanager
async def worker(queue: str) -> AsyncIterator[None]:
    """Serves as `atasks run --mode server` does."""
    async with atasks.serve(amqp_url(), prefix=queue):
        yield


async def delete(prefix: str) -> None:
    """Delete what workers leave at the broker on purpose: it is to outlive them."""
    connection = await aiormq.connect(amqp_url())
    try:
        channel = await connection.channel()
        work_queue = f"{prefix}.q.default.default"
        for queue in (work_queue, f"{work_queue}.solo", f"{prefix}.dead"):
            await channel.queue_delete(queue)
        await channel.exchange_delete(f"{prefix}.control")
    finally:
        await connection.close()


if __name__ == "__main__":
    main(client, worker)
