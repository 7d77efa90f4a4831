"""The tokens that this process takes from one queue of tokens.

A token that is held is a delivery that is not acknowledged. So it goes back by itself, when its holder dies. None
should lie here while somebody waits elsewhere: the broker sends as many as there are waiters, and the consumer
ends with the last of them. There is one consumer at a time, since the broker serves consumers in turns: a process
with two would have two turns where others have one. So one that is to get more tokens ends, and another one takes
its place.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections import OrderedDict
from datetime import datetime
from typing import Any, Final

from aiormq.abc import DeliveredMessage
from aiormq.channel import Channel
from pamqp.common import FieldTable

from atasks.transport.backends.amqp.broker.acks import ACK, BASIC, END, FRAME, METHOD, REJECT, SIZE
from atasks.transport.backends.amqp.broker.errors import CLIENT_ERRORS
from atasks.transport.backends.amqp.broker.frames import FrameWriter
from atasks.transport.backends.amqp.broker.questions import close_channel, guard, shielded

__all__ = ["TOKEN", "HeldToken", "TokenChannel", "TokenQueue", "is_token"]

TOKEN: Final = "token"
"""The `message_id` of a token."""
DEATH: Final[dict[str, type]] = {
    "count": int,
    "reason": str,
    "queue": str,
    "time": datetime,
    "exchange": str,
    "routing-keys": list,
}
"""The fields of what the broker notes of a token that was spent."""
MAX_PREFETCH: Final = 65_535
RENEWING_PRIORITY: Final = 10
"""That of a consumer which takes a token in the place of one that is given back: it goes before others."""
RENEW_PATIENCE: Final = 0.2
"""Seconds to wait for a token before one's own is given back to be taken again."""


def is_token(message: DeliveredMessage) -> bool:
    """Return False for what strangers have put among the tokens. A token that is spent is moved by the broker, and
    RabbitMQ 3.10 loses the queue and closes connections over some headers of a message that it moves."""
    known = message.header.properties
    if known.message_id != TOKEN or message.body:
        return False
    headers: Any = known.headers or {}
    deaths = headers.get("x-death", [])
    return isinstance(deaths, list) and all(_is_death(death) for death in deaths)


def _is_death(death: Any) -> bool:
    return isinstance(death, dict) and all(isinstance(death.get(name), kind) for name, kind in DEATH.items())


class TokenChannel:
    """The channel over which the tokens of one limit come and go."""

    def __init__(self, channel: Channel) -> None:
        self.channel = channel
        self._writer = FrameWriter(channel)
        self._prefetch = -1
        self._lock = asyncio.Lock()
        self._ends = False
        self.number = itertools.count(1).__next__
        """A number that no consumer of it has."""

    @property
    def is_open(self) -> bool:
        """The tokens that came by this channel are still held."""
        return not (self._ends or self.channel.is_closed)

    def reject(self, tag: int, requeue: bool) -> None:
        """Give a token back, or spend it."""
        if self.is_open:
            self._writer.write([FRAME(METHOD, self.channel.number, SIZE, BASIC, REJECT, tag, requeue, END)])

    def drop(self, tag: int) -> None:
        """Take a message from its queue for good."""
        if self.is_open:
            self._writer.write([FRAME(METHOD, self.channel.number, SIZE, BASIC, ACK, tag, 0, END)])

    async def consume(self, queue: TokenQueue, tag: str, prefetch: int, priority: int = 0) -> None:
        """Take up to so many tokens. A channel has one prefetch, which its next consumers take over."""
        async with self._lock:
            if prefetch != self._prefetch:
                self._prefetch = -1
                await guard(self.channel.basic_qos(prefetch_count=prefetch))
                self._prefetch = prefetch
            arguments: FieldTable = {"x-priority": priority} if priority else {}
            await guard(
                shielded(
                    self.channel.basic_consume(queue.name, queue.on_message, consumer_tag=tag, arguments=arguments)
                )
            )

    async def cancel(self, tag: str) -> None:
        """Take no more, when the broker says so."""
        await guard(shielded(self.channel.basic_cancel(tag)))

    def close(self) -> None:
        """Nothing more is said over it: the broker takes a word behind the last one amiss."""
        self._ends = True
        self._writer.close()

    async def end(self) -> None:
        """Give up a channel that failed in the middle of something: held tokens go back, and are taken anew
        over another one."""
        self.close()
        with contextlib.suppress(*CLIENT_ERRORS):
            await close_channel(self.channel)


