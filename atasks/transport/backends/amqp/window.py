"""How many calls the broker sends to a worker: as many as it has slots for, and none that another could start."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any

from atasks.transport.backends.amqp.consumer import Consumer
from atasks.transport.backends.amqp.link import CLIENT_ERRORS, Link

if TYPE_CHECKING:
    from atasks.worker import Worker

__all__ = ["Window"]


class Window:
    """The consumers of a worker's queues over one link, and their prefetches.

    The prefetch of a consumer cannot be changed, so a window changes by replacing its consumer. What a cancelled
    consumer was sent stays acknowledgeable, and counts in no window. Changes are made one at a time.
    """

    def __init__(self, link: Link, worker: Worker, consumers: list[Consumer]) -> None:
        self.link = link
        self.consumers = consumers
        self._worker = worker
        self._changing: asyncio.Task[None] | None = None
        self._stopped = True
        """Until it is opened: a worker that drains may have to restore its link, and consumes nothing then."""
        self._looking = False
        """Whether `adapt` is to be called soon."""

    @property
    def opened(self) -> bool:
        """Whether it is to consume."""
        return not self._stopped

    async def open(self) -> None:
        """Consume, with full windows."""
        self._stopped = False
        for consumer in self.consumers:
            await consumer.start(self.size(consumer))

    def add(self, consumers: list[Consumer]) -> bool:
        """Take in consumers that have started over another link; False if nothing is consumed any more."""
        if not self._stopped:
            self.consumers += consumers
        return not self._stopped

    def size(self, consumer: Consumer) -> int:
        """The prefetch to start a consumer with."""
        return min(consumer.full_size, max(1, self._worker.slots.free))

    async def stop(self) -> None:
        """Consume no more. What was delivered stays in hand."""
        self._stopped = True
        if self._changing is not None:
            await asyncio.wait([self._changing])
        for consumer in self.consumers:
            await consumer.stop()

    def abandon(self) -> None:
        """The link is gone, and the consumers with it."""
        self._stopped = True
        if self._changing is not None:
            self._changing.cancel()

    def adapt_soon(self) -> None:
        """Slots have become free: look at them once this turn of the event loop has ended."""
        if not self._looking:
            self._looking = True
            asyncio.get_running_loop().call_soon(self.adapt)

    def adapt(self) -> None:
        """Look at the slots, and begin a change if one is due."""
        self._looking = False
        if self._changing is not None or self._stopped:
            return
        worker = self._worker
        if worker.alone:
            if any(consumer.running and not consumer.solo for consumer in self.consumers):
                self._change(self._step_aside())
            return
        free = worker.slots.free
        if worker.unstarted or not free:
            return
        for consumer in self.consumers:
            if not consumer.running:
                size = free
            elif consumer.unfinished >= consumer.prefetch and (worker.parked or 2 * free >= worker.concurrency):
                size = free  # parked calls fill it
            elif consumer.prefetch < consumer.full_size and not worker.held:
                size = consumer.full_size
            else:
                continue
            self._change(self._replace(consumer, min(size, consumer.full_size)))
            return

    def overfull(self) -> None:
        """Calls have waited here for a slot for some time, because others resumed: let other workers take them."""
        if self._changing is None and not self._stopped:
            self._change(self._relieve())

    async def has_other_workers(self) -> bool:
        """Whether others serve each of the queues. Solo queues tell: their consumers stay while windows change."""
        for consumer in self.consumers:
            if consumer.solo:
                state = await self.link.queue_state(consumer.name)
                if state is None or state[1] <= consumer.running:
                    return False
        return True

    def _change(self, change: Coroutine[Any, Any, None]) -> None:
        self._changing = asyncio.create_task(self._changed(change), name="atasks window")

    async def _changed(self, change: Coroutine[Any, Any, None]) -> None:
        try:
            await change
        except CLIENT_ERRORS as error:
            self.link.lose(f"cannot change a consumer: {error}")  # the next link starts with full windows
            return
        finally:
            self._changing = None
        self.adapt()

    async def _replace(self, consumer: Consumer, prefetch: int) -> None:
        await consumer.stop()
        if not self._stopped:
            await consumer.start(prefetch)

    async def _step_aside(self) -> None:
        """Leave everything to other workers, but for the call that runs alone."""
        for consumer in self.consumers:
            if not consumer.solo:
                await consumer.stop()
        self._worker.give_back_unstarted()

    async def _relieve(self) -> None:
        if await self.has_other_workers():
            await self._step_aside()  # until slots are free
