"""The channels of a link for declarations, over each of which one is made at a time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Final

from aiormq.channel import Channel
from pamqp.base import Frame
from pamqp.frame import marshal

from atasks.transport.backends.amqp.broker.frames import FrameWriter, takes_frames
from atasks.transport.backends.amqp.broker.questions import (
    close_quietly,
    guard,
    refused_with_reason,
    shielded,
    together,
)

__all__ = ["SPARES", "Begun", "Spares", "written"]

Begun = tuple[Channel, FrameWriter]
"""A channel that is in use, and what writes over it."""

SPARES: Final = 8
"""Channels for declarations. The broker answers that of something durable when it is on its disk, and writes what
comes over several channels at once."""


class Spares:
    """Channels for declarations: opened when they are needed, or ahead of that, and kept, eight at most."""

    def __init__(self, open_channel: Callable[[], Awaitable[Channel]]) -> None:
        self._open_channel = open_channel
        self._channels: list[Channel] = []
        """Those that nothing is declared over just now."""
        self._are_added = False
        """True while more of them are opened ahead of their use."""
        self._declaring = asyncio.Semaphore(SPARES)

    def has(self, number: int) -> bool:
        """Return True if so many declarations can leave at once. False: they can soon, as a rule."""
        if self._declaring.locked():
            return False
        self._channels = [spare for spare in self._channels if takes_frames(spare)]
        missing = number - len(self._channels)
        if missing > 0:
            self.add(missing)
        return missing <= 0

    def add(self, number: int) -> None:
        """Open so many channels ahead of their use, unless some are being opened. Not waited for."""
        if not self._are_added:
            self._are_added = True
            shielded(self._add(number))

    async def _add(self, number: int) -> None:
        try:
            await together(*(self._add_one() for _ in range(number)))
        finally:
            self._are_added = False

    async def _add_one(self) -> None:
        self._channels.append(await self._open_channel())

    def begin(self, frames: Sequence[Frame]) -> Begun | None:
        """Write frames over a channel that is at hand, for `behind`. None: there is none."""
        if self._declaring.locked() or not (self._channels and takes_frames(self._channels[-1])):
            return None
        channel = self._channels.pop()
        return channel, written(frames, channel)

    @asynccontextmanager
    async def behind(self, frames: Sequence[Frame], begun: Begun | None) -> AsyncIterator[Channel]:
        """A channel over which these frames have left, none of which the broker answers. It takes what comes over
        a channel in its order; where it refuses something, it closes the channel, and does nothing that comes
        behind."""
        async with self.one(begun and begun[0]) as channel:
            await guard((written(frames, channel) if begun is None else begun[1]).flushed())
            yield channel

    @asynccontextmanager
    async def one(self, channel: Channel | None = None) -> AsyncIterator[Channel]:
        """A channel for a declaration, or this one: the broker closes that of one which it refuses."""
        async with self._declaring:
            if channel is None:
                self._channels = [spare for spare in self._channels if not spare.is_closed]
                channel = self._channels.pop() if self._channels else await self._open_channel()
            try:
                async with refused_with_reason(channel):
                    yield channel
            except BaseException:  # it may wait for the broker's answer still
                shielded(close_quietly(channel))
                raise
            if len(self._channels) < SPARES:
                self._channels.append(channel)
            else:
                shielded(close_quietly(channel))


def written(frames: Sequence[Frame], channel: Channel) -> FrameWriter:
    """Write frames over a channel, in their order, and return what tells when they have left."""
    writer = FrameWriter(channel)
    writer.write([marshal(frame, channel.number) for frame in frames])
    return writer
