"""Messages that a worker sends on account of its calls: replies, items of streams, requests that go back."""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from aiormq.abc import DeliveredMessage
from pamqp.commands import Basic

from atasks import wire
from atasks.event_loop import ends_turn
from atasks.failures.failures import describe_failure
from atasks.transport.backends.amqp.broker.bodies import body_of
from atasks.transport.backends.amqp.broker.outgoing import Outgoing
from atasks.transport.backends.amqp.broker.refusals import Refusal
from atasks.transport.backends.amqp.seals import key_of
from atasks.transport.backends.amqp.worker.copies import Copies
from atasks.transport.backends.amqp.worker.dead_letters import DeadLetter
from atasks.transport.backends.amqp.worker.refused_replies import RefusedReplies
from atasks.transport.backends.amqp.worker.returned_request import ReturnedRequest
from atasks.wire import CONTENT_TYPE, Call, End, Item, Reply, Report, Status

if TYPE_CHECKING:
    from atasks.transport.backends.amqp.broker.acks import Acks
    from atasks.transport.backends.amqp.worker.consumer import Consumer
    from atasks.transport.backends.amqp.worker.request_message import RequestMessage
    from atasks.transport.backends.amqp.worker.station import Station

__all__ = ["MessageToCaller", "Replies"]

logger = logging.getLogger("atasks.amqp")

MAX_ADDRESSEES: Final = 2_000
"""The number of addressees that are remembered: as many as a worker remembers replies."""
REPLY_BATCH: Final = 256
REPLY_BATCH_BYTES: Final = 64 * 2**10
REPORT_BYTES: Final = 1000
"""A guess."""

Answer = tuple[Reply | End, "RequestMessage | None"]
"""A reply, and what it settles; None: it was sent before, and settles nothing."""


