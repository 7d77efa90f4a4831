"""Work queues that are paused: their marks at the broker, and who is told that they were seen."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final

from atasks.transport.backends.amqp.broker.errors import CLIENT_ERRORS
from atasks.transport.backends.amqp.broker.questions import together

if TYPE_CHECKING:
    from atasks.transport.backends.amqp.worker.station import Station

__all__ = ["PausedQueues"]

logger = logging.getLogger("atasks.amqp")

MAX_LOOKS: Final = 10
"""Looks that may be asked for at a time: each sees what was marked before it began."""


class PausedQueues:
    """Has one worker consume those of its queues that are not paused.

    A pause is a mark at the broker, and a message to the workers is no more than a hint to look: so it does not
    matter which of two messages comes first, or that one gets lost with a connection.
    """

    def __init__(self, station: Station, queues: Sequence[str]) -> None:
        self._station = station
        self._queues = queues
        self._turn = asyncio.Lock()
        self._looks: set[asyncio.Task[None]] = set()

    async def look(self) -> None:
        """Look for the marks, and return when the worker acts as they say. Raises one of `CLIENT_ERRORS`."""
        async with self._turn:
            link, window = self._station.link, self._station.window
            if link is None or window is None or link is not window.link:
                return  # over the next link this is looked at anyway
            topology = self._station.session.topology
            marks = await together(*(link.queue_state(topology.paused(queue)) for queue in self._queues))
            paused = frozenset(queue for queue, mark in zip(self._queues, marks, strict=True) if mark is not None)
            for queue in sorted(paused ^ window.paused):
                logger.warning("queue %r is %s", queue, "paused" if queue in paused else "resumed")
            await window.hold(paused)

    def look_soon(self, then: Callable[[], None]) -> None:
        """Look, and call `then` if that went well."""
        if len(self._looks) < MAX_LOOKS:
            look = asyncio.create_task(self._look(then), name="atasks paused queues")
            self._looks.add(look)
            look.add_done_callback(self._looks.discard)

    async def _look(self, then: Callable[[], None]) -> None:
        try:
            await self.look()
        except CLIENT_ERRORS as error:
            logger.warning(
                "the marks of paused queues cannot be read, so this worker goes by the last ones: %s", error
            )
        else:
            then()

    async def close(self) -> None:
        """Look no more."""
        for look in self._looks:
            look.cancel()
        if self._looks:
            await asyncio.wait(list(self._looks))
