"""Processes that serve at a socket, and that a test may kill."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from tests.faults.workers import WorkerProcess

__all__ = ["Fleet"]


class Fleet:
    """Servers, which have the hub and run calls, and workers, which join it. All write to the same record. Options
    are those of `tests.faults.workers.serve`."""

    def __init__(self, path: str, record: Path) -> None:
        self.url = f"unix://{path}"
        self.record = record
        self.processes: list[WorkerProcess] = []

    async def start(self, count: int = 1, *, wait: bool = True, **options: Any) -> list[WorkerProcess]:
        """Start `count` workers, which serve when this returns, unless `wait` is false."""
        arguments = {"url": self.url, "caller_patience": 30.0, "hub": False, "grace": 30.0, **options}
        started = [WorkerProcess(self.record, arguments) for _ in range(count)]
        self.processes += started
        for process in started if wait else ():
            await asyncio.to_thread(process.wait_ready)  # the hub may be in this process
        return started

    async def server(self, **options: Any) -> WorkerProcess:
        """A process that has the hub, and serves."""
        (process,) = await self.start(hub=True, **options)
        return process

    async def worker(self, **options: Any) -> WorkerProcess:
        """A process that joins the hub."""
        (process,) = await self.start(**options)
        return process

    def close(self) -> None:
        """End what still runs, and show what they wrote."""
        for process in self.processes:
            print(f"--- process {process.pid}\n{process.output}")
            process.close()
