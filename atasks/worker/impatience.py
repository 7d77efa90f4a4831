"""Notices that a worker starts none of the calls that wait in it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from atasks.worker.worker import Worker

__all__ = ["Impatience"]

UNSTARTED_PATIENCE: Final = 0.25
"""Seconds without a start after which calls that wait in a worker for a slot may go to other workers."""


class Impatience:
    """Tells the transport of a worker that is full and has started no call for a while: other workers may have
    slots for those that wait."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self.timer: asyncio.TimerHandle | None = None
        """Set while it is going to look: then `begin` has nothing to do."""

    def begin(self) -> None:
        """Look after a while, if calls wait now."""
        worker = self._worker
        if self.timer is None and worker.unstarted:
            self.timer = worker.loop.call_later(UNSTARTED_PATIENCE, self._look, worker.started)

    def _look(self, started: int) -> None:
        """Look whether a call was started, as `started` were before."""
        self.timer = None
        worker = self._worker
        if worker.unstarted and worker.accepting:
            if worker.started == started and not worker.slots.free:
                worker.transport.overfull(worker)
            else:
                self.begin()
