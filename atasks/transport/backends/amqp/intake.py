"""The worker's side: work queues and their windows, deliveries, replies, control messages."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine, Sequence
from typing import TYPE_CHECKING, Any, Final

from aiormq.abc import DeliveredMessage
from pamqp.commands import Basic

from atasks import wire
from atasks.errors import DecodeError
from atasks.run import Run
from atasks.transport.backends.amqp.acks import Acks
from atasks.transport.backends.amqp.callers import CallerWatch
from atasks.transport.backends.amqp.link import CLIENT_ERRORS, Link, guard
from atasks.transport.backends.amqp.outbox import Outgoing
from atasks.wire import AT_MOST_ONCE, CONTENT_TYPE, VERSION, Ask, Call, Cancel, Held, Reply, Status, Up

if TYPE_CHECKING:
    from atasks.transport.backends.amqp.transport import AMQPTransport
    from atasks.worker import Worker

__all__ = ["Intake"]

logger = logging.getLogger("atasks.amqp")

MAX_PREFETCH: Final = 65_535
REPLY_BATCH: Final = 256
REPLY_BATCH_BYTES: Final = 64 * 2**10
MAX_SEEN: Final = 8
"""Workers that a call of an unknown atask may visit."""
PASS_ON_PAUSE: Final = 0.05
ASK_SECONDS: Final = 1.0
REFUSED_PAUSE: Final = 0.5


class Intake:
    """Feeds one worker from its work queues, and sends its replies.

    A request is acknowledged when its reply is safe at the broker. The broker sends at most as many requests as
    there are slots: see `slots_changed`.
    """

    def __init__(self, transport: AMQPTransport, worker: Worker, queues: Sequence[str]) -> None:
        self.transport = transport
        self.worker = worker
        self.queues = list(queues)
        self.link: Link | None = None
        self.acks: Acks | None = None
        self._consumers: list[_Consumer] = []
        self._changing: asyncio.Task[None] | None = None
        self._stopping = False
        self._replies: dict[str, list[tuple[Reply, _Inbound]]] = {}
        self._numbers = 0
        self._asks: dict[str, asyncio.Future[Reply | None]] = {}
        self._errands: set[asyncio.Task[None]] = set()
        self._epoch = 0
        self._control = ""
        self._paused = False
        self._callers = CallerWatch(self)
        self._watcher = asyncio.create_task(self._callers.run(), name="atasks caller watch")

    # -- life

    async def resume(self, link: Link) -> None:
        """Declare and consume everything over a new link."""
        topology, worker = self.transport.topology, self.worker
        self._epoch += 1
        acks = Acks(link.work)
        await guard(link.work.queue_declare(topology.dead, durable=True, arguments=topology.dead_arguments()))
        control = self._control = topology.control_queue(worker.id, self._epoch)
        await guard(link.inbox.queue_declare(control, exclusive=True, arguments={"x-queue-type": "classic"}))
        await guard(link.inbox.queue_bind(control, topology.control, topology.worker_key(worker.id)))
        for queue in self.queues:
            await guard(link.inbox.queue_bind(control, topology.control, topology.queue_key(queue)))
        await guard(link.inbox.basic_consume(control, self._on_control, no_ack=True))
        created = [queue for queue in self.queues if await link.queue_state(topology.work(queue)) is None]
        arguments = topology.work_arguments()
        share = min(MAX_PREFETCH, -(-worker.concurrency // len(self.queues)))
        consumers: list[_Consumer] = []
        for queue in self.queues:
            for name, size in ((topology.work(queue), share), (topology.solo(queue), 1)):
                await guard(link.work.queue_declare(name, durable=True, arguments=arguments))
                consumers.append(_Consumer(self, queue, name, size, solo=name != topology.work(queue)))
        self.link, self.acks, self._consumers, self._paused = link, acks, consumers, False
        if not self._stopping:
            for consumer in consumers:
                await consumer.start(link, consumer.full_size)
        for queue in created:
            body = wire.encode([Up(VERSION, topology.namespace, queue, worker.id)])
            self.transport.outbox.put(self.transport.control(body, topology.up_key(queue)))

    def suspend(self) -> None:
        """The link is gone. Runs go on; what they were delivered by will be delivered again."""
        self.link = None
        self.acks = None
        self._callers.reset()
        if self._changing is not None:
            self._changing.cancel()
            self._changing = None
        self._consumers = []

    async def stop(self) -> None:
        """Consume no more. What was delivered stays in hand, and can be acknowledged."""
        self._stopping = True
        if self._changing is not None:
            await asyncio.wait([self._changing])
        for consumer in self._consumers:
            try:
                await consumer.stop()
            except CLIENT_ERRORS:
                return  # the link is gone, and its consumers with it

    async def restart(self) -> None:
        """Consume again after `stop`."""
        self._stopping = False
        link = self.link
        for consumer in self._consumers:
            if link is not None:
                await consumer.start(link, min(consumer.full_size, self.worker.slots.free))

    async def has_other_workers(self) -> bool:
        """Whether others consume each of the work queues."""
        link = self.link
        if link is None:
            return False
        try:
            for consumer in self._consumers:
                state = await link.queue_state(consumer.name)
                if not consumer.solo and (state is None or state[1] <= consumer.running):
                    return False
        except CLIENT_ERRORS:
            return False
        return True

    def callers(self, orphan: int) -> dict[str, list[Run]]:
        """Reply queue -> the runs in hand that are to be treated so when their caller is gone."""
        found: dict[str, list[Run]] = {}
        for run in self.worker.runs:
            delivery = run.deliveries[-1]
            if run.call.orphan == orphan and isinstance(delivery, _Delivery):
                found.setdefault(delivery.inbound.reply_to, []).append(run)
        return found

    async def close(self) -> None:
        """End what runs in the background."""
        self._watcher.cancel()
        await asyncio.wait([self._watcher])

    async def acknowledged(self) -> None:
        """Return when every acknowledgement was written."""
        for errand in list(self._errands):
            await asyncio.wait([errand])
        if self.acks is not None:
            await self.acks.flushed()

    # -- the window

    def slots_changed(self) -> None:
        """Slots are free and nothing waits for them here. If that is because parked calls fill the window of a
        consumer, replace it by one with a window for the free slots: the prefetch of a consumer cannot be changed,
        and what a cancelled consumer was sent stays acknowledgeable and counts in no window."""
        if self._changing is not None or self._stopping or self.link is None:
            return
        worker = self.worker
        free = worker.slots.free
        if self._paused:
            if not worker.alone:
                self._change(self._go_on(self.link))
            elif any(consumer.running and not consumer.solo for consumer in self._consumers):
                self._change(self._stop_others())
            return
        if worker.unstarted or not free:
            return
        for consumer in self._consumers:
            if consumer.unfinished >= consumer.prefetch:
                if worker.parked or 2 * free >= worker.concurrency:
                    self._replace(consumer, min(free, consumer.full_size))
                    return
            elif consumer.prefetch < consumer.full_size and not worker.held:
                self._replace(consumer, consumer.full_size)
                return

    def _replace(self, consumer: _Consumer, prefetch: int) -> None:
        assert self.link is not None, "slots_changed looked"
        self._change(self._replaced(self.link, consumer, prefetch))

    def _change(self, change: Coroutine[Any, Any, None]) -> None:
        """Make one change of the consumers at a time."""
        self._changing = asyncio.create_task(self._changed(change), name="atasks window")

    async def _changed(self, change: Coroutine[Any, Any, None]) -> None:
        try:
            await change
        except CLIENT_ERRORS:
            return  # the link is gone: the next one starts with full windows
        finally:
            if self._changing is asyncio.current_task():
                self._changing = None
        self.slots_changed()

    async def _replaced(self, link: Link, consumer: _Consumer, prefetch: int) -> None:
        await consumer.stop()
        if not self._stopping:
            await consumer.start(link, prefetch)

    def _pause(self) -> None:
        """A call is to run alone: leave the others to other workers meanwhile."""
        self._paused = True
        self.worker.give_back_unstarted()
        self.slots_changed()

    async def _stop_others(self) -> None:
        for consumer in self._consumers:
            if not consumer.solo:
                await consumer.stop()
        self.worker.give_back_unstarted()  # what arrived meanwhile

    async def _go_on(self, link: Link) -> None:
        self._paused = False
        for consumer in self._consumers:
            if not consumer.running and not self._stopping:
                await consumer.start(link, min(consumer.full_size, self.worker.slots.free))

    # -- requests

    async def receive(self, consumer: _Consumer, message: DeliveredMessage) -> None:
        """Only parses and hands over: the client library cancels its callbacks when the channel closes."""
        inbound = _Inbound(self, consumer, message)
        properties = message.header.properties
        calls, refusals = self._read(message.body, properties)
        if refusals:
            self.worker.count_bad(refusals[0][1])
        if not properties.reply_to:
            self.worker.count_bad(f"a request on queue {consumer.queue!r} has no reply address")
            inbound.dead_letter()
            return
        if not calls and not any(call_id for call_id, _ in refusals):
            inbound.dead_letter()
            return
        answerable = [(call_id, reason) for call_id, reason in refusals if call_id is not None]
        inbound.calls = inbound.unsettled = len(calls) + len(answerable)
        for call_id, reason in answerable:
            _Delivery(inbound).reply(wire.ended(call_id, Status.DECODE_ERROR, reason, self.worker.id))
        for call in calls:
            delivery = _Delivery(inbound)
            if message.redelivered and not self.worker.knows(call.id):
                self._redelivered(call, delivery)
            else:
                self.worker.deliver(call, delivery, alone=consumer.solo)
        if consumer.solo and self.worker.alone:
            self._pause()

    def _read(self, body: bytes, properties: Basic.Properties) -> tuple[list[Call], list[tuple[str | None, str]]]:
        """The calls of a message, and what is wrong with the rest: (call id if it can be read, why)."""
        try:
            if properties.content_type != CONTENT_TYPE:
                raise DecodeError(f"content type {properties.content_type!r} instead of {CONTENT_TYPE!r}")
            envelopes = wire.decode(body)
        except DecodeError as error:
            decoded = wire.salvage(body)
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

    def _redelivered(self, call: Call, delivery: _Delivery) -> None:
        """It was delivered to a worker that is gone, which may have started it. The broker says the same of every
        message after a crash of its own, so attempts are counted in the envelope."""
        if call.delivery == AT_MOST_ONCE:
            self._errand(self._lost_once(call, delivery))
        elif call.attempt >= call.max_attempts:
            delivery.reply(self._worker_lost(call))
        else:
            call.attempt += 1
            delivery.give_back(call, solo=call.attempt == call.max_attempts)

    async def _lost_once(self, call: Call, delivery: _Delivery) -> None:
        """An at-most-once call that was delivered before: unless a worker still runs it, it is lost."""
        topology = self.transport.topology
        answer = self._asks[call.id] = asyncio.get_running_loop().create_future()
        properties = Basic.Properties(
            content_type=CONTENT_TYPE,
            message_id=call.id,
            reply_to=self._control,
            delivery_mode=1,
        )
        question = Outgoing(
            wire.encode([Ask(VERSION, [call.id])]),
            topology.queue_key(delivery.inbound.consumer.queue),
            properties,
            exchange=topology.control,
            mandatory=False,
        )
        self.transport.outbox.put(question)
        try:
            async with asyncio.timeout(ASK_SECONDS):
                reply = await answer
        except TimeoutError:
            reply = self._worker_lost(call)
        if reply is None:
            delivery.drop()  # whoever runs it replies
        else:
            delivery.reply(reply)
        del self._asks[call.id]

    def _worker_lost(self, call: Call) -> Reply:
        times = f"{call.attempt} workers" if call.attempt > 1 else "the worker"
        message = f"{times} died with task {call.task!r}, call {call.id}: it will not run again"
        return wire.ended(call.id, Status.WORKER_LOST, message, self.worker.id, call.attempt)

    def _errand(self, coroutine: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(coroutine)
        self._errands.add(task)
        task.add_done_callback(self._errands.discard)

    # -- replies

    def reply(self, reply: Reply, inbound: _Inbound) -> None:
        """Send it with the other replies to that caller of this turn of the event loop."""
        if not self._replies:
            asyncio.get_running_loop().call_soon(self.flush)
        self._replies.setdefault(inbound.reply_to, []).append((reply, inbound))

    def flush(self) -> None:
        """Send the replies of this turn."""
        replies, self._replies = self._replies, {}
        for reply_to, waiting in replies.items():
            batch: list[tuple[Reply, _Inbound]] = []
            size = 0
            for item in waiting:
                if batch and (len(batch) >= REPLY_BATCH or size + len(item[0].payload) > REPLY_BATCH_BYTES):
                    self._send_replies(reply_to, batch)
                    batch, size = [], 0
                batch.append(item)
                size += len(item[0].payload)
            self._send_replies(reply_to, batch)

    def _send_replies(self, reply_to: str, batch: list[tuple[Reply, _Inbound]]) -> None:
        body = wire.encode([reply for reply, _ in batch])
        mode = max(inbound.properties.delivery_mode or 1 for _, inbound in batch)
        properties = Basic.Properties(content_type=CONTENT_TYPE, message_id=self._number(), delivery_mode=mode)
        self.transport.outbox.put_now(_Settling(body, reply_to, properties, [inbound for _, inbound in batch]))

    def republish(self, call: Call, inbound: _Inbound, queue: str) -> None:
        """Put a call back into a work queue; what it came by is acknowledged when that is confirmed."""
        old = inbound.properties
        properties = Basic.Properties(
            content_type=CONTENT_TYPE,
            message_id=self._number(),
            reply_to=old.reply_to,
            delivery_mode=old.delivery_mode,
            priority=old.priority,
            expiration=old.expiration,
        )
        self.transport.outbox.put(_GivenBack(wire.encode([call]), queue, properties, inbound))

    def _number(self) -> str:
        """A message id of this worker's: returns are matched by it."""
        self._numbers += 1
        return f"{self.worker.id}-{self._numbers:x}"

    # -- control messages

    async def _on_control(self, message: DeliveredMessage) -> None:
        try:
            envelopes = wire.decode(message.body)
        except DecodeError as error:
            self.worker.count_bad(str(error))
            envelopes = wire.salvage(message.body).envelopes
        for envelope in envelopes:
            if isinstance(envelope, Cancel):
                for call_id in envelope.ids:
                    self.worker.cancel(call_id)
            elif isinstance(envelope, Ask):
                self._answer(envelope, message.header.properties.reply_to)
            elif isinstance(envelope, Held):
                for call_id in envelope.ids:
                    self._told(call_id, None)
            elif isinstance(envelope, Reply):
                self._told(envelope.id, envelope)

    def _told(self, call_id: str, reply: Reply | None) -> None:
        """A worker answered: it runs the call (None), or has finished it."""
        asked = self._asks.get(call_id)
        if asked is not None and not asked.done():
            asked.set_result(reply)

    def _answer(self, question: Ask, reply_to: str | None) -> None:
        """Say which of the calls are in hand here, and send the replies of those that finished again."""
        held = [call_id for call_id in question.ids if self.worker.holds(call_id)]
        replies = [reply for call_id in question.ids if (reply := self.worker.finished(call_id)) is not None]
        if reply_to and (held or replies):
            body = wire.encode([Held(VERSION, held, self.worker.id), *replies])
            properties = Basic.Properties(content_type=CONTENT_TYPE, message_id=self._number(), delivery_mode=1)
            self.transport.outbox.put(Outgoing(body, reply_to, properties, mandatory=False))


