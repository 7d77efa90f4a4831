"""Transports that a test makes itself, connected as `atasks.connect` does it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

from atasks import Transport
from atasks.connection import use

__all__ = ["using"]


@asynccontextmanager
async def using(transport: Transport) -> AsyncIterator[None]:
    """Connect the transport, and have the code in the block use it."""
    async with AsyncExitStack() as stack:
        await use(stack, transport)
        yield
