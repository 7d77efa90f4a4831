"""The definition of a limit at the broker: its queues, and who makes them.

The *definition* is an empty queue whose arguments say the rule, so the broker itself refuses another one. Every
process that uses the limit consumes it, and may so long be sure that nobody replaces it. The tokens lie in queues
of their own. They are made first, and the definition last: while that exists, there are as many tokens as it says.
"""

from __future__ import annotations

import asyncio
import logging
import random
import re
import time
from typing import Any, Final

from aiormq.abc import DeliveredMessage
from aiormq.channel import Channel
from aiormq.exceptions import ChannelLockedResource, ChannelPreconditionFailed
from pamqp.commands import Basic
from pamqp.common import FieldTable

from atasks.policies.limit import Rule
from atasks.transport.backends.amqp.broker.link import Link, guard
from atasks.transport.backends.amqp.broker.topology import Topology
from atasks.transport.limits.contract import differs

__all__ = ["Definition"]

logger = logging.getLogger("atasks.amqp")

LOCK_SECONDS: Final = 30.0
"""Seconds for which another process may keep the lock: it makes some queues, and its messages."""
LOOK_SECONDS: Final = (0.01, 0.2)
"""Seconds between two looks whether the lock is free, at first and at the most."""
KEY_EXPIRES_MS: Final = 3_600_000
"""For how long the queues of a value of a key are kept that nobody uses; the tokens twice as long."""
FOUND: Final = re.compile(r"inequivalent arg '([\w-]+)' for queue .* but current is (?:the value )?'?(\w+)'?")


