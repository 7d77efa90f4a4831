"""A message of a record on its way to the broker."""

from __future__ import annotations

import asyncio

from pamqp.commands import Basic

from atasks.errors import QueueFull
from atasks.transport.backends.amqp.broker.outgoing import Outgoing
from atasks.transport.backends.amqp.broker.refusals import Refusal
from atasks.transport.records.contract import unknown_run

__all__ = ["RecordMessage"]


class RecordMessage(Outgoing):
    """A message that is put into a record: `future` ends when the broker has it, or does not take it."""

    __slots__ = ("again", "call_id", "future")

    def __init__(self, call_id: str, body: bytes, key: str, properties: Basic.Properties, exchange: str) -> None:
        super().__init__(body, key, properties, exchange=exchange)
        self.call_id = call_id
        self.again = False
        """True if the message was sent before, over a link that was lost: it may have arrived."""
        self.future: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def confirmed(self) -> None:
        if not self.future.done():
            self.future.set_result(None)

    def returned(self) -> None:
        if not self.future.done():
            self.future.set_exception(unknown_run(self.call_id))

    def lost(self) -> bool:
        self.again = True
        return True

    def refused(self) -> None:
        if self.again:  # no room for it: earlier messages have filled the queue
            self.confirmed()
        elif not self.future.done():
            self.future.set_exception(QueueFull(f"the broker takes no more of run {self.call_id!r}: try later"))

    def rejected(self, refusal: Refusal) -> None:
        if not self.future.done():
            self.future.set_exception(refusal.error(f"the record of run {self.call_id!r}", len(self.body)))
