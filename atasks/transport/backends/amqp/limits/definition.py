"""The definition of a limit at the broker: its queues, and who makes them.

The *definition* is an empty queue whose arguments say the rule, so the broker itself refuses another one. Every
process that uses the limit consumes it, and may so long be sure that nobody replaces it. The tokens lie in queues
of their own. They are made first, and the definition last: while that exists, there are as many tokens as it says.

Programs are replaced while others run, so a process that begins to use a limit may say other numbers than those
who use it: the youngest declaration holds. It makes the tokens that are missing, or takes away those that are too
many, and puts the numbers into the arguments of a second queue, the *amendment*, which nobody consumes. A third
one has a message for each change of the last minutes: declarations that take turns are an error.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, Final

from aiormq.abc import DeliveredMessage
from aiormq.channel import Channel
from aiormq.exceptions import ChannelPreconditionFailed
from pamqp.commands import Basic
from pamqp.common import FieldTable

from atasks.pauses import pauses
from atasks.policies.limit import Rule
from atasks.transport.backends.amqp.broker.errors import differing
from atasks.transport.backends.amqp.broker.link import Link
from atasks.transport.backends.amqp.broker.questions import close_channel, guard
from atasks.transport.backends.amqp.broker.topology import Topology
from atasks.transport.backends.amqp.limits.tokens import TOKEN
from atasks.transport.limits.contract import differs

__all__ = ["Definition"]

logger = logging.getLogger("atasks.amqp")

LOCK_SECONDS: Final = 30.0
"""Seconds for which another process may keep the lock: it makes some queues, and its messages."""
LOOK_SECONDS: Final = (0.01, 0.2)
"""Seconds between two looks whether the lock is free, at first and at the most."""
KEY_EXPIRES_MS: Final = 3_600_000
"""For how long the queues of a value of a key are kept that nobody uses; the tokens twice as long."""
MAX_CHANGES: Final = 4
"""Changes of the numbers of a limit within `CHANGES_MS`."""
CHANGES_MS: Final = 600_000
ARGUMENTS: Final = {
    "x-max-length": "at_once",
    "x-max-length-bytes": "per_period",
    "x-message-ttl": "period",
}
"""The part of the rule that each argument of a definition says."""


class Definition:
    """The queues of one limit, or of one value of its key."""

    def __init__(self, topology: Topology, name: str, key: str | None, rule: Rule) -> None:
        self._topology = topology
        self._name = name
        self.rule = rule
        """The rule that this process has for it."""
        self._expires = key is not None
        self._queue = topology.limit(name, key)
        self._amendment = f"{self._queue}.amendment"
        self._changes = f"{self._queue}.changes"
        self.surplus = (0, 0)
        """Tokens that are to be taken away: of the places, and of the rate."""
        self.places = f"{self._queue}.places"
        """The tokens of `at_once`."""
        self.rate = f"{self._queue}.rate"
        """The tokens of the rate that may be taken."""
        self.cooling = f"{self._queue}.cooling"
        """Those that were: each comes back when its time is over."""

    async def enter(self, link: Link, wanted: Callable[[], bool], *, known: bool = False) -> Channel | None:
        """A channel that counts as a user of the limit, whose queues there are now; None, and nothing is declared,
        if it is not wanted any more when it is this process's turn. `known`: this process has used it before, so
        that younger ones may have changed its numbers, which hold then. `surplus` is how many tokens are too many
        of each kind then. Raises LimitError if it is in use with a rule of another kind, or period, or if its
        numbers were changed very often lately."""
        async with self._locked(link):
            if not wanted():
                return None
            self.surplus = (0, 0)
            await self._make(link, known)
            channel = await link.open_channel()
            # Without acknowledgements: what anybody puts there would lie here until the broker loses patience.
            await guard(channel.basic_consume(self._queue, _nothing, no_ack=True))
            return channel

    async def current(self, link: Link) -> Rule:
        """Return the rule that holds now for those who have entered: ours, or that of a younger declaration."""
        async with self._locked(link):
            return (await self._in_force(link))[0]

    @asynccontextmanager
    async def _locked(self, link: Link) -> AsyncIterator[None]:
        """One process at a time may make or replace the queues."""
        lock, until = f"{self._queue}.lock", time.monotonic() + LOCK_SECONDS
        for pause in pauses(*LOOK_SECONDS):
            if await link.lock(lock):
                break
            if time.monotonic() > until:
                raise ConnectionError(f"another process keeps the lock of limit {self._name!r}")
            await asyncio.sleep(pause)
        try:
            yield
        finally:
            if not link.lost.done():
                await link.delete_queue(lock)

    async def _make(self, link: Link, known: bool) -> None:
        state = await link.queue_state(self._queue)
        if state is None:
            await self._seed(link, self.rule, anew=False)
            return
        unused = state[1] == 0
        found, amended = await self._in_force(link)
        # Who has used it before follows the youngest declaration, also if all links were lost at the same time.
        follows = known and self._is_alike(found)
        rule = found if follows else self.rule
        if unused and (found != rule or (amended and not follows)):
            await self._seed(link, rule, anew=found == rule)
            if found != rule:
                logger.info("limit %r is %s now", self._name, rule)
        elif found != rule:
            await self._amend(link, found)
        elif not await self._is_whole(link, rule, unused):
            logger.warning("limit %r had lost tokens: they are made anew", self._name)
            await self._seed(link, rule, anew=True)

    def _is_alike(self, found: Rule) -> bool:
        """The rule differs from ours in its numbers at the most."""
        kinds = [(bool(rule.at_once), bool(rule.per_period), rule.period) for rule in (found, self.rule)]
        return kinds[0] == kinds[1]

    async def _in_force(self, link: Link) -> tuple[Rule, bool]:
        """Return the rule that holds, and whether it is that of an amendment."""
        amended = await link.queue_state(self._amendment) is not None
        return await self._read(link, self._amendment if amended else self._queue), amended

    async def _read(self, link: Link, queue: str) -> Rule:
        """Return the rule in the arguments of the definition, or of the amendment: the broker names one argument
        that is another one, and then the next."""
        found = self.rule
        for _ in range(len(found) + 1):
            channel = await link.open_channel()
            try:
                await guard(channel.queue_declare(queue, durable=True, arguments=self._arguments(found)))
                await close_channel(channel)
                return found
            except ChannelPreconditionFailed as error:
                argument, text = differing(error) or ("", "")
                field = ARGUMENTS.get(argument)
                if field is None or not (text.isdigit() or text == "none"):
                    raise differs(self._name, self.rule, "another value") from None
                value = int(text) if text.isdigit() else 0
                numbers: dict[str, Any] = {field: value / 1000 if field == "period" else value}
                found = found._replace(**numbers)
        raise differs(self._name, self.rule, "another value")

    async def _amend(self, link: Link, found: Rule) -> None:
        """Have our numbers hold in the place of those that were found."""
        rule = self.rule
        changes = await link.queue_state(self._changes)
        if not self._is_alike(found) or (changes is not None and changes[0] >= MAX_CHANGES):
            raise differs(self._name, rule, str(found))
        logger.warning("limit %r is %s from now on: it was %s", self._name, rule, found)
        channel = await link.open_channel(confirms=True)
        more = [(self.places, rule.at_once - found.at_once), (self.rate, rule.per_period - found.per_period)]
        for name, count in more:
            if count > 0:
                await guard(_gather(channel, [(name, None)] * count))
        self.surplus = (max(-more[0][1], 0), max(-more[1][1], 0))
        await guard(channel.queue_delete(self._amendment))
        await guard(channel.queue_declare(self._amendment, durable=True, arguments=self._arguments(rule)))
        lasting: FieldTable = {"x-queue-type": "classic", "x-message-ttl": CHANGES_MS, "x-expires": 2 * CHANGES_MS}
        await guard(channel.queue_declare(self._changes, durable=True, arguments=lasting))
        await guard(_gather(channel, [(self._changes, None)]))
        await close_channel(channel)

    async def _is_whole(self, link: Link, rule: Rule, unused: bool) -> bool:
        """Return True if the tokens of the limit are there: all of them, if nobody can hold any. A broker that
        was killed may have lost some."""
        if rule.at_once:
            state = await link.queue_state(self.places)
            if state is None or (unused and state[0] != rule.at_once):
                return False
        if rule.per_period:
            states = [await link.queue_state(name) for name in (self.rate, self.cooling)]
            if None in states or (unused and sum(state[0] for state in states if state) != rule.per_period):
                return False
        return True

    async def _seed(self, link: Link, rule: Rule, anew: bool) -> None:
        """Make the tokens, and then the definition. Those of a rate come one after the other, or, if others may
        have been taken just now, after a whole period."""
        channel = await link.open_channel(confirms=True)
        await guard(channel.queue_delete(self._queue))
        # The cooling ones before the others: what cools would go to the new queue.
        for name in (self._amendment, self._changes, self.places, self.cooling, self.rate):
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
        await guard(channel.queue_declare(self._queue, durable=True, arguments=self._arguments(rule)))
        await close_channel(channel)

    def _arguments(self, rule: Rule) -> dict[str, Any]:
        arguments: dict[str, Any] = {
            "x-queue-type": "classic",
            "x-max-length": rule.at_once,
            "x-max-length-bytes": rule.per_period,
            "x-message-ttl": round(rule.period * 1000),
        }
        if self._expires:
            arguments["x-expires"] = KEY_EXPIRES_MS
        return arguments

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
                properties=Basic.Properties(delivery_mode=2, expiration=expiration, message_id=TOKEN),
            )
            for queue, expiration in tokens
        )
    )


async def _nothing(message: DeliveredMessage) -> None:
    """Take what is published to a definition, where nothing belongs."""
