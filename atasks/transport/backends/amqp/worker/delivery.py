"""A message from a work queue, its calls, and what settles it."""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from aiormq.abc import DeliveredMessage
from pamqp.commands import Basic

from atasks import wire
from atasks.failures.failures import describe_failure
from atasks.options import Executor
from atasks.transport.backends.amqp.broker.link import CLIENT_ERRORS
from atasks.transport.backends.amqp.broker.outbox import Outgoing
from atasks.transport.backends.amqp.broker.refusals import Refusal
from atasks.wire import AT_MOST_ONCE, Call, End, Item, Reply, Status, describe

if TYPE_CHECKING:
    from atasks.transport.backends.amqp.broker.acks import Acks
    from atasks.transport.backends.amqp.worker.consumer import Consumer
    from atasks.transport.backends.amqp.worker.serving import Serving

__all__ = ["CallDelivery", "Items", "ReplyMessage", "RequestMessage", "ReturnedRequest"]

logger = logging.getLogger("atasks.amqp")

MAX_SEEN: Final = 8
"""Workers that a call of an unknown atask may visit."""
MAX_COPY: Final = 64
"""Characters of the id of a copy."""
PASS_ON_PAUSE: Final = 0.05
REFUSED_PAUSE: Final = 0.5


class RequestMessage:
    """One message from a work queue: acknowledged when each of its calls is settled."""

    __slots__ = (
        "_acks",
        "_generation",
        "_tag",
        "calls",
        "consumer",
        "intake",
        "key",
        "properties",
        "received",
        "reply_to",
        "shared",
        "unsettled",
    )

    def __init__(
        self, intake: Serving, consumer: Consumer, message: DeliveredMessage, lease: Acks | None = None
    ) -> None:
        """`lease`: the acknowledgements of its channel, if it comes from a lease queue and takes no place in the
        window of the consumer."""
        self.intake = intake
        self.consumer = consumer
        self.properties = message.header.properties
        self.reply_to = self.properties.reply_to or ""
        self.key: str | None = None
        """Whose key its calls came with, and answers to it are sealed with. Empty: none."""
        self.calls = 1
        """Calls that have not ended."""
        self.unsettled = 1
        """Calls whose reply is not safe at the broker."""
        self.shared = False
        """Whether several calls came in it."""
        self.received = asyncio.get_running_loop().time()
        self._tag = message.delivery_tag or 0
        self._acks = lease or consumer.acks  # of its channel: on another one the tag means another message
        self._generation = consumer.generation if lease is None else -1
        consumer.unfinished += lease is None

    @property
    def copy(self) -> str:
        """What tells this copy of a later attempt from others, wherever it is given back to. Empty: nothing does,
        because whoever sent it gave it no name that can be used, or put it into one message with others."""
        name = self.properties.message_id or ""
        return name if len(name) <= MAX_COPY and wire.plain(name) and not self.shared else ""

    @property
    def over(self) -> str:
        """The beginning of this copy that is over, because the worker that began it gave it back; empty: none."""
        name = self.properties.correlation_id or ""
        return name if len(name) <= MAX_COPY and wire.plain(name) else ""

    @property
    def delivery_mode(self) -> int:
        """2: what is sent on its account survives the broker; 1: it need not."""
        return 2 if self.properties.delivery_mode == 2 else 1

    @property
    def kept(self) -> bool:
        """Whether the replies go to a record, and not to somebody who awaits the call."""
        return bool(self.intake.transport.topology.reply_exchange(self.reply_to))

    @property
    def voice(self) -> str | None:
        """The key with which this worker sends its calls on: its own, or none if they came without one."""
        return self.key and None

    def ended(self) -> None:
        """One of its calls has ended."""
        self.calls -= 1
        if self.calls == 0 and self._generation == self.consumer.generation:
            self.consumer.unfinished -= 1

    def settled(self) -> None:
        """What became of one of its calls is safe."""
        self.unsettled -= 1
        if self.unsettled == 0:
            # The window of a consumer that was replaced by a wider one has no room to gain.
            self._acks.ack(self._tag, late=self._generation != self.consumer.generation)

    def requeue(self) -> None:
        """Have the broker deliver it again."""
        self._acks.requeue(self._tag)

    def dead_letter(self, message: DeliveredMessage) -> None:
        """It can be neither read nor answered; `message` is what it came by."""
        self.calls = 1
        self.ended()
        self.intake.dead_letter(message, self._acks, self.consumer.name)


