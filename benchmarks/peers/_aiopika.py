"""Deletion of queues and exchanges, for the systems that leave some at the broker."""

from __future__ import annotations

from collections.abc import Iterable

import aio_pika

from benchmarks.child import amqp_url

__all__ = ["delete"]


async def delete(queues: Iterable[str], exchanges: Iterable[str] = ()) -> None:
    """Delete these at the broker, as far as they exist."""
    async with await aio_pika.connect(amqp_url()) as connection:
        channel = await connection.channel()
        for queue in queues:
            await channel.queue_delete(queue)
        for exchange in exchanges:
            await channel.exchange_delete(exchange)
