"""Submitted calls for which there is no work queue yet: they wait in a queue beside it, which this side
declares."""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from atasks.errands import Errands
from atasks.errors import AtasksError
from atasks.transport.backends.amqp.broker.early_calls import move_early_calls
from atasks.transport.backends.amqp.broker.errors import CLIENT_ERRORS
from atasks.transport.backends.amqp.caller.requests import Kind, RequestPacket, Requests
from atasks.transport.pending import Pending

if TYPE_CHECKING:
    from atasks.transport.backends.amqp.broker.link import Link
    from atasks.transport.backends.amqp.caller.presence import WorkerPresence
    from atasks.transport.backends.amqp.session import Session

__all__ = ["EarlyCalls"]

logger = logging.getLogger("atasks.amqp")

LOOK_SECONDS: Final = 0.05
"""Seconds for which the calls are collected that one look for their work queue is for: a look costs six round
trips, one after another."""


class EarlyCalls:
    """Makes submitted calls safe that the broker has returned, because no worker ever declared their work queue.

    The queue beside it is declared once a link, and one look for the work queue is for all calls that have arrived
    before it."""

    def __init__(self, session: Session, requests: Requests, presence: WorkerPresence) -> None:
        self._session = session
        self._requests = requests
        self._presence = presence
        self._errands = Errands("atasks early calls")
        self._link: Link | None = None
        """The one over which the following was declared."""
        self._declared: set[str] = set()
        self._looks: dict[str, bool] = {}
        """Work queues that are looked for, and whether a call has arrived beside it since that look began."""
        self._leaving = asyncio.Event()

    def take(self, pending: Pending, kind: Kind) -> None:
        """The broker has no work queue for this call: have it wait beside that. Never waits."""
        pending.unheard = True  # over the next link it is sent again
        self._errands.start(self._put(pending, kind))

    async def leave(self) -> None:
        """Return when every work queue was looked for that has to be: calls wait beside it."""
        self._leaving.set()
        while self._looks and self._session.link is not None:
            await asyncio.wait(list(self._errands), return_when=asyncio.FIRST_COMPLETED)

    def restart(self) -> None:
        """Take calls again after `leave`."""
        self._leaving.clear()

    async def close(self) -> None:
        """Do nothing any more."""
        await self._errands.cancel()

    async def _put(self, pending: Pending, kind: Kind) -> None:
        topology, link = self._session.topology, self._session.link
        if link is None:
            return
        try:
            if link is not self._link:
                self._link = link
                self._declared.clear()
            if kind[0] not in self._declared:
                await link.declare_queue(topology.early(kind[0]), topology.early_arguments())
                self._declared.add(kind[0])
        except CLIENT_ERRORS as error:
            if not link.lost.done():  # its user may not declare queues
                logger.warning(
                    "calls to queue %r wait in this process until a worker serves it: %s", kind[0], error
                )
                self._presence.returned(pending)
            return
        if not pending.future.done():
            self._session.outbox.put(_EarlyRequest(self._requests, kind, pending, self))

    def arrived(self, queue: str) -> None:
        """A call is in the queue beside the work queue: if a worker has come meanwhile, it may have missed
        that."""
        looked_for = queue in self._looks
        self._looks[queue] = True
        if not looked_for:
            self._errands.start(self._look(queue))

    def gone(self, queue: str) -> None:
        """The queue beside this work queue is not there any more."""
        self._declared.discard(queue)

    async def _look(self, queue: str) -> None:
        """Move what waits beside a work queue, if that is there, until nothing has arrived since the look
        began."""
        session = self._session
        try:
            while self._looks[queue]:
                with suppress(TimeoutError):
                    async with asyncio.timeout(LOOK_SECONDS):
                        await self._leaving.wait()
                self._looks[queue] = False
                link = session.link
                if link is not None:
                    await move_early_calls(link, session.outbox, session.topology, queue, self._leaving.is_set)
        except AtasksError as error:
            logger.warning(
                "calls that wait for queue %r could not be moved to it (%s): its next worker tries again",
                queue,
                error,
            )
        finally:
            del self._looks[queue]


class _EarlyRequest(RequestPacket):
    """The message of one submitted call, for the queue beside its work queue."""

    __slots__ = ("early",)

    def __init__(self, requests: Requests, kind: Kind, pending: Pending, early: EarlyCalls) -> None:
        super().__init__(requests, kind, pending, len(pending.call.payload))
        self.routing_key = requests.session.topology.early(kind[0])
        self.early = early

    def prepare(self) -> bool:
        wanted = super().prepare()
        self.routing_key = self.requests.session.topology.early(self.kind[0])
        return wanted

    def confirmed(self) -> None:
        super().confirmed()
        self.early.arrived(self.kind[0])

    def returned(self) -> None:
        """A worker has declared the work queue, and has moved all that waited here."""
        self.early.gone(self.kind[0])
        for pending in self.pendings:
            if not pending.future.done():
                self.requests.send(pending)
