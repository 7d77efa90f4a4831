"""Watching workers: the queue by which their events come."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Final

from aiormq.abc import DeliveredMessage
from aiormq.channel import Channel
from aiormq.exceptions import ChannelNotFoundEntity

from atasks import wire
from atasks.errors import DecodeError, NotConnected
from atasks.transport.backends.amqp.broker.errors import CLIENT_ERRORS, map_error
from atasks.transport.backends.amqp.broker.link import Link
from atasks.transport.backends.amqp.broker.questions import close_channel, guard
from atasks.transport.backends.amqp.broker.topology import Topology
from atasks.transport.backends.amqp.seals import opening
from atasks.wire import QueryAnswer

if TYPE_CHECKING:
    from atasks.transport.backends.amqp.session import Session

__all__ = ["listening"]

PREFETCH: Final = 50
"""Messages that come before earlier ones were dealt with: the others wait at the broker, or are dropped."""
TRIES: Final = 10
"""Times that the exchange is declared at most: it goes with the last one who watches."""


@asynccontextmanager
async def listening(session: Session, token: str, heard: Callable[[QueryAnswer], object]) -> AsyncIterator[None]:
    """A block in which `heard` gets the events of those who are watched under that token.

    Queue and exchange are gone when nobody uses them, however this process ends. Raises NotConnected, and what the
    broker has against it."""
    topology, link = session.topology, session.link
    if link is None:
        raise NotConnected("the connection is lost just now: try again")
    queue, key = topology.watch_queue(token), topology.watch_key(token)

    async def receive(message: DeliveredMessage) -> None:
        try:
            envelopes = wire.decode(message.body, session.max_message)
        except DecodeError:
            envelopes = []
        if session.seals is not None and not session.seals.is_answer(message):
            envelopes = session.seals.for_caller(message, envelopes, {}, session.seals.is_news(message))
        for envelope in envelopes:
            if isinstance(envelope, QueryAnswer) and envelope.token == token:
                heard(envelope)
        with suppress(*CLIENT_ERRORS):
            await message.channel.basic_ack(message.delivery_tag or 0)

    try:
        channel = await _bound(link, topology, queue, key)
        await guard(channel.basic_qos(prefetch_count=PREFETCH))
        consume = opening(session.seals, receive, lambda message: topology.place(topology.watch, key))
        tag = (await guard(channel.basic_consume(queue, consume))).consumer_tag
    except CLIENT_ERRORS as error:
        raise map_error(error, session.urls[0]) from error
    try:
        yield
    finally:
        with suppress(*CLIENT_ERRORS):
            async with asyncio.timeout(5):
                await guard(channel.basic_cancel(tag or ""))
                await guard(channel.queue_delete(queue))
                await close_channel(channel)


async def _bound(link: Link, topology: Topology, queue: str, key: str) -> Channel:
    """Open a channel, and declare the queue there, which gets what is published under the key."""
    left = TRIES
    while True:
        channel = await link.open_channel()
        await guard(channel.queue_declare(queue, exclusive=True, arguments=topology.watch_arguments()))
        try:
            await guard(channel.exchange_declare(topology.watch, exchange_type="topic", auto_delete=True))
            await guard(channel.queue_bind(queue, topology.watch, key))
        except ChannelNotFoundEntity:  # somebody else has left in between, and was the last one
            left -= 1
            if not left:
                raise
        else:
            return channel