class CallDelivery:
    """One call of a message from a work queue."""

    __slots__ = ("beginning", "inbound", "renewing")

    def __init__(self, inbound: RequestMessage, older: CallDelivery | None = None) -> None:
        """`older`: another delivery of the same run."""
        self.inbound = inbound
        self.beginning: str = "" if older is None else older.beginning
        """How its caller knows the beginning that was asked for here, of a last attempt."""
        self.renewing = False
        """Whether a lease is on its way to take its place."""

    @property
    def queue(self) -> str:
        return self.inbound.consumer.queue

    def send(self, envelope: Item | End) -> None:
        self.inbound.intake.send(envelope, self.inbound)

    def reply(self, reply: Reply | End) -> None:
        self.inbound.ended()
        self.inbound.intake.reply(reply, self.inbound)

    def drop(self) -> None:
        self.inbound.ended()
        self.inbound.settled()

    def requeue(self) -> None:
        """Have another worker receive it, as one that was delivered before."""
        self.inbound.ended()
        self.inbound.requeue()

    def give_back(self, call: Call, executor: Executor | None = None) -> None:
        consumer = self.inbound.consumer
        if executor is None:
            self._republish(call, consumer.name)
        else:
            self._republish(call, self.inbound.intake.transport.topology.pool(consumer.queue, executor))

    def charge(self, call: Call) -> None:
        """Return the call to the queue with one more attempt, the last one to that of calls that run alone."""
        call.attempt += 1
        consumer = self.inbound.consumer
        last = call.attempt == call.max_attempts
        name = self.inbound.intake.transport.topology.solo(consumer.queue) if last else consumer.name
        self._republish(call, name, charged=True)

    def _republish(self, call: Call, name: str, charged: bool = False) -> None:
        self.inbound.ended()
        over = "" if charged else self.beginning or self.inbound.over
        self.inbound.intake.republish(call, self.inbound, name, charged, over)

    async def pass_on(self, call: Call) -> Call | None:
        intake = self.inbound.intake
        seen = call.seen or []
        been_here = intake.worker.id in seen
        solo = intake.transport.topology.solo(self.inbound.consumer.queue)  # every worker consumes it all the time
        for _ in range(2):  # a worker that starts is seen a little later
            link = intake.link
            if link is None or len(seen) >= MAX_SEEN:
                return None
            try:
                state = await link.queue_state(solo)
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


class ReplyMessage(Outgoing):
    """Replies to one caller. Returned means that the caller is gone: nobody is there to be told."""

    __slots__ = ("intake", "replies")

    def __init__(
        self,
        intake: Serving,
        replies: list[tuple[Reply | End, RequestMessage | None]],
        key: str,
        properties: Basic.Properties,
        seal: str | None,
    ) -> None:
        """Each reply with what it settles; None: it was sent before, and settles nothing. `seal`: the key of who
        made the calls."""
        exchange = intake.transport.topology.reply_exchange(key)
        body = wire.encode([reply for reply, _ in replies])
        super().__init__(body, key, properties, exchange=exchange, key=seal)
        self.intake = intake
        self.replies = replies

    def confirmed(self) -> None:
        for _, inbound in self.replies:
            if inbound is not None:
                inbound.settled()

    returned = confirmed
    refused = confirmed

    def rejected(self, refusal: Refusal) -> None:
        """Of several replies any may be the one that cannot be sent. In its place goes one that says why; if that
        cannot be sent either, nobody can be told."""
        if refusal.exchange is not None:
            logger.error("nobody can be told how calls ended: %s", refusal.error("a reply", len(self.body)))
            self.confirmed()
            return
        for reply, inbound in self.replies:
            again = (
                reply if len(self.replies) > 1 else _refused(reply, refusal, len(self.body), self.intake.worker.id)
            )
            if again is None:
                logger.error("%s", refusal.error(f"the reply to call {reply.id}", len(self.body)))
                self.confirmed()
            else:
                mode = self.properties.delivery_mode or 1
                self.intake.send_replies(self.routing_key, [(again, inbound)], mode, self.key, alone=True)