class Replies:
    """Sends what a worker has to say of its calls: replies, items of streams, and requests that go back.

    Replies of one turn of the event loop to one caller share a message.
    """

    def __init__(self, station: Station) -> None:
        self.station = station
        self.settle: Callable[[str, RequestMessage], None] = lambda _, request: request.settled()
        """Called with the id of a submitted call, and with what it came by, when its reply is safe, or is for
        nobody."""
        self.afterwards: dict[str, list[Callable[[bool], None]]] = {}
        """Id of a call -> functions of which one is to be called when a reply of it is safe. True: the call is
        still in hand here. False: the link over which it came was lost, so another worker may be running it."""
        self.elsewhere: dict[str, Callable[[list[Answer], str | None], None]] = {
            station.session.topology.nobody: self._drop
        }
        """Reply address that is no queue -> what is done with replies to it, and the key of their seals."""
        self.parted: Callable[[RequestMessage], None] = lambda request: None
        """Called with a message of which one call has gone back, and others are in hand."""
        self.copies = Copies(station)
        """The calls that have gone back to a queue from here, and may come by it."""
        self.refused = RefusedReplies(station.session.outbox.put_now)
        self._waiting: dict[str, list[Answer]] = {}
        """`RequestMessage.caller` -> the replies of this turn."""
        self.reports: dict[str, ReportMessage] = {}
        """Call -> its latest report that is on its way."""
        self._addressees: OrderedDict[str, str] = OrderedDict()
        """Whom the calls that ended lately were replied to."""

    def addressee(self, call_id: str) -> str | None:
        """The reply queue of who made a call that has ended here lately; None: it has not, or is forgotten."""
        return self._addressees.get(call_id)

    def send(self, envelope: Item | End | Report, request: RequestMessage) -> None:
        """Send items of a stream, or its end once more. They stay here until they are taken: if the reply queue is
        gone, for the next one, and so the broker need not write them to its disk. Or send a report, in the place
        of an earlier one that has not left."""
        if isinstance(envelope, Report):
            self._report(envelope, request)
        elif isinstance(envelope, End):
            self.send_replies(request.reply_to, [(envelope, None)], 1, request.key)
        else:
            items = Items(self, envelope, request.reply_to, self.station.properties(1), request.key)
            if not self.refused.takes(items):
                self.station.session.outbox.put_now(items)

    def _report(self, report: Report, request: RequestMessage) -> None:
        earlier = self.reports.get(report.id)
        if earlier is not None and not earlier.has_left:
            earlier.report = report
        elif not self.refused.holds(request.reply_to):
            # Else there is no room for items that may have to be sent again.
            message = ReportMessage(self, report, request.reply_to, self.station.properties(1), request.key)
            self.reports[report.id] = message
            self.station.session.outbox.put_now(message)

    def reply(self, reply: Reply | End, request: RequestMessage) -> None:
        """Send it with the other replies to that caller of this turn of the event loop; at once, if nothing
        else is to run in this turn, and nothing is to be done when a reply is safe: of a call that came twice
        both replies are needed for that, in one message."""
        self._addressees[reply.id] = request.reply_to
        if len(self._addressees) > MAX_ADDRESSEES:
            self._addressees.popitem(last=False)
        waiting = self._waiting
        if not waiting:
            if not self.afterwards and request.reply_to not in self.elsewhere and ends_turn():
                self.send_replies(request.reply_to, [(reply, request)], request.delivery_mode, request.key)
                return
            asyncio.get_running_loop().call_soon(self.flush)
        waiting.setdefault(request.caller, []).append((reply, request))

    def flush(self) -> None:
        """Send the replies of this turn."""
        replies, self._waiting = self._waiting, {}
        for waiting in replies.values():
            to = waiting[0][1]
            assert to is not None, "each of them settles something"
            for batch in _batches(waiting) if len(waiting) > 1 else (waiting,):
                mode = max(request.delivery_mode for _, request in batch if request is not None)
                self.send_replies(to.reply_to, batch, mode, to.key)

    def send_replies(
        self, reply_to: str, replies: list[Answer], mode: int, key: str | None, alone: bool = False
    ) -> None:
        """Send them in one message under the seal of `key`; alone: the broker may close the channel over it."""
        elsewhere = self.elsewhere.get(reply_to)
        if elsewhere is not None:
            elsewhere(replies, key)
            return
        settling = ReplyMessage(self, replies, reply_to, self.station.properties(mode), key)
        if alone:
            self.station.session.outbox.put_alone(settling)
        elif self.refused.takes(settling):
            if not self.refused.is_crowded:
                settling.let_go()
        else:
            self.station.session.outbox.put_now(settling)

    def after(self, call_id: str, do: Callable[[bool], None]) -> None:
        """Do it when the reply to this call is safe: see `afterwards`. A call that has come again is replied to
        again, and each of its replies has its own to do."""
        self.afterwards.setdefault(call_id, []).append(do)

    def conclude(self, call_id: str, request: RequestMessage | None) -> None:
        """The reply to this call is safe, or is for nobody: do what was to be done then. `request`: what the call
        came by, if the reply settles it."""
        if self.afterwards and (waiting := self.afterwards.get(call_id)) is not None:
            then = waiting.pop(0)
            if not waiting:
                del self.afterwards[call_id]
            then(request is None or request.in_hand or call_id in self.station.left_here)

    def _drop(self, replies: list[Answer], key: str | None) -> None:
        """Nobody wants them."""
        for reply, request in replies:
            self.conclude(reply.id, request)
            if request is not None:
                self.settle(reply.id, request)

    def send_again(self, reply_to: str, replies: Iterable[Reply | End], key: str) -> None:
        """Send replies to who asks for them, although they were sent before."""
        for batch in _batches([(reply, None) for reply in replies]):
            self.send_replies(reply_to, batch, 1, key)

    def republish(
        self, call: Call, request: RequestMessage, queue: str, charged: bool, over: str, ticks: int = 0
    ) -> None:
        """Put a call back into a work queue; what it came by is acknowledged when that is confirmed. Uncharged, it
        is the same copy of a later attempt as before; `over` names the beginning that has ended with this.
        `ticks`: it is there after so many of them, and the levels that hold it meanwhile are declared."""
        number = self.station.number()
        properties = Basic.Properties(
            content_type=CONTENT_TYPE,
            message_id=number if charged or call.attempt == 1 else request.copy or number,
            reply_to=request.reply_to,
            delivery_mode=request.delivery_mode,
            priority=request.priority,
            expiration=request.expiration,
            correlation_id=over or None,
        )
        self.copies.add(str(properties.message_id), request)
        self.station.put(ReturnedRequest(self, call, queue, properties, request, ticks))

    def dead_letter(self, message: DeliveredMessage, acks: Acks, queue: str) -> None:
        """Keep what can be neither read nor answered for people to look at."""
        dead = self.station.session.topology.dead
        self.station.put(DeadLetter(message, acks, queue, dead, self.station.number()))

    def fail(self, consumer: Consumer, message: DeliveredMessage) -> None:
        """Serving a message failed in a way that nobody foresaw: say so, and leave no await hanging."""
        try:
            self._tell_callers(message)
        except Exception:
            logger.exception(
                "this worker could not tell the callers of a request that it failed: report the traceback"
            )
        finally:
            self.dead_letter(message, consumer.acks, consumer.name)

    def _tell_callers(self, message: DeliveredMessage) -> None:
        reply_to = message.header.properties.reply_to
        calls = [
            item
            for item in wire.salvage(message.body, self.station.session.max_message).envelopes
            if isinstance(item, Call)
        ]
        reason = "the worker failed to serve the call: its log says more"
        replies = [wire.ended(call.id, Status.FAILED, reason, self.station.worker.id) for call in calls]
        if reply_to and replies:
            self.send_replies(reply_to, [(reply, None) for reply in replies], 2, key_of(message))


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


