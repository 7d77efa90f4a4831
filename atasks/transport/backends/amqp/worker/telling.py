"""Events for those who watch the worker: over a channel of their own, and lost where it takes no more."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Final

from aiormq.channel import Channel
from aiormq.exceptions import ChannelAccessRefused
from pamqp.commands import Basic

from atasks import wire
from atasks.signing import CONTENT_TYPE as SEALED
from atasks.transport.backends.amqp.broker.errors import CLIENT_ERRORS
from atasks.transport.backends.amqp.broker.frames import takes_frames
from atasks.transport.backends.amqp.broker.outgoing import Outgoing
from atasks.transport.backends.amqp.broker.questions import close_channel
from atasks.wire import CONTENT_TYPE, QueryAnswer

if TYPE_CHECKING:
    from atasks.transport.backends.amqp.broker.link import Link
    from atasks.transport.backends.amqp.worker.station import Station

__all__ = ["Telling"]

logger = logging.getLogger("atasks.amqp")

MAX_WAITING: Final = 20
"""Messages that wait to leave: where more do, the broker takes none for now, and further ones are dropped."""


class Telling:
    """Publishes events without confirms. Neither a broker that is slow nor who watches keeps anything else up.

    The broker closes the channel where the exchange is gone, which who watches has declared: then nothing is told
    any more, until somebody watches anew.
    """

    def __init__(self, station: Station) -> None:
        self._station = station
        self._waiting: list[Outgoing] = []
        self._task: asyncio.Task[None] | None = None
        self._channel: Channel | None = None
        self._link: Link | None = None
        self._refused: Link | None = None
        """The link for which the log says that this user may not publish events."""
        self._closed = True

    def open(self) -> None:
        """Somebody watches, or goes on to."""
        self._closed = False

    def put(self, token: str, content: bytes, voice: str | None) -> bool:
        """Send who watches under that token what has happened. False: it takes no more for now."""
        if self._closed or self._station.link is None or len(self._waiting) >= MAX_WAITING:
            return False
        station = self._station
        topology = station.session.topology
        properties = Basic.Properties(content_type=CONTENT_TYPE, message_id=station.number(), delivery_mode=1)
        body = wire.encode([QueryAnswer(wire.VERSION, token, station.worker.id, content)])
        key, exchange = topology.watch_key(token), topology.watch
        self._waiting.append(Outgoing(body, key, properties, exchange=exchange, mandatory=False, key=voice))
        if self._task is None:
            self._task = asyncio.create_task(self._send(), name="atasks events")
        return True

    async def _send(self) -> None:
        try:
            while self._waiting and not self._closed:
                message = self._waiting.pop(0)
                channel = await self._open_channel()
                if channel is None:
                    return
                seals = self._station.session.seals
                seal, body = (b"", message.body) if seals is None else seals.sealed(message)
                if seal:
                    message.properties.content_type = SEALED
                await channel.basic_publish(
                    seal + bytes(body),
                    exchange=message.exchange,
                    routing_key=message.routing_key,
                    properties=message.properties,
                )
        except CLIENT_ERRORS as error:
            logger.debug("this worker sends no events for now: %s", error)
            self._channel = None
            self._closed = True
        finally:
            self._task = None
            if self._closed:
                self._waiting.clear()

    async def _open_channel(self) -> Channel | None:
        link = self._station.link
        if link is None:
            return None
        if self._channel is not None and self._link is link:
            if takes_frames(self._channel):
                return self._channel
            reason = self._channel.closing.exception() if self._channel.closing.done() else None
            if isinstance(reason, ChannelAccessRefused) and self._refused is not link:
                self._refused = link
                logger.warning("who watches is told nothing of this worker: %s", reason)
            self._channel = None
            self._closed = True  # the exchange is gone, and with it who watched
            return None
        self._link, self._channel = link, await link.open_unconfirmed()
        return self._channel

    async def close(self) -> None:
        """Tell nothing any more."""
        self._closed = True
        self._waiting.clear()
        task, channel, self._channel = self._task, self._channel, None
        if task is not None:
            task.cancel()
            await asyncio.wait([task])
        if channel is not None and not channel.is_closed:
            try:
                await close_channel(channel)
            except CLIENT_ERRORS as error:
                logger.debug("the channel of events could not be closed: %s", error)
