"""Turns of the calls that run alone and of those that run together, at one worker."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

__all__ = ["Turns"]

SHORTEST: Final = 0.02
LONGEST: Final = 10.0
BREATH: Final = 0.1
"""Seconds within which the next of the others comes, if there is one."""


class Turns:
    """Gives calls that run alone at one worker every second turn at most.

    After one of them the others have a turn: as long as it ran, `LONGEST` seconds at most, but no longer than
    there are any. Without others the next one runs alone after a breath.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, look: Callable[[], None]) -> None:
        """`look()` is called when a turn of the others may be over."""
        self._loop = loop
        self._tell = look
        self._since = 0.0
        self._soonest = self._latest = 0.0
        self.timer: asyncio.TimerHandle | None = None
        """Set while a turn of the others is on, or may be; None: `other_ended` has nothing to do."""

    @property
    def latest(self) -> float:
        """When the turn of the others is over, or was (event loop time)."""
        return self._latest

    def begin_alone(self) -> None:
        """A call begins to run alone."""
        self._since = self._loop.time()

    def end_alone(self) -> None:
        """End the turn of the call that ran alone: the turn of the others begins."""
        now = self._loop.time()
        self._latest = now + max(SHORTEST, min(now - self._since, LONGEST))
        self._breathe(now)

    def other_ended(self) -> None:
        """One of the others has ended: the next one may come in a moment."""
        if self.timer is not None:
            self._breathe(self._loop.time())

    def resting(self, others: bool) -> bool:
        """Return True if no call may run alone for now. `others` says that there are calls that may run
        together."""
        now = self._loop.time()
        return now < self._soonest or (others and now < self._latest)

    def _breathe(self, now: float) -> None:
        if self.timer is not None:
            self.timer.cancel()
        self._soonest = min(now + BREATH, self._latest)
        self.timer = self._loop.call_at(self._soonest, self._look)

    def _look(self) -> None:
        self.timer = None
        if self._loop.time() < self._latest:
            self.timer = self._loop.call_at(self._latest, self._look)
        self._tell()
