"""atasks over RabbitMQ with its defaults: at-least-once calls, durable queues, persistent messages."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiormq

import atasks
from atasks import atask
from benchmarks.harness import Echo, System, work

__all__ = ["SYSTEM"]


@atask
async def echo(payload: bytes) -> bytes:
    return payload


@asynccontextmanager
async def client(url: str, queue: str) -> AsyncIterator[Echo]:
    """Calls the echo; the queue's name is also the prefix of all that both sides declare, to be deleted."""
    async with atasks.connect(url, prefix=queue):
        try:
            yield echo.options(queue=queue)
        finally:
            await delete(url, queue)  # its worker has ended


@asynccontextmanager
async def worker(url: str, queue: str) -> AsyncIterator[None]:
    """Serves the echo as `atasks run --mode server` does."""
    async with atasks.serve(url, queues=[queue], prefix=queue):
        yield


async def delete(url: str, prefix: str) -> None:
    """Delete what workers leave at the broker on purpose: it is to outlive them."""
    connection = await aiormq.connect(url)
    try:
        channel = await connection.channel()
        work_queue = f"{prefix}.q.default.{prefix}"
        for queue in (work_queue, f"{work_queue}.solo", f"{prefix}.dead"):
            await channel.queue_delete(queue)
        await channel.exchange_delete(f"{prefix}.control")
    finally:
        await connection.close()


SYSTEM = System("amqp", "atasks AMQP", client, worker_module="benchmarks.echo_amqp")

if __name__ == "__main__":
    work(worker)