class MessageToCaller(Outgoing):
    """A message for a reply queue. If it is returned, the caller is gone: nobody is there to be told."""

    __slots__ = ("_replies",)

    _replies: Replies

    @property
    def is_copied(self) -> bool:
        """True if who waits for it gets it even where a record or a journal refuses it."""
        return bool(self.exchange or self.properties.headers)

    def settle(self) -> None:
        """Settle the requests that the message answers: they need nothing more."""

    def halves(self) -> Sequence[MessageToCaller]:
        """Two messages that are as good as this one; itself, if it cannot be divided."""
        return (self,)

    def confirmed(self) -> None:
        self.settle()
        self._replies.refused.ended(self)

    def returned(self) -> None:
        self.settle()
        self._replies.refused.ended(self, gone=True)

    def refused(self) -> None:
        self.settle()
        self._replies.refused.add(self)


class ReplyMessage(MessageToCaller):
    """Replies to one caller."""

    __slots__ = ("_answers", "_reply_to")

    def __init__(
        self,
        replies: Replies,
        answers: list[Answer],
        reply_to: str,
        properties: Basic.Properties,
        seal: str | None,
    ) -> None:
        """Each reply with what it settles; None: it was sent before, and settles nothing. `seal`: the key of who
        made the calls."""
        exchange, key = replies.station.session.topology.way(reply_to, properties)
        body = body_of([reply for reply, _ in answers])
        super().__init__(body, key, properties, exchange=exchange, key=seal)
        self._replies = replies
        self._answers = answers
        self._reply_to = reply_to

    def settle(self) -> None:
        if self._replies.afterwards:
            for reply, request in reversed(self._answers):  # of a call that came twice the later one counts
                self._replies.conclude(reply.id, request)
        self._settle_requests()

    def _settle_requests(self) -> None:
        settle = self._replies.settle if self._replies.station.is_kept(self._reply_to) else None
        for reply, request in self._answers:
            if request is None:
                continue
            if settle is None:
                request.settled(now=False)
            else:
                settle(reply.id, request)

    def let_go(self) -> None:
        """Settle the requests although the replies are not safe yet: they wait, and would hold the window."""
        for reply, request in self._answers:
            if request is not None and not request.in_hand:
                self._replies.conclude(reply.id, request)  # what is known of the request is lost below
        self._settle_requests()
        answers: list[Answer] = [(reply, None) for reply, _ in self._answers]
        self._answers = answers

    def refused(self) -> None:
        self.let_go()
        self._replies.refused.add(self)

    def halves(self) -> Sequence[MessageToCaller]:
        middle = len(self._answers) // 2
        if not middle:
            return (self,)
        station, mode = self._replies.station, self.properties.delivery_mode or 1
        return [
            ReplyMessage(self._replies, part, self._reply_to, station.properties(mode), self.key)
            for part in (self._answers[:middle], self._answers[middle:])
        ]

    def rejected(self, refusal: Refusal) -> None:
        """Send the replies one by one, since any of them may be the one that cannot be sent. In the place of a
        single one goes a reply that says why; if that cannot be sent either, nobody can be told."""
        self._replies.refused.ended(self)
        if refusal.exchange is not None:
            logger.error(
                "replies cannot be sent, so their callers do not learn how the calls ended: %s",
                refusal.error("a reply", len(self.body)),
            )
            self.settle()
            return
        for reply, request in self._answers:
            again: Reply | End | None = reply
            if len(self._answers) == 1:
                again = _refused(reply, refusal, len(self.body), self._replies.station.worker.id)
            if again is None:
                logger.error("%s", refusal.error(f"the reply to call {reply.id}", len(self.body)))
                self.settle()
            else:
                mode = self.properties.delivery_mode or 1
                self._replies.send_replies(self._reply_to, [(again, request)], mode, self.key, alone=True)


