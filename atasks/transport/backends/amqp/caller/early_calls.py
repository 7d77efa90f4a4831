"""Submitted calls for which there is no work queue yet: they wait in a queue beside it, which this side
declares."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any

from atasks.errors import AtasksError
from atasks.transport.backends.amqp.broker.early_calls import move_early_calls
from atasks.transport.backends.amqp.broker.link import CLIENT_ERRORS
from atasks.transport.backends.amqp.caller.requests import Kind, RequestPacket, Requests
from atasks.transport.call_transport import Pending

if TYPE_CHECKING:
    from atasks.transport.backends.amqp.caller.presence import WorkerPresence
    from atasks.transport.backends.amqp.session import Session

__all__ = ["EarlyCalls"]

logger = logging.getLogger("atasks.amqp")


class EarlyCalls:
    """Makes submitted calls safe that the broker has returned, because no worker ever declared their work
    queue."""

    def __init__(self, session: Session, requests: Requests, presence: WorkerPresence) -> None:
        self._session = session
        self._requests = requests
        self._presence = presence
        self._errands: set[asyncio.Task[None]] = set()

    def take(self, pending: Pending, kind: Kind) -> None:
        """The broker has no work queue for this call: have it wait beside that. Never waits."""
        pending.unheard = True  # over the next link it is sent again
        self._errand(self._put(pending, kind))

    async def close(self) -> None:
        """Do nothing any more."""
        for errand in list(self._errands):
            errand.cancel()
        if self._errands:
            await asyncio.wait(self._errands)

    async def _put(self, pending: Pending, kind: Kind) -> None:
        topology, link = self._session.topology, self._session.link
        if link is None:
            return
        try:
            await link.declare_queue(topology.early(kind[0]), topology.early_arguments())
        except CLIENT_ERRORS as error:
            if not link.lost.done():  # its user may not declare queues
                logger.warning("calls to queue %r wait here for a worker: %s", kind[0], error)
                self._presence.returned(pending)
            return
        if not pending.future.done():
            self._session.outbox.put(_EarlyRequest(self._requests, kind, pending, self))

    def arrived(self, queue: str) -> None:
        """A call is in the queue beside the work queue: if a worker has come meanwhile, it may have missed
        that."""
        self._errand(self._move(queue))

    async def _move(self, queue: str) -> None:
        session, link = self._session, self._session.link
        if link is not None:
            try:
                await move_early_calls(link, session.outbox, session.topology, queue)
            except AtasksError as error:
                logger.warning("calls that wait for queue %r could not be moved to it: %s", queue, error)

    def _errand(self, coroutine: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(coroutine, name="atasks early calls")
        self._errands.add(task)
        task.add_done_callback(self._errands.discard)


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
        for pending in self.pendings:
            if not pending.future.done():
                self.requests.send(pending)
