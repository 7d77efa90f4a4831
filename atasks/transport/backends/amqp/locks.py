"""Locks at the broker: each is an exclusive queue, which one connection can have, and which goes with it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar
from weakref import WeakValueDictionary

from aiormq.exceptions import ChannelLockedResource

from atasks.errands import Errands
from atasks.pauses import pauses
from atasks.transport.backends.amqp.broker.link import Link, shielded

__all__ = ["Locks"]

T = TypeVar("T")

PAUSES: Final = (0.05, 1.0)
"""Seconds between two tries to take a lock that another connection has: the first pause, and the longest."""
AT_ONCE: Final = 32
"""Locks that the broker is asked for at a time: each of the others waits without a task of its own."""


class Locks:
    """The locks of one transport.

    The broker frees the locks of a link when it gives the deliveries of that link to others. So whoever is given
    a call can take its lock, unless a worker that lives runs another copy of the call.

    The broker is asked one thing after the other for each lock, in the order in which that is wanted here. What is
    asked goes on when its await is cancelled: so a lock that is given back after that is free in the end.
    """

    def __init__(self) -> None:
        self._held: dict[str, Link] = {}
        """Name -> the link over which it was taken."""
        self._room = asyncio.Semaphore(AT_ONCE)
        self._turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        """Name -> held by what is asked of the broker for this lock: one thing after the other."""
        self._errands = Errands("atasks lock")

    async def take(self, name: str, link: Link, declare: Callable[[], Awaitable[bool]]) -> None:
        """Return when this lock is held over the link, as `try_to_take`."""
        for pause in pauses(*PAUSES):
            if await self.try_to_take(name, link, declare):
                break
            await asyncio.sleep(pause)

    async def try_to_take(self, name: str, link: Link, declare: Callable[[], Awaitable[T]]) -> T | None:
        """Take this lock over the link by `declare()`, which may declare what it guards in the same round trip.
        Returns what that returns, which is true; else another connection has the lock, and nothing is declared.
        Raises what that raises. If the await is cancelled, or raises, `give` it."""
        async with self._room:
            return await shielded(self._errands.start(self._try(name, link, declare)))

    async def ask(self, name: str, question: Callable[[], Awaitable[T]]) -> T:
        """Ask the broker something about what this lock guards, in the turn of that lock."""
        return await shielded(self._errands.start(self._ask(name, question)))

    def give(self, name: str, release: Callable[[Link | None], Awaitable[bool]]) -> None:
        """Give a lock back, without waiting, by `release(link)`, which is told over which link it was taken, if it
        is held here. That raises nothing, and returns False if the lock stays."""
        self._errands.start(self._give(name, release))

    async def given(self) -> None:
        """Return when nothing is asked of the broker any more."""
        await self._errands.ended()

    async def close(self) -> None:
        """Do nothing any more."""
        await self._errands.cancel()

    def _turn(self, name: str) -> asyncio.Lock:
        return self._turns.setdefault(name, asyncio.Lock())

    async def _ask(self, name: str, question: Callable[[], Awaitable[T]]) -> T:
        async with self._turn(name):
            return await question()

    async def _try(self, name: str, link: Link, declare: Callable[[], Awaitable[T]]) -> T | None:
        async with self._turn(name):
            self._held[name] = link  # the broker may have given it even if `declare` raises
            try:
                found = await declare()
            except ChannelLockedResource:
                found = None
            if not found:
                del self._held[name]
            return found

    async def _give(self, name: str, release: Callable[[Link | None], Awaitable[bool]]) -> None:
        async with self._turn(name):
            if await release(self._held.get(name)):
                self._held.pop(name, None)
