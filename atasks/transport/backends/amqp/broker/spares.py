"""The channels of a link for declarations, over each of which one is made at a time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from contextvars import Context
from typing import Any, Final

from aiormq.channel import Channel
from pamqp.base import Frame
from pamqp.commands import Basic, Queue
from pamqp.frame import marshal

from atasks.transport.backends.amqp.broker.direct import DirectChannel
from atasks.transport.backends.amqp.broker.frames import FrameWriter, takes_frames
from atasks.transport.backends.amqp.broker.questions import (
    close_quietly,
    guard,
    refused_with_reason,
    shielded,
    together,
)

__all__ = ["SPARES", "Begun", "Spare", "Spares", "written"]

Begun = tuple["Spare", Awaitable[Frame]]
"""A channel that is in use, and the answer that is to come over it."""

SPARES: Final = 8
"""Channels for declarations. The broker answers that of something durable when it is on its disk, and writes what
comes over several channels at once."""
ANSWERS: Final[dict[type[Frame], type[Frame]]] = {
    Basic.Qos: Basic.QosOk,
    Queue.Declare: Queue.DeclareOk,
    Queue.Delete: Queue.DeleteOk,
}


class Spare:
    """A channel whose answers are read where their bytes arrive: the client library would take two tasks, two
    queues and five turns of the event loop for each."""

    def __init__(self, channel: Channel, direct: DirectChannel | None) -> None:
        """`direct` reads the channel; None: the client library does."""
        self.channel = channel
        self._direct = direct
        self._waiting: asyncio.Future[bytes] | None = None
        if direct is not None:
            # In a context of its own: that of the call which needs the channel first would keep the payload, as
            # long as the channel is open.
            Context().run(lambda: channel.closing.add_done_callback(self._on_closed))

    def ask(self, *frames: Frame, leaving: list[bytes] | None = None) -> Awaitable[Frame]:
        """Write frames over the channel, or put them into `leaving`, for whoever writes that. Returns the answer
        to the last one, which alone has one, of `ANSWERS`. The broker takes what comes over a channel in its
        order; where it refuses something, it closes the channel, and does nothing that comes behind."""
        *before, last = frames
        if self._direct is None or self.channel.is_closed:
            return self._by_library(written(before, self.channel), last)
        kind = ANSWERS[type(last)]
        self._waiting = self._direct.answer(kind.index)
        if leaving is None:
            written(frames, self.channel)
        else:
            leaving += _marshalled(frames, self.channel)
        return self._answer(self._waiting, kind())

    async def _answer(self, waiting: asyncio.Future[bytes], answer: Frame) -> Frame:
        answer.unmarshal(await waiting)
        return answer

    async def _by_library(self, writer: FrameWriter, last: Frame) -> Frame:
        await writer.flushed()
        answer = await self.channel.rpc(last)
        assert isinstance(answer, Frame)
        return answer

    def _on_closed(self, closing: asyncio.Future[Any]) -> None:
        error = None if closing.cancelled() else closing.exception()
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_exception(error or ConnectionError("the connection to the broker was lost"))


class Spares:
    """Channels for declarations: opened when they are needed, or ahead of that, and kept, eight at most."""

    def __init__(self, open_channel: Callable[[], Awaitable[Spare]]) -> None:
        self._open_channel = open_channel
        self._channels: list[Spare] = []
        """Those that nothing is declared over just now."""
        self._are_added = False
        """True while more of them are opened ahead of their use."""
        self._declaring = asyncio.Semaphore(SPARES)

    def has(self, number: int) -> bool:
        """Return True if so many declarations can leave at once. False: they can soon, as a rule."""
        if self._declaring.locked():
            return False
        self._channels = [spare for spare in self._channels if takes_frames(spare.channel)]
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

    def begin(self, *questions: Sequence[Frame]) -> list[Begun] | None:
        """Ask over as many channels, for `answer`: what is asked leaves before this returns, in one write, unless
        other frames wait to leave. None: there are not as many at hand, or others wait for them."""
        if not self.has(len(questions)):
            return None
        spares = [self._channels.pop() for _ in questions]
        leaving: list[bytes] = []
        begun = [
            (spare, spare.ask(*frames, leaving=leaving)) for spare, frames in zip(spares, questions, strict=True)
        ]
        if leaving:
            FrameWriter(spares[0].channel).write(leaving)
        return begun

    async def answer(self, frames: Sequence[Frame], begun: Begun | None = None) -> Frame:
        """The answer to the last of these frames, as `Spare.ask`. `begun`: they have left."""
        async with self.one(begun and begun[0]) as spare:
            return await guard(shielded(spare.ask(*frames) if begun is None else begun[1]))

    @asynccontextmanager
    async def one(self, spare: Spare | None = None) -> AsyncIterator[Spare]:
        """A channel for a declaration, or this one: the broker closes that of one which it refuses."""
        async with self._declaring:
            if spare is None:
                self._channels = [spare for spare in self._channels if not spare.channel.is_closed]
                spare = self._channels.pop() if self._channels else await self._open_channel()
            try:
                async with refused_with_reason(spare.channel):
                    yield spare
            except BaseException:  # it may wait for the broker's answer still
                shielded(close_quietly(spare.channel))
                raise
            if len(self._channels) < SPARES:
                self._channels.append(spare)
            else:
                shielded(close_quietly(spare.channel))


def written(frames: Sequence[Frame], channel: Channel) -> FrameWriter:
    """Write frames over a channel, in their order, and return what tells when they have left."""
    writer = FrameWriter(channel)
    writer.write(_marshalled(frames, channel))
    return writer


def _marshalled(frames: Sequence[Frame], channel: Channel) -> list[bytes]:
    return [marshal(frame, channel.number) for frame in frames]
