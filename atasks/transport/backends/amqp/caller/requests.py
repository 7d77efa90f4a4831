"""The messages of a caller: requests, and the withdrawal of those that may run at most once."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final, Protocol

from atasks import wire
from atasks.errors import CallConnectionLost
from atasks.options import MAX_BATCH, MAX_TIMEOUT
from atasks.transport.backends.amqp.broker.bodies import body_of
from atasks.transport.backends.amqp.broker.content import Properties
from atasks.transport.backends.amqp.broker.outgoing import Outgoing
from atasks.transport.backends.amqp.broker.refusals import Refusal
from atasks.transport.backends.amqp.caller.run_times import NOTHING, UNKNOWN, RunTimes, Work, at_most
from atasks.transport.pending import PUT_OFF, Pending
from atasks.transport.whereabouts import Whereabouts
from atasks.wire import AT_MOST_ONCE, CONTENT_TYPE, VERSION, Call, Cancel, describe

if TYPE_CHECKING:
    from atasks.transport.backends.amqp.session import Session

__all__ = ["Fates", "RequestPacket", "Requests"]

logger = logging.getLogger("atasks.amqp")

NO_PROPERTIES: Final = Properties()
WORK_US: Final = 1000.0
"""The most microseconds of work in one message, as far as can be expected."""
MAX_BATCH_BYTES: Final = 64 * 2**10
ENVELOPE_BYTES: Final = 200
"""A guess at what a call has besides its payload."""
EXPIRY_MS: Final = 2000
"""For so long after its deadline the broker keeps a request."""
WITHDRAW_SECONDS: Final = 10.0


Kind = tuple[str, int, bool, Any, bool, str]
"""Work queue, priority, durable, batch, once (as in `Requests.send`), and the address of who wants the reply, if
that is not the caller: calls of one kind may share a message."""


class Fates(Protocol):
    """The decisions of a caller about requests that were not taken."""

    def returned(self, pending: Pending) -> None:
        """The broker has no queue for this call."""
        ...

    def early(self, pending: Pending, kind: Kind) -> None:
        """The broker has no queue for this call, which was submitted."""
        ...

    def delayed(self, pending: Pending, kind: Kind, *, anew: bool = False) -> None:
        """This call may begin later. `anew`: what was declared for it is gone."""
        ...

    def refused(self, request: RequestPacket, pending: Pending) -> None:
        """The queue did not take this call of the request."""
        ...

    def suspect(self, pendings: Sequence[Pending]) -> None:
        """These calls may be lost."""
        ...


class Requests:
    """Packs the calls of a caller into messages, and hands these to the outbox.

    Only calls that are safe and cheap to hold together share a message: at-least-once ones of atasks that do
    little work, up to `WORK_US` of it together, so that long calls spread over the workers one by one. While it
    awaits others a call does none.
    """

    def __init__(self, session: Session, run_times: RunTimes, fates: Fates) -> None:
        self.session = session
        self.fates = fates
        self._run_times = run_times
        self._open: dict[Kind, RequestPacket] = {}
        """The message of each kind that waits to be sent and has room left."""
        self._numbers = 0

    def send(self, pending: Pending, *, last: bool = False) -> None:
        """Send the call, with others of this turn of the event loop where that is safe. Never waits. Last: whoever
        runs now sends no other call in this step."""
        session, options, call = self.session, pending.options, pending.call
        pending.confirmed = pending.unheard = False
        pending.asked = pending.denied = 0
        pending.where = None
        # If its worker dies, it comes again with others of its message that last, although it has ended: then it
        # would count as lost, or run again for a caller that is gone.
        once = bool(call.orphan) or call.max_attempts == 1
        queue = options.queue or session.queue
        kind = (queue, options.priority, options.durable, options.batch, once, pending.address)
        if pending.kept and pending.delay:
            self.fates.delayed(pending, kind)
            return
        size = _size(call)
        if last and not self._open and session.outbox.sends_at_once:  # there is nothing to share the message with
            session.outbox.put_now(RequestPacket(self, kind, pending, size))
            return
        alone = call.delivery == AT_MOST_ONCE or call.credit or pending.kept or call.attempt > 1
        if alone or call.by or pending.key is not None:
            work = UNKNOWN
        elif options.batch != "auto":
            work = NOTHING
        elif (once or pending.address) and call.task in self._run_times.parking:
            work = UNKNOWN  # it may last
        else:
            work = self._run_times.expected(call.task)
        request = self._open.get(kind)
        if request is not None and request.takes(size, work):
            request.pendings.append(pending)
            request.size += size
            session.outbox.grew(size)
            return
        request = RequestPacket(self, kind, pending, size, work)
        if at_most(work) <= WORK_US:
            self._open[kind] = request
        session.outbox.put(request)

    def resend(self, pendings: Sequence[Pending], why: str) -> None:
        """Send calls again that may have been lost; end those that may not be sent again. One that the broker has
        neither confirmed nor returned is in the outbox still.

        A call goes on at the attempt that it had come to, and the copy that had this attempt is taken for lost."""
        for pending in pendings:
            call = pending.call
            if pending.future.done() or not (pending.confirmed or pending.unheard):
                continue
            if call.delivery == AT_MOST_ONCE and pending.confirmed:
                if pending.place is None:  # the broker is the last to have said that it has the call
                    pending.where = Whereabouts("turn", self.session.queue_of(pending.options))
                pending.lost(
                    CallConnectionLost(f"{why}: whether {call.task} ran cannot be known, and it runs at most once")
                )
            else:
                logger.debug("%s is sent again: %s", describe(call), why)
                if pending.copies is not None:
                    pending.copies.pop(call.attempt, None)
                    pending.begun = None
                _may_have_run(pending)
                seals = self.session.seals
                if seals is not None and not seals.keys.own.serve:
                    # Workers take no word on attempts from callers: the ones that are left are counted anew.
                    call.max_attempts -= call.attempt - 1
                    call.attempt = 1
                    pending.copies = None
                self.send(pending)

    def number(self) -> str:
        """Tells the copies of a call that is sent again from each other."""
        self._numbers += 1
        return f"{self._numbers:x}"

    def left(self, request: RequestPacket) -> None:
        """The message is being sent: it takes no more."""
        if self._open.get(request.kind) is request:
            del self._open[request.kind]


class RequestPacket(Outgoing):
    """The message of a call, or of several for the same queue."""

    __slots__ = ("full", "kind", "most", "pendings", "refusals", "requests", "work")

    def __init__(
        self,
        requests: Requests,
        kind: Kind,
        pending: Pending,
        size: int,
        work: Work = UNKNOWN,
        refusals: int = 0,
    ) -> None:
        work_queue = requests.session.topology.work(kind[0])
        super().__init__(
            b"", work_queue, NO_PROPERTIES, key=pending.key
        )  # prepare() gives it properties of its own
        self.requests = requests
        self.kind = kind
        self.pendings = [pending]
        self.size = size
        self.most = MAX_BATCH if kind[3] == "auto" else int(kind[3])
        """The most calls that the packet takes."""
        self.work = work
        """The work that its calls are expected to do."""
        self.refusals = refusals
        """The number of times that the broker has refused the packet."""
        self.full = False
        """True if the queue was full at the latest refusal, as far as could be seen."""

    def takes(self, size: int, work: Work) -> bool:
        """Return True if there is room for a call of so many bytes and so much work, which then count."""
        if len(self.pendings) >= self.most or self.size + size > MAX_BATCH_BYTES:
            return False
        together = self.work[0] + work[0], self.work[1] + work[1]
        if at_most(together) > WORK_US:
            return False
        self.work = together
        return True

    def prepare(self) -> bool:
        requests = self.requests
        session = requests.session
        requests.left(self)
        if self.kind[-1]:
            self._leave_out()
        if len(self.pendings) > 1:  # sent again: later attempts take messages of their own
            for pending in [pending for pending in self.pendings if pending.call.attempt > 1]:
                self.pendings.remove(pending)
                requests.send(pending)
        calls: list[Call] = []
        longest: int | None = 0
        now = asyncio.get_running_loop().time()
        for pending in self.pendings:
            if not pending.future.done():
                pending.since = now
                call = pending.call
                calls.append(call)
                if call.timeout_ms is None or pending.kept:  # that has its time from when a worker takes it
                    longest = None
                elif longest is not None:
                    longest = max(longest, call.timeout_ms)
        if len(calls) < len(self.pendings):
            self.pendings = [pending for pending in self.pendings if not pending.future.done()]
        if not calls:
            return False
        self.body = body_of(calls)
        self.key = self.pendings[0].key
        queue, priority, durable, _, _, address = self.kind
        first, message_id = calls[0], calls[0].id
        if first.attempt > 1:
            message_id = f"{first.id}:{requests.number()}"
            if first.attempt == first.max_attempts:
                self.routing_key = session.topology.solo(queue)
        expiration = None if longest is None else str(min(longest + EXPIRY_MS, MAX_TIMEOUT * 1000))
        mode, reply_to = 2 if durable else 1, address or session.reply_queue
        self.properties = Properties.of(message_id, CONTENT_TYPE, mode, reply_to, priority or None, expiration)
        return True

    def _leave_out(self) -> None:
        """Leave out the calls that are put off: it is as if they had been sent, and may be lost."""
        put_off = [pending for pending in self.pendings if pending.since == PUT_OFF]
        for pending in put_off:
            pending.confirmed = True
            self.pendings.remove(pending)

    def confirmed(self) -> None:
        for pending in self.pendings:
            pending.confirmed = True
            if pending.kept:
                pending.handed_over()

    def returned(self) -> None:
        for pending in self.pendings:
            if pending.future.done():
                continue
            if pending.kept and pending.options.on_no_worker == "wait":
                self.requests.fates.early(pending, self.kind)
            else:
                self.requests.fates.returned(pending)

    def refused(self) -> None:
        for pending in self.pendings:
            self.requests.fates.refused(self, pending)

    def send_again(self, pending: Pending, refusals: int, full: bool) -> None:
        """Send this call of it again, unless it has ended; it has been refused so often."""
        if not pending.future.done():
            request = RequestPacket(self.requests, self.kind, pending, _size(pending.call), refusals=refusals)
            request.full = full
            self.requests.session.outbox.put(request)

    def rejected(self, refusal: Refusal) -> None:
        """Send several calls one by one, since any may be the one that cannot be sent. End the await of a single
        one."""
        pendings = [pending for pending in self.pendings if not pending.future.done()]
        if len(pendings) > 1 and refusal.exchange is None:
            for pending in pendings:
                self.requests.session.outbox.put_alone(
                    RequestPacket(self.requests, self.kind, pending, _size(pending.call))
                )
        else:
            for pending in pendings:
                pending.fail(refusal.error(pending.call.task, len(self.body)))

    def stranded(self, arrived: bool) -> bool:
        """Return True if the packet may be sent again. Calls that have arrived are not sent twice, and workers are
        asked for those that may run once only."""
        if not arrived and self.pendings[0].call.delivery != AT_MOST_ONCE:
            for pending in self.pendings:
                _may_have_run(pending)
            return True
        self.confirmed()
        if not arrived:
            self.requests.fates.suspect(self.pendings)
        return False

    def lost(self) -> bool:
        if all(pending.future.done() for pending in self.pendings):
            return False
        if self.kind[-1] and not self.pendings[0].kept:
            self.confirmed()  # of a journal, which is looked at first: it may have been answered meanwhile
            return False
        if self.pendings[0].call.delivery != AT_MOST_ONCE:
            for pending in self.pendings:
                logger.debug("%s is sent again: it was not confirmed", describe(pending.call))
                _may_have_run(pending)
            return True
        self.requests.session.outbox.put(_Withdrawal(self.requests.session, self.pendings[0]))
        return False


def _may_have_run(pending: Pending) -> None:
    """Have the next message of the call say that there was one before. That of a stream says so where its consumer
    has heard of a run, which may have given it items."""
    pending.call.ran |= pending.receiver is None or pending.receiver.begun


def _size(call: Call) -> int:
    """About how many bytes it has in a message."""
    context = 0 if call.context is None else sum(map(len, call.context.values()))
    return len(call.payload) + context + ENVELOPE_BYTES


class _Withdrawal(Outgoing):
    """Cancels an at-most-once call of which it is not known whether it arrived; its await ends when that is sent,
    or after 10 s without a connection."""

    __slots__ = ("error", "pending")

    def __init__(self, session: Session, pending: Pending) -> None:
        key = session.topology.queue_key(session.queue_of(pending.options))
        properties = Properties(content_type=CONTENT_TYPE, message_id=key, delivery_mode=1)
        body = wire.encode([Cancel(VERSION, [pending.call.id])])
        control = session.topology.control
        super().__init__(body, key, properties, exchange=control, mandatory=False, key=pending.key)
        self.pending = pending
        self.error = CallConnectionLost(
            f"the connection was lost while {pending.call.task} was being sent: "
            "it may have run, and runs at most once"
        )
        self.error.waited_for = "connection"
        asyncio.get_running_loop().call_later(WITHDRAW_SECONDS, pending.fail, self.error)

    def confirmed(self) -> None:
        self.pending.fail(self.error)
