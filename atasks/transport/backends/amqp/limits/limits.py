"""The limits of one namespace at the broker."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from atasks.errors import NotConnected
from atasks.policies.limit import Rule
from atasks.transport.backends.amqp.broker.link import Link
from atasks.transport.backends.amqp.limits.limit import BrokerLimit, BrokerToken
from atasks.transport.limits.contract import MAX_KEYS, Limits, agree, too_many

if TYPE_CHECKING:
    from atasks.transport.backends.amqp.session import Session

__all__ = ["AMQPLimits"]

IDLE_SECONDS: Final = 60.0
"""Seconds for which the queues of a value of a key are looked after when nobody here uses them."""


class AMQPLimits(Limits):
    """The limits that this process uses. What waits over one link goes on over the next one; what is held over one
    that is lost goes back."""

    follows_the_youngest = True

    def __init__(self, session: Session, consumer_timeout: float) -> None:
        self._session = session
        self._consumer_timeout = consumer_timeout
        self._link: Link | None = None
        self._refusal: str | None = "this transport is not connected: await its connect() first"
        self._limits: dict[tuple[str, str | None], BrokerLimit] = {}
        self._entering = asyncio.Lock()
        """The broker knows one holder of a lock: this connection."""
        self._closing: set[asyncio.Task[None]] = set()

    def attach(self, link: Link) -> None:
        """Work over this link from now on."""
        self._link = link
        self._refusal = None
        for limit in self._limits.values():
            limit.attach(link)

    def detach(self) -> None:
        """The link is gone."""
        self._link = None
        for limit in self._limits.values():
            limit.detach()

    def refuse(self, reason: str) -> None:
        """There will be no other link: what waits for one ends in NotConnected."""
        self._refusal = reason
        self._link = None
        for limit in self._limits.values():
            limit.fail(NotConnected(reason))

    async def close(self) -> None:
        """Return when nothing runs here any more."""
        for limit in list(self._limits.values()):
            await limit.close()
        self._limits.clear()
        while self._closing:
            await asyncio.wait(self._closing)

    async def take(self, name: str, key: str | None, rule: Rule) -> BrokerToken:
        if self._refusal is not None:
            raise NotConnected(self._refusal)
        limit = self._limits.get((name, key))
        if limit is None:
            limit = self._use(name, key, rule)
        else:
            agree(name, rule, [limit.rule])
        limit.used = asyncio.get_running_loop().time()
        return await limit.take()

    def _use(self, name: str, key: str | None, rule: Rule) -> BrokerLimit:
        whole: BrokerLimit | None = None
        if key is not None:
            self._tidy(name)
            whole = self._limits.get((name, None)) or self._use(name, None, rule)
        agree(name, rule, (other.rule for (limit, _), other in self._limits.items() if limit == name))
        limit = BrokerLimit(
            self._session.topology,
            name,
            key,
            rule,
            self._session.urls[0],
            self._consumer_timeout,
            self._entering,
            lambda failed: self._forget(name, key, failed),
            whole,
        )
        self._limits[name, key] = limit
        if self._link is not None:
            limit.attach(self._link)
        return limit

    def _forget(self, name: str, key: str | None, limit: BrokerLimit) -> None:
        """Forget a limit that cannot be used as it was said: whoever comes next tries again."""
        if self._limits.get((name, key)) is limit:
            del self._limits[name, key]

    def _tidy(self, name: str) -> None:
        """Let go of values of keys that were not used for a while. Raises LimitError if there are too many."""
        now = asyncio.get_running_loop().time()
        keyed = [item for item in self._limits.items() if item[1].key is not None]
        idle = [item for item in keyed if not item[1].in_use]
        full = len(keyed) >= MAX_KEYS
        if full and not idle:
            raise too_many(name)
        for found, limit in idle:
            if full or now - limit.used > IDLE_SECONDS:
                del self._limits[found]
                task = asyncio.get_running_loop().create_task(limit.close(), name="atasks limit")
                self._closing.add(task)
                task.add_done_callback(self._closing.discard)