def _refused(reply: Reply | End, refusal: Refusal, size: int, worker: str) -> Reply | End | None:
    """What goes in the place of a reply that cannot be sent: an exception that is described only, or what says so;
    None if the reply says that itself."""
    inner = reply.reply if isinstance(reply, End) else reply
    if inner.status not in (Status.VALUE, Status.RAISED):
        return None
    ending = None
    if inner.status == Status.RAISED and refusal.limit is not None:
        with suppress(ValueError):  # which msgspec's errors are
            described = describe_failure(inner.payload)
            if len(described) < len(inner.payload):
                ending = Reply(reply.v, reply.id, Status.RAISED, described, inner.codec, worker)
    if ending is None:
        status = Status.FAILED if refusal.limit is None else Status.TOO_LARGE
        what = "the result" if inner.status == Status.VALUE else "the exception"
        ending = wire.ended(reply.id, status, str(refusal.error(f"{what} of call {reply.id}", size)), worker)
    return End(reply.v, reply.id, reply.count, ending, reply.attempt) if isinstance(reply, End) else ending


class Items(Outgoing):
    """Items of a stream."""

    __slots__ = ("intake", "item")

    def __init__(
        self, intake: Serving, item: Item, key: str, properties: Basic.Properties, seal: str | None
    ) -> None:
        super().__init__(wire.encode([item]), key, properties, key=seal)
        self.intake = intake
        self.item = item

    def rejected(self, refusal: Refusal) -> None:
        """One item that cannot be sent ends its stream, behind those before it."""
        item, intake = self.item, self.intake
        if len(item.payloads) > 1 and refusal.exchange is None:
            for number, payload in enumerate(item.payloads, item.first):
                one = Item(item.v, item.id, number, [payload], item.codec, item.worker, item.attempt)
                properties = intake.properties(1)
                intake.transport.outbox.put_alone(Items(intake, one, self.routing_key, properties, self.key))
            return
        reason = str(refusal.error(f"item {item.first} of stream {item.id}", len(self.body)))
        status = Status.FAILED if refusal.limit is None else Status.TOO_LARGE
        end = End(item.v, item.id, item.first, wire.ended(item.id, status, reason, item.worker), item.attempt)
        intake.worker.cancel(item.id)
        intake.send_replies(self.routing_key, [(end, None)], 1, self.key)


class ReturnedRequest(Outgoing):
    """A call that goes back to a work queue. If its queue was deleted, its caller sends it again."""

    __slots__ = ("call", "inbound")

    def __init__(self, call: Call, key: str, properties: Basic.Properties, inbound: RequestMessage) -> None:
        super().__init__(wire.encode([call]), key, properties, key=inbound.voice)
        self.call = call
        self.inbound = inbound

    def confirmed(self) -> None:
        self.inbound.settled()

    returned = confirmed

    def refused(self) -> None:
        """The queue is full: the delivery goes back as it came, a little later so that this does not spin."""
        asyncio.get_running_loop().call_later(REFUSED_PAUSE, self.inbound.requeue)

    def rejected(self, refusal: Refusal) -> None:
        """No worker can be given it: its caller is told."""
        reason = str(refusal.error(self.call.task, len(self.body)))
        reply = wire.ended(self.call.id, Status.FAILED, reason, self.inbound.intake.worker.id)
        self.inbound.intake.reply(reply, self.inbound)

    def stranded(self, arrived: bool) -> bool:
        """Sent twice, it might run twice."""
        if not arrived and self.call.delivery != AT_MOST_ONCE:
            return True
        self.inbound.settled()
        return False

    def lost(self) -> bool:
        logger.debug("%s may be at the broker twice: it was given back, unconfirmed", describe(self.call))
        return False  # the broker delivers the original again