class Definition:
    """The queues of one limit, or of one value of its key."""

    def __init__(self, topology: Topology, name: str, key: str | None, rule: Rule) -> None:
        self._topology = topology
        self._name = name
        self._rule = rule
        self._expires = key is not None
        self._queue = topology.limit(name, key)
        self.places = f"{self._queue}.places"
        """The tokens of `at_once`."""
        self.rate = f"{self._queue}.rate"
        """The tokens of the rate that may be taken."""
        self.cooling = f"{self._queue}.cooling"
        """Those that were: each comes back when its time is over."""

    async def enter(self, link: Link) -> Channel:
        """A channel that counts as a user of the limit, whose queues there are now. Raises LimitError if it is in
        use with another rule."""
        lock = await self._lock(link)
        try:
            await self._make(link)
            channel = await link.open_channel()
            await guard(channel.basic_consume(self._queue, _nothing))
            return channel
        finally:
            if not lock.is_closed:
                await guard(lock.queue_delete(f"{self._queue}.lock"))
                await guard(lock.close())

    async def _lock(self, link: Link) -> Channel:
        """The one who may make or replace the queues; it ends with its connection."""
        until = time.monotonic() + LOCK_SECONDS
        pause, longest = LOOK_SECONDS
        while True:
            channel = await link.open_channel()
            try:
                arguments: FieldTable = {"x-queue-type": "classic"}
                await guard(channel.queue_declare(f"{self._queue}.lock", exclusive=True, arguments=arguments))
                return channel
            except ChannelLockedResource:
                if time.monotonic() > until:
                    raise ConnectionError(f"another process keeps the lock of limit {self._name!r}") from None
            await asyncio.sleep(pause * random.uniform(0.5, 1.0))
            pause = min(pause * 2, longest)

    async def _make(self, link: Link) -> None:
        state = await link.queue_state(self._queue)
        if state is None:
            await self._seed(link, anew=False)
        elif not await self._is_ours(link):
            await self._seed(link, anew=False)
            logger.info("limit %r is %s now", self._name, self._rule)
        elif not await self._is_whole(link, unused=state[1] == 0):
            logger.warning("limit %r had lost tokens: they are made anew", self._name)
            await self._seed(link, anew=True)

    async def _is_ours(self, link: Link) -> bool:
        """Return True if the definition says our rule. One that says another rule and that nobody uses is
        removed."""
        channel = await link.open_channel()
        try:
            await self._declare(channel)
        except ChannelPreconditionFailed as error:
            await self._remove(link, str(error))
            return False
        await guard(channel.close())
        return True

    async def _remove(self, link: Link, found: str) -> None:
        channel = await link.open_channel()
        try:
            await guard(channel.queue_delete(self._queue, if_unused=True))
        except ChannelPreconditionFailed:
            raise differs(self._name, self._rule, self._other(found)) from None
        await guard(channel.close())

    def _other(self, text: str) -> str:
        """The other rule, as far as the broker names it."""
        match = FOUND.search(text)
        if match is None:
            return "another value"
        argument, value = match.groups()
        number = int(value) if value.isdigit() else 0
        if argument == "x-max-length":
            return f"at_once={number or None}"
        if argument == "x-max-length-bytes":
            return f"{number} in a period" if number else "no rate"
        return f"a period of {number / 1000:g} s"

    async def _is_whole(self, link: Link, unused: bool) -> bool:
        """Return True if the tokens of the limit are there: all of them, if nobody can hold any. A broker that
        was killed may have lost some."""
        rule = self._rule
        if rule.at_once:
            state = await link.queue_state(self.places)
            if state is None or (unused and state[0] != rule.at_once):
                return False
        if rule.per_period:
            states = [await link.queue_state(name) for name in (self.rate, self.cooling)]
            if None in states or (unused and sum(state[0] for state in states if state) != rule.per_period):
                return False
        return True

    async def _seed(self, link: Link, anew: bool) -> None:
        """Make the tokens, and then the definition. Those of a rate come one after the other, or, if others may
        have been taken just now, after a whole period."""
        rule, channel = self._rule, await link.open_channel(confirms=True)
        for name in (self.places, self.cooling, self.rate):  # a cooling token would go to the new queue
            await guard(channel.queue_delete(name))
        if rule.at_once:
            await self._declare_tokens(link, channel, self.places)
            await guard(_gather(channel, [(self.places, None)] * rule.at_once))
        if rule.per_period:
            period_ms = round(rule.period * 1000)
            await self._declare_tokens(link, channel, self.rate, {"x-dead-letter-routing-key": self.cooling})
            cools = {"x-message-ttl": period_ms, "x-dead-letter-routing-key": self.rate}
            await self._declare_tokens(link, channel, self.cooling, cools)
            gap = 0.0 if anew else period_ms / rule.per_period
            ages = [(self.cooling, str(round(number * gap)) if gap else None) for number in range(rule.per_period)]
            await guard(_gather(channel, ages))
        await self._declare(channel)
        await guard(channel.close())

    async def _declare(self, channel: Channel) -> None:
        rule = self._rule
        arguments: dict[str, Any] = {
            "x-queue-type": "classic",
            "x-max-length": rule.at_once,
            "x-max-length-bytes": rule.per_period,
            "x-message-ttl": round(rule.period * 1000),
        }
        if self._expires:
            arguments["x-expires"] = KEY_EXPIRES_MS
        await guard(channel.queue_declare(self._queue, durable=True, arguments=arguments))

    async def _declare_tokens(
        self, link: Link, channel: Channel, name: str, more: dict[str, Any] | None = None
    ) -> None:
        arguments: dict[str, Any] = {"x-queue-type": self._topology.queue_type, **(more or {})}
        if more:
            arguments["x-dead-letter-exchange"] = ""
        if self._expires:
            arguments["x-expires"] = 2 * KEY_EXPIRES_MS
        if self._topology.queue_type == "quorum" and link.server_version >= (4,):
            arguments["x-delivery-limit"] = -1  # a token is given back as often as it is used
        await guard(channel.queue_declare(name, durable=True, arguments=arguments))


async def _gather(channel: Channel, tokens: list[tuple[str, str | None]]) -> None:
    """Publish tokens, each to its queue and with its expiration in milliseconds, and wait until they are safe."""
    await asyncio.gather(
        *(
            channel.basic_publish(
                b"",
                routing_key=queue,
                properties=Basic.Properties(delivery_mode=2, expiration=expiration, message_id="token"),
            )
            for queue, expiration in tokens
        )
    )


async def _nothing(message: DeliveredMessage) -> None:
    """Nothing is ever published to a definition."""
