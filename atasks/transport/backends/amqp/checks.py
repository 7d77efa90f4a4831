"""The broker, tried out: may this user do what a worker does, and do queues keep what is put into them?"""

from __future__ import annotations

import asyncio
import re
import uuid
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Final, Literal

from aiormq.channel import Channel
from aiormq.exceptions import ChannelAccessRefused, DeliveryError
from pamqp.commands import Basic
from yarl import URL

from atasks.errors import NotConnected
from atasks.transport.backends.amqp.broker.errors import CLIENT_ERRORS, map_error
from atasks.transport.backends.amqp.broker.link import Link
from atasks.transport.backends.amqp.broker.questions import close_channel, guard
from atasks.transport.records.contract import GENERATION

if TYPE_CHECKING:
    from atasks.transport.backends.amqp.session import Session

__all__ = ["BrokerChecks"]

Bound = Literal["any", "refusing", "none"]
"""The bound of a queue's length that does no harm: any; one that refuses what is too much; none at all."""

MESSAGES: Final = 200
BODY: Final = bytes(1024)
WAIT_SECONDS: Final = 1.5


class BrokerChecks:
    """Looks for what at the broker breaks the promises of calls, as far as AMQP tells."""

    def __init__(self, session: Session) -> None:
        self._session = session

    @property
    def virtual_host(self) -> str:
        """The virtual host that this process is connected to."""
        return URL(self._session.urls[0]).path.removeprefix("/") or "/"

    def names(self, queues: Sequence[str]) -> dict[str, Bound]:
        """The names at the broker of queues that must keep what is put into them, and the bound of their length
        that does no harm: work queues with their solo queues, a reply queue, a record, the first queue of delays,
        the schedules, a `unique` key, and the tokens of a limit."""
        topology = self._session.topology
        nobody, tokens = "0" * 32, topology.limit("limit", None)
        found: dict[str, Bound] = {}
        for queue in queues:
            found |= {topology.work(queue): "refusing", topology.solo(queue): "refusing"}
        found |= {
            self._session.reply_queue: "refusing",
            topology.kept(nobody): "refusing",
            topology.delay(0): "refusing",
            topology.schedules: "refusing",
            topology.unique(f"{nobody}{GENERATION}"): "any",
        }
        return {**found, f"{tokens}.places": "none", f"{tokens}.rate": "none", f"{tokens}.cooling": "none"}

    def permission(self) -> str:
        """The command that permits this user what a worker needs."""
        pattern = rf"'^({re.escape(self._session.topology.prefix)}\..*|amq\.default)$'"
        where = f"-p {self.virtual_host} {self._session.user}"
        return f"rabbitmqctl set_permissions {where} {pattern} {pattern} {pattern}"

    async def probe(self, queue: str, *, fill: bool) -> list[str]:
        """Declare a queue beside this work queue, for a moment, and return what is wrong with that. `fill`: put
        messages into it, and see whether they stay."""
        link = self._session.link
        if link is None:
            raise NotConnected("the connection is lost just now: try again")
        name = f"{self._session.topology.work(queue)}.probe-{uuid.uuid4().hex[:8]}"
        try:
            return await self._probe(link, queue, name, fill)
        except CLIENT_ERRORS as error:
            raise map_error(error, self._session.urls[0]) from error

    async def _probe(self, link: Link, queue: str, name: str, fill: bool) -> list[str]:
        user, action = self._session.user, "configure"
        channel = await link.open_channel(confirms=True)
        try:
            await guard(channel.queue_declare(name, exclusive=True, arguments={"x-queue-type": "classic"}))
            action = "read"
            await guard(channel.basic_get(name))
            action = "write to"
            refused = await _publish(channel, name, MESSAGES if fill else 1)
            there = await _count(channel, name)
            if not fill or refused:  # it says so to who publishes, and that is dealt with
                return []
            drops = f"the broker drops calls of queue {queue!r}: "
            look = f"(rabbitmqctl list_policies -p {self.virtual_host})"
            if there < MESSAGES:
                tried = f"of {MESSAGES} messages of 1 KiB in a queue of such a name {there} stayed"
                return [f"{drops}{tried}; look for max-length without overflow=reject-publish {look}"]
            await asyncio.sleep(WAIT_SECONDS)
            if await _count(channel, name) < there:
                tried = f"messages in a queue of such a name expire within {WAIT_SECONDS:g} s"
                return [f"{drops}{tried}; look for message-ttl {look}"]
        except ChannelAccessRefused:
            what = "the default exchange" if action == "write to" else f"queue {name!r}"
            return [f"user {user!r} may not {action} {what}, as its workers have to: {self.permission()}"]
        finally:
            with suppress(*CLIENT_ERRORS):
                if not channel.is_closed:
                    await guard(channel.queue_delete(name))
                    await close_channel(channel)
        return []


async def _publish(channel: Channel, name: str, count: int) -> bool:
    """Fill the queue. Returns True if the broker refuses some."""
    properties = Basic.Properties(delivery_mode=1)
    publishing = (channel.basic_publish(BODY, routing_key=name, properties=properties) for _ in range(count))
    try:
        await guard(asyncio.gather(*publishing))
    except DeliveryError:
        return True
    return False


async def _count(channel: Channel, name: str) -> int:
    found = await guard(channel.queue_declare(name, passive=True))
    return found.message_count or 0
