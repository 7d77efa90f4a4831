"""Copies of calls that a worker has put back into a queue, until what they came by is gone."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING

from atasks.errands import Errands
from atasks.transport.backends.amqp.broker.errors import CLIENT_ERRORS
from atasks.transport.backends.amqp.broker.link import Link
from atasks.transport.backends.amqp.broker.questions import guard, shielded
from atasks.transport.backends.amqp.worker.consumer import Wait

if TYPE_CHECKING:
    from atasks.transport.backends.amqp.worker.request_message import RequestMessage
    from atasks.transport.backends.amqp.worker.station import Station

__all__ = ["Copies"]


class Copies:
    """The copies, from here, of calls that nobody awaits.

    What a copy came by is acknowledged when the broker has confirmed the copy, which it may deliver before that. A
    worker that died of the call in between would leave both, each time, and the call would kill more workers than
    it may. The caller of an awaited call lets one copy begin. Of other calls a worker that gets its own copy keeps
    it until the broker has heard of the acknowledgement.
    """

    def __init__(self, station: Station) -> None:
        self._station = station
        self.leaving: dict[str, asyncio.Task[None]] = {}
        """Id of a copy -> ends when what it came by is gone."""
        self._errands = Errands("atasks copy")

    def add(self, copy: str, request: RequestMessage) -> None:
        """A copy is on its way to the broker, in the place of `request`."""
        link = self._station.link
        if link is not None and self._station.is_kept(request.reply_to):
            self.leaving[copy] = self._errands.start(self._leave(copy, request, link))

    def keep(self, copy: RequestMessage, then: Callable[[], None]) -> None:
        """A copy has come that is leaving: call `then` when what it came by is gone, or its link is lost. (Then
        the broker delivers both again, to a worker that knows the call.)"""
        self._errands.start(self._keep(self.leaving[copy.copy], Wait(copy.consumer), then))

    async def ended(self) -> None:
        """Return when none is kept any more."""
        for errand in list(self._errands):
            await asyncio.wait([errand])

    async def _leave(self, copy: str, request: RequestMessage, link: Link) -> None:
        gone = asyncio.ensure_future(request.gone())
        try:
            await asyncio.wait((gone, link.lost), return_when=asyncio.FIRST_COMPLETED)
            if not link.lost.done():
                with suppress(*CLIENT_ERRORS):
                    await request.acks.flushed()
                    # The broker answers this in its turn, so it has heard of the acknowledgement then.
                    await guard(shielded(request.acks.channel.basic_cancel(f"none-{copy}")))
        finally:
            gone.cancel()
            del self.leaving[copy]

    async def _keep(self, leaving: asyncio.Task[None], wait: Wait, then: Callable[[], None]) -> None:
        await asyncio.wait((leaving,))
        wait.end()
        then()
        self._station.adapt_window()
