"""The worker of a namespace that its router starts and stops: `Router.activate`, `Router.deactivate`."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from atasks.transport.contract import Transport
    from atasks.worker.served_tasks import Tasks
    from atasks.worker.worker import Worker

__all__ = ["Activation"]

_log = logging.getLogger("atasks")


class Activation:
    """Serves the atasks of one router, on one transport at a time."""

    def __init__(self, router: Tasks) -> None:
        self._router = router
        self.worker: Worker | None = None
        """The worker that was started here; None: nothing was activated, or a `serve` block has the worker."""
        self._serving: Worker | None = None
        """The worker that serves what was activated."""
        self.serves_all = False
        """True if the worker serves the queues of all atasks, not only those that were activated one by one."""
        self._serving_more: set[asyncio.Task[Worker]] = set()

    async def serve_on(self, transport: Transport, queues: Sequence[str] | None, concurrency: int = 100) -> Worker:
        """Serve these queues: see `Router.serve_on`."""
        from atasks.worker.worker import Worker  # which callers need not wait for

        worker = self.worker
        if worker is None and isinstance(transport.serves, Worker):
            worker = transport.serves  # that of a `serve` block, or of the command line
        elif worker is not None and worker.transport is not transport:
            serves_all = self.serves_all
            await self.end()
            worker, self.serves_all = None, serves_all
        if worker is None:
            worker = Worker(self._router, transport, concurrency=concurrency)
            await worker.start(queues)
            self.worker = worker
        else:
            known = worker.served.queues(transport.queue) if queues is None else queues
            await transport.serve_also(worker, known)
        self._serving = worker
        return worker

    def serve_later(self) -> None:
        """An atask was registered while the worker serves: serve its queue too, as soon as the event loop runs."""
        worker = self._serving

        def begin() -> None:
            if worker is not None and self._serving is worker and not worker.draining:
                task = worker.loop.create_task(self.serve_on(worker.transport, None), name="atasks new queue")
                self._serving_more.add(task)
                task.add_done_callback(self._served_more)

        if worker is not None and worker.loop.is_running():
            worker.loop.call_soon_threadsafe(begin)

    def _served_more(self, task: asyncio.Task[Worker]) -> None:
        self._serving_more.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.error("a queue of an atask that was defined just now is not served: %s", error)

    async def end(self, grace: float = 30.0) -> None:
        """Serve no more, and return when the worker has drained: see `Router.deactivate`."""
        worker, self.worker, self._serving = self.worker, None, None
        self.serves_all = False
        if worker is not None:
            await worker.drain(grace)