class _Consumer:
    """The live consumer of one queue, and how much of its window is in use."""

    def __init__(self, intake: Intake, queue: str, name: str, full_size: int, solo: bool) -> None:
        self.intake = intake
        self.queue = queue
        self.solo = solo
        """Whether it is the queue of last attempts, which run alone."""
        self.name = name
        """The broker's name of the queue."""
        self.full_size = full_size
        self.prefetch = full_size
        self.unfinished = 0
        """Messages of the live consumer whose calls have not all ended."""
        self.generation = 0
        self._link: Link | None = None
        self._tag: str | None = None

    @property
    def running(self) -> bool:
        """Whether the broker sends to it."""
        return self._tag is not None

    async def start(self, link: Link, prefetch: int) -> None:
        self._link = link
        self.generation += 1
        self.unfinished = 0
        self.prefetch = max(1, prefetch)
        await guard(link.work.basic_qos(prefetch_count=self.prefetch))
        self._tag = (await guard(link.work.basic_consume(self.name, self._on_message))).consumer_tag

    async def stop(self) -> None:
        """Wait for the broker's word: a cancel that does not would drop deliveries under way."""
        tag, self._tag = self._tag, None
        if tag is not None and self._link is not None:
            await guard(asyncio.shield(self._link.work.basic_cancel(tag)))

    async def _on_message(self, message: DeliveredMessage) -> None:
        await self.intake.receive(self, message)


