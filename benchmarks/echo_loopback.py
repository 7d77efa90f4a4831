"""atasks without a broker: the caller is the worker, but codec, slots and deadlines are the real ones."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import atasks
from atasks import atask
from benchmarks.harness import Echo, System

__all__ = ["SYSTEM"]

NAMESPACE = "loopback"
"""Its own, because another system of the run connects the default one in the same event loop."""


@atask(namespace=NAMESPACE)
async def echo(payload: bytes) -> bytes:
    return payload


@asynccontextmanager
async def client(url: str, queue: str) -> AsyncIterator[Echo]:
    """Needs neither a URL nor a queue."""
    async with atasks.connect("loopback:", namespace=NAMESPACE):
        yield echo


SYSTEM = System("loopback", "atasks loopback", client)
