"""One limit, as this process uses it at the broker."""

from __future__ import annotations

import asyncio
import logging
import weakref
from collections.abc import Callable
from typing import Final

from aiormq.channel import Channel
from aiormq.exceptions import ChannelAccessRefused

from atasks.errors import LimitError, TransportError
from atasks.outlast import apart, shield
from atasks.policies.limit import Rule
from atasks.transport.backends.amqp.broker.errors import CLIENT_ERRORS, map_error
from atasks.transport.backends.amqp.broker.link import Link
from atasks.transport.backends.amqp.broker.topology import Topology
from atasks.transport.backends.amqp.limits.definition import Definition
from atasks.transport.backends.amqp.limits.tokens import HeldToken, TokenChannel, TokenQueue

__all__ = ["BrokerLimit", "BrokerToken"]

logger = logging.getLogger("atasks.amqp")

PAUSE: Final = (0.05, 5.0)
"""Seconds before the first and, at most, before any later attempt to use the limit again."""


class BrokerLimit:
    """Takes tokens of one limit, over one link after the other."""

    def __init__(
        self,
        topology: Topology,
        name: str,
        key: str | None,
        rule: Rule,
        url: str,
        consumer_timeout: float,
        entering: asyncio.Lock,
        failed: Callable[[BrokerLimit], None],
        whole: BrokerLimit | None = None,
    ) -> None:
        """`whole`: where this is for one value of the key, the limit of that name, which has the rule of all
        values."""
        self.rule = rule
        self.key = key
        self.used = 0.0
        """When it was used last, in event loop time."""
        self._name = name
        self._url = url
        self._renew_age = consumer_timeout / 2
        self._entering = entering
        self._failed = failed
        self._whole = whole
        self._values: weakref.WeakSet[BrokerLimit] = weakref.WeakSet()
        """Those for the values of the key, where this is the limit of that name."""
        if whole is not None:
            whole._values.add(self)
        self._definition = Definition(topology, name, key, rule)
        self._entered = asyncio.Event()
        """Set while this process counts as a user, or is refused."""
        self._refusal: Exception | None = None
        self._places = TokenQueue(self._definition.places, rule.at_once) if rule.at_once else None
        self._rate = TokenQueue(self._definition.rate, rule.per_period) if rule.per_period else None
        self._known = False
        """True once this process has used it: from then on, younger declarations hold."""
        self._queues = [queue for queue in (self._places, self._rate) if queue is not None]
        self._life: asyncio.Task[None] | None = None
        self._loop = asyncio.get_running_loop()

    @property
    def in_use(self) -> bool:
        """Somebody waits for a token, or holds one."""
        return any(queue.in_use for queue in self._queues) or any(value.in_use for value in self._values)

    def _is_wanted(self) -> bool:
        """False if nobody waits for it any more: one more declaration of its number might change that."""
        return self._known or self.in_use

    def _let_go(self) -> None:
        """Nobody wants it, nor any value of its key: whoever comes next begins with new ones."""
        for limit in (self, *self._values):
            limit._failed(limit)
        for value in self._values:
            value.detach()

    def attach(self, link: Link) -> None:
        """Use it over this link from now on."""
        self.detach()
        self._entered.clear()
        self._life = apart(self._live(link), f"atasks limit {self._name}")

    def detach(self) -> None:
        """The link is gone: those who wait do so until there is another one."""
        if self._life is not None:
            self._life.cancel()
        for queue in self._queues:
            queue.detach()

    def fail(self, error: Exception) -> None:
        """End every wait with this error."""
        for queue in self._queues:
            queue.fail(error)

    async def close(self) -> None:
        """Return when nothing runs here any more."""
        self.detach()
        if self._life is not None:
            await asyncio.wait((self._life,))
        for queue in self._queues:
            await queue.close()

    async def take(self) -> BrokerToken:
        """A token of each kind that the rule needs."""
        while True:
            tokens: list[HeldToken] = []
            try:
                for queue in self._queues:
                    tokens.append(await queue.take())  # noqa: PERF401  what was taken before is given back
            except BaseException:
                for token in tokens:
                    token.give_back()
                raise
            if all(token.is_held for token in tokens):
                return BrokerToken(self._loop, tokens, self._rate)
            for token in tokens:  # the connection was lost while this call waited for its second token
                token.give_back()

    async def _live(self, link: Link) -> None:
        """Use it over this link, and again after what went wrong, until that is gone."""
        pause, longest = PAUSE
        while not link.lost.done():
            channel: Channel | None = None
            try:
                if self._whole is not None:
                    self._definition.rule = await self._whole.current(link)
                async with self._entering:
                    # The rule of a value is that of the whole limit, whatever it was before.
                    known = self._known and self._whole is None
                    channel = await self._definition.enter(link, self._is_wanted, known=known)
                if channel is None:
                    if self._is_wanted():  # somebody has come since it was this one's turn
                        continue
                    self._let_go()
                    return
                self._known = True
                self._entered.set()
                await self._serve(channel)
                pause = PAUSE[0]
            except (LimitError, TransportError) as error:
                self._give_up(error)
                return
            except CLIENT_ERRORS as error:
                if isinstance(error, ChannelAccessRefused):
                    self._give_up(map_error(error, self._url))
                    return
                logger.warning("limit %r cannot be used for now, and is tried again: %s", self._name, error)
            finally:
                if channel is not None and not channel.is_closed:
                    await shield(channel.close())
            await asyncio.sleep(pause)
            pause = min(pause * 2, longest)

    async def _serve(self, channel: Channel) -> None:
        """Take tokens over this channel until it is closed, and renew those that are held for long."""
        lost: asyncio.Future[None] = self._loop.create_future()

        def lose(_: object) -> None:
            if not lost.done():
                lost.set_result(None)

        channel.on_consumer_cancel_callbacks.add(lose)
        channel.closing.add_done_callback(lose)
        tokens = TokenChannel(channel)
        for queue in self._queues:
            queue.attach(tokens)
        surplus = [
            self._loop.create_task(queue.take_away(), name=f"atasks limit {self._name}")
            for queue, count in zip((self._places, self._rate), self._definition.surplus, strict=True)
            if queue is not None
            for _ in range(count)
        ]
        try:
            while not lost.done():
                await asyncio.wait((lost,), timeout=self._renew_age / 2)
                for queue in self._queues:
                    await queue.renew(self._renew_age)
        finally:
            for task in surplus:
                task.cancel()
            if surplus:
                await asyncio.wait(surplus)
            tokens.close()
            for queue in self._queues:
                queue.detach()

    async def current(self, link: Link) -> Rule:
        """Return the rule that holds for all values of the key. Raises the error for which it was given up."""
        await self._entered.wait()
        if self._refusal is not None:
            raise self._refusal
        async with self._entering:
            return await self._definition.current(link)

    def _give_up(self, error: Exception) -> None:
        self._refusal = error
        self._entered.set()
        self._failed(self)
        self.fail(error)


class BrokerToken:
    """The tokens of a limit that one call holds."""

    __slots__ = ("_loop", "_rate", "_tokens")

    def __init__(self, loop: asyncio.AbstractEventLoop, tokens: list[HeldToken], rate: TokenQueue | None) -> None:
        self._loop = loop
        self._tokens = tokens
        self._rate = rate

    def begin(self) -> None:
        """Begin the work that the token was taken for: a token of a rate is spent now."""
        if self._rate is not None:
            for token in self._tokens:
                if token.queue is self._rate:
                    token.spend()

    def release(self) -> None:
        """Give the token back: the work has ended, or will not begin."""
        for token in self._tokens:
            token.give_back()

    def release_soon(self) -> None:
        """Give the token back, from any thread."""
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self.release)
