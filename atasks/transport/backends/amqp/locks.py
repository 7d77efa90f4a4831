"""Locks at the broker: each is an exclusive queue, which one connection can have, and which goes with it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, Final, TypeVar

from atasks.errands import Errands
from atasks.pauses import pauses
from atasks.transport.backends.amqp.broker.link import Link
from atasks.transport.backends.amqp.broker.questions import shielded

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
        self._turns: dict[str, asyncio.Task[Any]] = {}
        """Name -> what the broker was asked for this lock last, until it is done: one thing after the other."""
        self._errands = Errands("atasks lock")

    async def take(self, name: str, link: Link, declare: Callable[[], Awaitable[bool]]) -> None:
        """Return when this lock is held over the link, as `try_to_take`."""
        for pause in pauses(*PAUSES):
            if await self.try_to_take(name, link, declare):
                break
            await asyncio.sleep(pause)

    async def try_to_take(self, name: str, link: Link, declare: Callable[[], Awaitable[T]]) -> T | None:
        """Take this lock over the link by `declare()`, which may declare what it guards too.
        Returns what that returns, which is true; else another connection has the lock, and nothing is declared.
        Raises what that raises. If the await is cancelled, or raises, `give` it."""
        async with self._room:
            return await shielded(self._in_turn(name, partial(self._try, name, link, declare)))

    def try_at_once(
        self, name: str, link: Link, declare: Callable[[], Awaitable[T] | None]
    ) -> Awaitable[T | None] | None:
        """Do as `try_to_take`, by a `declare()` that asks the broker before it returns. None, and nothing is done:
        the broker is asked other things before that, or `declare()` returns None."""
        if name in self._turns or (asked := declare()) is None:
            return None
        return shielded(self._in_turn(name, partial(self._try, name, link, lambda: asked)))

    async def ask(self, name: str, question: Callable[[], Awaitable[T]]) -> T:
        """Ask the broker something about what this lock guards, in the turn of that lock."""
        return await shielded(self._in_turn(name, question))

    def give(self, name: str, release: Callable[[Link | None], Awaitable[bool]]) -> None:
        """Give a lock back, without waiting, by `release(link)`, which is told over which link it was taken, if it
        is held here. That raises nothing, and returns False if the lock stays."""
        self._in_turn(name, partial(self._give, name, release))

    async def given(self) -> None:
        """Return when nothing is asked of the broker any more."""
        await self._errands.ended()

    async def close(self) -> None:
        """Do nothing any more."""
        await self._errands.cancel()

    def _in_turn(self, name: str, question: Callable[[], Awaitable[T]]) -> asyncio.Task[T]:
        """Ask the broker this when it has answered what it was asked for that lock before."""
        task = self._errands.start(_behind(self._turns.get(name), question))
        self._turns[name] = task
        task.add_done_callback(partial(self._has_asked, name))
        return task

    def _has_asked(self, name: str, task: asyncio.Task[Any]) -> None:
        if self._turns.get(name) is task:
            del self._turns[name]

    async def _try(self, name: str, link: Link, declare: Callable[[], Awaitable[T]]) -> T | None:
        self._held[name] = link  # the broker may have given it even if `declare` raises
        found = await declare()
        if not found:
            del self._held[name]
        return found

    async def _give(self, name: str, release: Callable[[Link | None], Awaitable[bool]]) -> None:
        if await release(self._held.get(name)):
            self._held.pop(name, None)


async def _behind(other: asyncio.Task[Any] | None, question: Callable[[], Awaitable[T]]) -> T:
    if other is not None and not other.done():
        await asyncio.wait([other])
    return await question()
