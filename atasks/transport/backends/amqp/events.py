"""Publishing events: to the exchange to which the queues of their handlers are bound."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from pamqp.commands import Basic

from atasks import wire
from atasks.errors import CallConnectionLost, QueueFull
from atasks.transport.backends.amqp.broker.link import Link
from atasks.transport.backends.amqp.broker.outgoing import Outgoing
from atasks.transport.backends.amqp.broker.refusals import Refusal
from atasks.wire import CONTENT_TYPE, Call

if TYPE_CHECKING:
    from atasks.transport.backends.amqp.session import Session

__all__ = ["Publishing"]


class Publishing:
    """Sends the events of one session, and waits until each is safe."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._declared: Link | None = None
        self._unconfirmed: set[asyncio.Future[None]] = set()

    async def publish(self, call: Call) -> None:
        """Send an event, and return when the broker has it. Raises NotConnected, CallConnectionLost, and what the
        broker has against it."""
        await self._session.links.do(self._declare)
        outbox = self._session.outbox
        while (room := outbox.room()) is not None:
            await room
        event = _Published(call, self._session)
        self._unconfirmed.add(event.future)
        try:
            outbox.put(event)
            await event.future
        finally:
            self._unconfirmed.discard(event.future)

    async def _declare(self, link: Link) -> None:
        """Declare the exchange, once for each link: the broker closes the channel over a missing one."""
        if self._declared is not link:
            await link.declare_exchange(self._session.topology.events, "topic")
            self._declared = link

    def close(self, reason: str) -> None:
        """Nothing more is sent."""
        for future in self._unconfirmed:
            if not future.done():
                future.set_exception(
                    CallConnectionLost(f"{reason}: whether the event was published cannot be known")
                )


class _Published(Outgoing):
    """An event. No queue may be bound: then nobody waits for it."""

    __slots__ = ("_event", "future")

    def __init__(self, call: Call, session: Session) -> None:
        topology = session.topology
        properties = Basic.Properties(
            content_type=CONTENT_TYPE, message_id=call.id, reply_to=topology.events, delivery_mode=2
        )
        super().__init__(
            wire.encode([call]),
            topology.event_key(call.task),
            properties,
            exchange=topology.events,
            mandatory=False,
            key=None if session.seals is None else session.seals.voice(),
        )
        self._event = call.task
        self.future: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def confirmed(self) -> None:
        if not self.future.done():
            self.future.set_result(None)

    returned = confirmed

    def refused(self) -> None:
        if not self.future.done():
            self.future.set_exception(
                QueueFull(f"a queue of a group of {self._event!r} takes no more: start more workers of it")
            )

    def rejected(self, refusal: Refusal) -> None:
        if not self.future.done():
            self.future.set_exception(refusal.error(f"event {self._event!r}", len(self.body)))
