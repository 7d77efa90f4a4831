"""Worker processes keep the memory that a large payload leaves for the next one."""

from __future__ import annotations

import resource

import pytest

import atasks
from atasks import atask

NAMESPACE = "allocation"
PAGE = resource.getpagesize()
SIZE = 4 * 2**20


@atask(namespace=NAMESPACE)
async def same(content: bytes) -> bytes:
    """Return the content."""
    return content


@atask(namespace=NAMESPACE)
async def pages() -> int:
    """The pages of memory that the system has given to the process that runs it."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


async def new_memory(calls: int) -> float:
    """The memory that a worker is given anew for each call, in payloads."""
    async with atasks.local(workers=1, modules=[__name__], namespace=NAMESPACE):
        for _ in range(3):
            await same(bytes(SIZE))
        before = await pages()
        for _ in range(calls):
            await same(bytes(SIZE))
        return (await pages() - before) * PAGE / SIZE / calls


async def test_a_worker_keeps_the_memory_of_large_payloads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Unless the environment says otherwise."""
    assert await new_memory(20) < 0.5
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", str(2**20))
    assert await new_memory(20) > 1
