"""The streams of a worker."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from contextvars import Context
from typing import TYPE_CHECKING, Final

from atasks.wire import Credit, End, Reply
from atasks.worker.stream_sender import StreamSender

if TYPE_CHECKING:
    from atasks.transport.delivery import Delivery
    from atasks.worker.held_call import HeldCall

__all__ = ["StreamSenders"]

QUIET_SECONDS: Final = 5.0
"""A stream that sent nothing for so long asks its consumer where it is: a `Credit` may be lost, the consumer
may be gone, or may not know yet that another worker runs the stream now."""
MAX_ENDED: Final = 256
MAX_ENDED_BYTES: Final = 16 * 2**20


class StreamSenders:
    """The `StreamSender` of every stream of a worker.

    Streams that ended lately are remembered, within bounds, if the transport may lose messages: the consumer may
    lack their last items.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, *, remember: bool) -> None:
        self._loop = loop
        self._remember = remember
        self._live: dict[str, StreamSender] = {}
        self._ended: OrderedDict[str, StreamSender] = OrderedDict()
        self._ended_bytes = 0
        self._timer: asyncio.TimerHandle | None = None
        self._no_context = Context()

    def open(self, run: HeldCall, codec: str) -> StreamSender:
        """The sender of a run that begins."""
        sender = run.sender = StreamSender(run, codec)
        self._live[run.call.id] = sender
        if self._timer is None:
            self._timer = self._loop.call_later(QUIET_SECONDS, self._look, context=self._no_context)
        return sender

    def close(self, sender: StreamSender, reply: Reply | None) -> End | None:
        """A run has ended; None: nobody is to be told. Returns what the consumer is to be sent."""
        call_id = sender.run.call.id
        del self._live[call_id]
        if not self._live and self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if reply is None:
            return None
        end = sender.finish(reply)
        if self._remember:
            self._ended[call_id] = sender
            self._ended_bytes += sender.size
            while len(self._ended) > MAX_ENDED or self._ended_bytes > MAX_ENDED_BYTES:
                _, old = self._ended.popitem(last=False)
                self._ended_bytes -= old.size
        return end

    def run(self, call_id: str) -> HeldCall | None:
        """The run of a stream that is live here, or has ended lately."""
        sender = self._live.get(call_id) or self._ended.get(call_id)
        return None if sender is None else sender.run

    def credit(self, credit: Credit) -> None:
        """A consumer says where it is. One of a stream that is not here any more has all that it can get."""
        sender = self._live.get(credit.id)
        if sender is not None:
            sender.credited(credit)
            return
        sender = self._ended.get(credit.id)
        if sender is not None:
            before = sender.size
            sender.credited(credit)
            self._ended_bytes -= before - sender.size

    def delivered_again(self, call_id: str, delivery: Delivery) -> None:
        """The request of a stream that has ended here came once more: the consumer may have another address."""
        sender = self._ended.get(call_id)
        if sender is not None:
            sender.run.deliveries += (delivery,)

    def ask(self) -> None:
        """Ask every consumer where it is: credits may have been lost with a connection."""
        for sender in self._live.values():
            sender.ask()

    def _look(self) -> None:
        self._timer = self._loop.call_later(QUIET_SECONDS, self._look, context=self._no_context)
        for sender in list(self._live.values()):
            if sender.quiet:
                sender.ask()
            sender.quiet = True
