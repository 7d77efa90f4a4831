"""The worker's side: its work queues and their windows, and the requests in them."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Final

from aiormq.abc import ConsumerCallback, DeliveredMessage
from aiormq.exceptions import AMQPChannelError, ChannelNotFoundEntity
from pamqp.common import FieldTable

from atasks import wire
from atasks.errors import DecodeError
from atasks.options import EXECUTORS, MAX_ATTEMPTS, Executor
from atasks.transport.backends.amqp.broker.acks import Acks
from atasks.transport.backends.amqp.broker.bodies import envelopes_of
from atasks.transport.backends.amqp.broker.delays import was_delayed
from atasks.transport.backends.amqp.broker.early_calls import may_be_moved
from atasks.transport.backends.amqp.broker.errors import CLIENT_ERRORS, NoAnswer
from atasks.transport.backends.amqp.broker.link import Link
from atasks.transport.backends.amqp.broker.questions import (
    answered,
    guard,
    refused_with_reason,
    shielded,
    together,
)
from atasks.transport.backends.amqp.broker.spares import SPARES
from atasks.transport.backends.amqp.seals import content_type, opening
from atasks.transport.backends.amqp.worker.attempts import Attempts
from atasks.transport.backends.amqp.worker.caller_watch import CallerWatch
from atasks.transport.backends.amqp.worker.consumer import Consumer
from atasks.transport.backends.amqp.worker.control import ControlQueue
from atasks.transport.backends.amqp.worker.delivery import CallDelivery
from atasks.transport.backends.amqp.worker.doubts import Doubts
from atasks.transport.backends.amqp.worker.events import EventDelivery, EventQueues, EventSource
from atasks.transport.backends.amqp.worker.kept_calls import KeptCalls
from atasks.transport.backends.amqp.worker.leases import Leases, was_leased
from atasks.transport.backends.amqp.worker.paused_queues import PausedQueues
from atasks.transport.backends.amqp.worker.prefetch import Prefetch
from atasks.transport.backends.amqp.worker.replies import Replies
from atasks.transport.backends.amqp.worker.request_message import RequestMessage
from atasks.transport.backends.amqp.worker.station import Station
from atasks.transport.backends.amqp.worker.stored_replies import MissingStore, Store, StoredReplies
from atasks.transport.backends.amqp.worker.telling import Telling
from atasks.transport.backends.amqp.worker.unavailable import UnavailableQueues
from atasks.wire import AT_MOST_ONCE, CONTENT_TYPE, VERSION, Call, Status, Up

if TYPE_CHECKING:
    from atasks.transport.backends.amqp.journals import AMQPJournals
    from atasks.transport.backends.amqp.records import AMQPRecords
    from atasks.transport.backends.amqp.session import Session
    from atasks.transport.server import Server

__all__ = ["Serving"]

logger = logging.getLogger("atasks.amqp")

MAX_PREFETCH: Final = 65_535
WRITE_SECONDS: Final = 3.0
"""Seconds for which who begins waits to hear that it may write. A broker with an alarm takes nothing."""
ACKS_WAIT: Final = 0.005
"""Seconds for which acknowledgements of answered requests wait for each other, where the window has room for more
requests. A worker that dies meanwhile has some calls more come to others, who ask whether they are awaited."""
DECLARED_TOGETHER: Final = SPARES // (2 + len(EXECUTORS))
"""Work queues that are declared at the same time, with those beside each: none waits for a channel that another
one has, which may never be answered."""


class Serving:
    """Feeds one worker from its work queues, and hears what callers and other workers say.

    A request is acknowledged when its reply is safe at the broker. The broker sends at most as many requests as
    there are slots: see `Prefetch`.
    """

    def __init__(
        self,
        session: Session,
        worker: Server,
        queues: Sequence[str],
        records: AMQPRecords,
        journals: AMQPJournals,
        store: Store | None = None,
        *,
        consumer_timeout: float,
        look_at_schedules: Callable[[], None],
    ) -> None:
        self.session = session
        self.worker = worker
        self.queues = list(queues)
        self.station = Station(session, worker, records, journals, store)
        self.replies = Replies(self.station)
        self._stored = None if store is None else StoredReplies(store, self.replies.conclude)
        self._unanswerable = {""}
        """Reply addresses to which nothing can be sent from here."""
        if self._stored is not None:
            self.replies.elsewhere[session.topology.stored] = self._stored.put
        else:
            self._unanswerable.add(session.topology.stored)
        self._missing_store = MissingStore(self.replies)
        self.telling = Telling(self.station)
        self._stopping = False
        self._executors = worker.served.executors
        self._declaring = asyncio.Semaphore(DECLARED_TOGETHER)
        self._new: set[str] = set()
        """Work queues that were not there, and that are announced once they are declared."""
        self._to_wait_for: dict[str, Executor] = {
            task: executor
            for task, executor in self._executors.items()
            if worker.pools.places[executor].size < worker.concurrency
        }
        """The executor of each atask whose calls may have a slot and yet no place."""
        self.serving = False
        """True once the worker has begun to serve."""
        self.muted = True
        """True if its user has not been seen to be able to reply, or could not since."""
        self._told_of_priority = False
        self._callers = CallerWatch(self.station)
        self.attempts = Attempts(self.station)
        self.doubts = Doubts(self.station, self._callers)
        self._paused = PausedQueues(self.station, self.queues)
        self._control = ControlQueue(
            self.station,
            self.queues,
            attempts=self.attempts,
            doubts=self.doubts,
            replies=self.replies,
            telling=self.telling,
            paused=self._paused,
            look_at_schedules=look_at_schedules,
        )
        self.kept = KeptCalls(self.station, self.attempts)
        self.replies.settle = self.kept.ended
        self._leases = Leases(self.station, self.replies, consumer_timeout)
        self._events = EventQueues(self.station)
        self.unavailable = UnavailableQueues(self.station, self.declare, lambda queue: queue in self.queues)
        self._background = [
            asyncio.create_task(self._callers.run(), name="atasks caller watch"),
            asyncio.create_task(self._leases.run(), name="atasks leases"),
            asyncio.create_task(self.unavailable.run(), name="atasks unavailable queues"),
            asyncio.create_task(self.kept.run(), name="atasks kept calls"),
            asyncio.create_task(self.kept.notice(), name="atasks standstill"),
        ]

    # -- life

    async def resume(self, link: Link) -> None:
        """Declare and consume everything over a new link."""
        station, worker = self.station, self.worker
        station.epoch += 1
        # What the broker would say late, by closing a channel over which others are answered.
        lock = self.session.topology.lock(os.urandom(8).hex())
        more = [self._require_write(link), link.require_lock(lock)] if self.muted else []
        await together(self._declare_dead(link), self._listen(link), *more)
        self.doubts.listening()
        station.link, station.acks = link, Acks(link.work, ACKS_WAIT)
        served = [queue for queue in self.queues if queue not in self.unavailable]
        found: list[list[Consumer]] = await together(*(self._declare_first(link, queue) for queue in served))
        consumers = [consumer for several in found for consumer in several]
        own = await self._events.declare_own(link)
        if own is not None:
            name, source, size = own
            consumers.append(self._maker(link, station.acks, source.queue, source)(name, size))
        window = station.window = Prefetch(link, worker, consumers)
        await self._paused.look()
        if not self._stopping:
            await window.open()
        self.serving = True
        worker.streams.ask()

    async def _require_write(self, link: Link) -> None:
        """Raise ChannelAccessRefused if this user may not answer calls. While the broker takes no messages, this
        worker serves all the same: somebody has to drain what fills it."""
        try:
            async with answered("publish", min(self.session.timeout / 4, WRITE_SECONDS)):
                await shielded(self._see_write(link))
        except NoAnswer:
            logger.warning(
                "the broker takes no messages for now: this worker serves all the same, and answers when it does; "
                "has the broker an alarm of memory or disk?"
            )

    async def _see_write(self, link: Link) -> None:
        await link.require_write("", self.session.topology.control)
        self.muted = False

    async def _declare_dead(self, link: Link) -> None:
        topology = self.session.topology
        try:
            async with answered(f"declare queue {topology.dead!r}", self.session.timeout / 4):
                await link.declare_queue(topology.dead, topology.dead_arguments())
        except (
            AMQPChannelError,
            TimeoutError,
        ) as error:  # its node of the cluster is down, which is no reason not to serve the other queues
            self._endure(error)
            logger.warning(
                "queue %r cannot be used, so unreadable messages are dropped: check its node",
                topology.dead,
            )

    async def _listen(self, link: Link) -> None:
        """Consume the control queue of this link."""
        station, topology, inbox = self.station, self.session.topology, link.inbox
        control = station.control = topology.control_queue(self.worker.id, station.epoch)
        receive = opening(self.session.seals, self._control.receive, topology.arrival(control))
        keys = (topology.worker_key(self.worker.id), topology.all_key, *map(topology.queue_key, self.queues))
        asked = answered(f"consume queue {control!r}", self.session.timeout / 2)
        async with asked, refused_with_reason(inbox):  # only the last of them waits for the broker
            arguments: FieldTable = {"x-queue-type": "classic"}
            await guard(inbox.queue_declare(control, exclusive=True, nowait=True, arguments=arguments))
            for key in keys:
                await guard(inbox.queue_bind(control, topology.control, key, nowait=True))
            await guard(inbox.basic_consume(control, receive, no_ack=True))

    async def _declare_first(self, link: Link, queue: str) -> list[Consumer]:
        """`declare` a queue over a new link. One that is not available now is tried again later."""
        async with self._declaring:
            try:
                return await self.declare(link, queue)
            except (AMQPChannelError, TimeoutError) as error:
                self._endure(error)
                self.unavailable.add(queue, error)
                return []

    async def serve_also(self, queues: Sequence[str]) -> None:
        """Consume these queues too, and what the worker's atasks handle of events by now; a link that comes later
        serves them anyway. If one of them cannot be declared, none is served."""
        new = [queue for queue in queues if queue not in self.queues]
        self.queues += new
        self._events.look()
        station = self.station
        link, window = station.link, station.window
        if link is None or window is None or not window.opened:
            return
        try:
            consumers = await self._declare_also(link, window, new)
        except BaseException:
            if not link.lost.done():
                for queue in filter(self.queues.__contains__, new):
                    self.queues.remove(queue)
            raise
        await self._paused.look()
        if window.opened:
            window.consumers += consumers
            await window.open()

    async def _declare_also(self, link: Link, window: Prefetch, queues: Sequence[str]) -> list[Consumer]:
        """Declare queues over a link that others are served over. Returns their consumers, not started."""
        station, topology = self.station, self.session.topology
        consumers: list[Consumer] = []
        for queue in queues:
            await guard(link.inbox.queue_bind(station.control, topology.control, topology.queue_key(queue)))
            try:
                consumers += await self.declare(link, queue)
            except (ChannelNotFoundEntity, TimeoutError) as error:
                self.unavailable.add(queue, error)
        own = await self._events.declare_own(link)
        if own is not None and all(consumer.name != own[0] for consumer in window.consumers):
            name, source, size = own
            consumers.append(self._maker(link, station.acks or Acks(link.work), source.queue, source)(name, size))
        return consumers

    async def serve_no_more(self, queue: str) -> None:
        """Consume this queue no more, and give back what has not begun of it."""
        if queue not in self.queues:
            return
        self.queues.remove(queue)
        window = self.station.window
        if window is not None:
            for consumer in [each for each in window.consumers if each.queue == queue]:
                window.consumers.remove(consumer)
                await consumer.stop()
        self.worker.give_back_unstarted(queue=queue)

    def _endure(self, error: Exception) -> None:
        """Raise what the broker says of one queue to a worker that begins, unless its node of a cluster is down. A
        worker that serves already goes on without that queue: others depend on it."""
        if not self.serving and not isinstance(error, (ChannelNotFoundEntity, TimeoutError)):
            raise error

    async def declare(self, link: Link, queue: str) -> list[Consumer]:
        """Declare a work queue and those beside it, and announce them if they are new. Returns their consumers,
        not started. Raises ChannelNotFoundEntity or, as RabbitMQ 4 does not answer, TimeoutError if their node is
        down; and another AMQPChannelError if others have declared or locked them, or their user may not.

        The queues of calls that wait for places are only there if a worker had such atasks; calls may be left in
        them by workers that are gone.
        """
        topology, station = self.session.topology, self.station
        acks = station.acks if station.acks is not None and link is station.link else Acks(link.work)
        share = min(MAX_PREFETCH, -(-self.worker.concurrency // len(self.queues)))
        source = self._events.source(queue)
        make = self._maker(link, acks, queue, source)
        arguments = topology.work_arguments()

        async def work() -> None:
            if await link.queue_state(topology.work(queue)) is None:
                self._new.add(queue)
            await link.declare_queue(topology.work(queue), arguments)

        async def pool(executor: Executor) -> list[Consumer]:
            name = topology.pool(queue, executor)
            if executor not in self._executors.values() and await link.queue_state(name) is None:
                return []
            await link.declare_queue(name, arguments)
            size = min(MAX_PREFETCH, self.worker.pools.places[executor].size)
            return [make(name, size, executor=executor)]

        async with answered(f"declare the queues of work queue {queue!r}", self.session.timeout / 4):
            _, _, *pools = await together(
                work(), link.declare_queue(topology.solo(queue), arguments), *map(pool, EXECUTORS)
            )
            consumers = [make(topology.work(queue), share), make(topology.solo(queue), 1, solo=True)]
            for found in pools:
                consumers += found
            if source is not None:
                await self._events.bind(link, topology.work(queue), source)
        self.kept.move_early(queue)
        if queue in self._new:
            self._new.discard(queue)
            announcement = Up(VERSION, topology.namespace, queue, self.worker.id)
            station.put(self.session.control([announcement], topology.up_key(queue)))
        return consumers

    def _maker(self, link: Link, acks: Acks, queue: str, source: EventSource | None) -> Callable[..., Consumer]:
        """Return the function that makes the consumers of a work queue, of a name and a window."""
        return partial(
            Consumer,
            link,
            acks,
            queue,
            source=source,
            receive=self._receiver,
            unavailable=self._leave_out,
            patience=self.session.timeout / 2,
        )

    def _leave_out(self, queue: str, error: BaseException) -> None:
        """A queue cannot be consumed: serve the others. A worker that begins is told instead, if it is refused."""
        if self.serving or not isinstance(error, AMQPChannelError):
            self.unavailable.add(queue, error)

    def suspend(self) -> None:
        """The link is gone. Runs go on; what they were delivered by will be delivered again."""
        station = self.station
        station.link = None
        station.left_here = set(filter(self.worker.holds, station.left_here))
        self.kept.doubt()
        for acks in self._all_acks():
            acks.close()
        station.acks = None
        self.unavailable.abandon()
        self._callers.reset()
        self._leases.reset()
        if station.window is not None:
            station.window.abandon()
            station.window = None

    def _all_acks(self) -> set[Acks]:
        """Those of every channel that is consumed from."""
        acks, window = self.station.acks, self.station.window
        found = {consumer.acks for consumer in window.consumers} if window is not None else set()
        return found | {acks} if acks is not None else found

    def lacks_place(self, executor: Executor) -> None:
        """Calls wait here for a place in a pool: let other workers take them."""
        if self.station.window is not None and executor in self._executors.values():
            self.station.window.lacks_place(executor)

    async def stop(self) -> None:
        """Consume no more. What was delivered stays in hand, and can be acknowledged."""
        self._stopping = True
        if self.station.window is not None:
            with suppress(*CLIENT_ERRORS):  # the link is gone, and its consumers with it
                await self.station.window.stop()
        self.attempts.stop()  # this worker must not get the calls back that it gives back
        self.doubts.stop()
        self.kept.stop()

    async def restart(self) -> None:
        """Consume again after `stop`."""
        self._stopping = False
        self.attempts.restart()
        self.doubts.restart()
        self.kept.restart()
        if self.station.window is not None:
            with suppress(*CLIENT_ERRORS):  # the next link consumes
                await self.station.window.open()

    async def has_other_workers(self) -> bool:
        """Return True if others serve each of the queues, as far as can be known."""
        if self.station.window is not None:
            with suppress(*CLIENT_ERRORS):
                return await self.station.window.has_other_workers()
        return False

    async def close(self) -> None:
        """End what runs in the background, after the last call."""
        if self.station.link is not None and not self.worker.held:
            with suppress(*CLIENT_ERRORS):
                await self._leases.delete(self.station.link)
        self.replies.refused.close()
        for task in self._background:
            task.cancel()
        await asyncio.wait(self._background)
        await self._paused.close()
        await self.doubts.close()
        await self.kept.close()
        await self._missing_store.close()
        if self._stored is not None:
            await self._stored.close()
        await self.unavailable.close()
        await self.telling.close()

    async def acknowledged(self) -> None:
        """Return when no reply waits for room in its queue, and every acknowledgement was written."""
        await self.replies.refused.flushed()
        await self.replies.copies.ended()
        await self.attempts.ended()
        await self.kept.finished()
        if self._stored is not None:
            await self._stored.finished()
        for acks in self._all_acks():
            await acks.flushed()

    # -- requests

    def _receiver(self, consumer: Consumer) -> ConsumerCallback:
        """The callback to consume a queue with."""
        place = self.session.topology.arrival(consumer.name)
        # One event is published once, under one seal, to the queues of all its groups.
        among = "" if consumer.source is None else consumer.source.queue

        def receive(message: DeliveredMessage) -> None:
            try:
                self._receive(consumer, message)
            except Exception:
                logger.exception("this worker could not serve a request: report the traceback")
                self.replies.fail(consumer, message)

        def refuse(message: DeliveredMessage) -> None:
            self.replies.dead_letter(message, consumer.acks, consumer.name)

        return opening(self.session.seals, receive, place, refuse, among=among)

    def _receive(self, consumer: Consumer, message: DeliveredMessage) -> None:
        """Only parses and hands over: the client library cancels its callbacks when the channel closes."""
        request = RequestMessage.of(consumer, message)
        properties = message.header.properties
        if properties.priority and self.session.topology.max_priority is None and not self._told_of_priority:
            self._told_of_priority = True
            logger.warning(
                "calls on queue %r have priorities, which are ignored: workers declare it without max_priority",
                consumer.queue,
            )
        homeless = request.reply_to in self._unanswerable
        if homeless and not request.reply_to:
            self.worker.count_bad(f"a request on queue {consumer.queue!r} has no reply address that can be read")
            self._bury(request, message)
            return
        calls, refusals = self._read(message)
        if refusals:
            self.worker.count_bad(refusals[0][1])
        seals = self.session.seals
        if seals is not None:
            calls, forbidden = seals.admit(message, request, calls, consumer.queue, self.worker)
            refusals += forbidden
        source = consumer.source
        if source is not None and request.reply_to == self.session.topology.events:
            calls, refusals = source.calls(calls, refusals)
        else:
            source = None
        if not calls and not any(call_id for call_id, _ in refusals):
            if not refusals:
                self.worker.count_bad(f"a message without envelopes on queue {consumer.queue!r}")
            self._bury(request, message)
            return
        if refusals:
            self._refuse(request, calls, refusals)
        else:
            request.carries(calls, 0)
        if homeless:
            for call in calls:
                self._missing_store.leave(call, CallDelivery(self.replies, request))
            return
        oldest, newest = self.doubts.bounds()
        ahead = self.station.clocks.ahead(request.reply_to)
        withdrawn = self.worker.withdrawn
        moved = bool(properties.headers)  # as all are that the broker has moved from one queue to another
        again = bool(message.redelivered) or (moved and was_leased(properties, self.session.topology.prefix))
        delayed = moved and was_delayed(properties)
        twice = delayed and may_be_moved(properties)
        request.came_again = again or delayed
        cancelled = seals if seals is not None and seals.has_cancelled else None
        for call in calls:
            if cancelled is not None and cancelled.was_cancelled(message, call):
                CallDelivery(self.replies, request).drop()
                continue
            doubtful = not oldest <= call.sent_ms + ahead <= newest or call.id in withdrawn or delayed
            before = again or (twice and call.delivery == AT_MOST_ONCE)
            self._take(call, request, before, doubtful, source)
        if consumer.solo and self.station.window is not None:
            self.station.window.adapt()

    def _refuse(self, request: RequestMessage, calls: list[Call], refusals: list[tuple[str | None, str]]) -> None:
        """Answer the calls of a request that are refused, as far as their ids are known. `calls`: the others."""
        answerable = [(call_id, reason) for call_id, reason in refusals if call_id is not None]
        request.carries(calls, len(answerable))
        for call_id, reason in answerable:
            refusal = wire.ended(call_id, Status.DECODE_ERROR, reason, self.worker.id)
            CallDelivery(self.replies, request).reply(refusal)

    def _bury(self, request: RequestMessage, message: DeliveredMessage) -> None:
        """Copy a message that can be neither read nor answered to the dead queue."""
        request.calls = 1
        request.ended()
        self.replies.dead_letter(message, request.acks, request.consumer.name)

    def _take(
        self, call: Call, request: RequestMessage, again: bool, doubtful: bool, source: EventSource | None
    ) -> None:
        """Deal with a call of a request, or of an event that comes from `source`; `again`: the broker has
        delivered it before."""
        copies = self.replies.copies
        if copies.leaving and request.copy in copies.leaving:
            copies.keep(request, partial(self._take, call, request, again, doubtful, source))
            return
        if call.max_attempts > MAX_ATTEMPTS:
            self.worker.served.cap(call)
        consumer = request.consumer
        run = self.worker.find(call.id) if again or call.attempt > 1 else None
        older = None if run is None else run.deliveries[-1]
        known = older if isinstance(older, CallDelivery) else None
        delivery = CallDelivery(self.replies, request, known)
        if source is not None:
            delivery = EventDelivery(self.replies, request, known, call, source)
        if again and run is not None:
            consumer.adopt()
            self.station.adapt_window()
        executor = None if again else self._to_wait_for.get(call.task)
        if executor is not None and self._moves(call, consumer):
            delivery.give_back(call, executor)
        elif (doubtful or again or call.attempt > 1) and (
            self.kept.take(call, delivery, again) or self.doubts.take(call, delivery, again)
        ):
            return
        elif not self.attempts.take(call, delivery, again):
            permit = self.kept.permit(call, delivery) if call.orphan else None
            self.worker.deliver(call, delivery, consumer.solo, permit)

    def _moves(self, call: Call, consumer: Consumer) -> bool:
        """Return True if this call, which needs a place in a pool, goes to the queue of that pool."""
        if consumer.source is not None and consumer.source.worker:
            return False
        return consumer.executor is None and not consumer.solo and not self.worker.knows(call.id)

    def _read(self, message: DeliveredMessage) -> tuple[list[Call], list[tuple[str | None, str]]]:
        """The calls of a message, and what is wrong with the rest: (call id if it can be read, why)."""
        body, limit = message.body, self.session.max_message
        try:
            if (said := content_type(message)) != CONTENT_TYPE:
                raise DecodeError(f"content type {said!r} instead of {CONTENT_TYPE!r}")
            envelopes = envelopes_of(body, limit)
        except DecodeError as error:
            if len(body) > limit:  # the body is not read: the message id is that of its first call, as a rule
                name = message.header.properties.message_id or ""
                return [], [
                    (name if 0 < len(name) <= 64 and wire.plain(name) else None, f"request refused: {error}")
                ]
            decoded = wire.salvage(body, limit)
            envelopes = decoded.envelopes
            refusals = [(bad.id, f"request refused: {bad.reason}") for bad in decoded.bad]
            if not refusals:  # every envelope is readable: it is the message that is wrong
                refusals = [(getattr(item, "id", None), f"request refused: {error}") for item in envelopes]
                envelopes = []
        else:
            refusals = []
        calls = [envelope for envelope in envelopes if isinstance(envelope, Call)]
        if len(calls) < len(envelopes):
            refusals += [
                (None, f"request refused: a {type(item).__name__} on a work queue")
                for item in envelopes
                if not isinstance(item, Call)
            ]
        return calls, refusals
