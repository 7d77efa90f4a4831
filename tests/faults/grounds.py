"""Places where the workers of a test run and a caller meets them: at the broker, or around a hub."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from atasks.testing import until
from atasks.transport.backends.local.hub.listener import Host
from tests.faults.workers import Fleet, WorkerProcess
from tests.local.fleet import Fleet as LocalFleet

__all__ = ["AMQPGround", "Ground", "LocalGround"]


CALLER_PATIENCE = 5.0
"""Seconds for which a caller may be away."""


class Ground:
    """`url` and `options` are for `atasks.connect`."""

    url: str
    options: dict[str, Any]

    @property
    def workers(self) -> list[WorkerProcess]:
        """All that were started."""
        raise NotImplementedError

    async def start(self, count: int = 1, *, wait: bool = True) -> list[WorkerProcess]:
        """Start `count` workers, which serve when this returns unless `wait` is false."""
        raise NotImplementedError

    async def start_one(self) -> WorkerProcess:
        (worker,) = await self.start()
        return worker

    async def quiet(self) -> None:
        """Return when nothing waits for a worker, and no worker has anything."""
        raise NotImplementedError


class AMQPGround(Ground):
    """At the broker."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self.url = fleet.broker.url
        self.options = {"prefix": fleet.prefix}

    @property
    def workers(self) -> list[WorkerProcess]:
        return self._fleet.workers

    async def start(self, count: int = 1, *, wait: bool = True) -> list[WorkerProcess]:
        # Workers make calls too: what those that are killed have called is not to wait for them for half a minute.
        return await asyncio.to_thread(self._fleet.start, count, wait=wait, caller_patience=CALLER_PATIENCE)

    async def quiet(self) -> None:
        await self._fleet.quiet()


class LocalGround(Ground):
    """Around a hub, which outlives all workers."""

    def __init__(self, host: Host, path: str, record: Path) -> None:
        self._host = host
        self.fleet = LocalFleet(path, record)
        self.url = self.fleet.url
        self.options = {"hub": False}

    @property
    def workers(self) -> list[WorkerProcess]:
        return self.fleet.processes

    async def start(self, count: int = 1, *, wait: bool = True) -> list[WorkerProcess]:
        return await self.fleet.start(count, wait=wait)

    async def quiet(self) -> None:
        await until(lambda: not len(self._host.hub), "the hub has no calls")
