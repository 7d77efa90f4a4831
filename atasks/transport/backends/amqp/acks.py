"""Acknowledgements of one channel, sent together at the end of a turn of the event loop."""

from __future__ import annotations

import asyncio
from bisect import bisect_right

from aiormq.channel import Channel
from pamqp import frame
from pamqp.commands import Basic

from atasks.transport.backends.amqp.frames import FrameWriter

__all__ = ["Acks"]


class Acks:
    """Acknowledges deliveries of one channel, in as few frames as their order allows.

    Never waits and never raises: if the channel is gone, the broker delivers again, on another one.
    """

    def __init__(self, channel: Channel) -> None:
        self.channel = channel
        self._writer = FrameWriter(channel)
        self._scheduled = False
        self._done: list[int] = []
        self._rejected: list[tuple[int, bool]] = []
        self._below = 0
        """Every tag up to this one was acknowledged or rejected."""
        self._above: set[int] = set()
        """Those above it that were."""

    def ack(self, tag: int) -> None:
        """The delivery of this tag has been dealt with."""
        self._done.append(tag)
        self._schedule()

    def reject(self, tag: int) -> None:
        """Dead-letter the delivery of this tag."""
        self._rejected.append((tag, False))
        self._schedule()

    def requeue(self, tag: int) -> None:
        """Return the delivery of this tag to its queue."""
        self._rejected.append((tag, True))
        self._schedule()

    async def flushed(self) -> None:
        """Return when the client library has taken every acknowledgement."""
        self._flush()
        await self._writer.flushed()

    def close(self) -> None:
        """The channel is gone."""
        self._writer.close()

    def _schedule(self) -> None:
        if not self._scheduled:
            self._scheduled = True
            asyncio.get_running_loop().call_soon(self._flush)

    def _flush(self) -> None:
        self._scheduled = False
        done, self._done = self._done, []
        rejected, self._rejected = self._rejected, []
        frames: list[Basic.Ack | Basic.Reject] = [Basic.Reject(tag, requeue) for tag, requeue in rejected]
        done.sort()
        self._above.update(done, (tag for tag, _ in rejected))
        while self._below + 1 in self._above:
            self._below += 1
            self._above.remove(self._below)
        together = bisect_right(done, self._below)
        if together:  # everything below was acknowledged or rejected before, or is acknowledged now
            frames.append(Basic.Ack(done[together - 1], multiple=True))
        frames += [Basic.Ack(tag) for tag in done[together:]]
        if frames and not self.channel.is_closed:
            self._writer.write([frame.marshal(item, self.channel.number) for item in frames])
