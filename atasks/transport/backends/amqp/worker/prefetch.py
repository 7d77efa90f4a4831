"""`Prefetch`: the number of calls that the broker sends to a worker: as many as the worker has slots for, and
none that another could start."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any, Final

from atasks.event_loop import ends_turn
from atasks.options import Executor
from atasks.transport.backends.amqp.broker.errors import CLIENT_ERRORS
from atasks.transport.backends.amqp.broker.link import Link
from atasks.transport.backends.amqp.worker.consumer import Consumer

if TYPE_CHECKING:
    from atasks.transport.server import Server

__all__ = ["Prefetch"]

AHEAD: Final = 64
"""The largest window for calls that, as it seems, will wait for tokens of limits: they need no slots."""
NARROW_AFTER: Final = 0.05
"""Seconds after which calls of such a window that wait for slots go to other workers: first they find out whether
they need any."""


class Prefetch:
    """The consumers of a worker's queues over one link, and their prefetches.

    The prefetch of a consumer cannot be changed, so a window changes by replacing its consumer. What a cancelled
    consumer was sent stays acknowledgeable, and counts in no window. Changes are made one at a time.
    """

    def __init__(self, link: Link, worker: Server, consumers: list[Consumer]) -> None:
        self.link = link
        self.consumers = consumers
        self._worker = worker
        self._changing: asyncio.Task[None] | None = None
        self._stopped = True
        """Until it is opened: a worker that drains may have to restore its link, and consumes nothing then."""
        self._looking = False
        """True if `adapt` will be called soon."""
        self._narrowing: asyncio.TimerHandle | None = None
        """Set while it is going to look at calls that wait for slots."""
        self._lacking: set[Executor] = set()
        """The pools for which calls wait here."""
        self.paused: frozenset[str] = frozenset()
        """Work queues that are not consumed for now."""
        self._held = self.paused
        """Those that are consumed no more by now."""

    @property
    def opened(self) -> bool:
        """The consumers consume, or are about to."""
        return not self._stopped

    async def open(self) -> None:
        """Consume, with full windows."""
        self._stopped = False
        for consumer in self.consumers:
            idle = not self._stopped and not consumer.running and consumer.queue not in self.paused
            if idle and (consumer.executor is None or self._free(consumer, self._room) > 0):
                await consumer.start(self.size(consumer), self._worker.token_waits.lasting)
        self.adapt()

    def add(self, consumers: list[Consumer]) -> bool:
        """Take in consumers that have started over another link; False if nothing is consumed any more."""
        if not self._stopped:
            self.consumers += consumers
        return not self._stopped

    def size(self, consumer: Consumer) -> int:
        """The prefetch to start a consumer with."""
        return min(consumer.full_size, max(1, self._free(consumer, self._room)))

    async def hold(self, paused: frozenset[str]) -> None:
        """Consume none of these queues from now on, and all others. Returns when calls of them that had come, and
        have not begun, have gone back; or when nothing is consumed any more."""
        self.paused = paused
        while self._held != paused and not self._stopped and not self.link.lost.done():
            self.adapt()
            if self._changing is not None:
                await asyncio.wait([self._changing])
        self.adapt()

    @property
    def _room(self) -> int:
        """For how many calls there are slots beside those that are about to start."""
        fresh = self._worker.token_waits.fresh
        return self._worker.room - fresh - sum([each.claims for each in self.consumers])

    def _free(self, consumer: Consumer, room: int) -> int:
        """For how many calls of this queue there are slots, and places; `room` is for those of any queue."""
        if consumer.executor is None:
            return room
        return min(room, self._worker.pools.places[consumer.executor].free - consumer.claims)

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
        if self._narrowing is not None:
            self._narrowing.cancel()
        if self._changing is not None:
            self._changing.cancel()

    def adapt_soon(self) -> None:
        """Slots have become free: look at them once this turn of the event loop has ended; at once, if the last
        call in hand has ended, and nothing else is to run in this turn."""
        if self._looking:
            return
        if not self._worker.held and ends_turn():
            self.adapt()
        else:
            self._looking = True
            asyncio.get_running_loop().call_soon(self.adapt)

    def adapt(self) -> None:
        """Look at the slots, and begin a change if one is due."""
        self._looking = False
        if self._changing is not None or self._stopped:
            return
        worker = self._worker
        if self._held != self.paused:
            self._change(self._hold())
            return
        if worker.alone:
            if any(consumer.running and not consumer.solo for consumer in self.consumers):
                self._change(self._step_aside())
            return
        if self._lacking:
            self._change(self._make_room(self._lacking.pop()))
            return
        if not [consumer for consumer in self.consumers if not consumer.has_room]:
            return  # as most times
        room = self._room
        if room <= 0:
            if self._narrowing is None and self._widest() is not None:
                self._narrow_later()
            return
        for consumer in self.consumers:
            size = self._due(consumer, room)
            if size:
                self._change(self._replace(consumer, size))
                return

    def _widest(self) -> Consumer | None:
        """A consumer whose window is wider than the slots."""
        wide = (each for each in self.consumers if each.running and each.prefetch > each.full_size)
        return next(wide, None)

    def _narrow_later(self) -> None:
        loop = asyncio.get_running_loop()
        self._narrowing = loop.call_later(NARROW_AFTER, self._narrow, self._worker.token_waits.lasting)

    def _narrow(self, waiting: int) -> None:
        """If calls of a wide window wait here for slots, and none of them has found out that it needs a token
        first, let other workers take them. So many waited for tokens before."""
        self._narrowing = None
        consumer = self._widest()
        if consumer is None or self._changing is not None or self._stopped or self._worker.room >= 0:
            return
        if self._worker.token_waits.lasting > waiting:
            self._narrow_later()
        else:
            self._change(self._return_to_slots(consumer))

    def _due(self, consumer: Consumer, room: int) -> int:
        """The window that this consumer is to have instead of its own; 0: it may keep its own."""
        worker = self._worker
        as_wide = consumer.prefetch == consumer.full_size or worker.held > 0
        if as_wide and consumer.running and consumer.unfinished < consumer.prefetch:
            return 0
        free = self._free(consumer, room)
        if free <= 0 or consumer.queue in self.paused:
            return 0
        if consumer.solo and consumer.claims:
            return 0  # a last attempt may kill the worker, and every call beside it
        free, wide = min(free, consumer.full_size), self._wide(consumer, free)
        if not consumer.running:
            return free
        # Parked calls, and calls that were known before, fill the window.
        if consumer.unfinished >= consumer.prefetch:
            if worker.token_waits.lasting and (worker.token_waits.fresh or consumer.claims):
                return 0  # until each has shown whether it needs a slot, or waits for a token
            wanted = (
                consumer.executor
                or consumer.away
                or consumer.adopted
                or worker.parked
                or (not consumer.solo and 2 * free >= worker.concurrency)
            )
            return max(free, wide) if wanted else 0
        return 0 if as_wide else consumer.full_size

    def _wide(self, consumer: Consumer, free: int) -> int:
        """The window that would fill the free slots if as many of its calls wait for tokens as of the last one. It
        is at most twice as large as that."""
        wait = min(self._worker.token_waits.lasting - consumer.waiting, consumer.prefetch)
        if wait <= 0 or consumer.solo:
            return 0
        twice, need_slots = 2 * consumer.prefetch, consumer.prefetch - wait
        return min(AHEAD, twice, free * consumer.prefetch // need_slots if need_slots else twice)

    def lacks_place(self, executor: Executor) -> None:
        """Calls wait here for a place in a pool: let other workers take them."""
        self._lacking.add(executor)
        self.adapt_soon()

    def overfull(self) -> None:
        """Calls have waited here for a slot for some time, because others resumed: let other workers take them."""
        if self._changing is None and not self._stopped:
            self._change(self._relieve())

    async def has_other_workers(self) -> bool:
        """Return True if others serve each of the queues. Solo queues tell: their consumers stay while windows
        change."""
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
        self.adapt_soon()  # calls that came with the broker's word have made no step: what they need is not known

    async def _hold(self) -> None:
        """Leave the calls of paused queues there."""
        paused = self.paused
        for consumer in self.consumers:
            if consumer.queue in paused:
                await consumer.stop()
        for queue in paused:
            self._worker.give_back_unstarted(queue=queue)
        self._held = paused

    async def _replace(self, consumer: Consumer, prefetch: int) -> None:
        await consumer.stop()
        if self._stopped or consumer.queue in self.paused:
            return
        if consumer.solo and (consumer.claims or self._worker.alone):
            return  # until a last attempt has ended that came meanwhile
        await consumer.start(prefetch, self._worker.token_waits.lasting)

    async def _return_to_slots(self, consumer: Consumer) -> None:
        await consumer.stop()
        self._worker.give_back_unstarted(queue=consumer.queue)
        await self._replace(consumer, self.size(consumer))

    async def _step_aside(self) -> None:
        """Leave everything to other workers, but for the call that runs alone."""
        for consumer in self.consumers:
            if not consumer.solo:
                await consumer.stop()
        self._worker.give_back_unstarted()

    async def _make_room(self, executor: Executor) -> None:
        """Leave calls that need such a place to other workers, until one is free. Consuming ends first: what is
        given back would come straight back."""
        for consumer in self.consumers:
            if consumer.executor == executor:
                await consumer.stop()
        self._worker.give_back_unstarted(executor)

    async def _relieve(self) -> None:
        if await self.has_other_workers():
            await self._step_aside()  # until slots are free
