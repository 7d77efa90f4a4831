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
LOOKS: Final = 8
"""Looks in a row for as many calls: who comes after them believes what was seen last, since anybody may send calls
of unknown atasks, a thousand at a time."""
KNOWN_SECONDS: Final = 0.5
"""Seconds for which that is believed, and without a call after which a row of looks begins anew."""


class _Seen:
    """The last look, for workers beyond a number of them."""

    __slots__ = ("asked", "lock", "looked", "looks", "there")

    def __init__(self) -> None:
        self.lock = asyncio.Lock()
        """Whoever looks has it: others wait for what is seen."""
        self.there = False
        self.looks = 0
        """Those in this row."""
        self.looked = self.asked = 0.0
        """When the last look ended, and when a call last wanted to know (event loop time)."""


class OtherWorkers:
    """Counts the workers of a queue by its solo queue, which every worker consumes all the time."""

    def __init__(self, link: Callable[[], Link | None]) -> None:
        """`link`: the one that is served over now."""
        self._link = link
        self._seen: defaultdict[tuple[str, int], _Seen] = defaultdict(_Seen)
        """Solo queue and number of workers -> what was seen."""

    async def beyond(self, solo: str, number: int) -> bool:
        """Return True if more workers than that number consume the solo queue. False where that cannot be seen:
        such an answer is believed by nobody else."""
        seen, now = self._seen[solo, number], asyncio.get_running_loop().time
        async with seen.lock:
            link = self._link()
            if link is None:
                return False
            if now() - seen.asked >= KNOWN_SECONDS:
                seen.looks = 0
            if seen.looks < LOOKS or now() - seen.looked >= KNOWN_SECONDS:
                try:
                    seen.there = await self._look(link, solo, number)
                except CLIENT_ERRORS:
                    return False
                seen.looks += 1
                seen.looked = now()
            seen.asked = now()
            return seen.there

    async def _look(self, link: Link, solo: str, number: int) -> bool:
        for _ in range(2):
            state = await link.queue_state(solo)
            if state is not None and state[1] > number:
                return True
            await asyncio.sleep(PAUSE)
        return False