class HeldToken:
    """A token in this process."""

    __slots__ = ("_tag", "channel", "consumer", "queue", "since")

    def __init__(self, queue: TokenQueue, channel: TokenChannel, tag: int, consumer: str, since: float) -> None:
        self.queue = queue
        self.channel = channel
        self._tag = tag
        self.consumer = consumer
        self.since = since

    @property
    def is_held(self) -> bool:
        """The token was neither lost with its channel, nor given back."""
        return self._tag > 0 and self.channel.is_open

    def give_back(self) -> None:
        """Let others have it."""
        self._reject(True)

    def spend(self) -> None:
        """Spend the token: it comes back after a period."""
        self._reject(False)

    async def destroy(self) -> None:
        """Let nobody have it any more. Raises one of CLIENT_ERRORS if it went back with its channel."""
        tag, self._tag = self._tag, 0
        self.queue.parted(self)
        if tag and self.channel.is_open:
            await guard(self.channel.channel.basic_ack(tag))
            self.queue.returned(self)

    def _reject(self, requeue: bool) -> None:
        tag, self._tag = self._tag, 0
        self.queue.parted(self)
        if tag:
            self._return(tag, requeue)

    def _return(self, tag: int, requeue: bool) -> None:
        self.channel.reject(tag, requeue)
        self.queue.returned(self)

    def lend(self) -> None:
        """Give it back, to have it again at once by another consumer."""
        tag, self._tag = self._tag, 0
        self._return(tag, True)

    def adopt(self, other: HeldToken) -> None:
        """Give this one back, unless that was done, and hold that one instead."""
        if self._tag:
            self.lend()
        self._tag, other._tag = other._tag, 0
        self.consumer, self.since = other.consumer, other.since


