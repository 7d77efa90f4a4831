"""Slots: the right to run a call. Calls that resume go ahead of calls that are new."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from atasks.worker.held_call import HeldCall

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
        self._crowd = 0
        self._crowded_at = 0.0
        self._going_on: HeldCall | None = None
        """A parked call of which a step runs, if no other call has done anything since."""
        self._began = 0.0
        """When that step began, by `time.perf_counter()`."""
        self._looks = False
        """True if it is looked for the end of the step in the next turn of the event loop."""

    def crowd(self, since: float = 0.0) -> tuple[int, float]:
        """Return how many calls had slots at once, as far as that was asked since then or is so now, and the time:
        both by `time.perf_counter()`."""
        now, taken = time.perf_counter(), self.size - self.free
        if taken >= self._crowd or self._crowded_at < since:
            self._crowd, self._crowded_at = taken, now
        if self._going_on is not None:
            self._going_on.work += now - self._began
            self._going_on = None
        return self._crowd, now

    def goes_on(self, call: HeldCall) -> None:
        """A parked call goes on, and remains parked: one of the calls that it awaits at once has ended. What it
        does until another call does something, or this turn of the event loop ends, is work."""
        self._began = self.crowd()[1]
        self._going_on = call
        if not self._looks:
            self._looks = True
            asyncio.get_running_loop().call_soon(self._look)

    def _look(self) -> None:
        self._looks = False
        self.crowd()

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