class _Inbound:
    """One message from a work queue: acknowledged when each of its calls is settled."""

    __slots__ = (
        "_acks",
        "_generation",
        "_tag",
        "calls",
        "consumer",
        "intake",
        "properties",
        "reply_to",
        "unsettled",
    )

    def __init__(self, intake: Intake, consumer: _Consumer, message: DeliveredMessage) -> None:
        self.intake = intake
        self.consumer = consumer
        self.properties = message.header.properties
        self.reply_to = self.properties.reply_to or ""
        self.calls = 1
        """Calls that have not ended."""
        self.unsettled = 1
        """Calls whose reply is not safe at the broker."""
        self._tag = message.delivery_tag or 0
        self._acks = intake.acks  # of this epoch: on a later channel the tag means another message
        self._generation = consumer.generation
        consumer.unfinished += 1

    def ended(self) -> None:
        """One of its calls has ended."""
        self.calls -= 1
        if self.calls == 0 and self._generation == self.consumer.generation:
            self.consumer.unfinished -= 1

    def settled(self) -> None:
        """What became of one of its calls is safe."""
        self.unsettled -= 1
        if self.unsettled == 0 and self._acks is not None:
            self._acks.ack(self._tag)

    def requeue(self) -> None:
        """Have the broker deliver it again."""
        if self._acks is not None:
            self._acks.requeue(self._tag)

    def dead_letter(self) -> None:
        """It can be neither read nor answered."""
        self.calls = 1
        self.ended()
        if self._acks is not None:
            self._acks.reject(self._tag)


