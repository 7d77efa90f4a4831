"""Acknowledgements of one channel, sent together at the end of a turn of the event loop."""

from __future__ import annotations

import asyncio

from aiormq.channel import Channel

from atasks.transport.backends.amqp.link import CLIENT_ERRORS

__all__ = ["Acks"]


class Acks:
    """Acknowledges deliveries of one channel, in as few frames as their order allows.

    Never waits and never raises: if the channel is gone, the broker delivers again, on another one.
    """

    def __init__(self, channel: Channel) -> None:
        self.channel = channel
        self._done: set[int] = set()
        self._rejected: list[tuple[int, bool]] = []
        self._below = 0
        """Every tag up to this one was acknowledged or rejected."""
        self._above: set[int] = set()
        """Those above it that were."""
        self._task: asyncio.Task[None] | None = None

    def ack(self, tag: int) -> None:
        """The delivery of this tag has been dealt with."""
        self._done.add(tag)
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._flush())

    def reject(self, tag: int) -> None:
        """Dead-letter the delivery of this tag."""
        self._rejected.append((tag, False))
        self.ack(0)

    def requeue(self, tag: int) -> None:
        """Return the delivery of this tag to its queue."""
        self._rejected.append((tag, True))
        self.ack(0)

    async def flushed(self) -> None:
        """Return when every acknowledgement was written."""
        while self._task is not None:
            await asyncio.wait([self._task])

    async def _flush(self) -> None:
        try:
            while self._done:
                done, self._done = self._done, set()
                await self._send(done)
        except (*CLIENT_ERRORS, asyncio.CancelledError):
            self._done.clear()
        finally:
            self._task = None

    async def _send(self, done: set[int]) -> None:
        rejected, self._rejected = self._rejected, []
        for tag, requeue in rejected:
            await self.channel.basic_reject(tag, requeue=requeue, wait=False)
        tags = sorted(done - {0})
        self._above.update(tags, (tag for tag, _ in rejected))
        while self._below + 1 in self._above:
            self._below += 1
            self._above.remove(self._below)
        together = [tag for tag in tags if tag <= self._below]
        if together:  # everything below was acknowledged, or is now
            await self.channel.basic_ack(together[-1], multiple=True, wait=False)
        for tag in tags[len(together) :]:
            await self.channel.basic_ack(tag, wait=False)
