"""Events, as calls of their handlers: the queues that they come by, and how such a call ends."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from msgspec import structs
from pamqp.commands import Basic

from atasks import wire
from atasks.options import Executor
from atasks.transport.backends.amqp.broker.link import Link
from atasks.transport.backends.amqp.broker.outgoing import Outgoing
from atasks.transport.backends.amqp.broker.questions import guard
from atasks.transport.backends.amqp.broker.refusals import Refusal
from atasks.transport.backends.amqp.worker.delivery import CallDelivery
from atasks.transport.records.contract import again_id
from atasks.wire import CONTENT_TYPE, Call, End, Reply, Status

if TYPE_CHECKING:
    from atasks.transport.backends.amqp.worker.replies import Replies
    from atasks.transport.backends.amqp.worker.request_message import RequestMessage
    from atasks.transport.backends.amqp.worker.station import Station
    from atasks.transport.subscription import Subscription

__all__ = ["EventDelivery", "EventQueues", "EventSource"]

MAX_PREFETCH: Final = 65_535
AGAIN_PAUSE: Final = 0.05
"""Seconds for which a call that is for this worker alone, and cannot start, waits before it tries again."""


class EventQueues:
    """The queues of one worker by which events come.

    A group's queue is a work queue that is also bound to the exchange of events, so all that holds for calls holds
    for its events: windows, attempts, leases, queues that ail. What every worker handles comes by a queue of each
    worker's own, which is exclusive: RabbitMQ 4 has no other queue that goes with its connection.
    """

    def __init__(self, station: Station) -> None:
        self._station = station
        self._sources: dict[str, EventSource] = {}
        """By the work queue of the group."""
        worker = station.worker
        self._own = EventSource(f"events:{worker.id}", {}, worker.id)
        self.look()

    def look(self) -> None:
        """Look which events the worker's atasks handle by now. Those that every worker handles stay known: some
        may be on their way that nobody wants any more."""
        own: dict[str, list[Subscription]] = {}
        for item in self._station.worker.served.subscriptions:
            if item.queue is None:
                own.setdefault(item.event, []).append(item)
            elif item.queue not in self._sources:
                self._sources[item.queue] = EventSource(item.queue, {item.event: [item]})
        self._wanted = frozenset(own)
        self._own.subscriptions.update(own)

    def source(self, queue: str) -> EventSource | None:
        """Return the source of the events that come by this work queue, if it is the queue of a group; else
        None."""
        return self._sources.get(queue)

    async def bind(self, link: Link, name: str, source: EventSource) -> None:
        """Have the events come to this queue from now on."""
        topology = self._station.session.topology
        await link.declare_exchange(topology.events, "topic")
        for event in source.subscriptions:
            await guard(link.inbox.queue_bind(name, topology.events, topology.event_key(event)))

    async def declare_own(self, link: Link) -> tuple[str, EventSource, int] | None:
        """Declare the queue of the events that every worker handles: its name, what comes by it, and its window.
        None: there are no such events."""
        station, source = self._station, self._own
        if not source.subscriptions:
            return None
        topology = station.session.topology
        name = topology.every_worker(station.worker.id, station.epoch)
        await guard(link.inbox.queue_declare(name, exclusive=True, arguments={"x-queue-type": "classic"}))
        await self.bind(link, name, source)
        for event in source.subscriptions.keys() - self._wanted:
            await guard(link.inbox.queue_unbind(name, topology.events, topology.event_key(event)))
        return name, source, min(MAX_PREFETCH, station.worker.concurrency)


class EventSource:
    """Whom the events are for that come by one queue."""

    def __init__(self, queue: str, subscriptions: dict[str, list[Subscription]], worker: str = "") -> None:
        self.queue = queue
        """The work queue, or how the worker's own one is called in its place."""
        self.subscriptions = subscriptions
        """By event."""
        self.worker = worker
        """If it is the queue of one worker: its id."""

    def calls(
        self, published: list[Call], refusals: list[tuple[str | None, str]]
    ) -> tuple[list[Call], list[tuple[str | None, str]]]:
        """The calls that a message makes; none, if anything in it cannot be read, or may not be: nobody waits for
        an answer, so it is for people to look at. A call that was given back has its handler's name."""
        if refusals:
            return [], []
        found: list[Call] = []
        for call in published:
            call.orphan = 1  # nobody awaits it, whatever it says
            handlers = self.subscriptions.get(call.task)
            found += [call] if handlers is None else [item.call(call, self.worker) for item in handlers]
        return found, []


class EventDelivery(CallDelivery):
    """One call of a handler. Its end is told to nobody: one that failed goes to the dead queue."""

    __slots__ = ("_source", "call")

    def __init__(
        self,
        replies: Replies,
        request: RequestMessage,
        older: CallDelivery | None,
        call: Call,
        source: EventSource,
    ) -> None:
        super().__init__(replies, request, older)
        self.call = call
        self._source = source

    def renewed(self, request: RequestMessage) -> CallDelivery:
        return EventDelivery(self._replies, request, self, self.call, self._source)

    def reply(self, reply: Reply | End) -> None:
        self.request.ended()
        if isinstance(reply, Reply) and reply.status == Status.VALUE:
            self._replies.conclude(self.call.id, self.request)
            self.request.settled()
        else:
            self._replies.station.put(FailedEvent(self._replies, self.call, self.request))

    def give_back(self, call: Call, executor: Executor | None = None) -> None:
        worker = self._replies.station.worker
        if not self._source.worker:
            super().give_back(call, executor)
        elif worker.draining:
            self.drop()  # the event was for this worker only, which is leaving
        else:
            asyncio.get_running_loop().call_later(AGAIN_PAUSE, worker.deliver, call, self)


class FailedEvent(Outgoing):
    """The call of a handler that failed, on its way to the dead queue. When it is there it is acknowledged."""

    __slots__ = ("_call_id", "_replies", "_request")

    def __init__(self, replies: Replies, call: Call, request: RequestMessage) -> None:
        station = replies.station
        properties = Basic.Properties(
            content_type=CONTENT_TYPE,
            headers={"x-first-death-queue": request.consumer.name, "x-first-death-reason": "rejected"},
            reply_to=station.session.topology.events,  # it fails as an event too, if it is put back
            message_id=station.number(),
            delivery_mode=2,
            timestamp=datetime.now(UTC),
        )
        # Workers remember how a call has ended: under its old id it would not run when somebody puts it back.
        again = structs.replace(call, id=again_id(call.id), key=call.key or call.id)
        super().__init__(wire.encode([again]), station.session.topology.dead, properties, key="")
        self._replies = replies
        self._call_id = call.id
        self._request = request

    def confirmed(self) -> None:
        self._replies.conclude(self._call_id, self._request)
        self._request.settled()

    returned = confirmed
    refused = confirmed

    def rejected(self, refusal: Refusal) -> None:
        super().rejected(refusal)
        self.confirmed()

    def lost(self) -> bool:
        return False  # the broker delivers the event again
