"""The messages of a caller: requests, and the withdrawal of those that may run at most once."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from pamqp.commands import Basic

from atasks import wire
from atasks.errors import CallConnectionLost, QueueFull
from atasks.transport.backends.amqp.outbox import Outgoing
from atasks.transport.base import Pending
from atasks.wire import AT_MOST_ONCE, CONTENT_TYPE, VERSION, Cancel

if TYPE_CHECKING:
    from atasks.transport.backends.amqp.transport import AMQPTransport

__all__ = ["Request"]

WITHDRAW_SECONDS: Final = 10.0


class Request(Outgoing):
    """The message of a call."""

    __slots__ = ("pending", "transport")

    def __init__(self, transport: AMQPTransport, pending: Pending) -> None:
        call, options = pending.call, pending.options
        pending.posted = True
        pending.confirmed = pending.unheard = False
        pending.since = asyncio.get_running_loop().time()
        pending.asked = 0
        expiration = None
        if call.timeout_ms is not None:
            expiration = str(call.timeout_ms + int(transport.clock_skew * 1000))
        properties = Basic.Properties(
            content_type=CONTENT_TYPE,
            message_id=call.id,
            reply_to=transport.reply_queue,
            delivery_mode=2 if options.durable else 1,
            priority=options.priority or None,
            expiration=expiration,
        )
        super().__init__(wire.encode([call]), transport.topology.work(transport.queue_of(options)), properties)
        self.transport = transport
        self.pending = pending

    def wanted(self) -> bool:
        return not self.pending.future.done()

    def confirmed(self) -> None:
        self.pending.confirmed = True

    def returned(self) -> None:
        if self.wanted():
            self.transport.returned(self.pending)

    def refused(self) -> None:
        self.pending.fail(QueueFull(f"{self.pending.call.task} was refused by the broker: its queue is full"))

    def lost(self) -> bool:
        if self.pending.call.delivery != AT_MOST_ONCE:
            return self.wanted()
        if self.wanted():
            self.transport.outbox.put(_Withdrawal(self.transport, self.pending))
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
