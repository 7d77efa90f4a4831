"""A clock for bounds on how long something may take, on machines that may be busy with other things."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

__all__ = ["Pace", "keeping_pace"]

TICK = 0.01


class Pace:
    """A clock that counts sleeps of 10 ms. On an idle machine it goes as the wall clock does; where other programs
    keep this one from running it goes slower, as everything else here does."""

    def __init__(self) -> None:
        self.ticks = 0

    @property
    def seconds(self) -> float:
        """Seconds since the beginning, as an idle machine would have had them."""
        return TICK * self.ticks


@asynccontextmanager
async def keeping_pace() -> AsyncIterator[Pace]:
    """Count as long as this block lasts."""
    pace = Pace()

    async def tick() -> None:
        while True:
            await asyncio.sleep(TICK)
            pace.ticks += 1

    task = asyncio.create_task(tick())
    try:
        yield pace
    finally:
        task.cancel()
        await asyncio.wait([task])
