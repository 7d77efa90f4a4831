"""Waiting inside an atask without a slot."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from atasks.current import serving_here

__all__ = ["parked", "sleep"]


@asynccontextmanager
async def parked(give_up: Callable[[], None] | None = None) -> AsyncIterator[None]:
    """A block in which the call that is being served here holds no slot, as while it awaits another call.

    At the end of the block it waits for a slot again; `give_up` is called if it is cancelled over that. Outside of
    a call the block does nothing. Raises TooManyParked at the worker's bound.
    """
    run = serving_here()
    if run is None:
        yield
        return
    run.park()
    try:
        yield
    finally:
        await run.unpark(give_up)


async def sleep(seconds: float) -> None:
    """Wait for so many seconds. Inside an atask the call is parked meanwhile: it holds no slot of its worker, so
    other calls run. It goes on when the time has passed and there is a slot.

    Outside an atask it is `asyncio.sleep`. Cancelling it ends it at once. A worker that drains gives a call that
    sleeps to another worker, where it begins anew, if another one serves its queue.

    Raises TooManyParked at the worker's bound of waiting calls.
    """
    async with parked():
        await asyncio.sleep(seconds)
