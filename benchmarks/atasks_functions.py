"""The atasks that the benchmarks call."""

from __future__ import annotations

import asyncio

from atasks import atask

__all__ = ["echo", "tree"]


@atask
async def echo(payload: bytes) -> bytes:
    return payload


@atask
async def tree(depth: int) -> int:
    """Return the number of calls in the tree, see `benchmarks.load.Client.tree`."""
    if not depth:
        return 1
    return 1 + sum(await asyncio.gather(tree(depth - 1), tree(depth - 1)))
