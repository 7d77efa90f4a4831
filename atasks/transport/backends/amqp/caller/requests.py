"""The messages of a caller: requests, and the withdrawal of those that may run at most once."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

from pamqp.commands import Basic

from atasks import wire
from atasks.errors import CallConnectionLost
from atasks.options import MAX_BATCH, MAX_TIMEOUT
from atasks.transport.backends.amqp.broker.outbox import Outgoing
from atasks.transport.backends.amqp.broker.refusals import Refusal
from atasks.transport.backends.amqp.caller.run_times import NOTHING, UNKNOWN, Work, at_most
from atasks.transport.call_transport import Pending
from atasks.wire import AT_MOST_ONCE, CONTENT_TYPE, VERSION, Call, Cancel, Claim, Grant, describe

if TYPE_CHECKING:
    from atasks.transport.backends.amqp.transport import AMQPTransport

__all__ = ["Requests"]

logger = logging.getLogger("atasks.amqp")

NO_PROPERTIES: Final = Basic.Properties()
WORK_US: Final = 1000.0
"""What the calls of a message run at most, as far as can be expected."""
MAX_BATCH_BYTES: Final = 64 * 2**10
ENVELOPE_BYTES: Final = 200
"""A guess at what a call has besides its payload."""
EXPIRY_MS: Final = 2000
"""For so long after its deadline the broker keeps a request."""
WITHDRAW_SECONDS: Final = 10.0


Kind = tuple[str, int, bool, Any]
"""Work queue, priority, durable and batch: calls of one kind may share a message."""


class Requests:
    """Packs the calls of a caller into messages, and hands these to the outbox.

    Only calls that are safe and cheap to hold together share a message: at-least-once ones of atasks that run
    short, up to `WORK_US` of work, so that long calls spread over the workers one by one.
    """

    def __init__(self, transport: AMQPTransport) -> None:
        self._transport = transport
        self._open: dict[Kind, RequestPacket] = {}
        """The message of each kind that waits to be sent and has room left."""
        self._numbers = 0

    def send(self, pending: Pending) -> None:
        """Send the call, with others of this turn of the event loop where that is safe. Never waits."""
        transport, options, call = self._transport, pending.options, pending.call
        pending.confirmed = pending.unheard = False
        pending.asked = pending.denied = 0
        pending.where = None
        kind = (options.queue or transport.queue, options.priority, options.durable, options.batch)
        size = _size(call)
        alone = call.delivery == AT_MOST_ONCE or call.credit or pending.kept or call.attempt > 1
        if alone or call.by or pending.key is not None:
            work = UNKNOWN
        else:
            work = transport.pace.expected(call.task) if options.batch == "auto" else NOTHING
        request = self._open.get(kind)
        if request is not None and request.takes(size, work):
            request.pendings.append(pending)
            request.size += size
            transport.outbox.grew(size)
            return
        request = RequestPacket(transport, kind, pending, size, work)
        if at_most(work) <= WORK_US:
            self._open[kind] = request
        transport.outbox.put(request)

    def resend(self, pendings: Sequence[Pending], why: str) -> None:
        """Send calls again that may have been lost; end those that may not be sent again. One that the broker has
        neither confirmed nor returned is in the outbox still.

        A call goes on at the attempt that it had come to, and the copy that had this attempt is taken for lost."""
        for pending in pendings:
            call = pending.call
            if pending.future.done() or not (pending.confirmed or pending.unheard):
                continue
            if call.delivery == AT_MOST_ONCE and pending.confirmed:
                pending.fail(
                    CallConnectionLost(f"{why}: whether {call.task} ran cannot be known, and it runs at most once")
                )
            else:
                logger.debug("%s is sent again: %s", describe(call), why)
                if pending.copies is not None:
                    pending.copies.pop(call.attempt, None)
                    pending.begun = None
                call.ran |= pending.inflow is not None and pending.inflow.begun
                seals = self._transport.seals
                if seals is not None and not seals.keys.own.serve:
                    # Workers take no word on attempts from callers: the ones that are left are counted anew.
                    call.max_attempts -= call.attempt - 1
                    call.attempt = 1
                    pending.copies = None
                self.send(pending)

    def claimed(self, claim: Claim) -> None:
        """A worker asks whether it may start a copy of a call: say so to one copy for each attempt, as long as the
        call is awaited, and let one worker begin the last one. What is known of a beginning is forgotten only by
        the word of its own worker, which comes with the copy that it gave back: claims may be late."""
        transport, pending = self._transport, self._transport.pending(claim.id)
        granted, begun = False, None
        if pending is not None and not pending.future.done():
            if pending.copies is None:
                pending.copies = {}
            if pending.call.delivery == AT_MOST_ONCE:  # each copy starts at one worker, and not again
                granted = pending.copies.setdefault(claim.copy, claim.worker) == claim.worker
            else:
                granted = pending.copies.setdefault(claim.attempt, claim.copy) == claim.copy
            begun = pending.begun
            if granted and begun is not None and _is_over(begun, claim):
                begun = None
            if granted and claim.begins:
                granted = begun is None or begun[0] == claim.worker  # else it is at two workers
                if granted:
                    begun = claim.worker, max(claim.run, 0 if begun is None else begun[1])
            if granted:
                pending.begun = begun
                pending.call.attempt = max(pending.call.attempt, claim.attempt)
                transport.inquiry.heard_of(pending)
        mine = begun is not None and begun[0] == claim.worker
        run = begun[1] if begun is not None and mine else 0
        now_ms = int(time.time() * 1000)
        grant = Grant(VERSION, claim.id, claim.copy, granted, granted and begun is not None, run, now_ms)
        transport.notices.answer(grant, claim.worker, pending.key if pending is not None else None)

    def number(self) -> str:
        """Tells the copies of a call that is sent again from each other."""
        self._numbers += 1
        return f"{self._numbers:x}"

    def left(self, request: RequestPacket) -> None:
        """The message is being sent: it takes no more."""
        if self._open.get(request.kind) is request:
            del self._open[request.kind]


def _is_over(begun: tuple[str, int], claim: Claim) -> bool:
    """Whether a beginning is over, because its worker gave the call back that is claimed."""
    worker, run = begun
    if not run:  # of an older version, which does not say so: it was given back if nobody has had it since
        return not claim.again and worker != claim.worker
    giver, _, number = claim.over.rpartition(":")
    return giver == worker and number.isdecimal() and int(number) >= run


class RequestPacket(Outgoing):
    """The message of a call, or of several for the same queue."""

    __slots__ = ("full", "kind", "most", "pendings", "refusals", "transport", "work")

    def __init__(
        self,
        transport: AMQPTransport,
        kind: Kind,
        pending: Pending,
        size: int,
        work: Work = UNKNOWN,
        refusals: int = 0,
    ) -> None:
        work_queue = transport.topology.work(kind[0])
        super().__init__(
            b"", work_queue, NO_PROPERTIES, key=pending.key
        )  # prepare() gives it properties of its own
        self.transport = transport
        self.kind = kind
        self.pendings = [pending]
        self.size = size
        self.most = MAX_BATCH if kind[3] == "auto" else int(kind[3])
        """How many calls it takes."""
        self.work = work
        """What they are expected to run."""
        self.refusals = refusals
        """How often the broker has refused it."""
        self.full = False
        """Whether the queue was full, as far as could be seen, when it did so last."""

    def takes(self, size: int, work: Work) -> bool:
        """Whether there is room for a call of so many bytes and so much work, which is then taken into account."""
        if len(self.pendings) >= self.most or self.size + size > MAX_BATCH_BYTES:
            return False
        together = self.work[0] + work[0], self.work[1] + work[1]
        if at_most(together) > WORK_US:
            return False
        self.work = together
        return True

    def prepare(self) -> bool:
        transport = self.transport
        transport.requests.left(self)
        if len(self.pendings) > 1:  # sent again: later attempts take messages of their own
            for pending in [pending for pending in self.pendings if pending.call.attempt > 1]:
                self.pendings.remove(pending)
                transport.requests.send(pending)
        calls: list[Call] = []
        longest: int | None = 0
        now = asyncio.get_running_loop().time()
        for pending in self.pendings:
            if not pending.future.done():
                pending.since = now
                call = pending.call
                calls.append(call)
                if call.timeout_ms is None:
                    longest = None
                elif longest is not None:
                    longest = max(longest, call.timeout_ms)
        if len(calls) < len(self.pendings):
            self.pendings = [pending for pending in self.pendings if not pending.future.done()]
        if not calls:
            return False
        self.body = wire.encode(calls)
        queue, priority, durable, _ = self.kind
        first, message_id = calls[0], calls[0].id
        if first.attempt > 1:
            message_id = f"{first.id}:{transport.requests.number()}"
            if first.attempt == first.max_attempts:
                self.routing_key = transport.topology.solo(queue)
        self.properties = Basic.Properties(
            content_type=CONTENT_TYPE,
            message_id=message_id,
            reply_to=transport.topology.kept(first.id) if self.pendings[0].kept else transport.reply_queue,
            delivery_mode=2 if durable else 1,
            priority=priority or None,
            expiration=None if longest is None else str(min(longest + EXPIRY_MS, MAX_TIMEOUT * 1000)),
        )
        return True

    def confirmed(self) -> None:
        for pending in self.pendings:
            pending.confirmed = True
            if pending.kept:
                pending.handed_over()

    def returned(self) -> None:
        for pending in self.pendings:
            if not pending.future.done():
                self.transport.announcements.returned(pending)

    def refused(self) -> None:
        for pending in self.pendings:
            self.transport.full_queues.refused(self, pending)

    def send_again(self, pending: Pending, refusals: int, full: bool) -> None:
        """Send this call of it again, unless it has ended; it has been refused so often."""
        if not pending.future.done():
            request = RequestPacket(self.transport, self.kind, pending, _size(pending.call), refusals=refusals)
            request.full = full
            self.transport.outbox.put(request)

    def rejected(self, refusal: Refusal) -> None:
        """Of several calls any may be the one that cannot be sent, unless none of them can."""
        pendings = [pending for pending in self.pendings if not pending.future.done()]
        if len(pendings) > 1 and refusal.exchange is None:
            for pending in pendings:
                self.transport.outbox.put_alone(
                    RequestPacket(self.transport, self.kind, pending, _size(pending.call))
                )
        else:
            for pending in pendings:
                pending.fail(refusal.error(pending.call.task, len(self.body)))

    def stranded(self, arrived: bool) -> bool:
        """What has arrived is not sent twice, and what may run once only is asked for."""
        if not arrived and self.pendings[0].call.delivery != AT_MOST_ONCE:
            return True
        self.confirmed()
        if not arrived:
            self.transport.inquiry.suspect(self.pendings)
        return False

    def lost(self) -> bool:
        if all(pending.future.done() for pending in self.pendings):
            return False
        if self.pendings[0].call.delivery != AT_MOST_ONCE:
            for pending in self.pendings:
                logger.debug("%s is sent again: it was not confirmed", describe(pending.call))
            return True
        self.transport.outbox.put(_Withdrawal(self.transport, self.pendings[0]))
        return False


def _size(call: Call) -> int:
    """About how many bytes it has in a message."""
    context = 0 if call.context is None else sum(map(len, call.context.values()))
    return len(call.payload) + context + ENVELOPE_BYTES


class _Withdrawal(Outgoing):
    """Cancels an at-most-once call of which it is not known whether it arrived; its await ends when that is sent,
    or after 10 s without a connection."""

    __slots__ = ("error", "pending")

    def __init__(self, transport: AMQPTransport, pending: Pending) -> None:
        key = transport.topology.queue_key(transport.queue_of(pending.options))
        properties = Basic.Properties(content_type=CONTENT_TYPE, message_id=key, delivery_mode=1)
        body = wire.encode([Cancel(VERSION, [pending.call.id])])
        control = transport.topology.control
        super().__init__(body, key, properties, exchange=control, mandatory=False, key=pending.key)
        self.pending = pending
        self.error = CallConnectionLost(
            f"the connection was lost while {pending.call.task} was being sent: "
            "it may have run, and runs at most once"
        )
        asyncio.get_running_loop().call_later(WITHDRAW_SECONDS, pending.fail, self.error)

    def confirmed(self) -> None:
        self.pending.fail(self.error)
