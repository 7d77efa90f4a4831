"""Worker processes keep the memory that a large payload leaves for the next one."""

from __future__ import annotations

import gc
import resource
import sys
from pathlib import Path

import pytest

import atasks
from atasks import atask
from atasks.allocation import keep_freed_memory

NAMESPACE = "allocation"
PAGE = resource.getpagesize()
SIZE = 4 * 2**20
"""In eight pieces, none of which is large enough for shared memory."""


@atask(namespace=NAMESPACE)
async def same(content: list[bytes]) -> list[bytes]:
    """Return the content."""
    return content


@atask(namespace=NAMESPACE)
async def pages() -> int:
    """The pages of memory that the system has given to the process that runs it."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


@atask(namespace=NAMESPACE)
async def is_looked_through(module: str) -> bool:
    """True if the collector of the process that runs it looks through that module."""
    contents = vars(sys.modules[module])
    return any(item is contents for item in gc.get_objects())


async def new_memory(calls: int) -> float:
    """The memory that a worker is given anew for each call, in payloads."""
    async with atasks.local(workers=1, modules=[__name__], namespace=NAMESPACE):
        for _ in range(3):
            await same([bytes(SIZE // 8) for _ in range(8)])
        before = await pages()
        for _ in range(calls):
            await same([bytes(SIZE // 8) for _ in range(8)])
        return (await pages() - before) * PAGE / SIZE / calls


async def test_a_worker_keeps_the_memory_of_large_payloads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Unless the environment says otherwise."""
    assert await new_memory(20) < 0.5
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", str(2**20))
    assert await new_memory(20) > 1


async def test_a_worker_serves_where_python_reaches_no_library_of_c(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "sitecustomize.py").write_text('import sys\n\nsys.modules["_ctypes"] = None\n')
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    async with atasks.local(workers=1, modules=[__name__], namespace=NAMESPACE):
        assert await same([b"served"]) == [b"served"]


@pytest.mark.parametrize("error", [OSError, AttributeError])
def test_memory_stays_as_it_is_with_a_library_that_cannot_be_asked(
    error: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def refuse(name: str | None) -> None:
        asked.append(name)
        raise error

    monkeypatch.setattr("ctypes.CDLL", refuse)
    keep_freed_memory()
    assert asked == [None]


async def test_the_collector_of_a_worker_process_never_looks_through_what_atasks_imports() -> None:
    async with atasks.local(workers=1, modules=[__name__], namespace=NAMESPACE):
        for module in ("atasks.worker.worker", "atasks.router", "atasks.connection"):
            assert await is_looked_through(module) is False
        assert await is_looked_through(__name__) is True
