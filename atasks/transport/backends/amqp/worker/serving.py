"""The worker's side: work queues and their windows, deliveries, replies, control messages."""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from aiormq.abc import DeliveredMessage
from aiormq.exceptions import AMQPChannelError, ChannelNotFoundEntity
from pamqp.commands import Basic

from atasks import wire
from atasks.errors import DecodeError
from atasks.options import EXECUTORS, MAX_ATTEMPTS, Executor
from atasks.transport.backends.amqp.broker.acks import Acks
from atasks.transport.backends.amqp.broker.link import CLIENT_ERRORS, Link, guard
from atasks.transport.backends.amqp.broker.outbox import Outgoing
from atasks.transport.backends.amqp.seals import key_of, opening
from atasks.transport.backends.amqp.worker.attempts import Attempts
from atasks.transport.backends.amqp.worker.caller_watch import CallerWatch
from atasks.transport.backends.amqp.worker.clocks import Clocks
from atasks.transport.backends.amqp.worker.consumer import Consumer
from atasks.transport.backends.amqp.worker.dead_letters import DeadLetter
from atasks.transport.backends.amqp.worker.delivery import (
    CallDelivery,
    Items,
    ReplyMessage,
    RequestMessage,
    ReturnedRequest,
)
from atasks.transport.backends.amqp.worker.doubts import Doubts
from atasks.transport.backends.amqp.worker.leases import Leases, was_leased
from atasks.transport.backends.amqp.worker.prefetch import Prefetch
from atasks.transport.backends.amqp.worker.unavailable import UnavailableQueues
from atasks.wire import (
    CONTENT_TYPE,
    VERSION,
    Ask,
    Call,
    Cancel,
    Credit,
    End,
    Grant,
    Held,
    Item,
    Reply,
    Status,
    Up,
)

if TYPE_CHECKING:
    from atasks.transport.backends.amqp.transport import AMQPTransport
    from atasks.worker.held_call import HeldCall
    from atasks.worker.worker import Worker

__all__ = ["Serving"]

logger = logging.getLogger("atasks.amqp")

MAX_PREFETCH: Final = 65_535
MAX_ADDRESSEES: Final = 2_000
"""As many as a worker remembers replies."""
REPLY_BATCH: Final = 256
REPLY_BATCH_BYTES: Final = 64 * 2**10

Answer = tuple[Reply | End, RequestMessage | None]
"""A reply, and what it settles; None: it was sent before, and settles nothing."""


