"""Ways in which awaits end before their calls do."""

from __future__ import annotations

import asyncio

import pytest

__all__ = ["by_cancel", "by_timeout"]


async def by_timeout(calls: list[asyncio.Task[object]]) -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.1):
            await asyncio.gather(*calls)


async def by_cancel(calls: list[asyncio.Task[object]]) -> None:
    for call in calls:
        call.cancel()
    await asyncio.wait(calls)
