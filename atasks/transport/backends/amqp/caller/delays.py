"""Submitted calls that may begin later: handed over to the queues that hold them meanwhile."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING

from atasks.errands import Errands
from atasks.transport.backends.amqp.broker.delays import (
    bind_when_due,
    declare_levels,
    due_key,
    level_of,
    ticks_of,
)
from atasks.transport.backends.amqp.broker.errors import CLIENT_ERRORS, map_error
from atasks.transport.backends.amqp.caller.requests import Kind, RequestPacket, Requests
from atasks.transport.pending import Pending

if TYPE_CHECKING:
    from atasks.transport.backends.amqp.broker.link import Link
    from atasks.transport.backends.amqp.session import Session

__all__ = ["DelayedCalls"]

logger = logging.getLogger("atasks.amqp")


class DelayedCalls:
    """Sends calls to the queues that hold them until they are due. What these need is declared once a link."""

    def __init__(self, session: Session, requests: Requests) -> None:
        self._session = session
        self._requests = requests
        self._link: Link | None = None
        """The one over which the following was declared."""
        self._levels = -1
        self._bound: set[str] = set()
        self._lock = asyncio.Lock()
        self._errands = Errands("atasks delayed call")

    def take(self, pending: Pending, kind: Kind, *, anew: bool = False) -> None:
        """Send this call, which may begin later. Never waits. `anew`: what was declared for it is gone."""
        if anew:
            self._link = None
        pending.unheard = True  # over the next link it is sent again
        self._errands.start(self._put(pending, kind))

    async def close(self) -> None:
        """Do nothing any more."""
        await self._errands.cancel()

    async def _put(self, pending: Pending, kind: Kind) -> None:
        link = self._session.link
        if link is None:
            return
        try:
            async with self._lock:
                await self._declare(link, kind[0], level_of(ticks_of(left(pending))))
        except CLIENT_ERRORS as error:
            if not link.lost.done():
                pending.fail(map_error(error, self._session.urls[0]))
            return
        if not pending.future.done():
            self._session.outbox.put(_DelayedRequest(self._requests, kind, pending))

    async def _declare(self, link: Link, queue: str, top: int) -> None:
        if self._link is not link:
            self._link, self._levels = link, -1
            self._bound.clear()
        topology = self._session.topology
        if top > self._levels:
            await declare_levels(link, topology, top)
            self._levels = top
        if queue not in self._bound:
            there = await link.queue_state(topology.work(queue)) is not None
            if not there:
                await link.declare_queue(topology.early(queue), topology.early_arguments())
            await bind_when_due(link, topology, queue, early=not there)
            self._bound.add(queue)


class _DelayedRequest(RequestPacket):
    """The message of one call that may begin later."""

    __slots__ = ()

    def __init__(self, requests: Requests, kind: Kind, pending: Pending) -> None:
        super().__init__(requests, kind, pending, len(pending.call.payload))

    @property
    def destination(self) -> str:
        return self.requests.session.topology.work(self.kind[0])

    def prepare(self) -> bool:
        wanted = super().prepare()
        if wanted:
            topology, ticks = self.requests.session.topology, ticks_of(left(self.pendings[0]))
            self.exchange = topology.delay(level_of(ticks)) if ticks else topology.due
            self.routing_key = due_key(ticks, self.destination)
        return wanted

    def returned(self) -> None:
        """Declare the queues anew: those that were declared for the request are gone."""
        for pending in self.pendings:
            if not pending.future.done():
                self.requests.fates.delayed(pending, self.kind, anew=True)


def left(pending: Pending) -> float:
    """Seconds after which the call may begin."""
    return pending.call.sent_ms / 1000 - time.time()
