"""`ReturnedRequest`: a call on its way back to a work queue."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Final

from pamqp.commands import Basic

from atasks import wire
from atasks.transport.backends.amqp.broker.delays import due_key, level_of
from atasks.transport.backends.amqp.broker.outgoing import Outgoing
from atasks.transport.backends.amqp.broker.refusals import Refusal
from atasks.wire import AT_MOST_ONCE, Call, Status, describe

if TYPE_CHECKING:
    from atasks.transport.backends.amqp.worker.replies import Replies
    from atasks.transport.backends.amqp.worker.request_message import RequestMessage

__all__ = ["ReturnedRequest"]

logger = logging.getLogger("atasks.amqp")

REFUSED_PAUSE: Final = 0.5


class ReturnedRequest(Outgoing):
    """A call that goes back to a work queue, at once or after some ticks. If its queue was deleted, its caller
    sends it again."""

    __slots__ = ("_replies", "_ticks", "call", "queue", "request")

    def __init__(
        self,
        replies: Replies,
        call: Call,
        queue: str,
        properties: Basic.Properties,
        request: RequestMessage,
        ticks: int,
    ) -> None:
        topology = replies.station.session.topology
        exchange, key = (topology.delay(level_of(ticks)), due_key(ticks, queue)) if ticks else ("", queue)
        super().__init__(wire.encode([call]), key, properties, exchange=exchange, key=request.voice)
        self._replies = replies
        self._ticks = ticks
        self.call = call
        self.queue = queue
        self.request = request

    @property
    def destination(self) -> str:
        return self.queue

    def prepare(self) -> bool:
        """If the link was lost while it waited to leave, the broker delivers the original again."""
        return self.request.in_hand

    def confirmed(self) -> None:
        self.request.settled()
        if self.request.unsettled:
            self._replies.parted(self.request)

    def returned(self) -> None:
        if self._ticks:  # the levels are gone, and no caller is there to send it again
            self.refused()
        else:
            self.confirmed()

    def refused(self) -> None:
        """The queue is full: the delivery goes back as it came, a little later so that this does not spin. While
        other calls of its message are in hand, which would begin again elsewhere, this one is sent once more. Not
        if the link is lost by then: the broker delivers the original again."""
        self.request.stuck += 1
        asyncio.get_running_loop().call_later(REFUSED_PAUSE, self._go_back)

    def _go_back(self) -> None:
        request = self.request
        if request.stuck == request.unsettled or not request.in_hand:
            request.requeue()
        elif request.unsettled:
            request.stuck -= 1
            again = ReturnedRequest(self._replies, self.call, self.queue, self.properties, request, self._ticks)
            self._replies.station.put(again)

    def rejected(self, refusal: Refusal) -> None:
        """No worker can be given it: its caller is told."""
        reason = str(refusal.error(self.call.task, len(self.body)))
        reply = wire.ended(self.call.id, Status.FAILED, reason, self._replies.station.worker.id)
        self._replies.reply(reply, self.request)

    def stranded(self, arrived: bool) -> bool:
        """Sent twice, it might run twice."""
        if not arrived and self.call.delivery != AT_MOST_ONCE:
            return True
        self.request.settled()
        return False

    def lost(self) -> bool:
        logger.debug("%s may be at the broker twice: it was given back, unconfirmed", describe(self.call))
        return False  # the broker delivers the original again
