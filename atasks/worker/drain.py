"""The end of a worker: it takes no more calls, and those in hand end here or go elsewhere."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Final

from atasks.wire import AT_MOST_ONCE, describe
from atasks.worker.held_call import Reason
from atasks.worker.leaving import place_of

if TYPE_CHECKING:
    from atasks.worker.worker import Worker

__all__ = ["drain"]

logger = logging.getLogger("atasks.worker")

DRAIN_LOOK: Final = 0.2
"""Seconds between two looks at the calls that a drain waits for."""
CANCEL_PATIENCE: Final = 5.0
"""Seconds that a cancelled run gets to end before a drain leaves it behind."""


async def drain(worker: Worker, until: float) -> None:
    """Let what runs finish until then (event loop time); cancel what is left, and give it back."""
    # Stop consuming first; replies, heartbeats and nested calls of running calls go on meanwhile.
    await _stop_accepting(worker)
    while worker.held and worker.loop.time() < until:
        if worker.parked and await worker.transport.has_other_workers(worker):
            for run in worker.runs:
                # A stream that waits for its consumer is left: it need not, and perhaps must not, begin anew
                # elsewhere.
                if run.awaits and run.call.delivery != AT_MOST_ONCE and run.sender is None:
                    run.cancel(Reason.DRAINED)
        elif worker.parked:
            await _serve_children(worker, until)
        await _look(worker, until)
    for run in worker.runs:
        run.cancel(Reason.DRAINED)
    await worker.until_empty(CANCEL_PATIENCE)
    for run in worker.runs:
        logger.error("%s ignores its cancellation: the drain ends without it", describe(run.call))
    await _until_threads_end(worker, until)
    await worker.transport.flush()


async def _stop_accepting(worker: Worker) -> None:
    await worker.transport.stop_serving(worker)
    worker.accepting = False
    worker.give_back_unstarted()


async def _serve_children(worker: Worker, until: float) -> None:
    """The only worker of its queues drains with parked calls: nobody else runs what they await."""
    worker.accepting = True
    await worker.transport.serve(worker)
    while worker.parked and worker.loop.time() < until:
        await _look(worker, until)
    await _stop_accepting(worker)


async def _look(worker: Worker, until: float) -> None:
    await worker.until_empty(min(DRAIN_LOOK, max(until - worker.loop.time(), 0.0)))


async def _until_threads_end(worker: Worker, until: float) -> None:
    """Let what runs still in threads of `asyncio.to_thread` end, for calls that have ended, or log it."""
    while threads := worker.threads():
        if worker.loop.time() >= until:
            for thread, run in threads:
                where = f"in thread {thread.name!r}, at {place_of(thread)}"
                logger.warning("%s goes on %s, which cannot be stopped", describe(run.call), where)
            return
        await asyncio.sleep(min(DRAIN_LOOK, until - worker.loop.time()))
