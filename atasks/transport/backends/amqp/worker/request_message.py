"""A message from a work queue, and what settles it."""

from __future__ import annotations

import asyncio
from functools import lru_cache
from typing import TYPE_CHECKING, Final, Self

from aiormq.abc import DeliveredMessage
from msgspec import Struct

from atasks import wire
from atasks.outlast import shield
from atasks.transport.backends.amqp.broker.acks import TOGETHER
from atasks.transport.backends.amqp.broker.topology import CHANNEL_ADDRESS

if TYPE_CHECKING:
    from atasks.transport.backends.amqp.broker.acks import Acks
    from atasks.transport.backends.amqp.worker.consumer import Consumer
    from atasks.wire import Call

__all__ = ["RequestMessage"]

MAX_COPY: Final = 64
"""Characters of the id of a copy."""


@lru_cache(maxsize=256)
def _sealed_for(key: str, reply_to: str) -> str:
    """Return the `caller` of a request under a seal: the same text for all its messages, not only an equal one."""
    return f"{key} {reply_to}"


class RequestMessage(Struct, eq=False):
    """One message from a work queue: acknowledged when each of its calls is settled."""

    consumer: Consumer
    acks: Acks
    """Those of its channel: on another one the tag means another message."""
    _tag: int
    _generation: int
    message_id: str
    correlation_id: str
    priority: int | None
    expiration: str | None
    delivery_mode: int
    """2: what is sent on its account survives the broker; 1: it need not."""
    reply_to: str
    caller: str
    """Whom it is answered to: answers to one caller, under seals of one key, may share a message."""
    received: float
    """When it came (event loop time)."""
    came_again: bool
    """True if the broker has given it to a worker before."""
    key: str | None = None
    """The name of the key that its calls came with, which answers to it are sealed with. Empty: none."""
    calls: int = 1
    """Calls that have not ended."""
    unsettled: int = 1
    """Calls whose reply is not safe at the broker."""
    stuck: int = 0
    """Calls that are to go back to their queue, which is full."""
    parted: bool = False
    """True if one of its calls has gone back to a queue while others were in hand."""
    shared: bool = False
    """True if several calls came in the message."""
    _gone: asyncio.Future[None] | None = None

    @classmethod
    def of(cls, consumer: Consumer, message: DeliveredMessage, lease: Acks | None = None) -> Self:
        """The message as it came. `lease`: the acknowledgements of its channel, if it comes from a lease queue and
        takes no place in the window of the consumer."""
        properties = message.header.properties  # which takes as much as the call itself: it is not kept
        reply_to = properties.reply_to or ""
        if reply_to.startswith(CHANNEL_ADDRESS):
            reply_to = ""
        if lease is None:
            consumer.unfinished += 1
        return cls(
            consumer,
            lease or consumer.acks,
            message.delivery_tag or 0,
            consumer.generation if lease is None else -1,
            properties.message_id or "",
            properties.correlation_id or "",
            properties.priority,
            properties.expiration,
            2 if properties.delivery_mode == 2 else 1,
            reply_to,
            reply_to,
            asyncio.get_running_loop().time(),
            lease is not None,
        )

    def answer(self, reply_to: str, key: str | None) -> None:
        """Have its calls answered there, under the seal of the key of that name."""
        self.reply_to = reply_to
        self.key = key
        self.caller = reply_to if key is None else _sealed_for(key, reply_to)

    def carries(self, calls: list[Call], others: int) -> None:
        """These calls came in it, and so many others that are refused."""
        self.calls = self.unsettled = number = len(calls) + others
        self.shared = number > 1
        if calls and self.message_id == calls[0].id:
            self.message_id = calls[0].id  # of equal texts one is kept, however many calls wait

    @property
    def copy(self) -> str:
        """The id that tells this copy of a later attempt from others, wherever it is given back to.

        Empty: there is none, because whoever sent the copy gave it no name that can be used, or put it into one
        message with others.
        """
        name = self.message_id
        return name if len(name) <= MAX_COPY and wire.plain(name) and not self.shared else ""

    def is_copy_of(self, call: Call) -> bool:
        """Return True if a worker has put this call back: whoever sends a call first names its message after
        it."""
        return call.attempt > 1 or not (self.shared or self.message_id.startswith(call.id))

    @property
    def over(self) -> str:
        """The beginning of this copy that is over, because the worker that began it gave it back; empty: none."""
        name = self.correlation_id
        return name if len(name) <= MAX_COPY and wire.plain(name) else ""

    @property
    def voice(self) -> str | None:
        """The key with which this worker sends its calls on: its own, or none if they came without one."""
        return self.key and None

    @property
    def in_hand(self) -> bool:
        """False once its link was lost: the broker gives it to a worker again, to this one or to another."""
        return not self.acks.channel.is_closed

    def ended(self) -> None:
        """One of its calls has ended."""
        self.calls -= 1
        if self.calls == 0 and self._generation == self.consumer.generation:
            self.consumer.unfinished -= 1

    def settled(self, *, now: bool = True) -> None:
        """Count one of its calls as settled: the ending of that call is safe. Now: others need not be settled
        first, to be acknowledged with it."""
        self.unsettled -= 1
        if self.unsettled == 0:
            consumer = self.consumer
            # The window of a consumer that was replaced by a wider one has no room to gain.
            late = self._generation != consumer.generation
            self.acks.ack(self._tag, late=late, now=now or consumer.unfinished + 2 * TOGETHER > consumer.prefetch)
            self._leave()

    def requeue(self) -> None:
        """Have the broker deliver it again."""
        self.acks.requeue(self._tag)
        self.unsettled = 0
        self._leave()

    async def gone(self) -> None:
        """Return when it is acknowledged, or has gone back, as far as this worker is concerned."""
        if self.unsettled:
            self._gone = self._gone or asyncio.get_running_loop().create_future()
            await shield(self._gone)

    def _leave(self) -> None:
        if self._gone is not None and not self._gone.done():
            self._gone.set_result(None)
