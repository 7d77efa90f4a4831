"""Acknowledgements of one channel, sent together at the end of a turn of the event loop."""

from __future__ import annotations

import asyncio
from bisect import bisect_right
from struct import Struct
from typing import Final

from aiormq.channel import Channel

from atasks.transport.backends.amqp.broker.frames import FrameWriter

__all__ = ["TOGETHER", "Acks"]

FRAME: Final = Struct(">BHIHHQBB").pack
"""Type, channel, size, class, method, delivery tag, a bit and the end of a frame (AMQP 0-9-1, section 2.3.5). The
client library needs some thirty calls for one, and each message that arrives is acknowledged."""
METHOD, SIZE, BASIC, END = 1, 13, 60, 0xCE
ACK, REJECT = 80, 90
"""Bits of an acknowledgement: ACK settles everything up to its tag, REJECT puts one message back into the
queue."""

TOGETHER: Final = 16
"""Deliveries that are acknowledged at once, where a few may wait for others."""
NEAR: Final = 1000
"""Deliveries that are open before an acknowledgement is held back."""
HELD_SECONDS: Final = 0.5
SLOWEST: Final = 240
"""One in so many of those that are held back leaves each time, whatever it costs the broker: half of them within a
minute and a half."""
STEPS: Final = 100_000
"""Open deliveries that RabbitMQ may step over for what was held back, each time: a tenth of what its process of
one queue can do meanwhile. Acknowledgements come before deliveries there, so one that is busy with them delivers
nothing."""


class Acks:
    """Acknowledges deliveries of one channel, in as few frames as their order allows.

    RabbitMQ looks for a delivery from the oldest one on that is open, and does nothing else for the channel
    meanwhile. Where calls wait for calls thousands deep, the youngest are done first, and to acknowledge each at
    once would keep it busy for seconds. So those for which nothing waits are held back where many are open: most
    of them leave with the older ones, in one frame, and the others a few at a time.

    Never waits and never raises: if the channel is gone, the broker delivers again, on another one.
    """

    def __init__(self, channel: Channel, patience: float = 0.0) -> None:
        """`patience`: seconds for which up to `TOGETHER` acknowledgements may wait for each other; 0: until this
        turn of the event loop ends."""
        self.channel = channel
        self._patience = patience
        self._writer = FrameWriter(channel)
        self._scheduled = False
        self._done: list[int] = []
        self._late: list[int] = []
        self._requeued: list[int] = []
        self._highest = 0
        """The last tag of which something was said."""
        self._below = 0
        """Every tag up to this one was acknowledged or given back."""
        self._above: set[int] = set()
        """Those above it that were."""
        self._held: list[int] = []
        """Those above it whose acknowledgement was not sent."""
        self._timer: asyncio.TimerHandle | None = None
        self._waiting: asyncio.TimerHandle | None = None
        """Until when acknowledgements wait for others."""

    def ack(self, tag: int, *, late: bool = False, now: bool = False) -> None:
        """The delivery of this tag has been dealt with. Late: it makes room in no window, and may be held back.
        Now: it waits for no others."""
        (self._late if late else self._done).append(tag)
        if now or self._waiting is None or len(self._done) >= TOGETHER:
            self._schedule(now)

    def requeue(self, tag: int) -> None:
        """Return the delivery of this tag to its queue."""
        self._requeued.append(tag)
        self._schedule(now=True)

    async def flushed(self) -> None:
        """Return when the client library has taken every acknowledgement."""
        self._flush()
        self._write(self._release(len(self._held)))
        await self._writer.flushed()

    def close(self) -> None:
        """The channel is gone."""
        for timer in (self._timer, self._waiting):
            if timer is not None:
                timer.cancel()
        self._timer = self._waiting = None
        self._held.clear()
        self._writer.close()

    def _schedule(self, now: bool) -> None:
        if self._patience and not now and len(self._done) < TOGETHER:
            if self._waiting is None:
                self._waiting = asyncio.get_running_loop().call_later(self._patience, self._flush)
        elif not self._scheduled:
            self._scheduled = True
            asyncio.get_running_loop().call_soon(self._flush)

    def _flush(self) -> None:
        self._scheduled = False
        if self._waiting is not None:
            self._waiting.cancel()
            self._waiting = None
        done, self._done = self._done, []
        if done == [self._highest + 1] and self._below == self._highest and not (self._late or self._requeued):
            self._highest = self._below = done[0]  # the only one that is open, as most are
            self._write([FRAME(METHOD, self.channel.number, SIZE, BASIC, ACK, done[0], False, END)])
            return
        late, self._late = self._late, []
        requeued, self._requeued = self._requeued, []
        frames = [self._frame(REJECT, tag, True) for tag in requeued]
        said = [*done, *late, *requeued]
        self._above.update(said)
        self._highest = max(self._highest, *said, 0)
        while self._below + 1 in self._above:
            self._below += 1
            self._above.remove(self._below)
        held = self._held
        if late:
            held += late
            held.sort()
        done.sort()
        now, before = bisect_right(done, self._below), bisect_right(held, self._below)
        if now or before:  # everything below was acknowledged or given back before, or is acknowledged now
            frames.append(self._frame(ACK, max(*done[:now][-1:], *held[:before][-1:], 0), True))
            del held[:before]
        frames += [self._frame(ACK, tag) for tag in done[now:]]
        if held:
            if self._open <= NEAR and self._open * len(held) <= STEPS:
                frames += self._release(len(held))
            elif self._timer is None:
                self._timer = asyncio.get_running_loop().call_later(HELD_SECONDS, self._let_go)
        self._write(frames)

    @property
    def _open(self) -> int:
        """Deliveries up to the highest tag that are neither acknowledged nor given back."""
        return self._highest - self._below - len(self._above)

    def _let_go(self) -> None:
        """Send some of what is held back."""
        self._timer = None
        self._write(self._release(max(1 + STEPS // max(1, self._open), len(self._held) // SLOWEST)))
        if self._held:
            self._timer = asyncio.get_running_loop().call_later(HELD_SECONDS, self._let_go)

    def _release(self, count: int) -> list[bytes]:
        """The oldest ones of what is held back."""
        released, self._held = self._held[:count], self._held[count:]
        return [self._frame(ACK, tag) for tag in released]

    def _frame(self, method: int, tag: int, bit: bool = False) -> bytes:
        return FRAME(METHOD, self.channel.number, SIZE, BASIC, method, tag, bit, END)

    def _write(self, frames: list[bytes]) -> None:
        if frames and not self.channel.is_closed:
            self._writer.write(frames)
