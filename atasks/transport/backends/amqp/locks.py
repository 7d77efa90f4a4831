"""Locks at the broker: each is an exclusive queue, which one connection can have, and which goes with it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Final, TypeVar
from weakref import WeakValueDictionary

from aiormq.exceptions import ChannelLockedResource

from atasks.errands import Errands
from atasks.pauses import pauses
from atasks.transport.backends.amqp.broker.errors import CLIENT_ERRORS
from atasks.transport.backends.amqp.broker.link import Link, shielded

__all__ = ["Locks"]

T = TypeVar("T")

PAUSES: Final = (0.05, 1.0)
"""Seconds between two tries to take a lock that another connection has: the first pause, and the longest."""


class Locks:
    """The locks of one transport.

    The broker frees the locks of a link when it gives the deliveries of that link to others. So whoever is given
    a call can take its lock, unless a worker that lives runs another copy of the call.
    """

    def __init__(self) -> None:
        self._wanted: set[str] = set()
        self._held: dict[str, Link] = {}
        """Name -> the link over which it was taken."""
        self._turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        """Name -> held by what is asked of the broker for this lock: one thing after the other."""
        self._errands = Errands("atasks lock")

    async def take(self, name: str, link: Link) -> None:
        """Return when this lock is held over the link. Raises one of `CLIENT_ERRORS`. If the await is cancelled,
        or raises, `give` it."""
        for pause in pauses(*PAUSES):
            if await self.take_with(name, link, link.lock):
                break
            await asyncio.sleep(pause)

    async def take_with(self, name: str, link: Link, declare: Callable[..., Awaitable[T]]) -> T | None:
        """Take this lock over the link, and declare what it guards in one round trip, by `declare(lock=name)`.
        Returns what that returns, which is true; else another connection has the lock, and nothing is declared.
        Raises what that raises. If the await is cancelled, or raises, `give` it."""
        self._wanted.add(name)
        return await shielded(self._errands.start(self._try(name, link, declare)))

    def give(self, name: str) -> None:
        """Give a lock back, without waiting, unless it is taken again meanwhile."""
        self._wanted.discard(name)
        self._errands.start(self._give(name))

    async def given(self) -> None:
        """Return when nothing is asked of the broker any more."""
        await self._errands.ended()

    async def close(self) -> None:
        """Do nothing any more."""
        await self._errands.cancel()

    async def _try(self, name: str, link: Link, declare: Callable[..., Awaitable[T]]) -> T | None:
        async with self._turns.setdefault(name, asyncio.Lock()):
            if name not in self._wanted:
                return None
            self._held[name] = link  # the broker may have given it even if `declare` raises
            try:
                found = await declare(lock=name)
            except ChannelLockedResource:
                found = None
            if not found:
                del self._held[name]
            return found

    async def _give(self, name: str) -> None:
        async with self._turns.setdefault(name, asyncio.Lock()):
            if name not in self._wanted and (link := self._held.pop(name, None)) is not None:
                with suppress(*CLIENT_ERRORS):
                    await link.delete_queue(name)
