"""`Outbox`: outgoing messages, queued, and sent but not yet confirmed."""

from __future__ import annotations

import asyncio
import logging
import sys
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Final

from aiormq.exceptions import AMQPChannelError

from atasks.event_loop import ends_turn
from atasks.transport.backends.amqp.broker.errors import CLIENT_ERRORS
from atasks.transport.backends.amqp.broker.link import Link
from atasks.transport.backends.amqp.broker.outgoing import Outgoing
from atasks.transport.backends.amqp.broker.publisher import Publisher
from atasks.transport.backends.amqp.broker.refusals import Refusal
from atasks.transport.backends.amqp.broker.topology import CHANNEL_ADDRESS

if TYPE_CHECKING:
    from atasks.transport.backends.amqp.seals import Seals

__all__ = ["Outbox"]

logger = logging.getLogger("atasks.amqp")

MAX_UNCONFIRMED: Final = 1000
"""The client library scans what is unconfirmed on each confirm of many."""
MAX_BYTES: Final = 32 * 2**20
"""Bytes that may wait here; past it, `room` makes callers wait."""


class Outbox:
    """Sends messages over the link that is attached, and keeps them while none is.

    Nothing waits for a confirm before the next message leaves; at most `MAX_UNCONFIRMED` are unconfirmed. If the
    broker closes a channel over a message and does not say which, those that are unconfirmed are sent once more
    and one by one, so that the one which closes a channel again is known.
    """

    def __init__(
        self,
        limited: Callable[[int], None] = lambda size: None,
        seals: Seals | None = None,
        muted: Callable[[Refusal], bool] = lambda refusal: False,
    ) -> None:
        """`limited(size)` is called when the broker has said how many bytes a message may have, and
        `muted(refusal)` when this user may not write to the default exchange: it tells whether the link ends.
        `seals` seal what leaves; None: it leaves as it is."""
        self._seals = seals
        self._muted = muted
        self.limit = sys.maxsize
        """Bytes that a message may have: a larger one is rejected unsent."""
        self._limited = limited
        self._link: Link | None = None
        self._reopening: asyncio.Task[None] | None = None
        self._waiting: deque[Outgoing] = deque()
        self._suspects: deque[Outgoing] = deque()
        """The broker closed a channel over one of these: each is sent alone, before what waits."""
        self._alone: Outgoing | None = None
        """The one of them that is under way."""
        self._unconfirmed: dict[int, Outgoing] = {}
        """By identity, in the order in which they were sent."""
        self._publisher: Publisher | None = None
        self._bytes = 0
        self._scheduled = False
        self._wanting_room: deque[asyncio.Future[None]] = deque()
        self._idle: asyncio.Event | None = None
        """Set when nothing waits and nothing is unconfirmed; None: nobody waits for that."""

    def put(self, message: Outgoing) -> None:
        """Send it at the end of this turn of the event loop, after what was put before."""
        self._bytes += message.size
        self._waiting.append(message)
        if not self._scheduled:
            self._scheduled = True
            asyncio.get_running_loop().call_soon(self._pump)

    @property
    def sends_at_once(self) -> bool:
        """True if nothing waits here, and nothing else is to run in this turn of the event loop that could put
        more."""
        free = (
            not (self._scheduled or self._waiting or self._suspects) and len(self._unconfirmed) < MAX_UNCONFIRMED
        )
        return free and self._publisher is not None and self._alone is None and ends_turn()

    def put_now(self, message: Outgoing) -> None:
        """Send it at once, after what was put before."""
        self._bytes += message.size
        self._waiting.append(message)
        self._pump()

    def put_alone(self, message: Outgoing) -> None:
        """Send it when nothing else is under way: the broker may close the channel over it."""
        self._bytes += message.size
        self._suspects.append(message)
        self._pump()

    def grew(self, size: int) -> None:
        """A message that waits here has grown by so many bytes."""
        self._bytes += size

    def attach(self, link: Link) -> None:
        """Send over this link from now on."""
        self._link = link
        link.on_refusal = self._on_refusal
        self._publisher = Publisher(link.publish, self._ended, self._seals)
        self._pump()

    def detach(self) -> None:
        """The link is gone: what is unconfirmed is lost; what may be sent again waits for the next one."""
        self._link = None
        if self._reopening is not None:
            self._reopening.cancel()
        alone = self._alone
        again = [message for message in self._withdraw() if message.lost()]
        self._bytes += sum(message.size for message in again)
        (self._waiting if alone is None else self._suspects).extendleft(reversed(again))
        self._settled()

    def _on_refusal(self, error: AMQPChannelError) -> None:
        """The broker has closed the channel over a message: this one ends, and the others leave by the next
        channel."""
        link = self._link
        if link is None:
            return
        refusal = Refusal.of(error)
        if refusal.exchange == "" and self._muted(refusal):
            return
        logger.warning("the broker closed a channel over a message: %s", refusal.reason)
        if refusal.limit is not None and refusal.limit < self.limit:
            self.limit = refusal.limit
            self._limited(refusal.limit)
        self._blame(refusal)
        self._reopening = asyncio.get_running_loop().create_task(self._reopen(link), name="atasks channel")

    async def _reopen(self, link: Link) -> None:
        try:
            await link.open_publish()
        except CLIENT_ERRORS as error:
            link.lose(f"no channel can be opened: {error}")
        else:
            if link is self._link:
                self.attach(link)

    def _blame(self, refusal: Refusal) -> None:
        """The broker has closed the channel over one of the messages that are unconfirmed. It took what left
        before that one, and nothing that left after it."""
        unconfirmed = self._withdraw()
        guilty = unconfirmed if len(unconfirmed) == 1 else [item for item in unconfirmed if refusal.concerns(item)]
        if guilty:
            first = unconfirmed.index(guilty[0])
            again = [message for message in unconfirmed[:first] if message.stranded(True)]
            again += [message for message in unconfirmed[first:] if message not in guilty]
            self._waiting.extendleft(reversed(again))
        else:
            again = [message for message in unconfirmed if message.stranded(False)]
            self._suspects.extend(again)
        self._bytes += sum(message.size for message in (*again, *guilty))
        for message in guilty:
            self._reject(message, refusal)
        self._settled()

    def _withdraw(self) -> list[Outgoing]:
        """Take back and return all unconfirmed messages, which count no longer."""
        if self._publisher is not None:
            self._publisher.close()
            self._publisher = None
        unconfirmed, self._unconfirmed, self._alone = list(self._unconfirmed.values()), {}, None
        self._bytes -= sum(message.size for message in unconfirmed)
        return unconfirmed

    def room(self) -> asyncio.Future[None] | None:
        """Return a future to await before asking again; None: there is room."""
        if self._bytes < MAX_BYTES:
            return None
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._wanting_room.append(waiter)
        return waiter

    async def flushed(self) -> None:
        """Return when nothing waits and nothing is unconfirmed."""
        if len(self):
            idle = self._idle = self._idle or asyncio.Event()
            await idle.wait()

    def __len__(self) -> int:
        return len(self._waiting) + len(self._suspects) + len(self._unconfirmed)

    def _pump(self) -> None:
        self._scheduled = False
        publisher = self._publisher
        if publisher is None or self._alone is not None:
            return
        if self._suspects:
            if self._unconfirmed:
                return
            waiting, most = self._suspects, 1
        else:
            waiting, most = self._waiting, MAX_UNCONFIRMED
        leaving: list[Outgoing] = []
        while waiting and len(self._unconfirmed) < most:
            message = waiting.popleft()
            try:
                wanted = message.prepare()
            except Exception as error:
                self._reject(message, _unwritable(error))
                continue
            if not wanted:
                self._bytes -= message.size
            elif len(message.body) > self.limit:
                self._reject(message, Refusal("it is too large", limit=self.limit))
            elif message.routing_key.startswith(CHANNEL_ADDRESS):
                # It would cost this connection, and the next ones.
                self._end_soon(message, message.returned if message.mandatory else message.confirmed)
            else:
                self._unconfirmed[id(message)] = message
                leaving.append(message)
        if most == 1 and leaving:
            self._alone = leaving[0]
        for message, reason in publisher.publish(leaving):
            self._reject(message, _unwritable(reason))
        if self._wanting_room or self._idle is not None:
            self._settled()

    def _reject(self, message: Outgoing, refusal: Refusal) -> None:
        """Have it end as one that cannot be sent, in the next turn of the event loop."""
        self._end_soon(message, partial(message.rejected, refusal))

    def _end_soon(self, message: Outgoing, ending: Callable[[], None]) -> None:
        self._unconfirmed[id(message)] = message
        asyncio.get_running_loop().call_soon(self._ended, message, ending)

    def _ended(self, message: Outgoing, ending: Callable[[], None]) -> None:
        if self._unconfirmed.pop(id(message), None) is None:
            return  # it was declared lost before its confirm arrived here
        if message is self._alone:
            self._alone = None
        self._bytes -= message.size
        ending()
        if self._waiting or self._suspects:
            self._pump()
        elif self._wanting_room or self._idle is not None:
            self._settled()

    def _settled(self) -> None:
        if self._wanting_room and self._bytes < MAX_BYTES // 2:
            waiting, self._wanting_room = self._wanting_room, deque()
            for waiter in waiting:  # each looks again, and those that find no room wait again
                if not waiter.done():
                    waiter.set_result(None)
        if self._idle is not None and not len(self):
            self._idle.set()
            self._idle = None


def _unwritable(error: Exception) -> Refusal:
    return Refusal(f"it cannot be written: {type(error).__name__}")
