"""Messages that can be neither read nor answered: copied to the dead queue, and then acknowledged."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from aiormq.abc import DeliveredMessage
from pamqp.commands import Basic
from pamqp.common import FieldTable

from atasks import wire
from atasks.signing import CONTENT_TYPE as SEALED
from atasks.transport.backends.amqp.broker.acks import Acks
from atasks.transport.backends.amqp.broker.outgoing import Outgoing
from atasks.transport.backends.amqp.seals import as_it_came

if TYPE_CHECKING:
    from atasks.transport.backends.amqp.broker.refusals import Refusal

__all__ = ["DeadLetter", "cut_from"]

MAX_TEXT: Final = 255
MAX_BODY: Final = 256 * 2**10
"""Bytes of a body that are kept. The dead queue is bounded in messages, and workers of other versions declare it
with the same arguments: so its bytes are bounded by what is put into it."""
BYTES: Final = "x-atasks-bytes"
"""The header of a copy that was cut: the number of bytes that there were."""


class DeadLetter(Outgoing):
    """The body of a message, on its way to the dead queue with few of its properties.

    The broker could move the message itself, when it is rejected. But a queue process of RabbitMQ 3.10 crashes
    while it does that for a message whose `x-death` header is no list of tables, gets the message back, and
    crashes again: one such message would take its queue from every worker.

    Guarantees: the message is acknowledged when its copy is safe, or cannot be kept. If the connection is lost
    before that, the broker delivers the message again. Of a large body the beginning is kept.
    """

    __slots__ = ("_acks", "_tag")

    def __init__(self, message: DeliveredMessage, acks: Acks, queue: str, dead: str, number: str) -> None:
        """`queue` is the one that it came from, `dead` the name of the dead queue, `number` the id of the copy."""
        known, body = message.header.properties, as_it_came(message).body
        headers: FieldTable = {"x-first-death-queue": queue, "x-first-death-reason": "rejected"}
        if known.content_type == SEALED and (name := _plain(known.message_id)):
            headers["x-message-id"] = (
                name  # its seal is for this name: `atasks dead retry` sends it under that again
            )
        if len(body) > MAX_BODY:
            headers[BYTES] = len(body)
        properties = Basic.Properties(
            content_type=_plain(known.content_type),
            reply_to=_plain(known.reply_to),
            headers=headers,
            message_id=number,
            timestamp=datetime.now(UTC),
            delivery_mode=2,
        )
        super().__init__(body[:MAX_BODY], dead, properties, key="")
        self._acks = acks
        self._tag = message.delivery_tag or 0

    def confirmed(self) -> None:
        self._acks.ack(self._tag)

    returned = confirmed
    refused = confirmed

    def rejected(self, refusal: Refusal) -> None:
        super().rejected(refusal)
        self.confirmed()

    def lost(self) -> bool:
        return False


def cut_from(headers: FieldTable) -> int:
    """Return the bytes of the body of which a dead message has the beginning; 0: it has all."""
    size = headers.get(BYTES)
    return size if type(size) is int and size > 0 else 0


def _plain(text: str | None) -> str | None:
    return text if text and len(text) <= MAX_TEXT and wire.plain(text) else None
