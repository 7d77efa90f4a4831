"""One delivery of a call to this worker, and what becomes of it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from atasks.transport.backends.amqp.worker.other_workers import PAUSE
from atasks.wire import Call, End, Item, Reply, Report

if TYPE_CHECKING:
    from atasks.options import Executor
    from atasks.transport.backends.amqp.worker.replies import Replies
    from atasks.transport.backends.amqp.worker.request_message import RequestMessage

__all__ = ["CallDelivery"]

MAX_SEEN: Final = 8
"""Workers that a call of an unknown atask may visit."""


class CallDelivery:
    """One call of a message from a work queue."""

    __slots__ = ("_replies", "beginning", "renewing", "request")

    def __init__(self, replies: Replies, request: RequestMessage, older: CallDelivery | None = None) -> None:
        """`older`: another delivery of the same run."""
        self._replies = replies
        self.request = request
        self.beginning: str = "" if older is None else older.beginning
        """The caller's name for the beginning that was asked for here, of a last attempt."""
        self.renewing = False
        """True while a lease is on its way to take the place of this delivery."""

    @property
    def queue(self) -> str:
        return self.request.consumer.queue

    def renewed(self, request: RequestMessage) -> CallDelivery:
        """Return the delivery of this call by a lease."""
        return CallDelivery(self._replies, request, self)

    def send(self, envelope: Item | End | Report) -> None:
        self._replies.send(envelope, self.request)

    def reply(self, reply: Reply | End) -> None:
        self.request.ended()
        self._replies.reply(reply, self.request)

    def drop(self) -> None:
        self.request.ended()
        self.request.settled()

    def requeue(self) -> None:
        """Have another worker receive it, as one that was delivered before."""
        self.request.ended()
        self.request.requeue()

    def give_back(self, call: Call, executor: Executor | None = None) -> None:
        consumer = self.request.consumer
        if executor is None:
            self._republish(call, consumer.name)
        else:
            self._republish(call, self._replies.station.session.topology.pool(consumer.queue, executor))

    def postpone(self, call: Call, ticks: int) -> None:
        """Have it come again after so many ticks; the levels for that are declared."""
        self.request.ended()
        work = self._replies.station.session.topology.work(self.queue)
        self._replies.republish(call, self.request, work, False, self.request.over, ticks)

    def charge(self, call: Call) -> None:
        """Return the call to the queue with one more attempt, the last one to that of calls that run alone."""
        call.attempt += 1
        consumer = self.request.consumer
        last = call.attempt == call.max_attempts
        name = self._replies.station.session.topology.solo(consumer.queue) if last else consumer.name
        self._republish(call, name, charged=True)

    def _republish(self, call: Call, name: str, charged: bool = False) -> None:
        self.request.ended()
        over = "" if charged else self.beginning or self.request.over
        self._replies.republish(call, self.request, name, charged, over)

    async def pass_on(self, call: Call) -> Call | None:
        station = self._replies.station
        seen = call.seen or []
        been_here = station.worker.id in seen
        visited = len(seen) if been_here else len(seen) + 1
        solo = station.session.topology.solo(self.request.consumer.queue)
        if len(seen) >= MAX_SEEN or not await station.others.beyond(solo, visited):
            return None if self.request.in_hand else call  # else whoever the broker gives it to may know its atask
        if been_here:
            await asyncio.sleep(PAUSE)  # so that it does not come straight back to this worker
        else:
            call.seen = [*seen, station.worker.id]
        return call
