"""Calls that run for longer than the broker waits for an acknowledgement.

RabbitMQ closes the channel of a consumer that holds a message for `consumer_timeout` (30 minutes by default), and
delivers everything on that channel again. So, at half that time, the worker moves the call to a message that it
received just now: it publishes the call to a lease queue of its own, consumes it from there, and acknowledges the
older message. What a lease queue holds expires after a second unless a worker holds it, and goes back to the work
queue: so if the worker dies, the broker delivers the call to another one, as it would have otherwise.

If one call of a message has gone back to its queue, it may run elsewhere by now, and the others of the message
move in the same way: if the worker died with that message, the broker would deliver that call once more.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from aiormq.abc import DeliveredMessage
from aiormq.exceptions import ChannelAccessRefused
from pamqp.commands import Basic

from atasks import wire
from atasks.transport.backends.amqp.broker.errors import CLIENT_ERRORS
from atasks.transport.backends.amqp.broker.link import Link
from atasks.transport.backends.amqp.broker.outgoing import Outgoing
from atasks.transport.backends.amqp.broker.questions import guard
from atasks.transport.backends.amqp.seals import Opened, opening
from atasks.transport.backends.amqp.worker.delivery import CallDelivery
from atasks.transport.backends.amqp.worker.request_message import RequestMessage
from atasks.wire import CONTENT_TYPE, Call

if TYPE_CHECKING:
    from atasks.transport.backends.amqp.worker.replies import Replies
    from atasks.transport.backends.amqp.worker.station import Station
    from atasks.transport.server import HeldRun

__all__ = ["Leases", "was_leased"]

logger = logging.getLogger("atasks.amqp")

PARTED_SECONDS: Final = 1.0
"""For so long calls stay in a message of which another call has gone back: most have ended by then."""
LOOKS: Final = 12
"""Looks at the calls in hand in the time after which a message must be acknowledged."""


class Leases:
    """Renews what the calls in hand were delivered by, before the broker takes it back."""

    def __init__(self, station: Station, replies: Replies, consumer_timeout: float) -> None:
        self._station = station
        self._replies = replies
        self._timeout = consumer_timeout
        self._queues: dict[str, str] = {}
        """Work queue -> the lease queue that is consumed beside it over this link."""
        self._tags: dict[str, str] = {}
        self._due = asyncio.Event()
        """Set if there are calls to move before the next round is due."""
        self._timer: asyncio.TimerHandle | None = None
        replies.parted = self._parted

    async def run(self) -> None:
        """Look, round after round, until cancelled."""
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(self._timeout / LOOKS):
                    await self._due.wait()
            self._due.clear()
            try:
                await self._round()
            except ChannelAccessRefused as error:
                logger.warning(
                    "calls that run for long are interrupted when the broker takes them back: %s", error
                )
            except CLIENT_ERRORS as error:
                logger.debug("the connection ended a round of leases: %s", error)

    def _parted(self, request: RequestMessage) -> None:
        request.parted = True
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(PARTED_SECONDS, self._look)

    def _look(self) -> None:
        self._timer = None
        self._due.set()

    async def delete(self, link: Link) -> None:
        """Delete the lease queues: nothing is held in them any more."""
        for name in self._queues.values():
            await guard(link.work.basic_cancel(self._tags.pop(name)))
            await guard(link.work.queue_delete(name, if_empty=True))

    def reset(self) -> None:
        """The connection was lost: every message is delivered again, and every lease ends."""
        self._queues.clear()
        self._tags.clear()

    async def _round(self) -> None:
        link = self._station.link
        if link is None:
            return
        now = asyncio.get_running_loop().time()
        for run in self._station.worker.runs:
            delivery = run.deliveries[-1]
            if not isinstance(delivery, CallDelivery) or not delivery.request.in_hand:
                continue
            if delivery.request.parted or now - delivery.request.received >= self._timeout / 2:
                await self._renew(link, run, delivery)

    async def _renew(self, link: Link, run: HeldRun, delivery: CallDelivery) -> None:
        request = delivery.request
        queue = request.consumer.queue
        lease = self._queues.get(queue)
        if lease is None:
            lease = await self._consume(link, queue)
        if delivery.renewing:
            return
        delivery.renewing = True
        properties = Basic.Properties(
            content_type=CONTENT_TYPE,
            message_id=(request.copy if run.call.attempt > 1 else "") or f"lease:{run.call.id}",
            reply_to=request.reply_to,
            delivery_mode=request.delivery_mode,
            priority=request.priority,
            correlation_id=request.correlation_id or None,
        )
        work = self._station.session.topology.work(queue)
        self._station.put(_Lease(wire.encode([run.call]), lease, properties, request, work))

    async def _consume(self, link: Link, queue: str) -> str:
        topology, worker = self._station.session.topology, self._station.worker
        name = topology.lease(queue, worker.id, self._station.epoch)
        arguments = topology.lease_arguments(queue)
        await link.declare_queue(name, arguments)
        # Without a prefetch limit: the calls in this queue are in hand already.
        receive = opening(
            self._station.session.seals,
            self._on_lease,
            lambda _: ("request", topology.work(queue)),
            remember=False,  # the call may come back by the work queue
        )
        self._tags[name] = await link.consume_work(name, receive, 0)
        self._queues[queue] = name
        return name

    def _is_own(self, message: DeliveredMessage) -> bool:
        """Say whether a worker put it there, as far as its seal tells."""
        return not isinstance(message, Opened) or message.key.serve

    def _on_lease(self, message: DeliveredMessage) -> None:
        """A lease has come: it takes the place of what the call was delivered by before."""
        acks = self._station.acks
        if acks is None:
            return  # the link is gone, and the lease with it
        try:
            (call,) = wire.decode(message.body, self._station.session.max_message)
        except ValueError:
            self._station.worker.count_bad("a message on a lease queue is none of a call")
            acks.ack(message.delivery_tag or 0)
            return
        run = self._station.worker.find(call.id) if isinstance(call, Call) else None
        older = run.deliveries if run is not None and call == run.call and self._is_own(message) else ()
        last = older[-1] if older else None
        if run is None or not isinstance(last, CallDelivery):  # it ended meanwhile
            acks.ack(message.delivery_tag or 0)
            return
        request = RequestMessage.of(last.request.consumer, message, acks)
        request.answer(last.request.reply_to, last.request.key)
        run.deliveries = (last.renewed(request),)
        for each in older:
            each.drop()


class _Lease(Outgoing):
    """A call on its way to its own worker, sealed for the work queue that it goes to if the lease ends."""

    __slots__ = ("_work",)

    def __init__(
        self, body: bytes, key: str, properties: Basic.Properties, request: RequestMessage, work: str
    ) -> None:
        super().__init__(body, key, properties, key=request.voice)
        self._work = work

    @property
    def destination(self) -> str:
        return self._work

    def lost(self) -> bool:
        return False  # the broker delivers the original again, and this one too once its lease ends


def was_leased(properties: Basic.Properties, prefix: str) -> bool:
    """Return True if the message comes from the lease of a worker that is gone: the broker does not say
    redelivered."""
    deaths = (properties.headers or {}).get("x-death")
    if not isinstance(deaths, list):
        return False
    queues = (death.get("queue") for death in deaths if isinstance(death, dict))
    return any(isinstance(queue, str) and queue.startswith(f"{prefix}.l.") for queue in queues)
