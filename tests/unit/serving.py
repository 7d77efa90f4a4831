"""Help for tests of workers in this process: serving, and looking at workers."""

# Private attributes: `ThreadPool._parked`: threads that wait are counted nowhere else.

from __future__ import annotations

import asyncio
import threading
from typing import Any

import atasks
from atasks.current import serving
from atasks.definitions import ATask
from atasks.tasks import atask
from atasks.testing import PATIENCE
from atasks.worker.worker import Worker


def serve(namespace: str, **options: Any) -> Any:
    """`atasks.serve` over the loopback transport, without patience at its end."""
    return atasks.serve("loopback:", namespace=namespace, grace=0, **options)


async def happened(event: threading.Event) -> None:
    """Return when a thread has set the event."""
    assert await asyncio.to_thread(event.wait, PATIENCE)


def locating(namespace: str) -> ATask[[], int]:
    """An atask that tells over which loopback transport it was called: its `id`."""

    @atask(namespace=namespace)
    async def where() -> int:
        run = serving.get()
        assert run is not None
        return id(run.worker.transport)

    return where


def idle(worker: Worker) -> bool:
    """True if the worker holds no call, and all its slots and places in pools are free."""
    return (
        worker.slots.free == worker.concurrency
        and (worker.held, worker.unstarted, worker.parked, worker.pools.threads._parked) == (0, 0, 0, 0)
        and all(places.free == places.size for places in worker.pools.places.values())
    )
