"""`OtherWorkers`: looks for other workers of a queue, once for all calls that want to know."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from atasks.transport.backends.amqp.broker.errors import CLIENT_ERRORS

if TYPE_CHECKING:
    from atasks.transport.backends.amqp.broker.link import Link

__all__ = ["PAUSE", "OtherWorkers"]

PAUSE: Final = 0.05
"""Seconds between two looks: a worker that starts is seen a little later."""
KNOWN_SECONDS: Final = 0.5
"""Seconds for which what was seen is believed: anybody may send calls of unknown atasks, a thousand at a time."""


class OtherWorkers:
    """Counts the workers of a queue by its solo queue, which every worker consumes all the time."""

    def __init__(self, link: Callable[[], Link | None]) -> None:
        """`link`: the one that is served over now."""
        self._link = link
        self._locks: defaultdict[tuple[str, int], asyncio.Lock] = defaultdict(asyncio.Lock)
        self._known: dict[tuple[str, int], tuple[bool, float]] = {}
        """Solo queue and number of workers -> True if there were more, and until when that is believed (event loop
        time)."""

    async def beyond(self, solo: str, number: int) -> bool:
        """Return True if more workers than that number consume the solo queue. False where that cannot be seen:
        such an answer is believed by nobody else."""
        key, now = (solo, number), asyncio.get_running_loop().time
        async with self._locks[key]:
            there, until = self._known.get(key, (False, 0.0))
            link = self._link()
            if link is None:
                return False
            if now() >= until:
                try:
                    there = await self._look(link, solo, number)
                except CLIENT_ERRORS:
                    return False
                self._known[key] = there, now() + KNOWN_SECONDS
            return there

    async def _look(self, link: Link, solo: str, number: int) -> bool:
        for _ in range(2):
            state = await link.queue_state(solo)
            if state is not None and state[1] > number:
                return True
            await asyncio.sleep(PAUSE)
        return False
