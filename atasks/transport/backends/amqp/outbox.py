"""What waits to be sent, and what was sent and is not confirmed."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Final

from aiormq.channel import Channel
from pamqp.commands import Basic

from atasks.transport.backends.amqp.publisher import Publisher

__all__ = ["Outbox", "Outgoing"]

MAX_UNCONFIRMED: Final = 1000
"""The client library scans what is unconfirmed on each confirm of many."""
MAX_BYTES: Final = 32 * 2**20
"""Bytes that may wait here; past it, `room` makes callers wait."""


class Outgoing:
    """A message on its way to the broker. Subclasses say what each ending means.

    Exactly one of `confirmed`, `returned` and `refused` is called, unless `lost` says not to send it again.
    """

    __slots__ = ("body", "exchange", "mandatory", "properties", "routing_key", "size")

    def __init__(
        self,
        body: bytes,
        routing_key: str,
        properties: Basic.Properties,
        *,
        exchange: str = "",
        mandatory: bool = True,
    ) -> None:
        self.body = body
        self.size = len(body)
        """Bytes, or a good guess, while it waits."""
        self.routing_key = routing_key
        self.properties = properties
        self.exchange = exchange
        self.mandatory = mandatory

    def prepare(self) -> bool:
        """Called right before it is sent: False drops it."""
        return True

    def confirmed(self) -> None:
        """It is safe at the broker."""

    def returned(self) -> None:
        """There is no queue to take it."""

    def refused(self) -> None:
        """The broker rejected it: its queue is full."""

    def lost(self) -> bool:
        """The connection went before a confirm: it may or may not have arrived. True: send it again."""
        return True


class Outbox:
    """Sends messages over the channel that is attached, and keeps them while none is.

    Nothing waits for a confirm before the next message leaves; at most `MAX_UNCONFIRMED` are unconfirmed.
    """

    def __init__(self) -> None:
        self._waiting: deque[Outgoing] = deque()
        self._unconfirmed: dict[int, Outgoing] = {}
        """By identity, in the order in which they were sent."""
        self._publisher: Publisher | None = None
        self._bytes = 0
        self._scheduled = False
        self._wanting_room: deque[asyncio.Future[None]] = deque()
        self._idle = asyncio.Event()
        self._idle.set()

    def put(self, message: Outgoing) -> None:
        """Send it at the end of this turn of the event loop, after what was put before."""
        self._bytes += message.size
        self._waiting.append(message)
        self._idle.clear()
        if not self._scheduled:
            self._scheduled = True
            asyncio.get_running_loop().call_soon(self._pump)

    def put_now(self, message: Outgoing) -> None:
        """Send it at once, after what was put before."""
        self._scheduled = True
        self.put(message)
        self._pump()

    def grew(self, size: int) -> None:
        """A message that waits here has grown by so many bytes."""
        self._bytes += size

    def attach(self, channel: Channel) -> None:
        """Send over this channel from now on."""
        self._publisher = Publisher(channel, self._ended)
        self._pump()

    def detach(self) -> None:
        """The channel is gone: what is unconfirmed is lost; what may be sent again waits for the next one."""
        if self._publisher is not None:
            self._publisher.close()
            self._publisher = None
        unconfirmed, self._unconfirmed = self._unconfirmed, {}
        again = [message for message in unconfirmed.values() if message.lost()]
        self._bytes -= sum(message.size for message in unconfirmed.values())
        self._bytes += sum(message.size for message in again)
        self._waiting.extendleft(reversed(again))
        self._settled()

    def room(self) -> asyncio.Future[None] | None:
        """What to await before asking again; None: there is room."""
        if self._bytes < MAX_BYTES:
            return None
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._wanting_room.append(waiter)
        return waiter

    async def flushed(self) -> None:
        """Return when nothing waits and nothing is unconfirmed."""
        await self._idle.wait()

    def __len__(self) -> int:
        return len(self._waiting) + len(self._unconfirmed)

    def _pump(self) -> None:
        self._scheduled = False
        publisher = self._publisher
        if publisher is None:
            return
        leaving: list[Outgoing] = []
        while self._waiting and len(self._unconfirmed) < MAX_UNCONFIRMED:
            message = self._waiting.popleft()
            if not message.prepare():
                self._bytes -= message.size
                continue
            self._unconfirmed[id(message)] = message
            leaving.append(message)
        publisher.publish(leaving)
        self._settled()

    def _ended(self, message: Outgoing, ending: Callable[[], None]) -> None:
        if self._unconfirmed.pop(id(message), None) is None:
            return  # it was declared lost before its confirm arrived here
        self._bytes -= message.size
        ending()
        if self._waiting:
            self._pump()
        else:
            self._settled()

    def _settled(self) -> None:
        if self._wanting_room and self._bytes < MAX_BYTES // 2:
            waiting, self._wanting_room = self._wanting_room, deque()
            for waiter in waiting:  # each looks again, and those that find no room wait again
                if not waiter.done():
                    waiter.set_result(None)
        if not self._waiting and not self._unconfirmed:
            self._idle.set()
