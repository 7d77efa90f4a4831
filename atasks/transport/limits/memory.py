"""Tokens of this process, for the loopback transport."""

from __future__ import annotations

import asyncio

from atasks.errors import NotConnected
from atasks.policies.limit import Rule
from atasks.transport.limits.contract import MAX_KEYS, Limits, Token, agree, too_many
from atasks.transport.limits.pool import TokenPool

__all__ = ["MemoryLimits", "Pools"]


class Pools:
    """The limits of one process, by name and key."""

    def __init__(self) -> None:
        self._pools: dict[tuple[str, str | None], TokenPool] = {}

    def change(self, name: str, rule: Rule) -> None:
        """A limit that nobody uses has this rule now."""
        for found, pool in list(self._pools.items()):
            if found[0] == name and pool.rule != rule:
                pool.close()
                del self._pools[found]

    def find(self, name: str, key: str | None, rule: Rule) -> TokenPool:
        """That of a limit. Raises LimitError if it has another rule, also for another value of its key."""
        pool = self._pools.get((name, key))
        if pool is not None:
            agree(name, rule, [pool.rule])
        else:
            agree(name, rule, (other.rule for (limit, _), other in self._pools.items() if limit == name))
            if len(self._pools) >= MAX_KEYS:
                self._tidy(name, is_keyed=key is not None)
            pool = self._pools[name, key] = TokenPool(rule)
        return pool

    @property
    def names(self) -> set[str]:
        """Those of the limits that tokens are kept of."""
        return {name for name, _ in self._pools}

    def _tidy(self, name: str, *, is_keyed: bool) -> None:
        for found, pool in list(self._pools.items()):
            if pool.idle:
                pool.close()
                del self._pools[found]
        if sum((key is not None) == is_keyed for _, key in self._pools) >= MAX_KEYS:
            raise too_many(name)

    @property
    def idle(self) -> bool:
        """Nothing would be different if all of them were made anew."""
        return all(pool.idle for pool in self._pools.values())

    def close(self) -> None:
        """Forget them."""
        for pool in self._pools.values():
            pool.close()
        self._pools.clear()


class MemoryLimits(Limits):
    """Counters of this process, from one connection to its end."""

    def __init__(self) -> None:
        self._pools = Pools()
        self._waiting: set[asyncio.Future[None]] = set()
        self._refusal: str | None = "this transport is not connected: await its connect() first"

    def open(self) -> None:
        """Take waiters: the transport is connected."""
        self._refusal = None

    async def take(self, name: str, key: str | None, rule: Rule) -> Token:
        if self._refusal is not None:
            raise NotConnected(self._refusal)
        granted: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def grant_it() -> None:
            if not granted.done():
                granted.set_result(None)

        grant = self._pools.find(name, key, rule).ask(grant_it)
        self._waiting.add(granted)
        try:
            await granted
        except BaseException:
            grant.release()
            raise
        finally:
            self._waiting.remove(granted)
        return grant

    def close(self, reason: str) -> None:
        """End all waiters in NotConnected: the transport is disconnected."""
        self._refusal = reason
        for granted in self._waiting:
            if not granted.done():
                granted.set_exception(NotConnected(reason))
        self._pools.close()
