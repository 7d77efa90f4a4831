"""The other side of a conversation, made by hand with aio-pika and MessagePack alone."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aio_pika
import msgspec
from aio_pika.abc import AbstractChannel, AbstractExchange, AbstractIncomingMessage, AbstractQueue

from atasks.testing import soon

__all__ = ["CONTENT_TYPE", "Peer"]

CONTENT_TYPE = "application/vnd.atasks.v1+msgpack"


class Peer:
    """A client of the broker that knows nothing of atasks but its wire format."""

    def __init__(self, channel: AbstractChannel, prefix: str, namespace: str, replies: AbstractQueue) -> None:
        self.channel = channel
        self.prefix = prefix
        self.namespace = namespace
        self.replies = replies
        self.unread: asyncio.Queue[AbstractIncomingMessage] = asyncio.Queue()

    @classmethod
    @asynccontextmanager
    async def connect(cls, url: str, prefix: str, namespace: str) -> AsyncIterator[Peer]:
        connection = await aio_pika.connect(url)
        async with connection, connection.channel(publisher_confirms=True) as channel:
            replies = await channel.declare_queue(exclusive=True)
            peer = cls(channel, prefix, namespace, replies)
            await replies.consume(peer._on_answer, no_ack=True)
            yield peer

    async def _on_answer(self, message: AbstractIncomingMessage) -> None:
        self.unread.put_nowait(message)

    def work_queue(self, queue: str = "default") -> str:
        """The broker's name of a work queue."""
        return f"{self.prefix}.q.{self.namespace}.{queue}"

    async def publish(self, body: bytes, queue: str | None = None, **properties: Any) -> None:
        """Send a body, to the default work queue unless told otherwise, as a caller would."""
        given = {"content_type": CONTENT_TYPE, "reply_to": self.replies.name, **properties}
        name = self.work_queue() if queue is None else queue
        await self.channel.default_exchange.publish(aio_pika.Message(body, **given), name)

    async def send(self, *envelopes: list[Any], queue: str | None = None, **properties: Any) -> None:
        """Send a message of these envelopes."""
        await self.publish(msgspec.msgpack.encode(envelopes), queue, **properties)

    async def control(self, body: bytes, key: str, *, mandatory: bool = True, **properties: Any) -> None:
        """Send a body to the control exchange."""
        message = aio_pika.Message(body, **{"content_type": CONTENT_TYPE, **properties})
        await (await self._control()).publish(message, key, mandatory=mandatory)

    async def listen(self, key: str) -> asyncio.Queue[AbstractIncomingMessage]:
        """Listen for the messages that reach the control exchange under that key from now on."""
        queue = await self.channel.declare_queue(exclusive=True)
        await queue.bind(await self._control(), key)
        return await self.consume(queue.name)

    async def _control(self) -> AbstractExchange:
        return await self.channel.get_exchange(f"{self.prefix}.control", ensure=True)

    async def declare_work_queue(self, queue: str) -> asyncio.Queue[AbstractIncomingMessage]:
        """Be a worker made by hand: what arrives in that work queue from now on, acknowledged."""
        await self.channel.declare_queue(self.work_queue(queue), auto_delete=True)
        return await self.consume(self.work_queue(queue))

    async def answer(self) -> list[Any]:
        """The envelopes of the next message for this peer."""
        message = await soon(self.unread.get())
        assert message.content_type == CONTENT_TYPE
        envelopes: list[Any] = msgspec.msgpack.decode(message.body)
        return envelopes

    async def answers(self, count: int) -> list[Any]:
        """The next envelopes for this peer, at least so many."""
        found: list[Any] = []
        while len(found) < count:
            found += await self.answer()
        return found

    async def consume(self, name: str) -> asyncio.Queue[AbstractIncomingMessage]:
        """Consume the queue from now on, and acknowledge each message."""
        arrived: asyncio.Queue[AbstractIncomingMessage] = asyncio.Queue()

        async def on_message(message: AbstractIncomingMessage) -> None:
            arrived.put_nowait(message)

        queue = await self.channel.get_queue(name, ensure=True)
        await queue.consume(on_message, no_ack=True)
        return arrived

    async def dead_letters(self) -> asyncio.Queue[AbstractIncomingMessage]:
        """Consume the dead-letter queue from now on; a worker must have declared it."""
        return await self.consume(f"{self.prefix}.dead")