class Serving:
    """Feeds one worker from its work queues, and sends its replies.

    A request is acknowledged when its reply is safe at the broker. The broker sends at most as many requests as
    there are slots: see `Prefetch`.
    """

    def __init__(self, transport: AMQPTransport, worker: Worker, queues: Sequence[str]) -> None:
        self.transport = transport
        self.worker = worker
        self.queues = list(queues)
        self.link: Link | None = None
        self.acks: Acks | None = None
        self.window: Prefetch | None = None
        self._stopping = False
        self._replies: dict[str | tuple[str, str], list[Answer]] = {}
        """Reply queue, and the key of their seals if there is one -> the replies of this turn."""
        self._addressees: OrderedDict[str, str] = OrderedDict()
        """Whom the calls that ended lately were replied to."""
        self._numbers = 0
        self._executors = worker.executors
        self._to_wait_for: dict[str, Executor] = {
            task: executor
            for task, executor in self._executors.items()
            if worker.pools.places[executor].size < worker.concurrency
        }
        """Of the atasks whose calls may have a slot and yet no place: what their functions run in."""
        self.epoch = 0
        """Counts the links."""
        self.serving = False
        """Whether it has begun."""
        self._told_of_priority = False
        self.control = ""
        """The queue of control messages over this link."""
        self.attempts = Attempts(self)
        self._callers = CallerWatch(self)
        self.doubts = Doubts(self, self._callers)
        self.clocks = Clocks()
        self._leases = Leases(self, transport.consumer_timeout)
        self.ailing = UnavailableQueues(self)
        self._background = [
            asyncio.create_task(self._callers.run(), name="atasks caller watch"),
            asyncio.create_task(self._leases.run(), name="atasks leases"),
            asyncio.create_task(self.ailing.run(), name="atasks ailing queues"),
        ]

    # -- life

    async def resume(self, link: Link) -> None:
        """Declare and consume everything over a new link."""
        topology, worker = self.transport.topology, self.worker
        self.epoch += 1
        try:
            async with asyncio.timeout(self.transport.timeout / 4):
                await link.declare_queue(topology.dead, topology.dead_arguments())
        except (
            AMQPChannelError,
            TimeoutError,
        ) as error:  # its node of the cluster is down: no reason not to serve
            self._endure(error)
            logger.warning("queue %r cannot be used: what cannot be read is dropped for now", topology.dead)
        control = self.control = topology.control_queue(worker.id, self.epoch)
        await guard(link.inbox.queue_declare(control, exclusive=True, arguments={"x-queue-type": "classic"}))
        await guard(link.inbox.queue_bind(control, topology.control, topology.worker_key(worker.id)))
        for queue in self.queues:
            await guard(link.inbox.queue_bind(control, topology.control, topology.queue_key(queue)))
        receive = opening(self.transport.seals, self._on_control, topology.arrival(control))
        await guard(link.inbox.basic_consume(control, receive, no_ack=True))
        self.doubts.listening()
        self.link, self.acks = link, Acks(link.work)
        consumers: list[Consumer] = []
        for queue in self.queues:
            if queue not in self.ailing:
                try:
                    consumers += await self.declare(link, queue)
                except (AMQPChannelError, TimeoutError) as error:
                    self._endure(error)
                    self.ailing.add(queue, error)
        self.window = Prefetch(link, worker, consumers)
        if not self._stopping:
            await self.window.open()
        self.serving = True
        worker.streams.ask()

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
        topology = self.transport.topology
        acks = self.acks if self.acks is not None and link is self.link else Acks(link.work)
        share = min(MAX_PREFETCH, -(-self.worker.concurrency // len(self.queues)))
        consumers: list[Consumer] = []
        async with asyncio.timeout(self.transport.timeout / 4):
            new = await link.queue_state(topology.work(queue)) is None
            for name, size, solo in ((topology.work(queue), share, False), (topology.solo(queue), 1, True)):
                await link.declare_queue(name, topology.work_arguments())
                consumers.append(Consumer(self, link, acks, queue, name, size, solo=solo))
            for executor in EXECUTORS:
                name = topology.pool(queue, executor)
                if executor in self._executors.values() or await link.queue_state(name) is not None:
                    await link.declare_queue(name, topology.work_arguments())
                    size = min(MAX_PREFETCH, self.worker.pools.places[executor].size)
                    consumers.append(Consumer(self, link, acks, queue, name, size, executor=executor))
        if new:
            announcement = Up(VERSION, topology.namespace, queue, self.worker.id)
            self.transport.outbox.put(self.transport.notices.message([announcement], topology.up_key(queue)))
        return consumers

    def suspend(self) -> None:
        """The link is gone. Runs go on; what they were delivered by will be delivered again."""
        self.link = None
        for acks in self._all_acks():
            acks.close()
        self.acks = None
        self.ailing.abandon()
        self._callers.reset()
        self._leases.reset()
        if self.window is not None:
            self.window.abandon()
            self.window = None

    def _all_acks(self) -> set[Acks]:
        """Those of every channel that is consumed from."""
        found = {consumer.acks for consumer in self.window.consumers} if self.window is not None else set()
        return found | {self.acks} if self.acks is not None else found

    def lacks_place(self, executor: Executor) -> None:
        """Calls wait here for a place in a pool: let other workers take them."""
        if self.window is not None and executor in self._executors.values():
            self.window.lacks_place(executor)

    async def stop(self) -> None:
        """Consume no more. What was delivered stays in hand, and can be acknowledged."""
        self._stopping = True
        if self.window is not None:
            with suppress(*CLIENT_ERRORS):  # the link is gone, and its consumers with it
                await self.window.stop()
        self.attempts.stop()  # what it gives back is not to come to here
        self.doubts.stop()

    async def restart(self) -> None:
        """Consume again after `stop`."""
        self._stopping = False
        self.attempts.restart()
        self.doubts.restart()
        if self.window is not None:
            with suppress(*CLIENT_ERRORS):  # the next link consumes
                await self.window.open()

    async def has_other_workers(self) -> bool:
        """Whether others serve each of the queues, as far as can be known."""
        if self.window is not None:
            with suppress(*CLIENT_ERRORS):
                return await self.window.has_other_workers()
        return False

    def callers(self, orphan: int) -> dict[str, list[HeldCall]]:
        """Reply queue -> the runs in hand that are to be treated so when their caller is gone. One that was sent
        again since its caller has another reply queue is there under both."""
        found: dict[str, list[HeldCall]] = {}
        for run in self.worker.runs:
            if run.call.orphan == orphan:
                deliveries = (item for item in run.deliveries if isinstance(item, CallDelivery))
                for reply_to in {item.inbound.reply_to for item in deliveries}:
                    found.setdefault(reply_to, []).append(run)
        return found

    async def close(self) -> None:
        """End what runs in the background, after the last call."""
        if self.link is not None and not self.worker.held:
            with suppress(*CLIENT_ERRORS):
                await self._leases.delete(self.link)
        for task in self._background:
            task.cancel()
        await asyncio.wait(self._background)
        await self.doubts.close()
        await self.ailing.close()

    async def acknowledged(self) -> None:
        """Return when every acknowledgement was written."""
        await self.attempts.ended()
        for acks in self._all_acks():
            await acks.flushed()

    # -- requests

    async def receive(self, consumer: Consumer, message: DeliveredMessage) -> None:
        """Only parses and hands over: the client library cancels its callbacks when the channel closes."""
        inbound = RequestMessage(self, consumer, message)
        properties = message.header.properties
        if properties.priority and self.transport.topology.max_priority is None and not self._told_of_priority:
            self._told_of_priority = True
            logger.warning(
                "calls on queue %r have priorities, which are ignored: workers declare it without max_priority",
                consumer.queue,
            )
        if not properties.reply_to:
            self.worker.count_bad(f"a request on queue {consumer.queue!r} has no reply address that can be read")
            inbound.dead_letter(message)
            return
        calls, refusals = self._read(message.body, properties)
        if refusals:
            self.worker.count_bad(refusals[0][1])
        seals = self.transport.seals
        if seals is not None:
            calls, forbidden = seals.admit(message, inbound, calls, consumer.queue)
            refusals += forbidden
        if not calls and not any(call_id for call_id, _ in refusals):
            if not refusals:
                self.worker.count_bad(f"a message without envelopes on queue {consumer.queue!r}")
            inbound.dead_letter(message)
            return
        answerable = [(call_id, reason) for call_id, reason in refusals if call_id is not None]
        inbound.calls = inbound.unsettled = len(calls) + len(answerable)
        inbound.shared = inbound.calls > 1
        for call_id, reason in answerable:
            CallDelivery(inbound).reply(wire.ended(call_id, Status.DECODE_ERROR, reason, self.worker.id))
        oldest, newest = self.doubts.bounds()
        ahead = self.clocks.ahead(properties.reply_to)
        withdrawn = self.worker.withdrawn
        again = bool(message.redelivered) or was_leased(properties)
        for call in calls:
            if seals is not None and seals.was_cancelled(message, call):
                CallDelivery(inbound).drop()
                continue
            doubtful = not oldest <= call.sent_ms + ahead <= newest or call.id in withdrawn
            self._take(call, inbound, again, doubtful)
        if consumer.solo and self.window is not None:
            self.window.adapt()

    def _take(self, call: Call, inbound: RequestMessage, again: bool, doubtful: bool) -> None:
        """Deal with a call of a request; `again`: the broker has delivered it before."""
        if call.max_attempts > MAX_ATTEMPTS:
            self.worker.cap(call)
        consumer = inbound.consumer
        run = self.worker.find(call.id) if again or call.attempt > 1 else None
        older = None if run is None else run.deliveries[-1]
        delivery = CallDelivery(inbound, older if isinstance(older, CallDelivery) else None)
        if again and run is not None:
            consumer.adopted += 1
            if self.window is not None:
                self.window.adapt_soon()
        executor = None if again else self._to_wait_for.get(call.task)
        if executor is not None and self._moves(call, consumer):
            delivery.give_back(call, executor)
        elif (doubtful or again) and self.doubts.take(call, delivery, again):
            return
        elif not self.attempts.take(call, delivery, again):
            self.worker.deliver(call, delivery, alone=consumer.solo)

    def sent_ms(self, call: Call, inbound: RequestMessage) -> float:
        """When the call was sent, by this clock as far as it was compared with the caller's."""
        return call.sent_ms + self.clocks.ahead(inbound.reply_to)

    def _moves(self, call: Call, consumer: Consumer) -> bool:
        """Whether this call, which needs a place in a pool, goes to the queue of those that wait for one."""
        return consumer.executor is None and not consumer.solo and not self.worker.knows(call.id)

    def dead_letter(self, message: DeliveredMessage, acks: Acks, queue: str) -> None:
        """Keep what can be neither read nor answered for people to look at."""
        dead = self.transport.topology.dead
        self.transport.outbox.put(DeadLetter(message, acks, queue, dead, self.number()))

    def fail(self, consumer: Consumer, message: DeliveredMessage) -> None:
        """Serving a message failed in a way that nobody foresaw: say so, and leave no await hanging."""
        try:
            self._tell_callers(message)
        except Exception:
            logger.exception("the callers of a message that failed could not be told")
        finally:
            self.dead_letter(message, consumer.acks, consumer.name)

    def _tell_callers(self, message: DeliveredMessage) -> None:
        reply_to = message.header.properties.reply_to
        calls = [
            item
            for item in wire.salvage(message.body, self.transport.max_message).envelopes
            if isinstance(item, Call)
        ]
        reason = "the worker failed to serve the call: its log says more"
        replies = [wire.ended(call.id, Status.FAILED, reason, self.worker.id) for call in calls]
        if reply_to and replies:
            self.send_replies(reply_to, [(reply, None) for reply in replies], 2, key_of(message))

    def _read(self, body: bytes, properties: Basic.Properties) -> tuple[list[Call], list[tuple[str | None, str]]]:
        """The calls of a message, and what is wrong with the rest: (call id if it can be read, why)."""
        limit = self.transport.max_message
        try:
            if properties.content_type != CONTENT_TYPE:
                raise DecodeError(f"content type {properties.content_type!r} instead of {CONTENT_TYPE!r}")
            envelopes = wire.decode(body, limit)
        except DecodeError as error:
            if len(body) > limit:  # nothing is read of it: its first call has this id, as a rule
                name = properties.message_id or ""
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

    # -- replies

    def send(self, envelope: Item | End, inbound: RequestMessage) -> None:
        """Send items of a stream, or its end once more. They stay here until they are taken: if the reply queue is
        gone, for the next one, and so the broker need not write them to its disk."""
        if isinstance(envelope, End):
            self.send_replies(inbound.reply_to, [(envelope, None)], 1, inbound.key)
        else:
            items = Items(self, envelope, inbound.reply_to, self.properties(1), inbound.key)
            self.transport.outbox.put_now(items)

    def reply(self, reply: Reply | End, inbound: RequestMessage) -> None:
        """Send it with the other replies to that caller of this turn of the event loop."""
        if not self._replies:
            asyncio.get_running_loop().call_soon(self.flush)
        caller = inbound.reply_to if inbound.key is None else (inbound.reply_to, inbound.key)
        self._replies.setdefault(caller, []).append((reply, inbound))
        self._addressees[reply.id] = inbound.reply_to
        if len(self._addressees) > MAX_ADDRESSEES:
            self._addressees.popitem(last=False)

    def flush(self) -> None:
        """Send the replies of this turn."""
        replies, self._replies = self._replies, {}
        for caller, waiting in replies.items():
            reply_to, key = (caller, None) if isinstance(caller, str) else caller
            for batch in _batches(waiting):
                mode = max(inbound.delivery_mode for _, inbound in batch if inbound is not None)
                self.send_replies(reply_to, batch, mode, key)

    def send_replies(
        self, reply_to: str, replies: list[Answer], mode: int, key: str | None, alone: bool = False
    ) -> None:
        """Send them in one message under the seal of `key`; alone: the broker may close the channel over it."""
        settling = ReplyMessage(self, replies, reply_to, self.properties(mode), key)
        if alone:
            self.transport.outbox.put_alone(settling)
        else:
            self.transport.outbox.put_now(settling)

    def republish(self, call: Call, inbound: RequestMessage, queue: str, charged: bool, over: str) -> None:
        """Put a call back into a work queue; what it came by is acknowledged when that is confirmed. Uncharged, it
        is the same copy of a later attempt as before; `over` names the beginning that has ended with this."""
        old = inbound.properties
        properties = Basic.Properties(
            content_type=CONTENT_TYPE,
            message_id=self.number() if charged or call.attempt == 1 else inbound.copy or self.number(),
            reply_to=inbound.reply_to,
            delivery_mode=inbound.delivery_mode,
            priority=old.priority,
            expiration=old.expiration,
            correlation_id=over or None,
        )
        self.transport.outbox.put(ReturnedRequest(call, queue, properties, inbound))

    def properties(self, delivery_mode: int) -> Basic.Properties:
        """Those of a message to a caller."""
        return Basic.Properties(content_type=CONTENT_TYPE, message_id=self.number(), delivery_mode=delivery_mode)

    def number(self) -> str:
        """A message id of this worker's: returns are matched by it."""
        self._numbers += 1
        return f"{self.worker.id}-{self._numbers:x}"

    # -- control messages

    async def _on_control(self, message: DeliveredMessage) -> None:
        limit = self.transport.max_message
        try:
            envelopes = wire.decode(message.body, limit)
        except DecodeError as error:
            self.worker.count_bad(str(error))
            envelopes = wire.salvage(message.body, limit).envelopes
        if self.transport.seals is not None:
            envelopes = self.transport.seals.for_worker(message, envelopes, self.worker)
        for envelope in envelopes:
            if isinstance(envelope, Cancel):
                for call_id in envelope.ids:
                    self.worker.cancel(call_id)
                    self.doubts.withdrawn(call_id)
            elif isinstance(envelope, Ask):
                self._answer(envelope, message.header.properties.reply_to, key_of(message))
            elif isinstance(envelope, Held):
                for name in envelope.ids:
                    self.attempts.told(name, None)
            elif isinstance(envelope, Grant):
                self.attempts.granted(envelope)
                self.doubts.told(envelope)
            elif isinstance(envelope, Credit):
                self._credit(envelope, message.header.properties.reply_to)
            elif isinstance(envelope, Reply | End):
                self.attempts.told(envelope.id, envelope)

    def _credit(self, credit: Credit, reply_to: str | None) -> None:
        """The consumer of a stream says what it has taken, and where it is."""
        if not reply_to or self._is_for(credit.id, reply_to):
            if reply_to:
                self._readdress(credit.id, reply_to)
            self.worker.streams.credit(credit)

    def _readdress(self, call_id: str, reply_to: str) -> None:
        """The consumer of a stream says where it is: its reply queue may be another one by now."""
        run = self.worker.find(call_id)
        if run is not None:
            for delivery in run.deliveries:
                if isinstance(delivery, CallDelivery):
                    delivery.inbound.reply_to = reply_to

    def _is_for(self, call_id: str, reply_to: str) -> bool:
        """Whether that is the address of who made a call that is in hand here, or has ended here lately, or of
        somebody of the same user; nobody else is told of it. Anybody may ask for one whose replies are kept."""
        topology = self.transport.topology
        run = self.worker.find(call_id) or self.worker.streams.run(call_id)
        if run is not None:
            found = [item.inbound.reply_to for item in run.deliveries if isinstance(item, CallDelivery)]
        elif call_id in self._addressees:
            found = [self._addressees[call_id]]
        else:
            found = self.doubts.holds(call_id)
        return any(topology.reply_exchange(name) or topology.are_of_one_caller(name, reply_to) for name in found)

    def _ran_ms(self, names: list[str]) -> list[int]:
        """For how long each of these calls has run; -1: not yet."""
        runs = (self.worker.find(name) for name in names)
        times = (None if run is None else run.ran for run in runs)
        return [-1 if ran is None else int(ran * 1000) for ran in times]

    def _answer(self, question: Ask, reply_to: str | None, key: str) -> None:
        """Say which of the calls are in hand here, and send the replies of those that finished again: to a worker,
        and to who made them. Who asks for none under a seal wants to know whether its key is known here."""
        if not reply_to:
            return
        by_worker = self.transport.topology.is_control_queue(reply_to)
        names = dict.fromkeys(question.ids)
        told = [name for name in names if by_worker or self._is_for(name, reply_to)]
        held = [name for name in told if self.worker.holds(name) or self.doubts.holds(name)]
        held += [name for name in names if self.attempts.holds(name, not by_worker) and name not in held]
        if held or question.token or (key and not names):
            body = wire.encode([Held(VERSION, held, self.worker.id, question.token, self._ran_ms(held))])
            self.transport.outbox.put(Outgoing(body, reply_to, self.properties(1), mandatory=False, key=key))
        finished = (self.worker.finished(name) for name in told)
        for batch in _batches([(reply, None) for reply in finished if reply is not None]):
            self.send_replies(reply_to, batch, 1, key)


def _batches(replies: Sequence[Answer]) -> Iterator[list[Answer]]:
    """Replies to one caller, those that share a message together."""
    batch: list[Answer] = []
    size = 0
    for item in replies:
        if batch and (len(batch) >= REPLY_BATCH or size + len(item[0].payload) > REPLY_BATCH_BYTES):
            yield batch
            batch, size = [], 0
        batch.append(item)
        size += len(item[0].payload)
    if batch:
        yield batch