class _Delivery:
    """One call of a message from a work queue."""

    __slots__ = ("inbound",)

    def __init__(self, inbound: _Inbound) -> None:
        self.inbound = inbound

    def reply(self, reply: Reply) -> None:
        self.inbound.ended()
        self.inbound.intake.reply(reply, self.inbound)

    def drop(self) -> None:
        self.inbound.ended()
        self.inbound.settled()

    def give_back(self, call: Call, solo: bool = False) -> None:
        self.inbound.ended()
        consumer = self.inbound.consumer
        name = self.inbound.intake.transport.topology.solo(consumer.queue) if solo else consumer.name
        self.inbound.intake.republish(call, self.inbound, name)

    async def pass_on(self, call: Call) -> Call | None:
        intake = self.inbound.intake
        seen = call.seen or []
        been_here = intake.worker.id in seen
        for _ in range(2):  # a worker that changes its window is without a consumer for a moment
            link = intake.link
            if link is None or len(seen) >= MAX_SEEN:
                return None
            try:
                state = await link.queue_state(self.inbound.consumer.name)
            except CLIENT_ERRORS:
                return None
            visited = len(seen) if been_here else len(seen) + 1
            if state is not None and state[1] > visited:
                if been_here:
                    await asyncio.sleep(PASS_ON_PAUSE)  # or it would come straight back
                else:
                    call.seen = [*seen, intake.worker.id]
                return call
            await asyncio.sleep(PASS_ON_PAUSE)
        return None


class _Settling(Outgoing):
    """Replies to one caller. Returned means that the caller is gone: nobody is there to be told."""

    __slots__ = ("inbounds",)

    def __init__(self, body: bytes, key: str, properties: Basic.Properties, inbounds: list[_Inbound]) -> None:
        super().__init__(body, key, properties)
        self.inbounds = inbounds

    def confirmed(self) -> None:
        for inbound in self.inbounds:
            inbound.settled()

    returned = confirmed
    refused = confirmed


class _GivenBack(Outgoing):
    """A call that goes back to a work queue. If its queue was deleted, its caller sends it again."""

    __slots__ = ("inbound",)

    def __init__(self, body: bytes, key: str, properties: Basic.Properties, inbound: _Inbound) -> None:
        super().__init__(body, key, properties)
        self.inbound = inbound

    def confirmed(self) -> None:
        self.inbound.settled()

    returned = confirmed

    def refused(self) -> None:
        """The queue is full: the delivery goes back as it came, a little later so that this does not spin."""
        asyncio.get_running_loop().call_later(REFUSED_PAUSE, self.inbound.requeue)

    def lost(self) -> bool:
        return False  # the broker delivers the original again
