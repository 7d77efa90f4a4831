"""The life of a worker: from its start to the end of its drain, or to the loss of its transport."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from typing import TYPE_CHECKING, Final

from atasks.errors import TransportError
from atasks.outlast import shield
from atasks.tracking import snapshots
from atasks.wire import plain
from atasks.worker.drain import drain
from atasks.worker.loop_guard import LoopGuard
from atasks.worker.watchdog import Watchdog

if TYPE_CHECKING:
    import threading
    from collections.abc import Sequence

    from atasks.worker.held_call import HeldCall
    from atasks.worker.worker import Worker

__all__ = ["Life", "new_worker_id"]

logger = logging.getLogger("atasks.worker")

TICKING_PATIENCE: Final = 6.0
"""Seconds that a drain waits until another worker may keep the times of schedules."""


def new_worker_id() -> str:
    """Return a name for a worker that no other one has: its host, its process, and a random number."""
    host = "".join(letter if plain(letter) else "-" for letter in socket.gethostname()[:24])
    return f"{host}.{os.getpid()}.{os.urandom(4).hex()}"


class Life:
    """Starts and drains one worker, with everything that watches it while it serves. See `Worker`."""

    def __init__(self, worker: Worker, watchdog: Watchdog) -> None:
        self._worker = worker
        self._watchdog = watchdog
        self._stopped: asyncio.Future[None] = worker.loop.create_future()
        self._drain_task: asyncio.Task[None] | None = None
        self._guard: LoopGuard | None = None
        self._ticking: asyncio.Task[None] | None = None
        """Keeps the times of schedules, when it is this worker's turn."""

    async def start(self, queues: Sequence[str] | None = None) -> None:
        """Take calls from now on; `queues` None: those of the atasks that are registered."""
        worker, transport = self._worker, self._worker.transport
        if queues is not None:
            worker.served.warn_of_unused(queues, transport.queue)
        self._guard = LoopGuard.enter(worker.loop)
        try:
            await transport.serve(worker, queues)
        except BaseException:
            self._stop_watching()
            raise
        transport.serves = worker
        snapshots.include(worker.counters)
        if transport.schedules is not None:
            from atasks.submitted.schedules import Ticker

            ticker = Ticker(worker.router, transport, transport.schedules)
            self._ticking = worker.loop.create_task(ticker.run(), name="atasks schedules")

    async def wait(self) -> None:
        """Return when it has drained; raise the TransportError that stopped it, if one did."""
        await shield(self._stopped)

    def fail(self, error: TransportError) -> None:
        """The transport is lost for good: `wait` raises."""
        if not self._stopped.done():
            self._stopped.set_exception(error)
            # Mark it as retrieved: if nobody waits for the worker, this log line tells of the error.
            self._stopped.exception()
            logger.error("worker %s stops: %s", self._worker.id, error)

    async def drain(self, grace: float = 30.0) -> None:
        """Take no more calls, give back those that have not started, let the running ones finish within `grace`
        seconds, then cancel and give back the rest. Safe to call again: every caller waits for the one drain."""
        if self._drain_task is None:
            self._drain_task = self._worker.loop.create_task(self._drain(grace), name="atasks drain")
        await shield(self._drain_task)

    async def _drain(self, grace: float) -> None:
        worker = self._worker
        worker.draining = True
        if worker.watching is not None:
            worker.watching.state("draining")
        try:
            await self._stop_ticking()
            await drain(worker, worker.loop.time() + grace)
        finally:
            if worker.transport.serves is worker:
                worker.transport.serves = None
            await worker.pools.close()
            self._stop_watching()
            if not self._stopped.done():
                self._stopped.set_result(None)

    async def _stop_ticking(self) -> None:
        """Leave the times of schedules to another worker."""
        ticking, self._ticking = self._ticking, None
        if ticking is not None:
            ticking.cancel()
            await asyncio.wait([ticking], timeout=TICKING_PATIENCE)

    def threads(self) -> list[tuple[threading.Thread, HeldCall]]:
        """The threads of `asyncio.to_thread` that run functions of its calls."""
        return [] if self._guard is None else self._guard.threads_of(self._worker)

    def _stop_watching(self) -> None:
        self._watchdog.stop()
        snapshots.forget(self._worker.counters)
        if self._worker.watching is not None:
            self._worker.watching.stop()
        guard, self._guard = self._guard, None
        if guard is not None:
            guard.leave()

    @property
    def is_torn_down(self) -> bool:
        """The event loop of this worker ends, and everything in it is cancelled."""
        return self._guard is not None and self._guard.is_torn_down
