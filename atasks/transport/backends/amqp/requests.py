"""The messages of a caller: requests, and the withdrawal of those that may run at most once."""

from __future__ import annotations

import asyncio
import math
from collections import deque
from typing import TYPE_CHECKING, Final

from pamqp.commands import Basic

from atasks import wire
from atasks.errors import CallConnectionLost, QueueFull
from atasks.options import MAX_BATCH
from atasks.transport.backends.amqp.outbox import Outgoing
from atasks.transport.base import Pending
from atasks.wire import AT_MOST_ONCE, CONTENT_TYPE, VERSION, Cancel

if TYPE_CHECKING:
    from atasks.transport.backends.amqp.transport import AMQPTransport

__all__ = ["Request"]

NO_PROPERTIES: Final = Basic.Properties()
WORK_US: Final = 1000.0
MAX_BATCH_BYTES: Final = 64 * 2**10
ENVELOPE_BYTES: Final = 200
"""A guess at what a call has besides its payload."""
WITHDRAW_SECONDS: Final = 10.0
REFUSED_PAUSES: Final = (0.1, 0.4, 1.5)
"""Seconds before a refused request is sent again. A broker refuses where the queue is full, but also while a
quorum queue has no leader because its node of the cluster died: a new one is elected within about a second."""


class Request(Outgoing):
    """The message of a call, or of several that wait for the same queue.

    Only calls that are safe and cheap to hold together share a message: at-least-once ones of atasks that run
    short, up to `WORK_US` of work, so that long calls spread over the workers one by one.
    """

    __slots__ = ("kind", "pendings", "refusals", "transport")

    def __init__(self, transport: AMQPTransport, pending: Pending, refusals: int = 0) -> None:
        call, options = pending.call, pending.options
        pending.confirmed = pending.unheard = False
        pending.since = asyncio.get_running_loop().time()
        pending.asked = 0
        self.transport = transport
        self.refusals = refusals
        """How often the broker has refused it."""
        self.pendings = [pending]
        self.kind = (transport.queue_of(options), options.priority, options.durable, options.batch)
        """Requests of one kind may share a message."""
        super().__init__(b"", transport.topology.work(self.kind[0]), NO_PROPERTIES)  # prepare() gives it its own
        self.size = len(call.payload) + ENVELOPE_BYTES

    def wanted(self) -> bool:
        return any(not pending.future.done() for pending in self.pendings)

    def prepare(self, waiting: deque[Outgoing]) -> None:
        self.pendings = [pending for pending in self.pendings if not pending.future.done()]
        room = self._room()
        if room > 0:
            room -= self._cost(self)
            while waiting and len(self.pendings) < MAX_BATCH:
                other = waiting[0]
                if type(other) is not Request or other.kind != self.kind or not other.wanted():
                    break
                cost = self._cost(other)
                if cost > room or self.size + other.size > MAX_BATCH_BYTES:
                    break
                room -= cost
                waiting.popleft()
                self.pendings += other.pendings
                self.size += other.size
        self.body = wire.encode([pending.call for pending in self.pendings])
        timeouts = [pending.call.timeout_ms for pending in self.pendings]
        expiration = None
        if None not in timeouts:
            expiration = str(max(map(int, timeouts)) + int(self.transport.clock_skew * 1000))  # type: ignore[arg-type]
        _, priority, durable, _ = self.kind
        self.properties = Basic.Properties(
            content_type=CONTENT_TYPE,
            message_id=self.pendings[0].call.id,
            reply_to=self.transport.reply_queue,
            delivery_mode=2 if durable else 1,
            priority=priority or None,
            expiration=expiration,
        )

    def _room(self) -> float:
        """How much the message may hold: microseconds of work, or a number of calls if the option says so."""
        batch = self.kind[3]
        return WORK_US if batch == "auto" else float(batch)

    def _cost(self, other: Request) -> float:
        """What the calls of another request would take of that room; infinite: they may not share a message."""
        if other.refusals:  # it keeps its own count of them
            return math.inf
        if any(pending.call.delivery == AT_MOST_ONCE or pending.call.credit for pending in other.pendings):
            return math.inf
        if self.kind[3] != "auto":
            return float(len(other.pendings))
        estimate = self.transport.pace.estimate
        return sum(estimate(pending.call.task) for pending in other.pendings)

    def confirmed(self) -> None:
        for pending in self.pendings:
            pending.confirmed = True

    def returned(self) -> None:
        for pending in self.pendings:
            if not pending.future.done():
                self.transport.returned(pending)

    def refused(self) -> None:
        again = self.refusals < len(REFUSED_PAUSES)
        for pending in self.pendings:
            if again and pending.call.delivery != AT_MOST_ONCE and not pending.future.done():
                loop = asyncio.get_running_loop()
                loop.call_later(REFUSED_PAUSES[self.refusals], self._send_again, pending)
            else:
                pending.fail(QueueFull(f"{pending.call.task} was refused by the broker: its queue is full"))

    def _send_again(self, pending: Pending) -> None:
        if not pending.future.done():
            self.transport.outbox.put(Request(self.transport, pending, self.refusals + 1))

    def lost(self) -> bool:
        if self.pendings[0].call.delivery != AT_MOST_ONCE:
            return self.wanted()
        if self.wanted():
            self.transport.outbox.put(_Withdrawal(self.transport, self.pendings[0]))
        return False


class _Withdrawal(Outgoing):
    """Cancels an at-most-once call of which it is not known whether it arrived; its await ends when that is sent,
    or after 10 s without a connection."""

    __slots__ = ("error", "pending")

    def __init__(self, transport: AMQPTransport, pending: Pending) -> None:
        key = transport.topology.queue_key(transport.queue_of(pending.options))
        properties = Basic.Properties(content_type=CONTENT_TYPE, message_id=key, delivery_mode=1)
        body = wire.encode([Cancel(VERSION, [pending.call.id])])
        super().__init__(body, key, properties, exchange=transport.topology.control, mandatory=False)
        self.pending = pending
        self.error = CallConnectionLost(
            f"the connection was lost while {pending.call.task} was being sent: "
            "it may have run, and runs at most once"
        )
        asyncio.get_running_loop().call_later(WITHDRAW_SECONDS, pending.fail, self.error)

    def confirmed(self) -> None:
        self.pending.fail(self.error)
