"""Slots: the right to run a call. Calls that resume go ahead of calls that are new."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

__all__ = ["Slots"]


class Slots:
    """`size` slots, and the calls that wait to take one again.

    A parked call holds none. On resuming it takes a slot ahead of every new call; while it waits for one it holds
    nothing, so calls that await calls cannot deadlock.
    """

    def __init__(self, size: int, on_free: Callable[[], None]) -> None:
        self.size = size
        self.free = size
        self._on_free = on_free
        self._resuming: deque[asyncio.Future[None]] = deque()

    def take(self, count: int = 1) -> int:
        """Take up to `count` free slots for a new call, at least one; returns how many."""
        assert self.free, "a call was started without a free slot"
        taken = min(count, self.free)
        self.free -= taken
        return taken

    def give(self, count: int = 1) -> None:
        """Give slots back: to the calls that have waited longest to resume, else to whoever comes."""
        while count and self._resuming:
            waiter = self._resuming.popleft()
            if not waiter.done():
                waiter.set_result(None)
                count -= 1
        if count:
            self.free += count
            self._on_free()

    async def retake(self) -> None:
        """Take a slot for a call that resumes, waiting for one if need be. If cancelled, it took none."""
        if self.free:
            self.free -= 1
            return
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._resuming.append(waiter)
        try:
            await waiter
        except asyncio.CancelledError:
            # The waiter got a slot and was cancelled in the same turn: pass the slot on.
            if waiter.done() and not waiter.cancelled():
                self.give()
            raise

    async def retake_in_spite(self, unless: Callable[[], object]) -> bool:
        """Take a slot ahead of all others for a call that was cancelled while it waited for one, however often it
        is cancelled meanwhile: level cancellation, as anyio has it, repeats itself in every turn of the loop.

        Returns whether it took one. It stops waiting if it is cancelled when `unless` says that it needs none.
        """
        if self.free:
            self.free -= 1
            return True
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._resuming.appendleft(waiter)
        while not waiter.done():
            try:
                await asyncio.wait((waiter,))
            except asyncio.CancelledError:
                if not waiter.done() and unless():
                    waiter.cancel()
                    return False
        return True