class TokenQueue:
    """Takes tokens from one queue, for those who wait, in their order."""

    def __init__(self, name: str, most: int) -> None:
        self.name = name
        self._most = min(most + 1, MAX_PREFETCH)
        """The most tokens to ask for: one more than there are, so a consumer that has them all may get more."""
        self._waiting: OrderedDict[asyncio.Future[HeldToken], None] = OrderedDict()
        self._channel: TokenChannel | None = None
        self._consumer = ""
        """The tag of the consumer that takes tokens; empty: there is none."""
        self._asked = 0
        """The most tokens that it may have at a time."""
        self._live = 0
        """The number of tokens that the broker may still send to it."""
        self._spare: list[HeldToken] = []
        """Tokens for which nobody waits any more."""
        self._held: set[HeldToken] = set()
        self._adapting: asyncio.Task[None] | None = None
        self._renewing: dict[str, asyncio.Future[HeldToken]] = {}

    @property
    def in_use(self) -> bool:
        """Somebody waits for a token, or holds one."""
        return bool(self._waiting or self._held)

    def attach(self, channel: TokenChannel) -> None:
        """Take tokens over this channel from now on."""
        self.detach()
        self._channel = channel
        self._adapt_soon()

    def detach(self) -> None:
        """The channel is gone, and with it all tokens that are here."""
        self._channel = None
        self._consumer = ""
        self._spare.clear()
        self._held.clear()
        for future in self._renewing.values():
            future.cancel()
        self._renewing.clear()

    def fail(self, error: Exception) -> None:
        """End every wait with this error."""
        waiting, self._waiting = self._waiting, OrderedDict()
        for future in waiting:
            if not future.done():
                future.set_exception(error)

    async def close(self) -> None:
        """Return when nothing runs here any more."""
        self.detach()
        if self._adapting is not None:
            self._adapting.cancel()
            await asyncio.wait((self._adapting,))

    async def take(self) -> HeldToken:
        """The next token. Cancelling it costs none."""
        future: asyncio.Future[HeldToken] = asyncio.get_running_loop().create_future()
        self._waiting[future] = None
        self._adapt_soon()
        try:
            return await future
        except asyncio.CancelledError:
            if future.done() and not future.cancelled() and future.exception() is None:
                future.result().give_back()
            else:
                self._waiting.pop(future, None)
            self._adapt_soon()
            raise

    async def take_away(self) -> None:
        """Take the next token, and have it be one less."""
        token = await self.take()
        await token.destroy()

    async def on_message(self, message: DeliveredMessage) -> None:
        """A token has come."""
        channel = self._channel
        if channel is None or message.channel is not channel.channel:
            return  # the broker took the token back with its channel
        if not is_token(message):
            channel.drop(message.delivery_tag or 0)
            return  # the broker sends another message in its place
        consumer = message.consumer_tag or ""
        now = asyncio.get_running_loop().time()
        token = HeldToken(self, channel, message.delivery_tag or 0, consumer, now)
        renewing = self._renewing.pop(consumer, None)
        if renewing is not None:
            renewing.set_result(token)
            return
        if consumer == self._consumer:
            self._live -= 1
            if not self._live and self._asked == self._most:  # a younger declaration has made it more
                self._most = min(2 * self._most, MAX_PREFETCH)
        self._spare.append(token)
        self._hand_out()
        if self._is_off():
            self._adapt_soon()

    def _hand_out(self) -> None:
        while self._spare and self._waiting:
            future, _ = self._waiting.popitem(last=False)
            if not future.done():
                token = self._spare.pop()
                self._held.add(token)
                future.set_result(token)

    def parted(self, token: HeldToken) -> None:
        """Nobody here wants it any more."""
        self._held.discard(token)

    def returned(self, token: HeldToken) -> None:
        """Count a token that was given back, or spent: the broker may send another one in its place."""
        if token.channel is self._channel and token.consumer == self._consumer:
            self._live += 1

    def _adapt_soon(self) -> None:
        """Have as many tokens sent as there are waiters by the next turn of the loop."""
        if self._adapting is None and self._channel is not None:
            self._adapting = asyncio.get_running_loop().create_task(self._adapt(), name="atasks limit")
            self._adapting.add_done_callback(self._adapted)

    def _adapted(self, task: asyncio.Task[None]) -> None:
        self._adapting = None
        if not task.cancelled() and task.exception() is None and self._is_off():
            self._adapt_soon()

    def _is_off(self) -> bool:
        return bool(self._spare) or (self._has_to_end() if self._consumer else bool(self._waiting))

    def _has_to_end(self) -> bool:
        """The consumer would send more tokens than are wanted, or too few."""
        too_few = self._live < len(self._waiting) and self._asked < self._most
        return bool(self._spare) or not self._waiting or too_few

    async def _adapt(self) -> None:
        while (channel := self._channel) is not None and channel.is_open:
            self._hand_out()
            try:
                if self._consumer and self._has_to_end():
                    tag, self._consumer = self._consumer, ""
                    await channel.cancel(tag)
                elif self._spare:
                    spare, self._spare = self._spare, []
                    for token in spare:
                        token.give_back()
                elif self._waiting and not self._consumer:
                    await self._consume(channel, min(len(self._waiting), self._most))
                else:
                    return
            except CLIENT_ERRORS:
                await channel.end()
                return

    async def _consume(self, channel: TokenChannel, count: int) -> None:
        # Tokens may come before it is known that they do.
        self._consumer, self._asked, self._live = f"tokens-{channel.number()}", count, count
        await channel.consume(self, self._consumer, count)

    async def renew(self, age: float) -> None:
        """Exchange the tokens that have been held for so many seconds for others: the broker waits for an
        acknowledgement for a bounded time. At no time has anybody else what is held here."""
        now = asyncio.get_running_loop().time()
        for token in list(self._held):
            channel = self._channel
            if channel is None or not channel.is_open:
                return
            if token.is_held and now - token.since >= age:
                try:
                    await self._exchange(channel, token)
                except CLIENT_ERRORS:
                    await channel.end()
                    return

    async def _exchange(self, channel: TokenChannel, token: HeldToken) -> None:
        tag = f"renew-{channel.number()}"
        coming: asyncio.Future[HeldToken] = asyncio.get_running_loop().create_future()
        self._renewing[tag] = coming
        await channel.consume(self, tag, 1, RENEWING_PRIORITY)
        await asyncio.wait((coming,), timeout=RENEW_PATIENCE)
        if not coming.done() and token.is_held:
            token.lend()  # all others are held: it goes to the consumer of the highest priority
            await asyncio.wait((coming,), timeout=2 * RENEW_PATIENCE + 5.0)
        await channel.cancel(tag)
        self._renewing.pop(tag, None)
        if not coming.done() or coming.cancelled():
            return
        fresh = coming.result()
        if token in self._held:
            token.adopt(fresh)
        else:  # it was given back meanwhile
            fresh.give_back()
