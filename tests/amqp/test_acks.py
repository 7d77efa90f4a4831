"""Acknowledgements of many deliveries, in orders that are hard on the broker."""

# Private attributes: `Acks._held` and `_scheduled`: an acknowledgement that is held back is seen nowhere else.

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator
from typing import Any, cast

import aio_pika
import pytest
from aiormq.abc import ChannelFrame, DeliveredMessage
from aiormq.channel import Channel
from pamqp import frame
from pamqp.commands import Basic

from atasks.testing import soon, until
from atasks.transport.backends.amqp.broker.acks import TOGETHER, Acks
from tests.pace import keeping_pace

MANY = 12_000


@pytest.fixture
async def deliveries(amqp_url: str, prefix: str) -> AsyncIterator[tuple[Channel, list[int]]]:
    """A channel, and the tags of what it was delivered; at the end nothing may be left of it."""
    connection = await aio_pika.connect(amqp_url)
    async with connection, connection.channel(publisher_confirms=True) as other:
        queue = await other.declare_queue(f"{prefix}.acks")
        publisher = await other.get_underlay_channel()
        for number in range(MANY):
            await publisher.basic_publish(b"", routing_key=queue.name, wait=number == MANY - 1)
        channel = await connection.channel(publisher_confirms=False).__aenter__()
        underlay = await channel.get_underlay_channel()
        assert isinstance(underlay, Channel)
        tags: list[int] = []

        async def receive(message: DeliveredMessage) -> None:
            tags.append(message.delivery_tag or 0)

        await underlay.basic_consume(queue.name, receive)
        await until(lambda: len(tags) == MANY)
        yield underlay, tags
        await queue.delete(if_empty=False)


async def _left(channel: Channel, prefix: str) -> int:
    """Messages that return to their queue when the channel is closed."""
    connection = channel.connection
    await channel.close()
    other = await connection.channel()
    state = await other.queue_declare(f"{prefix}.acks", passive=True)
    return state.message_count or 0


async def test_last_first(deliveries: tuple[Channel, list[int]], prefix: str) -> None:
    """The newest delivery is acknowledged first, as where calls wait for calls: it must not keep the broker busy
    for seconds."""
    channel, tags = deliveries
    acks = Acks(channel)
    began = time.thread_time()
    for start in range(MANY, 0, -10):
        for tag in tags[start - 10 : start]:
            acks.ack(tag, late=True)
        await asyncio.sleep(0)
    assert time.thread_time() - began < 5.0
    async with keeping_pace() as pace:
        await soon(channel.basic_qos(prefetch_count=1))  # it answers when it has dealt with what came before
    assert pace.seconds < 1.0
    assert await _left(channel, prefix) == 0


async def test_the_first_one_stays_open(deliveries: tuple[Channel, list[int]], prefix: str) -> None:
    channel, tags = deliveries
    acks = Acks(channel)
    order = tags[1:]
    random.Random(1).shuffle(order)
    for number, tag in enumerate(order):
        if number % 100:
            acks.ack(tag, late=number % 2 == 0)
        elif number % 200:
            acks.requeue(tag)
        else:
            acks.ack(tag)
        if number % 50 == 0:
            await asyncio.sleep(0)
    await soon(acks.flushed())
    assert await _left(channel, prefix) == 1 + len(range(100, len(order), 200))


async def test_those_that_are_held_back_leave_in_time(deliveries: tuple[Channel, list[int]], prefix: str) -> None:
    """The youngest of many, while the older ones go on: each is acknowledged within seconds all the same."""
    channel, tags = deliveries
    acks = Acks(channel)
    for tag in tags[-300:]:
        acks.ack(tag, late=True)
    await until(lambda: not acks._scheduled)
    assert len(acks._held) == 300
    await until(lambda: not acks._held)
    await soon(acks.flushed())
    await soon(channel.basic_qos(prefetch_count=1))
    assert await _left(channel, prefix) == MANY - 300


class Written:
    """A channel that notes what is written to it; a frame that cannot be sent at once waits for nobody."""

    def __init__(self) -> None:
        self.number = 1
        self.is_closed = False
        self.connection = self
        self.channels = {1: self}
        self.write_queue: asyncio.Queue[ChannelFrame] = asyncio.Queue(100)

    def tags(self) -> list[tuple[int, bool]]:
        """Return the tag of each acknowledgement that was written, and whether it is of all up to it."""
        found = []
        while not self.write_queue.empty():
            payload = self.write_queue.get_nowait().payload
            while payload:
                _, _, ack = frame.unmarshal(payload)
                payload = payload[21:]
                assert isinstance(ack, Basic.Ack)
                found.append((ack.delivery_tag, ack.multiple))
        return found


async def test_what_was_held_back_leaves_the_broker_time_for_deliveries() -> None:
    """Calls that wait for calls thousands deep end, the youngest first. RabbitMQ steps over all that are older for
    each acknowledgement, some two million in a second, and delivers nothing of the queue meanwhile."""
    channel = Written()
    acks, loop = Acks(cast("Any", channel)), asyncio.get_running_loop()
    began, tag, steps = loop.time(), MANY, 0
    while loop.time() - began < 3.0:
        acks.ack(tag, late=True)
        tag -= 1
        await asyncio.sleep(0.001)
        steps += sum(sent - 1 for sent, _ in channel.tags())
    assert 0 < steps < 400_000 * (loop.time() - began)
    acks.close()


async def test_a_few_wait_for_each_other_and_many_do_not() -> None:
    channel = Written()
    acks = Acks(cast("Any", channel), patience=1.0)
    acks.ack(1)
    acks.ack(2)
    await asyncio.sleep(0.05)
    assert channel.tags() == []
    await until(lambda: not channel.write_queue.empty())
    assert channel.tags() == [(2, True)]
    for tag in range(3, 3 + TOGETHER):
        acks.ack(tag)
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert channel.tags() == [(2 + TOGETHER, True)]


async def test_one_that_waits_for_none_takes_those_along_that_wait() -> None:
    channel = Written()
    acks = Acks(cast("Any", channel), patience=60.0)
    acks.ack(1)
    acks.ack(2, now=True)
    await asyncio.sleep(0)
    assert channel.tags() == [(2, True)]
    acks.ack(3)
    acks.requeue(4)
    await asyncio.sleep(0)
    assert not channel.write_queue.empty(), "what goes back does not wait either"


async def test_what_waits_is_lost_with_the_channel_and_sent_when_it_is_asked_for() -> None:
    channel = Written()
    acks = Acks(cast("Any", channel), patience=60.0)
    acks.ack(1)
    await acks.flushed()
    assert channel.tags() == [(1, False)]
    acks.ack(2)
    acks.close()
    await asyncio.sleep(0.01)
    assert channel.tags() == []
