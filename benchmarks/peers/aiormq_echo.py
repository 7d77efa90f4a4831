"""The yardstick: an echo on bare aiormq, with what a careful program needs and nothing else.

The same broker-side guarantees as an atasks call: durable queues, persistent messages, publisher confirms that
nobody waits for before the answer, acknowledgements at both sides, and a request that is acknowledged only when
its reply is safe at the broker. No codec, no batches, no tasks by name, no errors, no deadlines, no reconnect.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import cast

import aiormq
from aiormq.abc import DeliveredMessage
from pamqp.commands import Basic

from benchmarks.child import amqp_url, main
from benchmarks.load import Client

UNCONFIRMED = 1000
"""Publishes without a confirm at a time: aiormq looks through all of them at each confirm of many."""

WINDOW = 500
"""Requests that the worker holds unacknowledged at most."""


@asynccontextmanager
async def client(queue: str) -> AsyncIterator[Client]:
    """Calls through the default exchange, with a durable reply queue of its own."""
    connection = await aiormq.connect(amqp_url())
    try:
        channel = cast("aiormq.Channel", await connection.channel())  # its abstract class lacks `wait`
        reply_queue = f"{queue}-replies"
        await declare(channel, reply_queue)
        # The worker declares it too; here, so that the first request cannot be earlier than the queue.
        await declare(channel, queue)
        waiting: dict[str, asyncio.Future[bytes]] = {}
        publishing: set[asyncio.Task[None]] = set()
        room = asyncio.Semaphore(UNCONFIRMED)
        loop = asyncio.get_running_loop()

        async def on_reply(message: DeliveredMessage) -> None:
            properties = message.header.properties
            answer = waiting.pop(properties.correlation_id or "", None)
            if answer is not None and not answer.done():
                answer.set_result(message.body)
            assert message.delivery_tag is not None
            await channel.basic_ack(message.delivery_tag, wait=False)

        async def publish(payload: bytes, call_id: str, answer: asyncio.Future[bytes]) -> None:
            properties = Basic.Properties(
                message_id=call_id, correlation_id=call_id, reply_to=reply_queue, delivery_mode=2
            )
            try:
                async with room:
                    await channel.basic_publish(
                        payload, routing_key=queue, properties=properties, mandatory=True, wait=False
                    )
            except Exception as error:
                if not answer.done():
                    answer.set_exception(error)

        async def echo(payload: bytes) -> bytes:
            call_id = uuid.uuid4().hex
            answer: asyncio.Future[bytes] = loop.create_future()
            waiting[call_id] = answer
            # A task, because aiormq's publish returns with the confirm, which may come after the reply.
            task = loop.create_task(publish(payload, call_id, answer))
            publishing.add(task)
            task.add_done_callback(publishing.discard)
            return await answer

        consuming = await channel.basic_consume(reply_queue, on_reply)
        yield Client(echo)
        assert consuming.consumer_tag is not None
        await channel.basic_cancel(consuming.consumer_tag)
        await channel.queue_delete(reply_queue)
        await channel.queue_delete(queue)
    finally:
        await connection.close()


@asynccontextmanager
async def worker(queue: str) -> AsyncIterator[None]:
    """Answers each request with its own body, and acknowledges it when the reply is confirmed."""
    connection = await aiormq.connect(amqp_url())
    try:
        channel = cast("aiormq.Channel", await connection.channel())
        await channel.basic_qos(prefetch_count=WINDOW)
        await declare(channel, queue)

        async def on_request(message: DeliveredMessage) -> None:
            properties = message.header.properties
            await channel.basic_publish(
                message.body,
                routing_key=properties.reply_to or "",
                properties=Basic.Properties(
                    message_id=properties.message_id, correlation_id=properties.correlation_id, delivery_mode=2
                ),
                wait=False,
            )
            assert message.delivery_tag is not None
            await channel.basic_ack(message.delivery_tag, wait=False)

        await channel.basic_consume(queue, on_request)
        yield
    finally:
        await connection.close()


async def declare(channel: aiormq.Channel, queue: str) -> None:
    """A durable queue that the broker deletes five minutes after a run that could not."""
    await channel.queue_declare(queue, durable=True, arguments={"x-queue-type": "classic", "x-expires": 300_000})


if __name__ == "__main__":
    main(client, worker)