def _refused(reply: Reply | End, refusal: Refusal, size: int, worker: str) -> Reply | End | None:
    """Return the reply to send in the place of one that was refused: an exception that is described only, or an
    ending that says so; None if the refused reply was that already."""
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


class Items(MessageToCaller):
    """Items of a stream, which its worker keeps until they are taken."""

    __slots__ = ("_item",)

    def __init__(
        self, replies: Replies, item: Item, key: str, properties: Basic.Properties, seal: str | None
    ) -> None:
        super().__init__(wire.encode([item]), key, properties, key=seal)
        self._replies = replies
        self._item = item

    def halves(self) -> Sequence[MessageToCaller]:
        item, middle = self._item, len(self._item.payloads) // 2
        if not middle:
            return (self,)
        parts = (item.first, item.payloads[:middle]), (item.first + middle, item.payloads[middle:])
        items = [
            Item(item.v, item.id, first, part, item.codec, item.worker, item.attempt) for first, part in parts
        ]
        station = self._replies.station
        return [Items(self._replies, half, self.routing_key, station.properties(1), self.key) for half in items]

    def rejected(self, refusal: Refusal) -> None:
        """One item that cannot be sent ends its stream, behind those before it."""
        item, replies = self._item, self._replies
        replies.refused.ended(self)
        station = replies.station
        if len(item.payloads) > 1 and refusal.exchange is None:
            for number, payload in enumerate(item.payloads, item.first):
                one = Item(item.v, item.id, number, [payload], item.codec, item.worker, item.attempt)
                items = Items(replies, one, self.routing_key, station.properties(1), self.key)
                station.session.outbox.put_alone(items)
            return
        reason = str(refusal.error(f"item {item.first} of stream {item.id}", len(self.body)))
        status = Status.FAILED if refusal.limit is None else Status.TOO_LARGE
        end = End(item.v, item.id, item.first, wire.ended(item.id, status, reason, item.worker), item.attempt)
        station.worker.cancel(item.id)
        replies.send_replies(self.routing_key, [(end, None)], 1, self.key)


class ReportMessage(MessageToCaller):
    """The progress of a call, for who watches it. While it waits to leave, a later report takes its place: a
    broker that takes nothing for now has at most one of each call waiting here."""

    __slots__ = ("has_left", "report")

    def __init__(
        self, replies: Replies, report: Report, key: str, properties: Basic.Properties, seal: str | None
    ) -> None:
        super().__init__(
            b"", key, properties, exchange=replies.station.session.topology.reply_exchange(key), key=seal
        )
        self.size = REPORT_BYTES
        self._replies = replies
        self.report = report
        self.has_left = False

    def prepare(self) -> bool:
        self.body = wire.encode([self.report])
        self.has_left = True
        return True

    def settle(self) -> None:
        reports = self._replies.reports
        if reports.get(self.report.id) is self:
            del reports[self.report.id]

    def refused(self) -> None:
        """The reply queue is full: what may be missed makes room for what may not."""
        self.settle()

    def rejected(self, refusal: Refusal) -> None:
        self.settle()
